"""VMamba: a hierarchical backbone whose token mixer scans the map along four paths.

"VMamba: Visual State Space Model" (arXiv 2401.10166). The mixers are in `ssm_mixers.py`.

Shapes, for an image of H x W and widths C_1 .. C_4, every halving rounded up:

    patch embedding     "conv": 3x3 conv stride 2 (C_1 / 2), LN, GELU, 3x3 conv stride 2, LN; "patch": 4x4 conv stride 4, LN
    stage 1             blocks                                           (B, C_1, H/4, W/4)    level 0
    stage n = 2, 3, 4   downsampling, blocks                             (B, C_n, H/2^(n+1), W/2^(n+1))    level n - 1
    downsampling        "conv": 3x3 conv stride 2, LN; "merge": the four pixels of each 2x2 square side by side, LN, linear to C_n
    level               LN of the stage's output, for the levels that are returned

A block is x <- x + DropPath(mixer(LN(x))), then x <- x + DropPath(MLP(LN(x))) if there is an MLP (GELU). Every norm has eps 1e-5.

| arch                       | official name           | mixer                | published drop path |
|----------------------------|-------------------------|----------------------|---------------------|
| tiny                       | T[s1l8], v05_noz        | SS2D, N = 1, ratio 1 | 0.2                 |
| tiny_s2l5, small, base     | T[s2l5], S, B [s2l15]   | SS2D, N = 1, ratio 2 | 0.2, 0.3, 0.6       |
| small_s1l20, base_s1l20    | S, B [s1l20]            | SS2D, N = 1, ratio 1 |                     |
| tiny_v0, small_v0, base_v0 | vanilla VMamba, v0      | SS2D, N = 16, gate   | 0.2, 0.3, 0.5       |
| tiny_m0, small_m0, base_m0 | Mamba-2 variant, m0_noz | SSD, N = 64, ratio 1 |                     |

Where this differs from the official code on purpose: one memory layout (channels last) for its two, which are one function; the 4x4 patch
embedding pads the image at the right and the bottom to multiples of 4, where the official one drops what is left over; merging pads odd
maps there too, where the official channel-first path pads the wrong sides; the checkpoint loader is strict.

torch.export with a dynamic image size takes any size above 32; with the padding of v0, multiples of 32.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from .arguments import complete_arch, drop_path_rates
from .checkpoints import Family, register_family
from .hierarchical import HierarchicalBackbone
from .layers import LayerContext, LayerNorm2d, init_linear
from .names import choose
from .plain import pad_to_multiple
from .registry import BACKBONES
from .ssm_mixers import SS2D, SSD2D

# dims: widths; depths: blocks of the stages; mixer: dict(type=name, **options of its class); mlp_ratio: the MLP's hidden width over C.
ARCH_DEFAULTS: dict[str, Any] = dict(mlp_ratio=4.0, patch_embed="conv", downsample="conv")
_T, _B = (96, 192, 384, 768), (128, 256, 512, 1024)
_RATIO_1, _RATIO_2 = dict(type="ss2d", d_state=1, ssm_ratio=1.0), dict(type="ss2d", d_state=1, ssm_ratio=2.0)
_V0 = dict(
    mixer=dict(type="ss2d", d_state=16, ssm_ratio=2.0, gate=True, conv_bias=True), mlp_ratio=0, patch_embed="patch", downsample="merge"
)
_M0 = dict(mixer=dict(type="ssd", d_state=64, ssm_ratio=1.0))
ARCHS: dict[str, dict[str, Any]] = {
    "test": dict(dims=(8, 16, 24, 32), depths=(1, 1, 2, 1), mixer=_RATIO_1),
    "test_v0": dict(dims=(8, 16, 32, 64), depths=(1, 1, 2, 1), **_V0),
    "test_m0": dict(dims=(16, 16, 32, 32), depths=(1, 1, 2, 1), mixer=dict(type="ssd", d_state=4)),
    # Nobody's published size: tiny at half its width and half its third stage, beside networks of 5 or 6 M parameters.
    "micro": dict(dims=(48, 96, 192, 384), depths=(2, 2, 4, 2), mixer=_RATIO_1),
    "tiny": dict(dims=_T, depths=(2, 2, 8, 2), mixer=_RATIO_1),
    "tiny_s2l5": dict(dims=_T, depths=(2, 2, 5, 2), mixer=_RATIO_2),
    "small": dict(dims=_T, depths=(2, 2, 15, 2), mixer=_RATIO_2),
    "base": dict(dims=_B, depths=(2, 2, 15, 2), mixer=_RATIO_2),
    "small_s1l20": dict(dims=_T, depths=(2, 2, 20, 2), mixer=_RATIO_1),
    "base_s1l20": dict(dims=_B, depths=(2, 2, 20, 2), mixer=_RATIO_1),
    "tiny_v0": dict(dims=_T, depths=(2, 2, 9, 2), **_V0),
    "small_v0": dict(dims=_T, depths=(2, 2, 27, 2), **_V0),
    "base_v0": dict(dims=_B, depths=(2, 2, 27, 2), **_V0),
    "tiny_m0": dict(dims=_T, depths=(2, 2, 4, 2), **_M0),
    "small_m0": dict(dims=_T, depths=(2, 2, 12, 2), **_M0),
    "base_m0": dict(dims=_B, depths=(2, 2, 12, 2), **_M0),
}
MIXERS = {"ss2d": SS2D, "ssd": SSD2D}


class ConvPatchEmbed(nn.Module):
    """(B, in, H, W) -> (B, C, ceil(H/4), ceil(W/4)): two 3x3 convolutions of stride 2, each normed, GELU between."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, dim // 2, 3, stride=2, padding=1)
        self.norm1 = LayerNorm2d(dim // 2)
        self.conv2 = nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1)
        self.norm2 = LayerNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.conv2(F.gelu(self.norm1(self.conv1(x)))))


