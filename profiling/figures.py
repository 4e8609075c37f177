"""Pictures of README and docs that are not part of a report, drawn from committed rows.

A page names the picture in a comment above it, and tools/make_tables.py draws it:

    <!-- figure: accuracy_by_size results/tradeoffs/rows.json results/tradeoffs/accuracy.json results/tradeoffs/accuracy_size.png -->

The last file is the picture, those before it hold the rows. The picture carries a digest of its rows, so that a test can tell when it is
older than they are.
"""

import difflib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .curves import latency_curves
from .report.fits import pareto_front
from .report.style import COLOURS, MARKERS, digest, digest_in, new_figure, png
from .tables import MIXERS, Costs, Measured, Row, Trained, mixer_of, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COMMENT = re.compile(r"<!-- figure: (\w+) (\S+(?: \S+)*) (\S+) -->")
FIGURES: dict[str, Callable[[Sequence[Row]], "Figure"]] = {}


def draw_figures(text: str, root: Path) -> list[Path]:
    """Draws every picture that a page names.

    Raises:
        ValueError: an unknown figure.
        FileNotFoundError: no such results file.
    """
    drawn = []
    for name, rows, path in _named(text, root):
        path.write_bytes(picture(name, rows))
        drawn.append(path)
    return drawn


def outdated_figures(text: str, root: Path) -> list[Path]:
    """The pictures that a page names and that are missing or were drawn from other rows.

    Raises:
        As `draw_figures`.
    """
    return [path for name, rows, path in _named(text, root) if not path.exists() or digest_in(path.read_bytes()) != digest(name, rows)]


def picture(name: str, rows: Sequence[Row]) -> bytes:
    """A PNG that carries the digest of its rows."""
    return png(FIGURES[name](rows), digest(name, rows))


def _named(text: str, root: Path) -> Iterator[tuple[str, list[Row], Path]]:
    """Name, rows and picture of each figure of a page."""
    for name, files, path in _COMMENT.findall(text):
        if name not in FIGURES:
            near = difflib.get_close_matches(name, FIGURES, n=1)
            raise ValueError(f"unknown figure {name!r}{f', did you mean {near[0]}?' if near else ''}; there are {', '.join(FIGURES)}")
        yield name, [row for file in files.split() for row in json.loads((root / file).read_text(encoding="utf-8"))], root / path


def figure(draw: Callable[[Sequence[Row]], "Figure"]) -> Callable[[Sequence[Row]], "Figure"]:
    """Registers a function from rows to a figure under its name."""
    FIGURES[draw.__name__] = draw
    return draw


@figure
def accuracy_by_size(rows: Sequence[Row]) -> "Figure":
    """mIoU against latency, a line per network through its image sizes, and the Pareto front of all points."""
    measured = Measured(rows)
    drawn = new_figure(7.2, 4.8)
    axes = drawn.subplots()
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
    return drawn


@figure
def accuracy_by_latency(rows: Sequence[Row]) -> "Figure":
    """The main metric of each network against its latency, with the range over its seeds and p20 to p80, and the Pareto front.

    A network with one seed has an open marker and no range.
    """
    drawn = new_figure(7.2, 4.8)
    _accuracy_panel(drawn.subplots(), rows)
    return drawn


@figure
def headline(rows: Sequence[Row]) -> "Figure":
    """Two panels: latency against the image's long side for networks without accuracies, and `accuracy_by_latency` of those with."""
    trained = {row["name"] for row in rows if row["kind"] == "accuracy"}
    drawn = new_figure(11.0, 4.4)
    left, right = drawn.subplots(1, 2, gridspec_kw=dict(wspace=0.22))
    measured = Measured([row for row in rows if row["name"] not in trained])
    looks = colours_and_markers(measured.names)
    for name in measured.names:
        times = [measured("speed", name, size, "forward")["latency_ms"] for size in measured.sizes]
        x, y = [max(size) for size in measured.sizes], [time["median"] / 1000 for time in times]
        error = [[(time["median"] - time["p20"]) / 1000 for time in times], [(time["p80"] - time["median"]) / 1000 for time in times]]
        mixer = mixer_of(name)
        title = f"hybrid small, {mixer}" if mixer else shown(name)
        left.errorbar(x, y, yerr=error, label=title, capsize=2, linewidth=1.4, **looks[name])
    left.set(xscale="log", yscale="log", xlabel="long side of the image (4:3), pixels", ylabel="forward pass of one image, s")
    left.set_xticks(x, [str(side) for side in x])
    left.yaxis.set_major_formatter(lambda value, position: f"{value:g}")
    left.minorticks_off()
    left.grid(alpha=0.3)
    left.legend(frameon=False, fontsize=8)
    left.set_title("What a large image costs", fontsize=10)
    _accuracy_panel(right, [row for row in rows if row["name"] in trained])
    right.set_title("What the masks are worth: CamVid, 500 iterations", fontsize=10)
    return drawn


