"""MAC counts: agreement of three counters, no operator passed over in silence, bytes moved and memory in use against closed forms."""

import inspect
import sys

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from linescan.backbones import BACKBONES, MIXERS, HybridBackbone, list_backbones
from linescan.kernels.costs import FORMULAS, SCAN_CONVENTIONS, rearrangement
from linescan.kernels.selective_scan import selective_scan
from linescan.kernels.ssd import ssd
from linescan.profiling import UncountedOperatorError, count_macs, fvcore_handles


def configs_of(name: str) -> dict[str, dict]:
    """Label -> config of a registered backbone: each of its module's ARCHS that starts with "test"."""
    cls = BACKBONES.get(name)
    argument = next(iter(inspect.signature(cls).parameters))
    archs = [arch for arch in getattr(sys.modules[cls.__module__], "ARCHS", ["test"]) if arch.startswith("test")]
    return {name + arch.removeprefix("test"): {"type": f"linescan.{name}", argument: arch} for arch in archs}


CONFIGS = {label: config for name in list_backbones() for label, config in configs_of(name).items()}
CONFIGS |= {f"HybridBackbone-{mixer}": dict(type="linescan.HybridBackbone", arch="test", mixer=mixer) for mixer in sorted(MIXERS)}
FAMILIES = {label: config for label, config in CONFIGS.items() if "test" in config.values()}
# fvcore and the counter of PyTorch run the model, so the image is small; odd sides reach the padding.
SHAPE = (2, 3, 39, 50)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_three_counters_agree(config):
    """Ours, fvcore with our handles, and torch.utils.flop_counter, on everything that is registered."""
    model = BACKBONES.build(dict(config)).eval()
    count = count_macs(model, SHAPE)
    assert count.macs > 0
    x = torch.zeros(SHAPE)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x)
    flops = {str(operator): value for operator, value in counter.get_flop_counts()["Global"].items()}
    torch_macs = sum(value for operator, value in flops.items() if operator.startswith("aten")) // 2
    torch_scans = sum(value for operator, value in flops.items() if operator.startswith("linescan"))
    assert (torch_macs, torch_scans) == (count.macs, count.scan_ops)
    traced = _fvcore(model, x, fvcore_handles(scans=True)).by_operator()
    fvcore_scans = sum(traced.pop(name.partition("::")[2], 0) for name in SCAN_CONVENTIONS)
    assert (sum(traced.values()), fvcore_scans) == (count.macs, count.scan_ops)


def _fvcore(model: nn.Module, x: torch.Tensor, handles: dict) -> FlopCountAnalysis:
    with torch.no_grad():
        analysis = FlopCountAnalysis(model, (x,)).set_op_handle(**handles)
        return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")


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
        (lambda x: x[0, :, 0] @ x[0], 6 * 8),
        (lambda x: x[:, None] @ x.new_ones(2, 3, 8, 5), 2 * 3 * 6 * 8 * 5),
        (lambda x: torch.mv(x[0], x[0, 0]), 6 * 8),
        (lambda x: torch.addmv(x[0, :, 0], x[0], x[0, 0]), 6 * 8),
        (lambda x: torch.dot(x[0, 0], x[0, 1]), 8),
        (lambda x: torch.inner(x[0], x[1]), 6 * 6 * 8),
        (lambda x: torch.tensordot(x, x, dims=([0, 2], [0, 2])), 2 * 6 * 6 * 8),
        (lambda x: torch.baddbmm(x.new_ones(2, 6, 6), x, x.mT), 2 * 6 * 6 * 8),
        (lambda x: nn.functional.linear(x[0, 0], x.new_ones(5, 8)), 5 * 8),
        (lambda x: nn.functional.conv1d(x, x.new_ones(4, 3, 3), groups=2, padding="same"), 2 * 4 * 8 * 3 * 3),
        (lambda x: nn.functional.conv2d(x[None], x.new_ones(4, 2, 3, 5), padding="same"), 4 * 6 * 8 * 2 * 3 * 5),
        (lambda x: nn.functional.conv_transpose1d(x, x.new_ones(6, 4, 2), stride=2), 2 * 6 * 8 * 4 * 2),
        (lambda x: nn.functional.conv_transpose2d(x[None], x.new_ones(2, 3, 2, 2), stride=2, groups=2), 2 * 6 * 8 * 3 * 2 * 2),
        (lambda x: nn.functional.scaled_dot_product_attention(x[None], x[None], x[None], attn_mask=x.new_zeros(6, 6)), 2 * 2 * 6 * 6 * 8),
        (lambda x: nn.functional.scaled_dot_product_attention(x, x[:, :3], x[:, :3, :4]), 2 * 6 * 3 * (8 + 4)),
        (lambda x: nn.functional.softmax(x, -1).cumsum(-1) * 2, 0),
    ],
)
def test_functional_calls(function, macs):
    """By fvcore as well, with our handles."""
    model = _Calls(function)
    assert count_macs(model, (2, 6, 8)).macs == macs
    assert _fvcore(model, torch.ones(2, 6, 8), fvcore_handles()).total() == macs