class PatchEmbed(nn.Module):
    """(B, in, H, W) -> (B, C, ceil(H/4), ceil(W/4)): a linear map of each 4x4 patch, normed."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, dim, 4, stride=4)
        self.norm1 = LayerNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm1(self.conv1(pad_to_multiple(x, 4)))


class ConvDownsample(nn.Module):
    """(B, in, H, W) -> (B, out, ceil(H/2), ceil(W/2)): a 3x3 convolution of stride 2, normed."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.norm = LayerNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class PatchMerging(nn.Module):
    """(B, in, H, W) -> (B, out, ceil(H/2), ceil(W/2)): 2x2 squares side by side (4 in), normed, a linear without bias.

    The order in a square is (row, column) = (0, 0), (1, 0), (0, 1), (1, 1); odd maps are padded with zeros at the right and the bottom.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * in_channels)
        self.reduction = nn.Linear(4 * in_channels, out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = pad_to_multiple(x, 2).permute(0, 2, 3, 1)
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, dim=-1))).permute(0, 3, 1, 2)


PATCH_EMBEDS = {"conv": ConvPatchEmbed, "patch": PatchEmbed}
DOWNSAMPLES = {"conv": ConvDownsample, "merge": PatchMerging}


class Block(nn.Module):
    """Token mixer, then an MLP unless its ratio is 0; each pre-normed and residual with drop path."""

    def __init__(self, mixer: Mapping[str, Any], context: LayerContext, drop_path: float) -> None:
        super().__init__()
        options = dict(mixer)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm1 = nn.LayerNorm(context.dim)
        self.token = choose(options.pop("type"), MIXERS, "mixer")(context, **options)
        self.norm2 = nn.LayerNorm(context.dim) if context.hidden else None
        self.channel = Mlp(context.dim, context.hidden) if context.hidden else None

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, L, C) -> (B, L, C), L = grid[0] * grid[1]."""
        x = x + self.drop_path(self.token(self.norm1(x), grid))
        return x if self.channel is None else x + self.drop_path(self.channel(self.norm2(x)))


def resolve_arch(arch: str | Mapping[str, Any], **replaced: Any) -> dict[str, Any]:
    """The full dict of an architecture, from a name in `ARCHS` or a dict with its keys; `replaced` wins where it is not None."""
    full = complete_arch(arch, ARCHS, ARCH_DEFAULTS, ("dims", "depths", "mixer"), **replaced)
    if isinstance(full["mixer"], str):
        full["mixer"] = dict(type=full["mixer"])
    if not isinstance(full["mixer"], Mapping) or "type" not in full["mixer"]:
        raise ValueError(f"mixer must be a name or dict(type=name, ...), got {full['mixer']!r}")
    for key in ("dims", "depths"):
        value = full[key]
        if (
            isinstance(value, str)
            or not isinstance(value, Sequence)
            or len(value) != 4
            or not all(isinstance(n, int) and n > 0 for n in value)
        ):
            raise ValueError(f"{key} must be four positive ints, got {value!r}")
    ratio = full["mlp_ratio"]
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or ratio < 0 or 0 < ratio * min(full["dims"]) < 1:
        raise ValueError(f"mlp_ratio must be 0, or a positive number that leaves a hidden width, got {ratio!r}")
    return full


