"""Tables of counts and of operators."""

from collections.abc import Sequence

from .base import Row, lines, table
from .names import BACKENDS, MIXERS, OPERATORS


@table
def macs(rows: Sequence[Row]) -> str:
    """Multiply-adds by image size, and the operations of scans at the largest."""
    sizes = sorted({row["condition"]["input_shape"][-1] for row in rows})
    by_name: dict[str, dict[int, Row]] = {}
    for row in rows:
        by_name.setdefault(row["name"], {})[row["condition"]["input_shape"][-1]] = row["result"]
    head = ["backbone (MLP ratio 2)", "parameters, M", f"GMACs {sizes[0]}", *map(str, sizes[1:]), f"scan operations at {sizes[-1]}, G"]
    body = []
    for name, found in by_name.items():
        family, arch, mixer = name.split(":")
        gmacs = [f"{found[size]['gmacs']:.{1 if found[size]['gmacs'] >= 20 and size == sizes[-1] else 2}f}" for size in sizes]
        parameters = f"{found[sizes[0]]['parameters'] / 1e6:.2f}"
        body.append([f"{family} {arch}, {MIXERS[mixer]}", parameters, *gmacs, f"{found[sizes[-1]]['scan_gops']:.2f}"])
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
