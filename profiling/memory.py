"""Peak memory of a forward pass on a CPU, measured in a process of its own.

The allocator of a CPU keeps what was freed, so a second measurement in one process finds its memory already there. Each measurement
therefore starts a fresh process, and reports by how much the resident set grew at its highest.
"""

import multiprocessing
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_growth_mib(
    build: Callable[..., nn.Module],
    config: Mapping[str, Any],
    size: int | tuple[int, int],
    batch: int = 1,
    *,
    channels: int = 3,
    threads: int | None = None,
) -> dict[str, float]:
    """Memory of one float32 forward pass in inference mode.

    Args:
        build: makes the model from `config`; it must be importable by name (the child process imports it).
        config: its argument.
        size: height and width in pixels, or one number for both.
        batch: images per pass.
        channels: of the image.
        threads: of the child; None for those of this process.

    Returns:
        `weights_mib`: parameters and buffers; `peak_growth_mib`: highest resident set during the pass minus that before it, the input not
        counted.

    Raises:
        NotImplementedError: no /proc/self/clear_refs, which only Linux has.
        RuntimeError: the child process failed.
    """
    if not _CLEAR.exists():
        raise NotImplementedError("the peak of the resident set is read from /proc, which only Linux has")
    height_width = (size, size) if isinstance(size, int) else tuple(size)
    arguments = (build, dict(config), (batch, channels, *height_width), threads or torch.get_num_threads())
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        try:
            return pool.apply(_measure, arguments)
        except Exception as error:
            raise RuntimeError(f"measuring the memory of {dict(config)} at {height_width} failed: {error}") from error


def _measure(build: Callable[..., nn.Module], config: dict[str, Any], shape: tuple[int, ...], threads: int) -> dict[str, float]:
    torch.set_num_threads(threads)
    model = build(config).eval()
    x = torch.randn(shape)
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    with torch.inference_mode():
        model(torch.zeros(shape[0], shape[1], 32, 32))  # libraries and caches that do not depend on the size
        _CLEAR.write_text("5")  # forgets the peak so far
        before = _status_mib("VmRSS")
        model(x)
        peak = _status_mib("VmHWM")
    return {"weights_mib": round(weights / 2**20, 1), "peak_growth_mib": round(peak - before, 1)}


def _status_mib(key: str) -> float:
    return int(re.search(rf"^{key}:\s+(\d+) kB", _STATUS.read_text(), re.M)[1]) / 1024
