"""Dice and IoU per image of a binary task, from the rows of runs/kvasir_floor.py (answers without a network) and of runs/train_seeds.py."""

import math
from collections.abc import Sequence

from .base import Row, lines, table
from .names import shown


@table
def overlap(rows: Sequence[Row]) -> str:
    """Answers without a network first. The standard error is over the test images, whose number the first rows tell; not over trainings."""
    accuracies = [row for row in rows if row["kind"] == "accuracy"]
    images = {row["condition"]["images"] for row in accuracies if "images" in row["condition"]}
    if len(images) != 1:
        raise ValueError(f"expected rows of runs/kvasir_floor.py with one number of test images, got {sorted(images)}")
    root = math.sqrt(images.pop())
    body = []
    for row in accuracies:
        result, seed = row["result"], row["condition"].get("seed")
        trained = [shown(row["name"]), str(seed), f"{result['pixels/IoU.polyp']:.1f}"] if seed is not None else [row["name"], "none", ""]
        scores = [f"{result[f'm{key}']:.1f} ± {result[f'{key}_sd'] / root:.1f}" for key in ("Dice", "IoU")]
        body.append([*trained[:2], *scores, trained[2]])
    return lines(["answer", "seed", "mDice, %", "mIoU, %", "IoU of all pixels together, %"], body)
