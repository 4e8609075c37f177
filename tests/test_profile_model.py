"""tools/profile_model.py from the outside: what it leaves, how it fails, and that an interruption loses nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from linescan.profiling import read_rows

ROOT = Path(__file__).resolve().parents[1]
QUICK = ["--sizes", "32,48", "--rounds", "2", "--threads", "1"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def tool(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "tools/profile_model.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("profile") / "out"
    return tool("hybrid:test:bi_wkv", *QUICK, "--trace", "--project", "T4", "--out", out), out


pytestmark = pytest.mark.xdist_group("profile_model")  # one worker: the tests share a fixture


def test_what_it_prints_and_leaves(done):
    result, out = done
    assert result.returncode == 0, result.stderr[-3000:]
    assert all(word in result.stdout for word in ("hybrid:test:bi_wkv", "hybrid:test:attention", "ms", "report.html"))
    rows = read_rows(out / "rows.json")
    assert {row["kind"] for row in rows} == {"model", "cost", "speed", "memory", "operators", "projection", "projection_error"}
    assert "profile_model.py" in rows[0]["provenance"]["command"]
    assert "hybrid:test:attention" in (out / "report.md").read_text() and "<svg" in (out / "report.html").read_text().replace(
        "data:image/png", "<svg"
    )
    assert min(Image.open(out / "latency.png").size) > 300
    assert len(list((out / "trace").glob("*.json.gz"))) == 4


def test_compare_with_itself(done):
    _, out = done
    result = tool("--compare", out / "rows.json", out / "rows.json")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "faster" not in result.stdout and "slower" not in result.stdout


def test_report_of_rows_that_lie_there(done, tmp_path):
    _, out = done
    result = tool("--report", out / "rows.json", "--out", tmp_path / "again")
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "again" / "report.md").read_text() == (out / "report.md").read_text()


def test_rows_are_added_and_never_overwritten(done):
    _, out = done
    before = read_rows(out / "rows.json")
    result = tool("vim:test", "--baseline", "none", *QUICK, "--no-memory", "--no-operators", "--out", out)
    assert result.returncode == 1 and "--append" in result.stderr and read_rows(out / "rows.json") == before
    result = tool("vim:test", "--baseline", "none", *QUICK, "--no-memory", "--no-operators", "--out", out, "--append")
    assert result.returncode == 0, result.stderr[-3000:]
    after = read_rows(out / "rows.json")
    assert after[: len(before)] == before and {row["name"] for row in after[len(before) :]} == {"vim:test"}


def test_interrupt_keeps_what_was_measured(tmp_path):
    command = [sys.executable, str(ROOT / "tools/profile_model.py"), "hybrid:tiny:bi_wkv", "--sizes", "256", "--rounds", "10000"]
    command += ["--max-seconds", "1000", "--no-memory", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    rows = tmp_path / "out" / "rows.json"
    deadline = time.monotonic() + 120
    while not (rows.exists() and len(json.loads(rows.read_text())) == 4) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=120)
    assert process.returncode == 130 and "interrupted" in error, error[-3000:]
    assert [row["kind"] for row in read_rows(rows)] == ["model", "model", "cost", "cost"]
    assert "hybrid:tiny:attention" in output and (tmp_path / "out" / "report.md").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "at least one MODEL"),
        (["hybrid:smal:bi_wkv"], "small"),
        (["hybrids:small"], "hybrid"),
        (["configs/hybrid/nothing.py"], "nothing.py"),
        (["vim:test", "--baseline", "timm:deit_smal"], "deit_small"),
        (["vim:test", "--sizes", "32x"], "--sizes"),
        (["vim:test", "--batch", "-1"], "--batch"),
        (["vim:test", "--device", "cuda:77"], "cuda:77 is not present"),
        (["vim:test", "--eval", "weights.pth"], "--eval: expected a checkpoint for each of the 0 configs"),
        (["vim:test", "--accuracy", "setup.py"], "setup.py"),
        (["--report", "setup.py"], "setup.py"),
        (["--compare", "nothing.json", "nothing.json"], "nothing.json"),
    ],
)
def test_bad_input_is_one_line_and_a_status(arguments, message, tmp_path, monkeypatch, capsys):
    import runpy

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(
        sys, "argv", ["profile_model.py", *arguments, *([] if "--compare" in arguments else ["--out", str(tmp_path / "out")])]
    )
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "tools/profile_model.py"), run_name="__main__")
    error = capsys.readouterr().err
    last = error.strip().splitlines()[-1]
    assert stop.value.code == 1 and last.startswith("error: ") and message in last
