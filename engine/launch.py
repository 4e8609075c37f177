"""Starting processes on any device: MMEngine's launchers assume CUDA; this makes the same config run on CPUs.

`adapt` is called once, before a runner is built. With CUDA it leaves the work to MMEngine (NCCL); without, it opens a gloo group and
changes the three settings that only work on a GPU: the model wrapper's device, SyncBN, and `AmpOptimWrapper`.
"""

import datetime
import logging
import os
import subprocess
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from torch import distributed as dist

from .errors import ConfigError

LAUNCHERS = ("none", "pytorch", "slurm", "mpi")
_SYNC_BN = {"SyncBN": "BN", "MMSyncBN": "BN", "SyncBatchNorm": "BN"}
_NEEDS = {
    "pytorch": (("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"), "start it with torchrun"),
    "slurm": (("SLURM_PROCID", "SLURM_NTASKS", "SLURM_NODELIST"), "start it with srun"),
    "mpi": (
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "MASTER_ADDR"),
        "start it with Open MPI's mpirun",
    ),
}


def adapt(cfg: Config) -> None:
    """Check the launcher's environment and, on a machine without CUDA, make `cfg` run there. Changes `cfg` in place.

    Raises:
        ConfigError: if the environment of the launcher is not there, or the strategy needs a GPU.
    """
    launcher = cfg.get("launcher", "none")
    if launcher != "none":
        check_environment(launcher)
    if torch.cuda.is_available():
        return
    strategy = (cfg.get("strategy") or {}).get("type")
    if strategy == "FSDPStrategy":
        raise ConfigError("strategy: FSDPStrategy needs a GPU on every process; on CPUs use DDPStrategy")
    _replace_amp(cfg)
    if launcher == "none":
        return
    if not dist.is_initialized():
        init_gloo(launcher, **cfg.get("env_cfg", {}).get("dist_cfg", {}))
    _replace_sync_bn(cfg)
    wrapper = dict(type="MMDistributedDataParallel", device_ids=None, broadcast_buffers=False)
    if strategy == "DDPStrategy":
        cfg.strategy.model_wrapper = {**wrapper, **(cfg.strategy.get("model_wrapper") or {}), "device_ids": None}
    elif strategy is None:
        wrapper["find_unused_parameters"] = cfg.get("find_unused_parameters", False)
        cfg.model_wrapper_cfg = {**wrapper, **(cfg.get("model_wrapper_cfg") or {}), "device_ids": None}


def check_environment(launcher: str) -> None:
    """Raise `ConfigError` if the variables that `launcher` sets are not set."""
    if launcher not in LAUNCHERS:
        raise ConfigError(f"launcher: expected one of {', '.join(LAUNCHERS)}, got {launcher!r}")
    names, how = _NEEDS[launcher]
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise ConfigError(f"--launcher {launcher}: {', '.join(missing)} not set; {how} (docs/distributed.md has the lines)")


def init_gloo(launcher: str, timeout: int = 1800, port: int | None = None, **_: Any) -> None:
    """Open a gloo process group from the environment of torchrun, srun or mpirun.

    Args:
        launcher: "pytorch", "slurm" or "mpi".
        timeout: seconds after which a collective gives up.
        port: rendezvous port for slurm and mpi; else MASTER_PORT, else 29500.
    """
    if launcher == "slurm":
        _export(rank="SLURM_PROCID", world="SLURM_NTASKS", local="SLURM_LOCALID", port=port)
        if "MASTER_ADDR" not in os.environ:
            os.environ["MASTER_ADDR"] = _first_slurm_host()
    elif launcher == "mpi":
        _export(rank="OMPI_COMM_WORLD_RANK", world="OMPI_COMM_WORLD_SIZE", local="OMPI_COMM_WORLD_LOCAL_RANK", port=port)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=timeout))


def _export(rank: str, world: str, local: str, port: int | None) -> None:
    os.environ["RANK"] = os.environ[rank]
    os.environ["WORLD_SIZE"] = os.environ[world]
    os.environ["LOCAL_RANK"] = os.environ.get(local, "0")
    if port is not None:
        os.environ["MASTER_PORT"] = str(port)
    os.environ.setdefault("MASTER_PORT", "29500")


def _first_slurm_host() -> str:
    try:
        command = ["scontrol", "show", "hostnames", os.environ["SLURM_NODELIST"]]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise ConfigError(
            f"--launcher slurm: scontrol names no host for {os.environ['SLURM_NODELIST']} ({error}); set MASTER_ADDR"
        ) from error


def _replace_amp(cfg: Config) -> None:
    optim_wrapper = cfg.get("optim_wrapper") or {}
    if optim_wrapper.get("type") == "AmpOptimWrapper":
        kept = {key: value for key, value in optim_wrapper.items() if key not in ("type", "dtype", "loss_scale", "use_fsdp")}
        cfg.optim_wrapper = {"type": "MixedPrecisionOptimWrapper", "precision": "bf16", **kept}
        print_log("No GPU: AmpOptimWrapper replaced by bf16 autocast on the CPU", "current", logging.WARNING)


def _replace_sync_bn(cfg: Config) -> None:
    """SyncBatchNorm has no CPU kernel: each process normalises with its own statistics instead."""
    changed = _rename_types(cfg.model)
    if cfg.get("sync_bn"):
        cfg.sync_bn, changed = None, True
    if changed:
        print_log("No GPU: SyncBN replaced by BN, every process uses the statistics of its own images", "current", logging.WARNING)


def _rename_types(node: Any) -> bool:
    changed = False
    if isinstance(node, dict):
        if isinstance(kind := node.get("type"), str) and kind in _SYNC_BN:
            node["type"] = _SYNC_BN[kind]
            changed = True
        node = list(node.values())
    if isinstance(node, list | tuple):
        changed = any([_rename_types(value) for value in node]) or changed
    return changed
