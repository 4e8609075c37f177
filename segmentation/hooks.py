"""The hook that draws predictions while a model is validated or tested."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from mmseg.structures import SegDataSample

from .datasets.loading import read_pixels
from .visualization import draw_sheet


@HOOKS.register_module()
class PredictionPicturesHook(Hook):
    """Sheets of image | ground truth | prediction, for a few validation images at every evaluation and, on request, for the test images.

    The validation images are spread evenly over the data set and stay the same during a run. Each sheet goes through
    `runner.visualizer`: as `vis_data/vis_image/val_<number>_<name>_<iteration>.png` in the work folder and, with TensorboardVisBackend,
    as an image of the event file. In a distributed run the main process draws, from its share of the data.

    Args:
        num_images: validation images per evaluation; 0 draws none.
        draw: draw test images too (tools/test.py --show-dir switches it on).
        interval: every how many test images one is drawn.
        panel: longest side of one picture of a sheet, in pixels.
        backend_args: arguments of MMEngine's file backend for the images.

    Raises:
        ValueError: `num_images` negative, or `interval` or `panel` less than 1.
    """

    def __init__(
        self, num_images: int = 4, draw: bool = False, interval: int = 1, panel: int = 480, backend_args: dict | None = None
    ) -> None:
        for name, value, least in (("num_images", num_images, 0), ("interval", interval, 1), ("panel", panel, 1)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an int >= {least}, got {value!r}")
        self.num_images = num_images
        self.draw = draw
        self.interval = interval
        self.panel = panel
        self.backend_args = backend_args

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: Sequence[SegDataSample] | None = None
    ) -> None:
        """Draw the first image of the batch if it is one of the chosen."""
        batches = len(runner.val_dataloader)
        chosen = np.linspace(0, batches - 1, min(self.num_images, batches)).astype(int)
        if batch_idx in chosen and outputs and is_main_process():
            self._add(runner, outputs[0], f"val_{batch_idx:04d}", runner.iter)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: Sequence[SegDataSample] | None = None
    ) -> None:
        """Draw the images of the batch, every `interval`-th batch, if `draw` is on."""
        if not self.draw or batch_idx % self.interval or not is_main_process():
            return
        for i, sample in enumerate(outputs or ()):
            self._add(runner, sample, f"test_{batch_idx * len(outputs) + i:04d}", 0)

    def _add(self, runner: Runner, sample: SegDataSample, name: str, step: int) -> None:
        image = np.ascontiguousarray(read_pixels(sample.img_path, "color", "image", self.backend_args)[..., ::-1])
        truth = _labels(sample.gt_sem_seg) if "gt_sem_seg" in sample else None
        meta = runner.visualizer.dataset_meta
        sheet = draw_sheet([(image, truth, _labels(sample.pred_sem_seg))], meta["classes"], meta["palette"], panel=self.panel)
        runner.visualizer.add_image(f"{name}_{Path(sample.img_path).stem}", sheet, step)


def _labels(data) -> np.ndarray:
    """PixelData -> integers (H, W); test-time augmentation leaves no channel axis, everything else one of length 1, binary heads floats."""
    labels = data.data.cpu().long().numpy()
    return labels.reshape(labels.shape[-2:])
