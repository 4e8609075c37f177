"""Q-shift and its interpolations: the cuts by their definition, values and gradients of every backend, memory layouts, hard inputs."""

from functools import partial

import pytest
import torch

from linescan.kernels import testing
from linescan.kernels.q_shift import cases, cases_q_shift_mix, q_shift, q_shift_mix, q_shift_mix_ref, q_shift_ref

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = {  # keyword arguments of tokens (2, 5 * 7 + extra, C)
    "plain": dict(size=(5, 7)),
    "heads": dict(size=(5, 7), heads=3),
    "class_token": dict(size=(7, 5), extra_tokens=1),
    "heads_and_two_tokens": dict(size=(35, 1), heads=6, extra_tokens=2),
    "one_row": dict(size=(1, 35), heads=2),
    "nothing_on_the_grid": dict(size=(5, 0), extra_tokens=35),
}


@pytest.fixture(params=["torch", "triton"])
def backend(request) -> str:
    return request.param


@pytest.fixture
def device(request, backend) -> str:
    return request.getfixturevalue("triton_device") if backend == "triton" else "cpu"


def tokens(kwargs, dtype=torch.float32, device="cpu", channels=24):
    height, width = kwargs["size"]
    shape = (2, height * width + kwargs.get("extra_tokens", 0), channels)
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(device, dtype)


def shares(count=3, channels=24, dtype=torch.float32, device="cpu"):
    return torch.linspace(-0.2, 1.3, count * channels).view(count, channels).to(device, dtype)


