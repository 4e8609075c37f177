"""Inputs, shapes and traffic of the cross selective scan: the one source for tests, micro-benchmark and profiler."""

import torch
from torch import Tensor

from . import cases
from .op_cross import BACKENDS as BACKENDS
from .op_cross import cross_selective_scan
from .reference_cross import DIRECTIONS, cross_selective_scan_ref

OP, REFERENCE = cross_selective_scan, cross_selective_scan_ref
INPUTS = ("u", "delta", "A", "B", "C", "D", "delta_bias")
KWARGS = {"delta_softplus": True}
SHAPE_NAMES = "B D H W N"
TEST_SHAPES = ((1, 1, 1, 1, 1), (2, 3, 1, 4, 2), (1, 2, 7, 1, 3), (2, 3, 5, 7, 4), (3, 4, 8, 8, 1), (1, 5, 14, 33, 2), (2, 20, 14, 14, 1))
CHECK_SHAPE = (2, 12, 19, 14, 4)  # what the benchmark compares with the reference before it times anything
TRITON_SHAPES = ((1, 1, 1, 1, 1), (2, 3, 1, 4, 2), (1, 9, 7, 1, 1), (1, 33, 2, 10, 1), (1, 17, 2, 3, 9), (2, 3, 3, 5, 2))
# (B, D, H, W, N): the four stages of VMamba-tiny (s1l8, inner width C) at 224 pixels, one state; stage 3 at 1024 pixels; the first
# release's 16 states
BENCHMARK_SHAPES = (
    (8, 96, 56, 56, 1),
    (8, 192, 28, 28, 1),
    (8, 384, 14, 14, 1),
    (8, 768, 7, 7, 1),
    (1, 384, 64, 64, 1),
    (1, 96, 56, 56, 16),
)
COMPILE_SHAPES = ((8, 96, 56, 56, 1), (1, 96, 56, 56, 16))
SWEEP = tuple((1, 96, rows, 64, 1) for rows in (16, 32, 64, 128, 256, 512, 1024))  # time against L

Shape = tuple[int, int, int, int, int]


def make_inputs(shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> tuple[Tensor, ...]:
    """(u, delta, A, B, C, D, delta_bias): those of the selective scan with a group per direction.

    A, D and delta_bias are float32 beside half u, delta, B and C, as under autocast.
    """
    batch, channels, height, width, states = shape
    line = (batch, DIRECTIONS * channels, height * width, states, DIRECTIONS)
    _, delta, A, B, C, D, _, bias = cases.make_inputs(line, dtype, device, seed)
    u = torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed + 1)).to(dtype).to(device)
    return u, delta.unflatten(1, (DIRECTIONS, channels)), A, B, C, D, bias


def bytes_moved(shape: Shape, dtype: torch.dtype, mode: str) -> int:
    """Bytes that any implementation moves at least, each large tensor once.

    fwd: u, 4 delta, 4 B, 4 C -> y. bwd: u, 4 delta, 4 B, 4 C, gy -> gu, 4 gdelta, 4 gB, 4 gC.
    """
    batch, channels, height, width, states = shape
    images, weights = {"fwd": (6, 8), "bwd": (11, 16), "fwdbwd": (17, 24)}[mode]
    return (images * channels + weights * states) * batch * height * width * dtype.itemsize


def attention_inputs(shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v (B, D / 64, H W, 64) for scaled_dot_product_attention on the same tokens."""
    batch, channels, height, width, _ = shape
    return cases.attention_inputs((batch, channels, height * width, 1, 1), dtype, device)
