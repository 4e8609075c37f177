"""Triton kernels of the selective scan, forward: states of chunks, the scan over them, outputs."""

import triton
import triton.language as tl

from .triton_tiles import decay, load_rows, load_weights, sigmoid, spread, step_size, store_rows, sum_states

OPAQUE = ["su_d", "su_l", "sd_d", "sd_l", "sz_d", "sz_l", "sA_d", "sA_n", "sB_n", "sC_n", "ss_d", "sl_n"]


@triton.jit
def block_of_channels(blocks, per_group, group_channels, M: tl.constexpr):
    """(batch, block, group, channel (M,), mask) of this program: grid axis 0 runs over batch and blocks of M channels of one group."""
    batch = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    inside = (block % per_group) * M + tl.arange(0, M)
    group = block // per_group
    return batch.to(tl.int64), block, group.to(tl.int64), (group * group_channels + inside).to(tl.int64), inside < group_channels


@triton.jit(do_not_specialize=OPAQUE)
def selective_scan_fwd_kernel_states(
    u, delta, A, B, bias, states, sums,
    su_b, su_d, su_l, sd_b, sd_d, sd_l, sA_d, sA_n, sB_b, sB_g, sB_n, sB_l, ss_d,
    channels, length_w, chunk_length, blocks, per_group, group_channels, chunks,
    N: tl.constexpr, NP: tl.constexpr, R: tl.constexpr, S: tl.constexpr, W: tl.constexpr,
    SOFTPLUS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """State at the end of one chunk that starts from zero, and the sum of its step sizes."""
    M: tl.constexpr = R * 32
    length = length_w * W
    batch, _block, group, channel, mask = block_of_channels(blocks, per_group, group_channels, M)
    chunk = tl.program_id(1)
    n = tl.arange(0, NP)
    tile_channel = spread(channel, R)
    tile_mask = spread(mask, R) & (n[None, :, None] < N)
    rate = tl.load(A + tile_channel * sA_d + n[None, :, None] * sA_n, mask=tile_mask, other=0.0).to(ACC)
    shift = tl.zeros((M,), ACC)
    if bias is not None:
        shift = tl.load(bias + channel, mask=mask, other=0.0).to(ACC)
    u += batch * su_b * W
    delta += batch * sd_b * W
    B += batch * sB_b + group * sB_g
    h = tl.zeros((32, NP, R), ACC)
    total = tl.zeros((M,), ACC)
    start = chunk * chunk_length
    end = tl.minimum(start + chunk_length, length)
    while start < end:
        start = tl.multiple_of(start, S)
        us = load_rows(u, channel * su_d * W, su_l, start, length, mask, S, W, ACC)
        raws = load_rows(delta, channel * sd_d * W, sd_l, start, length, mask, S, W, ACC)
        for j in tl.static_range(S):
            dt = tl.where(start + j < length, step_size(raws[j], shift, SOFTPLUS, ACC), 0.0)
            total += dt
            b = load_weights(B, n, sB_n, sB_l, start, j, length, N, ACC)
            h = h * decay(dt, rate, R) + spread(dt * us[j], R) * b
        start += S
    row = batch * chunks + chunk
    tl.store(states + (row * NP + n[None, :, None]) * channels + tile_channel * ss_d, h, mask=tile_mask)
    tl.store(sums + row * channels + channel * ss_d, total, mask=mask)


@triton.jit
def selective_scan_scan_kernel(
    states, sums, A, first, sA_d, sA_n, channels, chunks, blocks, first_chunk, step,
    N: tl.constexpr, NP: tl.constexpr, M: tl.constexpr, U: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Replaces every chunk's own end state by the state that enters the chunk.

    One thread per state; chunks first_chunk, first_chunk + step, ... in turn, U of them loaded at once. first: state that enters the first,
    (B, D, N), or None for zero.
    """
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    index = (tl.program_id(0) % blocks) * M + tl.arange(0, M)
    n = index // channels
    channel = (index % channels).to(tl.int64)
    mask = n < N
    rate = tl.load(A + channel * sA_d + n * sA_n, mask=mask, other=0.0).to(ACC)
    h = tl.zeros((M,), ACC)
    if first is not None:
        h = tl.load(first + (batch * channels + channel) * N + n, mask=mask, other=0.0).to(ACC)
    i = 0
    while i < chunks:
        ends = ()
        totals = ()
        for j in tl.static_range(U):
            row = batch * chunks + first_chunk + (i + j) * step
            valid = mask & (i + j < chunks)
            ends = ends + (tl.load(states + row * NP * channels + index, mask=valid, other=0.0),)
            totals = totals + (tl.load(sums + row * channels + channel, mask=valid, other=0.0),)
        for j in tl.static_range(U):
            row = batch * chunks + first_chunk + (i + j) * step
            tl.store(states + row * NP * channels + index, h, mask=mask & (i + j < chunks))
            h = h * tl.exp2(totals[j] * 1.4426950408889634 * rate) + ends[j]
        i += U


@triton.jit(do_not_specialize=OPAQUE)
def selective_scan_fwd_kernel_out(
    u, delta, A, B, C, D, z, bias, states, y, last,
    su_b, su_d, su_l, sd_b, sd_d, sd_l, sz_b, sz_d, sz_l, sA_d, sA_n, sB_b, sB_g, sB_n, sB_l, sC_b, sC_g, sC_n, sC_l, ss_d, sl_n,
    channels, length_w, chunk_length, blocks, per_group, group_channels, chunks,
    N: tl.constexpr, NP: tl.constexpr, R: tl.constexpr, S: tl.constexpr, W: tl.constexpr,
    SOFTPLUS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Outputs of one chunk from the state that enters it (zero where `states` is None); the last chunk also writes the last state."""
    M: tl.constexpr = R * 32
    length = length_w * W
    batch, _block, group, channel, mask = block_of_channels(blocks, per_group, group_channels, M)
    chunk = tl.program_id(1)
    n = tl.arange(0, NP)
    tile_channel = spread(channel, R)
    tile_mask = spread(mask, R) & (n[None, :, None] < N)
    rate = tl.load(A + tile_channel * sA_d + n[None, :, None] * sA_n, mask=tile_mask, other=0.0).to(ACC)
    shift = tl.zeros((M,), ACC)
    skip = tl.zeros((M,), ACC)
    if bias is not None:
        shift = tl.load(bias + channel, mask=mask, other=0.0).to(ACC)
    if D is not None:
        skip = tl.load(D + channel, mask=mask, other=0.0).to(ACC)
    h = tl.zeros((32, NP, R), ACC)
    if states is not None:
        at = ((batch * chunks + chunk) * NP + n[None, :, None]) * channels + tile_channel * ss_d
        h = tl.load(states + at, mask=tile_mask, other=0.0)
    u += batch * su_b * W
    delta += batch * sd_b * W
    B += batch * sB_b + group * sB_g
    C += batch * sC_b + group * sC_g
    if z is not None:
        z += batch * sz_b * W
    start = chunk * chunk_length
    end = tl.minimum(start + chunk_length, length)
    while start < end:
        start = tl.multiple_of(start, S)
        us = load_rows(u, channel * su_d * W, su_l, start, length, mask, S, W, ACC)
        raws = load_rows(delta, channel * sd_d * W, sd_l, start, length, mask, S, W, ACC)
        ys = ()
        for j in tl.static_range(S):
            dt = tl.where(start + j < length, step_size(raws[j], shift, SOFTPLUS, ACC), 0.0)
            b = load_weights(B, n, sB_n, sB_l, start, j, length, N, ACC)
            c = load_weights(C, n, sC_n, sC_l, start, j, length, N, ACC)
            h = h * decay(dt, rate, R) + spread(dt * us[j], R) * b
            ys = ys + (sum_states(h * c, R) + skip * us[j],)
        if z is not None:
            zs = load_rows(z, channel * sz_d * W, sz_l, start, length, mask, S, W, ACC)
            gated = ()
            for j in tl.static_range(S):
                gated = gated + (ys[j] * zs[j] * sigmoid(zs[j]),)
            ys = gated
        store_rows(y, (batch * channels + channel) * length, ys, start, length, mask, S, W)
        start += S
    if chunk == chunks - 1:
        at = (batch * channels + tile_channel) * N + n[None, :, None] * sl_n
        tl.store(last + at, h, mask=tile_mask)
