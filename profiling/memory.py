"""Peak memory of a pass: resident set of a child process on a CPU, the caching allocator's own peak on a GPU.

The allocator of a CPU keeps what was freed, so a second measurement in one process finds its memory already there. Each measurement
therefore starts a fresh process, whose allocator returns large blocks as soon as they are freed, and reports by how much the resident set
grew at its highest: what the pass needs, not what an allocator keeps for later. That process may hold only so much: a model that is too
large fails alone, and does not take the machine with it.
"""

import ctypes
import multiprocessing
import pickle
import re
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .steps import (
    TRAINING,
    OutOfMemory,
    backend_flags,
    check_condition,
    check_count,
    is_out_of_memory,
    make_images,
    make_step,
    memory_errors,
    release,
)

__all__ = ["OutOfMemory", "available_mib", "is_out_of_memory", "peak_memory"]

SHARE = 0.9  # of the memory that is available, for a measurement without a limit of its own
MIB = 2**20
_STATUS, _CLEAR, _MEMINFO = Path("/proc/self/status"), Path("/proc/self/clear_refs"), Path("/proc/meminfo")
_SMALL = 32  # pixels: height and width of the pass that loads libraries and fills caches


def peak_memory(
    build: Callable[[Any], nn.Module],
    argument: Any,
    size: int | tuple[int, int],
    batch: int = 1,
    *,
    channels: int = 3,
    device: str | torch.device = "cpu",
    dtype: str = "fp32",
    mode: str = "forward",
    threads: int | None = None,
    limit_mib: float | None = None,
) -> dict[str, Any]:
    """Memory of a forward pass, or of training steps with their gradients and the state of AdamW.

    Args:
        build: makes the model from `argument`, in float32 on the CPU. On a CPU both must be picklable, and `build` importable by name:
            the child process imports it. A script that calls this guards its own work by `if __name__ == "__main__":`.
        argument: of `build`.
        size: height and width in pixels, or one number for both.
        batch: images per pass.
        channels: of the images.
        device: "cpu", or a CUDA device, measured in this process.
        dtype: "fp32", or "bf16" / "fp16" under autocast.
        mode: "forward" or "training step", see `steps.make_step`.
        threads: of the child process; None for those of this process. Without meaning on a GPU.
        limit_mib: the most that model and pass may take; None for 90 % of what is available. On a CPU the child process can allocate
            little more, on a GPU the measured peak is compared.

    Returns:
        `weights_mib`: parameters and buffers. `peak_growth_mib`: the highest use during the pass minus that before it (which holds weights
        and images). `peak_mib`: on a CPU their sum, on a GPU the allocator's peak. `method`: "resident set of a child process" or "CUDA
        allocator", then with `peak_reserved_mib`, what the allocator has taken from the device. A training step is run twice: the second
        finds the optimizer's state in place, as every step of a training but the first.

    Raises:
        ValueError: an argument out of its range, or for a CPU one that cannot be pickled.
        OutOfMemory: the limit was passed, the device is full, or the kernel ended the child process.
        NotImplementedError: a CPU, and no /proc/self/clear_refs, which only Linux has.
        RuntimeError: the device is not present, or the child process failed; its error is in the message.
    """
    shape, device = check_condition(size, batch, channels, device, dtype, mode)
    if threads is not None:
        check_count("threads", threads)
    if limit_mib is not None and not limit_mib > 0:
        raise ValueError(f"limit_mib must be above 0, got {limit_mib!r}")
    limit_mib = SHARE * available_mib(device) if limit_mib is None else limit_mib
    if device.type == "cuda":
        with memory_errors(device):
            result = _on_cuda(build, argument, shape, device, dtype, mode)
        release(device)
    else:
        result = _in_child(build, argument, shape, dtype, mode, threads or torch.get_num_threads(), limit_mib)
    if result["peak_mib"] > limit_mib:
        raise OutOfMemory(f"model and pass take {result['peak_mib']:.0f} MiB, the limit is {limit_mib:.0f} MiB")
    return result


def available_mib(device: str | torch.device = "cpu") -> float:
    """Memory that is free for use now: on a GPU what its driver says and what this process has reserved without using, on a CPU what the
    kernel says, and within a control group (a container) no more than its limit leaves."""
    device = torch.device(device)
    if device.type == "cuda":
        release(device)
        return torch.cuda.mem_get_info(device)[0] / MIB
    if not _MEMINFO.exists():
        raise NotImplementedError("the memory that is available is read from /proc/meminfo, which only Linux has")
    kib = int(re.search(r"^MemAvailable:\s+(\d+) kB", _MEMINFO.read_text(), re.M)[1])
    return min([kib / 1024, *_left_in_groups()])


def _left_in_groups(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Iterator[float]:
    """MiB below the limit of this process's control group and each above it (version 2); nothing where none has a limit."""
    own = re.search(r"^0::/(.*)$", proc.read_text(), re.M) if proc.exists() else None
    for folder in [] if own is None else [root / own[1], *(root / own[1]).parents]:
        limit, used = folder / "memory.max", folder / "memory.current"
        if limit.exists() and used.exists() and (text := limit.read_text().strip()) != "max":
            yield (int(text) - int(used.read_text())) / MIB


def _in_child(
    build: Callable[[Any], nn.Module], argument: Any, shape: tuple[int, ...], dtype: str, mode: str, threads: int, limit_mib: float
) -> dict[str, Any]:
    if not _CLEAR.exists():
        raise NotImplementedError("the peak of the resident set is read from /proc/self/clear_refs, which only Linux has")
    try:
        task = pickle.dumps((build, argument))
    except Exception as error:  # whatever __reduce__ of the argument raises
        raise ValueError(f"build and argument must be picklable, a child process makes the model: {error}") from error
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(sender, task, shape, dtype, mode, threads, limit_mib), daemon=True)
    child.start()
    sender.close()  # with the child's own end gone, reading ends when the child does
    kind = answer = None
    try:
        kind, answer = receiver.recv()
    except EOFError:
        child.join()
    finally:
        if child.exitcode is None:
            child.kill()
        child.join()
        receiver.close()
    if kind == "result":
        return answer
    what = f"measuring the memory of a batch of {shape[0]} at {shape[2:]}"
    if kind == "out of memory" or (kind is None and child.exitcode == -signal.SIGKILL):
        raise OutOfMemory(f"{what}: {answer or 'the kernel ended the child process (SIGKILL)'}; the limit was {limit_mib:.0f} MiB")
    raise RuntimeError(f"{what} failed: {answer or _death(child.exitcode)}")


