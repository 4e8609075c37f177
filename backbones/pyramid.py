"""The contract that every linescan backbone keeps, and the behaviour that ours share.

The contract ("Pyramid"), for an image batch x of shape (B, 3, H, W) with any H, W >= 1:

    forward(x) -> tuple of maps, map i of shape (B, C_i, ceil(H / s_i), ceil(W / s_i))
    out_channels: tuple[int, ...]    C_i, one per returned map
    out_strides:  tuple[int, ...]    s_i, in input pixels, one per returned map

Any torch.nn.Module may keep it; inheriting from `Pyramid` is a convenience. Of our own backbones users may also expect `out_indices`,
`frozen_stages`, `norm_eval`, `with_cp` and `init_cfg` as MMSegmentation has them, `train()` that returns the module, and no dependence on
the training resolution.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule, PretrainedInit
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from .checkpoints import load_checkpoint

PROMISE = (
    "a linescan backbone promises forward(x: (B, 3, H, W)) -> tuple of (B, out_channels[i], ceil(H/out_strides[i]), ceil(W/out_strides[i]))"
)


class ContractError(TypeError):
    """A backbone broke the Pyramid contract; the message names what was promised and what came."""


def enforce_contract(module: nn.Module) -> nn.Module:
    """Check the attributes of a new backbone and install the check of its outputs; returns the module.

    Raises:
        ContractError: not a module, or `out_channels` / `out_strides` are missing or not tuples of positive ints of one length.
    """
    if not isinstance(module, nn.Module):
        raise ContractError(f"{PROMISE}: expected a torch.nn.Module, got {type(module).__name__}.")
    name = type(module).__name__
    for attribute in ("out_channels", "out_strides"):
        value = getattr(module, attribute, None)
        valid = isinstance(value, tuple) and len(value) > 0 and all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in value)
        if not valid:
            came = "no such attribute" if value is None else repr(value)
            raise ContractError(f"{PROMISE}: {name}.{attribute} must be a tuple of positive ints, got {came}.")
    if len(module.out_channels) != len(module.out_strides):
        raise ContractError(
            f"{PROMISE}: {name} declares {len(module.out_channels)} out_channels {module.out_channels} "
            f"but {len(module.out_strides)} out_strides {module.out_strides}."
        )
    if check_outputs not in module._forward_hooks.values():
        module.register_forward_hook(check_outputs, with_kwargs=True)
    return module


def check_outputs(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
    """Forward hook: the outputs are what the module's attributes promise.

    Sizes are compared in eager mode only: in a traced or exported graph H and W may be symbols, and a comparison would pin them.
    """
    name, channels, strides = type(module).__name__, module.out_channels, module.out_strides
    if not isinstance(outputs, tuple):
        raise ContractError(f"{PROMISE}: {name}.forward returned a {type(outputs).__name__}, not a tuple.")
    if len(outputs) != len(channels):
        raise ContractError(f"{PROMISE}: {name} promised {len(channels)} maps with channels {channels}, and returned {len(outputs)}.")
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()
    image = args[0] if args else next(iter(kwargs.values()))
    for level, (output, c, s) in enumerate(zip(outputs, channels, strides, strict=True)):
        if not isinstance(output, Tensor) or output.ndim != 4:
            came = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise ContractError(f"{PROMISE}: map {level} of {name} must be a 4-D tensor, got {came}.")
        if tracing:
            if output.shape[1] != c:
                raise ContractError(f"{PROMISE}: map {level} of {name} must have {c} channels, got {output.shape[1]}.")
            continue
        promised = (image.shape[0], c, -(-image.shape[2] // s), -(-image.shape[3] // s))
        if tuple(output.shape) != promised:
            raise ContractError(
                f"{PROMISE}: map {level} of {name} (out_channels {c}, out_strides {s}) must have shape {promised} "
                f"for an input of shape {tuple(image.shape)}, got {tuple(output.shape)}."
            )


class Pyramid(BaseModule):
    """Base class of our backbones: the arguments that MMSegmentation users know, in one place.

    A subclass builds its modules, then calls `_finish(channels, strides, stages)` once, and in its forward uses `_check_input`, `_run` and
    `_select`.

    Args:
        in_channels: channels of the input image.
        out_indices: which of the levels to return, ascending; None for all.
        frozen_stages: -1 trains everything; n >= 0 freezes stages 0..n (no gradient, evaluation mode even in training). The subclass
            documents what its stages are.
        norm_eval: keep batch-norm layers in evaluation mode while training.
        with_cp: recompute the activations of each block in the backward pass instead of storing them.
        init_cfg: MMEngine's initialisation config. An entry dict(type="Pretrained", checkpoint=PATH, family=..., key=...,
            prefix=..., allow_missing=...) loads strictly, by `checkpoints.load_checkpoint`.
    """

    out_channels: tuple[int, ...]
    out_strides: tuple[int, ...]

    def __init__(
        self,
        *,
        in_channels: int = 3,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        configs = [init_cfg] if isinstance(init_cfg, dict) else list(init_cfg or [])
        self_loaded = [config for config in configs if config["type"] in ("Pretrained", PretrainedInit)]
        super().__init__(init_cfg=[config for config in configs if config not in self_loaded] or None)
        self._pretrained = copy.deepcopy(self_loaded)
        if not isinstance(in_channels, int) or in_channels < 1:
            raise ValueError(f"in_channels must be a positive int, got {in_channels!r}")
        self.in_channels = in_channels
        self.out_indices = out_indices
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp

    def _finish(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        stages: Sequence[Sequence[nn.Module | nn.Parameter]],
        layers: Sequence[Sequence[nn.Module | nn.Parameter]] | None = None,
    ) -> None:
        """Choose the levels to return, and freeze.

        Args:
            channels, strides: of every level that the network computes.
            stages: `stages[n]` lists the modules and bare parameters that `frozen_stages=n` freezes on top of those before.
            layers: parts in finer steps from the image to the output, for `layer_ids`, without what follows the last layer; None for the
                stages.
        """
        count = len(channels)
        indices = tuple(range(count)) if self.out_indices is None else self.out_indices
        if not isinstance(indices, Sequence) or isinstance(indices, str) or not all(isinstance(i, int) for i in indices) or not indices:
            raise TypeError(f"out_indices must be a non-empty sequence of ints or None, got {self.out_indices!r}")
        if any(not 0 <= i < count for i in indices) or list(indices) != sorted(set(indices)):
            raise ValueError(
                f"out_indices must be ascending, distinct and within 0..{count - 1} (levels at strides {tuple(strides)}), got {indices}"
            )
        self.out_indices = tuple(indices)
        self.out_channels = tuple(channels[i] for i in self.out_indices)
        self.out_strides = tuple(strides[i] for i in self.out_indices)
        if not isinstance(self.frozen_stages, int) or not -1 <= self.frozen_stages < len(stages):
            raise ValueError(f"frozen_stages must be an int within -1..{len(stages) - 1}, got {self.frozen_stages!r}")
        frozen = [part for stage in stages[: self.frozen_stages + 1] for part in stage]
        for part in frozen:
            part.requires_grad_(False)
        names = {id(part): name for name, part in (*self.named_modules(), *self.named_parameters())}
        self._frozen_modules = tuple(names[id(part)] for part in frozen if isinstance(part, nn.Module))
        self._layers = tuple(tuple(names[id(part)] for part in layer) for layer in layers or stages)
        self.train()

    @property
    def num_layers(self) -> int:
        """Number of steps that `layer_ids` counts."""
        return len(self._layers)

    def layer_ids(self) -> dict[str, int]:
        """Parameter name -> its layer counted from the image, 0 first: the steps of a layer-wise learning rate decay.

        What follows the last layer (final norms) has the number `num_layers`.
        """
        found = {}
        for name, _ in self.named_parameters(remove_duplicate=False):
            own = (i for i, parts in enumerate(self._layers) if any(name == part or name.startswith(f"{part}.") for part in parts))
            found[name] = next(own, len(self._layers))
        return found

    def init_weights(self) -> None:
        """Apply `init_cfg`: MMEngine's initialisers, then pretrained weights, strictly (MMEngine's loader skips keys that do not fit)."""
        first = not self.is_init
        super().init_weights()
        if first:
            for config in self._pretrained:
                options = {key: value for key, value in config.items() if key not in ("type", "checkpoint")}
                report = load_checkpoint(self, config["checkpoint"], **options)
                print_log(f"{config['checkpoint']}: {report}", logger="current")

    def train(self, mode: bool = True) -> "Pyramid":
        """Set training mode, except for frozen stages and, with `norm_eval`, batch norm. Returns self."""
        super().train(mode)
        if mode:
            for name in self._frozen_modules:
                self.get_submodule(name).eval()
            if self.norm_eval:
                for module in self.modules():
                    if isinstance(module, _BatchNorm):
                        module.eval()
        return self

    def _check_input(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor, got {type(x).__name__}")
        if x.ndim != 4 or x.shape[1] != self.in_channels or 0 in x.shape[2:]:
            raise ValueError(f"x must have shape (B, {self.in_channels}, H, W) with H, W >= 1, got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"x must be a floating-point tensor (normalised images), got {x.dtype}")

    def _run(self, block: Callable[..., Tensor], *args: Any) -> Tensor:
        """`block(*args)`, recomputed in the backward pass if `with_cp`."""
        if not (self.with_cp and torch.is_grad_enabled()):
            return block(*args)
        if norms := _counting_norms(block):
            return checkpoint(block, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), _statistics_kept(norms)))
        return checkpoint(block, *args, use_reentrant=False)

    def _select(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(levels[i] for i in self.out_indices)


def _counting_norms(block: Callable[..., Tensor]) -> list[_BatchNorm]:
    """The batch norm layers of a block whose running statistics a forward pass would move."""
    modules = block.modules() if isinstance(block, nn.Module) else ()
    return [m for m in modules if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]


@contextmanager
def _statistics_kept(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Within it batch norm layers leave their running statistics: a recomputed forward pass is not a second batch."""
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches
