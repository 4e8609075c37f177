"""Mixed precision, the loss guard, launching and configs on a machine without a GPU; silence at import."""

import io
import json
import logging
import math
import os
import subprocess
import sys

import mmengine.config.utils as mmengine_config
import pytest
import torch
from mmengine.config import Config
from torch import nn

from linescan.engine import (
    CheckpointError,
    ConfigError,
    MixedPrecisionOptimWrapper,
    NonFiniteLossError,
    load_config,
    read_checkpoint,
    run_test,
    run_train,
    use_tta,
)
from linescan.engine.launch import adapt, check_environment
from linescan.engine.noise import quiet_imports
from linescan.engine.randomness import capture, restore
from linescan.engine.testing import read_losses, toy_config

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU; the test is about machines without")


# --- mixed precision ---


@no_gpu
def test_bf16_trains_on_a_cpu_and_resumes(tmp_path):
    wrapper = dict(type="MixedPrecisionOptimWrapper", optimizer=dict(type="AdamW", lr=0.01), clip_grad=dict(max_norm=1.0))
    run_train(toy_config(tmp_path, optim_wrapper=wrapper))
    losses = read_losses(tmp_path / "losses.0")
    (tmp_path / "iter_20.pth").unlink()
    run_train(toy_config(tmp_path, optim_wrapper=wrapper, resume=True))
    assert read_losses(tmp_path / "losses.0") == losses
    run_train(toy_config(tmp_path / "fp32", optim_wrapper={**wrapper, "type": "OptimWrapper"}))
    fp32 = read_losses(tmp_path / "fp32" / "losses.0")
    assert losses != fp32, "autocast had no effect"
    assert losses[0] == pytest.approx(fp32[0], rel=0.05)


@no_gpu
def test_precision_argument():
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    assert MixedPrecisionOptimWrapper(optimizer=optimizer).dtype is torch.bfloat16
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        MixedPrecisionOptimWrapper("fp16", optimizer=optimizer)
    with pytest.raises(ValueError, match="expected 'auto', 'fp16' or 'bf16', got 'fp8'"):
        MixedPrecisionOptimWrapper("fp8", optimizer=optimizer)


@no_gpu
def test_mmengines_gpu_only_wrapper_is_replaced(tmp_path):
    cfg = toy_config(tmp_path)
    cfg.optim_wrapper.update(type="AmpOptimWrapper", loss_scale="dynamic", clip_grad=dict(max_norm=1.0))
    adapt(cfg)
    assert cfg.optim_wrapper.type == "MixedPrecisionOptimWrapper" and cfg.optim_wrapper.clip_grad.max_norm == 1.0
    assert "loss_scale" not in cfg.optim_wrapper


# --- the loss guard ---


def test_nan_loss_stops_with_the_iteration_and_the_last_good_checkpoint(tmp_path):
    cfg = toy_config(tmp_path)
    cfg.param_scheduler = None
    run_train(toy_config(tmp_path))
    cfg.merge_from_dict(dict(resume=True, load_from=str(tmp_path / "iter_16.pth")))
    checkpoint = read_checkpoint(tmp_path / "iter_16.pth")
    checkpoint["state_dict"]["net.4.bias"] += math.inf
    torch.save(checkpoint, tmp_path / "iter_16.pth")
    with pytest.raises(NonFiniteLossError, match=r"iteration 17: loss = inf\. The last good checkpoint is .*iter_16\.pth"):
        run_train(cfg)


def test_nan_loss_before_any_checkpoint(tmp_path):
    cfg = toy_config(tmp_path)
    cfg.optim_wrapper.optimizer.lr = 1e30
    with pytest.raises(NonFiniteLossError, match=r"iteration [234]: loss = (nan|inf).*No checkpoint was saved"):
        run_train(cfg)
    assert not list(tmp_path.glob("*.pth")), "spoilt weights must not be saved"


# --- random states ---


def test_captured_states_survive_a_file(tmp_path):
    import random

    import numpy as np

    def draw():
        return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1).item()

    np.random.randn(), random.gauss(0, 1)  # leaves a cached second value in both generators
    torch.save(capture(), tmp_path / "state.pth")
    expected = draw(), draw()
    restore(read_checkpoint(tmp_path / "state.pth"))
    assert (draw(), draw()) == expected


# --- launching ---


@no_gpu
def test_sync_bn_becomes_bn_on_gloo(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    model = dict(type="A", norm_cfg=dict(type="SyncBN", eps=1e-3), heads=[dict(norm_cfg=dict(type="MMSyncBN"))], act_cfg=dict(type="GELU"))
    cfg = Config(dict(model=model, launcher="pytorch", sync_bn="torch", find_unused_parameters=True))
    adapt(cfg)
    assert cfg.model.norm_cfg == dict(type="BN", eps=1e-3) and cfg.model.heads[0].norm_cfg.type == "BN" and cfg.model.act_cfg.type == "GELU"
    assert cfg.sync_bn is None
    wrapper = dict(type="MMDistributedDataParallel", device_ids=None, broadcast_buffers=False, find_unused_parameters=True)
    assert cfg.model_wrapper_cfg == wrapper


@no_gpu
def test_strategies_without_a_gpu(tmp_path):
    with pytest.raises(ConfigError, match="FSDPStrategy needs a GPU"):
        adapt(toy_config(tmp_path, strategy=dict(type="FSDPStrategy")))


@pytest.mark.parametrize("launcher, what", [("pytorch", "torchrun"), ("slurm", "srun"), ("mpi", "mpirun")])
def test_a_launcher_that_did_not_launch_is_named(monkeypatch, launcher, what):
    for name in ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=f"--launcher {launcher}: .* not set; start it with .*{what}"):
        check_environment(launcher)
    with pytest.raises(ConfigError, match="launcher: expected one of none, pytorch, slurm, mpi, got 'ssh'"):
        check_environment("ssh")


