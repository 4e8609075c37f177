"""Tables of a folder of configs: what they train, and what was published or measured for each.

The rows are those of the folder (`config_rows`), of configs/published.json (the authors' own accuracies), and of results files. A config
without a measured row is "not measured".
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from .base import Row, lines, table
from .names import backbone_of, place

_MASKS = re.compile(
    r"(?P<backbone>[a-z0-9-]+)_(?P<head>[a-z0-9]+)_(?P<gpus>\d+)xb(?P<batch>\d+)-(?P<length>\d+k?)_(?P<data>[a-z0-9]+)-(?P<height>\d+)x(?P<width>\d+)"
)
_CLASSES = re.compile(r"(?P<backbone>[a-z0-9-]+)_(?P<gpus>\d+)xb(?P<batch>\d+)-(?P<length>\d+)e_(?P<data>[a-z0-9]+)-(?P<side>\d+)")
DATA = {
    "ade20k": "ADE20K",
    "cityscapes": "Cityscapes",
    "voc12": "Pascal VOC 2012",
    "camvid": "CamVid",
    "kvasir": "Kvasir-SEG",
    "shapes": "shapes",
    "in1k": "ImageNet-1k",
    "caltech10": "Caltech-101, ten classes",
}
HEADS = {"upernet": "UPerHead", "semfpn": "Semantic FPN", "segformer": "all-MLP", "deeplabv3plus": "DeepLabV3+"}
# Kinds of rows that hold an accuracy.
TRAINED = ("accuracy", "classification", "comparison", "evaluation")
# Columns of measured values: result -> title, digits. The first is always there, the others where a row has them.
MASKS = {"mIoU": ("mIoU, %", 1), "mDice": ("mDice, %", 1), "pair_accuracy": ("linked or free disc told apart, %", 1)}
CLASSES = {"accuracy/top1": ("top-1, %", 1), "accuracy/top3": ("top-3, %", 1), "train_cpu_seconds": ("training, processor s", 0)}


def config_rows(folder: Path) -> list[Row]:
    """A row of kind "config" for each config of a folder.

    Raises:
        ValueError: a folder without configs.
    """
    found = [{"kind": "config", "name": path.stem, "condition": {"schedule": _schedule(path)}} for path in sorted(folder.glob("*.py"))]
    if not found:
        raise ValueError(f"{folder}: expected a folder of configs, got one without .py files")
    return found


@table
def configs(rows: Sequence[Row]) -> str:
    """Configs of segmentors, by data, crop and length of the training."""
    named = {name: _parsed(_MASKS, name) for name in _names(rows)}
    named = dict(sorted(named.items(), key=_mask_place))
    body = []
    for name, part in named.items():
        crop, length = f"{part['height']}x{part['width']}", f"{int(part['gpus']) * int(part['batch'])} x {part['length']}"
        body.append((name, [DATA[part["data"]], backbone_of(part["backbone"]), HEADS[part["head"]], crop, length]))
    return _with_values(["data", "backbone", "head", "crop", "batch x iterations"], body, rows, MASKS)


@table
def classifier_configs(rows: Sequence[Row]) -> str:
    """Configs of classifiers."""
    schedules = {row["name"]: row["condition"]["schedule"] for row in rows if row["kind"] == "config"}
    named = {name: _parsed(_CLASSES, name) for name in schedules}
    named = dict(sorted(named.items(), key=lambda item: place(item[1]["backbone"])))
    body = []
    for name, part in named.items():
        length = f"{int(part['gpus']) * int(part['batch'])} x {part['length']}"
        body.append((name, [backbone_of(part["backbone"]), f"{part['side']}x{part['side']}", length, f"`{schedules[name]}`"]))
    return _with_values(["backbone", "size", "batch x epochs", "recipe"], body, rows, CLASSES)


def _with_values(
    head: Sequence[str], body: Sequence[tuple[str, list[str]]], rows: Sequence[Row], columns: Mapping[str, tuple[str, int]]
) -> str:
    """The columns of a config, what was published and measured for it, and the link to it."""
    first = next(iter(columns))
    published = {row["name"]: row["result"][first] for row in rows if row["kind"] == "published" and first in row["result"]}
    measured = {name: [row["result"] for row in rows if is_of(row, name)] for name, _ in body}
    shown = [key for key in columns if key == first or any(key in result for results in measured.values() for result in results)]
    has_published = any(name in published for name, _ in body)
    titles = [*head, *([f"published {columns[first][0]}"] if has_published else []), *(columns[key][0] for key in shown), "config"]
    text = []
    for name, cells in body:
        value = [f"{published[name]:.1f}" if name in published else "none"] if has_published else []
        found = [_mean([result[key] for result in measured[name] if key in result], columns[key][1]) for key in shown]
        if not measured[name]:
            found[0] = "not measured"
        text.append([*cells, *value, *found, f"[config]({name}.py)"])
    return lines(titles, text)


def _mean(values: Sequence[float], places: int) -> str:
    """The value, or the mean of several trainings with lowest and highest; nothing where a training has another metric."""
    if not values:
        return ""
    text = f"{mean(values):.{places}f}"
    return text if len(values) == 1 else f"{text} ({min(values):.{places}f} to {max(values):.{places}f}, {len(values)} seeds)"


def is_of(row: Row, name: str) -> bool:
    """Whether a row measured this config as it stands, its test images of the size that it says."""
    if row["kind"] not in TRAINED or row["name"] != name:
        return False
    scales = [tuple(value)[::-1] for key, value in row["condition"].get("options", {}).items() if key.endswith(".scale")]
    crop = tuple(int(side) for side in re.search(r"(\d+)x(\d+)$", name).groups()) if scales else None
    return all(scale == crop for scale in scales)


def _names(rows: Sequence[Row]) -> list[str]:
    return [row["name"] for row in rows if row["kind"] == "config"]


def _parsed(pattern: re.Pattern, name: str) -> Mapping[str, Any]:
    found = pattern.fullmatch(name)
    if not found:
        raise ValueError(f"name of a config: expected the form {pattern.pattern}, got {name!r}")
    return found.groupdict()


def _mask_place(item: tuple[str, Mapping[str, str]]) -> tuple:
    part = item[1]
    length = int(part["length"].replace("k", "000"))
    return list(DATA).index(part["data"]), -int(part["height"]), list(HEADS).index(part["head"]), -length, place(part["backbone"])


def _schedule(path: Path) -> str:
    """The name of the schedule that a config, or the one that it builds on, names."""
    text = path.read_text(encoding="utf-8")
    if found := re.search(r"schedules/(\w+)\.py", text):
        return found[1]
    return _schedule(path.parent / re.search(r'^_base_ = "(.+)"$', text, re.M)[1])
