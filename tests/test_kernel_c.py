"""The compiled CPU backend: values and gradients against float64, hard inputs, and everything that can go wrong while it is built."""

import ctypes
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from linescan.kernels import c_library, dispatch, testing
from linescan.kernels.bi_wkv import bi_wkv, bi_wkv_ref, c_kernels, cases
from linescan.kernels.registration import OPERATORS
from linescan.kernels.selective_scan import c_kernels as scan_kernels
from linescan.kernels.selective_scan import cases as scan_cases
from linescan.kernels.selective_scan import selective_scan, selective_scan_ref

NAMES = cases.INPUTS
FLOAT_TYPES = [torch.float32, torch.bfloat16, torch.float16]
DECAYS = {  # per token; the names say which channels the chunks take, and which go token by token
    "chunks": lambda c, t: torch.linspace(-5, 3, c) / t,
    "chunks_strong": lambda c, t: torch.linspace(0, 0.93, c),
    "zero": lambda c, t: torch.tensor([0.0, -0.0]).repeat(c)[:c],
    "mixed": lambda c, t: torch.tensor([0.3, 1e4, 0.01, -1.0, 0.0]).repeat(c)[:c],
    "tokens_strong": lambda c, t: torch.linspace(1, 30, c),
    "tokens_growing": lambda c, t: torch.linspace(-1.6, -1, c),
    "tokens_huge": lambda c, t: torch.tensor([1e4, -1e4, 1.0, -1.0]).repeat(c)[:c],
}
SAFE = {k: f for k, f in DECAYS.items() if k in ("chunks", "mixed", "tokens_strong")}
BONUSES = {"u0": 0.3, "u+100": 100.0, "u-100": -100.0}


@pytest.fixture(autouse=True)
def _library():
    if reason := OPERATORS["bi_wkv"].why_not("c", "cpu"):
        pytest.skip(reason)


def floors(inputs):
    """Rounding of terms that cancel exactly in a one-hot softmax, as in the tests of the other backends."""
    unit, (batch, length, _) = 4 * testing.UNIT[inputs[2].dtype], inputs[2].shape
    root = (batch * length) ** 0.5
    return [0.0, unit * root * length, unit * root, unit, 0.0]


def run(*inputs):
    return bi_wkv(*inputs, backend="c")


# -------------------------------------------------------------------------------------------------------------------------------- Bi-WKV


@pytest.mark.parametrize("shape", [*cases.TEST_SHAPES, (2, 40, 16), (1, 33, 64), (1, 70, 100), (2, 31, 131)])
@pytest.mark.parametrize("dtype", FLOAT_TYPES)
def test_bi_wkv_matches_reference(shape, dtype):
    inputs = cases.make_inputs(shape, dtype)
    testing.assert_matches_reference(run, bi_wkv_ref, inputs, NAMES, floors=floors(inputs))


@pytest.mark.parametrize("keys", testing.hard_log_weights((1, 4, 1), torch.Generator()))
@pytest.mark.parametrize("decay", DECAYS)
def test_bi_wkv_hard_keys(keys, decay):
    shape = (2, 75, 4)
    _, u, _, v = cases.make_inputs(shape)
    k = testing.hard_log_weights(shape, torch.Generator().manual_seed(1))[keys]
    inputs = (DECAYS[decay](4, 75), u, k, v)
    testing.assert_matches_reference(run, bi_wkv_ref, inputs, NAMES, floors=floors(inputs))


@pytest.mark.parametrize("bonus", BONUSES)
@pytest.mark.parametrize("decay", DECAYS)
def test_bi_wkv_hard_bonus(bonus, decay):
    _, u, k, v = cases.make_inputs((2, 40, 4))
    inputs = (DECAYS[decay](4, 40), torch.full_like(u, BONUSES[bonus]), 40 * k, v)
    testing.assert_matches_reference(run, bi_wkv_ref, inputs, NAMES, floors=floors(inputs))


