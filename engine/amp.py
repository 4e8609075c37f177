"""Mixed precision on any device."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16}


@OPTIM_WRAPPERS.register_module()
class MixedPrecisionOptimWrapper(OptimWrapper):
    """Runs the forward pass under `torch.autocast`: bf16 on a CPU, fp16 (with loss scaling) or bf16 on a GPU.

    MMEngine's `AmpOptimWrapper` needs a GPU.

    Args:
        precision: "fp16", "bf16", or "auto": bf16 where the device computes in it, otherwise fp16.
        loss_scale: initial loss scale for fp16; adapted while training. Unused with bf16, whose range is that of fp32.
        **kwargs: those of `OptimWrapper`.

    Raises:
        ValueError: for another `precision`, or fp16 without a GPU.
    """

    def __init__(self, precision: str = "auto", loss_scale: float = 2.0**16, **kwargs) -> None:
        super().__init__(**kwargs)
        self.device_type = "cuda" if torch.cuda.is_available() else "cpu"
        if precision == "auto":
            precision = "bf16" if self.device_type == "cpu" or torch.cuda.is_bf16_supported() else "fp16"
        if precision not in PRECISIONS:
            raise ValueError(f"precision: expected 'auto', 'fp16' or 'bf16', got {precision!r}")
        if precision == "fp16" and self.device_type == "cpu":
            raise ValueError("precision: fp16 needs a GPU; on a CPU use bf16")
        self.dtype = PRECISIONS[precision]
        self.loss_scaler = torch.amp.GradScaler(self.device_type, init_scale=loss_scale, enabled=precision == "fp16")

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), torch.autocast(self.device_type, dtype=self.dtype):
            yield

    def backward(self, loss: torch.Tensor, **kwargs) -> None:
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs) -> None:
        if self.clip_grad_kwargs:
            self.loss_scaler.unscale_(self.optimizer)
            self._clip_grad()
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update()

    def state_dict(self) -> dict:
        return {**super().state_dict(), "loss_scaler": self.loss_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        state = dict(state_dict)
        scaler = state.pop("loss_scaler", None)
        if scaler and self.loss_scaler.is_enabled():
            self.loss_scaler.load_state_dict(scaler)
        super().load_state_dict(state)
