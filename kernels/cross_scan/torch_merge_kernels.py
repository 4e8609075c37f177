"""Cross merge in plain PyTorch; its gradient is a cross scan. Both are in `torch_kernels.py`."""

from torch import Tensor

from .torch_kernels import merge, scan


def forward(ys: Tensor, height: int, width: int, order: str) -> Tensor:
    """The sum of ys (B, 4, D, H W) on the image, (B, D, H W)."""
    return merge(ys, height, width, order)


def backward(ys: Tensor, gy: Tensor, height: int, width: int, order: str) -> tuple[Tensor]:
    """The gradient of ys: the four sequences of gy (B, D, H W)."""
    return (scan(gy.unflatten(2, (height, width)), order),)
