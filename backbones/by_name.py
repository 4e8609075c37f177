"""Backbones by name, as a command line writes them: `family:arch[:mixer]`.

hybrid:small:bi_wkv     vrwkv:tiny     timm:deit_small_patch16_224
"""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from .names import choose
from .registry import BACKBONES


def families() -> dict[str, str]:
    """Family -> registered name of its backbone: the class name in lower case, without "Backbone"."""
    return {name.removesuffix("Backbone").lower(): name for name in BACKBONES.names()}


def named_config(name: str, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The config of the backbone `family:arch[:mixer]`.

    Args:
        name: family (see `families`), architecture (the constructor's first argument) and, where the constructor takes one, the mixer.
        options: further arguments of the constructor.

    Raises:
        ValueError: another form, or a family that is not registered; the message names the near ones.
    """
    family, *parts = name.split(":")
    backbone = choose(family, families(), "family of backbones")
    arguments = list(inspect.signature(BACKBONES.get(backbone)).parameters)
    slots = [arguments[0], "mixer"] if "mixer" in arguments else arguments[:1]
    if not parts or not all(parts) or len(parts) > len(slots):
        form = f"{family}:{slots[0]}" + (f"[:{slots[1]}]" if len(slots) > 1 else "")
        raise ValueError(f"a backbone of this family is named {form}, got {name!r}")
    return {"type": f"linescan.{backbone}", **dict(zip(slots, parts, strict=False)), **(options or {})}


def build(config: Mapping[str, Any]) -> nn.Module:
    """The backbone of a config; a function of a module, so that another process can be told to call it."""
    return BACKBONES.build(dict(config))
