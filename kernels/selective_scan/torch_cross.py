"""The cross selective scan in chunked PyTorch with an analytic backward: linear in L, any device, nothing saved but the inputs.

Everything is turned pixel-major once, (pixel, channel): then a step of any direction is one row, a contiguous piece of memory, and putting
rows into the order of a direction, or back, is a gather of rows. u is turned once for all directions, the outputs are added row by row and
turned back once. Directions are scanned one after the other, or together where one alone is too narrow to fill a call. The scan is in
`chunks.py`.

The gradient of softplus needs no raw step size: sigmoid(raw) = 1 - exp(-dt).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .chunks import SERIAL, Plan, scan_backward, scan_forward, serial
from .reference_cross import DIRECTIONS, paths

THRESHOLD = 20.0  # above it softplus is the identity: PyTorch's and Mamba's convention
ELEMENTS = 1 << 22  # of (batch, D, L) at once: bounds the temporary memory
SMALL = 1 << 18  # elements of u below which all directions are scanned together: one alone would not fill the calls


@dataclass(frozen=True)
class _Way:
    """Some directions of one batch slice: which, the plan of their scan, and the pixel of every step and the step of every pixel."""

    directions: range
    plan: Plan
    pixels: tuple[Tensor, ...]
    steps: tuple[Tensor, ...]


def forward(u, delta, A, B, C, D, delta_bias, delta_softplus) -> Tensor:
    """y (B, D, H, W) in the dtype of u; arguments of `cross_selective_scan`."""
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    image, out = u.flatten(2), y.flatten(2)
    dtype = torch.promote_types(u.dtype, torch.float32)
    for items, ways in _batches(u, A):
        rows = _turned(image[items], dtype)
        total = torch.zeros_like(rows) if D is None else rows * _skip(D, dtype)
        for way in ways:
            ks = way.directions
            dt, x, *scan = _major(way, rows, delta[items], A, B[items], C[items], delta_bias, delta_softplus)
            scanned, _ = scan_forward(way.plan, dt, x, *scan)
            for b in range(len(rows)):
                for i in range(len(ks)):
                    _add(total[b], scanned[b, :, i], way.steps[i])
        out[items] = total.transpose(1, 2)
    return y


def backward(u, delta, A, B, C, D, delta_bias, grad_y, delta_softplus) -> tuple[Tensor | None, ...]:
    """Gradients of u, delta, A, B, C, D and delta_bias, each in its input's dtype, None for an absent one."""
    if u.numel() == 0:
        return empty_gradients(u, delta, A, B, C, D, delta_bias)
    dtype = torch.promote_types(u.dtype, torch.float32)
    gu, gdelta, gB, gC = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (u, delta, B, C))
    gA, gD, gbias = (None if x is None else torch.zeros_like(x, dtype=dtype) for x in (A, D, delta_bias))
    image, grad, gimage = u.flatten(2), grad_y.flatten(2), gu.flatten(2)
    for items, ways in _batches(u, A):
        rows, grads = (_turned(x[items], dtype) for x in (image, grad))
        total = torch.zeros_like(rows) if D is None else grads * _skip(D, dtype)
        if D is not None:
            gD += (grads * rows).sum((0, 1)).repeat(DIRECTIONS)
        for way in ways:
            _backward_way(way, rows, grads, total, items, delta, A, B, C, delta_bias, delta_softplus, gdelta, gA, gB, gC, gbias)
        gimage[items] = total.transpose(1, 2)
    gA, gD, gbias = (None if g is None else g.to(x.dtype) for g, x in ((gA, A), (gD, D), (gbias, delta_bias)))
    return gu, gdelta, gA, gB, gC, gD, gbias


