"""Bi-WKV: values and gradients against float64, hard inputs, properties."""

import pytest
import torch
from torch.func import vmap

from linescan.kernels import costs, testing
from linescan.kernels.bi_wkv import bi_wkv, bi_wkv_ref, cases, torch_chunked

NAMES = cases.INPUTS
DECAYS = {  # per token; the names say which path of the chunked backend they take
    "chunks": lambda c, t: torch.linspace(-5, 3, c) / t,
    "chunks_strong": lambda c, t: torch.linspace(0, 1.5, c),
    "zero": lambda c, t: torch.tensor([0.0, -0.0]).repeat(c)[:c],
    "tokens_strong": lambda c, t: torch.linspace(0.001, 30, c),
    "tokens_growing": lambda c, t: torch.linspace(-0.6, 0.1, c),
    "tokens_huge": lambda c, t: torch.tensor([1e4, -1e4, 1.0, -1.0]).repeat(c)[:c],
}
BONUSES = {"u0": 0.3, "u+100": 100.0, "u-100": -100.0}


def floors(inputs):
    """Rounding of terms that cancel exactly in a one-hot softmax: each gradient is a sum of differences of such terms (gw: times
    distance)."""
    unit, (batch, length, _) = 4 * testing.UNIT[inputs[2].dtype], inputs[2].shape
    root = (batch * length) ** 0.5
    return [0.0, unit * root * length, unit * root, unit, 0.0]


def run(*inputs):
    return bi_wkv(*inputs, backend="torch")


@pytest.mark.parametrize("shape", [(1, 1, 2), (2, 2, 2), (1, 7, 3), (2, 19, 2)])
@pytest.mark.parametrize("decay", DECAYS)
def test_gradcheck(shape, decay):
    _, u, k, v = cases.make_inputs(shape, torch.float64)
    w = DECAYS[decay](shape[2], shape[1]).double()
    if decay != "tokens_huge":  # there central differences of w see nothing but zeros
        testing.assert_gradcheck(bi_wkv_ref, (w, u, k, v))
    testing.assert_gradcheck(run, (w, u, k, v))


@pytest.mark.parametrize("shape", cases.TEST_SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_matches_reference(shape, dtype):
    inputs = cases.make_inputs(shape, dtype)
    testing.assert_matches_reference(run, bi_wkv_ref, inputs, NAMES, floors=floors(inputs))


@pytest.mark.parametrize("name", ["wkv_grad", "wkv_grad_more"])
@pytest.mark.parametrize("backend", ["c", "torch"])
def test_golden(golden_ops, name, backend):
    stored = torch.load(golden_ops / f"{name}.pt", weights_only=True)
    groups = [stored] if "gy" in stored else list((stored.get("cases") or stored).values())
    assert groups
    for case in groups:
        for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-5)):  # float32 rounds the stored keys, up to 120, as well
            if backend == "c" and dtype == torch.float64:
                continue  # it has no float64
            inputs = [case[n].to(dtype) for n in NAMES]
            results = testing.gradients(lambda *x: bi_wkv(*x, backend=backend), inputs, case["gy"])
            for key, actual in zip(("y", "gw", "gu", "gk", "gv"), results, strict=True):
                scale = case[key].abs().max().clamp(min=case["gy"].abs().max() * 0.1)
                assert (actual.double() - case[key]).abs().max() <= tolerance * scale, (key, dtype)