# --- configs ---


def test_base_configs_of_mmsegmentation_are_found(tmp_path, monkeypatch):
    """The fork's distribution is called onedl-mmsegmentation; MMEngine looks for mmsegmentation."""
    pytest.importorskip("mmseg")
    monkeypatch.setitem(mmengine_config.MODULE2PACKAGE, "mmseg", "mmsegmentation")
    path = tmp_path / "derived.py"
    path.write_text('_base_ = "mmseg::_base_/models/fcn_unet_s5-d16.py"\nmodel = dict(decode_head=dict(num_classes=3))\n')
    cfg = load_config(path)
    assert cfg.model.decode_head.num_classes == 3 and cfg.model.type == "EncoderDecoder"


def test_options_of_load_config(tmp_path):
    path = tmp_path / "toy.py"
    toy_config(tmp_path / "own").dump(path)
    assert load_config(path).work_dir == str(tmp_path / "own")
    cfg = load_config(path, work_dir=tmp_path / "w", cfg_options={"optim_wrapper.optimizer.lr": 0.5}, resume="a.pth", amp="bf16", seed=5)
    assert (cfg.work_dir, cfg.resume, cfg.load_from, cfg.randomness.seed) == (str(tmp_path / "w"), True, "a.pth", 5)
    assert cfg.optim_wrapper.type == "MixedPrecisionOptimWrapper" and cfg.optim_wrapper.precision == "bf16"
    assert cfg.optim_wrapper.optimizer.lr == 0.5 and cfg.optim_wrapper.constructor == "LinescanOptimWrapperConstructor"
    (tmp_path / "bare.py").write_text("model = None\n")
    assert load_config(tmp_path / "bare.py").work_dir == os.path.join("work_dirs", "bare")


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(seed=-1), "seed: expected 0 <= seed"),
        (dict(launcher="ssh"), "launcher: expected one of"),
        (dict(amp="fp8"), "amp: expected auto, fp16, bf16, got 'fp8'"),
    ],
)
def test_bad_options_of_load_config(tmp_path, kwargs, message):
    toy_config(tmp_path).dump(tmp_path / "toy.py")
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "toy.py", **kwargs)


def test_missing_parts_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.py: no such config file"):
        load_config(tmp_path / "nowhere.py")
    with pytest.raises(ConfigError, match="optim_wrapper is missing"):
        run_train(toy_config(tmp_path, optim_wrapper=None))
    with pytest.raises(ConfigError, match="test_evaluator is missing"):
        run_test(toy_config(tmp_path, test_evaluator=None), "a.pth")
    with pytest.raises(ConfigError, match="--tta: the config has no tta_model"):
        use_tta(toy_config(tmp_path))


# --- testing a checkpoint ---


def test_run_test_writes_strict_json_and_checks_the_weights(tmp_path):
    run_train(toy_config(tmp_path))
    metrics = run_test(toy_config(tmp_path), tmp_path / "iter_20.pth", metrics_file=tmp_path / "out" / "metrics.json")
    written = json.loads((tmp_path / "out" / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert written["metrics"]["toy/score"] == pytest.approx(float(metrics["toy/score"]))
    with pytest.raises(CheckpointError, match=r"iter_20\.pth: the weights are not those of ToyRegression"):
        run_test(toy_config(tmp_path, model=dict(type="ToyRegression", width=4)), tmp_path / "iter_20.pth")


# --- noise ---


def test_a_handler_made_while_imports_are_quiet_outlives_the_stream_of_that_time(monkeypatch, capsys):
    closed = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", closed)
        with quiet_imports():
            handler = logging.StreamHandler(sys.stdout)
    closed.close()
    handler.emit(logging.makeLogRecord({"msg": "later"}))
    assert capsys.readouterr().out == "later\n"


def test_quiet_imports_drops_known_lines_only(capsys):
    with quiet_imports():
        print("Could not import OneDL")
        print("something else")
        print("no newline", end="")
    assert capsys.readouterr().out == "something else\nno newline"


def test_importing_mmsegmentation_prints_nothing():
    pytest.importorskip("mmseg")
    code = "from linescan.engine import quiet_imports\nwith quiet_imports():\n    import mmseg.datasets, mmseg.models\n"
    done = subprocess.run([sys.executable, "-W", "default", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout == "", done.stdout
    assert "OneDL" not in done.stderr
