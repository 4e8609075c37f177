"""The Triton kernels of SSD's gradients. `enter` and `leave` are the states before every chunk and the gradients of those after it."""

import triton
import triton.language as tl

from .triton_forward import LOG2E, before_softplus, decay_weights, dot, fading, load_steps, place, tile


@triton.jit
def ssd_bwd_kernel_x(
    x_ptr, dt_ptr, bias_ptr, A_ptr, B_ptr, C_ptr, D_ptr, g_ptr, enter_ptr, leave_ptr, steps_ptr, plane, gx_ptr, gdt_ptr, gA_ptr, gbias_ptr,
    gD_ptr, length, count, heads, per_group, size, states,
    x_b, x_t, x_h, dt_b, dt_t, dt_h, B_b, B_t, B_g, C_b, C_t, C_g, D_h, D_p, g_b, g_t, g_h,
    HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr,
    L: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
    ROUND: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """gx and gdt of one chunk and head, and its shares of gA, gdt_bias and gD."""
    b, c, h = place(count, heads)
    rows = tl.arange(0, L)
    row_ok = rows < length - c * L
    B_ptr += b * B_b + c * L * B_t + h // per_group * B_g
    C_ptr += b * C_b + c * L * C_t + h // per_group * C_g
    slot, part = ((b * heads + h) * (count + 1) + c) * size * states, (b * count + c) * heads + h
    steps_ptr += ((b * heads + h) * count + c) * L
    high, low, dt = load_steps(steps_ptr, plane, rows)
    fade = fading(steps_ptr, plane, high, low, L)
    weights = tl.zeros((L, L), tl.float32)
    n_0 = 0
    while n_0 < states:
        n = n_0 + tl.arange(0, BN)
        n_ok = n < states
        C = tile(C_ptr, C_t, rows, n, row_ok, n_ok)
        weights += dot(C, tl.trans(tile(B_ptr, B_t, rows, n, row_ok, n_ok)), ROUND, DOT, PRECISION)
        n_0 += BN
    weights *= decay_weights(high, low, rows)
    products = tl.zeros((L, L), tl.float32)
    left, right, gdt, through = tl.zeros((L,), tl.float32), tl.zeros((L,), tl.float32), tl.zeros((L,), tl.float32), 0.0
    p_0 = 0
    while p_0 < size:
        p = p_0 + tl.arange(0, BP)
        p_ok = p < size
        inter, u = tl.zeros((L, BP), tl.float32), tl.zeros((L, BP), tl.float32)
        n_0 = 0
        while n_0 < states:
            n = n_0 + tl.arange(0, BN)
            n_ok = n < states
            enter = tile(enter_ptr + slot, states, p, n, p_ok, n_ok)
            leave = tile(leave_ptr + slot + size * states, states, p, n, p_ok, n_ok)
            through += tl.sum(tl.sum(enter * leave, 0), 0)
            inter += dot(tile(C_ptr, C_t, rows, n, row_ok, n_ok), tl.trans(enter), ROUND, DOT, PRECISION)
            u += dot(tile(B_ptr, B_t, rows, n, row_ok, n_ok), tl.trans(leave), ROUND, DOT, PRECISION)
            n_0 += BN
        x = tile(x_ptr + b * x_b + c * L * x_t + h * x_h, x_t, rows, p, row_ok, p_ok)
        g = tile(g_ptr + b * g_b + c * L * g_t + h * g_h, g_t, rows, p, row_ok, p_ok)
        left += tl.sum(inter * g.to(tl.float32), 1)
        u *= fade[:, None]
        right += tl.sum(u * x.to(tl.float32), 1)
        u += dot(tl.trans(weights), g, ROUND, DOT, PRECISION)
        gdt += tl.sum(u * x.to(tl.float32), 1)
        products += dot(g, tl.trans(x), ROUND, DOT, PRECISION)
        gx = u * dt[:, None]
        if HAS_D:
            gx += g.to(tl.float32) * tl.load(D_ptr + h * D_h + p * D_p, mask=p_ok, other=0.0).to(tl.float32)[None, :]
            tl.store(gD_ptr + part * size + p, tl.sum(g.to(tl.float32) * x.to(tl.float32), 0), mask=p_ok)
        out = ((b * length + c * L) * heads + h) * size + rows[:, None] * (heads * size) + p[None, :]
        tl.store(gx_ptr + out, gx, mask=row_ok[:, None] & p_ok[None, :])
        p_0 += BP
    earlier = rows[None, :] < rows[:, None]  # [m, s] for s < m; its complement is [m, t] for t >= m
    terms = dot(tl.where(earlier, 0.0, 1.0), weights * products * dt[None, :], ROUND, DOT, PRECISION)
    glog = tl.sum(tl.where(earlier, terms + (right * dt)[None, :], (left * tl.exp2(high))[None, :]), 1)
    glog += through * tl.exp2(tl.load(steps_ptr + L - 1))
    glog = tl.where(row_ok, glog, 0.0)
    tl.store(gA_ptr + part, tl.sum(glog * dt, 0))
    gdt += tl.load(A_ptr + h).to(tl.float32) * glog
    if SOFTPLUS:
        raw = before_softplus(dt_ptr + b * dt_b + c * L * dt_t + h * dt_h, bias_ptr, dt_t, rows, row_ok, h, HAS_BIAS)
        gdt = tl.where(raw > 20.0, gdt, gdt / (1.0 + tl.exp2(-raw * LOG2E)))
    gdt = tl.where(row_ok, gdt, 0.0)
    if HAS_BIAS:
        tl.store(gbias_ptr + part, tl.sum(gdt, 0))
    tl.store(gdt_ptr + (b * length + c * L) * heads + h + rows * heads, gdt, mask=row_ok)


@triton.jit
def ssd_bwd_kernel_bc(
    x_ptr, B_ptr, C_ptr, g_ptr, enter_ptr, leave_ptr, steps_ptr, plane, gB_ptr, gC_ptr,
    length, count, heads, groups, per_group, per_split, size, states,
    x_b, x_t, x_h, B_b, B_t, B_g, C_b, C_t, C_g, g_b, g_t, g_h, part_s,
    L: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, ROUND: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
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
            g = tile(g_ptr + b * g_b + c * L * g_t + h * g_h, g_t, rows, p, row_ok, p_ok)
            enter = tile(enter_ptr + slot, states, p, n, p_ok, n_ok)
            gC += dot(g.to(tl.float32) * tl.exp2(high)[:, None], enter, ROUND, DOT, PRECISION)
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
