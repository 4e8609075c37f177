"""Tokens and their 2-D grid: position embeddings at any size.

Tokens are (B, N, C), row-major over a grid (H, W), N = H * W.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_pos_embed(embed: Tensor, grid: tuple[int, int]) -> Tensor:
    """Position embedding (1, C, h, w) resized to (1, C, *grid): bicubic, align_corners=False, no antialias.

    Computed in float32 or, for a float64 embedding, in float64; the result has the dtype of the embedding. The same grid returns the
    embedding itself, except in a compiled or exported graph, where the comparison would pin a size that may be dynamic; resized to its own
    size it is the same to the bit.
    """
    if not torch.compiler.is_compiling() and tuple(embed.shape[-2:]) == tuple(grid):
        return embed
    compute = torch.promote_types(embed.dtype, torch.float32)
    return F.interpolate(embed.to(compute), size=grid, mode="bicubic", align_corners=False).to(embed.dtype)
