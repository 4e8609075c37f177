"""Selective scan: values and gradients against float64, hard inputs, and the bugs that users of other implementations met."""

import pytest
import torch

from linescan.kernels import testing
from linescan.kernels.registration import OPERATORS
from linescan.kernels.selective_scan import cases, selective_scan, selective_scan_ref

NAMES = cases.INPUTS
OPERATOR = OPERATORS["selective_scan"]
CPU = [b for b in ("torch", "c") if b in OPERATOR.own]
OPTIONS = {  # what is left out of the standard case
    "all": (),
    "bare": ("D", "z", "delta_bias", "softplus"),
    "no_gate": ("z",),
    "no_bias": ("delta_bias",),
    "no_softplus": ("softplus", "D"),
}


@pytest.fixture(params=CPU)
def backend(request) -> str:
    if reason := OPERATOR.why_not(request.param, "cpu"):
        pytest.skip(reason)
    return request.param


def skip_unsupported(backend, dtype):
    """The compiled backend computes in float32 and refuses float64 inputs."""
    if backend == "c" and dtype == torch.float64:
        with pytest.raises(NotImplementedError, match="float64"):
            selective_scan(*cases.make_inputs((1, 2, 3, 1, 1), dtype), backend=backend)
        pytest.skip("float32 only")


def both(op, names, softplus=True, **options):
    """op of the named tensors, y and the last state in one vector, so that a single gradient reaches both."""

    def call(*tensors):
        y, last = op(**dict(zip(names, tensors, strict=True)), delta_softplus=softplus, return_last_state=True, **options)
        return torch.cat((y.flatten().to(last.dtype), last.flatten()))

    return call


def without_softplus(inputs):
    """The standard inputs with step sizes that are positive as they are: a negative one makes the states grow."""
    u, delta, A, B, C, D, z, bias = inputs
    return u, 0.2 * delta.abs(), A, B, C, D, z, 0.01 * bias.abs()


def check(inputs, backend, softplus=True, without=()):
    """Values, last state and all gradients of a backend against the reference."""
    softplus = softplus and "softplus" not in without
    names = [n for n in NAMES if n not in without]
    tensors = [x for n, x in zip(NAMES, inputs, strict=True) if n in names]
    testing.assert_matches_reference(
        both(selective_scan, names, softplus, backend=backend), both(selective_scan_ref, names, softplus), tensors, names
    )


def everything(inputs, backend="torch", grad_output=None, softplus=True):
    """y and last state in one vector, and all gradients."""
    op = both(selective_scan, NAMES, softplus, backend=backend)
    grad_output = torch.ones_like(op(*inputs)) if grad_output is None else grad_output
    return testing.gradients(op, inputs, grad_output)


# -------------------------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("without", OPTIONS)
@pytest.mark.parametrize("shape", [(1, 2, 1, 2, 1), (2, 4, 7, 2, 2), (1, 3, 19, 1, 1)])
def test_gradcheck(shape, without):
    inputs, left = cases.make_inputs(shape, torch.float64), OPTIONS[without]
    names, softplus = [n for n in NAMES if n not in left], "softplus" not in left
    inputs = inputs if softplus else without_softplus(inputs)
    tensors = [x for n, x in zip(NAMES, inputs, strict=True) if n in names]
    for op in (both(selective_scan_ref, names, softplus), both(selective_scan, names, softplus, backend="torch")):
        testing.assert_gradcheck(op, tensors)


