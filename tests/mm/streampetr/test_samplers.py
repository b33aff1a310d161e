"""The stream sampler deals sequences as published, starts fast and resumes anywhere."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from raggedbev.mm.streampetr.samplers import ContiguousSampler, StreamBatchSampler, StreamSampler


def make(lengths, batch_size, rank=0, world_size=1, seed=0):
    dataset = SimpleNamespace(flag=np.repeat(np.arange(len(lengths)), lengths))
    return StreamBatchSampler(StreamSampler(dataset, seed=seed, rank=rank, world_size=world_size), batch_size)


def published_batches(lengths, batch_size, rank, world_size, seed, count):
    """The definition, written down plainly: each slot reads the whole stream of sequences."""
    starts = np.cumsum([0, *lengths])

    def stream():
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield from torch.randperm(len(lengths), generator=generator).tolist()

    def frames(slot):
        for sequence in itertools.islice(stream(), slot, None, world_size * batch_size):
            yield from range(starts[sequence], starts[sequence + 1])

    slots = [frames(rank * batch_size + b) for b in range(batch_size)]
    return [[next(slot) for slot in slots] for _ in range(count)]


CASES = [
    ([3], 1, 1),
    ([1, 1], 2, 1),
    ([4, 2, 7, 1, 3], 2, 1),
    ([4, 2, 7, 1, 3], 1, 3),
    ([20, 21, 19, 40, 1, 1, 5], 2, 3),
    ([5] * 16, 4, 4),
]


@pytest.mark.parametrize(("lengths", "batch_size", "world_size"), CASES)
def test_batches_are_the_published_ones(lengths, batch_size, world_size):
    for rank in range(world_size):
        sampler = make(lengths, batch_size, rank, world_size, seed=7)
        expected = published_batches(lengths, batch_size, rank, world_size, 7, 100)
        assert list(itertools.islice(sampler, 100)) == expected
        # A second iterator starts anew.
        assert list(itertools.islice(sampler, 10)) == expected[:10]


@pytest.mark.parametrize(("lengths", "batch_size", "world_size"), CASES)
def test_fast_forward(lengths, batch_size, world_size):
    sampler = make(lengths, batch_size, world_size - 1, world_size)
    batches = list(itertools.islice(sampler, 90))
    for start in (0, 1, 2, 3, 19, 20, 21, 57):
        sampler.fast_forward(start)
        assert list(itertools.islice(sampler, 30)) == batches[start : start + 30]
    with pytest.raises(ValueError, match="negative"):
        sampler.fast_forward(-1)


def test_epoch_covers_every_frame():
    sampler = make([4] * 12, 2, 0, 1)
    seen = list(itertools.chain.from_iterable(itertools.islice(sampler, len(sampler))))
    assert sorted(seen) == list(range(48))


def test_seeds_differ():
    first, second = (list(itertools.islice(make([3] * 20, 2, seed=seed), 20)) for seed in (0, 1))
    assert first != second


def test_slots_own_their_stream_positions_at_scale():
    """Slot s of S takes positions s, s + S, s + 2 S, ... of the stream: after a jump, too, and across permutations."""
    length, num_sequences, world_size, batch_size = 20, 50_000, 1024, 8
    slots, done = world_size * batch_size, 1_000
    dataset = SimpleNamespace(flag=np.arange(length * num_sequences) // length)
    generator = torch.Generator().manual_seed(0)
    num_permutations = slots * (done + 3) // num_sequences + 1
    stream = np.concatenate(
        [torch.randperm(num_sequences, generator=generator).numpy() for _ in range(num_permutations)]
    )
    for rank in (0, 511, 1023):
        slot = rank * batch_size + np.arange(batch_size)
        sampler = StreamBatchSampler(StreamSampler(dataset, seed=0, rank=rank, world_size=world_size), batch_size)
        for first in (0, done):  # sequences that every slot has behind it
            sampler.fast_forward(first * length)
            batches = np.array(list(itertools.islice(sampler, 3 * length)))
            owned = stream[slot + slots * np.arange(first, first + 3)[:, None]]  # [3, batch_size]
            expected = owned[:, None] * length + np.arange(length)[:, None]  # [3, length, batch_size]
            np.testing.assert_array_equal(batches, expected.reshape(-1, batch_size))


@pytest.mark.parametrize(("groups", "batch_size", "world_size"), [(3, 2, 2), (0, 1, 1), (7, 8, 1)])
def test_too_few_sequences(groups, batch_size, world_size):
    with pytest.raises(ValueError, match=rf"{groups} sequences cannot fill {batch_size * world_size} batch slots"):
        make([2] * groups, batch_size, 0, world_size)


def test_wrong_partners():
    with pytest.raises(TypeError, match="needs a dataset with sequences"):
        StreamSampler([1, 2, 3])
    with pytest.raises(TypeError, match=r"needs sampler=dict\(type='StreamSampler'\)"):
        StreamBatchSampler(torch.utils.data.SequentialSampler([1]), 1)
    sampler = StreamSampler(SimpleNamespace(flag=np.zeros(3, int)), seed=0)
    with pytest.raises(TypeError, match="StreamBatchSampler"):
        iter(sampler)


def test_drawn_seed_is_used():
    sampler = StreamSampler(SimpleNamespace(flag=np.arange(4)))
    assert isinstance(sampler.seed, int)


@pytest.mark.parametrize(
    ("frames", "world_size", "expected"),
    [
        (5, 1, [[0, 1, 2, 3, 4]]),
        (6, 2, [[0, 1, 2], [3, 4, 5]]),
        (7, 3, [[0, 1, 2], [3, 4, 5], [6, 0, 1]]),
        (2, 3, [[0], [1], [0]]),
        (5, 4, [[0, 1], [2, 3], [4, 0], [1, 2]]),
        (0, 2, [[], []]),
    ],
)
def test_contiguous_shards(frames, world_size, expected):
    samplers = [ContiguousSampler(range(frames), 3, rank, world_size) for rank in range(world_size)]
    assert [list(sampler) for sampler in samplers] == expected
    assert [len(sampler) for sampler in samplers] == [len(shard) for shard in expected]
