"""VSSD: a hierarchical backbone whose token mixer is Mamba-2's SSD without its order.

"VSSD: Vision Mamba with Non-Causal State Space Duality" (arXiv 2407.18559). Written from the formulas alone.

Shapes, for an image of H x W and widths C_n = 2^(n - 1) C, every halving rounded up:

    stem            3x3 conv stride 2 (C/2); plus two 3x3 convs of it; 3x3 conv stride 2 (4C), 1x1 conv (C)
    stage n         blocks                                              (B, C_n, H/2^(n+1), W/2^(n+1))    level n - 1
    downsampling    1x1 conv (8 C_n), 3x3 depthwise conv stride 2, 1x1 conv (2 C_n)
    level           LN of the stage's output, for the levels that are returned

A block, on tokens x (B, L, C), is

    x <- x + conv1(x)                        depthwise 3x3: conditional position encoding
    x <- x + DropPath(Mixer(LN(x)))
    x <- x + conv2(x)
    x <- x + DropPath(MLP(LN(x)))            GELU

and the mixer, of inner width D = 2C in heads of P = D / heads, with N states, is NC-SSD (eq. 9-11):

    z, x, B, C, dt = in_proj(x)              D, D, N, N and one number per head and token; x, B, C pass SiLU(depthwise 3x3)
    S = sum_j |a| softplus(dt_j + dt_bias) x_j B_j^T          one state (P, N) per head for all tokens; |a| = exp(A_log)
    out = out_proj(LN(S C_t + D x_t) * z_t)

or, in stage 4, softmax attention. Every norm has eps 1e-5.

| arch  | parameters with a classifier of 1000 classes | published drop path |
|-------|----------------------------------------------|---------------------|
| micro | 13.5 M                                       | 0.1                 |
| tiny  | 24.3 M                                       | 0.2                 |
| small | 40.1 M                                       | 0.4                 |
| base  | 88.8 M                                       | 0.6                 |

Initial values are Mamba-2's where it has them (A_log, D, dt_bias), truncated normal with std 0.02 for linears, PyTorch's for convolutions.

torch.export with a dynamic image size needs sizes that are multiples of 32, because of the guards on the strides of channels-last maps.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from .arguments import complete_arch, drop_path_rates
from .checkpoints import Family, register_family
from .hierarchical import HierarchicalBackbone
from .layers import init_linear, to_map, to_tokens
from .names import choose
from .registry import BACKBONES

# dim: C; depths, num_heads, mixers: of the four stages; d_state: N; expand: D / C; mlp_ratio: hidden width of the MLP over C.
ARCH_DEFAULTS: dict[str, Any] = dict(
    num_heads=(2, 4, 8, 16), d_state=64, mixers=("ssd", "ssd", "ssd", "attention"), expand=2.0, mlp_ratio=4.0
)
ARCHS: dict[str, dict[str, Any]] = {
    "test": dict(dim=8, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4), d_state=4),
    "micro": dict(dim=48, depths=(2, 2, 8, 4), d_state=48),
    "tiny": dict(dim=64, depths=(2, 4, 8, 4)),
    "small": dict(dim=64, depths=(3, 4, 21, 5)),
    "base": dict(dim=96, depths=(3, 4, 21, 5), num_heads=(3, 6, 12, 24)),
}


class ConvLayer(nn.Module):
    """Convolution, optional batch norm, optional ReLU; padded so that stride s gives ceil(H/s)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, norm: bool, act: bool, **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, **options)
        self.norm = nn.BatchNorm2d(out_channels) if norm else nn.Identity()
        self.act = nn.ReLU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class Stem(nn.Module):
    """(B, in, H, W) -> (B, C, ceil(H/4), ceil(W/4)): batch norm after every convolution, none with bias."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        half, plain = dim // 2, dict(norm=True, bias=False)
        self.conv1 = ConvLayer(in_channels, half, 3, stride=2, act=True, **plain)
        self.conv2 = nn.Sequential(ConvLayer(half, half, 3, act=True, **plain), ConvLayer(half, half, 3, act=False, **plain))
        self.conv3 = nn.Sequential(ConvLayer(half, 4 * dim, 3, stride=2, act=True, **plain), ConvLayer(4 * dim, dim, 1, act=False, **plain))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return self.conv3(x + self.conv2(x))


class Downsample(nn.Module):
    """(B, C, H, W) -> (B, 2C, ceil(H/2), ceil(W/2)): `widen` to 8C channels at half the resolution, then `project`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.widen = nn.Sequential(
            ConvLayer(dim, 8 * dim, 1, norm=False, act=True),
            ConvLayer(8 * dim, 8 * dim, 3, norm=False, act=True, stride=2, groups=8 * dim),
        )
        self.project = ConvLayer(8 * dim, 2 * dim, 1, norm=True, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.widen(x))


