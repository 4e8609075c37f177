"""Broken data: every fault is an error that names the file and what is wrong with it."""

import re

import numpy as np
import pytest
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS
from PIL import Image
from torch.utils.data import DataLoader

from linescan.segmentation.datasets import SOURCES, LoadCheckedAnnotations

CLASSES = dict(classes=("a", "b", "c"), palette=[[0, 0, 0], [90, 0, 0], [0, 90, 0]])
PIPELINE = [dict(type="LoadCheckedImage"), dict(type="LoadCheckedAnnotations"), dict(type="PackSegInputs")]


@pytest.fixture(autouse=True)
def scope():
    init_default_scope("mmseg")


@pytest.fixture
def folder(tmp_path):
    """Two good samples of 20 x 30 in the img_dir / ann_dir layout."""
    rng = np.random.default_rng(0)
    for kind in ("img_dir", "ann_dir"):
        (tmp_path / kind).mkdir()
    for name in ("one", "two"):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(tmp_path / f"img_dir/{name}.jpg")
        Image.fromarray(rng.choice([0, 1, 2, 255], (20, 30)).astype(np.uint8)).save(tmp_path / f"ann_dir/{name}.png")
    return tmp_path


def dataset(folder, **changes):
    cfg = dict(
        type="CheckedSegDataset",
        data_root=str(folder),
        data_prefix=dict(img_path="img_dir", seg_map_path="ann_dir"),
        metainfo=CLASSES,
        pipeline=PIPELINE,
    )
    return DATASETS.build({**cfg, **changes})


def put_mask(folder, labels):
    Image.fromarray(labels).save(folder / "ann_dir/two.png")


def fails(folder, error, *parts, **changes):
    data = dataset(folder, **changes)
    data[0]  # the good sample loads
    with pytest.raises(error) as caught:
        data[1]
    for part in parts:
        assert part in str(caught.value), f"{part!r} is not in {caught.value}"


def test_good_samples_load(folder):
    for i, name in enumerate(("one", "two")):
        sample = dataset(folder)[i]
        wanted = np.array(Image.open(folder / f"ann_dir/{name}.png"))
        rgb = np.array(Image.open(folder / f"img_dir/{name}.jpg"))
        assert np.array_equal(sample["data_samples"].gt_sem_seg.data[0].numpy(), wanted)
        assert np.array_equal(sample["inputs"].numpy()[::-1].transpose(1, 2, 0), rgb)


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.6, 0.9])
@pytest.mark.parametrize(("kind", "file"), [("image", "img_dir/two.jpg"), ("mask", "ann_dir/two.png")])
def test_truncated_file(folder, keep, kind, file):
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(data[: int(len(data) * keep)])
    fails(folder, ValueError, kind, str(folder / file), "cannot be decoded", f"{int(len(data) * keep)} bytes")


def test_a_text_file_named_jpg(folder):
    (folder / "img_dir/two.jpg").write_text("<html>404 not found</html>" * 40)
    fails(folder, ValueError, str(folder / "img_dir/two.jpg"), "cannot be decoded", "cannot identify")


def test_missing_mask(folder):
    (folder / "ann_dir/two.png").unlink()
    fails(folder, FileNotFoundError, "mask", str(folder / "ann_dir/two.png"), "does not exist")


def test_mask_of_another_size(folder):
    put_mask(folder, np.zeros((30, 20), np.uint8))
    fails(folder, ValueError, str(folder / "ann_dir/two.png"), "30x20", str(folder / "img_dir/two.jpg"), "20x30")


def test_mask_of_another_size_after_a_resize(folder):
    put_mask(folder, np.zeros((40, 60), np.uint8))
    pipeline = [PIPELINE[0], dict(type="Resize", scale=(60, 40), keep_ratio=True), *PIPELINE[1:]]
    fails(folder, ValueError, "40x60", "20x30", pipeline=pipeline)


def test_mask_in_colour(folder):
    put_mask(folder, np.zeros((20, 30, 3), np.uint8))
    fails(folder, ValueError, str(folder / "ann_dir/two.png"), "(20, 30, 3)", "one channel")


def test_label_out_of_range(folder):
    labels = np.zeros((20, 30), np.uint8)
    labels[0, :2], labels[5, 5] = 3, 200
    put_mask(folder, labels)
    fails(folder, ValueError, str(folder / "ann_dir/two.png"), "[3, 200] in 3 pixels", "a class (0..2) nor ignored (255)")


