"""Cross selective scan: values and gradients against float64 and against the three operators it replaces, paths, hard inputs, kernels."""

import pytest
import torch

from linescan.kernels import testing
from linescan.kernels.cross_scan import cross_merge, cross_scan
from linescan.kernels.selective_scan import (
    cases_cross_selective_scan as cases,
)
from linescan.kernels.selective_scan import (
    cross_selective_scan,
    cross_selective_scan_ref,
    selective_scan,
    torch_cross,
)

NAMES = cases.INPUTS
OPTIONS = {"all": (), "bare": ("D", "delta_bias", "softplus"), "no_bias": ("delta_bias",), "no_skip": ("D",), "no_softplus": ("softplus",)}


def options(inputs, left):
    """(tensors, names, softplus) without the arguments in `left`; step sizes stay positive without softplus."""
    softplus = "softplus" not in left
    if not softplus:
        inputs = [0.2 * x.abs() if n == "delta" else 0.01 * x.abs() if n == "delta_bias" else x for n, x in zip(NAMES, inputs, strict=True)]
    kept = [(n, x) for n, x in zip(NAMES, inputs, strict=True) if n not in left]
    return [x for _, x in kept], [n for n, _ in kept], softplus


def named(op, names, softplus=True, **rest):
    return lambda *x: op(**dict(zip(names, x, strict=True)), delta_softplus=softplus, **rest)


def check(inputs, backend="torch", left=(), floors=None):
    tensors, names, softplus = options(inputs, left)
    op, reference = (
        named(f, names, softplus, **rest) for f, rest in ((cross_selective_scan, {"backend": backend}), (cross_selective_scan_ref, {}))
    )
    testing.assert_matches_reference(op, reference, tensors, names, floors=floors)


def composition(u, delta, A, B, C, D=None, delta_bias=None, delta_softplus=False):
    """cross_scan, selective_scan with four groups, cross_merge; delta, B and C put into the order of the directions by cross_scan."""

    def ordered(x):
        image = x.unflatten(3, u.shape[2:])
        return torch.stack([cross_scan(image[:, k], backend="torch")[:, k] for k in range(4)], 1)

    sequences = cross_scan(u, backend="torch").flatten(1, 2)
    y = selective_scan(
        sequences, ordered(delta).flatten(1, 2), A, ordered(B), ordered(C), D, None, delta_bias, delta_softplus, backend="torch"
    )
    return cross_merge(y.unflatten(1, (4, -1)), tuple(u.shape[2:]), backend="torch").view(u.shape)


# -------------------------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("without", OPTIONS)
@pytest.mark.parametrize("shape", [(1, 2, 1, 3, 1), (2, 1, 2, 2, 2)])
def test_gradcheck(shape, without):
    tensors, names, softplus = options(cases.make_inputs(shape, torch.float64), OPTIONS[without])
    testing.assert_gradcheck(named(cross_selective_scan, names, softplus, backend="torch"), tensors)
    if without == "all":
        testing.assert_gradcheck(named(cross_selective_scan_ref, names, softplus), tensors)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("shape", cases.TEST_SHAPES)
def test_equals_the_three_operators_it_replaces(shape, backend):
    inputs = cases.make_inputs(shape, torch.float64)
    grad_output = torch.randn_like(inputs[0])
    found = (
        testing.gradients(named(f, NAMES, **r), inputs, grad_output)
        for f, r in ((cross_selective_scan, {"backend": backend}), (composition, {}))
    )
    for name, a, e in zip(("y", *NAMES), *found, strict=True):
        testing.assert_close(a, e, 1e-12, name)


