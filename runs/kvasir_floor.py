"""What answers that look at no polyp reach on Kvasir-SEG: python runs/kvasir_floor.py OUT.json. The floor under every mDice and mIoU.

Three answers: every pixel, every pixel that is not black (the frame of a colonoscope is), and the pixels that are polyp in more than a
share of the training masks, brought to one size; the share is the best on the validation split. Scored on the test split.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from linescan.engine import quiet_imports
from linescan.engine.cli import run_tool
from linescan.profiling import measurement_row, write_rows

with quiet_imports():
    from linescan.segmentation.metrics import PerImageOverlap

SIDE, BLACK = 352, 20  # pixels; grey level
SHARES = np.linspace(0.05, 0.6, 12)


def pairs(root: Path, split: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """(grey image, mask) of every image, at its own size."""
    images = sorted((root / "img_dir" / split).glob("*.jpg"))
    return [(np.array(Image.open(p).convert("L")), np.array(Image.open(root / "ann_dir" / split / f"{p.stem}.png"))) for p in images]


def score(answers: list[np.ndarray], data: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    metric = PerImageOverlap("polyp")
    metric.dataset_meta = dict(classes=("background", "polyp"))
    samples = [
        {"pred_sem_seg": {"data": torch.from_numpy(answer.astype(np.uint8))}, "gt_sem_seg": {"data": torch.from_numpy(mask)}}
        for answer, (_, mask) in zip(answers, data, strict=True)
    ]
    metric.process({}, samples)
    return {key: float(value) for key, value in metric.compute_metrics(metric.results).items()}


def likely(frequency: np.ndarray, share: float, data: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """The same map for every image, at its size."""
    where = Image.fromarray((frequency > share).astype(np.uint8))
    return [np.array(where.resize(mask.shape[::-1], Image.Resampling.NEAREST)) for _, mask in data]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--debug", action="store_true", help="show the traceback of every error")
    args = parser.parse_args()
    root = Path(os.environ.get("LINESCAN_DATA", "data")) / "kvasir"
    if not root.is_dir():
        raise FileNotFoundError(
            f"LINESCAN_DATA: the folder {root.name} does not exist below it; docs/datasets.md says where to get Kvasir-SEG"
        )
    train, val, test = (pairs(root, split) for split in ("train", "val", "test"))
    masks = [Image.fromarray(mask).resize((SIDE, SIDE), Image.Resampling.NEAREST) for _, mask in train]
    frequency = np.mean([np.array(mask) for mask in masks], axis=0)
    best = max(SHARES, key=lambda share: score(likely(frequency, share, val), val)["mIoU"])
    answers = {
        "every pixel": [np.ones_like(mask) for _, mask in test],
        "every pixel that is not black": [image > BLACK for image, _ in test],
        f"where more than {best:.0%} of the training masks are": likely(frequency, best, test),
    }
    condition = dict(config=None, split="test", images=len(test), source="no network")
    write_rows(args.out, [measurement_row("accuracy", name, condition=condition, result=score(a, test)) for name, a in answers.items()])


if __name__ == "__main__":
    run_tool(main)
