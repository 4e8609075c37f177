"""runs/train_seeds.py: which runs it starts and which it leaves, and the rows that it writes. The trainings themselves are replaced."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from linescan.engine import ConfigError, load_config
from linescan.profiling import read_rows

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = [ROOT / f"configs/hybrid/hybrid-{mixer}-tiny_segformer_1xb8-500_camvid-180x240.py" for mixer in ("bi-wkv", "attention")]
NAMES = [config.stem for config in CONFIGS]


@pytest.fixture
def script(monkeypatch):
    """The script as a module whose `trained` lists the runs that it asked for; each leaves its config and a metrics.json."""
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")  # the script sets it; undone after the test
    spec = importlib.util.spec_from_file_location("train_seeds", ROOT / "runs/train_seeds.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.trained = []

    def train_and_test(config, work_dir, *, cfg_options=None, seed=0):
        module.trained.append((config.stem, seed))
        work_dir.mkdir(parents=True)
        load_config(config, cfg_options=cfg_options, seed=seed).dump(work_dir / config.name)
        metrics = {"mIoU": 30.00004 + seed, "IoU.sky": 80.0, "IoU.pole": float("nan")}
        done = {"checkpoint": "best_mIoU_iter_500.pth", "train_seconds": 12.5, "train_cpu_seconds": 11.5, "metrics": metrics}
        (work_dir / "metrics.json").write_text(json.dumps(done))

    monkeypatch.setattr(module, "train_and_test", train_and_test)
    return module


@pytest.fixture
def call(script, tmp_path, monkeypatch):
    def call(*options, configs=CONFIGS, out="out.json"):
        """The runs that a call starts."""
        words = ["train_seeds.py", tmp_path / "work", tmp_path / out, *configs, *options]
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        before = len(script.trained)
        script.main()
        return script.trained[before:]

    return call


def test_a_row_per_run_seed_by_seed(call, tmp_path):
    assert call("--seeds", 0, 2) == [(name, seed) for seed in (0, 2) for name in NAMES]
    rows = read_rows(tmp_path / "out.json")
    assert [(row["kind"], row["name"], row["condition"]["seed"]) for row in rows] == [("accuracy", n, s) for s in (0, 2) for n in NAMES]
    assert rows[-1]["result"] == {"mIoU": 32.0, "IoU.sky": 80.0, "train_seconds": 12.5, "train_cpu_seconds": 11.5}
    condition = dict(config=NAMES[1], split="test", seed=2, iterations=500, checkpoint="best_mIoU_iter_500.pth")
    assert rows[-1]["condition"] == condition | dict(source="trained here", options={})
    assert (tmp_path / "work/seed2" / NAMES[1] / "metrics.json").is_file()


def test_what_is_there_is_left(call, tmp_path):
    call("--seeds", 0, configs=CONFIGS[:1])
    before = (tmp_path / "out.json").read_text()
    assert call("--seeds", 0, configs=CONFIGS[:1]) == [] and (tmp_path / "out.json").read_text() == before
    assert call("--seeds", 0, 1) == [(NAMES[1], 0), *((name, 1) for name in NAMES)]
    assert read_rows(tmp_path / "out.json")[0] == json.loads(before)[0]


def test_a_finished_run_becomes_a_row_without_training(call, tmp_path):
    call()
    assert call(out="other.json") == []
    first, again = (read_rows(tmp_path / name)[0] for name in ("out.json", "other.json"))
    assert again["result"] == first["result"] and again["condition"]["source"].startswith("its metrics.json of 20")


def test_rows_are_kept_when_a_later_run_fails(script, call, tmp_path, monkeypatch):
    train = script.train_and_test

    def fail_on_the_second(config, work_dir, **options):
        if config == CONFIGS[1]:
            raise RuntimeError("out of memory")
        train(config, work_dir, **options)

    monkeypatch.setattr(script, "train_and_test", fail_on_the_second)
    with pytest.raises(RuntimeError):
        call()
    assert [row["name"] for row in read_rows(tmp_path / "out.json")] == NAMES[:1]


def test_options_reach_the_training_and_the_row(call, tmp_path):
    call("--cfg-options", "train_cfg.max_iters=3", "model.data_preprocessor.size=(64,96)", configs=CONFIGS[:1])
    condition = read_rows(tmp_path / "out.json")[0]["condition"]
    assert condition["iterations"] == 3 and condition["options"] == {"train_cfg.max_iters": 3, "model.data_preprocessor.size": [64, 96]}
    assert call("--cfg-options", "train_cfg.max_iters=3", "model.data_preprocessor.size=(64,96)", configs=CONFIGS[:1]) == []


@pytest.mark.parametrize(
    ("out", "message"), [("out.json", r"has options \{\}; choose another file"), ("new.json", "trained with train_cfg=")]
)
def test_runs_with_other_options_are_not_mixed(call, out, message):
    call(configs=CONFIGS[:1])
    with pytest.raises(ConfigError, match=message):
        call("--cfg-options", "train_cfg.max_iters=3", configs=CONFIGS[:1], out=out)


def test_a_finished_run_of_another_seed_or_of_unknown_settings_is_refused(call, tmp_path):
    call("--seeds", 0, configs=CONFIGS[:1])
    folder = tmp_path / "work/seed0"
    folder.rename(tmp_path / "work/seed1")
    with pytest.raises(ConfigError, match="trained with randomness="):
        call("--seeds", 1, configs=CONFIGS[:1])
    (tmp_path / "work/seed1" / NAMES[0] / CONFIGS[0].name).unlink()
    with pytest.raises(ConfigError, match=r"no hybrid-bi-wkv.*that tells how it was trained"):
        call("--seeds", 1, configs=CONFIGS[:1])


def test_no_training_starts_when_the_time_is_over(call, tmp_path, capsys):
    call("--seeds", 1, configs=CONFIGS[1:])
    assert call("--seeds", 0, 1, "--max-minutes", 0, out="new.json") == []
    assert [(row["name"], row["condition"]["seed"]) for row in read_rows(tmp_path / "new.json")] == [(NAMES[1], 1)], "finished ones count"
    assert "not trained, 0 minutes are over" in capsys.readouterr().out
