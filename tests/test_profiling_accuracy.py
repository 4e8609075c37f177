"""Accuracy rows: an evaluation of a checkpoint against one written out here, and what a results file is asked for."""

import hashlib
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from linescan.engine import CheckpointError, ConfigError, LinescanError
from linescan.engine.testing import toy_config
from linescan.profiling import accuracy, measurement_row, write_rows
from linescan.profiling.accuracy import evaluate, read_accuracy
from linescan.profiling.provenance import ROW_KEYS
from linescan.profiling.subjects import Subject, build, resolve

SHAPES = "configs/shapes/hybrid-bi-wkv-test_segformer_1xb8-400_shapes-128x128.py"
STEM = "hybrid-bi-wkv-test_segformer_1xb8-400_shapes-128x128"
CLASSES = ("background", "block", "triangle", "ring", "thread", "knot", "linked disc", "free disc")
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
IMAGES, SIDE = 3, 64


@pytest.fixture
def shapes(repo_root, tmp_path):
    """(config, its options for three small images, checkpoint, model)."""
    where = {"length": IMAGES, "size": (SIDE, SIDE), "cache_dir": str(tmp_path / "shapes")}
    options = {f"test_dataloader.dataset.{key}": value for key, value in where.items()}
    options |= {"test_dataloader.num_workers": 0, "test_dataloader.persistent_workers": False}
    config = repo_root / SHAPES
    model = build(resolve(config)).eval()
    torch.save({"state_dict": model.state_dict(), "meta": {}}, tmp_path / "best.pth")
    return config, options, tmp_path / "best.pth", model


