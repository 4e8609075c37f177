"""Interleaved timing, and results rows with their provenance."""

import json
import re
import time
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from linescan.profiling import measure_throughput, measurement_row, provenance, read_rows, steps, throughput, write_rows
from linescan.profiling.steps import OutOfMemory
from linescan.profiling.throughput import Spread, interleave


class _Sleeps(nn.Module):
    """Takes a known time per batch."""

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds = seconds
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        time.sleep(self.seconds)
        return x * self.scale


def test_throughput_and_ratio_of_models_with_known_times():
    models = {"slow": _Sleeps(0.02).train(), "fast": _Sleeps(0.01).eval()}
    rows = measure_throughput(models, 4, batch=3, rounds=5, warmup=1)
    assert list(rows) == ["slow", "fast"]
    # A sleep may last longer on a busy machine, never shorter: bounds from one side are exact.
    assert rows["slow"].images_per_s.p80 <= 3 / 0.02 and rows["slow"].latency_ms.p20 >= 20
    assert rows["fast"].images_per_s.p80 <= 3 / 0.01 and rows["fast"].latency_ms.p20 >= 10
    assert rows["slow"].ratio == Spread(1, 1, 1)
    assert rows["slow"].latency_ms.p20 <= rows["slow"].latency_ms.median <= rows["slow"].latency_ms.p80
    assert (rows["slow"].rounds, rows["slow"].size, rows["slow"].batch) == (5, (4, 4), 3)
    assert models["slow"].training and not models["fast"].training


def test_models_take_turns_and_the_order_alternates():
    calls = []
    seconds = interleave({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=3, warmup=1)
    assert calls == list("abc" + "abc" + "cba" + "abc")
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_time_limit_ends_after_a_full_round():
    rows = measure_throughput({"a": _Sleeps(0.02), "b": _Sleeps(0.0)}, 4, rounds=1000, warmup=0, max_seconds=0.05)
    assert 1 <= rows["a"].rounds == rows["b"].rounds < 10


def test_models_run_without_gradients_in_evaluation_mode_in_the_dtype_asked_for():
    seen = []
    linear = nn.Linear(8, 8)
    linear.register_forward_hook(
        lambda module, args, output: seen.append((module.training, output.requires_grad, output.dtype, args[0].shape))
    )
    measure_throughput({"linear": linear}, (4, 8), batch=2, channels=5, dtype="bf16", rounds=1, warmup=0)
    assert seen == [(False, False, torch.bfloat16, (2, 5, 4, 8))]


def test_a_model_that_fails_gives_the_training_mode_back():
    models = {"good": _Sleeps(0.0).train(), "bad": nn.Linear(3, 3).train()}
    with pytest.raises(RuntimeError):
        measure_throughput(models, 4)
    assert all(model.training for model in models.values())


class _Net(nn.Module):
    """Batch norm, a frozen part, a shared weight, a buffer that is no part of the state; returns what `pack` makes of two maps."""

    def __init__(self, pack=lambda a, b: (a, b)):
        super().__init__()
        self.first, self.norm, self.frozen = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.second = nn.Conv2d(3, 4, 3, padding=1)
        self.second.weight = self.first.weight
        self.frozen.requires_grad_(False)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()), persistent=False)
        self.pack, self.seen = pack, []

    def forward(self, x):
        self.calls += 1
        y = self.norm(self.first(x))
        self.seen.append((self.training, torch.is_grad_enabled(), y.dtype, x.is_contiguous(), self.first.weight.is_contiguous()))
        return self.pack(self.drop(self.frozen(y)), self.second(x))


def _state(model):
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: (tensor.data_ptr(), tensor.stride(), tensor.detach().clone()) for name, tensor in tensors.items()}


@pytest.mark.parametrize("mode", ["forward", "training step"])
@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_models_are_given_back_as_they_came(mode, memory_format):
    model = _Net().train()
    model.norm.eval()
    model.first.bias.grad = grad = torch.ones(4)
    calls, before, random = model.calls, _state(model), torch.get_rng_state()
    measure_throughput({"a": model}, 8, batch=2, mode=mode, memory_format=memory_format, rounds=2, warmup=1)
    after = _state(model)
    for name, (pointer, stride, value) in before.items():
        assert after[name][:2] == (pointer, stride), name
        assert torch.equal(after[name][2], value) or (name == "calls" and mode == "forward"), name
    assert model.calls is calls and model.first.weight is model.second.weight
    assert model.first.bias.grad is grad and [p.grad for p in model.parameters()].count(None) == len(list(model.parameters())) - 1
    assert model.training and model.first.training and not model.norm.training and not model.frozen.weight.requires_grad
    assert torch.equal(torch.get_rng_state(), random)


