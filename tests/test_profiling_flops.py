"""MAC counts: published numbers, agreement of three counters, and no operator passed over in silence."""

import pytest
import timm
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from linescan.backbones import HybridBackbone
from linescan.profiling import UncountedOperatorError, count_macs, count_parameters, fvcore_handles

# RWKV-SAM backbone, MACs in units of 1e9 at 224, 512 and 1024 pixels, and Vision-RWKV's element operations of the scans at 1024:
# (scale, layout, mlp_ratio) -> values. Counted on the official code; closed forms give the same.
ATTENTION_AT = (2, 5, 8, 11)
PUBLISHED = {
    ("tiny", "transformer", 2): (1.59, 12.85, 119.1, 0.00),
    ("tiny", "rwkv", 4): (1.68, 8.80, 35.2, 0.32),
    ("tiny", "rwkv", 2): (1.28, 6.69, 26.8, 0.32),
    ("tiny", "rwkv_trans", 4): (1.83, 10.87, 62.8, 0.23),
    ("tiny", "mbconv_rwkv", 4): (1.34, 6.99, 27.9, 0.09),
    ("tiny", "rwkv_mbconv", 4): (1.55, 8.08, 32.3, 0.23),
    ("small", "transformer", 2): (5.89, 39.88, 294.8, 0.00),
    ("small", "rwkv", 4): (6.69, 34.94, 139.8, 0.64),
    ("small", "rwkv", 2): (5.07, 26.49, 105.9, 0.64),
    ("small", "rwkv_trans", 4): (7.15, 39.98, 198.6, 0.46),
    ("small", "mbconv_rwkv", 4): (5.27, 27.53, 110.1, 0.18),
    ("small", "rwkv_mbconv", 4): (6.12, 31.98, 127.9, 0.46),
    ("base", "transformer", 2): (22.62, 136.42, 816.3, 0.00),
    ("base", "rwkv", 4): (26.65, 139.24, 557.0, 1.28),
    ("base", "rwkv", 2): (20.18, 105.42, 421.7, 1.28),
    ("base", "rwkv_trans", 4): (28.28, 152.93, 689.0, 0.91),
    ("base", "mbconv_rwkv", 4): (20.93, 109.33, 437.3, 0.36),
    ("base", "rwkv_mbconv", 4): (24.36, 127.28, 509.1, 0.91),
    ("large", "transformer", 2): (38.65, 226.22, 1265.7, 0.00),
    ("large", "rwkv", 4): (46.18, 241.25, 965.0, 1.70),
    ("large", "rwkv", 2): (34.67, 181.12, 724.5, 1.70),
    ("large", "rwkv_trans", 4): (48.96, 262.73, 1154.0, 1.22),
    ("large", "mbconv_rwkv", 4): (35.97, 187.94, 751.8, 0.49),
    ("large", "rwkv_mbconv", 4): (42.10, 219.93, 879.7, 1.22),
}
MIXERS = {
    "transformer": dict(mixer="attention"),
    "rwkv": dict(mixer="bi_wkv"),
    "rwkv_trans": dict(mixer="bi_wkv", pattern={"attention": ATTENTION_AT}),
    "mbconv_rwkv": dict(mixer="mbconv", pattern={"bi_wkv": ATTENTION_AT}),
    "rwkv_mbconv": dict(mixer="bi_wkv", pattern={"mbconv": ATTENTION_AT}),
}


def hybrid(arch: str, layout: str, mlp_ratio: float) -> HybridBackbone:
    with torch.device("meta"):
        return HybridBackbone(arch, mlp_ratio=mlp_ratio, **MIXERS[layout])


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: "-".join(map(str, row)))
def test_published_macs_of_every_hybrid(row):
    model = hybrid(*row)
    *gmacs, gscan = PUBLISHED[row]
    for size, expected in zip((224, 512, 1024), gmacs, strict=True):
        count = count_macs(model, (1, 3, size, size))
        assert count.macs / 1e9 == pytest.approx(expected, rel=0.01), size
    assert count.scan_ops / 1e9 == pytest.approx(gscan, abs=0.006)
    assert sum(count.by_stage().values()) == sum(count.by_operator.values()) == count.macs == count.flops // 2


