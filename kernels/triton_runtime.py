"""How the operators start their Triton kernels: one function, which can also record what it would have started.

A recording holds every launch of a call on meta tensors: the kernel, its arguments, its configuration. `triton_compile` compiles exactly
that for any architecture, so the kernels that are checked without a GPU are those that a GPU would run.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

LARGEST_GRID = (2**31 - 1, 65535, 65535)  # CUDA's limits per axis
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # as Triton itself reads it, when it is imported
_recordings: list[list["Launch"]] = []


@dataclass(frozen=True)
class Launch:
    """One launch: kernel, grid, positional arguments, constexpr arguments and options by name."""

    kernel: object
    grid: tuple[int, ...]
    args: tuple
    constexprs: dict[str, object] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 2

    @property
    def name(self) -> str:
        return self.kernel.__name__


def launch(kernel, grid: tuple[int, ...], *args, num_warps: int = 4, num_stages: int = 2, **constexprs) -> None:
    """Starts `kernel` on the device of its tensors; an empty grid starts nothing.

    Args:
        kernel: a function under @triton.jit.
        grid: one to three sizes; put the size that grows with the input first.
        args: tensors, numbers and None, in the kernel's order.
        num_warps, num_stages: Triton's options.
        constexprs: compile-time arguments by name.

    Raises:
        ValueError: a grid that CUDA cannot start.
    """
    if any(size > limit for size, limit in zip(grid, LARGEST_GRID, strict=False)):
        raise ValueError(f"{kernel.__name__}: grid {grid} is larger than CUDA's {LARGEST_GRID}")
    if 0 in grid:
        return
    if _recordings:
        _recordings[-1].append(Launch(kernel, grid, args, constexprs, num_warps, num_stages))
        return
    device = next(x.device for x in args if isinstance(x, Tensor))
    with torch.cuda.device(device if device.type == "cuda" else -1):  # Triton starts on the current device, whatever the tensors'
        kernel[grid](*args, num_warps=num_warps, num_stages=num_stages, **constexprs)


@contextmanager
def record_launches() -> Iterator[list[Launch]]:
    """Inside the block launches are appended to the list instead of started; give launchers tensors of the meta device."""
    _recordings.append([])
    try:
        yield _recordings[-1]
    finally:
        _recordings.pop()
