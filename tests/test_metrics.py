"""Metrics of the segmentation package against counts made by hand."""

import math

import numpy as np
import pytest
import torch
from mmseg.registry import METRICS

import linescan.segmentation  # noqa: F401  (registers the metrics)

CLASSES = ("ground", "linked", "free", "absent")


def evaluate(metric, pairs):
    metric.dataset_meta = {"classes": CLASSES}
    for truth, predicted in pairs:
        data = {"gt_sem_seg": {"data": torch.tensor(truth)[None]}, "pred_sem_seg": {"data": torch.tensor(predicted)[None]}}
        metric.process({}, [data])
    return metric.compute_metrics(metric.results)


@pytest.mark.parametrize(
    "truth, predicted, expected",
    [
        ([[1, 1, 2, 2]], [[1, 1, 2, 2]], 100.0),
        ([[1, 1, 2, 2]], [[1, 1, 1, 1]], 50.0),  # one answer for all is chance
        ([[1, 1, 1, 2]], [[1, 1, 1, 1]], 50.0),  # also where the classes are unbalanced
        ([[1, 1, 2, 2]], [[1, 0, 2, 1]], 75.0),  # pixels given to neither are left out
    ],
)
def test_pair_accuracy(truth, predicted, expected):
    metric = METRICS.build(dict(type="ClassPairAccuracy", classes=("linked", "free")))
    assert evaluate(metric, [(truth, predicted)])["pair_accuracy"] == expected


def test_pair_accuracy_is_nan_without_an_answer():
    metric = METRICS.build(dict(type="ClassPairAccuracy", classes=("linked", "free")))
    assert math.isnan(evaluate(metric, [([[1, 2]], [[1, 0]])])["pair_accuracy"])


@pytest.mark.parametrize("classes", [("linked",), ("linked", "linked"), "linked"])
def test_pair_needs_two_names(classes):
    with pytest.raises(ValueError, match="two different class names"):
        METRICS.build(dict(type="ClassPairAccuracy", classes=classes))


def test_pair_names_an_unknown_class():
    metric = METRICS.build(dict(type="ClassPairAccuracy", classes=("linked", "bound")))
    with pytest.raises(ValueError, match="bound"):
        evaluate(metric, [([[1]], [[1]])])


def test_per_class_iou():
    metric = METRICS.build(dict(type="PerClassIoUMetric"))
    found = evaluate(metric, [([[0, 0, 1, 2]], [[0, 1, 1, 2]]), ([[255, 2, 2, 2]], [[0, 2, 2, 0]])])
    # ground: 1 of (2 true + 1 false positive); linked: 1 of 2; free: 3 of 4
    assert {k: v for k, v in found.items() if k.startswith("IoU.")} == {"IoU.ground": 33.33, "IoU.linked": 50.0, "IoU.free": 75.0}
    assert found["mIoU"] == pytest.approx(np.mean([100 / 3, 50, 75]), abs=0.01)


@pytest.mark.parametrize(
    ("pairs", "dice", "iou"),
    [
        ([([[1, 1, 0, 0]], [[1, 1, 0, 0]])], [100], [100]),
        ([([[1, 1, 0, 0]], [[0, 1, 1, 0]])], [50], [100 / 3]),
        ([([[1, 1, 0, 0]], [[0, 0, 0, 0]]), ([[0, 0, 0, 0]], [[0, 0, 0, 0]])], [0, 100], [0, 100]),  # nothing found; nothing to find
        ([([[1, 255, 255, 0]], [[1, 1, 0, 0]])], [100], [100]),  # ignored pixels count neither way
        ([([[1] * 99 + [0]], [[1] * 99 + [0]]), ([[1, 0]], [[0, 1]])], [100, 0], [100, 0]),  # a small object weighs as much as a large one
        ([([[1, 1, 0, 0]], [[1.0, 1.0, 0.0, 0.0]])], [100], [100]),  # heads of one logit predict floats
        ([([[2, 1, 0, 0]], [[2, 1, 2, 0]])], [100], [100]),  # other classes are background
    ],
)
def test_overlap_per_image(pairs, dice, iou):
    found = evaluate(METRICS.build(dict(type="PerImageOverlap", foreground="linked")), pairs)
    expected = {"mDice": np.mean(dice), "mIoU": np.mean(iou), "Dice_sd": np.std(dice), "IoU_sd": np.std(iou)}
    assert found == pytest.approx(expected)


def test_overlap_of_an_unknown_class():
    with pytest.raises(ValueError, match="foreground: the data set has no class 'polyp', only "):
        evaluate(METRICS.build(dict(type="PerImageOverlap", foreground="polyp")), [([[1]], [[1]])])
