"""The base models take an optimizer step, and tools/train.py with a shipped config leaves pictures, scalars and the best checkpoint."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from linescan.engine import load_config
from linescan.segmentation.datasets import CamVidDataset

SEGFORMER = "hybrid/hybrid-attention-tiny_segformer_1xb4-10k_camvid-360x480.py"
ARCH, ONE_MAP = {"model.backbone.arch": "test"}, {"model.backbone.out_indices": (1,)}
# A config of every kind of backbone with every head that it has -> what makes it small.
STEPS = {
    "hybrid/hybrid-bi-wkv-tiny_upernet_4xb4-40k_voc12-512x512.py": ARCH,
    SEGFORMER: ARCH,
    "hybrid/hybrid-ss2d-tiny_semfpn_4xb4-80k_ade20k-512x512.py": ARCH,
    "vrwkv/vrwkv-adapter-tiny_upernet_4xb4-160k_ade20k-512x512.py": {**ARCH, "model.backbone.backbone.arch": "test"},
    "vrwkv/vrwkv-tiny_semfpn_4xb4-80k_ade20k-512x512.py": {**ARCH, **ONE_MAP},
    "vrwkv6/vrwkv6-adapter-tiny_upernet_4xb4-160k_ade20k-512x512.py": {**ARCH, "model.backbone.backbone.arch": "test"},
    "vrwkv6/vrwkv6-tiny_semfpn_4xb4-80k_ade20k-512x512.py": {**ARCH, **ONE_MAP},
    "vim/vim-tiny_upernet_4xb8-60k_ade20k-512x512.py": {**ARCH, **ONE_MAP},
    "vim/vim-tiny_semfpn_4xb4-80k_ade20k-512x512.py": {**ARCH, **ONE_MAP},
    "vmamba/vmamba-tiny_upernet_4xb4-160k_ade20k-512x512.py": ARCH,
    "vmamba/vmamba-tiny_semfpn_4xb4-80k_ade20k-512x512.py": ARCH,
    "vssd/vssd-micro_upernet_4xb4-160k_ade20k-512x512.py": ARCH,
    "vssd/vssd-micro_semfpn_4xb4-80k_ade20k-512x512.py": ARCH,
    "timm/deit-tiny_upernet_4xb4-160k_ade20k-512x512.py": {"model.backbone.model_name": "test", **ONE_MAP},
    "timm/deit-tiny_semfpn_4xb4-80k_ade20k-512x512.py": {"model.backbone.model_name": "test", **ONE_MAP},
    "timm/convnext-tiny_upernet_4xb4-160k_ade20k-512x512.py": {"model.backbone.model_name": "test_convnext"},
    "timm/vitamin-small_semfpn_4xb4-80k_ade20k-512x512.py": {"model.backbone.model_name": "test_vitamin"},
    "vrwkv/vrwkv-tiny_segformer_1xb8-500_camvid-180x240.py": {**ARCH, **ONE_MAP},
    "vmamba/vmamba-micro_segformer_1xb8-500_camvid-180x240.py": ARCH,
    "timm/swin-micro_segformer_1xb8-500_camvid-180x240.py": {
        "model.backbone.model_name": "test_swin",
        "model.decode_head.in_index": (0, 1),
    },
    "timm/resnet50_upernet_4xb4-160k_ade20k-512x512.py": {"model.backbone.model_name": "test_resnet"},
}


@pytest.mark.parametrize("config", STEPS, ids=lambda path: path.split("/")[1].split("_4xb")[0].split("_1xb")[0])
def test_a_step_lowers_the_loss(repo_root, config):
    """Odd crop, ignored pixels, auxiliary head where there is one, the optimizer of the config; then a prediction."""
    options = {**STEPS[config], "model.decode_head.channels": 16, "model.data_preprocessor.size": (65, 97)}
    cfg = load_config(repo_root / "configs" / config, cfg_options=options)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).train()
    model.init_weights()
    paramwise = cfg.optim_wrapper.pop("paramwise_cfg", None)
    kind = cfg.optim_wrapper.pop("constructor")
    constructor = OPTIM_WRAPPER_CONSTRUCTORS.build(dict(type=kind, optim_wrapper_cfg=cfg.optim_wrapper, paramwise_cfg=paramwise))
    wrapper = constructor(model)
    for group in wrapper.optimizer.param_groups:
        group["lr"] = 3e-3 if cfg.optim_wrapper.optimizer.type == "AdamW" else 0.1
    data = dict(inputs=[torch.randint(0, 256, (3, 61, 90), dtype=torch.uint8) for _ in range(2)], data_samples=[])
    for i in range(2):
        labels = torch.full((1, 61, 90), i)
        labels[:, :9] = 255
        sample = SegDataSample(metainfo=dict(img_shape=(61, 90), ori_shape=(61, 90)))
        sample.gt_sem_seg = PixelData(data=labels)
        data["data_samples"].append(sample)
    losses = [float(model.train_step(data, wrapper)["loss"].detach()) for _ in range(8)]
    assert np.isfinite(losses).all() and losses[-1] < 0.9 * losses[0]
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    with torch.no_grad():
        predicted = model.eval().test_step(data)
    assert all(sample.pred_sem_seg.data.shape == (1, 61, 90) for sample in predicted)


@pytest.fixture
def streets(tmp_path):
    """CamVid's layout with a few made-up images of 40 x 56."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 3), ("test", 1)):
        for kind in ("img_dir", "ann_dir"):
            (tmp_path / f"camvid/{kind}/{split}").mkdir(parents=True)
        for i in range(count):
            labels = np.kron(rng.integers(0, 11, (5, 7)), np.ones((8, 8), int)).astype(np.uint8)
            colors = np.array(CamVidDataset.METAINFO["palette"], np.uint8)[labels]
            Image.fromarray(colors).save(tmp_path / f"camvid/img_dir/{split}/{i}.jpg")
            Image.fromarray(labels).save(tmp_path / f"camvid/ann_dir/{split}/{i}.png")
    return tmp_path


