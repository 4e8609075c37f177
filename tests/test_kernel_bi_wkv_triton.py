"""Bi-WKV in Triton: values and gradients against float64, hard inputs channel by channel, and what the official CUDA kernel does instead.
Without a GPU the kernels run in Triton's interpreter, which is slow: many hard cases share one call, a channel each."""

import itertools

import pytest
import torch

from linescan.kernels import testing
from linescan.kernels.bi_wkv import bi_wkv_ref, cases
from linescan.kernels.triton_runtime import record_launches

pytest.importorskip("triton")
from linescan.kernels.bi_wkv import triton_forward, triton_kernels

RESULTS = ("y", *(f"grad of {n}" for n in cases.INPUTS))
DECAYS = {  # per token; "fast": the chunk's recurrence is safe
    "fast": (0.0, -0.0, 0.01, -0.05, 0.3, 0.9),
    "any": (3.0, 30.0, 1e4, -0.6, -1.0, -1e4),
}


class Triton(torch.autograd.Function):
    """The backend without dispatch, so that a test runs it and nothing else."""

    @staticmethod
    def forward(ctx, w, u, k, v):
        ctx.save_for_backward(w, u, k, v)
        return triton_kernels.forward(w, u, k, v)

    @staticmethod
    def backward(ctx, gy):
        return triton_kernels.backward(*ctx.saved_tensors, gy)


@pytest.fixture
def run(triton_device):
    def call(*inputs):
        return Triton.apply(*(x.to(triton_device) for x in inputs)).cpu()

    return call


def sizes_of_terms(inputs, grad_output):
    """RMS per channel of what y, gw, gu, gk, gv would be if nothing cancelled in their sums, in float64: the sums of their terms' sizes.

    With a_ti the weight of token i for token t, gv_i = sum_t a_ti gy_t, gk_i = sum_t a_ti gy_t (v_i - y_t); gu and gw are sums of the terms
    of gk over t = i, and over t != i with the factor |t - i| - 1. In a one-hot softmax v_i - y_t vanishes, and the sum over t cancels
    wherever gy changes its sign. A weight a = exp(x) counts as a (1 + |x|): rounding x alone changes it by |x| units in the last place.
    """
    w, u, k, v, gy = (x.double() for x in (*inputs, grad_output))
    steps = torch.arange(k.shape[1])
    distance = (steps[:, None] - steps).abs()[..., None]
    a = torch.softmax(torch.where(distance == 0, u, -(distance - 1) * w) + k[:, None], 2)
    y = (a * v[:, None]).sum(2)
    a = a + torch.special.entr(a)
    share = a * gy.abs()[:, :, None]
    slope = share * (v.abs()[:, None] + y.abs()[:, :, None])
    far, own = (distance - 1).clamp(min=0) * slope, torch.where(distance == 0, slope, 0.0)
    size_y, size_k, size_v = (x.square().mean((0, 1)).sqrt() for x in ((a * v[:, None].abs()).sum(2), slope.sum(1), share.sum(1)))
    return size_y, far.sum((0, 1, 2)), own.sum((0, 1, 2)), size_k, size_v


def assert_every_channel_matches(run, inputs, fast=False):
    """The rule of `testing`, for each channel by itself: a wrong one is not hidden by the others.

    Where the terms of a gradient cancel, the roundings that the rule grants are of the size of the terms. With `fast`, y gets sqrt(L / 2)
    roundings more: num and den of a one-hot token carry the same powers exp(-w j), which cancel in y and are rounded in both, 2 L times in
    a chunk, with random signs.
    """
    w, u, k, _ = inputs
    grad_output = torch.randn(k.shape, generator=torch.Generator().manual_seed(0)).to(k.dtype)
    exact = testing.gradients(bi_wkv_ref, inputs, grad_output, torch.float64)
    same = testing.gradients(bi_wkv_ref, inputs, grad_output)
    actual = testing.gradients(run, inputs, grad_output)
    dtype = triton_forward.accumulator(k)
    granted = [testing.ROUNDINGS[dtype]] * len(RESULTS)
    granted[0] = (triton_forward.chunk_length(k, 32) / 2) ** 0.5 if fast else 0
    for name, a, s, e, n, size in zip(RESULTS, actual, same, exact, granted, sizes_of_terms(inputs, grad_output), strict=True):
        for c in range(k.shape[-1]):
            what = f"{name}, channel {c} (w {w[c]:g}, u {u[c]:g})"
            testing.assert_as_accurate(a[..., c], s[..., c], e[..., c], what, floor=n * testing.UNIT[dtype] * size[c].item())


