"""Number of parameters of a model: by stage, by module type, and how many of them a forward pass reaches."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from .dry_run import dry_run, storage_key


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a model; one that several modules share is counted once, where it is met first.

    Attributes:
        total: number of scalar parameters.
        trainable: those with requires_grad.
        by_stage: first part of the module name ("" for parameters of the model itself) -> parameters; the values add up to `total`.
        by_type: class name of the module that owns the parameter -> parameters; the values add up to `total`.
        live: parameters that an operator of a forward pass in evaluation mode reads; None where no input shape was given. What is read
            for a result that is then thrown away is live too; a module that is never called is not.
    """

    total: int
    trainable: int
    by_stage: dict[str, int]
    by_type: dict[str, int]
    live: int | None = None


def count_parameters(model: nn.Module, input_shape: Sequence[int] | None = None, *, device: str = "meta") -> ParameterCount:
    """Counts the parameters of `model`; buffers (running statistics, fixed tables) are none.

    Args:
        model: any module; it is not changed.
        input_shape: of its one tensor, such as (1, 3, 224, 224); needed for `live` only.
        device: where the forward pass for `live` runs: "meta" for shapes only, "cpu" for a model whose control flow depends on values.

    Raises:
        TypeError, ValueError: for a shape that is not a sequence of positive integers.
    """
    by_stage: Counter[str] = Counter()
    by_type: Counter[str] = Counter()
    trainable = 0
    for name, parameter in model.named_parameters():
        owner = name.rpartition(".")[0]
        by_stage[owner.split(".")[0]] += parameter.numel()
        by_type[type(model.get_submodule(owner)).__name__] += parameter.numel()
        trainable += parameter.numel() * parameter.requires_grad
    return ParameterCount(
        total=sum(by_stage.values()),
        trainable=trainable,
        by_stage=dict(by_stage),
        by_type=dict(by_type.most_common()),
        live=None if input_shape is None else _live(model, input_shape, device),
    )


def _live(model: nn.Module, input_shape: Sequence[int], device: str) -> int:
    with dry_run(model, input_shape, device=device) as (copied, x):
        reading = _Reading()
        with torch.no_grad(), reading:
            copied(x)
        return sum(parameter.numel() for parameter in copied.parameters() if storage_key(parameter) in reading.seen)


class _Reading(TorchDispatchMode):
    """Notes the blocks of memory that operators read; a view of a block reads nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not (func.is_view or func.namespace == "prim"):
            for leaf in pytree.tree_leaves((args, kwargs)):
                if isinstance(leaf, Tensor):
                    self.seen.add(storage_key(leaf))
        return func(*args, **kwargs)
