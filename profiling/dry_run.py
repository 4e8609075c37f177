"""A model's forward pass for its shapes and dtypes only: no number is computed, so any input size is free.

In float32 the model lies on PyTorch's meta device. That device has no autocast, so in half precision the tensors are fake ones that claim
to lie on a CUDA device (none is needed), where autocast casts what it would cast there. The model itself is never touched: a copy runs.
A model that takes another path on a CPU than elsewhere (`SS2D` of VMamba does) is seen as it runs elsewhere.
"""

import copy
import difflib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .throughput import DTYPES


@contextmanager
def dry_run(
    model: nn.Module, input_shape: Sequence[int], *, dtype: str = "fp32", device: str = "meta", training: bool = False
) -> Iterator[tuple[nn.Module, Tensor]]:
    """A copy of `model` and an input of `input_shape`; inside the block `copied(x)` can be called.

    Args:
        model: synchronised batch norm is reverted in the copy, which needs a process group on a GPU and costs the same.
        input_shape: (B, C, H, W), or whatever the model takes as its one tensor.
        dtype: "fp32", or "bf16" / "fp16" under autocast.
        device: "meta" for shapes only; any other device really runs the model, on zeros.
        training: mode of the copy.

    Raises:
        TypeError, ValueError: for a shape that is not a sequence of positive integers, or an unknown dtype.
    """
    shape = checked_shape(input_shape)
    check_dtype(dtype)
    fake = FakeTensorMode() if device == "meta" and dtype != "fp32" else None
    place = "cuda" if fake else device
    with ExitStack() as stack:
        if fake:
            stack.enter_context(fake)
        copied = _without_sync_batchnorm(_copy_to(model, place, empty=device == "meta"))
        copied.train(training)
        x = torch.empty(shape, device=place) if device == "meta" else torch.zeros(shape, device=device)
        stack.enter_context(_plain_modules())
        if dtype != "fp32":
            stack.enter_context(_autocast(torch.device(place).type, DTYPES[dtype]))
        yield copied, x


def checked_shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    if isinstance(input_shape, str | bytes) or not isinstance(input_shape, Sequence):
        raise TypeError(f"input_shape must be a sequence of integers like (1, 3, 224, 224), got {input_shape!r}")
    if not input_shape or any(not isinstance(size, int) or isinstance(size, bool) or size < 1 for size in input_shape):
        raise ValueError(f"input_shape must hold positive integers like (1, 3, 224, 224), got {tuple(input_shape)!r}")
    return tuple(input_shape)


def check_dtype(dtype: str, known: Sequence[str] = tuple(DTYPES)) -> None:
    if dtype not in known:
        near = difflib.get_close_matches(str(dtype), known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"dtype must be one of {', '.join(known)}, got {dtype!r}{hint}")


def storage_key(x: Tensor) -> int:
    """One number per block of memory, the same for all views of it, valid while the block lives."""
    return x.untyped_storage()._cdata


def weight_keys(model: nn.Module) -> set[int]:
    """Memory of the parameters and buffers, for `in`."""
    return {storage_key(x) for x in (*model.parameters(), *model.buffers())}


class Callers:
    """Knows which module of a model is running."""

    def __init__(self) -> None:
        self._names = [""]

    @property
    def innermost(self) -> str:
        """Qualified name of the innermost module that is running, "" for the model itself."""
        return self._names[-1]

    @contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        names = {module: name for name, module in model.named_modules()}

        def enter(module: nn.Module, args: Any) -> None:
            self._names.append(names[module])

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self._names.pop()

        hooks = [hook for module in names for hook in (module.register_forward_pre_hook(enter), module.register_forward_hook(leave))]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _copy_to(model: nn.Module, device: str, *, empty: bool) -> nn.Module:
    """A copy of the model whose tensors lie on `device`; where they are to be empty no number is copied."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        plain = (value for value in vars(module).values() if isinstance(value, Tensor))
        for tensor in (*module._parameters.values(), *module._buffers.values(), *plain):
            if tensor is not None and id(tensor) not in memo:
                moved = _empty(tensor, device) if empty else tensor.detach().to(device, copy=True)
                parameter = isinstance(tensor, nn.Parameter)
                memo[id(tensor)] = nn.Parameter(moved, requires_grad=tensor.requires_grad) if parameter else moved
    return copy.deepcopy(model, memo)


def _empty(tensor: Tensor, device: str) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)


def _without_sync_batchnorm(model: nn.Module) -> nn.Module:
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


@contextmanager
def _autocast(device_type: str, dtype: torch.dtype) -> Iterator[None]:
    """torch.autocast, which refuses the type of a device that is not present."""
    before = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
    torch.set_autocast_enabled(device_type, True)
    torch.set_autocast_dtype(device_type, dtype)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled(device_type, before[0])
        torch.set_autocast_dtype(device_type, before[1])
