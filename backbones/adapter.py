"""ViTAdapter: a plain backbone with a pyramid beside it.

"Vision Transformer Adapter for Dense Predictions", arXiv 2205.08534; Vision-RWKV's results on ADE20K and COCO use it (arXiv 2403.02308).
Image H x W, width C of the plain backbone, whose layers are cut into groups of equal size:

    spatial prior    3x3 convolutions, BN, ReLU:  c1 @4, c2 @8, c3 @16, c4 @32, each brought to width C by a 1x1 convolution
                     c = tokens of c2, c3, c4, with a learnt vector per level added
    for each group   x <- x + gamma * MSDeformAttn(LN x reads LN c)               injector; x: tokens of the patches
                     x <- the layers of the group
                     c <- c + MSDeformAttn(LN c reads LN x);  c <- c + FFN(LN c)  extractor; the FFN has a 3x3 depthwise convolution
    after the last   further extractors
    outputs          BN(c1 + upsampled c2 + x_1), BN(c2 + x_2), BN(c3 + x_3), BN(c4 + x_4) @4, 8, 16, 32, all of width C;
                     x_i: the patches after group i, brought to the stride of the level

Class tokens take part in the layers and nowhere else. gamma starts at 0: the plain backbone is not disturbed.

| arch  | plain backbone | heads | deform ratio | parameters, millions | published (Vision-RWKV) |
|-------|----------------|-------|--------------|----------------------|-------------------------|
| tiny  | VRWKV tiny     | 6     | 1            | 8.40                 | 8.4                     |
| small | VRWKV small    | 6     | 1            | 29.26                | 29.3                    |
| base  | VRWKV base     | 12    | 0.5          | 106.56               | 106.6                   |
| large | VRWKV large    | 16    | 0.5          | 351.89               | 351.9                   |

Where this differs from the official code on purpose: any image size (pixels of the maps have their places in the image, not relative to
their maps, and sizes are rounded up); deformable attention in PyTorch's own operators; batch norm is nn.BatchNorm2d, which MMEngine's
`sync_bn` makes a synchronised one.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from .arguments import complete_arch
from .deformable import MSDeformAttn
from .layers import init_conv, init_linear, to_map, to_tokens
from .plain import PlainBackbone
from .pyramid import Pyramid
from .registry import BACKBONES

NORM_EPS = 1e-6
STRIDES = (4, 8, 16, 32)
Maps = Sequence[tuple[int, int, int]]

# backbone: config of the plain backbone, or None where it comes by argument; conv_width: width of the spatial prior at stride 4;
# interactions: groups of layers; num_heads, num_points, deform_ratio, query_std: of the deformable attention, see `MSDeformAttn`;
# cffn_ratio: hidden width of the extractors' FFN over C; extra_extractors: after the last group; injector_scale: where gamma starts.
ARCH_DEFAULTS: dict[str, Any] = dict(
    backbone=None,
    conv_width=64,
    interactions=4,
    num_heads=6,
    num_points=4,
    deform_ratio=1.0,
    query_std=0.0,
    cffn_ratio=0.25,
    extra_extractors=2,
    injector_scale=0.0,
)
# Small, and with no weight at zero.
_SMALL: dict[str, Any] = dict(
    conv_width=8, interactions=2, num_heads=2, num_points=2, query_std=0.1, extra_extractors=1, injector_scale=0.5
)
ARCHS: dict[str, dict[str, Any]] = {
    "test": dict(backbone=dict(type="VRWKV", arch="test", final_norm=False), **_SMALL),
    "test_class_token": dict(backbone=dict(type="TimmBackbone", model_name="test"), deform_ratio=0.5, **_SMALL),
    "tiny": dict(backbone=dict(type="VRWKV", arch="tiny", final_norm=False)),
    "small": dict(backbone=dict(type="VRWKV", arch="small", final_norm=False)),
    "base": dict(backbone=dict(type="VRWKV", arch="base", final_norm=False), num_heads=12, deform_ratio=0.5),
    "large": dict(backbone=dict(type="VRWKV", arch="large", final_norm=False), num_heads=16, deform_ratio=0.5),
}


def _conv_norm(in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU()]


class SpatialPrior(nn.Module):
    """(B, in, H, W) -> four maps (B, C, ceil(H/s), ceil(W/s)) at strides 4, 8, 16, 32."""

    def __init__(self, in_channels: int, width: int, dim: int) -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width, 4 * width)
        stem = [*_conv_norm(in_channels, width, 2), *_conv_norm(width, width, 1), *_conv_norm(width, width, 1), nn.MaxPool2d(3, 2, 1)]
        self.stages = nn.ModuleList([nn.Sequential(*stem), *(nn.Sequential(*_conv_norm(a, b, 2)) for a, b in pairwise(widths))])
        self.projections = nn.ModuleList(nn.Conv2d(w, dim, 1) for w in widths)
        self.apply(init_conv)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage, projection in zip(self.stages, self.projections, strict=True):
            x = stage(x)
            maps.append(projection(x))
        return maps


class ConvFFN(nn.Module):
    """Linear, 3x3 depthwise convolution on each map, GELU, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.project = nn.Linear(hidden, dim)
        self.apply(init_linear)
        self.apply(init_conv)

    def forward(self, x: Tensor, maps: Maps) -> Tensor:
        """(B, N, C) -> (B, N, C), N pixels of `maps` one map after the other."""
        parts = self.expand(x).split([h * w for h, w, _ in maps], dim=1)
        mixed = [to_tokens(self.depthwise(to_map(part, (h, w)))) for part, (h, w, _) in zip(parts, maps, strict=True)]
        return self.project(F.gelu(torch.cat(mixed, dim=1)))


