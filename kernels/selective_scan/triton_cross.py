"""Launchers of the cross selective scan's Triton kernels."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_runtime import launch
from . import triton_cross_backward as bwd
from . import triton_cross_forward as fwd
from .reference_cross import DIRECTIONS
from .torch_cross import empty_gradients

WARPS = 2048  # what a large GPU keeps busy (132 SMs x 16 warps); a constant, so that results do not depend on the device
SHORTEST_CHUNK = 32
MANY_STATES = 8  # beyond, fewer steps are loaded and unrolled at once, and more channels share a program of columns
LARGEST = 2**31  # offsets inside a sample are 32-bit numbers
MOST_STATES = 32  # a thread holds all states of a chunk in registers
STEPS = 4  # that the backward recomputes at once, from a stored state
STATES_AT_ONCE = 1  # while the backward recomputes them


@dataclass(frozen=True)
class Plan:
    """How two opposite directions are cut: lines of steps, chunks of them, and the threads of a program."""

    batch: int
    channels: int
    first: int  # 0: rows, 1: columns; the other direction is first + 2
    lines: int
    steps: int  # of a line
    states: int
    padded: int  # states, to a power of two
    block_channels: int
    block_lines: int
    width: int  # steps of one load
    chunk_length: int
    dtype: torch.dtype

    @property
    def chunks(self) -> int:
        """Of one line."""
        return -(-self.steps // self.chunk_length)

    @property
    def blocks(self) -> int:
        return -(-self.channels // self.block_channels)

    @property
    def grid(self) -> tuple[int, int]:
        return self.batch * self.blocks * -(-self.lines // self.block_lines), self.chunks

    @property
    def lanes(self) -> int:
        return self.channels * self.lines

    @property
    def sizes(self) -> tuple[int, ...]:
        """channels, steps_v, lines, unit, chunk_length, blocks, line_blocks: the kernels' runtime sizes."""
        line_blocks = -(-self.lines // self.block_lines)
        return self.channels, self.steps // self.width, self.lines, 1, self.chunk_length, self.blocks, line_blocks

    @property
    def constants(self) -> dict[str, object]:
        threads = dict(BD=self.block_channels, BW=self.block_lines, V=self.width)
        warps = self.block_channels * self.block_lines // 32
        return dict(FIRST=self.first, N=self.states, NP=self.padded, ACC=accumulator(self.dtype), num_warps=warps, **threads)

    def scratch(self, device: torch.device, *shape: int) -> Tensor:
        """Uninitialised (batch, 2 directions, ...) in the dtype of the arithmetic."""
        return torch.empty(self.batch, 2, *shape, dtype=self.dtype, device=device)


def accumulator(dtype: torch.dtype):
    return tl.float64 if dtype == torch.float64 else tl.float32


def plan(u: Tensor, images: list[Tensor], A: Tensor, first: int, most: int) -> Plan:
    """images: the tensors (..., L) that are read, u (B, D, H, W) among them; most: steps of one load at most."""
    batch, channels, height, width = u.shape
    lines, steps = (width, height) if first else (1, height * width)
    states = A.shape[1]
    dtype = torch.promote_types(u.dtype, torch.float32)
    # Lines that are neighbours share the sectors of their loads. With many states what a program writes for each of them, its sum over
    # channels, weighs more, and it takes more channels.
    block_lines = min(8, triton.next_power_of_2(lines))
    block_channels = (32 if states <= MANY_STATES or first == 0 else 128) // block_lines
    programs = batch * -(-channels // block_channels) * -(-lines // block_lines)
    chunks = max(1, -(-WARPS // (programs * (block_channels * block_lines // 32))))
    chunk_length = max(SHORTEST_CHUNK, -(-steps // chunks))
    chunk_length = -(-chunk_length // SHORTEST_CHUNK) * SHORTEST_CHUNK
    return Plan(
        batch=batch,
        channels=channels,
        first=first,
        lines=lines,
        steps=steps,
        states=states,
        padded=triton.next_power_of_2(states),
        block_channels=block_channels,
        block_lines=block_lines,
        width=1 if first or states > MANY_STATES else load_width(images, steps, most),
        chunk_length=chunk_length,
        dtype=dtype,
    )


def unrolled(states: int) -> int:
    """Steps that the kernels which hold all states of a chunk unroll."""
    return STEPS if states <= MANY_STATES else STEPS // 2


def load_width(images: list[Tensor], length: int, most: int) -> int:
    """Steps that a thread loads at once: up to 4 (2 in float64) where all rows of all images start aligned, else 1."""
    width = min(most, 16 // max(x.dtype.itemsize for x in images))
    while width > 1 and (length % width or any(s % width for x in images for s in x.stride()[:-1])):
        width //= 2
    return width


def lines_of(x: Tensor) -> Tensor:
    """x (..., L) with contiguous pixels and offsets inside a sample below 2^31: a copy only where they are not."""
    reach = sum((n - 1) * s for n, s in zip(x.shape[1:], x.stride()[1:], strict=True))
    return x if x.stride(-1) == 1 and reach < LARGEST else x.contiguous()


def scaled(strides: tuple[int, ...], width: int) -> tuple[int, ...]:
    """Strides in units of a load, without that of the pixels."""
    return tuple(s // width for s in strides[:-1])


def unsupported(u, delta, A, B, C, D, delta_bias, delta_softplus) -> str | None:
    """More states than registers, or more states of one sample than an offset of the kernels can count."""
    if A.shape[1] > MOST_STATES:
        return f"takes at most {MOST_STATES} states, got {A.shape[1]}"
    if DIRECTIONS * u[0:1].numel() * A.shape[1] >= LARGEST:
        return f"takes images of which 4 D H W N is less than 2^31, got {tuple(u.shape[1:])} and {A.shape[1]} states"
    return None


def forward(u, delta, A, B, C, D, delta_bias, delta_softplus: bool) -> Tensor:
    """y (B, D, H, W) in the dtype of u."""
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    if u.numel() == 0:
        return y
    dtype = torch.promote_types(u.dtype, torch.float32)
    image, delta, B, C = (lines_of(x) for x in (u.flatten(2), delta, B, C))
    D, delta_bias = (x.contiguous() if x is not None else None for x in (D, delta_bias))
    part = y if y.dtype == dtype else torch.empty_like(y, dtype=dtype)
    steps = unrolled(A.shape[1])
    for first in range(2):
        p = plan(u, [image, delta], A, first, steps)
        constants = p.constants | {"SOFTPLUS": delta_softplus, "S": steps}
        strides = (*scaled(image.stride(), p.width), *scaled(delta.stride(), p.width), *A.stride(), *B.stride()[:3])
        states = None
        if p.lines * p.chunks > 1:
            states = p.scratch(u.device, p.chunks, p.padded, p.lanes)
            sums = p.scratch(u.device, p.chunks, p.lanes)
            launch(
                fwd.cross_selective_scan_kernel_states, p.grid, image, delta, A, B, delta_bias, states, sums, None, None, *strides,
                *p.sizes, ADJOINT=False, MARK=STEPS, **constants,
            )  # fmt: skip
            scan_chunks(p, states, sums, A, adjoint=False)
        launch(
            fwd.cross_selective_scan_kernel_out, p.grid, image, delta, A, B, C, D, delta_bias, states, part, y, *strides, *C.stride()[:3],
            *p.sizes, **constants,
        )  # fmt: skip
    return y


def scan_chunks(p: Plan, states: Tensor, sums: Tensor, A: Tensor, adjoint: bool) -> None:
    block = 128
    blocks = -(-p.padded * p.channels // block)
    launch(
        fwd.cross_selective_scan_kernel_scan, (p.batch * 2 * blocks,), states, sums, A, *A.stride(), p.channels, p.lines, p.chunks, blocks,
        int(adjoint), p.first, num_warps=4, N=p.states, NP=p.padded, M=block, U=8, ACC=accumulator(p.dtype),
    )  # fmt: skip


def backward(u, delta, A, B, C, D, delta_bias, gy, delta_softplus: bool) -> tuple[Tensor | None, ...]:
    """Gradients of u, delta, A, B, C, D and delta_bias, each in its input's dtype."""
    if u.numel() == 0:
        return empty_gradients(u, delta, A, B, C, D, delta_bias)
    dtype = torch.promote_types(u.dtype, torch.float32)
    gu, gdelta, gB, gC = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (u, delta, B, C))
    gA, gD, gbias = (torch.empty_like(x, memory_format=torch.contiguous_format) if x is not None else None for x in (A, D, delta_bias))
    image, grad, delta, B, C = (lines_of(x) for x in (u.flatten(2), gy.flatten(2), delta, B, C))
    D, delta_bias = (x.contiguous() if x is not None else None for x in (D, delta_bias))
    part = gu if gu.dtype == dtype else torch.empty_like(gu, dtype=dtype)
    for first in range(2):
        p = plan(u, [image, grad, delta], A, first, STEPS)
        found = backward_pair(p, image, delta, A, B, C, D, delta_bias, grad, part, gu, gdelta, delta_softplus)
        for target, source in zip((gA, gD, gbias), found[:3], strict=True):
            if target is not None:
                target.unflatten(0, (DIRECTIONS, -1))[first::2] = source
        for target, source in zip((gB, gC), found[3:], strict=True):
            target[:, first::2] = source
    return gu, gdelta, gA, gB, gC, gD, gbias


def backward_pair(p: Plan, u, delta, A, B, C, D, bias, gy, part, gu, gdelta, softplus: bool) -> tuple[Tensor | None, ...]:
    """Two opposite directions: writes their gdelta, adds to part or writes gu.

    Returns:
        gA (2, D, N), gD and gbias (2, D), gB and gC (B, 2, N, L).
    """
    device = u.device
    marks = -(-p.steps // STEPS)
    states, adjoints = (p.scratch(device, p.chunks, p.padded, p.lanes) for _ in range(2))
    gA = torch.zeros_like(states)
    sums, gD, gbias = (p.scratch(device, p.chunks, p.lanes) for _ in range(3))
    mark_states, mark_sums = p.scratch(device, marks, p.padded, p.lanes), p.scratch(device, marks, p.lanes)
    gB, gC = (p.scratch(device, p.blocks, p.lines * p.steps, p.padded) for _ in range(2))
    constants = p.constants | {"SOFTPLUS": softplus, "S": STEPS}
    su, sg, sd = (scaled(x.stride(), p.width) for x in (u, gy, delta))
    for value, strides, weight, kept, adjoint in (
        (u, su, B, (states, sums, mark_states, mark_sums), False),
        (gy, sg, C, (adjoints, None, None, None), True),
    ):
        launch(
            fwd.cross_selective_scan_kernel_states, p.grid, value, delta, A, weight, bias, *kept, *strides, *sd, *A.stride(),
            *weight.stride()[:3], *p.sizes, ADJOINT=adjoint, MARK=STEPS, **constants | {"S": unrolled(p.states)},
        )  # fmt: skip
        scan_chunks(p, kept[0], sums, A, adjoint)
    launch(
        bwd.cross_selective_scan_bwd_kernel, p.grid, u, delta, A, B, C, D, bias, gy, states, adjoints, mark_states, mark_sums,
        part, gu, gdelta, gA, gB, gC, gD, gbias, *su, *sg, *sd, *A.stride(), *B.stride()[:3], *C.stride()[:3], *p.sizes,
        NT=min(p.padded, STATES_AT_ONCE), **constants,
    )  # fmt: skip
    gA = gA.sum((0, 2)).unflatten(2, (p.channels, p.lines)).sum(3)[:, : p.states].transpose(1, 2)
    gD, gbias = (x.sum((0, 2)).unflatten(1, (p.channels, p.lines)).sum(2) for x in (gD, gbias))
    gB, gC = (x.sum(2)[..., : p.states].transpose(2, 3) for x in (gB, gC))
    return gA, gD if D is not None else None, gbias if bias is not None else None, gB, gC
