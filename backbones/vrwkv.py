"""VRWKV: Vision-RWKV, a plain backbone whose layers mix tokens by Bi-WKV.

"Vision-RWKV: Efficient and Scalable Visual Perception with RWKV-Like Architectures", arXiv 2403.02308. An image of H x W is
zero-padded at the right and the bottom to multiples of 16; the grid of its patches is h = ceil(H/16), w = ceil(W/16).

    patch embedding       16x16 conv, stride 16, + position embedding     (B, h*w, C)
    layer 0 only          x <- LN(x)
    layer, norm before    x <- x + s1 * SpatialMix(LN(x));  x <- x + s2 * ChannelMix(LN(x))
    layer, norm after     x <- x + s1 * LN(SpatialMix(x));  x <- x + s2 * LN(ChannelMix(x))
    after the last layer  LN                                              (B, C, h, w) per layer

s1 and s2 are learnt factors per channel, or absent. `rwkv_mixers.py` has the formulas of the two mixes.

| arch  | C    | depth | norm   | s1, s2 start at | key norm | pixels | drop path: ImageNet | ADE20K | layer decay, ADE20K |
|-------|------|-------|--------|-----------------|----------|--------|---------------------|--------|---------------------|
| tiny  | 192  | 12    | before | absent          | no       | 224    | 0                   | 0.1    | 0.95                |
| small | 384  | 12    | after  | 1               | no       | 224    | 0.3                 | 0.2    | 0.85                |
| base  | 768  | 12    | after  | 1e-5            | no       | 224    | 0.5                 | 0.3    | 0.8                 |
| large | 1024 | 24    | after  | 1e-5            | yes      | 192    | 0.1 (fine-tuning)   | 0.4    | 0.9                 |

The published recipe starts the linears truncated normal with std 0.02: init_cfg=dict(type="TruncNormal", layer="Linear", std=0.02). Without
it they start at PyTorch's default. Mixes and decays start at the published values, the position embedding at zero.

Where this differs from the official code on purpose: Bi-WKV is the paper's formula in forward and backward (the official CUDA kernels weigh
some tokens otherwise: about 1e-3 in the output of one operator call at 14x14 tokens); depth 1 works.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from .arguments import complete_arch, drop_path_rates, image_size
from .checkpoints import Family, register_family
from .layers import LayerContext, to_tokens
from .plain import PlainBackbone, pad_to_multiple
from .registry import BACKBONES
from .rwkv_mixers import RWKVChannelMix, RWKVSpatialMix
from .scans import resize_pos_embed

# dim: token width C; depth: layers; mlp_ratio: hidden width of the channel mix over C; post_norm: norm after each mix, not before;
# key_norm: norms inside the mixes; layer_scale: where s1 and s2 start, False for none; img_size: pixels that the position embedding is for.
ARCH_DEFAULTS: dict[str, Any] = dict(depth=12, mlp_ratio=4, post_norm=False, key_norm=False, layer_scale=False, img_size=224)
ARCHS: dict[str, dict[str, Any]] = {
    "test": dict(dim=32, depth=2, img_size=64),
    "test_post_norm": dict(dim=32, depth=2, img_size=(48, 64), post_norm=True, key_norm=True, layer_scale=0.1),
    "tiny": dict(dim=192),
    "small": dict(dim=384, post_norm=True, layer_scale=1.0),
    "base": dict(dim=768, post_norm=True, layer_scale=1e-5),
    "large": dict(dim=1024, depth=24, post_norm=True, key_norm=True, layer_scale=1e-5, img_size=192),
}


class RWKVLayer(nn.Module):
    """A token mixer and a channel mixer, each residual, with a norm before or after it and its optional layer scale and drop path.

    The first layer of a network norms its input; the normed tokens replace the stream.
    """

    def __init__(
        self,
        token: nn.Module,
        channel: nn.Module,
        context: LayerContext,
        *,
        post_norm: bool,
        layer_scale: float | bool,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.post_norm = post_norm
        self.norm0 = nn.LayerNorm(context.dim) if context.index == 0 else None
        self.norm1 = nn.LayerNorm(context.dim)
        self.token = token
        self.norm2 = nn.LayerNorm(context.dim)
        self.channel = channel
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.scale1 = self.scale2 = None
        if layer_scale is not False:
            self.scale1 = nn.Parameter(torch.full((context.dim,), float(layer_scale)))
            self.scale2 = nn.Parameter(torch.full((context.dim,), float(layer_scale)))

    def no_weight_decay(self) -> set[str]:
        return {name for name in ("scale1", "scale2") if getattr(self, name) is not None}

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        if self.norm0 is not None:
            x = self.norm0(x)
        x = x + self._branch(x, grid, self.token, self.norm1, self.scale1)
        return x + self._branch(x, grid, self.channel, self.norm2, self.scale2)

    def _branch(self, x: Tensor, grid: tuple[int, int], mixer: nn.Module, norm: nn.Module, scale: Tensor | None) -> Tensor:
        y = norm(mixer(x, grid)) if self.post_norm else mixer(norm(x), grid)
        return self.drop_path(y if scale is None else y * scale)


def resolve_arch(
    arch: str | Mapping[str, Any], archs: Mapping[str, Mapping[str, Any]], defaults: Mapping[str, Any], **replaced: Any
) -> dict[str, Any]:
    """The full dict of an architecture.

    Args:
        arch: a name in `archs`, or a dict with the same keys; `dim` is required.
        archs, defaults: of the family.
        replaced: keys whose value the caller replaces; None keeps the architecture's.

    Raises:
        ValueError, TypeError: an unknown name or key, or a value that does not fit.
    """
    spec = complete_arch(arch, archs, defaults, **replaced)
    for key in ("dim", "depth"):
        if isinstance(spec[key], bool) or not isinstance(spec[key], int) or spec[key] < 1:
            raise ValueError(f"{key} must be a positive int, got {spec[key]!r}")
    ratio, scale = spec["mlp_ratio"], spec["layer_scale"]
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or int(ratio * spec["dim"]) < 1:
        raise ValueError(f"mlp_ratio must be a positive number, got {ratio!r}")
    if scale is not False and (isinstance(scale, bool) or not isinstance(scale, int | float)):
        raise TypeError(f"layer_scale must be a number, or False for none, got {scale!r}")
    for key, default in defaults.items():
        if default is False and key != "layer_scale" and not isinstance(spec[key], bool):
            raise TypeError(f"{key} must be True or False, got {spec[key]!r}")
    return spec


def patch_grid(img_size: int | Sequence[int], patch_size: int) -> tuple[int, int]:
    """Grid (h, w) of the patches of an image of `img_size` pixels, an int or (height, width), rounded up."""
    if isinstance(patch_size, bool) or not isinstance(patch_size, int) or patch_size < 1:
        raise ValueError(f"patch_size must be a positive int, got {patch_size!r}")
    size = image_size(img_size)
    return -(-size[0] // patch_size), -(-size[1] // patch_size)


class VisionRWKV(PlainBackbone):
    """What VRWKV and VRWKV6 share: patch embedding, the layers around the mixes, the final norm.

    Args:
        spec: a full architecture, see `resolve_arch`.
        mixers: LayerContext -> (token mixer, channel mixer).
        num_heads: for the contexts.
        patch_size: pixels between patches.
        final_norm: norm the last layer's output.
        drop_path_rate: see `VRWKV`.
        pyramid: arguments of `Pyramid`.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        mixers: Callable[[LayerContext], tuple[nn.Module, nn.Module]],
        *,
        num_heads: int = 1,
        patch_size: int,
        final_norm: bool,
        drop_path_rate: float,
        **pyramid: Any,
    ) -> None:
        super().__init__(**pyramid)
        dim, depth = spec["dim"], spec["depth"]
        grid = patch_grid(spec["img_size"], patch_size)
        self.patch_embed = nn.Conv2d(self.in_channels, dim, patch_size, stride=patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, dim, *grid))
        self.layers = nn.ModuleList()
        rates = drop_path_rates(drop_path_rate, depth)
        for i in range(depth):
            context = LayerContext(dim, i, depth, num_heads, spec["mlp_ratio"])
            layer = RWKVLayer(
                *mixers(context),
                context,
                post_norm=spec["post_norm"],
                layer_scale=spec["layer_scale"],
                drop_path=rates[i],
            )
            self.layers.append(layer)
        self.final_norm = nn.LayerNorm(dim) if final_norm else nn.Identity()

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed"}

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Image (B, in_channels, H, W) -> tokens (B, h * w, C) and their grid (h, w)."""
        x = self.patch_embed(pad_to_multiple(x, self.patch_stride))
        grid = (x.shape[2], x.shape[3])
        x = x + resize_pos_embed(self.pos_embed, grid).to(x.dtype)
        return to_tokens(x).contiguous(), grid

    def final(self, tokens: Tensor) -> Tensor:
        return self.final_norm(tokens)


@BACKBONES.register_module()
class VRWKV(VisionRWKV):
    """Vision-RWKV; see the module's docstring. Levels are the layers' outputs, all of width C at stride `patch_size`.

    Args:
        arch: tiny, small, base or large, or a dict with the keys of `ARCHS`.
        post_norm, key_norm: replace the architecture's; None keeps it.
        layer_scale: initial value of s1 and s2, False for none; None keeps the architecture's.
        img_size: pixels, an int or (height, width), that size the position embedding; it is resized to any other image. None keeps the
            architecture's.
        patch_size: width of a patch in pixels, and the stride of all levels.
        final_norm: norm the last layer's output.
        in_channels: channels of the image.
        drop_path_rate: probability of dropping a branch of the last layer, rising linearly from 0 at the first.
        out_indices: layers whose outputs are returned, ascending; None for all. Only the last layer's passes the final norm.
        frozen_stages: -1 nothing; 0 the patch and position embedding; n also the first n layers; the last one also the final norm.
        norm_eval: keep batch norm in evaluation mode (this network has none).
        with_cp: recompute each layer's activations in the backward pass.
        init_cfg: see `Pyramid`.

    Raises:
        ValueError, TypeError: an argument that does not fit; unknown names come with the near ones.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] = "tiny",
        *,
        post_norm: bool | None = None,
        key_norm: bool | None = None,
        layer_scale: float | bool | None = None,
        img_size: int | Sequence[int] | None = None,
        patch_size: int = 16,
        final_norm: bool = True,
        drop_path_rate: float = 0.0,
        **pyramid: Any,
    ) -> None:
        replaced = dict(post_norm=post_norm, key_norm=key_norm, layer_scale=layer_scale, img_size=img_size)
        spec = resolve_arch(arch, ARCHS, ARCH_DEFAULTS, **replaced)
        norms = dict(key_norm=spec["key_norm"])
        super().__init__(
            spec,
            lambda context: (RWKVSpatialMix(context, **norms), RWKVChannelMix(context, **norms)),
            patch_size=patch_size,
            final_norm=final_norm,
            drop_path_rate=drop_path_rate,
            **pyramid,
        )
        self._finish_plain(spec["dim"], patch_size, [self.patch_embed, self.pos_embed], [self.final_norm])


