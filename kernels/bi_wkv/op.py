"""The public Bi-WKV: validation, dispatch, and what PyTorch needs to know about the operator (shapes, gradients, vmap, cost)."""

import torch
from torch import Tensor

from .. import costs, dispatch
from . import torch_chunked
from .reference import bi_wkv_ref

KERNELS = {"torch": torch_chunked}  # backend -> module with forward(w, u, k, v) and backward(w, u, k, v, gy)
AVAILABLE = (*KERNELS, "reference")


def bi_wkv(w: Tensor, u: Tensor, k: Tensor, v: Tensor, *, backend: str = "auto") -> Tensor:
    """Bidirectional WKV attention in linear time (Vision-RWKV, arXiv 2403.02308, eq. 4-5; formula in `reference.py`).

    Args:
        w: (C,) decay per token of distance, any sign. Vision-RWKV's `decay / T`: the division by T is the caller's.
        u: (C,) bonus of the token itself; Vision-RWKV's `first / T`.
        k: (B, T, C) keys (log-weights); any T >= 1, any strides.
        v: (B, T, C) values.
        backend: "auto", "torch" or "reference"; see `linescan.kernels.dispatch`.

    Returns:
        (B, T, C), contiguous, in the dtype of k. float16 and bfloat16 are accumulated in float32, float64 stays float64. w and u may be float32 beside half
        k and v (autocast leaves them so).

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device, or an unknown backend; the message names the argument.
        NotImplementedError: a backend that this operator does not have; forward-mode AD and double backward (use backend="reference" for those).
    """
    _check(w, u, k, v)
    chosen = dispatch.resolve("bi_wkv", AVAILABLE, k.device, backend)
    if chosen == "reference":
        return bi_wkv_ref(w, u, k, v)
    if torch._C._are_functorch_transforms_active():
        return _Functorch.apply(w, u, k, v, chosen)
    return _forward(w, u, k, v, chosen)


def _check(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> None:
    for name, x, dims in (("w", w, 1), ("u", u, 1), ("k", k, 3), ("v", v, 3)):
        if not isinstance(x, Tensor):
            raise TypeError(f"bi_wkv: {name} must be a Tensor, got {type(x).__name__}")
        if not x.dtype.is_floating_point:
            raise TypeError(f"bi_wkv: {name} must be a floating-point tensor, got {x.dtype}")
        if x.dim() != dims:
            raise ValueError(f"bi_wkv: {name} must have shape {'(C,)' if dims == 1 else '(B, T, C)'}, got {tuple(x.shape)}")
        if x.device != k.device:
            raise ValueError(f"bi_wkv: {name} must be on the device of k ({k.device}), got {x.device}")
    if v.shape != k.shape:
        raise ValueError(f"bi_wkv: v must have the shape of k {tuple(k.shape)}, got {tuple(v.shape)}")
    for name, x in (("w", w), ("u", u)):
        if x.shape[0] != k.shape[2]:
            raise ValueError(f"bi_wkv: {name} must have shape ({k.shape[2]},), one number per channel of k, got {tuple(x.shape)}")


@torch.library.custom_op("linescan::bi_wkv", mutates_args=())
def _forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, backend: str) -> Tensor:
    return KERNELS[backend].forward(w, u, k, v)


@torch.library.custom_op("linescan::bi_wkv_backward", mutates_args=())
def _backward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, gy: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return KERNELS[backend].backward(w, u, k, v, gy)


@_forward.register_fake
def _(w, u, k, v, backend):
    return torch.empty_like(k, memory_format=torch.contiguous_format)


@_backward.register_fake
def _(w, u, k, v, gy, backend):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (w, u, k, v))


def _setup_context(ctx, inputs, output):
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx, gy):
    return *_backward(*ctx.saved_tensors, gy, ctx.backend), None


_forward.register_autograd(_gradients, setup_context=_setup_context)


for _name, _op in (("linescan::bi_wkv", torch.ops.linescan.bi_wkv), ("linescan::bi_wkv_backward", torch.ops.linescan.bi_wkv_backward)):
    costs.register(_name, _op)


class _Functorch(torch.autograd.Function):
    """The same operator for torch.func transforms, through which custom operators with registered gradients do not differentiate (pytorch #179652)."""

    @staticmethod
    def forward(w, u, k, v, backend):
        return _forward(w, u, k, v, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _setup_context(ctx, inputs, output)

    @staticmethod
    def backward(ctx, gy):
        return _gradients(ctx, gy)