def test_addbmm():
    """fvcore has no handle for it."""
    assert count_macs(_Calls(lambda x: torch.addbmm(x.new_ones(6, 6), x, x.mT)), (2, 6, 8)).macs == 2 * 6 * 6 * 8


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
    assert _fvcore(layer.eval(), torch.ones(1, 10, 16), fvcore_handles()).total() == count_macs(layer, (1, 10, 16)).macs


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


def test_evaluation_mode_is_counted_and_the_model_keeps_its_own():
    class Auxiliary(nn.Linear):
        def forward(self, x):
            return super().forward(super().forward(x) if self.training else x)

    model = Auxiliary(8, 8).train()
    assert count_macs(model, (4, 8)).macs == 4 * 8 * 8 and model.training


def test_a_model_that_needs_values_can_run_on_the_cpu():
    model = nn.Sequential(_Calls(lambda x: x[: int(x.abs().sum().item()) + 2]), nn.Linear(4, 4))
    assert count_macs(model, (5, 4), device="cpu").macs == 2 * 4 * 4


def test_a_tensor_that_is_not_given_keeps_its_place():
    """selective_scan(D, no z, delta_bias): 9 N + 1 per element. Counted by position, a bias must not pass for the gate."""
    scan = _Calls(lambda x: selective_scan(x, x, x.new_ones(6, 4), *_groups(x), x.new_ones(6), None, x.new_ones(6)))
    dual = _Calls(lambda x: ssd(_heads(x), x, x.new_ones(6), *_states(x), x.new_ones(6), None, x.new_ones(6)))
    for model, per_element in ((scan, 9 * 4 + 1), (dual, 5 * 4 + 1 + 2)):
        assert count_macs(model, (2, 6, 6)).scan_ops == 2 * 6 * 6 * per_element
        traced = _fvcore(model, torch.ones(2, 6, 6), fvcore_handles(scans=True))
        assert traced.total() == 2 * 6 * 6 * per_element


def _groups(x):
    return x.new_ones(2, 4, 6), x.new_ones(2, 4, 6)


def _heads(x):
    return x.new_ones(2, 6, 6, 1)


def _states(x):
    return x.new_ones(2, 6, 1, 4), x.new_ones(2, 6, 1, 4)


@pytest.mark.parametrize(
    ("equation", "shapes", "macs"),
    [
        ("bct,bdt->bcd", [(3, 37, 41), (3, 43, 41)], 3 * 37 * 41 * 43),
        ("b c t, b t d -> b c d", [(1, 101, 103), (1, 103, 107)], 101 * 103 * 107),
        ("ij,ij->ij", [(5, 7), (5, 7)], 0),
    ],
)
def test_fvcore_counts_einsum_to_the_last_digit(equation, shapes, macs):
    model = _Calls(lambda x: torch.einsum(equation, *(x.new_ones(shape) for shape in shapes)))
    assert _fvcore(model, torch.ones(1), fvcore_handles()).total() == count_macs(model, (1,)).macs == macs


@pytest.mark.parametrize("equation", ["ij,jk,kl->il", "ij,jk", "...j,jk->...k"])
def test_an_einsum_that_fvcore_cannot_count_is_an_error(equation):
    model = _Calls(lambda x: torch.einsum(equation, *[x] * (1 + equation.count(","))))
    with pytest.raises(NotImplementedError, match="einsum"):
        _fvcore(model, torch.ones(4, 4), fvcore_handles()).total()


def test_calls_add_up_to_the_totals():
    count = count_macs(HybridBackbone("test", "ss2d", pattern={"attention": [1]}), (1, 3, 64, 96))
    assert sum(call.macs for call in count.calls) == count.macs
    assert sum(call.scan_ops for call in count.calls) == count.scan_ops > 0
    assert sum(call.bytes_moved for call in count.calls) == count.bytes_moved
    kinds = {call.kind for call in count.calls}
    assert {"conv", "linear", "attention", "linescan::cross_selective_scan", "normalisation", "element-wise"} <= kinds
    attention = [call for call in count.calls if call.kind == "attention"]
    assert [call.name for call in attention] == ["aten::scaled_dot_product_attention"]
    assert attention[0].module.startswith("layers.1.") and attention[0].bytes_moved == 4 * 4 * 24 * 64


