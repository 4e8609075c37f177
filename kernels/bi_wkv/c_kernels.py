"""Bi-WKV compiled from C (bi_wkv.c): CPU, float32 arithmetic. The first call builds the library (`kernels/c_library.py`)."""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from .. import c_library
from . import torch_chunked

SOURCE = Path(__file__).with_name("bi_wkv.c")
SMALL = 1 << 15  # elements up to which one thread is faster than waking others


@cache
def _function():
    return c_library.load(SOURCE).linescan_bi_wkv


def unsupported(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why these inputs cannot be taken."""
    return "computes in float32 and does not take float64 keys" if k.dtype == torch.float64 else None


def forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(C,), (C,), (B, T, C), (B, T, C) -> y (B, T, C) in the dtype of k; float32 inside."""
    y = torch.empty_like(k, memory_format=torch.contiguous_format)
    if y.numel():
        w, u, k, v = w.float().contiguous(), u.float().contiguous(), _readable(k), _readable(v)
        tables = (c_library.entry(x) for x in (k, v, y))
        _run(k, 0, w, u, 0, 0, tables)
    return y


def backward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, gy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients (gw, gu, gk, gv) for the output gradient gy (B, T, C), each in its input's dtype."""
    gk, gv = (torch.empty_like(x, dtype=_dtype(x), memory_format=torch.contiguous_format) for x in (k, v))
    gw, gu = (torch.zeros_like(x, dtype=torch.float32, memory_format=torch.contiguous_format) for x in (w, u))
    if gk.numel():
        # r = gy / den and r y of every token wait between two sweeps where the results will stand, if those are float32
        r, ry = (g if g.dtype == torch.float32 else torch.empty_like(g, dtype=torch.float32) for g in (gk, gv))
        values = [_readable(x) for x in (k, v, gy)]
        tables = (c_library.entry(x) for x in (*values, gk, gv, r, ry))
        parameters = [x.float().contiguous() for x in (w, u)]
        _run(k, 1, *parameters, gw.data_ptr(), gu.data_ptr(), tables)
    return gw.to(w.dtype), gu.to(u.dtype), gk, gv.to(v.dtype)


def probe() -> str | None:
    """Builds the library and compares values and gradients with the PyTorch backend: why it cannot be used here, or None."""
    generator = torch.Generator().manual_seed(0)
    w = torch.tensor([0.1, -0.01, 2.0, 0.0]).repeat(9)  # of each four channels the third is not safe for chunks
    u, (k, v, gy) = 0.5 * w, torch.randn(3, 2, 75, 36, generator=generator)
    try:
        actual = forward(w, u, k, v), *backward(w, u, k, v, gy)
    except (RuntimeError, OSError, MemoryError) as error:
        return str(error)
    expected = torch_chunked.forward(w, u, k, v), *torch_chunked.backward(w, u, k, v, gy)
    for name, a, e in zip(("y", "gw", "gu", "gk", "gv"), actual, expected, strict=True):
        if not torch.allclose(a, e, rtol=1e-3, atol=1e-4 * e.abs().max().item()):
            return f"the compiled library gives a wrong {name} on this machine"
    return None


def _dtype(x: Tensor) -> torch.dtype:
    """The dtype in which the kernel reads or writes x."""
    return x.dtype if x.dtype in c_library.TYPES else torch.float32


def _readable(x: Tensor) -> Tensor:
    """x (B, T, C) in a type and layout that the kernel takes; x itself where its last dimension is contiguous."""
    x = x.to(_dtype(x))
    return x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous()


def _run(k: Tensor, is_backward: int, w: Tensor, u: Tensor, gw: int, gu: int, tables) -> None:
    threads = 1 if k.numel() <= SMALL else c_library.threads()
    table = c_library.pack(*k.shape, threads, is_backward, w.data_ptr(), u.data_ptr(), gw, gu, *(n for t in tables for n in t))
    c_library.call(_function(), table)
