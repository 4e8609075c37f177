"""Which parameters decay."""

import inspect

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

import linescan.backbones  # noqa: F401  registers HybridBackbone
from linescan.backbones.registry import BACKBONES, list_backbones
from linescan.engine import parameter_groups
from linescan.engine.optim import decayed, undecayed

CONV = [
    "stem.conv1.weight",
    "stem.conv2.weight",
    "stages.0.0.branch.expand.weight",
    "stages.0.0.branch.depthwise.weight",
    "stages.0.0.branch.project.weight",
    "stages.1.0.shortcut.weight",
    "stages.1.0.branch.expand.weight",
    "stages.1.0.branch.depthwise.weight",
    "stages.1.0.branch.project.weight",
    "reduction.proj.weight",
]
BI_WKV = [f"token.{name}.weight" for name in ("key", "value", "receptance", "output")]
BI_WKV += [f"channel.{name}.weight" for name in ("key", "receptance", "value")]
ATTENTION = [f"{name}.weight" for name in ("token.qkv", "token.proj", "channel.gate", "channel.up", "channel.down")]


def wrapper(model, **kwargs):
    optimizer = dict(type="AdamW", lr=1e-3, weight_decay=0.1)
    return build_optim_wrapper(model, dict(optimizer=optimizer, constructor="LinescanOptimWrapperConstructor", **kwargs))


@pytest.mark.parametrize("mixer, matrices", [("bi_wkv", BI_WKV), ("attention", ATTENTION)])
def test_hybrid_backbone_decays_exactly_its_matrices(mixer, matrices):
    """Not: decay, first, layer scales, token-shift mixes, norms, biases, position embeddings. (Official code decays mixes.)"""
    model = BACKBONES.build(dict(type="linescan.HybridBackbone", arch="test", mixer=mixer, pos_embed_size=4))
    depth = len(model.layers)
    expected = CONV + [f"layers.{i}.{name}" for i in range(depth) for name in matrices]
    assert sorted(decayed(wrapper(model).optimizer, model)) == sorted(expected)
    left_out = {name.rsplit(".", 1)[-1] for name in undecayed(model)}
    assert {"weight", "bias", "pos_embed"} <= left_out
    if mixer == "bi_wkv":
        assert {"decay", "first", "scale1", "scale2", "mix_k", "mix_v", "mix_r"} <= left_out


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(1, 1, 4))
        self.table = nn.Parameter(torch.zeros(4, 4))
        self.linear = nn.Linear(4, 4)

    def no_weight_decay(self):
        return {"mix", "linear.weight", "absent_optional_part"}


def test_no_weight_decay_is_relative_to_its_module():
    model = nn.Sequential(Part(), nn.LayerNorm((2, 4)), nn.Linear(4, 2))
    assert undecayed(model) == {"0.mix", "0.linear.weight", "0.linear.bias", "1.weight", "1.bias", "2.bias"}


def test_groups_are_few_and_hold_every_trainable_parameter_once():
    model = nn.Sequential(Part(), nn.Linear(4, 2), nn.BatchNorm1d(2))
    model[2].weight.requires_grad_(False)
    model.append(model[1])  # shared
    groups = parameter_groups(model, lr=1.0, weight_decay=0.1, custom_keys={"1": dict(lr_mult=10.0), "0.table": dict(decay_mult=0.5)})
    assert {(g["lr"], round(g["weight_decay"], 6)): sorted(g["names"]) for g in groups} == {
        (1.0, 0.0): ["0.linear.bias", "0.linear.weight", "0.mix", "2.bias"],
        (1.0, 0.05): ["0.table"],
        (10.0, 0.1): ["1.weight"],
        (10.0, 0.0): ["1.bias"],
    }


def test_a_step_decays_the_weight_and_not_the_bias():
    model = nn.Linear(2, 2)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = wrapper(model).optimizer
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(model.weight, before[0] * (1 - 1e-3 * 0.1), rtol=1e-7, atol=0) and not torch.equal(model.weight, before[0])
    assert torch.equal(model.bias, before[1])


def test_bad_configs_are_named():
    with pytest.raises(ValueError, match=r"paramwise_cfg: expected \['custom_keys', 'layer_decay'\], got \['norm_decay_mult'\]"):
        wrapper(nn.Linear(2, 2), paramwise_cfg=dict(norm_decay_mult=0.0))
    with pytest.raises(ValueError, match=r"custom_keys\['head'\]: expected .*got \['lr_mul'\]"):
        wrapper(nn.Linear(2, 2), paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mul=2))))
    with pytest.raises(ValueError, match="expected an `lr`"):
        build_optim_wrapper(nn.Linear(2, 2), dict(optimizer=dict(type="SGD"), constructor="LinescanOptimWrapperConstructor"))


@pytest.mark.parametrize("name", list_backbones())
def test_every_backbone_counts_its_layers(name):
    """Layers are numbered from the image without gaps, in the order of the forward pass; each parameter has one."""
    argument = next(iter(inspect.signature(BACKBONES.get(name)).parameters))
    model = BACKBONES.build({"type": f"linescan.{name}", argument: "test"})
    ids = model.layer_ids()
    assert set(ids) == {parameter for parameter, _ in model.named_parameters()}
    assert set(range(model.num_layers)) <= set(ids.values()) <= set(range(model.num_layers + 1))


def test_layer_decay_scales_the_rate_by_the_distance_to_the_heads():
    """The steps of the hybrid test network: stem, two stages, reduction, four token layers; then final norm and head at the full rate."""
    model = nn.ModuleDict(
        {"backbone": BACKBONES.build(dict(type="linescan.HybridBackbone", arch="test", pos_embed_size=4)), "decode_head": nn.Linear(4, 2)}
    )
    groups = parameter_groups(model, 1.0, 0.0, custom_keys={"decode_head": dict(lr_mult=10.0)}, layer_decay=0.5)
    rates = {name: group["lr"] for group in groups for name in group["names"]}
    assert len(rates) == len(list(model.parameters()))
    expected = {
        "backbone.stem.conv1.weight": 2**-8,
        "backbone.stages.0.0.norm.bias": 2**-7,
        "backbone.stages.1.0.branch.expand.weight": 2**-6,
        "backbone.reduction.proj.weight": 2**-5,
        "backbone.pos_embed": 2**-5,
        "backbone.layers.0.token.decay": 2**-4,
        "backbone.layers.3.scale2": 2**-1,
        "backbone.final_norm.weight": 1.0,
        "decode_head.weight": 10.0,
    }
    assert {name: rates[name] for name in expected} == expected
    optimizer = wrapper(model, paramwise_cfg=dict(layer_decay=0.5)).optimizer
    assert min(group["lr"] for group in optimizer.param_groups) == 1e-3 * 2**-8


@pytest.mark.parametrize("decay", [0.0, 1.5])
def test_layer_decay_out_of_range(decay):
    with pytest.raises(ValueError, match=r"layer_decay: expected a number in \(0, 1\]"):
        parameter_groups(BACKBONES.build(dict(type="linescan.HybridBackbone", arch="test")), 1.0, 0.0, layer_decay=decay)


def test_layer_decay_needs_a_backbone_that_tells_its_layers():
    with pytest.raises(ValueError, match="no backbone of the model has `layer_ids"):
        parameter_groups(nn.Linear(2, 2), 1.0, 0.0, layer_decay=0.9)
