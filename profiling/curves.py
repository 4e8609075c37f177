"""Curves: training curves of several runs, read from the scalars that MMEngine writes, and latencies of operators against tokens."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def read_scalars(path: str | Path) -> dict[str, list[tuple[int, float]]]:
    """The series of a run: name -> [(iteration, value), ...], from a `scalars.json` (one JSON object a line).

    Training rows carry `iter`; validation rows carry `step`, which is the iteration as well. A last line cut off by a crash is left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is not JSON, other than the last.
    """
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    series: dict[str, list[tuple[int, float]]] = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number}: expected a JSON object, got {line[:60]!r}") from error
        step = row.get("iter", row.get("step"))
        for name, value in row.items():
            if name not in ("iter", "step", "epoch") and isinstance(value, int | float):
                series.setdefault(name, []).append((int(step), float(value)))
    return series


def plot_curves(
    runs: Mapping[str, str | Path], panels: Sequence[tuple[str, str]], out: str | Path, *, log_scale: Sequence[str] = ("loss",)
) -> None:
    """One panel per series, one line per run.

    Args:
        runs: label -> scalars.json.
        panels: (series, label of the y axis).
        out: the picture to write; its suffix names the format.
        log_scale: series with a logarithmic y axis.
    """
    # Without pyplot nothing here depends on a display or on global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(panels), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    data = {label: read_scalars(path) for label, path in runs.items()}
    for axes, (name, title) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for label, series in data.items():
            if points := series.get(name):
                axes.plot(*zip(*points, strict=True), label=label, marker="o" if len(points) < 20 else None, markersize=3)
        axes.set_xlabel("iteration")
        axes.set_ylabel(title)
        if name in log_scale:
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(out, dpi=130)


def latency_curves(rows: Sequence[Mapping[str, Any]], title: str) -> "Figure":
    """Time against the number of tokens: a panel per mode, a line per provider through the medians, a band from p20 to p80.

    Args:
        rows: each with mode, provider, tokens, and median, p20, p80 in milliseconds.
        title: above all panels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    modes = list(dict.fromkeys(row["mode"] for row in rows))
    figure = Figure(figsize=(4.2 * len(modes), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(modes), squeeze=False, sharey=True)[0]
    for axes, mode in zip(panels, modes, strict=True):
        for provider in sorted({row["provider"] for row in rows}):
            points = sorted((row for row in rows if (row["mode"], row["provider"]) == (mode, provider)), key=lambda row: row["tokens"])
            x, low, middle, high = ([row[key] for row in points] for key in ("tokens", "p20", "median", "p80"))
            axes.plot(x, middle, marker="o", label=provider)
            axes.fill_between(x, low, high, alpha=0.2)
        axes.set(title=mode, xlabel="tokens T", xscale="log", yscale="log")
        axes.grid(alpha=0.3, which="both")
    panels[0].set_ylabel("latency (ms)")
    panels[0].legend(loc="upper left")
    figure.suptitle(title, fontsize=10)
    return figure
