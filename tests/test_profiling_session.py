"""A profiling session: who is measured beside whom, which rows come, and that failures become rows and lose none."""

import json
import re
import sys

import pytest
import torch
from torch import nn

from linescan.engine import ConfigError
from linescan.profiling import profile
from linescan.profiling import session as session_module
from linescan.profiling.lineup import line_up, references
from linescan.profiling.memory import OutOfMemory
from linescan.profiling.progress import progress_bar
from linescan.profiling.subjects import resolve

QUICK = dict(sizes=[32], rounds=2, memory=False, operators=False)


def kinds(rows: list[dict]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["kind"], []).append(row["name"])
    return found


class _Refuses(nn.Module):
    """Refuses images above 40 pixels, or fails where it really runs."""

    def __init__(self, *, fails_on: str = "never"):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fails_on = fails_on

    def forward(self, x):
        if x.shape[-1] > 40:
            raise ValueError(f"image of {x.shape[-1]} pixels, at most 40 expected")
        if x.device.type == self.fails_on:
            raise torch.OutOfMemoryError("no memory") if self.training else RuntimeError("values are needed and missing")
        return self.conv(x)


def test_a_hybrid_and_its_twin():
    rows = profile(["hybrid:test:bi_wkv"], **{**QUICK, "sizes": [32, (24, 40)], "train": True, "operators": True})
    names = ["hybrid:test:bi_wkv", "hybrid:test:attention"]
    found = kinds(rows)
    assert found.pop("model") == names and found.pop("cost") == names * 2
    assert sorted(found.pop("speed")) == sorted(found.pop("operators")) == sorted(names * 4)
    assert not found
    model, twin = (row["condition"] for row in rows[:2])
    assert (model["role"], model["of"], twin["role"], twin["of"]) == ("model", [], "baseline", names[:1]) and "attention twin" in twin[
        "reason"
    ]
    speeds = [row for row in rows if row["kind"] == "speed"]
    assert {row["condition"]["reference"] for row in speeds} == {"hybrid:test:attention"}
    assert {(tuple(row["condition"]["size"]), row["condition"]["mode"]) for row in speeds} == {
        (size, mode) for size in ((32, 32), (24, 40)) for mode in ("forward", "training step")
    }
    assert all(row["result"]["ratio"]["median"] == 1 for row in speeds if row["name"] == names[1])
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_exact_numbers_of_the_rows():
    from linescan.profiling import count_macs, count_parameters

    module = _Refuses()
    rows = profile([module], baseline=None, **QUICK)
    cost = next(row["result"] for row in rows if row["kind"] == "cost")
    assert cost["macs"] == count_macs(module, (1, 3, 32, 32)).macs == 4 * 30 * 30 * 27 and cost["flops"] == 2 * cost["macs"]
    parameters = next(row["result"] for row in rows if row["kind"] == "model")
    assert parameters["parameters"] == parameters["live"] == count_parameters(module).total == 4 * 27 + 4


def test_controls_and_what_every_speed_is_divided_by():
    subjects = line_up(["hybrid:test:bi_wkv", "hybrid:test:ss2d"], with_controls=True)
    roles = {subject.name: subject.role for subject in subjects}
    assert [name for name, role in roles.items() if role == "model"] == ["hybrid:test:bi_wkv", "hybrid:test:ss2d"]
    assert {name: role for name, role in roles.items() if role != "model"} == {
        "hybrid:test:attention": "baseline",
        "hybrid:test:gated_conv": "control",
        "hybrid:test:none": "control",
    }
    assert next(subject for subject in subjects if subject.role == "baseline").of == ("hybrid:test:bi_wkv", "hybrid:test:ss2d")
    assert set(references(subjects).values()) == {"hybrid:test:attention"}


def test_a_baseline_that_is_also_a_model_stands_there_once():
    subjects = line_up(["hybrid:test:bi_wkv", "hybrid:test:attention"])
    assert [(subject.name, subject.role, subject.of) for subject in subjects] == [
        ("hybrid:test:bi_wkv", "model", ()),
        ("hybrid:test:attention", "model", ("hybrid:test:bi_wkv",)),
    ]
    assert references(subjects) == {"hybrid:test:bi_wkv": "hybrid:test:attention", "hybrid:test:attention": "hybrid:test:attention"}


