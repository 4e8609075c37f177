"""Selective scan, chunked PyTorch: cutting the work never changes the result, buffers are bounded, the number of calls is linear."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from linescan.kernels import testing
from linescan.kernels.selective_scan import cases, chunks, selective_scan, torch_chunked

NAMES = cases.INPUTS


def everything(inputs):
    """y and last state in one vector, and all gradients."""

    def op(*tensors):
        y, last = selective_scan(*tensors, delta_softplus=True, return_last_state=True, backend="torch")
        return torch.cat((y.flatten(), last.flatten()))

    return testing.gradients(op, inputs, torch.ones_like(op(*inputs)))


@pytest.mark.parametrize("shape", [(3, 6, 53, 3, 3), (2, 5, 64, 2, 1), (1, 4, 90, 1, 4)])
@pytest.mark.parametrize("serial", [True, False], ids=["serial", "parallel"])
def test_cuts_do_not_change_the_result(monkeypatch, shape, serial):
    inputs = cases.make_inputs(shape, torch.float64)
    whole = everything(inputs)
    plans = set()
    monkeypatch.setattr(chunks, "SERIAL_THREADS", 10**6 if serial else 0)
    for room in (2, 13, 60, 1 << 15):
        for elements in (1, 1 << 23):
            for name in ("SERIAL", "PARALLEL"):
                monkeypatch.setattr(chunks, name, room)
            monkeypatch.setattr(torch_chunked, "SERIAL", room)
            monkeypatch.setattr(torch_chunked, "ELEMENTS", elements)
            monkeypatch.setattr(chunks, "MAX_STEPS", 8 if room < 60 else 32)
            batch, channels, length, states, groups = shape
            plans.add(chunks.Plan.make(batch, length, groups, channels // groups, states, torch.device("cpu")))
            for a, b in zip(everything(inputs), whole, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)
    assert len(plans) >= 4
    assert {p.chunks == 1 for p in plans} == {p.segments == 1 for p in plans} == {True, False}


@pytest.mark.parametrize("shape", [*cases.BENCHMARK_SHAPES, (1, 4, 1 << 20, 16, 1), (64, 96, 100, 16, 1), (1, 1, 5, 70000, 1)])
@pytest.mark.parametrize("threads", [1, 64])
def test_plan_covers_the_work_with_bounded_buffers(monkeypatch, shape, threads):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    batch, channels, length, states, groups = shape
    plan = chunks.Plan.make(batch, length, groups, channels // groups, states, torch.device("cpu"))
    assert length <= plan.padded < 1.3 * length + 8
    row = plan.batch * plan.groups * plan.channels * plan.chunks * states
    assert row <= max(states, chunks.SERIAL if threads == 1 else chunks.PARALLEL)
    assert row * plan.steps <= max(chunks.BUFFER, row * chunks.MIN_STEPS)


def test_the_number_of_calls_grows_linearly():
    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.calls += 1
            return func(*args, **(kwargs or {}))

    found = []
    for length in (8192, 65536):
        inputs = [x[:, None] if n in "BC" else x for n, x in zip(NAMES, cases.make_inputs((1, 16, length, 8, 1)), strict=True)]
        with Count() as count:
            torch_chunked.forward(*inputs, True)
        found.append(count.calls)
    assert found[1] / found[0] <= 8**1.05
    assert found[1] < 65536 / 4  # and far fewer than steps


@pytest.mark.parametrize("shape", [(2, 6, 61, 3, 2), (1, 4, 64, 2, 1), (1, 4, 1, 2, 1)])
def test_every_element_is_written_and_runs_repeat_bitwise(monkeypatch, shape):
    monkeypatch.setattr(chunks, "SERIAL", 50)  # many blocks, segments and padding
    monkeypatch.setattr(chunks, "MAX_STEPS", 8)
    with testing.poisoned_memory():
        first, second = (everything(cases.make_inputs(shape)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)
