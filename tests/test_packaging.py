"""What an installation contains, what importing costs, and whether the pins fit the ranges."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.xdist_group("packaging")  # one worker: the tests share a fixture that trains or builds

OPENMMLAB = re.compile(r"(onedl-)?mm(engine|cv|seg)")
FOLDERS = ("kernels", "backbones", "engine", "segmentation", "classification", "profiling")


@pytest.fixture(scope="module")
def build(repo_root, tmp_path_factory) -> Path:
    """Runs setup.py on a copy of the tracked tree: build/lib holds what a wheel would install, *.egg-info its metadata."""
    pytest.importorskip("setuptools", reason="setup.py cannot be run without setuptools")
    root = tmp_path_factory.mktemp("tree")
    for folder in FOLDERS:
        shutil.copytree(repo_root / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "README.md", "LICENSE", "pyproject.toml"):
        shutil.copy(repo_root / name, root / name)
    command = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", "build/lib", "egg_info"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return root


def requirements(build: Path) -> dict[str, list[Requirement]]:
    """Extra ("" for the plain installation) -> requirements, from the metadata that setup.py writes."""
    found: dict[str, list[Requirement]] = {"": []}
    section = ""
    for line in (build / "linescan.egg-info" / "requires.txt").read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line.strip():
            found.setdefault(section, []).append(Requirement(line))
    return found


def pins(repo_root: Path) -> dict[str, str]:
    lines = [line.strip() for line in (repo_root / "constraints.txt").read_text().splitlines()]
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pair) == 2 for pair in pairs), "every line of constraints.txt is name==version"
    return {canonicalize_name(name): version for name, version in pairs}


def test_a_wheel_holds_the_folders_under_linescan_and_nothing_beside_it(build, repo_root):
    lib = build / "build" / "lib"
    assert [entry.name for entry in lib.iterdir()] == ["linescan"]
    assert not (lib / "linescan" / "__init__.py").exists() and not (lib / "linescan" / "kernels" / "__init__.py").exists()
    installed = {path.relative_to(lib / "linescan").as_posix() for path in lib.rglob("*.py")}
    written = {path.relative_to(repo_root).as_posix() for folder in FOLDERS for path in (repo_root / folder).rglob("*.py")}
    assert installed == written, "a folder with modules lacks its __init__.py, or setup.py maps too little"
    assert "kernels/bi_wkv/op.py" in installed


def test_top_level_names_are_those_of_linescan(build):
    assert (build / "linescan.egg-info" / "top_level.txt").read_text().split() == ["linescan"]


def test_version_is_one_fact(build):
    text = (build / "linescan.egg-info" / "PKG-INFO").read_text()
    fields = dict(re.findall(r"^(Name|Version): (.+)$", text, re.M))
    assert fields["Name"] == "linescan" and re.fullmatch(r"\d+\.\d+\.\d+", fields["Version"])
    assert metadata.version("linescan") == fields["Version"], "the installed linescan is another one: install the checkout again"


def test_pins_satisfy_the_ranges_and_cover_them(build, repo_root):
    pinned = pins(repo_root)
    for extra in ("", "dense", "dev"):
        for requirement in requirements(build)[extra]:
            version = pinned.get(canonicalize_name(requirement.name))
            assert version is not None, f"{requirement} of extra {extra!r} has no pin in constraints.txt"
            assert requirement.specifier.contains(version), f"constraints.txt pins {version}, setup.py asks for {requirement}"


def test_a_user_keeps_torch_and_one_owner_of_each_import_name(build):
    everything = requirements(build)
    plain = {canonicalize_name(requirement.name): requirement for requirement in everything[""]}
    assert str(plain["torch"].specifier).startswith(">=") and "," not in str(plain["torch"].specifier)
    assert not [name for name in plain if OPENMMLAB.match(name)], "mm* packages belong to the extra `dense` alone"
    names = {canonicalize_name(requirement.name) for extra in everything.values() for requirement in extra}
    assert {name for name in names if OPENMMLAB.match(name)} == {"onedl-mmengine", "onedl-mmcv", "onedl-mmsegmentation"}


def test_opencv_without_a_desktop_is_the_last_word(repo_root):
    """The headless build is laid over opencv-python: same files, so it has to be the same version, and both installers have to do it."""
    pinned = pins(repo_root)
    assert pinned["opencv-python"] == pinned["opencv-python-headless"]
    assert re.search(r"--force-reinstall --no-deps opencv-python-headless$", (repo_root / "Makefile").read_text(), re.M)


def run_python(code: str) -> dict:
    """Runs code in a new interpreter, away from the checkout; the code sets `answer`, which has to be JSON."""
    program = f"import json, sys\n{code}\nprint('ANSWER' + json.dumps(answer))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, cwd=os.path.expanduser("~"))
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.rpartition("ANSWER")[2])


# Makes packages absent, and notes who asks for one all the same.
WITHOUT = """
attempts = []
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages}:
            attempts.append(name)
            raise ImportError(f"{{name}} is absent in this test")
sys.meta_path.insert(0, Absent())
"""


def test_kernels_and_timing_run_with_torch_alone():
    """Neither triton nor any vision package: what a kernel's benchmark needs on a bare GPU machine."""
    answer = run_python(
        WITHOUT.format(packages=("triton", "timm", "mmengine", "mmcv", "mmseg", "fvcore", "torchvision", "matplotlib"))
        + """
import torch
from linescan.kernels.bi_wkv import bi_wkv
from linescan.profiling import count_macs, measure_throughput, provenance
k = torch.randn(1, 5, 3)
measure_throughput({"a": torch.nn.Identity()}, 4, rounds=1)
macs = count_macs(torch.nn.Linear(4, 4), (2, 4)).macs
answer = [list(bi_wkv(torch.ones(3), torch.ones(3), k, k).shape), macs, provenance()["device_type"]]
"""
    )
    assert answer == [[1, 5, 3], 32, "cpu"]


def test_backbones_ask_for_neither_mmcv_nor_mmseg():
    answer = run_python(
        WITHOUT.format(packages=("mmcv", "mmseg", "cv2", "fvcore"))
        + """
import torch
from linescan.backbones import HybridBackbone
levels = HybridBackbone("test")(torch.zeros(1, 3, 32, 32))
answer = [attempts, [list(level.shape) for level in levels]]
"""
    )
    assert answer == [[], [[1, 16, 8, 8], [1, 32, 4, 4], [1, 64, 2, 2], [1, 64, 2, 2]]]


def test_importing_is_free():
    """No process (compiler), no connection, no file written outside of Python's own cache, no device: what ours add to third parties."""
    answer = run_python(
        f"folders = {FOLDERS}"
        + """
import importlib, torch, timm, mmengine.runner, mmseg.models, mmseg.apis, matplotlib.figure
events = []
forbidden = ("subprocess.Popen", "os.system", "os.posix_spawn", "os.fork", "socket.connect", "socket.getaddrinfo")
def watch(event, args):
    if event in forbidden:
        events.append(event)
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+") and "__pycache__" not in str(args[0]):
        events.append(f"open {args[0]}")
sys.addaudithook(watch)
for folder in folders:
    importlib.import_module("linescan.kernels.bi_wkv" if folder == "kernels" else f"linescan.{folder}")
answer = [events, torch.cuda.is_initialized()]
"""
    )
    assert answer == [[], False]
