"""Reading, checking, finding and writing checkpoint files."""

import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from torch import nn

from .errors import CheckpointError
from .safe_load import load_file

PARTIAL = ".partial"
POINTER = "last_checkpoint"
_REFUSED = re.compile(r"GLOBAL (\S+) (?:was not an allowed global|whose module)|may not ask for attribute (.+)")
_BOILERPLATE = ("Weights only load failed", "Please file an issue", "Check the documentation")
_RESUME_KEYS = ("meta", "state_dict", "message_hub", "optimizer")


def write_text(path: str | Path, text: str) -> None:
    """Write a file whole or not at all: a reader, or a restart after a crash, sees the old text or the new one."""
    path = Path(path)
    partial = path.with_name(f".{path.name}{PARTIAL}")
    partial.write_text(text, encoding="utf-8")
    publish(partial, path)


def publish(partial: Path, path: Path) -> None:
    """Give a completely written file, or folder of shards, its final name, after its bytes have reached the disk."""
    files = [partial] if partial.is_file() else [file for file in partial.rglob("*") if file.is_file()]
    for file in files:
        with file.open("rb+") as handle:
            os.fsync(handle.fileno())
    if path.is_dir():  # os.replace replaces files only
        aside = path.with_name(f".{path.name}.old{PARTIAL}")
        os.replace(path, aside)
        os.replace(partial, path)
        _remove(aside)
    else:
        os.replace(partial, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint to the CPU through the safe loader.

    Args:
        path: file written by MMEngine or by `torch.save`.

    Returns:
        The checkpoint, a dict.

    Raises:
        CheckpointError: naming the file and what is wrong with it: missing, empty, truncated, refused by the safe loader, or not a
        checkpoint.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint")
    if not path.is_file():
        raise CheckpointError(f"{path}: is a folder; expected a checkpoint file")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: the checkpoint is empty (0 bytes)")
    try:
        checkpoint = load_file(path)
    except Exception as error:  # foreign bytes make the unpickler raise anything
        raise CheckpointError(f"{path}: {_why_unreadable(path, error)}") from error
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(f"{path}: expected a dict of weights, got {type(checkpoint).__name__}")
    return dict(checkpoint)


def _why_unreadable(path: Path, error: Exception) -> str:
    if found := _REFUSED.search(str(error)):
        asked = found.group(1) or f"attribute {found.group(2)}"
        return f"refused, it asks for {asked}. Only if you wrote the file yourself: --trust-checkpoint"
    size = path.stat().st_size
    with path.open("rb") as handle:
        is_archive = handle.read(4) == b"PK\x03\x04"
    if is_archive and not zipfile.is_zipfile(path):
        return f"the checkpoint is truncated ({size} bytes, its archive has no end)"
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith(_BOILERPLATE)]
    reason = lines[0][:200] if lines else type(error).__name__
    return f"the checkpoint is damaged ({reason})" if is_archive else f"not a PyTorch checkpoint ({size} bytes; {reason})"


