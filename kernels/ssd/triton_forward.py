"""The Triton kernels of SSD's forward pass, which the backward pass runs again, and the pieces that all kernels share.

Formulas and symbols are those of `torch_chunked`. A program works on one chunk of L tokens and one head, in tiles of BP of its P channels
and BN of its N states. What depends on the step sizes alone is computed once, by `ssd_kernel_states`, and kept in `steps`: Lam as a high
and a low float32 part, in powers of two, and dt, each (B, H, n L).
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-1440.0)  # smallest l, in powers of two: below the smallest float32, and finite


@triton.jit
def place(count, heads):
    """Batch element, chunk and head of a program; the head runs fastest, so that programs of a group share B and C in the cache."""
    pid = tl.program_id(0)
    return (pid // heads // count).to(tl.int64), (pid // heads % count).to(tl.int64), (pid % heads).to(tl.int64)


@triton.jit
def tile(pointer, stride, rows, cols, row_ok, col_ok):
    return tl.load(pointer + rows[:, None] * stride + cols[None, :], mask=row_ok[:, None] & col_ok[None, :], other=0.0)


@triton.jit
def growing(high, low):
    """2^(high + low), so exp(Lam_t). The low part is too small to be added to the high one, and small enough for 2^low = 1 + low ln 2."""
    return tl.exp2(high) * (1.0 + low * LN2)


@triton.jit
def power(log):
    """2^log of a finite float64 to the last digit of float32: rounding log itself would cost |log| / 2^24."""
    high = log.to(tl.float32)
    return growing(high, (log - high.to(tl.float64)).to(tl.float32))


@triton.jit
def falling(x):
    """exp(-|x|), which is zero anyway where |x| > 200."""
    return power(tl.where(tl.abs(x) > 200.0, -200.0, -tl.abs(x)).to(tl.float64) * LOG2E)


@triton.jit
def softplus(x):
    """log(1 + e^x) and x itself above 20; log1p(u) = 2 atanh(u / (2 + u)), whose series keeps small results exact (9 terms, u <= 1)."""
    u = falling(x)
    s = u / (2.0 + u)
    q = s * s
    series = 1 / 13 + q * (1 / 15 + q * (1 / 17))
    series = 1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * series))))
    return tl.where(x > 20.0, x, tl.maximum(x, 0.0) + 2.0 * (s + s * (q * series)))


@triton.jit
def through_softplus(g, x):
    """The gradient g times the derivative of softplus."""
    u = falling(x)
    return tl.where(x > 20.0, g, g * tl.where(x < 0.0, u, 1.0) / (1.0 + u))


@triton.jit
def before_softplus(dt_ptr, bias_ptr, stride, rows, row_ok, head, HAS_BIAS: tl.constexpr):
    raw = tl.load(dt_ptr + rows * stride, mask=row_ok, other=0.0).to(tl.float32)
    if HAS_BIAS:
        raw += tl.load(bias_ptr + head).to(tl.float32)
    return raw


@triton.jit
def load_steps(steps_ptr, plane, rows):
    """High and low part of Lam, and dt."""
    plane = plane.to(tl.int64)
    return tl.load(steps_ptr + rows), tl.load(steps_ptr + plane + rows), tl.load(steps_ptr + 2 * plane + rows)


@triton.jit
def fading(steps_ptr, plane, high, low, L: tl.constexpr):
    """exp(Lam_L - Lam_s)."""
    return tl.exp2((tl.load(steps_ptr + L - 1) - high) + (tl.load(steps_ptr + plane + L - 1) - low))


@triton.jit
def decay_weights(high, low, rows):
    """w_ts for s <= t, else 0; masked before exp2, so that nothing overflows there."""
    log = (high[:, None] - high[None, :]) + (low[:, None] - low[None, :])
    return tl.exp2(tl.where(rows[:, None] >= rows[None, :], log, float("-inf")))


@triton.jit
def rounded(x, ROUND: tl.constexpr, DOT: tl.constexpr):
    """x rounded to ROUND, as DOT: the same on a GPU. The interpreter cannot multiply bfloat16 and truncates to it: there by hand."""
    if ROUND == DOT:
        near = x.to(ROUND)
    else:
        bits = x.to(tl.float32).to(tl.int32, bitcast=True)
        near = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
    return near


@triton.jit
def dot(a, b, ROUND: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """a @ b, accumulated in float32."""
    return tl.dot(rounded(a, ROUND, DOT), rounded(b, ROUND, DOT), input_precision=PRECISION)


@triton.jit
def times_sigmoid(x, z):
    return x / (1.0 + tl.exp2(-z * LOG2E))


@triton.jit
def through_gate(g_ptr, g_t, z_ptr, z_at, z_t, rows, cols, row_ok, col_ok, GATED: tl.constexpr):
    """The gradient of y before the gate. Not rounded to the type of g: gradients of decays are differences of what follows from it."""
    g = tile(g_ptr, g_t, rows, cols, row_ok, col_ok)
    if GATED:
        z = tile(z_ptr + z_at, z_t, rows, cols, row_ok, col_ok).to(tl.float32)
        g = g.to(tl.float32) * times_sigmoid(z, z)
    return g


@triton.jit
def ssd_kernel_states(
    x_ptr, z_ptr, dt_ptr, bias_ptr, A_ptr, B_ptr, state_ptr, decay_ptr, steps_ptr, plane, length, count, heads, per_group, size, states,
    x_b, x_t, x_h, z_b, z_t, z_h, dt_b, dt_t, dt_h, B_b, B_t, B_g,
    ADJOINT: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
    L: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, ROUND: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """sum_s exp(Lam_L - Lam_s) dt_s x_s B_s^T into slot c + 1 (and `steps`, and exp(Lam_L)).

    ADJOINT: sum_t exp(Lam_t) x_t B_t^T into slot c, where x is the gradient of the output (GATED: through the gate z) and B is C.
    """
    b, c, h = place(count, heads)
    rows, p, n = tl.arange(0, L), tl.program_id(1) * BP + tl.arange(0, BP), tl.program_id(2) * BN + tl.arange(0, BN)
    row_ok, p_ok, n_ok = rows < length - c * L, p < size, n < states
    head = b * heads + h
    steps_ptr += (head * count + c) * L
    if ADJOINT:
        weight = growing(tl.load(steps_ptr + rows), tl.load(steps_ptr + plane + rows))
    else:
        dt = before_softplus(dt_ptr + b * dt_b + c * L * dt_t + h * dt_h, bias_ptr, dt_t, rows, row_ok, h, HAS_BIAS)
        if SOFTPLUS:
            dt = softplus(dt)
        dt = tl.where(row_ok, dt, 0.0)  # a token behind the last one changes no state
        log = dt.to(tl.float64) * (tl.load(A_ptr + h).to(tl.float64) * LOG2E)
        log = tl.where(log < LOWEST, LOWEST, log)
        sums, total = tl.cumsum(log, 0), tl.sum(log, 0)
        weight = power(total - sums) * dt
        if tl.program_id(1) + tl.program_id(2) == 0:
            high = sums.to(tl.float32)
            tl.store(steps_ptr + rows, high)
            tl.store(steps_ptr + plane + rows, (sums - high.to(tl.float64)).to(tl.float32))
            tl.store(steps_ptr + 2 * plane.to(tl.int64) + rows, dt)
            tl.store(decay_ptr + head * count + c, power(total))
    x_ptr += b * x_b + c * L * x_t + h * x_h
    x = through_gate(x_ptr, x_t, z_ptr, b * z_b + c * L * z_t + h * z_h, z_t, rows, p, row_ok, p_ok, GATED)
    x = x.to(tl.float32) * weight[:, None]
    B = tile(B_ptr + b * B_b + c * L * B_t + h // per_group * B_g, B_t, rows, n, row_ok, n_ok)
    state = dot(tl.trans(x), B, ROUND, DOT, PRECISION)
    slot = (head * (count + 1) + c + (0 if ADJOINT else 1)) * size * states
    tl.store(state_ptr + slot + p[:, None] * states + n[None, :], state, mask=p_ok[:, None] & n_ok[None, :])


@triton.jit
def ssd_kernel_scan(
    state_ptr, decay_ptr, edge_ptr, count, numel, HAS_EDGE: tl.constexpr, BACKWARDS: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """In place S_{c+1} += exp(Lam_L) S_c over the slots of one head, or from the right; R rows are on their way at a time."""
    head = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ok = at < numel
    slots, decays = head * (count + 1), decay_ptr + head * count  # slot c is the state before chunk c, or its gradient
    state = tl.zeros((BLOCK,), tl.float32)
    if HAS_EDGE:
        state = tl.load(edge_ptr + head * numel + at, mask=ok, other=0.0).to(tl.float32)
    tl.store(state_ptr + (slots + (count if BACKWARDS else 0)) * numel + at, state, mask=ok)
    first = 0
    while first < count:
        own, factors = (), ()
        for j in tl.static_range(R):
            chunk = count - 1 - first - j if BACKWARDS else first + j
            inside = first + j < count
            slot = state_ptr + (slots + (chunk if BACKWARDS else chunk + 1)) * numel
            own = own + (tl.load(slot + at, mask=ok & inside, other=0.0),)
            factors = factors + (tl.load(decays + chunk, mask=inside, other=0.0),)
        for j in tl.static_range(R):
            chunk = count - 1 - first - j if BACKWARDS else first + j
            state = factors[j] * state + own[j]
            slot = state_ptr + (slots + (chunk if BACKWARDS else chunk + 1)) * numel
            tl.store(slot + at, state, mask=ok & (first + j < count))
        first += R


@triton.jit
def ssd_kernel_out(
    x_ptr, B_ptr, C_ptr, D_ptr, z_ptr, g_ptr, state_ptr, steps_ptr, plane, y_ptr, length, count, heads, per_group, size, states,
    x_b, x_t, x_h, B_b, B_t, B_g, C_b, C_t, C_g, D_h, D_p, z_b, z_t, z_h, g_b, g_t, g_h,
    HAS_D: tl.constexpr, GATED: tl.constexpr, ADJOINT: tl.constexpr, L: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
    ROUND: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y of one chunk and head, times silu(z) where GATED; ADJOINT: instead of y the gradient of z, from g, that of the output."""
    b, c, h = place(count, heads)
    rows = tl.arange(0, L)
    row_ok = rows < length - c * L
    B_ptr += b * B_b + c * L * B_t + h // per_group * B_g
    C_ptr += b * C_b + c * L * C_t + h // per_group * C_g
    state_ptr += ((b * heads + h) * (count + 1) + c) * size * states
    high, low, dt = load_steps(steps_ptr + ((b * heads + h) * count + c) * L, plane, rows)
    weights = tl.zeros((L, L), tl.float32)
    n_0 = 0
    while n_0 < states:
        n = n_0 + tl.arange(0, BN)
        n_ok = n < states
        C = tile(C_ptr, C_t, rows, n, row_ok, n_ok)
        weights += dot(C, tl.trans(tile(B_ptr, B_t, rows, n, row_ok, n_ok)), ROUND, DOT, PRECISION)
        n_0 += BN
    weights *= decay_weights(high, low, rows) * dt[None, :]
    p_0 = 0
    while p_0 < size:
        p = p_0 + tl.arange(0, BP)
        p_ok = p < size
        y = tl.zeros((L, BP), tl.float32)
        n_0 = 0
        while n_0 < states:
            n = n_0 + tl.arange(0, BN)
            n_ok = n < states
            C = tile(C_ptr, C_t, rows, n, row_ok, n_ok)
            y += dot(C, tl.trans(tile(state_ptr, states, p, n, p_ok, n_ok)), ROUND, DOT, PRECISION)
            n_0 += BN
        x = tile(x_ptr + b * x_b + c * L * x_t + h * x_h, x_t, rows, p, row_ok, p_ok)
        y = y * growing(high, low)[:, None] + dot(weights, x, ROUND, DOT, PRECISION)
        if HAS_D:
            y += x.to(tl.float32) * tl.load(D_ptr + h * D_h + p * D_p, mask=p_ok, other=0.0).to(tl.float32)[None, :]
        out = ((b * length + c * L) * heads + h) * size + rows[:, None] * (heads * size) + p[None, :]
        if GATED:
            z = tile(z_ptr + b * z_b + c * L * z_t + h * z_h, z_t, rows, p, row_ok, p_ok).to(tl.float32)
            if ADJOINT:
                g = tile(g_ptr + b * g_b + c * L * g_t + h * g_h, g_t, rows, p, row_ok, p_ok).to(tl.float32)
                y *= g * times_sigmoid(1.0 + times_sigmoid(z, -z), z)
            else:
                y *= times_sigmoid(z, z)
        tl.store(y_ptr + out, y, mask=row_ok[:, None] & p_ok[None, :])
        p_0 += BP
