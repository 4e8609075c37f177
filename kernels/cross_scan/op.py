"""The public cross scan and cross merge: validation, and what PyTorch needs to know about the operators."""

import torch
from torch import Tensor

from ..registration import Operator
from ..signature import Signature
from .reference import ORDERS, cross_merge_ref, cross_scan_ref

_CHECK = Signature("cross_scan", x="B D H W")
_CHECK_MERGE = Signature("cross_merge", ys="B 4 D L | B 4 D H W")


def _fake(x: Tensor, order: str) -> Tensor:
    return x.new_empty(x.shape[0], 4, x.shape[1], x.shape[2] * x.shape[3])


def _fake_merge(ys: Tensor, height: int, width: int, order: str) -> Tensor:
    return ys.new_empty(ys.shape[0], *ys.shape[2:])


def _reference_merge(ys: Tensor, height: int, width: int, order: str) -> Tensor:
    return cross_merge_ref(ys, (height, width), order)


_scan = Operator(
    "cross_scan",
    package=__package__,
    tensors=("x",),
    statics=("str order",),
    backends={"triton": "triton_kernels", "torch": "torch_kernels"},  # torch: copies and additions, no chunks
    reference=cross_scan_ref,
    fake=_fake,
    fold=(0,),
    fold_outputs=(0,),
)
# The operator below the public function always has (B, 4, D, H W) and the size of the image.
_merge = Operator(
    "cross_merge",
    package=__package__,
    tensors=("ys",),
    statics=("SymInt height", "SymInt width", "str order"),
    backends={"triton": "triton_merge_kernels", "torch": "torch_merge_kernels"},
    reference=_reference_merge,
    fake=_fake_merge,
    fold=(0,),
    fold_outputs=(0,),
)
BACKENDS, MERGE_BACKENDS = _scan.backends, _merge.backends


def cross_scan(x: Tensor, order: str = "cross", *, backend: str = "auto") -> Tensor:
    """Four sequences of an image, as VMamba reads it (arXiv 2401.10166, SS2D; formula in `reference.py`). The adjoint of `cross_merge`.

    Args:
        x: (B, D, H, W), any strides: channels-last memory is read as it lies, no copy is made.
        order: "cross" for row-major, column-major and both reversed; "unidirectional" for row-major four times; "bidirectional" for
            row-major twice and reversed twice.
        backend: "auto" or one of `BACKENDS`; see `linescan.kernels.dispatch`.

    Returns:
        (B, 4, D, H W), contiguous, in the dtype of x. The gradient of half precision is added in float32.

    Raises:
        TypeError, ValueError: wrong type, dtype or shape, an unknown order or backend; the message names the argument.
        NotImplementedError: a backend that this operator does not have; forward-mode AD and second derivatives, which only
            backend="reference" offers.
        RuntimeError: a backend that cannot run here.
    """
    _CHECK(x)
    _check_order("cross_scan", order)
    return _scan(x, order, backend=backend)


def cross_merge(ys: Tensor, size: tuple[int, int] | None = None, order: str = "cross", *, backend: str = "auto") -> Tensor:
    """The sum of four sequences, each put back on the image: what VMamba does after its scans. The adjoint of `cross_scan`.

    Args:
        ys: (B, 4, D, L) sequences of L = H W tokens, any strides; or (B, 4, D, H, W), the same with L cut in two: copied only where the
            last two dimensions do not follow each other in memory.
        size: (H, W) of the image; not needed for five dimensions.
        order: the order of `cross_scan` that made the sequences.
        backend: "auto" or one of `MERGE_BACKENDS`.

    Returns:
        (B, D, L), row by row, contiguous, in the dtype of ys; half precision is added in float32.

    Raises:
        As `cross_scan`; and ValueError for a size that does not fit L.
    """
    _CHECK_MERGE(ys)
    _check_order("cross_merge", order)
    height, width = _size(ys, size)
    return _merge(ys.flatten(3), height, width, order, backend=backend)


def _check_order(op: str, order: str) -> None:
    if order not in ORDERS:
        raise ValueError(f"{op}: order must be one of {tuple(ORDERS)}, got {order!r}")


def _size(ys: Tensor, size: tuple[int, int] | None) -> tuple[int, int]:
    """(H, W); raises where it does not fit ys."""
    image = ys.shape[3:] if ys.dim() == 5 else size
    if torch.jit.is_tracing():  # a tracer makes tensors of the sizes compared here, and warns
        return image
    if not isinstance(image, (tuple, list)) or len(image) != 2:
        raise ValueError(f"cross_merge: size must be (H, W) where ys is (B, 4, D, L), got {size!r}")
    height, width = image
    if ys.dim() == 5:
        if size is not None and tuple(size) != (height, width):
            raise ValueError(f"cross_merge: size must be that of ys, {(height, width)}, or None, got {size!r}")
    elif height < 0 or width < 0 or height * width != ys.shape[3]:
        raise ValueError(f"cross_merge: size must be (H, W) with H * W = {ys.shape[3]}, the tokens of ys, got {(height, width)}")
    return height, width
