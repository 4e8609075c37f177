"""Data that can be replayed: one seed per sample, index streams that start anywhere."""

import random
from itertools import islice

import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

import linescan.engine.testing  # noqa: F401  registers ToySamples
from linescan.engine.replay import BatchStream, ReplayBatchSampler, ReplayDataset, ReplayIndex, replayable, seeded


def loader(workers=0, batch_size=4, sampler="InfiniteSampler", seed=3, **kwargs):
    cfg = dict(
        batch_size=batch_size, num_workers=workers, sampler=dict(type=sampler, shuffle=True), dataset=dict(type="ToySamples"), **kwargs
    )
    return Runner.build_dataloader(replayable(cfg, seed), seed=seed)


def take(dataloader, start, count):
    stream = BatchStream(dataloader)
    stream.seek(start)
    return [torch.stack(next(stream)["x"]) for _ in range(count)]


def test_seeded_is_reproducible_and_leaves_no_trace():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    plain = [draw(), draw()]
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    first = draw()
    with seeded(5, 0, 1):
        inside = draw()
    assert [first, draw()] == plain
    with seeded(5, 0, 1):
        assert draw() == inside
    with seeded(5, 1, 0):
        assert draw() != inside


@pytest.mark.parametrize("sampler", ["InfiniteSampler", "DefaultSampler"])
def test_batches_do_not_depend_on_workers_or_on_where_the_stream_starts(sampler):
    whole = take(loader(sampler=sampler), 0, 14)
    torch.rand(7), np.random.rand(7)
    for workers, start in ((0, 6), (2, 0), (2, 7), (1, 12)):
        got = take(loader(workers, sampler=sampler), start, 14 - start)
        assert all(torch.equal(a, b) for a, b in zip(got, whole[start:], strict=True)), (workers, start)


def test_the_seed_and_the_epoch_change_the_augmentation():
    assert not torch.equal(take(loader(seed=3), 0, 1)[0], take(loader(seed=4), 0, 1)[0])
    data = ReplayDataset(dict(type="ToySamples"), seed=0)
    assert not torch.equal(data[ReplayIndex(2, (0, 5))]["x"], data[ReplayIndex(2, (1, 5))]["x"])
    assert torch.equal(data[ReplayIndex(2, (0, 5))]["x"], data[ReplayIndex(2, (0, 5))]["x"])


def test_resuming_reads_no_skipped_sample():
    class Counting(torch.utils.data.Dataset):
        read = 0

        def __len__(self):
            return 1000

        def __getitem__(self, index):
            Counting.read += 1
            return dict(x=torch.tensor([float(index)]))

    data = ReplayDataset(Counting(), seed=0)
    stream = BatchStream(DataLoader(data, batch_sampler=ReplayBatchSampler(SequentialSampler(data), 4)))
    stream.seek(990)  # the fourth pass, at its batch 240
    assert next(stream)["x"][:, 0].tolist() == [960.0, 961.0, 962.0, 963.0]
    assert Counting.read == 4


def test_drop_last_and_an_inner_batch_sampler_are_kept():
    sampler = ReplayBatchSampler(SequentialSampler(range(10)), 4, drop_last=True)
    assert len(sampler) == 2 and [list(batch) for batch in sampler] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    inner = dict(type=BatchSampler, drop_last=False)
    assert len(ReplayBatchSampler(SequentialSampler(range(10)), 4, inner=inner)) == 3


def test_start_reports_a_short_epoch():
    sampler = ReplayBatchSampler(SequentialSampler(range(10)), 4)
    assert sampler.start(0, skip=2) == 2
    assert [list(batch) for batch in sampler] == [[8, 9]]
    assert sampler.start(1, skip=9) == 3
    assert list(sampler) == []
    assert [index.key for index in next(iter(sampler))] == [(1, 0), (1, 1), (1, 2), (1, 3)]


def test_bad_input():
    with pytest.raises(TypeError, match="train_dataloader: expected a config dict, got DataLoader"):
        replayable(DataLoader([1]), 0)
    empty = DataLoader(ReplayDataset([1, 2], 0), batch_sampler=ReplayBatchSampler(SequentialSampler([1, 2]), 4, drop_last=True))
    with pytest.raises(ValueError, match="too few samples for one batch"):
        next(BatchStream(empty))
    with pytest.raises(ValueError, match="too few samples for one batch"):
        BatchStream(empty).seek(1)

    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(TypeError, match="expected a map-style dataset, got the iterable Endless"):
        ReplayDataset(Endless(), 0)


def test_other_attributes_are_those_of_the_dataset():
    data = ReplayDataset(dict(type="ToySamples", length=5), seed=0)
    assert len(data) == 5 and data.metainfo["classes"] == ("a", "b")
    assert list(islice((int(i) for i in next(iter(ReplayBatchSampler(SequentialSampler(data), 2)))), 2)) == [0, 1]
