"""The scan itself in chunked PyTorch, time-major and without bias, softplus, skip connection and gate: linear in L, any device.

With E_t = exp(dt_t A) the recurrence is h_t = E_t h_{t-1} + x_t B_t and y_t = sum_n C_t h_t. Backwards, m_t is the message that h_t
receives from later steps (the gradient of the last state at the end), g_t = m_t + C_t gy_t its whole gradient, m_{t-1} = E_t g_t. With
q_t = m_{t-1} h_{t-1}, the gradient of dt_t A,

    gx_t = sum_n g_t B_t     gB_t = sum_d g_t x_t     gC_t = sum_d gy_t h_t     gdt_t = sum_n q_t A     gA = sum_t q_t dt_t

Nothing is divided and no large sums are subtracted. The work is cut four times:

- blocks of batches, groups and channels, which are independent, so wide that one step of all of them fills a call (`Plan`);
- segments of time, one after the other, so that the buffers stay small whatever the length;
- chunks of a segment, only where a block is too narrow to fill a call. One call advances one step of all chunks: a first sweep from zero
  gives what every chunk adds, a short scan over the chunks gives the states between them, a second sweep starts from these;
- steps of a chunk: the only loop over time.

The decay of a whole chunk is exp(A sum dt) in float64, not a product of many rounded factors. Channels never mix, so a NaN stays in its
own.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

SERIAL = (1 << 15) - 1  # largest result that PyTorch computes on the calling CPU thread alone (below its grain size)
SERIAL_THREADS = 4  # up to so many threads, calls are kept serial
PARALLEL = 1 << 19  # elements of one call otherwise
BUFFER = 1 << 20  # elements of one buffer (steps of a segment) where that leaves at least MIN_STEPS
MIN_STEPS, MAX_STEPS = 8, 32  # steps of a chunk
LIMIT = 1000.0  # largest log2 of a chunk's growth: beyond it float64 overflows, and an empty state times infinity would be NaN


def serial(device: torch.device) -> bool:
    """Whether calls are made small enough to stay on the calling thread.

    A pass is hundreds of calls of some microseconds, and a parallel one ends in a barrier: with few threads that costs about what it gains,
    and on a busy machine every barrier waits for the thread that has no core.
    """
    return device.type == "cpu" and torch.get_num_threads() <= SERIAL_THREADS


@dataclass(frozen=True)
class Plan:
    """How the work is cut: sizes of a block (batch, groups, channels), and segments x chunks x steps of time."""

    batch: int
    groups: int
    channels: int
    segments: int
    chunks: int
    steps: int

    @property
    def padded(self) -> int:
        """Length that the time axis is padded to, with dt = 0 and x = 0, which leave the state as it is."""
        return self.segments * self.chunks * self.steps

    def cut(self, x: Tensor) -> Tensor:
        """(b, T, ...) -> (segment, step, chunk, b, ...), a view."""
        x = x.unflatten(1, (self.segments, self.chunks, self.steps))
        return x.permute(1, 3, 2, 0, *range(4, x.dim()))

    @classmethod
    def make(cls, batch: int, length: int, groups: int, channels: int, states: int, device: torch.device) -> "Plan":
        """The plan for dt (batch, length, groups, channels) and so many states."""
        room = SERIAL if serial(device) else PARALLEL
        width = _share(channels, room // states)
        rows = _share(groups, room // (states * width)) if width == channels else 1
        items = _share(batch, room // (states * width * rows)) if rows == groups else 1
        row = states * width * rows * items
        # chunks cost a second sweep and a call each, steps about six calls
        chunks = max(1, min(room // row, math.isqrt(6 * length)))
        most = min(MAX_STEPS, max(MIN_STEPS, BUFFER // (row * chunks)))
        segments = -(-length // (chunks * most))
        return cls(items, rows, width, segments, chunks, -(-length // (segments * chunks)))


def _share(size: int, room: int) -> int:
    """The largest part, at most `room` but at least 1, of `size` cut evenly."""
    return -(-size // -(-size // max(1, room)))


def scan_forward(plan: Plan, dt: Tensor, x: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """The scan of time-major tensors, all of one dtype, float32 or float64; any strides, fastest where the last dimension is contiguous.

    Args:
        plan: `Plan.make` of these sizes.
        dt, x: (b, T, g, k) step sizes and inputs (dt times u), T = plan.padded with zeros at the end.
        A: (g, k, N).
        B, C: (b, T, g, N).

    Returns:
        y (b, T, g, k) and the last state (b, g, k, N).
    """
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    last = x.new_empty(x.shape[0], *A.shape)
    for items, rows, cols in _blocks(plan, x):
        part = _Block(plan, dt, x, A, B, C, (items, rows, cols))
        out, state = plan.cut(y[items, :, rows, cols]), part.zero()
        for s in range(plan.segments):
            states, state = part.forward(s, state)
            part.contract(states, part.C[s], -2, out[s])
        last[items, rows, cols] = state.transpose(-1, -2)
    return y, last


def scan_backward(
    plan: Plan, dt: Tensor, x: Tensor, A: Tensor, B: Tensor, C: Tensor, gy: Tensor, grad_last: Tensor, y: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients (gdt, gx, gA, gB, gC) of `scan_forward`, shaped as its inputs, which are all that it needs.

    Args:
        gy: (b, T, g, k) gradient of y.
        grad_last: (b, g, k, N) gradient of the last state.
        y: (b, T, g, k), filled with the result of the forward pass where given.
    """
    gdt, gx = (torch.empty_like(z, memory_format=torch.contiguous_format) for z in (dt, x))
    gB, gC = (torch.zeros_like(z, memory_format=torch.contiguous_format) for z in (B, C))
    gA = torch.zeros_like(A, dtype=torch.float64)
    for items, rows, cols in _blocks(plan, x):
        part = _Block(plan, dt, x, A, B, C, (items, rows, cols))
        own = [None if z is None else plan.cut(z[items, :, rows, cols]) for z in (gy, gdt, gx, y)]
        shared = [plan.cut(z[items, :, rows]) for z in (gB, gC)]
        message = grad_last[items, rows, cols].transpose(-1, -2)
        for s, before in reversed(list(enumerate(part.starts()))):
            message, part_A = part.backward(s, before, message, *(None if z is None else z[s] for z in (*own, *shared)))
            gA[rows, cols] += part_A.transpose(-1, -2)
    return gdt, gx, gA.to(A.dtype), gB, gC


