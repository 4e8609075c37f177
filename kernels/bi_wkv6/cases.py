"""Inputs, shapes and traffic of the bidirectional WKV6: the one source for tests, micro-benchmark and profiler."""

import torch
from torch import Tensor

from . import op
from .reference import bi_wkv6_ref

OP, REFERENCE, BACKENDS = op.bi_wkv6, bi_wkv6_ref, op.BACKENDS
INPUTS = ("r", "k", "v", "w", "u")
KWARGS: dict[str, object] = {}
OUTPUTS = 1
SHAPE_NAMES = "B T H D"
TEST_SHAPES = (
    (1, 1, 1, 4),
    (2, 2, 1, 3),
    (2, 15, 2, 8),
    (1, 33, 1, 17),
    (2, 64, 1, 16),
    (1, 65, 2, 20),
    (1, 196, 1, 64),
    (1, 257, 2, 8),
)  # odd lengths, whole chunks, one token more; odd head sizes and Vision-RWKV-6's
CHECK_SHAPE = (2, 300, 2, 16)  # what the benchmark compares with the reference before it times anything
TRITON_SHAPES = ((1, 1, 1, 4), (2, 2, 1, 3), (1, 15, 2, 8), (1, 33, 1, 17), (1, 64, 1, 16), (1, 100, 1, 20))
# Vision-RWKV-6 has heads of 64 channels: stride 16 of small at 1024 pixels, alone and in a batch, of tiny at 512 and 224, of base at 1024
BENCHMARK_SHAPES = ((1, 4096, 6, 64), (8, 4096, 6, 64), (2, 1024, 3, 64), (8, 196, 3, 64), (1, 4096, 12, 64))
COMPILE_SHAPES = tuple((1, 4096, 384 // d, d) for d in (64, 32, 128))
SWEEP = tuple((1, t, 6, 64) for t in (1024, 2048, 4096, 8192, 16384, 32768, 65536))  # time against T

Shape = tuple[int, int, int, int]


def make_inputs(shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> tuple[Tensor, ...]:
    """(r, k, v, w, u): r, k, v normal; w around Vision-RWKV-6's initial -6 .. -1 over the channels, spread by the data; u in -0.1 .. 0.9.

    w and u are float32 beside half r, k, v, as under autocast.
    """
    _, _, heads, size = shape
    generator = torch.Generator().manual_seed(seed)
    r, k, v, data = (torch.randn(shape, generator=generator) for _ in range(4))
    along = torch.linspace(0, 1, heads * size).reshape(heads, size)
    w = -6 + 5 * along + data
    u = 0.8 * (1 - along) + 0.1 * ((torch.arange(heads * size).reshape(heads, size) + 1) % 3 - 1)
    if dtype == torch.float64:
        w, u = w.double(), u.double()
    return tuple(x.to(device) for x in (r.to(dtype), k.to(dtype), v.to(dtype), w, u))


def bytes_moved(shape: Shape, dtype: torch.dtype, mode: str) -> int:
    """Bytes that any implementation moves at least, each large tensor once; w counts as float32 beside half types, as in make_inputs.

    fwd: r, k, v, w -> y. bwd: r, k, v, w, gy -> gr, gk, gv, gw.
    """
    tensors, decays = {"fwd": (4, 1), "bwd": (7, 2), "fwdbwd": (11, 3)}[mode]
    batch, length, heads, size = shape
    return (tensors * dtype.itemsize + decays * max(dtype.itemsize, 4)) * batch * length * heads * size


def attention_inputs(shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v (B, H, T, D) for scaled_dot_product_attention on the same tokens and heads."""
    batch, length, heads, size = shape
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(batch, heads, length, size, generator=generator).to(dtype).to(device) for _ in range(3))
