"""linescan backbones: an image in, a feature pyramid out.

Importing this package registers every backbone of linescan in `BACKBONES` (scope `linescan`). See `pyramid.py` for what a backbone
promises, and `registry.py` for how a third party adds one.
"""

from . import rwkvsam  # noqa: F401  (registers its checkpoint family)
from .hybrid import HybridBackbone
from .mixers import MIXERS, MixerSpec, register_mixer
from .pyramid import ContractError, Pyramid
from .registry import BACKBONES, PluginError, list_backbones

__all__ = [
    "BACKBONES",
    "MIXERS",
    "ContractError",
    "HybridBackbone",
    "MixerSpec",
    "PluginError",
    "Pyramid",
    "list_backbones",
    "register_mixer",
]
