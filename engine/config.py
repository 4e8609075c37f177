"""From a config file and command-line options to the config that runs."""

import difflib
from collections.abc import Collection
from importlib import metadata, util
from pathlib import Path
from typing import Any

import mmengine.config.utils as mmengine_config
from mmengine.config import Config, ConfigDict
from mmengine.utils import import_modules_from_strings

from .amp import PRECISIONS
from .errors import ConfigError
from .launch import LAUNCHERS
from .noise import quiet_imports

FORK_PREFIX = "onedl-"
# What registers linescan's names, by the default scope of the config that may use them; None: any config.
OURS = {None: "linescan.backbones", "mmseg": "linescan.segmentation"}


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


def find_config(path: str | Path) -> Path:
    """The file of a config: a path, or PACKAGE::PATH among the configs that an installed package of OpenMMLab brings.

    `mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py` is written as in `_base_`.

    Raises:
        ConfigError: no such file or package; the message has the near names.
    """
    package, separator, inner = str(path).rpartition("::")
    if not separator:
        if not Path(path).is_file():
            raise ConfigError(f"{path}: no such config file")
        return Path(path)
    if not package.isidentifier() or (spec := util.find_spec(package)) is None or spec.origin is None:
        raise ConfigError(f"{path}: no package {package!r} is installed; expected PACKAGE::PATH, such as mmseg::segformer/NAME.py")
    folder = Path(spec.origin).parent / ".mim" / "configs"
    if not (folder / inner).is_file():
        known = [file.relative_to(folder).as_posix() for file in folder.rglob("*.py")]
        near = difflib.get_close_matches(inner, known, n=3, cutoff=0.6)
        hint = f". Did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(f"{path}: no such config among the {len(known)} of {package}{hint}")
    return folder / inner


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
        path: config file (.py, .json, .yaml), or PACKAGE::PATH, see `find_config`. Its `custom_imports` are imported, those of the
            options too, and linescan's backbones and, for configs of MMSegmentation, its segmentors, metrics and data sets always.
        work_dir: where the run writes; else the config's own, else work_dirs/<config name>.
        cfg_options: dotted keys to values, as `--cfg-options` gives them.
        resume: True: from the newest complete checkpoint in the work folder, from the start if there is none. A path: from that file.
        amp: None: as the config says; "auto", "fp16" or "bf16": mixed precision, see `MixedPrecisionOptimWrapper`.
        seed: non-negative; else the config's `randomness`, else a random one, which the checkpoints keep.
        launcher: "none", "pytorch", "slurm" or "mpi".

    Raises:
        ConfigError: if the file is missing or an option does not fit.
    """
    path = find_config(path)
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
    import_modules(cfg, again=any(key.split(".")[0] == "custom_imports" for key in cfg_options or ()))
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


def import_modules(cfg: Config, *, again: bool) -> None:
    """Add linescan's modules to the `custom_imports` of `cfg` and import them, so that any config may use their names.

    Args:
        cfg: changed in place.
        again: import the others too. MMEngine has done that with those of the file, before options were applied.

    Raises:
        ConfigError: one of them cannot be imported, unless `custom_imports.allow_failed_imports` lets it.
    """
    custom = cfg.get("custom_imports") or {}
    named = custom.get("imports") or []
    named = [named] if isinstance(named, str) else list(named)
    ours = [module for scope, module in OURS.items() if scope in (None, cfg.get("default_scope"))]
    may_fail = custom.get("allow_failed_imports", False)
    with quiet_imports():
        import_modules_from_strings(ours)
        if again:
            try:
                import_modules_from_strings(named, allow_failed_imports=may_fail)
            except ImportError as error:
                raise ConfigError(f"custom_imports: {error}; it is not installed, and its folder is not on PYTHONPATH") from error
    cfg.custom_imports = dict(imports=list(dict.fromkeys([*ours, *named])), allow_failed_imports=may_fail)


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