@pytest.mark.parametrize("shape", cases.TEST_SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_matches_reference(shape, dtype, backend):
    skip_unsupported(backend, dtype)
    check(cases.make_inputs(shape, dtype), backend)


@pytest.mark.parametrize("without", OPTIONS)
def test_every_argument_is_optional_that_may_be(without, backend):
    inputs = cases.make_inputs((2, 6, 37, 3, 2))
    left = OPTIONS[without]
    check(without_softplus(inputs) if "softplus" in left else inputs, backend, without=left)


@pytest.mark.parametrize("name", ["torch", "c", "reference"])
def test_golden(golden_ops, name):
    if name not in OPERATOR.backends or (name != "reference" and OPERATOR.why_not(name, "cpu")):
        pytest.skip(f"no backend {name} here")
    stored = torch.load(golden_ops / "op_selective_scan.pt", weights_only=True)
    assert len(stored["cases"]) == 8
    for label, case in (stored["cases"] | {"first": stored}).items():
        for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5))[name == "c" :]:  # c computes in float32
            inputs = {k: x.to(dtype).requires_grad_() for k, x in case["inputs"].items()}
            out = selective_scan(**inputs, **case["kwargs"], backend=name)
            out = out if isinstance(out, tuple) else (out,)
            grads = torch.autograd.grad(out, list(inputs.values()), [g.to(dtype) for g in case["grad_outputs"]])
            expected = (*case["outputs"], *(case["grads"][k] for k in inputs))
            for what, a, e in zip((*["output"] * len(out), *inputs), (*out, *grads), expected, strict=True):
                testing.assert_close(a, e, tolerance, f"{label} {what} {dtype}")


@pytest.mark.parametrize("length", [4096, 65536])
def test_long_sequences_against_the_sum_at_sampled_steps(length, backend):
    """y_t = sum_s exp(A (c_t - c_s)) x_s B_s C_t with c the running sum of the step sizes, in float64 at five steps and for their loss."""
    u, delta, A, B, C, *_ = cases.make_inputs((1, 3, length, 2, 1))
    delta = delta - 4
    at = torch.tensor([0, 1, length // 3, length - 2, length - 1])
    weight = torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(0))

    def definition(u, delta, A, B, C):
        dt = torch.nn.functional.softplus(delta)
        run = dt.cumsum(-1)
        reached = torch.arange(length) <= at[:, None]
        span = (run[:, :, at, None] - run[:, :, None]) * reached  # (B, D, 5, L)
        weights = torch.exp(span[..., None] * A[:, None, None]) * reached[..., None]
        return torch.einsum("bdtsn,bds,bns,bnt->bdt", weights, dt * u, B, C[..., at])

    exact = testing.gradients(definition, (u, delta, A, B, C), weight, torch.float64)
    actual = testing.gradients(lambda *x: selective_scan(*x, delta_softplus=True, backend=backend)[..., at], (u, delta, A, B, C), weight)
    for name, a, e in zip(("y", *NAMES), actual, exact, strict=False):
        testing.assert_close(a, e, 2e-6, name)


# --------------------------------------------------------------------------------------------------------------------------- hard inputs


def hard(name, inputs):
    """The standard inputs with one thing made hard; and whether softplus is applied."""
    u, delta, A, B, C, D, z, bias = (x.clone() for x in inputs)
    softplus, length, sign = True, u.shape[2], torch.randn(delta.shape, generator=torch.Generator().manual_seed(5)).sign()
    if name in ("delta_x40", "delta_1e4", "delta_minus_inf"):
        delta = {"delta_x40": 80 * delta, "delta_1e4": 1e4 * sign, "delta_minus_inf": delta.masked_fill(sign > 0, -torch.inf)}[name]
    elif name == "delta_zero":
        delta, bias, softplus = torch.zeros_like(delta), torch.zeros_like(bias), False
    elif name == "delta_negative":
        delta, bias, softplus = -0.1 * delta.abs(), torch.zeros_like(bias), False
    elif name == "rate_zero":
        A = torch.zeros_like(A)
        A[1] = -0.0
    elif name == "rate_huge":
        A = 1e4 * A
    elif name == "growing":
        A, bias = -0.3 * A, torch.full_like(bias, -2.5)  # alike in all channels: otherwise the error is that of a single number
    elif name == "growing_far":  # up to 1e30 at the end
        delta, bias, A, softplus = torch.full_like(delta, 69.0 / length), torch.zeros_like(bias), torch.ones_like(A), False
    elif name == "equal":
        u, delta, A, B, C = (torch.full_like(x, value) for x, value in ((u, 0.5), (delta, 0.3), (A, -0.7), (B, 0.9), (C, 1.1)))
    elif name == "gate_1e4":
        z = 1e4 * z.sign()
    return (u, delta, A, B, C, D, z, bias), softplus


HARD = (
    *("delta_x40", "delta_1e4", "delta_minus_inf", "delta_zero", "delta_negative", "rate_zero", "rate_huge", "growing"),
    *("growing_far", "equal", "gate_1e4"),
)


@pytest.mark.parametrize("length", [75, 300])
@pytest.mark.parametrize("name", HARD)
def test_hard_inputs(name, length, backend):
    inputs, softplus = hard(name, cases.make_inputs((2, 4, length, 3, 2)))
    reference = both(selective_scan_ref, NAMES, softplus)(*inputs)
    assert reference.isfinite().all()
    check(inputs, backend, softplus)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [75, 1500])
