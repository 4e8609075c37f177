"""Plain backbones: a patch embedding, then layers that all work on the same tokens.

A plain backbone (ViT, Vision-RWKV, Vim) computes one map per layer, all at the stride of its patches. `PlainBackbone` holds what they
share, in steps that another network can take one by one: `ViTAdapter` runs the layers in groups and exchanges features with the tokens.

    tokens, grid = backbone.embed(image)                 (B, T, C); T = grid[0] * grid[1] patches, plus other tokens if there are any
    tokens = backbone.run_layer(i, tokens, grid)         for i = 0 .. depth - 1
    backbone.to_map(backbone.final(tokens), grid)        (B, C, *grid)

Levels are layers: `out_indices=(2, 5, 8, 11)` returns the maps after these layers, as in MMSegmentation's VisionTransformer. The output of
the last layer passes the final norm, the others are the raw stream, as in the published codes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import to_map
from .pyramid import Pyramid


class PlainBackbone(Pyramid):
    """Base class of plain backbones. A subclass sets `layers`, calls `_finish_plain` once, and implements `embed` and `final`.

    Stages for `frozen_stages`: 0 what stands before the layers (patch embedding, position embedding, class token); n the layer n - 1; the
    last one also the final norm. The layers above the highest of `out_indices` are not computed.
    """

    layers: nn.ModuleList
    patch_stride: int

    def _finish_plain(
        self, dim: int, patch_stride: int, before: Sequence[nn.Module | nn.Parameter], after: Sequence[nn.Module | nn.Parameter]
    ) -> None:
        """Declare the levels and stages.

        Args:
            dim: token width C.
            patch_stride: pixels between patches.
            before, after: modules and bare parameters before the first layer and after the last.
        """
        depth = len(self.layers)
        self.dim, self.patch_stride = dim, patch_stride
        layers = [list(before), *([layer] for layer in self.layers)]
        stages = [*layers[:-1], [*layers[-1], *after]]
        self._finish((dim,) * depth, (patch_stride,) * depth, stages, layers)

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Image (B, in_channels, H, W) -> tokens (B, T, C), position embedding added, and the grid of the patches (h, w)."""
        raise NotImplementedError

    def run_layer(self, index: int, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens after layer `index`; recomputed in the backward pass if `with_cp`."""
        return self._run(self.layers[index], tokens, grid)

    def final(self, tokens: Tensor) -> Tensor:
        """Tokens after the last layer -> normed tokens."""
        raise NotImplementedError

    def split_tokens(self, tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens -> (those before the patches, the patches in row-major order, those after them), each (B, n, C) with n >= 0.

        Joined along dimension 1 they are the tokens again. A class token in the middle of the patches needs an override, together with
        `join_tokens`.
        """
        patches = grid[0] * grid[1]
        return tokens[:, :0], tokens[:, :patches], tokens[:, patches:]

    def join_tokens(self, before: Tensor, patches: Tensor, after: Tensor) -> Tensor:
        """The inverse of `split_tokens`."""
        parts = [part for part in (before, patches, after) if part.shape[1]]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def to_map(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (B, T, C) -> map of the patches (B, C, *grid)."""
        return to_map(self.split_tokens(tokens, grid)[1], grid)

    def level_tokens(self, x: Tensor) -> tuple[list[Tensor], tuple[int, int]]:
        """Image (B, in_channels, H, W) -> tokens (B, T, C) after each layer in `out_indices`, the last layer's normed, and the grid."""
        self._check_input(x)
        tokens, grid = self.embed(x)
        levels = []
        last = len(self.layers) - 1
        for i in range(max(self.out_indices) + 1):
            tokens = self.run_layer(i, tokens, grid)
            if i in self.out_indices:
                levels.append(self.final(tokens) if i == last else tokens)
        return levels, grid

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, in_channels, H, W) -> a map (B, C, ceil(H/s), ceil(W/s)) per layer in `out_indices`; any H, W >= 1."""
        levels, grid = self.level_tokens(x)
        return tuple(self.to_map(tokens, grid) for tokens in levels)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """(B, C, H, W) zero-padded at the right and the bottom until H and W are multiples of `multiple`."""
    return F.pad(x, (0, -x.shape[3] % multiple, 0, -x.shape[2] % multiple))
