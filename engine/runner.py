"""MMEngine's runners with exact resume, atomic checkpoints and a loss guard."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.dist import barrier, broadcast_object_list, is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS, RUNNERS
from mmengine.runner import Runner
from mmengine.runner._flexible_runner import FlexibleRunner
from torch import nn

from .checkpoints import PARTIAL, AtomicCheckpointHook, check_resumable, check_weights, publish, read_checkpoint, resume_candidates
from .errors import CheckpointError
from .guards import FiniteLossHook
from .loops import ReplayEpochLoop, ReplayIterLoop
from .noise import ShortConsole
from .randomness import RngStreamHook
from .safe_load import trusted

_LOOPS = {"IterBasedTrainLoop": ReplayIterLoop, "EpochBasedTrainLoop": ReplayEpochLoop}


class _Resilient:
    """What both runners share. Config keys stay those of MMEngine: its loop and hook types are replaced by ours when they are built."""

    def register_hooks(self, default_hooks=None, custom_hooks=None) -> None:
        super().register_hooks(default_hooks, custom_hooks)
        for kind in (RngStreamHook, FiniteLossHook):
            if not any(isinstance(hook, kind) for hook in self.hooks):
                self.register_hook(kind())

    def register_hook(self, hook: Hook | dict, priority: str | int | None = None) -> None:
        if isinstance(hook, dict) and _is(hook.get("type"), CheckpointHook):
            hook = {**hook, "type": AtomicCheckpointHook}
        super().register_hook(hook, priority)

    def build_train_loop(self, loop: Any):
        if isinstance(loop, dict):
            loop = dict(loop)
            if "type" not in loop:
                loop["type"] = "EpochBasedTrainLoop" if loop.pop("by_epoch") else "IterBasedTrainLoop"
            name = loop["type"] if isinstance(loop["type"], str) else loop["type"].__name__
            ours = _LOOPS.get(name.rsplit(".", 1)[-1])
            if ours is None and name not in (ReplayIterLoop.__name__, ReplayEpochLoop.__name__):
                self.logger.warning(f"train_cfg.type={name}: this loop does not replay its data, a resumed run will differ slightly")
            loop["type"] = ours or loop["type"]
        return super().build_train_loop(loop)

    def train(self) -> nn.Module:
        self._choose_checkpoint()
        return super().train()

    def _choose_checkpoint(self) -> None:
        """Before the loops are built, decide which file to resume from, and take over its seed: the order of the data depends on it."""
        if not self._resume:
            return
        explicit = self._resume if isinstance(self._resume, str) else self._load_from
        self._resume = True
        choice: list[Any] = [None, None, None]
        if is_main_process():
            try:
                choice[:2] = self._read(explicit) if explicit else self._newest()
            except CheckpointError as error:
                choice[2] = str(error)
        broadcast_object_list(choice)
        path, seed, error = choice
        if error:
            raise CheckpointError(error)
        if path is None:
            self.logger.info(f"Nothing to resume in {self.work_dir}: training starts at iteration 0")
            self._resume = False
            return
        self._load_from = path
        self._take_seed(seed)

    def _newest(self) -> tuple[str | None, int | None]:
        candidates = resume_candidates(self.work_dir)
        for path in candidates:
            try:
                return self._read(path)
            except CheckpointError as error:
                self.logger.warning(f"Not resumed from {error}. Trying the checkpoint before it")
        if candidates:
            raise CheckpointError(f"{self.work_dir}: none of its {len(candidates)} checkpoints can be resumed (reasons above)")
        return None, None

    def _read(self, path: str | Path) -> tuple[str, int | None]:
        try:
            checkpoint = read_checkpoint(path)
            check_resumable(path, checkpoint)
            if isinstance(self.model, nn.Module):
                check_weights(path, checkpoint, self.model)
            missing = set(checkpoint.get("needs_hooks", ())) - {type(hook).__name__ for hook in self.hooks}
            if missing:
                raise CheckpointError(
                    f"{path}: cannot resume without {', '.join(sorted(missing))} in custom_hooks: it keeps a part of the state"
                )
        except CheckpointError as error:
            if path != self._load_from:
                raise
            others = [other for other in resume_candidates(Path(path).parent) if other != Path(path)]
            hint = f"The checkpoint before it is {others[0]}" if others else "There is no other checkpoint beside it"
            raise CheckpointError(f"{error}. {hint}") from error
        return str(path), checkpoint["meta"].get("seed")

    def _take_seed(self, seed: int | None) -> None:
        current = self._randomness_cfg.get("seed")
        if seed is None or seed == current:
            return
        if current is not None:
            self.logger.warning(f"The resumed run was started with seed {seed}; {current} is ignored")
        self._randomness_cfg.update(seed=seed)
        setter: Callable = getattr(self, "set_randomness", None) or self.strategy._set_randomness
        setter(**self._randomness_cfg)

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        """As in MMEngine, but the file gets its name only when it is complete. Every process must call it."""
        for hook in self.hooks:
            if isinstance(hook, RngStreamHook):
                hook.gather()
        if "://" in str(out_dir):
            super().save_checkpoint(out_dir, filename, *args, **kwargs)
            return
        partial = f".{filename}{PARTIAL}"
        super().save_checkpoint(out_dir, partial, *args, **kwargs)
        barrier()
        if is_main_process():
            publish(Path(out_dir) / partial, Path(out_dir) / filename)
        barrier()


def _is(kind: Any, cls: type) -> bool:
    """True if a config's `type` (a class, a name, a scoped name) is `cls`."""
    if isinstance(kind, str):
        return kind.rsplit(".", 1)[-1] == cls.__name__ and HOOKS.get(kind) is cls
    return kind is cls


@RUNNERS.register_module()
class LinescanRunner(_Resilient, Runner):
    """`Runner` for one process or DDP."""

    def build_logger(self, *args: Any, **kwargs: Any):
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if type(handler) is logging.StreamHandler:
                handler.addFilter(ShortConsole())
        return logger


@RUNNERS.register_module()
class LinescanFlexibleRunner(_Resilient, FlexibleRunner):
    """`FlexibleRunner`, for a config with a `strategy` (DDP, FSDP, DeepSpeed)."""

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, meta: dict | None = None, by_epoch: bool = True, **kwargs: Any):
        # The base class does not take the position from `meta` but from the loop: one iteration too far for a file that is saved again
        # after a validation. Let the loop stand where `meta` says while the file is written.
        loop = self.train_loop
        position = loop._epoch, loop._iter
        if meta:
            loop._epoch, loop._iter = (meta["epoch"] - 1, meta["iter"]) if by_epoch else (meta["epoch"], meta["iter"] - 1)
        try:
            super().save_checkpoint(out_dir, filename, *args, meta=meta, by_epoch=by_epoch, **kwargs)
        finally:
            loop._epoch, loop._iter = position

    def _read(self, path: str | Path) -> tuple[str, int | None]:
        if not Path(path).is_dir():
            return super()._read(path)
        # A folder of shards (FSDP, DeepSpeed) was renamed when complete; the strategy reads and checks it.
        if type(self.strategy).__name__ == "DeepSpeedStrategy" and not trusted():
            raise CheckpointError(
                f"{path}: DeepSpeed writes pickles that may run code. Only if you wrote them yourself: --trust-checkpoint"
            )
        return str(path), None
