"""The registry: names from any scope, the contract on whatever is registered, and entry points of installed packages."""

import copy
import pickle
import sys
import types
import warnings
from importlib.metadata import EntryPoint

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from linescan.backbones import BACKBONES, ContractError, HybridBackbone, PluginError, Pyramid, list_backbones, registry


class Stranger(nn.Module):
    """Keeps the contract, or breaks it as told; inherits nothing of ours."""

    def __init__(self, channels: object = (4, 8), strides: object = (2, 4), maps: str = "as promised") -> None:
        super().__init__()
        if channels is not None:
            self.out_channels = channels
        self.out_strides = strides
        self.maps = maps
        self.convs = nn.ModuleList(nn.Conv2d(3, c, 3, stride=s, padding=1) for c, s in ((4, 2), (8, 4)))

    def forward(self, x: torch.Tensor) -> object:
        first, second = (conv(x) for conv in self.convs)
        return {
            "as promised": (first, second),
            "list": [first, second],
            "one": (first,),
            "swapped": (second, first),
            "channels": (first, first),
            "cropped": (first[..., 1:], second),
            "flat": (first.flatten(2), second),
            "none": (first, None),
        }[self.maps]


@pytest.fixture
def register():
    """Register in BACKBONES for one test."""
    before = dict(BACKBONES._module_dict)
    yield BACKBONES.register_module
    BACKBONES._module_dict.clear()
    BACKBONES._module_dict.update(before)


@pytest.fixture
def stranger(register):
    init = Stranger.__init__
    register()(Stranger)
    yield Stranger
    Stranger.__init__ = init


@pytest.mark.parametrize("scope", ["mmseg", "mmengine", "linescan"])
def test_any_scope_finds_the_backbones(scope):
    registries = {"mmseg": lambda: pytest.importorskip("mmseg.registry").MODELS, "mmengine": lambda: MODELS, "linescan": lambda: BACKBONES}
    with DefaultScope.overwrite_default_scope(scope):
        model = registries[scope]().build(dict(type="linescan.HybridBackbone", arch="test"))
    assert isinstance(model, HybridBackbone)
    assert BACKBONES.get("HybridBackbone") is BACKBONES.get("linescan.HybridBackbone") is HybridBackbone


def test_listing_and_membership():
    assert list_backbones() == sorted(list_backbones()) and "HybridBackbone" in list_backbones()
    assert "HybridBackbone" in BACKBONES and "linescan.HybridBackbone" in BACKBONES and "HybridBackbon" not in BACKBONES


def test_unknown_name_suggests_near_ones():
    for key in ("linescan.HybridBackbon", "HybridBackbon"):
        with pytest.raises(KeyError, match=r"unknown backbone 'HybridBackbon'.*Did you mean 'HybridBackbone'"):
            BACKBONES.build(dict(type=key))


def test_names_of_other_scopes_pass_through():
    mmseg = pytest.importorskip("mmseg.models")
    assert BACKBONES.get("mmseg.ResNetV1c") is mmseg.ResNetV1c


def test_a_stranger_that_keeps_the_contract_works(stranger):
    model = BACKBONES.build(dict(type="linescan.Stranger"))
    for twin in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert [tuple(o.shape) for o in twin(torch.zeros(1, 3, 7, 10))] == [(1, 4, 4, 5), (1, 8, 2, 3)]
        assert [tuple(o.shape) for o in twin(x=torch.zeros(1, 3, 7, 10))] == [(1, 4, 4, 5), (1, 8, 2, 3)]
    assert len(model._forward_hooks) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(channels=None), "out_channels must be a tuple of positive ints, got no such attribute"),
        (dict(channels=[4, 8]), r"out_channels must be a tuple of positive ints, got \[4, 8\]"),
        (dict(channels=(4, 8.0)), r"out_channels .* got \(4, 8.0\)"),
        (dict(strides=(0, 4)), r"out_strides .* got \(0, 4\)"),
        (dict(strides=()), r"out_strides .* got \(\)"),
        (dict(strides=(2,)), r"2 out_channels \(4, 8\) but 1 out_strides \(2,\)"),
    ],
)
@pytest.mark.parametrize("parent", [BACKBONES, MODELS])
def test_broken_attributes_are_an_error_at_build(stranger, parent, arguments, message):
    with pytest.raises(ContractError, match=message):
        parent.build(dict(type="linescan.Stranger", **arguments))


BROKEN_OUTPUTS = [
    ("list", "Stranger.forward returned a list, not a tuple"),
    ("one", r"Stranger promised 2 maps with channels \(4, 8\), and returned 1"),
    ("flat", r"map 0 of Stranger must be a 4-D tensor, got a tensor of shape \(1, 4, 20\)"),
    ("none", "map 1 of Stranger must be a 4-D tensor, got a NoneType"),
    ("swapped", r"map 0 .* must have shape \(1, 4, 4, 5\) for an input of shape \(1, 3, 7, 10\), got \(1, 8, 2, 3\)"),
    ("channels", r"map 1 .* must have shape \(1, 8, 2, 3\) .* got \(1, 4, 4, 5\)"),
    ("cropped", r"map 0 .* must have shape \(1, 4, 4, 5\) .* got \(1, 4, 4, 4\)"),
]


