"""SSD: values and gradients against float64, hard inputs, and the bugs that users of other implementations met."""

import pytest
import torch

from linescan.kernels import testing
from linescan.kernels.ssd import cases, ssd, ssd_ref

NAMES = cases.INPUTS
OPTIONS = {  # what is left out of the standard case
    "all": (),
    "bare": ("D", "z", "dt_bias", "initial_states", "softplus"),
    "no_gate": ("z", "initial_states"),
    "no_bias": ("dt_bias", "D"),
}


def both(op, names=NAMES, softplus=True, **options):
    """op of the named tensors, y and the last state in one vector, so that a single gradient reaches both."""

    def call(*tensors):
        y, last = op(**dict(zip(names, tensors, strict=True)), dt_softplus=softplus, return_final_states=True, **options)
        return torch.cat((y.flatten(), last.flatten().to(y.dtype)))

    return call


def without_softplus(inputs):
    """The standard inputs with step sizes that are positive as they are: a negative one makes the states grow."""
    x, dt, A, B, C, D, z, bias, initial = inputs
    return x, 0.2 * dt.abs(), A, B, C, D, z, 0.01 * bias.abs(), initial


def named(inputs, left):
    names = [n for n in NAMES if n not in left]
    inputs = without_softplus(inputs) if "softplus" in left else inputs
    return names, [x for n, x in zip(NAMES, inputs, strict=True) if n in names]


def summed_floors(inputs, names=NAMES, softplus=True, causal=True):
    """Forgiven: in the gradient of dt_bias, a sum over tokens that may cancel, one rounding of each of its terms; 1e-26 elsewhere,
    an exponential of float32's smallest normal number instead of zero."""
    op = both(ssd_ref, names, softplus, causal=causal)
    torch.manual_seed(0)
    terms = testing.gradients(op, inputs, torch.randn_like(op(*(x.double() for x in inputs))), torch.float64)[1 + names.index("dt")]
    rounding = testing.UNIT[inputs[0].dtype] * terms.abs().sum((0, 1)).square().mean().sqrt()
    return [1e-26] + [1e-26 + (rounding.item() if n == "dt_bias" else 0.0) for n in names]


def everything(inputs, grad_output=None, **options):
    """y and last state in one vector, and all gradients."""
    op = both(ssd, **options)
    grad_output = torch.ones_like(op(*inputs)) if grad_output is None else grad_output
    return testing.gradients(op, inputs, grad_output)


# -------------------------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("without", OPTIONS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shape", [(1, 2, 1, 2, 1, 2), (2, 4, 2, 2, 1, 3)])
def test_gradcheck(shape, causal, without):
    names, tensors = named(cases.make_inputs(shape, torch.float64), OPTIONS[without])
    for op in (ssd_ref, ssd):
        testing.assert_gradcheck(both(op, names, "softplus" not in OPTIONS[without], causal=causal), tensors)


def test_gradcheck_over_chunks(monkeypatch):
    """Chunks of 4 tokens, and the two-level scan over them."""
    from linescan.kernels.ssd import torch_chunked

    monkeypatch.setattr(torch_chunked, "CHUNK", 4)
    monkeypatch.setattr(torch_chunked, "ROWS", 4)
    testing.assert_gradcheck(both(ssd, backend="torch"), cases.make_inputs((1, 27, 2, 1, 1, 2), torch.float64))


