"""A checkpoint is data: what the loader serves, what it refuses, and how it says so."""

import io
import os
import pickle
import zipfile

import mmengine.runner.checkpoint as mmengine_checkpoint
import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from linescan.engine import CheckpointError, read_checkpoint, secure_loading
from linescan.engine.safe_load import FORCE_SAFE, FORCE_UNSAFE, restricted_getattr


@pytest.fixture(autouse=True)
def _policy(monkeypatch):
    for name in (FORCE_SAFE, FORCE_UNSAFE):
        monkeypatch.setenv(name, os.environ.get(name, "0"))
    secure_loading()


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


class AskGetattr:
    """Asks for an attribute that leads to arbitrary code."""

    def __reduce__(self):
        return getattr, (np.ndarray, "tofile")


def message_hub():
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    return dict(log_scalars={"train/loss": history}, runtime_info={"best_score": np.float32(3.5), "lr": np.float64(0.1)}, resumed_keys={})


def test_message_hub_loads(tmp_path):
    path = tmp_path / "iter_1.pth"
    torch.save(dict(state_dict={"w": torch.ones(2)}, message_hub=message_hub()), path)
    hub = read_checkpoint(path)["message_hub"]
    assert hub["log_scalars"]["train/loss"].mean() == 1.5
    assert hub["log_scalars"]["train/loss"].statistics("current") == 2.0
    assert hub["runtime_info"]["best_score"] == np.float32(3.5)


@pytest.mark.parametrize("old, new", [("numpy._core", "numpy.core"), ("numpy.core", "numpy._core")])
def test_files_cross_numpy_versions(tmp_path, old, new):
    """numpy 1 and 2 write the same objects under different module names."""
    path, other = tmp_path / "a.pth", tmp_path / "b.pth"
    torch.save(dict(message_hub=message_hub()), path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(other, "w", zipfile.ZIP_STORED) as target:
        for item in source.namelist():
            content = source.read(item)
            target.writestr(item, content.replace(old.encode(), new.encode()) if item.endswith("data.pkl") else content)
    assert read_checkpoint(other)["message_hub"]["log_scalars"]["train/loss"].max() == 2.0


@pytest.mark.parametrize("load", [read_checkpoint, lambda p: mmengine_checkpoint._load_checkpoint(str(p), map_location="cpu")])
def test_malicious_pickle_is_refused_and_not_retried(tmp_path, load):
    marker, path = tmp_path / "ran", tmp_path / "evil.pth"
    torch.save(dict(state_dict={"w": torch.ones(2)}, extra=Malicious(marker)), path)
    with pytest.raises((CheckpointError, pickle.UnpicklingError), match="mkdir"):
        load(path)
    assert not marker.exists()
    # The file is really dangerous: without protection it runs.
    os.environ[FORCE_SAFE] = "0"
    torch.load(path, weights_only=False)
    assert marker.exists()


def test_refusal_names_the_file_the_global_and_the_way_out(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save(dict(extra=Malicious(tmp_path / "ran")), path)
    with pytest.raises(CheckpointError, match=r"evil\.pth: refused.*posix\.mkdir.*--trust-checkpoint"):
        read_checkpoint(path)


def test_raw_pickle_file_is_refused(tmp_path):
    path = tmp_path / "legacy.pth"
    path.write_bytes(pickle.dumps(Malicious(tmp_path / "ran")))
    with pytest.raises(CheckpointError, match=r"legacy\.pth"):
        read_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def test_getattr_serves_statistics_only(tmp_path):
    assert restricted_getattr(HistoryBuffer, "mean") is HistoryBuffer.mean
    for owner, name in [(HistoryBuffer, "__init__"), (np.ndarray, "mean"), (HistoryBuffer, "register_statistics"), (os, "system")]:
        with pytest.raises(AttributeError, match="may not ask"):
            restricted_getattr(owner, name)
    path = tmp_path / "getattr.pth"
    torch.save(dict(extra=AskGetattr()), path)
    with pytest.raises(CheckpointError, match=r"getattr\.pth.*refused"):
        read_checkpoint(path)


def test_trust_is_explicit_and_can_be_taken_back(tmp_path):
    marker, path = tmp_path / "ran", tmp_path / "own.pth"
    torch.save(dict(state_dict={}, extra=Malicious(marker)), path)
    secure_loading(trust=True)
    assert os.environ[FORCE_UNSAFE] == "1" and FORCE_SAFE not in os.environ
    read_checkpoint(path)
    assert marker.exists()
    marker.rmdir()
    secure_loading()
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    assert not marker.exists()


def _truncated(path):
    buffer = io.BytesIO()
    torch.save(dict(state_dict={"w": torch.ones(4096)}), buffer)
    path.write_bytes(buffer.getvalue()[:9000])


def _damaged(path):
    buffer = io.BytesIO()
    torch.save(dict(state_dict={"w": torch.ones(4)}), buffer)
    content = bytearray(buffer.getvalue())
    start = content.find(b"\x80\x02")
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "make, what",
    [
        (_truncated, "truncated"),
        (_damaged, "damaged"),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_text("root:x:0:0:root:/root:/bin/bash\n"), "not a PyTorch checkpoint"),
        (lambda path: path.write_bytes(bytes(range(256)) * 8), "not a PyTorch checkpoint"),
        (lambda path: torch.save([1, 2], path), "expected a dict"),
        (lambda path: path.mkdir(), "folder"),
        (lambda path: None, "no such checkpoint"),
    ],
)
def test_unreadable_files_are_named_with_the_reason(tmp_path, make, what):
    path = tmp_path / "iter_7.pth"
    make(path)
    with pytest.raises(CheckpointError, match=rf"iter_7\.pth.*{what}"):
        read_checkpoint(path)