def test_closed_form_per_token_layer():
    """N tokens, ratio r: RWKV N C^2 (5 + 2 r); attention N C^2 (4 + 3 r) + 2 N^2 C; MBConv N (2 r C^2 + 9 r C). Exactly, odd sizes too."""
    c, r, tokens = 192, 4, 8 * 10
    expected = {
        "bi_wkv": tokens * c * c * (5 + 2 * r),
        "attention": tokens * c * c * (4 + 3 * r) + 2 * tokens**2 * c,
        "mbconv": tokens * (2 * r * c * c + 9 * r * c),
    }
    for mixer, macs in expected.items():
        with torch.device("meta"):
            model = HybridBackbone("tiny", mixer, depth=1, mlp_ratio=r)
        assert count_macs(model, (1, 3, 120, 150)).by_stage()["layers"] == macs, mixer


@pytest.mark.parametrize("mixer", ["bi_wkv", "attention", "mbconv"])
def test_fvcore_with_our_handles_gives_the_same(mixer):
    model = HybridBackbone("test", mixer).eval()
    with torch.no_grad():
        plain = _fvcore(model, fvcore_handles())
        scans = _fvcore(model, fvcore_handles(scans=True)) - plain
    count = count_macs(model, (2, 3, 60, 75))
    assert plain == count.macs
    assert scans == count.scan_ops


def _fvcore(model: nn.Module, handles: dict) -> int:
    analysis = FlopCountAnalysis(model, (torch.zeros(2, 3, 60, 75),)).set_op_handle(**handles)
    return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none").total()


def test_attention_is_counted_where_naive_tools_miss_it():
    """DeiT-S at 224: 4.60 G multiply-adds, of which naive counters lose the 0.36 G of attention."""
    count = count_macs(timm.create_model("deit_small_patch16_224"), (1, 3, 224, 224))
    assert count.by_operator["attention"] == 12 * 2 * 197 * 197 * 384
    assert count.macs / 1e9 == pytest.approx(4.60, abs=0.005)


@pytest.mark.parametrize(("name", "gmacs"), [("resnet50", 4.09), ("swin_tiny_patch4_window7_224", 4.49), ("convnext_tiny", 4.45)])
def test_published_macs_of_other_families(name, gmacs):
    assert count_macs(timm.create_model(name), (1, 3, 224, 224)).macs / 1e9 == pytest.approx(gmacs, rel=0.01)


