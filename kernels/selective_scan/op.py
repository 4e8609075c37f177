"""The public selective scan: validation, and what PyTorch needs to know about the operator."""

import torch
from torch import Tensor

from ..registration import Operator
from ..signature import Signature
from .reference import selective_scan_ref

_CHECK = Signature(
    "selective_scan",
    u="B D L",
    delta="B D L",
    A="D N",
    B="B N L | B G N L",
    C="B N L | B G N L",
    D_="D",
    z_="B D L",
    delta_bias_="D",
)


def _reference(u, delta, A, B, C, D, z, delta_bias, delta_softplus):
    return selective_scan_ref(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state=True)


def _fake(u, delta, A, B, C, D, z, delta_bias, delta_softplus):
    last = u.new_empty(u.shape[0], *A.shape, dtype=torch.promote_types(u.dtype, torch.float32))
    return torch.empty_like(u, memory_format=torch.contiguous_format), last


# The operator below the public function always has B and C with groups, (B, G, N, L), and always returns (y, last state).
_op = Operator(
    "selective_scan",
    package=__package__,
    tensors=("u", "delta", "A", "B", "C", "D?", "z?", "delta_bias?"),
    statics=("bool delta_softplus",),
    outputs=2,
    backends={"triton": "triton_kernels", "c": "c_kernels", "torch": "torch_chunked"},
    peers={"mamba_ssm": "peer_mamba_ssm"},
    reference=_reference,
    fake=_fake,
    fold=(1, 1, 0, 1, 1, 0, 1, 0),
    fold_outputs=(1, 1),
)
BACKENDS = _op.backends


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective scan (S6) in linear time, with the signature of mamba-ssm (Mamba, arXiv 2312.00752; formula in `reference.py`).

    Args:
        u: (B, D, L) inputs; any L, any strides.
        delta: (B, D, L) step sizes before bias and softplus.
        A: (D, N) real rates of the states, negative where they decay.
        B, C: (B, N, L), or (B, G, N, L) with G groups: group g serves channels g D/G .. (g + 1) D/G - 1.
        D: (D,) weight of the skip connection, optional.
        z: (B, D, L) gate, optional: y is multiplied with silu(z).
        delta_bias: (D,) added to delta, optional.
        delta_softplus: whether the step size is softplus(delta + delta_bias).
        return_last_state: whether to return the state after the last step as well.
        backend: "auto" or one of `BACKENDS`; see `linescan.kernels.dispatch`.

    Returns:
        y (B, D, L), contiguous, in the dtype of u; with return_last_state the pair (y, last state (B, D, N)), the state in float32, or
        float64 where u is float64. It is differentiable like y. The arithmetic is float32, or float64 where u is float64; the other
        arguments may have other floating dtypes than u, their gradients come in their own.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device, or an unknown backend; the message names the argument.
        NotImplementedError: a backend that this operator does not have; forward-mode AD and second derivatives, which only
            backend="reference" offers.
        RuntimeError: a backend that cannot run here.
    """
    for name, x in (("B", B), ("C", C)):
        if isinstance(x, Tensor) and x.dim() == 2:
            raise ValueError(
                f"selective_scan: {name} must have shape (B, N, L) or (B, G, N, L), got {tuple(x.shape)}; weights that are constant in "
                f"time are a group per channel, {name}[None, :, :, None].expand(batch, -1, -1, length)"
            )
    _CHECK(u, delta, A, B, C, D, z, delta_bias)
    B, C = (x.unsqueeze(1) if x.dim() == 3 else x for x in (B, C))
    if not torch.jit.is_tracing():
        if A.shape[1] == 0:
            raise ValueError(f"selective_scan: A must have at least one state, got shape {tuple(A.shape)}")
        if B.shape[1] != C.shape[1]:
            raise ValueError(f"selective_scan: B and C must have the same number of groups, got {B.shape[1]} and {C.shape[1]}")
        if B.shape[1] == 0 or u.shape[1] % B.shape[1]:
            raise ValueError(f"selective_scan: the groups of B and C must divide the {u.shape[1]} channels of u, got {B.shape[1]} groups")
    y, last = _op(u, delta, A, B, C, D, z, delta_bias, delta_softplus, backend=backend)
    return (y, last) if return_last_state else y
