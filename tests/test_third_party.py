"""A stranger's package, installed beside ours without an edit of ours: its backbones train in MMSegmentation; broken ones are named.

The package that docs/third_party.md shows is installed from the page, and the page's commands are run on it.
"""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmseg", reason="MMSegmentation is not installed")

NET = '''
"""A backbone of two convolutions that knows nothing of linescan."""

from torch import nn


class FarawayNet(nn.Module):
    def __init__(self, width=4, second_stride=2):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, stride=4, padding=1)
        self.second = nn.Conv2d(width, 2 * width, 3, stride=second_stride, padding=1)
        self.out_channels = (width, 2 * width)
        self.out_strides = (4, 8)

    def forward(self, x):
        x = self.first(x)
        return x, self.second(x)
'''

DECORATED = '''
"""The same, registered by the decorator."""

from linescan.backbones import BACKBONES

from .net import FarawayNet


@BACKBONES.register_module()
class DecoratedNet(FarawayNet):
    pass
'''

CONFIG = """
default_scope = "mmseg"
custom_imports = dict(imports={imports!r}, allow_failed_imports=False)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(type="SegDataPreProcessor", size=(32, 48), mean=[127.5] * 3, std=[127.5] * 3),
    backbone={backbone!r},
    decode_head=dict(type="FCNHead", in_channels=8, in_index=-1, channels=8, num_convs=1, concat_input=False, num_classes=3),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type="BaseSegDataset",
        data_root={data!r},
        data_prefix=dict(img_path="images", seg_map_path="labels"),
        img_suffix=".png",
        seg_map_suffix=".png",
        metainfo=dict(classes=("a", "b", "c"), palette=[[0, 0, 0], [128, 0, 0], [0, 128, 0]]),
        pipeline=[dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")],
    ),
)
train_cfg = dict(type="IterBasedTrainLoop", max_iters=2)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.1))
default_hooks = dict(checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=2), logger=dict(type="LoggerHook", interval=1))
log_processor = dict(by_epoch=False)
"""

TRAIN = """
import site
import sys

site.addsitedir(sys.argv[1])

from mmengine.config import Config
from mmengine.runner import Runner

for path in sys.argv[2:]:
    config = Config.fromfile(path)
    config.work_dir = path.removesuffix(".py")
    config.experiment_name = path
    runner = Runner.from_cfg(config)
    try:
        runner.train()
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"
    else:
        outcome = f"{runner.iter} iterations of {type(runner.model.backbone).__name__}"
    print("OUTCOME", outcome)
"""