@pytest.mark.parametrize("shape", cases.TEST_SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("causal", [True, False])
def test_matches_reference(shape, dtype, causal):
    inputs = cases.make_inputs(shape, dtype)
    if dtype == torch.float64:  # nothing is better than the reference itself: without the state, whose part in grad of A cancels that of y
        ops = [lambda *x, op=op: op(*x, dt_softplus=True, causal=causal) for op in (ssd, ssd_ref)]
    else:
        ops = [both(op, causal=causal) for op in (ssd, ssd_ref)]
    testing.assert_matches_reference(*ops, inputs, NAMES, floors=summed_floors(inputs, causal=causal))


@pytest.mark.parametrize("without", OPTIONS)
@pytest.mark.parametrize("causal", [True, False])
def test_every_argument_is_optional_that_may_be(without, causal):
    softplus = "softplus" not in OPTIONS[without]
    names, tensors = named(cases.make_inputs((2, 70, 4, 3, 2, 5)), OPTIONS[without])
    ops = (both(op, names, softplus, causal=causal) for op in (ssd, ssd_ref))
    testing.assert_matches_reference(*ops, tensors, names, floors=summed_floors(tensors, names, softplus, causal))


def test_skip_weight_per_head():
    inputs = list(cases.make_inputs((2, 70, 4, 3, 2, 5)))
    inputs[5] = torch.tensor([0.5, -1.0, 2.0, 0.0])
    testing.assert_matches_reference(both(ssd), both(ssd_ref), inputs, NAMES, floors=summed_floors(inputs))
    spread = [*inputs[:5], inputs[5][:, None].expand(4, 3), *inputs[6:]]
    torch.testing.assert_close(both(ssd)(*inputs), both(ssd)(*spread))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_golden(golden_ops, dtype, tolerance, backend):
    stored = torch.load(golden_ops / "op_ssd.pt", weights_only=True)
    inputs = {name: x.to(dtype).requires_grad_() for name, x in stored["inputs"].items()}
    y, state = ssd(**inputs, **stored["kwargs"], return_final_states=True, backend=backend)
    testing.assert_close(y, stored["outputs"][0], tolerance, "y")
    testing.assert_close(state, stored["final_state"], tolerance, "final state")
    grads = torch.autograd.grad(y, list(inputs.values()), stored["grad_outputs"][0].to(dtype))
    for name, grad in zip(inputs, grads, strict=True):
        testing.assert_close(grad, stored["grads"][name], tolerance, name)


@pytest.mark.parametrize("length", [4096, 65536])
def test_long_sequences_against_the_sum_at_sampled_steps(length):
    """y_t = sum_s exp(a (c_t - c_s)) dt_s (C_t . B_s) x_s with c the running sum of dt, in float64 at five steps and for their loss."""
    x, dt, A, B, C, *_ = cases.make_inputs((1, length, 2, 3, 1, 2))
    dt, A = dt - 4, A.clamp(min=-2)
    at = torch.tensor([0, 1, length // 3, length - 2, length - 1])
    weight = torch.randn(1, 5, 2, 3, generator=torch.Generator().manual_seed(0))

    def definition(x, dt, A, B, C):
        dt = torch.nn.functional.softplus(dt)
        run = dt.cumsum(1)
        reached = (torch.arange(length) <= at[:, None])[..., None]
        span = (run[0, at, None] - run[0, None]) * reached  # (5, T, H)
        weights = torch.exp(span * A) * reached * dt[0] * (C[0, at, 0] @ B[0, :, 0].T)[..., None]
        return torch.einsum("ash,shp->ahp", weights, x[0])[None]

    exact = testing.gradients(definition, (x, dt, A, B, C), weight, torch.float64)
    actual = testing.gradients(lambda *t: ssd(*t, dt_softplus=True)[:, at], (x, dt, A, B, C), weight)
    for name, a, e in zip(("y", *NAMES), actual, exact, strict=False):
        testing.assert_close(a, e, 2e-6, name)


# --------------------------------------------------------------------------------------------------------------------------- hard inputs


def hard(name, inputs):
    """The standard inputs with one thing made hard; and whether softplus is applied."""
    x, dt, A, B, C, D, z, bias, initial = (t.clone() for t in inputs)
    softplus, length, sign = True, x.shape[1], torch.randn(dt.shape, generator=torch.Generator().manual_seed(5)).sign()
    if name in ("dt_x40", "dt_1e4", "dt_minus_inf"):
        dt = {"dt_x40": 80 * dt, "dt_1e4": 1e4 * sign, "dt_minus_inf": dt.masked_fill(sign > 0, -torch.inf)}[name]
    elif name == "dt_zero":
        dt, bias, softplus = torch.zeros_like(dt), torch.zeros_like(bias), False
    elif name == "dt_negative":
        dt, bias, softplus = -0.1 * dt.abs() / 16, torch.zeros_like(bias), False
    elif name == "rate_zero":
        A = torch.zeros_like(A)
        A[1] = -0.0
    elif name == "rate_huge":
        A = 1e4 * A
    elif name == "growing":
        A = -0.02 * A
    elif name == "growing_far":  # up to 1e30 at the end
        dt, bias, A, softplus = torch.full_like(dt, 69.0 / length), torch.zeros_like(bias), torch.ones_like(A), False
    elif name == "equal":
        x, dt, A, B, C = (torch.full_like(t, value) for t, value in ((x, 0.5), (dt, 0.3), (A, -0.7), (B, 0.9), (C, 1.1)))
    elif name == "gate_1e4":
        z = 1e4 * z.sign()
    return (x, dt, A, B, C, D, z, bias, initial), softplus


HARD = (
    *("dt_x40", "dt_1e4", "dt_minus_inf", "dt_zero", "dt_negative", "rate_zero", "rate_huge", "growing", "growing_far"),
    *("equal", "gate_1e4"),
)


@pytest.mark.parametrize("length", [75, 300])
@pytest.mark.parametrize("name", HARD)
def test_hard_inputs(name, length):
    inputs, softplus = hard(name, cases.make_inputs((2, length, 4, 3, 2, 5)))
    reference = both(ssd_ref, softplus=softplus)
    assert reference(*inputs).isfinite().all()
    testing.assert_matches_reference(
        both(ssd, softplus=softplus), reference, inputs, NAMES, floors=summed_floors(inputs, softplus=softplus)
    )


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("where", NAMES)
def test_nan_stays_in_its_head(where, causal):
    """B and C belong to a group, everything else to a head; a gradient of B or C collects from its group."""
    shared = where in "BC"
    clean = cases.make_inputs((2, 90, 6, 3, 2, 4))
    dirty = [x.clone() for x in clean]
    at = {"A": (1,), "dt_bias": (1,), "D": (1,), "initial_states": (0, 1)}.get(where, (0, 20, 0 if shared else 1))
    dirty[NAMES.index(where)][at] = torch.nan
    op = both(ssd, causal=causal)
    grad_output = torch.ones_like(op(*clean))
    pairs = zip(*(testing.gradients(op, x, grad_output) for x in (dirty, clean)), strict=True)
    heads = torch.tensor([3, 4, 5] if shared else [0, 2, 3, 4, 5])
    for name, (a, b) in zip(("y", *NAMES), pairs, strict=True):
        if name == "y":
            a, b = (x[: 2 * 90 * 18].view(2, 90, 6, 3) for x in (a, b))
            assert a[0, :, 0 if shared else 1].isnan().any()
        dim = 0 if name in ("A", "D", "dt_bias") else 1 if name == "initial_states" else 2
        rows = torch.tensor([1]) if name in "BC" else heads
        assert torch.equal(a.index_select(dim, rows), b.index_select(dim, rows)), name


# ---------------------------------------------------------------------------------------------------------------------------- properties


def test_properties():
    x, dt, A, B, C, D, z, bias, initial = cases.make_inputs((2, 150, 6, 4, 2, 5), torch.float64)
    tensors = dict(x=x, dt=dt, A=A, B=B, C=C, D=D, z=z, dt_bias=bias, initial_states=initial)

    def scan(**change):
        return ssd(**(tensors | change), dt_softplus=True)

    y = scan()
    close = dict(rtol=1e-11, atol=1e-11)
    rest = torch.zeros_like(initial)
    torch.testing.assert_close(scan(x=3 * x + z), scan(x=3 * x) + scan(x=z, initial_states=rest), **close)  # linear in x
    torch.testing.assert_close(scan(x=3 * x, initial_states=3 * initial), 3 * y, **close)
    torch.testing.assert_close(scan(B=2 * B, C=0.5 * C, initial_states=2 * initial), y, **close)
    torch.testing.assert_close(scan(dt=dt + bias, dt_bias=None), y, **close)
    later = x.clone()
    later[:, 100:] += 1
    assert torch.equal(scan(x=later)[:, :100], y[:, :100])  # causal, to the bit
    torch.testing.assert_close(scan(B=B.repeat_interleave(3, 2), C=C.repeat_interleave(3, 2)), y, **close)  # a group for every head
    order = torch.tensor([2, 0, 1, 5, 4, 3])
    heads = dict(x=2, dt=2, A=0, D=0, z=2, dt_bias=0, initial_states=1)
    torch.testing.assert_close(scan(**{k: tensors[k].index_select(d, order) for k, d in heads.items()}), y[:, :, order], **close)


def test_the_non_causal_form_has_no_order():
    inputs = cases.make_inputs((2, 90, 4, 3, 2, 5), torch.float64)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(0))
    shuffled = [x[:, order] if n in ("x", "dt", "B", "C", "z") else x for n, x in zip(NAMES, inputs, strict=True)]
    y, last = ssd(*inputs, dt_softplus=True, return_final_states=True, causal=False)
    moved, same = ssd(*shuffled, dt_softplus=True, return_final_states=True, causal=False)
    torch.testing.assert_close(moved, y[:, order])
    torch.testing.assert_close(same, last)


def test_a_sequence_goes_on_from_its_last_state():
    inputs = cases.make_inputs((2, 150, 4, 3, 2, 5), torch.float64)
    y, last = ssd(*inputs, dt_softplus=True, return_final_states=True)
    parts, state = [], inputs[8]
    for part in (slice(0, 70), slice(70, 71), slice(71, 150)):
        pieces = (t[:, part] if n in ("x", "dt", "B", "C", "z") else t for n, t in zip(NAMES[:8], inputs[:8], strict=True))
        out, state = ssd(*pieces, state, dt_softplus=True, return_final_states=True)
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, 1), y)
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shape", [(0, 5, 2, 3, 1, 4), (2, 0, 2, 3, 1, 4), (0, 0, 2, 3, 2, 4)])
def test_empty(shape, causal):
    for dtype in (torch.float32, torch.bfloat16):
        inputs = cases.make_inputs(shape, dtype)
        y, last = ssd(*inputs, dt_softplus=True, return_final_states=True, causal=causal)
        assert (y.shape, last.shape, y.dtype, last.dtype) == (shape[:4], (shape[0], 2, 3, 4), dtype, torch.float32)
        assert torch.equal(last, inputs[8].float())
        for name, x, g in zip(NAMES, inputs, everything(inputs, causal=causal)[1:], strict=True):
            assert (g.shape, g.dtype) == (x.shape, x.dtype)
            assert (g == (1 if name == "initial_states" else 0)).all()


@pytest.mark.parametrize("causal", [True, False])
def test_results_are_contiguous(causal):
    """As the shapes for meta tensors promise to torch.compile, also where the last chunk is padded."""
    inputs = cases.make_inputs((3, 70, 4, 3, 2, 5))
    inputs = [*inputs[:6], inputs[6].transpose(1, 2).contiguous().transpose(1, 2), *inputs[7:]]
    outputs = torch.ops.linescan.ssd(*inputs, True, causal, "torch")
    assert all(t.is_contiguous() for t in outputs)
    assert all(t.is_contiguous() for t in torch.ops.linescan.ssd_backward(*inputs, *outputs, True, causal, "torch"))


def test_strided_inputs_and_gradient():
    inputs = cases.make_inputs((2, 85, 4, 3, 2, 5))
    expected = everything(inputs)
    swaps = {"dt": (1, 2), "C": (1, 3), "z": (1, 2), "initial_states": (2, 3)}
    leaves = [
        x.transpose(*swaps[n]).contiguous() if n in swaps else testing.strided(x) if n in "xB" else x
        for n, x in zip(NAMES, inputs, strict=True)
    ]
    leaves = [x.detach().requires_grad_() for x in leaves]
    views = [x.transpose(*swaps[n]) if n in swaps else x for n, x in zip(NAMES, leaves, strict=True)]
    y, last = ssd(*views, dt_softplus=True, return_final_states=True)
    assert y.is_contiguous()
    grads = torch.autograd.grad(y.sum() + last.sum(), leaves)  # expanded gradients, all strides zero
    grads = [g.transpose(*swaps[n]) if n in swaps else g for n, g in zip(NAMES, grads, strict=True)]
    for a, e in zip((torch.cat((y.flatten(), last.flatten())), *grads), expected, strict=True):
        torch.testing.assert_close(a, e)


