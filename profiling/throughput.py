"""Images per second of several models side by side.

The models take turns, one batch each, in an order that changes from round to round: a machine that slows down for a second slows all of
them, so the ratios between them are steadier than the seconds.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Spread:
    """Median and the 20th and 80th percentile of repeated measurements."""

    median: float
    p20: float
    p80: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        fifths = statistics.quantiles(values, n=5, method="inclusive")
        return cls(median=statistics.median(values), p20=fifths[0], p80=fifths[3])

    def __str__(self) -> str:
        return f"{self.median:.4g} ({self.p20:.4g} to {self.p80:.4g})"


@dataclass(frozen=True)
class Throughput:
    """One model's speed among those that it was measured with.

    Attributes:
        name: the model's name in the mapping.
        images_per_s: images per second, over the rounds.
        latency_ms: milliseconds per batch, over the rounds.
        ratio: images per second divided by those of the first model, round by round, so 1 for the first.
        batch, size, dtype, rounds: the condition; size is (height, width) in pixels.
    """

    name: str
    images_per_s: Spread
    latency_ms: Spread
    ratio: Spread
    batch: int
    size: tuple[int, int]
    dtype: str
    rounds: int

    def as_result(self) -> dict[str, Any]:
        """The numbers as plain data for `measurement_row(result=...)`."""
        return {key: asdict(getattr(self, key)) for key in ("images_per_s", "latency_ms", "ratio")}

    def as_condition(self) -> dict[str, Any]:
        """What was fixed, as plain data for `measurement_row(condition=...)`."""
        return {"batch": self.batch, "size": list(self.size), "dtype": self.dtype, "rounds": self.rounds, "mode": "forward, evaluation"}


def measure_throughput(
    models: Mapping[str, nn.Module],
    size: int | tuple[int, int],
    batch: int = 1,
    *,
    channels: int = 3,
    device: str | torch.device = "cpu",
    dtype: str = "fp32",
    rounds: int = 20,
    warmup: int = 3,
    max_seconds: float | None = None,
) -> dict[str, Throughput]:
    """Measures the forward speed in evaluation mode, the models interleaved; the first one is the reference of the ratios.

    Args:
        models: name -> model. They are moved to `device` and given back in the training mode that they came in.
        size: height and width in pixels, or one number for both.
        batch: images per forward pass.
        channels: of the input image.
        device: "cpu" or a CUDA device (timed by device events).
        dtype: "fp32", or "bf16" / "fp16" under autocast.
        rounds: measured passes per model, at least 1.
        warmup: passes per model before the first measured one.
        max_seconds: stop after the first full round past this time (at least one round is measured); None: no limit.

    Raises:
        ValueError: for an empty mapping, an unknown dtype, or a size, batch, rounds or channels below 1.
        RuntimeError: the device is not present.
    """
    height_width = (size, size) if isinstance(size, int) else tuple(size)
    device = torch.device(device)
    _check(models, height_width, batch, channels, dtype, rounds, warmup, device)
    x = torch.randn(batch, channels, *height_width, generator=torch.Generator().manual_seed(0)).to(device)
    training = {name: model.training for name, model in models.items()}
    autocast = torch.autocast(device.type, DTYPES[dtype]) if dtype != "fp32" else nullcontext()
    try:
        steps = {name: _forward(model.eval().to(device), x) for name, model in models.items()}
        with torch.inference_mode(), autocast:
            seconds = interleave(steps, rounds=rounds, warmup=warmup, max_seconds=max_seconds, device=device)
    finally:
        for name, model in models.items():
            model.train(training[name])
    reference = seconds[next(iter(models))]
    return {
        name: Throughput(
            name=name,
            images_per_s=Spread.of([batch / t for t in times]),
            latency_ms=Spread.of([1e3 * t for t in times]),
            ratio=Spread.of([first / t for first, t in zip(reference, times, strict=True)]),
            batch=batch,
            size=height_width,
            dtype=dtype,
            rounds=len(times),
        )
        for name, times in seconds.items()
    }


def interleave(
    steps: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    warmup: int,
    max_seconds: float | None = None,
    device: torch.device | None = None,
) -> dict[str, list[float]]:
    """Seconds of each step in each round: name -> list of equal length. Odd rounds run the steps in reverse order."""
    timed = _cuda_seconds if device is not None and device.type == "cuda" else _wall_seconds
    names = list(steps)
    for name in names:
        for _ in range(warmup):
            timed(steps[name])
    seconds: dict[str, list[float]] = {name: [] for name in names}
    start = time.perf_counter()
    for turn in range(rounds):
        for name in names if turn % 2 == 0 else reversed(names):
            seconds[name].append(timed(steps[name]))
        if max_seconds is not None and time.perf_counter() - start > max_seconds:
            break
    return seconds


def _forward(model: nn.Module, x: torch.Tensor) -> Callable[[], Any]:
    return lambda: model(x)


def _wall_seconds(step: Callable[[], Any]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _cuda_seconds(step: Callable[[], Any]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def _check(
    models: Mapping[str, nn.Module],
    size: tuple[int, ...],
    batch: int,
    channels: int,
    dtype: str,
    rounds: int,
    warmup: int,
    device: torch.device,
) -> None:
    if not models:
        raise ValueError("models must name at least one model, got an empty mapping")
    if len(size) != 2:
        raise ValueError(f"size must be one number or (height, width) in pixels, got {size}")
    for name, value, least in (
        ("height", size[0], 1),
        ("width", size[1], 1),
        ("batch", batch, 1),
        ("channels", channels, 1),
        ("rounds", rounds, 1),
        ("warmup", warmup, 0),
    ):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"device {device} is not present: this PyTorch sees no CUDA device")
