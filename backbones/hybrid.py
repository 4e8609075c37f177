"""HybridBackbone: convolution stages, then token layers with an exchangeable mixer.

The backbone of "Mamba or RWKV: Exploring High-Quality and High-Efficiency Segment Anything Model" (RWKV-SAM, arXiv 2406.19369), whose
convolution stages are ViTamin's (arXiv 2404.02132). The same network with one part exchanged is what makes a comparison of mixers fair.

Shapes, for an image of H x W, widths (a, b, C), every halving rounded up:

    stem            3x3 conv stride 2, LN, GELU, 3x3 conv      (B, w, H/2, W/2)
    stage 1         MBConv-LN blocks, the first stride 2       (B, a, H/4, W/4)    level 0
    stage 2         MBConv-LN blocks, the first stride 2       (B, b, H/8, W/8)    level 1
    patch reduction LN, 3x3 conv stride 2                      (B, C, H/16, W/16)
    token layers    tokens row-major, optional position embedding
                    after layer depth // 2, not normalised     (B, C, H/16, W/16)  level 2
                    after the last layer and a LayerNorm       (B, C, H/16, W/16)  level 3
    extra level     replaces level 2 by the final map; level 3 is one MBConv-LN block of stride 2 on it: (B, 2C, H/32, W/32)

Where this differs from the official code on purpose: any depth works, 1 included; `mlp_ratio` may be a float; patterns work at any depth;
all convolutions get the initialisation that the code means to give them (see `InvertedBottleneck`); large has 16 heads (6 do not divide
1024); names that are not known are errors; the official argument `fix`, which does nothing, is `frozen_stages` here and does it.

torch.export with a dynamic image size needs sizes that are multiples of 16, because average pooling guards on parity in PyTorch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from .arguments import complete_arch, drop_path_rates
from .layers import LayerContext, LayerNorm2d, init_conv, new_pos_embed, to_map, to_tokens
from .mixers import CHANNEL_MIXERS, MIXERS, InvertedBottleneck, MixerChoice
from .pyramid import Pyramid
from .registry import BACKBONES
from .scans import resize_pos_embed

NORM_EPS = 1e-6
# stem_width: width at stride 2; dims: widths at strides 4, 8, 16; conv_depths: blocks of the two convolution stages; depth: token layers.
ARCH_DEFAULTS: dict[str, Any] = dict(conv_depths=(2, 4), depth=14, num_heads=6)
ARCHS: dict[str, dict[str, Any]] = {
    "test": dict(stem_width=16, dims=(16, 32, 64), conv_depths=(1, 1), depth=4, num_heads=4),
    "tiny": dict(stem_width=32, dims=(32, 64, 192)),
    "small": dict(stem_width=64, dims=(64, 128, 384)),
    "base": dict(stem_width=128, dims=(128, 256, 768)),
    "large": dict(stem_width=160, dims=(160, 320, 1024), num_heads=16),
}


class Stem(nn.Module):
    """(B, in, H, W) -> (B, out, ceil(H/2), ceil(W/2)): 3x3 conv stride 2, LN, GELU, 3x3 conv; nothing after the second."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.norm = LayerNorm2d(out_channels, eps=NORM_EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.apply(init_conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.gelu(self.norm(self.conv1(x))))


class MBConvBlock(nn.Module):
    """MBConv-LN: shortcut(x) + InvertedBottleneck(LN(x)). No batch norm, no squeeze-excite, no layer scale, no drop path.

    Shortcut: 3x3 average pooling for stride 2 (padding not counted), then a 1x1 conv if the widths differ.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False) if stride == 2 else nn.Identity()
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        self.norm = LayerNorm2d(in_channels, eps=NORM_EPS)
        self.branch = InvertedBottleneck(in_channels, out_channels, stride=stride)
        self.shortcut.apply(init_conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(self.pool(x)) + self.branch(self.norm(x))


class PatchReduction(nn.Module):
    """(B, in, H, W) -> (B, out, ceil(H/2), ceil(W/2)): LN, then a 3x3 conv of stride 2."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(in_channels, eps=NORM_EPS)
        self.proj = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.proj.apply(init_conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.norm(x))


