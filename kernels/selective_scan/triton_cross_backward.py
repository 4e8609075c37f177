"""Triton kernel of the cross selective scan's gradients; in front of it run the kernels of `triton_cross_forward.py`.

With a_t = exp(dt_t A) and x_t = dt_t u_t, along every direction::

    G_t = C_t gy_t + a_{t+1} G_{t+1}        T_t = a_t G_t
    gC_t = sum_d gy_t h_t      gB_t = sum_d x_t G_t      gA = sum_t dt_t T_t h_{t-1}
    gu_t = D gy_t + dt_t sum_n G_t B_t      gdt_t = u_t sum_n G_t B_t + sum_n A T_t h_{t-1}

States are not stored: the pass before leaves every S-th one, and here S steps are recomputed from it, NT states at a time.
"""

import triton
import triton.language as tl

from .triton_cross_forward import (
    OPAQUE,
    accumulate,
    decay_of,
    load_rates,
    load_steps,
    load_weights,
    place,
    store_steps,
)
from .triton_tiles import sigmoid, step_size


@triton.jit
def sum_channels(tile, NT: tl.constexpr, BD: tl.constexpr, BW: tl.constexpr):
    """(BD BW, NT) -> (BW, NT)."""
    return tl.sum(tl.reshape(tile, (BD, BW, NT)), 0)


@triton.jit
def states_of_steps(
    h, rate, us, dts, B, n, sB_n, start, down, steps, line, lines, mask, S: tl.constexpr, N: tl.constexpr, ACC: tl.constexpr
):
    """From the state before a group: tuples of the states before each of S steps, with the one after the last, and of their decays."""
    states = (h,)
    decays = ()
    for j in tl.static_range(S):
        step = start + j + down * (S - 1 - 2 * j)
        a = decay_of(dts[j], rate)
        h = h * a + (dts[j] * us[j]) * load_weights(B, n, sB_n, step * lines + line, mask & (step < steps), N, ACC)
        states = states + (h,)
        decays = decays + (a,)
    return states, decays


