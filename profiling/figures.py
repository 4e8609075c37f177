"""Pictures of README and docs that are not part of a report, drawn from committed rows.

A page names the picture in a comment above it, and tools/make_tables.py draws it:

    <!-- figure: accuracy_by_size results/tradeoffs/rows.json results/tradeoffs/accuracy.json results/tradeoffs/accuracy_size.png -->

The last file is the picture, those before it hold the rows.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from .report.fits import pareto_front
from .report.style import COLOURS, MARKERS, new_figure, png
from .tables import Measured, Row, shown

_COMMENT = re.compile(r"<!-- figure: (\w+) (\S+(?: \S+)*) (\S+) -->")


def draw_figures(text: str, root: Path) -> list[Path]:
    """Draws every picture that a page names.

    Raises:
        ValueError: an unknown figure.
        FileNotFoundError: no such results file.
    """
    drawn = []
    for name, files, picture in _COMMENT.findall(text):
        if name not in FIGURES:
            raise ValueError(f"unknown figure {name!r}; there are {', '.join(FIGURES)}")
        rows = [row for file in files.split() for row in json.loads((root / file).read_text(encoding="utf-8"))]
        (root / picture).write_bytes(FIGURES[name](rows))
        drawn.append(root / picture)
    return drawn


def accuracy_by_size(rows: Sequence[Row]) -> bytes:
    """A PNG: mIoU against latency, a line per network through its image sizes, and the Pareto front of all points."""
    measured = Measured(rows)
    figure = new_figure(7.2, 4.8)
    axes = figure.subplots()
    everything = []
    for index, name in enumerate(name for name in measured.names if any(measured.has("accuracy", name, size) for size in measured.sizes)):
        sizes = [size for size in measured.sizes if measured.has("accuracy", name, size)]
        times = [measured("speed", name, size, "forward")["latency_ms"] for size in sizes]
        x, y = [time["median"] for time in times], [measured("accuracy", name, size)["mIoU"] for size in sizes]
        error = [[time["median"] - time["p20"] for time in times], [time["p80"] - time["median"] for time in times]]
        look = dict(color=COLOURS[index], marker=MARKERS[index])
        axes.errorbar(x, y, xerr=error, label=shown(name), capsize=2, elinewidth=1, linewidth=1.2, zorder=3, **look)
        for point, size in zip(zip(x, y, strict=True), sizes, strict=True):
            axes.annotate(f"{size[0]}", point, xytext=(3, 5), textcoords="offset points", fontsize=7, color="#333333")
        everything += zip(x, y, strict=True)
    front = [everything[i] for i in pareto_front(everything)]
    axes.step(*zip(*front, strict=True), where="post", color="#888888", linewidth=4, alpha=0.35, zorder=1, label="Pareto front")
    axes.set_xscale("log")
    for ticks in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        ticks(lambda value, position: f"{value:g}")
    axes.set_xlabel("latency of one image, ms (numbers: height of the image in pixels)")
    axes.set_ylabel("mIoU on the test split, %")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False, fontsize=8)
    return png(figure)


FIGURES: dict[str, Callable[[Sequence[Row]], bytes]] = {"accuracy_by_size": accuracy_by_size}
