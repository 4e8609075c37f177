"""Baselines: every model is held against the transformer that the rules name, and its parts still fit when one is exchanged."""

import math
import pickle

import pytest
import torch
from torch import nn

from linescan.backbones import BACKBONES, HybridBackbone
from linescan.engine import ConfigError
from linescan.profiling import baselines
from linescan.profiling.baselines import TWIN_REASON, choose_baseline, controls
from linescan.profiling.subjects import Subject, build, resolve

HEAD = dict(type="SegformerHead", channels=8, num_classes=5, norm_cfg=dict(type="BN"))


class Maps(nn.Module):
    """Maps of the given strides and one width; keeps the contract."""

    def __init__(self, arch: str = "one", strides: tuple = (4, 8, 16, 32), width: int = 8, in_channels: int = 3) -> None:
        super().__init__()
        self.out_strides, self.out_channels = tuple(strides), (width,) * len(strides)
        self.convs = nn.ModuleList(nn.Conv2d(in_channels, width, 1, stride=s) for s in strides)

    def forward(self, x: torch.Tensor) -> tuple:
        return tuple(conv(x) for conv in self.convs)


@pytest.fixture
def register(monkeypatch):
    """Registrations of one test are taken back, and so is what was measured of them."""
    before = dict(BACKBONES._module_dict)
    monkeypatch.setattr(baselines, "_SCALES", dict(baselines._SCALES))
    yield BACKBONES.register_module
    BACKBONES._module_dict.clear()
    BACKBONES._module_dict.update(before)


def segmentor(backbone: dict, *, kind: str = "PyramidEncoderDecoder", in_index: tuple = (0, 1, 2, 3), **changes) -> Subject:
    """As a config file gives it."""
    resolve("vim:test")  # registers the backbones
    config = dict(type=kind, backbone=backbone, decode_head={**HEAD, "in_index": list(in_index)}, train_cfg={}, test_cfg=dict(mode="whole"))
    config = {**config, **changes}
    return Subject("net_head", config, imports=("linescan.backbones", "linescan.segmentation"), scope="mmseg", source="configs/net_head.py")


def parameters(name: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in BACKBONES.build(BACKBONES.named_config(name)).parameters())


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("hybrid:test:bi_wkv", dict(mlp_ratio=2, extra_level=True), "hybrid:test:attention"),
        ("hybrid:test", {}, "hybrid:test:attention"),
        ("hybrid:test:none", {}, "hybrid:test:attention"),
        ("hybrid:test:attention", dict(pattern=dict(bi_wkv=(1,))), "hybrid:test:attention, mixer=attention"),
        ("hybrid:test:attention", {}, None),
        ("timm:deit_small", {}, None),
        ("timm:swin_base_patch4_window7_224.ms_in1k", {}, None),
        ("vim:tiny", {}, "timm:deit_tiny"),
        ("vrwkv:small", {}, "timm:deit_small"),
        ("vrwkv6:base", {}, "timm:deit_base"),
        ("vrwkv:large", {}, "timm:deit_base"),
        ("vmamba:tiny", {}, "timm:swin_tiny"),
        ("vmamba:tiny:ss2d", {}, "timm:swin_tiny"),
        ("vssd:base", {}, "timm:swin_base"),
        ("vitadapter:tiny", {}, "timm:swin_micro"),
        ("timm:convnext_small", {}, "timm:swin_small"),
        ("timm:vitamin_small", {}, "timm:swin_tiny"),
        ("timm:resnet50", {}, "timm:swin_tiny"),
    ],
)
def test_whom_a_backbone_is_held_against(name, options, expected):
    subject = resolve(name, options=options)
    found = choose_baseline(subject)
    assert (found and found.name) == expected
    if found is not None:
        assert (found.role, found.of, found.source) == ("baseline", (name,), expected) and found.reason
        assert pickle.loads(pickle.dumps(found)) == found


def test_an_attention_twin_is_the_same_network_with_another_mixer():
    subject = resolve("hybrid:test:bi_wkv", options=dict(mlp_ratio=2, extra_level=True, pattern=dict(ssd=(1, 2))))
    twin = choose_baseline(subject)
    assert twin.reason == TWIN_REASON and twin.options == subject.options
    assert twin.config == dict(type="linescan.HybridBackbone", arch="test", mixer="attention", mlp_ratio=2, extra_level=True)
    ours, theirs = build(subject), build(twin)
    assert ours.out_channels == theirs.out_channels and ours.out_strides == theirs.out_strides
    own, other = ({n: p.shape for n, p in m.named_parameters() if not n.startswith("layers")} for m in (ours, theirs))
    assert own == other
    assert {type(layer.token).__name__ for layer in theirs.layers} == {"Attention"}


