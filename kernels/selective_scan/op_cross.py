"""The public cross selective scan: validation, and what PyTorch needs to know about the operator."""

import torch
from torch import Tensor

from ..registration import Operator
from ..signature import Signature
from .reference_cross import DIRECTIONS, cross_selective_scan_ref

_CHECK = Signature(
    "cross_selective_scan",
    u="B D H W",
    delta="B 4 D HW",
    A="4D N",
    B="B 4 N HW",
    C="B 4 N HW",
    D_="4D",
    delta_bias_="4D",
)


def _fake(u, delta, A, B, C, D, delta_bias, delta_softplus):
    return torch.empty_like(u, memory_format=torch.contiguous_format)


_op = Operator(
    "cross_selective_scan",
    package=__package__,
    tensors=("u", "delta", "A", "B", "C", "D?", "delta_bias?"),
    statics=("bool delta_softplus",),
    backends={"triton": "triton_cross", "torch": "torch_cross"},
    reference=cross_selective_scan_ref,
    fake=_fake,
)
BACKENDS = _op.backends


def cross_selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    backend: str = "auto",
) -> Tensor:
    """Four selective scans over one image and their sum, without four copies of it: the core of VMamba's SS2D (arXiv 2401.10166).

    The directions are row by row, column by column, and both from the end (formula in `reference_cross.py`). The result is that of
    cross_scan, selective_scan with four groups, and cross_merge. What differs for the caller is the order of delta, B and C: that of the
    image. A layer of VMamba makes them pixel by pixel, so it can do so on the image once::

        projected = einsum("b d l, k c d -> b k c l", x.flatten(2), x_proj_weight)            # VMamba: of the four sequences
        delta, B, C = projected.split((R, N, N), 2)
        delta = einsum("b k r l, k d r -> b k d l", delta, dt_projs_weight)
        y = cross_selective_scan(x, delta, -exp(A_logs), B, C, Ds, dt_projs_bias.flatten(), delta_softplus=True)

    Args:
        u: (B, D, H, W) image; any H and W.
        delta: (B, 4, D, L) step sizes before bias and softplus, L = H W pixels row by row, in every direction.
        A: (4 D, N) real rates of the states, negative where they decay; direction by direction.
        B, C: (B, 4, N, L) input and output weights of the states, pixels as in delta.
        D: (4 D,) weight of the skip connection, optional.
        delta_bias: (4 D,) added to delta, optional.
        delta_softplus: whether the step size is softplus(delta + delta_bias).
        backend: "auto" or one of `BACKENDS`; see `linescan.kernels.dispatch`.

    Returns:
        y (B, D, H, W), contiguous, in the dtype of u. The arithmetic, the sum of the directions included, is float32, or float64 where u
        is float64; the other arguments may have other floating dtypes than u, their gradients come in their own.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device, or an unknown backend; the message names the argument.
        NotImplementedError: a backend that this operator does not have; forward-mode AD and second derivatives, which only
            backend="reference" offers.
        RuntimeError: a backend that cannot run here.
    """
    sizes = _CHECK(u, delta, A, B, C, D, delta_bias)
    if not torch.jit.is_tracing():
        pixels = u.shape[2] * u.shape[3]
        if sizes["HW"] != pixels:
            raise ValueError(f"cross_selective_scan: delta, B and C must have H W = {pixels} pixels like u, got {sizes['HW']}")
        if sizes["4D"] != DIRECTIONS * sizes["D"]:
            raise ValueError(f"cross_selective_scan: A must have 4 D = {DIRECTIONS * sizes['D']} rows, got {sizes['4D']}")
        if sizes["N"] == 0:
            raise ValueError(f"cross_selective_scan: A must have at least one state, got shape {tuple(A.shape)}")
    return _op(u, delta, A, B, C, D, delta_bias, delta_softplus, backend=backend)
