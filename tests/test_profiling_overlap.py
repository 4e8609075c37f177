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


def test_without_the_number_of_images_there_is_no_table():
    with pytest.raises(ValueError, match="one number of test images, got "):
        TABLES["overlap"]([NETWORK])
