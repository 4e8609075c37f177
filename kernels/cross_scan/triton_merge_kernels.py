"""Cross merge in Triton; its gradient is a cross scan. Both are in `triton_kernels.py`."""

from torch import Tensor

from .triton_kernels import LARGEST, merge, scan


def unsupported(ys: Tensor, height: int, width: int, order: str) -> str | None:
    """Why these inputs cannot run; None where they can."""
    if ys.shape[3] >= LARGEST:
        return f"takes images of less than {LARGEST} positions, got {ys.shape[3]}"
    return None


def forward(ys: Tensor, height: int, width: int, order: str) -> Tensor:
    """The sum of ys (B, 4, D, H W) on the image, (B, D, H W)."""
    return merge(ys, height, width, order)


def backward(ys: Tensor, gy: Tensor, height: int, width: int, order: str) -> tuple[Tensor]:
    """The gradient of ys: the four sequences of gy (B, D, H W)."""
    return (scan(gy.unflatten(2, (height, width)), order),)
