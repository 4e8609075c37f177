"""Our backbones reproduce the published ones: every golden file, outputs and gradients, in float32 and float64.

A file holds the official class and constructor arguments, its state dict and its outputs. The checkpoint families say how a class and its
arguments read in our terms; a class that none knows, or an argument that the translation does not know, is a failure.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from linescan.backbones import BACKBONES
from linescan.backbones.checkpoints import FAMILIES, convert, load_checkpoint

FOLDER = Path(os.environ.get("LINESCAN_GOLDEN", Path(__file__).resolve().parents[1] / "../shared/golden/models")).resolve()
FILES = sorted(FOLDER.glob("*.pt"))


@dataclass(frozen=True)
class Published:
    """An official class in our terms.

    Attributes:
        family: checkpoint family of its state dicts.
        config: official constructor arguments -> our config; raises for an argument that it does not know.
    """

    family: str
    config: Callable[..., dict]


PUBLISHED = {name: Published(family, config) for family, rules in FAMILIES.items() for name, config in rules.official.items()}
# Files of the promptable model's decoder: no backbone.
OTHERS = {"decoder_mlpmerge"}
# The RWKV-SAM files resized the position embedding in float32: we are 1.1e-7 away. A wrong eps in the last norm alone moves 8e-7.
TOLERANCE64 = {"rwkvsam": 5e-7}


def _parameters() -> list:
    if not FILES:
        reason = f"LINESCAN_GOLDEN names no folder with golden models ({FOLDER}): the data are not part of the repository"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="no-files")]
    return [pytest.param(path, id=path.stem) for path in FILES if path.stem not in OTHERS]


every_file = pytest.mark.parametrize("path", _parameters())


def _published(path: Path) -> Published:
    name = torch.load(path, weights_only=True, mmap=True)["cls"]
    assert name in PUBLISHED, f"{path.name}: no checkpoint family translates the official class {name!r}"
    return PUBLISHED[name]


def _official_arguments(golden: dict) -> dict:
    """The constructor's arguments; the RWKV-SAM files have those of its nested `attn_cfg` beside the others."""
    arguments = dict(golden["config"])
    if golden["cls"] == "VITAMINBackbone":
        arguments["attn_cfg"] = {key: arguments.pop(key) for key in ("depth", "mlp_ratio", "num_heads", "drop_path") if key in arguments}
    return arguments


def _build(path: Path, dtype: torch.dtype) -> tuple[torch.nn.Module, dict]:
    published = _published(path)
    golden = torch.load(path, weights_only=True)
    model = BACKBONES.build(published.config(**_official_arguments(golden)))
    report = load_checkpoint(model, golden["state_dict"], family=published.family)
    assert not report.missing and not report.unexpected, str(report)
    return model.to(dtype).eval(), golden


