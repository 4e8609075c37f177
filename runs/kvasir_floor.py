"""What answers that look at no polyp reach on Kvasir-SEG: python runs/kvasir_floor.py OUT.json. The floor under every mDice and mIoU.

Three answers: every pixel, every pixel that is not black (the frame of a colonoscope is), and the pixels that are polyp in more than a
share of the training masks, brought to one size; the share is the best on the validation split. Scored on the test split. A last row says
how much of the test images is black, how much is polyp, and how much of the masks' outline lies on black, where an edge is easy to find.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

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


def grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    return np.array(Image.fromarray(mask.astype(np.uint8)).filter(ImageFilter.MaxFilter(2 * pixels + 1))) > 0


def describe(data: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Per cent of the pixels, or of the images."""
    outline = [grown(mask > 0, 3) & (mask == 0) for _, mask in data]
    on_black = np.array([(ring & (image <= BLACK)).sum() / max(ring.sum(), 1) for ring, (image, _) in zip(outline, data, strict=True)])
    polyp = np.array([mask.mean() for _, mask in data])
    found = dict(
        black_median=np.median([(image <= BLACK).mean() for image, _ in data]),
        polyp_median=np.median(polyp),
        polyp_min=polyp.min(),
        polyp_max=polyp.max(),
        outline_on_black_mean=on_black.mean(),
        images_with_over_5_percent_on_black=(on_black > 0.05).mean(),
    )
    return {key: 100 * float(value) for key, value in found.items()}


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
    rows = [measurement_row("accuracy", name, condition=condition, result=score(answer, test)) for name, answer in answers.items()]
    write_rows(args.out, [*rows, measurement_row("data", "Kvasir-SEG, test split", condition=condition, result=describe(test))])


if __name__ == "__main__":
    run_tool(main)
