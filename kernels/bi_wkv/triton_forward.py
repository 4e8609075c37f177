"""Forward of Bi-WKV in Triton: sums of chunks, scan over chunks, result.

A program is one warp; each lane owns a channel and holds the L tokens of a chunk in registers, as a tuple of rows. Sums over tokens are
straight-line multiply-adds inside a lane: no shuffles, no barriers.

Two ways through every pass, chosen by the program from its own w and u, so that the host never waits for a number:

- fast: the weights of a chunk share one scale, each direction is a recurrence with exp(-w);
- any w and u: every token takes its softmax over the chunk's tokens and the two incoming states, with a maximum of its own. L times the
  exponentials, but no assumption. It works on the tile (L, BC) itself.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_runtime import launch
from .triton_states import (
    CHANNELS,
    LOG2E,
    SAFE_BONUS,
    all_safe,
    bi_wkv_kernel_scan,
    decay,
    exp,
    heavier,
    heaviest_token,
    load_parameters,
    load_state,
    place,
    ratio,
    reciprocal,
    stack,
    state_pointers,
    store_state,
    tile_of,
    unstack,
)


@triton.jit
def load_chunk(pointer, batch, chunk, c, T, C, stride_b, stride_t, stride_c, fill: tl.constexpr, L: tl.constexpr, ACC: tl.constexpr):
    """Tokens of a chunk and the program's channels, (L, BC); what lies outside is `fill`."""
    t = chunk * L + tl.arange(0, L)
    mask = (t < T)[:, None] & (c < C)[None, :]
    return tl.load(tile_of(pointer + batch * stride_b, t, c, stride_t, stride_c), mask=mask, other=fill).to(ACC)


