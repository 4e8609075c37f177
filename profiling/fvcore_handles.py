"""Handles for `fvcore.nn.FlopCountAnalysis`, for users who count with fvcore, and our own second opinion on `count_macs`.

As shipped, fvcore 0.1.5 passes over scaled_dot_product_attention and over custom operators with a log line, and adds normalisation and
resampling to the sum: a transformer looks cheaper than it is (ViT-Ti/16 at 224 pixels by 14 %). With these handles its total is that of
`count_macs`:

    FlopCountAnalysis(model, x).set_op_handle(**fvcore_handles()).total()

fvcore traces a real run, so large inputs cost real time; `count_macs` does not.
"""

from collections.abc import Callable
from math import prod
from typing import Any

from ..kernels.costs import FORMULAS as SCAN_FORMULAS

_NOT_COUNTED = (
    "batch_norm",
    "layer_norm",
    "group_norm",
    "instance_norm",
    "rms_norm",
    "upsample_nearest2d",
    "upsample_bilinear2d",
    "upsample_bicubic2d",
    "adaptive_avg_pool2d",
    "grid_sampler",
)


def fvcore_handles(*, scans: bool = False) -> dict[str, Callable[[list[Any], list[Any]], int]]:
    """Operator name -> handle; what the convention does not count has a handle that gives 0.

    Args:
        scans: count the element operations of scan operators too (29 B T C for Bi-WKV), the convention of Vision-RWKV's tables.
    """
    handles: dict[str, Callable[[list[Any], list[Any]], int]] = {f"aten::{name}": _zero for name in _NOT_COUNTED}
    handles["aten::scaled_dot_product_attention"] = _attention
    handles["aten::matmul"] = _matmul
    for name, formula in SCAN_FORMULAS.items():
        handles[name] = _scan(formula) if scans else _zero
    return handles


def _shape(value: Any) -> list[int] | None:
    """Shape of a tensor in a TorchScript graph, None for anything else."""
    return value.type().sizes() if value.isCompleteTensor() else None


def _zero(inputs: list[Any], outputs: list[Any]) -> int:
    return 0


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """Query (..., L, E), key (..., S, E), value (..., S, Ev): L S (E + Ev) per head; a causal mask saves nothing here."""
    query, key, value = (_shape(tensor) for tensor in inputs[:3])
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _matmul(inputs: list[Any], outputs: list[Any]) -> int:
    """Any ranks, broadcasting included; fvcore's own handle takes the first factor's batch for that of the result."""
    return prod(_shape(outputs[0])) * _shape(inputs[0])[-1]


def _scan(formula: Callable[[list[list[int]]], int]) -> Callable[[list[Any], list[Any]], int]:
    return lambda inputs, outputs: formula([shape for shape in map(_shape, inputs) if shape is not None])
