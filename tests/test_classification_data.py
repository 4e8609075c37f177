"""Classification data: folders and their faults, loading, augmentation, the conversion of Caltech-101."""

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS
from PIL import Image

from linescan.classification import ImageFolderDataset, LoadPILImage, TimmTransform
from linescan.classification.caltech import CLASSES, convert_caltech
from linescan.engine.replay import ReplayDataset, ReplayIndex


def write_images(root, classes=("cat", "dog"), splits=("train", "val"), count=2, size=(40, 30)):
    rng = np.random.default_rng(0)
    for split in splits:
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in sorted(range(count), key=lambda i: i ^ 1):  # 1, 0, 3, 2: no order in which a file system may list them
                Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(root / split / name / f"{i}.png")
    return root


def test_samples_are_sorted_by_class_and_name(tmp_path):
    data = ImageFolderDataset(str(write_images(tmp_path, count=4)), "val")
    assert data.metainfo["classes"] == ("cat", "dog")
    rows = [data.get_data_info(i) for i in range(len(data))]
    expected = [(f"{name}/{i}.png", label, 4 * label + i) for label, name in enumerate(("cat", "dog")) for i in range(4)]
    assert [(row["name"], row["gt_label"], row["sample_idx"]) for row in rows] == expected
    assert len(ImageFolderDataset(str(tmp_path), "val", indices=[0, 3])) == 2


@pytest.mark.parametrize(
    ("file", "text"),
    [("list.json", '{"classes": ["dog", "cat"]}'), ("list.txt", "dog\n\ncat\n"), (None, None)],
    ids=["json", "txt", "names"],
)
def test_the_order_of_the_classes_can_be_given(tmp_path, file, text):
    write_images(tmp_path)
    if file:
        (tmp_path / file).write_text(text)
    data = ImageFolderDataset(str(tmp_path), classes=file or ["dog", "cat"])
    assert data.metainfo["classes"] == ("dog", "cat")
    assert data.get_data_info(0)["name"] == "dog/0.png"


def test_the_pipeline_gives_what_the_model_takes(tmp_path):
    pipeline = [dict(type="LoadPILImage"), dict(type="TimmTransform", input_size=(24, 32)), dict(type="PackClassInputs")]
    data = DATASETS.build(dict(type="ImageFolderDataset", data_root=str(write_images(tmp_path)), pipeline=pipeline))
    item = data[3]
    assert item["inputs"].shape == (3, 24, 32) and item["inputs"].dtype == torch.float32
    assert (int(item["data_samples"].gt_label), item["data_samples"].name) == (1, "dog/1.png")


def break_class(root):
    for path in (root / "train" / "dog").iterdir():
        path.unlink()


def flatten(root):
    for path in [*(root / "train").glob("*/*.png")]:
        path.rename(root / "train" / f"{path.parent.name}_{path.name}")
    for folder in (root / "train").iterdir():
        if folder.is_dir():
            folder.rmdir()


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (None, dict(split="test"), FileNotFoundError, r"the folder .*test does not exist.*LINESCAN_DATA"),
        (break_class, {}, ValueError, r"the class folder .*dog holds no image"),
        (flatten, {}, ValueError, r"no class folders in .*train: its images lie in it directly"),
        (lambda root: (root / "val" / "eel").mkdir(), {}, ValueError, r"other class folders in train than in val \(eel\)"),
        (None, dict(classes=["cat", "dog", "eel"]), FileNotFoundError, r"no folder for eel"),
        (None, dict(classes=["cat"]), ValueError, r"not in `classes`: dog"),
        (None, dict(classes=["cat", "dog", "cat"]), ValueError, r"twice: \['cat'\]"),
        (None, dict(classes="list.json"), FileNotFoundError, r"list of classes .*list.json does not exist"),
        (lambda root: (root / "m.json").write_text("{}"), dict(classes="m.json"), ValueError, r"m.json: expected JSON.*KeyError"),
        (lambda root: (root / "m.json").write_text('{"classes": "ab"}'), dict(classes="m.json"), ValueError, r"a list of names, got 'ab'"),
    ],
)
def test_a_faulty_folder_is_named_before_training(tmp_path, change, options, error, message):
    write_images(tmp_path)
    if change:
        change(tmp_path)
    with pytest.raises(error, match=message):
        ImageFolderDataset(str(tmp_path), **options)


