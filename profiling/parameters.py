"""Number of parameters of a model, by stage."""

from collections import Counter
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a model; one that several modules share is counted once, where it is met first.

    Attributes:
        total: number of scalar parameters.
        trainable: those with requires_grad.
        by_stage: first part of the module name ("" for parameters of the model itself) -> parameters; the values add up to `total`.
    """

    total: int
    trainable: int
    by_stage: dict[str, int]


def count_parameters(model: nn.Module) -> ParameterCount:
    """Counts the parameters of `model`; buffers (running statistics, fixed tables) are none."""
    by_stage: Counter[str] = Counter()
    trainable = 0
    for name, parameter in model.named_parameters():
        stage, dot, _ = name.partition(".")
        by_stage[stage if dot else ""] += parameter.numel()
        trainable += parameter.numel() * parameter.requires_grad
    return ParameterCount(total=sum(by_stage.values()), trainable=trainable, by_stage=dict(by_stage))
