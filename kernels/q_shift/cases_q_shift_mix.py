"""Inputs, shapes and traffic of the Q-shift mix: the one source for tests, micro-benchmark and profiler."""

import math

import torch
from torch import Tensor

from .cases import attention_inputs as attention_of_tokens
from .cases import make_inputs as make_tokens
from .op import MIX_BACKENDS, q_shift_mix
from .reference import q_shift_mix_ref

OP, REFERENCE, BACKENDS = q_shift_mix, q_shift_mix_ref, MIX_BACKENDS
INPUTS = ("x", "mixes")
KWARGS: dict[str, object] = {"heads": 1}
SHAPE_NAMES = "B H W C M"
TEST_SHAPES = ((1, 1, 1, 5, 3), (2, 1, 4, 3, 1), (2, 3, 3, 18, 2), (1, 7, 1, 7, 5), (3, 8, 8, 12, 3), (2, 14, 14, 6, 3), (1, 5, 51, 4, 4))
CHECK_SHAPE = (2, 18, 18, 18, 3)  # what the benchmark compares with the reference before it times anything
TRITON_SHAPES = ((1, 1, 1, 5, 3), (2, 4, 1, 3, 1), (1, 11, 11, 7, 5), (2, 5, 7, 20, 2))
# (B, H, W, C, M): the spatial mix (3) and channel mix (2) at stride 16 of 1024 pixels, a batch, smaller networks and images, five mixes
BENCHMARK_SHAPES = (
    (1, 64, 64, 384, 3),
    (8, 64, 64, 384, 3),
    (1, 64, 64, 384, 2),
    (2, 32, 32, 192, 3),
    (8, 14, 14, 192, 3),
    (8, 32, 32, 384, 5),
)
COMPILE_SHAPES = ((8, 64, 64, 384, 3), (8, 64, 64, 384, 2), (8, 32, 32, 384, 5), (8, 14, 14, 192, 3))
SWEEP = tuple((1, rows, 64, 384, 3) for rows in (16, 32, 64, 128, 256, 512, 1024))  # time against T

Shape = tuple[int, int, int, int, int]


def make_inputs(shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> tuple[Tensor, ...]:
    """(x, mixes): normal tokens, shares spread over 0 .. 1.3 as Vision-RWKV's initialisation spreads them.

    mixes are float32 beside half x, as under autocast.
    """
    *tokens, count = shape
    (x,) = make_tokens(tuple(tokens), dtype, device, seed)
    ramp = torch.linspace(0, 1, shape[3])[None] ** torch.linspace(0.5, 1, count)[:, None]
    mixes = ramp + torch.linspace(0, 0.3, count)[:, None]
    return x, mixes.to(torch.float64 if dtype == torch.float64 else torch.float32).to(device)


def bytes_moved(shape: Shape, dtype: torch.dtype, mode: str) -> int:
    """Bytes that any implementation moves at least: fwd x -> M y; bwd x, M gy -> gx."""
    *tokens, count = shape
    tensors = {"fwd": 1 + count, "bwd": 2 + count, "fwdbwd": 3 + 2 * count}[mode]
    return tensors * math.prod(tokens) * dtype.itemsize


def attention_inputs(shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v (B, heads, T, 64) for scaled_dot_product_attention on the same tokens."""
    return attention_of_tokens(shape[:4], dtype, device)