def test_growth_from_rest_is_finite(length, dtype, backend):
    """The growth of a chunk overflows, but it meets a state of zero: no step of the definition is infinite. (Its gradients are.)"""
    skip_unsupported(backend, dtype)
    u, _, A, B, C, *_ = cases.make_inputs((1, 4, length, 3, 1), dtype)
    growth = 80.0 if dtype == torch.float32 else 300.0  # the exponent of one step
    inputs = u, torch.full_like(u, 2 * growth), torch.full_like(A, 0.5), B, C
    u[:, :, :-2] = 0
    exact = selective_scan_ref(*(x.double() for x in inputs))
    assert exact.isfinite().all() and exact.abs().max() > 1e30
    testing.assert_close(selective_scan(*inputs, backend=backend), exact, 2 * growth * testing.UNIT[dtype])  # a rounding of A, amplified


@pytest.mark.parametrize("where", NAMES)
@pytest.mark.parametrize("size", [50, 300])
def test_nan_stays_in_its_channel(where, size, backend):
    """B and C belong to a group, everything else to a channel; a gradient of B or C collects from its group."""
    shared = where in "BC"
    keep = [3, 4, 5] if shared else [0, 2, 3, 4, 5]
    for softplus in (True, False):
        clean = cases.make_inputs((2, 6, size, 3, 2))
        clean = clean if softplus else without_softplus(clean)
        dirty = [x.clone() for x in clean]
        dirty[NAMES.index(where)][(0, 0, 1, 20) if shared else (1,) if where in ("A", "D", "delta_bias") else (0, 1, 20)] = torch.nan
        op = both(selective_scan, NAMES, softplus, backend=backend)
        grad_output = torch.ones_like(op(*clean))
        pairs = zip(*(testing.gradients(op, x, grad_output) for x in (dirty, clean)), strict=True)
        for name, (a, b) in zip(("y", *NAMES), pairs, strict=True):
            if name == "y":
                a, b = (x[: 2 * 6 * size].view(2, 6, size) for x in (a, b))
                assert a[0, 0 if shared else 1].isnan().any()
            dim = 0 if name in ("A", "D", "delta_bias") else 1
            rows = torch.tensor([1] if name in "BC" else keep)
            assert torch.equal(a.index_select(dim, rows), b.index_select(dim, rows)), name


# ---------------------------------------------------------------------------------------------------------------------------- properties


