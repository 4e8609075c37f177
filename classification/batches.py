"""What happens to a batch between the data loader and the model: stacking, labels, mixup and cutmix.

mixup: arXiv 1710.09412. cutmix: arXiv 1905.04899. Both through `timm.data.Mixup`, which draws from `numpy.random`: in a training step that
is the stream which the engine saves in every checkpoint, so a resumed run mixes as the uninterrupted one does.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS
from timm.data import Mixup
from torch import Tensor

_MIXUP = sorted(set(inspect.signature(Mixup).parameters) - {"num_classes", "label_smoothing", "multi_label"})


@MODELS.register_module()
class ClassificationPreprocessor(BaseDataPreprocessor):
    """Stacks a batch, moves it to the device and, in training, mixes it.

    In timm's mode "batch" (the default) sample i of a batch of B is mixed with sample i + B/2 (modulo B), with one weight and one box for
    the batch. Which two samples of an epoch are mixed, and how, is therefore the same for one process with a batch of n B and for n
    processes with a batch of B each, as the samples of n processes are interleaved. In the modes "elem" and "pair" it depends on the batch
    of the process.

    Args:
        num_classes: K.
        mixup: arguments of `timm.data.Mixup` (mixup_alpha, cutmix_alpha, cutmix_minmax, prob, switch_prob, mode, correct_lam), or None for
            no mixing. Label smoothing is not among them: it belongs to the loss.
        non_blocking: copy to the device asynchronously.

    Raises:
        ValueError, TypeError: `mixup` has an unknown key or mixes nothing.
    """

    def __init__(self, num_classes: int, mixup: Mapping[str, Any] | None = None, non_blocking: bool = False) -> None:
        super().__init__(non_blocking=non_blocking)
        if not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"num_classes must be a positive int, got {num_classes!r}")
        self.num_classes = num_classes
        self.mixup = None if mixup is None else _make_mixup(mixup, num_classes)

    def forward(self, data: dict, training: bool = False) -> dict:
        """Collated batch -> arguments of the model.

        Args:
            data: `inputs`, a list of B float tensors (3, H, W) or a tensor (B, 3, H, W), and optionally `data_samples`, a list of B.
            training: mix.

        Returns:
            `inputs` (B, 3, H, W); `data_samples` as given; `targets`: None without labels, class indices (B,) int64, or, when mixed, the
            probabilities of the classes (B, K) float32.

        Raises:
            ValueError, TypeError: images of several sizes, not floating-point, a label outside 0..K-1, or an odd batch to be mixed.
        """
        samples = data.get("data_samples")
        self._check_labels(samples)
        data = self.cast_data(data)
        inputs, samples = _stack(data["inputs"]), data.get("data_samples")
        targets = None
        if samples is not None and all("gt_label" in sample for sample in samples):
            targets = torch.stack([sample.gt_label for sample in samples])
            if training and self.mixup is not None:
                inputs, targets = self._mix(inputs, targets)
        return dict(inputs=inputs, data_samples=samples, targets=targets)

    def _check_labels(self, samples: list | None) -> None:
        """Before the copy to a device, where an index out of range ends the process without a reason."""
        for sample in samples or ():
            if "gt_label" in sample and not 0 <= int(sample.gt_label) < self.num_classes:
                name = sample.get("img_path", "a sample")
                raise ValueError(f"{name} has label {int(sample.gt_label)}, but the model has num_classes={self.num_classes}")

    def _mix(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        count = len(inputs)
        if count % 2:
            raise ValueError(
                f"mixup needs batches of an even size, got {count}: make train_dataloader.batch_size even, with drop_last=True"
            )
        if self.mixup.mode != "batch":
            return self.mixup(inputs, targets)
        # timm pairs i with B - 1 - i. With the second half reversed, that is i with i + B/2; reversing it again restores the order.
        order = torch.cat([torch.arange(count // 2), torch.arange(count - 1, count // 2 - 1, -1)]).to(inputs.device)
        inputs, targets = self.mixup(inputs[order], targets[order])
        return inputs[order], targets[order]


def _make_mixup(options: Mapping[str, Any], num_classes: int) -> Mixup:
    if unknown := sorted(set(options) - set(_MIXUP)):
        raise TypeError(f"mixup has no option {', '.join(unknown)}; expected some of {', '.join(_MIXUP)}")
    mixup = Mixup(**options, label_smoothing=0.0, num_classes=num_classes)
    if mixup.mode not in ("batch", "pair", "elem"):
        raise ValueError(f"mixup.mode: expected batch, pair or elem, got {mixup.mode!r}")
    if not (mixup.mixup_alpha > 0 or mixup.cutmix_alpha > 0):
        raise ValueError("mixup: mixup_alpha or cutmix_alpha must be positive; for no mixing set mixup=None")
    return mixup


def _stack(inputs: Tensor | list[Tensor]) -> Tensor:
    if not isinstance(inputs, Tensor):
        shapes = sorted({tuple(image.shape) for image in inputs})
        if len(shapes) > 1:
            raise ValueError(f"inputs: the images of a batch must have one shape, got {', '.join(map(str, shapes))}")
        inputs = torch.stack(list(inputs))
    if inputs.ndim != 4 or not inputs.is_floating_point():
        raise TypeError(f"inputs: expected normalised float images (B, 3, H, W), got {inputs.dtype} of shape {tuple(inputs.shape)}")
    return inputs
