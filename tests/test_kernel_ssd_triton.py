"""SSD's Triton kernels: values and gradients against float64, in the interpreter where there is no GPU."""

import pytest
import torch

from linescan.kernels import testing
from linescan.kernels.ssd import cases, ssd, ssd_ref

pytest.importorskip("triton")
from linescan.kernels import triton_runtime
from linescan.kernels.ssd import triton_kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available() and not triton_runtime.INTERPRETED, reason="no GPU and no interpreter")
NAMES = cases.INPUTS
TILED = (1, 35, 1, 36, 1, 70)  # several tiles of channels and states, none full


def both(op, names=NAMES, softplus=True, **options):
    """op of the named tensors, y and the last state in one vector, so that a single gradient reaches both."""

    def call(*tensors):
        y, last = op(**dict(zip(names, tensors, strict=True)), dt_softplus=softplus, return_final_states=True, **options)
        return torch.cat((y.flatten(), last.flatten().to(y.dtype)))

    return call


def check(inputs, names=NAMES, softplus=True):
    """The rule of `testing`. The gradient of dt_bias is the sum over tokens of those of dt, which obey the rule one by one: where they
    cancel, what they may err by, added up as independent errors, is forgiven."""
    reference = both(ssd_ref, names, softplus)
    torch.manual_seed(0)
    grad_output = torch.randn_like(reference(*(x.double() for x in inputs)))
    exact, same = (testing.gradients(reference, inputs, grad_output, dtype)[2].double() for dtype in (torch.float64, None))
    summed = 2 * (same - exact).square().sum((0, 1)).mean().sqrt().item()
    floors = [1e-26] + [1e-26 + (summed if n == "dt_bias" else 0.0) for n in names]
    testing.assert_matches_reference(both(ssd, names, softplus, backend="triton"), reference, inputs, names, floors=floors)


def everything(inputs):
    """y, last state and all gradients, from the kernels."""
    outputs = triton_kernels.forward(*inputs, True, True)
    return (*outputs, *triton_kernels.backward(*inputs, *(torch.ones_like(x) for x in outputs), True, True))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *((shape, torch.float32) for shape in (*cases.TRITON_SHAPES, TILED)),
        *((shape, torch.bfloat16) for shape in (*cases.TRITON_SHAPES[:3], TILED)),
        *((shape, torch.float16) for shape in cases.TRITON_SHAPES[1:3]),
        ((1, 66, 1, 48, 1, 48), torch.bfloat16),  # the tiles and chunks of sizes that are multiples of 16
    ],
)
def test_matches_reference(shape, dtype):
    check(cases.make_inputs(shape, dtype, DEVICE))


def test_without_optional_arguments_and_softplus():
    x, dt, A, B, C, *_ = cases.make_inputs((2, 37, 2, 3, 1, 4), torch.float32, DEVICE)
    check((x, 0.2 * dt.abs(), A, B, C), NAMES[:5], False)


def test_values_in_half_precision_beside_float32():
    inputs = cases.make_inputs((1, 37, 2, 3, 1, 4), torch.bfloat16, DEVICE)
    inputs = [x.float() if n in ("dt", "A", "D", "dt_bias") else x for n, x in zip(NAMES, inputs, strict=True)]
    inputs[5] = inputs[5][:, 0].contiguous()  # a skip weight per head
    check(inputs)


@pytest.mark.parametrize("name", ["rate_huge", "rate_zero", "dt_1e4", "dt_zero", "growing"])
def test_hard_inputs(name):
    x, dt, A, B, C, D, z, bias, initial = cases.make_inputs((1, 70, 2, 3, 1, 4), torch.float32, DEVICE)
    if name == "rate_huge":  # every token forgets everything before it
        dt, A = dt + 3, 1e4 * A
    elif name == "rate_zero":
        A = torch.zeros_like(A)
    elif name == "dt_1e4":
        dt = 1e4 * dt.sign()
    elif name == "growing":
        A = -0.02 * A
    else:
        dt, bias = torch.zeros_like(dt), torch.zeros_like(bias)
    check((x, dt, A, B, C, D, z, bias, initial), softplus=name != "dt_zero")


def test_a_bias_does_not_leak_through_the_padded_tail():
    """softplus(bias) is a step of its own size wherever dt is padded with zeros (state-spaces/mamba#368)."""
    inputs = list(cases.make_inputs((1, 9, 2, 3, 1, 4), torch.float32, DEVICE))
    inputs[7] = torch.full_like(inputs[7], 5.0)
    check(inputs)


