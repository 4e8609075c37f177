"""Transformers and convolution networks of timm as baselines, under the contract of `pyramid.py`.

`TimmBackbone(model_name)` builds a model by timm's own code, takes its classifier off, and returns one of three wrappers:

    TimmPlain         vision transformers (DeiT, DeiT-III, ...): a `PlainBackbone`, one level per layer, at the stride of the patches
    TimmHierarchical  Swin, ConvNeXt, MambaOut, ResNet, ...: one level per stage at strides 4, 8, 16, 32
    TimmViTamin       ViTamin: levels at strides 4, 8, 16 (middle layer), 16 (last layer), as in `HybridBackbone`

Sources: DeiT (arXiv 2012.12877), DeiT-III (arXiv 2204.07118), Swin (arXiv 2103.14030), ConvNeXt (arXiv 2201.03545), ViTamin (arXiv
2404.02132), MambaOut (arXiv 2405.07992), ResNet (arXiv 1512.03385).

Any image size: sizes are rounded up, by zero padding at the right and the bottom before each part of the network that would round down.
Position embeddings are resized as timm does it (bicubic with antialiasing). Swin partitions and shifts its windows at every size, as
MMSegmentation's does, where timm's classifier drops the shift in stages no larger than one window.

Weights: `pretrained=True` loads through timm, before the classifier is taken off, so that timm compares every key of the file.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed, resample_abs_pos_embed
from timm.models import FeatureListNet, ResNet, SwinTransformer, VisionTransformer
from timm.models.mambaout import MambaOut
from timm.models.vitamin import MbConvStages, VitCfg
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from .layers import LayerNorm2d, to_map
from .names import unknown
from .plain import PlainBackbone
from .pyramid import Pyramid
from .registry import BACKBONES

# Short name -> a name of timm (the tag after the dot chooses among its weights: ImageNet-1k ones where there are any), or
# dict(model_name=..., **arguments of timm's constructor).
ARCHS: dict[str, str | dict[str, Any]] = {
    "test": dict(model_name="test_vit", depth=3),
    "test_registers": dict(model_name="test_vit2", depth=2),
    "test_deit3": dict(model_name="deit3_small_patch16_224", embed_dim=32, depth=2, num_heads=2, init_values=1e-2),
    "test_resnet": dict(model_name="test_resnet", zero_init_last=False),  # else timm starts with residual branches of zero
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
    "swin_transformer_v2": dict(strict_img_size=False, always_partition=True),
}
# What timm's constructors call what `TimmBackbone` calls otherwise or decides itself.
_RESERVED = {
    "in_chans": "use in_channels",
    "num_classes": "the classifier is taken off",
    "features_only": "it is decided by the wrapper",
}
_SMALLEST_STRIDE = 4


class _TimmWrapper:
    """What the wrappers share, beside `Pyramid`: weight decay by timm's rule, and checkpointing that leaves batch norm alone."""

    def _remember_undecayed(self: Any, model: nn.Module) -> None:
        """Keep the names, as they are here, of the parameters that timm does not decay in `model`."""
        listed = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
        undecayed = {id(p) for name, p in model.named_parameters() if name in listed or p.ndim < 2}
        self._undecayed = tuple(name for name, p in self.named_parameters() if id(p) in undecayed)

    def no_weight_decay(self) -> set[str]:
        """Dotted names of what timm does not decay: all vectors, and what timm's model lists (position embeddings and biases, tokens)."""
        return set(self._undecayed)

    def _run(self: Any, block: nn.Module, *args: Any) -> Tensor:
        if self.with_cp and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), _statistics_kept(block)))
        return block(*args)


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Within it batch norm layers that train leave their running statistics: a recomputed forward pass is not a second batch."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches


class TimmHierarchical(_TimmWrapper, Pyramid):
    """A network of stages, each at its own stride; the levels are the stages' outputs, without timm's final norm.

    Stages for `frozen_stages`: 0 the stem; n the stage n, the downsampling before it included.

    Args:
        model: timm's, with `feature_info`.
        out_norm: a LayerNorm over the channels of each returned level.
        pyramid: the arguments of `Pyramid`.
    """

    def __init__(self, model: nn.Module, *, out_norm: bool, **pyramid: Any) -> None:
        super().__init__(**pyramid)
        levels = [i for i, info in enumerate(model.feature_info) if info["reduction"] >= _SMALLEST_STRIDE]
        channels, strides = ([model.feature_info[i][key] for i in levels] for key in ("num_chs", "reduction"))
        # A name with a dot is inside a Sequential of the model, which timm then flattens.
        flatten = any("." in model.feature_info[i]["module"] for i in levels)
        net = FeatureListNet(model, out_indices=tuple(levels), flatten_sequential=flatten)
        parts: list[list[nn.Module]] = [[]]
        for name, module in net.items():
            parts[-1].append(module)
            if name in net.return_layers:
                parts.append([])
        self.stem = nn.Sequential(*parts[0][:-1])
        self.stages = nn.ModuleList([parts[0][-1], *(part[0] if len(part) == 1 else nn.Sequential(*part) for part in parts[1:-1])])
        self.channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        self.multiples = _multiples(model, strides)
        steps = [[self.stem], *(step for stage in self.stages for step in _steps(stage))]
        self._finish(channels, strides, [[self.stem], *([stage] for stage in self.stages)], steps)
        self.out_norms = nn.ModuleList(LayerNorm2d(c) for c in self.out_channels) if out_norm else None
        self._remember_undecayed(model)
        for stage in self.stages:
            if hasattr(stage, "grad_checkpointing"):
                stage.grad_checkpointing = self.with_cp

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, in_channels, H, W) -> the maps chosen by `out_indices`; any H, W >= 1."""
        self._check_input(x)
        x = self.stem(self._padded(x, self.multiples[0], channels_last=False))
        maps = []
        for i, stage in enumerate(self.stages[: self.out_indices[-1] + 1]):
            x = self._run_stage(stage, x if i == 0 else self._padded(x, self.multiples[i], self.channels_last))
            if i in self.out_indices:
                level = x.permute(0, 3, 1, 2).contiguous() if self.channels_last else x
                maps.append(level if self.out_norms is None else self.out_norms[len(maps)](level))
        return tuple(maps)

    @staticmethod
    def _padded(x: Tensor, multiple: int, channels_last: bool) -> Tensor:
        """The map (B, C, H, W) or (B, H, W, C), zero-padded at the right and the bottom until its sides are multiples of `multiple`."""
        if multiple == 1:
            return x
        height, width = x.shape[1:3] if channels_last else x.shape[2:]
        sides = (0, -width % multiple, 0, -height % multiple)
        return F.pad(x, (0, 0, *sides) if channels_last else sides)

    def _run_stage(self, stage: nn.Module, x: Tensor) -> Tensor:
        if hasattr(stage, "grad_checkpointing"):
            return stage(x)
        for block in stage if isinstance(stage, nn.Sequential) else [stage]:
            x = self._run(block, x)
        return x


def _multiples(model: nn.Module, strides: Sequence[int]) -> tuple[int, ...]:
    """What sides the input of each stage needs (the first: the image) so that no row is dropped: multiples of its downsampling.

    1 where the network rounds up by itself: the convolutions of ResNet and MambaOut are padded, and so is Swin's patch merging.
    """
    if isinstance(model, ResNet | MambaOut):
        return (1,) * len(strides)
    if isinstance(model, SwinTransformer):
        return (strides[0], *(1,) * (len(strides) - 1))
    return tuple(after // before for before, after in pairwise([1, *strides]))


def _steps(stage: nn.Module) -> list[list[nn.Module]]:
    """The blocks of a stage, one by one; what else the stage holds belongs to the first."""
    blocks = stage if isinstance(stage, nn.Sequential) else getattr(stage, "blocks", None)
    if blocks is None or len(blocks) == 0:
        return [[stage]]
    before = [module for module in stage.children() if module is not blocks] if blocks is not stage else []
    return [[*before, blocks[0]], *([block] for block in blocks[1:])]


def _final_norm(model: VisionTransformer) -> nn.Module:
    """The norm after the last layer; models that average the patches first have it behind the average."""
    return model.fc_norm if isinstance(model.norm, nn.Identity) else model.norm


def _resized_positions(embed: Tensor, source: tuple[int, int], grid: tuple[int, int], others: int) -> Tensor:
    """Position embedding (1, others + N, C) of a grid `source` at `grid`, as timm resizes it; the first `others` stay as they are."""
    return resample_abs_pos_embed(embed, new_size=list(grid), old_size=list(source), num_prefix_tokens=others)


class TimmPlain(_TimmWrapper, PlainBackbone):
    """A vision transformer: the levels are its layers; class, distillation and register tokens take part, and are left out of the maps.

    Where timm's classifier norms the average of the patches, the final norm is that norm, applied to each token.

    Args:
        model: timm's VisionTransformer, built with dynamic_img_size and dynamic_img_pad.
        pyramid: the arguments of `Pyramid`.
    """

    # In the order in which timm puts them before the patches.
    TOKENS = ("cls_token", "dist_token", "reg_token")

    def __init__(self, model: VisionTransformer, **pyramid: Any) -> None:
        super().__init__(**pyramid)
        if not isinstance(model.patch_drop, nn.Identity):
            raise ValueError("patch_drop_rate: a dense feature map needs all patches")
        self.patch_embed = model.patch_embed
        for name in self.TOKENS:
            self.register_parameter(name, getattr(model, name, None))
        self.pos_embed = model.pos_embed
        self.pos_drop, self.norm_pre = model.pos_drop, model.norm_pre
        self.layers = nn.ModuleList(model.blocks)
        self.norm = _final_norm(model)
        self.num_others = model.num_prefix_tokens
        self.num_positioned = 0 if model.no_embed_class else self.num_others
        before = [self.patch_embed, self.norm_pre, *(p for p in self._tokens_and_positions() if p is not None)]
        self._finish_plain(model.embed_dim, self.patch_embed.patch_size[0], before=before, after=[self.norm])
        self._remember_undecayed(model)

    def _tokens_and_positions(self) -> list[nn.Parameter | None]:
        return [*(getattr(self, name) for name in self.TOKENS), self.pos_embed]

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Image (B, in_channels, H, W) -> tokens (B, others + h * w, C), and the grid (h, w)."""
        patches = self.patch_embed(x)
        grid = (patches.shape[1], patches.shape[2])
        others = [token.expand(len(x), -1, -1) for name in self.TOKENS if (token := getattr(self, name)) is not None]
        tokens = torch.cat([*others, patches.flatten(1, 2)], dim=1)
        if self.pos_embed is not None:
            positions = _resized_positions(self.pos_embed, self.patch_embed.grid_size, grid, self.num_positioned)
            tokens = tokens + F.pad(positions, (0, 0, self.num_others - self.num_positioned, 0))
        return self.norm_pre(self.pos_drop(tokens)), grid

    def run_layer(self, index: int, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens after layer `index`."""
        return self._run(self.layers[index], tokens)

    def final(self, tokens: Tensor) -> Tensor:
        """Tokens after the last layer -> normed tokens."""
        return self.norm(tokens)

    def split_tokens(self, tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens -> (class and other tokens, patches, nothing)."""
        return tokens[:, : self.num_others], tokens[:, self.num_others :], tokens[:, :0]


class TimmViTamin(_TimmWrapper, Pyramid):
    """ViTamin: two stages of convolutions, then token layers; levels (a@4, b@8, C@16 after layer depth // 2, C@16 final and normed).

    Stages for `frozen_stages`, as in `HybridBackbone`: 0 the stem; 1 also the stage at stride 4; 2 also the stage at stride 8; 3 also the
    patch reduction, the position embedding and the layers up to depth // 2; 4 everything.

    Args:
        model: timm's VisionTransformer over MbConvStages, built with dynamic_img_size.
        pyramid: the arguments of `Pyramid`.
    """

    def __init__(self, model: VisionTransformer, **pyramid: Any) -> None:
        super().__init__(**pyramid)
        if model.num_prefix_tokens:
            raise ValueError("class_token, reg_tokens: ViTamin has none")
        convolutions = model.patch_embed.backbone
        self.stem, self.reduction = convolutions.stem, convolutions.pool
        self.stages = nn.ModuleList(convolutions.stages)
        self.pos_embed, self.pos_drop = model.pos_embed, model.pos_drop
        self.grid = tuple(model.patch_embed.grid_size)
        self.layers = nn.ModuleList(model.blocks)
        self.norm = _final_norm(model)
        self.middle = len(self.layers) // 2
        before = [self.reduction, self.pos_embed]
        split = self.middle + 1
        parts = [[self.stem], *([stage] for stage in self.stages), [*before, *self.layers[:split]], [*self.layers[split:], self.norm]]
        steps = [[self.stem], *(step for stage in self.stages for step in _steps(stage)), before, *([layer] for layer in self.layers)]
        widths = [stage[-1].out_chs for stage in self.stages]
        self._finish((*widths, model.embed_dim, model.embed_dim), (4, 8, 16, 16), parts, steps)
        self._remember_undecayed(model)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, in_channels, H, W) -> the maps chosen by `out_indices`; any H, W >= 1."""
        self._check_input(x)
        levels = []
        x = self._run(self.stem, x)
        for stage in self.stages:
            for block in stage:
                x = self._run(block, x)
            levels.append(x)
        x = self.reduction(x)
        grid = (x.shape[2], x.shape[3])
        x = self.pos_drop(x.flatten(2).transpose(1, 2) + _resized_positions(self.pos_embed, self.grid, grid, 0))
        for i, layer in enumerate(self.layers):
            x = self._run(layer, x)
            if i == self.middle:
                levels.append(to_map(x, grid))
        levels.append(to_map(self.norm(x), grid))
        return self._select(levels)


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
        ValueError: an unknown name, a reserved option, a network that has no levels in timm, or one that this wrapper does not know to run
            at any size.
        TypeError: an option that timm's constructor does not know.
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