@pytest.mark.parametrize(("shape", "dtype"), [
    ((2, 2, 3), torch.float32), ((1, 1, 5), torch.float32), ((1, 37, 5), torch.float64), ((1, 37, 5), torch.float16),
    ((2, 33, 5), torch.bfloat16), ((1, 33, 36), torch.float32),
])  # fmt: skip
def test_matches_reference(run, shape, dtype):
    assert_every_channel_matches(run, cases.make_inputs(shape, dtype), fast=True)


@pytest.mark.parametrize("kind", DECAYS)
def test_hard_inputs(run, kind):
    """Every decay with every pattern of keys and a bonus of 0.3; in the second kind also with large bonuses and none at all."""
    generator = torch.Generator().manual_seed(1)
    patterns = testing.hard_log_weights((1, 37, 1), generator)
    channels = [(w, 0.3, k) for w, k in itertools.product(DECAYS[kind], patterns.values())]
    if kind == "any":
        bonuses = (100.0, -100.0, 1e4, -torch.inf)
        channels += [(w, u, 40 * torch.randn(1, 37, 1, generator=generator)) for w in (0.0, 3.0, -1.0) for u in bonuses]
    w, u = (torch.tensor([c[i] for c in channels]) for i in (0, 1))
    k, v = torch.cat([c[2] for c in channels], 2), torch.randn(1, 37, len(channels), generator=generator)
    assert_every_channel_matches(run, (w, u, k, v), fast=kind == "fast")


@pytest.mark.parametrize(
    ("length", "tokens", "decays", "fast"),
    [
        (4, 105, (-0.9, -0.5, 0.01), False),  # growth by exp(94) in all, and more chunks than the scan reads at once
        (32, 70, (0.9375, -0.25, 0.01), True),  # the chunks of large inputs, at the border of what is safe
        (32, 40, (4.0, 3.0, 0.01), False),
    ],
)
def test_other_chunk_lengths(run, monkeypatch, length, tokens, decays, fast):
    monkeypatch.setattr(triton_forward, "chunk_length", lambda k, longest: length)
    _, u, k, v = cases.make_inputs((1, tokens, 3))
    assert_every_channel_matches(run, (torch.tensor(decays), u, k, v), fast)


@pytest.mark.parametrize("sign", [1, -1])
def test_absurd_decays_equal_their_limit(run, sign):
    """Infinite decays and growths give the result of 1e6 per token."""
    _, u, k, v = cases.make_inputs((1, 37, 3))
    more = sign * torch.tensor([torch.inf, 1e18, 0.0])
    assert_every_channel_matches(lambda w, *others: run(w + more, *others), (torch.full((3,), sign * 1e6), u, 1e4 * k, v))


def test_keys_far_from_zero_lose_nothing(run):
    """Keys on a grid of 2^-10, so that adding 2^13 is exact: scales must not be rounded apart from their sums."""
    w, u, k, v = cases.make_inputs((1, 37, 4))
    k, grad_output = (1024 * k).round() / 1024, torch.randn(1, 37, 4)
    near, far = (testing.gradients(run, (w, u, keys, v), grad_output) for keys in (k, k + 8192))
    for name, a, b in zip(RESULTS, far, near, strict=True):
        testing.assert_close(a, b, 2e-6, name)


def test_golden(run, golden_ops):
    case = torch.load(golden_ops / "wkv_grad.pt", weights_only=True)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        results = testing.gradients(run, [case[n].to(dtype) for n in cases.INPUTS], case["gy"])
        for key, actual in zip(("y", "gw", "gu", "gk", "gv"), results, strict=True):
            scale = case[key].abs().max().clamp(min=case["gy"].abs().max() * 0.1)
            assert (actual.double() - case[key]).abs().max() <= tolerance * scale, (key, dtype)


@pytest.mark.parametrize("decay", [0.0, 3.0])
def test_nan_stays_in_its_channel(run, decay):
    """One NaN in every input, each in a channel of its own; the channels between are those of a clean run."""
    w, u, k, v = cases.make_inputs((1, 20, 8))
    clean = [w + decay, u, k, v]
    dirty = [x.clone() for x in clean]
    for channel, x in zip((0, 2, 4, 6), dirty, strict=True):
        x[(channel,) if x.dim() == 1 else (0, 9, channel)] = torch.nan
    grad_output = torch.randn(1, 20, 8)
    for a, b in zip(testing.gradients(run, dirty, grad_output), testing.gradients(run, clean, grad_output), strict=True):
        torch.testing.assert_close(a[..., 1::2], b[..., 1::2], rtol=1e-5, atol=1e-5)
    assert run(*dirty)[..., ::2].isnan().flatten(0, 1).any(0).all()


