"""Tables of trained networks: what tools/compare.py measured."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .base import Row, lines, spread, table
from .names import MIXERS


@table
def summary(rows: Sequence[Row]) -> str:
    """What tools/compare.py measured, one column per model."""
    return lines(["", *(row["name"] for row in rows)], _summary([row["result"] for row in rows]))


@table
def comparison(rows: Sequence[Row]) -> str:
    """The summary, and the IoU of every class."""
    results = [row["result"] for row in rows]
    classes = [key for key in results[0] if key.startswith("IoU.")]
    by_class = [[name, *(f"{r[name]:.1f}" if name in r else "absent" for r in results)] for name in classes]
    return lines(["", *(row["name"] for row in rows)], _summary(results) + by_class)


def _summary(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    body = [["mIoU, %", *(f"{r['mIoU']:.1f}" for r in results)]]
    if any("pair_accuracy" in r for r in results):
        body.append(
            ["linked or free disc told apart, %", *(f"{r['pair_accuracy']:.1f}" if "pair_accuracy" in r else "undefined" for r in results)]
        )
    return body + [
        ["parameters, M", *(f"{r['parameters'] / 1e6:.3f}" for r in results)],
        ["MACs, G", *(f"{r['gmacs']:.3f}" for r in results)],
        ["images/s, median (p20 to p80)", *(spread(r["images_per_s"], ".1f") for r in results)],
        ["training, s (processor s)", *(f"{r['train_seconds']:.0f} ({r['train_cpu_seconds']:.0f})" for r in results)],
    ]


@table
def far_context(rows: Sequence[Row]) -> str:
    """The shapes data: what each token mixer learned about far discs."""
    head = [
        "token mixer",
        "mIoU, %",
        "linked or free told apart, %",
        "IoU linked",
        "IoU free",
        "backbone, M",
        "GMACs",
        "training, processor min",
    ]
    body = []
    for row in rows:
        r = row["result"]
        scores = [f"{r[key]:.1f}" for key in ("mIoU", "pair_accuracy", "IoU.linked disc", "IoU.free disc")]
        cost = [f"{r['backbone_parameters'] / 1e6:.3f}", f"{r['gmacs']:.3f}", f"{r['train_cpu_seconds'] / 60:.0f}"]
        body.append([MIXERS[re.match(r"hybrid-(.+)-test", row["name"])[1].replace("-", "_")], *scores, *cost])
    return lines(head, body)