def test_named_baseline_and_none():
    subjects = line_up(["hybrid:test:bi_wkv", "vim:test"], baseline="timm:test")
    assert set(references(subjects).values()) == {"timm:test"} and subjects[-1].reason == "as asked for"
    assert references(line_up(["vim:test", "vrwkv:test"], baseline=None)) == {"vim:test": "vim:test", "vrwkv:test": "vim:test"}


def test_out_of_memory_is_a_row_and_the_others_go_on(monkeypatch):
    def memory(build, subject, size, batch, **where):
        if subject.role == "baseline":
            raise OutOfMemory("needs 7 MiB, there are 6")
        return {"weights_mib": 1.0, "peak_growth_mib": 2.0, "peak_mib": 3.0, "method": "made up"}

    monkeypatch.setattr(session_module, "peak_memory", memory)
    rows = profile(["hybrid:test:bi_wkv"], **{**QUICK, "memory": True, "operators": True})
    failed = [row for row in rows if "error" in row["result"]]
    assert [(row["kind"], row["name"]) for row in failed] == [("memory", "hybrid:test:attention"), ("speed", "hybrid:test:attention")]
    assert all(row["result"] == {"error": "out of memory", "message": "needs 7 MiB, there are 6"} for row in failed)
    speed = next(row for row in rows if row["kind"] == "speed" and "error" not in row["result"])
    assert speed["name"] == speed["condition"]["reference"] == "hybrid:test:bi_wkv"
    assert kinds(rows)["operators"] == ["hybrid:test:bi_wkv"]


def test_memory_that_runs_out_while_timing(monkeypatch):
    rows = profile([_Refuses(fails_on="cpu"), "vim:test"], baseline=None, **{**QUICK, "train": True})
    failed = [(row["kind"], row["condition"]["mode"], row["result"]["error"]) for row in rows if "error" in row["result"]]
    assert failed == [("error", "forward", "RuntimeError"), ("speed", "training step", "out of memory")]
    assert kinds([row for row in rows if "error" not in row["result"]])["speed"] == ["vim:test"] * 2


def test_models_that_run_alone_and_not_together(monkeypatch):
    timed = session_module.Session.timed

    def crowded(self, names, *arguments, **limits):
        if len(names) > 1:
            raise torch.OutOfMemoryError("all of them are too large together")
        return timed(self, names, *arguments, **limits)

    monkeypatch.setattr(session_module.Session, "timed", crowded)
    rows = profile(["vim:test", "vrwkv:test"], baseline=None, **{**QUICK, "sizes": [32, 24]})
    failed = [(row["kind"], row["name"], row["condition"]["size"][0], row["result"]["error"]) for row in rows if "error" in row["result"]]
    assert failed == [("speed", name, size, "out of memory") for size in (32, 24) for name in ("vim:test", "vrwkv:test")]


def test_a_size_that_one_model_refuses():
    rows = profile([_Refuses(), "vim:test"], baseline=None, **{**QUICK, "sizes": [48, 32]})
    (error,) = [row for row in rows if row["kind"] == "error"]
    assert (error["condition"]["size"], error["condition"]["step"]) == ([48, 48], "cost") and "at most 40" in error["result"]["message"]
    speeds = [(row["name"], row["condition"]["size"][0]) for row in rows if row["kind"] == "speed"]
    assert sorted(speeds) == [("_Refuses", 32), ("vim:test", 32), ("vim:test", 48)]


def test_an_operator_without_a_formula_is_named():
    class Spectrum(nn.Module):
        def forward(self, x):
            return torch.fft.rfft2(x).abs()

    rows = profile([Spectrum()], baseline=None, **QUICK)
    assert kinds(rows) == {"model": ["Spectrum"], "error": ["Spectrum"]}
    assert "aten::_fft_r2c" in rows[-1]["result"]["message"]


def test_largest_batch(monkeypatch):
    found = {"vim:test": 3, "vrwkv:test": 0}
    monkeypatch.setattr(session_module, "largest_batch", lambda build, subject, size, **where: found[subject.name])
    rows = [row for row in profile(list(found), baseline=None, **{**QUICK, "batches": ["max"]}) if row["kind"] == "speed"]
    assert [(row["name"], row["condition"]["batch"], row["condition"]["largest_batch"]) for row in rows] == [
        ("vim:test", 3, True),
        ("vrwkv:test", 1, True),
    ]
    assert "ratio" not in rows[0]["result"] and rows[1]["result"]["error"] == "out of memory"


