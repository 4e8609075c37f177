"""Checkpoints: every official key is accounted for, and nothing that does not fit passes in silence."""

import pytest
import torch
from safetensors.torch import save_file

from linescan.backbones import HybridBackbone
from linescan.backbones.checkpoints import CheckpointError, convert, load_checkpoint, read_checkpoint
from linescan.backbones.hybrid import ARCHS
from linescan.backbones.rwkvsam import hybrid_config

CONFIG = dict(arch="test", depth=3, pattern=["bi_wkv", "attention", "mbconv"], pos_embed_size=(4, 6), extra_level=True)


def build(**more: object) -> HybridBackbone:
    torch.manual_seed(0)
    return HybridBackbone(**{**CONFIG, **more})


# Ours -> official, written out by hand from the published layout, against the key map's rules.
OFFICIAL = {
    "pos_embed": "pos_embed",
    "stem.conv1.weight": "stem.conv1.weight",
    "stem.norm.bias": "stem.norm1.bias",
    "stages.1.0.shortcut.weight": "conv_stages.1.0.shortcut.expand.weight",
    "stages.0.0.norm.weight": "conv_stages.0.0.pre_norm.weight",
    "stages.0.0.branch.expand.weight": "conv_stages.0.0.conv1_1x1.weight",
    "stages.0.0.branch.depthwise.bias": "conv_stages.0.0.conv2_kxk.bias",
    "stages.1.0.branch.project.weight": "conv_stages.1.0.conv3_1x1.weight",
    "reduction.norm.weight": "conv_final_pool.norm.weight",
    "reduction.proj.weight": "conv_final_pool.proj.weight",
    "layers.0.scale1": "layers.0.layer_scale_1",
    "layers.0.norm2.bias": "layers.0.norm2.bias",
    "layers.0.token.decay": "layers.0.attn.spatial_decay",
    "layers.0.token.first": "layers.0.attn.spatial_first",
    "layers.0.token.mix_v": "layers.0.attn.spatial_mix_v",
    "layers.0.token.receptance.weight": "layers.0.attn.receptance.weight",
    "layers.0.channel.mix_r": "layers.0.mlp.spatial_mix_r",
    "layers.0.channel.key.weight": "layers.0.mlp.key.weight",
    "layers.1.norm1.weight": "layers.1.ln1.weight",
    "layers.1.token.qkv.bias": "layers.1.attn.qkv.bias",
    "layers.1.token.proj.weight": "layers.1.attn.proj.weight",
    "layers.1.channel.gate.weight": "layers.1.ffn.w0.weight",
    "layers.1.channel.up.weight": "layers.1.ffn.w1.weight",
    "layers.1.channel.down.bias": "layers.1.ffn.w2.bias",
    "layers.2.norm2.weight": "layers.2.pre_norm.weight",
    "layers.2.channel.branch.expand.weight": "layers.2.conv1_1x1.weight",
    "layers.2.channel.branch.depthwise.weight": "layers.2.conv2_kxk.weight",
    "layers.2.channel.branch.project.bias": "layers.2.conv3_1x1.bias",
    "final_norm.weight": "final_norm.weight",
    "extra.shortcut.weight": "final_layer.shortcut.expand.weight",
    "extra.branch.expand.bias": "final_layer.conv1_1x1.bias",
    "extra.norm.bias": "final_layer.pre_norm.bias",
}


def test_official_names_reach_the_right_parameters():
    model = build()
    targets = model.state_dict()
    official = {theirs: torch.randn(targets[ours].shape) for ours, theirs in OFFICIAL.items()}
    official["layers.0.attn.spatial_mix_v"] = torch.randn(1, 1, 64)
    official["pos_embed"] = torch.randn(1, 24, 64)
    converted, report = convert(official, model, family="rwkvsam")
    assert report.mapped == {theirs: ours for ours, theirs in OFFICIAL.items()}
    assert not report.unexpected and not report.mismatched and not report.resized
    assert set(report.missing) == set(targets) - set(OFFICIAL)
    for ours, theirs in OFFICIAL.items():
        if ours == "pos_embed":
            assert torch.equal(converted[ours].flatten(2).transpose(1, 2), official[theirs])
        else:
            assert torch.equal(converted[ours], official[theirs].reshape(targets[ours].shape))


def test_round_trip_through_files(tmp_path):
    model, twin = build(), build()
    torch.save(
        {"state_dict": {f"module.backbone.{k}": v for k, v in model.state_dict().items()} | {"decode_head.w": torch.ones(1)}},
        tmp_path / "a.pth",
    )
    torch.nn.init.zeros_(twin.pos_embed)
    report = load_checkpoint(twin, tmp_path / "a.pth")
    assert report.dropped == ["decode_head.w"] and len(report.mapped) == len(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "b.safetensors")
    torch.nn.init.zeros_(twin.pos_embed)
    load_checkpoint(twin, tmp_path / "b.safetensors")
    assert torch.equal(twin.pos_embed, model.pos_embed)


