"""Cross scan and cross merge in Triton: one kernel each, every element read once and written once.

A program owns a tile of BW columns, BH rows and BD channels. The first axis of a tile is the one along which its sequence is contiguous: w
for row sequences, h for column sequences; the compiler turns one tile into the other through shared memory. A reversed sequence has falling
addresses, in which the compiler sees no contiguity; it then lets the first axis run fastest over the threads. So all accesses are
coalesced, also those to an image stored channels last, where the compiler finds the channels contiguous.

Offsets inside a tile are 32-bit numbers behind a 64-bit start, unless the strides are too large for that (WIDE).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_runtime import launch
from .reference import ORDERS

MOST_CHANNELS = 64  # of a tile
LARGEST = 2**31 // MOST_CHANNELS  # positions of one image: a tile of the four sequences is addressed with 32 bits


@triton.jit
def locate(blocks_d, blocks_h, blocks_w, BD: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr):
    """(sample, first channel, d, h, w) of this program's tile: two 64-bit numbers, the channels after the first, rows and columns."""
    program = tl.program_id(0)
    w = program % blocks_w * BW + tl.arange(0, BW)
    program = program // blocks_w
    h = program % blocks_h * BH + tl.arange(0, BH)
    program = program // blocks_h
    return (program // blocks_d).to(tl.int64), (program % blocks_d * BD).to(tl.int64), tl.arange(0, BD), h, w


@triton.jit
def scale(index, stride, WIDE: tl.constexpr):
    """index * stride, in 64 bits where WIDE."""
    return (index.to(tl.int64) if WIDE else index) * stride


@triton.jit
def cross_scan_kernel(
    x_ptr,  # (B, D, H, W), any strides
    y_ptr,  # (B, 4, D, L), contiguous
    channels,
    height,
    width,
    length,
    stride_b,
    stride_d,
    stride_h,
    stride_w,
    blocks_d,
    blocks_h,
    blocks_w,
    COLUMNS: tl.constexpr,
    REVERSE: tl.constexpr,
    WIDE: tl.constexpr,
    BD: tl.constexpr,
    BH: tl.constexpr,
    BW: tl.constexpr,
):
    sample, first, d, h, w = locate(blocks_d, blocks_h, blocks_w, BD, BH, BW)
    some = (first + d < channels)[None, None, :]
    inside = (w < width)[:, None, None] & (h < height)[None, :, None] & some
    x_ptr += sample * stride_b + first * stride_d
    of = scale(w, stride_w, WIDE)[:, None, None] + scale(h, stride_h, WIDE)[None, :, None] + scale(d, stride_d, WIDE)[None, None, :]
    row = tl.load(x_ptr + of, mask=inside, other=0.0)
    sequence = channels.to(tl.int64) * length
    y_ptr += sample * 4 * sequence + first * length
    start = (d * length)[None, None, :]
    end = start + (length - 1)
    along = h[None, :, None] * width + w[:, None, None]
    tl.store(y_ptr + (start + along), row, mask=inside)
    tl.store(y_ptr + 2 * sequence + ((end - along) if REVERSE else (start + along)), row, mask=inside)
    if COLUMNS:
        second = tl.permute(row, (1, 0, 2))
        inside = (h < height)[:, None, None] & (w < width)[None, :, None] & some
        along = w[None, :, None] * height + h[:, None, None]
    else:
        second = row
    tl.store(y_ptr + sequence + (start + along), second, mask=inside)
    tl.store(y_ptr + 3 * sequence + ((end - along) if REVERSE else (start + along)), second, mask=inside)


@triton.jit
def cross_merge_kernel(
    y_ptr,  # (B, 4, D, L), any strides
    x_ptr,  # (B, D, L), contiguous
    channels,
    height,
    width,
    length,
    stride_b,
    stride_k,
    stride_d,
    stride_l,
    blocks_d,
    blocks_h,
    blocks_w,
    EXACT: tl.constexpr,
    COLUMNS: tl.constexpr,
    REVERSE: tl.constexpr,
    WIDE: tl.constexpr,
    BD: tl.constexpr,
    BH: tl.constexpr,
    BW: tl.constexpr,
):
    sample, first, d, h, w = locate(blocks_d, blocks_h, blocks_w, BD, BH, BW)
    some = (first + d < channels)[None, None, :]
    inside = (w < width)[:, None, None] & (h < height)[None, :, None] & some
    y_ptr += sample * stride_b + first * stride_d
    sequence = stride_k.to(tl.int64)
    channel = scale(d, stride_d, WIDE)[None, None, :]
    along = h[None, :, None] * width + w[:, None, None]
    last = (length - 1 - along) if REVERSE else along
    row = tl.load(y_ptr + (scale(along, stride_l, WIDE) + channel), mask=inside, other=0.0).to(EXACT)
    row += tl.load(y_ptr + 2 * sequence + (scale(last, stride_l, WIDE) + channel), mask=inside, other=0.0).to(EXACT)
    to = x_ptr + (sample * channels + first) * length + ((d * length)[None, None, :] + along)
    if COLUMNS:
        known = (h < height)[:, None, None] & (w < width)[None, :, None] & some
        along = w[None, :, None] * height + h[:, None, None]
        last = (length - 1 - along) if REVERSE else along
    else:
        known = inside
    second = tl.load(y_ptr + sequence + (scale(along, stride_l, WIDE) + channel), mask=known, other=0.0).to(EXACT)
    second += tl.load(y_ptr + 3 * sequence + (scale(last, stride_l, WIDE) + channel), mask=known, other=0.0).to(EXACT)
    total = row + (tl.permute(second, (1, 0, 2)) if COLUMNS else second)
    tl.store(to, total.to(x_ptr.dtype.element_ty), mask=inside)


def _tile(channels: int, height: int, width: int, channels_last: bool) -> dict[str, int]:
    """BD, BH, BW: 2048 elements, or 4096 where all three axes are contiguous somewhere."""
    side, elements = (16, 4096) if channels_last else (32, 2048)
    bh, bw = (min(side, triton.next_power_of_2(n)) for n in (height, width))
    return {"BD": min(MOST_CHANNELS, triton.next_power_of_2(channels), elements // (bh * bw)), "BH": bh, "BW": bw}


def _launch(kernel, arguments: tuple, shape: tuple[int, ...], order: str, reach: int, channels_last: bool, **constexprs) -> None:
    """Starts a kernel over images of `shape` (B, D, H, W).

    Args:
        arguments: input, output, and the strides of the input.
        reach: no offset inside a tile of the input is larger.
        channels_last: whether neighbouring channels are neighbours in the input's memory.
    """
    batch, channels, height, width = shape
    source, target, *strides = arguments
    tile = _tile(channels, height, width, channels_last)
    blocks = [triton.cdiv(n, tile[b]) for n, b in ((channels, "BD"), (height, "BH"), (width, "BW"))]
    columns, reverse = ORDERS[order]
    launch(
        kernel,
        (batch * blocks[0] * blocks[1] * blocks[2],),
        *(source, target, channels, height, width, height * width, *strides, *blocks),
        COLUMNS=columns,
        REVERSE=reverse,
        WIDE=reach >= 2**31,
        **tile,
        **constexprs,
    )


def scan(x: Tensor, order: str) -> Tensor:
    """x (B, D, H, W), any strides -> (B, 4, D, H W)."""
    batch, channels, height, width = x.shape
    out = x.new_empty(batch, 4, channels, height * width)
    if out.numel():
        _, of_d, of_h, of_w = strides = x.stride()
        reach = MOST_CHANNELS * of_d + height * of_h + width * of_w
        _launch(cross_scan_kernel, (x, out, *strides), x.shape, order, reach, channels_last=of_d == 1 != of_w)
    return out


def merge(ys: Tensor, height: int, width: int, order: str) -> Tensor:
    """ys (B, 4, D, H W), any strides -> (B, D, H W)."""
    batch, _, channels, length = ys.shape
    out = ys.new_empty(batch, channels, length)
    if out.numel():
        _, _, of_d, of_l = strides = ys.stride()
        reach, exact = MOST_CHANNELS * of_d + length * of_l, tl.float64 if ys.dtype == torch.float64 else tl.float32
        shape = (batch, channels, height, width)
        _launch(cross_merge_kernel, (ys, out, *strides), shape, order, reach, channels_last=of_d == 1 != of_l, EXACT=exact)
    return out


def unsupported(x: Tensor, order: str) -> str | None:
    """Why these inputs cannot run; None where they can."""
    if x.shape[2] * x.shape[3] >= LARGEST:
        return f"takes images of less than {LARGEST} positions, got {tuple(x.shape[2:])}"
    return None


def forward(x: Tensor, order: str) -> Tensor:
    """The four sequences of x."""
    return scan(x, order)


def backward(x: Tensor, gy: Tensor, order: str) -> tuple[Tensor]:
    """The gradient of x: the merge of gy (B, 4, D, H W)."""
    return (merge(gy, *x.shape[2:], order).view(x.shape),)
