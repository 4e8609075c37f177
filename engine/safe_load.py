"""Checkpoints are data, never code: `torch.load` stays at weights_only=True in MMEngine too.

A checkpoint of MMEngine holds its message hub, which pickles numpy arrays and `HistoryBuffer` objects. `allow_list` names exactly those
globals. `builtins.getattr`, which such files ask for, is served by a function that hands out four statistics of `HistoryBuffer` and
nothing else.

The maintained fork (onedl-mmengine 0.10.12) allows the raw `getattr` and loads a refused file again without protection. `secure_loading`
replaces that function; official mmengine 0.10.7 calls `torch.load` plainly and needs only the list.
"""

import os
from collections.abc import Callable
from typing import Any

import mmengine.runner.checkpoint as mmengine_checkpoint
import numpy as np
import torch
from mmengine.logging import HistoryBuffer

FORCE_SAFE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
FORCE_UNSAFE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
_STATISTICS = frozenset({"min", "max", "mean", "current"})


def restricted_getattr(owner: object, name: str) -> Any:
    """`getattr` for unpickling: the statistics methods of `HistoryBuffer` only.

    Raises:
        AttributeError: for any other owner or name. The safe unpickler then refuses the file.
    """
    if owner is not HistoryBuffer or name not in _STATISTICS:
        raise AttributeError(f"a checkpoint may not ask for attribute {name!r} of {owner!r}")
    return getattr(HistoryBuffer, name)


def allow_list() -> list[Callable | tuple[Callable, str]]:
    """The globals that a checkpoint may name beyond those torch allows by itself.

    numpy 2 moved `numpy.core` to `numpy._core`; both spellings are listed, so that a file crosses the version boundary in either direction.
    """
    multiarray = np._core.multiarray if hasattr(np, "_core") else np.core.multiarray
    functions = {"_reconstruct": multiarray._reconstruct, "scalar": multiarray.scalar}
    aliases = [(function, f"numpy.{core}.multiarray.{name}") for core in ("_core", "core") for name, function in functions.items()]
    dtypes = [type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int64)]
    return [HistoryBuffer, (restricted_getattr, "builtins.getattr"), np.ndarray, np.dtype, *aliases, *dtypes]


def trusted() -> bool:
    """True when the user asked for unrestricted loading (`secure_loading(trust=True)`)."""
    return os.environ.get(FORCE_UNSAFE) == "1"


def load_file(file: Any, map_location: Any = "cpu") -> Any:
    """`torch.load` with weights_only=True, or without it when loading is `trusted`. A refused file is never tried again.

    Raises:
        pickle.UnpicklingError: if the file names a global that is not on the list.
        RuntimeError, EOFError, OSError: if the file is truncated or cannot be read.
    """
    return torch.load(file, map_location=map_location, weights_only=not trusted())


def _load_for_mmengine(file: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
    """Takes the place of the fork's loader, whose argument list it keeps; `weights_only` cannot weaken the protection."""
    return load_file(file, map_location)


def secure_loading(trust: bool = False) -> None:
    """Set the loading policy of this process and of its children. Call it before any checkpoint is read; calling twice is fine.

    Args:
        trust: allow pickles that run code. Only for files that you wrote yourself.
    """
    os.environ.pop(FORCE_SAFE if trust else FORCE_UNSAFE, None)
    os.environ[FORCE_UNSAFE if trust else FORCE_SAFE] = "1"
    torch.serialization.add_safe_globals(allow_list())
    if hasattr(mmengine_checkpoint, "_safe_torch_load"):
        mmengine_checkpoint._safe_torch_load = _load_for_mmengine
