"""Tokens and their 2-D grid: shifts, and position embeddings at any size.

Tokens are (B, N, C), row-major over a grid (H, W), N = H * W.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def q_shift(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Q-shift of Vision-RWKV (arXiv 2403.02308, eq. 5-6): each quarter of the channels comes from one neighbour.

    | channels               | out[y, x] =                |
    |------------------------|----------------------------|
    | [0, int(C/4))          | in[y, x-1] (left)          |
    | [int(C/4), int(C/2))   | in[y, x+1] (right)         |
    | [int(C/2), int(3C/4))  | in[y-1, x] (above)         |
    | [int(3C/4), C)         | in[y+1, x] (below)         |

    Args:
        x: (B, N, C) tokens.
        grid: (H, W) with H * W = N.

    Returns:
        (B, N, C), zero where the neighbour lies outside the grid.
    """
    b, _, c = x.shape
    height, width = grid
    cut1, cut2, cut3 = c // 4, c // 2, 3 * c // 4
    source = x.view(b, height, width, c)
    out = source.new_zeros(source.shape)
    out[:, :, 1:, :cut1] = source[:, :, :-1, :cut1]
    out[:, :, :-1, cut1:cut2] = source[:, :, 1:, cut1:cut2]
    out[:, 1:, :, cut2:cut3] = source[:, :-1, :, cut2:cut3]
    out[:, :-1, :, cut3:] = source[:, 1:, :, cut3:]
    return out.view(b, -1, c)


def resize_pos_embed(embed: Tensor, grid: tuple[int, int]) -> Tensor:
    """Position embedding (1, C, h, w) resized to (1, C, *grid): bicubic, align_corners=False, no antialias.

    Computed in float32 or, for a float64 embedding, in float64; the result has the dtype of the embedding. The same grid returns the
    embedding itself.
    """
    if tuple(embed.shape[-2:]) == tuple(grid):
        return embed
    compute = torch.promote_types(embed.dtype, torch.float32)
    return F.interpolate(embed.to(compute), size=grid, mode="bicubic", align_corners=False).to(embed.dtype)
