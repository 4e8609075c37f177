"""Multiply-adds of a model at one input size, complete or not at all.

The model runs once for its shapes (`dry_run`): no number is computed, so any resolution costs a fraction of a second and no memory.
Every ATen operator below the modules is seen, and one that computes something and has no formula is an error. Each count is checked against
`torch.utils.flop_counter`, which works the same way but passes over what it does not know. (fvcore traces with TorchScript, which needs
real numbers: a second opinion at small sizes, see `fvcore_handles`.)
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .counter import OperatorCall, OperatorCounter, counter_for
from .dry_run import dry_run
from .formulas import MAC_FORMULAS


class UncountedOperatorError(RuntimeError):
    """An operator computes something and no formula says how much."""


@dataclass(frozen=True)
class MacCount:
    """Cost of one forward pass in evaluation mode.

    Attributes:
        input_shape: shape of the input tensor, batch included.
        dtype: "fp32", or "bf16" / "fp16" under autocast.
        macs: multiply-adds of convolutions, linear layers and matrix products (attention included); 1 MAC = 2 FLOPs.
        scan_ops: element operations inside scan operators (`linescan.kernels.costs`), which are no matrix products and not part of `macs`.
        norm_ops: element operations of normalisation as fvcore counts them (`formulas.norm_ops`), no part of `macs` either.
        by_module: qualified module name ("" is the model itself) -> MACs of the operators that this module calls itself, without its
            children's.
        by_operator: kind of operator (conv, linear, attention, matmul, or the name of a custom operator) -> MACs.
        scan_ops_by_operator: name of a scan operator -> element operations.
        uncounted: operators that ran and cost no MACs by convention (normalisation, activations, resampling ...) -> number of calls.
        calls: what ran, in order, views left out.
        input_bytes: memory of the input.
        peak_live_bytes: the most memory that results took at one time, weights and input not included. What eager PyTorch holds: a result
            that no one needs any more is freed. Workspaces inside operators are not seen. Under autocast it holds the cast weights, which
            autocast keeps.
    """

    input_shape: tuple[int, ...]
    dtype: str
    macs: int
    scan_ops: int
    norm_ops: int
    by_module: dict[str, int]
    by_operator: dict[str, int]
    scan_ops_by_operator: dict[str, int]
    uncounted: dict[str, int]
    calls: tuple[OperatorCall, ...]
    input_bytes: int
    peak_live_bytes: int

    @property
    def flops(self) -> int:
        """Floating-point operations of the counted operators, 2 per MAC; those of scans are in `scan_ops`."""
        return 2 * self.macs

    @property
    def bytes_moved(self) -> int:
        """Bytes that the calls read and write, each call for itself: tensor arguments and results once each, at their dtypes."""
        return sum(call.bytes_moved for call in self.calls)

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
    dtype: str = "fp32",
) -> MacCount:
    """Counts the multiply-adds of `model(x)` for x of `input_shape`, in evaluation mode; the model is not changed.

    Args:
        model: any backbone, or a segmentor of MMSegmentation (its tensor mode is counted: backbone, neck, decode head). Synchronised batch
            norm is reverted in the copy that is counted.
        input_shape: (B, C, H, W), or whatever the model takes as its one tensor.
        formulas: MACs of further operators, `"namespace::name" -> formula(arguments, result)`; see `linescan.profiling.formulas`.
        device: "meta" computes shapes only. A model whose control flow depends on values needs "cpu", where it really runs.
        dtype: "fp32", or "bf16" / "fp16" under autocast as a CUDA device casts (on "cpu", as that casts): the same MACs, other bytes. The
            cast weights are those of an earlier pass, as they are when passes are repeated inside one autocast context.

    Raises:
        TypeError, ValueError: for a shape that is not a sequence of positive integers, or an unknown dtype.
        UncountedOperatorError: names each operator that has neither a formula nor a place in the list of operators that cost nothing.
        RuntimeError: the count of `torch.utils.flop_counter` is different.
    """
    known = {**MAC_FORMULAS, **{name: (name, formula) for name, formula in (formulas or {}).items()}}
    reference = FlopCounterMode(display=False)
    with dry_run(model, input_shape, dtype=dtype, device=device) as (copied, x):
        counter = counter_for(copied, x, known)
        # The mathematical form of attention is made of matrix products, which both counters know on every device.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            if dtype != "fp32":
                with counter:
                    copied(x)
                counter.restart()
            with reference, counter.following(copied):
                copied(x)
    _raise_if_unknown(counter, model)
    count = _result(counter, tuple(input_shape), dtype)
    _cross_check(count, reference, known=counter.macs_known_to_torch)
    return count


def _raise_if_unknown(counter: OperatorCounter, model: nn.Module) -> None:
    if counter.unknown:
        names = ", ".join(f"{name} x{calls}" for name, calls in sorted(counter.unknown.items()))
        raise UncountedOperatorError(
            f"no MAC formula for {names} of {type(model).__name__}; the count would be too small. Give one as "
            "count_macs(..., formulas={'namespace::name': lambda args, result: macs}), or 0 for an operator without multiply-adds"
        )


def _result(counter: OperatorCounter, shape: tuple[int, ...], dtype: str) -> MacCount:
    return MacCount(
        input_shape=shape,
        dtype=dtype,
        macs=sum(counter.by_operator.values()),
        scan_ops=sum(counter.scan_ops.values()),
        norm_ops=counter.norm_ops,
        by_module=dict(counter.by_module),
        by_operator=dict(counter.by_operator),
        scan_ops_by_operator=dict(counter.scan_ops),
        uncounted=dict(counter.uncounted),
        calls=tuple(counter.calls),
        input_bytes=4 * math.prod(shape),
        peak_live_bytes=counter.live.peak,
    )


def _cross_check(count: MacCount, reference: FlopCounterMode, *, known: int) -> None:
    """Compares with torch, operator by operator of PyTorch's own; operators of ours are registered there with the same formula."""
    seen = reference.get_flop_counts().get("Global", {})
    torch_macs = sum(flops for operator, flops in seen.items() if str(operator).startswith("aten")) // 2
    if torch_macs != known:
        raise RuntimeError(
            f"the formulas of linescan give {known} MACs at input {count.input_shape}, torch.utils.flop_counter {torch_macs}: "
            "one of them is wrong, so neither is reported"
        )
