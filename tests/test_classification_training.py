"""Classification as the tools run it: training, exact resume, averaged weights, mixed precision, two processes, testing."""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, init_default_scope
from mmengine.structures import BaseDataElement
from PIL import Image

from linescan.backbones import BACKBONES
from linescan.engine import CheckpointError, load_config, read_checkpoint, run_test, run_train
from linescan.engine.testing import read_losses
from linescan.profiling import read_rows
from linescan.segmentation.inference import Predictor

pytestmark = pytest.mark.xdist_group("classification_training")  # one worker: the tests share a fixture that trains

CONFIG = "configs/caltech/hybrid-bi-wkv-test_1xb32-50e_caltech10-64.py"
CLASSES = ("red", "green", "blue")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three classes of noisy colours, 32x32: 8 training images each, 3 for validation, 2 for the test."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3), ("test", 2)):
        for channel, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (32, 32, 3))
                pixels[..., channel] += 100
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{i}.png")
    (root / "manifest.json").write_text(json.dumps(dict(classes=CLASSES)))
    return root


@pytest.fixture
def config(repo_root, pictures):
    """A config of 4 epochs of 6 iterations that uses every source of randomness; a checkpoint every 4 iterations."""

    def make(work_dir, batch=4, recorder=None, **options):
        work_dir.mkdir(exist_ok=True)
        cfg = load_config(repo_root / CONFIG, work_dir=work_dir, seed=5, cfg_options={"data_root": str(pictures)})
        cfg.custom_imports.imports.append("linescan.engine.testing")
        cfg.experiment_name = f"toy_{os.urandom(8).hex()}"  # MMEngine keeps one message hub for each name
        cfg.visualizer = dict(type="Visualizer", name=cfg.experiment_name)
        cfg.model.update(num_classes=3, dropout=0.2, data_preprocessor=dict(mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0)))
        cfg.model.backbone.drop_path_rate = 0.2
        cfg.train_dataloader.batch_size = batch
        cfg.train_dataloader.dataset.pipeline[1].update(input_size=32, auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.25, re_mode="pixel")
        for split in ("val", "test"):
            cfg[f"{split}_dataloader"].dataset.pipeline[1].input_size = 32
        cfg.train_cfg.update(max_epochs=4, val_interval=1)
        cfg.param_scheduler = [dict(type="CosineAnnealingLR", eta_min_ratio=0.01, by_epoch=True, end=4, convert_to_iter_based=True)]
        cfg.default_hooks.checkpoint.update(by_epoch=False, interval=4)
        cfg.custom_hooks = [dict(type="ModelEmaHook", decay=0.8), dict(type="LossRecorder", file=f"{work_dir}/losses", **(recorder or {}))]
        cfg.merge_from_dict(options)
        return cfg

    return make


@pytest.fixture(scope="module")
def whole():
    """Losses and last checkpoint of the run without an interruption, made by the first test that asks."""
    return {}


def uninterrupted(whole, config, tmp_path):
    if not whole:
        work_dir = tmp_path / "whole"
        run_train(config(work_dir))
        whole.update(losses=read_losses(work_dir / "losses.0"), last=read_checkpoint(work_dir / "iter_24.pth"))
    return whole


def assert_same_state(got, expected):
    for part in ("state_dict", "trained_state_dict"):
        assert set(got[part]) == set(expected[part])
        assert all(torch.allclose(got[part][name], value, atol=1e-6) for name, value in expected[part].items()), part
    assert got["ema_updates"] == expected["ema_updates"] == 24


@pytest.mark.parametrize("stop_at", [6, 21])
def test_an_interrupted_run_resumes_exactly(tmp_path, config, whole, stop_at):
    """Resumed within an epoch, at 4 and at 20. RandAugment, erasing, mixup, cutmix, drop path, dropout, averaged weights."""
    expected = uninterrupted(whole, config, tmp_path)
    work_dir = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run_train(config(work_dir, recorder=dict(stop_at=stop_at)))
    torch.rand(5), np.random.rand(5)
    run_train(config(work_dir, resume=True))
    assert read_losses(work_dir / "losses.0") == pytest.approx(expected["losses"], abs=1e-6)
    assert_same_state(read_checkpoint(work_dir / "iter_24.pth"), expected["last"])


