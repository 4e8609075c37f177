"""The selective scan by its definition: the specification that every other backend is measured against.

For every batch element, channel d of group g and state n (Mamba, arXiv 2312.00752, algorithm 2, with A discretised by a zero-order hold and
B by Euler's rule, as in the official code)::

    dt_t   = delta_t + delta_bias_d,  then softplus(dt_t) if delta_softplus
    h_t,n  = exp(dt_t A_dn) h_{t-1,n} + dt_t B_t,n u_t          h_{-1} = 0
    y_t    = ( sum_n C_t,n h_t,n + D_d u_t ) silu(z_t)           without D: no second term; without z: no gate

u      input of a channel
delta  step size before bias and softplus
A      rate of a state, negative where it decays; real
B, C   input and output weights of a state, shared by the channels of a group: group g of G serves channels g D/G .. (g + 1) D/G - 1
h      state; the last one is what a longer sequence would go on from

softplus(x) = log(1 + e^x), and x itself above 20, as PyTorch and the official kernel have it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def selective_scan_ref(
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
) -> Tensor | tuple[Tensor, Tensor]:
    """The recurrence, one step after the other, in float32 (float64 where u is float64); differentiable by autograd, twice too.

    Args:
        u, delta, z: (B, D, L).
        A: (D, N).
        B, C: (B, N, L) or (B, G, N, L).
        D, delta_bias: (D,).
        delta_softplus: dt = softplus(delta + delta_bias).
        return_last_state: also return h after the last step.

    Returns:
        y (B, D, L) in the dtype of u, or (y, last state (B, D, N) in the dtype of the arithmetic).
    """
    dtype = torch.promote_types(u.dtype, torch.float32)
    out_dtype = u.dtype
    u, dt, A, B, C = (x.to(dtype) for x in (u, delta, A, B, C))
    B, C = (x[:, None] if x.dim() == 3 else x for x in (B, C))
    if delta_bias is not None:
        dt = dt + delta_bias.to(dtype)[:, None]
    if delta_softplus:
        dt = F.softplus(dt)
    groups = B.shape[1]
    grouped = (groups, u.shape[1] // groups)
    x, step, rate = (dt * u).unflatten(1, grouped), dt.unflatten(1, grouped), A.unflatten(0, grouped)
    state = x.new_zeros(*x.shape[:3], A.shape[1])  # (B, G, D / G, N)
    outputs = []
    for t in range(u.shape[2]):
        decay = torch.exp(step[..., t, None] * rate)
        state = decay * state + x[..., t, None] * B[:, :, None, :, t]
        outputs.append((state * C[:, :, None, :, t]).sum(-1).flatten(1, 2))
    y = torch.stack(outputs, -1) if outputs else torch.zeros_like(u)
    if D is not None:
        y = y + D.to(dtype)[:, None] * u
    if z is not None:
        y = y * F.silu(z.to(dtype))
    y = y.to(out_dtype)
    return (y, state.flatten(1, 2)) if return_last_state else y
