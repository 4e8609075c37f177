"""Memory that a training step keeps for its backward pass, by stage, without running one."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from .dry_run import Callers, dry_run, storage_key, weight_keys
from .throughput import DTYPES


def activations_by_stage(model: nn.Module, input_shape: Sequence[int], dtype: str = "fp32") -> dict[str, int]:
    """Bytes that autograd keeps between the forward and the backward pass of one training step.

    The forward pass runs for its shapes only, in training mode. A block of memory counts once, for the stage that was running when it was
    first kept; parameters and buffers, which are there anyway, do not count, the input image does where a trained layer needs it.
    scaled_dot_product_attention counts as a fused kernel: it keeps query, key, value, its result and one fp32 number per query and head,
    not the matrix of weights.

    Args:
        model: any backbone or segmentor, with its `frozen_stages`, `with_cp` and requires_grad as they are; it is not changed.
        input_shape: (B, C, H, W).
        dtype: "fp32", or "bf16" / "fp16" under autocast, where the cast weights are kept too.

    Returns:
        First part of the module name ("" for the model itself) -> bytes, in order of execution; stages that keep nothing are left out.

    Raises:
        TypeError, ValueError: for a shape that is not a sequence of positive integers, or an unknown dtype; and what the model itself
            raises in training mode, such as batch norm of a single value.
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
        with torch.enable_grad(), hooks, callers.following(copied), _FusedAttention(dtype):
            copied(x)
    return dict(stages)


class _FusedAttention(TorchFunctionMode):
    """Replaces scaled_dot_product_attention by what a fused kernel keeps of it."""

    def __init__(self, dtype: str):
        super().__init__()
        self.dtype = DTYPES[dtype]

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return self._attention(*args, **(kwargs or {}))

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
