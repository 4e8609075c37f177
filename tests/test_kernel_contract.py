"""What every operator promises, by being registered: PyTorch's machinery sees it, every backend of a CPU is deterministic and writes all
of its output, and bad input is refused with the argument's name."""

import subprocess
import sys

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from linescan.kernels import benchmark, costs, dispatch, testing
from linescan.kernels.registration import OPERATORS

NAMES = benchmark.operators()
CPU_BACKENDS = [(op, b) for op in NAMES for b in OPERATORS[op].own if b in ("c", "torch")]


class Case:
    """One operator at a small shape of its own, with the sizes that its inputs have in common."""

    def __init__(self, op: str):
        self.op, self.cases, self.operator = op, benchmark.load_cases(op), OPERATORS[op]
        self.axes = self.cases.SHAPE_NAMES.split()
        self.shape = tuple(self.cases.TRITON_SHAPES[-1])
        self.long = "T" if "T" in self.axes else "L" if "L" in self.axes else "H"

    def sized(self, **sizes: int) -> tuple[int, ...]:
        return tuple(sizes.get(axis, size) for axis, size in zip(self.axes, self.shape, strict=True))

    def inputs(self, dtype=torch.float32, requires_grad=False, **sizes):
        return tuple(x.requires_grad_(requires_grad) for x in self.cases.make_inputs(self.sized(**sizes), dtype))

    def __call__(self, *inputs, backend="torch"):
        return self.cases.OP(*inputs, **self.cases.KWARGS, backend=backend)

    def reference(self, *inputs):
        return self.cases.REFERENCE(*inputs, **self.cases.KWARGS)

    def varying(self, axis: str) -> list[list[int]]:
        """For every input the dimensions that change with one axis of the shape."""
        size = dict(zip(self.axes, self.shape, strict=True))[axis]
        pairs = zip(self.inputs(), self.inputs(**{axis: size + 1}), strict=True)
        return [[d for d in range(a.dim()) if a.shape[d] != b.shape[d]] for a, b in pairs]

    def args(self, *inputs) -> tuple:
        return self.operator.arguments_of(lambda: self(*inputs))


@pytest.fixture(params=NAMES)
def case(request) -> Case:
    return Case(request.param)


def test_reference_agrees(case):
    """The two sides of every comparison below are not the same code."""
    inputs = case.inputs()
    testing.assert_matches_reference(case, case.reference, inputs, case.cases.INPUTS)
    assert case.cases.REFERENCE is not case.cases.OP


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(case, dtype):
    args = case.args(*case.inputs(dtype, requires_grad=True))
    torch.library.opcheck(case.operator.forward_op, (*args, "torch"))
    args = [x.detach() if isinstance(x, torch.Tensor) else x for x in args]
    count = len(case.operator.tensors)
    outputs = case.operator.as_tuple(case.operator.forward_op(*args, "torch"))
    grads = [torch.randn_like(x) for x in outputs]
    torch.library.opcheck(case.operator.backward_op, (*args[:count], *grads, *args[count:], "torch"))


def test_compile_fullgraph_with_dynamic_length(case):
    def loss(*inputs):
        return case(*inputs[:-1], 2 * inputs[-1]).square().sum()

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (37, 50, 64):
        inputs = case.inputs(requires_grad=True, **{case.long: length})
        expected = torch.autograd.grad(loss(*inputs), inputs)
        for a, b in zip(torch.autograd.grad(compiled(*inputs), inputs), expected, strict=True):
            torch.testing.assert_close(a, b)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("strict", [True, False])
def test_export_keeps_the_operator(case, strict):
    class Module(torch.nn.Module):
        def forward(self, *inputs):
            return case(*inputs) * 2

    inputs, longer = case.inputs(), case.inputs(**{case.long: 51})
    dynamic = tuple({d: torch.export.Dim.AUTO for d in dims} or None for dims in case.varying(case.long))
    exported = torch.export.export(Module(), inputs, strict=strict, dynamic_shapes=(dynamic,))
    assert case.operator.forward_op in [n.target for n in exported.graph.nodes]
    torch.testing.assert_close(exported.module()(*longer), 2 * case(*longer))


