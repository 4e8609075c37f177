"""From a config file and command-line options to the config that runs."""

from collections.abc import Collection
from importlib import metadata
from pathlib import Path
from typing import Any

import mmengine.config.utils as mmengine_config
from mmengine.config import Config, ConfigDict

from .amp import PRECISIONS
from .errors import ConfigError
from .launch import LAUNCHERS
from .noise import quiet_imports

FORK_PREFIX = "onedl-"


def find_forks() -> None:
    """Let `_base_ = "mmseg::..."` find the maintained forks, whose distributions have other names than MMEngine expects."""
    table = mmengine_config.MODULE2PACKAGE
    for module, package in table.items():
        if not _installed(package) and _installed(FORK_PREFIX + package):
            table[module] = FORK_PREFIX + package


def _installed(package: str) -> bool:
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def load_config(
    path: str | Path,
    *,
    work_dir: str | Path | None = None,
    cfg_options: dict[str, Any] | None = None,
    resume: bool | str | Path | None = None,
    amp: str | None = None,
    seed: int | None = None,
    launcher: str = "none",
) -> Config:
    """Read a config file and apply the options of the tools to it.

    Args:
        path: config file (.py, .json, .yaml); its `custom_imports` are imported.
        work_dir: where the run writes; else the config's own, else work_dirs/<config name>.
        cfg_options: dotted keys to values, as `--cfg-options` gives them.
        resume: True: from the newest complete checkpoint in the work folder, from the start if there is none. A path: from that file.
        amp: None: as the config says; "auto", "fp16" or "bf16": mixed precision, see `MixedPrecisionOptimWrapper`.
        seed: non-negative; else the config's `randomness`, else a random one, which the checkpoints keep.
        launcher: "none", "pytorch", "slurm" or "mpi".

    Raises:
        ConfigError: if the file is missing or an option does not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such config file")
    if launcher not in LAUNCHERS:
        raise ConfigError(f"launcher: expected one of {', '.join(LAUNCHERS)}, got {launcher!r}")
    find_forks()
    with quiet_imports():
        cfg = Config.fromfile(path)
    if cfg_options:
        before = cfg.get("data_root")
        cfg.merge_from_dict(cfg_options)
        if "data_root" in cfg_options:
            move_data_root(cfg, before, cfg_options["data_root"])
    cfg.launcher = launcher
    cfg.work_dir = str(work_dir or cfg.get("work_dir") or Path("work_dirs") / path.stem)
    if resume is True:
        cfg.resume, cfg.load_from = True, None
    elif resume:
        cfg.resume, cfg.load_from = True, str(resume)
    if seed is not None:
        if not 0 <= seed < 2**31:
            raise ConfigError(f"seed: expected 0 <= seed < 2**31, got {seed}")
        cfg.randomness = {**cfg.get("randomness", {}), "seed": seed}
    if amp is not None:
        set_precision(cfg, amp)
    return cfg


def move_data_root(cfg: Config, before: str | None, after: str) -> None:
    """Give the data sets of `cfg` that lie at `before` the root `after`: they hold copies of the config's top-level `data_root`.

    Raises:
        ConfigError: if no data set lies there, so that the option would change nothing.
    """
    moved = [_move(cfg.get(f"{split}_dataloader"), before, after) for split in ("train", "val", "test")]
    if before != after and not any(moved):
        raise ConfigError(f"data_root: no data set of the config lies at {before!r}; set train_dataloader.dataset.data_root and so on")


def _move(node: Any, before: str | None, after: str) -> bool:
    if isinstance(node, list | tuple):
        return any([_move(item, before, after) for item in node])
    if not isinstance(node, dict):
        return False
    here = before is not None and node.get("data_root") == before
    if here:
        node["data_root"] = after
    return any([_move(value, before, after) for value in node.values()]) or here


def set_precision(cfg: Config, precision: str) -> None:
    """Make the optimizer wrapper of `cfg` a `MixedPrecisionOptimWrapper` of that precision."""
    if precision != "auto" and precision not in PRECISIONS:
        raise ConfigError(f"amp: expected auto, {', '.join(PRECISIONS)}, got {precision!r}")
    wrapper = cfg.get("optim_wrapper")
    if wrapper is None:
        raise ConfigError("amp: the config has no optim_wrapper to run in mixed precision")
    known = ("OptimWrapper", "AmpOptimWrapper", "MixedPrecisionOptimWrapper")
    if wrapper.get("type", "OptimWrapper") not in known:
        raise ConfigError(f"amp: optim_wrapper.type must be one of {', '.join(known)}, got {wrapper['type']!r}")
    kept = {key: value for key, value in wrapper.items() if key not in ("type", "dtype", "loss_scale", "use_fsdp")}
    cfg.optim_wrapper = ConfigDict(type="MixedPrecisionOptimWrapper", precision=precision, **kept)


def use_tta(cfg: Config) -> None:
    """Switch a test to test-time augmentation: `tta_pipeline` for the data, `tta_model` around the model."""
    for key in ("tta_model", "tta_pipeline"):
        if cfg.get(key) is None:
            raise ConfigError(f"--tta: the config has no {key}")
    dataset = cfg.test_dataloader.dataset
    while "pipeline" not in dataset and "dataset" in dataset:
        dataset = dataset.dataset
    dataset.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def metrics_of(cfg: Config, types: Collection[str]) -> list[ConfigDict]:
    """The configs of the test metrics whose class has one of these names, whatever its scope."""
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    return [metric for metric in evaluators if metric["type"].rsplit(".", 1)[-1] in types]