def test_loading_makes_rgb_and_names_what_cannot_be_read(tmp_path):
    for mode in ("L", "RGBA", "P", "1", "CMYK"):
        path = tmp_path / (f"{mode}.tif")
        Image.new(mode, (5, 4)).save(path)
        assert LoadPILImage()(dict(img_path=str(path)))["img"].mode == "RGB"
    whole = tmp_path / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole)
    (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[:1500])
    (tmp_path / "empty.png").write_bytes(b"")
    for name, words in (("cut.jpg", r"\(1500 bytes\): .*truncated"), ("empty.png", r"\(0 bytes\): cannot identify")):
        with pytest.raises(ValueError, match=rf"{name} cannot be decoded {words}"):
            LoadPILImage()(dict(img_path=str(tmp_path / name)))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png does not exist"):
        LoadPILImage()(dict(img_path=str(tmp_path / "nowhere.png")))


def test_evaluation_crops_and_normalises():
    """Half the crop of a 64x48 image at side 32 is its middle 24x24."""
    picture = Image.new("RGB", (64, 48))
    picture.paste((128, 64, 255), (17, 9, 47, 39))
    options = dict(mean=(0.5, 0.25, 0.0), std=(0.5, 0.5, 1.0))
    image = TimmTransform(32, crop_pct=0.5, **options)(dict(img=picture))["inputs"]
    assert image.shape == (3, 32, 32)
    colour = torch.tensor([2 * (128 / 255 - 0.5), 2 * (64 / 255 - 0.25), 1.0])
    assert torch.allclose(image, colour.view(3, 1, 1).expand_as(image), atol=1e-5)
    assert TimmTransform(32, crop_pct=1.0, **options)(dict(img=picture))["inputs"][2].min() == 0


def test_training_augmentation_is_repeated_by_its_seed(tmp_path):
    augment = dict(type="TimmTransform", input_size=24, training=True, auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.5, re_mode="pixel")
    pipeline = [dict(type="LoadPILImage"), augment, dict(type="PackClassInputs")]
    data = ReplayDataset(ImageFolderDataset(str(write_images(tmp_path)), pipeline=pipeline), seed=3)
    first = [data[ReplayIndex(1, (0, i))]["inputs"] for i in range(8)]
    torch.rand(3), np.random.rand(3)
    assert all(torch.equal(data[ReplayIndex(1, (0, i))]["inputs"], image) for i, image in enumerate(first))
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("policy", ["rand-m10-n15-inc1", "original", "augmix-m10"])
def test_the_strongest_augmentation_works(policy):
    """Pillow refuses to posterize to no bits, which timm asks for at magnitude 10."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    transform = TimmTransform(32, training=True, auto_augment=policy)
    operations = [op for step in transform.transform.transforms for op in getattr(step, "ops", ()) if op.name.startswith("Posterize")]
    assert all(len(np.unique(op.aug_fn(picture, 0))) == 2 for op in operations)
    for _ in range(30):
        assert transform(dict(img=picture))["inputs"].isfinite().all()


@pytest.mark.parametrize("option", ["normalize", "use_prefetcher", "autoaugment"])
def test_an_unknown_option_of_the_augmentation_is_named(option):
    with pytest.raises(TypeError, match=f"no option {option}; expected .*auto_augment"):
        TimmTransform(24, **{option: True})


def test_caltech_is_converted_by_its_lists(tmp_path, repo_root):
    """The shipped lists: 60, 10 and 15 images of each class, no image twice. Here with a made-up source."""
    lists = repo_root / "configs/caltech/splits"
    names = [name for split in ("train", "val", "test") for name in (lists / f"{split}.txt").read_text().split()]
    assert len(names) == len(set(names)) == 850
    with pytest.raises(FileNotFoundError, match="expected the folder 101_ObjectCategories"):
        convert_caltech(tmp_path / "source", lists, tmp_path / "target")
    for i, name in enumerate(names):
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L" if i % 2 else "RGB", (300, 200) if i % 3 else (40, 50)).save(path)
    assert convert_caltech(tmp_path / "source", lists, tmp_path / "target") == dict(train=600, val=100, test=150)
    data = ImageFolderDataset(str(tmp_path / "target"), "test", classes="manifest.json")
    assert data.metainfo["classes"] == CLASSES and len(data) == 150
    assert [data.get_data_info(i)["gt_label"] for i in range(150)] == [label for label in range(10) for _ in range(15)]
    sizes = {Image.open(path).size for path in (tmp_path / "target" / "train").rglob("*.jpg")}
    assert sizes == {(128, 85), (40, 50)}


def test_the_real_images_are_those_of_the_lists(data_root, repo_root):
    for split in ("train", "val", "test"):
        data = ImageFolderDataset(str(data_root / "caltech10"), split, classes="manifest.json", pipeline=[dict(type="LoadPILImage")])
        listed = (repo_root / f"configs/caltech/splits/{split}.txt").read_text().split()
        assert sorted(data.get_data_info(i)["name"] for i in range(len(data))) == sorted(listed) and data.metainfo["classes"] == CLASSES
        assert max(data[0]["img"].size) == 128
