"""Hierarchical backbones: a patch embedding of stride 4, then four stages of blocks on tokens, each at half the size of the one before.

    patch embedding   (B, in, H, W) -> (B, C_0, H/4, W/4)
    stage i           blocks on tokens (B, L, C_i), row-major                       level i, stride 4 * 2**i, normed if there are norms
    downsampling      (B, C_i, H_i, W_i) -> (B, C_(i+1), H_i/2, W_i/2)

All sizes are rounded up.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .layers import to_map, to_tokens
from .pyramid import Pyramid

STRIDES = (4, 8, 16, 32)


class HierarchicalBackbone(Pyramid):
    """Base class of VMamba and VSSD. A subclass sets the three attributes below, then calls `_finish_hierarchical` once.

    Stages for `frozen_stages`: 0 the patch embedding; n the downsampling before stage n - 1, its blocks and its norm. What stands above the
    highest of `out_indices` is not computed.
    """

    patch_embed: nn.Module
    downsamples: nn.ModuleList
    stages: nn.ModuleList

    def _finish_hierarchical(self, dims: Sequence[int], *, out_norm: bool) -> None:
        """Add a LayerNorm for every returned level if `out_norm`, and declare levels and stages; `dims` are the stages' widths."""
        wanted = self.out_indices if isinstance(self.out_indices, list | tuple) else range(len(dims))
        self.outnorm = nn.ModuleDict({str(i): nn.LayerNorm(dim) for i, dim in enumerate(dims) if out_norm and i in wanted})
        stages: list[list[nn.Module]] = [[self.patch_embed]]
        layers: list[list[nn.Module]] = [[self.patch_embed]]
        for i, blocks in enumerate(self.stages):
            before = [self.downsamples[i - 1]] if i else []
            after = [self.outnorm[str(i)]] if str(i) in self.outnorm else []
            stages.append([*before, *blocks, *after])
            steps = [[block] for block in blocks]
            steps[0] = before + steps[0]
            steps[-1] = steps[-1] + after
            layers += steps
        self._finish(dims, STRIDES, stages, layers)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, in_channels, H, W) -> the maps chosen by `out_indices`; any H, W >= 1."""
        self._check_input(x)
        # Channels last from the start: every later map and its tokens are then views of each other, and no layer copies.
        x = self._run(self.patch_embed, x.contiguous(memory_format=torch.channels_last))
        levels = []
        for i in range(self.out_indices[-1] + 1):
            if i:
                x = self._run(self.downsamples[i - 1], x)
            grid = (x.shape[2], x.shape[3])
            tokens = to_tokens(x)
            for block in self.stages[i]:
                tokens = self._run(block, tokens, grid)
            x = to_map(tokens, grid)
            if i in self.out_indices:
                levels.append(to_map(self.outnorm[str(i)](tokens), grid) if str(i) in self.outnorm else x)
        return tuple(levels)
