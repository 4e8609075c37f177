"""Tables of networks that were trained with several seeds, from the rows of runs/train_seeds.py and a profile of the same configs.

    <!-- table: seeds results/camvid_cpu-2threads/accuracy.json results/camvid_cpu-2threads/rows.json -->
    <!-- table: seeds_by_class results/camvid_cpu-2threads/accuracy.json -->
    <!-- figure: accuracy_by_latency results/camvid_cpu-2threads/accuracy.json results/camvid_cpu-2threads/rows.json
         results/camvid_cpu-2threads/seeds_latency.png -->  (on one line)

The profile has one image size: the forward pass of one image, and a training step of more. Without a profile the first table has no costs.
The page says what the rows do not: the data, and whether mIoU is over classes or over images.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .base import Row, digits, lines, spread, table
from .names import shown
from .profiles import Measured

# Metrics that a table shows where the rows have them, the main one first.
METRICS = ("mDice", "mIoU")
CLASS = "IoU."


class Scores(NamedTuple):
    """One metric of a network over its seeds, in per cent: mean, lowest, highest, and the number of seeds."""

    mean: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.1f} ({self.low:.1f} to {self.high:.1f})" if self.seeds > 1 else f"{self.mean:.1f}"


class Trained:
    """Accuracies by network and seed. Of a run that is there twice the last row counts.

    Raises:
        ValueError: no row of kind "accuracy", or none of `METRICS` in all of them.
    """

    def __init__(self, rows: Sequence[Row]):
        self.runs: dict[str, dict[int, Mapping[str, Any]]] = {}
        for row in rows:
            if row["kind"] == "accuracy":
                self.runs.setdefault(row["name"], {})[row["condition"]["seed"]] = row["result"]
        results = [result for runs in self.runs.values() for result in runs.values()]
        self.metrics = [metric for metric in METRICS if results and all(metric in result for result in results)]
        if not self.metrics:
            raise ValueError(f"expected rows of kind accuracy that all have one of {', '.join(METRICS)}, got {len(results)} accuracies")
        self.classes = list(dict.fromkeys(key for result in results for key in result if key.startswith(CLASS)))

    def scores(self, name: str, metric: str) -> Scores | None:
        """None: no run of the network has the metric, as of a class that occurs nowhere."""
        values = [result[metric] for result in self.runs.get(name, {}).values() if metric in result]
        return Scores(sum(values) / len(values), min(values), max(values), len(values)) if values else None


class Costs:
    """The profile beside the accuracies: latency of one image, and the training step of the largest batch that was measured.

    Raises:
        ValueError: forward passes of other than one image size.
    """

    def __init__(self, rows: Sequence[Row]):
        profile = [row for row in rows if row["kind"] != "accuracy"]
        speeds = [row["condition"] for row in profile if row["kind"] == "speed"]
        sizes = sorted({tuple(condition["size"]) for condition in speeds})
        if len(sizes) != 1:
            raise ValueError(f"expected speeds at one image size, got {sizes}")
        self.size = sizes[0]
        self.batch = max((condition["batch"] for condition in speeds if condition["mode"] == "training step"), default=None)
        self.measured, self.steps = Measured(profile), Measured(profile, self.batch or 1)
        self.names = self.measured.names

    def latency(self, name: str) -> Mapping[str, float]:
        return self.measured("speed", name, self.size, "forward")["latency_ms"]

    def head(self) -> list[str]:
        titles = ["parameters, M", "GMACs", f"{self.size[0]}x{self.size[1]}, ms: median (p20 to p80)"]
        return titles if self.batch is None else [*titles, f"training, images/s at batch {self.batch}"]

    def cells(self, name: str) -> list[str]:
        """Under `head`."""
        if name not in self.names:
            return ["not measured"] * len(self.head())
        cells = [digits(self.measured("model", name)["parameters"] / 1e6), digits(self.measured("cost", name, self.size)["macs"] / 1e9)]
        cells.append(spread(self.latency(name), ".1f"))
        if self.batch is not None:
            there = self.steps.has("speed", name, self.size, "training step")
            cells.append(
                f"{self.steps('speed', name, self.size, 'training step')['images_per_s']['median']:.1f}" if there else "not measured"
            )
        return cells


@table
def seeds(rows: Sequence[Row]) -> str:
    """What each network reaches, mean and range over its seeds, and what it costs."""
    trained, costs = Trained(rows), Costs(rows) if any(row["kind"] != "accuracy" for row in rows) else None
    head = ["network", "seeds", *(f"{metric}, %: mean (lowest to highest)" for metric in trained.metrics), *(costs.head() if costs else [])]
    body = []
    for name in dict.fromkeys([*trained.runs, *(costs.names if costs else [])]):
        scores = [trained.scores(name, metric) for metric in trained.metrics]
        accuracies = [str(score) if score else "not in these rows" for score in scores]
        body.append([shown(name), str(len(trained.runs.get(name, {}))), *accuracies, *(costs.cells(name) if costs else [])])
    return lines(head, body)


@table
def seeds_by_class(rows: Sequence[Row]) -> str:
    """IoU of every class, mean over the seeds."""
    trained = Trained(rows)
    if not trained.classes:
        raise ValueError(f"expected rows with {CLASS}<class>, got none")
    head = ["IoU, %: mean over the seeds", "seeds", *(name.removeprefix(CLASS) for name in trained.classes)]
    body = []
    for name, runs in trained.runs.items():
        scores = [trained.scores(name, key) for key in trained.classes]
        body.append([shown(name), str(len(runs)), *(f"{score.mean:.1f}" if score else "absent" for score in scores)])
    return lines(head, body)
