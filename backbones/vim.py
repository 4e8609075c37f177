"""Vim: a plain backbone of bidirectional Mamba layers.

"Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model" (arXiv 2401.09417), algorithm 1.

B batch, C token width, D = 2C inner width, N states per channel, R = ceil(C / 16) rank of the step size, M patches, T tokens (M, or M + 1
with the class token, which stands in the middle, at index M // 2).

    tokens   x = patch convolution (16 x 16) of the image; class token inserted; plus position embedding     (B, T, C)
    layer    x <- x + DropPath(Mixer(RMSNorm(x)))
    final    RMSNorm(x)

    Mixer    [v, z] = in_proj(x)
             for the raster order and its reverse, each with parameters of its own:
                 u = SiLU(causal depthwise convolution of width 4 over v)
                 [dt, B, C] = x_proj(u)
                 y = selective scan(u, step size softplus(dt_proj(dt)), A = -exp(A_log), B, C, D)
             out_proj((y_raster + y_reverse) / 2 * SiLU(z))

The published code hands a pair (hidden, residual) from layer to layer; with residual = x and hidden = the mixer's output that is the sum
above. x is at least float32, whatever the model's dtype.

Where this differs from the official code on purpose: any image size works (the official one takes the size it was built for), the position
embedding is a grid that is resized as one, and the class token's own slot in it stays apart; the bias of the step size starts at Mamba's
values in both directions (the official initialiser sets it to zero in the reverse one).

Published drop path rates: 0.1 for ImageNet-1k.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, lecun_normal_
from torch import Tensor, nn

from ..kernels.selective_scan import selective_scan
from .arguments import complete_arch, drop_path_rates, image_size
from .checkpoints import Family, register_family
from .layers import new_pos_embed, to_tokens
from .plain import PlainBackbone
from .registry import BACKBONES
from .scans import resize_pos_embed

NORM_EPS = 1e-5
CONV_WIDTH = 4
# dim: C; d_state: N; patch_stride: pixels between patches; class_token: whether there is one, in the middle; divide_out: whether the two
# directions are averaged (True) or summed.
ARCH_DEFAULTS: dict[str, Any] = dict(depth=24, d_state=16, patch_size=16, patch_stride=16, class_token=True, divide_out=True)
ARCHS: dict[str, dict[str, Any]] = {
    "test": dict(dim=32, depth=3, d_state=4),
    "test_no_class_token": dict(dim=48, depth=2, d_state=4, class_token=False, divide_out=False),
    "test_overlap": dict(dim=16, depth=2, d_state=4, patch_stride=8),
    "tiny": dict(dim=192),
    "small": dict(dim=384),
    "base": dict(dim=768),
}


class StreamNorm(nn.RMSNorm):
    """RMSNorm in the dtype of its input (at least float32 in this network), rounded to the dtype of its weight at the end."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps).to(self.weight.dtype)


