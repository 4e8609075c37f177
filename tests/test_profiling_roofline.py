"""The roofline estimate against closed forms on made-up devices, and the table of data sheets."""

import json
import math

import pytest
import torch
from torch import nn

from linescan.backbones import HybridBackbone
from linescan.profiling import count_macs
from linescan.profiling.roofline import DEVICES, PRECISIONS, Device, find_device, measure_device, project, projection_error


def made_up(*, flops: float, bandwidth: float, memory_bytes: float = 1e9, **peaks: float) -> Device:
    return Device("made-up", {"fp32": flops, **peaks}, bandwidth, memory_bytes, "made up")


LINEAR = count_macs(nn.Linear(64, 32), (10, 64))
BYTES = 4 * (10 * 64 + 64 * 32 + 32 + 10 * 32)


def test_one_linear_layer_bound_by_its_arithmetic():
    found = project(LINEAR, made_up(flops=1e6, bandwidth=1e12), weights_bytes=0)
    assert found.latency_ms == pytest.approx(1e3 * 2 * 10 * 64 * 32 / 1e6)
    assert (found.compute_share, found.memory_share) == (1, 0)


def test_one_linear_layer_bound_by_memory():
    found = project(LINEAR, made_up(flops=1e15, bandwidth=1e6), weights_bytes=0)
    assert found.latency_ms == pytest.approx(1e3 * BYTES / 1e6)
    assert (found.compute_share, found.memory_share) == (0, 1)


def test_calls_are_bound_one_by_one():
    """The sum of the larger terms, not the larger of the sums."""
    count = count_macs(nn.Sequential(nn.Linear(64, 32), nn.GELU()), (10, 64))
    device = made_up(flops=2 * 10 * 64 * 32, bandwidth=BYTES / 0.5)
    found = project(count, device, weights_bytes=0)
    element_wise = 0.5 * 4 * 2 * 320 / BYTES
    assert found.latency_ms == pytest.approx(1e3 * (1 + element_wise))
    assert found.compute_share == pytest.approx(1 / (1 + element_wise))
    assert found.compute_share + found.memory_share == pytest.approx(1)


def test_memory_needed():
    """Weights, the input of 640 floats, and the result of 320."""
    weights = 4 * (64 * 32 + 32)
    for memory_bytes, fits in ((weights + 4 * 960, True), (weights + 4 * 960 - 1, False)):
        device = made_up(flops=1e12, bandwidth=1e12, memory_bytes=memory_bytes)
        found = project(LINEAR, device, weights_bytes=weights)
        assert found.peak_mib == (weights + 4 * 960) / 2**20
        assert found.fits is fits


def test_scans_run_outside_tensor_cores():
    model = HybridBackbone("test", "ss2d").eval()
    count = count_macs(model, (1, 3, 64, 64), dtype="bf16")
    slow = project(count, made_up(flops=1e6, bandwidth=1e30, bf16=1e30), dtype="bf16", weights_bytes=0)
    assert slow.latency_ms == pytest.approx(1e3 * count.scan_ops / 1e6) and count.scan_ops > 0


def test_products_that_autocast_leaves_in_fp32_run_at_that_peak():
    class Mixed(nn.Module):
        def forward(self, x):
            y = x @ x.mT
            with torch.autocast(x.device.type, enabled=False):
                return y.float() @ y.float().mT

    count = count_macs(Mixed(), (4, 8), dtype="fp16")
    assert [call.dtype for call in count.calls if call.macs] == ["fp16", "fp32"]
    found = project(count, made_up(flops=1e3, bandwidth=1e30, fp16=1e6), dtype="fp16", weights_bytes=0)
    assert found.latency_ms == pytest.approx(1e3 * (2 * 4 * 4 * 8 / 1e6 + 2 * 4 * 4 * 4 / 1e3))


def test_tf32_is_fp32_on_tensor_cores():
    device = made_up(flops=1e6, bandwidth=1e30, tf32=4e6)
    plain, fast = (project(LINEAR, device, dtype=dtype, weights_bytes=0).latency_ms for dtype in ("fp32", "tf32"))
    assert plain == pytest.approx(4 * fast)


def test_a_model_that_does_nothing():
    found = project(count_macs(nn.Identity(), (1, 3)), made_up(flops=1, bandwidth=1), weights_bytes=0)
    assert (found.latency_ms, found.compute_share, found.memory_share) == (0, 0, 1)


def test_result_is_plain_data():
    result = project(LINEAR, find_device("T4"), weights_bytes=5).as_result()
    assert set(json.loads(json.dumps(result))) == {"latency_ms", "compute_share", "memory_share", "peak_mib", "fits"}


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES.keys())
def test_data_sheets_are_plausible(device):
    assert "fp32" in device.peak_flops and set(device.peak_flops) <= set(PRECISIONS) and device.source.startswith("NVIDIA ")
    assert 5e12 < device.peak_flops["fp32"] <= min(device.peak_flops.values()) and max(device.peak_flops.values()) < 1e15
    assert 2e11 < device.bandwidth < 1e13 and 1e10 < device.memory_bytes < 2e11
    assert all(find_device(alias) is device for alias in (device.name, *device.aliases, device.name.lower().replace("-", " ")))


