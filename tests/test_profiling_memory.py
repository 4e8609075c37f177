"""Peak memory of modules that allocate a known amount, and children that die."""

import multiprocessing
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

from linescan.profiling import memory, peak_memory
from linescan.profiling.memory import OutOfMemory, available_mib, is_out_of_memory

# A module that a child process can import, beside the tests: pytest does not put this folder on the path.
MODULES = '''
import os
import signal

import torch
from torch import nn

MIB = 2**20


class Fill(nn.Module):
    """Allocates `mib` for an image of 64 x 64, more for a larger one; weights of 4 MiB."""

    def __init__(self, mib):
        super().__init__()
        self.mib, self.weight = mib, nn.Parameter(torch.ones(1024, 1024))

    def forward(self, x):
        return self.weight.sum() * torch.ones(int(self.mib * MIB / 4 * x.shape[-2] * x.shape[-1] / 64**2)).sum()


class Chunks(nn.Module):
    """Allocates blocks of 64 KiB, 100 MiB in all for an image of 64 x 64, and keeps one behind them, so that the heap cannot shrink."""

    def forward(self, x):
        blocks = [torch.ones(16384) for _ in range(1600 * x.shape[-2] * x.shape[-1] // 64**2)]
        self.kept = torch.ones(16384)
        return blocks[0]


class Picky(nn.Module):
    """Takes one size only, in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x):
        assert not self.training
        if x.shape[-2:] != (48, 48):
            raise ValueError(f"the model takes 48 x 48, got {tuple(x.shape[-2:])}")
        return {"a": [x * self.weight], "b": torch.ones(10 * MIB // 4).sum()}


def fill(mib):
    return Fill(mib)


def chunks(argument):
    return Chunks()


def picky(argument):
    torch.ones(50 * MIB)  # 200 MiB while the model is made: not part of the pass
    return Picky()


def heavy(mib):
    return torch.ones(mib * MIB // 4)


def killed(argument):
    os.kill(os.getpid(), signal.SIGKILL)


def aborted(argument):
    os.abort()


def dtype_of(argument):
    class Reports(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            raise TypeError(f"{y.dtype} {self.training} {torch.get_num_threads()} {y.requires_grad}")

    return Reports(64, 4)
'''


@pytest.fixture
def modules(tmp_path, monkeypatch):
    (tmp_path / "modules_of_memory_test.py").write_text(MODULES)
    monkeypatch.syspath_prepend(tmp_path)
    import modules_of_memory_test

    yield modules_of_memory_test
    del sys.modules["modules_of_memory_test"]


def test_a_known_tensor_is_seen(modules):
    found = peak_memory(modules.fill, 100, 64)
    assert found["weights_mib"] == 4 and found["method"] == "resident set of a child process"
    assert found["peak_growth_mib"] == pytest.approx(100, abs=3)
    assert found["peak_mib"] == pytest.approx(found["weights_mib"] + found["peak_growth_mib"])


def test_small_blocks_that_the_first_pass_has_freed_are_seen_again(modules):
    assert peak_memory(modules.chunks, None, 64)["peak_growth_mib"] == pytest.approx(100, abs=5)


def test_training_holds_the_state_of_the_optimizer(modules):
    """The second forward pass finds two moments per weight."""
    found = peak_memory(modules.fill, 100, 64, mode="training step")
    assert found["weights_mib"] == 4 and found["peak_growth_mib"] == pytest.approx(100 + 2 * 4, abs=3)


def test_a_model_that_takes_one_size_only(modules):
    assert peak_memory(modules.picky, None, 48)["peak_growth_mib"] == pytest.approx(10, abs=3)


def test_the_child_has_the_condition_that_was_asked_for_and_its_error_comes_back(modules):
    with pytest.raises(RuntimeError, match=r"batch of 2 at \(8, 64\) failed: TypeError: torch.bfloat16 True 1 True"):
        peak_memory(modules.dtype_of, None, (8, 64), 2, dtype="bf16", mode="training step", threads=1)


@pytest.mark.parametrize(
    ("build", "argument", "limit_mib", "message"),
    [
        ("killed", None, None, r"the kernel ended the child process \(SIGKILL\)"),
        ("heavy", 900, 200, "the limit was 200 MiB"),
    ],
)
def test_too_much_memory_is_out_of_memory(modules, build, argument, limit_mib, message):
    with pytest.raises(OutOfMemory, match=message) as caught:
        peak_memory(getattr(modules, build), argument, 64, limit_mib=limit_mib)
    assert is_out_of_memory(caught.value)


