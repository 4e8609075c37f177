"""Which parameters decay, decided in one place."""

from collections.abc import Iterable

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm)
_PARAMWISE = {"custom_keys", "layer_decay"}
_MULTIPLIERS = {"lr_mult", "decay_mult"}


def undecayed(model: nn.Module) -> set[str]:
    """Names of the parameters without weight decay: norms, biases, one-dimensional ones, and those that a module's `no_weight_decay()`
    names.

    `no_weight_decay()` returns names relative to its module, as in timm. Names of parameters that do not exist there are ignored: timm's
    models list optional parts.
    """
    exempt = set()
    for prefix, module in model.named_modules():
        own = f"{prefix}." if prefix else ""
        if callable(rule := getattr(module, "no_weight_decay", None)):
            exempt |= {own + name for name in rule()}
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim <= 1 or name == "bias" or isinstance(module, _NORMS):
                exempt.add(own + name)
    return exempt & {name for name, _ in model.named_parameters(remove_duplicate=False)}


def layer_scales(model: nn.Module, decay: float) -> dict[str, float]:
    """Factors of a layer-wise learning rate decay (BEiT, arXiv 2106.08254, appendix): decay ** (number of layers between it and the heads).

    Args:
        model: holds one or more backbones with `num_layers` and `layer_ids()` (name -> layer from the image, 0 first; `num_layers` for what
            follows the last); of nested ones the outer counts.
        decay: in (0, 1].

    Returns:
        Parameter name -> factor, for the backbones' parameters; all others train at the full rate.

    Raises:
        ValueError: decay out of range, or no backbone that tells its layers.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"paramwise_cfg.layer_decay: expected a number in (0, 1], got {decay!r}")
    scales: dict[str, float] = {}
    done: tuple[str, ...] = ()
    for prefix, module in model.named_modules():
        if not callable(getattr(module, "layer_ids", None)) or prefix.startswith(done):
            continue
        own = f"{prefix}." if prefix else ""
        done = (*done, own)
        scales |= {own + name: decay ** (module.num_layers - layer) for name, layer in module.layer_ids().items()}
    if not scales:
        raise ValueError("paramwise_cfg.layer_decay: no backbone of the model has `layer_ids()`; see linescan.backbones.Pyramid")
    return scales


def parameter_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    custom_keys: dict[str, dict[str, float]] | None = None,
    layer_decay: float | None = None,
) -> list[dict]:
    """Optimizer parameter groups, one for each pair of learning rate and weight decay that occurs.

    Args:
        model: parameters with requires_grad=False are left out; shared ones occur once.
        lr: base learning rate.
        weight_decay: base weight decay.
        custom_keys: substring of a parameter's name -> dict(lr_mult=, decay_mult=), as in MMEngine; the longest match counts. A
            `decay_mult` given there overrides the exemption of `undecayed`, a bare `lr_mult` does not.
        layer_decay: factor per layer of the backbones, see `layer_scales`; on top of `lr_mult`. None for none.

    Returns:
        Dicts with `params`, `lr`, `weight_decay` and `names`.
    """
    keys = sorted(custom_keys or {}, key=lambda key: (-len(key), key))
    for key in keys:
        if unknown := set(custom_keys[key]) - _MULTIPLIERS:
            raise ValueError(f"paramwise_cfg.custom_keys[{key!r}]: expected {sorted(_MULTIPLIERS)}, got {sorted(unknown)}")
    exempt = undecayed(model)
    scales = {} if layer_decay is None else layer_scales(model, layer_decay)
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        custom = next((custom_keys[key] for key in keys if key in name), {})
        decay = custom.get("decay_mult", 0.0 if name in exempt else 1.0) * weight_decay
        rate = custom.get("lr_mult", 1.0) * scales.get(name, 1.0) * lr
        group = groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay, "names": []})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LinescanOptimWrapperConstructor:
    """Builds an optimizer whose weight decay leaves out what `undecayed` names.

    Few groups instead of MMEngine's one per parameter, so that fused and foreach optimizers stay fast.

    Args:
        optim_wrapper_cfg: as in MMEngine; `optimizer` needs `lr`, and `weight_decay` if there is to be any.
        paramwise_cfg: None, or dict(custom_keys=..., layer_decay=...), both optional, see `parameter_groups`.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        if not isinstance(optim_wrapper_cfg, dict) or "optimizer" not in optim_wrapper_cfg:
            raise TypeError(f"optim_wrapper: expected a dict with 'optimizer', got {optim_wrapper_cfg!r}")
        if unknown := set(paramwise_cfg or {}) - _PARAMWISE:
            raise ValueError(f"paramwise_cfg: expected {sorted(_PARAMWISE)}, got {sorted(unknown)}; norms and biases never decay")
        if "lr" not in optim_wrapper_cfg["optimizer"]:
            raise ValueError("optim_wrapper.optimizer: expected an `lr`")
        self.optim_wrapper_cfg = optim_wrapper_cfg
        self.paramwise = dict(paramwise_cfg or {})

    def __call__(self, model: nn.Module) -> OptimWrapper:
        model = getattr(model, "module", model)
        wrapper = dict(self.optim_wrapper_cfg)
        optimizer = dict(wrapper.pop("optimizer"))
        wrapper.setdefault("type", "OptimWrapper")
        groups = parameter_groups(model, optimizer["lr"], optimizer.get("weight_decay", 0.0), **self.paramwise)
        optimizer["params"] = [{key: group[key] for key in ("params", "lr", "weight_decay")} for group in groups]
        return OPTIM_WRAPPERS.build(wrapper, default_args=dict(optimizer=OPTIMIZERS.build(optimizer)))


def decayed(optimizer: torch.optim.Optimizer, model: nn.Module) -> Iterable[str]:
    """Names of the parameters of `model` that `optimizer` decays, in the model's order."""
    decaying = {id(p) for group in optimizer.param_groups if group.get("weight_decay", 0) > 0 for p in group["params"]}
    return [name for name, parameter in model.named_parameters() if id(parameter) in decaying]