class NCSSD(nn.Module):
    """The non-causal SSD mixer of the module's docstring: two matrix products over all tokens, in any order of them.

    `linescan.kernels.ssd(..., causal=False)` is the same sum, but computes in float32 whatever it is given. These are plain matrix products
    instead, one for all heads because they share B and C: as fast in float32 and up to twice as fast in bfloat16 on a CPU, and visible to
    compilers, exporters and FLOP counters.
    """

    def __init__(self, dim: int, num_heads: int, d_state: int, expand: float) -> None:
        super().__init__()
        self.width, self.d_state, self.heads = int(expand * dim), d_state, num_heads
        if self.width % num_heads:
            raise ValueError(f"num_heads must divide the inner width {self.width}, got {num_heads}")
        mixed = self.width + 2 * d_state
        self.in_proj = nn.Linear(dim, self.width + mixed + num_heads, bias=False)
        self.conv = nn.Conv2d(mixed, mixed, 3, padding=1, groups=mixed)
        step = torch.exp(torch.empty(num_heads).uniform_(math.log(1e-3), math.log(0.1)))
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
        self.A_log = nn.Parameter(torch.empty(num_heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(num_heads))
        self.norm = nn.LayerNorm(self.width)
        self.out_proj = nn.Linear(self.width, dim, bias=False)

    def no_weight_decay(self) -> set[str]:
        return {"dt_bias", "A_log", "D"}

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, L, C) -> (B, L, C), L = grid[0] * grid[1]."""
        z, mixed, dt = self.in_proj(x).split([self.width, self.width + 2 * self.d_state, self.heads], dim=2)
        mixed = F.silu(on_map(self.conv, mixed, grid))
        x, B, C = mixed.split([self.width, self.d_state, self.d_state], dim=2)
        exact = torch.promote_types(x.dtype, torch.float32)
        # 1 / sqrt(L) in the sum, and its inverse after it: a sum over all tokens of a large image leaves the range of float16.
        scale = x.shape[1] ** 0.5
        weight = F.softplus(dt.to(exact) + self.dt_bias) * (self.A_log.to(exact).exp() / scale)
        values = (x.unflatten(2, (self.heads, -1)) * weight[..., None]).flatten(2).to(x.dtype)
        y = torch.matmul(C, torch.matmul(B.mT, values)).to(exact) * scale
        y = torch.addcmul(y, x.to(exact), self.D.to(exact).repeat_interleave(self.width // self.heads))
        y = F.layer_norm(y, (self.width,), self.norm.weight.to(exact), self.norm.bias.to(exact), self.norm.eps)
        return self.out_proj(y.to(z.dtype) * z)


class Attention(nn.Module):
    """Softmax attention over all tokens: fused projection without bias, 1/sqrt(head width), output projection with bias."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads must divide the width {dim}, got {num_heads}")
        self.heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """One block; see the module's docstring."""

    def __init__(self, dim: int, mixer: nn.Module, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(dim, dim, 3, padding=1, groups=dim) for _ in range(2))
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.token = mixer
        self.channel = Mlp(dim, int(mlp_ratio * dim))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, L, C) -> (B, L, C), L = grid[0] * grid[1]."""
        x = x + on_map(self.conv1, x, grid)
        x = x + self.drop_path(self.token(self.norm1(x), grid))
        x = x + on_map(self.conv2, x, grid)
        return x + self.drop_path(self.channel(self.norm2(x)))


def on_map(conv: nn.Conv2d, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """A convolution that keeps the size, on tokens (B, L, C)."""
    return to_tokens(conv(to_map(tokens, grid)))


def resolve_arch(arch: str | Mapping[str, Any]) -> dict[str, Any]:
    """The full dict of an architecture, from a name in `ARCHS` or a dict with its keys (`dim` and `depths` are required)."""
    full = complete_arch(arch, ARCHS, ARCH_DEFAULTS, ("dim", "depths"))
    for key in ("depths", "num_heads"):
        if not _four(full[key]) or not all(isinstance(n, int) and n > 0 for n in full[key]):
            raise ValueError(f"{key} must be four positive ints, got {full[key]!r}")
    if not _four(full["mixers"]):
        raise ValueError(f"mixers must be four names, got {full['mixers']!r}")
    for key, least in (("dim", 2), ("d_state", 1)):
        if isinstance(full[key], bool) or not isinstance(full[key], int) or full[key] < least or full[key] % least:
            raise ValueError(f"{key} must be a positive {'even ' if least == 2 else ''}int, got {full[key]!r}")
    for key in ("expand", "mlp_ratio"):
        if isinstance(full[key], bool) or not isinstance(full[key], int | float) or full[key] * full["dim"] < 1:
            raise ValueError(f"{key} must be a positive number that leaves a width, got {full[key]!r}")
    return full


def _four(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 4


@BACKBONES.register_module()
class VSSD(HierarchicalBackbone):
    """VSSD; see the module's docstring for the shapes and the architectures.

    Args:
        arch: micro, tiny, small, base or test, or a dict with the keys of `ARCHS`; its `mixers` name "ssd" or "attention" for each stage.
        out_norm: norm the returned levels. The published classifiers have no such norms: their files lack them.
        in_channels: channels of the image.
        drop_path_rate: probability of dropping a branch of the last block, rising linearly from 0 at the first block of the network.
        out_indices: which of the four levels to return, ascending; None for all. Only they have a norm, and no stage above the highest
            is computed.
        frozen_stages: -1 nothing; 0 the stem; n also stage n with the downsampling before it and the norm of its level.
        norm_eval: keep the batch norms of stem and downsamplings in evaluation mode.
        with_cp: recompute the activations of stem, blocks and downsamplings in the backward pass.
        init_cfg: MMEngine's initialisation config.

    Raises:
        ValueError, TypeError: an argument that does not fit; unknown names come with the near ones.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] = "tiny",
        *,
        out_norm: bool = True,
        drop_path_rate: float = 0.0,
        **pyramid: Any,
    ) -> None:
        super().__init__(**pyramid)
        spec = resolve_arch(arch)
        dims = tuple(spec["dim"] * 2**i for i in range(4))
        self.patch_embed = Stem(self.in_channels, dims[0])
        self.downsamples = nn.ModuleList(Downsample(dim) for dim in dims[:3])
        self.stages = nn.ModuleList()
        rates = iter(drop_path_rates(drop_path_rate, sum(spec["depths"])))
        for dim, depth, heads, name in zip(dims, spec["depths"], spec["num_heads"], spec["mixers"], strict=True):
            mixer, options = choose(name, {"ssd": (NCSSD, (spec["d_state"], spec["expand"])), "attention": (Attention, ())}, "mixer")
            blocks = (Block(dim, mixer(dim, heads, *options), spec["mlp_ratio"], next(rates)) for _ in range(depth))
            self.stages.append(nn.ModuleList(blocks))
        self.apply(init_linear)
        self._finish_hierarchical(dims, out_norm=out_norm)