def test_a_name_of_the_users_own_is_kept():
    assert choose_baseline(resolve("hybrid:test:bi_wkv", name="mine")).name == "mine, mixer=attention"
    assert choose_baseline(resolve(dict(type="linescan.HybridBackbone", arch=dict(stem_width=8, dims=(8, 8, 8), num_heads=2)))).name == (
        "linescan.HybridBackbone, mixer=attention"
    )


def test_the_nearest_is_nearest_and_says_how_near():
    """Against a search of its own over the built networks."""
    subject = resolve("vssd:micro")
    sizes = {name: parameters(f"timm:{name}") for name in ("swin_micro", "swin_tiny", "swin_small", "swin_base")}
    own = parameters("vssd:micro")
    nearest = min(sizes, key=lambda name: abs(math.log(sizes[name] / own)))
    found = choose_baseline(subject)
    assert found.name == f"timm:{nearest}"
    assert found.reason == (
        "nearest in parameters of 4 registered transformers with maps at the same strides: "
        f"{sizes[nearest] / 1e6:.3g} M against {own / 1e6:.3g} M"
    )


def test_the_ratio_decides_not_the_difference(register):
    """Of 1000 and 9000 parameters 3500 is nearer to 9000 by ratio, nearer to 1000 by difference."""

    @register(name="SizedNet")
    class SizedNet(Maps):
        TRANSFORMERS = ("low", "high")

        def __init__(self, arch: str = "own") -> None:
            super().__init__(strides=(64,))
            self.weight = nn.Parameter(torch.zeros({"low": 1000, "own": 3500, "high": 9000}[arch] - 32))

    assert choose_baseline(resolve("sizednet:own")).name == "sizednet:high"
    assert (
        "of 2 registered transformers with maps at the same strides: 0.009 M against 0.0035 M"
        in choose_baseline(resolve("sizednet:own")).reason
    )


def test_of_equals_the_first_registered_one_is_taken(register):
    class Two(Maps):
        TRANSFORMERS = ("second", "first")

        def __init__(self, arch: str = "x") -> None:
            super().__init__(strides=(64,), width=1000 + (arch == "first"))

    register(name="Two")(Two)
    assert choose_baseline(resolve("two:own")).name == "two:second"


def test_what_every_backbone_takes_is_carried_over():
    subject = resolve("vim:test", options=dict(in_channels=4, drop_path_rate=0.1, out_indices=(0, 1), frozen_stages=1, img_size=64))
    found = choose_baseline(subject)
    # The first two layers of three stand for the 4th and 8th of twelve.
    carried = dict(in_channels=4, drop_path_rate=0.1, out_indices=(3, 7))
    assert found.config == dict(type="linescan.TimmBackbone", model_name="deit_tiny", **carried) and found.options == carried
    assert [m.shape[2:] for m in build(found)(torch.zeros(1, 4, 32, 48))] == [(2, 3), (2, 3)]


def test_a_module_is_compared_by_its_own_parameters():
    pyramid, plain = Maps(width=4000), nn.Linear(2000, 5000)
    assert choose_baseline(resolve(pyramid)).name == "timm:swin_micro"
    found = choose_baseline(resolve(plain))
    assert found.name == "timm:swin_micro" and found.of == ("Linear",) and found.module is None
    assert found.reason == "nearest in parameters of 10 registered transformers: 6.02 M against 10 M"
    assert build(found).out_strides == (4, 8, 16, 32)


def test_strangers_are_compared_and_compared_with(register):
    register(name="ThinNet")(type("ThinNet", (Maps,), {}))
    assert choose_baseline(resolve("thinnet:one")).name == "timm:swin_micro"
    assert choose_baseline(resolve("thinnet:one", options=dict(strides=(4, 8)))).name == "timm:swin_micro"
    assert "of 10 registered transformers:" in choose_baseline(resolve("thinnet:one", options=dict(strides=(2, 4)))).reason
    register(name="AttentiveNet")(type("AttentiveNet", (Maps,), {"TRANSFORMERS": ("one",)}))
    assert choose_baseline(resolve("thinnet:one", options=dict(width=64))).name == "attentivenet:one"
    assert choose_baseline(resolve("attentivenet:one")) is None
    assert choose_baseline(resolve("attentivenet:two")).name == "attentivenet:one"


