"""Bidirectional WKV6 in Triton: values and all gradients against float64, hard decays, and the arithmetic of the tensor cores.

Without a GPU the kernels run in Triton's interpreter, which is slow and multiplies in full float32: `tensor_cores` rounds as a GPU does.
"""

import numpy as np
import pytest
import torch

from linescan.kernels import testing
from linescan.kernels.bi_wkv6 import bi_wkv6, bi_wkv6_ref, cases

pytest.importorskip("triton")
from linescan.kernels import triton_runtime
from linescan.kernels.bi_wkv6 import triton_kernels

NAMES = cases.INPUTS
DECAYS = {  # log decay rates of heads, all in one call
    "initial": lambda w: w,
    "forgets_all": lambda w: torch.full_like(w, torch.inf),
    "forgets_nothing": lambda w: torch.full_like(w, -torch.inf),
    "strong": lambda w: w + 10,
    "weak": lambda w: w - 30,
    "wild": lambda w: 10 * w,
    # one token in three forgets nearly all: its log decay is 1e4 times its neighbours', which a difference of running sums would drown
    "outliers": lambda w: torch.where((torch.arange(w.shape[1]) % 3 == 0)[:, None], 10.0, w),
}


@pytest.fixture
def run(triton_device):
    def call(*inputs):
        return bi_wkv6(*(x.to(triton_device) for x in inputs), backend="triton").cpu()

    return call


@pytest.fixture
def tensor_cores(monkeypatch):
    """The interpreter's products with the operands that tensor cores see: TF32 by cutting off, in three passes by rounding both parts."""
    if not triton_runtime.INTERPRETED:
        return
    interpreter = pytest.importorskip("triton.runtime.interpreter")

    def cut(x, half=0):
        return ((x.view(np.int32) + half) & -8192).view(np.float32)

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        a, b, name = a.data, b.data, str(input_precision).lower()
        if "tf32x3" in name:
            (a, rest_a), (b, rest_b) = ((cut(x, 4096), cut(x - cut(x, 4096), 4096)) for x in (a, b))
            product = rest_a @ b + a @ rest_b + a @ b
        else:
            assert "tf32" in name, name
            product = cut(a) @ cut(b)
        return interpreter.TensorHandle(product + d.data, d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


def assert_every_head_matches(run, inputs):
    """The rule of `testing` for each head by itself: one with large values does not hide the others."""
    grad_output = torch.randn(inputs[2].shape, generator=torch.Generator().manual_seed(0))
    exact = testing.gradients(bi_wkv6_ref, inputs, grad_output, torch.float64)
    same = testing.gradients(bi_wkv6_ref, inputs, grad_output)
    actual = testing.gradients(run, inputs, grad_output)
    for name, a, s, e in zip(("y", *NAMES), actual, same, exact, strict=True):
        for h in range(a.shape[-2]):
            testing.assert_as_accurate(a[..., h, :], s[..., h, :], e[..., h, :], f"{name}, head {h}")


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [(s, torch.float32) for s in cases.TRITON_SHAPES] + [(s, torch.bfloat16) for s in cases.TRITON_SHAPES[:3]],
)
def test_matches_reference(run, shape, dtype):
    assert_every_head_matches(run, cases.make_inputs(shape, dtype))