def test_a_little_too_much_is_out_of_memory_too(monkeypatch):
    """The limit of the child process leaves room for what is no part of the model; the measured peak is compared."""
    monkeypatch.setattr(memory, "_in_child", lambda *args: {"peak_mib": 154.0})
    with pytest.raises(OutOfMemory, match="model and pass take 154 MiB, the limit is 153 MiB"):
        peak_memory(nn.Linear, 3, 8, limit_mib=153)
    assert peak_memory(nn.Linear, 3, 8, limit_mib=154)


def test_a_child_that_dies_is_reported(modules):
    with pytest.raises(RuntimeError, match="ended by SIGABRT") as caught:
        peak_memory(modules.aborted, None, 64)
    assert not is_out_of_memory(caught.value)
    assert multiprocessing.active_children() == []


def test_an_early_end_points_at_the_usual_reason():
    assert "exit code 1 before it could measure" in memory._death(1) and 'if __name__ == "__main__":' in memory._death(1)


def test_what_the_child_cannot_import_is_named(modules, tmp_path, monkeypatch):
    """As a function of a notebook: here it is known, and the child has no file to import."""
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(tmp_path)])
    with pytest.raises(RuntimeError, match="No module named 'modules_of_memory_test'"):
        peak_memory(modules.fill, 1, 64)


def test_an_interruption_ends_the_child(modules, monkeypatch):
    class Interrupted(Exception):
        pass

    class Receiver:
        def recv(self):
            raise Interrupted

        def close(self):
            pass

    context = multiprocessing.get_context("spawn")
    real = context.Pipe
    monkeypatch.setattr(type(context), "Pipe", lambda self, duplex: (Receiver(), real(duplex)[1]))
    with pytest.raises(Interrupted):
        peak_memory(modules.fill, 1, 64)
    assert multiprocessing.active_children() == []


SCRIPT = """
from torch import nn
from linescan.profiling import peak_memory

def build(argument):
    return nn.Conv2d(3, 4, 3)

if __name__ == "__main__":
    print(peak_memory(build, None, 16)["method"])
"""


def test_a_function_of_a_script(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.stdout == "resident set of a child process\n", done.stderr


def test_what_cannot_be_pickled_is_named():
    with pytest.raises(ValueError, match=r"build and argument must be picklable.*lambda"):
        peak_memory(lambda argument: nn.Identity(), None, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(size=(0, 8)), "height must be an integer of at least 1, got 0"),
        (dict(batch=True), "batch must be an integer of at least 1, got True"),
        (dict(channels=0), "channels"),
        (dict(dtype="half"), "dtype must be one of 'fp32', 'bf16', 'fp16', got 'half'"),
        (dict(mode="backward"), "mode must be one of 'forward', 'training step', got 'backward'"),
        (dict(threads=0), "threads must be an integer of at least 1, got 0"),
        (dict(limit_mib=0), "limit_mib must be above 0, got 0"),
        (dict(limit_mib=float("nan")), "limit_mib must be above 0, got nan"),
        (dict(device="meta"), "device must be cpu or a CUDA device, got meta"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        peak_memory(**{"build": nn.Linear, "argument": 3, "size": 8, **arguments})


def test_another_system_is_told_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "clear_refs")
    with pytest.raises(NotImplementedError, match="clear_refs, which only Linux has"):
        peak_memory(nn.Linear, 3, 8, limit_mib=100)
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    with pytest.raises(NotImplementedError, match="meminfo, which only Linux has"):
        available_mib()


def test_a_control_group_limits_what_is_available(tmp_path):
    proc, root = tmp_path / "cgroup", tmp_path / "fs"
    proc.write_text("4:memory:/elsewhere\n0::/outer/inner\n")
    (root / "outer" / "inner").mkdir(parents=True)
    for folder, limit in ((root / "outer", 300 * 2**20), (root / "outer" / "inner", "max")):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{100 * 2**20}\n")
    assert list(memory._left_in_groups(proc, root)) == [200]
    assert list(memory._left_in_groups(tmp_path / "absent", root)) == []
    assert available_mib() > 0


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OutOfMemory("a"), True),
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory is a phrase of this message only"), False),
    ],
)
def test_words_of_an_error(error, expected):
    assert is_out_of_memory(error) is expected


def test_a_failed_allocation_of_pytorch_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_allocator_of_a_gpu_is_asked():
    """The output of 64 MiB; weights and image are below it."""
    found = peak_memory(partial(nn.Conv2d, 3, kernel_size=1), 64, 512, device="cuda")
    assert found["method"] == "CUDA allocator" and found["peak_reserved_mib"] >= found["peak_mib"] > found["peak_growth_mib"] >= 64
    with pytest.raises(OutOfMemory, match="the limit is 10 MiB"):
        peak_memory(partial(nn.Conv2d, 3, kernel_size=1), 64, 512, device="cuda", limit_mib=10)
    assert torch.cuda.memory_allocated() == 0