# Official constructor argument -> the only value that has a counterpart here.
_OFFICIAL_VALUES = dict(
    ssd_ngroups=1, linear_attn_duality=True, ssd_positve_dA=True, simple_downsample=False, simple_patch_embed=False, bidirection=False
)


def classifier_config(
    *,
    img_size: int = 224,
    in_chans: int = 3,
    num_classes: int = 1000,
    embed_dim: int = 64,
    depths: Sequence[int] = (2, 4, 8, 4),
    num_heads: Sequence[int] = (2, 4, 8, 16),
    mlp_ratio: float = 4.0,
    drop_path_rate: float = 0.2,
    d_state: int = 64,
    ssd_expansion: float = 2,
    ssd_ngroups: int = 1,
    linear_attn_duality: bool = True,
    ssd_positve_dA: bool = True,
    attn_types: Sequence[str] = ("mamba2", "mamba2", "mamba2", "standard"),
    simple_downsample: bool = False,
    simple_patch_embed: bool = False,
    bidirection: bool = False,
) -> dict[str, Any]:
    """The config of our backbone for the arguments of the official classifier VMAMBA2, which has no norms of levels.

    The defaults are the published tiny model's. `img_size` and `num_classes` change nothing in the backbone.

    Raises:
        ValueError: a value that has no counterpart here.
    """
    given = dict(ssd_ngroups=ssd_ngroups, linear_attn_duality=linear_attn_duality, ssd_positve_dA=ssd_positve_dA)
    given |= dict(simple_downsample=simple_downsample, simple_patch_embed=simple_patch_embed, bidirection=bidirection)
    for name, value in given.items():
        if value != _OFFICIAL_VALUES[name]:
            raise ValueError(f"{name}={value!r} has no counterpart here; only {_OFFICIAL_VALUES[name]!r} has")
    arch = dict(
        dim=embed_dim,
        depths=tuple(depths),
        num_heads=tuple(num_heads),
        d_state=d_state,
        mixers=tuple(choose(name, {"mamba2": "ssd", "standard": "attention"}, "attn_types") for name in attn_types),
        expand=ssd_expansion,
        mlp_ratio=mlp_ratio,
    )
    return dict(type="linescan.VSSD", arch=arch, out_norm=False, in_channels=in_chans, drop_path_rate=drop_path_rate)


