"""Timing of operators against each other and against softmax attention on the same tokens. Needs torch alone; `tools/benchmark_kernels.py`
is its face.

Providers are timed in turn within every round, so that a change of the machine's load meets all of them, and ratios are taken inside a
round. An operator that does not match its reference on this machine is not timed.
"""

import datetime
import importlib
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F

from . import testing

MODES = ("fwd", "bwd", "fwdbwd")
ATTENTION = "sdpa"


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


def check(cases: ModuleType, backend: str, dtype: torch.dtype, device: str) -> None:
    """Values and gradients of one backend against the reference; AssertionError where it is wrong."""
    inputs = cases.make_inputs(cases.CHECK_SHAPE, dtype, device)
    testing.assert_matches_reference(
        lambda *x: cases.OP(*x, **cases.KWARGS, backend=backend), lambda *x: cases.REFERENCE(*x, **cases.KWARGS), inputs, cases.INPUTS
    )


def _calls(function: Callable, inputs: Sequence[torch.Tensor]) -> dict[str, Callable[[], object]]:
    """Mode -> a call without arguments. `bwd` goes through a graph that is kept, so it holds the backward alone."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    grad_output = torch.randn_like(out)

    def forward():
        with torch.no_grad():
            return function(*inputs)

    return {
        "fwd": forward,
        "bwd": lambda: torch.autograd.grad(out, leaves, grad_output, retain_graph=True),
        "fwdbwd": lambda: torch.autograd.grad(function(*leaves), leaves, grad_output),
    }


def providers(cases: ModuleType, shape: tuple[int, ...], dtype: torch.dtype, device: str, backends: Sequence[str], attention: bool) -> dict:
    """Name -> mode -> call: the backends of the operator, and attention on the same tokens where asked for."""
    inputs = cases.make_inputs(shape, dtype, device)
    found = {b: _calls(lambda *x, b=b: cases.OP(*x, **cases.KWARGS, backend=b), inputs) for b in backends}
    if attention:
        found[ATTENTION] = _calls(F.scaled_dot_product_attention, cases.attention_inputs(shape, dtype, device))
    return found


def _latency_ms(call: Callable[[], object], device: str) -> float:
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    call()
    synchronize()
    return 1e3 * (time.perf_counter() - start)


def interleaved_ms(calls: dict[str, Callable[[], object]], device: str, repeats: int) -> dict[str, list[float]]:
    """Name -> `repeats` times in ms, taken in turn after one warm-up round."""
    times = {name: [] for name in calls}
    for round_ in range(repeats + 1):
        for name, call in calls.items():
            elapsed = _latency_ms(call, device)
            if round_:
                times[name].append(elapsed)
    return times


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile."""
    p20, median, p80 = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)).tolist()
    return {"median": median, "p20": p20, "p80": p80}


def rows(cases: ModuleType, op: str, shape: tuple[int, ...], dtype: torch.dtype, device: str, **options) -> Iterator[dict]:
    """Result rows of one shape: latency_ms for every provider and mode, and its ratio to attention taken round by round.

    Options: `backends`, `modes`, `repeats`, `attention` (bool).
    """
    found = providers(cases, shape, dtype, device, options["backends"], options["attention"])
    where = {"op": op, "shape": list(shape), "dtype": str(dtype).removeprefix("torch."), "repeats": options["repeats"]}
    for mode in options["modes"]:
        times = interleaved_ms({name: calls[mode] for name, calls in found.items()}, device, options["repeats"])
        for name, values in times.items():
            row = {"provider": name, "mode": mode, **where}
            yield {**row, "metric": "latency_ms", **summary(values)}
            if name != ATTENTION:
                moved = cases.bytes_moved(shape, dtype, mode)
                yield {**row, "metric": "gb_per_s", **summary([moved / ms / 1e6 for ms in values])}
            if options["attention"] and name != ATTENTION:
                yield {**row, "metric": "ratio_to_sdpa", **summary([a / b for a, b in zip(values, times[ATTENTION], strict=True)])}


def environment(device: str) -> dict[str, object]:
    """What every row must name: device, threads, versions, commit, date."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.exists() else []
        models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        name = models[0] if models else platform.processor() or platform.machine()
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"  # an installed copy has no history
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }
