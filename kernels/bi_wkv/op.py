"""The public Bi-WKV: validation, dispatch, and what PyTorch needs to know about the operator (shapes, gradients, vmap, cost)."""

import torch
from torch import Tensor
from torch.autograd import forward_ad

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
        k: (B, T, C) keys (log-weights); any T, any strides.
        v: (B, T, C) values.
        backend: "auto", "torch" or "reference"; see `linescan.kernels.dispatch`.

    Returns:
        (B, T, C), contiguous, in the dtype of k. float16 and bfloat16 are accumulated in float32, float64 stays float64. w, u and v may
        have another floating dtype than k (under autocast w and u stay float32); their gradients come in their own dtype.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device, or an unknown backend; the message names the argument.
        NotImplementedError: a backend that this operator does not have; forward-mode AD and second derivatives, which only
            backend="reference" offers.
    """
    if not torch.jit.is_tracing():  # a tracer makes tensors of the sizes compared here, and warns
        _check(w, u, k, v)
    chosen = dispatch.resolve("bi_wkv", AVAILABLE, k.device, backend)
    if chosen == "reference":
        return bi_wkv_ref(w, u, k, v)
    if torch._C._are_functorch_transforms_active():
        return _Functorch.apply(w, u, k, v, chosen)
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(x).tangent is not None for x in (w, u, k, v)):
        _no_jvp(None)
    return _forward(w, u, k, v, chosen)


def _check(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> None:
    for name, x, dims in (("w", w, 1), ("u", u, 1), ("k", k, 3), ("v", v, 3)):
        if not isinstance(x, Tensor):
            raise TypeError(f"bi_wkv: {name} must be a Tensor, got {type(x).__name__}")
        if not x.dtype.is_floating_point:
            raise TypeError(f"bi_wkv: {name} must be a floating-point tensor, got {x.dtype}")
        if x.dim() != dims:
            raise ValueError(f"bi_wkv: {name} must have shape {'(C,)' if dims == 1 else '(B, T, C)'}, got {tuple(x.shape)}")
    for name, x in (("w", w), ("u", u), ("v", v)):
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


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx, gy: Tensor):
    op = _FunctorchBackward.apply if torch._C._are_functorch_transforms_active() else _backward
    return *op(*ctx.saved_tensors, gy, ctx.backend), None


def _no_jvp(ctx, *tangents):
    raise NotImplementedError('bi_wkv has no forward-mode derivative; backend="reference" has one')


def _no_double(ctx, *grads):
    raise NotImplementedError('bi_wkv has no second derivative; backend="reference" has one')


_forward.register_autograd(_gradients, setup_context=_save)
_backward.register_autograd(_no_double)


def _into_channels(n: int, x: Tensor, dim: int | None) -> Tensor:
    """Folds the n samples of a vmapped argument into its channels, (n, ..., C) -> (..., n C): channels never mix."""
    x = x.expand(n, *x.shape) if dim is None else x.movedim(dim, 0)
    return x.movedim(0, -2).flatten(-2)


def _vmap(op):
    def rule(info, in_dims, *args):
        n = info.batch_size
        *tensors, backend = args
        out = op(*(_into_channels(n, x, dim) for x, dim in zip(tensors, in_dims, strict=False)), backend)
        if isinstance(out, Tensor):
            return out.unflatten(-1, (n, -1)), out.dim() - 1
        return tuple(x.unflatten(-1, (n, -1)) for x in out), tuple(x.dim() - 1 for x in out)

    return rule


_forward.register_vmap(_vmap(_forward))
_backward.register_vmap(_vmap(_backward))
costs.register("linescan::bi_wkv", torch.ops.linescan.bi_wkv)
costs.register("linescan::bi_wkv_backward", torch.ops.linescan.bi_wkv_backward)


class _Functorch(torch.autograd.Function):
    """The same operator for torch.func, which does not see the gradients that a custom operator registers (pytorch #179652)."""

    generate_vmap_rule = True
    forward = staticmethod(lambda w, u, k, v, backend: _forward(w, u, k, v, backend))
    setup_context = staticmethod(_save)
    backward = staticmethod(_gradients)
    jvp = staticmethod(_no_jvp)


class _FunctorchBackward(torch.autograd.Function):
    """The gradients for torch.func, which always asks for a graph of them; using that graph is an error."""

    generate_vmap_rule = True
    forward = staticmethod(lambda w, u, k, v, gy, backend: _backward(w, u, k, v, gy, backend))
    setup_context = staticmethod(lambda ctx, inputs, output: None)
    backward = staticmethod(_no_double)
    jvp = staticmethod(_no_jvp)