def test_sixteen_bit_label_does_not_wrap_into_a_class(folder):
    put_mask(folder, np.full((20, 30), 256, np.uint16))
    fails(folder, ValueError, "[256] in 600 pixels")


def test_reduce_zero_label(folder):
    labels = np.array(Image.open(folder / "ann_dir/two.png"))
    labels[0, :5] = 0, 1, 2, 3, 255
    put_mask(folder, labels)
    loaded = dataset(folder, reduce_zero_label=True)[1]["data_samples"].gt_sem_seg.data[0].numpy()
    assert loaded[0, :5].tolist() == [255, 0, 1, 2, 255]
    labels[1, 0] = 4
    put_mask(folder, labels)
    fails(folder, ValueError, "[4] in 1 pixels", "a class (1..3) nor ignored (0 or 255)", reduce_zero_label=True)


def test_a_subset_of_the_classes(folder):
    # CamVid's sky, building and pole are 0, 1, 2; of building and sky, in this order, pole is not chosen.
    loaded = dataset(folder, type="CamVidDataset", metainfo=dict(classes=("building", "sky")))[0]["data_samples"].gt_sem_seg.data[0].numpy()
    file = np.array(Image.open(folder / "ann_dir/one.png"))
    assert np.array_equal(loaded, np.select([file == 0, file == 1], [1, 0], 255))


def test_palette_and_one_bit_masks_are_indices(folder):
    labels = np.array(Image.open(folder / "ann_dir/two.png")) % 2
    picture = Image.fromarray(labels)
    picture.putpalette([7, 7, 7, 200, 0, 0])
    picture.save(folder / "ann_dir/two.png")
    assert np.array_equal(dataset(folder)[1]["data_samples"].gt_sem_seg.data[0].numpy(), labels)
    Image.fromarray(labels.astype(bool)).save(folder / "ann_dir/two.png")
    assert np.array_equal(dataset(folder)[1]["data_samples"].gt_sem_seg.data[0].numpy(), labels)


def test_a_data_loader_worker_hands_the_message_on(folder):
    put_mask(folder, np.full((20, 30), 9, np.uint8))
    with pytest.raises(ValueError, match=re.escape(str(folder / "ann_dir/two.png"))):
        list(DataLoader(dataset(folder), num_workers=1, collate_fn=list))


def test_empty_folder(folder):
    for file in (folder / "img_dir").iterdir():
        file.rename(file.with_suffix(".gif"))
    with pytest.raises(ValueError, match=rf"empty dataset, no file in {folder}/img_dir ends in '.jpg'"):
        dataset(folder)


def test_empty_list_of_images(folder):
    (folder / "list.txt").write_text("")
    with pytest.raises(ValueError, match=rf"empty dataset, the list {folder}/list.txt is empty"):
        dataset(folder, ann_file="list.txt")


def test_missing_list_of_images(folder):
    with pytest.raises(FileNotFoundError, match=rf"list of images {folder}/list.txt does not exist"):
        dataset(folder, ann_file="list.txt")


PUBLIC = {
    "ade20k": "CheckedADE20KDataset",
    "cityscapes": "CheckedCityscapesDataset",
    "voc12": "CheckedPascalVOCDataset",
    "camvid": "CamVidDataset",
    "kvasir": "KvasirDataset",
}


def test_every_source_has_a_dataset():
    assert set(PUBLIC) == set(SOURCES)


def test_the_page_on_data_sets_says_the_same(repo_root):
    page = (repo_root / "docs/datasets.md").read_text()
    for source in SOURCES.values():
        assert source.url in page and f"`{source.folder}`" in page


@pytest.mark.parametrize("source", PUBLIC)
def test_missing_data_folder_says_where_to_get_it(tmp_path, source):
    kwargs = dict(ann_file="ImageSets/Segmentation/train.txt") if source == "voc12" else {}
    with pytest.raises(FileNotFoundError) as caught:
        DATASETS.build(dict(type=PUBLIC[source], data_root=f"{tmp_path}/data", data_prefix=dict(img_path="x", seg_map_path="y"), **kwargs))
    for part in (f"{tmp_path}/data/x does not exist", SOURCES[source].url, SOURCES[source].hint, "LINESCAN_DATA"):
        assert part in str(caught.value)


def test_a_stock_dataset_is_told_what_is_missing(folder):
    results = dict(seg_map_path=str(folder / "ann_dir/one.png"), img_path="-", ori_shape=(20, 30), reduce_zero_label=False, seg_fields=[])
    with pytest.raises(ValueError, match="CheckedDatasetMixin"):
        LoadCheckedAnnotations()(results)
