"""Inputs, shapes and traffic of Bi-WKV: the one source for tests, micro-benchmark and profiler."""

import torch
from torch import Tensor

from . import op
from .reference import bi_wkv_ref

OP, REFERENCE, BACKENDS = op.bi_wkv, bi_wkv_ref, op.BACKENDS
INPUTS = ("w", "u", "k", "v")
KWARGS: dict[str, object] = {}
SHAPE_NAMES = "B T C"
TEST_SHAPES = (
    (1, 1, 5),
    (2, 2, 3),
    (2, 15, 4),
    (1, 33, 7),
    (3, 64, 5),
    (2, 196, 6),
    (1, 257, 4),
)  # (B, T, C): odd lengths, primes, whole chunks
CHECK_SHAPE = (2, 300, 16)  # what the benchmark compares with the reference before it times anything
TRITON_SHAPES = ((1, 1, 5), (2, 2, 3), (2, 15, 4), (1, 37, 5), (2, 70, 20))  # small: what Triton's interpreter runs in tests
# (B, T, C): the stride-16 stage of tiny, small and base networks at 224, 512 and 1024 pixels; the shape is the first
BENCHMARK_SHAPES = ((1, 4096, 384), (2, 1024, 192), (8, 196, 192), (1, 1024, 384), (1, 4096, 768))
SWEEP = tuple((1, t, 384) for t in (1024, 2048, 4096, 8192, 16384, 32768, 65536))  # time against T


def make_inputs(shape: tuple[int, int, int], dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> tuple[Tensor, ...]:
    """(w, u, k, v) as Vision-RWKV makes them at initialisation: decay -5 .. 3 and first = ln 0.3 + {-0.5, 0, 0.5}, both over T.

    w and u are float32 beside half k and v, as under autocast; k and v are normal.
    """
    _, length, channels = shape
    generator = torch.Generator().manual_seed(seed)
    w = (-5 + 8 * torch.linspace(0, 1, channels)) / length
    u = (-1.2 + 0.5 * ((torch.arange(channels) + 1) % 3 - 1)) / length
    k, v = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    if dtype == torch.float64:
        w, u = w.double(), u.double()
    return tuple(x.to(device) for x in (w, u, k, v))


def bytes_moved(shape: tuple[int, int, int], dtype: torch.dtype, mode: str) -> int:
    """Bytes that any implementation moves at least, each large tensor once: fwd k, v -> y; bwd k, v, gy -> gk, gv."""
    batch, length, channels = shape
    tensors = {"fwd": 3, "bwd": 5, "fwdbwd": 8}[mode]
    return tensors * batch * length * channels * dtype.itemsize


def attention_inputs(
    shape: tuple[int, int, int], dtype: torch.dtype = torch.float32, device: str = "cpu", heads: int = 6
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v (B, heads, T, C / heads) for scaled_dot_product_attention on the same tokens."""
    batch, length, channels = shape
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(batch, heads, length, channels // heads, generator=generator).to(dtype).to(device) for _ in range(3))
