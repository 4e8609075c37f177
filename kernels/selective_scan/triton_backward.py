"""Triton kernels of the selective scan, backward: one pass that scans chunks both ways, one that writes the gradients.

With g = gy silu(z), a_t = exp(dt_t A) and x_t = dt_t u_t the adjoint of the states runs backwards in time::

    G_t = C_t g_t + a_{t+1} G_{t+1}        T_t = a_t G_t
    gC_t = sum_d g_t h_t      gB_t = sum_d x_t G_t      gA = sum_t dt_t T_t h_{t-1}
    gu_t = D g_t + dt_t sum_n G_t B_t      gdt_t = u_t sum_n G_t B_t + sum_n A T_t h_{t-1}

States are not stored: the first pass leaves every S-th one, the second recomputes S steps from it and goes back over them.
"""

import triton
import triton.language as tl

from .triton_forward import block_of_channels
from .triton_tiles import decay, load_rows, load_weights, sigmoid, spread, step_size, store_rows, sum_channels, sum_states

OPAQUE = ["su_d", "su_l", "sd_d", "sd_l", "sz_d", "sz_l", "sg_d", "sg_l", "sA_d", "sA_n", "sB_n", "sC_n", "ss_d"]


@triton.jit
def gated_gradient(g, z, z_channel, stride, start, length, mask, S: tl.constexpr, W: tl.constexpr, ACC: tl.constexpr):
    """S rows gy silu(z); gy itself where z is None."""
    if z is None:
        out = g
    else:
        zs = load_rows(z, z_channel, stride, start, length, mask, S, W, ACC)
        out = ()
        for j in tl.static_range(S):
            out = out + (g[j] * zs[j] * sigmoid(zs[j]),)
    return out


