"""Inputs, shapes and traffic of the cross merge: the one source for tests, micro-benchmark and profiler."""

import torch
from torch import Tensor

from . import cases, op
from .cases import BENCHMARK_SHAPES, CHECK_SHAPE, COMPILE_SHAPES, SHAPE_NAMES, SWEEP, TEST_SHAPES, TRITON_SHAPES, Shape, attention_inputs
from .cases import bytes_moved as bytes_moved
from .reference import cross_merge_ref

__all__ = [
    "BENCHMARK_SHAPES",
    "CHECK_SHAPE",
    "COMPILE_SHAPES",
    "SHAPE_NAMES",
    "SWEEP",
    "TEST_SHAPES",
    "TRITON_SHAPES",
    "attention_inputs",
    "bytes_moved",
]  # those of the cross scan: its shapes are those of the image

OP, REFERENCE, BACKENDS = op.cross_merge, cross_merge_ref, op.MERGE_BACKENDS
INPUTS = ("ys",)
KWARGS: dict[str, object] = {"order": "cross"}


def make_inputs(shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> tuple[Tensor, ...]:
    """(ys (B, 4, D, H, W),), normal."""
    batch, channels, height, width = shape
    return cases.make_inputs((batch, 4, channels, height, width), dtype, device, seed)
