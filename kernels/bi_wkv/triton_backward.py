"""Backward of Bi-WKV in Triton. Nothing but the inputs is saved; the forward's incoming states are computed again.

With x = exp(key) (v, 1), r = gy / den, and the adjoint g = (r, -r y), the backward needs prefix and suffix sums of g in the same way as the
forward needs those of x (`torch_chunked.py` has the formulas). So it is the forward's three passes once more: totals of g in every chunk,
the same scan over chunks, result. A chunk's own part of the sum for gw,

    sum_t Q_t F_t = sum_j g_j F'_j + Q_end F'_end,   F'_{j+1} = exp(-w) F'_j + F_j,   F' = 0 where the chunk begins,

needs no list of the prefix sums F. gw and gu are one partial sum per chunk, added by torch: no atomics, the same bits in every run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_runtime import launch
from .triton_forward import Plan, incoming_states, load_chunk, readable, softmax_at, store_chunk, weights_and_suffixes
from .triton_states import (
    all_safe,
    decay,
    exp,
    join,
    load_parameters,
    load_state,
    place,
    ratio,
    reciprocal,
    stack,
    state_pointers,
    store_state,
    unstack,
)


@triton.jit
def bi_wkv_bwd_kernel_totals(
    k,
    v,
    gy,
    w,
    u,
    incoming,
    totals,
    T,
    chunks,
    C,
    KB,
    KT,
    KC,
    VB,
    VT,
    VC,
    GB,
    GT,
    GC,
    L: tl.constexpr,
    BC: tl.constexpr,
    HALF: tl.constexpr,
):
    """The sums of the adjoint (r, r y) over every chunk, as the token after it needs them and as the token before it does."""
    pair, batch, chunk, c = place(tl.num_programs(0) - 1 - tl.program_id(0), chunks, C, BC)
    ACC: tl.constexpr = totals.dtype.element_ty
    w, u = load_parameters(w, u, c, C, ACC)
    k_tile = load_chunk(k, batch, chunk, c, T, C, KB, KT, KC, float("-inf"), L, ACC)
    v_tile = load_chunk(v, batch, chunk, c, T, C, VB, VT, VC, 0.0, L, ACC)
    g_tile = load_chunk(gy, batch, chunk, c, T, C, GB, GT, GC, 0.0, L, ACC)
    left = load_state(state_pointers(incoming, pair, 0, c, C), c < C)
    right = load_state(state_pointers(incoming, pair, 1, c, C), c < C)
    after, before = state_pointers(totals, pair, 0, c, C), state_pointers(totals, pair, 1, c, C)
    zero = tl.zeros((BC,), ACC)
    if all_safe(w, u, T):
        ks, vs, gs = unstack(k_tile, L), unstack(v_tile, L), unstack(g_tile, L)
        lam, eu = decay(w), exp(u)
        n, key, num, den, ps, nums, dens = weights_and_suffixes(ks, vs, left, right, w, lam, L)
        power, r_sum, s_sum, r_suffix, s_suffix = zero + 1, zero, zero, zero, zero
        for j in tl.static_range(L):
            p = ps[L - 1 - j]
            q = p * vs[j]
            inverse = reciprocal((den + dens[L - 1 - j]) + eu * p, HALF)
            r = gs[j] * inverse
            s = r * (((num + nums[L - 1 - j]) + eu * q) * inverse)
            r_sum, s_sum = r_sum * lam + r, s_sum * lam + s
            r_suffix, s_suffix = r_suffix + power * r, s_suffix + power * s
            power *= lam
            num, den = num * lam + q, den * lam + p
        store_state(after, c < C, -n, -key, r_sum, s_sum)
        store_state(before, c < C, -n, -key, r_suffix, s_suffix)
    else:
        n_sum, key_sum, r_all, s_all = zero, zero + float("-inf"), zero, zero
        n_back, key_back, r_back, s_back = zero, zero + float("-inf"), zero, zero
        t = 0
        while (t < L) & (chunk * L + t < T):
            n_t, key_t, den_t, y, _, _, _ = softmax_at(t, k_tile, v_tile, w, u, left, right, L)
            g = tl.load(gy + batch * GB + (chunk * L + t) * GT + c * GC, mask=c < C, other=0.0).to(ACC)
            n_sum, key_sum, r_all, s_all = join(n_sum, key_sum, r_all, s_all, (L - 1 - t) - n_t, -key_t, g / den_t, g / den_t * y, w)
            n_back, key_back, r_back, s_back = join(n_back, key_back, r_back, s_back, t - n_t, -key_t, g / den_t, g / den_t * y, w)
            t += 1
        store_state(after, c < C, n_sum, key_sum, r_all, s_all)
        store_state(before, c < C, n_back, key_back, r_back, s_back)


@triton.jit
def bi_wkv_bwd_kernel_out(
    k,
    v,
    gy,
    w,
    u,
    incoming,
    adjoints,
    gk,
    gv,
    partial,
    T,
    chunks,
    C,
    KB,
    KT,
    KC,
    VB,
    VT,
    VC,
    GB,
    GT,
    GC,
    L: tl.constexpr,
    BC: tl.constexpr,
    HALF: tl.constexpr,
):
    """Incoming sums and incoming adjoint sums -> gk, gv (B, T, C), contiguous, and every chunk's part of gw and gu, (B * chunks, 2, C)."""
    pair, batch, chunk, c = place(tl.program_id(0), chunks, C, BC)
    live = c < C
    ACC: tl.constexpr = incoming.dtype.element_ty
    w, u = load_parameters(w, u, c, C, ACC)
    k_tile = load_chunk(k, batch, chunk, c, T, C, KB, KT, KC, float("-inf"), L, ACC)
    v_tile = load_chunk(v, batch, chunk, c, T, C, VB, VT, VC, 0.0, L, ACC)
    g_tile = load_chunk(gy, batch, chunk, c, T, C, GB, GT, GC, 0.0, L, ACC)
    left = load_state(state_pointers(incoming, pair, 0, c, C), live)
    right = load_state(state_pointers(incoming, pair, 1, c, C), live)
    from_left, from_right = state_pointers(adjoints, pair, 0, c, C), state_pointers(adjoints, pair, 1, c, C)
    gw, gu = tl.zeros((BC,), ACC), tl.zeros((BC,), ACC)
    if all_safe(w, u, T):
        ks, vs, gs = unstack(k_tile, L), unstack(v_tile, L), unstack(g_tile, L)
        lam, eu = decay(w), exp(u)
        n, key, num, den, ps, nums, dens = weights_and_suffixes(ks, vs, left, right, w, lam, L)
        n_g, key_g, r_sum, s_sum = load_state(from_left, live)
        factor = ratio(n_g, key_g, -n, -key, w)
        r_sum, s_sum = r_sum * factor, s_sum * factor
        num_slope, den_slope = tl.zeros((BC,), ACC), tl.zeros((BC,), ACC)
        rs, ss, r_sums, s_sums = (), (), (), ()
        for j in tl.static_range(L):
            p = ps[L - 1 - j]
            q = p * vs[j]
            inverse = reciprocal((den + dens[L - 1 - j]) + eu * p, HALF)
            r = gs[j] * inverse
            s = r * (((num + nums[L - 1 - j]) + eu * q) * inverse)
            gw += (r * num_slope - s * den_slope) + (r_sum * nums[L - 1 - j] - s_sum * dens[L - 1 - j])
            gu += p * (r * vs[j] - s)
            rs, ss, r_sums, s_sums = rs + (r,), ss + (s,), r_sums + (r_sum + eu * r,), s_sums + (s_sum + eu * s,)
            num_slope, den_slope = num_slope * lam + num, den_slope * lam + den
            r_sum, s_sum = r_sum * lam + r, s_sum * lam + s
            num, den = num * lam + q, den * lam + p
        n_g, key_g, r_sum, s_sum = load_state(from_right, live)
        factor = ratio(n_g, key_g, -n, -key, w)
        r_sum, s_sum = r_sum * factor, s_sum * factor
        gw = -lam * (gw + (r_sum * num_slope - s_sum * den_slope))
        gu *= eu
        gvs, gks = (), ()
        for j in tl.static_range(L - 1, -1, -1):
            p = ps[L - 1 - j]
            gv_row = p * (r_sums[j] + r_sum)
            gvs = (gv_row.to(gv.dtype.element_ty),) + gvs
            gks = ((gv_row * vs[j] - p * (s_sums[j] + s_sum)).to(gk.dtype.element_ty),) + gks
            r_sum, s_sum = r_sum * lam + rs[j], s_sum * lam + ss[j]
        gv_tile, gk_tile = stack(gvs, L), stack(gks, L)
    else:
        i = tl.arange(0, L)[:, None]
        gv_sum, gk_sum = tl.zeros((L, BC), ACC), tl.zeros((L, BC), ACC)
        t = 0
        while (t < L) & (chunk * L + t < T):
            _, _, _, y, weights, left_share, right_share = softmax_at(t, k_tile, v_tile, w, u, left, right, L)
            g = tl.load(gy + batch * GB + (chunk * L + t) * GT + c * GC, mask=live, other=0.0).to(ACC)
            share = weights * g[None, :]
            slope = share * (v_tile - y[None, :])
            gv_sum += share
            gk_sum += slope
            gu += tl.sum(tl.where(i == t, slope, 0.0), axis=0)
            gw -= tl.sum(tl.where(i == t, 0.0, (tl.abs(i - t) - 1) * slope), axis=0)
            gw -= g * (t * left_share * (left[2] - y * left[3]) + (L - 1 - t) * right_share * (right[2] - y * right[3]))
            t += 1
        for side in tl.static_range(2):  # from tokens outside the chunk to its keys, and across the chunk
            n_out, key_out, r_out, s_out = load_state(from_right if side else from_left, live)
            n_x, key_x, num_x, den_x = left if side else right
            steps = (L - 1 - i) if side else i
            share = exp((k_tile + key_out[None, :]) - (n_out[None, :] + steps) * w[None, :])
            slope = share * (v_tile * r_out[None, :] - s_out[None, :])
            gv_sum += share * r_out[None, :]
            gk_sum += slope
            gw -= tl.sum(steps * slope, axis=0)
            gw -= L * exp((key_x + key_out) - (n_x + n_out + L) * w) * (r_out * num_x - s_out * den_x)
        gv_tile, gk_tile = gv_sum.to(gv.dtype.element_ty), gk_sum.to(gk.dtype.element_ty)
    store_chunk(gv, batch, chunk, c, T, C, gv_tile, L)
    store_chunk(gk, batch, chunk, c, T, C, gk_tile, L)
    tl.store(partial + pair * 2 * C + c, gw, mask=live)
    tl.store(partial + (pair * 2 + 1) * C + c, gu, mask=live)


