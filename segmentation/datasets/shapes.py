"""Procedural images for segmentation, rendered once into the ordinary img_dir / ann_dir layout.

What the images show, and the two classes that only far context tells apart, is described in `shapes_scene.py`.
"""

import json
import os
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import ClassVar

import numpy as np
from mmengine.dist import is_main_process
from mmengine.utils import ProgressBar
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS
from PIL import Image

from .checked import CheckedDatasetMixin
from .shapes_render import CLASSES, PALETTE, VERSION, render
from .shapes_scene import MARGIN, sample_scene, scale_of

SPLITS = ("train", "val", "test")


@DATASETS.register_module()
class ShapesDataset(CheckedDatasetMixin, BaseSegDataset):
    """Procedural shapes: textured solids, threads of 1 to 2 px, occlusion, and discs that are `linked` or `free`.

    Image i of a split depends on (seed, split, i, size, margin) alone, to the last bit on every machine. Images are rendered when the list
    of samples is first loaded, into `cache_dir/<H>x<W>-seed<seed>-<digest>/{img_dir,ann_dir}/<split>/<i>.png`; the digest covers every
    parameter and the version of the renderer, so other parameters mean another folder, and a longer `length` only adds images. Several
    processes may start at once: they share the work, every file appears whole or not at all, and an interrupted rendering is completed by
    the next start.

    Args:
        split: train, val or test.
        length: number of images.
        size: (H, W) in pixels, each at least 48.
        seed: non-negative.
        margin: pixels (Chebyshev) between a disc and the place that decides its class; half the longer side where that is less.
        cache_dir: folder for the rendered images.
        pipeline, test_mode, lazy_init, indices, ...: as in BaseSegDataset.

    Raises:
        ValueError: an unknown split, a length under 1, a size under 48 px, a negative seed or a margin under 1.
    """

    METAINFO: ClassVar[dict] = dict(classes=CLASSES, palette=[list(colour) for colour in PALETTE])

    def __init__(
        self,
        split: str,
        length: int,
        size: Sequence[int] = (256, 256),
        *,
        seed: int = 0,
        margin: int = MARGIN,
        cache_dir: str = "data/shapes",
        **kwargs,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
        if length < 1:
            raise ValueError(f"length: expected at least 1, got {length}")
        if seed < 0:
            raise ValueError(f"seed: expected a non-negative integer, got {seed}")
        scale_of(size, margin)
        self.split, self.length = split, length
        self.parameters = dict(size=list(size), seed=seed, margin=margin, version=VERSION)
        digest = sha256(json.dumps(self.parameters, sort_keys=True).encode()).hexdigest()[:8]
        super().__init__(
            data_root=str(Path(cache_dir) / f"{size[0]}x{size[1]}-seed{seed}-{digest}"),
            data_prefix=dict(img_path=f"img_dir/{split}", seg_map_path=f"ann_dir/{split}"),
            img_suffix=".png",
            **kwargs,
        )

    def load_data_list(self) -> list[dict]:
        """Renders what is missing and lists the first `length` images of the split."""
        self._render_missing()
        return [sample for sample in super().load_data_list() if int(Path(sample["img_path"]).stem) < self.length]

    def _paths(self, index: int) -> tuple[Path, Path]:
        return tuple(Path(self.data_prefix[key]) / f"{index:06d}.png" for key in ("img_path", "seg_map_path"))

    def _render_missing(self) -> None:
        for folder in (self.data_prefix["img_path"], self.data_prefix["seg_map_path"]):
            os.makedirs(folder, exist_ok=True)
        _write(
            Path(self.data_root) / "manifest.json", json.dumps(dict(dataset="linescan.ShapesDataset", **self.parameters), indent=1).encode()
        )
        missing = [index for index in range(self.length) if not all(path.exists() for path in self._paths(index))]
        if not missing:
            return
        bar = ProgressBar(len(missing), bar_width=30, file=sys.stderr) if is_main_process() else None
        # Every process starts elsewhere and skips what another has written meanwhile.
        start = os.getpid() * 7919 % len(missing)
        for index in missing[start:] + missing[:start]:
            if not all(path.exists() for path in self._paths(index)):
                self._render(index)
            if bar is not None:
                bar.update()
        if bar is not None:
            print(f" {self.split} images in {self.data_root}", file=sys.stderr)

    def _render(self, index: int) -> None:
        key = (self.parameters["seed"], SPLITS.index(self.split), index)
        image, labels = render(sample_scene(tuple(self.parameters["size"]), key, margin=self.parameters["margin"]))
        image_path, label_path = self._paths(index)
        _write(label_path, labels)
        _write(image_path, image)


def _write(path: Path, content: bytes | np.ndarray) -> None:
    """Writes a file, or an array as PNG, so that other processes see either nothing or the whole of it."""
    with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            if isinstance(content, bytes):
                file.write(content)
            else:
                Image.fromarray(content).save(file, format="PNG", compress_level=1)
            file.close()
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
