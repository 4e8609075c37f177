"""Subjects: what users write becomes one kind of plain data, which builds the same model in every process."""

import multiprocessing
import pickle
import sys
from importlib.metadata import EntryPoint

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from linescan.backbones import BACKBONES, HybridBackbone, Pyramid
from linescan.engine import ConfigError, LinescanError
from linescan.profiling.subjects import Subject, build, resolve, skeleton

STRANGER = '''
"""A backbone of another package, registered by the decorator."""

import torch
from torch import nn

from linescan.backbones import BACKBONES

ARCHS = {"thin": 2, "thick": 8}


@BACKBONES.register_module()
class OtherNet(nn.Module):
    def __init__(self, arch="thin", bias=True):
        super().__init__()
        width = ARCHS[arch]
        self.out_channels, self.out_strides = (width,), (4,)
        self.conv = nn.Conv2d(3, width, 3, stride=4, padding=1, bias=bias)

    def forward(self, x):
        return (self.conv(x),)
'''

SEGMENTOR = """
custom_imports = dict(imports=["linescan.backbones", "linescan.segmentation"], allow_failed_imports=False)
default_scope = "mmseg"
model = dict(
    type="PyramidEncoderDecoder",
    backbone=dict(type="linescan.HybridBackbone", arch="test", mixer="none"),
    decode_head=dict(type="SegformerHead", in_index=[0, 1, 3], channels=8, num_classes=5, norm_cfg=dict(type="SyncBN")),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
"""

CLASSIFIER = """
custom_imports = dict(imports=["linescan.classification"], allow_failed_imports=False)
default_scope = "mmengine"
model = dict(type="ImageClassifier", num_classes=7, backbone=dict(type="linescan.VRWKV", arch="test", out_indices=(1,)))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with its own configs."""
    monkeypatch.chdir(tmp_path)
    configs = tmp_path / "configs" / "family"
    configs.mkdir(parents=True)
    files = {"hybrid-none-test_segformer": SEGMENTOR, "vrwkv-test_classifier": CLASSIFIER, "data_only": "crop_size = (8, 8)\n"}
    files |= {
        "broken": "model = dict(\n",
        "no_module": 'custom_imports = dict(imports=["linescan_no_such_module"])\nmodel = dict(type="X")\n',
    }
    files |= {"no_type": "model = dict(depth=3)\n"}
    for name, text in files.items():
        (configs / f"{name}.py").write_text(text)
    return tmp_path


@pytest.fixture
def register():
    """Registrations of one test are taken back."""
    before = dict(BACKBONES._module_dict)
    yield BACKBONES.register_module
    BACKBONES._module_dict.clear()
    BACKBONES._module_dict.update(before)


@pytest.fixture
def stranger(register, tmp_path, monkeypatch):
    """The module of a stranger, on the path of this process and of its children."""
    (tmp_path / "linescan_test_stranger.py").write_text(STRANGER)
    monkeypatch.syspath_prepend(tmp_path)
    __import__("linescan_test_stranger")
    yield
    del sys.modules["linescan_test_stranger"]


def test_a_backbone_by_name():
    subject = resolve("hybrid:test:bi_wkv", options=dict(mlp_ratio=2))
    assert subject == Subject(
        "hybrid:test:bi_wkv",
        dict(type="linescan.HybridBackbone", arch="test", mixer="bi_wkv", mlp_ratio=2),
        source="hybrid:test:bi_wkv",
        options=dict(mlp_ratio=2),
    )
    assert subject.role == "model" and subject.of == () and subject.scope is None and subject.module is None
    model = build(subject)
    assert isinstance(model, HybridBackbone) and model.layers[0].channel is not None
    assert {p.dtype for p in model.parameters()} == {torch.float32} and {p.device.type for p in model.parameters()} == {"cpu"}


def test_names_of_timm_pass_to_timm():
    subject = resolve("timm:test_vit2.r160_in1k", options=dict(drop_path_rate=0.1))
    assert subject.config == dict(type="linescan.TimmBackbone", model_name="test_vit2.r160_in1k", drop_path_rate=0.1)
    assert isinstance(build(subject), Pyramid)


def test_a_config_file_of_a_segmentor(folder):
    subject = resolve("configs/family/hybrid-none-test_segformer.py", options={"model.decode_head.num_classes": 6})
    assert subject.name == "hybrid-none-test_segformer" and subject.source == "configs/family/hybrid-none-test_segformer.py"
    assert subject.scope == "mmseg" and subject.imports == ("linescan.backbones", "linescan.segmentation")
    assert type(subject.config) is dict and type(subject.config["backbone"]) is dict
    before = pickle.dumps(subject)
    model = build(subject).eval()
    assert pickle.dumps(subject) == before, "building changed the config"
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 6, 16, 16)
    assert {name.partition(".")[0] for name, _ in model.named_parameters()} == {"backbone", "decode_head"}
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())
    assert any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    model.train()(torch.zeros(2, 3, 64, 64)).sum().backward()  # a synchronised batch norm would refuse CPU tensors


