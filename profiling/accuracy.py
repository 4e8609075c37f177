"""Accuracy as a measurement row: from an evaluation that runs here, or from a results file, never typed in.

The numbers are per cent: mIoU, aAcc (pixels), mAcc (mean over the classes), `IoU.<class>`; of classifiers whatever their metric gives.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mmengine.device import get_device
from mmengine.registry import DATASETS, DefaultScope
from mmengine.utils import import_modules_from_strings

from ..engine.api import run_test
from ..engine.config import metrics_of
from ..engine.errors import LinescanError
from ..engine.noise import quiet_imports
from .provenance import SCHEMA, measurement_row, provenance, read_rows
from .subjects import CONFIG_SUFFIXES, Subject, read_config

# Kinds of rows that hold an accuracy beside other numbers.
KINDS = ("accuracy", "evaluation", "comparison")
METRIC = "mIoU"
METRICS = (METRIC, "aAcc", "mAcc")
# What a row's condition tells about the training and the data; the rest is about other measurements of the same row.
CONDITIONS = ("split", "images", "checkpoint", "sha256", "seed", "iterations", "epochs", "train_threads", "note", "options")


def evaluate(config: Path, checkpoint: Path, *, cfg_options: Mapping[str, Any] | None = None, work_dir: Path) -> dict[str, Any]:
    """Runs the test split of a config, on the device that MMEngine chooses (a GPU if there is one), with the IoU of every class.

    Args:
        config: config file with a test split.
        checkpoint: weights of exactly its model.
        cfg_options: dotted keys to values.
        work_dir: the run writes its log here.

    Returns:
        A row of kind "accuracy" under the stem of the config. Its condition: config, split, images (their number), checkpoint (file name),
        sha256 (of the checkpoint, the first 16 hexadecimal digits), source, options (cfg_options). A metric that is NaN is left out.

    Raises:
        ConfigError, CheckpointError: a file that is missing or does not fit.
        LinescanError: no metric gave a number.
    """
    cfg = read_config(Path(config), cfg_options, work_dir=work_dir)
    if cfg.get("test_evaluator") is not None and (metrics := metrics_of(cfg, ("IoUMetric", "PerClassIoUMetric"))):
        with quiet_imports():
            import_modules_from_strings("linescan.segmentation")  # registers the metric
        for metric in metrics:
            metric.type = "mmseg.PerClassIoUMetric"
    result = _numbers(run_test(cfg, checkpoint))
    if not result:
        raise LinescanError(f"{checkpoint}: its evaluation by {config} gave no number")
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
        images = len(DATASETS.build(cfg.test_dataloader.dataset))
    digest = hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest()[:16]
    condition = dict(config=Path(config).stem, split="test", images=images, checkpoint=Path(checkpoint).name, sha256=digest)
    condition |= {"source": "evaluated here", "options": json.loads(json.dumps(dict(cfg_options or {}), default=str))}
    return measurement_row("accuracy", condition["config"], condition=condition, result=result, device=get_device())


def read_accuracy(path: Path, subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    """The accuracies of these subjects in a file.

    A subject is meant where the name of its config file, or its own name, is the row's `condition["config"]` or name.

    Args:
        path: a results file (rows of kind accuracy, evaluation or comparison with mIoU), or a `metrics.json` of tools/test.py or of a
            trial, which belongs to the config that its folder is named after, or of which a copy lies beside it.
        subjects: whose accuracy is asked for.

    Returns:
        Rows of kind "accuracy" under the subjects' names, their provenance as in the file; `condition["source"]` says where they came from.
        What a `metrics.json` does not tell about its origin is None there, and the date is that of the file.

    Raises:
        LinescanError: a file that cannot be read, or that has no accuracy of any of the subjects; the message tells what is in it.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not JSON ({error})"
        raise LinescanError(f"{path}: cannot be read as a results file: {reason}") from error
    if isinstance(content, Mapping):
        found = _of_metrics(path, content)
    else:
        found = _of_rows(path)
    rows = []
    for subject in subjects:
        wanted = _names(subject)
        rows += [{**row, "name": subject.name} for names, row in found if names & wanted]
    if not rows:
        wanted = ", ".join(sorted({name for subject in subjects for name in _names(subject)})) or "no model"
        there = "those of " + ", ".join(sorted({name for names, _ in found for name in names}))
        if not found:
            there = f"none; its rows are of kind {', '.join(sorted({row['kind'] for row in content})) or 'none'}"
        raise LinescanError(f"{path}: no accuracy of {wanted}; the file has {there}")
    return rows


def _names(subject: Subject) -> set[str]:
    """What results files may call it; a model whose backbone or mixer was exchanged has its own name only."""
    return {subject.name, _stem(subject.source or subject.name)} if subject.role == "model" else {subject.name}


def _of_rows(path: Path) -> list[tuple[set[str], dict[str, Any]]]:
    """(names, row of kind accuracy) of every row with an accuracy in a results file."""
    try:
        rows = read_rows(path)
    except ValueError as error:
        raise LinescanError(str(error)) from error
    found = []
    for row in rows:
        if row["kind"] not in KINDS or not isinstance(row["result"], Mapping) or not isinstance(row["condition"], Mapping):
            continue
        result = {key: value for key, value in _numbers(row["result"]).items() if key in METRICS or key.startswith("IoU.")}
        if METRIC not in result:
            continue
        config = _stem(str(row["condition"].get("config", row["name"])))
        condition = {"config": config, **{key: row["condition"][key] for key in CONDITIONS if key in row["condition"]}}
        condition["source"] = row["condition"].get("source") if row["kind"] == "accuracy" else None
        condition["source"] = condition["source"] or f"row of kind {row['kind']} in {_shown(path)}"
        found.append(({config, row["name"]}, {**row, "kind": "accuracy", "condition": condition, "result": result}))
    return found


def _of_metrics(path: Path, content: Mapping[str, Any]) -> list[tuple[set[str], dict[str, Any]]]:
    """The same for a `metrics.json`."""
    metrics = content.get("metrics")
    result = _numbers(metrics) if isinstance(metrics, Mapping) else {}
    if not result:
        raise LinescanError(f"{path}: neither a list of rows nor a metrics.json; its keys are {', '.join(content) or 'none'}")
    folder = path.resolve().parent
    named_by = {copy.stem: f"the config beside it, {copy.name}" for copy in folder.glob("*.py")} | {folder.name: "its folder"}
    date = datetime.fromtimestamp(path.stat().st_mtime, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    origin = {**dict.fromkeys(provenance()), "versions": {}, "date": date}
    condition = {"split": "test", "checkpoint": Path(str(content.get("checkpoint"))).name}
    found = []
    for name, how in named_by.items():
        told = {"config": name, **condition, "source": f"{_shown(path)}, named by {how}"}
        row = {"schema": SCHEMA, "kind": "accuracy", "name": name, "condition": told, "result": result, "provenance": origin}
        found.append(({name}, row))
    return found


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics that are finite numbers, to four decimals: mmseg computes in float32."""
    numbers = {key: float(value) for key, value in metrics.items() if isinstance(value, int | float) or hasattr(value, "item")}
    return {key: round(value, 4) for key, value in numbers.items() if math.isfinite(value)}


def _stem(config: str) -> str:
    return Path(config).stem if config.endswith(CONFIG_SUFFIXES) else config


def _shown(path: Path) -> str:
    """Relative to the working folder, else the file in its folder: a results file names no one's home."""
    resolved, here = path.resolve(), Path.cwd().resolve()
    return os.fspath(resolved.relative_to(here)) if resolved.is_relative_to(here) else f"{resolved.parent.name}/{resolved.name}"
