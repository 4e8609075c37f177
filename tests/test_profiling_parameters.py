"""Parameters by stage and type, and those that a forward pass reaches."""

import inspect
import sys

import pytest
import torch
from torch import nn

from linescan.backbones import BACKBONES, HybridBackbone, list_backbones
from linescan.profiling import count_parameters


def test_parameters_by_stage():
    model = HybridBackbone("test", "bi_wkv", frozen_stages=0)
    count = count_parameters(model)
    assert count.total == sum(p.numel() for p in model.parameters()) == sum(count.by_stage.values())
    assert count.total - count.trainable == count.by_stage["stem"] > 0
    assert count.live is None


class _Owner(nn.Module):
    """A free parameter, a tied weight, and every way of being dead or alive."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))  # read through a view of a view
        self.unread = nn.Parameter(torch.ones(5))
        self.looked_at = nn.Parameter(torch.ones(7))  # a view is made, and no operator reads it
        self.first = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.first.weight
        self.never_called = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(2, 2))
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("table", torch.ones(11))

    def forward(self, x):
        self.looked_at.view(7, 1)
        return self.norm(self.tied(self.first(x))) * self.scale.view(3, 1)[1:].T.sum() * self.table[0]


def test_live_parameters():
    count = count_parameters(_Owner().train(), (2, 4))
    assert count.by_type == {"Linear": 16 + 4 + 4 + 6, "Conv2d": 20, "_Owner": 15, "BatchNorm1d": 8}
    assert count.by_stage == {"": 15, "first": 20, "tied": 4, "never_called": 26, "norm": 8}
    assert count.total == sum(count.by_type.values()) == sum(count.by_stage.values()) == 73
    assert count.live == 3 + 16 + 4 + 4 + 8


def test_one_parameter_of_the_model_itself():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6))

        def forward(self, x):
            return x * self.weight

    count = count_parameters(Scale(), (2, 6))
    assert (count.total, count.live, count.by_type, count.by_stage) == (6, 6, {"Scale": 6}, {"": 6})
    empty = count_parameters(nn.Identity(), (1,))
    assert (empty.total, empty.live, empty.by_type, empty.by_stage) == (0, 0, {}, {})


@pytest.mark.parametrize("name", list_backbones())
def test_every_parameter_of_a_backbone_is_live(name):
    """Test architectures of everything registered; half of the network off, its parameters are dead."""
    cls = BACKBONES.get(name)
    argument = next(iter(inspect.signature(cls).parameters))
    arch = next(arch for arch in getattr(sys.modules[cls.__module__], "ARCHS", ["test"]) if arch.startswith("test"))
    model = BACKBONES.build({"type": f"linescan.{name}", argument: arch})
    count = count_parameters(model, (1, 3, 37, 50))
    assert count.live == count.total == sum(count.by_type.values()) == sum(p.numel() for p in model.parameters())
    assert next(model.parameters()).device.type == "cpu"


@pytest.mark.filterwarnings("ignore:Default ``avg_non_ignore``")
def test_the_auxiliary_head_of_a_segmentor_is_dead():
    """It is called in training only. Synchronised batch norm needs no process group here."""
    from mmseg.registry import MODELS

    head = dict(type="mmseg.FCNHead", in_channels=64, channels=32, num_convs=1, num_classes=5, norm_cfg=dict(type="SyncBN"))
    model = MODELS.build(
        dict(
            type="mmseg.EncoderDecoder",
            data_preprocessor=dict(type="mmseg.SegDataPreProcessor"),
            backbone=dict(type="linescan.HybridBackbone", arch="test"),
            decode_head=dict(head, in_index=3),
            auxiliary_head=dict(head, in_index=2),
        )
    )
    count = count_parameters(model, (1, 3, 64, 64))
    assert count.total - count.live == count.by_stage["auxiliary_head"] > 0


def test_a_model_that_needs_values_runs_on_the_cpu():
    class Choice(nn.Module):
        def __init__(self):
            super().__init__()
            self.branches = nn.ModuleList(nn.Linear(2, n) for n in (1, 2))

        def forward(self, x):
            return self.branches[int(x.sum().item())](x)

    assert count_parameters(Choice(), (3, 2), device="cpu").live == 3


@pytest.mark.parametrize(("shape", "error"), [((), ValueError), ((1, 3, -4, 4), ValueError), ((1, True), ValueError), ("13", TypeError)])
def test_bad_input_shape(shape, error):
    with pytest.raises(error, match="input_shape"):
        count_parameters(nn.Identity(), shape)
