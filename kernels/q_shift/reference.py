"""Q-shift by its definition: the specification that every other backend is measured against.

Tokens lie row by row on a grid of H x W patches. Each quarter of the channels is taken from one neighbour (Vision-RWKV, arXiv 2403.02308,
eq. 5-6); a neighbour outside the grid is zero. With c channels per head::

    channels of a head       source
    [0, c // 4)              the token to the left
    [c // 4, c // 2)         the token to the right
    [c // 2, 3c // 4)        the token above
    [3c // 4, c)             the token below

No channel stays in place, also where 4 does not divide c. Vision-RWKV cuts all channels at once (heads = 1), VRWKV6 cuts inside each head.
Tokens after the last patch (a class token) are not on the grid and are their own source.

The mix that follows in the spatial and the channel mix of RWKV interpolates token and source, once per projection m::

    y_m = mu_m x + (1 - mu_m) shift(x)
"""

import torch
import torch.nn.functional as F
from torch import Tensor

STEPS = ((0, -1), (0, 1), (-1, 0), (1, 0))  # (rows, columns) from a token to the source of each quarter of its channels


def q_shift_ref(x: Tensor, size: tuple[int, int] | None = None, heads: int = 1, extra_tokens: int = 0) -> Tensor:
    """Q-shift, differentiable by autograd any number of times.

    Args:
        x: (B, T, C) tokens, the H W patches first, or (B, H, W, C).
        size: (H, W) with H W + extra_tokens = T; not needed for (B, H, W, C).
        heads: in how many heads the channels are cut before they are cut in quarters.
        extra_tokens: how many tokens after the patches pass unchanged.

    Returns:
        The shape and dtype of x.
    """
    if x.dim() == 4:
        return q_shift_ref(x.flatten(1, 2), x.shape[1:3], heads).reshape(x.shape)
    batch, _, channels = x.shape
    height, width = size
    patches, c = height * width, channels // heads
    padded = F.pad(x[:, :patches].reshape(batch, height, width, heads, c), (0, 0, 0, 0, 1, 1, 1, 1))
    cuts = (0, c // 4, c // 2, 3 * c // 4, c)
    quarters = [
        padded[:, 1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width, :, low:high]
        for (rows, columns), low, high in zip(STEPS, cuts[:-1], cuts[1:], strict=True)
    ]
    return torch.cat((torch.cat(quarters, -1).reshape(batch, patches, channels), x[:, patches:]), 1)


def q_shift_mix_ref(x: Tensor, mixes: Tensor, size: tuple[int, int] | None = None, heads: int = 1, extra_tokens: int = 0) -> Tensor:
    """Interpolations of x and its Q-shift, differentiable by autograd any number of times; half precision is computed in float32.

    Args:
        x: (B, T, C) tokens, or (B, H, W, C).
        mixes: (M, C) shares mu of the token itself.
        size, heads, extra_tokens: as in `q_shift_ref`.

    Returns:
        (M, B, T, C) or (M, B, H, W, C) in the dtype of x.
    """
    dtype = torch.promote_types(torch.promote_types(x.dtype, mixes.dtype), torch.float32)
    token, source = x.to(dtype), q_shift_ref(x, size, heads, extra_tokens).to(dtype)
    share = mixes.to(dtype).reshape(mixes.shape[0], *(1,) * (x.dim() - 1), mixes.shape[1])
    return (share * token + (1 - share) * source).to(x.dtype)