def _death(code: int) -> str:
    if code < 0:
        return f"the child process was ended by {signal.Signals(-code).name}"
    return (
        f"the child process ended with exit code {code} before it could measure, its traceback says why; a script that measures memory "
        'must guard its own work by if __name__ == "__main__":, since the child process imports it'
    )


def _child(sender: Connection, task: bytes, shape: tuple[int, ...], dtype: str, mode: str, threads: int, limit_mib: float) -> None:
    """Measures in the child process and sends ("result", numbers), or ("out of memory" or "error", text)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent, which ends this process
    with suppress(OSError):  # where the system lets it: if the kernel has to end a process, then this one
        Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        build, argument = pickle.loads(task)
        torch.set_num_threads(threads)
        _libc("mallopt", -3, 2**17)  # M_MMAP_THRESHOLD, fixed: a large block goes back to the system when it is freed, as on a fresh heap
        _restrict(limit_mib, threads)
        answer = ("result", _resident(build, argument, shape, dtype, mode))
    except Exception as error:
        traceback.clear_frames(error.__traceback__)
        answer = ("out of memory" if is_out_of_memory(error) else "error", f"{type(error).__name__}: {error}")
    sender.send(answer)


def _restrict(limit_mib: float, threads: int) -> None:
    """Lets this process allocate `limit_mib` more than it has, and a stack for every thread of the pool that is yet to start.

    The limit is on private writable memory: a limit on the address space would count libraries and what CUDA reserves.
    """
    import resource  # Linux only, as this whole function

    slack = 64 * MIB + 16 * MIB * threads
    limit = int(_status_mib("VmData") * MIB + limit_mib * MIB + slack)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _resident(build: Callable[[Any], nn.Module], argument: Any, shape: tuple[int, ...], dtype: str, mode: str) -> dict[str, Any]:
    device = torch.device("cpu")
    model = build(argument).train(mode == TRAINING)
    x = make_images(shape, device)
    _load_libraries(model, x, dtype, mode)
    step = make_step(model, x, dtype=dtype, mode=mode)
    _CLEAR.write_text("5")  # forgets the peak so far
    before = _status_mib("VmRSS")
    step()
    if mode == TRAINING:
        step()
    growth = max(_status_mib("VmHWM") - before, 0.0)  # the kernel updates both in batches of pages
    return _as_result(_weights_mib(model), growth, _weights_mib(model) + growth, "resident set of a child process")


def _load_libraries(model: nn.Module, x: torch.Tensor, dtype: str, mode: str) -> None:
    """One pass over a small image, or where the model refuses it, over x: what does not depend on the size is then in place.

    Memory that the pass has freed goes back to the system, or the measured pass would use it unseen.
    """
    small = x[..., :_SMALL, :_SMALL].clone()
    try:
        make_step(model, small, dtype=dtype, mode=mode)()
    except Exception as error:
        if is_out_of_memory(error):
            raise
        make_step(model, x, dtype=dtype, mode=mode)()
    model.zero_grad(set_to_none=True)
    release(x.device)
    _libc("malloc_trim", 0)


def _libc(function: str, *arguments: int) -> None:
    """Calls a function of glibc's allocator; other C libraries do not keep what is freed, and lack it."""
    if (call := getattr(ctypes.CDLL(None), function, None)) is not None:
        call(*arguments)


def _on_cuda(
    build: Callable[[Any], nn.Module], argument: Any, shape: tuple[int, ...], device: torch.device, dtype: str, mode: str
) -> dict[str, Any]:
    """The first step settles cuDNN's choice of algorithms, cuBLAS's workspace and the optimizer's state; the second one's peak counts."""
    with torch.cuda.device(device), backend_flags(cudnn_benchmark=True):
        release(device)
        others = torch.cuda.memory_allocated(device)
        model = build(argument).to(device).train(mode == TRAINING)
        x = make_images(shape, device)
        before = torch.cuda.memory_allocated(device)
        step = make_step(model, x, dtype=dtype, mode=mode)
        step()
        release(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        peak, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    result = _as_result(_weights_mib(model), (peak - before) / MIB, (peak - others) / MIB, "CUDA allocator")
    return {**result, "peak_reserved_mib": round(reserved / MIB, 1)}


def _as_result(weights_mib: float, growth_mib: float, peak_mib: float, method: str) -> dict[str, Any]:
    numbers = {"weights_mib": weights_mib, "peak_growth_mib": growth_mib, "peak_mib": peak_mib}
    return {**{key: round(value, 1) for key, value in numbers.items()}, "method": method}


def _weights_mib(model: nn.Module) -> float:
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())) / MIB


def _status_mib(key: str) -> float:
    return int(re.search(rf"^{key}:\s+(\d+) kB", _STATUS.read_text(), re.M)[1]) / 1024
