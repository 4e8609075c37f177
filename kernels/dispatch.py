"""Which implementation of an operator runs.

Backends are named `triton` (CUDA kernels), `c` (compiled CPU kernels), `torch` (chunked PyTorch, any device) and `reference` (the
definition, any device). `auto` takes the best of them that the operator has for the tensor's device; the reference is never chosen
automatically. A backend asked for by name runs or raises an error that says why it cannot; nothing falls back silently.

The choice, strongest first: the operator's `backend=` argument, unless it is "auto"; `with use_backend("torch"):`; the environment
variable LINESCAN_BACKEND, read when this module is imported; "auto".
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

BACKENDS = ("triton", "c", "torch", "reference")
_AUTO = {"cuda": ("triton", "torch"), "cpu": ("c", "torch")}  # by device type, best first; other devices: torch
_choice: list[str] = []


def _known(name: str, source: str) -> str:
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"{source}: expected 'auto' or one of {BACKENDS}, got {name!r}")
    return name


_environment = _known(os.environ.get("LINESCAN_BACKEND", "auto"), "environment variable LINESCAN_BACKEND")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Inside the block, operators called with backend="auto" use backend `name`.

    Blocks nest; the setting is that of the process, not of a thread.

    Raises:
        ValueError: `name` is no backend.
    """
    _choice.append(_known(name, "use_backend"))
    try:
        yield
    finally:
        _choice.pop()


def resolve(op: str, available: Iterable[str], device: torch.device, backend: str = "auto") -> str:
    """The backend that a call of `op` on `device` runs.

    Args:
        op: operator name, for messages.
        available: backends that the operator has.
        device: device of the tensors.
        backend: what the caller asked for.

    Raises:
        ValueError: unknown backend name.
        NotImplementedError: a known backend that this operator does not have.
    """
    name = _known(backend, "backend")
    if name == "auto":
        name = _choice[-1] if _choice else _environment
    available = tuple(available)
    if name == "auto":
        return next(b for b in _AUTO.get(device.type, ("torch",)) if b in available)
    if name not in available:
        raise NotImplementedError(f"backend {name!r}: {op} has backends {available}")
    return name
