"""Stops a training whose loss is NaN or infinite before the damage reaches a checkpoint."""

import math

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from .errors import NonFiniteLossError


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Raises `NonFiniteLossError` in the iteration whose loss is NaN or infinite, on all processes.

    The optimizer step of that iteration has run, so the weights in memory are spoilt; the hook runs before the checkpoint hook, so no
    file is.
    """

    priority = "NORMAL"

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        losses = {name: _number(value) for name, value in (outputs or {}).items() if "loss" in name}
        bad = {name: value for name, value in losses.items() if not math.isfinite(value)}
        flag = torch.tensor(int(bool(bad)))
        if get_world_size() > 1:
            all_reduce(flag, op="max")
        if not flag:
            return
        what = ", ".join(f"{name} = {value}" for name, value in bad.items()) or "the loss of another process is not finite"
        hub = runner.message_hub
        last = hub.get_info("last_ckpt") if "last_ckpt" in hub.runtime_info else None
        good = f"The last good checkpoint is {last}" if last else "No checkpoint was saved before it"
        raise NonFiniteLossError(
            f"iteration {runner.iter + 1}: {what}. {good}. Lower the learning rate, clip gradients, or try --amp bf16."
        )


def _number(value) -> float:
    if isinstance(value, torch.Tensor):
        return float(value.detach().float().sum())
    return float(value)
