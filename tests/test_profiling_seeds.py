"""Tables and the figure of networks that were trained with several seeds, from made-up rows."""

import io

import pytest
from PIL import Image

from linescan.profiling.figures import FIGURES, more_room, picture
from linescan.profiling.tables import seeds, seeds_by_class

RECIPE = "segformer_1xb8-500_camvid-180x240"
HYBRID, TWIN, DEIT = f"hybrid-bi-wkv-tiny_{RECIPE}", f"hybrid-attention-tiny_{RECIPE}", f"deit-tiny_{RECIPE}"
SIZE = [180, 240]


def row(kind, name, condition, result):
    return {"schema": 1, "kind": kind, "name": name, "condition": condition, "result": result, "provenance": {}}


def accuracy(name, seed, **result):
    return row("accuracy", name, {"config": name, "split": "test", "seed": seed, "iterations": 500, "options": {}}, result)


def costs(name, ms, *, images_per_s=None, batch=8):
    at = {"size": SIZE, "batch": 1, "mode": "forward"}
    found = [
        row("model", name, {}, {"parameters": 5.05e6}),
        row("cost", name, {"size": SIZE, "batch": 1}, {"macs": 1.316e9}),
        row("speed", name, at, {"latency_ms": {"median": ms, "p20": ms - 1, "p80": ms + 2}}),
    ]
    if images_per_s:
        result = {"images_per_s": {"median": images_per_s}, "latency_ms": {"median": 1e3 * batch / images_per_s}}
        found.append(row("speed", name, at | {"batch": batch, "mode": "training step"}, result))
        found.append(row("speed", name, at | {"batch": batch}, {"latency_ms": {"median": 1.0, "p20": 1.0, "p80": 1.0}}))
    return found


def camvid():
    """Three seeds of the hybrid, one of the twin, DeiT measured and not trained."""
    rows = [accuracy(HYBRID, seed, mIoU=29 + seed, aAcc=75.0, **{"IoU.sky": 80.0 + 3 * seed, "IoU.pole": 0.5}) for seed in range(3)]
    rows.append(accuracy(TWIN, 0, mIoU=29.92, aAcc=75.0, **{"IoU.sky": 85.4}))
    return rows + costs(HYBRID, 55.0, images_per_s=7.04) + costs(TWIN, 60.0, images_per_s=6.5) + costs(DEIT, 50.0)


def cells(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_seeds():
    head, _, *body = cells(seeds(camvid()))
    assert head == [
        "network",
        "seeds",
        "mIoU, %: mean (lowest to highest)",
        "parameters, M",
        "GMACs",
        "180x240, ms: median (p20 to p80)",
        "training, images/s at batch 8",
    ]
    assert body == [
        ["hybrid tiny, Bi-WKV", "3", "30.0 (29.0 to 31.0)", "5.05", "1.32", "55.0 (54.0 to 57.0)", "7.0"],
        ["hybrid tiny, attention", "1", "29.9", "5.05", "1.32", "60.0 (59.0 to 62.0)", "6.5"],
        ["DeiT tiny", "0", "not in these rows", "5.05", "1.32", "50.0 (49.0 to 52.0)", "not measured"],
    ]


def test_a_mean_is_no_middle_of_the_range():
    rows = [accuracy(HYBRID, seed, mIoU=value) for seed, value in enumerate((10.0, 10.0, 40.0))] + costs(HYBRID, 55.0)
    assert cells(seeds(rows))[2][2] == "20.0 (10.0 to 40.0)"


def test_of_a_run_that_is_there_twice_the_last_counts():
    assert cells(seeds([*camvid(), accuracy(HYBRID, 2, mIoU=34.0)]))[2][1:3] == ["3", "31.0 (29.0 to 34.0)"]


def test_what_was_trained_and_not_measured_says_so():
    rows = [row for row in camvid() if row["kind"] == "accuracy" or row["name"] != HYBRID]
    assert cells(seeds(rows))[2][2:] == ["30.0 (29.0 to 31.0)", *["not measured"] * 4]


def test_polyps_have_their_metrics_and_batch():
    rows = [accuracy(HYBRID, 0, mDice=61.04, mIoU=50.0, Dice_sd=20.0)] + costs(HYBRID, 55.0, images_per_s=3.0, batch=4)
    head, _, body = cells(seeds(rows))
    assert head[2:4] == ["mDice, %: mean (lowest to highest)", "mIoU, %: mean (lowest to highest)"]
    assert head[-1] == "training, images/s at batch 4" and body[2:4] == ["61.0", "50.0"]
    with pytest.raises(ValueError, match=r"expected rows with IoU.<class>"):
        seeds_by_class(rows)


def test_without_training_steps_there_is_no_such_column():
    rows = [accuracy(DEIT, 0, mIoU=50.0)] + costs(DEIT, 50.0)
    assert [line[-1] for line in cells(seeds(rows))] == ["180x240, ms: median (p20 to p80)", "---", "50.0 (49.0 to 52.0)"]


def test_without_a_profile_there_are_no_costs():
    assert cells(seeds([accuracy(DEIT, 0, mIoU=50.0)])) == [
        ["network", "seeds", "mIoU, %: mean (lowest to highest)"],
        ["---"] * 3,
        ["DeiT tiny", "1", "50.0"],
    ]


def test_classes():
    assert cells(seeds_by_class(camvid())) == [
        ["IoU, %: mean over the seeds", "seeds", "sky", "pole"],
        ["---"] * 4,
        ["hybrid tiny, Bi-WKV", "3", "83.0", "0.5"],
        ["hybrid tiny, attention", "1", "85.4", "absent"],
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (costs(HYBRID, 55.0), "expected rows of kind accuracy that all have one of mDice, mIoU, got 0"),
        ([accuracy(HYBRID, 0, mIoU=1.0), accuracy(TWIN, 0, mDice=1.0)], "got 2 accuracies"),
        ([accuracy(HYBRID, 0, mIoU=1.0), *costs(HYBRID, 55.0)[:2]], r"expected speeds at one image size, got \[\]"),
    ],
)
def test_rows_that_make_no_table_are_named(rows, message):
    with pytest.raises(ValueError, match=message):
        seeds(rows)


