"""What every table is made of."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
TABLES: dict[str, Callable[[Sequence[Row]], str]] = {}


def table(render: Callable[[Sequence[Row]], str]) -> Callable[[Sequence[Row]], str]:
    """Registers a function from rows to Markdown under its name."""
    TABLES[render.__name__] = render
    return render


def lines(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    cells = [f"| {' | '.join(row)} |" for row in (head, *body)]
    return "\n".join([cells[0], "|---" * len(head) + "|", *cells[1:]]) + "\n"


def digits(value: float, count: int = 3) -> str:
    """At least `count` significant digits, never an exponent."""
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(count - 1 - magnitude, 0)}f}"


def spread(value: Mapping[str, float], form: str = ".2f") -> str:
    """Median with the 20th and 80th percentile."""
    return f"{value['median']:{form}} ({value['p20']:{form}} to {value['p80']:{form}})"
