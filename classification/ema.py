"""Averaged weights: what is validated, saved and tested is an exponential moving average of the weights that are trained."""

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from timm.utils import ModelEmaV3
from torch import nn

TRAINED = "trained_state_dict"
COUNT = "ema_updates"


@HOOKS.register_module()
class ModelEmaHook(Hook):
    """Keeps `timm.utils.ModelEmaV3` of the model: after every optimizer step n, ema = d_n ema + (1 - d_n) weights, buffers included.

    The first average is the weights themselves. Validation runs with the average. In a checkpoint `state_dict` is the average, so that
    tests, predictions and `load_from` use it; a resumable checkpoint also holds the trained weights, and a resumed run goes on with both.

    Not for models whose parameters are sharded over processes (FSDP, DeepSpeed).

    Args:
        decay: d, in [0, 1).
        warmup: let d_n rise: min(decay, 1 - (1 + (n - 1) / warmup_gamma) ** -warmup_power).
        warmup_gamma, warmup_power: see there. timm advises a power of 2/3 for a million steps or more, 3/4 for fewer.
        begin: until after this optimizer step the average is the weights themselves.

    Raises:
        ValueError: an argument out of range.
    """

    priority = "NORMAL"

    def __init__(
        self, decay: float = 0.9999, *, warmup: bool = False, warmup_gamma: float = 1.0, warmup_power: float = 2 / 3, begin: int = 0
    ) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay!r}")
        if warmup_gamma <= 0 or warmup_power <= 0:
            raise ValueError(f"warmup_gamma and warmup_power must be positive, got {warmup_gamma!r} and {warmup_power!r}")
        if not isinstance(begin, int) or begin < 0:
            raise ValueError(f"begin must be an int >= 0, got {begin!r}")
        self.options = dict(decay=decay, use_warmup=warmup, warmup_gamma=warmup_gamma, warmup_power=warmup_power, update_after_step=begin)
        self.ema: ModelEmaV3 | None = None
        self.updates = 0
        self._average: dict[str, Any] | None = None

    def before_train(self, runner) -> None:
        """The weights are loaded by now. A copy of the model becomes the average, with the values of the checkpoint if there were any."""
        self.ema = ModelEmaV3(_unwrapped(runner.model), **self.options)
        if self._average is not None:
            self.ema.module.load_state_dict(self._average)
            self._average = None
        elif runner.iter > 0:
            runner.logger.warning("The checkpoint holds no averaged weights: the average starts anew from its weights.")

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        if runner.optim_wrapper.should_update():  # with accumulated gradients not every iteration is a step
            self.updates += 1
            self.ema.update(_unwrapped(runner.model), step=self.updates)

    def before_val_epoch(self, runner) -> None:
        self._swap(runner)

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        # Before the checkpoint hook, which saves the best weights in its own `after_val_epoch`.
        self._swap(runner)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        if self.ema is None:
            return
        if "optimizer" in checkpoint:
            checkpoint[TRAINED], checkpoint[COUNT] = checkpoint["state_dict"], self.updates
            checkpoint["needs_hooks"] = [type(self).__name__]  # without this hook a resumed run would train the average
        checkpoint["state_dict"] = {name: value.cpu() for name, value in self.ema.module.state_dict().items()}

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if TRAINED in checkpoint and runner._resume:
            self._average, self.updates = checkpoint["state_dict"], checkpoint[COUNT]
            checkpoint["state_dict"] = checkpoint[TRAINED]

    @torch.no_grad()
    def _swap(self, runner) -> None:
        """Exchange the values of the model and of its average, in place: optimizer and DDP keep their tensors."""
        if self.ema is None:
            return
        average = self.ema.module.state_dict()
        for name, value in _unwrapped(runner.model).state_dict().items():
            kept = value.clone()
            value.copy_(average[name])
            average[name].copy_(kept)


def _unwrapped(model: nn.Module) -> nn.Module:
    return model.module if is_model_wrapper(model) else model
