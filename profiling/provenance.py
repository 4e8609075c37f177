"""One schema for every measurement of the project: what was measured, under which condition, with which result, on what.

A results file is a JSON list of rows. A row has the keys of `measurement_row`; `provenance` fills what a reader needs to repeat it.
"""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

SCHEMA = 1
ROW_KEYS = ("schema", "kind", "name", "condition", "result", "provenance")
# Import name shown -> names under which the package may be installed.
_PACKAGES = {
    "linescan": ("linescan",),
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "triton": ("triton",),
    "timm": ("timm",),
    "mmengine": ("onedl-mmengine", "mmengine", "mmengine-lite"),
    "mmcv": ("onedl-mmcv", "mmcv", "mmcv-lite"),
    "mmseg": ("onedl-mmsegmentation", "mmsegmentation"),
    "fvcore": ("fvcore",),
    "numpy": ("numpy",),
}


def measurement_row(
    kind: str,
    name: str,
    *,
    condition: Mapping[str, Any],
    result: Mapping[str, Any],
    device: str | torch.device = "cpu",
    command: Sequence[str] | None = None,
) -> dict[str, Any]:
    """One measurement as plain data.

    Args:
        kind: what was measured, for example "throughput", "macs", "miou", "kernel".
        name: of what: a model, a config, an operator.
        condition: what was fixed (input shape, dtype, batch, backend, iterations ...).
        result: the numbers, with the unit in the name (`latency_ms`, `gmacs`, `images_per_s`).
        device: where it ran.
        command: the command line; default, that of this process.
    """
    if not kind or not name:
        raise ValueError(f"kind and name must not be empty, got kind={kind!r}, name={name!r}")
    return {
        "schema": SCHEMA,
        "kind": kind,
        "name": name,
        "condition": dict(condition),
        "result": dict(result),
        "provenance": provenance(device, command=command),
    }


def provenance(device: str | torch.device = "cpu", *, command: Sequence[str] | None = None) -> dict[str, Any]:
    """Device, threads, versions, commit, date (UTC) and command of a measurement that this process makes."""
    device = torch.device(device)
    return {
        "device": device_name(device),
        "device_type": device.type,
        "driver": _driver() if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "versions": versions(),
        "commit": commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": _command(sys.orig_argv if command is None else command),
    }


def device_name(device: str | torch.device) -> str:
    """The product name of a GPU or CPU, as the driver or the system gives it."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if cpuinfo.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str | None]:
    """Installed version of each package that a number can depend on, with its distribution name where a fork may stand in; None: absent."""
    found: dict[str, str | None] = {}
    for name, distributions in _PACKAGES.items():
        found[name] = None
        for distribution in distributions:
            try:
                version = metadata.version(distribution)
            except metadata.PackageNotFoundError:
                continue
            found[name] = version if distribution == name else f"{version} ({distribution})"
            break
    return found


def commit() -> str | None:
    """Commit of the checkout that this package runs from, "-dirty" behind it where tracked files were changed; None outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    git = ["git", "-c", f"safe.directory={root}", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}-dirty" if changed.strip() else head


def write_rows(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows to a results file in one step: a reader sees the old file or the new one, never half of one."""
    for row in rows:
        _check_row(row, "rows")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(list(rows), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(path)


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Rows of a results file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no JSON list of rows of this schema.
    """
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no results file: not JSON ({error})") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path} is no results file: expected a list of rows, got {type(rows).__name__}")
    for row in rows:
        _check_row(row, str(path))
    return rows


def _check_row(row: Any, where: str) -> None:
    missing = [key for key in ROW_KEYS if key not in row] if isinstance(row, Mapping) else list(ROW_KEYS)
    if missing:
        raise ValueError(f"{where}: a row lacks {', '.join(missing)}; rows are made by linescan.profiling.measurement_row")
    if row["schema"] != SCHEMA:
        raise ValueError(f"{where}: row of schema {row['schema']!r}, this version reads schema {SCHEMA}")


def _driver() -> str | None:
    """Version of the NVIDIA driver, None where the system does not tell."""
    module = Path("/sys/module/nvidia/version")
    return module.read_text().strip() if module.exists() else None


def _command(argv: Sequence[str]) -> str:
    """A command line as typed, but no one's home folder ends up in a results file: a path below the working folder is relative to it, of
    any other absolute one the last part is kept."""
    here = Path.cwd()

    def shown(word: str) -> str:
        if not os.path.isabs(word):
            return word
        return os.path.relpath(word, here) if Path(word).is_relative_to(here) else Path(word).name

    return shlex.join([Path(argv[0]).name, *map(shown, argv[1:])] if argv else [])
