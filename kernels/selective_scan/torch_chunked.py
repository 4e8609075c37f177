"""The selective scan in chunked PyTorch with an analytic backward: linear in L, any device, nothing saved but the inputs.

Here are the parts of the formula that have no state, bias and softplus of the step size, skip connection and gate, with their gradients,
and the change to time-major tensors and back. The scan is in `chunks.py`.

The padding of the time axis is made of dt = 0 and x = dt u = 0 behind bias and softplus, so the tail has neither value nor gradient. (Raw
zeros would have dt = softplus(bias).)
"""

import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .chunks import SERIAL, Plan, scan_backward, scan_forward, serial

THRESHOLD = 20.0  # above it softplus is the identity: PyTorch's and Mamba's convention
ELEMENTS = 1 << 23  # of (batch, D, L) transposed at once: bounds the temporary memory
Piece = tuple[slice, slice, slice]  # an index into (b, D, L)


def forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus) -> tuple[Tensor, Tensor]:
    """y (B, D, L) in the dtype of u and the last state (B, D, N); arguments of `selective_scan`, B and C as (B, G, N, L)."""
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    last = u.new_zeros(u.shape[0], *A.shape, dtype=torch.promote_types(u.dtype, torch.float32))
    for items, plan in _batches(u, A, B):
        dt, x, A_, B_, C_, _ = _major(plan, u[items], delta[items], A, B[items], C[items], delta_bias, delta_softplus)
        scanned, state = scan_forward(plan, dt, x, A_, B_, C_)
        last[items] = state.flatten(1, 2)
        _finish(_channels(scanned, u.shape[2]), u[items], D, None if z is None else z[items], y[items])
    return y, last


def _finish(scanned: Tensor, u: Tensor, D: Tensor | None, z: Tensor | None, y: Tensor) -> None:
    """y = (scanned + D u) silu(z)."""
    for piece in _pieces(y):
        out = scanned[piece]
        if D is not None:
            out.addcmul_(_column(D, piece, out.dtype), u[piece].to(out.dtype))
        if z is not None:
            out.mul_(F.silu(z[piece].to(out.dtype)))
        y[piece] = out


def backward(u, delta, A, B, C, D, z, delta_bias, grad_y, grad_last, delta_softplus) -> tuple[Tensor | None, ...]:
    """Gradients of u, delta, A, B, C, D, z and delta_bias, each in its input's dtype, None for an absent one."""
    dtype, length, groups = torch.promote_types(u.dtype, torch.float32), u.shape[2], B.shape[1]
    gu, gdelta, gB, gC, gz = (
        None if x is None else torch.empty_like(x, memory_format=torch.contiguous_format) for x in (u, delta, B, C, z)
    )
    gA, gD, gbias = (None if x is None else torch.zeros_like(x, dtype=dtype) for x in (A, D, delta_bias))
    for items, plan in _batches(u, A, B):
        own = [None if x is None else x[items] for x in (u, delta, z, grad_y, gu, gdelta, gz)]
        *major, gy = _major(plan, u[items], delta[items], A, B[items], C[items], delta_bias, delta_softplus, grad_y[items], own[2])
        scanned = None if z is None else torch.empty_like(gy)
        state = grad_last[items].to(dtype).unflatten(1, (groups, -1))
        gdt, gx, part_A, part_B, part_C = scan_backward(plan, *major, gy, state, scanned)
        gdt, gx, scanned = (None if x is None else _channels(x, length) for x in (gdt, gx, scanned))
        gB[items], gC[items] = (_channels(x, length).unflatten(1, (groups, -1)) for x in (part_B, part_C))
        gA += part_A.flatten(0, 1)
        _finish_backward(gdt, gx, scanned, *own, D, delta_bias, delta_softplus, gD, gbias)
    gA, gD, gbias = (None if g is None else g.to(x.dtype) for g, x in ((gA, A), (gD, D), (gbias, delta_bias)))
    return gu, gdelta, gA, gB, gC, gD, gz, gbias


