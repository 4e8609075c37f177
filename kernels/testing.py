"""Helpers for the tests of the operators. One rule decides whether a kernel is accurate enough, and hard inputs are made in one place.

The rule: against the float64 reference, a kernel may err at most twice as much as plain PyTorch does in the same dtype (the reference run
in that dtype), plus a few roundings of the result. A tolerance chosen by hand is needed only where no same-dtype reference can run
(long sequences): `TOLERANCE`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

# Relative RMS error. UNIT: half a unit in the last place, what rounding one exact result costs. TOLERANCE: 16 of them, room for the
# roundings inside one chunk. ROUNDINGS: how many an operator may make where same-dtype PyTorch happens to be exact; float64 has no better
# reference than itself, and half types are accumulated in float32, so that only the result is rounded.
UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
ROUNDINGS = {torch.float64: 64, torch.float32: 4, torch.bfloat16: 2, torch.float16: 2}
TOLERANCE = {dtype: 16 * unit for dtype, unit in UNIT.items()}


def relative_rms(actual: Tensor, expected: Tensor) -> float:
    """RMS of the error divided by the RMS of `expected`, in float64; inf where the two are not finite in the same places."""
    actual, expected = actual.detach().double(), expected.detach().double()
    if not torch.equal(actual.isfinite(), expected.isfinite()):
        return float("inf")
    finite = expected.isfinite()
    error = (actual - expected)[finite].square().sum().sqrt()
    norm = expected[finite].square().sum().sqrt()
    return (error / norm).item() if norm > 0 else (0.0 if error == 0 else float("inf"))


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str = "result") -> None:
    """Relative RMS error at most `tolerance`; the message has the number."""
    error = relative_rms(actual, expected)
    assert error <= tolerance, f"{what}: relative RMS error {error:.3e} > {tolerance:.3e}"


def _rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item() if x.numel() else 0.0


def assert_as_accurate(
    actual: Tensor, same_dtype: Tensor, exact: Tensor, what: str = "result", *, factor: float = 2.0, floor: float = 0.0
) -> None:
    """error(actual) <= factor x error(same_dtype) + `ROUNDINGS`, both against `exact` (float64).

    Args:
        actual: what the kernel returned.
        same_dtype: what plain PyTorch returned in the dtype of `actual`.
        exact: the float64 reference.
        what: name for the message.
        factor: allowed ratio of the two errors.
        floor: absolute RMS error that is forgiven: where the exact result is zero by cancellation, the size of the cancelled terms times
        `UNIT`.
    """
    exact = exact.detach().double()
    error, same, size = (_rms(x) for x in (actual.detach().double() - exact, same_dtype.detach().double() - exact, exact))
    limit = factor * same + ROUNDINGS[actual.dtype] * UNIT[actual.dtype] * size + floor
    assert error <= limit, f"{what}: RMS error {error:.3e} > {limit:.3e} (same-dtype PyTorch {same:.3e}, RMS of the result {size:.3e})"


def gradients(
    op: Callable[..., Tensor], inputs: Sequence[Tensor], grad_output: Tensor, dtype: torch.dtype | None = None
) -> tuple[Tensor, ...]:
    """(output, gradient of every input) of op on fresh leaves, converted to `dtype` first where given."""
    leaves = [x.detach().to(dtype or x.dtype).requires_grad_() for x in inputs]
    out = op(*leaves)
    return (out.detach(), *torch.autograd.grad(out, leaves, grad_output.to(out.dtype)))


def assert_matches_reference(
    op: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    names: Sequence[str],
    *,
    floors: Sequence[float] | None = None,
) -> None:
    """Output and all gradients of `op` obey the rule of this module; `names` are the inputs', `floors` are per output and gradient."""
    torch.manual_seed(0)
    out = reference(*(x.double() for x in inputs))
    grad_output = torch.randn_like(out)
    exact = gradients(reference, inputs, grad_output, torch.float64)
    same = gradients(reference, inputs, grad_output)
    actual = gradients(op, inputs, grad_output)
    floors = floors or [0.0] * len(exact)
    for name, a, s, e, floor in zip(("output", *(f"grad of {n}" for n in names)), actual, same, exact, floors, strict=True):
        assert_as_accurate(a, s, e, name, floor=floor)


def assert_gradcheck(op: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    """Analytic gradients against central differences, in float64 (PyTorch's gradcheck at its default tolerances)."""
    leaves = [x.detach().double().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(op, leaves, nondet_tol=0.0)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Inside the block uninitialised tensors hold NaN (so that an element nobody writes is seen) and non-deterministic operations raise."""
    before, fill = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = fill


def hard_log_weights(shape: Sequence[int], generator: torch.Generator) -> dict[str, Tensor]:
    """Log-weights (..., T, C) that break careless softmaxes and scans, by name."""
    normal = torch.randn(*shape, generator=generator)
    steps = torch.linspace(-1.0, 1.0, shape[-2])[:, None].expand(*shape)
    outlier = normal.clone()
    outlier[..., shape[-2] // 3, :] += 70.0
    masked = normal.clone()
    masked[..., ::3, :] = -torch.inf
    late = normal.clone()
    late[..., : shape[-2] // 2, :] = -torch.inf
    return {
        "x40": 40 * normal,
        "plus_minus_1e4": 1e4 * normal.sign(),
        "ramp_up": 1e4 * steps,
        "ramp_down": -1e4 * steps,
        "outlier_70": outlier,
        "equal": torch.full(tuple(shape), 3.0),
        "shift_1e4": normal + 1e4,
        "minus_inf": masked,
        "minus_inf_half": late,
    }


def strided(x: Tensor) -> Tensor:
    """The same values behind strides: every second token and every second slot of a larger buffer, last dimension contiguous."""
    buffer = x.new_full((*x.shape[:-2], 2 * x.shape[-2], x.shape[-1] + 3), torch.nan)
    view = buffer[..., ::2, 1 : 1 + x.shape[-1]]
    view.copy_(x)
    return view