@BACKBONES.register_module()
class VMamba(HierarchicalBackbone):
    """VMamba; see the module's docstring for the shapes, the architectures and what differs from the official code.

    Args:
        arch: a name in `ARCHS`, or a dict with its keys.
        mixer: "ss2d", "ssd", or dict(type=one of them, **options of `ssm_mixers.SS2D` or `SSD2D`); None for the architecture's.
        mlp_ratio: hidden width of the MLP over C, 0 for blocks without MLP; None for the architecture's.
        patch_embed: "conv" or "patch"; None for the architecture's.
        downsample: "conv" or "merge"; None for the architecture's.
        out_norm: norm the returned levels. The published classifiers have no such norms: their files lack them.
        in_channels: channels of the image.
        drop_path_rate: probability of dropping a branch of the last block, rising linearly from 0 at the first block of the network.
        out_indices: which of the four levels to return, ascending; None for all. Only they have a norm, and no stage above the highest
            is computed.
        frozen_stages: -1 nothing; 0 the patch embedding; n also stage n with its downsampling and the norm of its level.
        norm_eval: keep batch norm in evaluation mode (VMamba has none).
        with_cp: recompute each block's activations in the backward pass.
        init_cfg: MMEngine's initialisation config.

    Raises:
        ValueError, TypeError: an argument that does not fit; unknown names come with the near ones.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] = "tiny",
        *,
        mixer: str | Mapping[str, Any] | None = None,
        mlp_ratio: float | None = None,
        patch_embed: str | None = None,
        downsample: str | None = None,
        out_norm: bool = True,
        drop_path_rate: float = 0.0,
        **pyramid: Any,
    ) -> None:
        super().__init__(**pyramid)
        spec = resolve_arch(arch, mixer=mixer, mlp_ratio=mlp_ratio, patch_embed=patch_embed, downsample=downsample)
        dims, depths, blocks = spec["dims"], spec["depths"], sum(spec["depths"])
        self.patch_embed = choose(spec["patch_embed"], PATCH_EMBEDS, "patch_embed")(self.in_channels, dims[0])
        between = choose(spec["downsample"], DOWNSAMPLES, "downsample")
        self.downsamples = nn.ModuleList(between(before, after) for before, after in pairwise(dims))
        self.stages = nn.ModuleList()
        rates = drop_path_rates(drop_path_rate, blocks)
        for stage, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            first = sum(depths[:stage])
            contexts = (LayerContext(dim, i, blocks, num_heads=1, mlp_ratio=spec["mlp_ratio"]) for i in range(first, first + depth))
            self.stages.append(nn.ModuleList(Block(spec["mixer"], context, rates[context.index]) for context in contexts))
        self.apply(init_linear)
        self._finish_hierarchical(dims, out_norm=out_norm)


# Official forward_type -> our mixer, the official argument that ssm_dt_rank is for us, and the published ssm_act_layer.
_FORWARD_TYPES = {
    "v0": (dict(type="ss2d", gate=True), "rank", "silu"),
    "v05_noz": (dict(type="ss2d", gate=False), "rank", "silu"),
    "m0_noz": (dict(type="ssd", gate=False), "heads", "gelu"),
}


def vssm_config(
    *,
    patch_size: int = 4,
    in_chans: int = 3,
    num_classes: int = 1000,
    depths: Sequence[int] = (2, 2, 9, 2),
    dims: int | Sequence[int] = (96, 192, 384, 768),
    ssm_d_state: int = 16,
    ssm_ratio: float = 2.0,
    ssm_dt_rank: int | str = "auto",
    ssm_act_layer: str | None = None,
    ssm_conv: int = 3,
    ssm_conv_bias: bool = True,
    ssm_drop_rate: float = 0.0,
    ssm_init: str = "v0",
    forward_type: str = "v2",
    mlp_ratio: float = 4.0,
    mlp_act_layer: str = "gelu",
    mlp_drop_rate: float = 0.0,
    gmlp: bool = False,
    drop_path_rate: float = 0.1,
    patch_norm: bool = True,
    norm_layer: str = "ln",
    downsample_version: str = "v2",
    patchembed_version: str = "v1",
    use_checkpoint: bool = False,
    posembed: bool = False,
    imgsize: int = 224,
) -> dict[str, Any]:
    """The config of our backbone for the arguments of the official classifier VSSM, which has no norms of levels.

    `norm_layer` "ln" and "ln2d" are one function. What only a checkpoint overwrites (`ssm_init`) or a classifier uses (`num_classes`,
    and `imgsize` without a position embedding) changes nothing. `ssm_act_layer=None` is that of the published models of a forward type.

    Raises:
        ValueError: a value that has no counterpart here, the official defaults of `forward_type` and `downsample_version` included.
    """
    choose(norm_layer.lower(), dict.fromkeys(("ln", "ln2d")), "norm_layer")
    only = dict(patch_size=(patch_size, 4), ssm_conv=(ssm_conv, 3), ssm_drop_rate=(ssm_drop_rate, 0), mlp_drop_rate=(mlp_drop_rate, 0))
    only |= dict(mlp_act_layer=(mlp_act_layer, "gelu"), gmlp=(gmlp, False), patch_norm=(patch_norm, True), posembed=(posembed, False))
    for name, (value, expected) in only.items():
        if value != expected:
            raise ValueError(f"{name}={value!r} has no counterpart here; only {expected!r} has")
    mixer, rank, activation = choose(forward_type, _FORWARD_TYPES, "forward_type")
    options = dict(
        d_state=ssm_d_state,
        ssm_ratio=ssm_ratio,
        conv_bias=ssm_conv_bias,
        activation=activation if ssm_act_layer is None else ssm_act_layer.lower(),
        **{rank: None if ssm_dt_rank == "auto" else ssm_dt_rank},
    )
    return dict(
        type="linescan.VMamba",
        arch=dict(
            dims=tuple(dims * 2**i for i in range(4)) if isinstance(dims, int) else tuple(dims),
            depths=tuple(depths),
            mixer={**mixer, **options},
            mlp_ratio=mlp_ratio,
            patch_embed=choose(patchembed_version, {"v1": "patch", "v2": "conv"}, "patchembed_version"),
            downsample=choose(downsample_version, {"v1": "merge", "v3": "conv"}, "downsample_version"),
        ),
        out_norm=False,
        in_channels=in_chans,
        drop_path_rate=drop_path_rate,
        with_cp=use_checkpoint,
    )


def backbone_config(*, out_indices: Sequence[int] = (0, 1, 2, 3), pretrained: None = None, **official: Any) -> dict[str, Any]:
    """The config of our backbone for the arguments of the official Backbone_VSSM; see `vssm_config`. `pretrained` must be None."""
    if pretrained is not None:
        raise ValueError(f"pretrained={pretrained!r} has no counterpart here; load the file with init_cfg or load_checkpoint")
    return {**vssm_config(**official), "out_norm": True, "out_indices": tuple(out_indices)}


_TAIL = r"\.(weight|bias)"
_BLOCK = r"layers\.(\d+)\.blocks\.(\d+)\."
_OP = _BLOCK + r"(?:op|self_attention)\."
_OP_NAMES = {"x_proj_weight": "x_proj", "dt_projs_weight": "dt_proj", "dt_projs_bias": "dt_bias", "A_logs": "A_log", "Ds": "D"}
# The second of two alternatives in a pattern is the name of the first release.
register_family(
    "vmamba",
    Family(
        backbone="VMamba",
        official={"Backbone_VSSM": backbone_config, "VSSM": vssm_config},
        rules=(
            (r"patch_embed\.(?:0|proj)" + _TAIL, r"patch_embed.conv1.\1"),
            (r"patch_embed\.(?:2|norm)" + _TAIL, r"patch_embed.norm1.\1"),
            (r"patch_embed\.5" + _TAIL, r"patch_embed.conv2.\1"),
            (r"patch_embed\.7" + _TAIL, r"patch_embed.norm2.\1"),
            (r"layers\.(\d+)\.downsample\.1" + _TAIL, r"downsamples.\1.conv.\2"),
            (r"layers\.(\d+)\.downsample\.(?:3|norm)" + _TAIL, r"downsamples.\1.norm.\2"),
            (r"layers\.(\d+)\.downsample\.reduction\.weight", r"downsamples.\1.reduction.weight"),
            (_BLOCK + r"(?:norm|ln_1)" + _TAIL, r"stages.\1.\2.norm1.\3"),
            (_BLOCK + r"norm2" + _TAIL, r"stages.\1.\2.norm2.\3"),
            (_BLOCK + r"mlp\.(fc[12])" + _TAIL, r"stages.\1.\2.channel.\3.\4"),
            *((_OP + theirs, rf"stages.\1.\2.token.{ours}") for theirs, ours in _OP_NAMES.items()),
            (_OP + r"conv2d(?:\.1)?" + _TAIL, r"stages.\1.\2.token.conv.\3"),
            (_OP + r"(in_proj|out_proj|out_norm)" + _TAIL, r"stages.\1.\2.token.\3.\4"),
            (r"outnorm(\d+)" + _TAIL, r"outnorm.\1.\2"),
        ),
        drop=(r"classifier\..*", r"(norm|head)" + _TAIL),
    ),
)
