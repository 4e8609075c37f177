"""Inputs, shapes and traffic of SSD: the one source for tests, micro-benchmark and profiler."""

import math

import torch
from torch import Tensor

from . import op
from .reference import ssd_ref

OP, REFERENCE, BACKENDS = op.ssd, ssd_ref, op.BACKENDS
INPUTS = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_states")
KWARGS = {"dt_softplus": True, "causal": True}  # the standard case; y is its one output
OUTPUTS = 1
SHAPE_NAMES = "B T H P G N"
TEST_SHAPES = (
    (1, 1, 1, 3, 1, 2),
    (2, 2, 2, 4, 2, 3),
    (2, 15, 4, 5, 2, 6),
    (1, 33, 3, 2, 1, 7),
    (2, 64, 2, 3, 1, 5),
    (1, 196, 4, 4, 4, 8),
    (2, 257, 2, 6, 1, 3),
)  # odd lengths, whole chunks, a group for all heads and one per head
CHECK_SHAPE = (2, 300, 4, 16, 2, 16)  # what the benchmark compares with the reference before it times anything
TRITON_SHAPES = ((1, 1, 1, 3, 1, 2), (2, 2, 2, 4, 2, 3), (1, 35, 2, 5, 1, 6), (1, 70, 4, 16, 2, 16), (1, 130, 2, 8, 1, 4))
# The tokens of a stride-16 stage at 1024 pixels, 6 heads of 64 (twice the states in the second); VSSD's first stage at 224 pixels; stages 1
# and 3 of VMamba's Mamba-2 variant at 224 pixels, four directions as groups of 6 and 24 heads of 16
BENCHMARK_SHAPES = (
    (1, 4096, 6, 64, 1, 64),
    (1, 4096, 6, 64, 1, 128),
    (8, 3136, 2, 64, 1, 64),
    (8, 3136, 24, 16, 4, 64),
    (8, 196, 96, 16, 4, 64),
)
COMPILE_SHAPES = ((1, 4096, 6, 64, 1, 64), (1, 4096, 6, 64, 1, 128), (8, 3136, 24, 16, 4, 64))
SWEEP = tuple((1, length, 6, 64, 1, 64) for length in (1024, 2048, 4096, 8192, 16384, 32768, 65536))  # time against T

Shape = tuple[int, int, int, int, int, int]


def make_inputs(shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> tuple[Tensor, ...]:
    """(x, dt, A, B, C, D, z, dt_bias, initial_states) as a Mamba-2 block makes them at initialisation, all in `dtype`.

    A = -1 .. -16 evenly over the heads, D = 1 per head and channel, softplus(dt_bias) spread geometrically over 0.001 .. 0.1, the rest
    normal, dt with a standard deviation of 0.5.
    """
    batch, length, heads, size, groups, states = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator)

    x, z = normal(batch, length, heads, size), normal(batch, length, heads, size)
    dt = 0.5 * normal(batch, length, heads)
    B, C = normal(batch, length, groups, states), normal(batch, length, groups, states)
    step = torch.exp(torch.linspace(math.log(1e-3), math.log(1e-1), heads))
    bias = step + torch.log(-torch.expm1(-step))  # the inverse of softplus
    A = -torch.linspace(1, 16, heads)
    tensors = (x, dt, A, B, C, torch.ones(heads, size), z, bias, normal(batch, heads, size, states))
    return tuple(t.to(dtype).to(device) for t in tensors)


def bytes_moved(shape: Shape, dtype: torch.dtype, mode: str) -> int:
    """Bytes that any implementation moves at least, each large tensor once.

    fwd: x, z, dt, B, C -> y. bwd: x, z, dt, B, C, gy -> gx, gz, gdt, gB, gC.
    """
    batch, length, heads, size, groups, states = shape
    values, steps, weights = {"fwd": (3, 1, 2), "bwd": (5, 2, 4), "fwdbwd": (8, 3, 6)}[mode]
    return (values * heads * size + steps * heads + weights * groups * states) * batch * length * dtype.itemsize


def attention_inputs(shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v (B, H P / 64, T, 64) for scaled_dot_product_attention on the same tokens."""
    batch, length, heads, size, *_ = shape
    width = math.gcd(64, heads * size)
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(batch, heads * size // width, length, width, generator=generator).to(dtype).to(device) for _ in range(3))
