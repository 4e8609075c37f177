"""Multiply-adds of a model at one input size, complete or not at all.

The model runs once on the meta device: shapes are computed, numbers are not, so any resolution costs a fraction of a second and no memory.
Every ATen operator below the modules is seen, and one that computes something and has no formula is an error. Each count is checked against
`torch.utils.flop_counter`, which works the same way but passes over what it does not know. (fvcore traces with TorchScript, which needs
real numbers: a second opinion at small sizes, see `fvcore_handles`.)
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ..kernels.costs import FORMULAS as SCAN_FORMULAS
from .formulas import MAC_FORMULAS, is_uncounted, operator_name

# What torch.utils.flop_counter has formulas for; it does not know products with a vector.
_KNOWN_TO_TORCH = frozenset({"aten::convolution", "aten::_convolution", "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"})


class UncountedOperatorError(RuntimeError):
    """An operator computes something and no formula says how much."""


@dataclass(frozen=True)
class MacCount:
    """Cost of one forward pass in evaluation mode.

    Attributes:
        input_shape: shape of the input tensor, batch included.
        macs: multiply-adds of convolutions, linear layers and matrix products (attention included); 1 MAC = 2 FLOPs.
        scan_ops: element operations inside scan operators (`linescan.kernels.costs`), which are no matrix products and not part of `macs`.
        by_module: qualified module name ("" is the model itself) -> MACs of the operators that this module calls itself, without its
            children's.
        by_operator: kind of operator (conv, linear, attention, matmul, or the name of a custom operator) -> MACs.
        scan_ops_by_operator: name of a scan operator -> element operations.
        uncounted: operators that ran and cost no MACs by convention (normalisation, activations, resampling ...) -> number of calls.
    """

    input_shape: tuple[int, ...]
    macs: int
    scan_ops: int
    by_module: dict[str, int]
    by_operator: dict[str, int]
    scan_ops_by_operator: dict[str, int]
    uncounted: dict[str, int]

    @property
    def flops(self) -> int:
        """Floating-point operations of the counted operators, 2 per MAC; those of scans are in `scan_ops`."""
        return 2 * self.macs

    def by_stage(self, depth: int = 1) -> dict[str, int]:
        """MACs by the first `depth` parts of the module names, in order of execution; the values add up to `macs`."""
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        stages: Counter[str] = Counter()
        for name, macs in self.by_module.items():
            stages[".".join(name.split(".")[:depth])] += macs
        return dict(stages)


def count_macs(
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    formulas: Mapping[str, Callable[[tuple[Any, ...], Any], int]] | None = None,
    device: str = "meta",
) -> MacCount:
    """Counts the multiply-adds of `model(x)` for x of `input_shape`, in evaluation mode; the model is not changed.

    Args:
        model: any backbone, or a segmentor of MMSegmentation (its tensor mode is counted: backbone, neck, decode head). Synchronised batch
            norm is reverted in the copy that is counted.
        input_shape: (B, C, H, W), or whatever the model takes as its one tensor.
        formulas: MACs of further operators, `"namespace::name" -> formula(arguments, result)`; see `linescan.profiling.formulas`.
        device: "meta" computes shapes only. A model whose control flow depends on values needs "cpu", where it really runs.

    Raises:
        TypeError, ValueError: for a shape that is not a sequence of positive integers.
        UncountedOperatorError: names each operator that has neither a formula nor a place in the list of operators that cost nothing.
        RuntimeError: the count of `torch.utils.flop_counter` is different.
    """
    shape = _checked_shape(input_shape)
    copied = _without_sync_batchnorm(_copy_to(model, device)).eval()
    x = torch.empty(shape, device=device) if device == "meta" else torch.zeros(shape, device=device)
    counter = _Counter({**MAC_FORMULAS, **{name: (name, formula) for name, formula in (formulas or {}).items()}})
    reference = FlopCounterMode(display=False)
    # The mathematical form of attention is made of matrix products, which both counters know on every device.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _plain_modules(), reference, _attention_label(counter), counter.following(copied):
        copied(x)
    counter.raise_if_unknown(model)
    count = counter.result(shape)
    _cross_check(count, reference, known=counter.macs_known_to_torch)
    return count


def _checked_shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    if isinstance(input_shape, str | bytes) or not isinstance(input_shape, Sequence):
        raise TypeError(f"input_shape must be a sequence of integers like (1, 3, 224, 224), got {input_shape!r}")
    if not input_shape or any(not isinstance(size, int) or isinstance(size, bool) or size < 1 for size in input_shape):
        raise ValueError(f"input_shape must hold positive integers like (1, 3, 224, 224), got {tuple(input_shape)!r}")
    return tuple(input_shape)


def _copy_to(model: nn.Module, device: str) -> nn.Module:
    """A copy of the model whose tensors lie on `device`; on "meta" no number is copied."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        plain = (value for value in vars(module).values() if isinstance(value, Tensor))
        for tensor in (*module._parameters.values(), *module._buffers.values(), *plain):
            if tensor is not None and id(tensor) not in memo:
                moved = torch.empty_like(tensor, device=device) if device == "meta" else tensor.detach().to(device, copy=True)
                memo[id(tensor)] = nn.Parameter(moved, requires_grad=False) if isinstance(tensor, nn.Parameter) else moved
    return copy.deepcopy(model, memo)


