"""The mixers of Vision-RWKV and Vision-RWKV-6 (arXiv 2403.02308) and their controls without token mixing.

All take tokens x (B, T, C), the patches of a grid (H, W) row by row and then, where `extra_tokens` says so, others that stand on no grid,
and return (B, T, C).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.bi_wkv import bi_wkv
from ..kernels.bi_wkv6 import bi_wkv6
from ..kernels.q_shift import q_shift, q_shift_mix
from .layers import LayerContext, relu_squared

HEAD_DIM = 64
MIXES_V6 = 5


class RWKVSpatialMix(nn.Module):
    """Spatial mix of Vision-RWKV (arXiv 2403.02308, eq. 3-4): Q-shift, three projections, Bi-WKV, a sigmoid gate.

    With T tokens, xs = q_shift(x) and x_m = mix_m * x + (1 - mix_m) * xs:
    out = output(sigmoid(receptance(x_r)) * BiWKV(w=decay/T, u=first/T, k=key(x_k), v=value(x_v))).
    Both decay and first are divided by T, as the official code does; the paper divides the decay only. With `key_norm` a LayerNorm follows
    Bi-WKV (Vision-RWKV-L).

    `decay`, `first` and the mixes start at the official "fancy" values, which depend on channel and layer. The four linears keep PyTorch's
    default initialisation, as they do in the official code, whose zero-scale attributes nothing reads: zero everywhere would leave no
    gradient.
    """

    def __init__(self, context: LayerContext, *, key_norm: bool = False) -> None:
        super().__init__()
        dim, rise, fall = context.dim, context.rise, context.fall
        h = torch.arange(dim, dtype=torch.float64)
        decay = -5 + 8 * (h / max(dim - 1, 1)) ** (0.7 + 1.3 * rise)
        first = math.log(0.3) + 0.5 * ((h + 1) % 3 - 1)
        ramp = (h / dim) ** fall
        dtype = torch.get_default_dtype()
        self.decay = nn.Parameter(decay.to(dtype))
        self.first = nn.Parameter(first.to(dtype))
        self.mix_k = nn.Parameter(ramp.to(dtype))
        self.mix_v = nn.Parameter((ramp + 0.3 * rise).to(dtype))
        self.mix_r = nn.Parameter(((h / dim) ** (0.5 * fall)).to(dtype))
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.receptance = nn.Linear(dim, dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)
        self.key_norm = nn.LayerNorm(dim) if key_norm else None

    def no_weight_decay(self) -> set[str]:
        return {"decay", "first", "mix_k", "mix_v", "mix_r"}

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        x_k, x_v, x_r = q_shift_mix(x, torch.stack((self.mix_k, self.mix_v, self.mix_r)), grid).unbind(0)
        k, v, r = self.key(x_k), self.value(x_v), self.receptance(x_r)
        tokens = x.shape[1]
        # decay / T is small: divide in at least float32, whatever the parameters' dtype.
        exact = torch.promote_types(self.decay.dtype, torch.float32)
        y = bi_wkv(self.decay.to(exact) / tokens, self.first.to(exact) / tokens, k, v)
        if self.key_norm is not None:
            y = self.key_norm(y)
        return self.output(torch.sigmoid(r) * y)


class HeadNorm(nn.GroupNorm):
    """GroupNorm over the channels of each head of each token; weight and bias per channel. (B, T, C) -> (B, T, C)."""

    def no_weight_decay(self) -> set[str]:
        return {"weight", "bias"}

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).view_as(x)


def _heads(context: LayerContext, head_dim: int | None) -> int:
    """How many heads a mixer has whose head width is an option."""
    dim = context.dim
    if head_dim is not None:
        if not isinstance(head_dim, int) or head_dim < 1 or dim % head_dim:
            raise ValueError(f"head_dim must divide the token width {dim}, got {head_dim!r}")
        return dim // head_dim
    if dim % HEAD_DIM == 0:
        return dim // HEAD_DIM
    if dim % context.num_heads:
        raise ValueError(f"num_heads must divide the token width {dim}, got {context.num_heads}")
    return context.num_heads


def _uniform(bound: float, *shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


class RWKV6SpatialMix(nn.Module):
    """Spatial mix of Vision-RWKV-6 (arXiv 2403.02308; RWKV-6 is arXiv 2404.05892): shares and decays that depend on the data, WKV6 in both
    directions, a gate.

    With d = q_shift(x) - x, the Q-shift inside each head, and for m in w, k, v, r, g:

        x_m = x + d * (shift_m + tanh((x + d * shift_x) shift_down)_m shift_up_m)
        w   = decay + tanh(x_w decay_down) decay_up                      log of the decay rate: a token's decay is exp(-exp(w))
        y   = BiWKV6(receptance(x_r), key(x_k), value(x_v), w, u=first)                 (T, H, D)
        out = output(HeadNorm(y) * silu(gate(x_g)))

    With `key_norm` a LayerNorm over all channels precedes the HeadNorm. The vectors start at the official "fancy" values, the linears at
    PyTorch's default.

    Args:
        context: where the layer stands.
        head_dim: width D of a head. None: 64 where it divides C, else C / context.num_heads.
        extra_tokens: tokens after the patches; they take part in WKV6 and pass the shift unchanged.
        key_norm: see above.
        mix_rank, decay_rank: inner widths of the low-rank maps.
        low_rank_init: the four low-rank factors start uniform within +- this. Vision-RWKV-6 has 1e-4; behind a layer scale of 1e-2 that
            leaves `shift_w` a gradient that float32 rounds away.

    Raises:
        ValueError: the heads do not divide C.
    """

    def __init__(
        self,
        context: LayerContext,
        *,
        head_dim: int | None = None,
        extra_tokens: int = 0,
        key_norm: bool = False,
        mix_rank: int = 32,
        decay_rank: int = 64,
        low_rank_init: float = 1e-2,
    ) -> None:
        super().__init__()
        dim = context.dim
        self.heads = _heads(context, head_dim)
        self.extra_tokens = extra_tokens
        self._init_vectors(context)
        self.shift_down = _uniform(low_rank_init, dim, MIXES_V6 * mix_rank)
        self.shift_up = _uniform(low_rank_init, MIXES_V6, mix_rank, dim)
        self.decay_down = _uniform(low_rank_init, dim, decay_rank)
        self.decay_up = _uniform(low_rank_init, decay_rank, dim)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.receptance = nn.Linear(dim, dim, bias=False)
        self.gate = nn.Linear(dim, dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)
        self.key_norm = nn.LayerNorm(dim) if key_norm else None
        self.head_norm = HeadNorm(self.heads, dim)

    def _init_vectors(self, context: LayerContext) -> None:
        """The "fancy" values of the per-channel vectors, h the channel of C: shares from (h / C)^fall, decays and bonus rising with h."""
        dim, rise, fall = context.dim, context.rise, context.fall
        h = torch.arange(dim, dtype=torch.float64)
        place = h / max(dim - 1, 1)
        ramp = (h / dim) ** fall
        root = (h / dim) ** (0.5 * fall)
        dtype = torch.get_default_dtype()
        self.shift_x = nn.Parameter((1 - ramp).to(dtype))
        self.shift_w = nn.Parameter((1 - ramp).to(dtype))
        self.shift_k = nn.Parameter((1 - ramp).to(dtype))
        self.shift_v = nn.Parameter((1 - ramp - 0.3 * rise).to(dtype))
        self.shift_r = nn.Parameter((1 - root).to(dtype))
        self.shift_g = nn.Parameter((1 - root).to(dtype))
        self.decay = nn.Parameter((-6 + 5 * place ** (0.7 + 1.3 * rise)).to(dtype))
        first = rise * (1 - place) + 0.1 * ((h + 1) % 3 - 1)
        self.first = nn.Parameter(first.to(dtype).view(self.heads, -1))

    def no_weight_decay(self) -> set[str]:
        return {"decay", "first", "shift_x", "shift_w", "shift_k", "shift_v", "shift_r", "shift_g"}

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, T, C) -> (B, T, C), T = grid[0] * grid[1] + extra_tokens."""
        x_w, x_k, x_v, x_r, x_g = self._mixed(x, grid)
        # The decay is an exponential of an exponential: add it up in at least float32, whatever the parameters' dtype.
        exact = torch.promote_types(self.decay.dtype, torch.float32)
        w = self.decay.to(exact) + (torch.tanh(x_w @ self.decay_down) @ self.decay_up).to(exact)
        r, k, v, w = (m.unflatten(-1, (self.heads, -1)) for m in (self.receptance(x_r), self.key(x_k), self.value(x_v), w))
        y = bi_wkv6(r, k, v, w, self.first).flatten(2)
        if self.key_norm is not None:
            y = self.key_norm(y)
        return self.output(self.head_norm(y) * F.silu(self.gate(x_g)))

    def _mixed(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, ...]:
        """x_m for m in w, k, v, r, g, each (B, T, C)."""
        step = q_shift(x, grid, heads=self.heads, extra_tokens=self.extra_tokens) - x
        inner = torch.tanh(torch.addcmul(x, step, self.shift_x) @ self.shift_down).unflatten(-1, (MIXES_V6, -1))
        offsets = torch.einsum("btmr,mrc->mbtc", inner, self.shift_up)
        own = torch.stack((self.shift_w, self.shift_k, self.shift_v, self.shift_r, self.shift_g))
        return torch.addcmul(x, step, own[:, None, None] + offsets).unbind(0)


