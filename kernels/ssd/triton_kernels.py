"""SSD in Triton: chunks as matrix products, a short scan over their states, and the same from the right for the gradients.

Forward, three launches: what every chunk adds to the state, the scan over chunks, the outputs. Backward: the first two again, since nothing
but the inputs is saved; with a gate the third, for the gradients through it; the gradients' sums and their scan from the right; then one
kernel for x, dt and A, a program per chunk and head, and one for B and C, which adds the heads of a group in registers. Programs write
partial sums and PyTorch adds them: no atomics, the same bits every time.

Products accumulate in float32. Their factors are rounded to bfloat16 where x, B and C are bfloat16, to TF32 (which holds a float16)
where they are float16, and are split into three TF32 products otherwise.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_runtime import INTERPRETED, launch
from .triton_backward import ssd_bwd_kernel_bc, ssd_bwd_kernel_x
from .triton_forward import ssd_kernel_out, ssd_kernel_scan, ssd_kernel_states

LARGEST_HEAD, LARGEST_STATE = 128, 256
PROGRAMS = 264  # as many as keep the largest GPUs busy: two per multiprocessor


def unsupported(x, dt, A, B, C, D, z, dt_bias, initial_states, dt_softplus, causal) -> str | None:
    """Why the kernels cannot take these inputs; None where they can."""
    if not causal:
        return "has no non-causal form, which is two matrix products: use 'torch'"
    if torch.float64 in (t.dtype for t in (x, dt, A, B, C)):
        return "computes in float32 and does not take float64: use 'torch'"
    if x.shape[3] > LARGEST_HEAD or B.shape[3] > LARGEST_STATE:
        return f"takes heads of up to {LARGEST_HEAD} and up to {LARGEST_STATE} states, got {x.shape[3]} and {B.shape[3]}: use 'torch'"
    return None


def forward(x, dt, A, B, C, D, z, dt_bias, initial_states, dt_softplus: bool, causal: bool) -> tuple[Tensor, Tensor]:
    """As `torch_chunked.forward`."""
    scan = _Launcher(x, dt, A, B, C, D, dt_bias, dt_softplus)
    states = scan.enter(initial_states)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    scan.out(states, y, z)
    return y, states[:, :, -1].clone()


def backward(x, dt, A, B, C, D, z, dt_bias, initial_states, gy, gstate, dt_softplus: bool, causal: bool) -> tuple[Tensor | None, ...]:
    """As `torch_chunked.backward`."""
    scan = _Launcher(x, dt, A, B, C, D, dt_bias, dt_softplus)
    enter, g, gz = scan.enter(initial_states), _close_rows(gy), None
    if z is not None:
        gz = torch.empty_like(z, memory_format=torch.contiguous_format)
        through_gate = torch.empty_like(x, memory_format=torch.contiguous_format)
        scan.out(enter, through_gate, z, g, gz)
        g = through_gate
    leave = scan.leave(g, gstate)
    gx, gdt, gA, gbias, gD = scan.gradients_x(g, enter, leave)
    gB, gC = scan.gradients_bc(g, enter, leave)
    ginitial = None if initial_states is None else leave[:, :, 0].to(initial_states.dtype, copy=True)
    return gx, gdt, gA, gB, gC, gD, gz, gbias, ginitial


def _close_rows(x: Tensor) -> Tensor:
    """x (B, T, ...) itself, unless its last dimension is strided or its tokens so far apart that offsets inside a chunk leave 32 bits."""
    return x if x.stride(-1) == 1 and 64 * x.stride(1) < 2**31 else x.contiguous()


class _Launcher:
    """The tensors of one call, as the kernels take them, and the configuration for their shapes and dtypes."""

    def __init__(self, x, dt, A, B, C, D, dt_bias, dt_softplus):
        self.batch, self.length, self.heads, self.size = x.shape
        self.groups, self.states = B.shape[2:]
        self.per_group = self.heads // self.groups
        self.x, self.B, self.C = (_close_rows(t) for t in (x, B, C))
        self.dt, self.A, self.D, self.bias = dt, A.contiguous(), D, None if dt_bias is None else dt_bias.contiguous()
        self.flags = dict(HAS_BIAS=dt_bias is not None, SOFTPLUS=dt_softplus)
        exact = torch.promote_types(torch.promote_types(x.dtype, B.dtype), C.dtype)
        self.half = exact == torch.bfloat16
        rounded = tl.bfloat16 if self.half else tl.float32
        self.chunk = 32  # with 64, Triton 3.6 cannot compile the gradients for sm_100, and float32 spills
        self.precision = dict(
            ROUND=rounded, DOT=tl.float32 if INTERPRETED else rounded, PRECISION="tf32" if exact == torch.float16 else "tf32x3"
        )
        bp, bn = 16, 32 if self.half else 16  # larger tiles spill registers in the backward kernels
        self.bp, self.bn = (min(t, max(16, triton.next_power_of_2(s))) for t, s in ((bp, self.size), (bn, self.states)))
        self.tiles = dict(L=self.chunk, BP=self.bp, BN=self.bn)
        self.blocks = triton.cdiv(self.states, self.bn)
        self.count = -(-self.length // self.chunk)
        self.programs = self.batch * self.count * self.heads
        self.shape = (self.length, self.count, self.heads, self.per_group, self.size, self.states)
        self.plane = self.programs * self.chunk
        self.steps, self.decay = self._empty(3, self.plane), self._empty(self.programs)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.x.device)

    def _between_chunks(self, x: Tensor, B: Tensor, edge: Tensor | None, backwards: bool) -> Tensor:
        """States (B, H, n + 1, P, N) before every chunk and after the last, or their gradients."""
        states = self._empty(self.batch, self.heads, self.count + 1, self.size, self.states)
        grid = (self.programs, triton.cdiv(self.size, self.bp), self.blocks)
        launch(
            ssd_kernel_states, grid, x, self.dt, self.bias, self.A, B, states, self.decay, self.steps, self.plane, *self.shape,
            *x.stride()[:3], *self.dt.stride(), *B.stride()[:3],
            ADJOINT=backwards, **self.flags, **self.tiles, **self.precision,
        )  # fmt: skip
        numel = self.size * self.states
        block = min(512, triton.next_power_of_2(numel))
        launch(
            ssd_kernel_scan, (self.batch * self.heads, triton.cdiv(numel, block)),
            states, self.decay, None if edge is None else edge.contiguous(), self.count, numel,
            HAS_EDGE=edge is not None, BACKWARDS=backwards, R=8, BLOCK=block,
        )  # fmt: skip
        return states

    def enter(self, initial: Tensor | None) -> Tensor:
        """The states; fills `steps` and `decay`, so it comes first."""
        return self._between_chunks(self.x, self.B, initial, False)

    def leave(self, g: Tensor, gstate: Tensor) -> Tensor:
        """The gradients of the states."""
        return self._between_chunks(g, self.C, gstate, True)

    def _skip(self) -> tuple[Tensor | None, int, int]:
        """D and its strides by head and channel."""
        return (None, 0, 0) if self.D is None else (self.D, self.D.stride(0), self.D.stride(1) if self.D.dim() == 2 else 0)

    def out(self, states: Tensor, y: Tensor, z: Tensor | None, g: Tensor | None = None, gz: Tensor | None = None) -> None:
        """Writes y; or, with the gradient g of the output, the gradients of y (into y) and of z."""
        D, *D_strides = self._skip()
        z, g = (None if t is None else _close_rows(t) for t in (z, g))
        launch(
            ssd_kernel_out, (self.programs,), self.x, self.B, self.C, D, z, g, states, self.steps, self.plane, y, gz, *self.shape,
            *self.x.stride()[:3], *self.B.stride()[:3], *self.C.stride()[:3], *D_strides,
            *((0, 0, 0) if z is None else z.stride()[:3]), *((0, 0, 0) if g is None else g.stride()[:3]),
            HAS_D=D is not None, GATE=0 if z is None else 1 if g is None else 2,
            **self.tiles, **self.precision,
        )  # fmt: skip

    def gradients_x(self, g: Tensor, enter: Tensor, leave: Tensor) -> tuple[Tensor | None, ...]:
        """gx, gdt, gA, gdt_bias and gD."""
        gx, gdt = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (self.x, self.dt))
        D, *D_strides = self._skip()
        parts = (self.batch * self.count, self.heads)
        gA = self._empty(*parts)
        gbias = None if self.bias is None else self._empty(*parts)
        gD = None if D is None else self._empty(*parts, self.size)
        launch(
            ssd_bwd_kernel_x, (self.programs,), self.x, self.dt, self.bias, self.A, self.B, self.C, D, g, enter, leave,
            self.steps, self.plane, gx, gdt, gA, gbias, gD, *self.shape,
            *self.x.stride()[:3], *self.dt.stride(), *self.B.stride()[:3], *self.C.stride()[:3], *D_strides, *g.stride()[:3],
            HAS_D=D is not None, **self.flags, **self.tiles, **self.precision,
        )  # fmt: skip
        if D is not None:
            gD = gD.sum((0, 2) if D.dim() == 1 else 0).to(D.dtype)
        return gx, gdt, gA.sum(0).to(self.A.dtype), None if gbias is None else gbias.sum(0).to(self.bias.dtype), gD

    def gradients_bc(self, g: Tensor, enter: Tensor, leave: Tensor) -> tuple[Tensor, Tensor]:
        """gB and gC. With few chunks the heads of a group are split among programs, and their parts added afterwards."""
        work = self.batch * self.count * self.groups
        per_split = -(-self.per_group // min(self.per_group, -(-PROGRAMS // max(1, work * self.blocks))))
        splits = -(-self.per_group // per_split)
        shape = (splits, self.batch, self.length, self.groups, self.states)
        gB, gC = (torch.empty(shape, dtype=t.dtype if splits == 1 else torch.float32, device=t.device) for t in (self.B, self.C))
        launch(
            ssd_bwd_kernel_bc, (work, splits, self.blocks), self.x, self.B, self.C, g, enter, leave, self.steps, self.plane, gB, gC,
            self.length, self.count, self.heads, self.groups, self.per_group, per_split, self.size, self.states,
            *self.x.stride()[:3], *self.B.stride()[:3], *self.C.stride()[:3], *g.stride()[:3], gB.stride(0),
            **self.tiles, **self.precision,
        )  # fmt: skip
        return tuple(t[0] if splits == 1 else t.sum(0).to(like.dtype) for t, like in ((gB, self.B), (gC, self.C)))