def test_a_training_step_trains():
    """Weights move between the passes, gradients start anew, batch norm and dropout are in training mode."""
    model, weights, gradients = _Net(), [], []

    def note(*_):
        weights.append(model.first.weight.detach().clone())
        gradients.append(model.first.weight.grad)

    model.register_forward_pre_hook(note)
    measure_throughput({"a": model}, 8, batch=2, mode="training step", rounds=2, warmup=1, dtype="bf16")
    assert len(weights) == 3 and not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])
    assert torch.allclose(weights[0], weights[1], atol=1.1e-4) and gradients == [None] * 3  # AdamW moves by its learning rate at most
    assert {entry[:2] for entry in model.seen} == {(True, True)}


def test_an_exception_in_training_gives_everything_back():
    model, calls = _Net(), []

    def fail(*_):
        calls.append(1)
        if len(calls) == 3:
            raise KeyError("third pass")

    model.register_forward_hook(fail)
    before = _state(model)
    with pytest.raises(KeyError, match="third pass"):
        measure_throughput({"a": _Net(), "b": model}, 8, batch=2, mode="training step")
    assert all(torch.equal(value, _state(model)[name][2]) for name, (*_, value) in before.items())
    assert model.training and all(p.grad is None for p in model.parameters())


def test_a_buffer_that_the_model_replaces_stays_replaced():
    """A table that is made anew for another image size, beside the size that it is for."""

    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.zeros(0), persistent=False)

        def forward(self, x):
            if len(self.table) != x.shape[-1]:
                self.table = torch.arange(x.shape[-1], dtype=x.dtype)
            return x * self.table

    model = Table()
    measure_throughput({"a": model}, 5, rounds=1)
    assert len(model.table) == 5


@pytest.mark.parametrize(
    "pack",
    [
        lambda a, b: a,
        lambda a, b: [a, (b,)],
        lambda a, b: {"a": a, "none": None, "b": {"b": b}},
        lambda a, b: (a, b.argmax(1)),  # integers have no gradient
    ],
)
def test_what_a_model_returns(pack):
    assert measure_throughput({"a": _Net(pack)}, 8, batch=2, mode="training step", rounds=1)["a"].rounds == 1


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (_Net(lambda a, b: "text"), TypeError, "must return tensors.*got str"),
        (_Net(lambda a, b: a.detach()), ValueError, "an output that depends on a trainable parameter"),
        (nn.Identity(), ValueError, "needs trainable parameters, Identity has none"),
        (nn.Conv2d(3, 3, 1).requires_grad_(False), ValueError, "needs trainable parameters, Conv2d has none"),
    ],
)
def test_what_cannot_be_trained(model, error, message):
    with pytest.raises(error, match=message):
        measure_throughput({"a": model}, 8, batch=2, mode="training step")


def test_the_loss_is_the_sum_of_the_mean_squares_in_float32():
    y = torch.full((2, 3), 3.0, dtype=torch.bfloat16, requires_grad=True)
    loss = steps._loss({"a": y, "b": [torch.tensor([1.0, 2.0])], "c": torch.ones(2, dtype=torch.int64)})
    assert loss.item() == 9 + 2.5
    assert steps._loss(y).dtype == torch.float32


def test_fp16_is_trained_with_a_scaled_loss():
    found = []
    model = nn.Conv2d(3, 4, 1)

    def listen(module, images, output):
        output.register_hook(lambda grad: found.append(grad.float().abs().max().item()))

    model.register_forward_hook(listen)
    for dtype in ("fp16", "bf16"):
        measure_throughput({"a": model}, 8, mode="training step", dtype=dtype, rounds=1, warmup=0)
    assert found[0] > 1000 * found[1] > 0


