"""A backbone and a linear classifier on the mean of its last map, or on its class token."""

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn


@MODELS.register_module()
class ImageClassifier(BaseModel):
    """Image (B, 3, H, W) -> logits (B, K): backbone, pooling, optional LayerNorm, dropout, linear layer.

    The linear layer starts with a truncated normal of std 0.02 and bias 0. The loss is the cross entropy of class indices or of class
    probabilities (mixup), in float32; with smoothing e a target y becomes (1 - e) y + e / K.

    Args:
        backbone: config of a backbone that keeps the Pyramid contract, such as dict(type="linescan.HybridBackbone", arch="tiny",
            out_indices=(3,)). Only its last returned map is used; `out_indices` should leave out the others.
        num_classes: K.
        pool: "mean": the last map's mean over its positions. "class_token": the final class token of a plain backbone that has one (Vim,
            VRWKV6 with class_token=True); such a backbone tells its tokens through `level_tokens` and `split_tokens`.
        head_norm: put a LayerNorm (eps 1e-6) before the linear layer, for a backbone whose last map is not normed.
        dropout: probability, before the linear layer.
        label_smoothing: e, in [0, 1).
        data_preprocessor: arguments of `ClassificationPreprocessor` (`mixup`), or a whole config of one or a module.
        init_cfg: as in MMEngine. Pretrained backbones go through the backbone's `init_cfg`.

    Raises:
        ValueError: a value out of range, a backbone without `out_channels`, or one without tokens where the class token is asked for.
    """

    def __init__(
        self,
        backbone: dict,
        num_classes: int,
        *,
        pool: str = "mean",
        head_norm: bool = False,
        dropout: float = 0.0,
        label_smoothing: float = 0.0,
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        if not isinstance(num_classes, int) or num_classes < 2:
            raise ValueError(f"num_classes must be an int >= 2, got {num_classes!r}")
        for name, value in (("label_smoothing", label_smoothing), ("dropout", dropout)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {value!r}")
        if pool not in ("mean", "class_token"):
            raise ValueError(f"pool: expected mean or class_token, got {pool!r}")
        if not isinstance(data_preprocessor, nn.Module):
            data_preprocessor = {"type": "ClassificationPreprocessor", "num_classes": num_classes, **(data_preprocessor or {})}
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.backbone = MODELS.build(backbone)
        if not getattr(self.backbone, "out_channels", None):
            raise ValueError(f"backbone: {type(self.backbone).__name__} has no out_channels, so the width of its last map is not known")
        if pool == "class_token" and not hasattr(self.backbone, "level_tokens"):
            raise ValueError(f"pool: {type(self.backbone).__name__} has no class token")
        self.pool = pool
        width = self.backbone.out_channels[-1]
        self.norm = nn.LayerNorm(width, eps=1e-6) if head_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        inputs: Tensor,
        data_samples: list[BaseDataElement] | None = None,
        targets: Tensor | None = None,
        mode: str = "tensor",
    ) -> Tensor | dict[str, Tensor] | list[BaseDataElement]:
        """One of three.

        Args:
            inputs: normalised images (B, 3, H, W).
            data_samples: one for each image; `predict` completes them.
            targets: class indices (B,) int64 or probabilities (B, K), for `loss`.
            mode: "tensor": logits (B, K). "loss": dict(loss=scalar). "predict": samples with `pred_score` (K,) float32 and `pred_label` ().

        Raises:
            ValueError: another mode, or a loss without targets.
        """
        if mode not in ("tensor", "loss", "predict"):
            raise ValueError(f"mode: expected tensor, loss or predict, got {mode!r}")
        if mode == "loss" and targets is None:
            raise ValueError("targets: a loss needs them, and the data have no gt_label")
        logits = self.head(self.dropout(self.norm(self._pooled(inputs))))
        if mode == "tensor":
            return logits
        if mode == "loss":
            return dict(loss=F.cross_entropy(logits.float(), targets, label_smoothing=self.label_smoothing))
        return self._predict(logits, data_samples)

    def _pooled(self, inputs: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C)."""
        if self.pool == "mean":
            return self.backbone(inputs)[-1].mean(dim=(2, 3))
        levels, grid = self.backbone.level_tokens(inputs)
        before, _, after = self.backbone.split_tokens(levels[-1], grid)
        extra = torch.cat((before, after), dim=1)
        if extra.shape[1] != 1:
            raise ValueError(f"pool: expected one class token, {type(self.backbone).__name__} has {extra.shape[1]}; build it with one")
        return extra[:, 0].to(self.head.weight.dtype)

    def _predict(self, logits: Tensor, samples: list[BaseDataElement] | None) -> list[BaseDataElement]:
        scores = torch.softmax(logits.float(), dim=1)
        samples = [BaseDataElement() for _ in scores] if samples is None else samples
        for sample, score in zip(samples, scores, strict=True):
            sample.pred_score, sample.pred_label = score, score.argmax()
        return samples
