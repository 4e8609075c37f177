"""Latency and memory on a device that is not here, estimated from what a model computes and moves and from the device's data sheet.

Each operator call takes as long as the slower of two things: its arithmetic at the device's peak, or its bytes at the device's bandwidth
(the roofline model, Williams et al. 2009). A real run does not reach either, and spends time on launching kernels and on the host, so the
estimate is nearly always too low: read it as what the device allows, not as what a user will see. Small calls whose data stay in a cache
can be faster. `projection_error` says how far off it was where measurements exist.
"""

import difflib
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from .counter import OperatorCall
from .dry_run import check_dtype
from .flops import MacCount
from .provenance import device_name
from .throughput import DTYPES, Spread

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


@dataclass(frozen=True)
class Device:
    """What a device can do at best.

    Attributes:
        name: short name.
        peak_flops: precision ("fp32" outside tensor cores, "tf32", "bf16", "fp16") -> FLOP/s of dense matrix products with fp32
            accumulation; a precision that the device has no fast path for is missing.
        bandwidth: bytes/s of its memory.
        memory_bytes: size of its memory.
        source: where the numbers come from.
        aliases: names under which a driver reports the device.
    """

    name: str
    peak_flops: Mapping[str, float]
    bandwidth: float
    memory_bytes: float
    source: str
    aliases: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Projection:
    """An estimate, not a measurement: the time that a device cannot go below, launch overheads ignored, and the memory it needs.

    Attributes:
        device, dtype: for what.
        latency_ms: milliseconds per forward pass.
        compute_share, memory_share: fraction of it in calls that the arithmetic, or the memory, limits; they add up to 1.
        peak_mib: weights, input and the most that results take at one time. The driver's and the allocator's own memory comes on top.
        fits: whether that is no more than the device's memory.
    """

    device: str
    dtype: str
    latency_ms: float
    compute_share: float
    memory_share: float
    peak_mib: float
    fits: bool

    def as_result(self) -> dict[str, Any]:
        """The numbers as plain data for `measurement_row(result=...)`."""
        return {key: value for key, value in asdict(self).items() if key not in ("device", "dtype")}


def _sheet(name: str, gb: int, gb_per_s: float, source: str, *aliases: str, **tflops: float) -> Device:
    """A data sheet in its own units: memory in GB of 10^9 bytes, which understates it a little, GB/s, and TFLOP/s."""
    peaks = {precision: value * 1e12 for precision, value in tflops.items()}
    return Device(name, peaks, gb_per_s * 1e9, gb * 1e9, source, aliases)


