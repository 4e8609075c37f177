"""The largest batch that fits into memory."""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import nn

from .memory import MIB, available_mib, peak_memory
from .steps import OutOfMemory, check_condition, check_count

CLOSE = 0.05  # the search on a CPU ends where no batch larger by more than this share can fit, or is predicted to


def largest_batch(
    build: Callable[[Any], nn.Module],
    argument: Any,
    size: int | tuple[int, int],
    *,
    channels: int = 3,
    device: str | torch.device = "cpu",
    dtype: str = "fp32",
    mode: str = "forward",
    memory_share: float = 0.8,
    maximum: int = 512,
) -> int:
    """The largest batch whose pass was seen to fit into a share of the memory that is available now.

    On a CPU the memory of one and of two images gives a line, and each batch that the line predicts is tried: few passes are run, since
    large ones take long, and the true largest batch may be a few per cent larger. On a GPU doubling and bisection find it exactly.

    Args:
        build, argument, size, channels, device, dtype, mode: see `peak_memory`.
        memory_share: of the available memory that model, images and pass may take, above 0 and at most 1.
        maximum: no larger batch is tried.

    Returns:
        0 where not even one image fits.

    Raises:
        ValueError: an argument out of its range.
        RuntimeError: as `peak_memory`, for every reason but memory.
    """
    shape, device = check_condition(size, 1, channels, device, dtype, mode)
    check_count("maximum", maximum)
    if not 0 < memory_share <= 1:
        raise ValueError(f"memory_share must be above 0 and at most 1, got {memory_share!r}")
    image_mib = 4 * prod(shape) / MIB if device.type == "cpu" else 0.0  # the peak of a GPU holds the images
    limit_mib = memory_share * available_mib(device)

    def take_mib(batch: int) -> float | None:
        """Memory of the pass, None where it does not fit."""
        images = batch * image_mib
        if images >= limit_mib:
            return None
        where = dict(channels=channels, device=device, dtype=dtype, mode=mode)
        try:
            return images + peak_memory(build, argument, size, batch, limit_mib=limit_mib - images, **where)["peak_mib"]
        except OutOfMemory:
            return None

    return _bisect(take_mib, maximum) if device.type == "cuda" else _predict(take_mib, limit_mib, maximum)


def _predict(take_mib: Callable[[int], float | None], limit_mib: float, maximum: int) -> int:
    """Follows the line through the memory of one image and that of the largest batch that fitted."""
    first = take_mib(1)
    if first is None or maximum == 1:
        return 0 if first is None else 1
    good, bad, batch, missed = 1, maximum + 1, 2, False
    while good < batch < bad and bad - 1 > (1 + CLOSE) * good:
        taken = take_mib(batch)
        if taken is None:  # a little less, and where that fails too, the line is of no use
            bad, batch, missed = batch, (good + batch) // 2 if missed else max(int(0.9 * batch), good + 1), True
            continue
        slope = max((taken - first) / (batch - 1), 1e-3)
        predicted = min(int(1 + (limit_mib - first) / slope), bad - 1)
        good, batch, missed = batch, predicted if predicted > (1 + CLOSE) * batch else batch, False
    return good


def _bisect(take_mib: Callable[[int], float | None], maximum: int) -> int:
    """Doubles the batch until it fails, then halves the gap."""
    good, bad = 0, 1
    while bad <= maximum and take_mib(bad) is not None:
        good, bad = bad, 2 * bad
    bad = min(bad, maximum + 1)
    while bad - good > 1:
        middle = (good + bad) // 2
        if take_mib(middle) is None:
            bad = middle
        else:
            good = middle
    return good
