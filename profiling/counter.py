"""Sees every ATen operator of a forward pass: what it costs, what it moves, which module called it, and what memory is in use."""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ..kernels.costs import FORMULAS as SCAN_FORMULAS
from .dry_run import Callers, storage_key, weight_keys
from .formulas import Formula, bytes_moved, is_uncounted, norm_ops, operator_name, uncounted_kind
from .throughput import DTYPES

ATTENTION = "aten::scaled_dot_product_attention"
# What torch.utils.flop_counter has formulas for; it does not know products with a vector.
_KNOWN_TO_TORCH = frozenset({"aten::convolution", "aten::_convolution", "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"})
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class OperatorCall:
    """One call of an operator, as eager PyTorch makes it.

    Attributes:
        module: qualified name of the module that called it, "" for the model itself.
        name: `namespace::name`; all of scaled_dot_product_attention is one call.
        kind: conv, linear, attention, matmul, the name of a custom operator, or one of the kinds that cost no MACs (element-wise,
            reduction, normalisation, resampling and pooling, data movement).
        macs: multiply-adds.
        scan_ops: element operations of a scan (`linescan.kernels.costs`).
        bytes_moved: tensor arguments and results once each.
        dtype: "fp32", "bf16", "fp16", or PyTorch's name of another dtype: that of the (first) result.
    """

    module: str
    name: str
    kind: str
    macs: int
    scan_ops: int
    bytes_moved: int
    dtype: str = "fp32"


class LiveBytes:
    """Memory of the tensors that a forward pass made and still holds; views of one block share it.

    Args:
        given: blocks that are not counted (`storage_key`): weights and input, which outlive the pass.
    """

    def __init__(self, given: set[int]):
        self.now = self.peak = 0
        self._held = dict.fromkeys(given, 0)

    def hold(self, tensors: Any) -> None:
        """Counts the blocks of `tensors` (nested as they come) until PyTorch frees them."""
        for tensor in pytree.tree_leaves(tensors):
            if not isinstance(tensor, Tensor) or storage_key(tensor) in self._held:
                continue
            storage = tensor.untyped_storage()
            self._held[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            weakref.finalize(storage, self._free, storage._cdata).atexit = False
        self.peak = max(self.peak, self.now)

    def _free(self, key: int) -> None:
        self.now -= self._held.pop(key)


class OperatorCounter(TorchDispatchMode):
    """Records the operators that run inside `following(model)`.

    Args:
        formulas: operator -> (kind, formula of its MACs).
        given: blocks of memory that are not counted as live.
    """

    def __init__(self, formulas: Mapping[str, tuple[str, Formula]], given: set[int]):
        super().__init__()
        self.formulas = formulas
        self.live = LiveBytes(given)
        self.callers = Callers()
        self._attention: int | None = None  # MACs inside the running scaled_dot_product_attention
        self.restart()

    def restart(self) -> None:
        """Forgets the calls so far; what is held in memory stays held."""
        self.calls: list[OperatorCall] = []
        self.macs_known_to_torch = self.norm_ops = 0
        self.by_module: Counter[str] = Counter()
        self.by_operator: Counter[str] = Counter()
        self.scan_ops: Counter[str] = Counter()
        self.uncounted: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()
        self.live.peak = self.live.now

    @contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Counts what runs inside the block, and attributes it to the innermost module that is running."""
        with self.callers.following(model), _WholeAttention(self), self:
            yield

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = operator_name(func)
        if name not in self.formulas and name not in SCAN_FORMULAS and not is_uncounted(func):
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        self._count(func, name, args, kwargs, result)
        return result

    def _count(self, func: torch._ops.OpOverload, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        kind, macs, scan_ops = "", 0, 0
        if name in self.formulas:
            kind, formula = self.formulas[name]
            macs = int(formula(args, result))
            self.by_module[self.callers.innermost] += macs
            self.by_operator[kind if self._attention is None else "attention"] += macs
            self.macs_known_to_torch += macs * (name in _KNOWN_TO_TORCH)
        elif name in SCAN_FORMULAS:
            # None stands for a tensor that is not given: formulas find the others by their place.
            kind, scan_ops = name, SCAN_FORMULAS[name]([tuple(arg.shape) if isinstance(arg, Tensor) else None for arg in args])
            self.scan_ops[name] += scan_ops
        elif is_uncounted(func):
            kind = uncounted_kind(name)
            self.uncounted[name] += 1
            self.norm_ops += norm_ops(name, args)
        else:
            self.unknown[f"{name} (in module {self.callers.innermost or 'at the top'!r})"] += 1
        if self._attention is None:
            moved = 0 if func.is_view or func.namespace == "prim" else bytes_moved(name, (args, kwargs), result)
            self._record(name, kind, macs, scan_ops, moved, result)
        else:
            self._attention += macs

    def _record(self, name: str, kind: str, macs: int, scan_ops: int, moved: int, result: Any) -> None:
        self.live.hold(result)
        if macs or scan_ops or moved:
            first = next((x for x in pytree.tree_leaves(result) if isinstance(x, Tensor)), None)
            dtype = "" if first is None else _DTYPE_NAMES.get(first.dtype, str(first.dtype).removeprefix("torch."))
            self.calls.append(OperatorCall(self.callers.innermost, name, kind, macs, scan_ops, moved, dtype))

    def attention(self, run: Callable[[], Tensor], arguments: Any) -> Tensor:
        """Runs an attention, whose matrix products are counted as such; what lies between them never leaves a fused kernel."""
        if self._attention is not None:
            return run()
        self._attention = 0
        try:
            result = run()
        finally:
            macs, self._attention = self._attention, None
        self._record(ATTENTION, "attention", macs, 0, bytes_moved(ATTENTION, arguments, result), result)
        return result


class _WholeAttention(TorchFunctionMode):
    """Shows scaled_dot_product_attention, which PyTorch takes apart before operators are seen, to a counter."""

    def __init__(self, counter: OperatorCounter):
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not scaled_dot_product_attention:
            return func(*args, **kwargs)
        return self.counter.attention(lambda: func(*args, **kwargs), (args, kwargs))


def counter_for(model: nn.Module, x: Tensor, formulas: Mapping[str, tuple[str, Formula]]) -> OperatorCounter:
    """A counter for `model(x)`: weights and input are no part of its live memory."""
    return OperatorCounter(formulas, weight_keys(model) | {storage_key(x)})
