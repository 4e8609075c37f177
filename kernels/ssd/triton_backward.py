"""The Triton kernels of SSD's gradients. `enter` and `leave` are the states before every chunk and the gradients of those after it."""

import triton
import triton.language as tl

from .triton_forward import before_softplus, decay_weights, dot, fading, growing, load_steps, place, through_gate, through_softplus, tile


@triton.jit
def ssd_bwd_kernel_x(
    x_ptr, B_ptr, C_ptr, D_ptr, z_ptr, g_ptr, enter_ptr, leave_ptr, steps_ptr, plane, gx_ptr, gD_ptr, sums_ptr, through_ptr,
    length, count, heads, per_group, size, states,
    x_b, x_t, x_h, B_b, B_t, B_g, C_b, C_t, C_g, D_h, D_p, z_b, z_t, z_h, g_b, g_t, g_h,
    HAS_D: tl.constexpr, GATED: tl.constexpr, L: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
    ROUND: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """gx of one chunk and head and its share of gD, for BP channels; their part in the sums over channels that `ssd_bwd_kernel_dt` needs.

    Sums, by token: g_t . S C_t, x_s . exp(Lam_L - Lam_s) R B_s and u_s . x_s; by chunk: S . R.
    """
    b, c, h = place(count, heads)
    rows, p = tl.arange(0, L), tl.program_id(1) * BP + tl.arange(0, BP)
    row_ok, p_ok = rows < length - c * L, p < size
    B_ptr += b * B_b + c * L * B_t + h // per_group * B_g
    C_ptr += b * C_b + c * L * C_t + h // per_group * C_g
    slot, at = ((b * heads + h) * (count + 1) + c) * size * states, (b * heads + h) * count + c
    weights, inter, u = tl.zeros((L, L), tl.float32), tl.zeros((L, BP), tl.float32), tl.zeros((L, BP), tl.float32)
    through = 0.0
    n_0 = 0
    while n_0 < states:
        n = n_0 + tl.arange(0, BN)
        n_ok = n < states
        C, B = tile(C_ptr, C_t, rows, n, row_ok, n_ok), tile(B_ptr, B_t, rows, n, row_ok, n_ok)
        enter = tile(enter_ptr + slot, states, p, n, p_ok, n_ok)
        leave = tile(leave_ptr + slot + size * states, states, p, n, p_ok, n_ok)
        through += tl.sum(tl.sum(enter * leave, 0), 0)
        inter += dot(C, tl.trans(enter), ROUND, DOT, PRECISION)
        u += dot(B, tl.trans(leave), ROUND, DOT, PRECISION)
        weights += dot(C, tl.trans(B), ROUND, DOT, PRECISION)
        n_0 += BN
    high, low, dt = load_steps(steps_ptr + at * L, plane, rows)
    x = tile(x_ptr + b * x_b + c * L * x_t + h * x_h, x_t, rows, p, row_ok, p_ok)
    g_ptr += b * g_b + c * L * g_t + h * g_h
    g = through_gate(g_ptr, g_t, z_ptr, b * z_b + c * L * z_t + h * z_h, z_t, rows, p, row_ok, p_ok, GATED)
    part, plane = tl.program_id(1), plane.to(tl.int64)
    sums_ptr += part * 3 * plane + at * L + rows
    tl.store(through_ptr + part * (plane // L) + at, through)
    tl.store(sums_ptr, tl.sum(inter * g.to(tl.float32), 1))
    u *= fading(steps_ptr + at * L, plane, high, low, L)[:, None]
    tl.store(sums_ptr + plane, tl.sum(u * x.to(tl.float32), 1))
    u += dot(tl.trans(weights * decay_weights(high, low, rows)), g, ROUND, DOT, PRECISION)
    tl.store(sums_ptr + 2 * plane, tl.sum(u * x.to(tl.float32), 1))
    u *= dt[:, None]
    if HAS_D:
        u += g.to(tl.float32) * tl.load(D_ptr + h * D_h + p * D_p, mask=p_ok, other=0.0).to(tl.float32)[None, :]
        gD = tl.sum(g.to(tl.float32) * x.to(tl.float32), 0)
        tl.store(gD_ptr + ((b * count + c) * heads + h) * size + p, gD, mask=p_ok)
    out = ((b * length + c * L) * heads + h) * size + rows[:, None] * (heads * size) + p[None, :]
    tl.store(gx_ptr + out, u, mask=row_ok[:, None] & p_ok[None, :])


@triton.jit
def ssd_bwd_kernel_dt(
    x_ptr, dt_ptr, bias_ptr, A_ptr, B_ptr, C_ptr, z_ptr, g_ptr, steps_ptr, plane, sums_ptr, through_ptr, gdt_ptr, gA_ptr, gbias_ptr,
    length, count, heads, per_group, size, states, parts,
    x_b, x_t, x_h, dt_b, dt_t, dt_h, B_b, B_t, B_g, C_b, C_t, C_g, z_b, z_t, z_h, g_b, g_t, g_h,
    HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, GATED: tl.constexpr, L: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
    ROUND: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """gdt of one chunk and head, and its shares of gA and gdt_bias, with the sums of the `parts` programs of `ssd_bwd_kernel_x`."""
    b, c, h = place(count, heads)
    rows = tl.arange(0, L)
    row_ok = rows < length - c * L
    B_ptr += b * B_b + c * L * B_t + h // per_group * B_g
    C_ptr += b * C_b + c * L * C_t + h // per_group * C_g
    x_ptr += b * x_b + c * L * x_t + h * x_h
    g_ptr += b * g_b + c * L * g_t + h * g_h
    terms, products = tl.zeros((L, L), tl.float32), tl.zeros((L, L), tl.float32)
    n_0 = 0
    while n_0 < states:
        n = n_0 + tl.arange(0, BN)
        n_ok = n < states
        B = tile(B_ptr, B_t, rows, n, row_ok, n_ok)
        terms += dot(tile(C_ptr, C_t, rows, n, row_ok, n_ok), tl.trans(B), ROUND, DOT, PRECISION)
        n_0 += BN
    p_0 = 0
    while p_0 < size:
        p = p_0 + tl.arange(0, BP)
        p_ok = p < size
        g = through_gate(g_ptr, g_t, z_ptr, b * z_b + c * L * z_t + h * z_h, z_t, rows, p, row_ok, p_ok, GATED)
        products += dot(g, tl.trans(tile(x_ptr, x_t, rows, p, row_ok, p_ok)), ROUND, DOT, PRECISION)
        p_0 += BP
    at = (b * heads + h) * count + c
    high, low, dt = load_steps(steps_ptr + at * L, plane, rows)
    terms *= decay_weights(high, low, rows) * products * dt[None, :]
    left, right, through = tl.zeros((L,), tl.float32), tl.zeros((L,), tl.float32), 0.0
    plane = plane.to(tl.int64)
    part = 0
    while part < parts:
        left += tl.load(sums_ptr + part * 3 * plane + at * L + rows)
        right += tl.load(sums_ptr + (part * 3 + 1) * plane + at * L + rows)
        through += tl.load(through_ptr + part * (plane // L) + at)
        part += 1
    left, right = (left * growing(high, low))[None, :], (right * dt)[None, :]
    last = steps_ptr + at * L + L - 1
    through *= growing(tl.load(last), tl.load(last + plane))
    a, gA, gbias = tl.load(A_ptr + h).to(tl.float32), 0.0, 0.0
    m_0 = 0
    while m_0 < L:  # 32 at a time: Triton 3.6 cannot compile a sum over a product of 64 rows for sm_100
        m = m_0 + tl.arange(0, 32)
        m_ok = m < length - c * L
        earlier = rows[None, :] < m[:, None]  # [m, s] for s < m; its complement is [m, t] for t >= m
        glog = dot(tl.where(earlier, 1.0, 0.0), tl.trans(terms), ROUND, DOT, PRECISION)
        glog = tl.where(m_ok, through + tl.sum(tl.where(earlier, right, glog + left), 1), 0.0)
        gA += tl.sum(glog * tl.load(steps_ptr + at * L + 2 * plane + m), 0)
        gdt = a * glog
        part = 0
        while part < parts:
            gdt += tl.load(sums_ptr + (part * 3 + 2) * plane + at * L + m)
            part += 1
        if SOFTPLUS:
            raw = before_softplus(dt_ptr + b * dt_b + c * L * dt_t + h * dt_h, bias_ptr, dt_t, m, m_ok, h, HAS_BIAS)
            gdt = through_softplus(gdt, raw)
        gdt = tl.where(m_ok, gdt, 0.0)
        gbias += tl.sum(gdt, 0)
        tl.store(gdt_ptr + (b * length + c * L) * heads + h + m * heads, gdt, mask=m_ok)
        m_0 += 32
    share = (b * count + c) * heads + h
    tl.store(gA_ptr + share, gA)
    if HAS_BIAS:
        tl.store(gbias_ptr + share, gbias)


@triton.jit
def ssd_bwd_kernel_bc(
    x_ptr, B_ptr, C_ptr, z_ptr, g_ptr, enter_ptr, leave_ptr, steps_ptr, plane, gB_ptr, gC_ptr,
    length, count, heads, groups, per_group, per_split, size, states,
    x_b, x_t, x_h, B_b, B_t, B_g, C_b, C_t, C_g, z_b, z_t, z_h, g_b, g_t, g_h, part_s,
    GATED: tl.constexpr, L: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
    ROUND: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """gB and gC of one chunk, group and tile of states, summed over `per_split` of the group's heads."""
    b, c, group = place(count, groups)
    split = tl.program_id(1)
    rows, n = tl.arange(0, L), tl.program_id(2) * BN + tl.arange(0, BN)
    row_ok, n_ok = rows < length - c * L, n < states
    shared = tl.zeros((L, L), tl.float32)  # sum over heads of w_ts q_ts dt_s
    gB, gC = tl.zeros((L, BN), tl.float32), tl.zeros((L, BN), tl.float32)
    h = group * per_group + split * per_split
    end = group * per_group + tl.minimum((split + 1) * per_split, per_group)
    while h < end:
        steps = steps_ptr + ((b * heads + h) * count + c) * L
        high, low, dt = load_steps(steps, plane, rows)
        slot = ((b * heads + h) * (count + 1) + c) * size * states
        products = tl.zeros((L, L), tl.float32)
        p_0 = 0
        while p_0 < size:
            p = p_0 + tl.arange(0, BP)
            p_ok = p < size
            z_at = b * z_b + c * L * z_t + h * z_h
            g = through_gate(g_ptr + b * g_b + c * L * g_t + h * g_h, g_t, z_ptr, z_at, z_t, rows, p, row_ok, p_ok, GATED)
            enter = tile(enter_ptr + slot, states, p, n, p_ok, n_ok)
            gC += dot(g.to(tl.float32) * growing(high, low)[:, None], enter, ROUND, DOT, PRECISION)
            x = tile(x_ptr + b * x_b + c * L * x_t + h * x_h, x_t, rows, p, row_ok, p_ok)
            products += dot(g, tl.trans(x), ROUND, DOT, PRECISION)
            leave = tile(leave_ptr + slot + size * states, states, p, n, p_ok, n_ok)
            gB += dot(x.to(tl.float32) * (fading(steps, plane, high, low, L) * dt)[:, None], leave, ROUND, DOT, PRECISION)
            p_0 += BP
        shared += decay_weights(high, low, rows) * products * dt[None, :]
        h += 1
    gC += dot(shared, tile(B_ptr + b * B_b + c * L * B_t + group * B_g, B_t, rows, n, row_ok, n_ok), ROUND, DOT, PRECISION)
    gB += dot(tl.trans(shared), tile(C_ptr + b * C_b + c * L * C_t + group * C_g, C_t, rows, n, row_ok, n_ok), ROUND, DOT, PRECISION)
    out = split * part_s + ((b * length + c * L) * groups + group) * states + rows[:, None] * (groups * states) + n[None, :]
    ok = row_ok[:, None] & n_ok[None, :]
    tl.store(gB_ptr + out, gB, mask=ok)
    tl.store(gC_ptr + out, gC, mask=ok)
