"""Stacked bars: where the time, the multiply-adds, the activations and the parameters of each model are."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .data import Report, setting_of, size_of
from .sections import MIB
from .style import category_colours, in_usual_order, looks, new_figure, plain
from .text import one_line, significant, size_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Bars = Mapping[str, Mapping[str, float]]  # model -> part -> value
MOST = 12  # parts with a colour of their own
REST = "smaller parts"


def operators(report: Report) -> "Figure | None":
    """Milliseconds by category of operator, a panel per setting and size."""
    panels: dict[str, Bars] = {}
    for setting in report.settings("operators", errors=False):
        rows = [row for row in report.measured("operators") if size_of(row) and setting_of(row) == setting]
        for size in dict.fromkeys(size_of(row) for row in sorted(rows, key=lambda row: size_of(row)[0] * size_of(row)[1])):
            title = f"{size_text(size)} pixels, {report.setting_text(setting)}"
            panels[title] = {row["name"]: row["result"]["milliseconds"] for row in rows if size_of(row) == size}
    return _stacked(report, panels, "time under the profiler, ms per pass", "ms")


def macs(report: Report) -> "Figure | None":
    """Multiply-adds by kind of operator, a panel per size."""
    return _stacked(report, _by_size(report, "macs_by_operator", 1e9), "MACs of one image, G", "G")


def activations(report: Report) -> "Figure | None":
    """What a training step keeps for the backward pass, by stage, a panel per size."""
    return _stacked(report, _by_size(report, "activation_bytes_by_stage", MIB), "activations kept for one image, MiB", "MiB")


def parameters(report: Report) -> "Figure | None":
    """Parameters by type of module."""
    rows = {name: report.models[name]["result"].get("parameters_by_type") or {} for name in report.models}
    bars = {name: {part: value / 1e6 for part, value in parts.items()} for name, parts in rows.items() if parts}
    return _stacked(report, {"": bars} if bars else {}, "parameters, M", "M")


def _by_size(report: Report, key: str, unit: float) -> dict[str, Bars]:
    rows = [row for row in report.measured("cost") if row["result"].get(key)]
    panels: dict[str, dict[str, Mapping[str, float]]] = {}
    for row in sorted(rows, key=lambda row: size_of(row)[0] * size_of(row)[1]):
        parts = {part: value / unit for part, value in row["result"][key].items()}
        panels.setdefault(f"{size_text(size_of(row))} pixels", {})[row["name"]] = parts
    return panels


def _stacked(report: Report, panels: Mapping[str, Bars], label: str, unit: str) -> "Figure | None":
    """Horizontal bars, each panel with its own scale: the sizes of images differ by orders of magnitude."""
    if not panels:
        return None
    parts = _largest_parts(panels)
    colours = category_colours(parts)
    style = looks(report)
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    bars = max(len(values) for values in panels.values())
    legend_rows = -(-len(parts) // (3 * columns))
    wide = 4.4 + 0.06 * max(len(style[name].label) for values in panels.values() for name in values)
    figure = new_figure(wide * columns, rows * (0.95 + 0.34 * bars) + 0.22 * legend_rows + 0.2)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (title, values) in zip(grid, panels.items(), strict=False):
        _draw_bars(axes, {name: values[name] for name in report.sorted(values)}, parts, colours, unit)
        axes.set_yticks(range(len(values)), [style[name].label for name in report.sorted(values)], fontsize=8)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(label, fontsize=9)
    for axes in grid[len(panels) :]:
        axes.remove()
    from matplotlib.patches import Patch

    handles = [Patch(color=colours[part], label=plain(one_line(part) or "(the model itself)")) for part in parts]
    figure.legend(handles=handles, loc="outside lower center", ncols=3 * columns, frameon=False, fontsize=8)
    return figure


def _largest_parts(panels: Mapping[str, Bars]) -> list[str]:
    """The parts that get a colour: the largest by their share of a bar, categories in their usual order; the others are drawn as one."""
    share: dict[str, float] = {}
    for bars in panels.values():
        for values in bars.values():
            total = sum(values.values()) or 1
            for part, value in values.items():
                share[part] = max(share.get(part, 0), value / total)
    share = {part: largest for part, largest in share.items() if largest}
    kept = sorted(share, key=lambda part: -share[part])[: MOST if len(share) <= MOST else MOST - 1]
    return in_usual_order(part for part in share if part in kept) + ([REST] if len(share) > MOST else [])


def _draw_bars(axes: "Axes", bars: Bars, parts: Sequence[str], colours: Mapping[str, str], unit: str) -> None:
    longest = max((sum(values.values()) for values in bars.values()), default=0) or 1
    for place, values in enumerate(bars.values()):
        total, left = sum(values.values()), 0.0
        shown = {part: values.get(part, 0) for part in parts if part != REST}
        if REST in parts:
            shown[REST] = total - sum(shown.values())
        for part, value in shown.items():
            axes.barh(place, value, left=left, height=0.72, color=colours[part], edgecolor="white", linewidth=0.5)
            if value > 0.1 * longest:
                dark = _is_dark(colours[part])
                share = f"{100 * value / total:.0f} %"
                axes.text(left + value / 2, place, share, ha="center", va="center", fontsize=7, color="white" if dark else "black")
            left += value
        axes.text(left + 0.012 * longest, place, f"{significant(total)} {unit}", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.3 * longest)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def _is_dark(colour: str) -> bool:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue < 140
