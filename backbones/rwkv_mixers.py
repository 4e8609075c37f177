"""The mixers of Vision-RWKV (arXiv 2403.02308) and their controls without token mixing."""

import math

import torch
from torch import Tensor, nn

from ..kernels.bi_wkv import bi_wkv
from ..kernels.q_shift import q_shift_mix
from .layers import LayerContext, relu_squared


class RWKVSpatialMix(nn.Module):
    """Spatial mix of Vision-RWKV (arXiv 2403.02308, eq. 3-4): Q-shift, three projections, Bi-WKV, a sigmoid gate.

    With T tokens, xs = q_shift(x) and x_m = mix_m * x + (1 - mix_m) * xs:
    out = output(sigmoid(receptance(x_r)) * BiWKV(w=decay/T, u=first/T, k=key(x_k), v=value(x_v))).
    Both decay and first are divided by T, as the official code does; the paper divides the decay only.

    `decay`, `first` and the mixes start at the official "fancy" values, which depend on channel and layer. The four linears keep PyTorch's
    default initialisation, as they do in the official code, whose zero-scale attributes nothing reads: zero everywhere would leave no
    gradient.
    """

    def __init__(self, context: LayerContext) -> None:
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
        return self.output(torch.sigmoid(r) * y)


class RWKVChannelMix(nn.Module):
    """Channel mix of Vision-RWKV: sigmoid(receptance(x_r)) * value(relu(key(x_k))^2), x_k and x_r mixed with the Q-shifted tokens."""

    def __init__(self, context: LayerContext) -> None:
        super().__init__()
        ramp = ((torch.arange(context.dim, dtype=torch.float64) / context.dim) ** context.fall).to(torch.get_default_dtype())
        self.mix_k = nn.Parameter(ramp)
        self.mix_r = nn.Parameter(ramp.clone())
        self.key = nn.Linear(context.dim, context.hidden, bias=False)
        self.receptance = nn.Linear(context.dim, context.dim, bias=False)
        self.value = nn.Linear(context.hidden, context.dim, bias=False)

    def no_weight_decay(self) -> set[str]:
        return {"mix_k", "mix_r"}

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        x_k, x_r = q_shift_mix(x, torch.stack((self.mix_k, self.mix_r)), grid).unbind(0)
        hidden = relu_squared(self.key(x_k))
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
