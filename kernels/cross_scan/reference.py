"""Cross scan and cross merge by their definition: the specification that every other backend is measured against.

A cross scan (VMamba, arXiv 2401.10166, SS2D) reads the image x (H, W) of every channel as four sequences of L = H W tokens; a cross merge
puts four sequences back on the image and adds them. With position l::

    row              y_l = x[l // W, l % W]
    column           y_l = x[l % H, l // H]
    reversed row     y_l = row_{L-1-l}
    reversed column  y_l = column_{L-1-l}

    order              the four sequences
    "cross"            row, column, reversed row, reversed column
    "unidirectional"   row, row, row, row
    "bidirectional"    row, row, reversed row, reversed row

Both are linear, and each is the other's adjoint.
"""

import torch
from torch import Tensor

# Order -> whether the second and fourth sequence run along columns, whether the third and fourth are reversed.
ORDERS = {"cross": (True, True), "unidirectional": (False, False), "bidirectional": (False, True)}


def cross_scan_ref(x: Tensor, order: str = "cross") -> Tensor:
    """Four sequences of an image, differentiable by autograd any number of times.

    Args:
        x: (B, D, H, W).
        order: a key of `ORDERS`.

    Returns:
        (B, 4, D, H W) in the dtype of x.
    """
    columns, reverse = ORDERS[order]
    row = x.flatten(2)
    forward = [row, x.transpose(2, 3).flatten(2) if columns else row]
    return torch.stack(forward + [y.flip(2) if reverse else y for y in forward], 1)


def cross_merge_ref(ys: Tensor, size: tuple[int, int] | None = None, order: str = "cross") -> Tensor:
    """The sum of four sequences, each put back on the image; half precision is added in float32. Differentiable any number of times.

    Args:
        ys: (B, 4, D, H W), or (B, 4, D, H, W) whose last two dimensions are a sequence.
        size: (H, W); not needed for five dimensions.
        order: a key of `ORDERS`.

    Returns:
        (B, D, H W), row by row, in the dtype of ys.
    """
    height, width = ys.shape[3:] if ys.dim() == 5 else size
    columns, reverse = ORDERS[order]
    batch, _, channels = ys.shape[:3]
    sequences = ys.reshape(batch, 4, channels, height * width).to(torch.promote_types(ys.dtype, torch.float32))
    first, last = sequences[:, :2], sequences[:, 2:]
    row, second = (first + (last.flip(3) if reverse else last)).unbind(1)
    if columns:
        second = second.reshape(batch, channels, width, height).transpose(2, 3).flatten(2)
    return (row + second).to(ys.dtype)
