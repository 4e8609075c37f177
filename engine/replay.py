"""Training data that can be replayed from any iteration.

Each sample is drawn under a random seed of its own, made of (run seed, epoch, position in the epoch over all processes). The
augmentations that a run sees are therefore the same for any number of workers (0 included, persistent or not), for any number of
processes that share the same total batch, and after any interruption. Transforms must draw from `random`, `numpy.random` or `torch`; one
that keeps a private generator across samples cannot be replayed.

Index streams are advanced, data are not: resuming at iteration 100 000 reads no image of the first 100 000.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_dist_info
from mmengine.registry import DATA_SAMPLERS, DATASETS
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset


class ReplayIndex(int):
    """A sample index that also carries `key` = (epoch, position over all processes)."""

    key: tuple[int, int]

    def __new__(cls, index: int, key: tuple[int, int] = (0, 0)) -> "ReplayIndex":
        self = super().__new__(cls, index)
        self.key = key
        return self


@contextmanager
def seeded(*words: int) -> Iterator[None]:
    """Seed python, numpy and the torch CPU generator from non-negative `words`; put the caller's states back at the end."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    numpy_seed, torch_seed, python_seed = np.random.SeedSequence(words).generate_state(3, np.uint64).tolist()
    random.seed(python_seed)
    np.random.seed(numpy_seed % 2**32)
    torch.default_generator.manual_seed(torch_seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


class ReplayDataset(Dataset):
    """Draws each sample of `dataset` under the seed (seed, *index.key). Other attributes are those of `dataset`.

    Args:
        dataset: a map-style dataset, or the config of one.
        seed: non-negative run seed, the same on all processes.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.seed = seed
        if isinstance(self.dataset, IterableDataset):
            raise TypeError(f"train_dataloader.dataset: expected a map-style dataset, got the iterable {type(self.dataset).__name__}")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: ReplayIndex) -> Any:
        with seeded(self.seed, *index.key):
            return self.dataset[index]

    def __getitems__(self, indices: list[ReplayIndex]) -> list[Any]:
        return [self[index] for index in indices]

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # not yet set, while unpickling in a worker
            raise AttributeError(name)
        return getattr(self.dataset, name)


class ReplayBatchSampler:
    """Numbers the samples of a batch sampler and starts it at any batch of any epoch.

    Args:
        sampler: index sampler. If it has `set_epoch`, it is told the epoch.
        batch_size: samples per batch and process.
        drop_last: leave out a last, incomplete batch.
        inner: config of another batch sampler to number; None: torch's `BatchSampler`.
    """

    def __init__(self, sampler, batch_size: int, drop_last: bool = False, inner: dict | None = None) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last
        if inner is None:
            self.inner = BatchSampler(sampler, batch_size, drop_last)
        else:
            self.inner = DATA_SAMPLERS.build(inner, default_args=dict(sampler=sampler, batch_size=batch_size))
        self._epoch = 0
        self._started: Iterator[list[ReplayIndex]] | None = None

    def start(self, epoch: int, skip: int = 0) -> int:
        """Make the next iteration that of `epoch`, without its first `skip` batches.

        Returns:
            The number of batches left out: less than `skip` if the epoch is shorter.
        """
        self._epoch = epoch
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)
        self._started = self._numbered()
        return sum(1 for _ in islice(self._started, skip))

    def __iter__(self) -> Iterator[list[ReplayIndex]]:
        # A generator: torch asks for an iterator twice and uses the second; what was started must wait for the first batch.
        started, self._started = self._started, None
        yield from self._numbered() if started is None else started

    def __len__(self) -> int:
        return len(self.inner)

    def _numbered(self) -> Iterator[list[ReplayIndex]]:
        rank, world_size = get_dist_info()
        epoch, count = self._epoch, 0
        for batch in self.inner:
            yield [ReplayIndex(index, (epoch, (count + i) * world_size + rank)) for i, index in enumerate(batch)]
            count += len(batch)


def replayable(dataloader: dict, seed: int) -> dict:
    """The config of a data loader that yields the same data as `dataloader`, and can be started anywhere.

    Raises:
        TypeError: if `dataloader` is not a config (a built loader cannot be changed).
    """
    if not isinstance(dataloader, dict):
        raise TypeError(f"train_dataloader: expected a config dict, got {type(dataloader).__name__}")
    cfg = dict(dataloader)
    inner = cfg.pop("batch_sampler", None)
    if inner is not None:
        cfg.setdefault("batch_size", inner.get("batch_size"))
    if isinstance(cfg["sampler"], dict):
        cfg["sampler"] = {"seed": seed, **cfg["sampler"]}
    cfg["dataset"] = dict(type=ReplayDataset, dataset=cfg["dataset"], seed=seed)
    cfg["batch_sampler"] = dict(type=ReplayBatchSampler, inner=inner, drop_last=cfg.pop("drop_last", False))
    return cfg


class BatchStream:
    """Endless batches of a `replayable` loader: epoch after epoch, from any iteration."""

    def __init__(self, dataloader: DataLoader) -> None:
        self.dataloader = dataloader
        self._epoch = 0
        self._iterator: Iterator | None = None

    def seek(self, iteration: int) -> None:
        """Make the next batch the one of `iteration` (counted from 0)."""
        sampler, left, self._epoch = self.dataloader.batch_sampler, iteration, 0
        while (skipped := sampler.start(self._epoch, left)) < left:
            if skipped == 0:
                raise ValueError("train_dataloader: the data set has too few samples for one batch")
            left -= skipped
            self._epoch += 1
        self._iterator = None

    def __next__(self) -> Any:
        if self._iterator is None:
            self._iterator = iter(self.dataloader)
        try:
            return next(self._iterator)
        except StopIteration:
            self._epoch += 1
            self.dataloader.batch_sampler.start(self._epoch)
            self._iterator = iter(self.dataloader)
        try:
            return next(self._iterator)
        except StopIteration:
            raise ValueError("train_dataloader: the data set has too few samples for one batch") from None
