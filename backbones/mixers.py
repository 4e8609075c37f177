"""Token mixers and channel mixers: the exchangeable parts of a token layer.

A token layer is

    x <- x + DropPath(s1 * TokenMixer(LN(x)))
    x <- x + DropPath(s2 * ChannelMixer(LN(x)))

on tokens x (B, N, C), row-major over a grid (H, W). `MIXERS` maps the name in a config to a `MixerSpec`: the token mixer, the channel mixer
that the published model pairs it with, and their defaults. A new mixer, ours or a third party's, is one more entry (`register_mixer`).

| name             | token mixer                                | channel mixer              | layer scale | MLP ratio |
|------------------|--------------------------------------------|----------------------------|-------------|-----------|
| bi_wkv           | Q-shift + Bi-WKV (RWKV-4, linear time)     | RWKV channel mix, Q-shift  | 1e-2        | 4         |
| bi_wkv6          | Q-shift + WKV6 (RWKV-6, linear time)       | RWKV channel mix, Q-shift  | 1e-2        | 4         |
| attention        | softmax attention (quadratic)              | GeGLU                      | none        | 2         |
| linear_attention | attention with the kernel elu + 1 (linear) | GeGLU                      | none        | 2         |
| gated_conv       | MambaOut's gated depthwise conv (local)    | GeGLU                      | none        | 2         |
| ss2d             | VMamba's selective scan along four paths   | GeGLU                      | none        | 2         |
| ssd              | the same with Mamba-2's SSD                | GeGLU                      | none        | 2         |
| mbconv           | none of its own                            | MBConv-LN (depthwise 3x3)  | none        | 4         |
| none             | the RWKV layer, each token by itself       | RWKV channel mix, no shift | 1e-2        | 4         |

Sources: RWKV-SAM (arXiv 2406.19369), Vision-RWKV (arXiv 2403.02308), ViTamin (arXiv 2404.02132), linear attention (arXiv 2006.16236),
MambaOut (arXiv 2405.07992), VMamba (arXiv 2401.10166).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import LayerContext, init_conv, to_map, to_tokens, without_autocast
from .names import choose, unknown
from .rwkv_mixers import PointwiseChannelMix, PointwiseSpatialMix, RWKV6SpatialMix, RWKVChannelMix, RWKVSpatialMix
from .ssm_mixers import SS2D, SSD2D


class Attention(nn.Module):
    """Softmax attention over all tokens: fused qkv with bias, 1/sqrt(head width), a biased projection."""

    def __init__(self, context: LayerContext) -> None:
        super().__init__()
        if context.dim % context.num_heads:
            raise ValueError(f"num_heads must divide the token width {context.dim}, got {context.num_heads}")
        self.num_heads = context.num_heads
        self.qkv = nn.Linear(context.dim, 3 * context.dim)
        self.proj = nn.Linear(context.dim, context.dim)

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, heads, N, D) each -> (B, heads, N, D)."""
        return F.scaled_dot_product_attention(q, k, v)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(self.mix(q, k, v).transpose(1, 2).reshape(b, n, c))


class LinearAttention(Attention):
    """Attention with the softmax kernel replaced by f(q) f(k), f = elu + 1 (Katharopoulos et al., arXiv 2006.16236, eq. 4-7).

    y_t = f(q_t) (sum_i f(k_i) v_i^T) / (f(q_t) sum_i f(k_i) + 1e-6): linear in the number of tokens, all of them seen, no decay and no
    order. The same parameters as `Attention`. Computed in at least float32.
    """

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, heads, N, D) each -> (B, heads, N, D)."""
        exact = torch.promote_types(q.dtype, torch.float32)
        with without_autocast(q):
            q, k = F.elu(q.to(exact)) + 1, F.elu(k.to(exact)) + 1
            total = k.sum(dim=2).unsqueeze(-1)
            y = (q @ (k.transpose(2, 3) @ v.to(exact))) / (q @ total + 1e-6)
        return y.to(v.dtype)


class GatedConv(nn.Module):
    """The control with local mixing only: MambaOut's gated convolution (arXiv 2405.07992, eq. 5-6), a Mamba block without its scan.

    out = down(GELU(g) * (i, conv(c))), where (g, i, c) = up(x) have widths H, H - C, C, and conv is depthwise. MambaOut has H = 8/3 C
    and no other channel mixer; here a channel mixer follows, so H = 4/3 C by default, which gives the 4 C^2 weights of attention.

    Args:
        context: see `LayerContext`.
        kernel_size: odd width of the depthwise convolution: a token sees (kernel_size - 1) / 2 neighbours on each side.
        expand: H over C, at least 1.
    """

    def __init__(self, context: LayerContext, *, kernel_size: int = 7, expand: float = 4 / 3) -> None:
        super().__init__()
        if not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be an odd positive int, got {kernel_size!r}")
        if not isinstance(expand, int | float) or expand < 1:
            raise ValueError(f"expand must be a number of at least 1, got {expand!r}")
        dim, hidden = context.dim, int(expand * context.dim)
        self.widths = (hidden, hidden - dim, dim)
        self.up = nn.Linear(dim, 2 * hidden)
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.down = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        gate, plain, local = self.up(x).split(self.widths, dim=-1)
        local = to_tokens(self.conv(to_map(local, grid)))
        return self.down(F.gelu(gate) * torch.cat((plain, local), dim=-1))


class GeGLU(nn.Module):
    """Gated MLP: down(GELU(gate(x)) * up(x)), exact (erf) GELU, biased linears."""

    def __init__(self, context: LayerContext) -> None:
        super().__init__()
        self.gate = nn.Linear(context.dim, context.hidden)
        self.up = nn.Linear(context.dim, context.hidden)
        self.down = nn.Linear(context.hidden, context.dim)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return self.down(F.gelu(self.gate(x)) * self.up(x))


def round_to_8(width: float) -> int:
    """The nearest multiple of 8, at least 8, one step more where rounding down lost over 10 % (the MobileNet rule)."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * width else rounded


