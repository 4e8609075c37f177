"""Q-shift in Triton. A program owns BT tokens and BC channels of one sample; forward and adjoint are one kernel.

Which neighbour a channel comes from changes with the quarter alone. `V` consecutive channels never straddle a cut, and telling the compiler
so keeps every load a vector of V elements, and the arithmetic of addresses one per vector.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_runtime import launch

LARGEST = 2**31  # tokens of one sample are counted in 32 bits


@triton.jit
def locate(t, c, height, width, head, DIRECTION: tl.constexpr, V: tl.constexpr):
    """(step, known): by how many tokens the source of token t (BT,) and channel c (BC,) is away, and whether there is one; (BT, BC) each.

    DIRECTION 1 is the shift, -1 its adjoint. A token after the grid is its own source.
    """
    inner = c % head
    quarter = (inner >= head // 4).to(tl.int32) + (inner >= head // 2).to(tl.int32) + (inner >= 3 * head // 4).to(tl.int32)
    quarter = tl.max_constancy(quarter, V)[None, :]
    columns = tl.where(quarter == 0, -DIRECTION, tl.where(quarter == 1, DIRECTION, 0))
    rows = tl.where(quarter == 2, -DIRECTION, tl.where(quarter == 3, DIRECTION, 0))
    y = (t // width)[:, None]
    x = (t % width)[:, None]
    patch = y < height
    inside = (x + columns >= 0) & (x + columns < width) & (y + rows >= 0) & (y + rows < height)
    return tl.where(patch, columns + rows * width, 0), inside | (y >= height)


@triton.jit
def q_shift_kernel(
    x_ptr,  # (B, T, C), any strides
    y_ptr,  # (B, T, C), contiguous
    length,
    channels,
    height,
    width,
    head,
    stride_b,
    stride_t,
    stride_c,
    blocks_t,
    blocks_c,
    DIRECTION: tl.constexpr,
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
    step, known = locate(t, c, height, width, head, DIRECTION, V)
    inside = (t < length)[:, None] & (c < channels)[None, :]
    of = (t[:, None] + step).to(tl.int64) * stride_t + c.to(tl.int64)[None, :] * stride_c
    values = tl.load(x_ptr + sample * stride_b + of, mask=inside & known, other=0.0)
    to = (sample * length + t)[:, None] * channels + c[None, :]
    tl.store(y_ptr + to, values, mask=inside)


def tiles(length: int, channels: int, elements: int) -> tuple[int, int]:
    """(BT, BC) of a tile with about `elements` elements: 128 channels, or 64 where that leaves fewer of them idle."""
    wide = 64 if channels % 128 and channels % 64 == 0 else 128
    bc = min(wide, triton.next_power_of_2(channels))
    return min(elements // bc, triton.next_power_of_2(length)), bc


def vector(head: int) -> int:
    """How many channels, a power of two up to 8, lie between two cuts at least and divide the head."""
    return math.gcd(8, head // 4, head // 2, 3 * head // 4, head)


def run(x: Tensor, height: int, width: int, heads: int, extra_tokens: int, direction: int) -> Tensor:
    """Launches the shift (direction 1) or its adjoint (-1) of x (B, T, C)."""
    batch, length, channels = x.shape
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if out.numel() == 0:
        return out
    head = channels // heads
    bt, bc = tiles(length, channels, 4096)
    blocks = triton.cdiv(length, bt), triton.cdiv(channels, bc)
    launch(
        q_shift_kernel,
        (batch * blocks[0] * blocks[1],),
        *(x, out, length, channels, height, width, head, *x.stride(), *blocks),
        DIRECTION=direction,
        V=vector(head),
        BT=bt,
        BC=bc,
    )
    return out


def unsupported(x: Tensor, height: int, width: int, heads: int, extra_tokens: int) -> str | None:
    """Why these inputs cannot run; None where they can."""
    if x.shape[1] >= LARGEST:
        return f"takes less than {LARGEST} tokens per sample, got {x.shape[1]}"
    return None


def forward(x: Tensor, height: int, width: int, heads: int, extra_tokens: int) -> Tensor:
    """The shift of x."""
    return run(x, height, width, heads, extra_tokens, 1)


def backward(x: Tensor, gy: Tensor, height: int, width: int, heads: int, extra_tokens: int) -> tuple[Tensor]:
    """The gradient of x."""
    return (run(gy, height, width, heads, extra_tokens, -1),)