def test_two_image_sizes_are_refused():
    rows = camvid()
    rows[-1]["condition"]["size"] = [360, 480]
    with pytest.raises(ValueError, match=r"one image size, got \[\(180, 240\), \(360, 480\)\]"):
        seeds(rows)


def points(rows):
    """Label -> (x, y, half-widths drawn) of the figure."""
    (axes,) = FIGURES["accuracy_by_latency"](rows).axes
    return {text.get_text(): text.xy for text in axes.texts}, axes


def test_figure_has_a_point_per_trained_network_and_the_front():
    found, axes = points(camvid())
    assert found == {"hybrid tiny, Bi-WKV": (55.0, 30.0), "hybrid tiny, attention": (60.0, 29.92)}
    bars = sorted(tuple(map(tuple, segment)) for lines in axes.collections for segment in lines.get_segments())
    across = [((54.0, 30.0), (57.0, 30.0)), ((59.0, 29.92), (62.0, 29.92))]
    assert bars == sorted([*across, ((55.0, 29.0), (55.0, 31.0))]), "one seed has no range"
    (front,) = [line for line in axes.lines if line.get_label() == "Pareto front of the means"]
    assert list(zip(*front.get_data(), strict=True)) == [(55.0, 30.0)], "the twin is slower and worse"
    assert "mIoU" in axes.get_ylabel() and "180x240" in axes.get_xlabel()
    assert axes.get_legend().get_title().get_text() == "open marker: one seed"
    (axes,) = FIGURES["accuracy_by_latency"]([row for row in camvid() if row["name"] == HYBRID]).axes
    assert axes.get_legend().get_title().get_text() == "", "no open marker to explain"


@pytest.mark.parametrize(
    ("point", "side"),
    [((50.0, 30.0), "right"), ((55.0, 30.2), "left"), ((60.0, 35.0), "left"), ((130.0, 28.0), "right"), ((120.0, 30.1), "right")],
    ids=[
        "neighbour to the right",
        "the nearer neighbour to the left",
        "alone on the left",
        "alone on the right",
        "the nearer one to the right",
    ],
)
def test_labels_stand_where_there_is_room(point, side):
    assert more_room(point, [(50.0, 30.0), (55.0, 30.2), (60.0, 35.0), (120.0, 30.1), (125.0, 30.1), (130.0, 28.0)]) == side


def test_figure_shows_the_main_metric_of_polyps():
    found, axes = points([accuracy(HYBRID, 0, mDice=61.0, mIoU=50.0)] + costs(HYBRID, 55.0))
    assert found == {"hybrid tiny, Bi-WKV": (55.0, 61.0)} and axes.get_ylabel().startswith("mDice")


def test_figure_is_a_picture():
    assert min(Image.open(io.BytesIO(picture("accuracy_by_latency", camvid()))).size) > 300
