"""Handles for `fvcore.nn.FlopCountAnalysis`, for users who count with fvcore, and our own second opinion on `count_macs`.

As shipped, fvcore 0.1.5 passes over scaled_dot_product_attention and over custom operators with a log line, and adds normalisation and
resampling to the sum: a transformer looks cheaper than it is (ViT-Ti/16 at 224 pixels by 14 %). With these handles its total is that of
`count_macs`:

    FlopCountAnalysis(model, x).set_op_handle(**fvcore_handles()).total()

fvcore traces a real run, so large inputs cost real time; `count_macs` does not. What fvcore has no handle for (recurrent layers of
PyTorch, for example) it still passes over: look at its `unsupported_ops()`. `count_macs` never does.
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
    handles |= _COUNTED
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


def _einsum(inputs: list[Any], outputs: list[Any]) -> int:
    """Two factors that share a summed index: every index once. fvcore's own handle reads numpy's report, which is rounded to 4 digits.

    Raises:
        NotImplementedError: more than two factors, whose order of contraction PyTorch chooses.
    """
    equation = inputs[0].toIValue().replace(" ", "")
    shapes = [_shape(factor) for factor in inputs[1].node().inputs()]
    factors, _, result = equation.partition("->")
    names = factors.split(",")
    if len(names) != 2 or "->" not in equation or "." in equation:
        raise NotImplementedError(f"einsum is counted for two factors and named indices, such as 'bct,bdt->bcd', got {equation!r}")
    sizes = {name: size for letters, shape in zip(names, shapes, strict=True) for name, size in zip(letters, shape, strict=True)}
    shared = set(names[0]) & set(names[1])
    if shared <= set(result):
        return 0  # nothing is summed over both factors: an element-wise product
    return prod(sizes[name] for name in shared | set(result))


def _added(inputs: list[Any], outputs: list[Any]) -> int:
    """A matrix product with something added: baddbmm, addmv."""
    return prod(_shape(outputs[0])) * _shape(inputs[1])[-1]


def _tensordot(inputs: list[Any], outputs: list[Any]) -> int:
    dims = (dim.toIValue() for dim in inputs[2].node().inputs())
    return prod(_shape(outputs[0])) * prod(_shape(inputs[0])[dim] for dim in dims)


def _padded_convolution(inputs: list[Any], outputs: list[Any]) -> int:
    """A convolution with padding="same" or "valid", which PyTorch traces under a name of its own."""
    return prod(_shape(outputs[0])) * prod(_shape(inputs[1])[1:])


def _fused_self_attention(inputs: list[Any], outputs: list[Any]) -> int:
    """nn.MultiheadAttention as PyTorch fuses it for inference: four projections of (B, N, C) and two products with N x N weights."""
    batch, tokens, channels = _shape(inputs[0])
    return batch * tokens * channels * (4 * channels + 2 * tokens)


_COUNTED = {
    "aten::scaled_dot_product_attention": _attention,
    "aten::_native_multi_head_attention": _fused_self_attention,
    "aten::_convolution_mode": _padded_convolution,
    "aten::matmul": _matmul,
    "aten::mv": _matmul,
    "aten::dot": _matmul,
    "aten::inner": _matmul,
    "aten::baddbmm": _added,
    "aten::addmv": _added,
    "aten::tensordot": _tensordot,
    "aten::einsum": _einsum,
}


def _scan(formula: Callable[[list[list[int] | None]], int]) -> Callable[[list[Any], list[Any]], int]:
    """A tensor that is not given keeps its place as None: formulas find the others by theirs."""
    return lambda inputs, outputs: formula([_shape(value) for value in inputs])