# Dense peaks: where a data sheet states them with sparsity, half of it. GeForce: fp16 and bf16 products accumulated in fp32.
_AMPERE = dict(fp32=19.5, tf32=156, bf16=312, fp16=312)
_HOPPER = dict(fp32=67, tf32=494.5, bf16=989.5, fp16=989.5)
_SHEETS = (
    _sheet("A100-SXM4-40GB", 40, 1555, "NVIDIA A100 data sheet", "NVIDIA A100-SXM4-40GB", **_AMPERE),
    _sheet("A100-SXM4-80GB", 80, 2039, "NVIDIA A100 80GB data sheet", "NVIDIA A100-SXM4-80GB", **_AMPERE),
    _sheet("A100-PCIe-80GB", 80, 1935, "NVIDIA A100 80GB data sheet", "NVIDIA A100 80GB PCIe", **_AMPERE),
    _sheet("H100-SXM5", 80, 3350, "NVIDIA H100 data sheet", "NVIDIA H100 80GB HBM3", **_HOPPER),
    _sheet("H100-PCIe", 80, 2000, "NVIDIA H100 data sheet", "NVIDIA H100 PCIe", fp32=51, tf32=378, bf16=756.5, fp16=756.5),
    _sheet("H200-SXM", 141, 4800, "NVIDIA H200 data sheet", "NVIDIA H200", **_HOPPER),
    _sheet("L4", 24, 300, "NVIDIA L4 data sheet", "NVIDIA L4", fp32=30.3, tf32=60, bf16=121, fp16=121),
    _sheet("L40S", 48, 864, "NVIDIA L40S data sheet", "NVIDIA L40S", fp32=91.6, tf32=183, bf16=362, fp16=362),
    _sheet("A10", 24, 600, "NVIDIA A10 data sheet", "NVIDIA A10", fp32=31.2, tf32=62.5, bf16=125, fp16=125),
    _sheet(
        *("RTX-4090", 24, 1008, "NVIDIA Ada GPU architecture white paper", "NVIDIA GeForce RTX 4090"),
        **dict(fp32=82.6, tf32=82.6, bf16=165.2, fp16=165.2),
    ),
    _sheet(
        *("RTX-3090", 24, 936, "NVIDIA Ampere GA102 GPU architecture white paper", "NVIDIA GeForce RTX 3090"),
        **dict(fp32=35.6, tf32=35.6, bf16=71, fp16=71),
    ),
    _sheet("V100-SXM2-32GB", 32, 900, "NVIDIA V100 data sheet", "Tesla V100-SXM2-32GB", fp32=15.7, fp16=125),
    _sheet("T4", 16, 320, "NVIDIA T4 product brief", "Tesla T4", fp32=8.1, fp16=65),
)
DEVICES: dict[str, Device] = {device.name: device for device in _SHEETS}


def find_device(name: str) -> Device:
    """The data sheet of a device, by its name in `DEVICES` or as a driver reports it; case, spaces, "-" and "_" do not matter.

    Raises:
        ValueError: no such device; the message has the near names.
    """
    known = {_plain(alias): device for device in _SHEETS for alias in (device.name, *device.aliases)}
    if isinstance(name, str) and _plain(name) in known:
        return known[_plain(name)]
    plain = _plain(str(name))
    near = [device.name for key, device in known.items() if plain and key.startswith(plain)]
    near = near or [known[match].name for match in difflib.get_close_matches(plain, known, n=3, cutoff=0.5)]
    hint = f" Did you mean {' or '.join(dict.fromkeys(near))}?" if near else ""
    raise ValueError(f"device: no data sheet of {name!r}.{hint} Known: {', '.join(DEVICES)}.")


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter not in " -_")