@pytest.mark.parametrize(("maps", "message"), BROKEN_OUTPUTS)
def test_broken_outputs_are_an_error_at_forward(stranger, maps, message):
    model = BACKBONES.build(dict(type="linescan.Stranger", maps=maps))
    for twin in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(ContractError, match=message):
            twin(torch.zeros(1, 3, 7, 10))


def test_the_check_survives_compile_and_export(stranger):
    x = torch.zeros(1, 3, 7, 10)
    good = BACKBONES.build(dict(type="linescan.Stranger"))
    height = torch.export.Dim("height", min=8, max=64)
    exported = torch.export.export(good, (x.new_zeros(1, 3, 16, 10),), dynamic_shapes={"x": {2: height}}).module()
    assert exported(x.new_zeros(1, 3, 21, 10))[0].shape == (1, 4, 11, 5)
    assert torch.compile(good, fullgraph=True, backend="eager")(x)[1].shape == (1, 8, 2, 3)
    broken = BACKBONES.build(dict(type="linescan.Stranger", maps="channels"))
    with pytest.raises(Exception, match="must have 8 channels, got 4"):
        torch.export.export(broken, (x,))


def test_functions_and_non_modules(register):
    register(name="made")(lambda **arguments: Stranger(**arguments))
    assert isinstance(BACKBONES.build(dict(type="linescan.made")), Stranger)
    with pytest.raises(ContractError, match="2 out_channels"):
        BACKBONES.build(dict(type="linescan.made", strides=(2,)))

    @register()
    class NotAModule:
        out_channels = out_strides = (1,)

    with pytest.raises(ContractError, match=r"expected a torch\.nn\.Module, got NotAModule"):
        BACKBONES.build(dict(type="NotAModule"))


def test_only_the_finished_subclass_is_checked(stranger, register):
    class Later(Stranger):
        def __init__(self) -> None:
            super().__init__(channels=None)
            self.out_channels = (4, 8)

    assert Later().out_channels == (4, 8)
    register()(Later)
    register(name="again")(Later)
    assert len(BACKBONES.build(dict(type="again"))._forward_hooks) == 1


def test_pyramid_norm_eval_and_stages():
    class Small(Pyramid):
        def __init__(self, **arguments: object) -> None:
            super().__init__(**arguments)
            self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4))
            self.bias = nn.Parameter(torch.zeros(1))
            self.last = nn.BatchNorm2d(4)
            self._finish((4,), (2,), [[self.stem], [self.bias, self.last]])

    plain = Small().train()
    assert plain.stem[1].training and plain.last.training
    fixed = Small(norm_eval=True).train()
    assert fixed.stem.training and not fixed.stem[1].training and not fixed.last.training
    half = Small(frozen_stages=0)
    assert not half.stem[1].training and half.last.training and half.bias.requires_grad
    assert not Small(frozen_stages=1).bias.requires_grad
    assert not copy.deepcopy(half).train().stem[1].training


@pytest.fixture
def plugins(monkeypatch, register):
    """Announce entry points: name -> value, or name -> (module name, content)."""

    def announce(**points: str) -> None:
        found = [EntryPoint(name, value, registry.ENTRY_POINT_GROUP) for name, value in points.items()]
        monkeypatch.setattr(registry, "entry_points", lambda group: found if group == registry.ENTRY_POINT_GROUP else [])

    monkeypatch.setattr(BACKBONES, "_plugins_loaded", set())
    module = types.ModuleType("linescan_stranger")
    module.Stranger, module.number = Stranger, 3
    monkeypatch.setitem(sys.modules, "linescan_stranger", module)
    init = Stranger.__init__
    yield announce
    Stranger.__init__ = init


def test_entry_points_load_on_a_miss_only(plugins):
    plugins(Visitor="linescan_stranger:Stranger")
    assert BACKBONES.get("HybridBackbone") is HybridBackbone and "Visitor" not in BACKBONES.module_dict
    assert isinstance(MODELS.build(dict(type="linescan.Visitor")), Stranger)
    with pytest.raises(ContractError):
        MODELS.build(dict(type="linescan.Visitor", strides=(2,)))
    assert "Visitor" in list_backbones()


def test_broken_entry_points_are_named(plugins):
    plugins(gone="linescan_no_such_module", number="linescan_stranger:number", Visitor="linescan_stranger:Stranger")
    with pytest.warns(UserWarning) as caught:
        assert BACKBONES.get("Visitor") is Stranger
    assert [str(warning.message).split("'")[1] for warning in caught] == [
        "gone = linescan_no_such_module",
        "number = linescan_stranger:number",
    ]
    for ask in (list_backbones, lambda: BACKBONES.get("linescan.Nobody")):
        with pytest.raises(PluginError, match=r"'gone = linescan_no_such_module'.*ModuleNotFoundError.*'number = .*TypeError.* got int"):
            ask()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert BACKBONES.get("HybridBackbone") is HybridBackbone
