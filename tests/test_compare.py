"""tools/compare.py end to end, on a handful of small images: what it leaves, and that a second call reuses it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from linescan.profiling import read_rows

pytestmark = pytest.mark.xdist_group("compare")  # one worker: the tests share a fixture that trains or builds

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = [f"hybrid-{mixer}-test_segformer_1xb8-400_shapes-128x128" for mixer in ("bi-wkv", "attention")]
LENGTHS = [f"{split}_dataloader.dataset.length={n}" for split, n in (("train", 8), ("val", 2), ("test", 3))]


@pytest.fixture(scope="module")
def compare(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")

    def call():
        command = [sys.executable, str(ROOT / "tools/compare.py"), *(str(ROOT / f"configs/shapes/{name}.py") for name in CONFIGS)]
        options = ["--cfg-options", "train_cfg.max_iters=2", "train_cfg.val_interval=2", "default_hooks.logger.interval=1", *LENGTHS]
        environment = {**os.environ, "LINESCAN_DATA": str(folder / "data"), "OMP_NUM_THREADS": "1"}
        return subprocess.run([*command, "--out", str(folder / "out"), *options], capture_output=True, text=True, env=environment)

    return call, folder / "out"


def test_compare(compare):
    call, out = compare
    done = call()
    assert done.returncode == 0, done.stderr[-3000:]
    rows = read_rows(out / "results.json")
    assert [row["name"] for row in rows] == CONFIGS
    for row in rows:
        metrics = json.loads((out / row["name"] / "metrics.json").read_text())["metrics"]
        assert row["result"]["mIoU"] == metrics["mIoU"]
        assert row["result"]["parameters"] > row["result"]["backbone_parameters"] > 1e5
        assert row["condition"]["iterations"] == 2
        assert list((out / row["name"]).glob("best_mIoU_*.pth"))
    assert rows[0]["result"]["ratio"]["median"] == 1
    table = (out / "table.md").read_text()
    assert all(name in table for name in (*CONFIGS, "mIoU, %", "MACs, G", "IoU.thread"))
    # Three test images of 128 px in a column, four panels side by side.
    width, height = Image.open(out / "sheet.png").size
    assert width > 4 * 128 and height > 3 * 128
    assert Image.open(out / "curves.png").size[0] > 500

    again = call()
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stdout.count("evaluated already") == 2
