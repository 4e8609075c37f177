"""ShapesDataset: the same bytes everywhere, a cache that survives crowds and crashes, valid labels, thin threads, occlusion."""

import json
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from mmseg.registry import DATASETS
from PIL import Image

from linescan.segmentation.datasets import ShapesDataset
from linescan.segmentation.datasets.shapes_render import CLASSES, render
from linescan.segmentation.datasets.shapes_scene import THREAD, Draw, curve, sample_scene

SIZES = [(48, 48), (65, 49), (97, 210), (128, 128), (192, 192), (256, 256), (301, 517)]
PIPELINE = [dict(type="mmseg.LoadCheckedImage"), dict(type="mmseg.LoadCheckedAnnotations"), dict(type="mmseg.PackSegInputs")]


def digest(size: tuple[int, int], count: int) -> str:
    parts = [part.tobytes() for index in range(count) for part in render(sample_scene(size, (3, 0, index)))]
    return sha256(b"".join(parts)).hexdigest()


def dataset(folder: Path, **changes) -> ShapesDataset:
    arguments = dict(split="train", length=3, size=(64, 48), cache_dir=str(folder), pipeline=PIPELINE, serialize_data=False)
    return ShapesDataset(**{**arguments, **changes})


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_images_have_the_size_asked_for_and_valid_labels(size):
    for index in range(4):
        image, labels = render(sample_scene(size, (0, 1, index)))
        assert image.shape == (*size, 3) and image.dtype == np.uint8
        assert labels.shape == size and labels.dtype == np.uint8
        assert labels.max() < len(CLASSES)
        assert image.std() > 10


def test_random_numbers_are_those_of_the_raw_stream():
    # SeedSequence and PCG64 are fixed by numpy's compatibility policy (NEP 19); these are the numbers of numpy 1.26 and 2.4.
    draw = Draw(1, 2, 3)
    assert [draw.below(1000) for _ in range(5)] == [670, 111, 511, 356, 704]


def test_same_bytes_in_another_process():
    code = (
        "from hashlib import sha256\n"
        "from linescan.segmentation.datasets.shapes_render import render\n"
        "from linescan.segmentation.datasets.shapes_scene import sample_scene\n"
        "parts = [p.tobytes() for i in range(3) for p in render(sample_scene((97, 131), (3, 0, i)))]\n"
        "print(sha256(b''.join(parts)).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == digest((97, 131), 3)


def test_index_seed_and_split_each_change_the_image():
    images = [render(sample_scene((64, 64), key))[0] for key in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]]
    assert len({image.tobytes() for image in images}) == 4


def test_threads_are_one_to_two_pixels_wide():
    """The pixels of one thread alone, divided by its length."""
    measured = {2: [], 4: []}
    for index in range(20):
        scene = sample_scene((256, 256), (0, 0, index))
        pair = scene.pairs[0]
        _, labels = render(replace(scene, pairs=(pair,), loose=(), solids=()), cut=False)
        length = 0.0
        for half, disc in zip(pair.halves, pair.discs, strict=True):
            line = curve(half)
            line = line[((line - np.array(disc.centre)) ** 2).sum(1) > disc.radius**2][::8]
            length += np.sqrt((np.diff(line, axis=0) ** 2).sum(1)).sum() / 2
        measured[pair.width].append((labels == THREAD).sum() / length)
    # A slanted line is as wide as the diagonal of its stamp: 1.4 px at the most, or 2.5.
    assert 1 <= np.mean(measured[2]) < 1.5 and 1.7 < np.mean(measured[4]) < 2.4
    assert max(measured[2]) < 1.6 and max(measured[4]) < 2.6


def test_solids_hide_threads():
    """Occlusion: the solids drawn above take thread pixels away in most images."""
    hidden = 0
    for index in range(12):
        scene = sample_scene((192, 192), (0, 0, index))
        hidden += ((render(replace(scene, solids=()))[1] == THREAD) & (render(scene)[1] != THREAD)).sum() > 20
    assert hidden >= 9


def test_registered_and_loads_through_the_pipeline(tmp_path):
    data = DATASETS.build(dict(type="ShapesDataset", split="val", length=2, size=(64, 48), cache_dir=str(tmp_path), pipeline=PIPELINE))
    sample = data[1]
    image, labels = render(sample_scene((64, 48), (0, 1, 1)))
    assert np.array_equal(sample["inputs"].numpy().transpose(1, 2, 0)[..., ::-1], image)
    assert np.array_equal(sample["data_samples"].gt_sem_seg.data[0].numpy(), labels)
    assert data.metainfo["classes"] == CLASSES and len(data.metainfo["palette"]) == len(CLASSES)


def test_layout_and_manifest(tmp_path):
    data = dataset(tmp_path)
    root = Path(data.data_root)
    manifest = json.loads((root / "manifest.json").read_text())
    assert manifest["size"] == [64, 48] and manifest["seed"] == 0
    assert sorted(p.name for p in (root / "img_dir/train").iterdir()) == [f"{i:06d}.png" for i in range(3)]
    assert sorted(p.name for p in (root / "ann_dir/train").iterdir()) == [f"{i:06d}.png" for i in range(3)]


def test_rendered_once(tmp_path):
    dataset(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    dataset(tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}


def test_other_parameters_other_folder_longer_only_adds(tmp_path):
    first = files(Path(dataset(tmp_path).data_root))
    for change in (dict(seed=1), dict(size=(48, 64)), dict(margin=20)):
        assert dataset(tmp_path, **change).data_root != dataset(tmp_path).data_root
    longer = dataset(tmp_path, length=5)
    assert len(longer) == 5 and len(dataset(tmp_path)) == 3
    assert first.items() <= files(Path(longer.data_root)).items()


def test_interrupted_rendering_is_completed(tmp_path):
    whole = files(Path(dataset(tmp_path / "a").data_root))
    root = Path(dataset(tmp_path / "b").data_root)
    (root / "img_dir/train/000001.png").unlink()
    (root / "ann_dir/train/000002.png").unlink()
    dataset(tmp_path / "b")
    assert files(root) == whole


def test_lazy_dataset_draws_nothing(tmp_path):
    dataset(tmp_path, lazy_init=True)
    assert not files(tmp_path)


def test_processes_that_start_at_once_share_one_cache(tmp_path):
    code = (
        "import sys\n"
        "from linescan.segmentation.datasets import ShapesDataset\n"
        "print(len(ShapesDataset('train', 12, (64, 48), cache_dir=sys.argv[1])))"
    )
    crowd = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "b")], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in crowd]
    assert [process.returncode for process in crowd] == [0, 0]
    assert all(output.split()[-1:] == ["12"] for output in outputs)
    alone = dataset(tmp_path / "a", length=12)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    for sample in alone.load_data_list():
        Image.open(sample["img_path"]).load()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(split="training"), "split: expected one of train, val, test, got 'training'"),
        (dict(length=0), "length: expected at least 1, got 0"),
        (dict(size=(47, 64)), "size: expected"),
        (dict(seed=-1), "seed: expected a non-negative integer, got -1"),
        (dict(margin=0), "margin: expected a positive number of pixels, got 0"),
    ],
)
def test_bad_arguments_are_named(tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        dataset(tmp_path, **change)
