"""Segmentors that fit their heads to the backbone's feature pyramid."""

import inspect
from collections.abc import Sequence

from mmengine.model import Sequential as ModuleSequence
from mmseg.models.segmentors import EncoderDecoder
from mmseg.models.segmentors.base import BaseSegmentor
from mmseg.registry import MODELS
from torch import nn


@MODELS.register_module()
class PyramidEncoderDecoder(EncoderDecoder):
    """MMSegmentation's EncoderDecoder, with `in_channels` of neck and heads taken from the backbone.

    The backbone tells its channels per level in `out_channels`; a neck tells its own either as a sequence or as an int together with
    `num_outs` (FPN, MultiLevelNeck). A head selects levels with `in_index`. Where a head or neck gives `in_channels` itself, the two must
    agree; `in_channels=None` is the same as none, so that a command line can take away what a config has. A backbone or neck that tells
    nothing (MMSegmentation's own) works when the next part gives `in_channels`.

    Args:
        backbone, decode_head, neck, auxiliary_head, train_cfg, test_cfg, data_preprocessor, pretrained, init_cfg: as in EncoderDecoder.
            Pretrained weights of our backbones go through their `init_cfg`; `pretrained` is for MMSegmentation's, which take an argument
            of that name. The configs passed in are not changed. `neck` may be a list of necks, which are applied in order:
            [dict(type="SimpleFeaturePyramid"), dict(type="FPN", ...)].

    Raises:
        ValueError: `in_channels` is unknown, disagrees with the pyramid, or `in_index` names a level that does not exist; `pretrained` is
            given here and in the backbone.
    """

    def __init__(
        self,
        backbone: dict,
        decode_head: dict,
        neck: dict | list[dict] | None = None,
        auxiliary_head: dict | list[dict] | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
        pretrained: str | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        # EncoderDecoder.__init__ would build neck and heads before their channels are known.
        BaseSegmentor.__init__(self, data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        if pretrained is not None:
            if backbone.get("pretrained") is not None:
                raise ValueError(f"pretrained={pretrained!r}, but the backbone has pretrained={backbone['pretrained']!r}; leave one out")
            backbone = {**backbone, "pretrained": pretrained}
        self.backbone = MODELS.build(backbone)
        self._source, self._channels = f"backbone {backbone['type']}", _levels(self.backbone)
        if isinstance(neck, Sequence):
            self.neck = ModuleSequence(*(self._build_neck(part, f"neck[{i}]") for i, part in enumerate(neck)))
        elif neck is not None:
            self.neck = self._build_neck(neck, "neck")
        self._init_decode_head(decode_head)
        self._init_auxiliary_head(auxiliary_head)
        self.train_cfg, self.test_cfg = train_cfg, test_cfg

    def _build_neck(self, neck: dict, name: str) -> nn.Module:
        """The neck, fitted to the levels before it; from here on its levels count."""
        # Feature2Pyramid and others have no such argument.
        takes_channels = "in_channels" in inspect.signature(MODELS.get(neck["type"])).parameters
        module = MODELS.build(self._fit(neck, name, range(len(self._channels or ()))) if takes_channels else neck)
        self._source, self._channels = f"{name} {neck['type']}", _levels(module)
        return module

    def _init_decode_head(self, decode_head: dict) -> None:
        super()._init_decode_head(self._fit(decode_head, "decode_head", decode_head.get("in_index", -1)))

    def _init_auxiliary_head(self, auxiliary_head: dict | list[dict] | None) -> None:
        if isinstance(auxiliary_head, list):
            fitted = [self._fit(head, f"auxiliary_head[{i}]", head.get("in_index", -1)) for i, head in enumerate(auxiliary_head)]
        elif auxiliary_head is not None:
            fitted = self._fit(auxiliary_head, "auxiliary_head", auxiliary_head.get("in_index", -1))
        else:
            fitted = None
        super()._init_auxiliary_head(fitted)

    def _fit(self, part: dict, name: str, in_index: int | Sequence[int]) -> dict:
        """The config of a neck or head, with `in_channels` filled in or checked."""
        given = part.get("in_channels")
        if self._channels is None:
            if given is None:
                raise ValueError(f"{name} needs in_channels: {self._source} has no out_channels (one int per level) to take them from")
            return part
        levels = [in_index] if isinstance(in_index, int) else list(in_index)
        count = len(self._channels)
        if any(not -count <= i < count for i in levels):
            raise ValueError(f"{name}.in_index={in_index}: {self._source} returns {count} levels with channels {self._channels}")
        channels = [self._channels[i] for i in levels]
        found = channels[0] if isinstance(in_index, int) else channels
        if given is not None and (given if isinstance(given, int) else list(given)) != found:
            raise ValueError(
                f"{name}.in_channels={given}, but at in_index={in_index} {self._source} gives {found}; leave in_channels out, or None"
            )
        return {**part, "in_channels": found}


def _levels(module) -> tuple[int, ...] | None:
    """Channels per returned level, or None where the module does not tell."""
    channels = getattr(module, "out_channels", None)
    if isinstance(channels, int) and isinstance(getattr(module, "num_outs", None), int):
        return (channels,) * module.num_outs
    if isinstance(channels, Sequence):
        return tuple(channels)
    return None
