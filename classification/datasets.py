"""Images in one folder per class, checked before training starts."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SPLITS = ("train", "val", "test")
ADVICE = "If the data lie elsewhere, set the environment variable LINESCAN_DATA, or pass --cfg-options data_root=FOLDER."


@DATASETS.register_module()
class ImageFolderDataset(BaseDataset):
    """`<data_root>/<split>/<class>/<image>`, as ImageNet is commonly laid out. Every class folder must hold at least one image.

    A sample, before the pipeline: `img_path`, `name` ("class/image"), `gt_label` (int) and MMEngine's `sample_idx`.

    Args:
        data_root: folder of the splits.
        split: name of a folder in it, such as train or val.
        classes: names of the class folders by label; or a file below `data_root` that lists them, JSON with a list under "classes" or a
            text file with one name a line. None: the sorted names of the folders, which must be the same in train, val and test as far as
            they exist, so that a label means the same in each.
        pipeline: transforms, see `transforms.py`.
        indices: use these samples only, or the first so many.
        test_mode: as in MMEngine's BaseDataset.

    Raises:
        FileNotFoundError: the folder of the split, a class folder or the list of classes does not exist.
        ValueError: no class folders, a class without images, a folder that is no class, classes named twice, or splits that disagree.
    """

    def __init__(
        self,
        data_root: str,
        split: str = "train",
        *,
        classes: Sequence[str] | str | None = None,
        pipeline: Sequence[dict] = (),
        indices: int | Sequence[int] | None = None,
        test_mode: bool = False,
    ) -> None:
        self.folder = Path(data_root) / split
        names = self._class_names(Path(data_root), split, classes)
        super().__init__(
            data_root=data_root,
            metainfo=dict(classes=tuple(names)),
            data_prefix=dict(img_path=split),
            pipeline=list(pipeline),
            indices=indices,
            test_mode=test_mode,
        )

    def load_data_list(self) -> list[dict]:
        """All samples, sorted by label and file name."""
        samples = []
        for label, name in enumerate(self._metainfo["classes"]):
            folder = self.folder / name
            files = sorted(entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(SUFFIXES))
            if not files:
                raise ValueError(f"ImageFolderDataset: the class folder {folder} holds no image (suffixes: {', '.join(SUFFIXES)})")
            samples += [dict(img_path=str(folder / file), name=f"{name}/{file}", gt_label=label) for file in files]
        return samples

    def _class_names(self, root: Path, split: str, classes: Sequence[str] | str | None) -> list[str]:
        if not self.folder.is_dir():
            raise FileNotFoundError(
                f"ImageFolderDataset: the folder {self.folder} does not exist; expected {self.folder}/<class>/<image>. {ADVICE}"
            )
        found = _folders(self.folder)
        if not found:
            flat = any(entry.name.lower().endswith(SUFFIXES) for entry in os.scandir(self.folder))
            state = "its images lie in it directly, move each into the folder of its class" if flat else "it is empty"
            raise ValueError(f"ImageFolderDataset: no class folders in {self.folder}: {state}. {ADVICE}")
        if classes is None:
            _check_siblings(root, split, found)
            return found
        names = _read_names(root / classes) if isinstance(classes, str) else list(classes)
        if len(set(names)) != len(names):
            raise ValueError(f"classes: names occur twice: {sorted({name for name in names if names.count(name) > 1})}")
        if missing := [name for name in names if name not in found]:
            raise FileNotFoundError(f"ImageFolderDataset: {self.folder} has no folder for {_some(missing)} of `classes`")
        if others := [name for name in found if name not in names]:
            raise ValueError(f"ImageFolderDataset: {self.folder} has folders that are not in `classes`: {_some(others)}")
        return names


def _folders(path: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))


def _check_siblings(root: Path, split: str, names: list[str]) -> None:
    for other in SPLITS:
        if other != split and (root / other).is_dir() and (there := _folders(root / other)) and there != names:
            differing = sorted(set(there) ^ set(names))
            raise ValueError(
                f"ImageFolderDataset: {root} has other class folders in {split} than in {other} ({_some(differing)}): their labels would "
                "differ. Give the names as `classes`"
            )


def _read_names(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"ImageFolderDataset: the list of classes {path} does not exist. {ADVICE}")
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".json":
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        names = json.loads(text)["classes"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f'{path}: expected JSON with a list of names under "classes" ({type(error).__name__}: {error})') from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f'{path}: "classes" must be a list of names, got {names!r:.100}')
    return names


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