def test_memory_format_of_images_and_weights():
    model = _Net()
    for memory_format in ("contiguous", "channels_last"):
        measure_throughput({"a": model}, 8, memory_format=memory_format, rounds=1, warmup=0)
    model = model.to(memory_format=torch.channels_last)
    measure_throughput({"a": model}, 8, memory_format="contiguous", rounds=1, warmup=0)
    assert [entry[3:] for entry in model.seen] == [(True, True), (False, False), (True, True)]
    assert model.first.weight.is_contiguous(memory_format=torch.channels_last)


def test_ratios_against_a_model_of_the_group():
    models = {"a": _Sleeps(0.01), "b": _Sleeps(0.02), "c": _Sleeps(0.03)}
    rows = measure_throughput(models, 4, rounds=3, warmup=0, references={"b": "a", "a": "c", "c": "c"})
    assert {name: row.reference for name, row in rows.items()} == {"a": "c", "b": "a", "c": "c"}
    assert rows["c"].ratio == Spread(1, 1, 1)
    assert measure_throughput(models, 4, rounds=1, warmup=0, references={"b": "c"})["a"].reference == "a"


def test_ratios_are_taken_within_a_round(monkeypatch):
    seconds = {"a": [1.0, 4.0, 2.0], "b": [2.0, 2.0, 2.0]}
    monkeypatch.setattr(throughput, "interleave", lambda *args, **kwargs: seconds)
    rows = measure_throughput({"a": nn.Identity(), "b": nn.Identity()}, 4, batch=2, references={"a": "b"})
    assert rows["a"].ratio == Spread.of([2.0, 0.5, 1.0]) and rows["b"].ratio == Spread.of([0.5, 2.0, 1.0])
    assert rows["a"].images_per_s.median == 1 and rows["a"].latency_ms.median == 2000


def test_progress_is_told_after_every_pass():
    events = []
    model = nn.Identity()
    model.register_forward_hook(lambda *_: events.append("pass"))
    measure_throughput({"a": model, "b": model}, 4, rounds=3, warmup=2, progress=lambda: events.append("told"))
    assert events == ["pass", "told"] * 10


def _flags():
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return cudnn.benchmark, matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="this PyTorch has no fp32_precision")
@pytest.mark.filterwarnings("error")
def test_backend_flags_are_set_and_put_back():
    before = _flags()
    for tf32, word in ((True, "tf32"), (False, "ieee")):
        with pytest.raises(KeyError), steps.backend_flags(tf32=tf32, cudnn_benchmark=tf32):
            assert _flags() == (tf32, word, word, word)
            raise KeyError
        assert _flags() == before


def test_backend_flags_of_an_older_pytorch(monkeypatch):
    cudnn, matmul = SimpleNamespace(allow_tf32=True, benchmark=False), SimpleNamespace(allow_tf32=False)
    monkeypatch.setattr(torch.backends, "cudnn", cudnn)
    monkeypatch.setattr(torch.backends.cuda, "matmul", matmul)
    with steps.backend_flags(tf32=False, cudnn_benchmark=True):
        assert (cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark) == (False, False, True)
    with steps.backend_flags(tf32=True):
        assert (cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark) == (True, True, False)
    assert (cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark) == (True, False, False)


def test_condition_of_a_row():
    row = measure_throughput({"a": nn.Identity()}, (4, 6), batch=2, dtype="bf16", memory_format="channels_last", rounds=2)["a"]
    expected = dict(batch=2, size=[4, 6], dtype="bf16", rounds=2, mode="forward", memory_format="channels_last", tf32=False)
    assert row.as_condition() == dict(**expected, cudnn_benchmark=False, reference="a")


