"""Interleaved timing, and results rows with their provenance."""

import json
import re
import time

import pytest
import torch
from torch import nn

from linescan.profiling import measure_throughput, measurement_row, provenance, read_rows, write_rows
from linescan.profiling.throughput import Spread, interleave


class _Sleeps(nn.Module):
    """Takes a known time per batch."""

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds = seconds
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        time.sleep(self.seconds)
        return x * self.scale


def test_throughput_and_ratio_of_models_with_known_times():
    models = {"slow": _Sleeps(0.02).train(), "fast": _Sleeps(0.01).eval()}
    rows = measure_throughput(models, 4, batch=3, rounds=5, warmup=1)
    assert list(rows) == ["slow", "fast"]
    # A sleep may last longer on a busy machine, never shorter: bounds from one side are exact, the other side is wide.
    assert 50 < rows["slow"].images_per_s.median <= 3 / 0.02
    assert 100 < rows["fast"].images_per_s.median <= 3 / 0.01
    assert rows["slow"].ratio == Spread(1, 1, 1)
    assert 1.3 < rows["fast"].ratio.median < 3
    assert rows["slow"].latency_ms.p20 <= rows["slow"].latency_ms.median <= rows["slow"].latency_ms.p80
    assert (rows["slow"].rounds, rows["slow"].size, rows["slow"].batch) == (5, (4, 4), 3)
    assert models["slow"].training and not models["fast"].training


def test_models_take_turns_and_the_order_alternates():
    calls = []
    seconds = interleave({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=3, warmup=1)
    assert calls == list("abc" + "abc" + "cba" + "abc")
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_time_limit_ends_after_a_full_round():
    rows = measure_throughput({"a": _Sleeps(0.02), "b": _Sleeps(0.0)}, 4, rounds=1000, warmup=0, max_seconds=0.05)
    assert 1 <= rows["a"].rounds == rows["b"].rounds < 10


def test_models_run_without_gradients_in_evaluation_mode_in_the_dtype_asked_for():
    seen = []
    linear = nn.Linear(8, 8)
    linear.register_forward_hook(
        lambda module, args, output: seen.append((module.training, output.requires_grad, output.dtype, args[0].shape))
    )
    measure_throughput({"linear": linear}, (4, 8), batch=2, channels=5, dtype="bf16", rounds=1, warmup=0)
    assert seen == [(False, False, torch.bfloat16, (2, 5, 4, 8))]


def test_a_model_that_fails_gives_the_training_mode_back():
    models = {"good": _Sleeps(0.0).train(), "bad": nn.Linear(3, 3).train()}
    with pytest.raises(RuntimeError):
        measure_throughput(models, 4)
    assert all(model.training for model in models.values())


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (dict(models={}), "models"),
        (dict(batch=0), "batch"),
        (dict(size=(4, 0)), "width"),
        (dict(size=(4, 4, 4)), "size"),
        (dict(dtype="int8"), "dtype"),
        (dict(rounds=0), "rounds"),
        (dict(warmup=-1), "warmup"),
    ],
)
def test_bad_arguments_are_named(arguments, word):
    with pytest.raises(ValueError, match=word):
        measure_throughput(**{"models": {"a": nn.Identity()}, "size": 4, **arguments})


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_absent_device_is_an_error():
    with pytest.raises(RuntimeError, match=r"cuda.*not present"):
        measure_throughput({"a": nn.Identity()}, 4, device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_events_see_the_work_and_not_only_its_launch():
    rows = measure_throughput(
        {"large": nn.Linear(4096, 4096), "small": nn.Linear(4096, 64)}, (4096, 4096), batch=4, device="cuda", rounds=5
    )
    assert rows["small"].ratio.median > 1.5


def test_spread_of_known_values():
    assert Spread.of([5.0]) == Spread(5, 5, 5)
    spread = Spread.of([float(value) for value in range(101)])
    assert (spread.median, spread.p20, spread.p80) == (50, 20, 80)


def test_rows_survive_a_file_and_say_where_they_come_from(tmp_path):
    result = measure_throughput({"a": nn.Identity()}, 4, rounds=2)["a"]
    row = measurement_row(
        "throughput", "a", condition=result.as_condition(), result=result.as_result(), command=["python", "tools/x.py", "--a b"]
    )
    path = tmp_path / "new" / "rows.json"
    write_rows(path, [row])
    assert read_rows(path) == [row]
    assert [entry.name for entry in path.parent.iterdir()] == ["rows.json"]
    source = row["provenance"]
    assert source["command"] == "python tools/x.py '--a b'"
    assert source["device"] and source["threads"] == torch.get_num_threads()
    assert source["versions"]["torch"] == torch.__version__.partition("+")[0] or source["versions"]["torch"] == torch.__version__
    assert source["versions"]["linescan"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", source["date"])


def test_commit_is_that_of_the_checkout(repo_root):
    commit = provenance()["commit"]
    if not (repo_root / ".git").exists():
        assert commit is None
        return
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", commit)


def test_command_has_no_absolute_path_of_this_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = provenance(command=["/usr/bin/python3", str(tmp_path / "tools" / "x.py"), "--out", str(tmp_path / "out")])["command"]
    assert command == "python3 tools/x.py --out out"


def test_foreign_files_and_rows_are_refused(tmp_path):
    path = tmp_path / "rows.json"
    for text, reason in (("[", "not JSON"), ("{}", "expected a list"), ('[{"schema": 1}]', "lacks kind, name")):
        path.write_text(text)
        with pytest.raises(ValueError, match=reason):
            read_rows(path)
    row = measurement_row("macs", "a", condition={}, result={})
    path.write_text(json.dumps([{**row, "schema": 99}]))
    with pytest.raises(ValueError, match="schema 99"):
        read_rows(path)
    with pytest.raises(ValueError, match="lacks schema"):
        write_rows(path, [{}])
    with pytest.raises(ValueError, match="kind and name"):
        measurement_row("", "a", condition={}, result={})


def test_a_number_that_json_cannot_hold_leaves_the_old_file(tmp_path):
    path = tmp_path / "rows.json"
    good = measurement_row("macs", "a", condition={}, result={"gmacs": 1.0})
    write_rows(path, [good])
    with pytest.raises(ValueError, match="JSON"):
        write_rows(path, [measurement_row("macs", "a", condition={}, result={"gmacs": float("nan")})])
    assert read_rows(path) == [good]
