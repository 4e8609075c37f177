"""Pieces shared by the selective scan's Triton kernels: how steps are read and written, softplus, and sums over channels.

A program is one warp. Its lanes are channels: a state tile is (32, N, R), channel r * 32 + lane, so that a thread holds all N states of its
R channels and a sum over states needs no other thread. Rows (32 R,) hold one step of these channels. Lanes come first because
Triton spreads the first dimension over lanes where it does not know the strides of a load; kernels hide
theirs (do_not_specialize) for that reason.
"""

import triton
import triton.language as tl


@triton.jit
def columns(tile, S: tl.constexpr):
    """(M, S) -> tuple of its S columns (M,). Where a thread holds a whole line of the tile, nothing is moved."""
    if S == 1:
        out = (tl.reshape(tile, (tile.shape[0],)),)
    else:
        even, odd = tl.split(tl.reshape(tile, (tile.shape[0], S // 2, 2)))
        left = columns(even, S // 2)
        right = columns(odd, S // 2)
        out = ()
        for i in tl.static_range(S // 2):
            out = out + (left[i], right[i])
    return out


@triton.jit
def tile_of(rows, S: tl.constexpr):
    """The inverse of `columns`: S vectors (M,) -> (M, S)."""
    if S == 1:
        out = tl.reshape(rows[0], (rows[0].shape[0], 1))
    else:
        even = ()
        odd = ()
        for i in tl.static_range(S // 2):
            even = even + (rows[2 * i],)
            odd = odd + (rows[2 * i + 1],)
        out = tl.reshape(tl.join(tile_of(even, S // 2), tile_of(odd, S // 2)), (rows[0].shape[0], S))
    return out


@triton.jit
def load_rows(ptr, channel, stride, start, length, mask, S: tl.constexpr, W: tl.constexpr, ACC: tl.constexpr):
    """Steps start .. start + S - 1 as S rows (M,) of type ACC, zero from `length` on.

    channel: (M,) int64 offsets of the channels. W > 1: steps are contiguous and W of them, one load of a thread, lie aligned. W = 1: any
    stride.
    """
    rows = ()
    if W == 1:
        for j in tl.static_range(S):
            at = channel + (start + j).to(tl.int64) * stride
            rows = rows + (tl.load(ptr + at, mask=mask & (start + j < length), other=0.0).to(ACC),)
    else:
        for j in tl.static_range(0, S, W):
            step = start + j + tl.arange(0, W)
            tile = tl.load(ptr + channel[:, None] + step[None, :], mask=mask[:, None] & (step < length)[None, :], other=0.0)
            rows = rows + columns(tile.to(ACC), W)
    return rows


@triton.jit
def store_rows(ptr, channel, rows, start, length, mask, S: tl.constexpr, W: tl.constexpr):
    """Writes S rows (M,) to contiguous steps; `channel` and W as in `load_rows`."""
    if W == 1:
        for j in tl.static_range(S):
            tl.store(ptr + (channel + (start + j)), rows[j].to(ptr.dtype.element_ty), mask=mask & (start + j < length))
    else:
        for j in tl.static_range(0, S, W):
            part = ()
            for i in tl.static_range(W):
                part = part + (rows[j + i],)
            step = start + j + tl.arange(0, W)
            tile = tile_of(part, W).to(ptr.dtype.element_ty)
            tl.store(ptr + channel[:, None] + step[None, :], tile, mask=mask[:, None] & (step < length)[None, :])


@triton.jit
def log1p_of_exp(e, ACC: tl.constexpr):
    """log(1 + e) for 0 <= e <= 1 with a small relative error, from log(1 + e) = 2 atanh(e / (2 + e)): log itself would round 1 + e."""
    TERMS: tl.constexpr = 17 if tl.float64 == ACC else 7
    s = e / (2 + e)
    q = s * s
    p = q * (1 / (2 * TERMS + 1))
    for i in tl.static_range(1, TERMS):
        p = q * (p + 1 / (2 * (TERMS - i) + 1))
    return 2 * (s + s * p)


@triton.jit
def exp_minus(x):
    """exp(-x) for x >= 0 within a rounding or two, as 2^-n exp(r) with |r| <= log(2) / 2: exp2(-x / log 2) alone errs by x roundings.

    log 2 is split in two, so that n times its upper part is exact.
    """
    x = tl.where(x > 1000.0, 1000.0, x)
    n = tl.floor(x * 1.4426950408889634 + 0.5)
    r = (n * 0.693359375 - x) - n * 2.1219444005469058e-4
    return tl.exp2(-n) * tl.exp2(r * 1.4426950408889634)


@triton.jit
def step_size(raw, bias, SOFTPLUS: tl.constexpr, ACC: tl.constexpr):
    """delta + bias (M,), and softplus of it where asked for: linear above 20, as PyTorch has it."""
    raw = raw + bias
    if SOFTPLUS:
        e = exp_minus(tl.abs(raw))
        return tl.where(raw > 20, raw, tl.maximum(raw, 0) + log1p_of_exp(e, ACC))
    else:
        return raw


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)) without overflow."""
    e = exp_minus(tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1 + e)


@triton.jit
def spread(row, R: tl.constexpr):
    """Row (32 R,) -> (32, 1, R), to be combined with state tiles."""
    return tl.expand_dims(tl.trans(tl.reshape(row, (R, 32))), 1)


@triton.jit
def sum_states(tile, R: tl.constexpr):
    """State tile (32, N, R) -> row (32 R,), within threads."""
    return tl.reshape(tl.trans(tl.sum(tile, 1)), (R * 32,))


@triton.jit
def decay(step, rate, R: tl.constexpr):
    """exp(step A) of steps (32 R,) and a tile of rates A. The step takes the factor of exp2: a rounding of the rate would act on all steps
    alike, and add up where states grow."""
    return tl.exp2(spread(step * 1.4426950408889634, R) * rate)


@triton.jit
def load_weights(ptr, n, stride_n, stride_l, start, j: tl.constexpr, length, N: tl.constexpr, ACC: tl.constexpr):
    """Step start + j of B or C as (32, len(n), 1): every lane reads the states' weights itself, one address per warp.

    The address of `start` is the same for all j: where steps are contiguous, j becomes part of the instruction.
    """
    lane = tl.arange(0, 32)[:, None, None] * 0
    at = ptr + start.to(tl.int64) * stride_l + (n[None, :, None].to(tl.int64) * stride_n + lane)
    return tl.load(at + j * stride_l, mask=(n[None, :, None] < N) & (lane == 0) & (start + j < length), other=0.0).to(ACC)


@triton.jit
def sum_channels(tile):
    """State tile (32, M, R) -> (M,)."""
    return tl.sum(tl.sum(tile, 2), 0)