def backbone_config(*, out_indices: Sequence[int] = (0, 1, 2, 3), pretrained: None = None, **official: Any) -> dict[str, Any]:
    """The config of our backbone for the arguments of the official Backbone_VMAMBA2; see `classifier_config`.

    Raises:
        ValueError: as `classifier_config`, and for `pretrained`: weights are loaded by `init_cfg` or `checkpoints.load_checkpoint`.
    """
    if pretrained is not None:
        raise ValueError(f"pretrained={pretrained!r} has no counterpart here; load the file with init_cfg or load_checkpoint")
    return {**classifier_config(**official), "out_norm": True, "out_indices": tuple(out_indices)}


_TAIL = r"\.(weight|bias)"
_CONV = r"\.(conv\.(?:weight|bias)|norm\.(?:weight|bias|running_mean|running_var|num_batches_tracked))"
_BLOCK = r"layers\.(\d+)\.blocks\.(\d+)\."
register_family(
    "vssd",
    Family(
        backbone="VSSD",
        official={
            "Backbone_VMAMBA2 (VSSD)": backbone_config,
            "Backbone_VMAMBA2": backbone_config,
            "VMAMBA2": classifier_config,
        },
        rules=(
            (r"patch_embed\.(conv1|conv[23]\.[01])" + _CONV, r"patch_embed.\1.\2"),
            (r"layers\.(\d+)\.downsample\.conv\.([01])" + _CONV, r"downsamples.\1.widen.\2.\3"),
            (r"layers\.(\d+)\.downsample\.conv\.2" + _CONV, r"downsamples.\1.project.\2"),
            (_BLOCK + r"cpe([12])" + _TAIL, r"stages.\1.\2.conv\3.\4"),
            (_BLOCK + r"norm([12])" + _TAIL, r"stages.\1.\2.norm\3.\4"),
            (_BLOCK + r"attn\.(dt_bias|A_log|D)", r"stages.\1.\2.token.\3"),
            (_BLOCK + r"attn\.conv2d" + _TAIL, r"stages.\1.\2.token.conv.\3"),
            (_BLOCK + r"attn\.(in_proj|out_proj|norm)" + _TAIL, r"stages.\1.\2.token.\3.\4"),
            (_BLOCK + r"attn\.to_qkv\.weight", r"stages.\1.\2.token.qkv.weight"),
            (_BLOCK + r"attn\.to_out" + _TAIL, r"stages.\1.\2.token.proj.\3"),
            (_BLOCK + r"mlp\.(fc[12])" + _TAIL, r"stages.\1.\2.channel.\3.\4"),
            (r"outnorm(\d+)" + _TAIL, r"outnorm.\1.\2"),
        ),
        drop=(r"classifier\..*", r"(norm|head)" + _TAIL),
    ),
)
