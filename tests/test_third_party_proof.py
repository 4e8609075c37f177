"""Our backbones in configs of MMSegmentation's zoo and its backbones in ours, by `--cfg-options` alone: the commands of docs/configs.md,
made small, train and evaluate. MMSegmentation's files come from the installed package; nothing is downloaded."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmseg", reason="MMSegmentation is not installed")

from linescan.backbones import BACKBONES
from linescan.engine import ConfigError, load_config
from linescan.engine.config import find_config

SECTION = "## Our backbones in MMSegmentation's configs, and theirs in ours"
SIDE = 64
SEGFORMER = "mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py"
# Backbone that a command of the page puts in -> what makes its network small.
SMALL = {
    "linescan.HybridBackbone": ["model.backbone.arch=test"],
    "linescan.VRWKV": ["model.backbone.arch=test"],
    "linescan.VMamba": ["model.backbone.arch=test", "model.auxiliary_head.channels=16"],
    "MixVisionTransformer": ["model.backbone.num_layers=[1,1,1,1]"],
    "SwinTransformer": ["model.backbone.depths=[1,1,1,1]", "model.auxiliary_head.channels=16"],
}


def shown(repo_root: Path, commands) -> dict[str, tuple[str, list[str]]]:
    """Backbone -> config and options of the section's training commands."""
    page = (repo_root / "docs" / "configs.md").read_text(encoding="utf-8")
    section = page[page.index(SECTION) :].split("\n## ")[0] if page.count(SECTION) == 1 else ""
    calls = [argv for line in commands.page_lines(section) for argv in commands.calls(line) if argv[0] == "tools/train.py"]
    found = {}
    for _, config, option, *values in calls:
        assert option == "--cfg-options" and "model.backbone._delete_=True" in values
        backbone = next(value for value in values if value.startswith("model.backbone.type=")).split("=")[1]
        found[backbone] = (config, values)
    return found


@pytest.fixture
def scenes(tmp_path) -> Path:
    """Three images of each split in the layout of ADE20K, label 0 = none, and in that of CamVid."""
    rng = np.random.default_rng(0)
    for image, labels, classes in (("images/{}", "annotations/{}", 151), ("img_dir/{}", "ann_dir/{}", 11)):
        for split in ("training", "validation") if classes == 151 else ("train", "val", "test"):
            folders = [tmp_path / "data" / kind.format(split) for kind in (image, labels)]
            for folder in folders:
                folder.mkdir(parents=True)
            for i in range(3):
                mask = np.kron(rng.integers(0, classes, (4, 4)), np.ones((SIDE // 4, SIDE // 4), int)).astype(np.uint8)
                Image.fromarray(np.stack([mask, 255 - mask, mask // 2], axis=-1)).save(folders[0] / f"{i}.jpg")
                Image.fromarray(mask).save(folders[1] / f"{i}.png")
    return tmp_path / "data"


def small(backbone: str, scenes: Path) -> list[str]:
    loaders = [f"{split}_dataloader.{key}" for split in ("train", "val", "test") for key in ("num_workers=0", "persistent_workers=False")]
    side = f"({SIDE},{SIDE})"
    pipelines = ["train_dataloader.dataset.pipeline.2.scale", "train_dataloader.dataset.pipeline.3.crop_size"]
    pipelines += [f"{split}_dataloader.dataset.pipeline.1.scale" for split in ("val", "test")]
    return [
        *(f"{key}={side}" for key in ("model.data_preprocessor.size", *pipelines)),
        *loaders,
        f"data_root={scenes}",
        "train_dataloader.batch_size=2",
        "train_cfg.max_iters=2",
        "train_cfg.val_interval=2",
        "default_hooks.logger.interval=1",
        "default_hooks.checkpoint.interval=2",
        # One visualizer for each name in a process.
        f"visualizer.name={backbone}",
        *([] if backbone == "linescan.VRWKV" else ["model.decode_head.channels=16"]),
        *SMALL[backbone],
    ]


@pytest.mark.parametrize("backbone", SMALL)
def test_a_foreign_config_trains_and_evaluates_with_the_other_backbone(backbone, repo_root, commands, tool, scenes, tmp_path):
    config, options = shown(repo_root, commands)[backbone]
    path = config if "::" in config else repo_root / config
    run = tmp_path / "run"
    status, error = tool("train", path, "--work-dir", run, "--seed", 0, "--cfg-options", *options, *small(backbone, scenes))
    assert status == 0, error
    scalars = [json.loads(line) for line in next(run.glob("*/vis_data/scalars.json")).read_text().splitlines()]
    losses = [row["loss"] for row in scalars if "loss" in row]
    assert len(losses) == 2 and all(math.isfinite(loss) for loss in losses)
    assert [row["step"] for row in scalars if "mIoU" in row] == [2]

    left = run / Path(config.split("::")[-1]).name
    built = load_config(left).model
    assert built.backbone.type == backbone and built.backbone.get("init_cfg") is None and built.get("pretrained") is None
    status, error = tool("test", left, run / "iter_2.pth", "--work-dir", tmp_path / "test", "--out", tmp_path / "out")
    assert status == 0, error
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())["metrics"]
    assert 0 <= metrics["mIoU"] <= 100 and math.isfinite(metrics["aAcc"])


def test_the_page_shows_what_is_tested(repo_root, commands):
    assert set(shown(repo_root, commands)) == set(SMALL)
    channels = BACKBONES.build(dict(type="HybridBackbone", arch="tiny")).out_channels
    assert f"in_channels=[{','.join(map(str, channels))}]" in (repo_root / "docs" / "configs.md").read_text(encoding="utf-8")


def test_any_config_knows_the_names_of_linescan():
    cfg = load_config(SEGFORMER)
    assert cfg.custom_imports.imports == ["linescan.backbones", "linescan.segmentation"]
    assert cfg.work_dir == "work_dirs/segformer_mit-b0_8xb2-160k_ade20k-512x512"


def test_modules_named_by_an_option_are_imported(tmp_path, monkeypatch):
    (tmp_path / "offshore.py").write_text(
        "from linescan.backbones import BACKBONES, Vim\n\n\n@BACKBONES.register_module()\nclass Offshore(Vim): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    cfg = load_config(SEGFORMER, cfg_options={"custom_imports.imports": "offshore"})
    assert cfg.custom_imports.imports == ["linescan.backbones", "linescan.segmentation", "offshore"]
    assert BACKBONES.get("linescan.Offshore").__module__ == "offshore"
    with pytest.raises(ConfigError, match="custom_imports: Failed to import onshore"):
        load_config(SEGFORMER, cfg_options={"custom_imports.imports": "onshore"})


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("mmseg::segformer/segformer_mit-b9_8xb2-160k_ade20k-512x512.py", "Did you mean segformer/segformer_mit-b"),
        ("mmsegg::segformer/x.py", "no package 'mmsegg' is installed"),
        ("::x.py", "no package '' is installed"),
        ("nowhere.py", "no such config file"),
    ],
)
def test_a_config_that_does_not_exist_is_named(path, message):
    with pytest.raises(ConfigError, match=message):
        find_config(path)