def _outputs(model: torch.nn.Module, golden: dict, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What the file recorded of the official forward pass; with `output_cls_token` map and class token in turn."""
    if golden["config"].get("output_cls_token"):
        return tuple(part for pair in model.forward_with_token(x) for part in pair)
    return _vim_outputs(model, golden, x) if golden["cls"] == "VisionMamba" else model(x)


def _vim_outputs(model: torch.nn.Module, golden: dict, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Logits, then of every layer the mixer's output and the stream that enters it. The head reads the class token, or else the mean."""
    seen = []
    hooks = [model.final_norm.register_forward_hook(lambda module, args, output: seen.append(output))]
    for layer in model.layers:
        hooks.append(layer.token.register_forward_hook(lambda module, args, output: seen.append(output)))
        hooks.append(layer.register_forward_hook(lambda module, args, output: seen.append(args[0])))
    model(x)
    for hook in hooks:
        hook.remove()
    *states, tokens = seen
    token = tokens.mean(1) if model.cls_token is None else tokens[:, (tokens.shape[1] - 1) // 2]
    weight, bias = (golden["state_dict"][f"head.{name}"].to(token.dtype) for name in ("weight", "bias"))
    return token @ weight.T + bias, *states


def _error(value: torch.Tensor, reference: torch.Tensor) -> float:
    assert value.shape == reference.shape
    return float((value.double() - reference.double()).norm() / reference.double().norm())


def _check_outputs(path: Path, dtype: torch.dtype, tolerance: float) -> None:
    model, golden = _build(path, dtype)
    cases = [(key, key.replace("input", "outputs")) for key in golden if key.startswith("input")]
    assert cases
    for inputs, outputs in cases:
        with torch.no_grad():
            maps = _outputs(model, golden, golden[inputs].to(dtype))
        assert len(maps) == len(golden[outputs])
        for level, (value, reference) in enumerate(zip(maps, golden[outputs], strict=True)):
            assert _error(value, reference) < tolerance, f"{inputs}, map {level}"


@every_file
def test_outputs_float32(path):
    _check_outputs(path, torch.float32, 1e-5)


@every_file
def test_outputs_float64(path):
    _check_outputs(path, torch.float64, TOLERANCE64.get(_published(path).family, 1e-10))


@every_file
def test_gradients(path):
    """Of sum_i (outputs[i] * probes[i]).sum(), in float64; the files' parameter gradients have float32 precision."""
    if "probes" not in torch.load(path, weights_only=True, mmap=True):
        pytest.skip("the file has no gradients")
    model, golden = _build(path, torch.float64)
    family = _published(path).family
    x = golden["input"].double().requires_grad_()
    sum((value * probe).sum() for value, probe in zip(_outputs(model, golden, x), golden["probes"], strict=True)).backward()
    assert _error(x.grad, golden["grad_input"]) < TOLERANCE64.get(family, 1e-10)
    expected, report = convert(golden.get("grad_params", {}), model, family=family)
    assert not report.unexpected and not report.mismatched, str(report)
    parameters = dict(model.named_parameters())
    for name, reference in expected.items():
        assert _error(parameters[name].grad, reference) < 1e-5, name


@pytest.mark.parametrize("name", PUBLISHED)
def test_unknown_argument_is_an_error(name):
    with pytest.raises(TypeError, match="no_such_argument"):
        PUBLISHED[name].config(no_such_argument=7)


_VSSM = dict(dims=16, depths=[1, 1, 1, 1], ssm_dt_rank="auto", drop_path_rate=0.1)
_V05 = dict(ssm_d_state=1, ssm_ratio=1.0, ssm_conv_bias=False, forward_type="v05_noz", mlp_ratio=4.0)
_M0 = dict(ssm_d_state=8, ssm_ratio=1.0, ssm_conv_bias=False, forward_type="m0_noz", mlp_ratio=4.0)
_V0 = dict(ssm_d_state=16, ssm_ratio=2.0, ssm_conv_bias=True, forward_type="v0", mlp_ratio=0.0)
_NEW, _OLD = dict(patchembed_version="v2", downsample_version="v3"), dict(patchembed_version="v1", downsample_version="v1")
_VIM = dict(embed_dim=32, depth=2, rms_norm=True, if_abs_pos_embed=True, bimamba_type="v2", residual_in_fp32=True, fused_add_norm=True)
_NORMS = dict(post_norm=True, key_norm=True, init_values=1e-5)
_RWKV = dict(embed_dims=64, depth=2, patch_size=16, out_indices=(0, 1))
# Official constructor calls that no file holds; the values of these networks are compared in the families' own tests.
CONSTRUCTORS = {
    "vmamba-v05-ln": ("Backbone_VSSM", dict(**_VSSM, **_V05, **_NEW, norm_layer="ln")),
    "vmamba-v05-ln2d": ("Backbone_VSSM", dict(**_VSSM, **_V05, **_NEW, norm_layer="ln2d")),
    "vmamba-m0": ("Backbone_VSSM", dict(**_VSSM, **_M0, **_NEW, norm_layer="ln")),
    "vmamba-v0": ("Backbone_VSSM", dict(**_VSSM, **_V0, **_OLD, norm_layer="ln")),
    "vim-middle-token": ("VisionMamba", dict(**_VIM, img_size=64, if_cls_token=True, use_middle_cls_token=True, if_divide_out=True)),
    "vim-no-token": ("VisionMamba", dict(**_VIM, img_size=(64, 96), if_cls_token=False, if_divide_out=False, final_pool_type="mean")),
    "vim-stride-8": ("VisionMamba", dict(**_VIM, img_size=64, stride=8, if_cls_token=True, use_middle_cls_token=True)),
    "vrwkv-key-norm": ("VRWKV", dict(**_RWKV, **_NORMS, img_size=192)),
    "vrwkv-odd-size": ("VRWKV", dict(**_RWKV, img_size=(50, 65))),
    "vrwkv6-class-token": ("VRWKV6", dict(**_RWKV, **_NORMS, num_heads=1, img_size=64, with_cls_token=True)),
}


@pytest.mark.parametrize(("name", "arguments"), CONSTRUCTORS.values(), ids=CONSTRUCTORS.keys())
def test_official_constructor_calls_build_networks_for_any_size(name, arguments):
    model = BACKBONES.build(PUBLISHED[name].config(**arguments)).eval()
    x = torch.randn(1, 3, 49, 83)
    with torch.no_grad():
        maps = model(x)
    promised = [(1, c, -(-49 // s), -(-83 // s)) for c, s in zip(model.out_channels, model.out_strides, strict=True)]
    assert [tuple(m.shape) for m in maps] == promised and all(torch.isfinite(m).all() for m in maps)
