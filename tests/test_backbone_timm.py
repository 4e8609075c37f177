"""TimmBackbone: sizes, agreement with timm and with MMSegmentation, pretrained weights, and what the wrappers add."""

import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from mmseg.models.backbones import ResNet, SwinTransformer
from timm.models import group_parameters
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from linescan.backbones import BACKBONES, TimmBackbone
from linescan.backbones.plain import PlainBackbone
from linescan.backbones.timm_backbone import ARCHS
from linescan.engine.optim import undecayed

# Parameters of the backbone; what timm's classifier has beside: classes times width plus bias, hidden layers, and norms that the levels of
# networks of stages do not pass.
PARAMETERS = {
    "deit_tiny": (5_524_416, 193_000),
    "deit_small": (21_665_664, 385_000),
    "deit_base": (85_798_656, 769_000),
    "deit3_tiny": (5_528_832, 193_000),
    "deit3_small": (21_674_496, 385_000),
    "deit3_base": (85_816_320, 769_000),
    "swin_micro": (6_020_082, 385_000 + 768),
    "swin_tiny": (27_517_818, 769_000 + 1536),
    "swin_small": (48_835_722, 769_000 + 1536),
    "swin_base": (86_741_176, 1_025_000 + 2048),
    "convnext_tiny": (27_818_592, 769_000 + 1536),
    "convnext_small": (49_453_152, 769_000 + 1536),
    "convnext_base": (87_564_416, 1_025_000 + 2048),
    "vitamin_small": (21_877_696, 384 * 768 + 768),
    "vitamin_base": (87_132_032, 768 * 768 + 768),
    "mambaout_femto": (5_815_728, 576 + 288 * 1152 + 1152 + 2 * 1152 + 1152 * 1000 + 1000),
    "mambaout_kobe": (7_652_400, 576 + 288 * 1152 + 1152 + 2 * 1152 + 1152 * 1000 + 1000),
    "mambaout_tiny": (22_904_928, 1152 + 576 * 2304 + 2304 + 2 * 2304 + 2304 * 1000 + 1000),
    "mambaout_small": (44_847_904, 1152 + 576 * 2304 + 2304 + 2 * 2304 + 2304 * 1000 + 1000),
    "mambaout_base": (79_370_044, 1536 + 768 * 3072 + 3072 + 2 * 3072 + 3072 * 1000 + 1000),
    "resnet50": (23_508_032, 2_049_000),
    "resnet101": (42_500_160, 2_049_000),
}
# Published sizes of the classifiers, in millions.
PUBLISHED = dict(deit_tiny=5.717, deit_small=22.05, deit_base=86.57, swin_tiny=28.29, swin_small=49.61, swin_base=87.77)
PUBLISHED |= dict(convnext_tiny=28.6, convnext_small=50.2, convnext_base=88.6, vitamin_small=22.17, vitamin_base=87.72)
PUBLISHED |= dict(mambaout_femto=7.3, mambaout_kobe=9.1, mambaout_tiny=26.5, mambaout_small=48.5, mambaout_base=84.8)
KINDS = [arch for arch in ARCHS if arch.startswith("test")]
every_kind = pytest.mark.parametrize("arch", KINDS)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def timm_model(arch: str) -> nn.Module:
    """timm's own model of a key of ARCHS, classifier and all."""
    entry = ARCHS[arch]
    return timm.create_model(**(entry if isinstance(entry, dict) else dict(model_name=entry)))


def scramble(model: nn.Module) -> nn.Module:
    """The model with random weights in which no part of the network can hide."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.1)
    return model.eval()


def pretrained(arch: str, theirs: nn.Module, folder: Path, **more: object) -> nn.Module:
    """Our backbone with the weights of timm's model, by way of a file."""
    torch.save(theirs.state_dict(), folder / "weights.pth")
    return TimmBackbone(arch, pretrained=True, pretrained_cfg_overlay=dict(file=str(folder / "weights.pth")), **more).eval()


