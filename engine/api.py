"""The two calls behind `tools/train.py` and `tools/test.py`."""

import json
import math
import re
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from .checkpoints import check_weights, read_checkpoint, write_text
from .errors import ConfigError
from .launch import adapt
from .noise import quiet_imports, silence_warnings
from .runner import LinescanFlexibleRunner, LinescanRunner
from .safe_load import secure_loading


def build_runner(cfg: Config) -> Runner:
    """The runner of a config: `runner_type` if it names one, `LinescanFlexibleRunner` if it has a `strategy`, else `LinescanRunner`.

    Raises:
        ConfigError: the config names a type that is not registered, or gives one an argument that it does not take.
    """
    silence_warnings()
    adapt(cfg)
    try:
        with quiet_imports():
            if cfg.get("runner_type"):
                return RUNNERS.build(cfg)
            return (LinescanFlexibleRunner if cfg.get("strategy") else LinescanRunner).from_cfg(cfg)
    except (KeyError, TypeError) as error:
        if reason := _misnamed(error):
            raise ConfigError(f"{cfg.filename}: {reason}") from error
        raise


def _misnamed(error: KeyError | TypeError) -> str | None:
    """What a config did wrong, if the error is about a name in it; None for anything else, which keeps its traceback."""
    text = str(error.args[0]) if error.args else ""
    if isinstance(error, TypeError):
        if not re.search(r"unexpected keyword argument|missing \d+ required", text):
            return None
        return (
            f"{text}. Are they arguments of another type? <part>._delete_=True among --cfg-options takes away what the file says of a part"
        )
    if text.startswith("unknown backbone"):
        return text
    # MMEngine goes on with advice about its own registries.
    found = re.match(r"(.* is not in the \S+ registry)\.", text)
    return f"{found[1]}; is its scope missing, or the module that registers it in custom_imports?" if found else None


def run_train(cfg: Config, *, trust_checkpoint: bool = False) -> Runner:
    """Train as the config says, with the validations, checkpoints and pictures it asks for.

    Args:
        cfg: a complete config, from `load_config`.
        trust_checkpoint: load pickles that may run code. Only for your own files.

    Returns:
        The runner after training: `runner.model`, `runner.message_hub`.

    Raises:
        ConfigError, CheckpointError, NonFiniteLossError: see their docstrings.
    """
    secure_loading(trust_checkpoint)
    for key in ("model", "train_dataloader", "train_cfg", "optim_wrapper"):
        if cfg.get(key) is None:
            raise ConfigError(f"{cfg.filename}: {key} is missing, nothing to train")
    runner = build_runner(cfg)
    runner.train()
    return runner


def run_test(
    cfg: Config, checkpoint: str | Path, *, metrics_file: str | Path | None = None, trust_checkpoint: bool = False
) -> dict[str, Any]:
    """Evaluate a checkpoint on the test split of the config.

    Args:
        cfg: a complete config, from `load_config`.
        checkpoint: weights of exactly this model; anything missing or left over is an error.
        metrics_file: JSON file for the metrics; None: none is written.
        trust_checkpoint: as in `run_train`.

    Returns:
        Metric name -> value, as the config's evaluator returns them.
    """
    secure_loading(trust_checkpoint)
    for key in ("model", "test_dataloader", "test_cfg", "test_evaluator"):
        if cfg.get(key) is None:
            raise ConfigError(f"{cfg.filename}: {key} is missing, nothing to test")
    weights = read_checkpoint(checkpoint)
    cfg.load_from, cfg.resume = str(checkpoint), False
    runner = build_runner(cfg)
    check_weights(checkpoint, weights, runner.model)
    metrics = runner.test()
    if metrics_file is not None and is_main_process():
        Path(metrics_file).parent.mkdir(parents=True, exist_ok=True)
        write_text(metrics_file, json.dumps(_plain({"checkpoint": str(checkpoint), "metrics": metrics}), indent=2) + "\n")
    return metrics


def _plain(value: Any) -> Any:
    """Metrics as JSON values: numpy and torch scalars become numbers, NaN and infinity null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
