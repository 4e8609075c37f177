"""The selective scan compiled from C (selective_scan.c): CPU, float32 arithmetic. The first call builds the library
(`kernels/c_library.py`)."""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from .. import c_library
from . import torch_chunked

SOURCE = Path(__file__).with_name("selective_scan.c")
SMALL = 1 << 15  # state updates up to which one thread is faster than waking others
ABSENT = (0,) * 5


@cache
def _function():
    return c_library.load(SOURCE).linescan_selective_scan


def unsupported(u: Tensor, *_) -> str | None:
    """Why these inputs cannot be taken."""
    return "computes in float32 and does not take a float64 u" if u.dtype == torch.float64 else None


def forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus: bool) -> tuple[Tensor, Tensor]:
    """Inputs as in `op.py`, B and C (B, G, N, L) -> y (B, D, L) in the dtype of u, last state (B, D, N) in float32."""
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    last = torch.empty(u.shape[0], *A.shape, dtype=torch.float32)
    if not y.numel():
        return y, last.zero_()
    _run(0, delta_softplus, (u, delta, z, y), (A, D, delta_bias), last, (B, C))
    return y, last


def backward(u, delta, A, B, C, D, z, delta_bias, gy, glast, delta_softplus: bool) -> tuple[Tensor | None, ...]:
    """Gradients of all eight tensors (None for one that is absent), each in its input's dtype."""
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    if not u.numel():
        return tuple(None if x is None else torch.zeros_like(x, memory_format=torch.contiguous_format) for x in inputs)
    gu, gdelta, gz, gB, gC = (None if x is None else _result(x) for x in (u, delta, z, B, C))
    # shares of the batch elements, summed below
    shares = [torch.empty(u.shape[0], *shape, dtype=torch.float32) for shape in (A.shape, A.shape[:1], A.shape[:1])]
    gradients = [*(n for x in (gu, gdelta, gz) for n in _entry(x)), *_entry(gB), *_entry(gC), *(x.data_ptr() for x in shares)]
    _run(1, delta_softplus, (u, delta, z, gy), (A, D, delta_bias), glast.float().contiguous(), (B, C), gradients)
    gA, gD, gbias = (x.sum(0) for x in shares)
    grads = (gu, gdelta, gA, gB, gC, gD, gz, gbias)
    return tuple(None if x is None else g.to(x.dtype) for g, x in zip(grads, inputs, strict=True))


def probe() -> str | None:
    """Builds the library and compares values and gradients with the PyTorch backend: why it cannot be used here, or None."""
    generator = torch.Generator().manual_seed(0)
    u, delta, z, gy = torch.randn(4, 2, 38, 45, generator=generator)
    B, C = torch.randn(2, 2, 2, 3, 45, generator=generator)
    A, glast = torch.randn(38, 3, generator=generator), torch.randn(2, 38, 3, generator=generator)
    for rate in (-A.abs(), 0.1 * A):  # decaying states, and growing ones, which another exponential serves
        inputs = u, delta, rate, B, C, A[:, 0], z, A[:, 1]
        try:
            actual = *forward(*inputs, True), *backward(*inputs, gy, glast, True)
        except (RuntimeError, OSError, MemoryError) as error:
            return str(error)
        expected = *torch_chunked.forward(*inputs, True), *torch_chunked.backward(*inputs, gy, glast, True)
        for name, a, e in zip(("y", "last state", "gu", "gdelta", "gA", "gB", "gC", "gD", "gz", "gbias"), actual, expected, strict=True):
            if not torch.allclose(a, e, rtol=1e-3, atol=1e-4 * e.abs().max().item()):
                return f"the compiled library gives a wrong {name} on this machine"
    return None


def _dtype(x: Tensor) -> torch.dtype:
    """The dtype in which the kernel reads or writes x."""
    return x.dtype if x.dtype in c_library.TYPES else torch.float32


def _result(x: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=_dtype(x), memory_format=torch.contiguous_format)


def _readable(x: Tensor | None) -> Tensor | None:
    """x (B, D, L) in a type and layout that the kernel takes: x itself where channels or steps are contiguous."""
    if x is None:
        return None
    x = x.to(_dtype(x))
    return x if 1 in x.stride()[1:] else x.contiguous()


def _entry(x: Tensor | None) -> tuple[int, ...]:
    """Address, strides in bytes and type of one tensor."""
    return ABSENT if x is None else c_library.entry(x)


def _run(is_backward: int, delta_softplus: bool, tokens, parameters, last: Tensor, weights, gradients=()) -> None:
    tokens = [_readable(x) for x in tokens]
    weights = [x.to(_dtype(x)) for x in weights]
    parameters = [None if x is None else x.float().contiguous() for x in parameters]
    batch, groups, states, steps = weights[0].shape
    channels = tokens[0].shape[1]
    threads = 1 if batch * channels * states * steps <= SMALL else c_library.threads()
    table = c_library.pack(
        *(batch, channels, steps, states, groups, threads, is_backward, int(delta_softplus)),
        *(0 if x is None else x.data_ptr() for x in parameters),
        last.data_ptr(),
        *(n for x in (*tokens, *weights) for n in _entry(x)),
        *gradients,
    )
    c_library.call(_function(), table)
