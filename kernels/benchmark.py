"""Timing of operators against each other, against other packages and against softmax attention on the same tokens. Needs torch alone;
`tools/benchmark_kernels.py` is its face.

A provider is a backend of the operator ("triton", "c", "torch", "reference", "mamba_ssm", "fla"), "compile" (torch.compile of the chunked
PyTorch), "sdpa", or "module:function", any importable function with the operator's arguments. Each is compared with the float64
reference first, and one that is wrong is not timed. Providers are timed in turn within every round, so that a change of the machine's
load meets all of them, and ratios are taken inside a round.
"""

import importlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
import torch.nn.functional as F

from . import testing
from .registration import OPERATORS

MODES = ("fwd", "bwd", "fwdbwd")
ATTENTION, COMPILE = "sdpa", "compile"
COPIED = 1 << 28  # bytes of the copy that measures the device's bandwidth, and of the buffer that clears its cache
Call = Callable[[], object]


def _case_files() -> dict[str, Path]:
    """Operator -> its cases module: `<op>/cases.py`, and `<folder>/cases_<op>.py` for a second function of a folder."""
    files = sorted(Path(__file__).parent.glob("*/cases*.py"))
    return {p.parent.name if p.stem == "cases" else p.stem.removeprefix("cases_"): p for p in files}


def operators(backend: str = "torch") -> list[str]:
    """Names of the operators that have a backend."""
    return [op for op in sorted(_case_files()) if backend in load_cases(op).BACKENDS]


def load_cases(op: str) -> ModuleType:
    """The `cases` module of operator `op`.

    Raises:
        ValueError: no such operator.
    """
    files = _case_files()
    if op not in files:
        raise ValueError(f"op: expected one of {sorted(files)}, got {op!r}")
    return importlib.import_module(f".{files[op].parent.name}.{files[op].stem}", __package__)


def default_providers(op: str, device: str) -> list[str]:
    """Every backend that can run on the device, attention, and on a GPU torch.compile (on a CPU it takes long and is slower)."""
    operator = OPERATORS[op]
    own = [b for b in (*operator.own, *operator.peers) if operator.why_not(b, device) is None and (b, device) != ("triton", "cpu")]
    return [*own, *([COMPILE] if device == "cuda" else []), ATTENTION]


def provider(op: str, name: str) -> Callable:
    """The function of a provider, of the operator's tensors. Not for attention, whose inputs are others.

    Raises:
        ValueError: an unknown name.
    """
    cases = load_cases(op)
    function = partial(cases.OP, **cases.KWARGS)
    if name == COMPILE:  # the operator itself is opaque to the compiler
        module = OPERATORS[op].module("torch")
        compiled = SimpleNamespace(forward=torch.compile(module.forward), backward=torch.compile(module.backward))
        OPERATORS[op].add_backend(COMPILE, compiled)
        return partial(function, backend=COMPILE)
    if ":" in name:
        module, attribute = name.split(":")
        return getattr(importlib.import_module(module), attribute)
    if name not in cases.BACKENDS:
        raise ValueError(f"providers: expected {cases.BACKENDS}, 'compile', 'sdpa' or 'module:function', got {name!r}")
    return partial(function, backend=name)


def check(op: str, name: str, dtype: torch.dtype, device: str) -> None:
    """Values and gradients of one provider against the reference; AssertionError where it is wrong."""
    cases = load_cases(op)
    inputs = cases.make_inputs(cases.CHECK_SHAPE, dtype, device)
    testing.assert_matches_reference(provider(op, name), partial(cases.REFERENCE, **cases.KWARGS), inputs, cases.INPUTS)


def _calls(function: Callable, inputs: Sequence[torch.Tensor], modes: Sequence[str]) -> dict[str, Call]:
    """Mode -> a call without arguments. `bwd` goes through a graph that is kept, so it holds the backward alone."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    calls = {}
    if "fwd" in modes:
        calls["fwd"] = torch.no_grad()(lambda: function(*inputs))
    if "bwd" in modes or "fwdbwd" in modes:
        out = function(*leaves)
        grad_output = torch.randn_like(out)
        calls["bwd"] = lambda: torch.autograd.grad(out, leaves, grad_output, retain_graph=True)
        calls["fwdbwd"] = lambda: torch.autograd.grad(function(*leaves), leaves, grad_output)
    return {mode: calls[mode] for mode in modes}


def provider_calls(op: str, shape: tuple[int, ...], dtype: torch.dtype, device: str, names: Sequence[str], modes: Sequence[str]) -> dict:
    """Provider -> mode -> call, attention on the same tokens included."""
    cases = load_cases(op)
    inputs = cases.make_inputs(shape, dtype, device)
    found = {name: _calls(provider(op, name), inputs, modes) for name in names if name != ATTENTION}
    if ATTENTION in names:
        found[ATTENTION] = _calls(F.scaled_dot_product_attention, cases.attention_inputs(shape, dtype, device), modes)
    return found


class Stopwatch:
    """Times single calls: by the clock on a CPU, by events on a GPU, where a cache-sized buffer is cleared before each call."""

    def __init__(self, device: str):
        self.cuda = device == "cuda"
        self.buffer = torch.empty(COPIED if self.cuda else 0, dtype=torch.uint8, device=device)

    def __call__(self, call: Call) -> float:
        """Milliseconds of one call."""
        if not self.cuda:
            start = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - start)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.buffer.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def interleaved(self, calls: dict[str, Call], repeats: int) -> dict[str, list[float]]:
        """Name -> `repeats` times in ms, taken in turn after one warm-up round."""
        rounds = [{name: self(call) for name, call in calls.items()} for _ in range(repeats + 1)][1:]
        return {name: [r[name] for r in rounds] for name in calls}


def peak_mib(call: Call, device: str) -> float | None:
    """Memory that one call takes beyond what is there before it, in MiB; None where the system cannot tell.

    On a GPU what PyTorch allocated; on a CPU the growth of the resident set, so memory that a process keeps for its next call is not seen.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
        before = _resident_kib("VmRSS")
        call()
        return max(0, _resident_kib("VmHWM") - before) / 2**10
    except OSError:
        return None


