"""The largest batch, found for models whose memory is a known function of the batch."""

from functools import partial

import pytest
import torch
from torch import nn

from linescan.profiling import batch
from linescan.profiling.batch import largest_batch
from linescan.profiling.memory import OutOfMemory


class Machine:
    """Stands in for the measurement: a pass over n images takes `take(n)` MiB, `free` MiB are available. Counts what is tried."""

    def __init__(self, monkeypatch, take, free, device="cpu"):
        self.take, self.free, self.tried = take, free, []
        monkeypatch.setattr(batch, "available_mib", lambda device: self.free)
        monkeypatch.setattr(batch, "peak_memory", self.measure)
        monkeypatch.setattr(batch, "check_condition", lambda *args: ((1, 3, 1, 1), torch.device(device)))

    def measure(self, build, argument, size, n, *, limit_mib, **condition):
        self.tried.append(n)
        taken = self.take(n)
        if taken > limit_mib:
            raise OutOfMemory(f"{taken} of {limit_mib}")
        return {"peak_mib": taken}


def largest(**arguments):
    return largest_batch(nn.Identity, None, 1, **arguments)


@pytest.mark.parametrize(
    ("take", "free", "expected", "tried"),
    [
        (lambda n: 101, 100 / 0.8, 0, [1]),  # not even one
        (lambda n: 60 * n, 100 / 0.8, 1, [1, 2]),
        (lambda n: 50 + 10 * n, 1000, 74, [1, 2, 74]),  # the line is exact: 75 would take 800 and the image
        (lambda n: 1.0, 1000, 512, [1, 2, 512]),  # no growth at all
        (lambda n: 50 + 5 * n + 0.1 * n**2, 1000, None, None),  # more than the line says
        (lambda n: 50 + 20 * n**0.9, 1000, None, None),  # less than the line says
        (lambda n: 50 + (n > 100) * 1e6, 1000, 100, None),  # the line is of no use
    ],
)
def test_a_cpu_follows_the_line(monkeypatch, take, free, expected, tried):
    machine = Machine(monkeypatch, take, free)
    found = largest()
    true = max((n for n in range(1, 513) if take(n) + n * 12 / 2**20 <= 0.8 * free), default=0)
    assert found == (true if expected is None else expected) or 0.9 * true <= found <= true
    assert len(machine.tried) <= 20  # no more than a search that halves twice what is left of 512
    if tried is not None:
        assert machine.tried == tried and found == expected


def test_the_limit_stands_even_where_a_batch_was_tried_beyond_it(monkeypatch):
    for slope in (0.3, 1.7, 9.0, 41.0):
        for bend in (-0.01, 0.0, 0.01):
            machine = Machine(monkeypatch, lambda n, s=slope, b=bend: 10 + s * n + b * s * n**2 / 10, 500)
            found = largest(maximum=60)
            assert machine.take(found) <= 400 and found in machine.tried


@pytest.mark.parametrize("true", [0, 1, 2, 3, 7, 8, 9, 100, 511, 512, 600])
def test_a_gpu_is_bisected_exactly(monkeypatch, true):
    machine = Machine(monkeypatch, lambda n: 100 if n <= true else 1000, 500, "cuda")
    assert largest() == min(true, 512)
    assert max(machine.tried) <= 512 and len(machine.tried) <= 20


@pytest.mark.parametrize("maximum", [1, 2, 3, 5])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_maximum_is_not_passed(monkeypatch, maximum, device):
    machine = Machine(monkeypatch, lambda n: 1.0, 500, device)
    assert largest(maximum=maximum) == maximum == max(machine.tried)


def test_another_failure_is_not_taken_for_memory(monkeypatch):
    machine = Machine(monkeypatch, lambda n: 1.0, 500)
    machine.take = lambda n: 1 / 0
    with pytest.raises(ZeroDivisionError):
        largest()


MODULE = """
import torch
from torch import nn


class PerImage(nn.Module):
    def forward(self, x):
        return torch.ones(len(x), 20 * 2**20 // 4).sum()


def build(argument):
    return PerImage()
"""


def test_20_mib_per_image(tmp_path, monkeypatch):
    """The real measurement: of 250 MiB the 12 images take 240, and 13 would take 260."""
    (tmp_path / "module_of_batch_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import module_of_batch_test

    monkeypatch.setattr(batch, "available_mib", lambda device: 250.0)
    assert largest_batch(module_of_batch_test.build, None, 8, memory_share=1.0, maximum=40) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(size=-1), "height must be an integer of at least 1, got -1"),
        (dict(maximum=0), "maximum must be an integer of at least 1, got 0"),
        (dict(memory_share=0), "memory_share must be above 0 and at most 1, got 0"),
        (dict(memory_share=1.1), "memory_share must be above 0 and at most 1, got 1.1"),
        (dict(dtype="int8"), "dtype must be one of"),
        (dict(mode="both"), "mode must be one of"),
        (dict(device="meta"), "device must be cpu or a CUDA device"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        largest_batch(**{"build": nn.Identity, "argument": None, "size": 8, **arguments})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_holds_what_its_limit_says(monkeypatch):
    """64 MiB for the output of an image and 3 MiB for the image."""
    monkeypatch.setattr(batch, "available_mib", lambda device: 250.0)
    build = partial(nn.Conv2d, 3, kernel_size=1)
    assert largest_batch(build, 64, 512, device="cuda", memory_share=1.0, maximum=64) == 3
