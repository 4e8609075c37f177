"""Fixtures shared by the flat tests: where outside data lies, and the reason printed when it does not."""

import importlib.util
import os
import random
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton: without a GPU its kernels run in the interpreter

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first, so that no worker is left alone with them in the end."""
    items.sort(key=lambda item: "test_kernel_compile" not in item.nodeid)


def _folder(variable: str, default: str) -> Path:
    path = Path(os.environ.get(variable, ROOT / default)).resolve()
    if not path.is_dir():
        pytest.skip(f"{variable} names no folder ({path}): the data are not part of the repository")
    return path


@pytest.fixture(autouse=True)
def seed():
    """Every test draws the same numbers, whatever ran before it in its worker."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_default_scope():
    """Every test starts without MMEngine's default registry scope, which a tool that ran in this process has set for good."""
    if registry := sys.modules.get("mmengine.registry"):
        registry.DefaultScope._instance_dict.clear()


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The checkout itself, for tests of tools and configs."""
    return ROOT


@pytest.fixture
def tool(repo_root, monkeypatch, capsys) -> Callable[..., tuple[int, str]]:
    """Run a tool in this process, `tool("train", config, "--amp")`; gives its exit status and standard error."""

    def run(name, *args):
        monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
        monkeypatch.setenv("LOCAL_RANK", "0")
        monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
        status = 0
        try:
            runpy.run_path(str(repo_root / "tools" / f"{name}.py"), run_name="__main__")
        except SystemExit as stop:
            status = stop.code
        return status, capsys.readouterr().err

    return run


@pytest.fixture(scope="session")
def commands() -> ModuleType:
    """commands.py of this folder; tests are no packages, so they cannot import it."""
    spec = importlib.util.spec_from_file_location("commands", ROOT / "tests" / "commands.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def triton_device() -> str:
    """Where tests run Triton kernels: on the GPU, or on CPU tensors in Triton's interpreter."""
    pytest.importorskip("triton")
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session")
def golden_models() -> Path:
    """Folder of golden model tensors (`LINESCAN_GOLDEN`)."""
    return _folder("LINESCAN_GOLDEN", "../shared/golden/models")


@pytest.fixture(scope="session")
def golden_ops(golden_models: Path) -> Path:
    """Folder of golden operator tensors, beside the models."""
    path = golden_models.parent / "ops"
    if not path.is_dir():
        pytest.skip(f"no golden operators beside {golden_models}")
    return path


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of real images with masks (`LINESCAN_DATA`)."""
    return _folder("LINESCAN_DATA", "../shared/data")
