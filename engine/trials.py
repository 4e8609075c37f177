"""Train a config and evaluate its best checkpoint, once: what the comparing tools do for each of their configs."""

import json
import os
import time
from pathlib import Path
from typing import Any

from .api import run_test, run_train
from .checkpoints import write_text
from .config import load_config


def train_and_test(config: Path, work_dir: Path, *, cfg_options: dict[str, Any] | None = None, seed: int = 0) -> None:
    """Leave checkpoints, logs and `metrics.json` in `work_dir`. A trial that has its `metrics.json` is not run again.

    `metrics.json` holds the name of the checkpoint, `train_seconds` of wall time, `train_cpu_seconds` of processor time, and the metrics on
    the test split. An interrupted trial resumes.

    Args:
        config: config file whose checkpoint hook has `save_best`.
        work_dir: the run writes here.
        cfg_options: dotted keys to values.
        seed: of the training.

    Raises:
        FileNotFoundError: the run has left no best checkpoint.
    """
    if (work_dir / "metrics.json").exists():
        print(f"{config.stem}: evaluated already, see {work_dir / 'metrics.json'}")
        return
    options = dict(work_dir=work_dir, cfg_options=cfg_options, seed=seed)
    print(f"\n{config.stem}: training (python tools/train.py {config} --work-dir {work_dir} --seed {seed})", flush=True)
    start, cpu = time.perf_counter(), cpu_seconds()
    run_train(load_config(config, resume=work_dir.exists() or None, **options))
    seconds = {"train_seconds": round(time.perf_counter() - start, 1), "train_cpu_seconds": round(cpu_seconds() - cpu, 1)}
    checkpoint = best_checkpoint(work_dir)
    metrics = {key: float(value) for key, value in run_test(load_config(config, **options), checkpoint).items()}
    content = {"checkpoint": checkpoint.name, **seconds, "metrics": metrics}
    write_text(work_dir / "metrics.json", json.dumps(content, indent=2) + "\n")


def cpu_seconds() -> float:
    """Processor time of this process and its finished children (data workers), over all threads: steady on a busy machine."""
    return sum(os.times()[:4])


def best_checkpoint(work_dir: Path) -> Path:
    """The newest `best_*.pth` of a run.

    Raises:
        FileNotFoundError: there is none.
    """
    found = sorted(work_dir.glob("best_*.pth"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(f"{work_dir}: no best_*.pth; the config needs a checkpoint hook with save_best")
    return found[-1]
