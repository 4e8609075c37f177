"""Inputs, shapes and traffic of the selective scan: the one source for tests, micro-benchmark and profiler."""

import math

import torch
from torch import Tensor

from . import op
from .reference import selective_scan_ref

OP, REFERENCE, BACKENDS = op.selective_scan, selective_scan_ref, op.BACKENDS
INPUTS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
KWARGS = {"delta_softplus": True}  # the standard case; y is its one output
OUTPUTS = 1
SHAPE_NAMES = "B D L N G"
TEST_SHAPES = (
    (1, 3, 1, 2, 1),
    (2, 4, 2, 1, 2),
    (2, 6, 15, 4, 3),
    (1, 5, 33, 3, 1),
    (3, 8, 64, 2, 4),
    (2, 6, 196, 4, 1),
    (1, 4, 257, 16, 2),
)  # odd lengths, whole chunks, one state, a group per channel pair
CHECK_SHAPE = (2, 32, 300, 4, 2)  # what the benchmark compares with the reference before it times anything
TRITON_SHAPES = ((1, 3, 1, 2, 1), (1, 4, 2, 1, 2), (1, 4, 9, 4, 2), (1, 5, 35, 3, 1), (1, 4, 70, 1, 1), (1, 2, 3, 17, 1))
# A Mamba mixer of width 384 at stride 16 of 1024 pixels; Vim-small at 224 (196 patches and a class token); the four directions of
# VMamba-tiny's stages 1 (stride 4) and 3 (stride 16) at 224 pixels, one state; a wide mixer
BENCHMARK_SHAPES = ((1, 384, 4096, 16, 1), (8, 768, 197, 16, 1), (8, 768, 3136, 1, 4), (8, 3072, 196, 1, 4), (1, 1536, 4096, 16, 1))
# Kernels differ with the steps of one load: a length of whole loads, and an odd one
COMPILE_SHAPES = ((8, 384, 4096, 16, 1), (8, 768, 197, 16, 1))
SWEEP = tuple((1, 384, length, 16, 1) for length in (1024, 2048, 4096, 8192, 16384, 32768, 65536))  # time against L

Shape = tuple[int, int, int, int, int]


def make_inputs(shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> tuple[Tensor, ...]:
    """(u, delta, A, B, C, D, z, delta_bias) as a Mamba block makes them at initialisation.

    A = -(1 .. N) in every channel, D = 1, softplus(delta_bias) spread geometrically over 0.001 .. 0.1, everything else normal, delta with a
    standard deviation of 0.5. A, D and delta_bias are float32 beside half u, delta, B, C and z, as under autocast. B and C are
    (B, G, N, L), or (B, N, L) where G is 1.
    """
    batch, channels, length, states, groups = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    u, delta, z = (normal(batch, channels, length) for _ in range(3))
    B, C = (normal(batch, *([groups] if groups > 1 else []), states, length) for _ in range(2))
    A = -torch.arange(1, states + 1).float().repeat(channels, 1)
    step = torch.exp(torch.linspace(math.log(1e-3), math.log(1e-1), channels))
    bias = step + torch.log(-torch.expm1(-step))  # the inverse of softplus
    large = [x.to(dtype) for x in (u, 0.5 * delta, B, C, z)]
    small = [x.double() if dtype == torch.float64 else x for x in (A, torch.ones(channels), bias)]
    u, delta, B, C, z = large
    A, D, bias = small
    return tuple(x.to(device) for x in (u, delta, A, B, C, D, z, bias))


def bytes_moved(shape: Shape, dtype: torch.dtype, mode: str) -> int:
    """Bytes that any implementation moves at least, each large tensor once.

    fwd: u, delta, z, B, C -> y. bwd: u, delta, z, B, C, gy -> gu, gdelta, gz, gB, gC.
    """
    batch, channels, length, states, groups = shape
    tokens, shared = {"fwd": (4, 2), "bwd": (7, 4), "fwdbwd": (11, 6)}[mode]
    return (tokens * channels + shared * groups * states) * batch * length * dtype.itemsize


def attention_inputs(shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v (B, D / 64, L, 64) for scaled_dot_product_attention on the same tokens."""
    batch, channels, length, *_ = shape
    size = math.gcd(64, channels)
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(batch, channels // size, length, size, generator=generator).to(dtype).to(device) for _ in range(3))
