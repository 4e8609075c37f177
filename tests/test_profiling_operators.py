"""Time by operator: who claims which event, on models of known structure and on trees made by hand."""

import gzip
import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.autograd import DeviceType

from linescan.kernels.bi_wkv import bi_wkv
from linescan.kernels.costs import FORMULAS
from linescan.kernels.q_shift import q_shift
from linescan.profiling.operators import CATEGORIES, TABLE, _times, category, operator_name, time_by_operator


class Scan(nn.Module):
    """Bi-WKV and nothing else: w, u are parameters, k and v the first image, (C, H, W) read as (B, T, C)."""

    def __init__(self, backend: str = "auto"):
        super().__init__()
        self.w, self.u, self.backend = nn.Parameter(torch.ones(16)), nn.Parameter(torch.ones(16)), backend

    def forward(self, x):
        return bi_wkv(self.w, self.u, x[0], x[0], backend=self.backend)


class Shift(nn.Module):
    def forward(self, x):
        return q_shift(x.flatten(2).mT, (x.shape[2], x.shape[3]))


class Attention(nn.Module):
    def forward(self, x):
        return nn.functional.scaled_dot_product_attention(x, x, x)


def test_categories_are_those_of_the_table():
    assert sorted(CATEGORIES) == sorted([*TABLE, "scan", "other"])


