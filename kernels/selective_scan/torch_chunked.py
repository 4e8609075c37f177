"""The selective scan in chunked PyTorch with an analytic backward: linear in L, any device, nothing saved but the inputs.

Here are the parts of the formula that have no state, bias and softplus of the step size, skip connection and gate, with their gradients, and
the change to time-major tensors and back. The scan is in `chunks.py`.

The padding of the time axis is made of dt = 0 and x = dt u = 0 behind bias and softplus, so the tail has neither value nor gradient. (Raw
zeros would have dt = softplus(bias).)
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .chunks import Plan, scan_backward, scan_forward

THRESHOLD = 20.0  # above it softplus is the identity: PyTorch's and Mamba's convention
ELEMENTS = 1 << 23  # of (batch, D, L) transposed at once: bounds the temporary memory


def forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus) -> tuple[Tensor, Tensor]:
    """y (B, D, L) in the dtype of u and the last state (B, D, N); arguments of `selective_scan`, B and C as (B, G, N, L)."""
    dtype, length, groups = torch.promote_types(u.dtype, torch.float32), u.shape[2], B.shape[1]
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    last = u.new_zeros(u.shape[0], *A.shape, dtype=dtype)
    for items, plan in _batches(u, A, B):
        _, dt = _step_size(delta[items].to(dtype), delta_bias, delta_softplus)
        ui = u[items].to(dtype)
        scanned, state = scan_forward(plan, *_major(plan, groups, dt, dt * ui, A, B[items], C[items]))
        last[items] = state.flatten(1, 2)
        out = _channels(scanned, length)
        if D is not None:
            out.addcmul_(D.to(dtype)[:, None], ui)
        if z is not None:
            out.mul_(F.silu(z[items].to(dtype)))
        y[items] = out
    return y, last


def backward(u, delta, A, B, C, D, z, delta_bias, grad_y, grad_last, delta_softplus) -> tuple[Tensor | None, ...]:
    """Gradients of u, delta, A, B, C, D, z and delta_bias, each in its input's dtype, None for an absent one."""
    dtype, length, groups = torch.promote_types(u.dtype, torch.float32), u.shape[2], B.shape[1]
    gu, gdelta, gB, gC, gz = (
        None if x is None else torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (u, delta, B, C, z)
    )
    gA, gD, gbias = (None if x is None else torch.zeros_like(x, dtype=dtype) for x in (A, D, delta_bias))
    for items, plan in _batches(u, A, B):
        raw, dt = _step_size(delta[items].to(dtype), delta_bias, delta_softplus)
        ui, gy = u[items].to(dtype), grad_y[items].to(dtype)
        gated = None if z is None else z[items].to(dtype)
        inner = gy if z is None else gy * F.silu(gated)  # gradient in front of the gate
        major = _major(plan, groups, dt, dt * ui, A, B[items], C[items])
        inner_major = _times(inner, plan.padded).unflatten(2, (groups, -1))
        scanned = None if z is None else torch.empty_like(inner_major)
        state = grad_last[items].to(dtype).unflatten(1, (groups, -1))
        gdt, gx, part_A, part_B, part_C = scan_backward(plan, *major, inner_major, state, scanned)
        gdt, gx = _channels(gdt, length), _channels(gx, length)
        gB[items], gC[items] = (_channels(part, length).unflatten(1, (groups, -1)) for part in (part_B, part_C))
        gA += part_A.flatten(0, 1)
        gdt.addcmul_(gx, ui)
        gx.mul_(dt)
        if D is not None:
            gD += (inner * ui).sum((0, 2))
            gx.addcmul_(D.to(dtype)[:, None], inner)
        if z is not None:
            gz[items] = gy * _gate_gradient(gated, _channels(scanned, length), D, ui)
        if delta_softplus:
            gdt = torch.where(raw > THRESHOLD, gdt, gdt * torch.sigmoid(raw))
        if delta_bias is not None:
            gbias += gdt.sum((0, 2))
        gu[items], gdelta[items] = gx, gdt
    small = (None if g is None else g.to(x.dtype) for g, x in ((gA, A), (gD, D), (gbias, delta_bias)))
    gA, gD, gbias = small
    return gu, gdelta, gA, gB, gC, gD, gz, gbias


def _step_size(delta: Tensor, bias: Tensor | None, softplus: bool) -> tuple[Tensor, Tensor]:
    """delta + bias, and the step size made of it."""
    raw = delta if bias is None else delta + bias.to(delta.dtype)[:, None]
    return raw, F.softplus(raw, threshold=THRESHOLD) if softplus else raw


def _gate_gradient(z: Tensor, y: Tensor, D: Tensor | None, u: Tensor) -> Tensor:
    """d (y + D u) silu(z) / dz."""
    gate = torch.sigmoid(z)
    y = y if D is None else torch.addcmul(y, D.to(y.dtype)[:, None], u)
    return y * gate * (1 + z * (1 - gate))


def _batches(u: Tensor, A: Tensor, B: Tensor) -> Iterator[tuple[slice, Plan]]:
    """Slices of the batch with the plan for each; none where there is nothing to scan."""
    if u.numel() == 0:
        return
    batch, channels, length = u.shape
    most = max(1, ELEMENTS // (channels * length))
    for first in range(0, batch, most):
        size = min(most, batch - first)
        yield slice(first, first + size), Plan.make(size, length, B.shape[1], channels // B.shape[1], A.shape[1], u.device)


def _major(plan: Plan, groups: int, dt: Tensor, x: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, ...]:
    """(dt, x, A, B, C) as `scan_forward` takes them, from dt and x (b, D, L), A (D, N), B and C (b, G, N, L)."""
    dt, x, B, C = (_times(z.to(dt.dtype).flatten(1, -2), plan.padded).unflatten(2, (groups, -1)) for z in (dt, x, B, C))
    return dt, x, A.to(dt.dtype).unflatten(0, (groups, -1)), B, C


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