class RWKVChannelMix(nn.Module):
    """Channel mix of Vision-RWKV: sigmoid(receptance(x_r)) * value(relu(key(x_k))^2), x_k and x_r mixed with the Q-shifted tokens.

    Args:
        context: where the layer stands.
        heads: the Q-shift cuts inside each of this many heads (Vision-RWKV-6).
        extra_tokens: tokens after the patches; they pass the shift unchanged.
        key_norm: a LayerNorm before `value`.
    """

    def __init__(self, context: LayerContext, *, heads: int = 1, extra_tokens: int = 0, key_norm: bool = False) -> None:
        super().__init__()
        self.heads, self.extra_tokens = heads, extra_tokens
        ramp = ((torch.arange(context.dim, dtype=torch.float64) / context.dim) ** context.fall).to(torch.get_default_dtype())
        self.mix_k = nn.Parameter(ramp)
        self.mix_r = nn.Parameter(ramp.clone())
        self.key = nn.Linear(context.dim, context.hidden, bias=False)
        self.receptance = nn.Linear(context.dim, context.dim, bias=False)
        self.value = nn.Linear(context.hidden, context.dim, bias=False)
        self.key_norm = nn.LayerNorm(context.hidden) if key_norm else None

    def no_weight_decay(self) -> set[str]:
        return {"mix_k", "mix_r"}

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        mixes = torch.stack((self.mix_k, self.mix_r))
        x_k, x_r = q_shift_mix(x, mixes, grid, heads=self.heads, extra_tokens=self.extra_tokens).unbind(0)
        hidden = relu_squared(self.key(x_k))
        if self.key_norm is not None:
            hidden = self.key_norm(hidden)
        return torch.sigmoid(self.receptance(x_r)) * self.value(hidden)


class PointwiseSpatialMix(nn.Module):
    """The control `none`: the RWKV spatial mix when every token is its own sequence.

    Bi-WKV of one token returns v, so out = output(sigmoid(receptance(x)) * value(x)). No key, no decay, no shift: no token sees another.
    """

    def __init__(self, context: LayerContext) -> None:
        super().__init__()
        self.value = nn.Linear(context.dim, context.dim, bias=False)
        self.receptance = nn.Linear(context.dim, context.dim, bias=False)
        self.output = nn.Linear(context.dim, context.dim, bias=False)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return self.output(torch.sigmoid(self.receptance(x)) * self.value(x))


class PointwiseChannelMix(nn.Module):
    """The RWKV channel mix without the shift: sigmoid(receptance(x)) * value(relu(key(x))^2)."""

    def __init__(self, context: LayerContext) -> None:
        super().__init__()
        self.key = nn.Linear(context.dim, context.hidden, bias=False)
        self.receptance = nn.Linear(context.dim, context.dim, bias=False)
        self.value = nn.Linear(context.hidden, context.dim, bias=False)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return torch.sigmoid(self.receptance(x)) * self.value(relu_squared(self.key(x)))
