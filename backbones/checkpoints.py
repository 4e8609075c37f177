"""Checkpoints: from another code's parameter names and shapes to ours, strictly.

A family is a key map: rules that rewrite an official parameter name into ours. Every key of a file ends up in a report as mapped, resized,
dropped on purpose, missing or unexpected; missing and unexpected keys, and shapes that do not fit, are an error that lists them. Nothing
stays random silently.

The families of published code register beside the backbones that they load into (`register_family` at the end of each backbone's file);
"linescan", our own names, fits every backbone.
"""

import argparse
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .names import choose, unknown
from .scans import resize_pos_embed


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read, or does not fit the model; the message names the file or lists the keys."""


@dataclass(frozen=True)
class Family:
    """How one published code names the parameters of a backbone.

    Attributes:
        rules: (pattern, replacement) pairs for `re.sub` on a whole key; the first that matches applies. A key that none matches is
            unexpected.
        drop: patterns of keys that the backbone has no use for, such as a classifier.
        backbone: name in `BACKBONES` of the class that the files load into; None for any.
        prepare: official state dict -> state dict, before the rules, for what renaming cannot do (one tensor that becomes two of ours).
        official: name of an official class -> function from its constructor's keyword arguments to our config. An argument that the
            function does not know raises TypeError, a value that has no counterpart here ValueError.
    """

    rules: tuple[tuple[str, str], ...]
    drop: tuple[str, ...] = ()
    backbone: str | None = None
    prepare: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None
    official: Mapping[str, Callable[..., dict[str, Any]]] = field(default_factory=dict)

    def rename(self, key: str) -> str | None:
        """Our name of an official key; None if no rule knows it."""
        for pattern, replacement in self.rules:
            if re.fullmatch(pattern, key):
                return re.sub(pattern, replacement, key)
        return None


FAMILIES: dict[str, Family] = {"linescan": Family(rules=((r".+", r"\g<0>"),))}


def register_family(name: str, family: Family) -> None:
    """Add a key map under `name`; ValueError if the name is taken."""
    if name in FAMILIES:
        raise ValueError(f"a checkpoint family named {name!r} is already registered")
    FAMILIES[name] = family


@dataclass
class LoadReport:
    """What became of every key.

    Attributes:
        family: the key map that was used.
        mapped, resized: the file's name -> ours.
        dropped, unexpected: names of the file.
        missing: our names.
        mismatched: our name -> what does not fit.
    """

    family: str
    mapped: dict[str, str] = field(default_factory=dict)
    resized: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        counts = f"{len(self.mapped)} mapped, {len(self.resized)} resized, {len(self.dropped)} dropped on purpose"
        lines = [f"checkpoint of family {self.family!r}: {counts}, {len(self.missing)} missing, {len(self.unexpected)} unexpected"]
        lines += [f"  missing: {key}" for key in self.missing]
        lines += [f"  unexpected: {key}" for key in self.unexpected]
        lines += [f"  wrong shape: {text}" for text in self.mismatched.values()]
        return "\n".join(lines)


def convert(
    state_dict: Mapping[str, Tensor],
    model: nn.Module,
    *,
    family: str,
    source_grid: Sequence[int] | None = None,
    keep_grid: bool = False,
) -> tuple[dict[str, Tensor], LoadReport]:
    """Rename and reshape the tensors of an official state dict so that they fit `model`.

    Args:
        state_dict: official keys (of the backbone alone) -> tensors.
        model: one of our backbones; only its parameters' names and shapes are read, so it may be on the meta device.
        family: a key of `FAMILIES`.
        source_grid: token grid (h, w) of the file's position embedding. None: the model's own grid if the token count agrees, else a
            square.
        keep_grid: leave position embeddings at the file's grid instead of resizing them to the model's.

    Returns:
        The tensors under our names, and the report. Nothing is raised for keys that do not fit: they stand in the report.
    """
    rules = choose(family, FAMILIES, "checkpoint family")
    targets = {name: tensor.shape for name, tensor in model.state_dict().items()}
    converted: dict[str, Tensor] = {}
    report = LoadReport(family)
    for key, value in (rules.prepare(dict(state_dict)) if rules.prepare else state_dict).items():
        if any(re.fullmatch(pattern, key) for pattern in rules.drop):
            report.dropped.append(key)
            continue
        name = rules.rename(key)
        if name is None or name not in targets or name in converted:
            report.unexpected.append(key)
            continue
        fitted = _fit(name, value, targets[name], source_grid, keep_grid)
        if fitted is None:
            report.mismatched[name] = f"{key} has shape {tuple(value.shape)}, {name} needs {tuple(targets[name])}"
            continue
        converted[name] = fitted
        (report.mapped if fitted.numel() == value.numel() else report.resized)[key] = name
    report.missing = [name for name in targets if name not in converted and name not in report.mismatched]
    return converted, report


def _fit(name: str, value: Tensor, shape: torch.Size, source_grid: Sequence[int] | None, keep_grid: bool) -> Tensor | None:
    """`value` in the wanted shape, or None. Only axes of length 1 and position embeddings may differ."""
    if value.shape == shape:
        return value
    if name.rsplit(".", 1)[-1] == "pos_embed":
        return _fit_pos_embed(value, shape, source_grid, keep_grid)
    if [n for n in value.shape if n != 1] == [n for n in shape if n != 1]:
        return value.reshape(shape)
    return None


def _fit_pos_embed(value: Tensor, shape: torch.Size, source_grid: Sequence[int] | None, keep_grid: bool) -> Tensor | None:
    """Position embedding (1, N, C) or (1, C, h, w) as (1, C, *grid of `shape`), resized bicubically if it may not stay as it is."""
    if value.ndim == 3:
        tokens = value.shape[1]
        if source_grid is None:
            side = math.isqrt(tokens)
            source_grid = shape[2:] if tokens == shape[2] * shape[3] else (side, side)
        if math.prod(source_grid) != tokens:
            return None
        value = value.transpose(1, 2).reshape(1, value.shape[2], *source_grid)
    if value.ndim != 4 or value.shape[:2] != shape[:2]:
        return None
    return (value if keep_grid else resize_pos_embed(value, (shape[2], shape[3]))).contiguous()


# What the training codes of the published families store beside the weights. The settings class of yacs is a dict: read as one, it need not
# be installed, nor can it run.
_SETTINGS = [argparse.Namespace, (OrderedDict, "yacs.config.CfgNode")]


def read_checkpoint(path: str | Path, key: str | None = None) -> dict[str, Tensor]:
    """The state dict in a .safetensors file or a PyTorch file (read with weights_only=True; a file that would run code is refused).

    Training settings beside the weights (argparse, yacs) are read as data and left out.

    Args:
        path: the file.
        key: entry of the file that holds the state dict, such as "model_ema"; None: the file itself, or its entry "state_dict" or "model".

    Raises:
        CheckpointError: no such file, unreadable, refused, or no state dict in it.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            with torch.serialization.safe_globals(_SETTINGS):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {type(error).__name__}: {error}") from error
    if key is not None:
        entries = list(content) if isinstance(content, Mapping) else []
        if key not in entries:
            raise CheckpointError(f"checkpoint {path}: {unknown(key, map(str, entries[:20]), 'entry')}")
        content = content[key]
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"checkpoint {path} holds no state dict (names -> tensors), but a {type(content).__name__}")
    return dict(content)


