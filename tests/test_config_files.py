"""Every config: its name and docstring parse, they tell what it holds, its model builds, and a twin differs in the mixer alone."""

import ast
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import HOOKS, init_default_scope
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmseg.models.losses import CrossEntropyLoss
from mmseg.registry import DATASETS, MODELS
from torch import nn

import linescan.backbones
import linescan.classification
import linescan.segmentation  # noqa: F401  (registers the datasets and segmentors)
from linescan.engine import ConfigError, load_config

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(p for p in (ROOT / "configs").rglob("*.py") if "_base_" not in p.parts)
NAME = re.compile(
    r"(?P<backbone>[a-z0-9-]+)_(?P<head>[a-z0-9]+)_(?P<gpus>\d+)xb(?P<batch>\d+)-(?P<iters>\d+k?)_(?P<data>[a-z0-9]+)-(?P<height>\d+)x(?P<width>\d+)"
)
ARCH = r"(?P<arch>(?:test|micro|tiny|small|base|large)(?:-[a-z]\w*)?)"
CLASSES = {"vrwkv": "VRWKV", "vrwkv6": "VRWKV6", "vim": "Vim", "vmamba": "VMamba", "vssd": "VSSD"}
HEADS = {"upernet": "UPerHead", "segformer": "SegformerHead", "semfpn": "FPNHead", "deeplabv3plus": "DepthwiseSeparableASPPHead"}
DATA = {
    "ade20k": "CheckedADE20KDataset",
    "cityscapes": "CheckedCityscapesDataset",
    "voc12": "CheckedPascalVOCDataset",
    "camvid": "CamVidDataset",
    "kvasir": "KvasirDataset",
    "shapes": "ShapesDataset",
}
CLASS_NAME = re.compile(
    r"(?P<family>hybrid|vrwkv6|vrwkv|vim|vmamba|vssd)(-(?P<mixer>bi-wkv|attention))?-(?P<arch>test|micro|tiny|small|base)"
    r"_(?P<gpus>\d+)xb(?P<batch>\d+)-(?P<epochs>\d+)e_(?P<data>[a-z0-9]+)-(?P<side>\d+)"
)
CLASS_BACKBONES = {
    "hybrid": "linescan.HybridBackbone",
    "vrwkv": "linescan.VRWKV",
    "vrwkv6": "linescan.VRWKV6",
    "vim": "linescan.Vim",
    "vmamba": "linescan.VMamba",
    "vssd": "linescan.VSSD",
}
CLASS_DATA = {"in1k": ("imagenet", 1000), "caltech10": ("caltech10", 10)}
CLASS_CONFIGS = [p for p in CONFIGS if p.parent.name in ("imagenet", "caltech")]
every_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
every_mask_config = pytest.mark.parametrize("path", [p for p in CONFIGS if p not in CLASS_CONFIGS], ids=lambda p: p.stem)
every_class_config = pytest.mark.parametrize("path", CLASS_CONFIGS, ids=lambda p: p.stem)


def load(path: Path) -> Config:
    return Config.fromfile(path, import_custom_modules=False)


def parse(path: Path) -> dict[str, str]:
    match = NAME.fullmatch(path.stem)
    assert match, f"{path.stem} is not <backbone>-<arch>_<head>_<gpus>xb<batch>-<iters>_<data>-<crop>"
    return match.groupdict()


def named_backbone(name: str) -> dict:
    """What a config's backbone must say for its name: hybrid-<mixer>-<arch>, <family>[-adapter]-<arch>, a model of timm, or one of
    MMSegmentation's at output stride 16."""
    if match := re.fullmatch(rf"hybrid-(?P<mixer>.+)-{ARCH}", name):
        return dict(type="linescan.HybridBackbone", arch=match["arch"], mixer=match["mixer"].replace("-", "_"))
    if match := re.fullmatch(rf"(?P<family>{'|'.join(CLASSES)})(?P<adapter>-adapter)?-{ARCH}", name):
        plain = dict(type=f"linescan.{CLASSES[match['family']]}", arch=match["arch"].replace("-", "_"))
        return dict(type="linescan.ViTAdapter", arch=plain["arch"], backbone=plain) if match["adapter"] else plain
    if match := re.fullmatch(r"r(?P<depth>\d+)-d16", name):
        return dict(type="ResNetV1c", depth=int(match["depth"]), strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2))
    if name == "mobilenet-v2-d16":
        return dict(type="MobileNetV2", strides=(1, 2, 2, 2, 1, 1, 1), dilations=(1, 1, 1, 1, 1, 2, 2))
    return dict(type="linescan.TimmBackbone", model_name=name.replace("-", "_"))