@pytest.mark.parametrize(
    ("shape", "dtype"), [((2, 18, 1, 5), torch.float16), ((1, 18, 1, 64), torch.float32), ((1, 3, 1, 65), torch.bfloat16)]
)
def test_other_dtypes_and_heads_of_several_parts(run, shape, dtype):
    assert_every_head_matches(run, cases.make_inputs(shape, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hard_decays_on_tensor_cores(run, tensor_cores, monkeypatch, dtype):
    """Also flash-linear-attention#77: factors exp(+sum) of a chunked form overflow where decays are strong; here none exceeds 1."""
    monkeypatch.setattr(triton_kernels, "CHUNK", 32)  # two chunks of two blocks
    r, k, v, w, u = cases.make_inputs((1, 40, len(DECAYS), 4), dtype)
    w = torch.stack([make(w[:, :, h]) for h, make in enumerate(DECAYS.values())], 2)
    assert_every_head_matches(run, (r, k, v, w, u))


def test_many_chunks_match_chunked_pytorch(run, monkeypatch):
    """More chunks than the scan over them loads at once, and pairs of tokens on both sides of a chunk of several blocks."""
    monkeypatch.setattr(triton_kernels, "CHUNK", 32)
    inputs, grad_output = cases.make_inputs((1, 280, 1, 4)), torch.randn(1, 280, 1, 4)
    expected = testing.gradients(lambda *x: bi_wkv6(*x, backend="torch"), inputs, grad_output, torch.float64)
    for name, a, e in zip(("y", *NAMES), testing.gradients(run, inputs, grad_output), expected, strict=True):
        testing.assert_close(a, e, testing.TOLERANCE[torch.float32], name)


def test_every_element_is_written_and_runs_repeat_bitwise(run):
    inputs, grad_output = cases.make_inputs((1, 40, 1, 5)), torch.randn(1, 40, 1, 5)
    with testing.poisoned_memory():
        first, second = (testing.gradients(run, inputs, grad_output) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)


@pytest.mark.parametrize("where", NAMES)
def test_nan_stays_in_its_head(run, where):
    clean, grad_output = cases.make_inputs((1, 15, 2, 4)), torch.randn(1, 15, 2, 4)
    dirty = [x.clone() for x in clean]
    dirty[NAMES.index(where)][(1, 2) if where == "u" else (0, 10, 1, 2)] = torch.nan
    found = testing.gradients(run, dirty, grad_output)
    for a, b in zip(found, testing.gradients(run, clean, grad_output), strict=True):
        assert torch.equal(a[..., 0, :], b[..., 0, :])
    assert found[0][..., 1, :].isnan().any()


def test_strided_inputs_and_gradient(run, triton_device):
    """Also flash-linear-attention#871: an output gradient that is not contiguous, here one with all strides zero."""
    r, k, v, w, u = (x.to(triton_device) for x in cases.make_inputs((1, 15, 2, 6)))
    expected = testing.gradients(run, (r, k, v, w, u), torch.ones(1, 15, 2, 6))
    leaves = [x.transpose(1, 3).contiguous().requires_grad_() for x in (r, k)]  # channels lie apart
    leaves += [testing.strided(x.transpose(1, 2)).requires_grad_() for x in (v, w)]
    u = u.requires_grad_()
    out = bi_wkv6(*(x.transpose(1, 3) for x in leaves[:2]), *(x.transpose(1, 2) for x in leaves[2:]), u, backend="triton")
    assert out.is_contiguous()
    out.sum().backward()
    grads = [x.grad.transpose(1, 3) for x in leaves[:2]] + [x.grad.transpose(1, 2) for x in leaves[2:]] + [u.grad]
    for a, e in zip((out, *grads), expected, strict=True):
        torch.testing.assert_close(a.cpu(), e)


def test_mixed_dtypes_follow_each_input(run):
    """Half w as well: its gradient takes another way, through float32 memory of its own."""
    inputs = cases.make_inputs((1, 20, 1, 4), torch.bfloat16)
    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.bfloat16, torch.float32)
    inputs, grad_output = [x.to(d) for x, d in zip(inputs, dtypes, strict=True)], torch.randn(1, 20, 1, 4).half()
    actual = testing.gradients(run, inputs, grad_output)
    assert [x.dtype for x in actual] == [torch.float16, *dtypes]
    exact = testing.gradients(bi_wkv6_ref, inputs, grad_output, torch.float64)
    for name, a, e in zip(("y", *NAMES), actual, exact, strict=True):
        testing.assert_close(a, e, testing.TOLERANCE[a.dtype], name)


@pytest.mark.parametrize("shape", [(0, 5, 2, 3), (2, 0, 2, 3), (2, 5, 0, 3), (2, 5, 2, 0)])
def test_empty(run, shape):
    inputs = [torch.zeros(shape) for _ in range(4)] + [torch.zeros(shape[2:])]
    out = testing.gradients(run, inputs, torch.zeros(shape))
    assert [tuple(x.shape) for x in out] == [shape] * 5 + [shape[2:]]
    assert all((x == 0).all() for x in out)


def test_what_these_kernels_do_not_take(run):
    with pytest.raises(NotImplementedError, match="float64"):
        run(*cases.make_inputs((1, 3, 1, 4), torch.float64))
    with pytest.raises(NotImplementedError, match="heads of at most 128 channels, got 129"):
        run(*cases.make_inputs((1, 3, 1, 129)))


def test_launches_and_memory_are_linear_in_the_tokens():
    """Three launches forward and six backward, whatever T; a program per block of 16 tokens fills a GPU at batch 1."""
    for length in (1024, 4096):
        inputs = cases.make_inputs((1, length, 6, 64), torch.bfloat16, "meta")
        with triton_runtime.record_launches() as forward:
            y = triton_kernels.forward(*inputs)
        with triton_runtime.record_launches() as backward:
            triton_kernels.backward(*inputs, y)
        assert len(forward) == 3
        assert len(backward) == 6
        assert [x.grid[0] for x in forward[::2]] == [6 * length // 64, 6 * length // 16]
        floats = sum(x.numel() for x in backward[-2].args if isinstance(x, torch.Tensor))
        assert floats <= 18 * inputs[0].numel()
