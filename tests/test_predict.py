"""tools/predict.py: any image size, label PNG and overlay, unreadable images listed while the others are done."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from PIL import Image

from linescan.engine import CheckpointError, load_config
from linescan.segmentation.datasets import CamVidDataset
from linescan.segmentation.inference import Predictor, find_images, predict_files
from linescan.segmentation.visualization import overlay

pytestmark = pytest.mark.xdist_group("predict")  # one worker: the tests share a fixture that trains or builds

CONFIG = "configs/hybrid/hybrid-bi-wkv-tiny_segformer_1xb4-10k_camvid-360x480.py"
OPTIONS = {"model.backbone.arch": "test", "model.decode_head.channels": 16}
PALETTE = CamVidDataset.METAINFO["palette"]


@pytest.fixture(scope="module")
def checkpoint(repo_root, tmp_path_factory):
    """Random weights of a test-size model, as a weights file without any meta data."""
    cfg = load_config(repo_root / CONFIG, cfg_options=OPTIONS)
    init_default_scope("mmseg")
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    torch.nn.init.normal_(model.decode_head.conv_seg.weight)
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(dict(state_dict=model.state_dict()), path)
    return path


@pytest.fixture(scope="module")
def predictor(repo_root, checkpoint):
    return Predictor(repo_root / CONFIG, checkpoint, device="cpu", cfg_options=OPTIONS)


def photo(path, size, seed=0):
    """A picture with structure of (width, height) `size`."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return np.array(picture)


@pytest.mark.parametrize("shape", [(37, 53), (1, 1), (200, 31), (361, 481)])
def test_labels_have_the_size_of_the_image(predictor, shape):
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    labels = predictor(image)
    assert labels.shape == shape
    assert labels.min() >= 0 and labels.max() < 11


def test_prediction_is_that_of_the_model_on_the_resized_rgb_image(predictor):
    image = np.random.default_rng(2).integers(0, 256, (360, 480, 3), dtype=np.uint8)
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    inputs = torch.from_numpy(((image - mean) / std).transpose(2, 0, 1)[None]).float()
    with torch.no_grad():
        logits = torch.nn.functional.interpolate(predictor.model._forward(inputs), size=(360, 480), mode="bilinear")
    wanted = logits[0].argmax(0).numpy()
    assert len(np.unique(wanted)) > 1
    assert (predictor(image) == wanted).mean() > 0.9999


def test_the_tool_on_one_odd_image(repo_root, checkpoint, predictor, tmp_path):
    image = photo(tmp_path / "street.png", (53, 37))
    options = [f"{key}={value}" for key, value in OPTIONS.items()]
    command = [sys.executable, "tools/predict.py", CONFIG, checkpoint, tmp_path / "street.png", "--out", tmp_path / "out"]
    done = subprocess.run(
        [*map(str, command), "--device", "cpu", "--opacity", "0.3", "--cfg-options", *options],
        cwd=repo_root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "1 predictions" in done.stdout and "ETA" in done.stdout
    labels = np.array(Image.open(tmp_path / "out/label/street.png"))
    assert np.array_equal(labels, predictor(image))
    assert np.array_equal(np.array(Image.open(tmp_path / "out/overlay/street.png")), overlay(image, labels, PALETTE, 0.3))


def test_a_folder_with_broken_files_and_equal_names(predictor, tmp_path, capsys):
    source, out = tmp_path / "in", tmp_path / "out"
    photo(source / "a.png", (20, 30))
    photo(source / "a.bmp", (20, 30), 1)
    photo(source / "night/b.jpg", (33, 21), 2)
    data = (source / "night/b.jpg").read_bytes()
    (source / "cut.jpg").write_bytes(data[: len(data) // 2])
    (source / "notes.txt").write_text("no image")
    written, failures = predict_files(predictor, source, out)
    assert written == 3
    assert len(failures) == 1 and str(source / "cut.jpg") in failures[0] and "cannot be decoded" in failures[0]
    names = sorted(p.relative_to(out / "label").as_posix() for p in (out / "label").rglob("*.png"))
    assert names == ["a_bmp.png", "a_png.png", "night/b.png"]
    assert "1 files" in capsys.readouterr().out


def test_a_failure_makes_the_exit_status_1(repo_root, checkpoint, tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"")
    command = [sys.executable, "tools/predict.py", CONFIG, checkpoint, tmp_path, "--out", tmp_path / "out", "--cfg-options"]
    options = [f"{key}={value}" for key, value in OPTIONS.items()]
    done = subprocess.run([*map(str, command), *options], cwd=repo_root, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"error: image {tmp_path}/x.jpg cannot be decoded (0 bytes)" in done.stderr


def test_nothing_to_predict(tmp_path):
    with pytest.raises(FileNotFoundError, match="no image or folder"):
        find_images(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"holds no image.*1 other files"):
        find_images(tmp_path)


def test_weights_of_another_model(repo_root, checkpoint):
    with pytest.raises(CheckpointError, match=r"random\.pth.*decode_head"):
        Predictor(repo_root / CONFIG, checkpoint, cfg_options={**OPTIONS, "model.decode_head.channels": 24})


def test_classes_of_the_checkpoint_must_fit(repo_root, checkpoint, tmp_path):
    state = torch.load(checkpoint, weights_only=True)
    state["meta"] = dict(dataset_meta=dict(classes=["a", "b"], palette=[[0, 0, 0], [1, 1, 1]]))
    torch.save(state, tmp_path / "two.pth")
    with pytest.raises(ValueError, match=r"two\.pth names 2 classes, but the model of the config has 11"):
        Predictor(repo_root / CONFIG, tmp_path / "two.pth", cfg_options=OPTIONS)


@pytest.mark.parametrize("image", [np.zeros((4, 5), np.uint8), np.zeros((4, 5, 3)), np.zeros((4, 5, 4), np.uint8)])
def test_no_image(predictor, image):
    with pytest.raises(ValueError, match="image must be an RGB uint8"):
        predictor(image)


def test_bad_opacity(predictor, tmp_path):
    with pytest.raises(ValueError, match="opacity"):
        predict_files(predictor, tmp_path, tmp_path, opacity=2)
