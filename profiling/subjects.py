"""What is measured: a backbone by name, a config file, a config, or a ready-made module, all as one kind of plain data.

    resolve("hybrid:small:bi_wkv")          a backbone of linescan's registry, see `backbones/registry.py` for the names
    resolve("configs/timm/swin-tiny_upernet_4xb4-160k_ade20k-512x512.py")
    resolve(dict(type="linescan.Vim", arch="tiny"), options=dict(img_size=512))
    resolve(module, name="mine")

A `Subject` without a module can be pickled, and `build` makes the same model of it in any process.
"""

import copy
import difflib
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope, Registry
from mmengine.utils import import_modules_from_strings
from torch import nn

from ..engine.config import load_config
from ..engine.errors import ConfigError, LinescanError
from ..engine.noise import quiet_imports

OURS = "linescan.backbones"
CONFIG_SUFFIXES = (".py", ".json", ".yaml", ".yml")
SEED = 0


@dataclass(frozen=True)
class Subject:
    """A model that can be built.

    Attributes:
        name: as it is shown: "hybrid:small:bi_wkv", or the stem of a config file.
        config: of the model, for MMEngine's MODELS registry, plain data; None with `module`.
        imports: modules that register what the config names, imported before building.
        scope: default scope of the registry while building ("mmseg" for config files of MMSegmentation).
        source: what the user wrote: the name, the path of the config file.
        options: constructor arguments or cfg_options that were given on top.
        role: "model", "baseline" or "control".
        of: names of the models that it is the baseline or control of.
        reason: why it was chosen.
        module: a ready-made module; its weights are kept.
    """

    name: str
    config: Mapping[str, Any] | None
    imports: tuple[str, ...] = (OURS,)
    scope: str | None = None
    source: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    role: str = "model"
    of: tuple[str, ...] = ()
    reason: str = ""
    module: nn.Module | None = None


def registry() -> Registry:
    """linescan's registry of backbones, found as MMEngine's child registry of that scope.

    Raises:
        LinescanError: an installed package announces a backbone that cannot be loaded.
    """
    with quiet_imports():
        import_modules_from_strings(OURS)
    backbones = MODELS.children["linescan"]
    try:
        backbones.names()
    except ImportError as error:
        raise LinescanError(str(error)) from error
    return backbones


def resolve(
    source: str | Path | Mapping[str, Any] | nn.Module | Subject, *, name: str | None = None, options: Mapping[str, Any] | None = None
) -> Subject:
    """The subject that the user means, checked: its model can be built.

    Args:
        source: a backbone's name (family:arch[:mixer]), the path of a config file, the config of a model, a module, or a subject.
        name: to show; None for the backbone's name, the stem of the config file, or the name of the class.
        options: further constructor arguments of a backbone or of a config's `type`; cfg_options (dotted keys) of a config file.

    Raises:
        ConfigError: no such name or file (the message names the near ones), a config without a model, or a model that cannot be built
            with these options.
    """
    if isinstance(source, nn.Module | Subject):
        if options:
            raise ConfigError(f"options: a {type(source).__name__} takes none, got {dict(options)}")
        if isinstance(source, Subject):
            return source if name is None else replace(source, name=name)
        kind = type(source).__name__
        return Subject(name or kind, None, imports=(), source=kind, module=source)
    options = dict(options or {})
    if isinstance(source, Mapping):
        subject = _from_config(source, options)
    elif not isinstance(source, str | Path):
        raise ConfigError(f"a model is a name, the path of a config, a config or a module, got {type(source).__name__}")
    elif _is_path(source):
        subject = _from_file(Path(source), options)
    else:
        subject = _from_name(source, options)
    skeleton(subject)
    return subject if name is None else replace(subject, name=name)


def build(subject: Subject) -> nn.Module:
    """The model in float32 on the CPU, synchronised batch norms made plain ones; weights are random, the same in every process.

    `model(x)` of images (B, 3, H, W) gives tensors: a backbone its maps, a segmentor or classifier its logits. A `module` is copied.
    """
    if subject.module is not None:
        model = copy.deepcopy(subject.module)
    else:
        model = _construct(subject, "cpu")
    return revert_sync_batchnorm(model).float().cpu()


def skeleton(subject: Subject) -> nn.Module:
    """The model on the meta device (no memory, no time), on the CPU where its constructor reads values; a ready-made module as it is.

    Raises:
        ConfigError: it cannot be built.
    """
    if subject.module is not None:
        return subject.module
    try:
        return _construct(subject, "meta")
    except Exception:
        # Either the config is wrong, or a constructor computes with values (`torch.linspace(...).item()`): the CPU tells which.
        try:
            return _construct(subject, "cpu")
        except Exception as error:
            raise ConfigError(f"{subject.source}: {_why(error, subject)}") from error


def _construct(subject: Subject, device: str) -> nn.Module:
    with quiet_imports(), torch.random.fork_rng(devices=[]), DefaultScope.overwrite_default_scope(subject.scope):
        import_modules_from_strings([module for module in subject.imports if module not in sys.modules])
        torch.default_generator.manual_seed(SEED)
        with torch.device(device):
            return MODELS.build(copy.deepcopy(dict(subject.config)))


