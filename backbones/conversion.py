"""Published checkpoint files -> files of ours: what `tools/convert_checkpoint.py` does.

A converted file is a .safetensors file with our parameter names, which loads with family "linescan" and says in its metadata where it came
from. Position embeddings keep the grid of the file; loading resizes them to the model's.
"""

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoints import FAMILIES, CheckpointError, LoadReport, convert, narrow, read_checkpoint, strip_prefix
from .names import choose
from .registry import BACKBONES


def convert_file(
    source: str | Path,
    target: str | Path,
    *,
    family: str,
    arch: str | None = None,
    options: Mapping[str, Any] | None = None,
    key: str | None = None,
    prefix: str | None = None,
    source_grid: Sequence[int] | None = None,
    allow_missing: Collection[str] = (),
    allow_unexpected: Collection[str] = (),
) -> tuple[str, LoadReport]:
    """Convert a published file of a family.

    Args:
        source: the published file.
        target: the .safetensors file to write; it appears complete or not at all.
        family: a key of `checkpoints.FAMILIES` with a backbone of its own.
        arch: name in the backbone's `ARCHS`. None: the one that the file's tensors fit.
        options: further arguments of the backbone's constructor.
        key, prefix, source_grid, allow_missing, allow_unexpected: see `checkpoints.load_checkpoint`.

    Returns:
        The architecture, and the report.

    Raises:
        CheckpointError: unreadable, no architecture fits, or several do; or keys are missing, unexpected or of another shape.
        ValueError: an unknown family or arch, a family without a backbone, or a target that is no .safetensors file.
    """
    target = Path(target)
    if target.suffix != ".safetensors":
        raise ValueError(f"target must be a .safetensors file, got {target}")
    rules = choose(family, FAMILIES, "checkpoint family")
    if rules.backbone is None:
        raise ValueError(f"family {family!r} has no official layout to convert from; choose one of {', '.join(convertible())}")
    inside, outside = strip_prefix(read_checkpoint(source, key), prefix)
    names = BACKBONES.archs(rules.backbone)
    if arch is not None:
        choose(arch, dict.fromkeys(names), "arch")
        names = [arch]
    candidates = {}
    for name in names:
        converted, report = convert(inside, _on_meta(rules.backbone, name, options), family=family, source_grid=source_grid, keep_grid=True)
        refused = narrow(report, outside, allow_missing, allow_unexpected)
        candidates[name] = (len(refused) + len(report.unexpected) + len(report.mismatched), converted, report)
    fitting = [name for name, (problems, *_) in candidates.items() if not problems]
    if len(fitting) > 1:
        raise CheckpointError(f"{source} fits several architectures of {rules.backbone}: {', '.join(fitting)}; name one as arch")
    best = fitting[0] if fitting else min(candidates, key=lambda name: candidates[name][0])
    _, converted, report = candidates[best]
    if not fitting:
        raise CheckpointError(f"{source} fits no architecture of {rules.backbone}. The nearest is {best!r}. {report}")
    origin = {"family": family, "backbone": rules.backbone, "arch": best, "source": Path(source).name, "sha256": _digest(source)}
    _write(converted, target, origin)
    return best, report


def convertible() -> list[str]:
    """Families whose published files can be converted."""
    return sorted(name for name, rules in FAMILIES.items() if rules.backbone is not None)


def _on_meta(backbone: str, arch: str, options: Mapping[str, Any] | None) -> nn.Module:
    with torch.device("meta"):
        return BACKBONES.build(dict(type=f"linescan.{backbone}", arch=arch, **(options or {})))


def _digest(path: str | Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _write(tensors: Mapping[str, Tensor], target: Path, origin: Mapping[str, str]) -> None:
    from safetensors.torch import save_file

    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata={"linescan": json.dumps(dict(origin))})
    os.replace(partial, target)