def test_a_killed_process_resumes_exactly(tmp_path, repo_root, config, whole):
    """tools/train.py ended by SIGKILL with a worker running, then `--resume`."""
    expected = uninterrupted(whole, config, tmp_path)
    work_dir = tmp_path / "killed"
    config(work_dir, recorder=dict(stop_at=14, kill=True), **{"train_dataloader.num_workers": 1}).dump(tmp_path / "config.py")
    command = [sys.executable, "tools/train.py", str(tmp_path / "config.py"), "--work-dir", str(work_dir)]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, timeout=170)
    assert done.returncode == -signal.SIGKILL, done.stderr
    config(work_dir).dump(tmp_path / "config.py")
    done = subprocess.run([*command, "--resume"], cwd=repo_root, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0 and "resumed epoch: 2, iter: 12" in done.stdout, done.stdout + done.stderr
    assert read_losses(work_dir / "losses.0") == pytest.approx(expected["losses"], abs=1e-6)
    assert_same_state(read_checkpoint(work_dir / "iter_24.pth"), expected["last"])


def test_the_average_is_what_is_validated_saved_and_tested(tmp_path, config, whole):
    last = uninterrupted(whole, config, tmp_path)["last"]
    assert any(not torch.equal(last["state_dict"][name], value) for name, value in last["trained_state_dict"].items())

    work_dir = tmp_path / "run"
    learn = {"optim_wrapper.optimizer.lr": 1e-2, "model.data_preprocessor.mixup": None, "model.dropout": 0.0}
    cfg = config(work_dir, **learn, **{"train_cfg.max_epochs": 8, "default_hooks.checkpoint.interval": 24, "custom_hooks.0.warmup": True})
    runner = run_train(cfg)
    best = next(work_dir.glob("best_accuracy_top1_iter_*.pth"))
    assert "trained_state_dict" not in read_checkpoint(best)
    score = runner.message_hub.get_info("best_score")
    assert score > 60, "three colours are not learnt"

    test = config(tmp_path / "test", **learn)
    test.test_dataloader = test.val_dataloader
    assert run_test(test, best)["accuracy/top1"] == pytest.approx(score)


def test_an_average_can_begin_in_a_resumed_run(tmp_path, config):
    work_dir = tmp_path / "run"
    plain = config(work_dir, **{"train_cfg.max_epochs": 1})
    plain.custom_hooks = plain.custom_hooks[1:]
    run_train(plain)
    assert "trained_state_dict" not in read_checkpoint(work_dir / "iter_6.pth")
    runner = run_train(config(work_dir, resume=True, **{"train_cfg.max_epochs": 2}))
    log = next((work_dir / runner.timestamp).glob("*.log")).read_text()
    assert "holds no averaged weights: the average starts anew" in log
    assert read_checkpoint(work_dir / "iter_12.pth")["ema_updates"] == 6


def test_a_run_with_an_average_is_not_resumed_without_it(tmp_path, config):
    """Its checkpoints hold the average where other runs hold the trained weights."""
    work_dir = tmp_path / "run"
    run_train(config(work_dir, **{"train_cfg.max_epochs": 1, "default_hooks.checkpoint.interval": 6}))
    plain = config(work_dir, resume=True, load_from=str(work_dir / "iter_6.pth"))
    plain.custom_hooks = plain.custom_hooks[1:]
    with pytest.raises(CheckpointError, match=r"iter_6\.pth: cannot resume without ModelEmaHook in custom_hooks"):
        run_train(plain)


def test_the_tools_train_in_mixed_precision_and_write_predictions(tmp_path, repo_root, config, monkeypatch, capsys):
    work_dir = tmp_path / "run"
    config(work_dir, **{"train_cfg.max_epochs": 1}).dump(tmp_path / "config.py")

    def tool(name, *args):
        monkeypatch.setattr(sys, "argv", [name, str(tmp_path / "config.py"), *map(str, args), "--work-dir", str(work_dir)])
        monkeypatch.setenv("LOCAL_RANK", "0")
        monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
        runpy.run_path(str(repo_root / "tools" / f"{name}.py"), run_name="__main__")

    tool("train", "--amp", "bf16", "--cfg-options", "default_hooks.checkpoint.interval=6")
    assert len(read_losses(work_dir / "losses.0")) == 6
    checkpoint = read_checkpoint(work_dir / "iter_6.pth")
    assert "loss_scaler" in checkpoint["optimizer"], "not trained in mixed precision"
    assert {value.dtype for value in checkpoint["state_dict"].values()} == {torch.float32}

    tool("test", work_dir / "iter_6.pth", "--out", tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["metrics.json", "predictions.json"]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())["metrics"]
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert written["classes"] == list(CLASSES)
    assert [row["image"] for row in written["predictions"]] == [f"{name}/{i}.png" for name in CLASSES for i in range(2)]
    right = [row["label"] == row["predicted"][0] for row in written["predictions"]]
    assert metrics["accuracy/top1"] == pytest.approx(100 * np.mean(right)) and metrics["accuracy/top3"] == 100

    with pytest.raises(ValueError, match=r"no label maps to predict; of a classifier, tools/test\.py --out"):
        Predictor(load_config(tmp_path / "config.py"), work_dir / "iter_6.pth")
    with pytest.raises(SystemExit):
        tool("test", work_dir / "iter_6.pth", "--show-dir", tmp_path / "show")
    assert "--show-dir draws label maps" in capsys.readouterr().err


def test_the_backbone_of_a_checkpoint_loads_into_a_pyramid(tmp_path, config):
    """What pre-training is for: the averaged weights of the classifier's backbone, strictly, with every level returned."""
    work_dir = tmp_path / "run"
    run_train(config(work_dir, **{"train_cfg.max_epochs": 1, "default_hooks.checkpoint.interval": 6}))
    options = dict(type="linescan.HybridBackbone", arch="test", mixer="bi_wkv", mlp_ratio=2)
    pretrained = dict(type="Pretrained", checkpoint=str(work_dir / "iter_6.pth"), family="linescan")
    backbone = BACKBONES.build(dict(**options, init_cfg=pretrained))
    backbone.init_weights()
    saved = read_checkpoint(work_dir / "iter_6.pth")["state_dict"]
    assert all(torch.equal(value, saved[f"backbone.{name}"]) for name, value in backbone.state_dict().items())
    assert len(backbone(torch.zeros(1, 3, 40, 32))) == 4


def test_classifiers_are_compared(tmp_path, repo_root, pictures):
    configs = [repo_root / CONFIG.replace("bi-wkv", mixer) for mixer in ("bi-wkv", "attention")]
    options = [f"data_root={pictures}", "model.num_classes=3", "train_cfg.max_epochs=1", "train_dataloader.batch_size=4"]
    options += ["default_hooks.logger.interval=2"]
    command = [sys.executable, "tools/compare_classifiers.py", *map(str, configs), "--out", str(tmp_path / "out"), "--images", "4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--cfg-options", *options], cwd=repo_root, capture_output=True, text=True, env=environment, timeout=170
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = read_rows(tmp_path / "out" / "results.json")
    assert [row["name"] for row in rows] == [path.stem for path in configs]
    for row in rows:
        metrics = json.loads((tmp_path / "out" / row["name"] / "metrics.json").read_text())["metrics"]
        assert row["result"]["accuracy/top1"] == metrics["accuracy/top1"] and row["result"]["train_cpu_seconds"] > 0
        assert row["condition"]["epochs"] == 1 and row["result"]["parameters"] > row["result"]["backbone_parameters"]
    table = (tmp_path / "out" / "table.md").read_text()
    assert all(name in table for name in ("top1, %", "top3, %", "MACs, G", rows[1]["name"]))
    assert all(Image.open(tmp_path / "out" / name).size[0] > 300 for name in ("sheet.png", "curves.png"))


@pytest.mark.parametrize("family", ["hybrid-bi-wkv-tiny", "vrwkv-small", "vrwkv6-tiny", "vim-tiny", "vmamba-tiny", "vssd-micro"])
def test_steps_with_the_recipe_of_each_family_lower_the_loss(repo_root, family):
    """The ImageNet config at arch test: its loss, its mixing, its optimizer, images of an odd size."""
    options = {"model.backbone.arch": "test", "model.num_classes": 3}
    cfg = load_config(repo_root / f"configs/imagenet/{family}_8xb128-300e_in1k-224.py", cfg_options=options)
    init_default_scope(cfg.default_scope)
    levels = len(BACKBONES.build(dict(type=cfg.model.backbone.type, arch="test")).out_channels)
    cfg.model.backbone.out_indices = (levels - 1,)
    model = MODELS.build(cfg.model).train()
    constructor = OPTIM_WRAPPER_CONSTRUCTORS.build(
        dict(type=cfg.optim_wrapper.pop("constructor"), optim_wrapper_cfg=cfg.optim_wrapper, paramwise_cfg=None)
    )
    wrapper = constructor(model)
    for group in wrapper.optimizer.param_groups:
        group["lr"] = 5e-3
    images = [torch.full((3, 47, 65), -1.0).index_fill_(0, torch.tensor(label), 1.0) for label in (0, 1, 2, 0)]
    samples = [BaseDataElement(gt_label=torch.tensor(label)) for label in (0, 1, 2, 0)]
    losses = [float(model.train_step(dict(inputs=images, data_samples=samples), wrapper)["loss"].detach()) for _ in range(40)]
    assert np.isfinite(losses).all() and np.mean(losses[-10:]) < 0.9 * np.mean(losses[:3]), losses


def test_a_wrong_number_of_classes_ends_training_with_the_image(tmp_path, config):
    with pytest.raises(ValueError, match=r"blue/\d\.png has label 2, but the model has num_classes=2"):
        run_train(config(tmp_path / "run", **{"model.num_classes": 2}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the processes would use NCCL and share it")
def test_two_processes_train_like_one(tmp_path, repo_root, config):
    """Same mean loss and the same average, with all augmentation, mixup and cutmix. No dropout: its masks depend on how a batch is cut."""
    steady = {"model.dropout": 0.0, "model.backbone.drop_path_rate": 0.0, "train_cfg.max_epochs": 2}
    one, two = tmp_path / "one", tmp_path / "two"
    run_train(config(one, **steady))
    config(two, batch=2, **steady).dump(tmp_path / "config.py")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}", "tools/train.py"]
    command += [str(tmp_path / "config.py"), "--work-dir", str(two), "--launcher", "pytorch"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, timeout=170, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    ranks = [read_losses(two / f"losses.{rank}") for rank in range(2)]
    assert ranks[0] != ranks[1], "both processes saw the same data"
    mean = {i: (ranks[0][i] + ranks[1][i]) / 2 for i in ranks[0]}
    assert mean == pytest.approx(read_losses(one / "losses.0"), abs=1e-5)
    alone, both = (read_checkpoint(folder / "iter_12.pth") for folder in (one, two))
    assert alone["ema_updates"] == both["ema_updates"] == 12
    assert all(torch.allclose(both["state_dict"][name], value, atol=1e-4) for name, value in alone["state_dict"].items())
    assert both["message_hub"]["runtime_info"]["best_score"] == pytest.approx(alone["message_hub"]["runtime_info"]["best_score"])
