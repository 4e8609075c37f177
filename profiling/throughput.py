"""Images per second of several models side by side.

The models take turns, one batch each, in an order that changes from round to round: a machine that slows down for a second slows all of
them, so the ratios between them are steadier than the seconds.
"""

import difflib
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from .steps import DTYPES, MODES, backend_flags, borrowed, check_condition, check_count, make_images, make_step, memory_errors

__all__ = ["DTYPES", "MODES", "Spread", "Throughput", "interleave", "measure_throughput"]


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
        ratio: images per second divided by those of `reference`, round by round, so 1 for a reference itself.
        batch, size, dtype, rounds, mode, memory_format, tf32: the condition; size is (height, width) in pixels.
        cudnn_benchmark: whether cuDNN chose its algorithms by trying them out in the first warm-up pass.
        reference: name of the model that the ratio is against.
    """

    name: str
    images_per_s: Spread
    latency_ms: Spread
    ratio: Spread
    batch: int
    size: tuple[int, int]
    dtype: str
    rounds: int
    mode: str
    memory_format: str
    tf32: bool
    cudnn_benchmark: bool
    reference: str

    def as_result(self) -> dict[str, Any]:
        """The numbers as plain data for `measurement_row(result=...)`."""
        return {key: asdict(getattr(self, key)) for key in ("images_per_s", "latency_ms", "ratio")}

    def as_condition(self) -> dict[str, Any]:
        """What was fixed, as plain data for `measurement_row(condition=...)`."""
        keys = ("batch", "dtype", "rounds", "mode", "memory_format", "tf32", "cudnn_benchmark", "reference")
        return {"size": list(self.size), **{key: getattr(self, key) for key in keys}}


def measure_throughput(
    models: Mapping[str, nn.Module],
    size: int | tuple[int, int],
    batch: int = 1,
    *,
    channels: int = 3,
    device: str | torch.device = "cpu",
    dtype: str = "fp32",
    mode: str = "forward",
    memory_format: str = "contiguous",
    tf32: bool = False,
    rounds: int = 20,
    warmup: int = 3,
    max_seconds: float | None = None,
    references: Mapping[str, str] | None = None,
    progress: Callable[[], None] | None = None,
) -> dict[str, Throughput]:
    """Measures the speed of models, interleaved. They are given back as they came: device, weights, buffers, gradients, training mode.

    Args:
        models: name -> model.
        size: height and width in pixels, or one number for both.
        batch: images per pass.
        channels: of the input image.
        device: "cpu" or a CUDA device (timed by device events).
        dtype: "fp32", or "bf16" / "fp16" under autocast.
        mode: "forward", in evaluation mode without gradients, or "training step": forward, backward and AdamW, see `steps.make_step`.
        memory_format: "contiguous" or "channels_last", of the images and of the weights of convolutions.
        tf32: a CUDA device multiplies float32 in TF32.
        rounds: measured passes per model, at least 1.
        warmup: passes per model before the first measured one.
        max_seconds: stop after the first full round past this time (at least one round is measured); None: no limit.
        references: name -> name of the model that its ratio is against; the first model for every name that is left out.
        progress: called after each pass, those of the warm-up included.

    Raises:
        ValueError: for an empty mapping, an unknown name, dtype, mode or memory format, a size, batch, rounds or channels below 1, or TF32
            on a CPU.
        RuntimeError: the device is not present.
        OutOfMemory: the models and one pass do not fit on the device.
    """
    shape, device = check_condition(size, batch, channels, device, dtype, mode, memory_format)
    check_count("rounds", rounds)
    check_count("warmup", warmup, 0)
    if tf32 and device.type != "cuda":
        raise ValueError(f"tf32 is a precision of CUDA devices, got tf32=True with device {device}")
    against = _references(models, references or {})
    benchmark = device.type == "cuda"
    condition = dict(dtype=dtype, mode=mode, memory_format=memory_format, flags=dict(tf32=tf32, cudnn_benchmark=benchmark))
    limits = dict(rounds=rounds, warmup=warmup, max_seconds=max_seconds, progress=progress)
    with memory_errors(device):
        seconds = _seconds(models, shape, device, **condition, **limits)
    return {
        name: Throughput(
            name=name,
            images_per_s=Spread.of([batch / t for t in times]),
            latency_ms=Spread.of([1e3 * t for t in times]),
            ratio=Spread.of([other / t for other, t in zip(seconds[against[name]], times, strict=True)]),
            batch=batch,
            size=shape[2:],
            dtype=dtype,
            rounds=len(times),
            mode=mode,
            memory_format=memory_format,
            tf32=tf32,
            cudnn_benchmark=benchmark,
            reference=against[name],
        )
        for name, times in seconds.items()
    }


def _seconds(
    models: Mapping[str, nn.Module],
    shape: tuple[int, ...],
    device: torch.device,
    *,
    dtype: str,
    mode: str,
    memory_format: str,
    flags: Mapping[str, bool],
    **limits: Any,
) -> dict[str, list[float]]:
    """`interleave` of the models' steps. A function of its own: where memory is short, what it holds is freed with its frame."""
    with ExitStack() as stack:
        stack.enter_context(backend_flags(**flags))
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))  # events are recorded on the current device
        for model in models.values():
            stack.enter_context(borrowed(model, device=device, mode=mode, memory_format=memory_format))
        x = make_images(shape, device, memory_format)
        steps = {name: make_step(model, x, dtype=dtype, mode=mode) for name, model in models.items()}
        return interleave(steps, device=device, **limits)


def interleave(
    steps: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    warmup: int,
    max_seconds: float | None = None,
    device: torch.device | None = None,
    progress: Callable[[], None] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each step in each round: name -> list of equal length. Odd rounds run the steps in reverse order."""
    clock = _cuda_seconds if device is not None and device.type == "cuda" else _wall_seconds

    def timed(name: str) -> float:
        taken = clock(steps[name])
        if progress is not None:
            progress()
        return taken

    names = list(steps)
    for name in names:
        for _ in range(warmup):
            timed(name)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    start = time.perf_counter()
    for turn in range(rounds):
        for name in names if turn % 2 == 0 else reversed(names):
            seconds[name].append(timed(name))
        if max_seconds is not None and time.perf_counter() - start > max_seconds:
            break
    return seconds


def _references(models: Mapping[str, nn.Module], references: Mapping[str, str]) -> dict[str, str]:
    """Name -> name of its reference, for every model."""
    if not models:
        raise ValueError("models must name at least one model, got an empty mapping")
    for name in (*references, *references.values()):
        if name not in models:
            near = difflib.get_close_matches(name, models, n=3) or list(models)
            raise ValueError(f"references must name models that are measured, got {name!r}; did you mean {', '.join(map(repr, near))}?")
    return {name: references.get(name, next(iter(models))) for name in models}


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