def test_a_hybrid_of_a_stranger_has_a_twin(register):
    @register()
    class MixedNet(Maps):
        MIXERS = ("attention", "shift", "none")

        def __init__(self, arch: str = "one", mixer: str = "shift", depth: int = 1) -> None:
            super().__init__()
            self.mixer = mixer

    subject = resolve("mixednet:one", options=dict(depth=3))
    assert choose_baseline(subject).config == dict(type="linescan.MixedNet", arch="one", depth=3, mixer="attention")
    assert [control.name for control in controls(subject)] == ["mixednet:one:none"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hybrid:test:bi_wkv", ["hybrid:test:gated_conv", "hybrid:test:none"]),
        ("hybrid:test:attention", ["hybrid:test:gated_conv", "hybrid:test:none"]),
        ("hybrid:test:none", ["hybrid:test:gated_conv"]),
        ("vmamba:test", []),
        ("timm:deit_tiny", []),
    ],
)
def test_controls(name, expected):
    found = controls(resolve(name))
    assert [control.name for control in found] == expected
    assert all(control.role == "control" and control.of == (name,) and control.reason.startswith("control: ") for control in found)


def test_other_models_have_no_controls():
    assert controls(resolve(nn.Linear(1, 1))) == []
    assert controls(segmentor(dict(type="ResNet", depth=18), kind="EncoderDecoder")) == []


def test_a_config_keeps_everything_but_the_mixer():
    subject = segmentor(dict(type="linescan.HybridBackbone", arch="test", mixer="bi_wkv", mlp_ratio=2))
    found = choose_baseline(subject)
    assert found.name == "net_head, mixer=attention" and found.reason == TWIN_REASON and found.source == "configs/net_head.py"
    assert found.config == {**subject.config, "backbone": {**subject.config["backbone"], "mixer": "attention"}}
    assert (found.scope, found.imports) == (subject.scope, subject.imports)
    assert [control.name for control in controls(subject)] == ["net_head, mixer=gated_conv", "net_head, mixer=none"]
    assert build(found).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 5, 16, 16)
    assert choose_baseline(segmentor(dict(type="linescan.HybridBackbone", arch="test", mixer="attention"))) is None
    assert choose_baseline(segmentor(dict(type="linescan.TimmBackbone", model_name="swin_tiny"))) is None


def test_a_config_beside_it_that_is_the_twin_goes_by_its_own_name(repo_root):
    """So that its accuracy is found, and it is not measured twice where it is asked for, too."""
    folder, rest = repo_root / "configs/hybrid", "-tiny_segformer_1xb8-500_camvid-180x240"
    path = folder / f"hybrid-bi-wkv{rest}.py"
    found = choose_baseline(resolve(path))
    asked = resolve(folder / f"hybrid-attention{rest}.py")
    assert (found.name, found.source, found.config) == (asked.name, asked.source, asked.config)
    assert (found.role, found.of, found.reason) == ("baseline", (path.stem,), TWIN_REASON)
    assert [c.name for c in controls(asked)] == [f"hybrid-gated-conv{rest}", f"hybrid-none{rest}"]
    # Options that change both alike leave them twins; another name, or another model beside, does not.
    assert choose_baseline(resolve(path, options={"model.backbone.arch": "test"})).name == asked.name
    assert choose_baseline(resolve(path, name="mine")).name == "mine, mixer=attention"


def test_a_config_beside_it_that_is_another_model_is_none(tmp_path):
    text = (
        'custom_imports = dict(imports=["linescan.classification"])\ndefault_scope = "mmengine"\nmodel = dict(type="ImageClassifier", {})'
    )
    backbone = 'num_classes={}, backbone=dict(type="linescan.HybridBackbone", arch="test", mixer="{}")'
    for mixer, classes in (("bi_wkv", 3), ("attention", 4), ("none", 3)):
        (tmp_path / f"net-{mixer.replace('_', '-')}-x.py").write_text(text.format(backbone.format(classes, mixer)))
    (tmp_path / "net-gated-conv-x.py").write_text("model = dict(")
    subject = resolve(tmp_path / "net-bi-wkv-x.py")
    assert choose_baseline(subject).name == "net-bi-wkv-x, mixer=attention"
    assert [c.name for c in controls(subject)] == ["net-bi-wkv-x, mixer=gated_conv", "net-none-x"]


@pytest.mark.parametrize(
    ("backbone", "changes", "name", "levels"),
    [
        (dict(type="linescan.VMamba", arch="test", drop_path_rate=0.2), {}, "swin_micro", (0, 1, 2, 3)),
        (dict(type="linescan.VSSD", arch="test", out_indices=(1, 2, 3)), dict(in_index=(0, 1, 2)), "swin_micro", (1, 2, 3)),
        (dict(type="linescan.Vim", arch="tiny", out_indices=(5, 11, 17, 23)), {}, "deit_tiny", (2, 5, 8, 11)),
        (dict(type="linescan.VRWKV", arch="tiny"), dict(in_index=(0, 11)), "deit_tiny", tuple(range(12))),
        (dict(type="linescan.VRWKV6", arch="test", out_indices=(1,)), dict(in_index=(0,)), "deit_tiny", (11,)),
    ],
)
def test_a_config_gets_the_transformer_that_gives_as_many_maps(backbone, changes, name, levels):
    subject = segmentor(backbone, **changes)
    found = choose_baseline(subject)
    assert found.name == f"net_head, backbone=timm:{name}" and found.options == subject.options
    kept = {key: backbone[key] for key in ("drop_path_rate",) if key in backbone}
    assert found.config["backbone"] == dict(type="linescan.TimmBackbone", model_name=name, out_indices=levels, **kept)
    assert found.config["decode_head"] == subject.config["decode_head"]
    before, after = (build(s).eval()(torch.zeros(1, 3, 64, 96)).shape for s in (subject, found))
    assert before == after


