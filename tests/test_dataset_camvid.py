"""CamVidDataset on the real images."""

import numpy as np
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS
from PIL import Image

from linescan.segmentation.datasets import CamVidDataset


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
