"""KvasirDataset: the conversion of the published folder, the real images, and what the configs' head answers and learns from."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import DATASETS, MODELS
from mmseg.structures import SegDataSample
from PIL import Image

import linescan.backbones
import linescan.segmentation  # noqa: F401  (registers the data sets and the segmentor)
from linescan.segmentation.datasets.kvasir import convert_kvasir

SPLITS = ("train", "val", "test")


@pytest.fixture
def published(tmp_path):
    """A folder as Kvasir-SEG has it: one large image, one small one, one image as it is, and their lists."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks", "lists"):
        (tmp_path / folder).mkdir()
    for split, size in zip(SPLITS, ((1024, 768), (40, 30), (512, 300)), strict=True):
        (tmp_path / "lists" / f"{split}.txt").write_text(f"{split}1\n")
        Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(tmp_path / "images" / f"{split}1.jpg")
        mask = np.zeros(size[::-1], np.uint8)
        mask[: size[1] // 2] = 255
        Image.fromarray(mask).convert("RGB").save(tmp_path / "masks" / f"{split}1.jpg")
    return tmp_path


def test_the_published_folder_is_converted(published, tmp_path):
    assert convert_kvasir(published, published / "lists", tmp_path / "out") == dict(train=1, val=1, test=1)
    for split, size in zip(SPLITS, ((512, 384), (40, 30), (512, 300)), strict=True):
        image = Image.open(tmp_path / f"out/img_dir/{split}/{split}1.jpg")
        mask = np.array(Image.open(tmp_path / f"out/ann_dir/{split}/{split}1.png"))
        assert image.size == size == mask.shape[::-1] and image.mode == "RGB"
        assert np.array_equal(mask, np.repeat([1, 0], size[1] // 2)[:, None] * np.ones(size[0]))


def test_what_is_missing_or_does_not_fit_is_named(published, tmp_path):
    Image.new("RGB", (9, 9)).save(published / "masks/val1.jpg")
    with pytest.raises(ValueError, match=r"images/val1\.jpg has \(40, 30\) pixels .*\(9, 9\)"):
        convert_kvasir(published, published / "lists", tmp_path / "out")
    (published / "masks/test1.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 6 files are missing, the first is .*masks/test1\.jpg"):
        convert_kvasir(published, published / "lists", tmp_path / "out")


def test_the_floor_of_answers_that_see_nothing(published, tmp_path, repo_root):
    """The upper half of every image is polyp and none is black: every pixel is half right, the training mask all right."""
    convert_kvasir(published, published / "lists", tmp_path / "data/kvasir")
    for split in SPLITS:
        path = tmp_path / f"data/kvasir/img_dir/{split}/{split}1.jpg"
        Image.new("RGB", Image.open(path).size, (90, 90, 90)).save(path)
    done = subprocess.run(
        [sys.executable, repo_root / "runs/kvasir_floor.py", tmp_path / "floor.json"],
        env={**os.environ, "LINESCAN_DATA": str(tmp_path / "data")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    *rows, data = json.loads((tmp_path / "floor.json").read_text())
    assert data["result"]["polyp_median"] == pytest.approx(50) and data["result"]["black_median"] == 0
    assert [row["result"]["mIoU"] for row in rows] == pytest.approx([50, 50, 100])
    assert [row["result"]["mDice"] for row in rows] == pytest.approx([200 / 3, 200 / 3, 100])


def test_real_images(data_root, repo_root):
    init_default_scope("mmseg")
    for split, count in zip(SPLITS, (400, 60, 100), strict=True):
        pipeline = [dict(type="LoadCheckedImage"), dict(type="LoadCheckedAnnotations"), dict(type="PackSegInputs")]
        prefix = dict(img_path=f"img_dir/{split}", seg_map_path=f"ann_dir/{split}")
        data = DATASETS.build(dict(type="KvasirDataset", data_root=str(data_root / "kvasir"), data_prefix=prefix, pipeline=pipeline))
        assert sorted(data.get_data_info(i)["img_path"].split("/")[-1][:-4] for i in range(len(data))) == sorted(
            (repo_root / f"configs/kvasir/splits/{split}.txt").read_text().split()
        )
        assert len(data) == count and set(data[0]["data_samples"].gt_sem_seg.data.unique().tolist()) == {0, 1}


@pytest.fixture
def model(repo_root):
    cfg = Config.fromfile(repo_root / "configs/hybrid/hybrid-bi-wkv-tiny_segformer_1xb4-1k_kvasir-352x352.py")
    init_default_scope("mmseg")
    return MODELS.build({**cfg.model, "backbone": dict(cfg.model.backbone, arch="test")})


def test_a_pixel_is_polyp_above_one_half(model):
    probability = torch.tensor([0.3, 0.49, 0.51, 0.9])
    (sample,) = model.postprocess_result(torch.stack((1 - probability, probability)).log().view(1, 2, 2, 2))
    assert sample.pred_sem_seg.data.flatten().tolist() == [0, 0, 1, 1]


def test_the_dice_loss_is_of_the_polyp(model):
    """1 - 2 p t / (p^2 + t^2), summed over the pixels of an image; the background is not in it, ignored pixels count as no polyp."""
    truth = torch.tensor([[[[1, 1, 0, 255]]]])
    probability = torch.tensor([0.9, 0.4, 0.2, 0.0])
    logits = torch.stack((1 - probability, probability)).log().clamp(min=-100).view(1, 2, 1, 4)
    samples = [SegDataSample(gt_sem_seg=PixelData(data=truth[0]))]
    losses = model.decode_head.loss_by_feat(logits, samples)
    expected = 1 - 2 * (0.9 + 0.4) / (0.9**2 + 0.4**2 + 0.2**2 + 2)
    assert float(losses["loss_dice"]) == pytest.approx(expected, abs=1e-3)
    assert float(losses["loss_ce"]) == pytest.approx(-np.log([0.9, 0.4, 0.8]).mean(), abs=1e-4)
