"""The public SSD: validation, and what PyTorch needs to know about the operator."""

import torch
from torch import Tensor

from ..registration import Operator
from ..signature import Signature
from .reference import ssd_ref

_CHECK = Signature(
    "ssd",
    x="B T H P",
    dt="B T H",
    A="H",
    B="B T G N",
    C="B T G N",
    D_="H | H P",
    z_="B T H P",
    dt_bias_="H",
    initial_states_="B H P N",
)


def _reference(x, dt, A, B, C, D, z, dt_bias, initial_states, dt_softplus, causal):
    return ssd_ref(x, dt, A, B, C, D, z, dt_bias, initial_states, dt_softplus, True, causal=causal)


def _fake(x, dt, A, B, C, D, z, dt_bias, initial_states, dt_softplus, causal):
    state = x.new_empty(x.shape[0], *x.shape[2:], B.shape[3], dtype=torch.promote_types(x.dtype, torch.float32))
    return torch.empty_like(x, memory_format=torch.contiguous_format), state


# The operator below the public function always returns (y, last state).
_op = Operator(
    "ssd",
    package=__package__,
    tensors=("x", "dt", "A", "B", "C", "D?", "z?", "dt_bias?", "initial_states?"),
    statics=("bool dt_softplus", "bool causal"),
    outputs=2,
    backends={"triton": "triton_kernels", "torch": "torch_chunked"},
    peers={"mamba_ssm": "peer_mamba_ssm"},
    reference=_reference,
    fake=_fake,
    fold=(2, 2, 0, 2, 2, 0, 2, 0, 1),
    fold_outputs=(2, 1),
)
BACKENDS = _op.backends


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    dt_softplus: bool = False,
    return_final_states: bool = False,
    *,
    causal: bool = True,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """SSD, the scan of Mamba-2 (arXiv 2405.21060), or its non-causal form (VSSD, arXiv 2407.18559); formulas in `reference.py`.

    Arguments have the names that mamba-ssm's `mamba_chunk_scan_combined` gives them. Its `chunk_size` is chosen here, and its `dt_limit`,
    which clamps step sizes, is not offered: clamp dt.

    Args:
        x: (B, T, H, P) values, H heads of P; any T, any strides.
        dt: (B, T, H) step sizes before bias and softplus.
        A: (H,) real decay rates, negative in Mamba-2.
        B, C: (B, T, G, N) input and output weights of G groups; head h uses group h // (H / G). The four directions of a 2-D scan are four
            groups.
        D: (H,) or (H, P) weight of the skip connection, optional.
        z: (B, T, H, P) gate, optional: y is multiplied with silu(z).
        dt_bias: (H,) added to dt, optional.
        initial_states: (B, H, P, N) state before the first token, optional (0).
        dt_softplus: whether the step size is softplus(dt + dt_bias).
        return_final_states: whether to return the state after the last token as well.
        causal: False for the non-causal form, in which every token sees all tokens with weights |A| dt and no order.
        backend: "auto" or one of `BACKENDS`; see `linescan.kernels.dispatch`.

    Returns:
        y (B, T, H, P), contiguous, in the dtype of x; with return_final_states the pair (y, last state (B, H, P, N)), the state in float32,
        or float64 where x is float64. It is differentiable like y. The arithmetic is float32, or float64 where x is float64; the other
        arguments may have other floating dtypes than x, their gradients come in their own.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device, or an unknown backend; the message names the argument.
        NotImplementedError: a backend that this operator does not have or that cannot take these inputs; forward-mode AD and second
            derivatives, which only backend="reference" offers.
        RuntimeError: a backend that cannot run here.
    """
    _CHECK(x, dt, A, B, C, D, z, dt_bias, initial_states)
    if not torch.jit.is_tracing() and (B.shape[2] == 0 or x.shape[2] % B.shape[2]):
        raise ValueError(f"ssd: the groups of B and C must divide the {x.shape[2]} heads of x, got {B.shape[2]} groups")
    y, state = _op(x, dt, A, B, C, D, z, dt_bias, initial_states, dt_softplus, causal, backend=backend)
    return (y, state) if return_final_states else y