def test_a_config_file_of_a_classifier(folder):
    subject = resolve(folder / "configs/family/vrwkv-test_classifier.py", name="mine")
    assert subject.name == "mine" and subject.imports == ("linescan.backbones", "linescan.classification")
    assert build(subject).eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_a_model_of_mmsegmentation_alone(folder):
    """A config of another project names no module of ours, and knows our names all the same, by its scope."""
    (folder / "fcn.json").write_text(
        '{"default_scope": "mmseg", "model": {"type": "EncoderDecoder", "backbone": {"type": "MobileNetV2", "out_indices": [4, 6]},'
        '"decode_head": {"type": "FCNHead", "in_channels": 320, "channels": 4, "num_convs": 1, "num_classes": 4,'
        '"norm_cfg": {"type": "SyncBN"}}}}'
    )
    subject = resolve("fcn.json")
    assert subject.imports == ("linescan.backbones", "linescan.segmentation")
    assert build(subject).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 4, 2, 2)


@pytest.mark.parametrize(
    ("config", "options", "name"),
    [
        (dict(type="linescan.Vim", arch="test"), dict(img_size=32), "vim:test"),
        (dict(type="linescan.HybridBackbone", arch="test", mixer=dict(type="ss2d", d_state=4)), {}, "linescan.HybridBackbone"),
        (dict(type=HybridBackbone, arch="test"), {}, "hybrid:test:bi_wkv"),
        (
            dict(
                type="mmseg.EncoderDecoder",
                backbone=dict(type="MobileNetV2"),
                decode_head=dict(type="FCNHead", in_channels=320, channels=4, num_classes=4),
            ),
            {},
            "mmseg.EncoderDecoder",
        ),
    ],
)
def test_a_config(config, options, name):
    subject = resolve(config, options=options)
    assert subject.name == name and subject.config == {**config, **options} and subject.options == options
    assert pickle.loads(pickle.dumps(subject)) == subject
    assert isinstance(build(subject), nn.Module)


def test_a_module_is_copied():
    module = nn.Sequential(nn.Conv2d(3, 2, 3), nn.SyncBatchNorm(2)).double()
    subject = resolve(module)
    assert subject.name == "Sequential" and subject.config is None and subject.module is module
    assert resolve(module, name="mine").name == "mine"
    model = build(subject)
    assert model[0].weight.dtype == torch.float32 and module[0].weight.dtype == torch.float64
    assert isinstance(module[1], nn.SyncBatchNorm) and not isinstance(model[1], nn.SyncBatchNorm)
    assert torch.equal(model[0].weight, module[0].weight.float())


def test_a_subject_is_handed_back():
    subject = resolve("vim:test")
    assert resolve(subject) is subject and resolve(subject, name="other").name == "other"


def test_building_is_the_same_every_time_and_leaves_the_random_numbers_alone():
    subject = resolve("hybrid:test:attention")
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first = build(subject).state_dict()
    assert torch.equal(torch.rand(4), expected)
    second = build(subject).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(value.std() > 0 for value in first.values())


def test_a_child_process_builds_the_same(folder, stranger):
    named, configured = resolve("othernet:thick"), resolve("configs/family/hybrid-none-test_segformer.py")
    assert named.imports == ("linescan.backbones", "linescan_test_stranger")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        children = pool.map(build, (named, configured))
    for subject, child in zip((named, configured), children, strict=True):
        ours = build(subject).state_dict()
        assert all(torch.equal(ours[key], value) for key, value in child.state_dict().items()) and len(ours) > 1


def test_large_models_are_checked_without_their_memory():
    """`large` has 329 M parameters: 1.3 GB for a moment, if it were built."""
    model = skeleton(resolve("vrwkv:large"))
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_a_constructor_that_computes_with_values_is_checked_on_the_cpu(register):
    @register()
    class Values(nn.Module):
        def __init__(self, rate: float = 0.5) -> None:
            super().__init__()
            self.rates = [rate.item() for rate in torch.linspace(0, rate, 3)]
            self.conv, self.out_channels, self.out_strides = nn.Conv2d(3, 1, 1), (1,), (1,)

    assert skeleton(resolve("values", options=dict(rate=1.0))).rates == [0, 0.5, 1]


def test_a_constructor_may_change_its_arguments(register):
    """MMSegmentation's pop from them; the subject builds again all the same."""

    @register()
    class Popping(nn.Module):
        def __init__(self, widths: dict) -> None:
            super().__init__()
            self.out_channels, self.out_strides = (widths.pop("first"),), (1,)

    subject = resolve(dict(type="linescan.Popping", widths=dict(first=3)))
    assert build(subject).out_channels == build(subject).out_channels == (3,)


