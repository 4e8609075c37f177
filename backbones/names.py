"""Names that users type: look one up in a table, or fail with the near ones."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


def unknown(name: object, known: Iterable[str], what: str) -> str:
    """The message for a name that is not known: what was asked for, the nearest names, and all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return f"unknown {what} {name!r}.{hint} Known: {', '.join(known) or 'none'}."


def choose(name: object, table: Mapping[str, T], what: str) -> T:
    """`table[name]`; a name that is not in the table raises ValueError with the near names."""
    if isinstance(name, str) and name in table:
        return table[name]
    raise ValueError(unknown(name, table, what))
