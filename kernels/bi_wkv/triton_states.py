"""What the Triton passes of Bi-WKV share: tiles and rows, sums with a scale, and the scan over chunks.

A sum over tokens is kept as a state (n, key, num, den); the true sum is exp(key - n w) times (num, den). `key` is a log-weight that occurs
in the input and `n` a whole number of tokens, so that the distance between two scales, (key - key') - (n - n') w, is exact to one rounding
whatever the size of keys and decays: nothing drifts from chunk to chunk. `key` = -inf means an empty sum.

In memory two states lie together, (B * chunks, C, 2, 4): of a chunk its own sums, as the token after it sees them and as the token before
it does; or what enters a chunk from its left and from its right.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
HIGHEST_DECAY = tl.constexpr(2.0**20)  # |w| beyond it acts as 2^20: the limit already, unless finite keys differ by a million
SAFE_DECAY = tl.constexpr(0.9375)  # largest |w| of the fast path: a chunk of 32 tokens loses at most exp(-30)
SAFE_BONUS = tl.constexpr(30.0)  # largest |u| of the fast path
SAFE_GROWTH = tl.constexpr(20.0)  # largest -w T of the fast path: beyond it one scale per chunk cannot serve both directions
MARGIN = tl.constexpr(8.0)  # a sum keeps its scale until a newcomer is exp(8) heavier: each change of scale costs a rounding
AHEAD = tl.constexpr(8)  # chunks that the scan over chunks reads at once, while it joins as many
CHANNELS = 32  # channels of a program: one per lane of its only warp


@triton.jit
def exp(x):
    return tl.exp2(x * LOG2E)


@triton.jit
def decay(w):
    """exp(-w) for |w| <= SAFE_DECAY, to half a unit in the last place in float32: its error grows with every power that is taken."""
    if w.dtype == tl.float64:
        return tl.exp(-w)
    else:
        s = 1 - w * (1.0 / 11)
        for i in tl.static_range(10):
            s = 1 - w * s * (1.0 / (10 - i))
        return s


@triton.jit
def reciprocal(x, HALF: tl.constexpr):
    """1 / x. For half-precision results 1 / sqrt(x) squared: two instructions and 2 units of error, where a division takes eight."""
    if HALF:
        root = tl.rsqrt(x)
        return root * root
    else:
        return 1.0 / x


@triton.jit
def place(program, chunks, C, BC: tl.constexpr):
    """Program number -> number of the (batch, chunk) pair (int64), batch, chunk, and the program's channels. Channels run fastest."""
    blocks = tl.cdiv(C, BC)
    pair = (program // blocks).to(tl.int64)
    return pair, pair // chunks, pair % chunks, program % blocks * BC + tl.arange(0, BC)


@triton.jit
def load_parameters(w, u, c, C, ACC: tl.constexpr):
    """w, limited to +-HIGHEST_DECAY (a NaN stays one), and u, of the program's channels."""
    w = tl.load(w + c, mask=c < C, other=0.0).to(ACC)
    u = tl.load(u + c, mask=c < C, other=0.0).to(ACC)
    return tl.where(w > HIGHEST_DECAY, HIGHEST_DECAY, tl.where(w < -HIGHEST_DECAY, -HIGHEST_DECAY, w)), u


@triton.jit
def all_safe(w, u, T):
    """Whether the fast path is safe for every channel of the program; false for a NaN."""
    safe = (tl.abs(w) <= SAFE_DECAY) & (tl.abs(u) <= SAFE_BONUS) & (-w * T <= SAFE_GROWTH)
    return tl.min(safe.to(tl.int32), axis=0) == 1


@triton.jit
def tile_of(pointer, rows, c, step, step_c):
    """Pointers (L, BC): row `rows[i]` and channel `c[j]` of a matrix; offsets in int64."""
    return pointer + rows.to(tl.int64)[:, None] * step + c[None, :] * step_c


@triton.jit
def unstack(x, L: tl.constexpr):
    """(L, BC) -> a tuple of L rows (BC,). One load of a tile and this are much faster to compile than L loads, and move 16 bytes each."""
    parts = (x,)
    for level in tl.static_range(6):
        if (L >> level) > 1:
            halves = ()
            for i in tl.static_range(1 << level):
                pair = tl.reshape(parts[i], (2, L >> (level + 1), x.shape[1]))
                first, second = tl.split(tl.permute(pair, (1, 2, 0)))
                halves = halves + (first, second)
            parts = halves
    rows = ()
    for i in tl.static_range(L):
        rows = rows + (tl.reshape(parts[i], (x.shape[1],)),)
    return rows


@triton.jit
def stack(rows, L: tl.constexpr):
    """A tuple of L rows (BC,) -> (L, BC)."""
    parts = ()
    for i in tl.static_range(L):
        parts = parts + (rows[i][None, :],)
    for level in tl.static_range(6):
        if (L >> level) > 1:
            pairs = ()
            for i in tl.static_range(L >> (level + 1)):
                pair = tl.permute(tl.join(parts[2 * i], parts[2 * i + 1]), (2, 0, 1))
                pairs = pairs + (tl.reshape(pair, (2 << level, pair.shape[2])),)
            parts = pairs
    return parts[0]


@triton.jit
def state_pointers(pointer, pair, side, c, C):
    """Pointers (BC, 4) to n, key, num, den: 16 bytes per lane."""
    return pointer + (pair * C + c)[:, None] * 8 + (side * 4 + tl.arange(0, 4))[None, :]


@triton.jit
def load_state(pointers, live):
    """(n, key, num, den), each (BC,)."""
    even, odd = tl.split(tl.reshape(tl.load(pointers, mask=live[:, None], other=0.0), (pointers.shape[0], 2, 2)))
    n, num = tl.split(even)
    key, den = tl.split(odd)
    return n, key, num, den


@triton.jit
def store_state(pointers, live, n, key, num, den):
    state = tl.join(tl.join(n, num), tl.join(key, den))
    tl.store(pointers, tl.reshape(state, pointers.shape), mask=live[:, None])


@triton.jit
def heavier(n, key, n2, key2, w):
    """The heavier one of two scales."""
    second = (key2 - key) - (n2 - n) * w > 0  # false where both are empty, and for a NaN
    return tl.where(second, n2, n), tl.where(second, key2, key)


@triton.jit
def heaviest_token(keys, steps, w):
    """Scale (n, key) of the heaviest exp(keys - steps w) of every column of (L, BC): a key as it stands and its own number of steps. Their
    difference would be rounded at the size of decay times distance, and that error multiplies all weights but those of the same size."""
    log_weight = keys - steps * w[None, :]
    top = log_weight == tl.max(log_weight, axis=0)[None, :]
    n = tl.max(tl.where(top, steps, -1.0), axis=0)
    return n, tl.max(tl.where(top & (steps == n[None, :]), keys, float("-inf")), axis=0)


@triton.jit
def ratio(n, key, n2, key2, w):
    """Scale 1 over scale 2."""
    return exp((key - key2) - (n - n2) * w)


@triton.jit
def join(n, key, num, den, n2, key2, num2, den2, w):
    """Sum of two states; the first is the sum so far and keeps its scale where it can."""
    lead = (key - key2) - (n - n2) * w
    empty = key2 == float("-inf")
    keep = (lead > -MARGIN) | empty
    factor = exp(tl.where(empty, float("-inf"), tl.where(keep, -lead, lead)))
    num = tl.where(keep, num + num2 * factor, num * factor + num2)
    den = tl.where(keep, den + den2 * factor, den * factor + den2)
    return tl.where(keep, n, n2), tl.where(keep, key, key2), num, den


@triton.jit
def load_states(pointer, pair, step, left, side, c, C):
    """A tuple of the next AHEAD states of a scan; those behind the last one, `left` of them on, are zeros and not read."""
    states = ()
    for i in tl.static_range(AHEAD):
        states = states + (load_state(state_pointers(pointer, pair + i * step, side, c, C), (c < C) & (i < left)),)
    return states


@triton.jit
def bi_wkv_kernel_scan(totals, w, incoming, chunks, length, C, BC: tl.constexpr):
    """Sums of chunks of `length` tokens -> the states that enter every chunk. One program per batch, direction and channel block."""
    blocks = tl.cdiv(C, BC)
    program = tl.program_id(0)
    batch, side = (program // blocks // 2).to(tl.int64), program // blocks % 2
    c = program % blocks * BC + tl.arange(0, BC)
    ACC: tl.constexpr = totals.dtype.element_ty
    w, _ = load_parameters(w, w, c, C, ACC)
    live = c < C
    n, num, den = tl.zeros((BC,), ACC), tl.zeros((BC,), ACC), tl.zeros((BC,), ACC)
    key = tl.full((BC,), float("-inf"), ACC)
    pair, step = batch * chunks + side * (chunks - 1), 1 - 2 * side  # the right side runs backwards
    left = chunks
    ahead = load_states(totals, pair, step, left, side, c, C)
    while left > 0:
        now = ahead
        ahead = load_states(totals, pair + AHEAD * step, step, left - AHEAD, side, c, C)
        for i in tl.static_range(AHEAD):
            store_state(state_pointers(incoming, pair + i * step, side, c, C), live & (i < left), n, key, num, den)
            n2, key2, num2, den2 = now[i]
            n, key, num, den = join(n + length, key, num, den, n2, key2, num2, den2, w)
        pair += AHEAD * step
        left -= AHEAD