def _why(error: Exception, subject: Subject) -> str:
    """The message of a constructor in one line, with the near architectures where it does not tell them."""
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
    backbones = registry()
    backbone = backbones.registered_name(subject.config.get("type"))
    arch = subject.config.get("arch")
    if isinstance(error, KeyError) and backbone and isinstance(arch, str) and arch not in (known := backbones.archs(backbone)):
        return f"unknown arch {arch!r} of {backbone}.{did_you_mean(arch, known)} Known: {', '.join(known) or 'not told'}."
    # MMEngine goes on with advice about its own registries.
    text = re.sub(r"(is not in the \S+ registry)\. Please check.*", r"\1; is its scope missing, or the module that registers it?", text)
    return text if isinstance(error, ValueError | KeyError) and text else f"{type(error).__name__}: {text}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ " Did you mean ...?" with up to three near names, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def _from_name(source: str, options: dict[str, Any]) -> Subject:
    backbones = registry()
    try:
        config = backbones.named_config(source, options)
    except ValueError as error:
        stems = {path.stem: _shown(path) for path in _config_files()}
        near = [stem for stem in stems if ":" not in source and source and stem.startswith(source)][:3]
        near = near or ([] if ":" in source else difflib.get_close_matches(source, stems, n=3, cutoff=0.6))
        configs = f" Config files of such a name: {', '.join(stems[stem] for stem in near)}." if near else ""
        what = "" if ":" in source else "neither the path of a config file nor the name of a backbone: "
        raise ConfigError(f"{source or repr(source)}: {what}{str(error).removesuffix('.')}.{configs}") from error
    module = backbones.module_of(backbones.registered_name(config["type"]))
    return Subject(source, config, imports=importable(OURS, module), source=source, options=options)


def _from_config(source: Mapping[str, Any], options: dict[str, Any]) -> Subject:
    config = {**source, **options}
    kind = config.get("type")
    if not isinstance(kind, str | type):
        raise ConfigError(f"the config of a model needs type=..., got {_short(dict(source))}")
    backbones = registry()
    shown = dict(source=_short(dict(source)), options=options)
    if backbone := backbones.registered_name(kind):
        imports = importable(OURS, backbones.module_of(backbone))
        return Subject(backbones.name_of(config) or str(kind), config, imports=imports, **shown)
    # The parts of a "mmseg.EncoderDecoder" are found in its scope, those of a name without scope where the process looks for them.
    current = DefaultScope.get_current_instance()
    scope = Registry.split_scope_key(kind)[0] if isinstance(kind, str) else None
    scope = None if scope == backbones.scope else scope or (current and current.scope_name)
    return Subject(kind if isinstance(kind, str) else kind.__name__, config, scope=scope, **shown)


def _from_file(path: Path, options: dict[str, Any]) -> Subject:
    cfg = read_config(path, options)
    if not isinstance(cfg.get("model"), Mapping) or "type" not in cfg.model:
        raise ConfigError(f"{path}: the config has no model (model=dict(type=...)), its keys are {', '.join(cfg) or 'none'}")
    imports = (cfg.get("custom_imports") or {}).get("imports") or ()
    imports = (imports,) if isinstance(imports, str) else imports
    # Imported already while the file was read, except those that the config lets fail.
    return Subject(
        path.stem,
        cfg.model.to_dict(),
        imports=importable(OURS, *imports),
        scope=cfg.get("default_scope"),
        source=str(path),
        options=options,
    )


def read_config(path: Path, options: Mapping[str, Any] | None = None, **arguments: Any) -> Any:
    """`engine.load_config`, with near names for a path that does not exist, and one kind of error for whatever is wrong.

    Raises:
        ConfigError: no such file, not readable as a config, or options that do not fit.
    """
    if not path.is_file() and "::" not in str(path):
        beside = {p.name: p for p in _files(path.parent, "*")} if path.parent.is_dir() and not path.is_dir() else {}
        known = beside if did_you_mean(path.name, beside) else {p.name: p for p in _config_files()}
        near = [_shown(known[name]) for name in difflib.get_close_matches(path.name, known, n=3, cutoff=0.6)]
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(f"{path}: {'a folder, not a' if path.is_dir() else 'no such'} config file.{hint}")
    try:
        return load_config(path, cfg_options=dict(options or {}) or None, **arguments)
    except LinescanError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or "no message"
        raise ConfigError(f"{path}: cannot be read as a config: {type(error).__name__}: {reason}") from error


def _is_path(source: str | Path) -> bool:
    if isinstance(source, Path) or source.endswith(CONFIG_SUFFIXES) or Path(source).is_file():
        return True
    return os.sep in source and ":" not in source


def _files(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.glob(pattern) if path.suffix in CONFIG_SUFFIXES)


def _config_files() -> list[Path]:
    """Those of the working folder, else those of the checkout."""
    folders = (Path("configs"), Path(__file__).resolve().parents[1] / "configs")
    found = next((files for folder in folders if (files := _files(folder, "**/*"))), [])
    return [path for path in found if "_base_" not in path.parts]


def _shown(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_absolute() and path.is_relative_to(here) else str(path)


def importable(*modules: str) -> tuple[str, ...]:
    """Those that are imported and that another process can import by name, each once; ours brings its parts."""
    return tuple(dict.fromkeys(m for m in modules if m in sys.modules and m != "__main__" and not m.startswith(f"{OURS}.")))


def _short(value: Any, limit: int = 100) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
