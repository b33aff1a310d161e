"""Which frame comes next, for models with memory.

In: a dataset whose `flag` numbers its sequences (equal numbers are consecutive). Out: for training, batches whose b-th
entry walks through one sequence after another; for test, each rank's contiguous share of the frames.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from mmdet3d.registry import DATA_SAMPLERS
from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import Sampler


@DATA_SAMPLERS.register_module()
class StreamSampler(Sampler):
    """The sequences of a dataset and the seed of their order; `StreamBatchSampler` deals them out.

    Use it as `sampler=dict(type='StreamSampler'), batch_sampler=dict(type='StreamBatchSampler')`.

    Args:
        dataset: dataset with an integer array `flag` [frames].
        seed: seed of the order, the same on all ranks; drawn and shared if None.
        rank: this process, from the process group if None.
        world_size: number of processes, from the process group if None.

    Raises:
        TypeError: the dataset has no `flag`.
    """

    def __init__(
        self, dataset, seed: int | None = None, rank: int | None = None, world_size: int | None = None
    ) -> None:
        flag = getattr(dataset, "flag", None)
        if flag is None:
            raise TypeError(
                f"StreamSampler needs a dataset with sequences (StreamNuScenesDataset), got {type(dataset).__name__}"
            )
        flag = np.asarray(flag)
        group_rank, group_size = get_dist_info()
        self.rank = group_rank if rank is None else rank
        self.world_size = group_size if world_size is None else world_size
        self.seed = sync_random_seed() if seed is None else seed
        self.num_frames = len(flag)
        self.starts = np.flatnonzero(np.r_[True, flag[1:] != flag[:-1]][: len(flag)])
        self.lengths = np.diff(np.r_[self.starts, len(flag)])

    def __len__(self) -> int:
        """Frames per rank and pass over the dataset."""
        return math.ceil(self.num_frames / self.world_size)

    def __iter__(self) -> Iterator[int]:
        raise TypeError("StreamSampler needs batch_sampler=dict(type='StreamBatchSampler') in the same dataloader")


class _SequenceStream:
    """One rank's share of an endless stream of shuffled sequences.

    The stream is one permutation of all sequences after another, from one generator. Slot s of S in all takes the
    stream's positions s, s + S, s + 2 S, ... Permutations are made when the first of this rank's slots needs one.
    """

    def __init__(self, sampler: StreamSampler, batch_size: int) -> None:
        self.lengths = sampler.lengths
        self.total_slots = sampler.world_size * batch_size
        self.slots = sampler.rank * batch_size + np.arange(batch_size)
        self.generator = torch.Generator().manual_seed(sampler.seed)
        self.position = 0  # of the next permutation in the stream
        self.dealt = [np.zeros(0, dtype=np.int64) for _ in range(batch_size)]

    def _deal_permutation(self) -> None:
        order = torch.randperm(len(self.lengths), generator=self.generator).numpy()
        for b, slot in enumerate(self.slots):
            first = (slot - self.position) % self.total_slots
            self.dealt[b] = np.concatenate([self.dealt[b], order[first :: self.total_slots]])
        self.position += len(order)

    def next_sequence(self, b: int) -> int:
        """The next sequence of this rank's b-th slot."""
        while not len(self.dealt[b]):
            self._deal_permutation()
        sequence, self.dealt[b] = int(self.dealt[b][0]), self.dealt[b][1:]
        return sequence

    def skip_frames(self, b: int, frames: int) -> int:
        """Drop the b-th slot's sequences that end within the given frames; returns the frames left of the next."""
        while True:
            ends = self.lengths[self.dealt[b]].cumsum()
            done = int(np.searchsorted(ends, frames, side="right"))
            frames -= int(ends[done - 1]) if done else 0
            self.dealt[b] = self.dealt[b][done:]
            if len(self.dealt[b]):
                return frames
            self._deal_permutation()


@DATA_SAMPLERS.register_module()
class StreamBatchSampler(Sampler):
    """Endless batches in which entry b of rank r, slot s = r * batch_size + b, is a stream of whole sequences.

    Every batch takes the next frame of each slot's sequence; a slot that reaches the end of its sequence goes on with
    its next one. Sequences differ in length, so the slots drift apart, as published.

    Args:
        sampler: the sequences.
        batch_size: slots per rank.

    Raises:
        TypeError: the sampler is another one.
        ValueError: fewer sequences than slots of all ranks.
    """

    def __init__(self, sampler: StreamSampler, batch_size: int) -> None:
        if not isinstance(sampler, StreamSampler):
            raise TypeError(
                f"StreamBatchSampler needs sampler=dict(type='StreamSampler'), got {type(sampler).__name__}"
            )
        slots = sampler.world_size * batch_size
        if batch_size < 1 or len(sampler.lengths) < slots:
            raise ValueError(
                f"{len(sampler.lengths)} sequences cannot fill {slots} batch slots ({sampler.world_size} ranks x "
                f"batch_size {batch_size}): lower batch_size, use fewer ranks, or raise the dataset's seq_split_num"
            )
        self.sampler = sampler
        self.batch_size = batch_size
        self.start_iteration = 0

    def fast_forward(self, iterations: int) -> None:
        """Let the next iterator begin after so many batches; costs no data and no loop over batches."""
        if iterations < 0:
            raise ValueError(f"iterations must not be negative, got {iterations}")
        self.start_iteration = iterations

    def __len__(self) -> int:
        """Batches per pass over the dataset."""
        return math.ceil(self.sampler.num_frames / (self.sampler.world_size * self.batch_size))

    def __iter__(self) -> Iterator[list[int]]:
        stream = _SequenceStream(self.sampler, self.batch_size)
        starts, lengths = self.sampler.starts, self.sampler.lengths
        frames, stops = [0] * self.batch_size, [0] * self.batch_size
        for b in range(self.batch_size):
            offset = stream.skip_frames(b, self.start_iteration)
            sequence = stream.next_sequence(b)
            frames[b], stops[b] = int(starts[sequence]) + offset, int(starts[sequence] + lengths[sequence])
        while True:
            yield list(frames)
            for b in range(self.batch_size):
                frames[b] += 1
                if frames[b] == stops[b]:
                    sequence = stream.next_sequence(b)
                    frames[b], stops[b] = int(starts[sequence]), int(starts[sequence] + lengths[sequence])


@DATA_SAMPLERS.register_module()
class ContiguousSampler(Sampler):
    """Frames in order, one contiguous share of ceil(n / ranks) per rank; the last shares wrap around to be full.

    Args:
        dataset: any dataset with a length.
        seed: taken because the runner passes it to every sampler; the order is fixed.
        rank: this process, from the process group if None.
        world_size: number of processes, from the process group if None.
    """

    def __init__(
        self, dataset, seed: int | None = None, rank: int | None = None, world_size: int | None = None
    ) -> None:
        group_rank, group_size = get_dist_info()
        self.rank = group_rank if rank is None else rank
        self.world_size = group_size if world_size is None else world_size
        self.num_frames = len(dataset)
        self.num_samples = math.ceil(self.num_frames / self.world_size)

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        first = self.rank * self.num_samples
        return (index % self.num_frames for index in range(first, first + self.num_samples))
