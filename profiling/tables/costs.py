"""Tables of counts and of operators."""

from collections.abc import Sequence

from .base import Row, lines, table
from .names import BACKENDS, MIXERS, OPERATORS


@table
def macs(rows: Sequence[Row]) -> str:
    """Multiply-adds by image size, and the operations of scans at the largest; rows of runs/counts.py."""
    parameters = {row["name"]: row["result"]["parameters"] for row in rows if row["kind"] == "model"}
    costs = {(row["name"], row["condition"]["size"][0]): row["result"] for row in rows if row["kind"] == "cost"}
    sizes = sorted({size for _, size in costs})
    head = ["backbone (MLP ratio 2)", "parameters, M", f"GMACs {sizes[0]}", *map(str, sizes[1:]), f"scan operations at {sizes[-1]}, G"]
    body = []
    for name in parameters:
        family, arch, mixer = name.split(":")
        found = {size: costs[name, size]["macs"] / 1e9 for size in sizes}
        gmacs = [f"{value:.{1 if value >= 20 and size == sizes[-1] else 2}f}" for size, value in found.items()]
        scan = f"{costs[name, sizes[-1]]['scan_ops'] / 1e9:.2f}"
        body.append([f"{family} {arch}, {MIXERS[mixer]}", f"{parameters[name] / 1e6:.2f}", *gmacs, scan])
    return lines(head, body)


@table
def operators(rows: Sequence[Row]) -> str:
    """Time of scans on 4096 tokens of width 384 relative to softmax attention, C before PyTorch."""
    ratios = {
        (row["name"], row["condition"]["provider"], row["condition"]["mode"]): row["result"]["ratio_to_sdpa"]["median"]
        for row in rows
        if "ratio_to_sdpa" in row["result"] and row["condition"]["shape"] in ([1, 4096, 384], [1, 384, 4096, 16, 1])
    }
    body = []
    for op in dict.fromkeys(op for op, _, _ in ratios):
        for number, backend in enumerate(b for b in BACKENDS if (op, b, "fwd") in ratios):
            shown = [f"{ratios[op, backend, mode]:.2g}" for mode in ("fwd", "fwdbwd")]
            body.append(["" if number else OPERATORS[op], BACKENDS[backend], *shown])
    return lines(["operator", "backend", "forward", "forward and backward"], body)