@triton.jit(do_not_specialize=OPAQUE)
def selective_scan_bwd_kernel_states(
    u, delta, A, B, C, z, bias, gy, states, adjoints, sums, marks, mark_sums,
    su_b, su_d, su_l, sd_b, sd_d, sd_l, sz_b, sz_d, sz_l, sg_b, sg_d, sg_l,
    sA_d, sA_n, sB_b, sB_g, sB_n, sB_l, sC_b, sC_g, sC_n, sC_l, ss_d,
    channels, length_w, chunk_length, blocks, per_group, group_channels, chunks,
    N: tl.constexpr, NP: tl.constexpr, NS: tl.constexpr, R: tl.constexpr, S: tl.constexpr, W: tl.constexpr,
    SOFTPLUS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One chunk from zero, both ways in one sweep: the state at its end and the adjoint at its start, which is the sum of C_t g_t under the
    decay from the start to t. Every S-th state and the step sizes summed up to it are kept as marks.

    A program holds NS of the NP states; grid axis 2 runs over the parts. The first part writes what all of them know.
    """
    M: tl.constexpr = R * 32
    length = length_w * W
    batch, _block, group, channel, mask = block_of_channels(blocks, per_group, group_channels, M)
    chunk = tl.program_id(1)
    n = tl.program_id(2) * NS + tl.arange(0, NS)
    tile_channel = spread(channel, R)
    tile_mask = spread(mask, R) & (n[None, :, None] < N)
    rate = tl.load(A + tile_channel * sA_d + n[None, :, None] * sA_n, mask=tile_mask, other=0.0).to(ACC)
    shift = tl.zeros((M,), ACC)
    if bias is not None:
        shift = tl.load(bias + channel, mask=mask, other=0.0).to(ACC)
    u += batch * su_b * W
    delta += batch * sd_b * W
    gy += batch * sg_b * W
    if z is not None:
        z += batch * sz_b * W
    B += batch * sB_b + group * sB_g
    C += batch * sC_b + group * sC_g
    at = n[None, :, None] * channels + tile_channel * ss_d
    writes = mask & (tl.program_id(2) == 0)
    total = tl.zeros((M,), ACC)
    h = tl.zeros((32, NS, R), ACC)
    k = tl.zeros((32, NS, R), ACC)
    run = tl.zeros((32, NS, R), ACC) + 1.0
    start = chunk * chunk_length
    end = tl.minimum(start + chunk_length, length)
    while start < end:
        start = tl.multiple_of(start, S)
        mark = batch * ((length + S - 1) // S) + start // S
        tl.store(marks + mark * NP * channels + at, h, mask=tile_mask)
        tl.store(mark_sums + mark * channels + channel * ss_d, total, mask=writes)
        us = load_rows(u, channel * su_d * W, su_l, start, length, mask, S, W, ACC)
        raws = load_rows(delta, channel * sd_d * W, sd_l, start, length, mask, S, W, ACC)
        gs = load_rows(gy, channel * sg_d * W, sg_l, start, length, mask, S, W, ACC)
        gs = gated_gradient(gs, z, channel * sz_d * W, sz_l, start, length, mask, S, W, ACC)
        for j in tl.static_range(S):
            dt = tl.where(start + j < length, step_size(raws[j], shift, SOFTPLUS, ACC), 0.0)
            total += dt
            b = load_weights(B, n, sB_n, sB_l, start, j, length, N, ACC)
            c = load_weights(C, n, sC_n, sC_l, start, j, length, N, ACC)
            a = decay(dt, rate, R)
            h = h * a + spread(dt * us[j], R) * b
            run *= a
            k += run * (spread(gs[j], R) * c)
        start += S
    row = batch * chunks + chunk
    tl.store(states + row * NP * channels + at, h, mask=tile_mask)
    tl.store(adjoints + row * NP * channels + at, k, mask=tile_mask)
    tl.store(sums + row * channels + channel * ss_d, total, mask=writes)


@triton.jit
def states_of_steps(
    h, rate, xs, scaled, B, n, sB_n, sB_l, start, length, S: tl.constexpr, R: tl.constexpr, N: tl.constexpr, ACC: tl.constexpr
):
    """From the state before `start`: tuples of the states before each of S steps, with the one after the last, and of their decays.

    scaled: the step sizes as exp2 takes them, divided by log(2).
    """
    states = (h,)
    decays = ()
    for j in tl.static_range(S):
        a = tl.exp2(spread(scaled[j], R) * rate)
        h = h * a + spread(xs[j], R) * load_weights(B, n, sB_n, sB_l, start, j, length, N, ACC)
        states = states + (h,)
        decays = decays + (a,)
    return states, decays


@triton.jit(do_not_specialize=OPAQUE)
def selective_scan_bwd_kernel_grads(
    u, delta, A, B, C, D, z, bias, gy, states, adjoints, marks, mark_sums, gu, gdelta, gz, gA, gB, gC, gD, gbias,
    su_b, su_d, su_l, sd_b, sd_d, sd_l, sz_b, sz_d, sz_l, sg_b, sg_d, sg_l,
    sA_d, sA_n, sB_b, sB_g, sB_n, sB_l, sC_b, sC_g, sC_n, sC_l, ss_d,
    channels, length_w, chunk_length, blocks, per_group, group_channels, chunks,
    N: tl.constexpr, NP: tl.constexpr, R: tl.constexpr, S: tl.constexpr, W: tl.constexpr,
    SOFTPLUS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Gradients of one chunk, S steps at a time from its end to its start; within S steps, one state at a time.

    Between two visits the adjoint and the gradient of A of a state lie in memory, in `adjoints` and `gA`, not in registers.
    """
    M: tl.constexpr = R * 32
    length = length_w * W
    batch, block, group, channel, mask = block_of_channels(blocks, per_group, group_channels, M)
    chunk = tl.program_id(1)
    row = batch * chunks + chunk
    tile_channel = spread(channel, R)
    shift = tl.zeros((M,), ACC)
    skip = tl.zeros((M,), ACC)
    if bias is not None:
        shift = tl.load(bias + channel, mask=mask, other=0.0).to(ACC)
    if D is not None:
        skip = tl.load(D + channel, mask=mask, other=0.0).to(ACC)
    u += batch * su_b * W
    delta += batch * sd_b * W
    gy += batch * sg_b * W
    if z is not None:
        z += batch * sz_b * W
    B += batch * sB_b + group * sB_g
    C += batch * sC_b + group * sC_g
    gu += batch * channels * length
    gdelta += batch * channels * length
    if z is not None:
        gz += batch * channels * length
    out = channel * length
    gD_sum = tl.zeros((M,), ACC)
    gbias_sum = tl.zeros((M,), ACC)
    first = chunk * chunk_length
    start = first + (tl.minimum(chunk_length, length - first) - 1) // S * S
    while start >= first:
        start = tl.multiple_of(start, S)
        mark = batch * ((length + S - 1) // S) + start // S
        before = tl.load(mark_sums + mark * channels + channel * ss_d, mask=mask, other=0.0)
        us = load_rows(u, channel * su_d * W, su_l, start, length, mask, S, W, ACC)
        raws = load_rows(delta, channel * sd_d * W, sd_l, start, length, mask, S, W, ACC)
        gs = load_rows(gy, channel * sg_d * W, sg_l, start, length, mask, S, W, ACC)
        gs = gated_gradient(gs, z, channel * sz_d * W, sz_l, start, length, mask, S, W, ACC)
        scaled = ()
        xs = ()
        s1 = ()
        s2 = ()
        ys = ()
        for j in tl.static_range(S):
            dt = tl.where(start + j < length, step_size(raws[j], shift, SOFTPLUS, ACC), 0.0)
            scaled = scaled + (dt * 1.4426950408889634,)
            xs = xs + (dt * us[j],)
            s1 = s1 + (tl.zeros((M,), ACC),)
            s2 = s2 + (tl.zeros((M,), ACC),)
            ys = ys + (skip * us[j],)
        part = (batch * blocks + block) * length + start
        for k in range(N):
            n = k + tl.arange(0, 1)
            valid = spread(mask, R)
            at = n[None, :, None] * channels + tile_channel * ss_d
            rate = tl.load(A + tile_channel * sA_d + n[None, :, None] * sA_n, mask=valid, other=0.0).to(ACC)
            h = tl.load(states + row * NP * channels + at, mask=valid, other=0.0) * decay(before, rate, R)
            h += tl.load(marks + mark * NP * channels + at, mask=valid, other=0.0)
            G = tl.load(adjoints + row * NP * channels + at, mask=valid, other=0.0)
            gA_part = tl.zeros((32, 1, R), ACC)
            hs, decays = states_of_steps(h, rate, xs, scaled, B, n, sB_n, sB_l, start, length, S, R, N, ACC)
            new1 = ()
            new2 = ()
            newy = ()
            for j in tl.static_range(S - 1, -1, -1):
                b = load_weights(B, n, sB_n, sB_l, start, j, length, N, ACC)
                c = load_weights(C, n, sC_n, sC_l, start, j, length, N, ACC)
                g = spread(gs[j], R)
                G += c * g
                inside = (n < N) & (start + j < length)
                tl.store(gC + (part + j) * NP + n, sum_channels(hs[j + 1] * g), mask=inside)
                tl.store(gB + (part + j) * NP + n, sum_channels(G * spread(xs[j], R)), mask=inside)
                new1 = (s1[j] + sum_states(G * b, R),) + new1
                G *= decays[j]
                Gh = G * hs[j]
                new2 = (s2[j] + sum_states(Gh * rate, R),) + new2
                if z is not None:
                    newy = (ys[j] + sum_states(c * hs[j + 1], R),) + newy
                gA_part += Gh * spread(scaled[j], R)
            s1 = new1
            s2 = new2
            if z is not None:
                ys = newy
            tl.store(adjoints + row * NP * channels + at, G, mask=valid)
            gA_sum = tl.load(gA + row * NP * channels + at, mask=valid, other=0.0)
            tl.store(gA + row * NP * channels + at, gA_sum + gA_part * 0.6931471805599453, mask=valid)
        tl.debug_barrier()
        # what follows reads its inputs again, so that they need no registers above
        us = load_rows(u, channel * su_d * W, su_l, start, length, mask, S, W, ACC)
        raws = load_rows(delta, channel * sd_d * W, sd_l, start, length, mask, S, W, ACC)
        gus = ()
        gdeltas = ()
        gD_part = tl.zeros((M,), ACC)
        gbias_part = tl.zeros((M,), ACC)
        for j in tl.static_range(S):
            gus = gus + (skip * gs[j] + scaled[j] * 0.6931471805599453 * s1[j],)
            graw = us[j] * s1[j] + s2[j]
            if SOFTPLUS:
                v = raws[j] + shift
                graw = tl.where(v > 20, graw, graw * sigmoid(v))
            gdeltas = gdeltas + (graw,)
            gD_part += gs[j] * us[j]
            gbias_part += tl.where(start + j < length, graw, 0.0)
        gD_sum += gD_part  # sums of sums: fewer roundings
        gbias_sum += gbias_part
        store_rows(gu, out, gus, start, length, mask, S, W)
        store_rows(gdelta, out, gdeltas, start, length, mask, S, W)
        if z is not None:
            zs = load_rows(z, channel * sz_d * W, sz_l, start, length, mask, S, W, ACC)
            gys = load_rows(gy, channel * sg_d * W, sg_l, start, length, mask, S, W, ACC)
            gzs = ()
            for j in tl.static_range(S):
                s = sigmoid(zs[j])
                gzs = gzs + (gys[j] * ys[j] * s * (1 + zs[j] * (1 - s)),)
            store_rows(gz, out, gzs, start, length, mask, S, W)
        start -= S
    if D is not None:
        tl.store(gD + row * channels + channel * ss_d, gD_sum, mask=mask)
    if bias is not None:
        tl.store(gbias + row * channels + channel * ss_d, gbias_sum, mask=mask)