class TokenLayer(nn.Module):
    """One token layer: token mixer and channel mixer, each pre-normed, residual, with its optional layer scale and drop path."""

    def __init__(self, mixer: MixerChoice, context: LayerContext, drop_path: float) -> None:
        super().__init__()
        spec = mixer.spec
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.token = self.norm1 = self.scale1 = self.scale2 = None
        if spec.token is not None:
            self.norm1 = nn.LayerNorm(context.dim, eps=NORM_EPS)
            self.token = spec.token(context, **mixer.options)
        self.norm2 = nn.LayerNorm(context.dim, eps=NORM_EPS)
        self.channel = CHANNEL_MIXERS[spec.channel](context)
        if spec.layer_scale is not None:
            if spec.token is not None:
                self.scale1 = nn.Parameter(torch.full((context.dim,), float(spec.layer_scale)))
            self.scale2 = nn.Parameter(torch.full((context.dim,), float(spec.layer_scale)))

    def no_weight_decay(self) -> set[str]:
        return {name for name in ("scale1", "scale2") if getattr(self, name) is not None}

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N, C) -> (B, N, C), N = grid[0] * grid[1]."""
        if self.token is not None:
            x = x + self._scaled(self.token(self.norm1(x), grid), self.scale1)
        return x + self._scaled(self.channel(self.norm2(x), grid), self.scale2)

    def _scaled(self, branch: Tensor, scale: Tensor | None) -> Tensor:
        return self.drop_path(branch if scale is None else branch * scale)


def layer_mixers(
    mixer: str | Mapping, pattern: Mapping[str, Sequence[int]] | Sequence[str | Mapping] | None, depth: int
) -> list[MixerChoice]:
    """The mixer of each layer, from plain data.

    Args:
        mixer: the main mixer, a name or dict(type=name, ...).
        pattern: None (the main mixer everywhere); a dict of other mixers' names to the 0-based layers where each replaces the main one,
            such as {"attention": (2, 5, 8, 11)}; or the full list, one mixer per layer, which then names all of them.
        depth: number of layers.

    Raises:
        TypeError, ValueError: a pattern of another form, a layer out of range or given twice, a list of another length than depth, an
        unknown mixer.
    """
    main = MixerChoice.parse(mixer)
    if pattern is None:
        return [main] * depth
    if isinstance(pattern, Mapping):
        chosen: dict[int, MixerChoice] = {}
        for name, layers in pattern.items():
            choice = MixerChoice.parse(name)
            if isinstance(layers, str) or not isinstance(layers, Sequence) or not all(isinstance(i, int) for i in layers):
                raise TypeError(f"pattern[{name!r}] must be a sequence of layer indices, got {layers!r}")
            for i in layers:
                if not 0 <= i < depth:
                    raise ValueError(f"pattern[{name!r}] names layer {i}; this network has layers 0..{depth - 1}")
                if i in chosen:
                    raise ValueError(f"pattern names layer {i} twice: {chosen[i].name!r} and {name!r}")
                chosen[i] = choice
        return [chosen.get(i, main) for i in range(depth)]
    if isinstance(pattern, str) or not isinstance(pattern, Sequence):
        raise TypeError(f"pattern must be None, a dict of mixer name -> layers, or a list with one mixer per layer, got {pattern!r}")
    if len(pattern) != depth:
        raise ValueError(f"pattern as a list must have one mixer per layer: expected {depth}, got {len(pattern)}")
    return [MixerChoice.parse(entry) for entry in pattern]


def resolve_arch(arch: str | Mapping[str, Any]) -> dict[str, Any]:
    """The full dict of an architecture, from a name in `ARCHS` or a dict with its keys (`stem_width` and `dims` are required)."""
    full = complete_arch(arch, ARCHS, ARCH_DEFAULTS, ("stem_width", "dims"))
    if len(full["dims"]) != 3 or len(full["conv_depths"]) != 2 or min(*full["dims"], *full["conv_depths"], full["stem_width"]) < 1:
        raise ValueError(
            f"arch needs three positive dims (strides 4, 8, 16), two positive conv_depths and a positive stem_width, got {full}"
        )
    return full


@BACKBONES.register_module()
class HybridBackbone(Pyramid):
    """Convolution stages, then token layers; see the module's docstring for the shapes.

    Returned levels: (a@4, b@8, C@16 from the middle, not normed, C@16 final, normed); with `extra_level` (a@4, b@8, C@16 final, 2C@32).

    The paper's variants as plain data (depth 14):

        all Bi-WKV                             mixer="bi_wkv"
        all attention                          mixer="attention"
        attention at 2, 5, 8, 11 in Bi-WKV     mixer="bi_wkv", pattern={"attention": (2, 5, 8, 11)}
        Bi-WKV at 2, 5, 8, 11 in MBConv        mixer="mbconv", pattern={"bi_wkv": (2, 5, 8, 11)}
        MBConv at 2, 5, 8, 11 in Bi-WKV        mixer="bi_wkv", pattern={"mbconv": (2, 5, 8, 11)}

    Args:
        arch: test, tiny, small, base or large, or a dict with the keys of `ARCHS`.
        mixer: the token mixer, a name in `mixers.MIXERS` or dict(type=name, **options).
        pattern: other mixers in some layers; see `layer_mixers`.
        depth: number of token layers; None for the architecture's (14).
        mlp_ratio: hidden width of the channel mixers over C, int or float. None: the main mixer's default in every layer (2 for attention,
            4 for the others), or each layer's own default if `pattern` is a full list. An option mlp_ratio in a mixer's dict wins.
        num_heads: heads of mixers that have heads; must divide C. None for the architecture's.
        in_channels: channels of the image.
        drop_path_rate: probability of dropping a branch of the last token layer, rising linearly from 0 at the first.
        pos_embed_size: token grid (h, w), or an int for both, of a learnt position embedding, resized to the grid of the input; None for
            none. It is counted in tokens: 14 for training at 224.
        extra_level: add the stride-32 level.
        out_indices: which of the four returned levels to give, ascending; None for all.
        with_cp: recompute each block's activations in the backward pass.
        frozen_stages: -1 nothing; 0 the stem; 1 also the stage at stride 4; 2 also the stage at stride 8; 3 also the patch reduction, the
            position embedding and the token layers up to depth // 2; 4 everything.
        norm_eval: keep batch norm in evaluation mode (only mixers of third parties have any).
        init_cfg: MMEngine's initialisation config.

    Raises:
        ValueError, TypeError: an argument that does not fit; unknown names come with the near ones.
    """

    MIXERS = MIXERS

    def __init__(
        self,
        arch: str | Mapping[str, Any] = "tiny",
        mixer: str | Mapping[str, Any] = "bi_wkv",
        *,
        pattern: Mapping[str, Sequence[int]] | Sequence[str | Mapping[str, Any]] | None = None,
        depth: int | None = None,
        mlp_ratio: float | None = None,
        num_heads: int | None = None,
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        pos_embed_size: int | Sequence[int] | None = None,
        extra_level: bool = False,
        out_indices: Sequence[int] | None = None,
        with_cp: bool = False,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            with_cp=with_cp,
            init_cfg=init_cfg,
        )
        spec = resolve_arch(arch)
        depth = spec["depth"] if depth is None else depth
        if not isinstance(depth, int) or depth < 1:
            raise ValueError(f"depth must be a positive int, got {depth!r}")
        a, b, c = spec["dims"]
        self.stem = Stem(in_channels, spec["stem_width"])
        self.stages = nn.ModuleList()
        for before, width, blocks in zip((spec["stem_width"], a), (a, b), spec["conv_depths"], strict=True):
            stage = [MBConvBlock(before if i == 0 else width, width, stride=2 if i == 0 else 1) for i in range(blocks)]
            self.stages.append(nn.ModuleList(stage))
        self.reduction = PatchReduction(b, c)
        self.pos_embed = new_pos_embed(pos_embed_size, c)
        heads = spec["num_heads"] if num_heads is None else num_heads
        self.layers = _token_layers(mixer, pattern, c, depth, heads, mlp_ratio, drop_path_rate)
        self.middle = depth // 2
        self.final_norm = nn.LayerNorm(c, eps=NORM_EPS)
        self.extra = MBConvBlock(c, 2 * c, stride=2) if extra_level else None
        self._finish(
            (a, b, c, 2 * c) if extra_level else (a, b, c, c),
            (4, 8, 16, 32) if extra_level else (4, 8, 16, 16),
            self._stage_parts(),
            layers=self._layer_parts(),
        )

    def _stage_parts(self) -> list[list[nn.Module | nn.Parameter]]:
        split = self.middle + 1
        middle = [self.reduction, *self.layers[:split]]
        if self.pos_embed is not None:
            middle.append(self.pos_embed)
        rest = [*self.layers[split:], self.final_norm]
        if self.extra is not None:
            rest.append(self.extra)
        return [[self.stem], [self.stages[0]], [self.stages[1]], middle, rest]

    def _layer_parts(self) -> list[list[nn.Module | nn.Parameter]]:
        before = [self.reduction] if self.pos_embed is None else [self.reduction, self.pos_embed]
        return [[self.stem], [self.stages[0]], [self.stages[1]], before, *([layer] for layer in self.layers)]

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed"} if self.pos_embed is not None else set()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, in_channels, H, W) -> the maps chosen by `out_indices`; any H, W >= 1."""
        self._check_input(x)
        levels = []
        # Channels last from the first convolution on: LayerNorm wants it so, and the convolutions are no slower (docs/LOG.md).
        x = self._run(self.stem, x.contiguous(memory_format=torch.channels_last))
        for stage in self.stages:
            for block in stage:
                x = self._run(block, x)
            levels.append(x)
        x = self.reduction(x)
        grid = (x.shape[2], x.shape[3])
        if self.pos_embed is not None:
            x = x + resize_pos_embed(self.pos_embed, grid).to(x.dtype)
        x = to_tokens(x).contiguous()
        for i, layer in enumerate(self.layers):
            x = self._run(layer, x, grid)
            if i == self.middle and self.extra is None:
                levels.append(to_map(x, grid))
        x = to_map(self.final_norm(x), grid)
        levels.append(x)
        if self.extra is not None:
            levels.append(self._run(self.extra, x))
        return self._select(levels)


