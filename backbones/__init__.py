"""linescan backbones: an image in, a feature pyramid out.

Importing this package registers every backbone of linescan in `BACKBONES` (scope `linescan`). See `pyramid.py` for what a backbone
promises, and `registry.py` for how a third party adds one.
"""

from . import rwkvsam  # noqa: F401  (registers its checkpoint family)
from .adapter import ViTAdapter
from .hybrid import HybridBackbone
from .mixers import MIXERS, MixerSpec, register_mixer
from .pyramid import ContractError, Pyramid
from .registry import BACKBONES, PluginError, list_backbones
from .timm_backbone import TimmBackbone
from .vim import Vim
from .vmamba import VMamba
from .vrwkv import VRWKV
from .vrwkv6 import VRWKV6
from .vssd import VSSD

__all__ = [
    "BACKBONES",
    "MIXERS",
    "VRWKV",
    "VRWKV6",
    "VSSD",
    "ContractError",
    "HybridBackbone",
    "MixerSpec",
    "PluginError",
    "Pyramid",
    "TimmBackbone",
    "VMamba",
    "ViTAdapter",
    "Vim",
    "list_backbones",
    "register_mixer",
]