def only(**arguments: tuple[Any, Any]) -> None:
    """`name=(value, the one value with a counterpart here)`; ValueError for another value."""
    for name, (value, expected) in arguments.items():
        if value != expected:
            raise ValueError(f"{name}={value!r} of the official class has no counterpart here; only {expected!r} has")


def shared_config(
    *,
    depth: int,
    embed_dims: int,
    hidden_rate: float,
    init_values: float | None,
    out_indices: int | Sequence[int],
    **same: Any,
) -> dict[str, Any]:
    """Our arguments for the official ones that VRWKV and VRWKV6 share; `same` pass under their own names."""
    indices = (out_indices,) if isinstance(out_indices, int) else out_indices
    return dict(
        arch=dict(dim=embed_dims, depth=depth, mlp_ratio=hidden_rate),
        layer_scale=False if init_values is None else init_values,
        out_indices=tuple(sorted({i + depth if i < 0 else i for i in indices})),
        **same,
    )


def vrwkv_config(
    *,
    img_size: int | Sequence[int] = 224,
    patch_size: int = 16,
    in_channels: int = 3,
    out_indices: int | Sequence[int] = -1,
    drop_rate: float = 0.0,
    embed_dims: int = 256,
    depth: int = 12,
    drop_path_rate: float = 0.0,
    channel_gamma: float = 0.25,
    shift_pixel: int = 1,
    shift_mode: str = "q_shift",
    init_mode: str = "fancy",
    post_norm: bool = False,
    key_norm: bool = False,
    init_values: float | None = None,
    hidden_rate: float = 4,
    final_norm: bool = True,
    interpolate_mode: str = "bicubic",
    with_cp: bool = False,
    init_cfg: None = None,
) -> dict[str, Any]:
    """Config of `VRWKV` for the arguments of the official class of the same name, whose defaults these are.

    Negative `out_indices` count from the last layer.

    Raises:
        ValueError: drop_rate, channel_gamma, shift_pixel, shift_mode, init_mode, interpolate_mode or init_cfg is not the default.
    """
    only(drop_rate=(drop_rate, 0), channel_gamma=(channel_gamma, 0.25), shift_pixel=(shift_pixel, 1), shift_mode=(shift_mode, "q_shift"))
    only(init_mode=(init_mode, "fancy"), interpolate_mode=(interpolate_mode, "bicubic"), init_cfg=(init_cfg, None))
    config = shared_config(
        depth=depth,
        embed_dims=embed_dims,
        hidden_rate=hidden_rate,
        init_values=init_values,
        out_indices=out_indices,
        post_norm=post_norm,
        key_norm=key_norm,
        img_size=img_size,
        patch_size=patch_size,
        final_norm=final_norm,
        in_channels=in_channels,
        drop_path_rate=drop_path_rate,
        with_cp=with_cp,
    )
    return dict(type="linescan.VRWKV", **config)


