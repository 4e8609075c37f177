"""Metrics beside MMSegmentation's own: IoU of every class as scalars, how well two classes are told apart, Dice and IoU image by image."""

from collections.abc import Sequence

import numpy as np
from mmengine.evaluator import BaseMetric
from mmseg.evaluation.metrics import IoUMetric
from mmseg.registry import METRICS


@METRICS.register_module()
class PerClassIoUMetric(IoUMetric):
    """MMSegmentation's IoUMetric, with `IoU.<class>` in percent beside mIoU, so that logs and results files hold every class.

    A class that occurs neither in the masks nor in the predictions has no IoU and is left out. Arguments as in IoUMetric.
    """

    def compute_metrics(self, results: list) -> dict[str, float]:
        summary = super().compute_metrics(results)
        if self.format_only:
            return summary
        intersection, union = (sum(areas).numpy() for areas in list(zip(*results, strict=True))[:2])
        for name, i, u in zip(self.dataset_meta["classes"], intersection, union, strict=True):
            if u > 0:
                summary[f"IoU.{name}"] = round(100 * float(i / u), 2)
        return summary


@METRICS.register_module()
class ClassPairAccuracy(BaseMetric):
    """How well two classes are told apart, whatever the model thinks of the others.

    Over the pixels of either class that the model also gave to either, the share given to the right one, averaged over the two classes:
    50 % is chance, also for unbalanced classes and for a model that always answers the same.
    `pair_accuracy` is NaN while the model gives no pixel of one class to either.

    Args:
        classes: the two class names.
        collect_device, prefix: as in MMEngine's BaseMetric.

    Raises:
        ValueError: not two different names, or a name that the data set does not have.
    """

    def __init__(self, classes: Sequence[str], collect_device: str = "cpu", prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if isinstance(classes, str) or len(set(classes)) != 2 or len(classes) != 2:
            raise ValueError(f"classes must be two different class names, got {classes!r}")
        self.classes = tuple(classes)

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Count truth x prediction over the pair, per image."""
        names = list(self.dataset_meta["classes"])
        missing = [name for name in self.classes if name not in names]
        if missing:
            raise ValueError(f"classes: the data set has no {missing}, only {names}")
        pair = [names.index(name) for name in self.classes]
        for sample in data_samples:
            predicted = sample["pred_sem_seg"]["data"].cpu()
            truth = sample["gt_sem_seg"]["data"].cpu().reshape(predicted.shape)
            self.results.append(np.array([[int(((truth == t) & (predicted == p)).sum()) for p in pair] for t in pair]))

    def compute_metrics(self, results: list) -> dict[str, float]:
        counts = np.sum(results, axis=0).astype(float)
        answered = counts.sum(1)
        if (answered == 0).any():
            return {"pair_accuracy": float("nan")}
        return {"pair_accuracy": round(100 * float((counts.diagonal() / answered).mean()), 2)}


@METRICS.register_module()
class PerImageOverlap(BaseMetric):
    """Dice and IoU of one class per image, averaged over the images: `mDice` and `mIoU` of binary medical segmentation, in percent.

    Every image counts the same, a small object as much as a large one (IoUMetric sums pixels over the data set first). Masks are
    compared at their own size, pixels of the ignored label left out; the threshold is the head's (`decode_head.threshold`). An image
    where neither the mask nor the prediction has the class counts as 100. `Dice_sd` and `IoU_sd` are the standard deviations over the
    images.

    Args:
        foreground: name of the class.
        ignore_index: label that is left out.
        collect_device, prefix: as in MMEngine's BaseMetric.

    Raises:
        ValueError: the data set has no such class.
    """

    def __init__(self, foreground: str, ignore_index: int = 255, collect_device: str = "cpu", prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.foreground, self.ignore_index = foreground, ignore_index

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Dice and IoU of every image."""
        names = list(self.dataset_meta["classes"])
        if self.foreground not in names:
            raise ValueError(f"foreground: the data set has no class {self.foreground!r}, only {names}")
        label = names.index(self.foreground)
        for sample in data_samples:
            predicted = sample["pred_sem_seg"]["data"].cpu()
            truth = sample["gt_sem_seg"]["data"].cpu().reshape(predicted.shape)
            valid = truth != self.ignore_index
            found, there = (predicted == label) & valid, truth == label
            both, either = int((found & there).sum()), int((found | there).sum())
            self.results.append((2 * both / (both + either), both / either) if either else (1.0, 1.0))

    def compute_metrics(self, results: list) -> dict[str, float]:
        mean, sd = 100 * np.mean(results, axis=0), 100 * np.std(results, axis=0)
        return {"mDice": mean[0], "mIoU": mean[1], "Dice_sd": sd[0], "IoU_sd": sd[1]}
