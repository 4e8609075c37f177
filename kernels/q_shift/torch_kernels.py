"""Q-shift in plain PyTorch: one copy per quarter of the channels; there is nothing to cut in chunks.

The adjoint of the shift is the shift with all four steps turned round.
"""

import torch
from torch import Tensor

from .reference import STEPS


def shift(x: Tensor, height: int, width: int, heads: int, extra_tokens: int, direction: int = 1) -> Tensor:
    """The shift of x (B, T, C), or with direction -1 its adjoint: contiguous, every element written once."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if out.numel() == 0:
        return out
    sides = height, width
    patches, c = height * width, x.shape[2] // heads
    target, source = (z[:, :patches].unflatten(1, sides) for z in (out, x))
    if heads > 1:
        target, source = (z.unflatten(3, (heads, c)) for z in (target, source))
    low = 0
    for quarter, (rows, columns) in enumerate(STEPS if patches else (), 1):
        high = quarter * c // 4
        axis, forwards = (2 if columns else 1), (rows + columns) * direction < 0
        to, of, moved = target[..., low:high], source[..., low:high], sides[0 if rows else 1] - 1
        to.narrow(axis, int(forwards), moved).copy_(of.narrow(axis, int(not forwards), moved))
        to.select(axis, 0 if forwards else moved).zero_()
        low = high
    if extra_tokens:
        out[:, patches:].copy_(x[:, patches:])
    return out


def forward(x: Tensor, height: int, width: int, heads: int, extra_tokens: int) -> Tensor:
    """The shift of x."""
    return shift(x, height, width, heads, extra_tokens)


def backward(x: Tensor, gy: Tensor, height: int, width: int, heads: int, extra_tokens: int) -> tuple[Tensor]:
    """The gradient of x."""
    return (shift(gy, height, width, heads, extra_tokens, -1),)
