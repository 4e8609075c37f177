"""MMEngine's two training loops, able to resume at any iteration: same hooks, same data, same random numbers as without the
interruption.
"""

from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from mmengine.runner.base_loop import BaseLoop
from mmengine.runner.utils import calc_dynamic_intervals

from .replay import BatchStream, replayable


def _init_loop(loop: BaseLoop, runner, dataloader: dict, val_begin: int, val_interval: int, dynamic_intervals) -> None:
    """The part of both constructors that needs no length. MMEngine's own constructors start the workers at once, which fixes their
    position.
    """
    seed = runner.seed - (runner.rank if runner._randomness_cfg.get("diff_rank_seed", False) else 0)
    BaseLoop.__init__(loop, runner, replayable(dataloader, seed))
    loop._epoch = 0
    loop._iter = 0
    loop.val_begin = val_begin
    loop.val_interval = val_interval
    loop.dynamic_milestones, loop.dynamic_intervals = calc_dynamic_intervals(val_interval, dynamic_intervals)
    loop.stop_training = False
    runner.visualizer.dataset_meta = getattr(loop.dataloader.dataset, "metainfo", None)


def _positive(name: str, value: int) -> int:
    if value != int(value) or value < 1:
        raise ValueError(f"train_cfg.{name}: expected a positive integer, got {value!r}")
    return int(value)


@LOOPS.register_module()
class ReplayIterLoop(IterBasedTrainLoop):
    """`IterBasedTrainLoop` that resumes exactly. Arguments as there."""

    def __init__(
        self, runner, dataloader: dict, max_iters: int, val_begin: int = 1, val_interval: int = 1000, dynamic_intervals=None
    ) -> None:
        self._max_iters = _positive("max_iters", max_iters)
        self._max_epochs = 1
        _init_loop(self, runner, dataloader, val_begin, val_interval, dynamic_intervals)
        self.dataloader_iterator = BatchStream(self.dataloader)

    def run(self):
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        self.dataloader_iterator.seek(self._iter)
        if self._iter > 0:
            # The interruption may have come between the checkpoint and the end of the validation that belongs to it.
            self._validate_if_due()
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
            self._validate_if_due()
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")
        return self.runner.model

    def _validate_if_due(self) -> None:
        self._decide_current_val_interval()
        due = self._iter % self.val_interval == 0 or self._iter == self._max_iters
        if self.runner.val_loop is not None and self._iter >= self.val_begin and due:
            self.runner.val_loop.run()


@LOOPS.register_module()
class ReplayEpochLoop(EpochBasedTrainLoop):
    """`EpochBasedTrainLoop` that resumes exactly, within an epoch too. Arguments as there."""

    def __init__(
        self, runner, dataloader: dict, max_epochs: int, val_begin: int = 1, val_interval: int = 1, dynamic_intervals=None
    ) -> None:
        self._max_epochs = _positive("max_epochs", max_epochs)
        _init_loop(self, runner, dataloader, val_begin, val_interval, dynamic_intervals)
        self._max_iters = self._max_epochs * len(self.dataloader)
        if self._max_iters == 0:
            raise ValueError("train_dataloader: the data set has too few samples for one batch")

    def run(self):
        self.runner.call_hook("before_train")
        if self._epoch > 0 and self._iter == self._epoch * len(self.dataloader):
            self._validate_if_due()
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._validate_if_due()
        self.runner.call_hook("after_train")
        return self.runner.model

    def run_epoch(self) -> None:
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        done = self._iter - self._epoch * len(self.dataloader)
        self.dataloader.batch_sampler.start(self._epoch, skip=done)
        for index, data_batch in enumerate(self.dataloader, start=done):
            self.run_iter(index, data_batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1

    def _validate_if_due(self) -> None:
        self._decide_current_val_interval()
        due = self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs
        if self.runner.val_loop is not None and self._epoch >= self.val_begin and due:
            self.runner.val_loop.run()
