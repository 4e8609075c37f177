"""VRWKV6: Vision-RWKV with the mixes of RWKV-6, a matrix state per head and decays that depend on the data.

"Vision-RWKV: Efficient and Scalable Visual Perception with RWKV-Like Architectures", arXiv 2403.02308; RWKV-6 is arXiv 2404.05892. The
skeleton is that of `vrwkv.py`: patches of 16 pixels, tokens (B, T, C) on the grid h = ceil(H/16), w = ceil(W/16), layers with norms before
or after their mixes, a final norm. What differs:

    spatial mix   `rwkv_mixers.RWKV6SpatialMix`: five data-dependent interpolations, WKV6 in both directions, heads of 64 channels
    Q-shift       cuts its quarters inside each head, in the channel mix too
    class token   optional; stands after the patches, behind the position embedding: T = h * w + 1. WKV6 mixes it, no shift moves it

| arch  | C   | heads | depth | norm   | s1, s2 start at | drop path, ImageNet |
|-------|-----|-------|-------|--------|-----------------|---------------------|
| tiny  | 192 | 3     | 12    | before | absent          | 0                   |
| small | 384 | 6     | 12    | after  | 1e-5            | 0.3                 |
| base  | 768 | 12    | 12    | after  | 1e-5            | 0.5                 |

Where this differs from the official code on purpose: any number of tokens trains (its backward pass overruns its buffers above 256), any
width of a head, half precision and autocast work, depth 1 works.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoints import Family, register_family
from .layers import LayerContext
from .registry import BACKBONES
from .rwkv_mixers import HEAD_DIM, RWKV6SpatialMix, RWKVChannelMix
from .vrwkv import ARCH_DEFAULTS as VRWKV_DEFAULTS
from .vrwkv import SHARED_RULES, VisionRWKV, only, resolve_arch, shared_config

# As in vrwkv.py, and num_heads: heads of WKV6, None for one per 64 channels; class_token: a learnt token after the patches.
ARCH_DEFAULTS: dict[str, Any] = dict(VRWKV_DEFAULTS, num_heads=None, class_token=False)
ARCHS: dict[str, dict[str, Any]] = {
    "test": dict(dim=64, depth=2, num_heads=2, img_size=64),
    "test_class_token": dict(dim=64, depth=2, num_heads=2, img_size=(48, 64), class_token=True),
    "test_post_norm": dict(dim=64, depth=2, num_heads=2, img_size=64, post_norm=True, key_norm=True, layer_scale=0.1),
    "tiny": dict(dim=192),
    "small": dict(dim=384, post_norm=True, layer_scale=1e-5),
    "base": dict(dim=768, post_norm=True, layer_scale=1e-5),
}


@BACKBONES.register_module()
class VRWKV6(VisionRWKV):
    """Vision-RWKV-6; see the module's docstring. Levels are the layers' outputs, all of width C at stride `patch_size`.

    `forward` returns the maps of the patches only; `forward_with_token` gives the class token's output beside them.

    Args:
        arch: tiny, small or base, or a dict with the keys of `ARCHS`.
        num_heads: heads of WKV6, and of the Q-shift; None for the architecture's, which is C / 64 where it names none.
        class_token: add the class token; None for the architecture's (no published one has it).
        post_norm, key_norm, layer_scale, img_size, patch_size, final_norm, in_channels, drop_path_rate, out_indices, norm_eval, with_cp,
            init_cfg: as in `VRWKV`.
        frozen_stages: as in `VRWKV`; the class token belongs to stage 0.

    Raises:
        ValueError, TypeError: an argument that does not fit; unknown names come with the near ones.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] = "tiny",
        *,
        num_heads: int | None = None,
        class_token: bool | None = None,
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
        spec = resolve_arch(arch, ARCHS, ARCH_DEFAULTS, num_heads=num_heads, class_token=class_token, **replaced)
        heads = _heads(spec["dim"], spec["num_heads"])
        options = dict(extra_tokens=int(spec["class_token"]), key_norm=spec["key_norm"])

        def mixers(context: LayerContext) -> tuple[nn.Module, nn.Module]:
            spatial = RWKV6SpatialMix(context, head_dim=context.dim // heads, low_rank_init=1e-4, **options)
            return spatial, RWKVChannelMix(context, heads=heads, **options)

        super().__init__(
            spec,
            mixers,
            num_heads=heads,
            patch_size=patch_size,
            final_norm=final_norm,
            drop_path_rate=drop_path_rate,
            **pyramid,
        )
        self.cls_token = None
        if spec["class_token"]:
            # At zero it would stay zero: its key and value are zero there, and each is the factor of the other's gradient.
            self.cls_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, spec["dim"]), std=0.02))
        before = [self.patch_embed, self.pos_embed, *([] if self.cls_token is None else [self.cls_token])]
        self._finish_plain(spec["dim"], patch_size, before, [self.final_norm])

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed"} if self.cls_token is None else {"pos_embed", "cls_token"}

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Image (B, in_channels, H, W) -> tokens (B, T, C), the class token last if there is one, and the grid of the patches (h, w)."""
        tokens, grid = super().embed(x)
        if self.cls_token is not None:
            tokens = torch.cat((tokens, self.cls_token.to(tokens.dtype).expand(tokens.shape[0], -1, -1)), dim=1)
        return tokens, grid

    def forward_with_token(self, x: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """As `forward`, but per level the pair (map (B, C, h, w), class token (B, C)).

        Raises:
            ValueError: the network has no class token.
        """
        if self.cls_token is None:
            raise ValueError("forward_with_token needs a network with class_token=True")
        levels, grid = self.level_tokens(x)
        return tuple((self.to_map(tokens, grid), tokens[:, -1]) for tokens in levels)


def _heads(dim: int, num_heads: int | None) -> int:
    if num_heads is None:
        if dim % HEAD_DIM:
            raise ValueError(f"num_heads is needed where {HEAD_DIM} does not divide the width {dim}")
        return dim // HEAD_DIM
    if isinstance(num_heads, bool) or not isinstance(num_heads, int) or num_heads < 1 or dim % num_heads:
        raise ValueError(f"num_heads must be a positive int that divides the width {dim}, got {num_heads!r}")
    return num_heads


def vrwkv6_config(
    *,
    img_size: int | Sequence[int] = 224,
    patch_size: int = 16,
    in_channels: int = 3,
    out_indices: int | Sequence[int] = -1,
    drop_rate: float = 0.0,
    embed_dims: int = 192,
    num_heads: int = 3,
    depth: int = 12,
    drop_path_rate: float = 0.0,
    shift_pixel: int = 1,
    shift_mode: str = "q_shift_multihead",
    init_mode: str = "fancy",
    post_norm: bool = False,
    key_norm: bool = False,
    init_values: float | None = None,
    hidden_rate: float = 4,
    final_norm: bool = True,
    interpolate_mode: str = "bicubic",
    output_cls_token: bool = False,
    with_cls_token: bool = False,
    with_cp: bool = False,
    init_cfg: None = None,
) -> dict[str, Any]:
    """Config of `VRWKV6` for the arguments of the official class of the same name, whose defaults these are.

    `output_cls_token` changes nothing in the config: the token is what `forward_with_token` adds. Negative `out_indices` count from the
    last layer.

    Raises:
        ValueError: drop_rate, shift_pixel, shift_mode, init_mode, interpolate_mode or init_cfg is not the default; output_cls_token without
            with_cls_token.
    """
    only(drop_rate=(drop_rate, 0), shift_pixel=(shift_pixel, 1), shift_mode=(shift_mode, "q_shift_multihead"))
    only(init_mode=(init_mode, "fancy"), interpolate_mode=(interpolate_mode, "bicubic"), init_cfg=(init_cfg, None))
    if output_cls_token and not with_cls_token:
        raise ValueError("output_cls_token needs with_cls_token=True")
    config = shared_config(
        depth=depth,
        embed_dims=embed_dims,
        hidden_rate=hidden_rate,
        init_values=init_values,
        out_indices=out_indices,
        num_heads=num_heads,
        class_token=with_cls_token,
        post_norm=post_norm,
        key_norm=key_norm,
        img_size=img_size,
        patch_size=patch_size,
        final_norm=final_norm,
        in_channels=in_channels,
        drop_path_rate=drop_path_rate,
        with_cp=with_cp,
    )
    return dict(type="linescan.VRWKV6", **config)


_ATT = r"layers\.(\d+)\.att\."
_TOKEN = r"layers.\1.token."
register_family(
    "vrwkv6",
    Family(
        backbone="VRWKV6",
        official={"VRWKV6": vrwkv6_config},
        rules=(
            *SHARED_RULES,
            (r"cls_token", "cls_token"),
            (_ATT + r"time_maa_([xwkvrg])", _TOKEN + r"shift_\2"),
            (_ATT + r"time_maa_w1", _TOKEN + "shift_down"),
            (_ATT + r"time_maa_w2", _TOKEN + "shift_up"),
            (_ATT + r"time_decay", _TOKEN + "decay"),
            (_ATT + r"time_decay_w1", _TOKEN + "decay_down"),
            (_ATT + r"time_decay_w2", _TOKEN + "decay_up"),
            (_ATT + r"time_faaaa", _TOKEN + "first"),
            (_ATT + r"gate\.weight", _TOKEN + "gate.weight"),
            (_ATT + r"ln_x\.(weight|bias)", _TOKEN + r"head_norm.\2"),
        ),
        drop=(r"head\..*",),
    ),
)