class Injector(nn.Module):
    """gamma * MSDeformAttn(LN x reads LN c): what the pyramid adds to the patches."""

    def __init__(self, dim: int, spec: Mapping[str, Any]) -> None:
        super().__init__()
        self.query_norm, self.token_norm = (nn.LayerNorm(dim, eps=NORM_EPS) for _ in range(2))
        self.attention = _attention(dim, 3, spec)
        self.gamma = nn.Parameter(torch.full((dim,), float(spec["injector_scale"])))

    def no_weight_decay(self) -> set[str]:
        return {"gamma"}

    def forward(self, x: Tensor, c: Tensor, patches: Maps, pyramid: Maps) -> Tensor:
        """x (B, N, C), c (B, M, C) -> (B, N, C)."""
        return self.gamma * self.attention(self.query_norm(x), self.token_norm(c), patches, pyramid)


class Extractor(nn.Module):
    """c + MSDeformAttn(LN c reads LN x), then c + FFN(LN c): from the patches into the pyramid."""

    def __init__(self, dim: int, spec: Mapping[str, Any], drop_path: float) -> None:
        super().__init__()
        self.query_norm, self.token_norm, self.ffn_norm = (nn.LayerNorm(dim, eps=NORM_EPS) for _ in range(3))
        self.attention = _attention(dim, 1, spec)
        self.ffn = ConvFFN(dim, int(spec["cffn_ratio"] * dim))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, c: Tensor, x: Tensor, pyramid: Maps, patches: Maps) -> Tensor:
        """c (B, M, C), x (B, N, C) -> (B, M, C)."""
        c = c + self.attention(self.query_norm(c), self.token_norm(x), pyramid, patches)
        return c + self.drop_path(self.ffn(self.ffn_norm(c), pyramid))


def _attention(dim: int, levels: int, spec: Mapping[str, Any]) -> MSDeformAttn:
    sizes = dict(num_heads=spec["num_heads"], num_points=spec["num_points"], ratio=spec["deform_ratio"])
    return MSDeformAttn(dim, levels, **sizes, query_std=spec["query_std"])


def resolve_arch(arch: str | Mapping[str, Any]) -> dict[str, Any]:
    """The full dict of an architecture, from a name in `ARCHS` or a dict with its keys."""
    spec = complete_arch(arch, ARCHS, ARCH_DEFAULTS, required=())
    for key in ("conv_width", "interactions", "num_heads", "num_points"):
        if isinstance(spec[key], bool) or not isinstance(spec[key], int) or spec[key] < 1:
            raise ValueError(f"{key} must be a positive int, got {spec[key]!r}")
    if isinstance(spec["extra_extractors"], bool) or not isinstance(spec["extra_extractors"], int) or spec["extra_extractors"] < 0:
        raise ValueError(f"extra_extractors must be an int, 0 or more, got {spec['extra_extractors']!r}")
    return spec


