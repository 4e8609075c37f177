"""Bidirectional WKV6: values and gradients against float64, hard decays, golden tensors, the adapter, and the faults that peers had."""

import importlib
import sys
from types import ModuleType

import pytest
import torch

from linescan.kernels import testing
from linescan.kernels.bi_wkv6 import bi_wkv6, bi_wkv6_ref, cases, torch_chunked

NAMES = cases.INPUTS
DECAYS = {  # log decay rates (B, T, H, D)
    "initial": None,
    "forgets_all": lambda w: torch.full_like(w, torch.inf),
    "forgets_nothing": lambda w: torch.full_like(w, -torch.inf),
    "strong": lambda w: w + 10,
    "weak": lambda w: w - 30,
    "wild": lambda w: 10 * w,
    # one token in three forgets nearly all: its log decay is 1e4 times its neighbours', which a difference of running sums would drown
    "outliers": lambda w: torch.where((torch.arange(w.shape[1]) % 3 == 0)[:, None, None], 10.0, w),
    "all_kinds": lambda w: torch.stack((w, w.mul(0).add(10), w.mul(0).sub(torch.inf), w.mul(0).add(torch.inf), 8 * w)).flatten(0, 1)[::5],
}


def run(*inputs, backend="torch"):
    return bi_wkv6(*inputs, backend=backend)


def hard_inputs(shape, decay, dtype=torch.float32):
    r, k, v, w, u = cases.make_inputs(shape, dtype)
    return r, k, v, w if DECAYS[decay] is None else DECAYS[decay](w), u


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 2, 1, 2), (1, 19, 2, 3)])
@pytest.mark.parametrize("decay", ["initial", "wild", "weak"])
def test_gradcheck(shape, decay):
    inputs = hard_inputs(shape, decay, torch.float64)
    testing.assert_gradcheck(bi_wkv6_ref, inputs)
    testing.assert_gradcheck(run, inputs)


