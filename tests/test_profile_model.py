"""tools/profile_model.py from the outside: what it leaves, how it fails, and that an interruption loses nothing."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from linescan.profiling import accuracy, measurement_row, read_rows, session

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
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    # A shell starts what it runs in the background, such as this test suite, with SIGINT ignored, and children inherit that.
    process = subprocess.Popen(command, **pipes, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    rows = tmp_path / "out" / "rows.json"
    deadline = time.monotonic() + 120
    while not (rows.exists() and len(json.loads(rows.read_text())) == 4) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=120)
    assert process.returncode == 130 and "interrupted" in error, error[-3000:]
    assert [row["kind"] for row in read_rows(rows)] == ["model", "model", "cost", "cost"]
    assert "hybrid:tiny:attention" in output and (tmp_path / "out" / "report.md").exists()


@pytest.fixture
def here(monkeypatch, tmp_path, capsys):
    """Run the tool in this process; gives its exit status and the last line on standard error."""

    def run(*arguments):
        out = [] if "--compare" in arguments else ["--out", str(tmp_path / "out")]
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", ["profile_model.py", *arguments, *out])
        status = 0
        try:
            runpy.run_path(str(ROOT / "tools/profile_model.py"), run_name="__main__")
        except SystemExit as stop:
            status = stop.code
        return status, (capsys.readouterr().err.strip().splitlines() or [""])[-1]

    return run


def test_a_size_that_a_model_refuses_ends_in_a_status_and_keeps_the_rest(here, monkeypatch, tmp_path):
    count = session.count_macs

    def refuse(model, shape, **options):
        if shape[-1] == 48:
            raise ValueError("48 pixels are too many")
        return count(model, shape, **options)

    monkeypatch.setattr(session, "count_macs", refuse)
    status, message = here("vim:test", "--baseline", "none", *QUICK, "--no-memory", "--no-operators")
    assert status == 1 and "vim:test, cost: 48 pixels are too many" in message
    rows = read_rows(tmp_path / "out" / "rows.json")
    assert [(row["kind"], row["condition"].get("size")) for row in rows if row["kind"] in ("speed", "error")] == [
        ("error", [48, 48]),
        ("speed", [32, 32]),
    ]
    assert (tmp_path / "out" / "report.html").exists()


def test_accuracy_from_an_evaluation_and_from_a_file_beside_the_controls(here, monkeypatch, tmp_path):
    stem = "hybrid-bi-wkv-test_segformer_1xb8-400_shapes-128x128"
    asked = []

    def evaluate(config, checkpoint, **options):
        asked.append((config.stem, checkpoint.name))
        condition = {"config": config.stem, "split": "test", "source": "evaluated here"}
        return measurement_row("accuracy", config.stem, condition=condition, result={"mIoU": 12.5})

    monkeypatch.setattr(accuracy, "evaluate", evaluate)
    quick = ["--sizes", "32", "--rounds", "1", "--no-memory", "--no-operators", "--controls"]
    status, message = here(f"configs/shapes/{stem}.py", "--eval", "best.pth", "--accuracy", "results/quickstart/results.json", *quick)
    assert status == 0, message
    rows = read_rows(tmp_path / "out" / "rows.json")
    assert asked == [(stem, "best.pth")]
    assert [row["result"]["mIoU"] for row in rows if row["kind"] == "accuracy" and row["name"] == stem] == [
        pytest.approx(43.41, abs=0.01),
        12.5,
    ]
    assert [row["condition"]["role"] for row in rows if row["kind"] == "model"] == ["model", "baseline", "control", "control"]


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
def test_bad_input_is_one_line_and_a_status(arguments, message, here):
    status, last = here(*arguments)
    assert status == 1 and last.startswith("error: ") and message in last