def test_what_does_not_fit_is_listed_and_nothing_is_loaded():
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = {name: value + 1 for name, value in before.items()}
    del state["final_norm.weight"]
    state["final_norm.gain"] = torch.ones(64)
    state["stem.conv1.bias"] = torch.ones(17)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, state)
    text = str(caught.value)
    assert "missing: final_norm.weight" in text and "unexpected: final_norm.gain" in text
    assert "stem.conv1.bias has shape (17,)" in text and "needs (16,)" in text
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    state["stem.conv1.bias"] = torch.ones(16)
    report = load_checkpoint(model, state, allow_missing=["final_norm.weight"], allow_unexpected=["final_norm.gain"])
    assert report.missing == ["final_norm.weight"] and report.dropped == ["final_norm.gain"]
    assert torch.equal(model.final_norm.weight, before["final_norm.weight"]) and torch.equal(
        model.stem.conv1.weight, before["stem.conv1.weight"] + 1
    )


def test_position_embeddings_are_resized_and_reported():
    model = build()
    state = build(pos_embed_size=(2, 3)).state_dict()
    report = load_checkpoint(model, state)
    assert report.resized == {"pos_embed": "pos_embed"}
    expected = torch.nn.functional.interpolate(state["pos_embed"], (4, 6), mode="bicubic", align_corners=False)
    assert torch.equal(model.pos_embed, expected)


def test_official_position_embeddings_are_square_unless_told():
    model = build()
    tokens = torch.randn(1, 9, 64)
    converted, report = convert({"pos_embed": tokens}, model, family="rwkvsam")
    expected = torch.nn.functional.interpolate(tokens.transpose(1, 2).reshape(1, 64, 3, 3), (4, 6), mode="bicubic")
    assert torch.equal(converted["pos_embed"], expected) and report.resized
    told, _ = convert({"pos_embed": tokens}, model, family="rwkvsam", source_grid=(1, 9))
    assert not torch.equal(told["pos_embed"], expected)
    _, report = convert({"pos_embed": torch.randn(1, 10, 64)}, model, family="rwkvsam")
    assert "pos_embed" in report.mismatched


def test_pretrained_init_cfg_is_strict(tmp_path):
    source = build()
    torch.nn.init.normal_(source.final_norm.weight)
    torch.save(source.state_dict(), tmp_path / "good.pth")
    model = build(init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "good.pth")))
    assert not torch.equal(model.final_norm.weight, source.final_norm.weight)
    model.init_weights()
    assert torch.equal(model.final_norm.weight, source.final_norm.weight)
    short = build(depth=2, pattern=["bi_wkv", "attention"], init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "good.pth")))
    with pytest.raises(CheckpointError, match=r"good\.pth.*(?s:.*)unexpected: layers\.2\.norm2\.weight"):
        short.init_weights()


class Evil:
    def __reduce__(self):
        return (print, ("code from a checkpoint ran",))


def test_unreadable_files_are_named(tmp_path, capfd):
    with pytest.raises(CheckpointError, match=r"absent\.pth: no such file"):
        read_checkpoint(tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match=r"text\.pth cannot be read"):
        read_checkpoint(tmp_path / "text.pth")
    (tmp_path / "text.safetensors").write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match=r"text\.safetensors cannot be read"):
        read_checkpoint(tmp_path / "text.safetensors")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        read_checkpoint(tmp_path / "list.pth")
    torch.save({"state_dict": {}, "evil": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil\.pth cannot be read"):
        read_checkpoint(tmp_path / "evil.pth")
    assert "code from a checkpoint ran" not in "".join(capfd.readouterr())


def test_unknown_family():
    with pytest.raises(ValueError, match=r"unknown checkpoint family 'rwkv-sam'.*'rwkvsam'"):
        convert({}, build(), family="rwkv-sam")


def test_hybrid_config_translates_the_official_arguments():
    assert hybrid_config(model_variant="small", attn_type="rwkv", attn_cfg=dict(mlp_ratio=2), with_pos_embd=False) == dict(
        arch="small",
        mixer="bi_wkv",
        pattern=None,
        depth=14,
        mlp_ratio=2,
        num_heads=None,
        drop_path_rate=0.0,
        pos_embed_size=None,
        extra_level=False,
    )
    mixed = hybrid_config(model_variant="tiny", attn_type="mbconv_rwkv", img_size=(512, 1024), additional_final_layers=True)
    assert (mixed["mixer"], mixed["pattern"], mixed["pos_embed_size"], mixed["extra_level"]) == (
        "mbconv",
        {"bi_wkv": (2, 5, 8, 11)},
        (32, 64),
        True,
    )
    short = hybrid_config(model_variant="large", attn_type="rwkv_trans", attn_cfg=dict(depth=7, drop_path=0.1), img_size=224)
    with torch.device("meta"):
        model = HybridBackbone(**short)
    assert short["pattern"] == {"attention": (2, 5)} and model.pos_embed.shape == (1, 1024, 14, 14)
    for attn_type in ("transformer", "rwkv", "rwkv_trans", "mbconv_rwkv", "rwkv_mbconv"):
        with torch.device("meta"):
            HybridBackbone(**hybrid_config(model_variant="large", attn_type=attn_type))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(model_variant="test", attn_type="rwkv"), "unknown model_variant 'test'"),
        (dict(model_variant="tiny", attn_type="rwkv_transformer"), "unknown attn_type 'rwkv_transformer'"),
        (dict(model_variant="tiny", attn_type="rwkv", attn_cfg=dict(mlp_rato=2)), "unknown key of attn_cfg 'mlp_rato'.*'mlp_ratio'"),
    ],
)
def test_hybrid_config_refuses_what_it_does_not_know(arguments, message):
    with pytest.raises(ValueError, match=message):
        hybrid_config(**arguments)


