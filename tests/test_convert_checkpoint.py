"""tools/convert_checkpoint.py: published files of every family become files of ours, with every key accounted for."""

import argparse
import json
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from linescan.backbones import BACKBONES
from linescan.backbones.checkpoints import FAMILIES, CheckpointError, load_checkpoint, read_checkpoint
from linescan.backbones.conversion import convert_file, convertible

TOOL = Path(__file__).resolve().parents[1] / "tools/convert_checkpoint.py"
# Ours -> official, for one layer of the test network; the families' own tests write out every key.
VRWKV = {
    "pos_embed": "pos_embed",
    "patch_embed": "patch_embed.projection",
    "norm0": "ln0",
    "norm1": "ln1",
    "norm2": "ln2",
    "token.mix": "att.spatial_mix",
    "token.decay": "att.spatial_decay",
    "token.first": "att.spatial_first",
    "token.": "att.",
    "channel.mix": "ffn.spatial_mix",
    "channel.": "ffn.",
    "final_norm": "ln1",
}


def official_vrwkv(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state dict as a published classification file has it: other names, a flat position embedding, a prefix and a head."""
    official = {}
    for name, value in model.state_dict().items():
        layer, rest = (f"layers.{name.split('.')[1]}.", name.split(".", 2)[2]) if name.startswith("layers.") else ("", name)
        ours = next(key for key in VRWKV if rest.startswith(key))
        if rest == "pos_embed":
            value = value.flatten(2).transpose(1, 2)
        official[f"backbone.{layer}{VRWKV[ours]}{rest.removeprefix(ours)}"] = value.clone()
    return official | {"head.fc.weight": torch.zeros(10, model.dim), "head.fc.bias": torch.zeros(10)}


def build(**more: object) -> torch.nn.Module:
    torch.manual_seed(1)
    model = BACKBONES.build(dict(type="linescan.VRWKV", arch="test", **more))
    torch.nn.init.normal_(model.pos_embed)
    return model


def write(path: Path, **more: object) -> torch.nn.Module:
    model = build(**more)
    torch.save({"state_dict": official_vrwkv(model), "meta": argparse.Namespace(epoch=300)}, path)
    return model


def run(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(TOOL), *map(str, arguments)], capture_output=True, text=True)


def test_every_published_family_names_its_backbone():
    assert convertible() == sorted(set(FAMILIES) - {"linescan"})
    for family in convertible():
        assert "test" in BACKBONES.archs(FAMILIES[family].backbone)


def test_the_tool_converts_and_reports(tmp_path):
    model = write(tmp_path / "published.pth")
    done = run("--family", "vrwkv", "--keys", tmp_path / "published.pth", tmp_path / "out/ours.safetensors")
    assert done.returncode == 0, done.stderr
    count = len(model.state_dict())
    assert (
        f"arch 'test', checkpoint of family 'vrwkv': {count} mapped, 0 resized, 2 dropped on purpose, 0 missing, 0 unexpected"
        in done.stdout
    )
    assert "  mapped: layers.0.att.spatial_decay -> layers.0.token.decay" in done.stdout
    assert "  dropped on purpose: head.fc.bias" in done.stdout
    with safe_open(tmp_path / "out/ours.safetensors", "pt") as file:
        origin = json.loads(file.metadata()["linescan"])
    assert (origin["family"], origin["backbone"], origin["arch"], origin["source"]) == ("vrwkv", "VRWKV", "test", "published.pth")
    twin = build(init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "out/ours.safetensors")))
    torch.nn.init.zeros_(twin.pos_embed)
    twin.init_weights()
    x = torch.randn(1, 3, 40, 56)
    assert all(torch.equal(a, b) for a, b in zip(model.eval()(x), twin.eval()(x), strict=True))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["ours.safetensors"]


def test_the_published_file_loads_without_conversion(tmp_path):
    model = write(tmp_path / "published.pth")
    twin = build(init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "published.pth"), family="vrwkv"))
    torch.nn.init.zeros_(twin.pos_embed)
    twin.init_weights()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))


def test_position_embeddings_keep_the_grid_of_the_file(tmp_path):
    model = write(tmp_path / "large.pth", img_size=96)
    _, report = convert_file(tmp_path / "large.pth", tmp_path / "ours.safetensors", family="vrwkv")
    stored = read_checkpoint(tmp_path / "ours.safetensors")["pos_embed"]
    assert torch.equal(stored, model.pos_embed) and not report.resized
    assert load_checkpoint(build(), tmp_path / "ours.safetensors").resized == {"pos_embed": "pos_embed"}


def test_problems_are_listed_and_nothing_is_written(tmp_path):
    state = official_vrwkv(build())
    del state["backbone.ln1.weight"]
    state["backbone.extra.weight"] = torch.zeros(3)
    torch.save(state, tmp_path / "odd.pth")
    done = run("--family", "vrwkv", tmp_path / "odd.pth", tmp_path / "ours.safetensors")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert (
        "The nearest is 'test'" in done.stderr and "missing: final_norm.weight" in done.stderr and "unexpected: extra.weight" in done.stderr
    )
    assert not (tmp_path / "ours.safetensors").exists()
    allowed = ("--allow-missing", "final_norm.*", "--allow-unexpected", "extra.weight")
    done = run("--family", "vrwkv", tmp_path / "odd.pth", tmp_path / "ours.safetensors", *allowed)
    assert done.returncode == 0 and "1 missing, 0 unexpected" in done.stdout, done.stderr
    with pytest.raises(CheckpointError, match=r"missing: final_norm\.weight"):
        load_checkpoint(build(), tmp_path / "ours.safetensors")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(target="ours.pth", family="vrwkv"), "target must be a .safetensors file"),
        (dict(family="vrwvk"), "unknown checkpoint family 'vrwvk'.*'vrwkv'"),
        (dict(family="linescan"), "no official layout"),
        (dict(family="vrwkv", arch="tinny"), "unknown arch 'tinny'.*'tiny'"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    write(tmp_path / "published.pth")
    target = tmp_path / arguments.pop("target", "ours.safetensors")
    with pytest.raises(ValueError, match=message):
        convert_file(tmp_path / "published.pth", target, **arguments)


def test_the_weights_may_stand_under_another_key(tmp_path):
    averaged, last = official_vrwkv(build()), official_vrwkv(build())
    averaged["backbone.ln1.bias"] = torch.full_like(averaged["backbone.ln1.bias"], 3.0)
    torch.save({"model": last, "model_ema": averaged}, tmp_path / "both.pth")
    convert_file(tmp_path / "both.pth", tmp_path / "ours.safetensors", family="vrwkv", key="model_ema")
    assert (read_checkpoint(tmp_path / "ours.safetensors")["final_norm.bias"] == 3).all()
    with pytest.raises(CheckpointError, match=r"unknown entry 'ema'.*'model_ema'"):
        read_checkpoint(tmp_path / "both.pth", key="ema")


def test_settings_of_training_codes_are_read_as_data(tmp_path, monkeypatch):
    """Published files hold a yacs node or an argparse namespace beside the weights; the class is neither needed nor run."""
    module = types.ModuleType("yacs.config")
    module.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    settings = module.CfgNode(MODEL=module.CfgNode(NAME="x"))
    settings.__dict__["immutable"] = True
    torch.save({"model": {"a": torch.ones(2)}, "config": settings, "args": argparse.Namespace(lr=1.0)}, tmp_path / "published.pth")
    monkeypatch.undo()
    assert list(read_checkpoint(tmp_path / "published.pth")) == ["a"]
