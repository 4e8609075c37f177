"""Metrics beside MMSegmentation's own: IoU of every class as scalars, and how well two classes are told apart."""

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