@pytest.mark.parametrize("length", [4096, 65536])
@pytest.mark.parametrize("decay", ["chunks", "tokens_growing", "tokens_strong"])
def test_bi_wkv_long_sequences_against_the_sum_at_sampled_tokens(length, decay):
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


@pytest.mark.parametrize("decay", ["chunks", "tokens_strong"])
def test_bi_wkv_properties(decay):
    _, u, k, v = cases.make_inputs((2, 77, 6))
    w = DECAYS[decay](6, 77)
    y = run(w, u, k, v)
    torch.testing.assert_close(run(w, u, k.flip(1), v.flip(1)), y.flip(1), rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(run(w, u, k, 3 * v + k), 3 * y + run(w, u, k, k), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(run(w, u, k, torch.ones_like(v)), torch.ones_like(v), rtol=1e-6, atol=0)
    torch.testing.assert_close(run(w, u, k[:, :1], v[:, :1]), v[:, :1], rtol=2e-7, atol=0)


@pytest.mark.parametrize("decay", SAFE)
def test_bi_wkv_keys_far_from_zero_lose_nothing(decay):
    """Keys on a grid of 2^-10, so that adding 2^13 is exact: log scales of chunks must not be rounded apart from their sums."""
    _, u, k, v = cases.make_inputs((2, 300, 8))
    k, grad_output = (1024 * k).round() / 1024, torch.randn(2, 300, 8)
    near, far = (testing.gradients(run, (DECAYS[decay](8, 300), u, keys, v), grad_output) for keys in (k, k + 8192))
    for name, a, b in zip(("y", *NAMES), far, near, strict=True):
        testing.assert_close(a, b, 2e-6, name)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("size", [1e18, torch.inf])
def test_bi_wkv_absurd_decays_equal_their_limit(sign, size):
    _, u, k, v = cases.make_inputs((2, 75, 4))
    grad_output = torch.randn(2, 75, 4)
    actual = testing.gradients(run, (torch.full((4,), sign * size), u, 1e4 * k, v), grad_output)
    exact = testing.gradients(bi_wkv_ref, (torch.full((4,), sign * 1e6), u, 1e4 * k, v), grad_output, torch.float64)
    for a, e in zip(actual, exact, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("where", NAMES)
@pytest.mark.parametrize("decay", SAFE)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_bi_wkv_nan_stays_in_its_channel(where, decay, bad):
    _, u, k, v = cases.make_inputs((2, 50, 5))
    clean = [DECAYS[decay](5, 50), u, k, v]
    dirty = [x.clone() for x in clean]
    dirty[NAMES.index(where)][(2,) if where in "wu" else (0, 20, 2)] = bad
    grad_output = torch.randn(2, 50, 5)
    keep = [0, 1, 3, 4]
    for a, b in zip(testing.gradients(run, dirty, grad_output), testing.gradients(run, clean, grad_output), strict=True):
        assert torch.equal(a[..., keep], b[..., keep])
    if (where, bad) != ("w", torch.inf):  # infinite decay is legal: neighbours alone
        assert not run(*dirty)[..., 2].isfinite().all()


@pytest.mark.parametrize("decay", SAFE)
@pytest.mark.parametrize("shape", [(2, 61, 5), (2, 64, 40), (1, 1, 5)])
def test_bi_wkv_every_element_is_written_and_any_number_of_threads_gives_the_same_bits(monkeypatch, shape, decay):
    monkeypatch.setattr(c_kernels, "SMALL", 0)
    _, u, k, v = cases.make_inputs(shape)
    w, grad_output = DECAYS[decay](shape[2], shape[1]), torch.randn(shape)
    with testing.poisoned_memory():
        first = testing.gradients(run, (w, u, k, v), grad_output)
        monkeypatch.setattr(c_library, "threads", lambda: 3)
        second = testing.gradients(run, (w, u, k, v), grad_output)
    for a, b in zip(first, second, strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0)])
def test_bi_wkv_empty(shape):
    w, u, k, v = torch.zeros(shape[2]), torch.zeros(shape[2]), torch.zeros(shape), torch.zeros(shape)
    out = testing.gradients(run, (w, u, k, v), torch.zeros(shape))
    assert [tuple(x.shape) for x in out] == [shape, (shape[2],), (shape[2],), shape, shape]
    assert all((x == 0).all() for x in out)


@pytest.mark.parametrize("dtype", FLOAT_TYPES)
def test_bi_wkv_strided_inputs_and_gradient(dtype):
    w, u, k, v = cases.make_inputs((2, 45, 70), dtype)
    expected = testing.gradients(run, (w, u, k, v), torch.ones(2, 45, 70))
    column = v.transpose(1, 2).contiguous().transpose(1, 2)  # not contiguous in the last dimension
    wide_w = torch.stack((w, w), -1)[:, 0]
    leaves = [wide_w.requires_grad_(), u.requires_grad_(), testing.strided(k).requires_grad_(), column.requires_grad_()]
    out = run(*leaves)
    assert out.is_contiguous()
    out.sum().backward()  # an expanded gradient, all strides zero
    for actual, e in zip((out, *(x.grad for x in leaves)), expected, strict=True):
        assert torch.equal(actual, e)


def test_bi_wkv_mixed_dtypes_follow_k_and_each_input():
    w, u, k, v = cases.make_inputs((1, 20, 4), torch.bfloat16)
    leaves = [w.double().requires_grad_(), u.half().requires_grad_(), k.requires_grad_(), v.float().requires_grad_()]
    out = run(*leaves)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert [x.grad.dtype for x in leaves] == [torch.float64, torch.float16, torch.bfloat16, torch.float32]
    with pytest.raises(NotImplementedError, match="backend 'c' computes in float32"):
        run(w, u, k.double(), v)
    assert bi_wkv(w, u, k.double(), v).dtype == torch.float64  # auto takes another backend


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_read_and_rounded_as_pytorch_does(dtype):
    """A single token is its own result: every bit pattern goes through the conversions and back; then ties, overflow and tiny numbers."""
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    zero = torch.zeros(every.numel(), dtype=dtype)
    y = bi_wkv(zero, zero, zero.view(1, 1, -1), every.view(1, 1, -1), backend="c").flatten()
    assert torch.equal(y.isnan(), every.isnan())
    finite = ~every.isnan()
    assert torch.equal(y[finite], every[finite])
    wide = torch.cat((torch.randn(20000), 1e-6 * torch.randn(20000), 1e5 * torch.randn(20000), torch.tensor([65519.9, 65520.0, 2.0**-25])))
    zero = torch.zeros(wide.numel())
    y = bi_wkv(zero, zero, zero.view(1, 1, -1).to(dtype), wide.view(1, 1, -1), backend="c").flatten()
    assert torch.equal(y, wide.to(dtype))


# ------------------------------------------------------------------------------------------------------------------------ selective scan


def scan(*inputs, softplus=True):
    return selective_scan(*inputs, delta_softplus=softplus, backend="c")


def scan_reference(*inputs, softplus=True):
    return selective_scan_ref(*inputs, delta_softplus=softplus)


SCAN_SHAPES = [*scan_cases.TEST_SHAPES, (1, 40, 70, 16, 2), (2, 16, 33, 16, 1), (1, 70, 65, 20, 2), (1, 300, 34, 3, 1)]


@pytest.mark.parametrize("shape", SCAN_SHAPES)
@pytest.mark.parametrize("dtype", FLOAT_TYPES)
def test_selective_scan_matches_reference(shape, dtype):
    testing.assert_matches_reference(scan, scan_reference, scan_cases.make_inputs(shape, dtype), scan_cases.INPUTS)


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("sign", [1, -1], ids=["decaying", "growing"])
def test_selective_scan_without_optional_arguments_and_with_its_last_state(softplus, sign):
    """Growing states and negative steps are served by another exponential than decaying ones."""
    u, delta, A, B, C, *_ = scan_cases.make_inputs((2, 20, 40, 5, 2))
    inputs = (u, 0.3 * delta, sign * 0.1 * A, B, C)

    def both(op, **options):
        def joined(*x):
            y, last = op(*x, delta_softplus=softplus, return_last_state=True, **options)
            return torch.cat((y.flatten(), last.flatten().to(y.dtype)))

        return joined

    testing.assert_matches_reference(both(selective_scan, backend="c"), both(selective_scan_ref), inputs, scan_cases.INPUTS[:5])


@pytest.mark.parametrize("delta", [-90.0, -20.0, 19.99, 20.01, 80.0])
def test_selective_scan_steps_at_the_edges_of_softplus(delta):
    inputs = list(scan_cases.make_inputs((1, 18, 20, 4, 1)))
    inputs[1] = torch.full_like(inputs[1], delta)
    inputs[7] = torch.zeros(18)
    testing.assert_matches_reference(scan, scan_reference, inputs, scan_cases.INPUTS)


@pytest.mark.parametrize("where", [0, 1, 2, 5, 6, 7])
def test_selective_scan_nan_stays_in_its_channel(where):
    clean = scan_cases.make_inputs((2, 20, 40, 3, 1))
    dirty = [x.clone() for x in clean]
    dirty[where][(0, 2, 7) if clean[where].dim() == 3 else (2,)] = torch.nan
    keep = [i for i in range(20) if i != 2]
    assert torch.equal(scan(*dirty)[:, keep], scan(*clean)[:, keep])
    assert scan(*dirty)[0, 2].isnan().any()


@pytest.mark.parametrize("shape", [(2, 20, 45, 5, 2), (1, 300, 64, 16, 1), (1, 1, 1, 1, 1)])
def test_selective_scan_every_element_is_written_and_any_number_of_threads_gives_the_same_bits(monkeypatch, shape):
    monkeypatch.setattr(scan_kernels, "SMALL", 0)
    inputs, grad_output = scan_cases.make_inputs(shape), torch.randn(shape[:3])
    with testing.poisoned_memory():
        first = testing.gradients(scan, inputs, grad_output)
        monkeypatch.setattr(c_library, "threads", lambda: 3)
        second = testing.gradients(scan, inputs, grad_output)
    for a, b in zip(first, second, strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", FLOAT_TYPES)
def test_selective_scan_any_layout(dtype):
    """Channels contiguous, steps contiguous behind strides, neither, and an expanded gradient: the same numbers."""
    inputs = scan_cases.make_inputs((2, 20, 45, 4, 2), dtype)
    expected = testing.gradients(scan, inputs, torch.ones(2, 20, 45))
    u, delta, A, B, C, D, z, bias = inputs
    wide = torch.stack((z, z), -1)[..., 0]
    by_channel = u.transpose(1, 2).contiguous().transpose(1, 2)
    weights = B.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0)
    leaves = [x.detach().requires_grad_() for x in (by_channel, testing.strided(delta), A.t().contiguous().t(), weights, C, D, wide, bias)]
    out = scan(*leaves)
    out.sum().backward()
    for actual, e in zip((out, *(x.grad for x in leaves)), expected, strict=True):
        assert torch.equal(actual, e)


def test_selective_scan_of_65536_steps():
    """The same recurrence in float64, which has a float64 golden run elsewhere; gradients by the PyTorch backend in float64."""
    inputs = scan_cases.make_inputs((1, 3, 65536, 2, 1))
    grad_output = torch.randn(1, 3, 65536)
    exact = testing.gradients(lambda *x: selective_scan(*x, delta_softplus=True, backend="torch"), inputs, grad_output, torch.float64)
    for name, a, e in zip(("y", *scan_cases.INPUTS), testing.gradients(scan, inputs, grad_output), exact, strict=True):
        testing.assert_close(a, e, 1e-5, name)


def test_selective_scan_empty_and_float64():
    for shape in ((0, 4, 5, 2, 1), (2, 4, 0, 2, 1)):
        inputs = scan_cases.make_inputs(shape)
        out = testing.gradients(scan, inputs, torch.zeros(shape[:3]))
        assert [x.shape for x in out[1:]] == [x.shape for x in inputs]
        assert all((x == 0).all() for x in out)
    with pytest.raises(NotImplementedError, match="backend 'c' computes in float32"):
        scan(*scan_cases.make_inputs((1, 2, 3, 2, 1), torch.float64))


def test_a_wrong_selective_scan_is_not_taken(monkeypatch):
    right = scan_kernels._run
    monkeypatch.setattr(scan_kernels, "_run", lambda back, softplus, *rest: right(back, False, *rest))
    assert "wrong y" in scan_kernels.probe()


# --------------------------------------------------------------------------------------------------------------------- building the library


def test_a_vector_exponential_is_exact_to_two_units(tmp_path):
    source = tmp_path / "probe.c"
    header = (c_library.Path(c_library.__file__).parent / "c_vector.h").as_posix()
    source.write_text(
        f'#include "{header}"\n'
        "void run(const float *x, float *exact, float *flush, int64_t n) {\n"
        "    for (int64_t i = 0; i < n; i += LANES) {\n"
        "        v_store(exact + i, v_exp(v_load(x + i, FLOAT32)), FLOAT32);\n"
        "        v_store(flush + i, v_exp_flush(v_load(x + i, FLOAT32)), FLOAT32);\n"
        "    }\n"
        "}\n"
    )
    special = torch.tensor([-torch.inf, torch.inf, torch.nan, 0.0, 88.7, 88.73, -87.6, -103.9, -104.5, -1e30, 1e30, 1e-30, -0.0, 1, -1, 2])
    x = torch.cat((special, torch.linspace(-105, 89, 100000), 1e-3 * torch.randn(4000)))
    exact, flush = torch.empty_like(x), torch.empty_like(x)
    c_library.load(source).run(*(ctypes.c_void_p(t.data_ptr()) for t in (x, exact, flush)), ctypes.c_int64(x.numel()))
    expected = x.double().exp()
    unit = torch.maximum(expected.abs() * 2.0**-23, torch.tensor(2.0**-149, dtype=torch.float64))
    normal = x.abs() < 1e30
    representable = normal & (expected <= torch.finfo(torch.float32).max)
    assert ((exact.double() - expected)[representable] / unit[representable]).abs().max() <= 2
    assert torch.equal(exact[~representable].nan_to_num(-7), x[~representable].exp().nan_to_num(-7))
    inside = (x > -87.3) & (x <= 88)
    assert torch.equal(flush[inside], exact[inside])
    assert (flush[x < -88] == 0).all()
    assert flush[2].isnan()


def test_subnormal_numbers_survive_the_library():
    inputs = cases.make_inputs((1, 70, 40))
    run(*inputs)
    tiny = torch.tensor([1e-41])
    assert (tiny * 0.5).item() > 0
    assert (tiny.expand(100000) * 0.5).min().item() > 0
    y = bi_wkv(torch.zeros(1), torch.zeros(1), torch.zeros(1, 3, 1), tiny.expand(1, 3, 1), backend="c")
    assert y.min().item() > 0


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if k not in ("CC", "LINESCAN_BACKEND", "TRITON_INTERPRET")}
    return subprocess.run([sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, timeout=120)


ONE_CALL = """
import torch
from linescan.kernels.bi_wkv import bi_wkv, c_kernels, cases
from linescan.kernels import dispatch
inputs = cases.make_inputs((1, 70, 20))
y = bi_wkv(*inputs, backend="c")
torch.testing.assert_close(y, bi_wkv(*inputs, backend="torch"), rtol=1e-5, atol=1e-5)
"""


def test_processes_that_build_at_once_share_one_file_and_a_damaged_one_is_built_again(tmp_path):
    folder = tmp_path / "new" / "folder"
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda _: python(ONE_CALL, LINESCAN_CACHE=str(folder)), range(2)))
    assert [d.returncode for d in done] == [0, 0], done[0].stderr
    (kept,) = folder.iterdir()
    whole, built = kept.read_bytes(), kept.stat().st_mtime_ns
    assert python(ONE_CALL, LINESCAN_CACHE=str(folder)).returncode == 0
    assert kept.stat().st_mtime_ns == built
    kept.write_bytes(b"not a library")
    assert python(ONE_CALL, LINESCAN_CACHE=str(folder)).returncode == 0
    assert len(kept.read_bytes()) == len(whole)


