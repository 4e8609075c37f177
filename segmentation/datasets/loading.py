"""Loading transforms that name the file and the fault: unreadable image, mask of another size, label id out of range."""

import mmcv
import mmengine.fileio as fileio
import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS


def read_pixels(path: str, flag: str, kind: str, backend_args: dict | None = None) -> np.ndarray:
    """Read an image or mask file whole.

    Pillow decodes, because OpenCV returns the upper part of a truncated JPEG without an error.

    Args:
        path: the file; any location that MMEngine's file backends know.
        flag: `color` (BGR, EXIF orientation applied) or `unchanged` (palette images as indices).
        kind: the word for the file in the error, such as `image` or `mask`.
        backend_args: arguments of the file backend.

    Returns:
        The pixels as a contiguous array (H, W, 3) or, for a single channel, (H, W).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, truncated or no image.
    """
    try:
        data = fileio.get(path, backend_args=backend_args)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{kind} {path} does not exist") from error
    try:
        pixels = mmcv.imfrombytes(data, flag=flag, backend="pillow")
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and more
        # The message may name a memory buffer, which tells the reader nothing.
        reason = str(error).split("<_io.", 1)[0].strip() or type(error).__name__
        raise ValueError(f"{kind} {path} cannot be decoded ({len(data)} bytes): {reason}") from error
    return np.ascontiguousarray(pixels)


@TRANSFORMS.register_module()
class LoadCheckedImage(BaseTransform):
    """Load `img_path` as BGR uint8 (H, W, 3) into `img`, with `img_shape` and `ori_shape` (H, W).

    Args:
        backend_args: arguments of MMEngine's file backend.

    Raises:
        FileNotFoundError, ValueError: see `read_pixels`.
    """

    def __init__(self, backend_args: dict | None = None) -> None:
        self.backend_args = backend_args

    def transform(self, results: dict) -> dict:
        """Add the image to `results`."""
        results["img"] = read_pixels(results["img_path"], "color", "image", self.backend_args)
        results["img_shape"] = results["ori_shape"] = results["img"].shape[:2]
        return results


@TRANSFORMS.register_module()
class LoadCheckedAnnotations(BaseTransform):
    """Load `seg_map_path` as class indices (H, W) uint8 into `gt_seg_map`, and refuse a mask that cannot belong to its image.

    Needs `ori_shape` from the image loader, and `num_labels`, `ignore_index`, `reduce_zero_label` and `label_map` from a dataset with
    `CheckedDatasetMixin`. With `reduce_zero_label`, label 0 of the file is ignored and label i is class i - 1. `label_map` then
    maps the classes of the file to the chosen ones. Every ignored pixel comes out as `ignore_index`.

    Args:
        backend_args: arguments of MMEngine's file backend.

    Raises:
        FileNotFoundError: the mask does not exist.
        ValueError: the mask is unreadable, has several channels, another size than its image, or a label id that is neither a class
            nor the ignore index.
    """

    def __init__(self, backend_args: dict | None = None) -> None:
        self.backend_args = backend_args

    def transform(self, results: dict) -> dict:
        """Add the mask to `results`."""
        path = results["seg_map_path"]
        mask = read_pixels(path, "unchanged", "mask", self.backend_args)
        if mask.dtype == bool:
            mask = mask.astype(np.uint8)
        if mask.ndim != 2:
            raise ValueError(f"mask {path} has shape {mask.shape}: expected one channel whose pixel value is the class index")
        if mask.shape != tuple(results["ori_shape"]):
            (h, w), (ih, iw) = mask.shape, results["ori_shape"]
            raise ValueError(f"mask {path} is {h}x{w} (height x width), but its image {results['img_path']} is {ih}x{iw}")
        results["gt_seg_map"] = self._to_classes(mask, results)
        results["seg_fields"].append("gt_seg_map")
        return results

    def _to_classes(self, mask: np.ndarray, results: dict) -> np.ndarray:
        """File labels -> class indices, after the check of their range (before any cast, so that 300 does not become 44)."""
        if "num_labels" not in results:
            raise ValueError("LoadCheckedAnnotations needs a dataset with CheckedDatasetMixin: the sample has no 'num_labels'")
        first = 1 if results["reduce_zero_label"] else 0
        end, ignore = first + results["num_labels"], results["ignore_index"]
        ignored = mask == ignore
        if first:
            ignored |= mask == 0
        wrong = ~ignored & ((mask < first) | (mask >= end))
        if wrong.any():
            ids = np.unique(mask[wrong]).tolist()
            known = f"a class ({first}..{end - 1}) nor ignored ({f'0 or {ignore}' if first else ignore})"
            raise ValueError(f"mask {results['seg_map_path']} holds label ids {ids[:10]} in {int(wrong.sum())} pixels, neither {known}")
        # uint8 wraps at 0 - 1, but only where `ignored` is written over it.
        classes = (mask - first).astype(np.uint8)
        if results.get("label_map"):
            lut = np.arange(256, dtype=np.uint8)
            lut[list(results["label_map"])] = list(results["label_map"].values())
            classes = lut[classes]
        classes[ignored] = ignore
        return classes