@pytest.mark.parametrize(
    ("event", "name", "group"),
    [
        ("aten::conv2d", "aten::conv2d", "convolution"),
        ("autograd::engine::evaluate_function: ConvolutionBackward0", "aten::convolution", "convolution"),
        ("aten::_slow_conv2d_backward", "aten::slow_conv2d", "convolution"),
        ("aten::resolve_conj", "aten::resolve_conj", "data movement"),
        ("AddmmBackward0", "aten::addmm", "linear"),
        ("aten::baddbmm", "aten::baddbmm", "matmul"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "aten::scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("ScaledDotProductFlashAttentionForCpuBackward0", "aten::scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::native_layer_norm_backward", "aten::native_layer_norm", "normalisation"),
        ("NativeBatchNormBackward0", "aten::native_batch_norm", "normalisation"),
        ("aten::_softmax_backward_data", "aten::softmax", "activation"),
        ("aten::relu_", "aten::relu", "activation"),
        ("UpsampleBilinear2DBackward0", "aten::upsample_bilinear2d", "resampling and pooling"),
        ("aten::adaptive_avg_pool2d", "aten::adaptive_avg_pool2d", "resampling and pooling"),
        ("aten::add_", "aten::add", "element-wise"),
        ("aten::_to_copy", "aten::to_copy", "data movement"),
        ("CopyBackwards", "aten::copy", "data movement"),
        ("autograd::engine::evaluate_function: torch::autograd::AccumulateGrad", "aten::accumulate_grad", "data movement"),
        ("linescan::bi_wkv", "linescan::bi_wkv", "scan"),
        ("linescan_bi_wkvBackward", "linescan::bi_wkv", "scan"),
        ("autograd::engine::evaluate_function: linescan_bi_wkvBackward", "linescan::bi_wkv", "scan"),
        ("linescan::selective_scan_backward", "linescan::selective_scan", "scan"),
        ("linescan::q_shift_mix_backward", "linescan::q_shift_mix", "data movement"),
        ("linescan_cross_scanBackward", "linescan::cross_scan", "data movement"),
        ("Optimizer.step#AdamW.step", "Optimizer.step#AdamW.step", "optimizer"),
        ("aten::_amp_foreach_non_finite_check_and_unscale_", "aten::amp_foreach_non_finite_check_and_unscale", "optimizer"),
        ("mmcv::deform_conv2d", "mmcv::deform_conv2d", None),
        ("my own label", "my own label", None),
        ("CheckpointFunctionBackward", "aten::checkpoint_function", None),
    ],
)
def test_names(event, name, group):
    assert operator_name(event) == name and category(name) == group


def test_every_operator_with_a_formula_has_a_category():
    found = {name: category(operator_name(name)) for name in FORMULAS}
    assert set(found.values()) == {"scan", "data movement"}
    assert {name for name, group in found.items() if group == "scan"} == {
        n for n in FORMULAS if "cross_m" not in n and "shift" not in n
    } - {
        "linescan::cross_scan",
        "linescan::cross_scan_backward",
    }


def event(name, *children, us=0.0, device_us=0.0, device=DeviceType.CPU):
    made = SimpleNamespace(
        name=name, self_cpu_time_total=us, self_device_time_total=device_us, device_type=device, is_user_annotation=False
    )
    made.cpu_parent, made.cpu_children = None, list(children)
    for child in children:
        child.cpu_parent = made
    return made


def flat(*roots):
    return [e for root in roots for e in (root, *flat(*root.cpu_children))]


def test_the_topmost_known_event_claims_its_branch():
    copy, mul = event("aten::copy_", us=10), event("aten::mul", us=20)
    scan = event("linescan::bi_wkv", event("aten::bmm", copy, us=30), us=40)
    foreign = event("other_package::block", event("aten::gelu", us=50), us=60)
    label = event("my own label", scan, mul, foreign)
    found = _times(flat(label, event("linescan_bi_wkvBackward", event("linescan::bi_wkv_backward", us=90))), False, passes=2)
    expected = {"scan": 0.085, "element-wise": 0.01, "activation": 0.025, "other": 0.03}
    assert {name: ms for name, ms in found.milliseconds.items() if ms} == pytest.approx(expected)
    assert found.share == pytest.approx({name: found.milliseconds[name] / 0.15 for name in CATEGORIES})
    assert found.top[0] == {"name": "linescan::bi_wkv", "category": "scan", "calls": 1, "ms": pytest.approx(0.085)}
    assert [entry["name"] for entry in found.top[1:]] == ["other_package::block", "aten::gelu", "aten::mul"]


def test_a_gpu_counts_kernels_and_not_their_launch():
    linear = event("aten::linear", event("aten::addmm", us=5, device_us=70), us=9)
    alone = event("a kernel that no operator launched", device_us=30, device=DeviceType.CUDA)
    launched = event("gemm", device_us=70, device=DeviceType.CUDA)
    found = _times([*flat(linear), alone, launched], True, passes=1)
    assert {name: ms for name, ms in found.milliseconds.items() if ms} == pytest.approx({"linear": 0.07, "other": 0.03})


def main_category(model, **arguments):
    times = time_by_operator(model, 16, **{"batch": 2, "channels": 8, "passes": 2, **arguments})
    assert sum(times.share.values()) == pytest.approx(1) and set(times.share) == set(CATEGORIES)
    return {name for name, share in times.share.items() if share > 0}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Conv2d(8, 4, 3), {"convolution"}),
        (nn.Linear(16, 4), {"linear"}),
        (nn.Linear(16, 4, bias=False), {"linear"}),
        (Attention(), {"attention"}),
        (nn.LayerNorm(16), {"normalisation"}),
        (nn.BatchNorm2d(8), {"normalisation"}),
        (nn.GELU(), {"activation"}),
        (nn.AvgPool2d(2), {"resampling and pooling"}),
        (nn.Upsample(scale_factor=2, mode="bilinear"), {"resampling and pooling"}),
        (Shift(), {"data movement"}),
        (nn.Flatten(), {"data movement"}),
        (Scan(), {"scan", "data movement"}),
        (Scan("torch"), {"scan", "data movement"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_a_model_of_one_operator(model, expected):
    assert main_category(model) == expected


def test_what_a_scan_calls_is_scan_and_its_views_of_the_image_are_not():
    times = time_by_operator(Scan("torch"), (256, 16), channels=8, passes=1)
    assert times.top[0]["name"] == "linescan::bi_wkv" and times.share["scan"] > 0.5
    assert {entry["name"] for entry in times.top} <= {"linescan::bi_wkv", "aten::select", "aten::as_strided"}


def test_training_has_gradients_where_their_operator_is_and_an_optimizer():
    model = nn.Conv2d(8, 4, 3)
    assert main_category(model, mode="training step") == {"convolution", "element-wise", "data movement", "optimizer"}
    times = time_by_operator(Scan(), 16, channels=8, mode="training step", passes=3)
    calls = {entry["name"]: entry["calls"] for entry in times.top}
    assert calls["linescan::bi_wkv"] >= 2 and calls["Optimizer.step#AdamW.step"] == 1  # forward and backward; per pass
    assert times.share["optimizer"] > 0 and times.share["other"] == 0


def test_the_model_is_given_back():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    time_by_operator(model, 8, mode="training step", passes=1)
    assert not any(module.training for module in model.modules()) and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
def test_the_trace_is_a_chrome_trace(tmp_path, name):
    path = tmp_path / "new" / name
    result = time_by_operator(nn.Conv2d(3, 4, 3), 8, trace=path).as_result()
    assert json.loads(json.dumps(result)) == result
    read = gzip.open if name.endswith(".gz") else open
    with read(path, "rt") as file:
        assert "aten::conv2d" in {entry.get("name") for entry in json.load(file)["traceEvents"]}


def test_a_model_without_operators_is_an_error():
    with pytest.raises(RuntimeError, match="saw no operator"):
        time_by_operator(nn.Identity(), 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(size=0), "height must be an integer of at least 1, got 0"),
        (dict(size=(4, 4, 4)), "size"),
        (dict(batch=0), "batch"),
        (dict(channels=1.5), "channels"),
        (dict(passes=0), "passes must be an integer of at least 1, got 0"),
        (dict(dtype="fp64"), "dtype must be one of 'fp32', 'bf16', 'fp16', got 'fp64'"),
        (dict(mode="train"), "mode must be one of 'forward', 'training step', got 'train'"),
        (dict(device="meta"), "device must be cpu or a CUDA device, got meta"),
        (dict(trace="trace.txt"), r"trace must end in \.json or \.json\.gz, got 'trace.txt'"),
        (dict(mode="training step"), "needs trainable parameters, Identity has none"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        time_by_operator(**{"model": nn.Identity(), "size": 4, **arguments})