def measure_device(device: str | torch.device = "cpu", dtypes: Sequence[str] = ("fp32",)) -> Device:
    """Peaks of the machine at hand: the best of repeated square matrix products per precision, and of repeated copies.

    Args:
        device: "cpu" (with the threads that PyTorch uses now) or a CUDA device.
        dtypes: of `PRECISIONS`; "fp32" is always measured, outside tensor cores. "tf32" needs a CUDA device.

    Raises:
        ValueError: an unknown precision, or "tf32" without tensor cores.
        RuntimeError: the device is not present.
    """
    device = torch.device(device)
    precisions = list(dict.fromkeys(("fp32", *dtypes)))
    for precision in precisions:
        check_dtype(precision, PRECISIONS)
    if "tf32" in precisions and device.type != "cuda":
        raise ValueError(f"dtypes: tf32 is a precision of CUDA devices, got device {str(device)!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"device {device} is not present: this PyTorch sees no CUDA device")
    peaks = {precision: _matmul_flops(device, precision) for precision in precisions}
    return Device(
        name=device_name(device),
        peak_flops=peaks,
        bandwidth=_copy_bytes_per_s(device),
        memory_bytes=_memory_bytes(device),
        source=f"measured: square matrix products and copies on {device}, the best of several",
    )


def _matmul_flops(device: torch.device, precision: str) -> float:
    """FLOP/s; the matrices grow until one product takes a twentieth of a second."""
    dtype = DTYPES.get(precision, torch.float32)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    best = 0.0
    try:
        for size in (256, 512, 1024, 2048, 4096, 8192, 16384):
            a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
            out = torch.empty_like(a)
            seconds = _best_seconds(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device)
            best = max(best, 2 * size**3 / seconds)
            if seconds > 0.05:
                break
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return best


def _copy_bytes_per_s(device: torch.device) -> float:
    """A copy reads and writes every byte once. The block is far larger than a cache."""
    source = torch.zeros((2**30 if device.type == "cuda" else 2**27) // 4, device=device)
    target = torch.ones_like(source)
    return 2 * source.numel() * 4 / _best_seconds(lambda: target.copy_(source), device)


def _best_seconds(step: Callable[[], Any], device: torch.device, repeats: int = 5) -> float:
    def synchronise() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    step()
    best = float("inf")
    for _ in range(repeats):
        synchronise()
        start = time.perf_counter()
        step()
        synchronise()
        best = min(best, time.perf_counter() - start)
    return best


def _memory_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def project(count: MacCount, device: Device, *, dtype: str = "fp32", weights_bytes: int) -> Projection:
    """Estimates a forward pass on `device`: the sum over the calls of max(FLOPs / peak, bytes / bandwidth).

    A multiply-add is two FLOPs at the peak of the call's precision; an element operation of a scan is one FLOP outside tensor cores (the
    "fp32" peak); other operators, whose arithmetic is not counted, take what their bytes take.

    Args:
        count: of the same dtype ("fp32" for "tf32").
        device: from `find_device` or `measure_device`.
        dtype: "fp32", "tf32" (fp32 tensors, products on tensor cores), or "bf16" / "fp16" under autocast.
        weights_bytes: parameters and buffers in memory.

    Raises:
        ValueError: the device has no peak for the dtype, the count is of another dtype, or weights_bytes is negative.
    """
    check_dtype(dtype, PRECISIONS)
    if dtype not in device.peak_flops:
        raise ValueError(f"dtype: {device.name} has no peak for {dtype}, only for {', '.join(device.peak_flops)} ({device.source})")
    counted = "fp32" if dtype == "tf32" else dtype
    if count.dtype != counted:
        raise ValueError(f"count: expected one of dtype {counted!r}, got {count.dtype!r}; use count_macs(..., dtype={counted!r})")
    if weights_bytes < 0:
        raise ValueError(f"weights_bytes must not be negative, got {weights_bytes}")
    seconds = {"compute": 0.0, "memory": 0.0}
    for call in count.calls:
        compute, memory = _compute_seconds(call, device, dtype), call.bytes_moved / device.bandwidth
        seconds["compute" if compute > memory else "memory"] += max(compute, memory)
    total = sum(seconds.values())
    peak_bytes = weights_bytes + count.input_bytes + count.peak_live_bytes
    return Projection(
        device=device.name,
        dtype=dtype,
        latency_ms=1e3 * total,
        compute_share=seconds["compute"] / total if total else 0.0,
        memory_share=seconds["memory"] / total if total else 1.0,
        peak_mib=peak_bytes / 2**20,
        fits=peak_bytes <= device.memory_bytes,
    )


def _compute_seconds(call: OperatorCall, device: Device, dtype: str) -> float:
    """Under autocast some products stay in fp32, and run at that peak."""
    precision = dtype if dtype == "tf32" or call.dtype == dtype else "fp32"
    return 2 * call.macs / device.peak_flops[precision] + call.scan_ops / device.peak_flops["fp32"]


def projection_error(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    """How far estimates were off where measurements exist: median, p20 and p80 of measured / estimated.

    Args:
        pairs: (measured_ms, estimated_ms), positive.

    Raises:
        ValueError: no pairs, or one that is not positive and finite.
    """
    if not pairs:
        raise ValueError("pairs must hold at least one (measured_ms, estimated_ms), got none")
    for pair in pairs:
        if not all(0 < value < math.inf for value in pair):
            raise ValueError(f"pairs must be positive, finite milliseconds, got {tuple(pair)}")
    return asdict(Spread.of([measured / estimated for measured, estimated in pairs]))