@pytest.mark.parametrize("where", ["x", "dt", "z", "initial_states"])
def test_nan_stays_in_its_head(where):
    clean = cases.make_inputs((1, 5, 4, 2, 2, 3), torch.float32, DEVICE)
    dirty = [x.clone() for x in clean]
    dirty[NAMES.index(where)][(0, 1) if where == "initial_states" else (0, 2, 1)] = torch.nan
    for name, a, b in zip(("y", "last", *NAMES), everything(dirty), everything(clean), strict=True):
        dim = 0 if name in ("A", "D", "dt_bias") else 1 if name in ("last", "initial_states") else 2
        keep = torch.tensor([1] if name in "BC" else [0, 2, 3], device=DEVICE)
        assert torch.equal(a.index_select(dim, keep), b.index_select(dim, keep)), name
        if name == "y":
            assert a[:, :, 1].isnan().any()


def test_runs_repeat_bitwise_and_write_every_element():
    inputs = cases.make_inputs((2, 5, 2, 5, 2, 6), torch.float32, DEVICE)
    with testing.poisoned_memory():
        runs = [everything(inputs) for _ in range(2)]
    for a, b in zip(*runs, strict=True):
        assert a.isfinite().all()
        assert a.is_contiguous()
        assert torch.equal(a, b)


def test_strided_inputs_and_an_expanded_gradient():
    inputs = cases.make_inputs((2, 5, 2, 5, 2, 6), torch.float32, DEVICE)
    swaps = {"dt": (1, 2), "C": (1, 3), "z": (1, 2), "initial_states": (2, 3), "D": (0, 1)}
    views = [
        x.transpose(*swaps[n]).contiguous().transpose(*swaps[n]) if n in swaps else testing.strided(x) if n in "xB" else x
        for n, x in zip(NAMES, inputs, strict=True)
    ]
    outputs = triton_kernels.forward(*views, True, True)
    grads = [torch.ones((), device=DEVICE).expand(x.shape) for x in outputs]
    actual = (*outputs, *triton_kernels.backward(*views, *grads, True, True))
    for a, b in zip(actual, everything(inputs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(0, 5, 2, 3, 1, 4), (2, 0, 2, 3, 1, 4)])
def test_empty(shape):
    inputs = cases.make_inputs(shape, torch.float32, DEVICE)
    y, last, *grads = everything(inputs)
    assert (y.shape, last.shape) == (shape[:4], (shape[0], 2, 3, 4))
    assert torch.equal(last, inputs[8])
    for name, x, g in zip(NAMES, inputs, grads, strict=True):
        assert (g.shape, g.dtype) == (x.shape, x.dtype)
        assert (g == (1 if name == "initial_states" else 0)).all()


def test_launches_stay_inside_the_limits_of_a_grid():
    """More than 65535 batch elements (state-spaces/mamba#505), groups of many heads, and offsets beyond 2^31 (#686)."""
    inputs = list(cases.make_inputs((1, 70, 64, 16, 1, 16), torch.bfloat16, "meta"))
    for i in (0, 1, 3, 4, 6, 8):
        inputs[i] = inputs[i].expand(1 << 17, *inputs[i].shape[1:])
    with triton_runtime.record_launches() as launches:
        outputs = triton_kernels.forward(*inputs, True, True)
        triton_kernels.backward(*inputs, *outputs, True, True)
    assert [launch.name for launch in launches] == [
        *("ssd_kernel_states", "ssd_kernel_scan", "ssd_kernel_out"),
        *("ssd_kernel_states", "ssd_kernel_scan", "ssd_kernel_out", "ssd_kernel_states", "ssd_kernel_scan"),
        *("ssd_bwd_kernel_x", "ssd_bwd_kernel_dt", "ssd_bwd_kernel_bc"),
    ]
    assert all(launch.grid[0] >= 1 << 17 and max(launch.grid[1:], default=1) <= 65535 for launch in launches)


@pytest.mark.parametrize(
    ("shape", "dtype", "causal", "message"),
    [
        ((1, 3, 1, 2, 1, 2), torch.float32, False, "no non-causal form"),
        ((1, 3, 1, 2, 1, 2), torch.float64, True, "does not take float64"),
        ((1, 3, 1, 129, 1, 2), torch.float32, True, "heads of up to 128 and up to 256 states, got 129 and 2"),
        ((1, 3, 1, 2, 1, 257), torch.float32, True, "got 2 and 257"),
    ],
)
def test_what_the_kernels_cannot_do_is_said(shape, dtype, causal, message):
    inputs = cases.make_inputs(shape, dtype, DEVICE)
    with pytest.raises(NotImplementedError, match=f"ssd: backend 'triton' .*{message}"):
        ssd(*inputs, causal=causal, backend="triton")
    ssd(*inputs, causal=causal)  # "auto" takes another
