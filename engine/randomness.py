"""The random stream of training: kept apart from everything else that draws numbers, and saved in every checkpoint.

`RngStream` gives the training steps (dropout, drop path, batch augmentation) a stream of their own: it is put back before each step and
taken again after it. Loading data, validating and drawing pictures in between change nothing, so a run that validates more often, or
resumes, sees the same numbers. Data loading has its own rule, in `replay.py`.
"""

import random
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

CHECKPOINT_KEY = "rng_states"


def capture() -> dict[str, Any]:
    """States of the python, numpy and torch generators (and of the current CUDA device), as tensors and plain values only.

    Plain values keep the checkpoint readable by the safe loader.
    """
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "name": name,
            "keys": torch.from_numpy(keys.astype(np.int64)),
            "position": position,
            "has_gauss": has_gauss,
            "cached": cached,
        },
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore(state: dict[str, Any]) -> None:
    """Put back what `capture` returned. Tensors may have been moved to any device meanwhile."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    keys = numpy["keys"].cpu().numpy().astype(np.uint32)
    np.random.set_state((numpy["name"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


@HOOKS.register_module()
class RngStreamHook(Hook):
    """Keeps the random stream of the training steps, one per process, and stores all of them in each checkpoint."""

    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self.state: dict[str, Any] | None = None
        self._loaded: list[dict[str, Any]] | None = None
        self._gathered: list[dict[str, Any]] | None = None

    def before_train(self, runner) -> None:
        resumed = runner.iter > 0
        if resumed and self._loaded is not None and len(self._loaded) == get_world_size():
            self.state = self._loaded[get_rank()]
            return
        if resumed:
            held = "no random states" if self._loaded is None else f"the random states of {len(self._loaded)} processes"
            runner.logger.warning(
                f"The checkpoint holds {held}, this run has {get_world_size()}: the resumed loss curve will differ slightly."
            )
        self.state = capture()

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        restore(self.state)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self.state = capture()

    def gather(self) -> None:
        """Collect the states of all processes. Collective: every process must call it (the runner does, before it saves)."""
        self._gathered = None if self.state is None else all_gather_object(self.state)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        if self._gathered is not None:
            checkpoint[CHECKPOINT_KEY] = self._gathered

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        self._loaded = checkpoint.get(CHECKPOINT_KEY)
