"""Names of backbones on a command line, and what the registry tells about a backbone: architectures, mixers, transformers, twins."""

import pytest
import torch
from torch import nn

from linescan.backbones import BACKBONES, MIXERS, HybridBackbone, list_backbones


class Level(nn.Module):
    """One convolution of stride 4: keeps the contract, knows nothing of linescan."""

    def __init__(self, width: int = 4, **kwargs: object) -> None:
        super().__init__()
        self.out_channels, self.out_strides = (width,), (4,)
        self.conv = nn.Conv2d(3, width, 3, stride=4, padding=1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.conv(x),)


@pytest.fixture
def register():
    """Register in BACKBONES for one test."""
    before = dict(BACKBONES._module_dict)
    yield BACKBONES.register_module
    BACKBONES._module_dict.clear()
    BACKBONES._module_dict.update(before)


@pytest.fixture
def strangers(register):
    @register()
    class WideNet(Level):
        pass

    @register()
    class PatchyBackbone(Level):
        ARCHS = ("small", "large")
        MIXERS = ("attention", "shift")
        TRANSFORMERS = ("small",)

        def __init__(self, arch: str, mixer: str = "shift", *, depth: int = 1) -> None:
            super().__init__()

    @register()
    def MadeBackbone(arch: str = "one", **rest: object) -> Level:
        return Level()

    MadeBackbone.TRANSFORMERS = ("one", "two")


def test_every_registered_backbone_has_a_family():
    assert sorted(BACKBONES.families().values()) == list_backbones() and BACKBONES.families()["hybrid"] == "HybridBackbone"


def test_families_of_one_short_name_stay_apart(register):
    for name in ("Same", "SameBackbone", "SAME"):
        register(name=name)(type(name, (Level,), {}))
    families = BACKBONES.families()
    assert {families[key] for key in families if key.lower().startswith("same")} == {"Same", "SameBackbone", "SAME"}


@pytest.mark.parametrize(
    ("name", "options", "config"),
    [
        ("hybrid:small:bi_wkv", {}, dict(type="linescan.HybridBackbone", arch="small", mixer="bi_wkv")),
        ("hybrid:tiny", dict(mlp_ratio=2), dict(type="linescan.HybridBackbone", arch="tiny", mlp_ratio=2)),
        ("vmamba:tiny:ssd", dict(with_cp=True), dict(type="linescan.VMamba", arch="tiny", mixer="ssd", with_cp=True)),
        (
            "timm:swin_tiny_patch4_window7_224",
            dict(window_size=8),
            dict(type="linescan.TimmBackbone", model_name="swin_tiny_patch4_window7_224", window_size=8),
        ),
        ("widenet", dict(width=8), dict(type="linescan.WideNet", width=8)),
        ("patchy:large", {}, dict(type="linescan.PatchyBackbone", arch="large")),
        ("patchy:large:attention", dict(depth=2), dict(type="linescan.PatchyBackbone", arch="large", mixer="attention", depth=2)),
        ("made:three", dict(anything=1), dict(type="linescan.MadeBackbone", arch="three", anything=1)),
    ],
)
def test_names_become_configs_and_back(strangers, name, options, config):
    assert BACKBONES.named_config(name, options) == config
    # Where a mixer has a default, the name of a config tells it.
    assert BACKBONES.name_of(config) == {"hybrid:tiny": "hybrid:tiny:bi_wkv", "patchy:large": "patchy:large:shift"}.get(name, name)


def test_built_by_name():
    assert len(BACKBONES.build(BACKBONES.named_config("hybrid:test:none")).layers) == 4


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hybird:small", {}, "unknown family of backbones 'hybird'.*'hybrid'"),
        ("", {}, "unknown family of backbones ''"),
        ("hybrid", {}, r"named hybrid:arch\[:mixer\], got 'hybrid'"),
        ("hybrid:", {}, "named hybrid:arch"),
        ("hybrid:small:bi_wkv:more", {}, "named hybrid:arch"),
        ("timm", {}, "named timm:model_name, got 'timm'"),
        ("vim:tiny:bi_wkv", {}, "named vim:arch, got"),
        ("widenet:8", {}, "named widenet, got 'widenet:8'"),
        ("hybrid:small:bi_wkw", {}, "unknown mixer 'bi_wkw'. Did you mean 'bi_wkv'"),
        ("vmamba:tiny:attention", {}, "unknown mixer 'attention'.*Known: ss2d, ssd"),
        ("patchy:large:shaft", {}, "unknown mixer 'shaft'. Did you mean 'shift'"),
        ("hybrid:small", dict(mlp_ration=2), "unknown argument of HybridBackbone 'mlp_ration'. Did you mean 'mlp_ratio'"),
        ("vrwkv:tiny", dict(with_pc=True), "unknown argument of VRWKV 'with_pc'. Did you mean 'with_cp'"),
    ],
)
def test_other_names_are_refused(strangers, name, options, message):
    with pytest.raises(ValueError, match=message):
        BACKBONES.named_config(name, options)


