"""Bi-WKV by its definition: the specification that every other backend is measured against.

For every batch element and channel (Vision-RWKV, arXiv 2403.02308, eq. 4-5; here `w` and `u` are already divided by T by the caller, as the
official code does)::

    y_t = ( sum_{i != t} exp(-(|t - i| - 1) w + k_i) v_i + exp(u + k_t) v_t )
        / ( sum_{i != t} exp(-(|t - i| - 1) w + k_i)     + exp(u + k_t)     )

w  decay per token of distance, any sign (a negative w makes far tokens heavier)
u  bonus of the token itself
k  log-weight ("key") of a token
v  value of a token

The weights of one token sum to one, so y is a convex combination of v: a softmax over log-weights, which is how it is computed here. The
official CUDA kernel adds 1e-6 to the normalised denominator and computes other weights (README.md); neither is part of the definition.
"""

import torch
from torch import Tensor


def bi_wkv_ref(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Bi-WKV in O(T^2) time and memory, in the dtype of the inputs (half precision is computed in float32), differentiable by autograd.

    Args:
        w: (C,) decay per token, any sign.
        u: (C,) bonus of the token itself.
        k: (B, T, C) keys.
        v: (B, T, C) values.

    Returns:
        (B, T, C) in the dtype of k.
    """
    dtype = torch.promote_types(torch.promote_types(k.dtype, w.dtype), torch.float32)
    w, u, keys, values = (x.to(dtype) for x in (w, u, k, v))
    steps = torch.arange(k.shape[1], device=k.device)
    distance = (steps[:, None] - steps[None, :]).abs()[..., None]  # (T, T, 1)
    bias = torch.where(distance == 0, u, -(distance - 1) * w)  # (T, T, C)
    weights = torch.softmax(bias + keys[:, None], dim=2)  # (B, T, T, C): token t, source i
    return torch.einsum("btic,bic->btc", weights, values).to(k.dtype)