def test_dense_peaks():
    """Public figures, so that a slip in the table is seen."""
    peaks = {name: DEVICES[name].peak_flops.get("bf16") for name in ("A100-SXM4-80GB", "H100-SXM5", "RTX-4090", "V100-SXM2-32GB", "T4")}
    assert peaks == {"A100-SXM4-80GB": 312e12, "H100-SXM5": 989.5e12, "RTX-4090": 165.2e12, "V100-SXM2-32GB": None, "T4": None}
    assert DEVICES["H100-SXM5"].bandwidth == 3.35e12 and DEVICES["H200-SXM"].memory_bytes == 141e9


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("A100", "Did you mean A100-SXM4-40GB or A100-SXM4-80GB or A100-PCIe-80GB"),
        ("H100-SXM4", "H100-SXM5"),
        ("RTX-4080", "RTX-4090"),
        ("", "Known: A100"),
        (None, "no data sheet of None"),
    ],
)
def test_unknown_device(name, message):
    with pytest.raises(ValueError, match=message):
        find_device(name)


HALF = count_macs(nn.Linear(8, 8), (2, 8), dtype="bf16")


@pytest.mark.parametrize(
    ("count", "device", "dtype", "weights_bytes", "message"),
    [
        (HALF, "V100-SXM2-32GB", "bf16", 0, "V100-SXM2-32GB has no peak for bf16, only for fp32, fp16"),
        (HALF, "T4", "bf16", 0, "T4 has no peak for bf16"),
        (LINEAR, "T4", "tf32", 0, "T4 has no peak for tf32"),
        (LINEAR, "H100-SXM5", "bf16", 0, r"count: expected one of dtype 'bf16', got 'fp32'; use count_macs\(\.\.\., dtype='bf16'\)"),
        (HALF, "H100-SXM5", "tf32", 0, "expected one of dtype 'fp32', got 'bf16'"),
        (LINEAR, "H100-SXM5", "fp23", 0, "dtype must be one of .*did you mean 'fp32'"),
        (LINEAR, "H100-SXM5", "fp32", -1, "weights_bytes must not be negative, got -1"),
    ],
)
def test_bad_projection(count, device, dtype, weights_bytes, message):
    with pytest.raises(ValueError, match=message):
        project(count, DEVICES[device], dtype=dtype, weights_bytes=weights_bytes)


def test_the_present_machine_can_be_measured(monkeypatch):
    monkeypatch.setattr("linescan.profiling.roofline._copy_bytes_per_s", lambda device: 2e10)
    monkeypatch.setattr("linescan.profiling.roofline._matmul_flops", lambda device, precision: {"fp32": 1e11, "bf16": 2e11}[precision])
    device = measure_device("cpu", ("bf16", "fp32"))
    assert device.peak_flops == {"fp32": 1e11, "bf16": 2e11} and device.memory_bytes > 2**28 and device.source.startswith("measured")
    assert project(LINEAR, device, weights_bytes=0).latency_ms > 0


def test_measured_peaks_are_rates(monkeypatch):
    """The clock is stopped: two steps of work per tick."""
    from linescan.profiling import roofline

    monkeypatch.setattr(roofline, "_best_seconds", lambda step, device: (step(), 0.1)[1])
    assert roofline._matmul_flops(torch.device("cpu"), "fp32") == pytest.approx(2 * 256**3 / 0.1)
    assert roofline._copy_bytes_per_s(torch.device("cpu")) == pytest.approx(2 * 2**27 / 0.1)
    steps = []
    monkeypatch.undo()
    assert 0 < roofline._best_seconds(lambda: steps.append(1), torch.device("cpu"), repeats=3) < math.inf and len(steps) == 4


@pytest.mark.parametrize(
    ("device", "dtypes", "error", "message"),
    [
        ("cpu", ("tf32",), ValueError, "tf32 is a precision of CUDA devices"),
        ("cpu", ("int8",), ValueError, "dtype must be one of fp32, tf32, bf16, fp16"),
        pytest.param(
            *("cuda", ("fp32",), RuntimeError, "sees no CUDA device"), marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has one")
        ),
    ],
)
def test_a_machine_that_cannot_be_measured(device, dtypes, error, message):
    with pytest.raises(error, match=message):
        measure_device(device, dtypes)


def test_projection_error():
    assert projection_error([(2.0, 1.0)]) == {"median": 2, "p20": 2, "p80": 2}
    assert projection_error([(1, 1), (4, 2), (9, 3), (16, 4), (25, 5), (36, 6)]) == {"median": 3.5, "p20": 2, "p80": 5}


@pytest.mark.parametrize("pairs", [[], [(1.0, 0.0)], [(-1.0, 2.0)], [(1.0, math.nan)]])
def test_bad_pairs(pairs):
    with pytest.raises(ValueError, match="pairs must"):
        projection_error(pairs)