def test_meta_tensors(case):
    inputs = case.inputs(torch.bfloat16)
    real, out = case(*inputs), case(*(x.to("meta") for x in inputs))
    assert (out.device.type, out.shape, out.dtype, out.stride()) == ("meta", real.shape, real.dtype, real.stride())


def test_half_precision_under_autocast(case):
    """Half tensors beside float32 parameters, as the layers in front of an operator leave them."""
    inputs = case.inputs(torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = case(*inputs)
    assert out.dtype == torch.bfloat16
    grads = torch.autograd.grad(out.float().sum(), inputs)
    assert [g.dtype for g in grads] == [x.dtype for x in inputs]
    testing.assert_close(out, case.reference(*(x.double() for x in inputs)), testing.TOLERANCE[torch.bfloat16])


def test_activation_checkpointing(case):
    inputs = case.inputs(requires_grad=True)
    expected = torch.autograd.grad(case(*inputs).square().sum(), inputs)
    for reentrant in (False, True):
        for x in inputs:
            x.grad = None
        checkpoint(case, *inputs, use_reentrant=reentrant).square().sum().backward()
        for x, b in zip(inputs, expected, strict=True):
            torch.testing.assert_close(x.grad, b, rtol=0, atol=0)


@pytest.mark.parametrize("shared", [True, False], ids=["shared_parameters", "parameters_per_sample"])
def test_per_sample_gradients(case, shared):
    inputs = [x.double() for x in case.inputs(torch.float64, B=3, **{case.long: 11})]
    batch = [dims[0] if dims else None for dims in case.varying("B")]
    if not shared:
        inputs = [torch.stack([x, 2 * x, 0.5 * x]) if d is None else x for x, d in zip(inputs, batch, strict=True)]
    dims = [0 if d is None and not shared else d for d in batch]

    def loss(op):
        return lambda *x: op(*(y if d is None else y.unsqueeze(d) for y, d in zip(x, batch, strict=True))).square().sum()

    everything = tuple(range(len(inputs)))
    actual, expected = (vmap(grad(loss(op), argnums=everything), tuple(dims))(*inputs) for op in (case, case.reference))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_second_derivatives_raise(case):
    inputs = case.inputs(requires_grad=True)
    (g,) = torch.autograd.grad(case(*inputs).square().sum(), inputs[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        g.sum().backward()
    rest = [x.detach() for x in inputs[1:]]
    with pytest.raises(NotImplementedError, match="second derivative"):
        grad(lambda a: grad(lambda b: case(b, *rest).square().sum())(a).sum())(inputs[0].detach())
    (g,) = torch.autograd.grad(case(*inputs, backend="reference").square().sum(), inputs[0], create_graph=True)
    g.sum().backward()  # the reference has them


def test_forward_mode_raises(case):
    inputs = case.inputs()
    for index in range(len(inputs)):
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
            case(*(forward_ad.make_dual(x, torch.ones_like(x)) if i == index else x for i, x in enumerate(inputs)))
        with pytest.raises(NotImplementedError, match="forward-mode"):
            jvp(lambda x, i=index: case(*inputs[:i], x, *inputs[i + 1 :]), (inputs[index],), (torch.ones_like(inputs[index]),))
    with forward_ad.dual_level():
        case(*inputs)  # nothing to differentiate: allowed


def test_arithmetic_is_counted(case):
    inputs = case.inputs(requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        case(*inputs).sum().backward()
    counts = counter.get_flop_counts()["Global"]
    shapes = [None if x is None else x.shape for x in case.args(*inputs)[: len(case.operator.tensors)]]
    assert counts[getattr(torch.ops.linescan, case.op)] == costs.FORMULAS[f"linescan::{case.op}"](shapes)
    assert getattr(torch.ops.linescan, f"{case.op}_backward") in counts


def test_jit_trace_keeps_the_operator(case):
    graph = torch.jit.trace(lambda *x: case(*x), case.inputs(), check_trace=False).graph
    assert f"linescan::{case.op}" in [n.kind() for n in graph.nodes()]


@pytest.mark.parametrize("sizes", [{"B": 0}, {"B": 2}])
@pytest.mark.parametrize(("op", "backend"), CPU_BACKENDS)
def test_every_element_is_written_and_runs_repeat_bitwise(op, backend, sizes):
    case = Case(op)
    if reason := case.operator.why_not(backend, "cpu"):
        pytest.skip(reason)
    inputs = case.inputs(**sizes)
    grad_output = torch.randn_like(case(*inputs, backend=backend))
    with testing.poisoned_memory():
        runs = [testing.gradients(lambda *x: case(*x, backend=backend), inputs, grad_output) for _ in range(2)]
    for a, b in zip(*runs, strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)


@pytest.mark.parametrize(("op", "backend"), CPU_BACKENDS)
def test_last_dimension_may_have_any_stride(op, backend):
    case = Case(op)
    if reason := case.operator.why_not(backend, "cpu"):
        pytest.skip(reason)
    inputs = case.inputs()
    spread = [torch.stack((x, torch.full_like(x, torch.nan)), -1)[..., 0] for x in inputs]
    grad_output = torch.randn_like(case(*inputs))
    expected = testing.gradients(lambda *x: case(*x, backend=backend), inputs, grad_output)
    wide = torch.stack((grad_output, torch.full_like(grad_output, torch.nan)), -1)[..., 0]
    for a, b in zip(testing.gradients(lambda *x: case(*x, backend=backend), spread, wide), expected, strict=True):
        torch.testing.assert_close(a, b)


# ------------------------------------------------------------------------------------------------------------------------------ bad input


def test_bad_tensors_are_named(case):
    inputs = case.inputs()
    for index, name in enumerate(case.cases.INPUTS):

        def change(x, i=index):
            return [*inputs[:i], x, *inputs[i + 1 :]]

        x = inputs[index]
        with pytest.raises(TypeError, match=rf"{case.op}: {name} must be a Tensor.*got list"):
            case(*change([1.0]))
        with pytest.raises(TypeError, match=rf"{case.op}: {name} must be a floating-point tensor, got torch.int64"):
            case(*change(x.long()))
        with pytest.raises(ValueError, match=rf"{case.op}: {name} must have shape .*got \(1, 1, 1, 1, "):
            case(*change(x[None, None, None, None].expand(1, 1, 1, 1, *x.shape)))
        if len(inputs) > 1:
            with pytest.raises(ValueError, match=rf"{case.op}: .* must be on the device of"):
                case(*change(x.to("meta")))


def test_unknown_and_missing_backends(case):
    inputs = case.inputs()
    with pytest.raises(ValueError, match=r"backend: expected 'auto' or one of .*got 'fastest'"):
        case(*inputs, backend="fastest")
    missing = next(b for b in ("fla", "mamba_ssm") if b not in case.operator.backends)
    with pytest.raises(NotImplementedError, match=rf"backend '{missing}': {case.op} has backends"):
        case(*inputs, backend=missing)
    for peer in case.operator.peers:
        with pytest.raises(RuntimeError, match="needs CUDA tensors, got cpu"):
            case(*inputs, backend=peer)


def test_triton_on_cpu_tensors_is_refused_outside_the_interpreter(case, monkeypatch):
    if "triton" not in case.operator.own:
        pytest.skip(f"{case.op} has no Triton kernels")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match=rf"{case.op}: backend 'triton' needs CUDA tensors, got cpu"):
        case(*case.inputs(), backend="triton")


def test_missing_triton_is_named_and_costs_nothing_else():
    """Without Triton every operator works, and asking for its kernels says what is missing."""
    code = """
import os, sys
os.environ["TRITON_INTERPRET"] = "1"
sys.modules["triton"] = None
from linescan.kernels import benchmark
from linescan.kernels.registration import OPERATORS
for op in benchmark.operators():
    cases = benchmark.load_cases(op)
    inputs = cases.make_inputs(cases.TRITON_SHAPES[-1])
    cases.OP(*inputs, **cases.KWARGS)
    if "triton" in OPERATORS[op].own:
        try:
            cases.OP(*inputs, **cases.KWARGS, backend="triton")
        except RuntimeError as error:
            assert "needs the package 'triton'" in str(error), error
        else:
            raise AssertionError(op)
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "done", done.stderr


def test_report_names_every_operator_and_reason():
    text = dispatch.report()
    for op in NAMES:
        assert f"{op} " in text
    assert "auto -> " in text