def official_layout(dims: tuple[int, int, int], stem: int, kinds: list[str], ratio: int, tokens: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter of the official VITAMINBackbone, written out from the published layout."""
    shapes: dict[str, tuple[int, ...]] = {"pos_embed": (1, tokens, dims[2])}

    def add(name: str, *shape: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = shape[:1]

    def mbconv(name: str, i: int, o: int, hidden: int) -> None:
        add(f"{name}.pre_norm", i)
        for part, shape in (("conv1_1x1", (hidden, i, 1, 1)), ("conv2_kxk", (hidden, 1, 3, 3)), ("conv3_1x1", (o, hidden, 1, 1))):
            add(f"{name}.{part}", *shape)

    add("stem.conv1", stem, 3, 3, 3)
    add("stem.norm1", stem)
    add("stem.conv2", stem, stem, 3, 3)
    for stage, (before, width, blocks) in enumerate(((stem, dims[0], 2), (dims[0], dims[1], 4))):
        for block in range(blocks):
            i = before if block == 0 else width
            mbconv(f"conv_stages.{stage}.{block}", i, width, 4 * width)
            if i != width:
                add(f"conv_stages.{stage}.{block}.shortcut.expand", width, i, 1, 1)
    add("conv_final_pool.norm", dims[1])
    add("conv_final_pool.proj", dims[2], dims[1], 3, 3)
    c, hidden = dims[2], ratio * dims[2]
    for i, kind in enumerate(kinds):
        layer = f"layers.{i}"
        if kind == "mbconv":
            mbconv(layer, c, c, hidden)
            continue
        if kind == "bi_wkv":
            vectors = ("layer_scale_1", "layer_scale_2", "attn.spatial_decay", "attn.spatial_first")
            mixes = ("attn.spatial_mix_k", "attn.spatial_mix_v", "attn.spatial_mix_r", "mlp.spatial_mix_k", "mlp.spatial_mix_r")
            shapes.update({f"{layer}.{name}": (c,) for name in vectors} | {f"{layer}.{name}": (1, 1, c) for name in mixes})
            linears = [(f"attn.{name}", c, c) for name in ("key", "value", "receptance", "output")]
            linears += [("mlp.key", hidden, c), ("mlp.receptance", c, c), ("mlp.value", c, hidden)]
        else:
            linears = [("attn.qkv", 3 * c, c), ("attn.proj", c, c), ("ffn.w0", hidden, c), ("ffn.w1", hidden, c), ("ffn.w2", c, hidden)]
        for name, *shape in linears:
            add(f"{layer}.{name}", *shape, bias=kind == "attention")
        for n in "12":
            add(f"{layer}.{'norm' if kind == 'bi_wkv' else 'ln'}{n}", c)
    add("final_norm", c)
    mbconv("final_layer", c, 2 * c, 8 * c)
    add("final_layer.shortcut.expand", 2 * c, c, 1, 1)
    return shapes


@pytest.mark.parametrize("arch", [name for name in ARCHS if name != "test"])
@pytest.mark.parametrize("attn_type", ["transformer", "rwkv", "rwkv_trans", "mbconv_rwkv", "rwkv_mbconv"])
def test_every_official_key_has_its_place_at_the_published_sizes(arch, attn_type):
    options = dict(mlp_ratio=2, num_heads=8)
    config = hybrid_config(model_variant=arch, attn_type=attn_type, attn_cfg=options, img_size=224, additional_final_layers=True)
    replaced = {i: name for name, layers in (config["pattern"] or {}).items() for i in layers}
    kinds = [replaced.get(i, config["mixer"]) for i in range(14)]
    with torch.device("meta"):
        model = HybridBackbone(**config)
        shapes = official_layout(ARCHS[arch]["dims"], ARCHS[arch]["stem_width"], kinds, ratio=2, tokens=196)
        official = {name: torch.empty(shape) for name, shape in shapes.items()}
    converted, report = convert(official, model, family="rwkvsam")
    assert not report.missing and not report.unexpected and not report.mismatched and not report.resized, str(report)
    assert {name: tensor.shape for name, tensor in converted.items()} == {name: tensor.shape for name, tensor in model.state_dict().items()}
