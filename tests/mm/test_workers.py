"""A data worker that dies: the sample that it was at is named."""

from __future__ import annotations

import copy
import os
import signal

import pytest
import torch
from torch.utils.data import DataLoader

from raggedbev.mm.workers import WorkerNotes, name_dead_workers


class Frames(torch.utils.data.Dataset):
    """Loading frame 5 kills the process, as the kernel does where memory runs out."""

    def __init__(self) -> None:
        self.worker_notes = WorkerNotes()
        self.deadly = 5

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        self.worker_notes.take(index)
        if index == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return index

    def describe(self, index: int) -> str:
        return f"frame {index}"


@pytest.mark.parametrize("workers", [1, 2])
def test_dead_worker(workers):
    dataset = Frames()
    message = r"process \d+\) while it was loading frame 5: .*--resume"
    with pytest.raises(ChildProcessError, match=message) as caught, name_dead_workers(dataset):
        list(DataLoader(dataset, batch_size=2, num_workers=workers))
    assert isinstance(caught.value.__cause__, RuntimeError)
    dataset.deadly = None
    with name_dead_workers(dataset):
        assert len(list(DataLoader(dataset, batch_size=2, num_workers=workers))) == 4


def test_other_errors_stay():
    with pytest.raises(RuntimeError, match=r"^out of luck$"), name_dead_workers(Frames()):
        raise RuntimeError("out of luck")
    message = "DataLoader worker (pid(s) 1, 2) exited unexpectedly"
    with pytest.raises(RuntimeError, match="exited unexpectedly"), name_dead_workers([1, 2]):
        raise RuntimeError(message)
    with pytest.raises(ChildProcessError, match=r"process 1, 2.*loading nothing"), name_dead_workers(Frames()):
        raise RuntimeError(message)


def test_copies_of_the_notes_are_empty():
    notes = WorkerNotes()
    notes._rows[0] = torch.tensor([7, 3])
    notes.take(1)  # in no worker
    assert notes.index_of(7) == 3 and notes.index_of(8) is None
    assert copy.deepcopy(notes).index_of(7) is None
