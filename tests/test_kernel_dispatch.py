"""Choosing a backend, and what the kernels may import."""

import os
import subprocess
import sys

import pytest
import torch

from linescan.kernels import dispatch
from linescan.kernels.bi_wkv import bi_wkv, cases

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("available", "device", "expected"),
    [
        (("torch", "reference"), CPU, "torch"),
        (("torch", "reference"), CUDA, "torch"),
        (("triton", "torch", "c", "reference"), CPU, "c"),
        (("reference", "torch", "c", "triton"), CUDA, "triton"),
        (("triton", "torch", "reference"), torch.device("meta"), "torch"),
    ],
)
def test_auto_takes_the_best_for_the_device(available, device, expected):
    assert dispatch.resolve("op", available, device) == expected


def test_named_backend_never_falls_back():
    with pytest.raises(NotImplementedError, match=r"backend 'triton': bi_wkv has backends \('torch', 'reference'\)"):
        bi_wkv(*cases.make_inputs((1, 3, 2)), backend="triton")
    with pytest.raises(ValueError, match=r"backend: expected 'auto' or one of .*got 'cuda'"):
        bi_wkv(*cases.make_inputs((1, 3, 2)), backend="cuda")


def test_use_backend_nests_and_an_argument_is_stronger():
    available = ("torch", "reference")
    with dispatch.use_backend("reference"):
        assert dispatch.resolve("op", available, CPU) == "reference"
        assert dispatch.resolve("op", available, CPU, "torch") == "torch"
        with dispatch.use_backend("auto"):
            assert dispatch.resolve("op", available, CPU) == "torch"
        with pytest.raises(RuntimeError), dispatch.use_backend("torch"):
            raise RuntimeError
        assert dispatch.resolve("op", available, CPU) == "reference"
        with dispatch.use_backend("c"), pytest.raises(NotImplementedError, match="backend 'c'"):
            bi_wkv(*cases.make_inputs((1, 3, 2)))
    assert dispatch.resolve("op", available, CPU) == "torch"
    with pytest.raises(ValueError, match="use_backend: expected"), dispatch.use_backend("fast"):
        pass


def _python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, timeout=120)


def test_environment_variable():
    code = "import torch; from linescan.kernels import dispatch; print(dispatch.resolve('op', ('torch', 'reference'), torch.device('cpu')))"
    assert _python(code, LINESCAN_BACKEND="reference").stdout.strip() == "reference"
    failed = _python(code, LINESCAN_BACKEND="fastest")
    assert failed.returncode
    assert "LINESCAN_BACKEND: expected" in failed.stderr


def test_kernels_and_benchmark_need_torch_alone(repo_root, tmp_path):
    """With everything else that we install blocked, the operators run and the benchmark writes its rows."""
    blocked = (
        "mmengine",
        "mmcv",
        "mmseg",
        "fvcore",
        "timm",
        "matplotlib",
        "linescan.backbones",
        "linescan.segmentation",
        "linescan.engine",
    )
    code = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({blocked!r}))
import linescan.kernels.costs, linescan.kernels.testing
sys.argv = ["benchmark_kernels.py", "--shapes", "1x64x12", "--repeats", "2", "--out", {str(tmp_path)!r}]
runpy.run_path({str(repo_root / "tools" / "benchmark_kernels.py")!r}, run_name="__main__")
"""
    done = _python(code)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("*.json"))