@pytest.mark.parametrize("length", [4096, 65536])
@pytest.mark.parametrize("decay", ["chunks", "tokens_growing", "tokens_strong"])
def test_long_sequences_against_the_sum_at_sampled_tokens(length, decay):
    """The definition in float64 at five tokens; a loss of those tokens alone has exact gradients for every input."""
    _, u, k, v = cases.make_inputs((1, length, 3))
    w = DECAYS[decay](3, length)
    at = torch.tensor([0, 1, length // 3, length - 2, length - 1])
    weight = torch.randn(5, 3)

    def definition(w, u, k, v):
        distance = (at[:, None] - torch.arange(length)).abs()[..., None]
        weights = torch.softmax(torch.where(distance == 0, u, -(distance - 1) * w) + k, 1)
        return (weights * v).sum(1)

    exact = testing.gradients(definition, (w, u, k, v), weight, torch.float64)
    actual = testing.gradients(lambda *x: run(*x)[0, at], (w, u, k, v), weight)
    for name, a, e in zip(("y", *NAMES), actual, exact, strict=True):
        testing.assert_close(a, e, 1e-5, name)


@pytest.mark.parametrize("keys", testing.hard_log_weights((1, 4, 1), torch.Generator()))
@pytest.mark.parametrize("decay", DECAYS)
def test_hard_keys(keys, decay):
    shape = (2, 75, 4)
    _, u, _, v = cases.make_inputs(shape)
    k = testing.hard_log_weights(shape, torch.Generator().manual_seed(1))[keys]
    inputs = (DECAYS[decay](4, 75), u, k, v)
    testing.assert_matches_reference(run, bi_wkv_ref, inputs, NAMES, floors=floors(inputs))


@pytest.mark.parametrize("bonus", BONUSES)
@pytest.mark.parametrize("decay", DECAYS)
def test_hard_bonus(bonus, decay):
    _, u, k, v = cases.make_inputs((2, 40, 4))
    inputs = (DECAYS[decay](4, 40), torch.full_like(u, BONUSES[bonus]), 40 * k, v)
    testing.assert_matches_reference(run, bi_wkv_ref, inputs, NAMES, floors=floors(inputs))


@pytest.mark.parametrize("decay", ["chunks", "tokens_strong"])
def test_properties(decay):
    _, u, k, v = cases.make_inputs((2, 77, 6), torch.float64)
    w = DECAYS[decay](6, 77).double()
    y = run(w, u, k, v)
    torch.testing.assert_close(run(w, u, k.flip(1), v.flip(1)), y.flip(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(run(w, u, k + 1234.5, v), y, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(run(w, u, k, 3 * v + k), 3 * y + run(w, u, k, k), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(run(w, u, k, torch.ones_like(v)), torch.ones_like(v), rtol=1e-12, atol=1e-12)
    one = run(w, u, k[:, :1], v[:, :1])
    torch.testing.assert_close(one, v[:, :1], rtol=1e-14, atol=0)


def test_keys_far_from_zero_lose_nothing_in_float32():
    """Keys on a grid of 2^-10, so that adding 2^13 is exact: log scales of chunks must not be rounded apart from their sums."""
    w, u, k, v = cases.make_inputs((2, 300, 8))
    k, grad_output = (1024 * k).round() / 1024, torch.randn(2, 300, 8)
    near, far = (testing.gradients(run, (3 * w, u, keys, v), grad_output) for keys in (k, k + 8192))
    exact = testing.gradients(run, (3 * w, u, k, v), grad_output, torch.float64)
    for name, a, b, e in zip(("y", *NAMES), far, near, exact, strict=True):
        testing.assert_as_accurate(a, b, e, name)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("size", [1e18, torch.inf])
def test_absurd_decays_equal_their_limit(sign, size):
    _, u, k, v = cases.make_inputs((2, 75, 4))
    grad_output = torch.randn(2, 75, 4)
    actual, limit = (testing.gradients(run, (torch.full((4,), sign * x), u, 1e4 * k, v), grad_output) for x in (size, 1e6))
    exact = testing.gradients(bi_wkv_ref, (torch.full((4,), sign * 1e6), u, 1e4 * k, v), grad_output, torch.float64)
    for a, b, e in zip(actual, limit, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(b.double(), e, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("where", NAMES)
@pytest.mark.parametrize("decay", ["chunks", "tokens_strong"])
def test_nan_stays_in_its_channel(where, decay):
    _, u, k, v = cases.make_inputs((2, 50, 5))
    clean = [DECAYS[decay](5, 50), u, k, v]
    dirty = [x.clone() for x in clean]
    dirty[NAMES.index(where)][(2,) if where in "wu" else (0, 20, 2)] = float("nan")
    grad_output = torch.randn(2, 50, 5)
    for a, b in zip(testing.gradients(run, dirty, grad_output), testing.gradients(run, clean, grad_output), strict=True):
        keep = [0, 1, 3, 4]
        torch.testing.assert_close(a[..., keep], b[..., keep], rtol=1e-5, atol=1e-5)
    assert run(*dirty)[..., 2].isnan().any()


@pytest.mark.parametrize("decay", ["chunks", "tokens_strong"])
@pytest.mark.parametrize("shape", [(2, 61, 5), (2, 64, 5), (1, 1, 5)])
def test_every_element_is_written_and_runs_repeat_bitwise(shape, decay):
    _, u, k, v = cases.make_inputs(shape)
    w, grad_output = DECAYS[decay](5, shape[1]), torch.randn(shape)
    torch_chunked._scratch.buffers.clear()
    with testing.poisoned_memory():
        first = testing.gradients(run, (w, u, k, v), grad_output)
        testing.gradients(run, (w, u, k * torch.nan, v), grad_output)  # what a call leaves in kept buffers must not reach the next
        second = testing.gradients(run, (w, u, k, v), grad_output)
    for a, b in zip(first, second, strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)


def test_kept_buffers_made_in_inference_mode_serve_training():
    inputs, grad_output = cases.make_inputs((1, 50, 6)), torch.randn(1, 50, 6)
    expected = testing.gradients(run, inputs, grad_output)
    torch_chunked._scratch.buffers.clear()
    with torch.inference_mode():
        run(*inputs)
    for a, b in zip(testing.gradients(run, inputs, grad_output), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("decay", ["chunks", "tokens_strong"])
@pytest.mark.parametrize("serial_threads", [0, 10**6], ids=["parallel", "serial"])
def test_blocks_do_not_change_the_result(monkeypatch, decay, serial_threads):
    shape = _, length, channels = (3, 40, 21)
    _, u, k, v = cases.make_inputs(shape, torch.float64)
    inputs, grad_output = (DECAYS[decay](channels, length).double(), u, k, v), torch.randn(shape)
    whole = testing.gradients(run, inputs, grad_output)
    monkeypatch.setattr(torch_chunked, "SERIAL_THREADS", serial_threads)
    for size in (1, length * channels * 2, 1 << 20):
        monkeypatch.setattr(torch_chunked, "BLOCK", size)
        monkeypatch.setattr(torch_chunked, "SERIAL", size)
        monkeypatch.setattr(torch_chunked, "SHARED", size)
        for a, b in zip(testing.gradients(run, inputs, grad_output), whole, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0)])
def test_empty(shape):
    w, u, k, v = torch.zeros(shape[2]), torch.zeros(shape[2]), torch.zeros(shape), torch.zeros(shape)
    out = testing.gradients(run, (w, u, k, v), torch.zeros(shape))
    assert [tuple(x.shape) for x in out] == [shape, (shape[2],), (shape[2],), shape, shape]
    assert all((x == 0).all() for x in out)


def test_strided_inputs_and_gradient():
    w, u, k, v = cases.make_inputs((2, 45, 6))
    expected = testing.gradients(run, (w, u, k, v), torch.ones(2, 45, 6))
    leaves = [w.requires_grad_(), u.requires_grad_(), testing.strided(k).requires_grad_(), v.transpose(0, 1).contiguous().requires_grad_()]
    out = bi_wkv(*leaves[:3], leaves[3].transpose(0, 1))
    assert out.is_contiguous()
    out.sum().backward()  # an expanded gradient, all strides zero
    for actual, e in zip((out, *(x.grad for x in leaves[:3]), leaves[3].grad.transpose(0, 1)), expected, strict=True):
        torch.testing.assert_close(actual, e)


def test_mixed_dtypes_follow_k_and_each_input():
    w, u, k, v = cases.make_inputs((1, 20, 4), torch.bfloat16)
    leaves = [w.requires_grad_(), u.requires_grad_(), k.requires_grad_(), v.float().requires_grad_()]
    out = bi_wkv(*leaves)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert [x.grad.dtype for x in leaves] == [torch.float32, torch.float32, torch.bfloat16, torch.float32]


def test_vmap_over_any_dimension():
    w, u, k, v = cases.make_inputs((4, 21, 4))
    out = vmap(lambda a, b: bi_wkv(w, u, a[None], b[None])[0], in_dims=(1, 1), out_dims=2)(k.transpose(0, 1), v.transpose(0, 1))
    torch.testing.assert_close(out.permute(2, 0, 1), bi_wkv(w, u, k, v))


def test_arithmetic_is_the_published_count():
    assert costs.bi_wkv([x.shape for x in cases.make_inputs((2, 37, 8))]) == 29 * 2 * 37 * 8


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(w=torch.zeros(3)), ValueError, r"w must have shape \(C,\) = \(4,\), got \(3,\)"),
        (dict(u=torch.zeros(4, 1)), ValueError, r"u must have shape \(C,\) = \(4,\), got \(4, 1\)"),
        (dict(k=torch.zeros(5, 4)), ValueError, r"k must have shape \(B, T, C\), got \(5, 4\)"),
        (dict(v=torch.zeros(1, 6, 4)), ValueError, r"v must have shape \(B, T, C\) = \(1, 5, 4\), got \(1, 6, 4\)"),
        (dict(k=torch.zeros(1, 5, 4, dtype=torch.int64)), TypeError, "k must be a floating-point tensor, got torch.int64"),
        (dict(v=[1.0]), TypeError, "v must be a Tensor, got list"),
        (dict(w=torch.zeros(4, device="meta")), ValueError, r"w must be on the device of k \(cpu\), got meta"),
    ],
)
def test_bad_input(change, error, message):
    inputs = dict(w=torch.zeros(4), u=torch.zeros(4), k=torch.zeros(1, 5, 4), v=torch.zeros(1, 5, 4)) | change
    with pytest.raises(error, match=message):
        bi_wkv(**inputs)


def test_bytes_moved():
    assert cases.bytes_moved((2, 3, 4), torch.bfloat16, "fwd") == 3 * 24 * 2
    assert cases.bytes_moved((2, 3, 4), torch.float32, "fwdbwd") == 8 * 24 * 4
