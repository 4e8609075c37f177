"""SSD, the scan of Mamba-2, by its definition: the specification that every other backend is measured against.

State space duality (Dao and Gu, arXiv 2405.21060, eq. 1-2 with a scalar times the identity as state matrix). For every batch element and
head h, with a = A[h], the group g = h // (H / G) that lends B and C, and the state S a (P, N) matrix::

    dt_t = softplus(dt_t + dt_bias)                      (bias and softplus where asked for)
    S_t  = exp(dt_t a) S_{t-1} + dt_t x_t B_t^T          S_{-1} = initial_states, or 0
    y_t  = S_t C_t + D x_t
    out  = y SiLU(z)                                     (where z is given)

The non-causal form (VSSD, Shi et al., arXiv 2407.18559, eq. 9-11) has one state for all tokens, so that their order does not matter::

    S    = S_{-1} + sum_j |a| dt_j x_j B_j^T             y_t = S C_t + D x_t

x   (B, T, H, P) values                                  A        (H,) decay rate, negative in Mamba-2
dt  (B, T, H) step sizes                                 D        (H,) or (H, P) skip weight
B   (B, T, G, N) input weights, one set per group        dt_bias  (H,) added to dt
C   (B, T, G, N) output weights, one set per group       z        (B, T, H, P) gate
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def ssd_ref(
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
) -> Tensor | tuple[Tensor, Tensor]:
    """SSD token by token, in the dtype of x (half precision is computed in float32), differentiable by autograd.

    Args as in `ssd`. Returns y (B, T, H, P) in the dtype of x; with `return_final_states` also the last state (B, H, P, N), in the dtype of
    the arithmetic.
    """
    work = torch.promote_types(x.dtype, torch.float32)
    values, step, A, B, C = (t.to(work) for t in (x, dt, A, B, C))
    if dt_bias is not None:
        step = step + dt_bias.to(work)
    if dt_softplus:
        step = F.softplus(step)
    heads = x.shape[2] // B.shape[2]
    B, C = (t.repeat_interleave(heads, 2) for t in (B, C))  # (B, T, H, N)
    state = values.new_zeros(x.shape[0], *x.shape[2:], B.shape[3]) if initial_states is None else initial_states.to(work)
    if causal:
        y, state = _scan(values, step, A, B, C, state)
    else:
        state = state + torch.einsum("bth,bthp,bthn->bhpn", step * A.abs(), values, B)
        y = torch.einsum("bhpn,bthn->bthp", state, C)
    if D is not None:
        y = y + values * D.to(work).reshape(x.shape[2], -1)
    if z is not None:
        y = y * F.silu(z.to(work))
    y = y.to(x.dtype)
    return (y, state) if return_final_states else y


def _scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """S_t C_t for every t, stacked (B, T, H, P), and the last S; B and C are per head."""
    out = []
    for t in range(x.shape[1]):
        decay = (dt[:, t] * A).exp()
        state = decay[..., None, None] * state + (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None]
        out.append((state * C[:, t, :, None]).sum(-1))
    return (torch.stack(out, 1) if out else x.new_zeros(x.shape)), state
