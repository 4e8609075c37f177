"""Latency and memory against resolution, and accuracy against latency."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from .data import OUT_OF_MEMORY, Report, Row, Setting, Size, setting_of, size_of
from .fits import loglog_slope, pareto_front
from .labels import Point, place_labels
from .style import Look, looks, new_figure
from .text import size_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

PANEL_WIDTH, PANEL_HEIGHT, LEGEND_LINE = 5.4, 3.6, 0.185  # inches


def latency(report: Report) -> "Figure | None":
    """Median latency with its 20th to 80th percentile; None where no setting has two sizes."""
    return _against_size(
        report, "speed", "latency, ms per batch", lambda row: tuple(row["result"]["latency_ms"][k] for k in ("p20", "median", "p80"))
    )


def memory(report: Report) -> "Figure | None":
    """Peak memory; None where no setting has two sizes."""
    return _against_size(report, "memory", "peak memory, MiB", lambda row: (row["result"]["peak_mib"],) * 3)


def _against_size(report: Report, kind: str, title: str, values: Callable[[Row], Sequence[float]]) -> "Figure | None":
    """One panel per setting, log-log; `values` gives low, middle and high of a row."""
    settings = [s for s in report.settings(kind, errors=False) if s.batch is not None and len(_measured_sizes(report, kind, s)) > 1]
    if not settings:
        return None
    style = looks(report)
    columns = min(2, len(settings))
    rows = -(-len(settings) // columns)
    lines = max(len({row["name"] for row in report.of_kind(kind) if _setting(row) == s}) for s in settings) + 2
    figure = new_figure(PANEL_WIDTH * columns, rows * (PANEL_HEIGHT + LEGEND_LINE * lines + 0.3))
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes, setting in zip(panels, settings, strict=False):
        _draw_panel(axes, report, kind, setting, style, values)
        axes.set_title(report.setting_text(setting), fontsize=10)
        axes.set_ylabel(title)
    for axes in list(figure.axes)[len(settings) :]:
        axes.remove()
    return figure


def _setting(row: Row) -> Setting | None:
    return setting_of(row) if size_of(row) else None


def _measured_sizes(report: Report, kind: str, setting: Setting) -> list[Size]:
    found = {size_of(row) for row in report.measured(kind) if _setting(row) == setting}
    return sorted(found, key=lambda size: (size[0] * size[1], size))


def _draw_panel(
    axes: "Axes", report: Report, kind: str, setting: Setting, style: dict[str, Look], values: Callable[[Row], Sequence[float]]
) -> None:
    sizes = report.sizes(setting, kind)
    lost = 0
    for name in report.ordered:
        rows = {size: row for size in sizes if (row := report.find(kind, name, size, setting))}
        points = {size: values(row) for size, row in rows.items() if "error" not in row["result"]}
        points = {size: point for size, point in points.items() if min(point) > 0}  # a peak may round to zero, which has no logarithm
        look = style[name]
        if points:
            _draw_line(axes, points, look)
        for size in (size for size, row in rows.items() if row["result"].get("error") == OUT_OF_MEMORY):
            top = axes.get_xaxis_transform()  # x in pixels, y as a share of the panel's height
            axes.plot(_side(size), 0.97 - 0.05 * lost, marker="x", color=look.colour, markersize=8, markeredgewidth=2, transform=top)
            lost += 1
    _log_axes(axes, sizes)
    if lost:
        axes.plot([], [], marker="x", linestyle="", color="#555555", markersize=8, markeredgewidth=2, label="out of memory")
        low, high = axes.get_ylim()  # room for the crosses above the lines
        axes.set_ylim(low, high * (high / low) ** 0.15)
    _legend_below(axes)


def _legend_below(axes: "Axes") -> None:
    """A legend under the label of the x axis, at a distance in inches: the height of a panel changes with the figure."""
    from matplotlib.transforms import ScaledTranslation

    turned = any(label.get_rotation() for label in axes.get_xticklabels())
    place = axes.transAxes + ScaledTranslation(0, -0.85 if turned else -0.5, axes.figure.dpi_scale_trans)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        bbox_transform=place,
        frameon=False,
        fontsize=8,
        handlelength=3,
        title="slope: exponent of the number of pixels",
        title_fontsize=8,
    )


def _draw_line(axes: "Axes", points: dict[Size, Sequence[float]], look: Look) -> None:
    x = [_side(size) for size in points]
    low, middle, high = zip(*points.values(), strict=True)
    pixels = [size[0] * size[1] for size in points]
    slope = f", slope {loglog_slope(pixels, middle):.2f}" if len(set(pixels)) > 1 else ""
    axes.fill_between(x, low, high, color=look.colour, alpha=0.15, linewidth=0)
    axes.plot(x, middle, color=look.colour, marker=look.marker, linestyle=look.line, markersize=5, linewidth=1.6, label=look.label + slope)


def _side(size: Size) -> float:
    """The side of a square with as many pixels."""
    return (size[0] * size[1]) ** 0.5


def _log_axes(axes: "Axes", sizes: Sequence[Size]) -> None:
    """Logarithmic axes with plain numbers: the measured sizes below, 1, 2 and 5 times powers of ten at the left."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    sides = [_side(size) for size in sizes]
    axes.xaxis.set_major_locator(FixedLocator(sides))
    axes.xaxis.set_major_formatter(FixedFormatter([size_text(size) for size in sizes]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(sides[0] / 1.12, sides[-1] * 1.12)
    if any(b / a < 1.3 for a, b in pairwise(sides)):
        axes.tick_params(axis="x", labelrotation=45)
    _plain_ticks(axes.yaxis, *axes.get_ylim())
    axes.set_xlabel("image size, pixels (height x width; one number: square)")
    axes.grid(alpha=0.3)


def _plain_ticks(axis: "Axis", low: float, high: float) -> None:
    """Ticks of a logarithmic axis at 1, 2 and 5 times powers of ten, closer or wider where the range is small or large; no exponents."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    span = high / low
    subs = (1,) if span > 3000 else (1, 2, 5) if span > 8 else (1, 1.5, 2, 3, 4, 5, 6, 8) if span > 2 else [1 + i / 10 for i in range(90)]
    axis.set_major_locator(LogLocator(subs=subs, numticks=30))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6f}".rstrip("0").rstrip(".")))
    axis.set_minor_locator(NullLocator())


def accuracy_latency(report: Report) -> "Figure | None":
    """Accuracy against latency with the Pareto front, a panel per size and setting in forward mode at the smallest batch.

    None where no model has both.
    """
    split, accuracy = report.accuracy
    panels = []
    for setting, size in _forward_panels(report):
        rows = {name: report.find("speed", name, size, setting) for name in report.ordered if name in accuracy}
        points = {name: row["result"]["latency_ms"] for name, row in rows.items() if row and "error" not in row["result"]}
        if points:
            panels.append((setting, size, points))
    if not panels:
        return None
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(6.0 * columns, 4.4 * rows + 0.3)
    style = looks(report)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (setting, size, points) in zip(grid, panels, strict=False):
        _draw_front(axes, points, accuracy, style)
        axes.set_title(f"{size_text(size)} pixels, {report.setting_text(setting)}", fontsize=10)
        axes.set_ylabel(f"mIoU on {split}, %")
    for axes in grid[len(panels) :]:
        axes.remove()
    marks = [
        [Point(spread["median"], spread["p20"], spread["p80"], accuracy[name], style[name]) for name, spread in points.items()]
        for _, _, points in panels
    ]
    place_labels(figure, grid[: len(panels)], marks)
    return figure


def _forward_panels(report: Report) -> list[tuple[Setting, Size]]:
    settings = [s for s in report.settings("speed", errors=False) if s.mode == "forward" and s.batch is not None]
    smallest = {(s.device, s.dtype): min(o.batch for o in settings if (o.device, o.dtype) == (s.device, s.dtype)) for s in settings}
    kept = [s for s in settings if s.batch == smallest[s.device, s.dtype]]
    return [(setting, size) for setting in kept for size in _measured_sizes(report, "speed", setting)]


def _draw_front(axes: "Axes", points: dict[str, dict[str, float]], accuracy: dict[str, float], style: dict[str, Look]) -> None:
    names = list(points)
    pairs = [(points[name]["median"], accuracy[name]) for name in names]
    for name, (x, y) in zip(names, pairs, strict=True):
        error = [[max(x - points[name]["p20"], 0)], [max(points[name]["p80"] - x, 0)]]
        axes.errorbar(x, y, xerr=error, fmt=style[name].marker, color=style[name].colour, markersize=7, capsize=2.5, elinewidth=1, zorder=3)
    axes.set_xscale("log")
    axes.set_xlim(min(x for x, _ in pairs) / 1.6, max(x for x, _ in pairs) * 1.6)
    axes.margins(y=0.22)
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    front = [pairs[i] for i in pareto_front(pairs)]
    # From the lower edge to the right one, so that a front of one point is seen as well.
    x, y = zip((front[0][0], bottom), *front, (right, front[-1][1]), strict=True)
    axes.step(x, y, where="post", color="#888888", linewidth=1.2, zorder=1, label="Pareto front")
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    _plain_ticks(axes.xaxis, left, right)
    axes.set_xlabel("latency, ms per batch (bars: p20 to p80)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