@BACKBONES.register_module()
class ViTAdapter(Pyramid):
    """A plain backbone and a pyramid that exchange features; see the module's docstring. Returns four maps of width C at 4, 8, 16, 32.

    Args:
        arch: tiny, small, base or large, or a dict with the keys of `ARCHS`.
        backbone: a plain backbone or its config, in the place of the architecture's; its patches are 16 pixels apart. A config without
            in_channels, drop_path_rate or with_cp takes them from here. Its own `out_indices` do not matter; its final norm, if it has one,
            norms the patches after the last group (the official code has none: VRWKV with final_norm=False).
        in_channels: channels of the image.
        drop_path_rate: of the plain backbone's last layer, and of every extractor's FFN.
        out_indices: which of the four levels to return, ascending; None for all.
        frozen_stages: -1 nothing; n the stages 0..n of the plain backbone, final norm apart; the last one everything.
        norm_eval: keep batch norm in evaluation mode while training.
        with_cp: recompute the activations of layers, injectors and extractors in the backward pass.
        init_cfg: see `Pyramid`. Weights of the plain backbone go through its own, with allow_unexpected for a final norm of the file that
            it does not have.

    The steps of `layer_ids` are those of the plain backbone; the adapter's own parameters train at the full rate.

    Raises:
        ValueError, TypeError: an argument that does not fit; unknown names come with the near ones.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] = "tiny",
        backbone: Mapping[str, Any] | PlainBackbone | None = None,
        *,
        drop_path_rate: float = 0.0,
        **pyramid: Any,
    ) -> None:
        super().__init__(**pyramid)
        spec = resolve_arch(arch)
        shared = dict(in_channels=self.in_channels, drop_path_rate=drop_path_rate, with_cp=self.with_cp)
        self.backbone = _plain(spec["backbone"] if backbone is None else backbone, shared)
        depth, dim = len(self.backbone.layers), self.backbone.dim
        count = spec["interactions"]
        if count > depth:
            raise ValueError(f"interactions must be at most the {depth} layers of {type(self.backbone).__name__}, got {count}")
        self.groups = tuple(range(depth * i // count, depth * (i + 1) // count) for i in range(count))
        self.prior = SpatialPrior(self.in_channels, spec["conv_width"], dim)
        self.level_embed = nn.Parameter(torch.randn(3, dim))
        self.injectors = nn.ModuleList(Injector(dim, spec) for _ in range(count))
        self.extractors = nn.ModuleList(Extractor(dim, spec, drop_path_rate) for _ in range(count + spec["extra_extractors"]))
        self.up = nn.ConvTranspose2d(dim, dim, 2, stride=2)
        nn.init.normal_(self.up.weight, std=math.sqrt(2 / (4 * dim)))
        nn.init.zeros_(self.up.bias)
        self.norms = nn.ModuleList(nn.BatchNorm2d(dim) for _ in STRIDES)
        steps = _layer_parts(self.backbone)
        self._finish((dim,) * len(STRIDES), STRIDES, [*steps, [*self.children(), self.level_embed]], steps)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, in_channels, H, W) -> the maps chosen by `out_indices`; any H, W >= 1."""
        self._check_input(x)
        c1, *maps = self.prior(x)
        pyramid = [(m.shape[2], m.shape[3], s) for m, s in zip(maps, STRIDES[1:], strict=True)]
        c = torch.cat([to_tokens(m) + embed for m, embed in zip(maps, self.level_embed, strict=True)], dim=1)
        c, outs = self._interact(x, c, pyramid)
        parts = c.split([h * w for h, w, _ in pyramid], dim=1)
        c2, c3, c4 = (to_map(part, (h, w)) for part, (h, w, _) in zip(parts, pyramid, strict=True))
        c1 = c1 + self.up(c2)[:, :, : c1.shape[2], : c1.shape[3]]
        levels = [c1, c2, c3, c4]
        chosen = [len(outs) * (i + 1) // len(levels) for i in range(len(levels))]
        return self._select(
            [
                norm(level + _at_stride(outs[max(group, 1) - 1], stride, level))
                for norm, level, stride, group in zip(self.norms, levels, STRIDES, chosen, strict=True)
            ]
        )

    def _interact(self, x: Tensor, c: Tensor, pyramid: Maps) -> tuple[Tensor, list[Tensor]]:
        """The pyramid's tokens (B, M, C) after all extractors, and the patches' map (B, C, h, w) after each group."""
        plain = self.backbone
        tokens, grid = plain.embed(x)
        places = [(*grid, plain.patch_stride)]
        outs = []
        for group, injector, extractor in zip(self.groups, self.injectors, self.extractors, strict=False):
            before, patches, after = plain.split_tokens(tokens, grid)
            # The stream of a plain backbone may be wider than its parameters.
            patches = patches + self._run(injector, patches.to(c.dtype), c, places, pyramid)
            tokens = plain.join_tokens(before, patches, after)
            for i in group:
                tokens = plain.run_layer(i, tokens, grid)
            if len(outs) == len(self.groups) - 1:
                tokens = plain.final(tokens)
            patches = plain.split_tokens(tokens, grid)[1].to(c.dtype)
            c = self._run(extractor, c, patches, pyramid, places)
            outs.append(plain.to_map(tokens, grid))
        for extractor in self.extractors[len(self.groups) :]:
            c = self._run(extractor, c, patches, pyramid, places)
        return c, outs


def _layer_parts(backbone: Pyramid) -> list[list[nn.Module | nn.Parameter]]:
    """The modules and bare parameters of each step of `layer_ids`."""
    parts = {**dict(backbone.named_modules()), **dict(backbone.named_parameters())}
    return [[parts[name] for name in names] for names in backbone._layers]


def _plain(backbone: Any, shared: Mapping[str, Any]) -> PlainBackbone:
    if isinstance(backbone, Mapping):
        backbone = BACKBONES.build({**shared, **backbone})
    if not isinstance(backbone, PlainBackbone):
        raise TypeError(f"backbone must be a plain backbone (PlainBackbone) or its config, got {type(backbone).__name__}")
    if backbone.patch_stride != 16:
        raise ValueError(f"backbone: expected patches 16 pixels apart, got {backbone.patch_stride}")
    return backbone


def _at_stride(x: Tensor, stride: int, like: Tensor) -> Tensor:
    """The map x at stride 16 brought to `stride`: bilinear, or the mean of 2 x 2 pixels; cut to the size of `like`."""
    if stride > 16:
        # The row and the column too many are dropped where the sides are even. Average pooling that rounds up would not export with sizes
        # left open.
        x = F.pad(x, (0, 1, 0, 1), mode="replicate")
    scaled = x if stride == 16 else F.interpolate(x, scale_factor=16 / stride, mode="bilinear", align_corners=False)
    return scaled[:, :, : like.shape[2], : like.shape[3]]
