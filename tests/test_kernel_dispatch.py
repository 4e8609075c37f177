"""Choosing a backend, and what the kernels may import."""

import os
import subprocess
import sys

import pytest

from linescan.kernels import dispatch
from linescan.kernels.bi_wkv import bi_wkv, cases


def test_named_backend_never_falls_back(monkeypatch):
    inputs = cases.make_inputs((1, 3, 2))
    with pytest.raises(NotImplementedError, match=r"backend 'fla': bi_wkv has backends \(.*'torch', 'reference'"):
        bi_wkv(*inputs, backend="fla")
    with pytest.raises(ValueError, match=r"backend: expected 'auto' or one of .*got 'cuda'"):
        bi_wkv(*inputs, backend="cuda")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "needs CUDA tensors, got cpu" in dispatch.wrong_device("triton", "cpu")
    assert "needs CPU tensors, got cuda" in dispatch.wrong_device("c", "cuda")
    assert dispatch.wrong_device("triton", "cuda") is dispatch.wrong_device("torch", "cpu") is None


def test_use_backend_nests_and_an_argument_is_stronger():
    def resolve(backend="auto"):
        return dispatch.requested("op", ("torch", "reference"), backend)

    with dispatch.use_backend("reference"):
        assert resolve() == "reference"
        assert resolve("torch") == "torch"
        with dispatch.use_backend("auto"):
            assert resolve() == "auto"
        with pytest.raises(RuntimeError), dispatch.use_backend("torch"):
            raise RuntimeError
        assert resolve() == "reference"
        with dispatch.use_backend("c"), pytest.raises(NotImplementedError, match="backend 'c'"):
            resolve()
    assert resolve() == "auto"
    with pytest.raises(ValueError, match="use_backend: expected"), dispatch.use_backend("fast"):
        pass


def _python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, timeout=120)


def test_environment_variable():
    code = "from linescan.kernels import dispatch; print(dispatch.requested('op', ('torch', 'reference')))"
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