def iou_by_hand(model: torch.nn.Module, folder) -> tuple[dict[str, float], float]:
    """IoU of each class in per cent, and the share of right pixels, from the files of the data set."""
    counts = np.zeros((8, 8))
    (images,) = folder.glob("*/img_dir/test")
    for path in sorted(images.glob("*.png")):
        image = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).float()
        x = ((image - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)[None]
        with torch.inference_mode():
            predicted = F.interpolate(model(x), size=(SIDE, SIDE), mode="bilinear", align_corners=False).argmax(1)[0].numpy()
        truth = np.array(Image.open(str(path).replace("img_dir", "ann_dir")))
        np.add.at(counts, (truth[truth < 8], predicted[truth < 8]), 1)
    right, union = counts.diagonal(), counts.sum(0) + counts.sum(1) - counts.diagonal()
    return {name: 100 * r / u for name, r, u in zip(CLASSES, right, union, strict=True) if u}, 100 * right.sum() / counts.sum()


def test_an_evaluation_is_the_one_written_out_here(shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, options, checkpoint, model = shapes
    row = evaluate(config, checkpoint, cfg_options=options, work_dir=tmp_path / "run")
    by_class, pixels = iou_by_hand(model, tmp_path / "shapes")
    found = {name.removeprefix("IoU."): value for name, value in row["result"].items() if name.startswith("IoU.")}
    assert found.keys() == by_class.keys() and len(by_class) > 3
    assert all(math.isclose(found[name], by_class[name], abs_tol=0.01) for name in by_class)
    assert math.isclose(row["result"]["mIoU"], sum(by_class.values()) / len(by_class), abs_tol=0.01)
    assert math.isclose(row["result"]["aAcc"], pixels, abs_tol=0.01)
    assert (row["kind"], row["name"], tuple(row)) == ("accuracy", STEM, ROW_KEYS)
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:16]
    expected = dict(config=STEM, split="test", images=IMAGES, checkpoint="best.pth", sha256=digest, source="evaluated here")
    assert (
        row["condition"] == expected | {"options": {**options, "test_dataloader.dataset.size": [SIDE, SIDE]}}
        and row["provenance"]["device"]
    )
    write_rows(tmp_path / "rows.json", [row])
    assert read_accuracy(tmp_path / "rows.json", [resolve(config)]) == [row]


def test_the_metric_of_mmsegmentation_reports_every_class_too(shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, options, checkpoint, model = shapes
    plain = {"test_evaluator": dict(_delete_=True, type="IoUMetric", iou_metrics=["mIoU"])}
    row = evaluate(config, checkpoint, cfg_options={**options, **plain}, work_dir=tmp_path / "run")
    by_class, _ = iou_by_hand(model, tmp_path / "shapes")
    assert {name for name in row["result"] if name.startswith("IoU.")} == {f"IoU.{name}" for name in by_class}


def test_other_metrics_are_kept_and_undefined_ones_left_out(tmp_path, monkeypatch):
    config = tmp_path / "toy.py"
    toy_config(tmp_path / "run").dump(config)
    (tmp_path / "best.pth").write_bytes(b"weights")
    metrics = {"toy/score": np.float32(0.5), "mIoU": math.nan, "aAcc": np.float64(12.345678), "note": "text"}
    monkeypatch.setattr(accuracy, "run_test", lambda cfg, checkpoint: metrics)
    row = evaluate(config, tmp_path / "best.pth", work_dir=tmp_path / "run")
    assert row["result"] == {"toy/score": 0.5, "aAcc": 12.3457} and row["condition"]["images"] == 7
    metrics.clear()
    with pytest.raises(LinescanError, match=r"best.pth: its evaluation by .*toy.py gave no number"):
        evaluate(config, tmp_path / "best.pth", work_dir=tmp_path / "run")


@pytest.mark.parametrize(
    ("config", "checkpoint", "options", "error", "message"),
    [
        ("nowhere.py", "best.pth", {}, ConfigError, "nowhere.py: no such config file"),
        (SHAPES, "nowhere.pth", {}, CheckpointError, "nowhere.pth: no such checkpoint"),
        (SHAPES, "broken.pth", {}, CheckpointError, "broken.pth"),
        (SHAPES, "other.pth", {}, CheckpointError, "other.pth"),
        (SHAPES, "best.pth", {"test_evaluator": None}, ConfigError, "test_evaluator is missing, nothing to test"),
    ],
)
def test_what_cannot_be_evaluated(shapes, repo_root, tmp_path, config, checkpoint, options, error, message):
    (tmp_path / "broken.pth").write_bytes(b"no checkpoint")
    torch.save({"state_dict": {"weight": torch.zeros(1)}, "meta": {}}, tmp_path / "other.pth")
    with pytest.raises(error, match=message):
        evaluate(repo_root / config, tmp_path / checkpoint, cfg_options={**shapes[1], **options}, work_dir=tmp_path / "run")


def subject(name: str, source: str = "", **described) -> Subject:
    return Subject(name, dict(type="linescan.Vim"), source=source, **described)


def row(kind: str, name: str, condition: dict, result: dict) -> dict:
    return measurement_row(kind, name, condition=condition, result=result, command=["a command"])


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A results file as the tools write them."""
    monkeypatch.chdir(tmp_path)
    iou = {"mIoU": 43.41, "aAcc": 80.0, "IoU.ring": 12.5}
    speed = {"latency_ms": {"median": 1.0}, "parameters": 7, "train_seconds": 3}
    rows = [
        row(
            "comparison", "net-a_head", dict(config="net-a_head", split="test", seed=0, iterations=400, batch=1, dtype="fp32"), iou | speed
        ),
        row("comparison", "net-a_head", dict(config="net-a_head", split="test", seed=1), {"mIoU": 44.0, "mAcc": None}),
        row("evaluation", "second", dict(config="configs/some/net-b_head.py", images=186, checkpoint="best.pth"), {"mIoU": math.pi}),
        row("accuracy", "vim:tiny", dict(config="vim-tiny", source="evaluated here"), {"mIoU": 3.0, "pair_accuracy": 50.0}),
        row("speed", "net-a_head", dict(batch=1), speed),
        row("speed", "net-a_head", dict(batch=1), {"mIoU": 99.0}),
        row("classification", "net-c", dict(config="net-c"), {"accuracy/top1": 81.3}),
    ]
    write_rows(tmp_path / "results" / "rows.json", rows)
    return tmp_path / "results" / "rows.json", rows


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (subject("net-a_head", "configs/x/net-a_head.py"), [43.41, 44.0]),
        (subject("mine", "/elsewhere/net-b_head.py"), [3.1416]),
        (subject("second", "configs/x/another.py"), [3.1416]),
        (subject("vim:tiny", "vim:tiny"), [3.0]),
    ],
)
def test_a_subject_is_found_by_its_config_or_name(results, asked, expected):
    path, _ = results
    found = read_accuracy(path, [asked, subject("nobody")])
    assert [(r["kind"], r["name"], r["result"]["mIoU"]) for r in found] == [("accuracy", asked.name, iou) for iou in expected]


def test_a_row_keeps_its_origin_and_nothing_but_the_accuracy(results):
    path, rows = results
    first, second = read_accuracy(path, [subject("net-a_head", "net-a_head.py")])
    assert first["result"] == {"mIoU": 43.41, "aAcc": 80.0, "IoU.ring": 12.5} and second["result"] == {"mIoU": 44.0}
    source = "row of kind comparison in results/rows.json"
    assert first["condition"] == dict(config="net-a_head", split="test", seed=0, iterations=400, source=source)
    assert first["provenance"] == rows[0]["provenance"]
    (evaluated,) = read_accuracy(path, [subject("vim:tiny")])
    assert evaluated["condition"]["source"] == "evaluated here" and evaluated["result"] == {"mIoU": 3.0}


def test_an_exchanged_model_has_no_accuracy_of_its_config(results):
    """The baseline of a config is another network: what the config reached is not its."""
    path, _ = results
    twin = subject("net-a_head, mixer=attention", "configs/x/net-a_head.py", role="baseline", of=("net-a_head",))
    with pytest.raises(
        LinescanError, match=r"rows.json: no accuracy of net-a_head, mixer=attention; the file has those of net-a_head, net-b"
    ):
        read_accuracy(path, [twin])


def test_the_metrics_of_a_trial_belong_to_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "out" / "net-a_head"
    folder.mkdir(parents=True)
    content = {"checkpoint": "/home/me/best_mIoU_iter_8.pth", "train_seconds": 3.0, "metrics": {"mIoU": 20.123456, "IoU.ring": None}}
    (folder / "metrics.json").write_text(json.dumps(content))
    (found,) = read_accuracy(folder / "metrics.json", [subject("net-a_head", "configs/net-a_head.py")])
    assert found["result"] == {"mIoU": 20.1235} and tuple(found) == ROW_KEYS
    source = "out/net-a_head/metrics.json, named by its folder"
    assert found["condition"] == dict(config="net-a_head", split="test", checkpoint="best_mIoU_iter_8.pth", source=source)
    # Nothing tells on which machine it was made: not on this one, for all we know.
    told = {key for key, value in found["provenance"].items() if value}
    assert told == {"date"} and found["provenance"]["date"].endswith("Z")
    write_rows(tmp_path / "rows.json", [found])


def test_the_metrics_of_a_test_belong_to_the_config_beside_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    (tmp_path / "net-b_head.py").write_text("model = dict()")
    (tmp_path / "metrics.json").write_text(json.dumps({"checkpoint": "x.pth", "metrics": {"mIoU": 20}}))
    (found,) = read_accuracy(tmp_path / "metrics.json", [subject("net-b_head"), subject("other")])
    assert found["condition"]["source"] == f"{tmp_path.name}/metrics.json, named by the config beside it, net-b_head.py"
    with pytest.raises(LinescanError, match=r"no accuracy of other; the file has those of .*net-b_head"):
        read_accuracy(tmp_path / "metrics.json", [subject("other")])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read as a results file: No such file"),
        ("folder", "cannot be read as a results file: Is a directory"),
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"3", "expected a list of rows, got int"),
        (b"[]", "no accuracy of net; the file has none; its rows are of kind none"),
        (b"[1]", "a row lacks schema, kind"),
        (b'[{"schema": 99, "kind": "x", "name": "x", "condition": {}, "result": {}, "provenance": {}}]', "row of schema 99"),
        (b'[{"schema": 1, "kind": "macs", "name": "net", "condition": {}, "result": {}, "provenance": {}}]', "its rows are of kind macs"),
        (
            b'[{"schema": 1, "kind": "accuracy", "name": "net", "condition": {}, "result": {"mIoU": NaN}, "provenance": {}}]',
            "file has none",
        ),
        (b'{"fps": 3}', "neither a list of rows nor a metrics.json; its keys are fps"),
        (b'{"metrics": {"mIoU": null}}', "neither a list of rows nor a metrics.json"),
        (b'{"metrics": 3}', "neither a list of rows nor a metrics.json"),
    ],
)
def test_files_without_an_answer(tmp_path, content, message):
    path = tmp_path / "rows.json"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(LinescanError, match=message) as caught:
        read_accuracy(path, [subject("net")])
    assert str(caught.value).startswith(f"{path}: ") or str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
