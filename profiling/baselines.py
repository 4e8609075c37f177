"""What a model is held against: the transformer of its scale, and the controls of a hybrid.

    a backbone with exchangeable token mixers    its attention twin: the same network and options, softmax attention as mixer
    a registered transformer, an attention twin  nothing: it is a baseline itself
    any other backbone                           the registered transformer (`BACKBONES.transformers()`) nearest in parameters, among those
                                                 whose maps have the same strides, if there are such
    a config file                                the same config with its backbone exchanged by the rules above; where a config file beside
                                                 it is this twin, that one

Parameters are those of backbones, which have no classifier. What is nearest is decided by the ratio, to 1 %; of equals the first registered
one is taken.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mmengine.model import revert_sync_batchnorm

from ..engine.errors import ConfigError
from .subjects import OURS, Subject, importable, registry, resolve, skeleton

ATTENTION = "attention"
TWIN_REASON = "attention twin: the same network and options with softmax attention as token mixer (and the channel mixer that goes with it)"
CONTROL_REASONS = {
    "gated_conv": "control: the same network with a gated convolution, which reaches near tokens only, as token mixer",
    "none": "control: the same network without a token mixer",
}
# What every backbone of ours names alike; other arguments would mean something else in another network.
CARRIED = ("in_channels", "drop_path_rate", "norm_eval", "with_cp")
NAME_ONE = "name a baseline instead: another model, by its name or the path of its config"
# Side of the image in pixels that is sent through an exchanged model, to see whether its parts fit.
TRIED_SIZE = 64


@dataclass(frozen=True)
class Scale:
    """Parameters of a network, and the strides of its maps in pixels (None where it does not tell)."""

    parameters: int
    strides: tuple[int, ...] | None


def choose_baseline(subject: Subject) -> Subject | None:
    """The transformer of the subject's scale; see the module's docstring. None where the subject is one.

    Raises:
        ConfigError: a config whose backbone is not linescan's, or whose neck and heads take no transformer's maps.
    """
    if subject.module is not None:
        return _nearest(subject, _measured(subject), {}, None)
    config = _backbone(subject)
    if config is None:
        raise ConfigError(f"{subject.name}: its backbone is none of linescan's, so no transformer can take its place; {NAME_ONE}")
    backbones = registry()
    if backbones.is_transformer(config) or backbones.mixer_of(config) == ATTENTION:
        return None
    twin = backbones.twin(config, ATTENTION)
    if twin is not None:
        return _with_mixer(subject, twin, role="baseline", reason=TWIN_REASON)
    full = _scale({key: value for key, value in config.items() if key != "out_indices"}, subject.imports)
    return _nearest(subject, full, config, config.get("out_indices"))


def controls(subject: Subject) -> list[Subject]:
    """The twins of a hybrid that mix no far tokens, `gated_conv` and `none`; without the subject itself, and empty for other models."""
    config = None if subject.module is not None else _backbone(subject)
    if config is None:
        return []
    backbones = registry()
    twins = {mixer: backbones.twin(config, mixer) for mixer in CONTROL_REASONS if backbones.mixer_of(config) != mixer}
    return [_with_mixer(subject, twin, role="control", reason=CONTROL_REASONS[mixer]) for mixer, twin in twins.items() if twin is not None]


def _backbone(subject: Subject) -> Mapping[str, Any] | None:
    """The config of the subject's backbone, which is its own or a part of it; None if it is not in linescan's registry."""
    for config in (subject.config, subject.config.get("backbone")):
        if isinstance(config, Mapping) and registry().registered_name(config.get("type")) is not None:
            return config
    return None


def _with_mixer(subject: Subject, twin: dict[str, Any], **described: str) -> Subject:
    """The subject with the backbone `twin`, which differs in the mixer alone."""
    backbones = registry()
    named = backbones.name_of(twin)
    # A name that the user chose, or that is the twin's too (a pattern is not in a name), goes on in front of what differs.
    own = not _is_part(subject) and named is not None and subject.name in (subject.source, backbones.name_of(subject.config))
    name = named if own and named != subject.name else f"{subject.name}, mixer={twin['mixer']}"
    found = _exchanged(subject, twin, name, **described)
    skeleton(found)
    return _config_of(found, subject) or found


def _config_of(found: Subject, subject: Subject) -> Subject | None:
    """The subject of the config file beside the subject's own that holds the same model as `found`, under whose name accuracies are filed.

    Config files are named after their mixer, so that only one of them has to be read: hybrid-attention-* beside hybrid-bi-wkv-*.
    """
    path, backbones = Path(subject.source), registry()
    if not _is_part(subject) or subject.name != path.stem or not path.is_file():
        return None
    own, other = (str(backbones.mixer_of(_backbone(s))).replace("_", "-") for s in (subject, found))
    beside = path.with_name(path.name.replace(f"-{own}-", f"-{other}-", 1))
    if beside == path or not beside.is_file():
        return None
    try:
        there = resolve(beside, options=subject.options)
    except ConfigError:  # these options do not fit it
        return None
    same = there.config == found.config and there.scope == found.scope
    return replace(there, role=found.role, of=found.of, reason=found.reason) if same else None


def _exchanged(subject: Subject, backbone: dict[str, Any], name: str, **described: Any) -> Subject:
    if _is_part(subject):
        return replace(subject, name=name, config={**subject.config, "backbone": backbone}, of=(subject.name,), **described)
    return replace(subject, name=name, config=backbone, source=name, of=(subject.name,), **described)


def _is_part(subject: Subject) -> bool:
    """Whether the backbone is a part of the subject's model, not all of it."""
    return registry().registered_name(subject.config.get("type")) is None