def test_a_training_run_leaves_pictures_scalars_and_the_best_checkpoint(repo_root, streets):
    options = ["model.backbone.arch=test", "model.decode_head.channels=16", "model.data_preprocessor.size=(40,56)"]
    options += ["train_dataloader.dataset.pipeline.2.scale=(56,40)", "train_dataloader.dataset.pipeline.3.crop_size=(40,56)"]
    options += ["val_dataloader.dataset.pipeline.1.scale=(56,40)", "train_cfg.max_iters=4", "train_cfg.val_interval=2"]
    options += ["default_hooks.logger.interval=1", "default_hooks.visualization.num_images=2", f"data_root={streets / 'camvid'}"]
    options += [f"{split}_dataloader.{key}" for split in ("train", "val") for key in ("num_workers=0", "persistent_workers=False")]
    command = [
        sys.executable,
        "tools/train.py",
        f"configs/{SEGFORMER}",
        "--work-dir",
        str(streets / "run"),
        "--cfg-options",
    ]
    done = subprocess.run([*command, *options], cwd=repo_root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Iter(train) [3/4]" in done.stdout and "eta: " in done.stdout
    assert list((streets / "run").glob("best_mIoU_iter_*.pth"))
    folder = next((streets / "run").glob("*/vis_data"))
    names = sorted(p.name for p in (folder / "vis_image").iterdir())
    assert names == ["val_0000_0_2.png", "val_0000_0_4.png", "val_0002_2_2.png", "val_0002_2_4.png"]
    events = EventAccumulator(str(folder)).Reload().Tags()
    assert events["images"] == ["val_0000_0", "val_0002_2"]
    assert {"loss", "mIoU", "IoU.road", "lr"} <= set(events["scalars"])