# Runs a script with the installed package within reach: of this process and, since they inherit its search path, of its children.
TOOL = """
import runpy
import site
import sys

site.addsitedir(sys.argv[1])
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*command: object, **options: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=240, **options)


def install(folder: Path, name: str, entry_points: str, modules: dict[str, str], *, distribution: str = "", version: str = "0.7") -> Path:
    """Build a wheel and install it with pip, without index, into a folder of its own; gives that folder.

    The wheel is zipped here, because a bare environment need not have a build backend.
    """
    distribution = distribution or f"{name}_backbones"
    info = f"{distribution}-{version}.dist-info"
    files = {f"{name}/__init__.py": "", **{f"{name}/{module}.py": text for module, text in modules.items()}}
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {distribution.replace('_', '-')}\nVersion: {version}\n"
    files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/entry_points.txt"] = f"[linescan.backbones]\n{entry_points}\n"
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    wheel, target = folder / f"{distribution}-{version}-py3-none-any.whl", folder / f"{name}_installed"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text.lstrip())
    done = run("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--disable-pip-version-check", "--target", target, wheel)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def test_a_strangers_backbones_train_and_a_broken_one_is_told_what_it_promised(tmp_path):
    installed = install(tmp_path, "faraway", "FarawayNet = faraway.net:FarawayNet", {"net": NET, "decorated": DECORATED})
    random = np.random.default_rng(0)
    for kind, high, shape in (("images", 256, (32, 48, 3)), ("labels", 3, (32, 48))):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(random.integers(0, high, shape, dtype=np.uint8)).save(tmp_path / "data" / kind / f"{i}.png")
    (tmp_path / "train.py").write_text(TRAIN)
    configs = {
        "entry_point": CONFIG.format(
            imports=["linescan.backbones"], backbone=dict(type="linescan.FarawayNet", width=4), data=str(tmp_path / "data")
        ),
        "decorator": CONFIG.format(imports=["faraway.decorated"], backbone=dict(type="linescan.DecoratedNet"), data=str(tmp_path / "data")),
        "broken": CONFIG.format(
            imports=["linescan.backbones"], backbone=dict(type="linescan.FarawayNet", second_stride=4), data=str(tmp_path / "data")
        ),
    }
    for name, text in configs.items():
        (tmp_path / f"{name}.py").write_text(text)
    done = run(tmp_path / "train.py", installed, *(tmp_path / f"{name}.py" for name in configs))
    outcomes = [line.removeprefix("OUTCOME ") for line in done.stdout.splitlines() if line.startswith("OUTCOME ")]
    assert len(outcomes) == 3, done.stdout[-2000:] + done.stderr[-4000:]
    assert outcomes[:2] == ["2 iterations of FarawayNet", "2 iterations of DecoratedNet"]
    assert (tmp_path / "entry_point" / "iter_2.pth").is_file() and (tmp_path / "decorator" / "iter_2.pth").is_file()
    promised = "map 1 of FarawayNet (out_channels 8, out_strides 8) must have shape (2, 8, 4, 6) for an input of shape (2, 3, 32, 48)"
    assert outcomes[2].startswith("ContractError: ") and outcomes[2].endswith(f"{promised}, got (2, 8, 2, 3).")


def test_a_broken_entry_point_names_its_distribution(tmp_path):
    target = install(tmp_path, "adrift", "AdriftNet = adrift.no_such_module:AdriftNet", {})
    done = run("-c", f"import site; site.addsitedir({str(target)!r}); from linescan.backbones import list_backbones; list_backbones()")
    message = done.stderr.strip().splitlines()[-1]
    assert "PluginError" in message
    assert "'AdriftNet = adrift.no_such_module:AdriftNet' (group linescan.backbones) of adrift-backbones 0.7 failed" in message


@pytest.fixture
def shown_package(tmp_path, repo_root) -> Path:
    """The package of docs/third_party.md, installed; gives the folder."""
    tomllib = pytest.importorskip("tomllib", reason="tomllib comes with Python 3.11")
    page = (repo_root / "docs" / "third_party.md").read_text(encoding="utf-8")
    project = tomllib.loads(re.search(r"`pyproject.toml`:\n\n```toml\n(.*?)```", page, re.S)[1])["project"]
    name, source = re.search(r"`(\w+)/__init__.py`:\n\n```python\n(.*?)```", page, re.S).groups()
    points = "\n".join(f"{key} = {value}" for key, value in project["entry-points"]["linescan.backbones"].items())
    return install(tmp_path, name, points, {"__init__": source}, distribution=project["name"], version=project["version"])


def test_the_package_of_the_guide_trains_and_is_profiled_by_the_commands_of_the_guide(shown_package, repo_root, commands, tmp_path):
    page = (repo_root / "docs" / "third_party.md").read_text(encoding="utf-8")
    train, profile = (argv for line in commands.page_lines(page) for argv in commands.calls(line))
    assert (train[0], profile[:2]) == ("tools/train.py", ["tools/profile_model.py", "farawaynet"])
    cache = [f"{split}_dataloader.dataset.{key}" for split in ("train", "val") for key in (f"cache_dir={tmp_path}", "length=16")]
    short = ["--cfg-options", "train_cfg.max_iters=2", "train_cfg.val_interval=2", "default_hooks.checkpoint.interval=2", *cache]
    done = run("-c", TOOL, shown_package, *train, *short, "--work-dir", tmp_path / "run", cwd=repo_root)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert (
        list((tmp_path / "run").glob("best_mIoU_iter_2.pth"))
        and "'linescan.FarawayNet'" in next((tmp_path / "run").glob("*.py")).read_text()
    )

    out = tmp_path / "profile"
    done = run(
        "-c", TOOL, shown_package, *profile, "--sizes", 64, "--rounds", 1, "--threads", 1, "--baseline", "none", "--out", out, cwd=repo_root
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    rows = json.loads((out / "rows.json").read_text())
    assert {"model", "cost", "speed", "memory"} <= {row["kind"] for row in rows} and {row["name"] for row in rows} == {"farawaynet"}