@pytest.mark.parametrize("heads", [1, 2, 3])
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (4, 1), (3, 5)])
def test_reference_takes_each_quarter_from_its_neighbour(size, heads):
    height, width = size
    channels, extra = 18, 2  # 4 does not divide 18, 9 or 6: quarters of different width
    x = torch.arange(1.0, (height * width + extra) * channels + 1).view(1, -1, channels)
    out = q_shift_ref(x, size, heads, extra)[0]
    per_head = channels // heads
    for t in range(height * width + extra):
        for c in range(channels):
            inner = c % per_head
            cuts = [int(per_head / 4), int(per_head / 2), int(3 * per_head / 4)]
            rows, columns = ((0, -1), (0, 1), (-1, 0), (1, 0))[sum(inner >= cut for cut in cuts)]
            h, w = t // width + rows, t % width + columns
            if t >= height * width:
                assert out[t, c] == x[0, t, c]
            else:
                assert out[t, c] == (x[0, h * width + w, c] if 0 <= h < height and 0 <= w < width else 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", cases_q_shift_mix.TEST_SHAPES)
def test_torch_matches_reference_on_grids(shape, dtype):
    for module in (cases, cases_q_shift_mix):
        inputs = module.make_inputs(shape[: len(module.SHAPE_NAMES.split())], dtype)
        testing.assert_matches_reference(partial(module.OP, backend="torch"), module.REFERENCE, inputs, module.INPUTS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", cases_q_shift_mix.TRITON_SHAPES)
def test_triton_matches_reference_on_grids(triton_device, shape, dtype):
    for module in (cases, cases_q_shift_mix):
        inputs = module.make_inputs(shape[: len(module.SHAPE_NAMES.split())], dtype, triton_device)
        testing.assert_matches_reference(partial(module.OP, backend="triton"), module.REFERENCE, inputs, module.INPUTS)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matches_reference_with_heads_and_extra_tokens(backend, device, layout, dtype):
    kwargs = LAYOUTS[layout]
    inputs = tokens(kwargs, dtype, device), shares(device=device)
    for op, reference, some in ((q_shift, q_shift_ref, 1), (q_shift_mix, q_shift_mix_ref, 2)):
        run, exact = partial(op, backend=backend, **kwargs), partial(reference, **kwargs)
        testing.assert_matches_reference(run, exact, inputs[:some], ("x", "mixes")[:some])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradcheck(layout):
    kwargs = LAYOUTS[layout] | dict(size={"one_row": (1, 5), "nothing_on_the_grid": (5, 0)}.get(layout, (3, 2)))
    x, mixes = tokens(kwargs, torch.float64, channels=6)[:1, :12], shares(2, 6)
    kwargs = kwargs | dict(extra_tokens=min(kwargs.get("extra_tokens", 0), 12))
    for run in (partial(q_shift_ref, **kwargs), partial(q_shift, backend="torch", **kwargs)):
        testing.assert_gradcheck(run, (x,))
    for run in (partial(q_shift_mix_ref, **kwargs), partial(q_shift_mix, backend="torch", **kwargs)):
        testing.assert_gradcheck(run, (x, mixes))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden(golden_ops, backend, device, dtype):
    golden = torch.load(golden_ops / "qshift_inits.pt", weights_only=True)
    x, expected = golden["qshift_in"].to(device, dtype), golden["qshift_out"].to(device, dtype)
    size = tuple(golden["qshift_hw"].tolist())
    grid = x.unflatten(1, size)
    for chosen in (backend, "reference"):
        assert torch.equal(q_shift(x, size, backend=chosen), expected)
        assert torch.equal(q_shift(grid, backend=chosen), expected.unflatten(1, size))
        ends = torch.zeros(2, x.shape[2], device=device, dtype=dtype)
        ends[1] = 1
        shifted, same = q_shift_mix(x, ends, size, backend=chosen)
        assert torch.equal(shifted, expected)
        torch.testing.assert_close(same, x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_backward_is_the_adjoint(backend, device, layout):
    kwargs = LAYOUTS[layout]
    x, g = tokens(kwargs, torch.float64, device), tokens(kwargs, torch.float64, device).flip(0)
    out, gx = testing.gradients(partial(q_shift, backend=backend, **kwargs), (x,), g)
    torch.testing.assert_close((out * g).sum(), (x * gx).sum(), rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_shift_moves_values_and_computes_nothing(backend, device, dtype):
    x = tokens(LAYOUTS["class_token"], dtype, device)
    x[0, 17, 3], x[0, 18, 9], x[1, 16, 15], x[1, 17, 20] = torch.nan, torch.inf, -torch.inf, -0.0
    actual, expected = (q_shift(x, backend=b, **LAYOUTS["class_token"]) for b in (backend, "reference"))
    assert torch.equal(actual.view(torch.int16), expected.view(torch.int16))


def test_a_token_off_the_grid_passes_every_mix_unchanged(backend, device):
    x = tokens(LAYOUTS["class_token"], device=device)
    out = q_shift_mix(x, shares(device=device), backend=backend, **LAYOUTS["class_token"])
    assert torch.equal(out[:, :, -1], x[:, -1].expand(3, -1, -1))


@pytest.mark.parametrize("where", ["x", "mixes"])
def test_nan_stays_in_its_channel(backend, device, where):
    inputs = [tokens(LAYOUTS["heads"], device=device), shares(device=device)]
    g = torch.randn(3, *inputs[0].shape, generator=torch.Generator().manual_seed(5)).to(device)
    run = partial(q_shift_mix, backend=backend, **LAYOUTS["heads"])
    clean = testing.gradients(run, inputs, g)
    index = 0 if where == "x" else 1
    inputs[index] = inputs[index].clone()
    inputs[index][(0, 17, 5) if where == "x" else (1, 5)] = torch.nan
    dirty = testing.gradients(run, inputs, g)
    keep = torch.tensor([c for c in range(24) if c != 5], device=device)
    for a, b in zip(dirty, clean, strict=True):
        assert torch.equal(a[..., keep], b[..., keep])
    assert dirty[0][..., 5].isnan().any()


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # of the interpreter's NumPy
def test_border_tokens_see_no_infinity_from_the_other_end_of_a_row(backend, device):
    """Left of the first token of a row lies, in memory, the last token of the row before it."""
    x = torch.zeros(1, 3, 4, 8, device=device)
    x[:, :, -1] = torch.inf  # inf - inf is NaN, there only
    assert q_shift(x, backend=backend)[:, :, 0].isfinite().all()
    assert q_shift_mix(x, torch.full((2, 8), 0.5, device=device), backend=backend)[:, :, :, 0].isfinite().all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_element_is_written_and_runs_repeat_bitwise(backend, device, layout):
    kwargs = LAYOUTS[layout]
    x, mixes = tokens(kwargs, device=device), shares(device=device)
    g = torch.ones(3, *x.shape, device=device)
    with testing.poisoned_memory():
        first, second = (
            (
                *testing.gradients(partial(q_shift, backend=backend, **kwargs), (x,), g[0]),
                *testing.gradients(partial(q_shift_mix, backend=backend, **kwargs), (x, mixes), g),
            )
            for _ in range(2)
        )
    for a, b in zip(first, second, strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)


def test_mixes_gradient_of_many_tiles(triton_device, monkeypatch):
    """Programs of the backward that take several tiles, the last of them beyond the end."""
    from linescan.kernels.q_shift import triton_mix_kernels

    monkeypatch.setattr(triton_mix_kernels, "_rounds", lambda *tiles: 4)
    inputs = torch.randn(2, 13, 11, 20, device=triton_device), shares(3, 20, device=triton_device)
    testing.assert_matches_reference(partial(q_shift_mix, backend="triton"), q_shift_mix_ref, inputs, ("x", "mixes"))


@pytest.mark.parametrize("size", [(256, 256), (1, 65536)])
def test_65536_tokens(size):
    x, mixes = torch.randn(1, 65536, 12), shares(3, 12)
    assert torch.equal(q_shift(x, size, backend="torch"), q_shift_ref(x, size))
    run, reference = partial(q_shift_mix, size=size, backend="torch"), partial(q_shift_mix_ref, size=size)
    testing.assert_matches_reference(run, reference, (x, mixes), ("x", "mixes"))


@pytest.mark.parametrize("shape", [(0, 3, 4, 8), (2, 0, 4, 8), (2, 3, 0, 8), (2, 3, 4, 0)])
@pytest.mark.parametrize("count", [0, 2])
def test_empty(backend, device, shape, count):
    x, mixes = torch.ones(shape, device=device), torch.ones(count, shape[3], device=device)
    for out, leaf in zip(testing.gradients(partial(q_shift, backend=backend), (x,), x), (x, x), strict=True):
        assert out.shape == leaf.shape
    out, gx, gmixes = testing.gradients(partial(q_shift_mix, backend=backend), (x, mixes), torch.ones(count, *shape))
    assert (out.shape, gx.shape, gmixes.shape) == ((count, *shape), shape, mixes.shape)
    assert not gmixes.any()


def test_mixed_dtypes_follow_each_input(backend, device):
    x = tokens(LAYOUTS["plain"], torch.bfloat16, device).requires_grad_()
    mixes = shares(device=device).requires_grad_()
    out = q_shift_mix(x, mixes, (5, 7), backend=backend)
    out.float().sum().backward()
    assert (out.dtype, x.grad.dtype, mixes.grad.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)


# ------------------------------------------------------------------------------------------------------------------------ memory layouts


def test_strided_inputs_and_gradients(backend, device):
    """A gradient that is not contiguous has been taken for one that is (fla-org/flash-linear-attention#871)."""
    x, mixes = tokens(LAYOUTS["plain"], torch.float64, device), shares(dtype=torch.float64, device=device)
    g = torch.randn(3, *x.shape, dtype=torch.float64, device=device)
    of_an_image = x.transpose(1, 2).contiguous().transpose(1, 2)
    turned = g.permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0)
    for op, reference, some, grads in ((q_shift, q_shift_ref, 1, (g[0], turned[0])), (q_shift_mix, q_shift_mix_ref, 2, (g, turned))):
        expected = testing.gradients(partial(reference, size=(5, 7)), (x, mixes)[:some], grads[0])
        for source in (testing.strided(x), of_an_image):
            leaves = [source.requires_grad_(), mixes.t().contiguous().t().requires_grad_()][:some]
            out = op(*leaves, (5, 7), backend=backend)
            assert out.is_contiguous()
            for a, b in zip((out, *torch.autograd.grad(out, leaves, grads[1])), expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_an_expanded_gradient(backend, device):
    x, mixes = tokens(LAYOUTS["heads"], torch.float64, device), shares(dtype=torch.float64, device=device)
    leaves = x.requires_grad_(), mixes.requires_grad_()
    actual, expected = (
        torch.autograd.grad(q_shift_mix(*leaves, backend=b, **LAYOUTS["heads"]).sum(), leaves) for b in (backend, "reference")
    )
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_grids_stay_on_the_axis_without_a_limit():
    """More than 65535 blocks on another axis have made peers fail (state-spaces/mamba#505)."""
    pytest.importorskip("triton")
    from linescan.kernels.q_shift import triton_kernels, triton_mix_kernels
    from linescan.kernels.triton_runtime import record_launches

    x, mixes = torch.empty(70000, 1024, 384, device="meta"), torch.empty(3, 384, device="meta")
    with record_launches() as launches:
        triton_kernels.forward(x, 32, 32, 1, 0)
        triton_mix_kernels.backward(x, mixes, triton_mix_kernels.forward(x, mixes, 32, 32, 1, 0), 32, 32, 1, 0)
    assert all(len(launch.grid) == 1 and launch.grid[0] > 65535 for launch in launches)
    assert "takes at most 8 mixes" in triton_mix_kernels.unsupported(x, torch.empty(9, 384), 32, 32, 1, 0)
    assert triton_mix_kernels.unsupported(x, mixes, 32, 32, 1, 0) is None


# ------------------------------------------------------------------------------------------------------------------------------ bad input

X, MIXES = torch.zeros(1, 6, 8), torch.zeros(3, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: q_shift(X), r"q_shift: size must be \(H, W\) where x is \(B, T, C\), got None"),
        (lambda: q_shift(X, 6), r"q_shift: size must be \(H, W\) where x is \(B, T, C\), got 6"),
        (lambda: q_shift(X, (2, 4)), r"q_shift: size must be .* H \* W \+ extra_tokens = 6, the tokens of x, got \(2, 4\) and 0 extra"),
        (lambda: q_shift(X, (-2, -3)), r"q_shift: size must be .*got \(-2, -3\)"),
        (lambda: q_shift(X, (7, 1), extra_tokens=-1), "q_shift: size must be .*and -1 extra tokens"),
        (lambda: q_shift(X, (2, 3), heads=3), "q_shift: heads must divide the 8 channels of x, got 3"),
        (lambda: q_shift(X, (2, 3), heads=0), "q_shift: heads must divide the 8 channels of x, got 0"),
        (lambda: q_shift(X[0], (2, 3)), r"q_shift: x must have shape \(B, T, C\) or \(B, H, W, C\).*got \(6, 8\)"),
        (lambda: q_shift(X.view(1, 2, 3, 8), (3, 2)), r"q_shift: size must be that of x, \(2, 3\), or None, got \(3, 2\)"),
        (lambda: q_shift(X.view(1, 2, 3, 8), extra_tokens=1), r"q_shift: extra_tokens must be 0 where x is \(B, H, W, C\), got 1"),
        (lambda: q_shift_mix(X, torch.zeros(3, 7), (2, 3)), r"q_shift_mix: mixes must have shape \(M, C\).*got \(3, 7\)"),
        (lambda: q_shift_mix(X, torch.zeros(8), (2, 3)), r"q_shift_mix: mixes must have shape \(M, C\).*got \(8,\)"),
        (lambda: q_shift_mix(X, MIXES, (3, 3)), r"q_shift_mix: size must be .*got \(3, 3\)"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