@pytest.mark.parametrize("shape", cases.TEST_SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_matches_reference(shape, dtype):
    testing.assert_matches_reference(run, bi_wkv6_ref, cases.make_inputs(shape, dtype), NAMES)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("shape", [(1, 75, 2, 8), (1, 130, 1, 32)])
def test_hard_decays(shape, decay):
    """Also flash-linear-attention#77: factors exp(+sum) of a chunked form overflow where decays are strong; here none exceeds 1."""
    testing.assert_matches_reference(run, bi_wkv6_ref, hard_inputs(shape, decay), NAMES)


def golden_cases(folder):
    stored = torch.load(folder / "op_wkv6_bidirectional.pt", weights_only=True)
    return [stored, *stored["cases"].values()]


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_golden(golden_ops, backend, dtype, tolerance):
    for case in golden_cases(golden_ops):
        heads = case["inputs"]["u"].shape

        def split(x, heads=heads):
            return x.unflatten(-1, heads) if x.dim() == 3 else x

        inputs = [split(case["inputs"][n]) for n in NAMES]
        grad_output = split(case["grad_outputs"][0]).to(dtype)
        actual = testing.gradients(lambda *x: run(*x, backend=backend), inputs, grad_output, dtype)
        grads = [case["grads"][n] for n in NAMES]
        expected = [
            split(case["outputs"][0]),
            *(torch.zeros_like(i) if g is None else split(g) for i, g in zip(inputs, grads, strict=True)),
        ]
        for name, a, e in zip(("y", *NAMES), actual, expected, strict=True):
            testing.assert_close(a, e, tolerance, name)


@pytest.mark.parametrize("length", [1025, 65536])
def test_long_sequences_against_the_sum_at_sampled_tokens(length):
    """Any T (Vision-RWKV#48: its kernel overran arrays of T_MAX = 256 tokens). The sum over pairs in float64, at a few tokens."""
    r, k, v, w, u = cases.make_inputs((1, length, 1, 4))
    at = torch.tensor([0, 1, length // 3, length - 1])
    weight = torch.randn(len(at), 4)

    def definition(r, k, v, w, u):
        r, k, v, rate, out = r[0, :, 0], k[0, :, 0], v[0, :, 0], -torch.exp(w[0, :, 0]), []
        for t in at.tolist():
            after = torch.exp(torch.cat((torch.zeros_like(rate[:1]), rate[t + 1 : -1].cumsum(0))))[: length - t - 1]
            before = torch.exp(torch.cat((torch.zeros_like(rate[:1]), rate[1:t].flip(0).cumsum(0))))[:t].flip(0)
            scale = torch.cat((before, u, after))
            out.append(((r[t] * k * scale).sum(1, keepdim=True) * v).sum(0))
        return torch.stack(out)

    inputs = (r, k, v, w, u)
    exact = testing.gradients(definition, inputs, weight, torch.float64)
    actual = testing.gradients(lambda *x: run(*x)[0, at, 0], inputs, weight)
    for name, a, e in zip(("y", *NAMES), actual, exact, strict=True):
        testing.assert_close(a, e, 1e-5, name)


def test_properties():
    r, k, v, w, u = cases.make_inputs((2, 77, 2, 6), torch.float64)
    y = run(r, k, v, w, u)
    torch.testing.assert_close(run(*(x.flip(1) for x in (r, k, v, w)), u), y.flip(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(run(r, k, 3 * v + k, w, u), 3 * y + run(r, k, k, w, u), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(run(2 * r, k, v, w, u), 2 * y, rtol=1e-12, atol=1e-12)
    attention = torch.einsum("bthi,bshi,bshj->bthj", r, k, v)  # nothing forgotten, the token itself counted once
    torch.testing.assert_close(run(r, k, v, w - torch.inf, torch.ones_like(u)), attention, rtol=1e-10, atol=1e-10)
    own = (r * k * u).sum(-1, keepdim=True) * v
    own[:, 1:] += (r[:, 1:] * k[:, :-1]).sum(-1, keepdim=True) * v[:, :-1]
    own[:, :-1] += (r[:, :-1] * k[:, 1:]).sum(-1, keepdim=True) * v[:, 1:]
    torch.testing.assert_close(run(r, k, v, w + torch.inf, u), own, rtol=1e-12, atol=1e-12)  # all forgotten: neighbours and itself


@pytest.mark.parametrize("where", NAMES)
def test_nan_stays_in_its_head(where):
    clean = cases.make_inputs((2, 70, 3, 4))
    dirty = [x.clone() for x in clean]
    dirty[NAMES.index(where)][(1, 2) if where == "u" else (0, 20, 1, 2)] = torch.nan
    grad_output = torch.randn(2, 70, 3, 4)
    for a, b in zip(testing.gradients(run, dirty, grad_output), testing.gradients(run, clean, grad_output), strict=True):
        torch.testing.assert_close(a[..., [0, 2], :], b[..., [0, 2], :])
        if where != "u":
            assert a.dim() == 2 or a[1].isfinite().all()
    assert run(*dirty)[..., 1, :].isnan().any()


@pytest.mark.parametrize("shape", [(2, 61, 2, 5), (1, 64, 1, 16), (1, 1, 1, 4)])
def test_every_element_is_written_and_runs_repeat_bitwise(shape):
    inputs, grad_output = cases.make_inputs(shape), torch.randn(shape)
    with testing.poisoned_memory():
        first, second = (testing.gradients(run, inputs, grad_output) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)


def test_blocks_and_chunks_do_not_change_the_result(monkeypatch):
    inputs, grad_output = cases.make_inputs((3, 150, 3, 6), torch.float64), torch.randn(3, 150, 3, 6)
    whole = testing.gradients(run, inputs, grad_output)
    for block, chunk in ((1, 64), (150 * 6 * 2, 16), (150 * 6 * 6, 128)):
        monkeypatch.setattr(torch_chunked, "BLOCK", {"cpu": block})
        monkeypatch.setattr(torch_chunked, "CHUNK", chunk)
        for a, b in zip(testing.gradients(run, inputs, grad_output), whole, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("shape", [(0, 5, 2, 3), (2, 0, 2, 3), (2, 5, 0, 3), (2, 5, 2, 0)])
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_empty(shape, backend):
    inputs = [torch.zeros(shape) for _ in range(4)] + [torch.zeros(shape[2:])]
    out = testing.gradients(lambda *x: run(*x, backend=backend), inputs, torch.zeros(shape))
    assert [tuple(x.shape) for x in out] == [shape] * 5 + [shape[2:]]
    assert all((x == 0).all() for x in out)


def test_strided_inputs_and_gradient():
    """Also flash-linear-attention#871: an output gradient that is not contiguous, here one with all strides zero."""
    r, k, v, w, u = cases.make_inputs((2, 45, 2, 6))
    expected = testing.gradients(run, (r, k, v, w, u), torch.ones(2, 45, 2, 6))
    turned = v.transpose(1, 2).contiguous().requires_grad_()  # (B, H, T, D) in memory
    leaves = [testing.strided(x.transpose(1, 2)).transpose(1, 2).requires_grad_() for x in (r, k, w)] + [u.requires_grad_()]
    out = run(leaves[0], leaves[1], turned.transpose(1, 2), leaves[2], leaves[3])
    assert out.is_contiguous()
    out.sum().backward()
    actual = (out, leaves[0].grad, leaves[1].grad, turned.grad.transpose(1, 2), leaves[2].grad, leaves[3].grad)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


def test_mixed_dtypes_follow_v_and_each_input():
    r, k, v, w, u = cases.make_inputs((1, 20, 2, 4), torch.bfloat16)
    leaves = [x.requires_grad_() for x in (r, k.float(), v, w, u)]
    out = bi_wkv6(*leaves)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert [x.grad.dtype for x in leaves] == [torch.bfloat16, torch.float32, torch.bfloat16, torch.float32, torch.float32]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(k=torch.zeros(1, 5, 2, 3)), r"k must have shape \(B, T, H, D\) = \(1, 5, 2, 4\), got \(1, 5, 2, 3\)"),
        (dict(v=torch.zeros(1, 6, 2, 4)), r"v must have shape \(B, T, H, D\) = \(1, 5, 2, 4\), got \(1, 6, 2, 4\)"),
        (dict(w=torch.zeros(1, 5, 8)), r"w must have shape \(B, T, H, D\).*got \(1, 5, 8\)"),
        (dict(u=torch.zeros(8)), r"u must have shape \(H, D\).*got \(8,\)"),
    ],
)
def test_bad_shapes(change, message):
    inputs = dict.fromkeys("rkvw", torch.zeros(1, 5, 2, 4)) | dict(u=torch.zeros(2, 4)) | change
    with pytest.raises(ValueError, match=message):
        bi_wkv6(**inputs)


def _causal_rwkv6(r, k, v, w, u, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None, **kwargs):
    """What flash-linear-attention's chunk_rwkv6 computes, as a loop: w is the log decay, the scale is 1 / sqrt(D) unless given."""
    state, out = torch.zeros(r.shape[0], r.shape[2], r.shape[3], v.shape[3], dtype=w.dtype), []
    for t in range(r.shape[1]):
        pair = k[:, t, :, :, None] * v[:, t, :, None]
        out.append(torch.einsum("bhi,bhij->bhj", r[:, t], state + u[..., None] * pair))
        state = torch.exp(w[:, t])[..., None] * state + pair
    return (r.shape[-1] ** -0.5 if scale is None else scale) * torch.stack(out, 1), state if output_final_state else None


def test_adapter_of_flash_linear_attention(monkeypatch):
    stand_in = ModuleType("fla.ops.rwkv6")
    stand_in.chunk_rwkv6 = _causal_rwkv6
    for name in ("fla", "fla.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "fla.ops.rwkv6", stand_in)
    name = "linescan.kernels.bi_wkv6.peer_fla"
    monkeypatch.delitem(sys.modules, name, raising=False)
    call = importlib.import_module(name).call
    monkeypatch.delitem(sys.modules, name)
    inputs, grad_output = cases.make_inputs((2, 21, 2, 4)), torch.randn(2, 21, 2, 4)
    for a, b in zip(testing.gradients(call, inputs, grad_output), testing.gradients(bi_wkv6_ref, inputs, grad_output), strict=True):
        testing.assert_close(a, b, 1e-6)


def test_bytes_moved():
    assert cases.bytes_moved((2, 3, 1, 4), torch.bfloat16, "fwd") == (4 * 2 + 4) * 24
    assert cases.bytes_moved((2, 3, 1, 4), torch.float32, "fwdbwd") == 14 * 4 * 24
