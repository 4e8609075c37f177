"""Kvasir-SEG: the dataset class, and the conversion of the published folder into its layout."""

from pathlib import Path
from typing import ClassVar

import numpy as np
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS
from PIL import Image

from .checked import CheckedDatasetMixin

LONG_SIDE = 512  # pixels


@DATASETS.register_module()
class KvasirDataset(CheckedDatasetMixin, BaseSegDataset):
    """Kvasir-SEG, colonoscopy images with polyps (Jha et al., MMM 2020): background and polyp. Every image has a polyp.

    Layout: img_dir/{train,val,test}/<id>.jpg and ann_dir/{train,val,test}/<id>.png; a mask pixel is a class index.
    """

    SOURCE = "kvasir"
    METAINFO: ClassVar[dict] = dict(classes=("background", "polyp"), palette=[[0, 0, 0], [255, 255, 255]])


def convert_kvasir(source: str | Path, lists: str | Path, target: str | Path) -> dict[str, int]:
    """Bring the folder `Kvasir-SEG` into the layout of `KvasirDataset`.

    Images with a longer side above 512 pixels are reduced to 512 (area average; masks after > 127, nearest). Images become JPEG of
    quality 90.

    Args:
        source: holds images/<id>.jpg and masks/<id>.jpg.
        lists: holds train.txt, val.txt and test.txt, one id per line.
        target: img_dir and ann_dir are made there.

    Returns:
        The number of images by split.

    Raises:
        FileNotFoundError: a listed image or its mask is missing.
        ValueError: an image and its mask differ in size.
    """
    source, target = Path(source), Path(target)
    ids = {split: (Path(lists) / f"{split}.txt").read_text(encoding="utf-8").split() for split in ("train", "val", "test")}
    pairs = {name: (source / "images" / f"{name}.jpg", source / "masks" / f"{name}.jpg") for names in ids.values() for name in names}
    if missing := [path for pair in pairs.values() for path in pair if not path.is_file()]:
        raise FileNotFoundError(f"{len(missing)} of {2 * len(pairs)} files are missing, the first is {missing[0]}: expected Kvasir-SEG")
    for split, names in ids.items():
        images, masks = target / "img_dir" / split, target / "ann_dir" / split
        images.mkdir(parents=True, exist_ok=True)
        masks.mkdir(parents=True, exist_ok=True)
        for name in names:
            image, mask = (Image.open(path) for path in pairs[name])
            if image.size != mask.size:
                raise ValueError(f"image {pairs[name][0]} has {image.size} pixels (width, height), but its mask has {mask.size}")
            scale = min(1.0, LONG_SIDE / max(image.size))
            size = tuple(round(side * scale) for side in image.size)
            labels = Image.fromarray((np.array(mask.convert("L")) > 127).astype(np.uint8))
            image.convert("RGB").resize(size, Image.Resampling.BOX).save(images / f"{name}.jpg", quality=90)
            labels.resize(size, Image.Resampling.NEAREST).save(masks / f"{name}.png")
    return {split: len(names) for split, names in ids.items()}
