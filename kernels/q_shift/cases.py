"""Inputs, shapes and traffic of Q-shift: the one source for tests, micro-benchmark and profiler."""

import math

import torch
from torch import Tensor

from . import op
from .reference import q_shift_ref

OP, REFERENCE, BACKENDS = op.q_shift, q_shift_ref, op.BACKENDS
INPUTS = ("x",)
KWARGS: dict[str, object] = {"heads": 1}
SHAPE_NAMES = "B H W C"
TEST_SHAPES = ((1, 1, 1, 5), (2, 1, 4, 3), (2, 3, 3, 18), (1, 7, 1, 7), (3, 8, 8, 12), (2, 14, 14, 6), (1, 5, 51, 4))  # odd channels too
CHECK_SHAPE = (2, 18, 18, 18)  # what the benchmark compares with the reference before it times anything
TRITON_SHAPES = ((1, 1, 1, 5), (2, 4, 1, 3), (1, 11, 11, 7), (2, 5, 7, 20))
# (B, H, W, C): the stride-16 stage of small and tiny networks at 1024 and 512 pixels, a batch of it, classification at 224
BENCHMARK_SHAPES = ((1, 64, 64, 384), (8, 64, 64, 384), (2, 32, 32, 192), (8, 14, 14, 192))
SWEEP = tuple((1, rows, 64, 384) for rows in (16, 32, 64, 128, 256, 512, 1024))  # time against T

Shape = tuple[int, int, int, int]


def make_inputs(shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> tuple[Tensor, ...]:
    """(x,), normal."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(device),)


def bytes_moved(shape: Shape, dtype: torch.dtype, mode: str) -> int:
    """Bytes that any implementation moves at least: fwd x -> y; bwd gy -> gx."""
    return {"fwd": 2, "bwd": 2, "fwdbwd": 4}[mode] * math.prod(shape) * dtype.itemsize


def attention_inputs(shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v (B, heads, H W, 64) for scaled_dot_product_attention on the same tokens."""
    batch, height, width, channels = shape
    size = math.gcd(64, channels)
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(batch, channels // size, height * width, size, generator=generator).to(dtype).to(device) for _ in range(3))