def _token_layers(
    mixer: str | Mapping[str, Any],
    pattern: Mapping[str, Sequence[int]] | Sequence[str | Mapping[str, Any]] | None,
    dim: int,
    depth: int,
    num_heads: int,
    mlp_ratio: float | None,
    drop_path_rate: float,
) -> nn.ModuleList:
    if not isinstance(num_heads, int) or num_heads < 1:
        raise ValueError(f"num_heads must be a positive int, got {num_heads!r}")
    if mlp_ratio is None and (pattern is None or isinstance(pattern, Mapping)):
        main = MixerChoice.parse(mixer)
        mlp_ratio = main.spec.mlp_ratio if main.mlp_ratio is None else main.mlp_ratio
    layers = nn.ModuleList()
    rates = drop_path_rates(drop_path_rate, depth)
    for i, choice in enumerate(layer_mixers(mixer, pattern, depth)):
        ratio = next(r for r in (choice.mlp_ratio, mlp_ratio, choice.spec.mlp_ratio) if r is not None)
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or int(ratio * dim) < 1:
            raise ValueError(f"mlp_ratio must be a positive number, got {ratio!r}")
        context = LayerContext(dim, i, depth, num_heads, ratio)
        layers.append(TokenLayer(choice, context, rates[i]))
    return layers
