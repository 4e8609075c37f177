"""Builds a backbone by its config, in a function that another process can import."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from .registry import BACKBONES


def build(config: Mapping[str, Any]) -> nn.Module:
    """The backbone of a config; a function of a module, so that another process can be told to call it."""
    return BACKBONES.build(dict(config))