def check_resumable(path: str | Path, checkpoint: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` unless training can go on from `checkpoint`."""
    missing = [key for key in _RESUME_KEYS if key not in checkpoint]
    if missing:
        hint = (
            "it holds weights only: start a new training from it with --cfg-options load_from=..."
            if "optimizer" in missing
            else "foreign file"
        )
        raise CheckpointError(f"{path}: cannot resume, {', '.join(missing)} missing ({hint})")
    if not {"iter", "epoch"} <= set(checkpoint["meta"]):
        raise CheckpointError(f"{path}: cannot resume, meta.iter and meta.epoch missing (foreign file)")


def check_weights(path: str | Path, checkpoint: Mapping[str, Any], model: nn.Module) -> None:
    """Raise `CheckpointError` unless the weights are exactly those of `model`: names and shapes.

    `num_batches_tracked` may be absent, as in MMEngine. Model wrappers (DDP, test-time augmentation) are looked through.
    """
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module
    weights = checkpoint.get("state_dict", checkpoint)
    if not isinstance(weights, Mapping):
        raise CheckpointError(f"{path}: state_dict is a {type(weights).__name__}, expected a dict of tensors")
    given = {name.removeprefix("module."): value for name, value in weights.items() if isinstance(value, torch.Tensor)}
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in given and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in given if name not in wanted]
    shapes = [
        f"{name}: {tuple(given[name].shape)} in the file, {tuple(value.shape)} in the model"
        for name, value in wanted.items()
        if name in given and isinstance(value, torch.Tensor) and given[name].shape != value.shape
    ]
    if missing or unexpected or shapes:
        parts = [_some("missing", missing), _some("unexpected", unexpected), _some("of another shape", shapes)]
        raise CheckpointError(f"{path}: the weights are not those of {type(model).__name__}: " + "; ".join(part for part in parts if part))


def _some(what: str, names: list[str]) -> str:
    """'12 missing (a, b, c, ...)', or nothing."""
    if not names:
        return ""
    return f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def resume_candidates(work_dir: str | Path) -> list[Path]:
    """Checkpoints of a run to resume from, best first; empty if there is none.

    `last_checkpoint` names the newest, unless the process died between writing a checkpoint and the pointer: then a file that is later
    both in its number and in its time goes first. Files with a higher number but an older time are left from an earlier run in the same
    folder and are not candidates.
    """
    work_dir = Path(work_dir)
    pointer = work_dir / POINTER
    named = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else ""
    last = Path(named) if named else None
    if last is not None and not last.exists() and (work_dir / last.name).exists():
        last = work_dir / last.name  # the folder was moved or copied
    folders = {work_dir, last.parent} if last is not None else {work_dir}
    files = {file for folder in folders if folder.is_dir() for file in folder.glob("*.pth") if _number(file) is not None}
    if last is None or not last.exists():
        return sorted(files, key=lambda file: (file.stat().st_mtime, _number(file)), reverse=True)
    number, written = _number(last) or 0, last.stat().st_mtime
    kept = {file for file in files if _series(file) == _series(last) and (_number(file) <= number or file.stat().st_mtime > written)}
    return sorted(kept | {last}, key=lambda file: _number(file) or 0, reverse=True)


def _number(path: Path) -> int | None:
    """120 for iter_120.pth or epoch_120.pth; None for best_* and for names without a number."""
    found = re.fullmatch(r"(?!best_).*?(\d+)", path.stem)
    return int(found.group(1)) if found else None


def _series(path: Path) -> str:
    return re.sub(r"\d+$", "", path.stem)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """`CheckpointHook` that never leaves the run without a complete checkpoint, whenever it is killed. Arguments as there.

    The order is: new file complete, pointer to it, and only then older files deleted. (The base class deletes first and writes the
    pointer in place.) The runner writes the file itself under a temporary name: see `runner.py`.
    """

    def before_train(self, runner) -> None:
        super().before_train(runner)
        if is_main_process() and Path(self.out_dir).is_dir():
            for leftover in Path(self.out_dir).glob(f".*{PARTIAL}"):
                _remove(leftover)

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        expired = []
        if self.max_keep_ckpts > 0 and not (self.keep_ckpt_ids and self.keep_ckpt_ids[-1] == step):
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                expired.append(self.keep_ckpt_ids.popleft())
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info("keep_ckpt_ids", list(self.keep_ckpt_ids))
        filename = self.filename_tmpl.format(step)
        previous, self.last_ckpt = self.last_ckpt, self.file_backend.join_path(self.out_dir, filename)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        try:
            runner.save_checkpoint(
                self.out_dir,
                filename,
                self.file_client_args,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
        except OSError as error:
            raise CheckpointError(
                f"{self.last_ckpt}: could not be written ({error}). The last complete checkpoint is {previous}"
            ) from error
        if is_main_process():
            write_text(Path(runner.work_dir) / POINTER, str(self.last_ckpt))
            for old in expired:
                self._discard(self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old)))

    def _save_best_checkpoint(self, runner, metrics: dict) -> None:
        # The base class deletes the previous best file before it writes the new one; hide it until the new one is there.
        single = getattr(self, "best_ckpt_path", None)
        several = dict(getattr(self, "best_ckpt_path_dict", {}))
        if hasattr(self, "best_ckpt_path"):
            self.best_ckpt_path = None
        if several:
            self.best_ckpt_path_dict = dict.fromkeys(several)
        super()._save_best_checkpoint(runner, metrics)
        if hasattr(self, "best_ckpt_path"):
            self.best_ckpt_path = self._keep_or_replace(single, self.best_ckpt_path)
        for key, old in several.items():
            self.best_ckpt_path_dict[key] = self._keep_or_replace(old, self.best_ckpt_path_dict[key])

    def _keep_or_replace(self, old: str | None, new: str | None) -> str | None:
        if new is not None and old is not None and old != new and is_main_process():
            self._discard(old)
        return new if new is not None else old

    def _discard(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):
            self.file_backend.rmtree(path)


def _remove(path: Path) -> None:
    if path.is_file():
        path.unlink()
    else:
        for inner in sorted(path.rglob("*"), reverse=True):
            inner.unlink() if inner.is_file() else inner.rmdir()
        path.rmdir()
