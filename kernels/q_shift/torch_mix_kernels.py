"""Q-shift and its interpolations in plain PyTorch, with a backward of their own.

With s = shift(x), the gradients of y_m = s + mu_m (x - s) are::

    gx = sum_m mu_m g_m + adjoint( sum_m (1 - mu_m) g_m )        gmu_m = sum over tokens of g_m (x - s)

The forward is one pass per interpolation, the backward two; the loops run over the M interpolations. Touching fresh memory costs a CPU as
much as the arithmetic, so the backward has three buffers of the size of x, whatever M is.
"""

import torch
from torch import Tensor

from .torch_kernels import shift


def _exact(x: Tensor, mixes: Tensor) -> tuple[Tensor, Tensor]:
    """x and mixes in the dtype of the arithmetic, at least float32."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, mixes.dtype), torch.float32)
    return x.to(dtype), mixes.to(dtype)


def forward(x: Tensor, mixes: Tensor, height: int, width: int, heads: int, extra_tokens: int) -> Tensor:
    """x (B, T, C), mixes (M, C) -> (M, B, T, C) in the dtype of x."""
    token, share = _exact(x, mixes)
    source = shift(token, height, width, heads, extra_tokens)
    out = x.new_empty((mixes.shape[0], *x.shape))
    for y, mu in zip(out, share, strict=True):
        if token.dtype == x.dtype:
            torch.lerp(source, token, mu, out=y)
        else:
            y.copy_(torch.lerp(source, token, mu))
    return out


def backward(x: Tensor, mixes: Tensor, grads: Tensor, height: int, width: int, heads: int, extra_tokens: int) -> tuple[Tensor, Tensor]:
    """Gradients of x and mixes, in their dtypes."""
    token, share = _exact(x, mixes)
    grads = grads.to(token.dtype)
    difference = token - shift(token, height, width, heads, extra_tokens)
    product, gmix = torch.empty_like(difference), torch.empty_like(share)
    for g, gmu in zip(grads, gmix, strict=True):
        torch.sum(torch.mul(g, difference, out=product), (0, 1), out=gmu)
    own = product.zero_()
    for g, mu in zip(grads, share, strict=True):
        own.addcmul_(g, mu)
    others = torch.sum(grads, 0, out=difference).sub_(own)
    return own.add_(shift(others, height, width, heads, extra_tokens, -1)).to(x.dtype), gmix.to(mixes.dtype)
