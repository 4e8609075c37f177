"""Which implementation of an operator runs.

Backends are named `triton` (CUDA kernels), `c` (compiled CPU kernels), `torch` (chunked PyTorch, any device), `reference` (the definition,
any device), and `mamba_ssm` and `fla` (the packages of others, where an operator has an adapter for them). `auto` takes the best that the
operator has for the tensor's device and that works there: `triton` on CUDA, on a CPU `c` where it could be built and gave right numbers,
else `torch`. The reference and other packages are never chosen automatically. A backend asked for by name runs or raises an error that
says why it cannot; nothing falls back silently. `report()` shows what is chosen and why.

The choice, strongest first: the operator's `backend=` argument, unless it is "auto"; `with use_backend("torch"):`; the environment
variable LINESCAN_BACKEND, read when this module is imported; "auto".
"""

import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

BACKENDS = ("triton", "c", "torch", "reference", "mamba_ssm", "fla")
_PREFERENCE = {"cuda": ("triton", "torch"), "cpu": ("c", "torch")}  # by device type, best first; other devices: torch
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


def requested(op: str, available: Sequence[str], backend: str = "auto") -> str:
    """The backend that a call of `op` asks for: a name out of `available`, or "auto".

    Raises:
        ValueError: unknown backend name.
        NotImplementedError: a known backend that this operator does not have.
    """
    if backend == "auto":
        backend = _choice[-1] if _choice else _environment
    if backend != "auto" and backend not in available:
        _known(backend, "backend")
        raise NotImplementedError(f"backend {backend!r}: {op} has backends {tuple(available)}")
    return backend


def preference(device_type: str) -> tuple[str, ...]:
    """Backends that "auto" considers on a device, best first."""
    return _PREFERENCE.get(device_type, ("torch",))


def wrong_device(backend: str, device_type: str) -> str | None:
    """Why a backend cannot take tensors of a device; None where it can."""
    if backend == "c" and device_type != "cpu":
        return f"backend 'c' needs CPU tensors, got {device_type}"
    if backend in ("mamba_ssm", "fla") and device_type != "cuda":
        return f"backend {backend!r} needs CUDA tensors, got {device_type}"
    if backend == "triton" and device_type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"backend 'triton' needs CUDA tensors, got {device_type} (TRITON_INTERPRET=1 runs it on a CPU, slowly)"
    return None


def report() -> str:
    """A table of all operators: which backend "auto" takes on a CPU and on CUDA, and why the others are not taken. Builds what it must."""
    from .registration import OPERATORS

    for path in sorted(Path(__file__).parent.glob("*/op.py")):
        importlib.import_module(f".{path.parent.name}", __package__)
    lines = []
    for name, operator in sorted(OPERATORS.items()):
        for device_type in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            lines.append(f"{name:22} {device_type:5} auto -> {operator.choices(device_type)[0]}")
            reasons = {b: operator.why_not(b, device_type) for b in (*operator.own, *operator.peers)}
            lines += [f"{'':22} {'':5} {backend}: {reason}" for backend, reason in reasons.items() if reason]
    return "\n".join(lines)
