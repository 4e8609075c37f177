"""SimpleFeaturePyramid against MMSegmentation's Feature2Pyramid and ViTDet's description, and necks in a segmentor."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import init_default_scope
from mmseg.models.necks import Feature2Pyramid
from mmseg.registry import MODELS
from torch import Tensor, nn

import linescan.backbones
import linescan.segmentation
from linescan.segmentation import SimpleFeaturePyramid

SIZES = [(4, 6), (5, 3), (1, 1), (1, 7)]


def maps(channels: int, size: tuple[int, int], count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, channels, *size, generator=generator, dtype=torch.float64) for _ in range(count)]


def scramble(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("out_channels", [None, 6])
def test_any_size(size, count, out_channels):
    neck = SimpleFeaturePyramid([8] * count, out_channels).double()
    outputs = neck(maps(8, size, count))
    height, width = size
    sizes = [(4 * height, 4 * width), (2 * height, 2 * width), size, (-(-height // 2), -(-width // 2))]
    assert neck.out_channels == (out_channels or 8,) * 4
    assert [tuple(o.shape) for o in outputs] == [(2, c, *s) for c, s in zip(neck.out_channels, sizes, strict=True)]
    sum((o * torch.randn_like(o)).sum() for o in outputs).backward()
    assert all(p.grad.abs().sum() > 0 for p in neck.parameters())


def test_without_out_channels_it_is_feature2pyramid():
    ours = scramble(SimpleFeaturePyramid([8] * 4, norm_cfg=dict(type="BN")))
    theirs = Feature2Pyramid(8, norm_cfg=dict(type="BN")).double()
    names = dict(zip(theirs.state_dict(), ours.state_dict(), strict=True))
    theirs.load_state_dict({name: ours.state_dict()[own] for name, own in names.items()})
    inputs = maps(8, (6, 4), 4)
    for a, b in zip(ours(inputs), theirs(inputs), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


def test_with_out_channels_it_is_vitdets():
    """From the description: widths C/2 and C/4 on the way up, then 1x1 and 3x3 convolutions, each with a LayerNorm over the channels."""
    neck = scramble(SimpleFeaturePyramid(8, 6))
    (x,) = inputs = maps(8, (6, 4), 1)

    def norm(x: Tensor, module: nn.LayerNorm) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        scaled = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
        return scaled * module.weight[:, None, None] + module.bias[:, None, None]

    def end(x: Tensor, convolutions: nn.Sequential) -> Tensor:
        for conv, layer_norm in convolutions:
            x = norm(F.conv2d(x, conv.weight, padding=conv.weight.shape[-1] // 2), layer_norm)
        return x

    def up(x: Tensor, module: nn.ConvTranspose2d) -> Tensor:
        """Each pixel becomes 2 x 2 pixels of its own."""
        pixels = torch.einsum("bchw,cdij->bdhiwj", x, module.weight).flatten(4, 5).flatten(2, 3)
        return pixels + module.bias[:, None, None]

    four, eight, sixteen, thirty_two = neck.levels
    expected = [
        end(up(F.gelu(norm(up(x, four[0]), four[1])), four[3]), four[4:]),
        end(up(x, eight[0]), eight[1:]),
        end(x, sixteen),
        end(x.unflatten(2, (3, 2)).unflatten(4, (2, 2)).amax((3, 5)), thirty_two[1:]),
    ]
    for a, b in zip(neck(inputs), expected, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-10)
    assert [conv.out_channels for conv in (four[0], four[3], eight[0])] == [4, 2, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(in_channels=[8, 8]), "in_channels: expected one map or 4, got 2"),
        (dict(in_channels=[8] * 12), "in_channels: expected one map or 4, got 12; choose them by the backbone's out_indices"),
        (dict(in_channels=6, out_channels=4), r"in_channels: .*multiples of 4, got \(6,\)"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SimpleFeaturePyramid(**arguments)


def test_bad_inputs_are_named():
    with pytest.raises(ValueError, match=r"inputs: expected 1 maps, as in_channels=\(8,\) says, got 2"):
        SimpleFeaturePyramid(8)(maps(8, (4, 4), 2))
    with pytest.raises(ValueError, match=r"inputs: expected maps of one size, got \[\(4, 4\), \(4, 4\), \(4, 4\), \(2, 2\)\]"):
        SimpleFeaturePyramid([8] * 4).double()([*maps(8, (4, 4), 3), *maps(8, (2, 2), 1)])


COMMON = dict(channels=5, num_classes=3, norm_cfg=dict(type="BN"), loss_decode=dict(type="CrossEntropyLoss", avg_non_ignore=True))


def segmentor(neck: dict | list[dict], out_indices: tuple[int, ...] = (2,), **changes: object) -> nn.Module:
    init_default_scope("mmseg")
    return MODELS.build(
        dict(
            type="PyramidEncoderDecoder",
            backbone=dict(type="linescan.TimmBackbone", model_name="test", depth=5, out_indices=out_indices),
            neck=neck,
            decode_head=dict(type="SegformerHead", in_index=[0, 1, 2, 3], **COMMON),
            train_cfg={},
            test_cfg=dict(mode="whole"),
            **changes,
        )
    )


@pytest.mark.parametrize("out_indices", [(2,), (1, 2, 3, 4)])
def test_a_plain_backbone_under_a_pyramid_head(out_indices):
    model = segmentor(dict(type="SimpleFeaturePyramid"), out_indices=out_indices)
    assert model.neck.in_channels == (64,) * len(out_indices) and model.decode_head.in_channels == [64] * 4
    assert model.eval()._forward(torch.zeros(1, 3, 40, 50)).shape == (1, 3, 12, 16)


def test_necks_are_applied_in_order():
    """SimpleFeaturePyramid, then FPN: channels are fitted at each step, and all necks are initialised."""
    necks = [dict(type="SimpleFeaturePyramid", out_channels=8), dict(type="FPN", out_channels=7, num_outs=4)]
    model = segmentor(necks, auxiliary_head=dict(type="FCNHead", in_index=1, **COMMON))
    first, second = model.neck
    assert (first.in_channels, second.in_channels, model.decode_head.in_channels) == ((64,), [8] * 4, [7] * 4)
    assert model.auxiliary_head.in_channels == 7
    model.init_weights()
    assert first.is_init and second.is_init
    x = torch.randn(2, 3, 40, 50)
    outputs = model.extract_feat(x)
    assert all(torch.equal(a, b) for a, b in zip(outputs, second(first(model.backbone(x))), strict=True))
    assert model.eval()._forward(x).shape == (2, 3, 12, 16)


def test_disagreement_in_a_list_names_the_neck():
    with pytest.raises(ValueError, match=r"neck\[1\].in_channels=\[9, 9, 9, 9\], but at in_index=range\(0, 4\) neck\[0\] Simple.*gives"):
        segmentor([dict(type="SimpleFeaturePyramid", out_channels=8), dict(type="FPN", in_channels=[9] * 4, out_channels=7, num_outs=4)])
    with pytest.raises(ValueError, match=r"neck\[1\] needs in_channels: neck\[0\] Feature2Pyramid has no out_channels"):
        segmentor([dict(type="Feature2Pyramid", embed_dim=64, norm_cfg=dict(type="BN")), dict(type="FPN", out_channels=7, num_outs=4)])


def test_the_package_names_its_neck():
    assert linescan.segmentation.SimpleFeaturePyramid is MODELS.get("SimpleFeaturePyramid")
