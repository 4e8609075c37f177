"""Prediction on pictures from outside a data set: one image of any size, or a folder of them."""

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.utils import ProgressBar
from mmseg.registry import DATASETS, MODELS
from PIL import Image

from ..engine import check_weights, load_config, read_checkpoint, secure_loading
from .datasets.loading import read_pixels
from .visualization import overlay, save_labels

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


class Predictor:
    """A trained segmentor as a function from an image to a label map.

    Args:
        config: path of a config, or a Config of ours.
        checkpoint: path of a checkpoint, loaded strictly.
        device: such as `cpu` or `cuda:0`; None takes the first GPU, or the CPU where there is none.
        cfg_options: overrides of the config, dotted keys.
        trust_checkpoint: allow a checkpoint to run code while it is loaded; only for files of your own.

    Attributes:
        classes, palette: names and RGB colours by class index, from the checkpoint or, where it has none, from the config's test data set.

    Raises:
        ConfigError, CheckpointError: no such config; a checkpoint that is missing, damaged, refused or made for another model.
        ValueError: the checkpoint's classes and the model's outputs differ in number, or the model is a classifier of whole images.
    """

    def __init__(
        self,
        config: str | Path | Config,
        checkpoint: str | Path,
        *,
        device: str | None = None,
        cfg_options: dict | None = None,
        trust_checkpoint: bool = False,
    ) -> None:
        cfg = config if isinstance(config, Config) else load_config(config, cfg_options=cfg_options)
        init_default_scope(cfg.get("default_scope", "mmseg"))
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = MODELS.build(cfg.model)
        secure_loading(trust_checkpoint)
        state = read_checkpoint(checkpoint)
        check_weights(checkpoint, state, self.model)
        weights = state.get("state_dict", state)
        # check_weights has found every name but, at most, counters of batch norm that older files lack.
        self.model.load_state_dict({name.removeprefix("module."): value for name, value in weights.items()}, strict=False)
        self.model.to(self.device).eval()
        dataset = _innermost(cfg.test_dataloader.dataset)
        meta = state.get("meta", {}).get("dataset_meta") or DATASETS.get(dataset.type).METAINFO
        if "palette" not in meta:
            raise ValueError(
                f"{checkpoint}: its classes have no colours, so there are no label maps to predict; of a classifier, tools/test.py --out "
                "writes the predictions"
            )
        self.classes, self.palette = list(meta["classes"]), [list(c) for c in meta["palette"]]
        if len(self.classes) != self.model.num_classes:
            raise ValueError(f"{checkpoint} names {len(self.classes)} classes, but the model of the config has {self.model.num_classes}")
        # The image comes from memory, and there is no mask.
        steps = [t for t in dataset.pipeline if not str(getattr(t["type"], "__name__", t["type"])).startswith("Load")]
        self.pipeline = Compose([dict(type="LoadImageFromNDArray"), *steps])

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Predict one image.

        Args:
            image: RGB uint8 (H, W, 3), any H and W. It is resized as the config's test pipeline says.

        Returns:
            Class indices, integer (H, W), at the size of the image.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"image must be an RGB uint8 array (H, W, 3), got shape {image.shape} of {image.dtype}")
        data = self.pipeline(dict(img=np.ascontiguousarray(image[..., ::-1])))
        sample = self.model.test_step(pseudo_collate([data]))[0]
        return sample.pred_sem_seg.data[0].cpu().numpy().astype(np.int64)


def find_images(source: str | Path) -> tuple[list[Path], int]:
    """The images of a folder and its sub-folders, sorted, or the one image named.

    Returns:
        The paths, and the number of files in the folder that are no images by their suffix.

    Raises:
        FileNotFoundError: there is nothing at `source`.
        ValueError: the folder holds no image.
    """
    source = Path(source)
    if source.is_file():
        return [source], 0
    if not source.is_dir():
        raise FileNotFoundError(f"no image or folder at {source}")
    files = sorted(p for p in source.rglob("*") if p.is_file())
    images = [p for p in files if p.suffix.lower() in SUFFIXES]
    if not images:
        raise ValueError(f"{source} holds no image ({', '.join(SUFFIXES)}); {len(files)} other files")
    return images, len(files) - len(images)


def predict_files(predictor: Predictor, source: str | Path, out: str | Path, *, opacity: float = 0.5) -> tuple[int, list[str]]:
    """Write `<out>/label/<name>.png` (palette PNG of class indices) and `<out>/overlay/<name>.png` for an image or a folder.

    Sub-folders of `source` are kept. Where two images differ in their suffix alone, the suffix becomes part of the name. An image that
    cannot be read does not stop the others. Progress goes to the terminal, with the time left.

    Returns:
        The number of images written, and one message per image that could not be read.

    Raises:
        FileNotFoundError, ValueError: see `find_images`; or `opacity` is not within 0..1.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be within 0..1, got {opacity}")
    images, ignored = find_images(source)
    root = Path(source) if Path(source).is_dir() else Path(source).parent
    stems = Counter(p.with_suffix("") for p in images)
    failures = []
    bar = ProgressBar(len(images))
    for path in images:
        name = path.relative_to(root).with_suffix("")
        if stems[path.with_suffix("")] > 1:
            name = name.with_name(f"{name.name}_{path.suffix[1:]}")
        try:
            image = np.ascontiguousarray(read_pixels(str(path), "color", "image")[..., ::-1])
        except (OSError, ValueError) as error:
            failures.append(str(error))
        else:
            labels = predictor(image)
            targets = [Path(out) / kind / name.with_name(f"{name.name}.png") for kind in ("label", "overlay")]
            for target in targets:
                target.parent.mkdir(parents=True, exist_ok=True)
            save_labels(targets[0], labels, predictor.palette)
            Image.fromarray(overlay(image, labels, predictor.palette, opacity)).save(targets[1])
        bar.update()
    print()
    if ignored:
        print(f"{ignored} files of {source} are no images by their suffix and were left out")
    return len(images) - len(failures), failures


def _innermost(dataset: Config) -> Config:
    """The data set inside wrappers such as RepeatDataset and ConcatDataset."""
    while "dataset" in dataset or "datasets" in dataset:
        dataset = dataset.dataset if "dataset" in dataset else dataset.datasets[0]
    return dataset