@triton.jit(do_not_specialize=OPAQUE)
def cross_selective_scan_bwd_kernel(
    u, delta, A, B, C, D, bias, gy, states, adjoints, marks, mark_sums, part, gu, gdelta, gA, gB, gC, gD, gbias,
    su_b, su_d, sg_b, sg_d, sd_b, sd_k, sd_d, sA_d, sA_n, sB_b, sB_k, sB_n, sC_b, sC_k, sC_n,
    channels, steps_v, lines, unit, chunk_length, blocks, line_blocks,
    FIRST: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, NT: tl.constexpr, BD: tl.constexpr, BW: tl.constexpr,
    S: tl.constexpr, V: tl.constexpr, SOFTPLUS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Gradients of one chunk in both directions, S steps at a time against the direction.

    Between two visits the adjoint and the gradient of A of a state lie in memory, in `adjoints` and `gA`, not in registers.
    """
    M: tl.constexpr = BD * BW
    batch, block, channel, line, mask = place(channels, blocks, line_blocks, lines, unit, BD, BW)
    steps = steps_v * V
    lanes = channels * lines
    lane = channel * lines + line
    own_line = tl.program_id(0) % line_blocks * BW + tl.arange(0, BW)[:, None]
    first = tl.program_id(1) * chunk_length
    groups = (tl.minimum(chunk_length, steps - first) + S - 1) // S
    length = (steps_v * lines).to(tl.int64) * V
    own = channel * (steps_v * lines)
    image = batch * channels * (steps_v * lines) * V
    for r in range(2):
        k = FIRST + 2 * r
        row = (batch * 2 + r) * tl.num_programs(1) + tl.program_id(1)
        shift = tl.zeros((M, 1), ACC)
        skip = tl.zeros((M, 1), ACC)
        if bias is not None:
            shift = tl.load(bias + k * channels + channel, mask=mask, other=0.0).to(ACC)
        if D is not None:
            skip = tl.load(D + k * channels + channel, mask=mask, other=0.0).to(ACC)
        change = gdelta + (batch * 4 + k) * channels * (steps_v * lines) * V
        sums = ((batch * 2 + r) * blocks + block) * length * NP
        gD_sum = tl.zeros((M, 1), ACC)
        gbias_sum = tl.zeros((M, 1), ACC)
        i = 0
        while i < groups:
            start = tl.multiple_of(first + (groups - 1 - i + r * (2 * i + 1 - groups)) * S, S)
            mark = (batch * 2 + r) * ((steps + S - 1) // S) + start // S
            before = tl.load(mark_sums + mark * lanes + lane, mask=mask, other=0.0)
            us = load_steps(u + batch * su_b * V, channel * su_d, line, lines, start, r, steps, mask, S, V, ACC)
            gs = load_steps(gy + batch * sg_b * V, channel * sg_d, line, lines, start, r, steps, mask, S, V, ACC)
            raws = load_steps(delta + (batch * sd_b + k * sd_k) * V, channel * sd_d, line, lines, start, r, steps, mask, S, V, ACC)
            dts = ()
            s1 = ()
            s2 = ()
            for j in tl.static_range(S):
                step = start + j + r * (S - 1 - 2 * j)
                dt = tl.where(step < steps, step_size(raws[j], shift, SOFTPLUS, ACC), 0.0)
                dts = dts + (dt,)
                s1 = s1 + (tl.zeros((M, 1), ACC),)
                s2 = s2 + (tl.zeros((M, 1), ACC),)
            for t in range(NP // NT):
                n = t * NT + tl.arange(0, NT)[None, :]
                valid = mask & (n < N)
                at = n * lanes + lane
                rate = load_rates(A, k, channels, channel, n, sA_d, sA_n, valid, ACC)
                h = tl.load(states + row * NP * lanes + at, mask=valid, other=0.0) * decay_of(before, rate)
                h += tl.load(marks + mark * NP * lanes + at, mask=valid, other=0.0)
                G = tl.load(adjoints + row * NP * lanes + at, mask=valid, other=0.0)
                gA_sum = tl.load(gA + row * NP * lanes + at, mask=valid, other=0.0)
                hs, decays = states_of_steps(
                    h, rate, us, dts, B + batch * sB_b + k * sB_k, n, sB_n, start, r, steps, line, lines, mask, S, N, ACC
                )
                new1 = ()
                new2 = ()
                for j in tl.static_range(S - 1, -1, -1):
                    step = start + j + r * (S - 1 - 2 * j)
                    inside = mask & (step < steps)
                    b = load_weights(B + batch * sB_b + k * sB_k, n, sB_n, step * lines + line, inside, N, ACC)
                    c = load_weights(C + batch * sC_b + k * sC_k, n, sC_n, step * lines + line, inside, N, ACC)
                    g = gs[j]
                    G += c * g
                    to = (step * lines + own_line) * NP + n
                    shown = (n < N) & (own_line < lines) & (step < steps)
                    tl.store(gC + sums + to, sum_channels(hs[j + 1] * g, NT, BD, BW), mask=shown)
                    tl.store(gB + sums + to, sum_channels(G * (dts[j] * us[j]), NT, BD, BW), mask=shown)
                    new1 = (s1[j] + tl.sum(G * b, 1, keep_dims=True),) + new1
                    G *= decays[j]
                    Gh = G * hs[j]
                    new2 = (s2[j] + tl.sum(Gh * rate, 1, keep_dims=True),) + new2
                    gA_sum += Gh * dts[j]
                s1 = new1
                s2 = new2
                tl.store(adjoints + row * NP * lanes + at, G, mask=valid)
                tl.store(gA + row * NP * lanes + at, gA_sum, mask=valid)
            # read again, so that they need no registers above
            if NP > NT:
                us = load_steps(u + batch * su_b * V, channel * su_d, line, lines, start, r, steps, mask, S, V, ACC)
                gs = load_steps(gy + batch * sg_b * V, channel * sg_d, line, lines, start, r, steps, mask, S, V, ACC)
            if NP > NT or V > 1:
                raws = load_steps(delta + (batch * sd_b + k * sd_k) * V, channel * sd_d, line, lines, start, r, steps, mask, S, V, ACC)
            gus = ()
            gdeltas = ()
            for j in tl.static_range(S):
                gus = gus + (skip * gs[j] + dts[j] * s1[j],)
                graw = us[j] * s1[j] + s2[j]
                if SOFTPLUS:
                    raw = raws[j] + shift
                    graw = tl.where(raw > 20, graw, graw * sigmoid(raw))
                gdeltas = gdeltas + (graw,)
                gD_sum += gs[j] * us[j]
                gbias_sum += tl.where(start + j + r * (S - 1 - 2 * j) < steps, graw, 0.0)
            accumulate(part + image, gu + image, own, gus, line, lines, start, r, steps, mask, FIRST, S, V, ACC)
            store_steps(change, own, gdeltas, line, lines, start, r, steps, mask, S, V)
            tl.debug_barrier()
            i += 1
        tl.store(gD + row * lanes + lane, gD_sum, mask=mask)
        tl.store(gbias + row * lanes + lane, gbias_sum, mask=mask)