def test_necks_and_auxiliary_heads_come_along():
    auxiliary = dict(type="FCNHead", in_index=2, channels=8, num_convs=1, num_classes=5, norm_cfg=dict(type="SyncBN"))
    subject = segmentor(
        dict(type="linescan.Vim", arch="test", out_indices=(1,)),
        neck=[dict(type="SimpleFeaturePyramid", norm_cfg=dict(type="SyncBN")), dict(type="FPN", out_channels=8, num_outs=4)],
        auxiliary_head=auxiliary,
    )
    model = build(choose_baseline(subject)).eval()
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 5, 16, 16) and model.auxiliary_head.in_channels == 8


@pytest.mark.parametrize(
    ("backbone", "pool"),
    [
        (dict(type="linescan.VMamba", arch="test", out_indices=(3,)), "mean"),
        (dict(type="linescan.Vim", arch="test", out_indices=(1,)), "mean"),
        (dict(type="linescan.Vim", arch="test", out_indices=(1,)), "class_token"),
    ],
)
def test_classifiers(backbone, pool):
    resolve("vim:test")  # registers the backbones
    subject = Subject(
        "classifier",
        dict(type="ImageClassifier", num_classes=4, pool=pool, backbone=backbone),
        imports=("linescan.backbones", "linescan.classification"),
        scope="mmengine",
    )
    found = choose_baseline(subject)
    assert found.name.startswith("classifier, backbone=timm:")
    assert build(found).eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 4)


def test_a_segmentor_that_fixes_its_channels_takes_the_twin(register):
    fixed = {**HEAD, "in_index": [0, 1, 2, 3], "in_channels": [16, 32, 64, 64]}
    hybrid = segmentor(dict(type="linescan.HybridBackbone", arch="test", mixer="ssd"), kind="EncoderDecoder", decode_head=fixed)
    assert build(choose_baseline(hybrid)).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 5, 16, 16)


FIXED = {**HEAD, "in_index": [0, 1, 2, 3], "in_channels": [8, 16, 24, 32]}
REFUSED = [
    (dict(type="ResNet", depth=18), dict(kind="EncoderDecoder"), "its backbone is none of linescan's.* name a baseline instead"),
    (
        dict(type="linescan.VMamba", arch="test"),
        dict(kind="EncoderDecoder", decode_head=FIXED),
        "neck and heads do not fit timm:swin_micro .*A PyramidEncoderDecoder takes their in_channels.* name a baseline instead",
    ),
    (
        dict(type="linescan.VMamba", arch="test"),
        dict(decode_head=FIXED),
        r"do not fit timm:swin_micro in the place of the backbone .*in_channels=\[8, 16, 24, 32\]",
    ),
    (
        dict(type="linescan.Vim", arch="tiny"),
        dict(in_index=(0, 23)),
        r"no registered transformer has maps like the backbone's \(24 of its levels at strides \[16\]\)",
    ),
    (
        dict(type="linescan.TimmBackbone", model_name="test_vitamin"),
        {},
        r"no registered .*\(4 of its levels at strides \[4, 8, 16\]\)",
    ),
]


@pytest.mark.parametrize(("backbone", "changes", "message"), REFUSED)
def test_a_config_that_takes_no_transformer_says_why(backbone, changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        choose_baseline(segmentor(backbone, **changes))
    assert str(caught.value).startswith("net_head: ") and "\n" not in str(caught.value)


def test_a_network_of_mmsegmentation_alone_has_no_baseline_by_itself():
    with pytest.raises(ConfigError, match=r"mmseg\.ResNet: its backbone is none of linescan's"):
        choose_baseline(resolve(dict(type="mmseg.ResNet", depth=18)))


def test_networks_are_measured_once_in_a_process(monkeypatch):
    choose_baseline(resolve("vim:tiny"))
    monkeypatch.setattr(baselines, "skeleton", lambda subject: pytest.fail(f"built again: {subject.config}"))
    assert choose_baseline(resolve("vim:tiny")).name == "timm:deit_tiny"


def test_a_mixer_class_is_no_twin_of_another_network():
    assert HybridBackbone.MIXERS is not None and choose_baseline(resolve("vmamba:test:ssd")).name == "timm:swin_micro"
