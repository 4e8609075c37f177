"""The selective scan's Triton kernels: values and gradients against float64, in the interpreter where there is no GPU."""

import pytest
import torch

from linescan.kernels import testing
from linescan.kernels.selective_scan import cases, selective_scan, selective_scan_ref

pytest.importorskip("triton")
from linescan.kernels import triton_runtime
from linescan.kernels.selective_scan import triton_kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available() and not triton_runtime.INTERPRETED, reason="no GPU and no interpreter")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# every shape in float32, the small ones in all dtypes
RUNS = [(s, d) for s in cases.TRITON_SHAPES for d in DTYPES if d == torch.float32 or s[2] * s[3] < 40]
HARD = ("step_1e4", "no_step", "rate_1e4", "growing", "gate_1e4")


def inputs_of(shape, dtype=torch.float32):
    u, delta, A, B, C, D, z, bias = cases.make_inputs(shape, dtype, DEVICE)
    B, C = (x[:, None] if x.dim() == 3 else x for x in (B, C))
    return [u, delta, A, B, C, D, z, bias]


def both(inputs, grads, softplus=True):
    """((y, last state, gradients) of the kernels, the same of the reference in float64); None where an input is None."""
    actual = (*triton_kernels.forward(*inputs, softplus), *triton_kernels.backward(*inputs, *grads, softplus))
    leaves = [x.detach().double().requires_grad_() if x is not None else None for x in inputs]
    outputs = selective_scan_ref(*leaves, softplus, True)
    present = [x for x in leaves if x is not None]
    found = iter(torch.autograd.grad(outputs, present, [g.double() for g in grads]))
    return actual, (*outputs, *(None if x is None else next(found) for x in leaves))


def grads_of(inputs):
    torch.manual_seed(0)
    u, A = inputs[0], inputs[2]
    last = torch.promote_types(u.dtype, torch.float32)
    return torch.randn_like(u), torch.randn(u.shape[0], *A.shape, dtype=last, device=u.device)


def check(inputs):
    """y, last state and all gradients by the rule of `testing`, through the public function."""

    def vector(op, **options):
        def call(*tensors):
            y, last = op(*tensors, delta_softplus=True, return_last_state=True, **options)
            return torch.cat((y.flatten(), last.flatten().to(y.dtype)))

        return call

    testing.assert_matches_reference(vector(selective_scan, backend="triton"), vector(selective_scan_ref), inputs, cases.INPUTS)


def assert_same(actual, expected, tolerance):
    for name, a, e in zip(("y", "last", *cases.INPUTS), actual, expected, strict=True):
        assert (a is None) == (e is None), name
        if a is not None:
            assert a.shape == e.shape, name
            testing.assert_close(a, e, tolerance, name)


@pytest.mark.parametrize(("shape", "dtype"), RUNS)
def test_matches_reference(shape, dtype):
    check(inputs_of(shape, dtype))


@pytest.mark.parametrize("name", HARD)
def test_hard_inputs(name):
    """Long steps both ways, states that do not decay or grow, saturated gates; growth over two chunks."""
    u, delta, A, B, C, D, z, bias = inputs_of((1, 4, 34 if name == "growing" else 11, 1, 1))
    sign = torch.where(torch.arange(delta.shape[2], device=DEVICE) % 3 > 0, 1.0, -1.0).expand_as(delta)
    if name == "step_1e4":
        delta = 1e4 * sign
    elif name == "no_step":
        delta = delta.masked_fill(sign < 0, -torch.inf)
    elif name == "rate_1e4":
        A = 1e4 * A
    elif name == "growing":
        A, bias = -0.3 * A, torch.full_like(bias, -2.5)
    elif name == "gate_1e4":
        z = 1e4 * z.sign()
    check([u, delta, A, B, C, D, z, bias])


