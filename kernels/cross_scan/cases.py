"""Inputs, shapes and traffic of the cross scan: the one source for tests, micro-benchmark and profiler."""

import math

import torch
from torch import Tensor

from . import op
from .reference import cross_scan_ref

OP, REFERENCE, BACKENDS = op.cross_scan, cross_scan_ref, op.BACKENDS
INPUTS = ("x",)
KWARGS: dict[str, object] = {"order": "cross"}
SHAPE_NAMES = "B D H W"
TEST_SHAPES = ((1, 1, 1, 1), (2, 3, 1, 4), (1, 2, 7, 1), (2, 3, 5, 7), (3, 4, 8, 8), (1, 5, 14, 33), (2, 20, 14, 14))
CHECK_SHAPE = (2, 12, 19, 14)  # what the benchmark compares with the reference before it times anything
TRITON_SHAPES = ((1, 1, 1, 1), (2, 3, 1, 4), (1, 2, 37, 5), (2, 3, 5, 7))
# (B, D, H, W): the four stages of VMamba-tiny (inner width 2C for s2l5, whose stage 1 is the first) at 224 pixels, a stage at 1024 pixels
BENCHMARK_SHAPES = ((8, 192, 56, 56), (8, 384, 28, 28), (8, 768, 14, 14), (8, 1536, 7, 7), (1, 384, 128, 128))
COMPILE_SHAPES = ((8, 192, 56, 56), (8, 1536, 7, 7), (1, 384, 128, 128))
SWEEP = tuple((1, 192, rows, 64) for rows in (16, 32, 64, 128, 256, 512, 1024))  # time against L

Shape = tuple[int, int, int, int]


def make_inputs(shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> tuple[Tensor, ...]:
    """(x,), normal, channel by channel."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(device),)


def bytes_moved(shape: Shape, dtype: torch.dtype, mode: str) -> int:
    """Bytes that any implementation moves at least: fwd x -> 4 y; bwd 4 gy -> gx."""
    return {"fwd": 5, "bwd": 5, "fwdbwd": 10}[mode] * math.prod(shape) * dtype.itemsize


def attention_inputs(shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v (B, heads, H W, 64) for scaled_dot_product_attention on the same tokens."""
    batch, channels, height, width = shape
    size = math.gcd(64, channels)
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(batch, channels // size, height * width, size, generator=generator).to(dtype).to(device) for _ in range(3))