def image(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def agree(outputs: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    for a, b in zip(outputs, expected, strict=True):
        assert a.shape == b.shape and (a - b).norm() <= 1e-12 * b.norm()


@pytest.mark.parametrize("arch", PARAMETERS)
def test_parameter_counts(arch):
    with torch.device("meta"):
        ours, theirs = TimmBackbone(arch), timm_model(arch)
    backbone, classifier = PARAMETERS[arch]
    assert (count(ours), count(theirs)) == (backbone, backbone + classifier)
    if arch in PUBLISHED:
        digits = len(str(PUBLISHED[arch]).split(".")[1])
        assert abs(count(theirs) / 1e6 - PUBLISHED[arch]) <= 0.51 * 10**-digits


def test_every_arch_is_counted():
    assert set(PARAMETERS) == {arch for arch in ARCHS if not arch.startswith("test")}


@pytest.mark.parametrize("arch", [kind for kind in KINDS if kind not in ("test_vitamin", "test_swin")])
def test_levels_are_those_of_timm(arch, tmp_path):
    """At a size that needs no padding, and the training size of position embeddings."""
    theirs = scramble(timm_model(arch))
    ours = pretrained(arch, theirs, tmp_path).double()
    theirs = theirs.double()
    x = image(2, 3, *timm.data.resolve_model_data_config(theirs)["input_size"][1:])
    final, levels = theirs.forward_intermediates(x)
    if isinstance(ours, PlainBackbone):
        final = theirs.fc_norm(final)[:, theirs.num_prefix_tokens :].transpose(1, 2)
        levels = [*levels[:-1], final.unflatten(2, levels[-1].shape[2:])]
    agree(ours(x), levels[-len(ours.out_channels) :])


def test_vitamin_is_timms(tmp_path):
    theirs = scramble(timm_model("test_vitamin"))
    ours = pretrained("test_vitamin", theirs, tmp_path).double()
    theirs = theirs.double()
    x = image(2, 3, 224, 224)
    convolutions = theirs.patch_embed.backbone
    first = convolutions.stages[0](convolutions.stem(x))
    _, (middle,) = theirs.forward_intermediates(x, indices=[1], norm=False)
    final = theirs.fc_norm(theirs.forward_features(x)).transpose(1, 2).unflatten(2, (14, 14))
    agree(ours(x), [first, convolutions.stages[1](first), middle, final])


@pytest.mark.parametrize("size", [(56, 112), (64, 64), (100, 151), (17, 1)])
def test_swin_is_mmsegs(size):
    """At any size: padding, shift and mask too."""
    options = dict(depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 4))
    ours = scramble(TimmBackbone("swin_tiny", embed_dim=16, out_norm=True, **options)).double()
    theirs = SwinTransformer(embed_dims=16, window_size=7, drop_path_rate=0.0, **options).double()
    theirs.eval()
    missing, unexpected = theirs.load_state_dict({_mmseg_name(k): _unfolded(k, v) for k, v in ours.state_dict().items()}, strict=False)
    assert not unexpected and all("relative_position_index" in name for name in missing)
    x = image(2, 3, *size)
    agree(ours(x), theirs(x))


def _mmseg_name(name: str) -> str:
    """MMSegmentation counts the merging to the stage before, and calls some parts otherwise."""
    name = re.sub(r"^stem\.0\.proj", "patch_embed.projection", re.sub(r"^stem\.0\.norm", "patch_embed.norm", name))
    name = re.sub(r"^out_norms\.", "norm", name)
    name = re.sub(r"^stages\.(\d)\.downsample", lambda found: f"stages.{int(found[1]) - 1}.downsample", name)
    return name.replace(".attn.", ".attn.w_msa.").replace("mlp.fc1", "ffn.layers.0.0").replace("mlp.fc2", "ffn.layers.1")


def _unfolded(name: str, value: Tensor) -> Tensor:
    """timm merges (column, row, channel), MMSegmentation (channel, row, column)."""
    if "downsample" not in name:
        return value
    pixels = value.unflatten(-1, (2, 2, -1))
    return pixels.movedim(-1, -3).transpose(-1, -2).reshape(value.shape)


@pytest.mark.parametrize("size", [(64, 64), (63, 97), (17, 1)])
def test_resnet_is_mmsegs(size):
    ours = scramble(TimmBackbone("resnet50")).double()
    theirs = ResNet(50, style="pytorch").double()
    theirs.eval()
    renamed = {}
    for name, value in ours.state_dict().items():
        name = re.sub(r"^stem\.0\.", "conv1.", re.sub(r"^stem\.1\.", "bn1.", name))
        renamed[re.sub(r"^stages\.(\d)\.", lambda found: f"layer{int(found[1]) + 1}.", name)] = value
    theirs.load_state_dict(renamed)
    x = image(1, 3, *size)
    agree(ours(x), theirs(x))


def test_maps_round_up_by_zero_padding_before_the_part_that_would_round_down():
    """ConvNeXt at an odd size: its patches of 4, then its merging of 2 x 2 pixels, see zeros beyond the edge."""
    model = scramble(TimmBackbone("test_convnext")).double()
    x = image(1, 3, 33, 50)
    first, second, *_ = model(x)
    stem = model.stem(F.pad(x, (0, 2, 0, 3)))
    agree([first], [model.stages[0](stem)])
    agree([second], [model.stages[1](F.pad(first, (0, 1, 0, 1)))])


@every_kind
def test_weights_survive_the_runner_and_are_loaded_strictly(arch, tmp_path):
    theirs = scramble(timm_model(arch))
    ours = pretrained(arch, theirs, tmp_path)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    ours.init_weights()
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
    weights = theirs.state_dict()
    weights.pop(next(name for name in weights if "blocks.0" in name or "layer1.0" in name))
    torch.save(weights, tmp_path / "weights.pth")
    with pytest.raises(RuntimeError, match="Missing key"):
        TimmBackbone(arch, pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / "weights.pth")))


