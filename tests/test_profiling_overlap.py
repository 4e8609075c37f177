"""The table of Dice and IoU per image."""

import pytest

from linescan.profiling.tables import TABLES

FLOOR = dict(kind="accuracy", name="every pixel", condition=dict(images=25), result=dict(mDice=27.04, mIoU=16.8, Dice_sd=10.0, IoU_sd=5.0))
NETWORK = dict(
    kind="accuracy",
    name="hybrid-bi-wkv-tiny_segformer_1xb4-1k_kvasir-352x352",
    condition=dict(seed=3),
    result={"mDice": 61.26, "mIoU": 50.0, "Dice_sd": 20.0, "IoU_sd": 10.0, "pixels/IoU.polyp": 55.55},
)
DATA = dict(kind="data", name="pixels", condition=dict(images=25), result=dict(black_median=15.0))


def test_the_error_is_over_images():
    *_, floor, network = TABLES["overlap"]([DATA, FLOOR, NETWORK]).splitlines()
    assert floor == "| every pixel | none | 27.0 ± 2.0 | 16.8 ± 1.0 |  |"
    assert network == "| hybrid tiny, Bi-WKV | 3 | 61.3 ± 4.0 | 50.0 ± 2.0 | 55.5 |"


def test_costs_stand_beside_what_was_trained():
    name = NETWORK["name"]
    at = dict(size=[352, 352], batch=1, mode="forward")
    costs = [
        dict(kind="model", name=name, condition={}, result=dict(parameters=5.05e6)),
        dict(kind="cost", name=name, condition=dict(size=[352, 352], batch=1), result=dict(macs=3.7e9)),
        dict(kind="speed", name=name, condition=at, result=dict(latency_ms=dict(median=90.0, p20=89.0, p80=92.0))),
    ]
    step = dict(at, batch=4, mode="training step")
    costs.append(dict(kind="speed", name=name, condition=step, result=dict(images_per_s=dict(median=3.21), latency_ms=dict(median=1246.0))))
    head, _, floor, network = TABLES["overlap"]([DATA, FLOOR, NETWORK, *costs]).splitlines()
    assert head.endswith("| parameters, M | GMACs | 352x352, ms: median (p20 to p80) | training, images/s at batch 4 |")
    assert floor == "| every pixel | none | 27.0 ± 2.0 | 16.8 ± 1.0 |  |  |  |  |  |"
    assert network.endswith("| 50.0 ± 2.0 | 55.5 | 5.05 | 3.70 | 90.0 (89.0 to 92.0) | 3.2 |")


def test_without_the_number_of_images_there_is_no_table():
    with pytest.raises(ValueError, match="one number of test images, got "):
        TABLES["overlap"]([NETWORK])