@pytest.mark.parametrize(
    ("function", "elements"),
    [
        (lambda x: nn.functional.linear(x, x.new_zeros(4, 8), x.new_zeros(4)), 32 + 4 + 96 + 32 + 4 + 48),
        (lambda x: x @ x.mT, 96 + 72),  # the same numbers twice
        (lambda x: x.mT.reshape(-1)[:4].unsqueeze(0), 2 * 96),  # a view, a copy, two views
        (lambda x: x + x.new_ones(8), 8 + 96 + 8 + 96),
        (lambda x: x.new_ones(6, 1).expand(2, 6, 8) + x, 6 + 6 + 96 + 96),  # expanded: as it lies in memory
        (lambda x: torch.empty_like(x).copy_(x), 2 * 96),
        (lambda x: torch.zeros_like(x).add_(x), 96 + 3 * 96),
        (lambda x: torch.cat([x, x[:1]]), 96 + 48 + 144),
        (lambda x: nn.functional.scaled_dot_product_attention(x, x + 1, x * 2), 2 * 192 + 4 * 96),
        (lambda x: selective_scan(x, x, x.new_ones(6, 4), x.new_ones(2, 4, 8), x.new_ones(2, 4, 8)), 2 * (24 + 128) + 96 + 96 + 48),
        (lambda x: nn.functional.layer_norm(x, (8,)), 2 * 96 + 2 * 12),  # mean and deviation are results too
    ],
)
def test_bytes_moved(function, elements):
    assert count_macs(_Calls(function), (2, 6, 8)).bytes_moved == 4 * elements


@pytest.mark.parametrize(
    ("function", "floats"),
    [
        (lambda x: x, 0),
        (lambda x: x.view(-1)[3:], 0),  # the input's own memory
        (lambda x: x + 1, 96),
        (lambda x: (x + 1).view(-1)[3:] + 1, 96 + 93),  # a view holds the whole block
        (lambda x: ((x + 1) + 1) + 1, 2 * 96),  # the first is free before the third is made
        (lambda x: (x + 1) + ((x * 2) * 3), 3 * 96),
        (lambda x: (x + 1).add_(1).mul_(2), 96),
        (lambda x: nn.functional.scaled_dot_product_attention(x, x, x), 96),  # the matrix of weights stays inside
        (lambda x: torch.cat([x, x]).sum(), 2 * 96 + 1),
    ],
)
def test_peak_of_live_memory(function, floats):
    assert count_macs(_Calls(function), (2, 6, 8)).peak_live_bytes == 4 * floats


def test_weights_are_not_live_memory():
    """A chain of three: two neighbouring results at a time."""
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 32), nn.Linear(32, 4))
    assert count_macs(model, (5, 8)).peak_live_bytes == 4 * 5 * (16 + 32)


def test_half_precision_moves_half_the_bytes_of_products_and_keeps_the_cast_weights():
    model = nn.Sequential(nn.Linear(64, 128), nn.LayerNorm(128), nn.Linear(128, 16, bias=False))
    count = count_macs(model, (10, 64), dtype="bf16")
    assert count.dtype == "bf16" and count.macs == count_macs(model, (10, 64)).macs
    linear = [call for call in count.calls if call.kind == "linear"]
    assert [call.bytes_moved for call in linear] == [2 * (640 + 64 * 128 + 128 + 1280), 2 * (1280 + 128 * 16 + 160)]
    assert {call.dtype for call in linear} == {"bf16"}
    norm = next(call for call in count.calls if call.kind == "normalisation")
    assert norm.dtype == "fp32"
    # Input and both operands of a norm or product are cast; the weights were in an earlier pass.
    assert [call.bytes_moved for call in count.calls if call.name == "aten::_to_copy"] == [6 * 640, 6 * 1280, 6 * 1280]
    weights = 2 * (64 * 128 + 128 + 128 * 16)
    assert count.peak_live_bytes == weights + 2 * 1280 + 4 * (2 * 1280 + 2 * 10)  # the norm's argument, also cast, and results
    assert not torch.is_autocast_enabled("cuda")


def test_every_scan_says_what_it_counts():
    forward = {name for name, formula in FORMULAS.items() if formula is not rearrangement and not name.endswith("_backward")}
    assert set(SCAN_CONVENTIONS) == forward


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES.keys())
def test_every_backbone_is_counted_in_half_precision(config):
    model = BACKBONES.build(dict(config))
    half, single = (count_macs(model, (1, 3, 40, 48), dtype=dtype) for dtype in ("bf16", "fp32"))
    assert (half.macs, half.scan_ops) == (single.macs, single.scan_ops)
    assert any(call.dtype == "bf16" for call in half.calls) and {call.dtype for call in single.calls if call.macs} == {"fp32"}


@pytest.mark.parametrize(("dtype", "message"), [("bf61", "did you mean 'bf16'"), ("tf32", "one of fp32, bf16, fp16"), (None, "None")])
def test_bad_dtype(dtype, message):
    with pytest.raises(ValueError, match=f"dtype must be .*{message}"):
        count_macs(nn.Identity(), (1, 3), dtype=dtype)
