"""Who may import whom, read from the source text: every arrow points one way, and the name is the address.

The rules are data below. Each is tried on a made-up tree too, so that a rule which can no longer fail is noticed.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

STDLIB = sys.stdlib_module_names
FOLDERS = ("kernels", "backbones", "engine", "segmentation", "classification", "profiling")
SCRIPTS = ("tools", "tests", "configs")
# Folder -> folders of ours that it may import, third parties that it may import, third parties that it may import inside functions only.
ARROWS: dict[str, tuple[set[str], set[str], set[str]]] = {
    "kernels": (set(), {"torch"}, set()),
    "backbones": ({"kernels"}, {"torch", "timm", "mmengine"}, {"safetensors"}),  # timm brings safetensors
    "engine": (set(), {"torch", "mmengine", "numpy"}, {"mmseg", "mmcv"}),
    "segmentation": ({"engine"}, {"torch", "mmengine", "mmseg", "mmcv", "numpy", "PIL", "cv2"}, set()),
    "classification": ({"engine"}, {"torch", "mmengine", "timm", "torchvision", "numpy", "PIL"}, set()),
    "profiling": ({"kernels", "engine"}, {"torch", "fvcore", "matplotlib", "mmengine", "numpy", "tqdm"}, set()),
}
TOOL_LINES = 150
# Where a user's explicit word (never a default) turns the protection of torch.load off, and the test that shows what it protects from.
LOADING_POLICY = ("engine/safe_load.py", "tests/test_engine_safe_load.py")


@dataclass(frozen=True)
class Import:
    """One imported module, by absolute name: `linescan.kernels.costs` for what is ours, however it was written."""

    module: str
    line: int
    relative: bool
    inside_function: bool

    @property
    def ours(self) -> str | None:
        """The folder of ours that it leads to."""
        parts = self.module.split(".")
        return parts[1] if parts[0] == "linescan" and len(parts) > 1 else None


def sources(root: Path) -> list[Path]:
    return [path for folder in (*FOLDERS, *SCRIPTS) for path in sorted((root / folder).rglob("*.py"))]


def imports(path: Path, root: Path) -> Iterator[Import]:
    package = ("linescan", *path.relative_to(root).parent.parts)
    for node, inside in _walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, False, inside)
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from .. import costs` names a module, `from ..costs import FORMULAS` an object in one: both are covered by the longer name.
            for alias in node.names:
                yield Import(f"{module}.{alias.name}", node.lineno, bool(node.level), inside)
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__") and node.args:
            name = getattr(node.args[0], "value", None)
            if isinstance(name, str):
                yield Import(name, node.lineno, False, inside)


def _walk(node: ast.AST, inside: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        yield child, inside
        yield from _walk(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def operators(root: Path) -> set[str]:
    return {path.parent.name for path in (root / "kernels").glob("*/__init__.py")}


def wrong_arrows(root: Path) -> list[str]:
    """Imports against the rules, as `file:line: what is wrong`."""
    found = []
    for path in sources(root):
        relative = path.relative_to(root)
        for entry in imports(path, root):
            reason = _wrong(relative, entry, operators(root))
            if reason:
                found.append(f"{relative.as_posix()}:{entry.line}: {reason}")
    return found


def _wrong(path: Path, entry: Import, ops: set[str]) -> str | None:
    folder, top = path.parts[0], entry.module.split(".")[0]
    if folder == "configs":
        return "configs are data and import nothing"
    if top in (*FOLDERS, *SCRIPTS) or (entry.ours in SCRIPTS):
        return f"{entry.module}: tools, tests and configs are imported by nobody, and our folders are linescan.<folder>"
    if folder in SCRIPTS:
        if entry.relative or top.startswith("test_") or top == "conftest":
            return f"{entry.module}: scripts and tests import linescan.<folder> and not each other"
        return None
    return _wrong_in_library(path, folder, entry, ops)


def _wrong_in_library(path: Path, folder: str, entry: Import, ops: set[str]) -> str | None:
    ours, third_parties, lazy = ARROWS[folder]
    top = entry.module.split(".")[0]
    if top == "linescan":
        if not entry.relative:
            return f"{entry.module}: imports between our folders are relative"
        if entry.ours not in (folder, *ours):
            return f"{entry.module}: {folder} may import {', '.join(sorted(ours)) or 'nothing of ours'}"
        return _wrong_in_kernels(path, entry, ops) if folder == "kernels" else None
    if top in STDLIB or top in third_parties or (top in lazy and entry.inside_function):
        return None
    if folder == "kernels" and path.name == f"peer_{top}.py":  # the adapter of another package, imported when it is asked for by name
        return None
    if top == "triton" and folder == "kernels" and path.name.startswith("triton_"):
        return None
    return f"{top}: {folder} may import {', '.join(sorted(third_parties))}" + (
        f", and {', '.join(sorted(lazy))} inside functions" if lazy else ""
    )


def _wrong_in_kernels(path: Path, entry: Import, ops: set[str]) -> str | None:
    own = path.parts[1] if path.parts[1] in ops else None
    parts = entry.module.split(".")
    if parts[2] in ops and parts[2] != own:
        return f"{entry.module}: an operator is imported by no other operator and by no file that operators share"
    if any(part.startswith("triton_") for part in parts[2:]) and not entry.inside_function and not path.name.startswith("triton_"):
        return f"{entry.module}: Triton files are imported inside functions, so that importing needs no triton"
    return None


def unsafe_habits(root: Path) -> list[str]:
    """`sys.path` edits, PYTHONPATH, and `weights_only` at anything but True."""
    found = []
    for path in sources(root):
        for node, _ in _walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = path.relative_to(root).as_posix()
            reason = _unsafe(node, policy=name in LOADING_POLICY)
            if reason:
                found.append(f"{name}:{node.lineno}: {reason}")
    for name in ("Makefile", ".ci/run"):
        if (root / name).exists() and "PYTHONPATH" in (root / name).read_text(encoding="utf-8"):
            found.append(f"{name}: sets PYTHONPATH")
    return found


def _is_sys_path(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "path" and isinstance(node.value, ast.Name) and node.value.id == "sys"


def _unsafe(node: ast.AST, *, policy: bool) -> str | None:
    if isinstance(node, ast.Call):
        if not policy and any(word.arg == "weights_only" and getattr(word.value, "value", None) is not True for word in node.keywords):
            return "weights_only must be the constant True"
        if isinstance(node.func, ast.Attribute) and _is_sys_path(node.func.value):
            return f"sys.path.{node.func.attr}"
        keys = [*node.args, *(ast.Constant(word.arg) for word in node.keywords if word.arg)]
    elif isinstance(node, ast.Assign | ast.AugAssign | ast.Delete):
        targets = [node.target] if isinstance(node, ast.AugAssign) else node.targets
        if any(_is_sys_path(part) for target in targets for part in ast.walk(target)):
            return "assigns to sys.path"
        keys = [target.slice for target in targets if isinstance(target, ast.Subscript)]
    elif isinstance(node, ast.Dict):
        keys = [key for key in node.keys if key is not None]
    else:
        return None
    return "sets PYTHONPATH" if any(isinstance(key, ast.Constant) and key.value == "PYTHONPATH" for key in keys) else None


def test_every_arrow_points_one_way(repo_root):
    assert wrong_arrows(repo_root) == []


def test_no_path_tricks_and_no_unsafe_loading(repo_root):
    # This file names the forbidden words, as data for the tests below.
    assert [line for line in unsafe_habits(repo_root) if not line.startswith("tests/test_import_arrows.py")] == []


def test_namespace_folders_have_no_init(repo_root):
    for name in ("kernels/__init__.py", "tests/__init__.py", "tools/__init__.py", "configs/__init__.py", "__init__.py", "linescan"):
        assert not (repo_root / name).exists(), name
    assert all((repo_root / folder / "__init__.py").exists() for folder in FOLDERS if folder != "kernels")


def test_tools_are_short(repo_root):
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in (repo_root / "tools").rglob("*.py")}
    assert {name: count for name, count in lines.items() if count > TOOL_LINES} == {}


def make_tree(root: Path, files: dict[str, str]) -> Path:
    skeleton = {"kernels/a/__init__.py": "", "kernels/b/__init__.py": "", "kernels/a/triton_kernels.py": "import triton"}
    for name, text in {**skeleton, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("kernels/a/op.py", "from ..b import op"),
        ("kernels/a/op.py", "from .. import b"),
        ("kernels/dispatch.py", "from .a.op import run"),
        ("kernels/a/op.py", "from ...backbones import hybrid"),
        ("kernels/a/op.py", "import numpy"),
        ("kernels/a/op.py", "import triton"),
        ("kernels/a/op.py", "def f():\n    import triton"),
        ("kernels/a/op.py", "from . import triton_kernels"),
        ("kernels/a/op.py", "from .triton_kernels import forward"),
        ("backbones/x.py", "from ..segmentation import heads"),
        ("backbones/x.py", "import mmseg"),
        ("backbones/x.py", "from linescan.kernels.a import op"),
        ("backbones/x.py", "from kernels.a import op"),
        ("segmentation/x.py", "from ..backbones import HybridBackbone"),
        ("segmentation/heads/x.py", "from ...kernels.a import op"),
        ("segmentation/x.py", "import importlib\nimportlib.import_module('linescan.backbones')"),
        ("classification/x.py", "from ..backbones import HybridBackbone"),
        ("classification/x.py", "from ..segmentation import datasets"),
        ("classification/x.py", "import mmseg"),
        ("engine/x.py", "from ..segmentation import heads"),
        ("engine/x.py", "import mmseg"),
        ("profiling/x.py", "from ..backbones.registry import BACKBONES"),
        ("profiling/x.py", "import pandas"),
        ("profiling/x.py", "from ..tools import train"),
        ("tools/x.py", "from tools import train"),
        ("tests/test_x.py", "from .helpers import make"),
        ("tests/test_x.py", "import test_y"),
        ("tests/test_x.py", "from tests.test_y import make"),
        ("tests/test_x.py", "import kernels.a"),
        ("configs/x.py", "import torch"),
    ],
)
def test_a_wrong_arrow_is_found(tmp_path, file, text):
    found = wrong_arrows(make_tree(tmp_path, {file: text}))
    assert len(found) == 1 and found[0].startswith(f"{file}:"), found


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (
            "kernels/a/op.py",
            "import math\nimport torch\nfrom .. import costs\nfrom .reference import f\n\ndef g():\n    from . import triton_kernels",
        ),
        (
            "backbones/x.py",
            "import timm\nfrom mmengine.model import BaseModule\nfrom ..kernels.a import op\nfrom .registry import BACKBONES",
        ),
        ("segmentation/heads/x.py", "import mmseg\nfrom ...engine import errors\nfrom ..datasets import loading"),
        ("classification/x.py", "import timm\nfrom ..engine import errors"),
        ("engine/x.py", "def f():\n    import mmseg"),
        ("profiling/x.py", "import fvcore\nfrom ..engine import load_config\nfrom ..kernels.costs import FORMULAS"),
        ("tools/x.py", "import pandas\nfrom linescan.backbones import HybridBackbone"),
        ("tests/test_x.py", "from linescan.kernels.a import op"),
        ("configs/x.py", "custom_imports = dict(imports=['linescan.backbones'])"),
    ],
)
def test_a_right_arrow_is_let_through(tmp_path, file, text):
    assert wrong_arrows(make_tree(tmp_path, {file: text})) == []


@pytest.mark.parametrize(
    "text",
    [
        "import sys\nsys.path.insert(0, 'x')",
        "import sys\nsys.path = ['x']",
        "import sys\nsys.path += ['x']",
        "import sys\nsys.path[:0] = ['x']",
        "import os\nos.environ['PYTHONPATH'] = 'x'",
        "import os\nos.environ.setdefault('PYTHONPATH', 'x')",
        "env = {'PYTHONPATH': 'x'}",
        "env = dict(PYTHONPATH='x')",
        "import torch\ntorch.load('x', weights_only=False)",
        "import torch\nf = lambda safe: torch.load('x', weights_only=safe)",
    ],
)
def test_an_unsafe_habit_is_found(tmp_path, text):
    assert len(unsafe_habits(make_tree(tmp_path, {"tools/x.py": text}))) == 1


def test_the_build_files_are_read_too(tmp_path):
    assert unsafe_habits(make_tree(tmp_path, {"Makefile": "test:\n\tPYTHONPATH=. pytest"})) == ["Makefile: sets PYTHONPATH"]
    assert unsafe_habits(make_tree(tmp_path, {"Makefile": "", "tools/x.py": "import torch\ntorch.load('x', weights_only=True)"})) == []
