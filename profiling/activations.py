"""Memory that a training step keeps for its backward pass, by stage, without running one."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from .dry_run import Callers, dry_run, storage_key, weight_keys
from .throughput import DTYPES


def activations_by_stage(model: nn.Module, input_shape: Sequence[int], dtype: str = "fp32") -> dict[str, int]:
    """Bytes that autograd keeps between the forward and the backward pass of one training step.

    The forward pass runs for its shapes only, in training mode. A block of memory counts once, for the stage that was running when it was
    first kept; parameters and buffers, which are there anyway, do not count, the input image does where a trained layer needs it.
    scaled_dot_product_attention counts as a fused kernel: it keeps query, key, value, its result and one fp32 number per query and head,
    not the matrix of weights. Batch norm of a single value per channel, which PyTorch refuses to train (the pooled branch of a DeepLab head
    with one image), is counted all the same, so that one image can be asked for.

    Args:
        model: any backbone or segmentor, with its `frozen_stages`, `with_cp` and requires_grad as they are; it is not changed.
        input_shape: (B, C, H, W).
        dtype: "fp32", or "bf16" / "fp16" under autocast, where the cast weights are kept too.

    Returns:
        First part of the module name ("" for the model itself) -> bytes, in order of execution; stages that keep nothing are left out.

    Raises:
        TypeError, ValueError: for a shape that is not a sequence of positive integers, or an unknown dtype.
    """
    stages: Counter[str] = Counter()
    callers = Callers()
    with dry_run(model, input_shape, dtype=dtype, training=True) as (copied, x):
        counted = weight_keys(copied)
        kept: list[Tensor] = []  # a block that was freed could come back as another one

        def keep(tensor: Tensor) -> Tensor:
            if storage_key(tensor) not in counted:
                counted.add(storage_key(tensor))
                kept.append(tensor)
                stages[callers.innermost.split(".")[0]] += tensor.untyped_storage().nbytes()
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with torch.enable_grad(), hooks, callers.following(copied), _TrainingFunctions(dtype):
            copied(x)
    return dict(stages)


class _TrainingFunctions(TorchFunctionMode):
    """Replaces scaled_dot_product_attention by what a fused kernel keeps of it, and batch_norm by the operator below its check."""

    def __init__(self, dtype: str):
        super().__init__()
        self.dtype = DTYPES[dtype]

    def __torch_function__(self, func, types, args=(), kwargs=None):
        instead = {scaled_dot_product_attention: self._attention, batch_norm: self._batch_norm}.get(func, func)
        return instead(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if training:  # their update divides by the number of values less one
            running_mean = running_var = None
        return torch.batch_norm(x, weight, bias, running_mean, running_var, training, momentum, eps, torch.backends.cudnn.enabled)

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        tensors = (query, key, value, attn_mask)
        half = self.dtype != torch.float32
        return _Kept.apply(*(x.to(self.dtype) if half and x is not None and x.is_floating_point() else x for x in tensors))


class _Kept(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        result = query.new_empty(*query.shape[:-1], value.shape[-1])
        normaliser = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, mask, result, normaliser)
        return result
