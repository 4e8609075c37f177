"""Import and run-time noise of the OpenMMLab packages, silenced here and nowhere else.

Everything on these lists was seen in a healthy run and asks for nothing. Unknown messages pass.
"""

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import TextIO

_IMPORT_LINES = ("Could not import OneDL",)
_WARNINGS = (
    r".*MultiScaleDeformableAttention.*",
    r".*torch\.jit\.(script|interface).*deprecated.*",
    r".*`prefix` is not set in metric class.*",
    r".*avg_non_ignore.*",
    r".*FileClient.*deprecated.*",
    r".*HardDiskBackend.*",
    r".*broadcast_buffers.*",
    r".*The draw is False, it means that the hook for visualization.*",
)
_FILE_ONLY = (
    "Config:",
    "Hooks will be executed",
    "\n---",
    "paramwise_options",
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias',
    "Distributed training is not used",
)


def silence_warnings() -> None:
    """Ignore the known warnings for the rest of the process."""
    for pattern in _WARNINGS:
        warnings.filterwarnings("ignore", message=pattern)


class _WithoutKnownLines(io.TextIOBase):
    """Forwards whole lines to standard output, except those that hold a known import message.

    A log handler may keep it beyond its use: from then on it writes to whatever standard output is, never to a stream that was closed.
    """

    def __init__(self) -> None:
        self.redirected: TextIO | None = sys.stdout
        self.line = ""

    @property
    def stream(self) -> TextIO:
        return self.redirected or sys.stdout

    def write(self, text: str) -> int:
        *lines, self.line = (self.line + text).split("\n")
        self.stream.writelines(f"{line}\n" for line in lines if not any(known in line for known in _IMPORT_LINES))
        return len(text)

    def flush(self) -> None:
        self.stream.flush()

    def release(self) -> None:
        """Standard output is itself again."""
        self.stream.write(self.line)
        self.line, self.redirected = "", None


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Within it, known import lines do not reach standard output."""
    silence_warnings()
    stream = _WithoutKnownLines()
    try:
        with contextlib.redirect_stdout(stream):
            yield
    finally:
        stream.release()


class ShortConsole(logging.Filter):
    """For a console handler: dumps of the environment, the config and the hooks, and known noise, go to the log file only."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(_FILE_ONLY)
