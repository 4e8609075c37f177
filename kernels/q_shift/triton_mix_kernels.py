"""Q-shift and its interpolations in Triton: one kernel forward, one backward, no atomics.

Forward: token and source are read, M interpolations written. Backward: every program reads the M gradients at its own tokens and at those
that its tokens are the source of (which the caches hold), and writes gx and its part of the sums over tokens that the mixes' gradients are;
PyTorch adds the parts.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_runtime import launch
from .triton_kernels import LARGEST, locate, tiles, vector

MOST_MIXES = 8  # their sums over tokens stay in registers


@triton.jit
def q_shift_mix_fwd_kernel(
    x_ptr,  # (B, T, C), any strides
    mix_ptr,  # (M, C), any strides
    y_ptr,  # (M, B, T, C), contiguous
    batch,
    length,
    channels,
    height,
    width,
    head,
    stride_b,
    stride_t,
    stride_c,
    mix_stride_m,
    mix_stride_c,
    blocks_t,
    blocks_c,
    EXACT: tl.constexpr,
    M: tl.constexpr,
    V: tl.constexpr,
    BT: tl.constexpr,
    BC: tl.constexpr,
):
    program = tl.program_id(0)
    block_c = program % blocks_c
    block_t = program // blocks_c % blocks_t
    sample = (program // blocks_c // blocks_t).to(tl.int64)
    t = block_t * BT + tl.arange(0, BT)
    c = block_c * BC + tl.arange(0, BC)
    step, known = locate(t, c, height, width, head, 1, V)
    inside = (t < length)[:, None] & (c < channels)[None, :]
    x_ptr += sample * stride_b
    along_c = c.to(tl.int64)[None, :] * stride_c
    token = tl.load(x_ptr + t.to(tl.int64)[:, None] * stride_t + along_c, mask=inside, other=0.0).to(EXACT)
    of = (t[:, None] + step).to(tl.int64) * stride_t + along_c
    source = tl.load(x_ptr + of, mask=inside & known, other=0.0).to(EXACT)
    difference = token - source
    to = (sample * length + t)[:, None] * channels + c[None, :]
    for m in tl.static_range(M):
        mu = tl.load(mix_ptr + m * mix_stride_m + c.to(tl.int64) * mix_stride_c, mask=c < channels, other=0.0).to(EXACT)
        y = source + mu[None, :] * difference
        tl.store(y_ptr + to + m * (batch.to(tl.int64) * length * channels), y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def q_shift_mix_bwd_kernel(
    x_ptr,  # (B, T, C), any strides
    mix_ptr,  # (M, C), any strides
    g_ptr,  # (M, B, T, C), any strides
    gx_ptr,  # (B, T, C), contiguous
    part_ptr,  # (B * blocks_t, M, C), contiguous, in the dtype of the arithmetic
    length,
    channels,
    height,
    width,
    head,
    stride_b,
    stride_t,
    stride_c,
    mix_stride_m,
    mix_stride_c,
    g_stride_m: tl.int64,
    g_stride_b,
    g_stride_t,
    g_stride_c,
    blocks_t,
    blocks_c,
    EXACT: tl.constexpr,
    M: tl.constexpr,
    V: tl.constexpr,
    BT: tl.constexpr,
    BC: tl.constexpr,
    ROUNDS: tl.constexpr,  # tiles of a program, one after the other
):
    program = tl.program_id(0)
    block_c = program % blocks_c
    row = (program // blocks_c).to(tl.int64)
    sample = row // blocks_t
    first = (row - sample * blocks_t).to(tl.int32) * (BT * ROUNDS)
    c = block_c * BC + tl.arange(0, BC)
    along_c = c.to(tl.int64)[None, :]
    x_ptr += sample * stride_b
    g_ptr += sample * g_stride_b
    products, shares = (), ()
    for m in tl.static_range(M):
        products = products + (tl.zeros((BT, BC), EXACT),)
        mu = tl.load(mix_ptr + m * mix_stride_m + along_c * mix_stride_c, mask=(c < channels)[None, :], other=0.0)
        shares = shares + (mu.to(EXACT),)
    for i in range(ROUNDS):
        t = first + i * BT + tl.arange(0, BT)
        inside = (t < length)[:, None] & (c < channels)[None, :]
        along_t = t.to(tl.int64)[:, None]
        step, known = locate(t, c, height, width, head, 1, V)
        token = tl.load(x_ptr + along_t * stride_t + along_c * stride_c, mask=inside, other=0.0).to(EXACT)
        source = tl.load(x_ptr + (along_t + step) * stride_t + along_c * stride_c, mask=inside & known, other=0.0).to(EXACT)
        difference = token - source
        step, known = locate(t, c, height, width, head, -1, V)  # from a source to the token that takes it
        own = along_t * g_stride_t + along_c * g_stride_c
        taken = (along_t + step) * g_stride_t + along_c * g_stride_c
        gx = tl.zeros((BT, BC), EXACT)
        sums = ()
        for m in tl.static_range(M):
            g = tl.load(g_ptr + m * g_stride_m + own, mask=inside, other=0.0).to(EXACT)
            g_taken = tl.load(g_ptr + m * g_stride_m + taken, mask=inside & known, other=0.0).to(EXACT)
            gx += g_taken + shares[m] * (g - g_taken)
            sums = sums + (products[m] + g * difference,)
        products = sums
        to = (sample * length + along_t) * channels + along_c
        tl.store(gx_ptr + to, gx.to(gx_ptr.dtype.element_ty), mask=inside)
    for m in tl.static_range(M):
        tl.store(part_ptr + (row * M + m) * channels + c, tl.sum(products[m], axis=0), mask=c < channels)


def _exact(x: Tensor, mixes: Tensor) -> tl.dtype:
    """The dtype of the arithmetic."""
    return tl.float64 if torch.float64 in (x.dtype, mixes.dtype) else tl.float32


def _rounds(tiles_in_all: int, tiles_of_a_sample: int) -> int:
    """How many tiles a program of the backward takes one after the other: more parts to add cost more memory traffic, fewer programs leave
    processors idle; a thousand programs are enough for the largest GPUs."""
    rounds = 1
    while rounds < 8 and tiles_in_all >= 2048 * rounds and tiles_of_a_sample >= 2 * rounds:
        rounds *= 2
    return rounds


def unsupported(x: Tensor, mixes: Tensor, height: int, width: int, heads: int, extra_tokens: int) -> str | None:
    """Why these inputs cannot run; None where they can."""
    if x.shape[1] >= LARGEST:
        return f"takes less than {LARGEST} tokens per sample, got {x.shape[1]}"
    if mixes.shape[0] > MOST_MIXES:
        return f"takes at most {MOST_MIXES} mixes, got {mixes.shape[0]}"
    return None


def forward(x: Tensor, mixes: Tensor, height: int, width: int, heads: int, extra_tokens: int) -> Tensor:
    """x (B, T, C), mixes (M, C) -> (M, B, T, C) in the dtype of x."""
    batch, length, channels = x.shape
    out = x.new_empty((mixes.shape[0], *x.shape))
    if out.numel() == 0:
        return out
    head = channels // heads
    bt, bc = tiles(length, channels, 4096)
    blocks = triton.cdiv(length, bt), triton.cdiv(channels, bc)
    launch(
        q_shift_mix_fwd_kernel,
        (batch * blocks[0] * blocks[1],),
        *(x, mixes, out, batch, length, channels, height, width, head, *x.stride(), *mixes.stride(), *blocks),
        EXACT=_exact(x, mixes),
        M=mixes.shape[0],
        V=vector(head),
        BT=bt,
        BC=bc,
    )
    return out


def backward(x: Tensor, mixes: Tensor, grads: Tensor, height: int, width: int, heads: int, extra_tokens: int) -> tuple[Tensor, Tensor]:
    """Gradients of x and mixes, in their dtypes."""
    batch, length, channels = x.shape
    gx = torch.empty_like(x, memory_format=torch.contiguous_format)
    if grads.numel() == 0:
        return gx.zero_(), torch.zeros_like(mixes)
    head = channels // heads
    exact = _exact(x, mixes)
    bt, bc = tiles(length, channels, 512 if exact == tl.float64 else 1024)  # accumulators fill the registers
    rounds = _rounds(batch * triton.cdiv(length, bt) * triton.cdiv(channels, bc), triton.cdiv(length, bt))
    blocks = triton.cdiv(length, bt * rounds), triton.cdiv(channels, bc)
    dtype = torch.float64 if exact == tl.float64 else torch.float32
    parts = mixes.new_empty((batch * blocks[0], *mixes.shape), dtype=dtype)
    strides = (*x.stride(), *mixes.stride(), *grads.stride())
    launch(
        q_shift_mix_bwd_kernel,
        (batch * blocks[0] * blocks[1],),
        *(x, mixes, grads, gx, parts, length, channels, height, width, head, *strides, *blocks),
        EXACT=exact,
        M=mixes.shape[0],
        V=vector(head),
        BT=bt,
        BC=bc,
        ROUNDS=rounds,
    )
    return gx, parts.sum(0).to(mixes.dtype)
