"""Selective scan: arguments that are refused, weights that are constant in time, and the count of bytes."""

import pytest
import torch

from linescan.kernels import testing
from linescan.kernels.selective_scan import cases, selective_scan, selective_scan_ref


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(delta=torch.zeros(1, 4, 6)), r"delta must have shape \(B, D, L\) = \(1, 4, 5\), got \(1, 4, 6\)"),
        (dict(A=torch.zeros(3, 2)), r"A must have shape \(D, N\).*got \(3, 2\)"),
        (dict(B=torch.zeros(1, 3, 5)), r"B must have shape \(B, N, L\).*got \(1, 3, 5\)"),
        (dict(B=torch.zeros(4, 2)), r"B must have shape \(B, N, L\) or \(B, G, N, L\), got \(4, 2\); weights that are constant in time"),
        (dict(C=torch.zeros(4, 2)), r"C\[None, :, :, None\].expand"),
        (dict(C=torch.zeros(1, 2, 2, 5)), "B and C must have the same number of groups, got 1 and 2"),
        (dict(B=torch.zeros(1, 3, 2, 5), C=torch.zeros(1, 3, 2, 5)), "groups of B and C must divide the 4 channels of u, got 3 groups"),
        (dict(B=torch.zeros(1, 0, 2, 5), C=torch.zeros(1, 0, 2, 5)), "groups of B and C must divide the 4 channels of u, got 0 groups"),
        (dict(A=torch.zeros(4, 0), B=torch.zeros(1, 0, 5), C=torch.zeros(1, 0, 5)), "A must have at least one state"),
        (dict(D=torch.zeros(3)), r"D must have shape \(D,\) = \(4,\), got \(3,\)"),
        (dict(delta_bias=torch.zeros(4, 1)), r"delta_bias must have shape \(D,\).*got \(4, 1\)"),
        (dict(z=torch.zeros(1, 4, 6)), r"z must have shape .*got \(1, 4, 6\)"),
    ],
)
def test_bad_input(change, message):
    inputs = dict(u=torch.zeros(1, 4, 5), delta=torch.zeros(1, 4, 5), A=torch.zeros(4, 2), B=torch.zeros(1, 2, 5), C=torch.zeros(1, 2, 5))
    with pytest.raises(ValueError, match=message):
        selective_scan(**(inputs | change))


def test_constant_weights_as_the_message_says():
    """B and C of shape (D, N), expanded to a group per channel, and their gradients."""
    u, delta, A, *_ = cases.make_inputs((2, 4, 30, 3, 1), torch.float64)
    constant = [torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(2)]

    def run(op, **options):
        def call(u, delta, A, B, C):
            B, C = (x[None, :, :, None].expand(2, -1, -1, 30) for x in (B, C))
            return op(u, delta, A, B, C, delta_softplus=True, **options)

        return testing.gradients(call, (u, delta, A, *constant), torch.ones_like(u))

    for a, b in zip(run(selective_scan, backend="torch"), run(selective_scan_ref), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


def test_bytes_moved():
    assert cases.bytes_moved((2, 6, 5, 3, 2), torch.bfloat16, "fwd") == 2 * 5 * 2 * (4 * 6 + 2 * 2 * 3)
    assert cases.bytes_moved((2, 6, 5, 3, 2), torch.float32, "fwdbwd") == 2 * 5 * 4 * (11 * 6 + 6 * 2 * 3)
