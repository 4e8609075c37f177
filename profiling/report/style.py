"""Colours, markers and lines shared by all plots: one colour per model in every picture, told apart by colour-blind readers too."""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .data import Report
from .text import short_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette (without its yellow, too pale for lines), then the dark colours of Paul Tol's "muted" one.
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#882255",
    "#999933",
    "#332288",
    "#117733",
    "#AA4499",
    "#777777",
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h", "*")
LINES = {"model": "-", "baseline": "--", "control": ":"}
# Time by operator: a colour per category, the same in every report.
CATEGORY_COLOURS = {
    "convolution": "#0072B2",
    "linear": "#56B4E9",
    "matmul": "#332288",
    "attention": "#D55E00",
    "scan": "#009E73",
    "normalisation": "#E69F00",
    "activation": "#CC79A7",
    "element-wise": "#DDCC77",
    "data movement": "#BBBBBB",
    "resampling and pooling": "#999933",
    "optimizer": "#882255",
    "other": "#666666",
}
_SAME = {"conv": "convolution", "Conv2d": "convolution", "Linear": "linear", "bi_wkv": "scan"}
DPI = 130


@dataclass(frozen=True)
class Look:
    """How a model is drawn."""

    label: str
    colour: str
    marker: str
    line: str


def looks(report: Report) -> dict[str, Look]:
    """Model -> its look: label, colour and marker stay the same in all plots; a baseline is dashed, a control dotted."""
    labels = short_names(report.ordered, width=40)
    found = {}
    for index, name in enumerate(report.ordered):
        role = report.role(name)
        label = labels[name] + (f" ({role})" if role != "model" else "")
        found[name] = Look(plain(label), COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)], LINES.get(role, "-"))
    return found


def plain(text: str) -> str:
    """Text that matplotlib draws as it is: no formula between dollars, and no label that it drops for a leading underscore."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def category_colours(categories: Sequence[str]) -> dict[str, str]:
    """Category -> colour; names outside of the fixed table get the colours that are left."""
    known = {name: CATEGORY_COLOURS[_SAME.get(name, name)] for name in categories if _SAME.get(name, name) in CATEGORY_COLOURS}
    left = [colour for colour in (*CATEGORY_COLOURS.values(), *COLOURS) if colour not in known.values()]
    return {name: known.get(name) or left.pop(0) if left else "#666666" for name in categories}


def in_usual_order(parts: Iterable[str]) -> list[str]:
    """Categories of operators in their fixed order, then what has no place in it."""
    parts = list(parts)
    return [name for name in CATEGORY_COLOURS if name in parts] + [name for name in parts if name not in CATEGORY_COLOURS]


def new_figure(width: float, height: float) -> "Figure":
    """A white figure that depends on no display and no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def png(figure: "Figure", carried: str | None = None) -> bytes:
    """The picture, with a small margin around all that was drawn, legends included.

    Args:
        figure: what was drawn.
        carried: the `digest` of the rows that it was drawn from; kept in the file's text under "rows", `digest_in` reads it.
    """
    buffer = io.BytesIO()
    metadata = {"rows": carried} if carried else {}
    figure.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.12, metadata=metadata)
    return buffer.getvalue()


def digest(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 over the name of a figure and its rows, in hexadecimal digits: other rows, another digest."""
    return hashlib.sha256("\n".join([name, *(json.dumps(row, sort_keys=True) for row in rows)]).encode()).hexdigest()


def digest_in(picture: bytes) -> str | None:
    """The digest that a PNG file carries, None where it has none. A text stands in the file as "tEXt", its key, a zero byte, the text."""
    found = re.search(rb"tEXtrows\0([0-9a-f]{64})", picture)
    return found[1].decode() if found else None
