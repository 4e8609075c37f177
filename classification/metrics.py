"""Accuracy of the k most probable classes."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS


@METRICS.register_module()
class TopKAccuracy(BaseMetric):
    """`accuracy/top<k>`: the share of images, in percent, whose class is among the k most probable ones.

    Args:
        topk: the values of k.
        output_dir: where to write `predictions.json`: the names of the classes, and for each image its name, its label and the max(topk)
            most probable classes with their probabilities. None: nothing is written.
        collect_device, prefix: as in MMEngine's BaseMetric.

    Raises:
        ValueError: `topk` is empty, not positive, or more than there are classes.
    """

    default_prefix = "accuracy"

    def __init__(
        self,
        topk: Sequence[int] = (1, 5),
        output_dir: str | Path | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.topk = (topk,) if isinstance(topk, int) else tuple(topk)
        if not self.topk or not all(isinstance(k, int) and k >= 1 for k in self.topk):
            raise ValueError(f"topk must be positive ints, got {topk!r}")
        self.output_dir = output_dir

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep label and best classes of each sample (`gt_label` (), `pred_score` (K,))."""
        for sample in data_samples:
            scores = sample["pred_score"].float().cpu()
            if max(self.topk) > len(scores):
                raise ValueError(f"topk={self.topk}, but the model has {len(scores)} classes")
            best = torch.topk(scores, max(self.topk))
            self.results.append(
                dict(
                    image=sample.get("name") or sample.get("img_path"),
                    label=int(sample["gt_label"]),
                    predicted=best.indices.tolist(),
                    scores=[round(score, 6) for score in best.values.tolist()],
                )
            )

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """The accuracies over all images; runs on the main process only."""
        if self.output_dir is not None:
            folder = Path(self.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            classes = json.dumps(list((self.dataset_meta or {}).get("classes", ())))
            rows = ",\n".join(json.dumps(row) for row in results)  # one line for each image
            text = f'{{"classes": {classes},\n"predictions": [\n{rows}\n]}}\n'
            (folder / "predictions.json").write_text(text, encoding="utf-8")
        right = {k: sum(row["label"] in row["predicted"][:k] for row in results) for k in self.topk}
        return {f"top{k}": 100 * count / len(results) for k, count in right.items()}
