"""Triton kernels of the cross selective scan: states of chunks, the scan over them, outputs. One kernel serves all four directions.

An image is a set of lines that run along a direction: one line of H W pixels for rows, W lines of H pixels for columns, pixel
`step * lines + line` in both. A chunk is a piece of a line. A thread owns one chunk of one channel with all its states; the threads of a
program are BD channels x BW lines. Rows: 32 channels, and a thread reads V steps with one load where alignment allows. Columns: neighbours
in a warp are neighbours in the image, so that loads are coalesced although every thread walks down its own column.

A direction (FIRST = 0: rows, 1: columns) and its reverse share a program, one after the other, hence the second meets u in cache and adds
its outputs to what the first has just written. Rows are launched before columns, so that four directions are added in a fixed order without
atomics. Reversed directions go through the same groups of S steps from the end.

Tiles are (M threads, states). Triton must neither know that `unit` is 1 nor the strides: with neighbouring addresses in sight it would give
a thread several lines and spread the states over threads.
"""

import triton
import triton.language as tl

from .triton_tiles import columns, step_size, tile_of

OPAQUE = ["lines", "unit", "adjoint", "first_direction", "sA_d", "sA_n", "sB_n", "sC_n", "sW_n"]


@triton.jit
def place(channels, blocks, line_blocks, lines, unit, BD: tl.constexpr, BW: tl.constexpr):
    """(batch, block of channels, channel (M, 1), line (M, 1), mask) of this program, M = BD BW threads."""
    program = tl.program_id(0)
    i = tl.arange(0, BD * BW)[:, None]
    block = program // line_blocks % blocks
    channel = block * BD + i // BW
    line = (program % line_blocks * BW + i % BW) * unit
    return (program // line_blocks // blocks).to(tl.int64), block, channel, line, (channel < channels) & (line < lines)


@triton.jit
def in_order(rows, S: tl.constexpr, down):
    """S rows, reversed where down."""
    out = ()
    for j in tl.static_range(S):
        out = out + (tl.where(down, rows[S - 1 - j], rows[j]),)
    return out


@triton.jit
def load_steps(ptr, channel, line, lines, start, down, steps, mask, S: tl.constexpr, V: tl.constexpr, ACC: tl.constexpr):
    """Steps start .. start + S - 1 as S rows (M, 1) of type ACC, the last one first where down, zero from `steps` on.

    channel: (M, 1) offsets of the channels, divided by V. V > 1: one line, V steps of which are one aligned load of a thread.
    """
    rows = ()
    if V == 1:
        for j in tl.static_range(S):
            step = start + j + down * (S - 1 - 2 * j)
            at = ptr + (channel + step * lines + line)
            rows = rows + (tl.load(at, mask=mask & (step < steps), other=0.0).to(ACC),)
    else:
        for j in tl.static_range(0, S, V):
            step = start + j + tl.arange(0, V)
            at = ptr + (channel * V + step[None, :])
            tile = columns(tl.load(at, mask=mask & (step < steps)[None, :], other=0.0).to(ACC), V)
            for i in tl.static_range(V):
                rows = rows + (tl.expand_dims(tile[i], 1),)
        rows = in_order(rows, S, down == 1)
    return rows


@triton.jit
def store_steps(ptr, channel, rows, line, lines, start, down, steps, mask, S: tl.constexpr, V: tl.constexpr):
    """The inverse of `load_steps`."""
    if V == 1:
        for j in tl.static_range(S):
            step = start + j + down * (S - 1 - 2 * j)
            at = ptr + (channel + step * lines + line)
            tl.store(at, rows[j].to(ptr.dtype.element_ty), mask=mask & (step < steps))
    else:
        rows = in_order(rows, S, down == 1)
        for j in tl.static_range(0, S, V):
            part = ()
            for i in tl.static_range(V):
                part = part + (tl.reshape(rows[j + i], (rows[j + i].shape[0],)),)
            step = start + j + tl.arange(0, V)
            tile = tile_of(part, V).to(ptr.dtype.element_ty)
            tl.store(ptr + (channel * V + step[None, :]), tile, mask=mask & (step < steps)[None, :])


@triton.jit
def accumulate(
    part, out, channel, rows, line, lines, start, r, steps, mask, FIRST: tl.constexpr, S: tl.constexpr, V: tl.constexpr, ACC: tl.constexpr
):
    """Adds S rows to what the directions before have left in `part`; the last direction writes `out`, the others `part`."""
    before = load_steps(part, channel, line, lines, start, r, steps, mask & (FIRST + r > 0), S, V, ACC)
    total = ()
    for j in tl.static_range(S):
        total = total + (before[j] + rows[j],)
    store_steps(part, channel, total, line, lines, start, r, steps, mask & (FIRST + r < 2), S, V)
    if FIRST == 1:
        store_steps(out, channel, total, line, lines, start, r, steps, mask & (r == 1), S, V)


@triton.jit
def load_weights(ptr, n, stride_n, pixel, inside, N: tl.constexpr, ACC: tl.constexpr):
    """B or C of the states n (1, len(n)) at a pixel per thread (M, 1)."""
    return tl.load(ptr + (n * stride_n + pixel), mask=(n < N) & inside, other=0.0).to(ACC)


@triton.jit
def load_rates(A, k, channels, channel, n, sA_d, sA_n, valid, ACC: tl.constexpr):
    """A of direction k, (M, len(n))."""
    return tl.load(A + ((k * channels + channel) * sA_d + n * sA_n), mask=valid, other=0.0).to(ACC)


@triton.jit
def decay_of(dt, rate):
    """exp(dt A) of a step (M, 1). The step takes the factor of exp2: a rounding of the rate would be the same in all steps and add up."""
    return tl.exp2((dt * 1.4426950408889634) * rate)


@triton.jit(do_not_specialize=OPAQUE)
def cross_selective_scan_kernel_states(
    v, delta, A, weight, bias, states, sums, marks, mark_sums,
    sv_b, sv_d, sd_b, sd_k, sd_d, sA_d, sA_n, sW_b, sW_k, sW_n,
    channels, steps_v, lines, unit, chunk_length, blocks, line_blocks,
    FIRST: tl.constexpr, ADJOINT: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, BD: tl.constexpr, BW: tl.constexpr,
    S: tl.constexpr, MARK: tl.constexpr, V: tl.constexpr, SOFTPLUS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """What a chunk adds to the state behind it, with v = u and weight = B; or, where ADJOINT, what it adds to the message that the chunk
    before it receives, with v = gy and weight = C. Not ADJOINT: also the sum of the step sizes, and as marks every MARK-th state."""
    batch, _block, channel, line, mask = place(channels, blocks, line_blocks, lines, unit, BD, BW)
    steps = steps_v * V
    lanes = channels * lines
    lane = channel * lines + line
    n = tl.arange(0, NP)[None, :]
    valid = mask & (n < N)
    at = n * lanes + lane
    first = tl.program_id(1) * chunk_length
    groups = (tl.minimum(chunk_length, steps - first) + S - 1) // S
    for r in range(2):
        k = FIRST + 2 * r
        rate = load_rates(A, k, channels, channel, n, sA_d, sA_n, valid, ACC)
        shift = tl.zeros((BD * BW, 1), ACC)
        if bias is not None:
            shift = tl.load(bias + k * channels + channel, mask=mask, other=0.0).to(ACC)
        down = 1 - r if ADJOINT else r
        h = tl.zeros((BD * BW, NP), ACC)
        total = tl.zeros((BD * BW, 1), ACC)
        i = 0
        while i < groups:
            start = tl.multiple_of(first + (i + down * (groups - 1 - 2 * i)) * S, S)
            if marks is not None:
                begins = (start // S % (MARK // S) == down * (MARK // S - 1)) | (i == 0)
                mark = (batch * 2 + r) * ((steps + MARK - 1) // MARK) + start // MARK
                tl.store(marks + mark * NP * lanes + at, h, mask=valid & begins)
                tl.store(mark_sums + mark * lanes + lane, total, mask=mask & begins)
            vs = load_steps(v + batch * sv_b * V, channel * sv_d, line, lines, start, down, steps, mask, S, V, ACC)
            raws = load_steps(delta + (batch * sd_b + k * sd_k) * V, channel * sd_d, line, lines, start, down, steps, mask, S, V, ACC)
            for j in tl.static_range(S):
                step = start + j + down * (S - 1 - 2 * j)
                dt = tl.where(step < steps, step_size(raws[j], shift, SOFTPLUS, ACC), 0.0)
                total += dt
                w = load_weights(weight + batch * sW_b + k * sW_k, n, sW_n, step * lines + line, mask & (step < steps), N, ACC)
                decay = decay_of(dt, rate)
                if ADJOINT:
                    h = (h + w * vs[j]) * decay
                else:
                    h = h * decay + w * (dt * vs[j])
            i += 1
        row = (batch * 2 + r) * tl.num_programs(1) + tl.program_id(1)
        tl.store(states + row * NP * lanes + at, h, mask=valid)
        if sums is not None:
            tl.store(sums + row * lanes + lane, total, mask=mask)


@triton.jit(do_not_specialize=OPAQUE)
def cross_selective_scan_kernel_scan(
    states, sums, A, sA_d, sA_n, channels, lines, chunks, blocks, adjoint, first_direction,
    N: tl.constexpr, NP: tl.constexpr, M: tl.constexpr, U: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Replaces what every chunk adds by what enters it. One thread per state of a direction; U chunks of all lines are loaded at once."""
    image = (tl.program_id(0) // blocks).to(tl.int64)  # a direction of a sample
    r = image % 2
    index = tl.program_id(0) % blocks * M + tl.arange(0, M)
    n = (index // channels).to(tl.int64)
    channel = (index % channels).to(tl.int64)
    mask = n < N
    lanes = (channels * lines).to(tl.int64)
    rate = tl.load(A + ((first_direction + 2 * r) * channels + channel) * sA_d + n * sA_n, mask=mask, other=0.0).to(ACC)
    h = tl.zeros((M,), ACC)
    count = lines * chunks
    i = 0
    while i < count:
        ends = ()
        totals = ()
        for j in tl.static_range(U):
            c = tl.where(r == adjoint, i + j, count - 1 - i - j)
            row = image * chunks + c % chunks
            lane = channel * lines + c // chunks
            valid = mask & (i + j < count)
            ends = ends + (tl.load(states + (row * NP + n) * lanes + lane, mask=valid, other=0.0),)
            totals = totals + (tl.load(sums + row * lanes + lane, mask=valid, other=0.0),)
        for j in tl.static_range(U):
            c = tl.where(r == adjoint, i + j, count - 1 - i - j)
            row = image * chunks + c % chunks
            tl.store(states + (row * NP + n) * lanes + channel * lines + c // chunks, h, mask=mask & (i + j < count))
            h = h * decay_of(totals[j], rate) + ends[j]
        i += U


@triton.jit(do_not_specialize=OPAQUE)
def cross_selective_scan_kernel_out(
    u, delta, A, B, C, D, bias, states, part, y,
    su_b, su_d, sd_b, sd_k, sd_d, sA_d, sA_n, sB_b, sB_k, sB_n, sC_b, sC_k, sC_n,
    channels, steps_v, lines, unit, chunk_length, blocks, line_blocks,
    FIRST: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, BD: tl.constexpr, BW: tl.constexpr, S: tl.constexpr, V: tl.constexpr,
    SOFTPLUS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Outputs of one chunk from the states that enter it (zero where `states` is None), added to those of the directions before; the last
    direction writes y, the others `part`."""
    batch, _block, channel, line, mask = place(channels, blocks, line_blocks, lines, unit, BD, BW)
    steps = steps_v * V
    lanes = channels * lines
    n = tl.arange(0, NP)[None, :]
    valid = mask & (n < N)
    first = tl.program_id(1) * chunk_length
    groups = (tl.minimum(chunk_length, steps - first) + S - 1) // S
    own = channel * (steps_v * lines)
    image = batch * channels * (steps_v * lines) * V
    for r in range(2):
        k = FIRST + 2 * r
        rate = load_rates(A, k, channels, channel, n, sA_d, sA_n, valid, ACC)
        shift = tl.zeros((BD * BW, 1), ACC)
        skip = tl.zeros((BD * BW, 1), ACC)
        if bias is not None:
            shift = tl.load(bias + k * channels + channel, mask=mask, other=0.0).to(ACC)
        if D is not None:
            skip = tl.load(D + k * channels + channel, mask=mask, other=0.0).to(ACC)
        h = tl.zeros((BD * BW, NP), ACC)
        if states is not None:
            row = (batch * 2 + r) * tl.num_programs(1) + tl.program_id(1)
            h = tl.load(states + row * NP * lanes + (n * lanes + channel * lines + line), mask=valid, other=0.0)
        i = 0
        while i < groups:
            start = tl.multiple_of(first + (i + r * (groups - 1 - 2 * i)) * S, S)
            us = load_steps(u + batch * su_b * V, channel * su_d, line, lines, start, r, steps, mask, S, V, ACC)
            raws = load_steps(delta + (batch * sd_b + k * sd_k) * V, channel * sd_d, line, lines, start, r, steps, mask, S, V, ACC)
            ys = ()
            for j in tl.static_range(S):
                step = start + j + r * (S - 1 - 2 * j)
                inside = mask & (step < steps)
                dt = tl.where(step < steps, step_size(raws[j], shift, SOFTPLUS, ACC), 0.0)
                b = load_weights(B + batch * sB_b + k * sB_k, n, sB_n, step * lines + line, inside, N, ACC)
                c = load_weights(C + batch * sC_b + k * sC_k, n, sC_n, step * lines + line, inside, N, ACC)
                h = h * decay_of(dt, rate) + b * (dt * us[j])
                ys = ys + (tl.sum(h * c, 1, keep_dims=True) + skip * us[j],)
            accumulate(part + image, y + image, own, ys, line, lines, start, r, steps, mask, FIRST, S, V, ACC)
            i += 1
        tl.debug_barrier()