def empty_gradients(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradients of an image without elements: zeros, for B and C may have some where there are no channels."""
    return tuple(None if x is None else torch.zeros_like(x, memory_format=torch.contiguous_format) for x in tensors)


def _backward_way(way, rows, grads, total, items, delta, A, B, C, bias, softplus, gdelta, gA, gB, gC, gbias) -> None:
    """Some directions: writes gdelta, gB, gC, adds to gA, gbias and, pixel-major, to the gradient of u."""
    dt, x, A_, B_, C_ = _major(way, rows, delta[items], A, B[items], C[items], bias, softplus)
    gy = _steps_of(way, grads[:, None].expand(-1, len(way.directions), -1, -1))
    gdt, gx, part_A, part_B, part_C = scan_backward(way.plan, dt, x, A_, B_, C_, gy, A_.new_zeros(len(rows), *A_.shape))
    del x, gy
    channels, length = rows.shape[2], rows.shape[1]
    gA.unflatten(0, (DIRECTIONS, channels))[way.directions.start : way.directions.stop] += part_A
    for b in range(len(rows)):
        for i, k in enumerate(way.directions):
            pixels, steps = way.pixels[i], way.steps[i]
            for t in _pieces(length, channels, rows.device):
                graddt, gradx, step = gdt[b, t, i], gx[b, t, i], dt[b, t, i]
                graddt.addcmul_(gradx, rows[b].index_select(0, pixels[t]))
                if softplus:
                    graddt.mul_(torch.where(step > THRESHOLD, 1.0, step.neg().expm1_().neg_()))
                if bias is not None:
                    gbias[k * channels : (k + 1) * channels] += graddt.sum(0)
                gradx.mul_(step)
            _add(total[b], gx[b, :, i], steps)
            for target, source in ((gdelta, gdt), (gB, part_B), (gC, part_C)):
                target[items][b, k] = source[b, :, i].index_select(0, steps).t()


def _skip(D: Tensor, dtype: torch.dtype) -> Tensor:
    """(D,): the skip weights of all directions, whose inputs are the same, added."""
    return D.to(dtype).unflatten(0, (DIRECTIONS, -1)).sum(0)


def _batches(u: Tensor, A: Tensor) -> Iterator[tuple[slice, list[_Way]]]:
    """Slices of the batch with the directions that are scanned together; none where there is nothing to scan."""
    if u.numel() == 0:
        return
    batch, channels, height, width = u.shape
    pixels = paths(height, width, u.device)
    steps = pixels.argsort(1)
    most = max(1, ELEMENTS // (channels * height * width))
    for first in range(0, batch, most):
        size = min(most, batch - first)
        together = DIRECTIONS if size * channels * height * width < SMALL else 1
        plan = Plan.make(size, height * width, together, channels, A.shape[1], u.device)
        groups = (range(k, k + together) for k in range(0, DIRECTIONS, together))
        yield slice(first, first + size), [_Way(ks, plan, tuple(pixels[list(ks)]), tuple(steps[list(ks)])) for ks in groups]


def _pieces(length: int, channels: int, device: torch.device) -> list[slice]:
    """Slices of rows for elementwise work: as many at a time as make a serial call, or all."""
    size = max(1, SERIAL // channels) if serial(device) else length
    return [slice(i, min(i + size, length)) for i in range(0, length, size)]


def _turned(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(b, M, L) -> (b, L, M). One matrix at a time: PyTorch's fast transposition is for two dimensions."""
    out = x.new_empty(x.shape[0], x.shape[2], x.shape[1], dtype=dtype)
    for target, source in zip(out.unbind(0), x.unbind(0), strict=True):
        target.copy_(source.to(dtype).t())
    return out


def _add(total: Tensor, rows: Tensor, index: Tensor) -> None:
    """total (L, M) += rows[index], piece by piece, so that what was gathered stays in cache."""
    for p in _pieces(*total.shape, total.device):
        total[p] += rows.index_select(0, index[p])


def _empty(way: _Way, batch: int, width: int, like: Tensor) -> Tensor:
    """(b, T, directions, width), every direction of every sample a contiguous matrix, zeros behind L."""
    length = len(way.pixels[0])
    out = like.new_empty(batch, len(way.directions), way.plan.padded, width)
    out[:, :, length:] = 0
    return out.transpose(1, 2)


def _steps_of(way: _Way, rows: Tensor) -> Tensor:
    """Pixel-major rows (b, directions, L, M) as the steps of their direction, (b, T, directions, M)."""
    length = rows.shape[2]
    out = _empty(way, rows.shape[0], rows.shape[3], rows)
    for b in range(len(rows)):
        for i, pixels in enumerate(way.pixels):
            torch.index_select(rows[b, i], 0, pixels, out=out[b, :length, i])
    return out


def _weights(way: _Way, x: Tensor, dtype: torch.dtype) -> Tensor:
    """B or C (b, 4, N, L) as steps, (b, T, directions, N)."""
    x = x[:, way.directions.start : way.directions.stop]
    return _steps_of(way, _turned(x.flatten(0, 1), dtype).unflatten(0, x.shape[:2]))


def _major(way: _Way, rows: Tensor, delta, A, B, C, bias, softplus) -> tuple[Tensor, ...]:
    """(dt, x, A, B, C) as `scan_forward` takes them, of some directions; rows (b, L, D) is u."""
    batch, length, channels = rows.shape
    dt, x = (_empty(way, batch, channels, rows) for _ in range(2))
    for b in range(batch):
        for i, k in enumerate(way.directions):
            raw = _turned(delta[b, k, None], rows.dtype)[0]
            shift = None if bias is None else bias[k * channels : (k + 1) * channels].to(rows.dtype)
            for t in _pieces(length, channels, rows.device):
                pixels = way.pixels[i][t]
                step = raw.index_select(0, pixels)
                if shift is not None:
                    step += shift
                if softplus:
                    step = F.softplus(step, threshold=THRESHOLD)
                dt[b, t, i] = step
                torch.mul(step, rows[b].index_select(0, pixels), out=x[b, t, i])
    rates = A.to(rows.dtype).unflatten(0, (DIRECTIONS, channels))[way.directions.start : way.directions.stop]
    return dt, x, rates, *(_weights(way, w, rows.dtype) for w in (B, C))