@pytest.mark.parametrize(
    "config",
    [
        dict(type="ResNet", depth=50),
        dict(type="mmseg.ResNet"),
        dict(type="linescan.Nobody"),
        dict(),
        dict(type="linescan.Vim", arch=dict(dim=32)),
        dict(type="linescan.HybridBackbone", arch="tiny", mixer=dict(type="ss2d", d_state=4)),
    ],
)
def test_configs_without_a_name(config):
    assert BACKBONES.name_of(config) is None and not BACKBONES.is_transformer(config)


def test_a_class_as_type_has_a_name():
    assert BACKBONES.name_of(dict(type=HybridBackbone, arch="base", mixer="ssd")) == "hybrid:base:ssd"


def test_what_backbones_tell(strangers):
    assert set(BACKBONES.mixers("HybridBackbone")) == set(MIXERS) and BACKBONES.mixers("VMamba") == ["ss2d", "ssd"]
    assert (
        BACKBONES.mixers("VSSD") == []
        and BACKBONES.mixers("WideNet") == []
        and BACKBONES.mixers("PatchyBackbone") == ["attention", "shift"]
    )
    assert "large" in BACKBONES.archs("VRWKV") and "swin_tiny" in BACKBONES.archs("TimmBackbone")
    assert BACKBONES.archs("PatchyBackbone") == ["small", "large"] and BACKBONES.archs("WideNet") == []
    assert BACKBONES.takes("Vim", "drop_path_rate") and BACKBONES.takes("Vim", "in_channels") and not BACKBONES.takes("Vim", "mixer")
    assert not BACKBONES.takes("MadeBackbone", "in_channels")


def test_transformers_are_listed_those_of_strangers_included(strangers):
    sizes = [f"timm:{family}_{size}" for family in ("deit", "deit3", "swin") for size in ("tiny", "small", "base")]
    sizes.insert(sizes.index("timm:swin_tiny"), "timm:swin_micro")
    assert BACKBONES.transformers() == ["made:one", "made:two", "patchy:small", *sizes]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("timm:deit_small", True),
        ("timm:deit_small_patch16_224.fb_in1k", True),
        ("timm:swin_tiny_patch4_window7_224", True),
        ("timm:convnext_tiny", False),
        ("timm:vitamin_small", False),
        ("timm:test_swin", False),
        ("hybrid:small:attention", False),
        ("patchy:large", False),
        ("made:two", True),
    ],
)
def test_who_is_a_transformer(strangers, name, expected):
    assert BACKBONES.is_transformer(BACKBONES.named_config(name)) is expected


def test_twins_exchange_the_mixer_and_nothing_else():
    config = dict(type="linescan.HybridBackbone", arch="small", mixer="bi_wkv", mlp_ratio=2, extra_level=True)
    assert BACKBONES.twin(config, "attention") == {**config, "mixer": "attention"}
    mixed = dict(type="linescan.HybridBackbone", arch="small", mixer=dict(type="mbconv"), pattern={"bi_wkv": (2, 5)})
    assert BACKBONES.twin(mixed, "none") == dict(type="linescan.HybridBackbone", arch="small", mixer="none")
    assert BACKBONES.twin(config, "no such mixer") is None
    for other in ("vmamba:tiny:ss2d", "vim:tiny", "timm:deit_tiny"):
        assert BACKBONES.twin(BACKBONES.named_config(other), "attention") is None
    assert BACKBONES.twin(dict(type="ResNet"), "attention") is None


def test_the_mixer_of_a_config():
    hybrid = dict(type="linescan.HybridBackbone")
    assert BACKBONES.mixer_of(hybrid) == "bi_wkv" and BACKBONES.mixer_of({**hybrid, "mixer": dict(type="ssd", d_state=8)}) == "ssd"
    assert BACKBONES.mixer_of({**hybrid, "mixer": "attention"}) == "attention"
    assert BACKBONES.mixer_of({**hybrid, "mixer": "attention", "pattern": {"bi_wkv": (0,)}}) is None
    assert BACKBONES.mixer_of(dict(type="linescan.Vim")) is None and BACKBONES.mixer_of(dict(type="ResNet")) is None