@triton.jit
def store_chunk(pointer, batch, chunk, c, T, C, x, L: tl.constexpr):
    """(L, BC) into a contiguous (B, T, C)."""
    t = chunk * L + tl.arange(0, L)
    mask = (t < T)[:, None] & (c < C)[None, :]
    tl.store(tile_of(pointer + batch * T * C, t, c, C, 1), x.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def heaviest(rows, L: tl.constexpr):
    top = rows[0]
    for j in tl.static_range(1, L):
        top = tl.maximum(top, rows[j])
    return top


@triton.jit
def bi_wkv_fwd_kernel_totals(k, v, w, u, totals, T, chunks, C, KB, KT, KC, VB, VT, VC, L: tl.constexpr, BC: tl.constexpr):
    """k, v (B, T, C) -> the sums of every chunk, as the token after it sees them (prefix) and as the token before it does (suffix)."""
    pair, batch, chunk, c = place(tl.program_id(0), chunks, C, BC)
    ACC: tl.constexpr = totals.dtype.element_ty
    w, u = load_parameters(w, u, c, C, ACC)
    k_tile = load_chunk(k, batch, chunk, c, T, C, KB, KT, KC, float("-inf"), L, ACC)
    v_tile = load_chunk(v, batch, chunk, c, T, C, VB, VT, VC, 0.0, L, ACC)
    zero = tl.zeros((BC,), ACC)
    if all_safe(w, u, T):
        ks, vs = unstack(k_tile, L), unstack(v_tile, L)
        key = heaviest(ks, L)
        scale = tl.where(key == float("-inf"), 0.0, key)
        lam = decay(w)
        power, num, den, num_suffix, den_suffix = zero + 1, zero, zero, zero, zero
        for j in tl.static_range(L):
            p = exp(ks[j] - scale)
            q = p * vs[j]
            num, den = num * lam + q, den * lam + p
            num_suffix, den_suffix = num_suffix + power * q, den_suffix + power * p
            power *= lam
        store_state(state_pointers(totals, pair, 0, c, C), c < C, zero, key, num, den)
        store_state(state_pointers(totals, pair, 1, c, C), c < C, zero, key, num_suffix, den_suffix)
    else:
        for side in tl.static_range(2):
            steps = (tl.arange(0, L) if side else L - 1 - tl.arange(0, L)).to(ACC)[:, None]
            n, key = heaviest_token(k_tile, steps, w)
            scale = tl.where(key == float("-inf"), 0.0, key)
            weight = exp((k_tile - scale[None, :]) - (steps - n[None, :]) * w[None, :])
            num_side, den_side = tl.sum(weight * v_tile, axis=0), tl.sum(weight, axis=0)
            store_state(state_pointers(totals, pair, side, c, C), c < C, n, key, num_side, den_side)


@triton.jit
def weights_and_suffixes(ks, vs, left, right, w, lam, L: tl.constexpr):
    """Scale (n, key) of a chunk and what enters it; in this scale the sums from the left, and, last token first, weights and suffixes."""
    n, key = heavier(tl.zeros_like(left[0]), heaviest(ks, L), left[0], left[1], w)
    n, key = heavier(n, key, right[0], right[1], w)
    factor = ratio(right[0], right[1], n, key, w)
    num, den = right[2] * factor, right[3] * factor
    ps, nums, dens = (), (), ()
    shift = n * w * LOG2E
    for j in tl.static_range(L):
        p = tl.exp2((ks[L - 1 - j] - key) * LOG2E + shift)
        ps, nums, dens = ps + (p,), nums + (num,), dens + (den,)
        num = num * lam + p * vs[L - 1 - j]
        den = den * lam + p
    factor = ratio(left[0], left[1], n, key, w)
    return n, key, left[2] * factor, left[3] * factor, ps, nums, dens


@triton.jit
def softmax_at(t, ks, vs, w, u, left, right, L: tl.constexpr):
    """Token t of a chunk, any w and u: its scale (n, key) and denominator, y, the chunk's weights (L, BC), and the factors that bring the
    incoming states to this scale and divide them. Rows past the end have ks = -inf."""
    n_left, n_right = left[0] + t, right[0] + (L - 1 - t)
    i = tl.arange(0, L)[:, None]
    bonus = tl.where(tl.abs(u) <= SAFE_BONUS, u, 0.0)  # part of u that no scale has to hold: a key plus u would be rounded
    keys = ks + tl.where(i == t, (u - bonus)[None, :], 0.0)
    steps = tl.where(i == t, 0, tl.abs(i - t) - 1).to(ks.dtype)
    n, key = heaviest_token(keys, steps, w)
    n, key = heavier(n, key, n_left, left[1], w)
    n, key = heavier(n, key, n_right, right[1], w)
    p = exp(((keys - key[None, :]) - (steps - n[None, :]) * w[None, :]) + tl.where(i == t, bonus[None, :], 0.0))
    from_left, from_right = ratio(n_left, left[1], n, key, w), ratio(n_right, right[1], n, key, w)
    den = tl.sum(p, axis=0) + from_left * left[3] + from_right * right[3]
    num = tl.sum(p * vs, axis=0) + from_left * left[2] + from_right * right[2]
    return n, key, den, num / den, p / den[None, :], from_left / den, from_right / den


@triton.jit
def bi_wkv_fwd_kernel_out(k, v, w, u, incoming, y, T, chunks, C, KB, KT, KC, VB, VT, VC, L: tl.constexpr, BC: tl.constexpr):
    """k, v (B, T, C) and the incoming states -> y (B, T, C), contiguous."""
    # last chunk first: what the first pass read last is still in the cache
    pair, batch, chunk, c = place(tl.num_programs(0) - 1 - tl.program_id(0), chunks, C, BC)
    ACC: tl.constexpr = incoming.dtype.element_ty
    HALF: tl.constexpr = y.dtype.element_ty.primitive_bitwidth == 16
    w, u = load_parameters(w, u, c, C, ACC)
    k_tile = load_chunk(k, batch, chunk, c, T, C, KB, KT, KC, float("-inf"), L, ACC)
    v_tile = load_chunk(v, batch, chunk, c, T, C, VB, VT, VC, 0.0, L, ACC)
    left = load_state(state_pointers(incoming, pair, 0, c, C), c < C)
    right = load_state(state_pointers(incoming, pair, 1, c, C), c < C)
    if all_safe(w, u, T):
        ks, vs = unstack(k_tile, L), unstack(v_tile, L)
        lam, eu = decay(w), exp(u)
        _, _, num, den, ps, nums, dens = weights_and_suffixes(ks, vs, left, right, w, lam, L)
        ys = ()
        for j in tl.static_range(L):
            p = ps[L - 1 - j]
            q = p * vs[j]
            out = ((num + nums[L - 1 - j]) + eu * q) * reciprocal((den + dens[L - 1 - j]) + eu * p, HALF)
            ys = ys + (out.to(y.dtype.element_ty),)
            num, den = num * lam + q, den * lam + p
        store_chunk(y, batch, chunk, c, T, C, stack(ys, L), L)
    else:
        y_tile = tl.zeros((L, BC), ACC)
        t = 0
        while t < L:
            _, _, _, y_t, _, _, _ = softmax_at(t, k_tile, v_tile, w, u, left, right, L)
            y_tile = tl.where(tl.arange(0, L)[:, None] == t, y_t[None, :], y_tile)
            t += 1
        store_chunk(y, batch, chunk, c, T, C, y_tile, L)


def accumulator(k: Tensor) -> torch.dtype:
    """Dtype of the arithmetic: float64 stays, everything else is float32."""
    return torch.promote_types(k.dtype, torch.float32)


def chunk_length(k: Tensor, longest: int) -> int:
    """Tokens per chunk: `longest`, or less for float64 and where a small input would leave most of a GPU idle."""
    if k.dtype == torch.float64:
        return 8
    batch, length, channels = k.shape
    return longest if batch * triton.cdiv(length, longest) * triton.cdiv(channels, CHANNELS) >= 1024 else 16


def readable(x: Tensor) -> Tensor:
    """x itself if neighbouring channels are neighbours in memory or one number (an expanded gradient), else a contiguous copy."""
    return x if x.stride(-1) in (0, 1) or x.shape[-1] == 1 else x.contiguous()


class Plan:
    """Sizes of one call and its scan over chunks."""

    def __init__(self, k: Tensor, longest: int):
        self.batch, self.tokens, self.channels = k.shape
        self.length = chunk_length(k, longest)
        self.chunks = triton.cdiv(self.tokens, self.length)
        self.blocks = triton.cdiv(self.channels, CHANNELS)
        self.grid = (self.batch * self.chunks * self.blocks,)
        self.sizes = (self.tokens, self.chunks, self.channels)
        self.config = dict(L=self.length, BC=CHANNELS, num_warps=1)
        self.like = k

    def new(self, *sizes: int) -> Tensor:
        return self.like.new_empty(self.batch * self.chunks, *sizes, dtype=accumulator(self.like))

    def states(self) -> Tensor:
        """Memory for two states of every chunk and channel."""
        return self.new(self.channels, 2, 4)

    def scan(self, totals: Tensor, w: Tensor) -> Tensor:
        """Sums of chunks -> incoming states."""
        incoming = torch.empty_like(totals)
        grid = (self.batch * self.blocks * 2,)
        launch(bi_wkv_kernel_scan, grid, totals, w, incoming, self.chunks, self.length, self.channels, BC=CHANNELS, num_warps=1)
        return incoming


def incoming_states(plan: Plan, w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The prefix and suffix sums that enter every chunk."""
    totals = plan.states()
    launch(bi_wkv_fwd_kernel_totals, plan.grid, k, v, w, u, totals, *plan.sizes, *k.stride(), *v.stride(), **plan.config)
    return plan.scan(totals, w)


def forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(C,), (C,), (B, T, C), (B, T, C) -> y (B, T, C) in the dtype of k; three launches."""
    y = torch.empty_like(k, memory_format=torch.contiguous_format)
    if k.numel() == 0:
        return y
    plan, k, v, w, u = Plan(k, longest=32), readable(k), readable(v), w.contiguous(), u.contiguous()
    incoming = incoming_states(plan, w, u, k, v)
    launch(bi_wkv_fwd_kernel_out, plan.grid, k, v, w, u, incoming, y, *plan.sizes, *k.stride(), *v.stride(), **plan.config)
    return y
