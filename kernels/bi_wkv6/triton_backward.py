"""Triton kernels of the backward: gradients of r and k with what flows through each decay, then the gradient of w.

A pair of tokens has a gradient for every decay strictly between the two, the same for all: its flow. The first kernel has a program per
block and knows the flows of that block's tokens, so it adds up those that end inside the block. Flows that pass a block whole belong to
pairs of other programs. They are sums over tokens, one vector of key channels per pair of blocks, and go through memory to the second
kernel. Nothing is subtracted anywhere.
"""

import triton
import triton.language as tl

from .triton_tiles import LN2, ahead, beyond, decay_over, load_rows, log2_decay, separated, store_rows, sum_over, toward_middle

# Vectors of key channels per block: a part of u's gradient; flows across the whole chunk (a part of the value channels); flows between the
# block and what lies left of its chunk; right of it; flows between the block and each block of the chunk
OWN, WHOLE, LEFT, RIGHT, FIRST_BLOCK = (tl.constexpr(i) for i in range(5))


@triton.jit
def _products(x, y, t, at, rows, x_t, y_t, T, D, BV: tl.constexpr, PRECISION: tl.constexpr):
    """Products of the values of x in the block from t on and y in that from `at` on: (tokens of x, tokens of y). Loaded again each time:
    kept in registers, they and their TF32 parts would be a quarter of all."""
    total = tl.zeros((rows.shape[0], rows.shape[0]), tl.float32)
    start = 0
    while start < D:
        cols = start + tl.arange(0, BV)
        left, right = load_rows(x, t, rows, cols, x_t, T, D), load_rows(y, at, rows, cols, y_t, T, D)
        total = tl.dot(left, tl.trans(right), total, input_precision=PRECISION)
        start += BV
    return total


