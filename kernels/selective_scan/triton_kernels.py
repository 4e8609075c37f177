"""Launchers of the selective scan's Triton kernels."""

from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor

from ..triton_runtime import launch
from . import triton_backward as bwd
from . import triton_forward as fwd

LANES = 32  # channels that a warp holds side by side
ROWS = 1  # channels per thread: two halve the loads of B and C, but then some kernels spill
PROGRAMS = 2048  # one warp each: what a large GPU keeps busy (132 SMs x 16 warps); a constant, so that results do not depend on the device
SHORTEST_CHUNK = 32
MOST_STATES = {torch.float32: 32, torch.float64: 16}  # a thread holds all states of its channels in registers
STATES_PER_PROGRAM = {torch.float32: 8, torch.float64: 4}  # of a channel, in the backward's first pass, which keeps three tiles of them
STEPS = 4  # that a program takes at once; the backward keeps the state before every so many


@dataclass(frozen=True)
class Plan:
    """How one call is cut: sizes, channel blocks, chunks, and the constants of its kernels."""

    batch: int
    channels: int
    length: int
    states: int
    groups: int
    padded: int  # states, to a power of two
    width: int  # steps of one load
    chunk_length: int
    dtype: torch.dtype

    @property
    def chunks(self) -> int:
        return max(1, -(-self.length // self.chunk_length))

    @property
    def per_group(self) -> int:
        return -(-(self.channels // self.groups) // (ROWS * LANES))

    @property
    def grid(self) -> tuple[int, int]:
        return self.batch * self.groups * self.per_group, self.chunks

    @property
    def sizes(self) -> tuple[int, ...]:
        """channels, length_w, chunk_length, blocks, per_group, group_channels, chunks: the kernels' runtime sizes."""
        groups, per_group = self.groups, self.per_group
        return (
            self.channels,
            self.length // self.width,
            self.chunk_length,
            groups * per_group,
            per_group,
            self.channels // groups,
            self.chunks,
        )

    @property
    def constants(self) -> dict[str, object]:
        acc = tl.float64 if self.dtype == torch.float64 else tl.float32
        return dict(N=self.states, NP=self.padded, R=ROWS, W=self.width, ACC=acc)


def plan(tensors, A: Tensor, B: Tensor, dtype: torch.dtype) -> Plan:
    """tensors: those of shape (B, D, L) that are read."""
    batch, channels, length = tensors[0].shape
    states, groups = A.shape[1], B.shape[1]
    padded = 1 << (states - 1).bit_length()
    width = 1 if crowded(padded, dtype) else load_width(tensors, length)
    blocks = batch * groups * -(-(channels // groups) // (ROWS * LANES))
    chunks = max(1, -(-PROGRAMS // max(blocks, 1)))
    chunk_length = max(SHORTEST_CHUNK, -(-length // chunks))
    chunk_length = -(-chunk_length // SHORTEST_CHUNK) * SHORTEST_CHUNK
    return Plan(batch, channels, length, states, groups, padded, width, chunk_length, dtype)


def crowded(padded: int, dtype: torch.dtype) -> bool:
    """Whether the states of a channel leave a thread of the forward registers for one step at a time only."""
    return padded > 16 or dtype == torch.float64


def load_width(tensors, length: int) -> int:
    """Steps that a thread loads at once: 4 where every tensor's steps are contiguous and all lines start aligned, else 2 or 1."""
    width = 4
    while width > 1 and (length % width or any(x.stride(2) != 1 or x.stride(0) % width or x.stride(1) % width for x in tensors)):
        width //= 2
    return width


def line_strides(x: Tensor | None, width: int) -> tuple[int, int, int]:
    """Strides of a (B, D, L) tensor as the kernels take them: those of batch and channel in units of a load."""
    return (x.stride(0) // width, x.stride(1) // width, x.stride(2)) if x is not None else (0, 0, 0)


def unsupported(u, delta, A, B, C, D, z, delta_bias, delta_softplus) -> str | None:
    """More states than registers."""
    dtype = torch.promote_types(u.dtype, torch.float32)
    most = MOST_STATES[dtype]
    return f"the Triton kernels take at most {most} states in {dtype}, got {A.shape[1]}" if A.shape[1] > most else None


def forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus: bool) -> tuple[Tensor, Tensor]:
    """(y (B, D, L) in the dtype of u, last state (B, D, N) in that of the arithmetic)."""
    dtype = torch.promote_types(u.dtype, torch.float32)
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    last = torch.empty(u.shape[0], *A.shape, dtype=dtype, device=u.device)
    D, delta_bias = (x.contiguous() if x is not None else None for x in (D, delta_bias))
    lines = [x for x in (u, delta, z) if x is not None]
    p = plan(lines, A, B, dtype)
    constants = p.constants | {"SOFTPLUS": delta_softplus, "S": 1 if crowded(p.padded, dtype) else STEPS}
    su, sd, sz = (line_strides(x, p.width) for x in (u, delta, z))
    states = None
    if p.chunks > 1:
        states = torch.empty(p.batch, p.chunks, p.padded, p.channels, dtype=dtype, device=u.device)
        sums = torch.empty(p.batch, p.chunks, p.channels, dtype=dtype, device=u.device)
        launch(
            fwd.selective_scan_fwd_kernel_states, p.grid, u, delta, A, B, delta_bias, states, sums,
            *su, *sd, *A.stride(), *B.stride(), 1, *p.sizes, num_warps=1, **constants,
        )  # fmt: skip
        scan_chunks(p, states, sums, A, None, 0, 1)
    launch(
        fwd.selective_scan_fwd_kernel_out, p.grid, u, delta, A, B, C, D, z, delta_bias, states, y, last,
        *su, *sd, *sz, *A.stride(), *B.stride(), *C.stride(), 1, last.stride(2), *p.sizes, num_warps=1, **constants,
    )  # fmt: skip
    return y, last


def scan_chunks(p: Plan, states: Tensor, sums: Tensor, A: Tensor, first: Tensor | None, first_chunk: int, step: int) -> None:
    block = 128
    blocks = -(-p.padded * p.channels // block)
    launch(
        fwd.selective_scan_scan_kernel, (p.batch * blocks,), states, sums, A, first, *A.stride(), p.channels, p.chunks, blocks,
        first_chunk, step,
        num_warps=4, N=p.states, NP=p.padded, M=block, U=8, ACC=p.constants["ACC"],
    )  # fmt: skip


def backward(u, delta, A, B, C, D, z, delta_bias, gy, glast, delta_softplus: bool) -> tuple[Tensor | None, ...]:
    """Gradients of u, delta, A, B, C, D, z, delta_bias for those of the outputs, each in its input's dtype."""
    if u.shape[2] == 0:
        return tuple(torch.zeros_like(x) if x is not None else None for x in (u, delta, A, B, C, D, z, delta_bias))
    dtype = torch.promote_types(u.dtype, torch.float32)
    D_, bias = (x.contiguous() if x is not None else None for x in (D, delta_bias))
    lines = [x for x in (u, delta, z, gy) if x is not None]
    p = plan(lines, A, B, dtype)
    constants = p.constants | {"SOFTPLUS": delta_softplus, "S": STEPS}

    def scratch(*shape: int) -> Tensor:
        return torch.empty(p.batch, *shape, dtype=dtype, device=u.device)

    marks, part = -(-p.length // STEPS), min(p.padded, STATES_PER_PROGRAM[dtype])
    states, adjoints = (scratch(p.chunks, p.padded, p.channels) for _ in range(2))
    gA = torch.zeros_like(states)
    sums, gD, gbias = (scratch(p.chunks, p.channels) for _ in range(3))
    mark_states, mark_sums = scratch(marks, p.padded, p.channels), scratch(marks, p.channels)
    gB, gC = (scratch(p.groups, p.per_group, p.length, p.padded) for _ in range(2))
    gu, gdelta, gz = (torch.empty_like(x, memory_format=torch.contiguous_format) if x is not None else None for x in (u, delta, z))
    strides = (s for x in (u, delta, z, gy) for s in line_strides(x, p.width))
    strides = (*strides, *A.stride(), *B.stride(), *C.stride(), 1)
    launch(
        bwd.selective_scan_bwd_kernel_states, (*p.grid, p.padded // part), u, delta, A, B, C, z, bias, gy, states, adjoints, sums,
        mark_states, mark_sums, *strides, *p.sizes, num_warps=1, NS=part, **constants,
    )  # fmt: skip
    scan_chunks(p, states, sums, A, None, 0, 1)
    scan_chunks(p, adjoints, sums, A, glast.contiguous(), p.chunks - 1, -1)
    launch(
        bwd.selective_scan_bwd_kernel_grads, p.grid, u, delta, A, B, C, D_, z, bias, gy, states, adjoints, mark_states, mark_sums,
        gu, gdelta, gz, gA, gB, gC, gD, gbias, *strides, *p.sizes, num_warps=1, **constants,
    )  # fmt: skip
    gA = gA.sum((0, 1))[: p.states].t().to(A.dtype)
    gB, gC = (g.sum(2)[..., : p.states].transpose(2, 3).to(x.dtype, memory_format=torch.contiguous_format) for g, x in ((gB, B), (gC, C)))
    gD, gbias = (g.sum((0, 1)).to(x.dtype) if x is not None else None for g, x in ((gD, D), (gbias, delta_bias)))
    return gu, gdelta, gA.contiguous(), gB, gC, gD, gz, gbias
