"""PyramidEncoderDecoder: channels of necks and heads come from the pyramid, and disagreement is an error that names both sides."""

import pytest
import torch
from mmengine.model import BaseModule
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch import nn

import linescan.segmentation  # noqa: F401


class Levels(BaseModule):
    """Three maps of fixed channels; `tells` decides whether it declares them."""

    def __init__(self, tells: bool = True):
        super().__init__()
        if tells:
            self.out_channels, self.out_strides = (4, 6, 8), (4, 8, 16)
        self.convs = nn.ModuleList(nn.Conv2d(3, c, s, s) for c, s in ((4, 4), (6, 8), (8, 16)))

    def forward(self, x):
        return tuple(conv(x) for conv in self.convs)


@pytest.fixture(autouse=True)
def registered():
    init_default_scope("mmseg")
    MODELS.register_module(module=Levels, force=True)
    yield
    MODELS.module_dict.pop("Levels")


COMMON = dict(channels=5, num_classes=3, norm_cfg=dict(type="BN"), loss_decode=dict(type="CrossEntropyLoss", avg_non_ignore=True))


def build(**changes):
    head = dict(type="FCNHead", num_convs=1, concat_input=False, **COMMON)
    parts = dict(
        type="PyramidEncoderDecoder",
        backbone=dict(type="Levels"),
        decode_head=dict(type="SegformerHead", in_index=[0, 2], **COMMON),
        auxiliary_head=head,
        train_cfg={},
        test_cfg=dict(mode="whole"),
    )
    for name, change in changes.items():
        parts[name] = {**parts.get(name, {}), **change} if isinstance(change, dict) else change
    return MODELS.build(parts)


def test_heads_take_the_levels_of_in_index():
    model = build(auxiliary_head=[dict(type="FCNHead", in_index=i, **COMMON) for i in (1, -1)])
    assert model.decode_head.in_channels == [4, 8]
    assert [head.in_channels for head in model.auxiliary_head] == [6, 8]
    assert build().auxiliary_head.in_channels == 8
    assert model.eval()._forward(torch.zeros(1, 3, 32, 48)).shape == (1, 3, 8, 12)


def test_a_neck_stands_between():
    model = build(
        neck=dict(type="FPN", out_channels=7, num_outs=4),
        decode_head=dict(in_index=[0, 1, 2, 3]),
        auxiliary_head=dict(in_index=3),
    )
    assert model.neck.in_channels == [4, 6, 8]
    assert model.decode_head.in_channels == [7, 7, 7, 7]
    assert model.eval()._forward(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 16, 16)


def test_a_neck_that_takes_and_tells_nothing():
    with pytest.raises(ValueError, match=r"decode_head needs in_channels: neck Feature2Pyramid has no out_channels"):
        build(neck=dict(type="Feature2Pyramid", embed_dim=8, norm_cfg=dict(type="BN")))


def test_a_backbone_that_tells_nothing_works_with_given_channels():
    silent = dict(type="Levels", tells=False)
    model = build(backbone=silent, decode_head=dict(in_channels=[4, 8]), auxiliary_head=dict(in_channels=8))
    assert model.decode_head.in_channels == [4, 8]
    with pytest.raises(ValueError, match=r"decode_head needs in_channels: backbone Levels has no out_channels"):
        build(backbone=silent)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(decode_head=dict(in_channels=[4, 6])), r"decode_head.in_channels=\[4, 6\].*in_index=\[0, 2\] backbone Levels gives \[4, 8\]"),
        (dict(auxiliary_head=dict(in_index=3)), r"auxiliary_head.in_index=3: backbone Levels returns 3 levels with channels \(4, 6, 8\)"),
        (
            dict(neck=dict(type="FPN", in_channels=[1, 2, 3], out_channels=7, num_outs=3)),
            r"in_channels=\[1, 2, 3\].*gives \[4, 6, 8\]",
        ),
    ],
)
def test_disagreement_names_both_sides(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_the_config_is_left_as_it_was():
    head = dict(type="SegformerHead", in_index=[0, 2], **COMMON)
    before = dict(head)
    build(decode_head=head)
    assert head == before


def test_none_takes_channels_away_and_pretrained_goes_to_the_backbone(monkeypatch):
    model = build(decode_head=dict(in_channels=None), auxiliary_head=dict(in_channels=None))
    assert (model.decode_head.in_channels, model.auxiliary_head.in_channels) == ([4, 8], 8)

    class Weighty(Levels):
        def __init__(self, pretrained=None):
            super().__init__()
            self.pretrained = pretrained

    monkeypatch.setitem(MODELS.module_dict, "Weighty", Weighty)
    given = dict(type="Weighty")
    assert build(backbone=given, pretrained="a.pth").backbone.pretrained == "a.pth" and given == dict(type="Weighty")
    with pytest.raises(ValueError, match=r"pretrained='a.pth', but the backbone has pretrained='b.pth'"):
        build(backbone=dict(type="Weighty", pretrained="b.pth"), pretrained="a.pth")