def _accuracy_panel(axes: "Axes", rows: Sequence[Row]) -> None:
    trained, costs = Trained(rows), Costs(rows)
    metric = trained.metrics[0]
    points = {}
    for name in trained.runs:
        if name in costs.names:
            points[name] = (costs.latency(name)["median"], trained.scores(name, metric).mean)
    looks, single = colours_and_markers(list(points)), False
    for name in sorted(points, key=points.get):
        time, score, colour = costs.latency(name), trained.scores(name, metric), looks[name]["color"]
        (x, y), many = points[name], score.seeds > 1
        single |= not many
        error = dict(xerr=[[x - time["p20"]], [time["p80"] - x]], yerr=[[y - score.low], [score.high - y]] if many else None)
        axes.errorbar([x], [y], **error, capsize=2, elinewidth=1, zorder=3, **looks[name], markerfacecolor=colour if many else "white")
        side = more_room(points[name], list(points.values()))
        place = dict(xytext=(6 if side == "left" else -6, 5), textcoords="offset points", ha=side, fontsize=8)
        axes.annotate(shown(name), (x, y), color=colour, **place)
    order = list(points)
    front = [points[order[i]] for i in pareto_front(list(points.values()))]
    axes.step(
        *zip(*front, strict=True), where="post", color="#888888", linewidth=4, alpha=0.35, zorder=1, label="Pareto front of the means"
    )
    axes.margins(x=0.4, y=0.15)
    axes.set_xlabel(f"latency of one image of {costs.size[0]}x{costs.size[1]}, ms: median, p20 to p80")
    axes.set_ylabel(f"{metric} on the test split, %: mean and range over seeds")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8, title="open marker: one seed" if single else None, title_fontsize=8)


def colours_and_markers(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """How each network is drawn: a token mixer alike in every picture (the first network that has it), the others in the order given."""
    mixers, taken = list(MIXERS.values()), []
    others = itertools.count(len(mixers))
    for name in names:
        mixer = mixer_of(name)
        own = mixers.index(mixer) if mixer else None
        taken.append(next(others) if own is None or own in taken else own)
    return {n: dict(color=COLOURS[i % len(COLOURS)], marker=MARKERS[i % len(MARKERS)]) for n, i in zip(names, taken, strict=True)}


def more_room(point: tuple[float, float], points: Sequence[tuple[float, float]]) -> str:
    """Alignment of a label beside a point: "left" puts it to the right of the point, where the next one of about its height is farther."""
    heights = [y for _, y in points]
    near = [x - point[0] for x, y in points if abs(y - point[1]) <= 0.1 * (max(heights) - min(heights)) and x != point[0]]
    middle = (min(x for x, _ in points) + max(x for x, _ in points)) / 2
    right, left = (min((sign * d for d in near if sign * d > 0), default=None) for sign in (1, -1))
    if right is None and left is None:
        return "left" if point[0] <= middle else "right"
    return "left" if right is None or (left is not None and right >= left) else "right"


@figure
def latency_by_tokens(rows: Sequence[Row]) -> "Figure":
    """The sweep of a kernel benchmark: time against the number of tokens, by mode and provider."""
    timed = [row for row in rows if "latency_ms" in row["result"]]
    points = [row["condition"] | row["result"]["latency_ms"] | {"tokens": tokens(row["condition"])} for row in timed]
    first, where = timed[0]["condition"], timed[0]["provenance"]
    return latency_curves(
        points, f"{timed[0]['name']} ({first['axes']}), {first['dtype']}, {where['device']}, {where['threads']} CPU threads"
    )


def tokens(condition: Row) -> int:
    """Length of the sequences of a kernel benchmark."""
    sizes = dict(zip(condition["axes"].split(), condition["shape"], strict=True))
    return sizes["T"] if "T" in sizes else sizes["L"] if "L" in sizes else sizes["H"] * sizes["W"]
