"""Bidirectional WKV6 by its definition: the specification that every other backend is measured against.

For every batch element and head, with column vectors r_t, k_t of D key channels, v_t of D value channels and a decay per token and key
channel, d_t = exp(-exp(w_t)) (the recurrence of RWKV-6, arXiv 2404.05892, run in both directions as in Vision-RWKV-6, arXiv 2403.02308)::

    y_t = r_t^T (F_t + diag(u) k_t v_t^T + G_t)
    F_{t+1} = diag(d_t) F_t + k_t v_t^T        F_0 = 0          what lies before t
    G_{t-1} = diag(d_t) G_t + k_t v_t^T        G_{T-1} = 0      what lies after t

r  receptance, the query          u  bonus of the token itself, per head and key channel
k  key                            w  log of the decay rate, any real number: +inf forgets everything (d = 0), -inf nothing (d = 1)
v  value

A key counts with the decays strictly between it and the query, its own and the query's excluded; the token itself counts once, with u.
There is no scaling by 1 / sqrt(D).
"""

import torch
from torch import Tensor

NO_MEMORY = 7.0  # exp(-exp(7)) is 0 in float64 too. Clamping w there changes no decay and gives the gradient its limit, 0, not inf * 0


def bi_wkv6_ref(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> Tensor:
    """Bidirectional WKV6 token by token, in the dtype of the inputs (half precision is computed in float32), differentiable by autograd.

    Args:
        r, k, v, w: (B, T, H, D) receptance, key, value, log decay rate.
        u: (H, D) bonus of the token itself.

    Returns:
        (B, T, H, D) in the dtype of v.
    """
    dtype = torch.float32
    for x in (r, k, v, w, u):
        dtype = torch.promote_types(dtype, x.dtype)
    out_dtype, length = v.dtype, v.shape[1]
    if not length:
        return (r * k * v * w * u).to(out_dtype)  # empty, and in the graph of every input
    r, k, v, w, u = (x.to(dtype) for x in (r, k, v, w, u))
    decay = torch.exp(-torch.exp(w.clamp(max=NO_MEMORY)))[..., None]  # (B, T, H, D, 1)
    outer = k[..., None] * v[..., None, :]  # (B, T, H, D, D)
    before, after = [torch.zeros_like(outer[:, 0])], [torch.zeros_like(outer[:, 0])]
    for t in range(length):
        before.append(decay[:, t] * before[-1] + outer[:, t])
        after.append(decay[:, length - 1 - t] * after[-1] + outer[:, length - 1 - t])
    # cut after stacking: w of a single token belongs to the graph too, with a gradient of zero
    states = torch.stack(before, 1)[:, :-1] + u[..., None] * outer + torch.stack(after[::-1], 1)[:, 1:]
    return torch.einsum("bthi,bthij->bthj", r, states).to(out_dtype)
