"""tools/train.py and tools/test.py from the outside: what they write and where, and how they fail."""

import json
import os

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from PIL import Image

from linescan.engine import ConfigError, load_config
from linescan.engine.cli import run_tool
from linescan.engine.testing import read_losses, toy_config

CONFIG = "configs/hybrid/hybrid-attention-tiny_segformer_1xb4-10k_camvid-360x480.py"


@pytest.fixture
def toy(tmp_path):
    path = tmp_path / "toy.py"
    toy_config(tmp_path / "run").dump(path)
    (tmp_path / "run").mkdir()
    return path


def test_train_with_its_options(tool, toy, tmp_path):
    status, _ = tool("train", toy, "--work-dir", tmp_path / "w", "--seed", 3, "--amp", "bf16", "--cfg-options", "train_cfg.max_iters=8")
    assert status == 0
    assert (tmp_path / "w" / "last_checkpoint").read_text().endswith("iter_8.pth")
    assert len(read_losses(tmp_path / "run" / "losses.0")) == 8
    status, _ = tool("train", toy, "--work-dir", tmp_path / "w", "--resume", tmp_path / "w" / "iter_4.pth", "--amp", "bf16")
    assert status == 0
    assert (tmp_path / "w" / "iter_20.pth").exists()


@pytest.mark.parametrize(
    "args, message",
    [
        (["nowhere.py"], "nowhere.py: no such config file"),
        (["{toy}", "--resume", "nowhere.pth"], "nowhere.pth: no such checkpoint"),
        (["{toy}", "--launcher", "slurm"], "SLURM_PROCID, SLURM_NTASKS, SLURM_NODELIST not set"),
        (["{toy}", "--cfg-options", "optim_wrapper.optimizer.lr=1e30"], "No checkpoint was saved before it"),
        (["{toy}", "--cfg-options", "model.type=Toy"], "Toy is not in the mmengine::model registry; is its scope missing"),
        (["{toy}", "--cfg-options", "model.depth=3"], "unexpected keyword argument 'depth'. Are they arguments of another type?"),
        (
            ["{toy}", "--cfg-options", "model._delete_=True", "model.type=linescan.VRWKVV"],
            "unknown backbone 'VRWKVV'. Did you mean 'VRWKV'",
        ),
    ],
)
def test_mistakes_end_in_one_line(tool, toy, args, message):
    status, err = tool("train", *[arg.format(toy=toy) for arg in args])
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == 1 and len(lines) == 1 and message in lines[0] and "Traceback" not in err


def test_debug_shows_the_traceback(tool):
    with pytest.raises(ConfigError):
        tool("train", "nowhere.py", "--debug")


def test_bugs_keep_their_traceback():
    def bug():
        raise TypeError("a bug")

    with pytest.raises(TypeError):
        run_tool(bug)


def test_a_workers_error_is_one_line(capsys):
    def worker():
        raise ValueError("Caught ValueError in DataLoader worker process 0.\nOriginal Traceback:\n  File x\nValueError: bad.png: empty\n")

    with pytest.raises(SystemExit):
        run_tool(worker)
    assert capsys.readouterr().err.startswith("error: ValueError: bad.png: empty [ValueError at test_engine_tools.py")


@pytest.fixture
def streets(tmp_path, repo_root):
    """Two test images of 32 x 48 in CamVid's layout, a config for them, and random weights."""
    pytest.importorskip("mmseg")
    rng = np.random.default_rng(0)
    for kind, top in (("img_dir", 256), ("ann_dir", 11)):
        (tmp_path / kind / "test").mkdir(parents=True)
        for i in range(2):
            shape = (32, 48, 3) if kind == "img_dir" else (32, 48)
            Image.fromarray(rng.integers(0, top, shape, dtype=np.uint8)).save(tmp_path / kind / "test" / f"street{i}.png")
    options = {
        "data_root": str(tmp_path),
        "model.backbone.arch": "test",
        "model.decode_head.channels": 8,
        "test_dataloader.dataset.img_suffix": ".png",
        "test_dataloader.dataset.pipeline.1.scale": (48, 32),
        "test_dataloader.num_workers": 0,
        "test_dataloader.persistent_workers": False,
    }
    cfg = load_config(repo_root / CONFIG, cfg_options=options)
    cfg.tta_pipeline[1].transforms[0] = [dict(type="Resize", scale_factor=r, keep_ratio=True) for r in (1.0, 2.0)]
    cfg.visualizer.name = tmp_path.name  # MMEngine keeps one visualizer for each name
    cfg.dump(tmp_path / "streets.py")
    from mmengine.model import revert_sync_batchnorm
    from mmseg.registry import MODELS

    init_default_scope("mmseg")
    torch.save(dict(state_dict=revert_sync_batchnorm(MODELS.build(cfg.model)).state_dict(), meta={}), tmp_path / "random.pth")
    return tmp_path


def test_test_writes_predictions_metrics_and_pictures_where_it_says(tool, streets):
    out, show = streets / "out", streets / "show"
    arguments = [streets / "streets.py", streets / "random.pth", "--work-dir", streets / "w"]
    status, err = tool("test", *arguments, "--out", out, "--show-dir", show)
    assert status == 0, err
    assert sorted(os.listdir(out)) == ["metrics.json", "street0.png", "street1.png"]
    labels = np.array(Image.open(out / "street0.png"))
    assert labels.shape == (32, 48) and labels.max() < 11
    metrics = json.loads((out / "metrics.json").read_text())["metrics"]
    assert {"mIoU", "aAcc", "IoU.road"} <= set(metrics)
    truth = (
        np.array(Image.open(streets / "ann_dir" / "test" / "street0.png")),
        np.array(Image.open(streets / "ann_dir" / "test" / "street1.png")),
    )
    right = [(np.array(Image.open(out / f"street{i}.png")) == truth[i]).mean() for i in range(2)]
    assert metrics["aAcc"] == pytest.approx(100 * np.mean(right), abs=0.01)
    pictures = os.listdir(show)
    assert len(pictures) == 2 and all(name.endswith(".png") for name in pictures)

    status, err = tool("test", *arguments, "--tta", "--out", streets / "tta")
    assert status == 0, err
    assert len(os.listdir(streets / "tta")) == 3


def test_test_refuses_weights_of_another_model(tool, streets):
    torch.save({"state_dict": {"a": torch.ones(1)}}, streets / "foreign.pth")
    status, err = tool("test", streets / "streets.py", streets / "foreign.pth", "--work-dir", streets / "w")
    assert status == 1 and "foreign.pth: the weights are not those of PyramidEncoderDecoder" in err and "Traceback" not in err
