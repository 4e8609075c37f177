"""Every Triton kernel compiles for GPUs that are not there: no spill, and no more registers or shared memory than its budget.

A kernel that is the one of the committed budget, to the digest, is compiled for one architecture, a changed or new one for all five;
`make compile-report` compiles everything for all five.
"""

import json
import os
import subprocess
import sys

import pytest

from linescan.kernels import benchmark
from linescan.kernels.compile_report import budget_path, problems


@pytest.mark.parametrize("op", benchmark.operators("triton"))
def test_kernels_compile_without_spills_and_within_budget(op):
    """In a process of its own: a process that imported Triton for its interpreter cannot compile."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "linescan.kernels.compile_report", "--quick", "--op", op]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no spill, within budget" in done.stdout


def test_a_spill_and_a_missing_or_exceeded_budget_are_problems():
    found = {"a": {"source": "0f", "sm_90": {"registers": 64, "stack": 0, "shared": 0}}}
    assert problems(found, json.loads(json.dumps(found))) == []
    assert "spills 8 bytes" in problems({"a": {"sm_90": found["a"]["sm_90"] | {"stack": 8}}}, found)[0]
    assert "registers 65 > 64" in problems({"a": {"sm_90": found["a"]["sm_90"] | {"registers": 65}}}, found)[0]
    assert "no budget" in problems(found, {})[0]
    assert "not launched any more" in problems({}, found)[0]


def test_quick_compiles_a_changed_kernel_for_every_architecture_and_an_unchanged_one_for_one():
    """The smallest operator, with one digest of its budget spoiled."""
    op = "q_shift"
    budget = json.loads(budget_path(op).read_text())
    changed = next(iter(budget))
    code = f"""
import json
from linescan.kernels import compile_report
budget = json.loads(compile_report.budget_path({op!r}).read_text())
budget[{changed!r}]["source"] = "changed"
print(json.dumps({{label: list(entry) for label, entry in compile_report.measure({op!r}, known=budget).items()}}))
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    compiled = json.loads(done.stdout.splitlines()[-1])
    assert compiled.pop(changed) == ["source", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
    assert compiled
    assert all(names == ["source", "sm_90"] for names in compiled.values()), "digests of the budget are out of date: run --update"