@pytest.mark.parametrize("shape", cases.TEST_SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_torch_matches_reference(shape, dtype):
    check(cases.make_inputs(shape, dtype))


@pytest.mark.parametrize("without", OPTIONS)
def test_every_argument_is_optional_that_may_be(without):
    check(cases.make_inputs((2, 3, 5, 7, 3)), left=OPTIONS[without])


@pytest.mark.parametrize("shape", [(2, 3, 13, 9, 2), (3, 7, 8, 5, 1)])
def test_cuts_do_not_change_the_result(monkeypatch, shape):
    """Directions together or one by one, samples together or one by one, small pieces of rows."""
    inputs = cases.make_inputs(shape, torch.float64)
    grad_output = torch.randn_like(inputs[0])
    run = named(cross_selective_scan, NAMES, backend="torch")
    whole = testing.gradients(run, inputs, grad_output)
    for small in (0, 1 << 30):
        for elements in (1, 1 << 23):
            for room in (1, 40):
                for name, value in (("SMALL", small), ("ELEMENTS", elements), ("SERIAL", room)):
                    monkeypatch.setattr(torch_cross, name, value)
                for a, e in zip(testing.gradients(run, inputs, grad_output), whole, strict=True):
                    torch.testing.assert_close(a, e, rtol=1e-11, atol=1e-12)


def test_a_large_image_against_the_three_operators():
    inputs = cases.make_inputs((1, 2, 190, 345, 1))
    exact = composition(*(x.double() for x in inputs), delta_softplus=True)
    testing.assert_close(cross_selective_scan(*inputs, True, backend="torch"), exact, testing.TOLERANCE[torch.float32])


# --------------------------------------------------------------------------------------------------------------------------- hard inputs


def hard(name, inputs):
    """The standard inputs with one thing made hard, and the arguments left out."""
    u, delta, A, B, C, D, bias = (x.clone() for x in inputs)
    left, sign = (), torch.randn(delta.shape, generator=torch.Generator().manual_seed(5)).sign()
    if name in ("delta_x40", "delta_1e4", "delta_minus_inf"):
        delta = {"delta_x40": 80 * delta, "delta_1e4": 1e4 * sign, "delta_minus_inf": delta.masked_fill(sign > 0, -torch.inf)}[name]
    elif name == "rate_zero":
        A = torch.zeros_like(A)
        A[1] = -0.0
    elif name == "rate_huge":
        A = 1e4 * A
    elif name == "growing":
        A = -0.3 * A
    elif name == "equal":
        u, delta, A, B, C = (torch.full_like(x, value) for x, value in ((u, 0.5), (delta, 0.3), (A, -0.7), (B, 0.9), (C, 1.1)))
    return (u, delta, A, B, C, D, bias), left


@pytest.mark.parametrize("name", ["delta_x40", "delta_1e4", "delta_minus_inf", "rate_zero", "rate_huge", "growing", "equal"])
def test_hard_inputs(name):
    inputs, left = hard(name, cases.make_inputs((2, 3, 7, 9, 2)))
    floors = [1e-26] * (len(NAMES) + 1)  # float32 has an exponential of its smallest number where float64 has less
    check(inputs, left=left, floors=floors)


@pytest.mark.parametrize("where", NAMES)
def test_nan_stays_in_its_channel(where):
    """A NaN in B or C belongs to a direction, so it reaches every channel of its sample, and no other sample."""
    clean = cases.make_inputs((2, 4, 5, 6, 2))
    dirty = [x.clone() for x in clean]
    index = {"u": (0, 1, 2, 3), "delta": (0, 2, 1, 7), "A": (5,), "B": (0, 2, 1, 7), "C": (0, 2, 1, 7), "D": (5,), "delta_bias": (5,)}[
        where
    ]
    dirty[NAMES.index(where)][index] = torch.nan
    run = named(cross_selective_scan, NAMES, backend="torch")
    a, b = (testing.gradients(run, x, torch.ones_like(clean[0])) for x in (dirty, clean))
    assert a[0][0, 1].isnan().any()
    assert torch.equal(a[0][1], b[0][1]) or where in ("A", "D", "delta_bias")
    if where not in "BC":
        for i, dim in ((0, 1), (1, 1), (2, 2)):
            keep = torch.tensor([0, 2, 3])
            assert torch.equal(a[i].index_select(dim, keep), b[i].index_select(dim, keep))


# ---------------------------------------------------------------------------------------------------------------------------- properties


def turned(inputs, shape, spatial, directions):
    """The inputs of an image that is flipped or transposed by `spatial`, with the directions exchanged accordingly."""
    u, delta, A, B, C, D, bias = inputs
    order = torch.tensor(directions)
    height, width = shape[2:4]
    delta, B, C = (spatial(x.unflatten(3, (height, width))).flatten(3)[:, order] for x in (delta, B, C))
    A, D, bias = (x.unflatten(0, (4, -1))[order].flatten(0, 1) for x in (A, D, bias))
    return spatial(u), delta, A, B, C, D, bias


def test_symmetries():
    """Turning the image by 180 degrees exchanges a direction with its reverse, transposing it rows with columns."""
    shape = (2, 3, 5, 8, 2)
    inputs = cases.make_inputs(shape, torch.float64)
    y = cross_selective_scan(*inputs, True, backend="torch")
    for spatial, directions in ((lambda x: x.flip(-1, -2), [2, 3, 0, 1]), (lambda x: x.transpose(-1, -2), [1, 0, 3, 2])):
        actual = cross_selective_scan(*turned(inputs, shape, spatial, directions), True, backend="torch")
        torch.testing.assert_close(actual, spatial(y), rtol=1e-11, atol=1e-12)


def test_linear_in_u_and_sum_of_directions():
    inputs = cases.make_inputs((2, 3, 6, 5, 2), torch.float64)
    u, rest = inputs[0], inputs[1:]
    run = named(cross_selective_scan, NAMES, backend="torch")
    torch.testing.assert_close(run(2 * u + 1, *rest), 2 * run(u, *rest) + run(torch.ones_like(u), *rest), rtol=1e-11, atol=1e-12)
    masks = torch.eye(4, dtype=torch.float64)
    parts = [run(u, rest[0], rest[1], rest[2], rest[3] * m[:, None, None], rest[4] * m.repeat_interleave(3), rest[5]) for m in masks]
    torch.testing.assert_close(sum(parts), run(*inputs), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("shape", [(0, 3, 4, 5, 2), (2, 3, 0, 5, 2), (2, 3, 4, 0, 1), (2, 0, 4, 5, 1)])
def test_empty(shape):
    inputs = cases.make_inputs(shape)
    found = testing.gradients(named(cross_selective_scan, NAMES, backend="torch"), inputs, torch.zeros(shape[:4]))
    assert found[0].shape == cross_selective_scan_ref(*inputs, True).shape == shape[:4]
    for x, g in zip(inputs, found[1:], strict=True):
        assert g.shape == x.shape and (g == 0).all()


def test_channels_last_images_and_mixed_dtypes():
    inputs = list(cases.make_inputs((2, 6, 5, 7, 2), torch.float64))
    expected = testing.gradients(named(cross_selective_scan, NAMES, backend="torch"), inputs, torch.ones_like(inputs[0]))
    inputs[0] = inputs[0].contiguous(memory_format=torch.channels_last)
    inputs[1] = inputs[1].transpose(2, 3).contiguous().transpose(2, 3)
    found = testing.gradients(
        named(cross_selective_scan, NAMES, backend="torch"), inputs, torch.ones(1, 1, 1, 1).double().expand(2, 6, 5, 7)
    )
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-13)
    inputs = [x.float() if n in ("u", "A", "D", "delta_bias") else x.bfloat16() for n, x in zip(NAMES, inputs, strict=True)]
    y, *grads = testing.gradients(named(cross_selective_scan, NAMES, backend="torch"), inputs, torch.ones_like(inputs[0]))
    assert y.dtype == torch.float32 and [g.dtype for g in grads] == [x.dtype for x in inputs]
    testing.assert_close(y, cross_selective_scan_ref(*(x.double() for x in inputs), True), testing.TOLERANCE[torch.float32])


# ------------------------------------------------------------------------------------------------------------------------ Triton kernels


@pytest.fixture
def kernels(triton_device):
    return pytest.importorskip("linescan.kernels.selective_scan.triton_cross")


TRITON = list(zip(cases.TRITON_SHAPES[:5], (torch.float64, torch.bfloat16, torch.float32, torch.float64, torch.float32), strict=True))


@pytest.mark.parametrize(("shape", "dtype"), TRITON)
def test_triton_matches_reference(triton_device, shape, dtype):
    """One pixel, one row, one column, several blocks of channels and of lines with aligned loads, padded states."""
    check(cases.make_inputs(shape, dtype, triton_device), "triton")


def test_triton_chunks_of_a_line(triton_device, kernels, monkeypatch):
    """Four chunks of the row sequence; two chunks of every column, the second shorter."""
    monkeypatch.setattr(kernels, "SHORTEST_CHUNK", 4)
    check(cases.make_inputs((1, 8, 5, 3, 1), torch.float32, triton_device), "triton")


def test_triton_without_optional_arguments_from_strided_tensors(triton_device):
    inputs = cases.make_inputs((1, 2, 2, 3, 1), torch.float64, triton_device)
    spread = [torch.stack((x, torch.full_like(x, torch.nan)), -1)[..., 0] for x in inputs]
    check(spread, "triton", left=OPTIONS["bare"])


def test_triton_writes_every_element_and_repeats_bitwise(triton_device):
    inputs = cases.make_inputs((1, 3, 2, 3, 1), torch.bfloat16, triton_device)
    with testing.poisoned_memory():
        runs = [
            testing.gradients(named(cross_selective_scan, NAMES, backend="triton"), inputs, torch.ones_like(inputs[0])) for _ in range(2)
        ]
    for a, b in zip(*runs, strict=True):
        assert a.isfinite().all() and torch.equal(a, b)


@pytest.mark.parametrize("shape", [(0, 3, 4, 5, 2), (2, 3, 0, 5, 2)])
def test_triton_empty(triton_device, shape):
    inputs = cases.make_inputs(shape, device=triton_device)
    found = testing.gradients(named(cross_selective_scan, NAMES, backend="triton"), inputs, torch.zeros(shape[:4], device=triton_device))
    assert all((x == 0).all() for x in found)


@pytest.mark.parametrize("shape", [*cases.BENCHMARK_SHAPES, (2, 3, 700, 3, 1), (1, 1, 3, 2000, 4), (70000, 1, 2, 2, 1)])
def test_triton_plans_cover_the_image_inside_the_limits_of_a_grid(kernels, shape):
    from linescan.kernels.triton_runtime import LARGEST_GRID

    u, delta, A, *_ = (x.to("meta") for x in cases.make_inputs((1, *shape[1:])))
    u, delta = (x.expand(shape[0], *x.shape[1:]) for x in (u, delta))
    for first in range(2):
        plan = kernels.plan(u, [u.flatten(2), delta], A, first, kernels.STEPS)
        assert plan.lines * plan.steps == shape[2] * shape[3]
        assert plan.chunks * plan.chunk_length >= plan.steps > (plan.chunks - 1) * plan.chunk_length
        assert plan.chunk_length % kernels.STEPS == 0 and plan.steps % plan.width == 0
        assert plan.blocks * plan.block_channels >= shape[1] and plan.block_channels * plan.block_lines % 32 == 0
        assert all(size <= limit for size, limit in zip(plan.grid, LARGEST_GRID, strict=False))


def test_triton_refuses_what_it_cannot_hold(kernels):
    inputs = [x.to("meta") for x in cases.make_inputs((1, 1, 1, 2, 64))]
    assert "at most 32 states" in kernels.unsupported(*inputs, True)
    far = torch.empty(1, 1 << 12, 1 << 10, 1 << 10, device="meta")
    assert "2^31" in kernels.unsupported(far, *cases.make_inputs((1, 1, 1, 2, 1))[1:], True)


# ------------------------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(u=torch.zeros(1, 2, 12)), r"u must have shape \(B, D, H, W\), got \(1, 2, 12\)"),
        (dict(delta=torch.zeros(1, 2, 12)), r"delta must have shape \(B, 4, D, HW\).*got \(1, 2, 12\)"),
        (dict(delta=torch.zeros(1, 4, 3, 12)), r"delta must have shape .* = \(1, 4, 2, HW\), got \(1, 4, 3, 12\)"),
        (dict(B=torch.zeros(1, 4, 3, 11)), r"B must have shape .* = \(1, 4, 3, 12\), got \(1, 4, 3, 11\)"),
        (dict(C=torch.zeros(1, 1, 3, 12)), r"C must have shape .* = \(1, 4, 3, 12\), got \(1, 1, 3, 12\)"),
        (dict(A=torch.zeros(2, 3)), r"A must have 4 D = 8 rows, got 2"),
        (dict(D=torch.zeros(2)), r"D must have shape \(4D,\) = \(8,\), got \(2,\)"),
        (dict(u=torch.zeros(1, 2, 3, 5)), r"delta, B and C must have H W = 15 pixels like u, got 12"),
        (dict(A=torch.zeros(8, 0), B=torch.zeros(1, 4, 0, 12), C=torch.zeros(1, 4, 0, 12)), r"A must have at least one state"),
        (dict(delta_bias=[0.0]), r"delta_bias must be a Tensor or None, got list"),
        (dict(u=torch.zeros(1, 2, 3, 4, dtype=torch.int32)), r"u must be a floating-point tensor, got torch.int32"),
    ],
)
def test_bad_input_is_named(change, message):
    good = dict(
        u=torch.zeros(1, 2, 3, 4),
        delta=torch.zeros(1, 4, 2, 12),
        A=torch.zeros(8, 3),
        B=torch.zeros(1, 4, 3, 12),
        C=torch.zeros(1, 4, 3, 12),
    )
    with pytest.raises((TypeError, ValueError), match=message):
        cross_selective_scan(**(good | change))