def _resident_kib(key: str) -> int:
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile."""
    p20, median, p80 = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)).tolist()
    return {"median": median, "p20": p20, "p80": p80}


@cache
def copy_gb_per_s(device: str) -> float:
    """Bandwidth of a large copy on the device, bytes read plus bytes written: what a memory-bound kernel can reach. Measured once."""
    source = torch.zeros(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = Stopwatch(device).interleaved({"copy": lambda: target.copy_(source)}, 10)["copy"]
    return 2 * COPIED / summary(times)["median"] / 1e6


def rows(op: str, shape: tuple[int, ...], dtype: torch.dtype, device: str, names: Sequence[str], mode: str, repeats: int) -> Iterator[dict]:
    """Result rows of one shape and mode: latency_ms and peak_mib of every provider; for all but attention gb_per_s (bytes_moved over
    latency), share_of_copy (that over the device's copy bandwidth), and ratio_to_sdpa, taken round by round."""
    cases = load_cases(op)
    calls = {name: by_mode[mode] for name, by_mode in provider_calls(op, shape, dtype, device, names, [mode]).items()}
    times = Stopwatch(device).interleaved(calls, repeats)
    moved = cases.bytes_moved(shape, dtype, mode)
    for name, values in times.items():
        row = {"op": op, "provider": name, "mode": mode, "shape": list(shape), "axes": cases.SHAPE_NAMES}
        row |= {"dtype": str(dtype).removeprefix("torch."), "repeats": repeats}
        yield {**row, "metric": "latency_ms", **summary(values)}
        if (peak := peak_mib(calls[name], device)) is not None:
            yield {**row, "metric": "peak_mib", **summary([peak])}
        if name == ATTENTION:
            continue
        speeds = [moved / ms / 1e6 for ms in values]
        yield {**row, "metric": "gb_per_s", **summary(speeds)}
        yield {**row, "metric": "share_of_copy", **summary([x / copy_gb_per_s(device) for x in speeds])}
        if ATTENTION in times:
            yield {**row, "metric": "ratio_to_sdpa", **summary([a / b for a, b in zip(values, times[ATTENTION], strict=True)])}


def slope_rows(rows: Sequence[dict], tokens: Callable[[dict], int]) -> Iterator[dict]:
    """Rows of log_log_slope, how the median latency grows with `tokens(row)`: 1 is linear, 2 quadratic. One per provider and mode with at
    least three sizes; p20 and p80 are the lowest and the highest slope with one size left out."""
    series: dict[tuple, list[dict]] = {}
    for row in rows:
        if row["metric"] == "latency_ms":
            series.setdefault((row["provider"], row["mode"]), []).append(row)
    for points in (x for x in series.values() if len(x) > 2):
        logs = [(math.log(tokens(r)), math.log(r["median"])) for r in points]
        slope = statistics.linear_regression(*zip(*logs, strict=True)).slope
        spread = [statistics.linear_regression(*zip(*(logs[:i] + logs[i + 1 :]), strict=True)).slope for i in range(len(logs))] + [slope]
        row = {**points[-1], "metric": "log_log_slope", "shape_first": points[0]["shape"]}
        yield {**row, "median": slope, "p20": min(spread), "p80": max(spread)}


def overhead_rows(op: str, device: str, calls: int = 2000) -> Iterator[dict]:
    """Rows of overhead_us: what one call costs in Python before and after the arithmetic, without and with a graph for the backward.

    The operator is called with a backend that does nothing but allocate its outputs; p20 and p80 are over 20 series of calls.
    """
    cases, operator = load_cases(op), OPERATORS[op]
    idle = SimpleNamespace(forward=operator.fake, backward=operator.module("torch").backward)
    inputs = cases.make_inputs(cases.TRITON_SHAPES[0], torch.float32, device)
    operator.add_backend("idle", idle)
    function = partial(cases.OP, **cases.KWARGS, backend="idle")
    for mode, graph in (("fwd", False), ("fwd with graph", True)):
        tensors, series = [x.detach().requires_grad_(graph) for x in inputs], []
        for _ in range(21):
            start = time.perf_counter()
            for _ in range(calls // 20):
                function(*tensors)
            series.append(1e6 * (time.perf_counter() - start) / (calls // 20))
        row = {"op": op, "provider": "idle", "mode": mode, "shape": list(cases.TRITON_SHAPES[0]), "axes": cases.SHAPE_NAMES}
        yield {**row, "dtype": "float32", "repeats": calls, "metric": "overhead_us", **summary(series[1:])}
