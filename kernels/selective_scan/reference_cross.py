"""The cross selective scan by its definition: the specification that every other backend is measured against.

The core of VMamba's SS2D (arXiv 2401.10166): four selective scans (`reference.py`) read one image along four paths, and their outputs are
put back on the image and added. With L = H W pixels p, numbered row by row, step t of direction k is at pixel path_k(t)::

    path_0(t) = t                             row by row
    path_1(t) = (t % H) W + t // H            column by column
    path_2(t) = path_0(L - 1 - t)             both from the end
    path_3(t) = path_1(L - 1 - t)

    y[:, path_k(t)] = sum_k scan_k( u[:, path_k(t)], delta[k, :, path_k(t)], A[k], B[k, :, path_k(t)], C[k, :, path_k(t)], D[k] )_t

delta, B and C are stored pixel by pixel like the image, not step by step.
"""

import torch
from torch import Tensor

from .reference import selective_scan_ref

DIRECTIONS = 4


def paths(height: int, width: int, device: torch.device) -> Tensor:
    """(4, L) int64: the pixel of every step of every direction."""
    row = torch.arange(height * width, device=device)
    column = row % height * width + row // height if height else row
    return torch.stack((row, column, row.flip(0), column.flip(0)))


def cross_selective_scan_ref(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """Four recurrences, one step after the other, in float32 (float64 where u is float64); differentiable by autograd, twice too.

    Args:
        u: (B, D, H, W).
        delta: (B, 4, D, L), L = H W pixels in the order of the image.
        A: (4 D, N), direction by direction.
        B, C: (B, 4, N, L).
        D, delta_bias: (4 D,).
        delta_softplus: dt = softplus(delta + delta_bias).

    Returns:
        y (B, D, H, W) in the dtype of u.
    """
    dtype = torch.promote_types(u.dtype, torch.float32)
    height, width = u.shape[2:]
    image, total = u.flatten(2).to(dtype), 0
    A, *shares = (None if x is None else x.chunk(DIRECTIONS) for x in (A, D, delta_bias))
    for k, path in enumerate(paths(height, width, u.device)):
        own = [None if x is None else x[k] for x in shares]
        steps = (x[:, k][:, :, path] for x in (delta, B, C))
        step, weight_in, weight_out = steps
        y = selective_scan_ref(image[:, :, path], step, A[k], weight_in, weight_out, own[0], None, own[1], delta_softplus)
        total = total + y[:, :, path.argsort()]
    return total.unflatten(2, (height, width)).to(u.dtype)