@pytest.mark.parametrize("name", ["u", "delta", "z", "A"])
def test_nan_stays_in_its_channel(name):
    clean = inputs_of((1, 3, 4, 1, 1))
    dirty = [x.clone() for x in clean]
    dirty[cases.INPUTS.index(name)][(1,) if name == "A" else (0, 1, 2)] = torch.nan
    grads = grads_of(clean)
    a, b = ((*triton_kernels.forward(*x, True), *triton_kernels.backward(*x, *grads, True)) for x in (dirty, clean))
    for i, what in enumerate(("y", "last", *cases.INPUTS)):
        if what not in "BC":  # these sum over all channels of their group
            dim = 0 if what in ("A", "D", "delta_bias") else 1
            assert torch.equal(a[i].select(dim, 0), b[i].select(dim, 0)) and torch.equal(a[i].select(dim, 2), b[i].select(dim, 2)), what
    assert a[0][0, 1].isnan().any()


def test_without_optional_arguments_and_softplus():
    inputs = inputs_of((1, 3, 9, 2, 1), torch.float64)
    inputs[1] = inputs[1].abs()
    inputs[5:] = [None, None, None]
    assert_same(*both(inputs, grads_of(inputs), softplus=False), 1e-13)


def test_a_bias_does_not_leak_through_the_padded_tail():
    """softplus(bias) is a step of its own size wherever delta is padded with zeros (state-spaces/mamba#368)."""
    inputs = inputs_of((1, 2, 9, 2, 1), torch.float64)
    inputs[7] = torch.full_like(inputs[7], 5.0)
    assert_same(*both(inputs, grads_of(inputs)), 1e-13)


def test_runs_repeat_bitwise_and_write_every_element():
    inputs = inputs_of((1, 3, 35, 1, 1))
    grads = grads_of(inputs)
    with testing.poisoned_memory():
        runs = [(*triton_kernels.forward(*inputs, True), *triton_kernels.backward(*inputs, *grads, True)) for _ in range(2)]
    for a, b in zip(*runs, strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)


def test_channel_contiguous_inputs_and_an_expanded_gradient():
    inputs = inputs_of((1, 3, 12, 2, 1), torch.float64)
    _, last = grads_of(inputs)
    for i in (0, 1, 6):
        inputs[i] = inputs[i].transpose(1, 2).contiguous().transpose(1, 2)
    grads = (torch.ones((), dtype=torch.float64, device=DEVICE).expand(inputs[0].shape), last)
    assert_same(*both(inputs, grads), 1e-13)


@pytest.mark.parametrize("shape", [(0, 2, 5, 2, 1), (1, 2, 0, 2, 1)])
def test_empty(shape):
    inputs = inputs_of(shape)
    actual = (
        *triton_kernels.forward(*inputs, True),
        *triton_kernels.backward(*inputs, torch.zeros_like(inputs[0]), grads_of(inputs)[1], True),
    )
    assert all((x == 0).all() for x in actual)


def test_launches_stay_inside_the_limits_of_a_grid():
    """More than 65535 batch elements or channel blocks, and offsets beyond 2^31 (state-spaces/mamba#505, #686)."""
    inputs = [x if x is None else x.to("meta") for x in inputs_of((1, 2, 8, 1, 1))]
    for i in (0, 1, 3, 4, 6):
        inputs[i] = inputs[i].expand(1 << 20, *inputs[i].shape[1:])
    with triton_runtime.record_launches() as launches:
        outputs = triton_kernels.forward(*inputs, True)
        triton_kernels.backward(*inputs, *outputs, True)
    assert all(launch.grid[0] >= 1 << 20 and launch.grid[1:] in ((), (1,), (1, 1)) for launch in launches)


def test_more_states_than_registers_are_refused():
    for states, dtype in ((64, torch.float32), (32, torch.float64)):
        inputs = inputs_of((1, 2, 3, states, 1), dtype)
        assert "at most" in triton_kernels.unsupported(*inputs, True)
        with pytest.raises(NotImplementedError, match="at most"):
            selective_scan(*inputs, backend="triton")
    assert triton_kernels.unsupported(*inputs_of((1, 2, 3, 32, 1)), True) is None
