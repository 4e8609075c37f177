"""SSD in Triton: chunks as matrix products, a short scan over their states, and the same from the right for the gradients.

Forward, three launches: what every chunk adds to the state, the scan over chunks, the outputs. Backward: the first two again, since nothing
but the inputs is saved; with a gate the third, for z; the gradients' sums and their scan from the right; one kernel for x by chunk, head
and tile of channels; one for dt and A by chunk and head, from the former's sums over channels; and one for B and C, which adds the heads of
a group in registers. Programs write partial sums and PyTorch adds them: no atomics, the same bits every time.

Products accumulate in float32. Their factors are rounded to bfloat16 where x, B and C are bfloat16, to TF32 (which holds a float16)
where they are float16, and are split into three TF32 products otherwise.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_runtime import INTERPRETED, launch
from .triton_backward import ssd_bwd_kernel_bc, ssd_bwd_kernel_dt, ssd_bwd_kernel_x
from .triton_forward import ssd_kernel_out, ssd_kernel_scan, ssd_kernel_states

LARGEST_HEAD, LARGEST_STATE = 128, 256
# Channels and states per tile, and warps, by kernel: for bfloat16 factors in sizes that are multiples of 16, and for all others.
# Larger ones spill registers on some GPU.
TILES = {
    "states": ((64, 64, 4), (16, 16, 4)),
    "out": ((32, 32, 4), (16, 16, 4)),
    "x": ((32, 32, 8), (16, 16, 4)),
    "dt": ((32, 32, 4), (16, 16, 4)),
    "bc": ((16, 32, 8), (16, 16, 4)),
}
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
    scan = _Launcher(x, dt, A, B, C, D, z, dt_bias, dt_softplus, False)
    states = scan.enter(initial_states)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    scan.out(states, y)
    return y, states[:, :, -1].clone()


def backward(x, dt, A, B, C, D, z, dt_bias, initial_states, gy, gstate, dt_softplus: bool, causal: bool) -> tuple[Tensor | None, ...]:
    """As `torch_chunked.backward`."""
    scan = _Launcher(x, dt, A, B, C, D, z, dt_bias, dt_softplus, True)
    enter, g, gz = scan.enter(initial_states), _close_rows(gy), None
    if z is not None:
        gz = torch.empty_like(z, memory_format=torch.contiguous_format)
        scan.out(enter, gz, g)
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

    def __init__(self, x, dt, A, B, C, D, z, dt_bias, dt_softplus, gradients):
        self.batch, self.length, self.heads, self.size = x.shape
        self.groups, self.states = B.shape[2:]
        self.per_group = self.heads // self.groups
        self.x, self.B, self.C = (_close_rows(t) for t in (x, B, C))
        self.z = None if z is None else _close_rows(z)
        self.z_strides = (0, 0, 0) if z is None else self.z.stride()[:3]
        self.dt, self.A, self.D, self.bias = dt, A.contiguous(), D, None if dt_bias is None else dt_bias.contiguous()
        self.flags = dict(HAS_BIAS=dt_bias is not None, SOFTPLUS=dt_softplus)
        exact = torch.promote_types(torch.promote_types(x.dtype, B.dtype), C.dtype)
        rounded = tl.bfloat16 if exact == torch.bfloat16 else tl.float32
        self.wide = exact == torch.bfloat16 and self.size % 16 == self.states % 16 == 0
        self.chunk = 64 if self.wide or not gradients else 32  # with 64 all other gradients spill registers
        self.precision = dict(
            ROUND=rounded, DOT=tl.float32 if INTERPRETED else rounded, PRECISION="tf32" if exact == torch.float16 else "tf32x3"
        )
        self.count = -(-self.length // self.chunk)
        self.programs = self.batch * self.count * self.heads
        self.shape = (self.length, self.count, self.heads, self.per_group, self.size, self.states)
        self.plane = self.programs * self.chunk
        self.steps, self.decay = self._empty(3, self.plane), self._empty(self.programs)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.x.device)

    def _options(self, kernel: str) -> dict[str, object]:
        bp, bn, warps = TILES[kernel][0 if self.wide else 1]
        bp, bn = (min(t, max(16, triton.next_power_of_2(s))) for t, s in ((bp, self.size), (bn, self.states)))
        return dict(L=self.chunk, BP=bp, BN=bn, num_warps=warps, **self.precision)

    def _between_chunks(self, x: Tensor, z: Tensor | None, B: Tensor, edge: Tensor | None, backwards: bool) -> Tensor:
        """States (B, H, n + 1, P, N) before every chunk and after the last, or their gradients."""
        states = self._empty(self.batch, self.heads, self.count + 1, self.size, self.states)
        options = self._options("states")
        grid = (self.programs, triton.cdiv(self.size, options["BP"]), triton.cdiv(self.states, options["BN"]))
        launch(
            ssd_kernel_states, grid, x, z, self.dt, self.bias, self.A, B, states, self.decay, self.steps, self.plane, *self.shape,
            *x.stride()[:3], *self.z_strides, *self.dt.stride(), *B.stride()[:3],
            ADJOINT=backwards, GATED=z is not None, **self.flags, **options,
        )  # fmt: skip
        numel = self.size * self.states
        block = min(256, triton.next_power_of_2(numel))
        launch(
            ssd_kernel_scan, (self.batch * self.heads, triton.cdiv(numel, block)),
            states, self.decay, None if edge is None else edge.contiguous(), self.count, numel,
            HAS_EDGE=edge is not None, BACKWARDS=backwards, R=16, BLOCK=block,
        )  # fmt: skip
        return states

    def enter(self, initial: Tensor | None) -> Tensor:
        """The states; fills `steps` and `decay`, so it comes first."""
        return self._between_chunks(self.x, None, self.B, initial, False)

    def leave(self, g: Tensor, gstate: Tensor) -> Tensor:
        """The gradients of the states."""
        return self._between_chunks(g, self.z, self.C, gstate, True)

    def _skip(self) -> tuple[Tensor | None, int, int]:
        """D and its strides by head and channel."""
        return (None, 0, 0) if self.D is None else (self.D, self.D.stride(0), self.D.stride(1) if self.D.dim() == 2 else 0)

    def out(self, states: Tensor, y: Tensor, g: Tensor | None = None) -> None:
        """Writes y; or, with the gradient g of the output, the gradient of z."""
        D, *D_strides = self._skip()
        launch(
            ssd_kernel_out, (self.programs,), self.x, self.B, self.C, D, self.z, g, states, self.steps, self.plane, y, *self.shape,
            *self.x.stride()[:3], *self.B.stride()[:3], *self.C.stride()[:3], *D_strides, *self.z_strides,
            *((0, 0, 0) if g is None else g.stride()[:3]),
            HAS_D=D is not None, GATED=self.z is not None, ADJOINT=g is not None, **self._options("out"),
        )  # fmt: skip

    def gradients_x(self, g: Tensor, enter: Tensor, leave: Tensor) -> tuple[Tensor | None, ...]:
        """gx, gdt, gA, gdt_bias and gD."""
        gx, gdt = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (self.x, self.dt))
        D, *D_strides = self._skip()
        shares = (self.batch * self.count, self.heads)
        gA = self._empty(*shares)
        gbias = None if self.bias is None else self._empty(*shares)
        gD = None if D is None else self._empty(*shares, self.size)
        gated, options = self.z is not None, self._options("x")
        parts = triton.cdiv(self.size, options["BP"])
        sums, through = self._empty(parts, 3, self.plane), self._empty(parts, self.programs)
        launch(
            ssd_bwd_kernel_x, (self.programs, parts), self.x, self.B, self.C, D, self.z, g, enter, leave, self.steps, self.plane,
            gx, gD, sums, through, *self.shape,
            *self.x.stride()[:3], *self.B.stride()[:3], *self.C.stride()[:3], *D_strides, *self.z_strides, *g.stride()[:3],
            HAS_D=D is not None, GATED=gated, **options,
        )  # fmt: skip
        launch(
            ssd_bwd_kernel_dt, (self.programs,), self.x, self.dt, self.bias, self.A, self.B, self.C, self.z, g, self.steps, self.plane,
            sums, through, gdt, gA, gbias, *self.shape, parts,
            *self.x.stride()[:3], *self.dt.stride(), *self.B.stride()[:3], *self.C.stride()[:3], *self.z_strides, *g.stride()[:3],
            GATED=gated, **self.flags, **self._options("dt"),
        )  # fmt: skip
        if D is not None:
            gD = gD.sum((0, 2) if D.dim() == 1 else 0).to(D.dtype)
        return gx, gdt, gA.sum(0).to(self.A.dtype), None if gbias is None else gbias.sum(0).to(self.bias.dtype), gD

    def gradients_bc(self, g: Tensor, enter: Tensor, leave: Tensor) -> tuple[Tensor, Tensor]:
        """gB and gC. With few chunks the heads of a group are split among programs, and their parts added afterwards."""
        options = self._options("bc")
        work, blocks = self.batch * self.count * self.groups, triton.cdiv(self.states, options["BN"])
        per_split = -(-self.per_group // min(self.per_group, -(-PROGRAMS // max(1, work * blocks))))
        splits = -(-self.per_group // per_split)
        shape = (splits, self.batch, self.length, self.groups, self.states)
        gB, gC = (torch.empty(shape, dtype=t.dtype if splits == 1 else torch.float32, device=t.device) for t in (self.B, self.C))
        launch(
            ssd_bwd_kernel_bc, (work, splits, blocks), self.x, self.B, self.C, self.z, g, enter, leave, self.steps, self.plane, gB, gC,
            self.length, self.count, self.heads, self.groups, self.per_group, per_split, self.size, self.states,
            *self.x.stride()[:3], *self.B.stride()[:3], *self.C.stride()[:3], *self.z_strides, *g.stride()[:3],
            gB.stride(0), GATED=self.z is not None, **options,
        )  # fmt: skip
        return tuple(t[0] if splits == 1 else t.sum(0).to(like.dtype) for t, like in ((gB, self.B), (gC, self.C)))
