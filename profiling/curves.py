"""Training curves of several runs in one picture, read from the scalars that MMEngine writes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path


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