def test_properties(backend):
    dtype = torch.float32 if backend == "c" else torch.float64
    u, delta, A, B, C, D, z, bias = cases.make_inputs((2, 6, 77, 4, 2), dtype)
    y = selective_scan(u, delta, A, B, C, D, z, bias, True, backend=backend)

    def scan(**change):
        inputs = dict(u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=bias) | change
        return selective_scan(**inputs, delta_softplus=True, backend=backend)

    close = {k: 1e-11 if dtype == torch.float64 else 1e-5 for k in ("rtol", "atol")}
    torch.testing.assert_close(scan(u=3 * u + z), 3 * y + scan(u=z), **close)  # linear in u
    torch.testing.assert_close(scan(B=2 * B, C=0.5 * C), y, **close)
    torch.testing.assert_close(scan(delta=delta + bias[:, None], delta_bias=None), y, **close)
    later = u.clone()
    later[:, :, 40:] += 1
    assert torch.equal(scan(u=later)[:, :, :40], y[:, :, :40])  # causal, to the bit
    torch.testing.assert_close(scan(B=B.repeat_interleave(3, 1), C=C.repeat_interleave(3, 1)), y, **close)  # a group for every channel
    order = torch.tensor([2, 0, 1, 5, 4, 3])
    permuted = scan(
        **{k: v.index_select(d, order) for k, v, d in (("u", u, 1), ("delta", delta, 1), ("A", A, 0), ("D", D, 0), ("z", z, 1))}
    )
    expected = scan(delta_bias=bias[order.argsort()])[:, order]
    torch.testing.assert_close(permuted, expected, **close)  # channels of a group are interchangeable


def test_last_state_is_the_state_that_a_longer_sequence_goes_on_from(backend):
    """Scanning on with zero input, the state only decays: the last state times the decay."""
    dtype = torch.float32 if backend == "c" else torch.float64
    u, delta, A, B, C, *_ = without_softplus(cases.make_inputs((2, 4, 90, 3, 2), dtype))
    _, first = selective_scan(u[..., :60], delta[..., :60], A, B[..., :60], C[..., :60], return_last_state=True, backend=backend)
    u = u.clone()
    u[..., 60:] = 0
    _, last = selective_scan(u, delta, A, B, C, return_last_state=True, backend=backend)
    decay = torch.exp(delta[..., 60:].sum(-1)[..., None] * A)
    testing.assert_close(last, first * decay, 1e3 * testing.UNIT[dtype])


def test_b_and_c_without_groups_are_one_group(backend):
    inputs = cases.make_inputs((2, 6, 40, 3, 1))
    assert inputs[3].dim() == 3
    grouped = [x[:, None] if n in "BC" else x for n, x in zip(NAMES, inputs, strict=True)]
    for a, b in zip(everything(inputs, backend), everything(grouped, backend), strict=True):
        assert torch.equal(a, b.view_as(a))


@pytest.mark.parametrize("shape", [(0, 4, 5, 2, 2), (2, 4, 0, 2, 2), (0, 4, 0, 2, 1)])
def test_empty(shape, backend):
    for dtype in (torch.float32, torch.bfloat16):
        inputs = cases.make_inputs(shape, dtype)
        y, last = selective_scan(*inputs, delta_softplus=True, return_last_state=True, backend=backend)
        assert (y.shape, last.shape, y.dtype, last.dtype) == (shape[:3], (shape[0], 4, 2), dtype, torch.float32)
        assert (last == 0).all()
        for x, g in zip(inputs, everything(inputs, backend)[1:], strict=True):
            assert (g.shape, g.dtype) == (x.shape, x.dtype)
            assert (g == 0).all()


def test_strided_inputs_and_gradient(backend):
    inputs = cases.make_inputs((2, 6, 45, 3, 2))
    expected = everything(inputs, backend)
    u, delta, A, B, C, D, z, bias = inputs
    leaves = [
        testing.strided(u),
        delta.transpose(0, 2).contiguous(),
        A.t().contiguous(),
        testing.strided(B),
        C.transpose(1, 3).contiguous(),
    ]
    leaves = [x.detach().requires_grad_() for x in (*leaves, D, z.transpose(1, 2).contiguous(), bias)]
    u, delta, A, B, C, D, z, bias = leaves
    views = (u, delta.transpose(0, 2), A.t(), B, C.transpose(1, 3), D, z.transpose(1, 2), bias)
    y, last = selective_scan(*views, delta_softplus=True, return_last_state=True, backend=backend)
    assert y.is_contiguous()
    grads = torch.autograd.grad((y.sum() + last.sum()), leaves)  # expanded gradients, all strides zero
    grads = list(grads)
    for i, dims in ((1, (0, 2)), (2, (0, 1)), (4, (1, 3)), (6, (1, 2))):
        grads[i] = grads[i].transpose(*dims)
    for a, e in zip((torch.cat((y.flatten(), last.flatten())), *grads), expected, strict=True):
        torch.testing.assert_close(a, e)