def backward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, gy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients (gw, gu, gk, gv) for the output gradient gy (B, T, C), each in its input's dtype; five launches and two torch sums."""
    gk, gv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (k, v))
    if k.numel() == 0:
        return torch.zeros_like(w), torch.zeros_like(u), gk, gv
    plan, k, v, gy = Plan(k, longest=16), readable(k), readable(v), readable(gy)
    flat_w, flat_u = w.contiguous(), u.contiguous()
    incoming = incoming_states(plan, flat_w, flat_u, k, v)
    totals, partial = plan.states(), plan.new(2, plan.channels)
    sizes = (*plan.sizes, *k.stride(), *v.stride(), *gy.stride())
    config = dict(HALF=k.element_size() == v.element_size() == 2, **plan.config)
    launch(bi_wkv_bwd_kernel_totals, plan.grid, k, v, gy, flat_w, flat_u, incoming, totals, *sizes, **config)
    adjoints = plan.scan(totals, flat_w)
    launch(bi_wkv_bwd_kernel_out, plan.grid, k, v, gy, flat_w, flat_u, incoming, adjoints, gk, gv, partial, *sizes, **config)
    gw, gu = (partial[:, i].sum(0).to(x.dtype) for i, x in enumerate((w, u)))
    return gw, gu, gk, gv