def said(config: dict, expected: dict) -> dict:
    """The part of a config that `expected` speaks of."""
    return {key: said(config[key], value) if isinstance(value, dict) else config.get(key) for key, value in expected.items()}


def base_depth(path: Path) -> int:
    """Length of the longest chain of _base_ files below a config."""
    tree = ast.parse(path.read_text())
    found = [n.value for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", None) == "_base_"]
    bases = ast.literal_eval(found[0]) if found else []
    bases = [bases] if isinstance(bases, str) else bases
    return max((1 + base_depth((path.parent / base).resolve()) for base in bases), default=0)


def test_there_are_configs():
    assert len([p for p in CONFIGS if p.parent.name == "hybrid"]) >= 16


@every_config
def test_docstring_tells_what_how_and_status(path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert text, f"{path} has no docstring"
    sentence, command, *_ = text.split("\n\n")
    assert sentence.endswith("."), f"{path}: the first paragraph is one sentence"
    assert "tools/" in command and command.split()[-1].endswith(path.relative_to(ROOT).as_posix()), f"{path}: wrong command"
    assert re.search(r"^Status: (reproduced|measured once|untrained)\.", text, re.M), f"{path}: no status"


@every_mask_config
def test_name_and_content_agree(path):
    name, cfg = parse(path), load(path)
    backbone = named_backbone(name["backbone"])
    iters = int(name["iters"].removesuffix("k")) * (1000 if name["iters"].endswith("k") else 1)
    crop = (int(name["height"]), int(name["width"]))
    assert said(cfg.model.backbone, backbone) == backbone
    assert cfg.model.decode_head.type == HEADS[name["head"]]
    assert cfg.train_dataloader.batch_size == int(name["batch"])
    assert cfg.train_cfg.max_iters == iters == cfg.param_scheduler[-1].end
    assert cfg.train_dataloader.dataset.type == DATA[name["data"]]
    assert tuple(cfg.model.data_preprocessor.size) == crop
    crops = [tuple(t.crop_size) for t in cfg.train_dataloader.dataset.get("pipeline", []) if t.type == "RandomCrop"]
    assert all(c == crop for c in crops)


@every_config
def test_bases_are_shallow_and_architecture_stays_out(path):
    assert base_depth(path) <= 3
    backbone = load(path).model.backbone
    assert not backbone.type.startswith("linescan.") or not {"depth", "num_heads", "dims"} & set(backbone)


@every_mask_config
def test_model_builds_for_the_classes_of_the_data(path):
    cfg = load(path)
    init_default_scope(cfg.default_scope)
    with torch.device("meta"):
        model = MODELS.build(cfg.model)
    auxiliary = model.auxiliary_head if model.with_auxiliary_head else ()
    heads = [model.decode_head, *(auxiliary if isinstance(auxiliary, nn.ModuleList | tuple) else [auxiliary])]
    classes = DATASETS.get(cfg.train_dataloader.dataset.type).METAINFO["classes"]
    assert {head.num_classes for head in heads} == {len(classes)}
    # A loss with class weights is averaged over the weights of the pixels that count; avg_non_ignore cannot be set beside them.
    losses = [loss for head in heads for loss in (head.loss_decode if isinstance(head.loss_decode, nn.ModuleList) else [head.loss_decode])]
    entropies = [loss for loss in losses if isinstance(loss, CrossEntropyLoss)]
    assert len(entropies) == len(heads) and all(loss.avg_non_ignore or loss.class_weight for loss in entropies)


@every_class_config
def test_name_and_content_of_a_classification_config_agree(path):
    match, cfg = CLASS_NAME.fullmatch(path.stem), load(path)
    assert match, f"{path.stem} is not <backbone>-<arch>_<gpus>xb<batch>-<epochs>e_<data>-<side>"
    name, backbone = match.groupdict(), cfg.model.backbone
    mixer = (name["mixer"] or "").replace("-", "_") or None
    assert (backbone.type, backbone.arch, backbone.get("mixer")) == (CLASS_BACKBONES[name["family"]], name["arch"], mixer)
    assert cfg.train_dataloader.batch_size == int(name["batch"])
    assert cfg.train_cfg.max_epochs == int(name["epochs"]) == cfg.param_scheduler[-1].end
    assert cfg.param_scheduler[0].end == cfg.param_scheduler[1].begin, "cosine begins where the warm-up ends"
    folder, classes = CLASS_DATA[name["data"]]
    loaders = [cfg[f"{split}_dataloader"] for split in ("train", "val", "test")]
    assert {Path(loader.dataset.data_root).name for loader in loaders} == {folder} and cfg.model.num_classes == classes
    sizes = {step.input_size for loader in loaders for step in loader.dataset.pipeline if step.type == "TimmTransform"}
    assert sizes == {int(name["side"])}
    if cfg.get("auto_scale_lr"):
        assert int(name["gpus"]) * int(name["batch"]) == cfg.auto_scale_lr.base_batch_size
    if cfg.model.data_preprocessor.get("mixup"):
        assert cfg.train_dataloader.drop_last and cfg.train_dataloader.batch_size % 2 == 0


@every_class_config
def test_classifier_builds_and_every_parameter_takes_part(path):
    """One returned map, the last; data sets and hooks take the arguments of the config."""
    cfg = load(path)
    init_default_scope(cfg.default_scope)
    with torch.device("meta"):
        model = MMENGINE_MODELS.build(cfg.model)
        outputs = model.backbone(torch.zeros(2, 3, 64, 64))
    assert len(outputs) == 1 and outputs[0].shape[:2] == (2, model.head.in_features) and model.head.out_features == model.num_classes
    (outputs[0].sum() + sum(p.sum() for p in model.head.parameters())).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    for hook in cfg.get("custom_hooks", []):
        HOOKS.build(hook)
    for split in ("train", "val"):
        Compose(cfg[f"{split}_dataloader"].dataset.pipeline)


TWIN = re.compile(rf"hybrid-(?P<mixer>.+)-{ARCH}_(?P<rest>.+)")


@pytest.mark.parametrize("path", [p for p in CONFIGS if p.stem.startswith("hybrid-") and "-bi-wkv-" not in p.stem], ids=lambda p: p.stem)
def test_twin_differs_in_the_mixer_alone(path):
    name = TWIN.fullmatch(path.stem)
    twin = path.with_name(f"hybrid-bi-wkv-{name['arch']}_{name['rest']}.py")
    assert twin.exists(), f"{path} has no Bi-WKV twin"
    mine, other = load(path).to_dict(), load(twin).to_dict()
    mixers = (mine["model"]["backbone"].pop("mixer"), other["model"]["backbone"].pop("mixer"))
    assert mixers == (name["mixer"].replace("-", "_"), "bi_wkv")
    assert mine == other


def test_the_data_folder_follows_the_environment(monkeypatch):
    path = next(p for p in CONFIGS if "camvid" in p.stem)
    monkeypatch.delenv("LINESCAN_DATA", raising=False)
    assert load(path).train_dataloader.dataset.data_root == "data/camvid"
    monkeypatch.setenv("LINESCAN_DATA", "/elsewhere")
    assert load(path).test_dataloader.dataset.data_root == "/elsewhere/camvid"


def test_the_data_root_option_reaches_every_data_set(monkeypatch):
    monkeypatch.delenv("LINESCAN_DATA", raising=False)
    path = next(p for p in CONFIGS if "camvid" in p.stem)
    cfg = load_config(path, cfg_options={"data_root": "/mnt/camvid", "val_dataloader.dataset.data_root": "/mnt/b"})
    roots = [cfg[f"{split}_dataloader"].dataset.data_root for split in ("train", "val", "test")]
    assert roots == ["/mnt/camvid", "/mnt/b", "/mnt/camvid"]


def test_a_data_root_option_without_effect_is_an_error(tmp_path):
    (tmp_path / "own.py").write_text("train_dataloader = dict(dataset=dict(data_root='a'))\n")
    with pytest.raises(ConfigError, match="data_root: no data set"):
        load_config(tmp_path / "own.py", cfg_options={"data_root": "/mnt/camvid"})


@pytest.mark.parametrize("readme", sorted((ROOT / "configs").glob("*/README.md")), ids=lambda p: p.parent.name)
def test_the_results_table_lists_every_config_of_the_folder(readme):
    listed = re.findall(r"\]\(([^)/]+\.py)\)", readme.read_text())
    assert sorted(listed) == sorted(p.name for p in CONFIGS if p.parent == readme.parent)