@triton.jit
def bi_wkv6_bwd_kernel(
    r,
    k,
    v,
    w,
    gy,
    u,
    sums,
    adjoint,
    gr,
    gk,
    inner,
    flows,
    T,
    D,
    H,
    NC,
    r_b,
    r_t,
    r_h,
    k_b,
    k_t,
    k_h,
    v_b,
    v_t,
    v_h,
    w_b,
    w_t,
    w_h,
    g_b,
    g_t,
    g_h,
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
    """Gradients of r and k for one block of tokens and of key channels, and the flows that end in it: inner (B, T, H, D), float32.

    flows: (B H NC COUNT, FIRST_BLOCK + COUNT, DP). `sums` and `adjoint` are the states of (k, v) and of (r, gy) that enter the chunk.
    """
    pid = tl.program_id(0).to(tl.int64)
    block, place = (pid % COUNT).to(tl.int32), pid // COUNT
    chunk, head = place % NC, place // NC
    b, h = head // H, head % H
    r += b * r_b + h * r_h
    k += b * k_b + h * k_h
    v += b * v_b + h * v_h
    w += b * w_b + h * w_h
    gy += b * g_b + h * g_h
    rows, cols, values = tl.arange(0, TILE), tl.program_id(1) * BD + tl.arange(0, BD), tl.arange(0, DP)
    flows += pid * (FIRST_BLOCK + COUNT) * DP + cols
    sums += place * 2 * DP * DP + cols[None, :] * DP
    adjoint += place * 2 * DP * DP + cols[None, :] * DP
    first = chunk * COUNT * TILE
    t = first + block * TILE
    query, key = load_rows(r, t, rows, cols, r_t, T, D), load_rows(k, t, rows, cols, k_t, T, D)
    decay = log2_decay(w, t, rows, cols, w_t, T, D, NO_MEMORY)
    # Each token with itself, and pairs of this block
    own = tl.sum(load_rows(gy, t, rows, values, g_t, T, D) * load_rows(v, t, rows, values, v_t, T, D), axis=1)[:, None]
    tl.store(flows + OWN * DP, tl.sum(own * query * key, axis=0))
    bonus = own * tl.load(u + h * u_h + cols, mask=cols < D, other=0.0).to(tl.float32)[None, :]
    gquery, gkey, gdecay = bonus * key, bonus * query, tl.zeros((TILE, BD), tl.float32)
    # The transpose is a product of its own: transposing the result of a product to feed it to the next has given wrong numbers on Hopper.
    pairs = _products(gy, v, t, t, rows, g_t, v_t, T, D, BV, PRECISION)
    pairs_t = _products(v, gy, t, t, rows, v_t, g_t, T, D, BV, PRECISION)
    level = 0
    while level < LEVELS:
        apart, factor = separated(rows, level), decay_over(toward_middle(rows, level), decay, PRECISION)
        dquery = tl.dot(tl.where(apart, pairs, 0.0), key * factor, input_precision=PRECISION) * factor
        dkey = tl.dot(tl.where(apart, pairs_t, 0.0), query * factor, input_precision=PRECISION) * factor
        gquery += dquery
        gkey += dkey
        gdecay = sum_over(tl.trans(toward_middle(rows, level)), query * dquery + key * dkey, gdecay, PRECISION)
        level += 1
    # Pairs with tokens to the left of the block, then to the right: a query here and a key there, and a key here and a query there
    side = 0
    while side < 2:
        sign = 1 - 2 * side
        toward, flow = decay_over(ahead(rows, sign), decay, PRECISION), tl.zeros((TILE, BD), tl.float32)
        other = block - sign
        while (other >= 0) & (other < COUNT):
            at = first + other * TILE
            step = log2_decay(w, at, rows, cols, w_t, T, D, NO_MEMORY)
            away = decay_over(beyond(rows, sign), step, PRECISION)
            pairs = _products(gy, v, t, at, rows, g_t, v_t, T, D, BV, PRECISION)
            dquery = tl.dot(pairs, load_rows(k, at, rows, cols, k_t, T, D) * away, input_precision=PRECISION) * toward
            pairs = _products(v, gy, t, at, rows, v_t, g_t, T, D, BV, PRECISION)
            dkey = tl.dot(pairs, load_rows(r, at, rows, cols, r_t, T, D) * away, input_precision=PRECISION) * toward
            gquery += dquery
            gkey += dkey
            dquery = query * dquery + key * dkey
            tl.store(flows + (FIRST_BLOCK + other) * DP, tl.sum(dquery, axis=0))
            flow += dquery
            toward *= tl.exp2(tl.sum(step, axis=0))[None, :]
            other -= sign
        dquery, dkey = tl.zeros((TILE, BD), tl.float32), tl.zeros((TILE, BD), tl.float32)
        start = 0
        while start < D:
            vcols = start + tl.arange(0, BV)
            state = side * DP * DP + vcols[:, None]
            dquery = tl.dot(load_rows(gy, t, rows, vcols, g_t, T, D), tl.load(sums + state), dquery, input_precision=PRECISION)
            dkey = tl.dot(load_rows(v, t, rows, vcols, v_t, T, D), tl.load(adjoint + state), dkey, input_precision=PRECISION)
            start += BV
        gquery += dquery * toward
        gkey += dkey * toward
        dquery = (query * dquery + key * dkey) * toward
        tl.store(flows + (LEFT + side) * DP, tl.sum(dquery, axis=0))
        gdecay = sum_over(beyond(rows, sign), flow + dquery, gdecay, PRECISION)
        side += 1
    where = (b * T * H + h) * D
    store_rows(gr + where, gquery, t, rows, cols, H * D, T, D)
    store_rows(gk + where, gkey, t, rows, cols, H * D, T, D)
    store_rows(inner + where, gdecay, t, rows, cols, H * D, T, D)
    # Flows across the whole chunk, of this program's part of the value channels
    share: tl.constexpr = DP // COUNT
    state = (block * share + tl.arange(0, share))[:, None]
    rightward = tl.sum(tl.load(sums + state) * tl.load(adjoint + DP * DP + state), axis=0)
    leftward = tl.sum(tl.load(sums + DP * DP + state) * tl.load(adjoint + state), axis=0)
    tl.store(flows + WHOLE * DP, rightward + leftward)


@triton.jit
def bi_wkv6_bwd_decay_kernel(
    w,
    flows,
    across,
    inner,
    gw,
    T,
    D,
    H,
    NC,
    w_b,
    w_t,
    w_h,
    NO_MEMORY: tl.constexpr,
    TILE: tl.constexpr,
    COUNT: tl.constexpr,
    DP: tl.constexpr,
):
    """Gradient of w for one block of tokens: the flows that end in the block, which `inner` has, and those that pass it."""
    pid = tl.program_id(0).to(tl.int64)
    block, place = (pid % COUNT).to(tl.int32), pid // COUNT
    chunk, head = place % NC, place // NC
    b, h = head // H, head % H
    rows, cols = tl.arange(0, TILE), tl.arange(0, DP)
    slots: tl.constexpr = FIRST_BLOCK + COUNT
    flows += place * COUNT * slots * DP + cols
    whole, passing = tl.zeros((DP,), tl.float32), tl.zeros((DP,), tl.float32)
    for i in range(COUNT):
        vectors = flows + i * slots * DP
        whole += tl.load(vectors + WHOLE * DP)
        if i > block:
            passing += tl.load(vectors + LEFT * DP)
        if i < block:
            passing += tl.load(vectors + RIGHT * DP)
            for j in range(COUNT):
                if j > block:
                    passing += tl.load(vectors + (FIRST_BLOCK + j) * DP)
    passing += whole * tl.exp2(tl.load(across + place * DP + cols))
    t = (chunk * COUNT + block) * TILE
    decay = log2_decay(w + b * w_b + h * w_h, t, rows, cols, w_t, T, D, NO_MEMORY)
    where = (b * T * H + h) * D
    flow = load_rows(inner + where, t, rows, cols, H * D, T, D) + passing[None, :]
    store_rows(gw + where, flow * (decay * LN2), t, rows, cols, H * D, T, D)
