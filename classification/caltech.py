"""Ten classes of Caltech-101 (Fei-Fei, Fergus, Perona, 2004) as a small data set: which images, and how they are reduced."""

import json
from pathlib import Path

from PIL import Image

CLASSES = (
    "airplanes",
    "Motorbikes",
    "Leopards",
    "bonsai",
    "ketch",
    "chandelier",
    "grand_piano",
    "sunflower",
    "helicopter",
    "kangaroo",
)
SPLITS = ("train", "val", "test")


def convert_caltech(source: str | Path, lists: str | Path, target: str | Path, *, side: int = 128) -> dict[str, int]:
    """Bring listed images of Caltech-101 into the layout of `ImageFolderDataset`, the longer side reduced to `side`, as JPEG of quality 90.

    Args:
        source: the folder `101_ObjectCategories`, with one folder per class.
        lists: folder of train.txt, val.txt and test.txt, one "class/image.jpg" a line.
        target: the splits and `manifest.json`, which holds the order of the classes, are made there.
        side: pixels; smaller images are kept as they are.

    Returns:
        The number of images by split.

    Raises:
        FileNotFoundError: a list or a listed image is missing.
        ValueError: a list names a class that is not one of the ten.
    """
    source, target = Path(source), Path(target)
    names = {split: (Path(lists) / f"{split}.txt").read_text(encoding="utf-8").split() for split in SPLITS}
    for name in (name for split in SPLITS for name in names[split]):
        if name.split("/")[0] not in CLASSES:
            raise ValueError(f"{name}: expected one of the classes {', '.join(CLASSES)}")
        if not (source / name).is_file():
            raise FileNotFoundError(f"{source / name} does not exist: expected the folder 101_ObjectCategories of Caltech-101")
    for split in SPLITS:
        for name in names[split]:
            path = target / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(source / name) as image:
                small = image.convert("RGB")
            small.thumbnail((side, side), Image.Resampling.LANCZOS)
            small.save(path, quality=90)
    (target / "manifest.json").write_text(json.dumps(dict(classes=CLASSES), indent=1) + "\n", encoding="utf-8")
    return {split: len(names[split]) for split in SPLITS}
