"""What several backbones are built from: where a layer stands, channel norms, tokens and maps, initial values."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import image_size


@dataclass(frozen=True)
class LayerContext:
    """Where a mixer stands: what its constructor may depend on.

    Attributes:
        dim: token width C.
        index: layer index, 0-based.
        depth: number of token layers.
        num_heads: heads of mixers that have heads.
        mlp_ratio: hidden width of the channel mixer over C.
    """

    dim: int
    index: int
    depth: int
    num_heads: int
    mlp_ratio: float

    @property
    def hidden(self) -> int:
        """Hidden width of the channel mixer, int(mlp_ratio * C)."""
        return int(self.mlp_ratio * self.dim)

    @property
    def rise(self) -> float:
        """0 for the first layer, 1 for the last; 0 for a single one, where the official code divides by zero."""
        return self.index / max(self.depth - 1, 1)

    @property
    def fall(self) -> float:
        """1 for the first layer, 1 / depth for the last."""
        return 1 - self.index / self.depth


def relu_squared(x: Tensor) -> Tensor:
    return F.relu(x).square()


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Context in which operations on tensors of x's device keep their dtypes. The meta device has no autocast."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, N, C) -> (B, C, *grid), a channels-last view.

    Through permute, not a reshape of the transposed tokens: for B = 1 that leaves strides which PyTorch takes for neither memory format, so
    that CPU convolutions copy (2 to 10 times slower), and with which the CPU gradient of batch norm is wrong.
    """
    return tokens.unflatten(1, grid).permute(0, 3, 1, 2)


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C), row-major, the inverse of `to_map`; a view of a channels-last map, for the reason given there."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def new_pos_embed(size: int | Sequence[int] | None, dim: int) -> nn.Parameter | None:
    """Position embedding (1, C, h, w), truncated normal with std 0.02."""
    if size is None:
        return None
    grid = image_size(size, "pos_embed_size")
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, dim, *grid), std=0.02))


def init_conv(module: nn.Module) -> None:
    """For `Module.apply`: convolutions normal with std sqrt(2 / fan_out), fan_out = kh * kw * out / groups; zero bias."""
    if isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def init_linear(module: nn.Module) -> None:
    """For `Module.apply`: linears truncated normal with std 0.02, zero bias."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