def test_dtypes_follow_x_and_each_input():
    """Values in half precision beside step sizes and parameters in float32, as autocast leaves them."""
    inputs = cases.make_inputs((1, 70, 4, 3, 2, 5), torch.bfloat16)
    mixed = [x.float() if n in ("dt", "A", "D", "dt_bias") else x for n, x in zip(NAMES, inputs, strict=True)]
    y, last = ssd(*mixed, dt_softplus=True, return_final_states=True)
    assert (y.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    for g, x in zip(everything(mixed)[1:], mixed, strict=True):
        assert g.dtype == x.dtype
    testing.assert_matches_reference(both(ssd), both(ssd_ref), mixed, NAMES, floors=summed_floors(mixed))


# ------------------------------------------------------------------------------------------------- bugs of other implementations, regressed


@pytest.mark.parametrize("length", [1, 31, 100, 129])
def test_softplus_of_the_bias_on_padding_reaches_no_gradient(length):
    """state-spaces/mamba#368: past the end of the sequence softplus(0 + bias) is a step size; its gradient must not be summed up."""
    inputs = list(cases.make_inputs((1, length, 2, 3, 1, 4)))
    inputs[7] = torch.full((2,), 3.0)  # large steps on anything that is padded
    _, _, gdt, *_, gbias, _ = everything(inputs)
    torch.testing.assert_close(gbias, gdt.sum((0, 1)), rtol=1e-5, atol=1e-5)


def test_strong_decay_in_half_precision_leaves_no_nan():
    """state-spaces/mamba#352 (NaN gradients in bfloat16), fla-org/flash-linear-attention#77 (exp of a decay that was not subtracted)."""
    inputs = list(cases.make_inputs((1, 200, 2, 4, 1, 4), torch.bfloat16))
    inputs[1], inputs[2] = inputs[1] + 8, 10 * inputs[2]
    assert all(x.isfinite().all() for x in everything(inputs))


def test_a_token_that_forgets_everything_costs_its_neighbours_no_digits():
    """MzeroMiko/mamba-mini#6: quotients of running products are 0 / 0 once a product underflows; differences of huge sums lose digits."""
    x, dt, A, B, C, *_ = cases.make_inputs((1, 500, 3, 4, 1, 4))
    dt = 0.01 * dt.abs()
    dt[:, ::7] = 1e6
    inputs, names = (x, dt, A, B, C), NAMES[:5]
    testing.assert_matches_reference(both(ssd, names, False), both(ssd_ref, names, False), inputs, names)


def test_offsets_beyond_two_to_the_31():
    """state-spaces/mamba#880, #1015, #686, #503: 32-bit strides and offsets. The second sample lies 2^31 elements behind the first."""
    inputs = cases.make_inputs((2, 9, 2, 3, 1, 4), torch.float16)
    try:
        far = torch.empty((1 << 31) + 64, dtype=torch.float16)  # virtual memory: only the pages of two samples are touched
    except RuntimeError:
        pytest.skip("no address space for 4 GiB")
    x = far.as_strided((2, 9, 2, 3), (1 << 31, 6, 3, 1))
    x.copy_(inputs[0])
    assert torch.equal(ssd(x, *inputs[1:], dt_softplus=True), ssd(*inputs, dt_softplus=True))


# ------------------------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(dt=torch.zeros(1, 5, 3)), r"dt must have shape \(B, T, H\) = \(1, 5, 4\), got \(1, 5, 3\)"),
        (dict(dt=torch.zeros(1, 5, 4, 2)), r"dt must have shape \(B, T, H\).*got \(1, 5, 4, 2\)"),
        (dict(A=torch.zeros(4, 2)), r"A must have shape \(H,\) = \(4,\), got \(4, 2\)"),
        (dict(B=torch.zeros(1, 5, 6)), r"B must have shape \(B, T, G, N\).*got \(1, 5, 6\)"),
        (dict(C=torch.zeros(1, 5, 1, 6)), r"C must have shape \(B, T, G, N\) = \(1, 5, 2, 6\), got \(1, 5, 1, 6\)"),
        (dict(B=torch.zeros(1, 5, 3, 6), C=torch.zeros(1, 5, 3, 6)), "groups of B and C must divide the 4 heads of x, got 3 groups"),
        (dict(B=torch.zeros(1, 5, 0, 6), C=torch.zeros(1, 5, 0, 6)), "groups of B and C must divide the 4 heads of x, got 0 groups"),
        (dict(D=torch.zeros(3)), r"D must have shape \(H,\) = \(4,\), got \(3,\)"),
        (dict(D=torch.zeros(4, 3, 1)), r"D must have shape \(H,\) or \(H, P\) = \(4,\) or \(4, 3\), got \(4, 3, 1\)"),
        (dict(D=torch.zeros(4, 2)), r"D must have shape \(H, P\) = \(4, 3\), got \(4, 2\)"),
        (dict(z=torch.zeros(1, 6, 4, 3)), r"z must have shape .*got \(1, 6, 4, 3\)"),
        (dict(dt_bias=torch.zeros(4, 1)), r"dt_bias must have shape \(H,\).*got \(4, 1\)"),
        (
            dict(initial_states=torch.zeros(1, 4, 6, 3)),
            r"initial_states must have shape \(B, H, P, N\) = \(1, 4, 3, 6\), got \(1, 4, 6, 3\)",
        ),
    ],
)
def test_bad_input(change, message):
    inputs = dict(
        x=torch.zeros(1, 5, 4, 3), dt=torch.zeros(1, 5, 4), A=torch.zeros(4), B=torch.zeros(1, 5, 2, 6), C=torch.zeros(1, 5, 2, 6)
    )
    with pytest.raises(ValueError, match=message):
        ssd(**(inputs | change))


def test_bytes_moved():
    assert cases.bytes_moved((2, 6, 4, 3, 2, 5), torch.bfloat16, "fwd") == 2 * 6 * 2 * (3 * 12 + 4 + 2 * 2 * 5)
    assert cases.bytes_moved((2, 6, 4, 3, 2, 5), torch.float32, "fwdbwd") == 2 * 6 * 4 * (8 * 12 + 3 * 4 + 6 * 2 * 5)
