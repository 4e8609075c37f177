"""A training in miniature for tests: a model and data that use every source of randomness, and hooks that record and interrupt.

Importing it registers the types; `toy_config` names them. One run of 20 iterations takes a fraction of a second.
"""

import os
import random
import signal
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from torch import nn
from torch.utils.data import Dataset


@DATASETS.register_module()
class ToySamples(Dataset):
    """`length` samples x (8,), y (); x is augmented with numbers from `random`, `numpy.random` and `torch`."""

    metainfo: ClassVar = dict(classes=("a", "b"))

    def __init__(self, length: int = 23) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        clean = torch.sin(torch.arange(8) * (index + 1.0))
        noise = torch.from_numpy(np.random.randn(8)).float() + torch.randn(8)
        return dict(x=clean * (1 + random.random()) + 0.1 * noise, y=torch.tensor(float(index % 3)))


@MODELS.register_module()
class ToyRegression(BaseModel):
    """A two-layer network with dropout and a norm; `norm` is an MMEngine-style norm config or None for LayerNorm."""

    def __init__(self, dropout: float = 0.3, norm_cfg: dict | None = None, width: int = 16) -> None:
        super().__init__()
        norm = nn.BatchNorm1d(width) if norm_cfg else nn.LayerNorm(width)
        self.net = nn.Sequential(nn.Linear(8, width), norm, nn.GELU(), nn.Dropout(dropout), nn.Linear(width, 1))

    def forward(self, x: list[torch.Tensor], y: list[torch.Tensor], mode: str = "loss") -> Any:
        out = self.net(torch.stack(x))[:, 0]
        return dict(loss=(out.float() - torch.stack(y)).square().mean()) if mode == "loss" else list(out)


@METRICS.register_module()
class ToyMetric(BaseMetric):
    """Mean output, as "score". Draws random numbers, which must not reach the training."""

    default_prefix = "toy"

    def process(self, data_batch: Any, data_samples: list[torch.Tensor]) -> None:
        random.random(), np.random.rand(3), torch.rand(3)
        self.results.extend(float(sample) for sample in data_samples)

    def compute_metrics(self, results: list[float]) -> dict[str, Any]:
        return dict(score=np.float32(np.mean(results)))


@HOOKS.register_module()
class LossRecorder(Hook):
    """Appends "<iteration> <loss>" to `<file>.<rank>`; at iteration `stop_at` it kills the process (`kill`) or raises KeyboardInterrupt."""

    priority = "LOWEST"

    def __init__(self, file: str, stop_at: int | None = None, kill: bool = False) -> None:
        self.file, self.stop_at, self.kill = file, stop_at, kill

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        with open(f"{self.file}.{runner.rank}", "a") as file:
            file.write(f"{runner.iter} {outputs['loss'].item()!r}\n")
        if runner.iter == self.stop_at:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt


def read_losses(path: str | Path) -> dict[int, float]:
    """Iteration -> loss, from a file of `LossRecorder`. An iteration that ran twice, before and after a resume, must agree to 1e-6."""
    losses: dict[int, float] = {}
    for line in Path(path).read_text().splitlines():
        iteration, loss = int(line.split()[0]), float(line.split()[1])
        if abs(losses.setdefault(iteration, loss) - loss) > 1e-6:
            raise AssertionError(f"iteration {iteration}: loss {losses[iteration]} before the interruption, {loss} after it")
    return losses


def toy_config(work_dir: str | Path, *, epochs: bool = False, workers: int = 0, persistent: bool = False, **changes: Any) -> Config:
    """A complete config of 20 iterations (or 4 epochs of 6), a checkpoint every 4 and a validation every 5 (every epoch).

    Args:
        work_dir: the run writes here; losses go to `<work_dir>/losses.<rank>`.
        epochs: EpochBasedTrainLoop instead of IterBasedTrainLoop.
        workers, persistent: of the training data loader.
        **changes: top-level keys to replace.
    """
    loop = dict(type="EpochBasedTrainLoop", max_epochs=4) if epochs else dict(type="IterBasedTrainLoop", max_iters=20, val_interval=5)
    sampler = "DefaultSampler" if epochs else "InfiniteSampler"
    val = dict(batch_size=4, sampler=dict(type="DefaultSampler", shuffle=False), dataset=dict(type="ToySamples", length=7))
    cfg = dict(
        custom_imports=dict(imports=["linescan.engine.testing"], allow_failed_imports=False),
        default_scope="mmengine",
        work_dir=str(work_dir),
        experiment_name=f"toy_{os.urandom(8).hex()}",  # MMEngine keeps one message hub for each name
        model=dict(type="ToyRegression"),
        train_dataloader=dict(
            batch_size=4,
            num_workers=workers,
            persistent_workers=persistent,
            sampler=dict(type=sampler, shuffle=True),
            dataset=dict(type="ToySamples"),
        ),
        train_cfg=loop,
        val_dataloader=val,
        val_cfg=dict(type="ValLoop"),
        val_evaluator=dict(type="ToyMetric"),
        test_dataloader=val,
        test_cfg=dict(type="TestLoop"),
        test_evaluator=dict(type="ToyMetric"),
        optim_wrapper=dict(optimizer=dict(type="AdamW", lr=0.01, weight_decay=0.05), constructor="LinescanOptimWrapperConstructor"),
        param_scheduler=[dict(type="PolyLR", eta_min=1e-5, power=0.9, begin=0, end=20, by_epoch=False)],
        default_hooks=dict(
            logger=dict(type="LoggerHook", interval=5, log_metric_by_epoch=False),
            checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=4, max_keep_ckpts=3, save_best="toy/score", rule="greater"),
        ),
        log_processor=dict(by_epoch=False),
        custom_hooks=[dict(type="LossRecorder", file=f"{work_dir}/losses")],
        env_cfg=dict(mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0)),
        randomness=dict(seed=7),
        launcher="none",
        resume=False,
        load_from=None,
    )
    return Config({**cfg, **changes})