def test_time_by_operator_is_taken_at_the_first_batch():
    rows = profile(["vim:test"], baseline=None, **{**QUICK, "batches": [2, 1], "operators": True})
    assert [row["condition"]["batch"] for row in rows if row["kind"] == "operators"] == [2]
    assert [row["condition"]["batch"] for row in rows if row["kind"] == "speed"] == [2, 1]


def test_the_memory_layout_holds_for_every_timed_pass():
    seen = []
    module = _Refuses()
    module.conv.register_forward_pre_hook(lambda module, args: seen.append(args[0].is_contiguous(memory_format=torch.channels_last)))
    rows = profile([module], baseline=None, **{**QUICK, "operators": True, "memory_format": "channels_last"})
    counted = seen.index(True)
    assert all(seen[counted:]) and {row["kind"] for row in rows} == {"model", "cost", "speed", "operators"}


def test_projection_and_its_error_where_it_can_be_compared():
    rows = profile(["vim:test"], baseline=None, **{**QUICK, "projections": ["A100-SXM4-80GB"], "dtypes": ["fp32", "bf16"]})
    assert [row["condition"]["dtype"] for row in rows if row["kind"].startswith("projection")] == ["fp32", "bf16"] * 2
    projection, error = (next(row for row in rows if row["kind"] == kind) for kind in ("projection", "projection_error"))
    assert projection["condition"]["device"] == "A100-SXM4-80GB" and projection["result"]["latency_ms"] > 0 and projection["result"]["fits"]
    assert error["condition"]["rows"] == 1 and error["result"]["measured_over_estimated"]["median"] > 0


def test_rows_are_handed_on_at_once_and_progress_rises_to_the_end():
    seen, fractions = [], []

    def interrupt(row):
        seen.append(row)
        if row["kind"] == "cost":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile(["vim:test"], baseline=None, on_row=interrupt, **QUICK)
    assert [row["kind"] for row in seen] == ["model", "cost"]
    profile(["vim:test"], baseline=None, progress=lambda label, fraction: fractions.append(fraction), **QUICK)
    assert fractions == sorted(fractions) and fractions[0] == 0 and fractions[-1] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(models=[]), "models: expected at least one"),
        (dict(sizes=[]), "sizes: expected at least one"),
        (dict(sizes=[0]), "sizes: expected pixels"),
        (dict(sizes=[(3, 4, 5)]), "sizes: expected pixels"),
        (dict(sizes=[32, (32, 32)]), "none twice"),
        (dict(batches=[0]), "batches: expected positive integers or 'max'"),
        (dict(batches=["many"]), "'many'"),
        (dict(dtypes=["fp64"]), "fp32"),
        (dict(device="tpu"), "device: expected cpu"),
        (dict(device="cuda:99"), "cuda:99 is not present"),
        (dict(rounds=0), "rounds"),
        (dict(memory_format="nhwc"), "memory_format"),
        (dict(tf32=True), "tf32: a mode of CUDA devices"),
        (dict(projections=["A1000"]), "A100"),
        (dict(baseline="timm:deit_smal"), "deit_small"),
        (dict(models=["vim:tests"]), "test"),
    ],
)
def test_bad_input_is_refused_before_anything_is_built(arguments, message, monkeypatch):
    monkeypatch.setattr(session_module, "build", lambda subject: pytest.fail("was built"))
    with pytest.raises((ConfigError, ValueError), match=message):
        profile(**{"models": ["vim:test"], "baseline": None, **QUICK, **arguments})


def test_a_baseline_with_options_of_its_own():
    """One subject as the baseline of all: the models' options are not its."""
    baseline = resolve("hybrid:test:attention", options=dict(mlp_ratio=1))
    rows = profile([resolve("hybrid:test:bi_wkv", options=dict(mlp_ratio=1)), "timm:deit_tiny"], baseline=baseline, **QUICK)
    speeds = {row["name"]: row["condition"]["reference"] for row in rows if row["kind"] == "speed"}
    assert speeds == dict.fromkeys(("hybrid:test:bi_wkv", "timm:deit_tiny", "hybrid:test:attention"), "hybrid:test:attention")
    options = {row["name"]: row["condition"]["options"] for row in rows if row["kind"] == "model"}
    assert options["timm:deit_tiny"] == {} and options["hybrid:test:attention"] == dict(mlp_ratio=1)


def test_the_bar_shows_what_a_session_tells(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_bar() as show:
        for label, fraction in (("cost of a", 0.0), ("speed of a at 64", 1.0)):
            show(label, fraction)
    assert re.search(r"speed of a at 64: 100%.* left", capsys.readouterr().err)