def _without_sync_batchnorm(model: nn.Module) -> nn.Module:
    """Synchronised batch norm needs a process group on a GPU; the plain one costs the same."""
    if not any("SyncBatchNorm" in type(module).__name__ for module in model.modules()):
        return model
    from mmengine.model import revert_sync_batchnorm

    return revert_sync_batchnorm(model)


@contextmanager
def _plain_modules() -> Iterator[None]:
    """Switches off the fused inference path of nn.TransformerEncoderLayer, one opaque operator without a formula."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _cross_check(count: MacCount, reference: FlopCounterMode, *, known: int) -> None:
    """Compares with torch, operator by operator of PyTorch's own; operators of ours are registered there with the same formula."""
    seen = reference.get_flop_counts().get("Global", {})
    torch_macs = sum(flops for operator, flops in seen.items() if str(operator).startswith("aten")) // 2
    if torch_macs != known:
        raise RuntimeError(
            f"the formulas of linescan give {known} MACs at input {count.input_shape}, torch.utils.flop_counter {torch_macs}: "
            "one of them is wrong, so neither is reported"
        )


class _attention_label(TorchFunctionMode):
    """Files the matrix products inside scaled_dot_product_attention under "attention"."""

    def __init__(self, counter: "_Counter"):
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.counter.inside_attention = True
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.counter.inside_attention = False


class _Counter(TorchDispatchMode):
    """Sees every ATen operator, and knows which module called it."""

    def __init__(self, formulas: Mapping[str, tuple[str, Callable[[tuple[Any, ...], Any], int]]]):
        super().__init__()
        self.formulas = formulas
        self.inside_attention = False
        self.macs_known_to_torch = 0
        self.by_module: Counter[str] = Counter()
        self.by_operator: Counter[str] = Counter()
        self.scan_ops: Counter[str] = Counter()
        self.uncounted: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()
        self._callers = [""]

    @contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Counts what runs inside the block, and attributes it to the innermost module that is running."""
        names = {module: name for name, module in model.named_modules()}

        def enter(module: nn.Module, args: Any) -> None:
            self._callers.append(names[module])

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self._callers.pop()

        hooks = [hook for module in names for hook in (module.register_forward_pre_hook(enter), module.register_forward_hook(leave))]
        try:
            with self:
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = operator_name(func)
        if name not in self.formulas and name not in SCAN_FORMULAS and not is_uncounted(func):
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        self._count(func, name, args, result)
        return result

    def _count(self, func: torch._ops.OpOverload, name: str, args: tuple[Any, ...], result: Any) -> None:
        if name in self.formulas:
            kind, formula = self.formulas[name]
            macs = int(formula(args, result))
            self.by_module[self._callers[-1]] += macs
            self.by_operator["attention" if self.inside_attention else kind] += macs
            self.macs_known_to_torch += macs * (name in _KNOWN_TO_TORCH)
        elif name in SCAN_FORMULAS:
            self.scan_ops[name] += SCAN_FORMULAS[name]([tuple(arg.shape) for arg in args if isinstance(arg, Tensor)])
        elif is_uncounted(func):
            self.uncounted[name] += 1
        else:
            self.unknown[f"{name} (in module {self._callers[-1] or 'at the top'!r})"] += 1

    def raise_if_unknown(self, model: nn.Module) -> None:
        if self.unknown:
            names = ", ".join(f"{name} x{calls}" for name, calls in sorted(self.unknown.items()))
            raise UncountedOperatorError(
                f"no MAC formula for {names} of {type(model).__name__}; the count would be too small. Give one as "
                "count_macs(..., formulas={'namespace::name': lambda args, result: macs}), or 0 for an operator without multiply-adds"
            )

    def result(self, shape: tuple[int, ...]) -> MacCount:
        return MacCount(
            input_shape=shape,
            macs=sum(self.by_operator.values()),
            scan_ops=sum(self.scan_ops.values()),
            by_module=dict(self.by_module),
            by_operator=dict(self.by_operator),
            scan_ops_by_operator=dict(self.scan_ops),
            uncounted=dict(self.uncounted),
        )
