"""From a file to a normalised tensor: loading that names the file and the fault, and timm's augmentation.

timm's transforms draw from `random`, `numpy.random` and `torch`, which the training data set seeds for every sample: the augmentation of a
sample depends on the seed of the run, the epoch and its position alone (see the engine's `replay.py`).
"""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import TRANSFORMS
from mmengine.structures import BaseDataElement
from PIL import Image, ImageOps
from timm.data import create_transform
from torchvision.transforms import Compose

# Arguments of timm's `create_transform` that would return something else than one normalised tensor (3, H, W).
_REFUSED = ("input_size", "is_training", "use_prefetcher", "normalize", "separate", "naflex", "patchify", "tf_preprocessing")


@TRANSFORMS.register_module()
class LoadPILImage:
    """Read `img_path` whole into `img`, a Pillow image in RGB; grey, palette and transparent images are converted.

    The EXIF orientation is not applied, as in torchvision's ImageFolder and in published ImageNet results.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, truncated or no image.
    """

    def __call__(self, results: dict) -> dict:
        path = Path(results["img_path"])
        try:
            with Image.open(path) as image:
                results["img"] = image.convert("RGB")
        except FileNotFoundError as error:
            raise FileNotFoundError(f"image {path} does not exist") from error
        except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and more
            raise ValueError(f"image {path} cannot be decoded ({path.stat().st_size} bytes): {error or type(error).__name__}") from error
        return results


@TRANSFORMS.register_module()
class TimmTransform:
    """`timm.data.create_transform` as a pipeline step: `img` -> `inputs`, a float32 tensor (3, H, W), normalised.

    In training: random resized crop, flip, then RandAugment, colour jitter and random erasing as asked for. In evaluation: the shorter side
    is resized to size / crop_pct, then the centre is cropped.

    Args:
        input_size: side of the output in pixels, or (height, width).
        training: augment.
        **options: those of `create_transform`, such as scale, hflip, color_jitter, auto_augment, interpolation, mean, std (of RGB in
            0..1; ImageNet's by default), re_prob, re_mode, crop_pct.

    Raises:
        TypeError: an option that `create_transform` does not have, or that would not give a normalised tensor.
    """

    def __init__(self, input_size: int | Sequence[int], training: bool = False, **options: Any) -> None:
        known = sorted(set(inspect.signature(create_transform).parameters) - set(_REFUSED))
        if unknown := sorted(set(options) - set(known)):
            raise TypeError(f"TimmTransform has no option {', '.join(unknown)}; expected input_size, training, {', '.join(known)}")
        size = input_size if isinstance(input_size, int) else tuple(input_size)
        self.transform = create_transform(size, is_training=training, **options)
        _keep_a_bit(self.transform)

    def __call__(self, results: dict) -> dict:
        results["inputs"] = self.transform(results["img"])
        return results

    def __repr__(self) -> str:
        return f"TimmTransform({self.transform})"


def _keep_a_bit(transform: Compose) -> None:
    """Let posterizing keep at least one bit: at the highest magnitude timm (1.0.31) asks for none, which Pillow 13 refuses."""
    for step in transform.transforms:
        policies = getattr(step, "policy", [getattr(step, "ops", ())])  # AutoAugment; RandAugment and AugMix
        for operation in (operation for policy in policies for operation in policy):
            if operation.name.startswith("Posterize"):
                operation.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    return image if bits >= 8 else ImageOps.posterize(image, max(bits, 1))


@TRANSFORMS.register_module()
class PackClassInputs:
    """The end of a pipeline: dict(inputs=(3, H, W) float32, data_samples=sample).

    The sample has `gt_label`, a long tensor of shape (), where the label is known, and `img_path`, `name` and `sample_idx` as metainfo.
    """

    def __call__(self, results: dict) -> dict:
        sample = BaseDataElement(metainfo={key: results[key] for key in ("img_path", "name", "sample_idx") if key in results})
        if "gt_label" in results:
            sample.gt_label = torch.tensor(results["gt_label"])
        return dict(inputs=results["inputs"], data_samples=sample)
