"""Cross scan and cross merge in plain PyTorch: copies and additions, nothing that depends on what came before.

PyTorch has no views that run backwards, so a reversed sequence costs a copy of its own. Work is cut into slabs that stay in a processor's
cache, from where that copy is read again.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .reference import ORDERS

SLAB = 1 << 18  # elements of the image that a thread has at hand: 1 MiB of float32


def _slabs(batch: int, channels: int, length: int) -> Iterator[tuple[slice, slice]]:
    """Slices of samples and channels that cut (batch, channels, length) into slabs of about `SLAB` elements per thread."""
    if batch * channels * length == 0:
        return
    most = SLAB * torch.get_num_threads()
    samples = max(1, most // (channels * length))
    some = channels if samples > 1 else max(1, most // length)
    for b in range(0, batch, samples):
        for d in range(0, channels, some):
            yield slice(b, b + samples), slice(d, d + some)


def scan(x: Tensor, order: str) -> Tensor:
    """x (B, D, H, W) -> (B, 4, D, H W)."""
    columns, reverse = ORDERS[order]
    batch, channels, height, width = x.shape
    out = x.new_empty(batch, 4, channels, height * width)
    for b, d in _slabs(batch, channels, height * width):
        slab = out[b, :, d]
        row = slab[:, 0].unflatten(2, (height, width))
        row.copy_(x[b, d])
        if columns:
            slab[:, 1].unflatten(2, (width, height)).copy_(row.transpose(2, 3))
        else:
            slab[:, 1].copy_(slab[:, 0])
        slab[:, 2:].copy_(slab[:, :2].flip(3) if reverse else slab[:, :2])
    return out


def merge(ys: Tensor, height: int, width: int, order: str) -> Tensor:
    """ys (B, 4, D, H W) -> (B, D, H W); half precision is added in float32."""
    columns, reverse = ORDERS[order]
    batch, _, channels, length = ys.shape
    dtype = torch.promote_types(ys.dtype, torch.float32)
    out = ys.new_empty(batch, channels, length)
    for b, d in _slabs(batch, channels, length):
        slab = ys[b, :, d].to(dtype)
        row, second = (slab[:, 2:].flip(3).add_(slab[:, :2]) if reverse else slab[:, 2:] + slab[:, :2]).unbind(1)
        if columns:
            second = second.unflatten(2, (width, height)).transpose(2, 3)
            torch.add(row.unflatten(2, (height, width)), second, out=out[b, d].unflatten(2, (height, width)))
        else:
            torch.add(row, second, out=out[b, d])
    return out


def forward(x: Tensor, order: str) -> Tensor:
    """The four sequences of x."""
    return scan(x, order)


def backward(x: Tensor, gy: Tensor, order: str) -> tuple[Tensor]:
    """The gradient of x: the merge of gy (B, 4, D, H W)."""
    return (merge(gy, *x.shape[2:], order).view(x.shape),)