def strip_prefix(state_dict: Mapping[str, Tensor], prefix: str | None = None) -> tuple[dict[str, Tensor], list[str]]:
    """The keys under `prefix`, without it, and the keys that are not under it.

    None takes off "module." (data-parallel wrappers), then "backbone." if any key has it: the file of a whole segmentor or classifier.
    """
    if prefix is None:
        state_dict = {key.removeprefix("module."): value for key, value in state_dict.items()}
        prefix = "backbone." if any(key.startswith("backbone.") for key in state_dict) else ""
    inside = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
    return inside, [key for key in state_dict if not key.startswith(prefix)]


def load_checkpoint(
    model: nn.Module,
    source: str | Path | Mapping[str, Tensor],
    *,
    family: str = "linescan",
    key: str | None = None,
    prefix: str | None = None,
    source_grid: Sequence[int] | None = None,
    allow_missing: Collection[str] = (),
    allow_unexpected: Collection[str] = (),
) -> LoadReport:
    """Load a file or a state dict of a family into one of our backbones, strictly.

    Args:
        model: the backbone.
        source: a path, or a state dict.
        family: a key of `FAMILIES`.
        key: see `read_checkpoint`.
        prefix: what the backbone's keys start with in the file; None finds out, see `strip_prefix`.
        source_grid: see `convert`.
        allow_missing: our names that the file may lack, or shell patterns of them ("outnorm*"); they keep their initial values.
        allow_unexpected: the file's names (without prefix) that may be ignored, or patterns.

    Returns:
        The report. Keys outside the prefix count as dropped on purpose, and so do allowed unexpected ones.

    Raises:
        CheckpointError: unreadable, or keys are missing, unexpected or of another shape; the model is unchanged then.
    """
    state_dict = source if isinstance(source, Mapping) else read_checkpoint(source, key)
    inside, outside = strip_prefix(state_dict, prefix)
    converted, report = convert(inside, model, family=family, source_grid=source_grid)
    if narrow(report, outside, allow_missing, allow_unexpected) or report.unexpected or report.mismatched:
        origin = "" if isinstance(source, Mapping) else f"{source}: "
        raise CheckpointError(f"{origin}does not fit {type(model).__name__}. {report}")
    model.load_state_dict(converted, strict=not report.missing)
    return report


def narrow(report: LoadReport, outside: list[str], allow_missing: Collection[str], allow_unexpected: Collection[str]) -> list[str]:
    """Count allowed unexpected keys, and the keys outside the prefix, as dropped on purpose; the missing keys that are not allowed."""
    allowed = [key for key in report.unexpected if _named(key, allow_unexpected)]
    report.dropped += outside + allowed
    report.unexpected = [key for key in report.unexpected if key not in allowed]
    return [key for key in report.missing if not _named(key, allow_missing)]


def _named(key: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)
