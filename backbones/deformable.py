"""Multi-scale deformable attention in PyTorch's own operators.

"Deformable DETR: Deformable Transformers for End-to-End Object Detection", arXiv 2010.04159, equation 3. For a query z at the reference
point p, heads h, levels l and points k:

    y = sum_h W_h [ sum_{l,k} a_{hlk} V_{hl}(p_l + o_{hlk}) ],     a = softmax over (l, k) of W_a z,     o = W_o z

V_{hl}(q) is the projected map of level l, read bilinearly at q, zero outside. Offsets o count pixels of their level.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sample(value: Tensor, points: Tensor) -> Tensor:
    """Maps read bilinearly at points between their pixels; what lies outside is zero.

    Args:
        value: (N, D, h, w), float32 or float64.
        points: (N, Q, K, 2), x and y in pixels: the centre of pixel (row i, column j) is at (j + 0.5, i + 0.5).

    Returns:
        (N, D, Q, K).
    """
    height, width = value.shape[2:]
    places = torch.stack([2 * points[..., 0] / width - 1, 2 * points[..., 1] / height - 1], dim=-1)
    return F.grid_sample(value, places, mode="bilinear", padding_mode="zeros", align_corners=False)


def reference_points(size: tuple[int, int], stride: int, like: Tensor) -> Tensor:
    """Centres (h * w, 2), x and y in pixels of the image, of a map's pixels in row-major order; dtype and device of `like`."""
    height, width = size
    y = (torch.arange(height, dtype=like.dtype, device=like.device) + 0.5) * stride
    x = (torch.arange(width, dtype=like.dtype, device=like.device) + 0.5) * stride
    return torch.stack([x.expand(height, width), y.unsqueeze(1).expand(height, width)], dim=-1).flatten(0, 1)


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention, sampled in float32 at least.

    Args:
        dim: width C of queries and maps.
        num_levels: number of maps.
        num_heads: heads; they share the width int(ratio * C) of the sampled values.
        num_points: points per head and level.
        ratio: width of the values over C.
        query_std: standard deviation of the initial weights of offsets and attention weights; at 0, as published, all queries look alike
            at the start.

    Raises:
        ValueError: the heads do not divide the width of the values.
    """

    def __init__(
        self, dim: int, num_levels: int, *, num_heads: int, num_points: int = 4, ratio: float = 1.0, query_std: float = 0.0
    ) -> None:
        super().__init__()
        width = int(ratio * dim)
        if width < 1 or width % num_heads:
            raise ValueError(f"num_heads must divide the width {width} of the values (deform_ratio {ratio} of {dim}), got {num_heads}")
        self.num_levels, self.num_heads, self.num_points = num_levels, num_heads, num_points
        count = num_heads * num_levels * num_points
        self.offsets = nn.Linear(dim, 2 * count)
        self.weights = nn.Linear(dim, count)
        self.value = nn.Linear(dim, width)
        self.output = nn.Linear(width, dim)
        self.reset_parameters(query_std)

    def reset_parameters(self, query_std: float = 0.0) -> None:
        """Each head looks in its own direction, point k at k + 1 pixels (Chebyshev distance); equal weights; Xavier projections."""
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1).view(1, 1, -1, 1)
        start = (directions.view(-1, 1, 1, 2) * steps).expand(-1, self.num_levels, -1, -1)
        with torch.no_grad():
            self.offsets.bias.copy_(start.flatten())
        for linear in (self.weights, self.value, self.output):
            nn.init.zeros_(linear.bias)
        for linear in (self.offsets, self.weights):
            nn.init.normal_(linear.weight, std=query_std)
        nn.init.xavier_uniform_(self.value.weight)
        nn.init.xavier_uniform_(self.output.weight)

    def forward(
        self, queries: Tensor, tokens: Tensor, query_maps: Sequence[tuple[int, int, int]], token_maps: Sequence[tuple[int, int, int]]
    ) -> Tensor:
        """Queries that read the maps around their own places.

        Args:
            queries: (B, Q, C), the pixels of one or several maps one after the other, each in row-major order.
            tokens: (B, S, C), likewise.
            query_maps, token_maps: (h, w, stride) of each map, stride in pixels of the image; as many token maps as `num_levels`.

        Returns:
            (B, Q, C).
        """
        batch, count, _ = queries.shape
        compute = torch.promote_types(queries.dtype, torch.float32)
        heads = (batch, count, self.num_heads, self.num_levels, self.num_points)
        offsets = self.offsets(queries).to(compute).view(*heads, 2)
        weights = self.weights(queries).to(compute).view(*heads[:3], -1).softmax(-1).view(heads)
        values = self.value(tokens).to(compute).split([h * w for h, w, _ in token_maps], dim=1)
        places = torch.cat([reference_points((h, w), stride, offsets) for h, w, stride in query_maps])
        total = 0
        for level, (value, (height, width, stride)) in enumerate(zip(values, token_maps, strict=True)):
            points = places[:, None, None] / stride + offsets[:, :, :, level]
            maps = value.transpose(1, 2).reshape(batch * self.num_heads, -1, height, width).contiguous()
            read = sample(maps, points.transpose(1, 2).flatten(0, 1))
            total = total + (read * weights[:, :, :, level].transpose(1, 2).flatten(0, 1).unsqueeze(1)).sum(-1)
        return self.output(total.reshape(batch, -1, count).transpose(1, 2).to(queries.dtype))
