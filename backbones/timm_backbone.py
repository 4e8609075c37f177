"""Transformers and convolution networks of timm as baselines, under the contract of `pyramid.py`.

`TimmBackbone(model_name)` builds a model by timm's own code, takes its classifier off, and returns one of three wrappers:

    TimmPlain         vision transformers (DeiT, DeiT-III, ...): a `PlainBackbone`, one level per layer, at the stride of the patches
    TimmHierarchical  Swin, ConvNeXt, MambaOut, ResNet, ...: one level per stage at strides 4, 8, 16, 32
    TimmViTamin       ViTamin: levels at strides 4, 8, 16 (middle layer), 16 (last layer), as in `HybridBackbone`

Sources: DeiT (arXiv 2012.12877), DeiT-III (arXiv 2204.07118), Swin (arXiv 2103.14030), ConvNeXt (arXiv 2201.03545), ViTamin (arXiv
2404.02132), MambaOut (arXiv 2405.07992), ResNet (arXiv 1512.03385).

Any image size: sizes are rounded up, by zero padding at the right and the bottom before each part of the network that would round down.
Position embeddings are resized as timm does it (bicubic with antialiasing). Swin computes what MMSegmentation's Swin does, at every size:
windows are shifted even in stages no larger than one window, where timm's classifier does not, and maps are padded before the shift.

Weights: `pretrained=True` loads through timm, before the classifier is taken off, so that timm compares every key of the file.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import timm
from timm.layers import PatchEmbed
from timm.models import VisionTransformer
from timm.models.vitamin import MbConvStages, VitCfg
from torch import nn

from .names import unknown
from .registry import BACKBONES
from .timm_wrappers import TimmHierarchical, TimmPlain, TimmViTamin

# Short name -> a name of timm (the tag after the dot chooses among its weights: ImageNet-1k ones where there are any), or
# dict(model_name=..., **arguments of timm's constructor).
ARCHS: dict[str, str | dict[str, Any]] = {
    "test": dict(model_name="test_vit", depth=3),
    "test_registers": dict(model_name="test_vit2", depth=2),
    "test_deit3": dict(model_name="deit3_small_patch16_224", embed_dim=32, depth=2, num_heads=2, init_values=1e-2),
    "test_resnet": dict(model_name="test_resnet", avg_down=False, zero_init_last=False),  # timm starts residual branches at zero
    "test_convnext": dict(model_name="test_convnext", depths=(1, 1, 2, 1)),
    "test_mambaout": dict(model_name="test_mambaout", depths=(1, 1, 2, 1)),
    "test_swin": dict(model_name="swin_tiny_patch4_window7_224", embed_dim=16, depths=(2, 1), num_heads=(1, 2), window_size=4),
    "test_vitamin": dict(
        model_name="vitamin_small_224",
        embed_dim=64,
        depth=3,
        num_heads=2,
        embed_cfg=VitCfg(embed_dim=(16, 32, 64), depths=(1, 2, 1), stem_width=16),
    ),
    "deit_tiny": "deit_tiny_patch16_224.fb_in1k",
    "deit_small": "deit_small_patch16_224.fb_in1k",
    "deit_base": "deit_base_patch16_224.fb_in1k",
    "deit3_tiny": dict(model_name="deit3_small_patch16_224", embed_dim=192, num_heads=3),  # timm has no weights of this size
    "deit3_small": "deit3_small_patch16_224.fb_in1k",
    "deit3_base": "deit3_base_patch16_224.fb_in1k",
    # Nobody's published size: Swin-T at half its width and two thirds of its third stage, beside networks of 5 or 6 M parameters.
    "swin_micro": dict(model_name="swin_tiny_patch4_window7_224", embed_dim=48, depths=(2, 2, 4, 2), num_heads=(3, 6, 12, 24)),
    "swin_tiny": "swin_tiny_patch4_window7_224.ms_in1k",
    "swin_small": "swin_small_patch4_window7_224.ms_in1k",
    "swin_base": "swin_base_patch4_window7_224.ms_in1k",
    "convnext_tiny": "convnext_tiny.fb_in1k",
    "convnext_small": "convnext_small.fb_in1k",
    "convnext_base": "convnext_base.fb_in1k",
    "vitamin_small": "vitamin_small_224.datacomp1b_clip_ltt",
    "vitamin_base": "vitamin_base_224.datacomp1b_clip_ltt",
    "mambaout_femto": "mambaout_femto.in1k",
    "mambaout_kobe": "mambaout_kobe.in1k",
    "mambaout_tiny": "mambaout_tiny.in1k",
    "mambaout_small": "mambaout_small.in1k",
    "mambaout_base": "mambaout_base.in1k",
    "resnet50": "resnet50.tv_in1k",
    "resnet101": "resnet101.tv_in1k",
}

# Module of timm -> the arguments with which its networks take images of any size.
_ANY_SIZE: dict[str, dict[str, Any]] = {
    "vision_transformer": dict(dynamic_img_size=True, dynamic_img_pad=True),
    "deit": dict(dynamic_img_size=True, dynamic_img_pad=True),
    "vitamin": dict(dynamic_img_size=True),
    "swin_transformer": dict(strict_img_size=False, always_partition=True),
}
# What timm's constructors call what `TimmBackbone` calls otherwise or decides itself.
_RESERVED = {
    "in_chans": "use in_channels",
    "num_classes": "the classifier is taken off",
    "features_only": "it is decided by the wrapper",
}


@BACKBONES.register_module()
def TimmBackbone(
    model_name: str,
    *,
    pretrained: bool = False,
    in_channels: int = 3,
    drop_path_rate: float = 0.0,
    out_norm: bool = False,
    out_indices: Sequence[int] | None = None,
    frozen_stages: int = -1,
    norm_eval: bool = False,
    with_cp: bool = False,
    init_cfg: dict | list[dict] | None = None,
    **timm_options: Any,
) -> TimmPlain | TimmHierarchical | TimmViTamin:
    """A model of timm as a backbone; see the module's docstring for the three kinds, and the classes for their levels and stages.

    Args:
        model_name: a key of `ARCHS`, or a name of timm, with or without the tag of its weights ("convnext_tiny.fb_in22k").
        pretrained: load timm's weights (downloaded and cached by timm, or pretrained_cfg_overlay=dict(file=PATH)).
        in_channels: channels of the image; pretrained weights of another number are adapted by timm.
        drop_path_rate: of the last block, rising linearly from 0 at the first; networks without drop path refuse a rate above 0.
        out_norm: LayerNorm over the channels of each returned level, as MMSegmentation's Swin and ConvNeXt have it; for networks of stages
            only.
        out_indices, frozen_stages, norm_eval, with_cp, init_cfg: see `Pyramid`. What lies above the last of `out_indices` is not computed.
        timm_options: further arguments of timm's constructor, such as img_size=512 (sizes the position embedding) or window_size.

    Raises:
        ValueError: an unknown name, a reserved option, or a network that is none of the three kinds.
        TypeError: an option that timm's constructor does not know.

    Networks of stages that are not in `ARCHS` work if their timm code takes images of any size; some refuse in their forward.
    """
    for name, instead in _RESERVED.items():
        if name in timm_options:
            raise ValueError(f"TimmBackbone takes no {name}: {instead}")
    if not 0 <= drop_path_rate < 1:
        raise ValueError(f"drop_path_rate must lie in [0, 1), got {drop_path_rate!r}")
    name, options = _resolve(model_name)
    options |= timm_options
    if drop_path_rate:
        options["drop_path_rate"] = drop_path_rate
    model = timm.create_model(name, pretrained=pretrained, in_chans=in_channels, **options)
    pyramid = dict(
        in_channels=in_channels,
        out_indices=out_indices,
        frozen_stages=frozen_stages,
        norm_eval=norm_eval,
        with_cp=with_cp,
        init_cfg=init_cfg,
    )
    if not isinstance(model, VisionTransformer):
        if not _has_stages(model):
            raise ValueError(f"model_name {model_name!r}: expected a vision transformer or a network of stages, got {type(model).__name__}")
        return TimmHierarchical(model, out_norm=out_norm, **pyramid)
    if out_norm:
        raise ValueError(f"out_norm: {model_name!r} has no stages of its own, and a final norm already")
    if isinstance(getattr(model.patch_embed, "backbone", None), MbConvStages):
        return TimmViTamin(model, **pyramid)
    if not isinstance(model.patch_embed, PatchEmbed):
        raise ValueError(f"model_name {model_name!r}: vision transformers over {type(model.patch_embed).__name__} are not supported")
    return TimmPlain(model, **pyramid)


# ViTamin is none: its first two stages are convolutions, as in `HybridBackbone`, whose attention twin is the baseline of that kind.
TimmBackbone.TRANSFORMERS = tuple(name for name in ARCHS if name.startswith(("deit_", "deit3_", "swin_")))


def _resolve(model_name: str) -> tuple[str, dict[str, Any]]:
    """timm's name and the arguments that this wrapper adds, for what the user wrote."""
    entry = ARCHS.get(model_name, model_name) if isinstance(model_name, str) else model_name
    options = dict(entry) if isinstance(entry, Mapping) else dict(model_name=entry)
    name = options.pop("model_name", None)
    if entry is model_name and not (isinstance(name, str) and timm.is_model(name)):
        near = difflib.get_close_matches(str(model_name), timm.list_models(), n=3, cutoff=0.5)
        raise ValueError(f"{unknown(model_name, ARCHS, 'model_name')} timm's nearest: {', '.join(near) or 'none'}.")
    module = timm.model_entrypoint(name).__module__.rsplit(".", 1)[-1]
    return name, {**_ANY_SIZE.get(module, {}), **options}


def _has_stages(model: nn.Module) -> bool:
    """Whether timm tells levels with growing strides whose modules are the model's own or one Sequential deep."""
    info = getattr(model, "feature_info", None)
    if not isinstance(info, list) or not info:
        return False
    strides = [level["reduction"] for level in info]
    return all(level["module"].count(".") < 2 for level in info) and len(set(strides)) == len(strides)