def test_dtypes_follow_u_and_each_input(backend):
    half = cases.make_inputs((1, 4, 20, 2, 1), torch.bfloat16)
    assert [x.dtype for x in half] == [torch.bfloat16] * 2 + [torch.float32] + [torch.bfloat16] * 2 + [
        torch.float32,
        torch.bfloat16,
        torch.float32,
    ]
    for inputs in (half, [half[0].float(), *half[1:]], [half[0], *(x.float() for x in half[1:])]):
        y, last = selective_scan(*inputs, delta_softplus=True, return_last_state=True, backend=backend)
        assert (y.dtype, last.dtype) == (inputs[0].dtype, torch.float32)
        for g, x in zip(everything(inputs, backend)[1:], inputs, strict=True):
            assert g.dtype == x.dtype
        check(inputs, backend)


# ------------------------------------------------------------------------------------------------- bugs of other implementations, regressed


@pytest.mark.parametrize("length", [1, 31, 100, 129, 2049])
def test_softplus_of_the_bias_on_padding_reaches_no_gradient(length, backend):
    """state-spaces/mamba#368: past the end of the sequence softplus(0 + bias) is a step size; its gradient must not be summed up."""
    inputs = list(cases.make_inputs((1, 4, length, 2, 1)))
    inputs[7] = torch.full((4,), 3.0)  # large steps on anything that is padded
    _, _, gdelta, *_, gbias = everything(inputs, backend)
    torch.testing.assert_close(gbias, gdelta.sum((0, 2)), rtol=1e-5, atol=1e-5)
    longer = [torch.cat((x, torch.zeros_like(x[..., :1]).expand(*x.shape[:-1], 50)), -1) if x.dim() > 2 else x for x in inputs]
    op = both(selective_scan, NAMES, backend=backend)
    weight = torch.cat((torch.ones(4, length), torch.zeros(4, 50)), 1).flatten()
    *_, bias_alone = testing.gradients(lambda *x: op(*x)[: 4 * length], inputs, torch.ones(4 * length))
    *_, bias_longer = testing.gradients(lambda *x: op(*x)[: 4 * (length + 50)], longer, weight)
    torch.testing.assert_close(bias_longer, bias_alone, rtol=1e-5, atol=1e-5)


def test_offsets_beyond_two_to_the_31(backend):
    """state-spaces/mamba#880, #1015, #686, #503: 32-bit strides and offsets. The second sample lies 2^31 elements behind the first."""
    inputs = cases.make_inputs((2, 2, 9, 2, 1), torch.float16)
    try:
        far = torch.empty((1 << 31) + 64, dtype=torch.float16)  # virtual memory: only the pages of two samples are touched
    except RuntimeError:
        pytest.skip("no address space for 4 GiB")
    u = far.as_strided((2, 2, 9), (1 << 31, 9, 1))
    u.copy_(inputs[0])
    expected = selective_scan(*inputs, delta_softplus=True, backend=backend)
    assert torch.equal(selective_scan(u, *inputs[1:], delta_softplus=True, backend=backend), expected)


def test_decays_that_underflow_leave_no_nan(backend):
    """MzeroMiko/mamba-mini#6: running products divided by each other are 0 / 0 once a product underflows."""
    u, delta, A, B, C, *_ = cases.make_inputs((1, 3, 500, 4, 1))
    inputs = (u, delta.abs() + 5, 50 * A, B, C)
    names = NAMES[:5]
    testing.assert_matches_reference(
        both(selective_scan, names, False, backend=backend), both(selective_scan_ref, names, False), inputs, names
    )
