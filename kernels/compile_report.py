"""Compiles the Triton kernels of an operator, as its benchmark would start them, for every architecture, and checks a budget.

    python -m linescan.kernels.compile_report --op bi_wkv            # the table; exit status 1 on a spill or over budget
    python -m linescan.kernels.compile_report --op bi_wkv --update   # writes the budget, kernels/<op>/compile_budget.json
    python -m linescan.kernels.compile_report --op bi_wkv --quick    # unchanged kernels for one architecture instead of five

The budget is the measured need: registers, stack and shared memory by kernel, configuration and architecture, and a digest of what was
compiled. `--quick` recognises an unchanged kernel by its digest, as Triton's own cache does. No GPU, no driver.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from . import benchmark, registration

DTYPES = (torch.bfloat16, torch.float32)
QUICK = (90,)  # architectures for which --quick compiles an unchanged kernel


def recorded(op: str, dtypes: Sequence[torch.dtype] = DTYPES) -> Iterator[tuple[str, object]]:
    """(label, launch) of forward and backward at every compile shape of an operator and every dtype, each distinct kernel once."""
    from . import triton_compile
    from .triton_runtime import record_launches

    cases = benchmark.load_cases(op)
    operator = registration.OPERATORS[op]
    module = operator.module("triton")
    seen = set()
    for shape in getattr(cases, "COMPILE_SHAPES", cases.BENCHMARK_SHAPES[:1]):
        for dtype in dtypes:
            inputs = cases.make_inputs(shape, dtype, "meta")
            args = operator.arguments_of(lambda x=inputs: cases.OP(*x, **cases.KWARGS, backend="triton"))
            tensors, statics = args[: len(operator.tensors)], args[len(operator.tensors) :]
            with record_launches() as launches:
                outputs = module.forward(*args)
                module.backward(*tensors, *operator.as_tuple(outputs), *statics)
            size = "x".join(map(str, shape))
            for launch in launches:
                key = triton_compile.key(launch)
                if key not in seen:
                    seen.add(key)
                    yield f"{size} {str(dtype).removeprefix('torch.')} {launch.name}", launch


def measure(op: str, architectures: Sequence[int] | None = None, known: dict | None = None) -> dict[str, dict]:
    """label -> architecture -> registers, stack, shared; and "source", the digest of what was compiled.

    A kernel that `known`, a budget, has with the same digest is compiled for QUICK alone.
    """
    from . import triton_compile

    table: dict[str, dict] = {}
    for label, launch in recorded(op):
        while label in table:  # one kernel started twice in one call, with different arguments
            label += "'"
        source = triton_compile.digest(launch)
        unchanged = known is not None and known.get(label, {}).get("source") == source
        table[label] = {"source": source}
        for arch in QUICK if unchanged else architectures or triton_compile.ARCHITECTURES:
            table[label][f"sm_{arch}"] = asdict(triton_compile.resources(triton_compile.compile_launch(launch, arch)))
    return table


def budget_path(op: str) -> Path:
    cases = benchmark.load_cases(op)
    return Path(cases.__file__).with_name(Path(cases.__file__).stem.replace("cases", "compile_budget") + ".json")


def _by_architecture(entry: dict) -> Iterator[tuple[str, dict[str, int]]]:
    return ((name, need) for name, need in entry.items() if name != "source")


def problems(found: dict, budget: dict) -> list[str]:
    """Spills, and everything that takes more than its budget or has none."""
    messages = []
    for label, by_arch in found.items():
        for arch, need in _by_architecture(by_arch):
            allowed = budget.get(label, {}).get(arch)
            if need["stack"]:
                messages.append(f"{label} on {arch} spills {need['stack']} bytes per thread")
            if allowed is None:
                messages.append(f"{label} on {arch} has no budget: run with --update")
            else:
                messages += [f"{label} on {arch}: {n} {need[n]} > {allowed[n]}" for n in ("registers", "shared") if need[n] > allowed[n]]
    messages += [f"{label} has a budget, but is not launched any more" for label in budget if label not in found]
    return messages


def print_table(found: dict) -> None:
    width = max(map(len, found), default=10)
    for label, by_arch in found.items():
        cells = (
            f"{arch} {n['registers']:3} reg {n['shared']:6} B{' SPILL ' + str(n['stack']) if n['stack'] else ''}"
            for arch, n in _by_architecture(by_arch)
        )
        print(f"{label:{width}}  " + "  ".join(cells))


def run(ops: Sequence[str], update: bool = False, quick: bool = False) -> int:
    """Prints the table of each operator; returns the number of problems."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("TRITON_INTERPRET=1 is set: kernels cannot be compiled in the interpreter's process; unset it")
    count = 0
    for op in ops:
        path = budget_path(op)
        budget = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        found = measure(op, known=budget if quick else None)
        print(f"\n{op}: registers per thread, shared memory per program")
        print_table(found)
        if update:
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            budget = found
        messages = problems(found, budget)
        print("\n".join(messages) or "no spill, within budget", flush=True)
        count += len(messages)
    return count


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", nargs="+", default=benchmark.operators("triton"), help="operators (default: all with Triton kernels)")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--update", action="store_true", help="write the budget files")
    mode.add_argument("--quick", action="store_true", help="compile kernels that the budget knows for one architecture only")
    arguments = parser.parse_args()
    sys.exit(1 if run(arguments.op, arguments.update, arguments.quick) else 0)