def _blocks(plan: Plan, x: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Slices of batch, groups and channels that cover x (b, T, g, k)."""
    parts = zip((x.shape[0], x.shape[2], x.shape[3]), (plan.batch, plan.groups, plan.channels), strict=True)
    return itertools.product(*([slice(i, i + step) for i in range(0, size, step)] for size, step in parts))


class _Block:
    """One block: its inputs as (segment, step, chunk, b, g, N or 1, k or 1), and buffers for one segment (step, chunk, b, g, N, k)."""

    def __init__(self, plan: Plan, dt: Tensor, x: Tensor, A: Tensor, B: Tensor, C: Tensor, block: tuple[slice, slice, slice]):
        items, rows, cols = block
        self.plan = plan
        self.dt, self.x = (plan.cut(z[items, :, rows, cols]).unsqueeze(-2) for z in (dt, x))
        self.B, self.C = (plan.cut(z[items, :, rows]).unsqueeze(-1) for z in (B, C))
        self.A = A[rows, cols].transpose(-1, -2).contiguous()  # (g, N, k)
        self.rates = self.A.double() / math.log(2)
        self.shape = (*self.dt.shape[2:5], *self.A.shape[1:])  # of one step
        self.E = x.new_empty(plan.steps, *self.shape)
        self.together = max(1, SERIAL // math.prod(self.shape))  # steps in one call, where they do not depend on each other
        self.scratch = torch.empty_like(self.E[: self.together])
        self.decays_of = -1  # the segment whose decays are in E

    def zero(self) -> Tensor:
        """The state before the first step (b, g, N, k)."""
        return self.E.new_zeros(self.shape[1:])

    def decays(self, s: int) -> None:
        """E = exp(dt A), through exp2: on a CPU torch.exp calls a library that is slower and wakes its threads for the shortest tensors."""
        if self.decays_of != s:
            rates = self.rates.to(self.E.dtype)
            for dt, E in zip(self.dt[s].split(self.together), self.E.split(self.together), strict=True):
                torch.mul(dt, rates, out=E).exp2_()
            self.decays_of = s

    def contract(self, a: Tensor, weight: Tensor, dim: int, out: Tensor, add: bool = False) -> None:
        """out (without `dim`) = or += sum over `dim` of a (step, chunk, b, g, N, k) times weight."""
        weights = weight.split(self.together) if weight.dim() == a.dim() else itertools.repeat(weight)
        for part, w, target in zip(a.split(self.together), weights, out.split(self.together), strict=False):
            scratch = self.scratch[: len(part)]
            if add:
                target += torch.mul(part, w, out=scratch).sum(dim)
            elif part.shape[dim] == 1:
                torch.mul(part, w, out=target.unsqueeze(dim))
            else:
                torch.sum(torch.mul(part, w, out=scratch), dim, out=target)

    def _join(self, s: int, total: Tensor, state: Tensor, backwards: bool = False) -> tuple[Tensor, Tensor]:
        """What enters every chunk, from what every chunk adds (chunk, b, g, N, k) and what enters the first; and what leaves the last."""
        span = sum(part.double().sum(0) for part in self.dt[s].split(max(1, SERIAL // self.dt[s, 0].numel())))
        decay = span.mul(self.rates).clamp_(max=LIMIT).exp2_()
        decay = decay.flip(0) if backwards else decay
        states = torch.empty(len(total) + 1, *state.shape, dtype=torch.float64, device=state.device)
        states[0] = state
        rows = states.unbind(0)
        for before, added, factor, after in zip(rows, total.double().unbind(0), decay.unbind(0), rows[1:], strict=False):
            torch.addcmul(added, factor, before, out=after)
        return states[:-1].to(total.dtype), states[-1]

    def _sweep(self, s: int, state: Tensor) -> Tensor:
        """state (chunk, b, g, N, k) after all steps, in place."""
        for E, x, B in zip(self.E.unbind(0), self.x[s].unbind(0), self.B[s].unbind(0), strict=True):
            state.mul_(E).addcmul_(x, B)
        return state

    def _states(self, s: int, state: Tensor, out: Tensor) -> Tensor:
        """The state after every step, written to out, which may be E."""
        for E, x, B, after in zip(self.E.unbind(0), self.x[s].unbind(0), self.B[s].unbind(0), out.unbind(0), strict=True):
            state = torch.mul(state, E, out=after).addcmul_(x, B)
        return out

    def _enter(self, s: int, state: Tensor) -> tuple[Tensor, Tensor | None]:
        """From the state before a segment: those before its chunks; and the one after the segment, None where a single chunk must tell."""
        self.decays(s)
        if self.plan.chunks == 1:
            return state[None].to(self.E.dtype), None
        return self._join(s, self._sweep(s, self.E.new_zeros(self.shape)), state)

    def forward(self, s: int, state: Tensor) -> tuple[Tensor, Tensor]:
        """Segment s from the state before it: all states (step, chunk, b, g, N, k), valid until the next call, and the one after it."""
        before, after = self._enter(s, state)
        states, self.decays_of = self._states(s, before, self.E), -1
        return states, states[-1, 0].clone() if after is None else after

    def starts(self) -> list[Tensor]:
        """States before the chunks of every segment."""
        state, found = self.zero(), []
        for s in range(self.plan.segments):
            before, after = self._enter(s, state)
            found.append(before)
            if after is None and s + 1 < self.plan.segments:
                after = self._sweep(s, before.clone())[0]
            state = after
        return found

    def backward(self, s, before, message, gy, gdt, gx, y, gB, gC) -> tuple[Tensor, Tensor]:
        """Segment s from the states before its chunks and the message to its last state (b, g, N, k).

        Writes gdt, gx and y (step, chunk, b, g, k), adds to gB and gC (step, chunk, b, g, N); returns the message to the state before the
        segment and gA (g, N, k).
        """
        self.decays(s)
        H, G = torch.empty_like(self.E), torch.empty_like(self.E)
        self._states(s, before, H)
        gy = gy.unsqueeze(-2)
        if y is not None:
            self.contract(H, self.C[s], -2, y)
        message = self._messages(s, gy, message, G)  # from here on E holds the messages
        self.contract(G, self.B[s], -2, gx)
        self.contract(G, self.x[s], -1, gB, add=True)
        self.contract(H, gy, -1, gC, add=True)
        gA = self.E.new_zeros(self.shape)
        for m, h, dt in zip(self.E.unbind(0), (before, *H.unbind(0)), self.dt[s].unbind(0), strict=False):
            gA.addcmul_(m.mul_(h), dt)
        self.contract(self.E, self.A, -2, gdt)
        return message, gA.sum((0, 1), dtype=torch.float64)

    def _messages(self, s: int, gy: Tensor, message: Tensor, G: Tensor) -> Tensor:
        """Fills G with the gradient of every state and replaces E by the message that it sends back; returns the last message."""
        steps = list(zip(self.C[s].unbind(0), gy.unbind(0), self.E.unbind(0), G.unbind(0), strict=True))[::-1]
        before = None
        if self.plan.chunks > 1:
            total = self.E.new_zeros(self.shape)
            for C, g, E, _ in steps:
                total.addcmul_(C, g).mul_(E)
            entering, before = self._join(s, total.flip(0), message, backwards=True)
            m = entering.flip(0)
        else:
            m = message[None]
        for C, g, E, whole in steps:
            m = torch.mul(torch.addcmul(m, C, g, out=whole), E, out=E)
        self.decays_of = -1
        return self.E[0, 0].clone() if before is None else before
