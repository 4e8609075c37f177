"""Every Triton kernel compiles for GPUs that are not there: no spill, and no more registers or shared memory than its budget."""

import json
import os
import subprocess
import sys

import pytest

from linescan.kernels import benchmark
from linescan.kernels.compile_report import problems


@pytest.mark.parametrize("op", benchmark.operators("triton"))
def test_kernels_compile_without_spills_and_within_budget(op):
    """In a process of its own: a process that imported Triton for its interpreter cannot compile."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "linescan.kernels.compile_report", "--op", op]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no spill, within budget" in done.stdout


def test_a_spill_and_a_missing_or_exceeded_budget_are_problems():
    found = {"a": {"sm_90": {"registers": 64, "stack": 0, "shared": 0}}}
    assert problems(found, json.loads(json.dumps(found))) == []
    assert "spills 8 bytes" in problems({"a": {"sm_90": found["a"]["sm_90"] | {"stack": 8}}}, found)[0]
    assert "registers 65 > 64" in problems({"a": {"sm_90": found["a"]["sm_90"] | {"registers": 65}}}, found)[0]
    assert "no budget" in problems(found, {})[0]
    assert "not launched any more" in problems({}, found)[0]