def test_a_failed_allocation_is_out_of_memory_and_its_tensors_are_freed(monkeypatch):
    held, when_released = [], []
    monkeypatch.setattr(steps, "release", lambda device: when_released.append(held[0]()))

    class Large(nn.Module):
        def forward(self, x):
            part = torch.ones(1000)
            held.append(weakref.ref(part))
            return part, torch.empty(2**60, dtype=torch.uint8)

    with pytest.raises(OutOfMemory, match="allocate"):
        measure_throughput({"a": Large()}, 4)
    assert when_released == [None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(models={}), "models must name at least one model, got an empty mapping"),
        (dict(batch=0), "batch must be an integer of at least 1, got 0"),
        (dict(size=(4, 0)), "width must be an integer of at least 1, got 0"),
        (dict(size=(4, 4, 4)), r"size must be one number or \(height, width\) in pixels, got \(4, 4, 4\)"),
        (dict(size=True), "height must be an integer of at least 1, got True"),
        (dict(dtype="int8"), "dtype must be one of 'fp32', 'bf16', 'fp16', got 'int8'"),
        (dict(mode="training"), "mode must be one of 'forward', 'training step', got 'training'"),
        (dict(memory_format="NHWC"), "memory_format must be one of 'contiguous', 'channels_last', got 'NHWC'"),
        (dict(tf32=True), "tf32 is a precision of CUDA devices, got tf32=True with device cpu"),
        (dict(device="meta"), "device must be cpu or a CUDA device, got meta"),
        (dict(rounds=0), "rounds must be an integer of at least 1, got 0"),
        (dict(warmup=-1), "warmup must be an integer of at least 0, got -1"),
        (dict(references={"a": "aa"}), "references must name models that are measured, got 'aa'; did you mean 'a'"),
        (dict(references={"x": "a"}), "references must name models that are measured, got 'x'; did you mean 'a'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        measure_throughput(**{"models": {"a": nn.Identity()}, "size": 4, **arguments})


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_absent_device_is_an_error():
    with pytest.raises(RuntimeError, match=r"cuda.*not present"):
        measure_throughput({"a": nn.Identity()}, 4, device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_events_see_the_work_and_not_only_its_launch():
    rows = measure_throughput(
        {"large": nn.Linear(4096, 4096), "small": nn.Linear(4096, 64)}, (4096, 4096), batch=4, device="cuda", rounds=5
    )
    assert rows["small"].ratio.median > 1.5


def test_spread_of_known_values():
    assert Spread.of([5.0]) == Spread(5, 5, 5)
    spread = Spread.of([float(value) for value in range(101)])
    assert (spread.median, spread.p20, spread.p80) == (50, 20, 80)


def test_rows_survive_a_file_and_say_where_they_come_from(tmp_path):
    result = measure_throughput({"a": nn.Identity()}, 4, rounds=2)["a"]
    row = measurement_row(
        "throughput", "a", condition=result.as_condition(), result=result.as_result(), command=["python", "tools/x.py", "--a b"]
    )
    path = tmp_path / "new" / "rows.json"
    write_rows(path, [row])
    assert read_rows(path) == [row]
    assert [entry.name for entry in path.parent.iterdir()] == ["rows.json"]
    source = row["provenance"]
    assert source["command"] == "python tools/x.py '--a b'"
    assert source["device"] and source["threads"] == torch.get_num_threads()
    assert source["versions"]["torch"] == torch.__version__.partition("+")[0] or source["versions"]["torch"] == torch.__version__
    assert source["versions"]["linescan"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", source["date"])


def test_commit_is_that_of_the_checkout(repo_root):
    commit = provenance()["commit"]
    if not (repo_root / ".git").exists():
        assert commit is None
        return
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", commit)


def test_command_has_no_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert provenance(command=["python", "-m", "x", str(tmp_path.parent / "home" / "rows.json")])["command"] == "python -m x rows.json"
    command = provenance(command=["/usr/bin/python3", str(tmp_path / "tools" / "x.py"), "--out", str(tmp_path / "out")])["command"]
    assert command == "python3 tools/x.py --out out"


def test_foreign_files_and_rows_are_refused(tmp_path):
    path = tmp_path / "rows.json"
    for text, reason in (("[", "not JSON"), ("{}", "expected a list"), ('[{"schema": 1}]', "lacks kind, name")):
        path.write_text(text)
        with pytest.raises(ValueError, match=reason):
            read_rows(path)
    row = measurement_row("macs", "a", condition={}, result={})
    path.write_text(json.dumps([{**row, "schema": 99}]))
    with pytest.raises(ValueError, match="schema 99"):
        read_rows(path)
    with pytest.raises(ValueError, match="lacks schema"):
        write_rows(path, [{}])
    with pytest.raises(ValueError, match="kind and name"):
        measurement_row("", "a", condition={}, result={})


def test_a_number_that_json_cannot_hold_leaves_the_old_file(tmp_path):
    path = tmp_path / "rows.json"
    good = measurement_row("macs", "a", condition={}, result={"gmacs": 1.0})
    write_rows(path, [good])
    with pytest.raises(ValueError, match="JSON"):
        write_rows(path, [measurement_row("macs", "a", condition={}, result={"gmacs": float("nan")})])
    assert read_rows(path) == [good]