def test_a_cache_that_cannot_be_written(tmp_path):
    """A file stands where the folder should be: what a read-only home does, for root too."""
    (tmp_path / "file").write_text("")
    done = python(ONE_CALL + "print(c_kernels.probe())", LINESCAN_CACHE=str(tmp_path / "file"), TMPDIR=str(tmp_path))
    assert (done.returncode, done.stdout.strip()) == (0, "None"), done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["file"], "the private folder is left behind"


REPORT = """
import torch
from linescan.kernels.bi_wkv import bi_wkv, cases
from linescan.kernels import dispatch
inputs = cases.make_inputs((1, 70, 20))
assert bi_wkv(*inputs).isfinite().all()
print(dispatch.report())
bi_wkv(*inputs, backend="c")
"""


@pytest.mark.parametrize("case", ["no compiler", "CC names nothing", "the compiler fails"])
def test_without_a_compiler_auto_works_and_the_name_says_why_not(tmp_path, case):
    environment = {"LINESCAN_CACHE": str(tmp_path)}
    if case == "no compiler":
        environment["PATH"], message = str(tmp_path), "no C compiler: none of cc, gcc, clang is on the PATH"
    elif case == "CC names nothing":
        environment["CC"], message = "nosuchcc -O2", "no C compiler: CC names 'nosuchcc'"
    else:
        script = tmp_path / "failing"
        script.write_text("#!/bin/sh\necho 'error: this machine has no opinion' >&2\nexit 1\n")
        script.chmod(0o755)
        environment["CC"], message = str(script), "error: this machine has no opinion"
    done = python(REPORT, **environment)
    assert "RuntimeError" in done.stderr and message in done.stderr, done.stderr
    operators = re.split(r"^(?=\S+ +cpu )", done.stdout, flags=re.MULTILINE)  # an operator's line and the reasons below it
    report = next(text for text in operators if text.startswith("bi_wkv "))
    assert "auto -> torch" in report
    assert re.search(r"^ +c: ", report, re.MULTILINE)
    assert message in report


def test_a_library_that_computes_wrong_values_is_not_taken(monkeypatch):
    right = c_kernels._run
    monkeypatch.setattr(c_kernels, "_run", lambda k, back, w, *rest: right(k, back, w * 1.1, *rest))
    assert "wrong" in c_kernels.probe()


def test_auto_takes_c_on_a_cpu():
    assert "bi_wkv                 cpu   auto -> c" in dispatch.report()
    inputs = cases.make_inputs((1, 50, 20))
    assert torch.equal(bi_wkv(*inputs), run(*inputs))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_runs_on_one_thread():
    """A child of a process whose thread pool has run hangs when it opens a parallel region."""
    code = """
import os, signal, torch
torch.set_num_threads(2)
from linescan.kernels.bi_wkv import bi_wkv, cases
inputs = cases.make_inputs((2, 300, 100))
expected = bi_wkv(*inputs, backend="c").numpy().tobytes()
child = os.fork()
if child == 0:
    signal.alarm(30)
    os._exit(0 if bi_wkv(*inputs, backend="c").numpy().tobytes() == expected else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_process_has_one_openmp_runtime_and_keeps_its_rounding(tmp_path):
    code = """
from pathlib import Path
print(len({l.split()[-1] for l in Path("/proc/self/maps").read_text().splitlines() if "libgomp" in l or "libiomp" in l or "libomp" in l}))
"""
    before, after = python("import torch" + code), python(ONE_CALL + code, LINESCAN_CACHE=str(tmp_path))
    assert after.stdout.strip() == before.stdout.strip()