def test_a_broken_package_is_named(monkeypatch):
    point = EntryPoint("gone", "linescan_no_such_module", "linescan.backbones")
    monkeypatch.setattr("linescan.backbones.registry.entry_points", lambda group: [point])
    with pytest.raises(LinescanError, match=r"'gone = linescan_no_such_module'.*ModuleNotFoundError"):
        resolve("vim:test")


def test_a_wrong_arch_of_a_stranger_is_told_the_near_ones(stranger):
    with pytest.raises(
        ConfigError, match=r"othernet:thik: unknown arch 'thik' of OtherNet. Did you mean thick or thin\? Known: thin, thick"
    ):
        resolve("othernet:thik")


NAMES = [
    ("hybird:small", {}, "hybird:small: unknown family of backbones 'hybird'. Did you mean 'hybrid'"),
    ("hybrid", {}, r"hybrid: neither .* named hybrid:arch\[:mixer\], got 'hybrid'"),
    ("", {}, "'': neither the path of a config file nor the name of a backbone"),
    ("hybrid:smal:bi_wkv", {}, "unknown arch 'smal'. Did you mean 'small'"),
    ("vrwkv:", {}, "named vrwkv:arch, got 'vrwkv:'"),
    ("hybrid:small:bi_wkw", {}, "unknown mixer 'bi_wkw'. Did you mean 'bi_wkv'"),
    ("timm:deit_smal", {}, "unknown model_name 'deit_smal'. Did you mean 'deit_small'"),
    ("timm:resnext50_32x4", {}, "timm's nearest: resnext50_32x4d"),
    ("vim:test", dict(img_sizes=32), "unknown argument of Vim 'img_sizes'. Did you mean 'img_size'"),
    ("vim:test", dict(img_size="big"), "img_size must be"),
    ("timm:test", dict(no_such=1), "timm:test: TypeError: .*no_such"),
    ("hybrid-none-test_seg", {}, "Config files of such a name: configs/family/hybrid-none-test_segformer.py"),
    ("vrvkw-test_classifer", {}, "Config files of such a name: configs/family/vrwkv-test_classifier.py"),
]
FILES = [
    ("configs/family/hybrid-none-test_segforme.py", {}, "no such config file. Did you mean configs/family/hybrid-none-test_segformer.py"),
    ("vrwkv-test_classifier.py", {}, "no such config file. Did you mean configs/family/vrwkv-test_classifier.py"),
    ("elsewhere/vrwkv-test_classifier.py", {}, "no such config file. Did you mean configs/family/vrwkv-test_classifier.py"),
    ("elsewhere/quite_another.yaml", {}, r"elsewhere/quite_another.yaml: no such config file\.$"),
    ("configs/family", {}, "a folder, not a config file"),
    ("configs/family/data_only.py", {}, r"the config has no model \(model=dict\(type=...\)\), its keys are crop_size"),
    ("configs/family/no_type.py", {}, "the config has no model"),
    ("configs/family/broken.py", {}, "broken.py: cannot be read as a config: SyntaxError"),
    ("configs/family/no_module.py", {}, "cannot be read as a config: .*linescan_no_such_module"),
    (
        "configs/family/hybrid-none-test_segformer.py",
        {"model.backbone.mixer": "non"},
        "segformer.py: unknown mixer 'non'. Did you mean 'none'",
    ),
    ("configs/family/hybrid-none-test_segformer.py", {"model.backbone.no_such": 1}, "unexpected keyword argument 'no_such'"),
    ("configs/family/hybrid-none-test_segformer.py", {"model.decode_head.type": "SegformerHed"}, "SegformerHed is not in the mmseg::model"),
    ("configs/family/hybrid-none-test_segformer.py", {"data_root": "x"}, "data_root: no data set of the config"),
]
OTHERS = [
    (dict(arch="tiny"), {}, r"needs type=..., got {'arch': 'tiny'}"),
    (dict(type=3), {}, "needs type=..."),
    (dict(type="linescan.Vimm"), {}, "unknown backbone 'Vimm'. Did you mean 'Vim'"),
    (dict(type="Vim", arch="tiny"), {}, "Vim is not in the mmengine::model registry; is its scope missing"),
    (dict(type="linescan.Vim", arch="tiny"), dict(no_such=1), "unexpected keyword argument 'no_such'"),
    (5, {}, "a model is a name, the path of a config, a config or a module, got int"),
    (nn.Linear(1, 1), dict(bias=False), r"options: a Linear takes none, got {'bias': False}"),
    (Subject("x", dict(type="linescan.Vim")), dict(arch="tiny"), "options: a Subject takes none"),
]


@pytest.mark.parametrize(("source", "options", "message"), NAMES + FILES + OTHERS, ids=lambda value: str(value)[:40])
def test_bad_input_is_one_line_that_helps(folder, source, options, message):
    with pytest.raises(LinescanError, match=message) as caught:
        resolve(source, options=options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1500


def test_importing_the_backbones_is_quiet(capsys):
    resolve("vim:test")
    assert capsys.readouterr().out == ""
    assert "linescan" in MODELS.children
