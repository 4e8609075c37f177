"""Necks: from the maps of a backbone to those that a head wants."""

from collections.abc import Sequence

from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor, nn

_STRIDES = (4, 8, 16, 32)


class _ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _ConvNorm(nn.Sequential):
    """Convolution without bias, then the norm."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, norm_cfg: dict | None) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False), _norm(out_channels, norm_cfg)
        )


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """A pyramid at strides 4, 8, 16, 32 from the stride-16 maps of a plain backbone, by PyTorch's own operators.

        stride 4   transposed 2x2 conv stride 2, norm, GELU, transposed 2x2 conv stride 2
        stride 8   transposed 2x2 conv stride 2
        stride 16  the map itself
        stride 32  2x2 max pooling stride 2, sizes rounded up

    With `out_channels` it is ViTDet's (arXiv 2203.16527): each transposed convolution halves the width, and at every level a 1x1 and a 3x3
    convolution follow, each with a norm and no activation. Without, it is MMSegmentation's Feature2Pyramid: all widths stay. The levels
    exchange nothing; put an FPN behind it for that.

    Works for maps of any size (h, w): the outputs are (4h, 4w), (2h, 2w), (h, w), (ceil(h/2), ceil(w/2)).

    Args:
        in_channels: channels of the backbone's maps: an int or a sequence of one for a single map, of which all levels are made; a sequence
            of four for four maps, one for each level.
        out_channels: channels of all levels, or None to keep the widths.
        norm_cfg: MMCV's norm config, such as dict(type="SyncBN"), which MMSegmentation uses here; None for a LayerNorm over the channels,
            as in ViTDet, which needs neither large batches nor communication.
        init_cfg: MMEngine's initialisation config.

    Attributes:
        out_channels (tuple[int, ...]): of the four levels.

    Raises:
        ValueError: another number of maps than one or four; a width that cannot be halved twice.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        out_channels: int | None = None,
        norm_cfg: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        widths = [in_channels] if isinstance(in_channels, int) else list(in_channels)
        if len(widths) not in (1, len(_STRIDES)):
            raise ValueError(
                f"in_channels: expected one map or {len(_STRIDES)}, got {len(widths)}; choose them by the backbone's out_indices"
            )
        if out_channels is not None and any(width % 4 for width in widths):
            raise ValueError(f"in_channels: with out_channels, which halves them twice, expected multiples of 4, got {tuple(widths)}")
        self.in_channels = tuple(widths)
        widths = widths * (len(_STRIDES) // len(widths))
        shrink = 1 if out_channels is None else 2
        self.levels = nn.ModuleList()
        for width, stride in zip(widths, _STRIDES, strict=True):
            level = _rescale(width, stride, shrink, norm_cfg)
            if out_channels is not None:
                end = width // {4: 4, 8: 2}.get(stride, 1)
                level += [_ConvNorm(end, out_channels, 1, norm_cfg), _ConvNorm(out_channels, out_channels, 3, norm_cfg)]
            self.levels.append(nn.Sequential(*level))
        self.out_channels = tuple(widths) if out_channels is None else (out_channels,) * len(_STRIDES)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps (B, C_i, h, w), as many as `in_channels` -> four maps at (4h, 4w), (2h, 2w), (h, w), (ceil(h/2), ceil(w/2))."""
        if len(inputs) != len(self.in_channels):
            raise ValueError(f"inputs: expected {len(self.in_channels)} maps, as in_channels={self.in_channels} says, got {len(inputs)}")
        if any(x.shape[2:] != inputs[0].shape[2:] for x in inputs):
            raise ValueError(f"inputs: expected maps of one size, got {[tuple(x.shape[2:]) for x in inputs]}")
        maps = list(inputs) * (len(_STRIDES) // len(inputs))
        return tuple(level(x) for level, x in zip(self.levels, maps, strict=True))


def _norm(channels: int, norm_cfg: dict | None) -> nn.Module:
    return _ChannelNorm(channels, eps=1e-6) if norm_cfg is None else build_norm_layer(norm_cfg, channels)[1]


def _rescale(width: int, stride: int, shrink: int, norm_cfg: dict | None) -> list[nn.Module]:
    """From stride 16 to `stride`; each doubling of the size divides the width by `shrink`."""
    half, quarter = width // shrink, width // shrink**2
    if stride == 4:
        first = nn.ConvTranspose2d(width, half, 2, stride=2)
        return [first, _norm(half, norm_cfg), nn.GELU(), nn.ConvTranspose2d(half, quarter, 2, stride=2)]
    if stride == 8:
        return [nn.ConvTranspose2d(width, half, 2, stride=2)]
    return [nn.MaxPool2d(2, stride=2, ceil_mode=True)] if stride == 32 else []