class InvertedBottleneck(nn.Module):
    """The branch of an MBConv-LN block, after its norm: 1x1 conv, GELU, depthwise 3x3 (stride s), GELU, 1x1 conv; all biased.

    The hidden width is `expand` times the *output* width, rounded to a multiple of 8. (B, in, H, W) -> (B, out, ceil(H/s), ceil(W/s)).

    Convolutions start normal with std sqrt(2 / fan_out) and zero bias. That is the official code's intent; there it is applied to the stem
    and the stride-32 block only, because MMEngine does not reach the initialisers of modules inside plain lists.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, expand: float = 4.0) -> None:
        super().__init__()
        hidden = round_to_8(expand * out_channels)
        self.expand = nn.Conv2d(in_channels, hidden, 1)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, stride=stride, padding=1, groups=hidden)
        self.project = nn.Conv2d(hidden, out_channels, 1)
        self.apply(init_conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(F.gelu(self.depthwise(F.gelu(self.expand(x)))))


class MBConvMix(nn.Module):
    """`InvertedBottleneck` on tokens: the map is rebuilt from them, and flattened again."""

    def __init__(self, context: LayerContext) -> None:
        super().__init__()
        self.branch = InvertedBottleneck(context.dim, context.dim, expand=context.mlp_ratio)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return to_tokens(self.branch(to_map(x, grid)))


Mixer = Callable[..., nn.Module]


@dataclass(frozen=True)
class MixerSpec:
    """What a mixer's name in a config stands for.

    Attributes:
        token: `token(context, **options)` -> module, forward(x (B, N, C), grid) -> (B, N, C); None if the channel mixer mixes tokens too.
        channel: name of its channel mixer in `CHANNEL_MIXERS`.
        layer_scale: initial value of the per-channel factors s1 and s2; None for no factors.
        mlp_ratio: default hidden width of the channel mixer over C.
    """

    token: Mixer | None
    channel: str
    layer_scale: float | None
    mlp_ratio: float


CHANNEL_MIXERS: dict[str, Mixer] = {
    "rwkv": RWKVChannelMix,
    "rwkv_pointwise": PointwiseChannelMix,
    "geglu": GeGLU,
    "mbconv": MBConvMix,
}

MIXERS: dict[str, MixerSpec] = {
    "bi_wkv": MixerSpec(RWKVSpatialMix, "rwkv", layer_scale=1e-2, mlp_ratio=4),
    "bi_wkv6": MixerSpec(RWKV6SpatialMix, "rwkv", layer_scale=1e-2, mlp_ratio=4),
    "attention": MixerSpec(Attention, "geglu", layer_scale=None, mlp_ratio=2),
    "linear_attention": MixerSpec(LinearAttention, "geglu", layer_scale=None, mlp_ratio=2),
    "gated_conv": MixerSpec(GatedConv, "geglu", layer_scale=None, mlp_ratio=2),
    "ss2d": MixerSpec(SS2D, "geglu", layer_scale=None, mlp_ratio=2),
    "ssd": MixerSpec(SSD2D, "geglu", layer_scale=None, mlp_ratio=2),
    "mbconv": MixerSpec(None, "mbconv", layer_scale=None, mlp_ratio=4),
    "none": MixerSpec(PointwiseSpatialMix, "rwkv_pointwise", layer_scale=1e-2, mlp_ratio=4),
}


def register_mixer(name: str, spec: MixerSpec) -> None:
    """Add a token mixer under `name`; every backbone that takes mixers by name then takes it.

    Raises:
        ValueError: the name is taken, or `spec.channel` is no known channel mixer.
    """
    if name in MIXERS:
        raise ValueError(f"a mixer named {name!r} is already registered: {MIXERS[name]}")
    choose(spec.channel, CHANNEL_MIXERS, "channel mixer")
    MIXERS[name] = spec


@dataclass(frozen=True)
class MixerChoice:
    """A mixer as a config names it: a name, or dict(type=name, **options).

    The options `channel_mixer`, `layer_scale` and `mlp_ratio` replace the spec's; all others go to the token mixer's constructor.
    """

    name: str
    spec: MixerSpec
    mlp_ratio: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, mixer: str | Mapping[str, Any]) -> "MixerChoice":
        """Raises TypeError if `mixer` is neither a name nor a dict, ValueError for unknown names and options that do not fit."""
        if isinstance(mixer, str):
            return cls(mixer, choose(mixer, MIXERS, "mixer"))
        if not isinstance(mixer, Mapping):
            raise TypeError(f"mixer must be a name or dict(type=name, ...), got {mixer!r}")
        options = dict(mixer)
        if "type" not in options:
            raise ValueError(f"a mixer given as a dict needs the key 'type', got {mixer!r}")
        name = options.pop("type")
        spec = choose(name, MIXERS, "mixer")
        channel = options.pop("channel_mixer", spec.channel)
        choose(channel, CHANNEL_MIXERS, "channel mixer")
        spec = MixerSpec(spec.token, channel, options.pop("layer_scale", spec.layer_scale), spec.mlp_ratio)
        mlp_ratio = options.pop("mlp_ratio", None)
        if options and spec.token is None:
            raise ValueError(f"mixer {name!r} has no token mixer that could take {unknown(next(iter(options)), (), 'option')}")
        return cls(name, spec, mlp_ratio, options)
