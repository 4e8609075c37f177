"""Rows of a results file, ordered for a reader: which models there are, what each is held against, and under which settings they ran."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..provenance import ROW_KEYS, SCHEMA
from .text import one_line

# Kind of row -> keys that its condition must have, keys that its result must have (unless it is an error).
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "model": ((), ("parameters",)),
    "cost": (("size",), ("macs",)),
    "speed": (("size", "batch", "dtype", "mode"), ("latency_ms", "images_per_s")),
    "memory": (("size", "batch", "dtype", "mode"), ("peak_mib",)),
    "operators": (("size", "batch", "dtype", "mode"), ("milliseconds",)),
    "accuracy": ((), ()),
    "projection": (("size", "batch", "dtype", "device"), ("latency_ms", "peak_mib", "fits")),
    "projection_error": (("device", "dtype"), ("measured_over_estimated",)),
    "error": ((), ("error",)),
    "largest batch": ((), ("error",)),  # a row only where the search for it failed
}
SPREADS = ("latency_ms", "images_per_s", "ratio", "measured_over_estimated")
OUT_OF_MEMORY = "out of memory"

Row = Mapping[str, Any]
Size = tuple[int, int]


@dataclass(frozen=True)
class Setting:
    """What is the same for all models in one table or one panel of a plot, the image size apart.

    Attributes:
        device: name of the device, with its threads on a CPU.
        mode: "forward" or "training step".
        dtype: such as "fp32".
        batch: images per pass; None: for each model the largest that fits.
    """

    device: str
    mode: str
    dtype: str
    batch: int | None

    def text(self, *, device: bool = False) -> str:
        """ "forward, fp32, batch 1", with the device where it is asked for."""
        batch = "largest batch that fits" if self.batch is None else f"batch {self.batch}"
        return ", ".join([self.mode, self.dtype, batch, *([self.device] if device else [])])


def check_rows(rows: Iterable[Row]) -> list[Row]:
    """The rows as a list.

    Raises:
        ValueError: there are none, one has another schema, or one lacks a key that its kind must have; the message names row and key.
    """
    if isinstance(rows, str | bytes | Mapping):
        raise ValueError(f"rows must be a list of rows as read by linescan.profiling.read_rows, got {type(rows).__name__}")
    found = list(rows)
    if not found:
        raise ValueError("rows must hold at least one measurement, got an empty list")
    for number, row in enumerate(found):
        _check_row(row, f"rows[{number}]")
    return found


def _check_row(row: Any, where: str) -> None:
    if not isinstance(row, Mapping):
        raise ValueError(f"{where}: expected a mapping with the keys {', '.join(ROW_KEYS)}, got {type(row).__name__}")
    if missing := [key for key in ROW_KEYS if key not in row]:
        raise ValueError(f"{where}: lacks {', '.join(missing)}; rows are made by linescan.profiling.measurement_row")
    if row["schema"] != SCHEMA:
        raise ValueError(f"{where}: expected schema {SCHEMA}, got {row['schema']!r}")
    if row["kind"] not in KINDS:
        return
    where = f"{where} ({row['kind']} of {row['name']!r})"
    for part in ("condition", "result", "provenance"):
        if not isinstance(row[part], Mapping):
            raise ValueError(f"{where}: {part} must be a mapping, got {type(row[part]).__name__}")
    in_condition, in_result = KINDS[row["kind"]]
    if "error" in row["result"]:
        in_result = ("error",)
    for part, needed in (("condition", in_condition), ("result", in_result)):
        if missing := [key for key in needed if key not in row[part]]:
            raise ValueError(f"{where}: its {part} lacks {', '.join(missing)}, got {', '.join(row[part]) or 'nothing'}")
    size = row["condition"].get("size")
    if size is not None and not (isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size)):
        raise ValueError(f"{where}: size must be [height, width] in pixels, got {size!r}")
    for key in set(SPREADS) & set(row["result"]) if row["kind"] != "projection" else ():
        values = row["result"][key]
        if not isinstance(values, Mapping) or {"median", "p20", "p80"} - set(values):
            raise ValueError(f"{where}: {key} must hold median, p20 and p80, got {values!r}")


def size_of(row: Row) -> Size | None:
    """(height, width), None where the row has no size."""
    size = row["condition"].get("size")
    return None if size is None else (size[0], size[1])


def device_text(row: Row) -> str:
    """ "AMD EPYC, 2 threads", or the name of a GPU: threads matter on a CPU."""
    origin = row["provenance"]
    threads = origin.get("threads") if origin.get("device_type", "cpu") == "cpu" else None
    name = str(origin.get("device") or "unknown device")
    return f"{name}, {threads} thread{'s' * (threads != 1)}" if threads else name


def setting_of(row: Row) -> Setting:
    condition = row["condition"]
    batch = None if condition.get("largest_batch") else condition.get("batch")
    return Setting(device_text(row), condition.get("mode", "forward"), condition.get("dtype", "fp32"), batch)


class Report:
    """The rows by kind, and the models in the order of the tables.

    Attributes:
        rows: all rows that were given.
        names: models, baselines and controls in the order of their first row.
        other_kinds: kind that a report does not know -> number of rows, passed over.
    """

    def __init__(self, rows: Iterable[Row]):
        self.rows = check_rows(rows)
        self.other_kinds = dict(Counter(str(row["kind"]) for row in self.rows if row["kind"] not in KINDS))
        self._by_kind: dict[str, list[Row]] = {kind: [] for kind in KINDS}
        for row in self.rows:
            if row["kind"] in KINDS:
                self._by_kind[row["kind"]].append(row)
        self._at: dict[tuple[str, str, Size | None], list[Row]] = {}
        for kind, found in self._by_kind.items():
            for row in found:
                self._at.setdefault((kind, row["name"], size_of(row)), []).append(row)
        self.models = {row["name"]: row for row in self._by_kind["model"]}
        named = (row for kind, found in self._by_kind.items() if kind != "projection_error" for row in found)
        self.names = list(dict.fromkeys(row["name"] for row in named))

    def of_kind(self, *kinds: str) -> list[Row]:
        """Rows of these kinds, in the order given."""
        return [row for kind in kinds for row in self._by_kind[kind]]

    def measured(self, kind: str) -> list[Row]:
        """Rows of a kind that hold numbers, not an error."""
        return [row for row in self._by_kind[kind] if "error" not in row["result"]]

    def role(self, name: str) -> str:
        """ "model", "baseline" or "control"; a model that another one is held against is its baseline, even where a user asked for both."""
        role = self.models[name]["condition"].get("role", "model") if name in self.models else "model"
        return "baseline" if role == "model" and self.of(name) else role

    def of(self, name: str) -> tuple[str, ...]:
        """Names of the models that this one is baseline or control of."""
        return tuple(self.models[name]["condition"].get("of", ())) if name in self.models else ()

    def reference(self, name: str) -> str | None:
        """What a model is held against: its baseline, or else the model that its speed was divided by; None: nothing."""
        for other in self.names:
            if self.role(other) == "baseline" and name in self.of(other):
                return other
        references = [row["condition"].get("reference") for row in self._by_kind["speed"] if row["name"] == name]
        return next((other for other in references if other and other != name), None)

    @cached_property
    def ordered(self) -> list[str]:
        """Names with baselines and controls below the models that they belong to; models that share theirs stand together."""
        attached = {name: tuple(other for other in self.names if name in self.of(other)) for name in self.names}
        leaders = [name for name in self.names if self.role(name) == "model"]
        result: dict[str, None] = {}
        for leader in leaders:
            alike = [name for name in leaders if attached[name] and attached[name] == attached[leader]]
            result |= dict.fromkeys([*(alike or [leader]), *attached[leader]])
        return list(result | dict.fromkeys(self.names))

    def sorted(self, names: Iterable[str]) -> list[str]:
        """These names, each once, in the order of the tables."""
        wanted = set(names)
        return [name for name in self.ordered if name in wanted]

    def settings(self, *kinds: str, errors: bool = True) -> list[Setting]:
        """Settings of the rows of these kinds, forward before training, smaller batches first."""
        rows = [row for kind in kinds for row in (self._by_kind[kind] if errors else self.measured(kind)) if size_of(row)]
        found = list(dict.fromkeys(setting_of(row) for row in rows))
        dtypes = list(dict.fromkeys(setting.dtype for setting in found))
        devices = list(dict.fromkeys(setting.device for setting in found))

        def position(s: Setting) -> tuple:
            return devices.index(s.device), s.mode != "forward", s.mode, dtypes.index(s.dtype), s.batch is None, s.batch or 0

        return sorted(found, key=position)

    @cached_property
    def several_devices(self) -> bool:
        return len({setting.device for setting in self.settings("speed", "memory", "operators")}) > 1

    def setting_text(self, setting: Setting) -> str:
        return setting.text(device=self.several_devices)

    def sizes(self, setting: Setting, *kinds: str) -> list[Size]:
        """Sizes measured, or tried, under a setting, smallest first."""
        found = {size_of(row) for row in self.of_kind(*kinds) if size_of(row) and setting_of(row) == setting}
        return sorted(found, key=lambda size: (size[0] * size[1], size))

    def find(self, kind: str, name: str, size: Size, setting: Setting | None = None) -> Row | None:
        """The newest row of that kind: the last one, where a measurement was repeated."""
        for row in reversed(self._at.get((kind, name, size), [])):
            if setting is None or setting_of(row) == setting:
                return row
        return None

    @cached_property
    def accuracy(self) -> tuple[str | None, dict[str, float]]:
        """The split that most models were evaluated on, and mIoU there in per cent by model: numbers of different splits are no column."""
        by_split = {split: {name: mean_of(rows, "mIoU") for name, rows in found.items()} for split, found in self.evaluations().items()}
        by_split = {split: {name: value for name, value in found.items() if value is not None} for split, found in by_split.items()}
        split = max(by_split, key=lambda split: len(by_split[split]), default=None)
        return (split, by_split[split]) if split is not None and by_split[split] else (None, {})

    def evaluations(self) -> dict[str, dict[str, list[Row]]]:
        """Split -> model -> its rows of accuracy, one for each checkpoint; of a repeated evaluation the last."""
        found: dict[str, dict[str, dict[str, Row]]] = {}
        for row in self.measured("accuracy"):
            split = one_line(row["condition"].get("split") or "unnamed split")
            key = json.dumps(row["condition"], sort_keys=True, default=str)
            found.setdefault(split, {}).setdefault(row["name"], {})[key] = row
        return {split: {name: list(rows.values()) for name, rows in models.items()} for split, models in found.items()}


def mean_of(rows: Sequence[Row], key: str) -> float | None:
    """The mean of a number over rows (runs with several seeds); None where no row has it."""
    values = [row["result"][key] for row in rows if isinstance(row["result"].get(key), int | float)]
    return sum(values) / len(values) if values else None


def values_of(rows: Sequence[Row], part: str, *path: str) -> list[Any]:
    """The different values at a place of the rows, first seen first; rows without it are passed over."""
    found: list[Any] = []
    for row in rows:
        value: Any = row[part]
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None and value not in found:
            found.append(value)
    return found