@pytest.mark.parametrize("decay", [0.0, 3.0])
def test_every_element_is_written_and_runs_repeat_bitwise(run, decay):
    w, u, k, v = cases.make_inputs((1, 19, 5))
    with testing.poisoned_memory():
        first, second = (testing.gradients(run, (w + decay, u, k, v), torch.ones(1, 19, 5)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)


def test_flip_and_linearity(run):
    w, u, k, v = cases.make_inputs((1, 37, 4), torch.float64)
    y = run(w, u, k, v)
    torch.testing.assert_close(run(w, u, k.flip(1), v.flip(1)), y.flip(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(run(w, u, k, 3 * v + k), 3 * y + run(w, u, k, k), rtol=1e-12, atol=1e-12)


def test_strided_inputs_expanded_gradient_and_mixed_dtypes(run):
    w, u, k, v = cases.make_inputs((2, 20, 6), torch.bfloat16)
    v = v.float()
    expected = testing.gradients(run, (w, u, k, v), torch.ones(2, 20, 6))
    leaves = [x.requires_grad_() for x in (w, u, testing.strided(k), v.transpose(1, 2).contiguous())]
    out = run(*leaves[:3], leaves[3].transpose(1, 2))
    out.sum().backward()  # an expanded gradient, all strides zero
    for actual, e in zip((out, *(x.grad for x in leaves[:3]), leaves[3].grad.transpose(1, 2)), expected, strict=True):
        assert actual.dtype == e.dtype
        torch.testing.assert_close(actual, e)
    assert [x.grad.dtype for x in leaves] == [torch.float32, torch.float32, torch.bfloat16, torch.float32]


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0)])
def test_empty(run, shape):
    out = testing.gradients(run, (torch.zeros(shape[2]), torch.zeros(shape[2]), torch.zeros(shape), torch.zeros(shape)), torch.zeros(shape))
    assert [tuple(x.shape) for x in out] == [shape, (shape[2],), (shape[2],), shape, shape]
    assert all((x == 0).all() for x in out)


def test_launches_are_few_and_large_inputs_fit_the_grid():
    inputs = (*(torch.empty(384, device="meta") for _ in range(2)), *(torch.empty(65, 2**17, 384, device="meta") for _ in range(2)))
    assert inputs[2].numel() > 2**31
    with record_launches() as forward:
        triton_kernels.forward(*inputs)
    with record_launches() as backward:
        triton_kernels.backward(*inputs, inputs[2])
    assert (len(forward), len(backward)) == (3, 5)
    assert all(len(x.grid) == 1 and x.grid[0] < 2**31 for x in (*forward, *backward))


# ---------------------------------------------------------------------------------------- what the official CUDA kernel computes instead


def official(w, u, k, v):
    """The forward of the CUDA kernels of Vision-RWKV and RWKV-SAM, as a formula in the dtype of the inputs.

    The sequence is cut into 32 segments of L = ceil(T / 32). Tokens to the left of t in its own segment weigh exp(k_i - (t - i - 1) w), as
    published; tokens of earlier segments and all tokens to the right weigh exp(k_i - |t - i| w), one step too little. And numerator and
    denominator both get (1 - e^w) sum_j exp((t - j) w + k_j) (v_j, 1) over the tokens j <= t of the segment but its first.
    """
    steps = torch.arange(k.shape[1])
    t, i = steps[:, None], steps[None, :]
    segment = -(-k.shape[1] // 32)
    own = t // segment == i // segment
    distance = torch.where(own & (i < t), t - i - 1, (t - i).abs())[..., None]
    bias = torch.where((t == i)[..., None], u, -distance * w)
    spurious = (own & (i <= t) & (i % segment != 0))[..., None] * (1 - w.exp()) * ((t - i)[..., None] * w).exp()
    weights = (bias.exp() + spurious)[None] * k.exp()[:, None]
    return (weights * v[:, None]).sum(2) / weights.sum(2)


def test_the_official_kernel_is_explained_and_its_distance_known(golden_ops):
    """The closed form gives the stored outputs of the official kernel; they are up to per cents away from the published formula."""
    more = torch.load(golden_ops / "wkv_grad_more.pt", weights_only=True)
    more = more.get("cases") or more
    stored = {"T37": torch.load(golden_ops / "wkv_grad.pt", weights_only=True), **more}
    found = 0
    for name, case in stored.items():
        if "y_cudakernel" not in case:
            continue
        found += 1
        inputs = [case[n] for n in cases.INPUTS]
        y, gw, gu, _, _ = testing.gradients(official, inputs, case["gy"])
        for key, actual in (("y", y), ("gw", gw), ("gu", gu)):  # gk and gv of that kernel are the gradient of no forward
            testing.assert_close(actual, case[f"{key}_cudakernel"], 1e-5, f"{name} {key}")
            apart = testing.relative_rms(case[f"{key}_cudakernel"], case[key])
            assert apart > 1e-4, f"{name} {key}: the official kernel is {apart:.1e} away from the formula"
        assert testing.relative_rms(case["gk_cudakernel"], case["gk"]) > 1e-2
    assert found == 3
