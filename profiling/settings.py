"""What a profiling session measures, checked before anything is built."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..engine.errors import ConfigError
from .throughput import DTYPES

MAX = "max"
FORWARD, TRAINING = "forward", "training step"


@dataclass(frozen=True)
class Settings:
    """What is measured, and how.

    Attributes:
        sizes: images, (height, width) in pixels; a single number stands for a square.
        batches: images per pass; "max" stands for the largest batch that fits, found for each model.
        dtypes: "fp32", and "bf16" or "fp16" under autocast.
        device: "cpu" or a CUDA device.
        train: also the training step, forward + backward + optimizer.
        channels: of the image.
        rounds, max_seconds: timed passes per model, and the time after which no further round starts.
        memory: measure the peak memory, on a CPU in a child process each.
        operators: measure the share of time by operator, at the first batch of `batches`.
        trace: folder for Chrome traces; None: none are written.
        memory_format, tf32: "contiguous" or "channels_last"; TF32 matrix products on a GPU.
        projections: devices of `roofline.DEVICES` for which latency and memory are estimated.
    """

    sizes: Sequence[int | tuple[int, int]] = (224, 512, 1024)
    batches: Sequence[int | str] = (1,)
    dtypes: Sequence[str] = ("fp32",)
    device: str = "cpu"
    train: bool = False
    channels: int = 3
    rounds: int = 9
    max_seconds: float = 120.0
    memory: bool = True
    operators: bool = True
    trace: Path | None = None
    memory_format: str = "contiguous"
    tf32: bool = False
    projections: Sequence[str] = ()

    def __post_init__(self) -> None:
        sizes = tuple((size, size) if isinstance(size, int) else tuple(size) for size in self.sizes)
        for size in sizes:
            if len(size) != 2 or any(not isinstance(side, int) or side < 1 for side in size):
                raise ConfigError(f"sizes: expected pixels (one positive integer, or height and width), got {size!r}")
        for batch in self.batches:
            if batch != MAX and (not isinstance(batch, int) or isinstance(batch, bool) or batch < 1):
                raise ConfigError(f"batches: expected positive integers or {MAX!r}, got {batch!r}")
        if unknown := [dtype for dtype in self.dtypes if dtype not in DTYPES]:
            raise ConfigError(f"dtypes: expected some of {', '.join(DTYPES)}, got {unknown[0]!r}")
        for name, values in (("sizes", sizes), ("batches", self.batches), ("dtypes", self.dtypes)):
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"{name}: expected at least one value and none twice, got {tuple(values)!r}")
        if not isinstance(self.rounds, int) or self.rounds < 1:
            raise ConfigError(f"rounds: expected a positive integer, got {self.rounds!r}")
        if self.memory_format not in ("contiguous", "channels_last"):
            raise ConfigError(f"memory_format: expected contiguous or channels_last, got {self.memory_format!r}")
        _check_device(self.device)
        if self.tf32 and torch.device(self.device).type == "cpu":
            raise ConfigError(f"tf32: a mode of CUDA devices, got device {self.device}")
        object.__setattr__(self, "sizes", sizes)

    @property
    def first_batch(self) -> int | None:
        """The batch at which the time is divided among the operators."""
        return next((batch for batch in self.batches if batch != MAX), None)

    @property
    def modes(self) -> tuple[str, ...]:
        return (FORWARD, TRAINING) if self.train else (FORWARD,)


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device: expected cpu, cuda or cuda:<index>, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device: expected cpu or a CUDA device, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device: {name} is not present, this PyTorch sees {torch.cuda.device_count()} CUDA devices")