_LAYER, _TAIL = r"layers\.(\d+)\.", r"\.(weight|bias)"
# Official names that VRWKV and VRWKV6 share.
SHARED_RULES: tuple[tuple[str, str], ...] = (
    (r"pos_embed", "pos_embed"),
    (r"patch_embed\.projection" + _TAIL, r"patch_embed.\1"),
    (_LAYER + r"ln([012])" + _TAIL, r"layers.\1.norm\2.\3"),
    (_LAYER + r"gamma([12])", r"layers.\1.scale\2"),
    (_LAYER + r"att\.(key|value|receptance|output|key_norm)" + _TAIL, r"layers.\1.token.\2.\3"),
    (_LAYER + r"ffn\.spatial_mix_([kr])", r"layers.\1.channel.mix_\2"),
    (_LAYER + r"ffn\.(key|value|receptance|key_norm)" + _TAIL, r"layers.\1.channel.\2.\3"),
    (r"ln1" + _TAIL, r"final_norm.\1"),
)
register_family(
    "vrwkv",
    Family(
        backbone="VRWKV",
        official={"VRWKV": vrwkv_config},
        rules=(*SHARED_RULES, (_LAYER + r"att\.spatial_(decay|first|mix_[kvr])", r"layers.\1.token.\2")),
        drop=(r"head\..*",),
    ),
)