def test_pretrained_asks_timm_for_the_weights_of_the_tag(monkeypatch):
    asked = []

    def load(model: nn.Module, pretrained_cfg: dict, in_chans: int, strict: bool, **others: object) -> None:
        asked.append((pretrained_cfg["architecture"], pretrained_cfg["tag"], in_chans, strict))

    monkeypatch.setattr(timm.models._builder, "load_pretrained", load)
    for name in ("convnext_tiny", "mambaout_femto", "resnet50.a1_in1k"):
        TimmBackbone(name, pretrained=True, in_channels=4)
    TimmBackbone("convnext_tiny")
    assert asked == [("convnext_tiny", "fb_in1k", 4, True), ("mambaout_femto", "in1k", 4, True), ("resnet50", "a1_in1k", 4, True)]


def test_weights_for_three_channels_are_adapted(tmp_path):
    theirs = scramble(timm_model("test_convnext"))
    ours = pretrained("test_convnext", theirs, tmp_path, in_channels=1)
    assert torch.allclose(ours.stem[0].weight, theirs.stem[0].weight.sum(1, keepdim=True))
    assert ours(image(1, 1, 32, 32).float())[0].shape == (1, 24, 8, 8)


def test_running_statistics_see_each_batch_once():
    """Recomputing a block for the backward pass is not a second batch."""
    plain, recomputed = (TimmBackbone("test_resnet", with_cp=with_cp) for with_cp in (False, True))
    recomputed.load_state_dict(plain.state_dict())
    for model in (plain, recomputed):
        sum(level.sum() for level in model.train()(image(2, 3, 64, 64).float())).backward()
    for (name, value), other in zip(plain.state_dict().items(), recomputed.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    assert plain.state_dict()["stages.0.0.bn1.num_batches_tracked"] == 1


@pytest.mark.parametrize("arch", [kind for kind in KINDS if kind != "test_vitamin"])
def test_decay_and_layers_are_those_of_timm(arch, monkeypatch):
    created = []
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *names, **options: created.append(create(*names, **options)) or created[-1])
    ours = TimmBackbone(arch)
    (theirs,) = created
    kept = {id(p): name for name, p in ours.named_parameters()}
    official = {id(p): name for name, p in theirs.named_parameters()}
    assert set(kept) <= set(official)

    listed = theirs.no_weight_decay() if hasattr(theirs, "no_weight_decay") else ()
    exempt = {id(p) for p in param_groups_weight_decay(theirs, 0.1, no_weight_decay_list=listed)[0]["params"]}
    assert undecayed(ours) == {name for key, name in kept.items() if key in exempt}

    layers, ids = group_parameters(theirs, theirs.group_matcher(), reverse=True), ours.layer_ids()
    # timm counts the final norm to the last block; ours trains at the full rate, as the head does.
    pairs = {(layers[official[key]], ids[name]) for key, name in kept.items() if ids[name] < ours.num_layers}
    assert sorted(theirs_layer for theirs_layer, _ in pairs) == sorted(layer for _, layer in pairs) == list(range(ours.num_layers))
    assert all(theirs_layer == layer for theirs_layer, layer in pairs)
    assert all(name.startswith("norm.") for name, layer in ids.items() if layer == ours.num_layers)


@pytest.mark.parametrize(
    ("name", "tokens"), [("test_vit", 1), ("test_vit2", 1), ("deit_tiny_distilled_patch16_224", 2), ("test_deit3", 1), ("test_vit4", 1)]
)
def test_other_tokens_stand_before_the_patches(name, tokens):
    model = TimmBackbone(name).eval()
    x = image(1, 3, 40, 50).float()
    embedded, grid = model.embed(x)
    assert grid == (3, 4) and embedded.shape[1] == tokens + 12
    before, patches, after = model.split_tokens(embedded, grid)
    assert (before.shape[1], patches.shape[1], after.shape[1]) == (tokens, 12, 0)
    assert torch.equal(model.join_tokens(before, patches, after), embedded)
    for i in range(len(model.layers)):
        embedded = model.run_layer(i, embedded, grid)
        final = model.to_map(model.final(embedded) if i == len(model.layers) - 1 else embedded, grid)
        assert torch.equal(final, model(x)[i])