def _finish_backward(gdt, gx, scanned, u, delta, z, grad_y, gu, gdelta, gz, D, bias, softplus, gD, gbias) -> None:
    """From the gradients of dt and x: those of u, delta, z, written, and of D and delta_bias, added."""
    for piece in _pieces(u):
        ui, gy, graddt, gradx = (x[piece].to(gx.dtype) for x in (u, grad_y, gdt, gx))
        raw, dt = _step_size(delta[piece].to(gx.dtype), bias, softplus, piece)
        skip = None if D is None else _column(D, piece, gx.dtype)
        if z is not None:
            zi, y = z[piece].to(gx.dtype), scanned[piece] if D is None else torch.addcmul(scanned[piece], skip, ui)
            gate = torch.sigmoid(zi)
            gz[piece] = gy * y * gate * (1 + zi * (1 - gate))
            gy = gy * F.silu(zi)
        graddt = torch.addcmul(graddt, gradx, ui)
        if softplus:
            graddt = torch.where(raw > THRESHOLD, graddt, graddt * torch.sigmoid(raw))
        gradx = gradx * dt
        if D is not None:
            gD[piece[1]] += (gy * ui).sum((0, 2))
            gradx.addcmul_(skip, gy)
        if bias is not None:
            gbias[piece[1]] += graddt.sum((0, 2))
        gu[piece], gdelta[piece] = gradx, graddt


def _step_size(delta: Tensor, bias: Tensor | None, softplus: bool, piece: Piece) -> tuple[Tensor, Tensor]:
    """delta + bias, and the step size made of it, of a piece."""
    raw = delta if bias is None else delta + _column(bias, piece, delta.dtype)
    return raw, F.softplus(raw, threshold=THRESHOLD) if softplus else raw


def _column(x: Tensor, piece: Piece, dtype: torch.dtype) -> Tensor:
    """The part of a parameter (D,) that belongs to a piece, as a column."""
    return x[piece[1]].to(dtype)[:, None]


def _batches(u: Tensor, A: Tensor, B: Tensor) -> Iterator[tuple[slice, Plan]]:
    """Slices of the batch with the plan for each; none where there is nothing to scan."""
    if u.numel() == 0:
        return
    batch, channels, length = u.shape
    most = max(1, ELEMENTS // (channels * length))
    for first in range(0, batch, most):
        size = min(most, batch - first)
        yield slice(first, first + size), Plan.make(size, length, B.shape[1], channels // B.shape[1], A.shape[1], u.device)


def _pieces(x: Tensor) -> Iterator[Piece]:
    """Indices of x (b, D, L) for elementwise work: as much at a time as makes a serial call, or everything."""
    room = SERIAL if serial(x.device) else x.numel()
    steps = [0, 0, min(x.shape[2], room)]
    steps[1] = min(x.shape[1], max(1, room // steps[2]))
    steps[0] = min(x.shape[0], max(1, room // (steps[1] * steps[2])))
    return itertools.product(*([slice(i, i + n) for i in range(0, size, n)] for size, n in zip(x.shape, steps, strict=True)))


def _major(plan: Plan, u, delta, A, B, C, bias, softplus, grad_y=None, z=None) -> tuple[Tensor | None, ...]:
    """(dt, x, A, B, C) as `scan_forward` takes them, and the gradient in front of the gate, which may be absent, in the same form."""
    dtype, groups = torch.promote_types(u.dtype, torch.float32), (B.shape[1], -1)
    dt, x = (torch.empty(u.shape, dtype=dtype, device=u.device) for _ in range(2))
    inner = None if grad_y is None else torch.empty_like(dt)
    for piece in _pieces(u):
        dt[piece] = step = _step_size(delta[piece].to(dtype), bias, softplus, piece)[1]
        torch.mul(step, u[piece].to(dtype), out=x[piece])
        if inner is not None:
            gy = grad_y[piece].to(dtype)
            inner[piece] = gy if z is None else gy * F.silu(z[piece].to(dtype))
    B, C = (w.to(dtype).flatten(1, 2) for w in (B, C))
    dt, x, B, C, inner = (None if w is None else _times(w, plan.padded).unflatten(2, groups) for w in (dt, x, B, C, inner))
    return dt, x, A.to(dtype).unflatten(0, groups), B, C, inner


def _times(x: Tensor, padded: int) -> Tensor:
    """(b, M, L) -> (b, T, M), zeros behind L. One matrix at a time: PyTorch's fast transposition is for two dimensions."""
    length = x.shape[2]
    out = x.new_empty(x.shape[0], padded, x.shape[1])
    out[:, length:] = 0
    for matrix, source in zip(out.unbind(0), x.unbind(0), strict=True):
        matrix[:length].copy_(source.t())
    return out


def _channels(x: Tensor, length: int) -> Tensor:
    """(b, T, g, k) -> (b, g k, L), the inverse of `_times`."""
    out = x.new_empty(x.shape[0], x.shape[2] * x.shape[3], length)
    for matrix, source in zip(out.unbind(0), x.flatten(2).unbind(0), strict=True):
        matrix.copy_(source[:length].t())
    return out