class ScanDirection(nn.Module):
    """The parameters of one direction; `BiMamba` runs both at once.

    Initial values are Mamba's: A_log = log(1..N), D = 1, dt_proj uniform within R^-1/2, its bias such that the step sizes of the channels
    are log-uniform in [1e-3, 0.1].
    """

    def __init__(self, inner: int, rank: int, d_state: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inner, inner, CONV_WIDTH, groups=inner)
        self.x_proj = nn.Linear(inner, rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        step = torch.exp(torch.empty(inner).uniform_(math.log(1e-3), math.log(0.1)))
        with torch.no_grad():
            self.dt_proj.weight.uniform_(-(rank**-0.5), rank**-0.5)
            self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus

    def no_weight_decay(self) -> set[str]:
        return {"A_log", "D"}


class BiMamba(nn.Module):
    """The mixer of the module's docstring. Both directions run as one selective scan over 2D channels in two groups.

    The gate is applied after the directions are summed: SiLU(z) of a token is the same for both, and z need not be reversed.
    """

    def __init__(self, dim: int, d_state: int, depth: int, *, divide_out: bool) -> None:
        super().__init__()
        self.inner, self.rank, self.d_state, self.divide_out = 2 * dim, -(-dim // 16), d_state, divide_out
        self.in_proj = nn.Linear(dim, 2 * self.inner, bias=False)
        self.directions = nn.ModuleList(ScanDirection(self.inner, self.rank, d_state) for _ in range(2))
        self.out_proj = nn.Linear(self.inner, dim, bias=False)
        with torch.no_grad():
            self.out_proj.weight /= depth**0.5  # as GPT-2: the sum over the layers keeps its size

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        tokens, first, second = x.shape[1], *self.directions
        v, z = self.in_proj(x).transpose(1, 2).chunk(2, dim=1)  # (B, D, T)
        v = torch.cat((v, v.flip(2)), dim=1)
        conv = (torch.cat((getattr(first.conv, name), getattr(second.conv, name))) for name in ("weight", "bias"))
        u = F.silu(F.conv1d(v, *conv, padding=CONV_WIDTH - 1, groups=v.shape[1])[:, :, :tokens])
        weight = torch.stack((first.x_proj.weight, second.x_proj.weight))
        dt, B, C = torch.matmul(weight, u.unflatten(1, (2, self.inner))).split([self.rank, self.d_state, self.d_state], dim=2)
        delta = torch.matmul(torch.stack((first.dt_proj.weight, second.dt_proj.weight)), dt).flatten(1, 2)
        A_log = torch.cat((first.A_log, second.A_log))
        y = selective_scan(
            u,
            delta,
            -torch.exp(A_log.to(torch.promote_types(A_log.dtype, torch.float32))),
            B,
            C,
            torch.cat((first.D, second.D)),
            delta_bias=torch.cat((first.dt_proj.bias, second.dt_proj.bias)),
            delta_softplus=True,
        )
        raster, reverse = y.chunk(2, dim=1)
        y = (raster + reverse.flip(2)) * F.silu(z)
        return self.out_proj((y / 2 if self.divide_out else y).transpose(1, 2))


class VimLayer(nn.Module):
    """x + DropPath(Mixer(RMSNorm(x))) on the stream x (B, T, C), which keeps its dtype."""

    def __init__(self, dim: int, d_state: int, depth: int, drop_path: float, *, divide_out: bool) -> None:
        super().__init__()
        self.norm = StreamNorm(dim, eps=NORM_EPS)
        self.token = BiMamba(dim, d_state, depth, divide_out=divide_out)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return x + self.drop_path(self.token(self.norm(x)))


def resolve_arch(arch: str | Mapping[str, Any], **replaced: Any) -> dict[str, Any]:
    """The full dict of an architecture, from a name in `ARCHS` or a dict with its keys (`dim` is required); None replaces nothing."""
    full = complete_arch(arch, ARCHS, ARCH_DEFAULTS, **replaced)
    for key, value in full.items():
        kind, wanted = (bool, "a bool") if key in ("class_token", "divide_out") else (int, "a positive int")
        if isinstance(value, bool) != (kind is bool) or not isinstance(value, kind) or (kind is int and value < 1):
            raise ValueError(f"{key} must be {wanted}, got {value!r}")
    return full


def pad_to_patches(x: Tensor, patch_size: int, patch_stride: int) -> Tensor:
    """(B, C, H, W) zero-padded at the right and the bottom until it holds whole patches that cover the image."""
    rows, columns = (max(patch_size - n, (patch_size - n) % patch_stride) for n in x.shape[2:])
    return F.pad(x, (0, columns, 0, rows))


def extend_to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) -> (B, C, *size), size >= (h, w): the last row and column repeated."""
    for dim, wanted in zip((2, 3), size, strict=True):
        if extra := wanted - x.shape[dim]:
            x = torch.cat((x, x.narrow(dim, x.shape[dim] - 1, 1).repeat_interleave(extra, dim)), dim)
    return x


@BACKBONES.register_module()
class Vim(PlainBackbone):
    """Vim; see the module's docstring for the formulas, `PlainBackbone` for levels and stages.

    Patches that overlap (`patch_stride=8`, the published Vim-T+ and Vim-S+, fine-tuned so): the tokens are those of the published models,
    ceil((H - 16) / 8) + 1 along H, which is one fewer than ceil(H / 8); the maps repeat their last row and column to that size.

    Args:
        arch: tiny, small, base or test, or a dict with the keys of `ARCHS`.
        img_size: image size in pixels, (h, w) or an int for both, that sizes the position embedding; any other size works too.
        patch_stride: pixels between patches. None for the architecture's (16).
        class_token: whether a class token stands in the middle of the patches. None for the architecture's (True).
        divide_out: whether the two directions are averaged, not summed. None for the architecture's (True).
        in_channels: channels of the image.
        drop_path_rate: probability of dropping the branch of the last layer, rising linearly from 0 at the first.
        out_indices, frozen_stages, norm_eval, with_cp, init_cfg: see `Pyramid`.

    Raises:
        ValueError, TypeError: an argument that does not fit; unknown names come with the near ones.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] = "tiny",
        *,
        img_size: int | Sequence[int] = 224,
        patch_stride: int | None = None,
        class_token: bool | None = None,
        divide_out: bool | None = None,
        drop_path_rate: float = 0.0,
        **pyramid: Any,
    ) -> None:
        super().__init__(**pyramid)
        spec = resolve_arch(arch, patch_stride=patch_stride, class_token=class_token, divide_out=divide_out)
        dim, depth, self.patch_size, stride = (spec[key] for key in ("dim", "depth", "patch_size", "patch_stride"))
        self.patch_embed = nn.Conv2d(self.in_channels, dim, self.patch_size, stride=stride)
        lecun_normal_(self.patch_embed.weight)
        nn.init.zeros_(self.patch_embed.bias)
        self.pos_embed = new_pos_embed(token_grid(img_size, self.patch_size, stride), dim)
        before = [self.patch_embed, self.pos_embed]
        self.cls_token = self.cls_pos_embed = None
        if spec["class_token"]:
            self.cls_token, self.cls_pos_embed = (nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, dim), std=0.02)) for _ in range(2))
            before += [self.cls_token, self.cls_pos_embed]
        rates = [*drop_path_rates(drop_path_rate, depth)[:-1], drop_path_rate]  # the last layer has the full rate, also as the only one
        self.layers = nn.ModuleList(VimLayer(dim, spec["d_state"], depth, rate, divide_out=spec["divide_out"]) for rate in rates)
        self.final_norm = StreamNorm(dim, eps=NORM_EPS)
        self._finish_plain(dim, stride, before, [self.final_norm])

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed"} if self.cls_token is None else {"pos_embed", "cls_token", "cls_pos_embed"}

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Image (B, in_channels, H, W) -> the stream (B, T, C), in at least float32, and the grid of the patches."""
        patches = self.patch_embed(pad_to_patches(x, self.patch_size, self.patch_stride))
        grid = (patches.shape[2], patches.shape[3])
        stream = torch.promote_types(patches.dtype, torch.float32)
        tokens = to_tokens(patches.to(stream) + resize_pos_embed(self.pos_embed, grid))
        if self.cls_token is None:
            return tokens.contiguous(), grid
        token = (self.cls_token.to(stream) + self.cls_pos_embed).expand(x.shape[0], -1, -1)
        return self.join_tokens(token, tokens, tokens[:, :0]), grid

    def final(self, tokens: Tensor) -> Tensor:
        return self.final_norm(tokens)

    def split_tokens(self, tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens -> (the class token if there is one, the patches in row-major order, nothing)."""
        if self.cls_token is None:
            return super().split_tokens(tokens, grid)
        middle = grid[0] * grid[1] // 2
        patches = torch.cat((tokens[:, :middle], tokens[:, middle + 1 :]), dim=1)
        return tokens[:, middle : middle + 1], patches, tokens[:, :0]

    def join_tokens(self, before: Tensor, patches: Tensor, after: Tensor) -> Tensor:
        """The inverse of `split_tokens`: the class token back in the middle of the patches."""
        if self.cls_token is None:
            return super().join_tokens(before, patches, after)
        middle = patches.shape[1] // 2
        return torch.cat((patches[:, :middle], before, patches[:, middle:]), dim=1)

    def to_map(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (B, T, C) -> map of the patches (B, C, *grid), in the dtype of the parameters."""
        return super().to_map(tokens, grid).to(self.patch_embed.weight.dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, in_channels, H, W) -> a map (B, C, ceil(H/s), ceil(W/s)) per layer in `out_indices`; any H, W >= 1."""
        maps = super().forward(x)
        size = (-(-x.shape[2] // self.patch_stride), -(-x.shape[3] // self.patch_stride))
        return tuple(extend_to(level, size) for level in maps)


def token_grid(img_size: int | Sequence[int], patch_size: int, patch_stride: int) -> tuple[int, int]:
    """Patches (h, w) of an image of `img_size` pixels; ValueError if that is neither a positive int nor two of them."""
    rows, columns = (-(-max(n - patch_size, 0) // patch_stride) + 1 for n in image_size(img_size))
    return rows, columns


# Official constructor argument -> the values that have a counterpart here.
_OFFICIAL_VALUES: dict[str, tuple[Any, ...]] = {
    "norm_epsilon": (NORM_EPS,),
    "rms_norm": (True,),
    "if_abs_pos_embed": (True,),
    "bimamba_type": ("v2",),
    "if_bimamba": (False,),
    "if_bidirectional": (False,),
    "if_rope": (False,),
    "if_rope_residual": (False,),
    "use_double_cls_token": (False,),
    "flip_img_sequences_ratio": (-1.0,),
    "init_layer_scale": (None,),
    "ssm_cfg": (None, {}),
    "drop_rate": (0.0,),
    "residual_in_fp32": (True, False),  # here always at least float32
    "fused_add_norm": (True, False),  # one formula
    "final_pool_type": ("none", "mean", "max", "all"),  # of the classifier
}
# Arguments that say nothing about the backbone's function.
_OFFICIAL_UNUSED = {"num_classes", "initializer_cfg", "device", "dtype", "ft_seq_len", "pt_hw_seq_len"}


def vision_mamba_config(
    *,
    img_size: int | Sequence[int] = 224,
    patch_size: int = 16,
    stride: int = 16,
    depth: int = 24,
    embed_dim: int = 192,
    d_state: int = 16,
    channels: int = 3,
    drop_path_rate: float = 0.1,
    if_cls_token: bool = True,
    use_middle_cls_token: bool = True,
    if_divide_out: bool = True,
    **others: Any,
) -> dict[str, Any]:
    """The config of our backbone for the arguments of the official VisionMamba.

    `others` are checked: `_OFFICIAL_VALUES` lists what has a counterpart.

    Raises:
        ValueError: a value without counterpart: another kind of layer or class token, or an image whose border the official patch
            convolution leaves out.
        TypeError: an argument that the official class does not have.
    """
    for name, value in others.items():
        if name not in _OFFICIAL_VALUES and name not in _OFFICIAL_UNUSED:
            raise TypeError(f"vision_mamba_config() got an unexpected keyword argument {name!r}")
        if value not in _OFFICIAL_VALUES.get(name, (value,)):
            raise ValueError(f"{name}={value!r} of VisionMamba has no counterpart; known values: {_OFFICIAL_VALUES[name]}")
    if if_cls_token and not use_middle_cls_token:
        raise ValueError(
            "use_middle_cls_token=False of VisionMamba has no counterpart with if_cls_token=True: the class token stands in the middle"
        )
    sides = (img_size, img_size) if isinstance(img_size, int) else img_size
    if any(n < patch_size or (n - patch_size) % stride for n in sides):
        raise ValueError(
            f"img_size={img_size!r} of VisionMamba has no counterpart: patches of {patch_size} every {stride} pixels leave out its border"
        )
    arch = dict(dim=embed_dim, depth=depth, d_state=d_state, patch_size=patch_size, patch_stride=stride)
    arch |= dict(class_token=bool(if_cls_token), divide_out=bool(if_divide_out))
    return dict(type="linescan.Vim", arch=arch, img_size=tuple(sides), in_channels=channels, drop_path_rate=drop_path_rate)


def _separate_class_slot(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The official pos_embed (1, M + 1, C) as that of the patches and the slot of the class token, which is the one at M // 2."""
    embed = state_dict.get("pos_embed")
    if "cls_token" not in state_dict or embed is None or embed.ndim != 3:
        return state_dict
    middle = (embed.shape[1] - 1) // 2
    patches = torch.cat((embed[:, :middle], embed[:, middle + 1 :]), dim=1)
    return {**state_dict, "pos_embed": patches, "pos_embed (class token)": embed[:, middle : middle + 1]}


_MIXER = r"layers\.(\d+)\.mixer\."
register_family(
    "vim",
    Family(
        backbone="Vim",
        official={"VisionMamba": vision_mamba_config},
        prepare=_separate_class_slot,
        rules=(
            (r"pos_embed \(class token\)", "cls_pos_embed"),
            (r"pos_embed|cls_token", r"\g<0>"),
            (r"patch_embed\.proj\.(weight|bias)", r"patch_embed.\1"),
            (r"layers\.(\d+)\.norm\.weight", r"layers.\1.norm.weight"),
            (_MIXER + r"(in_proj|out_proj)\.weight", r"layers.\1.token.\2.weight"),
            *(
                rule
                for i, mark in enumerate(("", "_b"))
                for rule in (
                    (_MIXER + rf"conv1d{mark}\.(weight|bias)", rf"layers.\1.token.directions.{i}.conv.\2"),
                    (_MIXER + rf"(x_proj|dt_proj){mark}\.(weight|bias)", rf"layers.\1.token.directions.{i}.\2.\3"),
                    (_MIXER + rf"A{mark}_log", rf"layers.\1.token.directions.{i}.A_log"),
                    (_MIXER + rf"D{mark}", rf"layers.\1.token.directions.{i}.D"),
                )
            ),
            (r"norm_f\.weight", "final_norm.weight"),
        ),
        drop=(r"head\.(weight|bias)",),
    ),
)
