"""What the command-line tools share: loading policy, error reporting."""

import os
import sys
import traceback
from collections.abc import Callable

from .errors import LinescanError

DEBUG = "LINESCAN_DEBUG"


def run_tool(main: Callable[[], None]) -> None:
    """Run `main`. A user's mistake ends in one line on standard error and exit status 1; everything else keeps its traceback.

    `LinescanError`, `OSError` and `ValueError` count as such mistakes: the product raises them for bad input, with the argument or file
    in the message. The line says where the error was raised. With --debug on the command line or LINESCAN_DEBUG=1 the traceback is
    printed for them too.
    """
    try:
        main()
    except (LinescanError, OSError, ValueError) as error:
        if "--debug" in sys.argv or os.environ.get(DEBUG, "0") not in ("", "0"):
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = (
            "" if isinstance(error, LinescanError) else f" [{type(error).__name__} at {os.path.basename(frame.filename)}:{frame.lineno}]"
        )
        print(f"error: {_message(error)}{where} (--debug shows the traceback)", file=sys.stderr)
        sys.exit(1)


def _message(error: BaseException) -> str:
    """One line. A data loader's worker sends its whole traceback as the message: the last line says what happened."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1] if lines[0].startswith("Caught ") else " ".join(lines)