def _nearest(subject: Subject, full: Scale, config: Mapping[str, Any], out_indices: Sequence[int] | None) -> Subject:
    """The subject with the transformer nearest to its backbone: `full` with all its levels, `config` with those of `out_indices`."""
    candidates = _candidates()
    same = [name for name, (_, scale) in candidates.items() if full.strides and set(scale.strides) == set(full.strides)]
    # The maps of a network with fewer strides can be chosen from one with more.
    same = same or [name for name, (_, scale) in candidates.items() if full.strides and set(scale.strides) >= set(full.strides)]
    by_ratio = sorted(same or candidates, key=lambda name: round(abs(math.log(candidates[name][1].parameters / full.parameters)), 2))
    framed = subject.module is None and _is_part(subject)
    for name in by_ratio:
        transformer, scale = candidates[name]
        levels = None if full.strides is None else _levels(full.strides, out_indices, scale.strides)
        if levels is None and framed:
            continue
        what = "registered transformers" + (" with maps at the same strides" if same else "")
        numbers = f"{scale.parameters / 1e6:.3g} M against {full.parameters / 1e6:.3g} M"
        reason = f"nearest in parameters of {len(by_ratio)} {what}: {numbers}"
        exchanged = {**transformer, **_carried(config, transformer)}
        if levels is not None and (framed or out_indices is not None):
            exchanged["out_indices"] = levels
        found = replace(subject, imports=importable(*subject.imports, *_imports(transformer)))
        if not framed:
            given = {key: value for key, value in exchanged.items() if key not in transformer}
            bare = replace(found, config=exchanged, module=None, options=given)
            return _exchanged(bare, exchanged, name, role="baseline", reason=reason)
        found = _exchanged(found, exchanged, f"{subject.name}, backbone={name}", role="baseline", reason=reason)
        _check_fit(found, subject, name, exchanged.get("in_channels", 3))
        return found
    levels = f"{len(out_indices) if out_indices is not None else len(full.strides)} of its levels at strides {sorted(set(full.strides))}"
    raise ConfigError(f"{subject.name}: no registered transformer has maps like the backbone's ({levels}); {NAME_ONE}")


def _candidates() -> dict[str, tuple[dict[str, Any], Scale]]:
    backbones = registry()
    configs = {name: backbones.named_config(name) for name in backbones.transformers()}
    return {name: (config, _scale(config, _imports(config))) for name, config in configs.items()}


def _imports(config: Mapping[str, Any]) -> tuple[str, ...]:
    backbones = registry()
    return importable(OURS, backbones.module_of(backbones.registered_name(config["type"])))


def _carried(config: Mapping[str, Any], transformer: Mapping[str, Any]) -> dict[str, Any]:
    backbones = registry()
    backbone = backbones.registered_name(transformer["type"])
    return {key: config[key] for key in CARRIED if key in config and backbones.takes(backbone, key)}


def _levels(own: Sequence[int], chosen: Sequence[int] | None, other: Sequence[int]) -> tuple[int, ...] | None:
    """Which levels of another network stand for the chosen ones (None: all) of the first, both told by their strides.

    A level stands for one of the same stride; of several, for the one at the same relative depth. None if there are too few.
    """
    found = []
    for level in range(len(own)) if chosen is None else chosen:
        alike, others = ([i for i, stride in enumerate(strides) if stride == own[level]] for strides in (own, other))
        if not others:
            return None
        found.append(others[math.ceil((alike.index(level) + 1) * len(others) / len(alike)) - 1])
    return tuple(found) if found == sorted(set(found)) else None


def _check_fit(found: Subject, subject: Subject, name: str, channels: int) -> None:
    """Send an image through the exchanged model, on the meta device: heads with `in_channels` of their own fail only then."""
    try:
        model = revert_sync_batchnorm(skeleton(found)).eval()
        device = next(model.parameters()).device
        with torch.no_grad():
            model(torch.zeros(1, channels, TRIED_SIZE, TRIED_SIZE, device=device))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{subject.name}: neck and heads do not fit {name} in the place of the backbone ({reason}). A PyramidEncoderDecoder takes "
            f"their in_channels from the backbone; or {NAME_ONE}"
        ) from error


_SCALES: dict[str, Scale] = {}


def _scale(config: Mapping[str, Any], imports: tuple[str, ...]) -> Scale:
    """Of a backbone's config; each is built once in a process, on the meta device."""
    key = repr((sorted(config.items(), key=lambda item: item[0]), imports))
    if key not in _SCALES:
        _SCALES[key] = _measured(Subject("", config, imports=imports))
    return _SCALES[key]


def _measured(subject: Subject) -> Scale:
    model = skeleton(subject)
    strides = getattr(model, "out_strides", None)
    return Scale(sum(parameter.numel() for parameter in model.parameters()), tuple(strides) if strides else None)
