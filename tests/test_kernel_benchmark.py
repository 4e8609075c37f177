"""The micro-benchmark: a wrong kernel is not timed, every row says what it is, an interrupted run keeps its rows."""

import runpy
import sys
import types

import pytest
import torch

from linescan.kernels import benchmark, dispatch
from linescan.kernels.bi_wkv import bi_wkv, bi_wkv_ref
from linescan.profiling import read_rows


@pytest.fixture
def others(monkeypatch):
    """An importable package of somebody else with a right, a wrong and a wrongly differentiated Bi-WKV."""
    module = types.ModuleType("somebody_else")
    module.right = bi_wkv_ref
    module.wrong = lambda w, u, k, v: 1.001 * bi_wkv_ref(w, u, k, v)
    module.detached = lambda w, u, k, v: bi_wkv_ref(w, u, k, v) + 0 * (y := bi_wkv_ref(2 * w, u, k, v)) + (y - y.detach())
    monkeypatch.setitem(sys.modules, "somebody_else", module)
    return module


@pytest.fixture
def tool(repo_root, monkeypatch, tmp_path):
    def run(*arguments: str) -> list[dict]:
        monkeypatch.setattr(sys, "argv", ["benchmark_kernels.py", "--out", str(tmp_path), *arguments])
        runpy.run_path(str(repo_root / "tools" / "benchmark_kernels.py"), run_name="__main__")
        return [row for path in tmp_path.glob("*.json") for row in read_rows(path)]

    return run


def test_a_wrong_kernel_is_not_timed(others, tool, tmp_path):
    benchmark.check("bi_wkv", "somebody_else:right", torch.float32, "cpu")
    for name in ("wrong", "detached"):
        with pytest.raises(AssertionError, match="RMS error"):
            tool("--providers", "torch", f"somebody_else:{name}", "--shapes", "1x16x4", "--repeats", "1")
    assert not list(tmp_path.glob("*.json"))


def test_rows_hold_every_metric_and_their_conditions(others, tool, tmp_path):
    providers = ("--providers", "torch", "somebody_else:right", "sdpa")
    rows = tool(*providers, "--shapes", "1x33x12", "--repeats", "2", "--mode", "fwd,bwd", "--plot")
    metrics = {(r["condition"]["provider"], r["condition"]["mode"], *r["result"]) for r in rows}
    for mode in ("fwd", "bwd"):
        for metric in ("latency_ms", "gb_per_s", "share_of_copy", "ratio_to_sdpa"):
            assert {("torch", mode, metric), ("somebody_else:right", mode, metric)} <= metrics
        assert ("sdpa", mode, "latency_ms") in metrics
    assert {("idle", "fwd", "overhead_us"), ("idle", "fwd with graph", "overhead_us")} <= metrics
    for row in rows:
        assert (row["kind"], row["name"]) == ("kernel", "bi_wkv") and {"device", "threads", "versions", "commit", "date"} <= row[
            "provenance"
        ].keys()
        assert {"copy_gb_per_s", "shape", "axes", "dtype", "repeats"} <= row["condition"].keys()
        (numbers,) = row["result"].values()
        assert 0 <= numbers["p20"] <= numbers["median"] <= numbers["p80"]
    assert list(tmp_path.glob("bi_wkv_shapes_cpu-*threads_float32.png"))


def test_slopes_of_a_sweep():
    """A square law has slope 2, wherever an outlier of another provider lies; two sizes are too few to say."""
    row = {"mode": "fwd", "metric": "latency_ms", "p20": 0.0, "p80": 9.9}
    rows = [row | {"provider": "square", "shape": [1, t, 4], "median": 1e-6 * t * t} for t in (1024, 4096, 16384)]
    rows += [row | {"provider": "short", "shape": [1, t, 4], "median": 1.0} for t in (1024, 4096)]
    (slope,) = benchmark.slope_rows(rows, lambda r: r["shape"][1])
    assert (slope["provider"], slope["metric"], slope["shape_first"]) == ("square", "log_log_slope", [1, 1024, 4])
    assert max(abs(slope[key] - 2) for key in ("p20", "median", "p80")) < 1e-9


def test_ratios_are_taken_inside_a_round(monkeypatch):
    """A machine that slows down tenfold between two rounds does not change a ratio."""
    load = iter([1, 1, 1, 1, 1, 1, 10, 10, 10])
    monkeypatch.setattr(benchmark.Stopwatch, "__call__", lambda self, call: {"torch": 1.0, "c": 1.0}.get(call, 4.0) * next(load))
    monkeypatch.setattr(benchmark, "provider_calls", lambda *a: {n: {"fwd": n} for n in ("torch", "c", "sdpa")})
    monkeypatch.setattr(benchmark, "peak_mib", lambda *a: None)
    monkeypatch.setattr(benchmark, "copy_gb_per_s", lambda device: 10.0)
    rows = benchmark.rows("bi_wkv", (1, 8, 4), torch.float32, "cpu", ["torch", "c", "sdpa"], "fwd", 2)
    ratios = [r for r in rows if r["metric"] == "ratio_to_sdpa"]
    assert [(r["p20"], r["median"], r["p80"]) for r in ratios] == [(0.25, 0.25, 0.25)] * 2


def test_compiled_pytorch_is_a_provider_and_leaves_the_operator_as_it_was(monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "compile", lambda f: lambda *x: (seen.append(f.__name__), f(*x))[1])
    benchmark.check("bi_wkv", "compile", torch.float32, "cpu")
    assert set(seen) == {"forward", "backward"}
    count = len(seen)
    bi_wkv(torch.zeros(3), torch.zeros(3), torch.zeros(1, 4, 3), torch.zeros(1, 4, 3), backend="torch")
    assert len(seen) == count


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "1x2"], "--shapes: expected sizes of B T C joined by x, such as 8x8x8, got '1x2'"),
        (["--shapes", "1xax3"], "--shapes: expected sizes of B T C"),
        (["--providers", "cuda"], "providers: expected .*, 'compile', 'sdpa' or 'module:function', got 'cuda'"),
        (["--op", "wkv"], "op: expected one of .*'bi_wkv'.*, got 'wkv'"),
    ],
)
def test_bad_arguments(tool, arguments, message):
    with pytest.raises((SystemExit, ValueError), match=message):
        tool(*arguments)


def test_report_shows_what_auto_takes(monkeypatch):
    text = dispatch.report()
    for op in benchmark.operators():
        assert any(line.split()[:2] == [op, "cpu"] and "auto -> " in line for line in text.splitlines())
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "triton: backend 'triton' needs CUDA tensors" in dispatch.report()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_said_in_one_line(tool, capsys):
    with pytest.raises(SystemExit):
        tool("--device", "cuda")
    assert "--device cuda: PyTorch finds no CUDA device here" in capsys.readouterr().err
