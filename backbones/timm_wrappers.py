"""The three kinds of timm's networks that `TimmBackbone` builds, with their classifiers off, as backbones of ours."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.models import FeatureListNet, ResNet, SwinTransformer, VisionTransformer
from timm.models.mambaout import MambaOut
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn

from .layers import LayerNorm2d, to_map, to_tokens
from .plain import PlainBackbone
from .pyramid import Pyramid

_SMALLEST_STRIDE = 4


class _TimmWrapper:
    """What the wrappers share, beside `Pyramid`: weight decay by timm's rule."""

    def _remember_undecayed(self: Any, model: nn.Module) -> None:
        """Keep the names, as they are here, of the parameters that timm does not decay in `model`."""
        listed = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
        undecayed = {id(p) for name, p in model.named_parameters() if name in listed or p.ndim < 2}
        self._undecayed = tuple(name for name, p in self.named_parameters() if id(p) in undecayed)

    def no_weight_decay(self) -> set[str]:
        """Dotted names of what timm does not decay: all vectors, and what timm's model lists (position embeddings and biases, tokens)."""
        return set(self._undecayed)


def _missing(size: int, multiple: int) -> int:
    """What `size` lacks to the next multiple; written so that an exported graph knows the sum for a multiple when sizes are left open."""
    return -(-size // multiple) * multiple - size


class PaddedSwinBlock(SwinTransformerBlock):
    """timm's Swin block, with the map padded to whole windows before the cyclic shift, as in the published code.

    timm shifts first and then pads, so that its mask, which is cut for the padded map, lets the two ends of the map see each other
    (pytorch-image-models issue 2438). Sizes that are multiples of the window give the same either way.
    """

    def _attn(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        height, width = x.shape[1:3]
        below, right = (_missing(size, window) for size, window in zip((height, width), self.window_size, strict=True))
        attended = super()._attn(F.pad(x, (0, 0, 0, right, 0, below)))
        # Cut by negative padding, which copies: a slice that may or may not be contiguous would not export with sizes left open.
        return F.pad(attended, (0, 0, 0, -right, 0, -below))


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
        for module in self.modules():
            if type(module) is SwinTransformerBlock:
                module.__class__ = PaddedSwinBlock
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
                level = x.permute(0, 3, 1, 2) if self.channels_last else x
                maps.append(level if self.out_norms is None else self.out_norms[len(maps)](level))
        return tuple(maps)

    @staticmethod
    def _padded(x: Tensor, multiple: int, channels_last: bool) -> Tensor:
        """The map (B, C, H, W) or (B, H, W, C), zero-padded at the right and the bottom until its sides are multiples of `multiple`."""
        if multiple == 1:
            return x
        height, width = x.shape[1:3] if channels_last else x.shape[2:]
        sides = (0, _missing(width, multiple), 0, _missing(height, multiple))
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
        others = [token.expand(x.shape[0], -1, -1) for name in self.TOKENS if (token := getattr(self, name)) is not None]
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
        x = self.pos_drop(to_tokens(x) + _resized_positions(self.pos_embed, self.grid, grid, 0))
        for i, layer in enumerate(self.layers):
            x = self._run(layer, x)
            if i == self.middle:
                levels.append(to_map(x, grid))
        levels.append(to_map(self.norm(x), grid))
        return self._select(levels)
