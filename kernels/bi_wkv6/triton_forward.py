"""Triton kernels of the forward: state of every chunk, scan over chunks, result. The backward uses all three as well."""

import triton
import triton.language as tl

from .triton_tiles import ahead, beyond, decay_over, load_rows, log2_decay, separated, store_rows, toward_middle


@triton.jit
def bi_wkv6_state_kernel(
    k,
    v,
    w,
    states,
    across,
    T,
    D,
    H,
    NC,
    k_b,
    k_t,
    k_h,
    v_b,
    v_t,
    v_h,
    w_b,
    w_t,
    w_h,
    NO_MEMORY: tl.constexpr,
    TILE: tl.constexpr,
    COUNT: tl.constexpr,
    DP: tl.constexpr,
    BD: tl.constexpr,
    BV: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sums of k v^T over one chunk, decayed to its end and to its start: states (B H, NC, 2, DP of k, DP of v).

    Also log2 of the decay across the chunk: across (B H, NC, DP).
    """
    pid = tl.program_id(0).to(tl.int64)
    chunk, head = pid % NC, pid // NC
    blocks: tl.constexpr = DP // BV
    vblock = tl.program_id(1) % blocks
    cols, vcols = (tl.program_id(1) // blocks) * BD + tl.arange(0, BD), vblock * BV + tl.arange(0, BV)
    rows = tl.arange(0, TILE)
    k += (head // H) * k_b + (head % H) * k_h
    v += (head // H) * v_b + (head % H) * v_h
    w += (head // H) * w_b + (head % H) * w_h
    to_end, to_start = tl.zeros((BV, BD), tl.float32), tl.zeros((BV, BD), tl.float32)
    passed = tl.zeros((BD,), tl.float32)
    for i in range(COUNT):
        t = (chunk * COUNT + i) * TILE
        decay = log2_decay(w, t, rows, cols, w_t, T, D, NO_MEMORY)
        key, value = load_rows(k, t, rows, cols, k_t, T, D), tl.trans(load_rows(v, t, rows, vcols, v_t, T, D))
        total = tl.sum(decay, axis=0)
        onward = key * decay_over(beyond(rows, 1), decay, PRECISION)
        to_end = tl.dot(value, onward, to_end * tl.exp2(total)[None, :], input_precision=PRECISION)
        back = key * decay_over(ahead(rows, 1), decay, PRECISION) * tl.exp2(passed)[None, :]
        to_start = tl.dot(value, back, to_start, input_precision=PRECISION)
        passed += total
    out = states + pid * 2 * DP * DP + cols[None, :] * DP + vcols[:, None]
    tl.store(out, to_end)
    tl.store(out + DP * DP, to_start)
    tl.store(across + pid * DP + cols, passed, mask=(cols < DP) & (vblock == 0))


@triton.jit
def bi_wkv6_scan_kernel(states, across, NC, HEADS, DP: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr):
    """The sums of all chunks -> the state that enters each chunk, in place: states (sets of B H, NC, 2, DP, DP)."""
    pid = tl.program_id(0).to(tl.int64)
    blocks: tl.constexpr = DP * DP // BLOCK
    index = (pid % blocks) * BLOCK + tl.arange(0, BLOCK)
    side, head = (pid // blocks) % 2, pid // (2 * blocks)
    states += head * NC * 2 * DP * DP + side * DP * DP + index
    across += (head % HEADS) * NC * DP + index // DP
    state = tl.zeros((BLOCK,), tl.float32)
    start = 0
    while start < NC:
        sums, decays = (), ()
        for j in tl.static_range(GROUP):  # loads of a group are in flight together
            inside = (start + j < NC) & (index >= 0)
            chunk = tl.where(side == 0, start + j, NC - 1 - start - j).to(tl.int64)
            sums = sums + (tl.load(states + chunk * 2 * DP * DP, mask=inside, other=0.0),)
            decays = decays + (tl.load(across + chunk * DP, mask=inside, other=0.0),)
        for j in tl.static_range(GROUP):
            inside = (start + j < NC) & (index >= 0)
            chunk = tl.where(side == 0, start + j, NC - 1 - start - j).to(tl.int64)
            tl.store(states + chunk * 2 * DP * DP, state, mask=inside)
            state = state * tl.exp2(decays[j]) + sums[j]
        start += GROUP


@triton.jit
def bi_wkv6_mix_kernel(
    q,
    k,
    v,
    w,
    u,
    states,
    out,
    T,
    D,
    H,
    NC,
    q_b,
    q_t,
    q_h,
    k_b,
    k_t,
    k_h,
    v_b,
    v_t,
    v_h,
    w_b,
    w_t,
    w_h,
    u_h,
    LEVELS: tl.constexpr,
    NO_MEMORY: tl.constexpr,
    TILE: tl.constexpr,
    COUNT: tl.constexpr,
    DP: tl.constexpr,
    BD: tl.constexpr,
    BV: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The operator on one block of tokens and of value channels, given the states that enter its chunk: out (B, T, H, D), contiguous."""
    pid = tl.program_id(0).to(tl.int64)
    block, place = (pid % COUNT).to(tl.int32), pid // COUNT
    chunk, head = place % NC, place // NC
    b, h = head // H, head % H
    q += b * q_b + h * q_h
    k += b * k_b + h * k_h
    v += b * v_b + h * v_h
    w += b * w_b + h * w_h
    rows, vcols = tl.arange(0, TILE), tl.program_id(1) * BV + tl.arange(0, BV)
    first = chunk * COUNT * TILE
    t = first + block * TILE
    result = tl.zeros((TILE, BV), tl.float32)
    for part in range(DP // BD):
        cols = part * BD + tl.arange(0, BD)
        query, key = load_rows(q, t, rows, cols, q_t, T, D), load_rows(k, t, rows, cols, k_t, T, D)
        decay = log2_decay(w, t, rows, cols, w_t, T, D, NO_MEMORY)
        # pairs of this block, and each token with itself; score (query token, key token)
        bonus = tl.load(u + h * u_h + cols, mask=cols < D, other=0.0).to(tl.float32)
        score = tl.where(rows[:, None] == rows[None, :], tl.sum(query * key * bonus[None, :], axis=1)[:, None], 0.0)
        level = 0
        while level < LEVELS:
            factor = decay_over(toward_middle(rows, level), decay, PRECISION)
            product = tl.dot(query * factor, tl.trans(key * factor), input_precision=PRECISION)
            score += tl.where(separated(rows, level), product, 0.0)
            level += 1
        result = tl.dot(score, load_rows(v, t, rows, vcols, v_t, T, D), result, input_precision=PRECISION)
        # tokens of other blocks and chunks, to the left, then to the right
        side = 0
        while side < 2:
            sign = 1 - 2 * side
            toward = query * decay_over(ahead(rows, sign), decay, PRECISION)
            other = block - sign
            while (other >= 0) & (other < COUNT):
                at = first + other * TILE
                step = log2_decay(w, at, rows, cols, w_t, T, D, NO_MEMORY)
                sender = load_rows(k, at, rows, cols, k_t, T, D) * decay_over(beyond(rows, sign), step, PRECISION)
                score = tl.dot(toward, tl.trans(sender), input_precision=PRECISION)
                result = tl.dot(score, load_rows(v, at, rows, vcols, v_t, T, D), result, input_precision=PRECISION)
                toward *= tl.exp2(tl.sum(step, axis=0))[None, :]
                other -= sign
            state = tl.load(states + (place * 2 + side) * DP * DP + (cols[:, None] * DP + vcols[None, :]))
            result = tl.dot(toward, state, result, input_precision=PRECISION)
            side += 1
    store_rows(out + (b * T * H + h) * D, result, t, rows, vcols, H * D, T, D)
