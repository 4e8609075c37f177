"""Finding and writing checkpoints: whatever the moment of a crash, a complete file is there and is found."""

import os
from pathlib import Path

import mmengine.runner.runner as mmengine_runner
import pytest
import torch
from torch import nn

from linescan.engine import CheckpointError, check_weights, read_checkpoint, run_train, write_text
from linescan.engine.checkpoints import publish, resume_candidates
from linescan.engine.testing import toy_config


def files(folder: Path, *names: str) -> None:
    """Empty files, each a second newer than the one before."""
    for i, name in enumerate(names):
        (folder / name).touch()
        os.utime(folder / name, (1000 + i, 1000 + i))


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_candidates_follow_the_pointer(tmp_path):
    files(tmp_path, "iter_10.pth", "iter_20.pth", "iter_30.pth", "best_mIoU_iter_20.pth", "pretrained.pth")
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "iter_30.pth"))
    assert names(resume_candidates(tmp_path)) == ["iter_30.pth", "iter_20.pth", "iter_10.pth"]


def test_a_checkpoint_newer_than_its_pointer_goes_first(tmp_path):
    """The process died after the file was complete and before the pointer was written."""
    files(tmp_path, "iter_10.pth", "iter_20.pth", "iter_30.pth")
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "iter_20.pth"))
    assert names(resume_candidates(tmp_path)) == ["iter_30.pth", "iter_20.pth", "iter_10.pth"]


def test_files_of_an_earlier_run_do_not_win(tmp_path):
    files(tmp_path, "iter_900.pth", "epoch_3.pth", "iter_10.pth", "iter_20.pth")
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "iter_20.pth"))
    assert names(resume_candidates(tmp_path)) == ["iter_20.pth", "iter_10.pth"]


@pytest.mark.parametrize("pointer", [None, "", "/gone/iter_20.pth"])
def test_without_a_usable_pointer_the_newest_file_goes_first(tmp_path, pointer):
    files(tmp_path, "iter_10.pth", "iter_20.pth")
    if pointer is not None:
        (tmp_path / "last_checkpoint").write_text(pointer)
    assert names(resume_candidates(tmp_path)) == ["iter_20.pth", "iter_10.pth"]
    assert resume_candidates(tmp_path / "nowhere") == []


def test_write_text_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "last_checkpoint"
    write_text(path, "old")

    def crash(source, target):
        assert Path(source).read_text() == "new" and path.read_text() == "old"
        raise OSError("power cut")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="power cut"):
        write_text(path, "new")
    assert path.read_text() == "old"


def test_a_save_that_fails_half_way_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    """Disk full at iteration 12 with one file to keep: the one of iteration 8 is still there, complete, and pointed to."""
    real = mmengine_runner.save_checkpoint

    def disk_full(checkpoint, filename, **kwargs):
        real(checkpoint, filename, **kwargs)
        if checkpoint["meta"]["iter"] == 12:
            os.truncate(filename, 3000)
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(mmengine_runner, "save_checkpoint", disk_full)
    hook = dict(type="CheckpointHook", by_epoch=False, interval=4, max_keep_ckpts=1)
    with pytest.raises(CheckpointError, match=r"iter_12\.pth: could not be written.*No space left.*iter_8\.pth"):
        run_train(toy_config(tmp_path, default_hooks=dict(checkpoint=hook)))
    assert sorted(names(tmp_path.glob("*.pth"))) == ["iter_8.pth"]
    assert read_checkpoint(tmp_path / "iter_8.pth")["meta"]["iter"] == 8
    assert Path((tmp_path / "last_checkpoint").read_text()).name == "iter_8.pth"
    monkeypatch.undo()
    run_train(toy_config(tmp_path, default_hooks=dict(checkpoint=hook), resume=True))
    assert sorted(names(tmp_path.glob("*.pth"))) == ["iter_20.pth"]
    assert not list(tmp_path.glob(".*.partial")), "the rest of the failed save is cleaned up"


def test_old_files_go_only_after_the_new_one_is_complete(tmp_path, monkeypatch):
    seen = []
    real = mmengine_runner.save_checkpoint

    def watch(checkpoint, filename, **kwargs):
        seen.append((checkpoint["meta"]["iter"], sorted(names(tmp_path.glob("*.pth")))))
        real(checkpoint, filename, **kwargs)

    monkeypatch.setattr(mmengine_runner, "save_checkpoint", watch)
    hook = dict(type="CheckpointHook", by_epoch=False, interval=4, max_keep_ckpts=1, save_best="toy/score", rule="greater")
    run_train(toy_config(tmp_path, default_hooks=dict(checkpoint=hook)))
    assert len(seen) >= 5
    best_seen = False
    for iteration, present in seen[1:]:
        assert any(name.startswith("iter_") for name in present), f"no resumable file while {iteration} was written"
        best_present = any(name.startswith("best_") for name in present)
        assert best_present or not best_seen, f"no best file while {iteration} was written"
        best_seen |= best_present
    assert best_seen
    assert len(list(tmp_path.glob("best_*.pth"))) == 1


def test_folders_of_shards_are_published_and_replaced(tmp_path):
    """As FSDP and DeepSpeed write them."""
    for content in ("old", "new"):
        partial = tmp_path / ".iter_4.pth.partial"
        partial.mkdir()
        (partial / "rank0.pth").write_text(content)
        publish(partial, tmp_path / "iter_4.pth")
        assert (tmp_path / "iter_4.pth" / "rank0.pth").read_text() == content
    assert os.listdir(tmp_path) == ["iter_4.pth"]


def test_check_weights_names_what_differs():
    class Wrapped(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
    state = model.state_dict()
    check_weights("a.pth", {"state_dict": {f"module.{k}": v for k, v in state.items()}}, Wrapped(model))
    check_weights("a.pth", {k: v for k, v in state.items() if "num_batches" not in k}, model)
    wrong = {**state, "0.weight": torch.ones(8, 4, 1, 1), "extra": torch.ones(1)}
    del wrong["1.bias"]
    with pytest.raises(CheckpointError, match=r"a\.pth.*1 missing \(1\.bias\); 1 unexpected \(extra\); 1 of another shape \(0\.weight"):
        check_weights("a.pth", {"state_dict": wrong}, model)
