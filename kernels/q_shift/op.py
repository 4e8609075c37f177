"""The public Q-shift and Q-shift mix: validation, and what PyTorch needs to know about the operators."""

import torch
from torch import Tensor

from ..registration import Operator
from ..signature import Signature
from .reference import q_shift_mix_ref, q_shift_ref

_CHECK = Signature("q_shift", x="B T C | B H W C")
_CHECK_MIX = Signature("q_shift_mix", x="B T C | B H W C", mixes="M C")
_STATICS = ("SymInt height", "SymInt width", "int heads", "int extra_tokens")


def _fake(x: Tensor, height: int, width: int, heads: int, extra_tokens: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _reference(x: Tensor, height: int, width: int, heads: int, extra_tokens: int) -> Tensor:
    return q_shift_ref(x, (height, width), heads, extra_tokens)


def _fake_mix(x: Tensor, mixes: Tensor, height: int, width: int, heads: int, extra_tokens: int) -> Tensor:
    return x.new_empty((mixes.shape[0], *x.shape))


def _reference_mix(x: Tensor, mixes: Tensor, height: int, width: int, heads: int, extra_tokens: int) -> Tensor:
    return q_shift_mix_ref(x, mixes, (height, width), heads, extra_tokens)


# The operators below the public functions always have (B, T, C) and the size of its grid.
_shift = Operator(
    "q_shift",
    package=__package__,
    tensors=("x",),
    statics=_STATICS,
    backends={"triton": "triton_kernels", "torch": "torch_kernels"},  # torch: a copy per quarter, no chunks
    reference=_reference,
    fake=_fake,
    fold=(0,),
    fold_outputs=(0,),
)
_mix = Operator(
    "q_shift_mix",
    package=__package__,
    tensors=("x", "mixes"),
    statics=_STATICS,
    backends={"triton": "triton_mix_kernels", "torch": "torch_mix_kernels"},
    reference=_reference_mix,
    fake=_fake_mix,
)
BACKENDS, MIX_BACKENDS = _shift.backends, _mix.backends


def q_shift(x: Tensor, size: tuple[int, int] | None = None, *, heads: int = 1, extra_tokens: int = 0, backend: str = "auto") -> Tensor:
    """2-D token shift of Vision-RWKV: each quarter of the channels comes from one neighbour (arXiv 2403.02308, eq. 5-6; `reference.py`).

    Args:
        x: (B, T, C) tokens: H W patches row by row, then `extra_tokens` others; or the grid itself, (B, H, W, C). Any strides.
        size: (H, W) of the grid; not needed for (B, H, W, C).
        heads: the quarters are taken inside each of this many heads: 1 for Vision-RWKV, C / 64 for VRWKV6. Divides C.
        extra_tokens: how many tokens after the patches pass unchanged (VRWKV6's class token).
        backend: "auto" or one of `BACKENDS`; see `linescan.kernels.dispatch`.

    Returns:
        The shape of x, contiguous, in its dtype; zero where the neighbour lies outside the grid.

    Raises:
        TypeError, ValueError: wrong type, dtype or shape, a grid that does not hold the tokens, or an unknown backend; the message names
            the argument.
        NotImplementedError: a backend that this operator does not have; forward-mode AD and second derivatives, which only
            backend="reference" offers.
        RuntimeError: a backend that cannot run here.
    """
    _CHECK(x)
    height, width = _grid("q_shift", x, size, heads, extra_tokens)
    if x.dim() == 3:
        return _shift(x, height, width, heads, extra_tokens, backend=backend)
    return _shift(x.flatten(1, 2), height, width, heads, 0, backend=backend).unflatten(1, (height, width))


def q_shift_mix(
    x: Tensor,
    mixes: Tensor,
    size: tuple[int, int] | None = None,
    *,
    heads: int = 1,
    extra_tokens: int = 0,
    backend: str = "auto",
) -> Tensor:
    """The M interpolations mu x + (1 - mu) q_shift(x) that RWKV's spatial and channel mix feed to their projections, in one pass over x.

    Args:
        x: (B, T, C) tokens or (B, H, W, C), as in `q_shift`.
        mixes: (M, C) the shares mu of the token itself, one row per interpolation, stacked; any floating dtype.
        size, heads, extra_tokens: as in `q_shift`. A token that is not on the grid passes unchanged, whatever mu is.
        backend: "auto" or one of `MIX_BACKENDS`.

    Returns:
        (M, B, T, C) or (M, B, H, W, C), contiguous, in the dtype of x: unbind(0) gives the inputs of the projections. The arithmetic is
        float32, or float64 where x or mixes is; gradients come in the dtypes of x and mixes.

    Raises:
        As `q_shift`; and ValueError where mixes is on another device than x or has another number of channels.
    """
    _CHECK_MIX(x, mixes)
    height, width = _grid("q_shift_mix", x, size, heads, extra_tokens)
    if x.dim() == 3:
        return _mix(x, mixes, height, width, heads, extra_tokens, backend=backend)
    return _mix(x.flatten(1, 2), mixes, height, width, heads, 0, backend=backend).unflatten(2, (height, width))


def _grid(op: str, x: Tensor, size: tuple[int, int] | None, heads: int, extra_tokens: int) -> tuple[int, int]:
    """(H, W); raises where it, the heads or the extra tokens do not fit x."""
    grid = x.shape[1:3] if x.dim() == 4 else size
    if torch.jit.is_tracing():  # a tracer makes tensors of the sizes compared here, and warns
        return grid
    if heads < 1 or x.shape[-1] % heads:
        raise ValueError(f"{op}: heads must divide the {x.shape[-1]} channels of x, got {heads}")
    if not isinstance(grid, (tuple, list)) or len(grid) != 2:
        raise ValueError(f"{op}: size must be (H, W) where x is (B, T, C), got {size!r}")
    height, width = grid
    if x.dim() == 4:
        if extra_tokens:
            raise ValueError(f"{op}: extra_tokens must be 0 where x is (B, H, W, C), got {extra_tokens}")
        if size is not None and tuple(size) != (height, width):
            raise ValueError(f"{op}: size must be that of x, {(height, width)}, or None, got {size!r}")
    elif height < 0 or width < 0 or extra_tokens < 0 or height * width + extra_tokens != x.shape[1]:
        held = f"H * W + extra_tokens = {x.shape[1]}, the tokens of x"
        raise ValueError(f"{op}: size must be (H, W) with {held}, got {(height, width)} and {extra_tokens} extra tokens")
    elif height * width == 0:
        return 0, 1  # kernels divide by the width
    return height, width
