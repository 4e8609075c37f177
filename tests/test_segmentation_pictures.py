"""Colours, overlays, label PNGs, sheets, and the hook that draws them in training."""

import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from PIL import Image

from linescan.segmentation.hooks import PredictionPicturesHook
from linescan.segmentation.visualization import colorize, draw_sheet, overlay, save_labels

PALETTE = [[10, 20, 30], [200, 0, 0]]
CLASSES = ["ground", "thing"]
LABELS = np.array([[0, 1, 255], [1, 1, 0]])


def test_colorize_and_overlay():
    colors = colorize(LABELS, PALETTE)
    assert colors[0].tolist() == [[10, 20, 30], [200, 0, 0], [255, 255, 255]]
    image = np.full((2, 3, 3), 100, np.uint8)
    assert overlay(image, LABELS, PALETTE, 0.25)[0].tolist() == [[78, 80, 82], [125, 75, 75], [100, 100, 100]]
    assert np.array_equal(overlay(image, LABELS, PALETTE, 0.0), image)
    assert np.array_equal(overlay(image, LABELS, PALETTE, 1.0)[0, :2], colors[0, :2])


@pytest.mark.parametrize("kind", [np.uint8, np.int64])
def test_label_png_holds_indices_and_shows_colours(tmp_path, kind):
    save_labels(tmp_path / "l.png", LABELS.astype(kind), PALETTE)
    picture = Image.open(tmp_path / "l.png")
    assert np.array_equal(np.array(picture), LABELS)
    assert np.array_equal(np.array(picture.convert("RGB")), colorize(LABELS, PALETTE))
    with pytest.raises(ValueError, match=r"0\.\.300"):
        save_labels(tmp_path / "l.png", LABELS + 300 * (LABELS == 1) - (LABELS == 1) - 255 * (LABELS == 255), PALETTE)


def pictures(shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (*shape, 3), dtype=np.uint8), rng.integers(0, 2, shape), rng.integers(0, 2, shape)


def contains(sheet, tile):
    """Whether `tile` occurs in `sheet` somewhere, exactly."""
    h, w = tile.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(sheet, (h, w, 3))[:, :, 0]
    return bool((windows == tile).all(axis=(2, 3, 4)).any())


def test_sheet_shows_every_part_unscaled():
    rows = [pictures((12, 17)), pictures((9, 31), 1)]
    sheet = draw_sheet(rows, CLASSES, PALETTE)
    for image, truth, prediction in rows:
        for tile in (image, colorize(truth, PALETTE), colorize(prediction, PALETTE)):
            assert contains(sheet, tile)
    assert not contains(sheet, rows[0][0][::-1])


def test_sheet_reduces_large_pictures_and_leaves_out_absent_truth():
    image, truth, prediction = pictures((300, 900))
    with_truth = draw_sheet([(image, truth, prediction)], CLASSES, PALETTE, panel=90)
    without = draw_sheet([(image, None, prediction)], CLASSES, PALETTE, panel=90)
    assert with_truth.dtype == np.uint8
    assert 3 * 90 < with_truth.shape[1] < 3 * 90 + 60
    assert without.shape[1] < with_truth.shape[1] - 80


def test_sheet_of_several_models():
    image, truth, first = pictures((12, 17))
    second = 1 - first
    sheet = draw_sheet([(image, truth, first, second)], CLASSES, PALETTE, titles=("image", "ground truth", "a", "b"))
    assert contains(sheet, colorize(first, PALETTE)) and contains(sheet, colorize(second, PALETTE))
    with pytest.raises(ValueError, match="one entry for each of the titles"):
        draw_sheet([(image, truth, first, second)], CLASSES, PALETTE)


def test_legend_names_only_what_occurs():
    image, labels = np.zeros((40, 200, 3), np.uint8), np.zeros((40, 200), int)
    many = [f"class {i}" for i in range(150)]
    palette = [[i, 90, 60] for i in range(150)]
    one = draw_sheet([(image, labels, labels)], many, palette)
    some = draw_sheet([(image, labels, np.arange(8000).reshape(40, 200) % 150)], many, palette)
    assert one.shape[0] < 110 < some.shape[0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((np.zeros((4, 5, 3)), None, np.zeros((4, 5), int)), "image must be an RGB uint8"),
        ((np.zeros((4, 5, 3), np.uint8), None, np.zeros((4, 6), int)), r"\(4, 5\) and \(4, 6\)"),
        ((np.zeros((4, 5, 3), np.uint8), None, np.zeros((4, 5))), "labels must be an integer array"),
    ],
)
def test_bad_rows(row, message):
    with pytest.raises(ValueError, match=message):
        draw_sheet([row], CLASSES, PALETTE)


def test_no_rows_and_bad_opacity():
    with pytest.raises(ValueError, match="rows is empty"):
        draw_sheet([], CLASSES, PALETTE)
    with pytest.raises(ValueError, match="opacity must be within"):
        overlay(np.zeros((2, 3, 3), np.uint8), LABELS, PALETTE, 1.5)


class Recorder:
    """The parts of a runner that the hook touches."""

    iter = 40

    def __init__(self, batches):
        self.val_dataloader = range(batches)
        self.visualizer = self
        self.dataset_meta = dict(classes=CLASSES, palette=PALETTE)
        self.added = {}

    def add_image(self, name, image, step):
        self.added[name, step] = image


@pytest.fixture
def sample(tmp_path):
    image, truth, prediction = pictures((12, 17))
    Image.fromarray(image).save(tmp_path / "street.png")
    sample = SegDataSample(metainfo=dict(img_path=str(tmp_path / "street.png")))
    sample.gt_sem_seg = PixelData(data=torch.from_numpy(truth)[None])
    sample.pred_sem_seg = PixelData(data=torch.from_numpy(prediction)[None])
    return sample, (image, truth, prediction)


def test_hook_draws_the_same_few_validation_images(sample):
    sample, row = sample
    runner, hook = Recorder(9), PredictionPicturesHook(num_images=3)
    for batch in range(9):
        hook.after_val_iter(runner, batch, outputs=[sample])
    assert list(runner.added) == [(f"val_{i:04d}_street", 40) for i in (0, 4, 8)]
    assert np.array_equal(runner.added["val_0004_street", 40], draw_sheet([row], CLASSES, PALETTE))


def test_hook_draws_the_floats_of_binary_heads(sample):
    """MMSegmentation's heads of one logit predict 0.0 and 1.0."""
    sample, row = sample
    sample.pred_sem_seg.data = sample.pred_sem_seg.data.float()
    runner = Recorder(1)
    PredictionPicturesHook(num_images=1).after_val_iter(runner, 0, outputs=[sample])
    assert np.array_equal(runner.added["val_0000_street", 40], draw_sheet([row], CLASSES, PALETTE))


def test_hook_draws_test_images_on_request(sample):
    sample, _ = sample
    runner = Recorder(2)
    PredictionPicturesHook().after_test_iter(runner, 0, outputs=[sample])
    assert not runner.added
    hook = PredictionPicturesHook(draw=True, interval=2)
    for batch in range(3):
        hook.after_test_iter(runner, batch, outputs=[sample, sample])
    assert [name for name, _ in runner.added] == [f"test_{i:04d}_street" for i in (0, 1, 4, 5)]


@pytest.mark.parametrize("kwargs", [dict(num_images=-1), dict(interval=0), dict(panel=0), dict(num_images=1.5)])
def test_hook_arguments(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        PredictionPicturesHook(**kwargs)
