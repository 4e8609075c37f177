"""Dice and IoU per image of a binary task.

Rows are those of runs/kvasir_floor.py (answers without a network), of runs/train_seeds.py and, for the costs, of a profile of the same
configs at one image size.
"""

import math
from collections.abc import Sequence

from .base import Row, lines, table
from .names import shown
from .seeds import Costs


@table
def overlap(rows: Sequence[Row]) -> str:
    """Answers without a network first. The standard error is over the test images, whose number the first rows tell; not over trainings."""
    accuracies = [row for row in rows if row["kind"] == "accuracy"]
    images = {row["condition"]["images"] for row in accuracies if "images" in row["condition"]}
    if len(images) != 1:
        raise ValueError(f"expected rows of runs/kvasir_floor.py with one number of test images, got {sorted(images)}")
    root = math.sqrt(images.pop())
    costs = Costs(rows) if any(row["kind"] == "speed" for row in rows) else None
    titles = costs.head() if costs else []
    body = []
    for row in accuracies:
        result, seed = row["result"], row["condition"].get("seed")
        scores = [f"{result[f'm{key}']:.1f} ± {result[f'{key}_sd'] / root:.1f}" for key in ("Dice", "IoU")]
        if seed is None:
            body.append([row["name"], "none", *scores, "", *("" for _ in titles)])
        else:
            cells = costs.cells(row["name"]) if costs else []
            body.append([shown(row["name"]), str(seed), *scores, f"{result['pixels/IoU.polyp']:.1f}", *cells])
    return lines(["answer", "seed", "mDice, %", "mIoU, %", "IoU of all pixels together, %", *titles], body)