@pytest.mark.parametrize("name", ["test_vit", "test_deit3", "deit_tiny_distilled_patch16_224"])
def test_position_embeddings_resize_as_timms(name, monkeypatch):
    """At a grid that is not the trained one, with and without positions of the class token."""
    create, created = timm.create_model, []
    monkeypatch.setattr(timm, "create_model", lambda *names, **options: created.append(create(*names, **options)) or created[-1])
    ours = scramble(TimmBackbone(name)).double()
    (theirs,) = created
    x = image(1, 3, 48, 80)
    agree([ours.embed(x)[0]], [theirs.double()._pos_embed(theirs.patch_embed(x))])
    assert TimmBackbone("test", img_size=(64, 48)).pos_embed.shape == (1, 4 * 3 + 1, 64)


def test_out_norm_and_out_indices():
    model = scramble(TimmBackbone("test_swin", out_norm=True, out_indices=(1,))).double()
    plain = TimmBackbone("test_swin", out_indices=(1,)).double().eval()
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if not name.startswith("out_norms")})
    x = image(1, 3, 32, 32)
    (normed,), (raw,) = model(x), plain(x)
    norm = model.out_norms[0]
    expected = F.layer_norm(raw.permute(0, 2, 3, 1), (32,), norm.weight, norm.bias, norm.eps).permute(0, 3, 1, 2)
    agree([normed], [expected])
    model = TimmBackbone("test_resnet", out_indices=(0, 1))
    model.stages[2].register_forward_hook(lambda *_: pytest.fail("a stage above the last level ran"))
    assert [level.shape[1] for level in model(image(1, 3, 64, 64).float())] == [32, 48]


def test_drop_path_reaches_timm():
    for arch in KINDS:
        model = TimmBackbone(arch, drop_path_rate=0.25)
        assert max(getattr(module, "drop_prob", 0.0) or 0.0 for module in model.modules()) == pytest.approx(0.25), arch


@pytest.mark.parametrize("arch", ["test_swin", "test_convnext", "test_mambaout", "test_resnet", "test_vitamin"])
def test_exports_with_sizes_left_open(arch):
    """One graph for every batch and every image size that is a multiple of 16."""
    model = scramble(TimmBackbone(arch)).double()
    rows, columns = (16 * torch.export.Dim(name, min=2, max=256) for name in ("rows", "columns"))
    sizes = {0: torch.export.Dim("batch"), 2: rows, 3: columns}
    exported = torch.export.export(model, (image(2, 3, 64, 96),), dynamic_shapes=(sizes,), strict=False).module()
    x = image(3, 3, 80, 48)
    agree(exported(x), model(x))


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("deit_tinny", {}, ValueError, r"unknown model_name 'deit_tinny'. Did you mean 'deit_tiny'.*timm's nearest: .*_tiny"),
        ("resnet5", {}, ValueError, r"unknown model_name 'resnet5'.*timm's nearest: resnet"),
        (3, {}, ValueError, "unknown model_name 3"),
        ("vit_base_r26_s32_224", {}, ValueError, "vision transformers over HybridEmbed are not supported"),
        ("mixer_s32_224", {}, ValueError, "expected a vision transformer or a network of stages, got MlpMixer"),
        ("test", dict(in_chans=4), ValueError, "takes no in_chans: use in_channels"),
        ("test", dict(num_classes=4), ValueError, "takes no num_classes: the classifier is taken off"),
        ("test", dict(out_norm=True), ValueError, "out_norm: 'test' has no stages"),
        ("test", dict(patch_drop_rate=0.5), ValueError, "patch_drop_rate: a dense feature map needs all patches"),
        ("test", dict(drop_path_rate=1), ValueError, r"drop_path_rate must lie in \[0, 1\), got 1"),
        ("test", dict(in_channels=0), ValueError, "in_channels must be a positive int"),
        ("test", dict(depht=3), TypeError, "depht"),
        ("test_vitamin", dict(reg_tokens=1), ValueError, "reg_tokens: ViTamin has none"),
        ("vgg11", dict(drop_path_rate=0.1), TypeError, "drop_path_rate"),
    ],
)
def test_bad_arguments_are_named(name, options, error, message):
    with torch.device("meta"), pytest.raises(error, match=message):
        BACKBONES.build(dict(type="linescan.TimmBackbone", model_name=name, **options))


def test_a_name_of_timm_that_is_not_in_the_table():
    model = BACKBONES.build(dict(type="linescan.TimmBackbone", model_name="efficientnet_b0", out_indices=(1, 2)))
    assert (model.out_channels, model.out_strides) == ((40, 112), (8, 16))
    assert [level.shape for level in model.eval()(image(1, 3, 33, 50).float())] == [(1, 40, 5, 7), (1, 112, 3, 4)]