class _Calls(nn.Module):
    """Calls one function of x."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "macs"),
    [
        (lambda x: torch.einsum("bct,bdt->bcd", x, x), 2 * 6 * 6 * 8),
        (lambda x: x @ x.mT, 2 * 6 * 6 * 8),
        (lambda x: x @ x.new_ones(8), 2 * 6 * 8),
        (lambda x: nn.functional.conv1d(x, x.new_ones(4, 3, 3), groups=2, padding="same"), 2 * 4 * 8 * 3 * 3),
        (lambda x: nn.functional.conv_transpose1d(x, x.new_ones(6, 4, 2), stride=2), 2 * 6 * 8 * 4 * 2),
        (lambda x: nn.functional.softmax(x, -1).cumsum(-1) * 2, 0),
    ],
)
def test_functional_calls(function, macs):
    assert count_macs(_Calls(function), (2, 6, 8)).macs == macs


def test_operator_without_a_formula_is_named_not_skipped():
    spectrum = _Calls(lambda x: torch.fft.rfft2(x).abs())
    with pytest.raises(UncountedOperatorError, match=r"aten::_fft_r2c.*'?at the top"):
        count_macs(spectrum, (1, 3, 8, 8))
    assert count_macs(spectrum, (1, 3, 8, 8), formulas={"aten::_fft_r2c": lambda args, result: 7}).by_operator == {"aten::_fft_r2c": 7}


def test_foreign_custom_operator_is_named_and_can_be_given_a_formula():
    @torch.library.custom_op("linescan_test::opaque", mutates_args=())
    def opaque(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    opaque.register_fake(torch.empty_like)
    model = nn.Sequential(nn.Linear(8, 8), _Calls(lambda x: opaque(x)))
    with pytest.raises(UncountedOperatorError, match=r"linescan_test::opaque \(in module '1'\) x1"):
        count_macs(model, (4, 8))
    count = count_macs(model, (4, 8), formulas={"linescan_test::opaque": lambda args, result: 10 * result.numel()})
    assert count.by_operator == {"linear": 4 * 8 * 8, "linescan_test::opaque": 320}
    assert count.by_stage() == {"0": 256, "1": 320}


def test_wrong_formula_is_caught_by_the_cross_check(monkeypatch):
    monkeypatch.setitem(count_macs.__globals__["MAC_FORMULAS"], "aten::addmm", ("linear", lambda args, out: 1))
    with pytest.raises(RuntimeError, match="flop_counter"):
        count_macs(nn.Linear(8, 8), (4, 8))


@pytest.mark.filterwarnings("ignore:Default ``avg_non_ignore``")
def test_segmentor_of_mmsegmentation():
    """Backbone, neck and decode head are counted, synchronised batch norm included; the model stays as it was."""
    from mmseg.registry import MODELS

    head = dict(type="mmseg.FCNHead", in_channels=64, channels=32, num_convs=1, num_classes=5)
    config = dict(
        type="mmseg.EncoderDecoder",
        data_preprocessor=dict(type="mmseg.SegDataPreProcessor"),
        backbone=dict(type="linescan.HybridBackbone", arch="test"),
        decode_head=dict(head, in_index=3, norm_cfg=dict(type="SyncBN")),
        auxiliary_head=dict(head, in_index=2),
    )
    model = MODELS.build(config).train()
    count = count_macs(model, (1, 3, 64, 64))
    backbone = count_macs(HybridBackbone("test"), (1, 3, 64, 64))
    assert count.by_stage() == {"backbone": backbone.macs, "decode_head": 4 * 4 * (64 * 32 * 9 + (64 + 32) * 32 * 9 + 32 * 5)}
    assert model.training and next(model.parameters()).device.type == "cpu"
    assert any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())


def test_fused_transformer_layers_of_pytorch_are_opened():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    assert count_macs(layer, (1, 10, 16)).macs == 10 * (4 * 16 * 16 + 2 * 16 * 32) + 2 * 10 * 10 * 16
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize(("shape", "error"), [((), ValueError), ((1, 3, 0, 4), ValueError), ((1, 3, 4.0, 4), ValueError), (224, TypeError)])
def test_bad_input_shape(shape, error):
    with pytest.raises(error, match="input_shape"):
        count_macs(nn.Identity(), shape)


def test_stage_depth():
    count = count_macs(nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 8)), nn.Linear(8, 1)), (2, 4))
    assert count.by_stage() == {"0": 96, "1": 16}
    assert count.by_stage(2) == {"0.0": 32, "0.1": 64, "1": 16}
    with pytest.raises(ValueError, match="depth"):
        count.by_stage(0)


def test_a_model_that_needs_values_can_run_on_the_cpu():
    model = nn.Sequential(_Calls(lambda x: x[: int(x.abs().sum().item()) + 2]), nn.Linear(4, 4))
    assert count_macs(model, (5, 4), device="cpu").macs == 2 * 4 * 4


def test_parameters_by_stage():
    model = HybridBackbone("test", "bi_wkv", frozen_stages=0)
    count = count_parameters(model)
    assert count.total == sum(p.numel() for p in model.parameters()) == sum(count.by_stage.values())
    assert count.total - count.trainable == count.by_stage["stem"] > 0
