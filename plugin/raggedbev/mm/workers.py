"""Which sample a data worker was at when it died.

In: a dataset whose workers note what they load. Out: an error that names the sample, in place of a process number.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import get_worker_info

__all__ = ["WorkerNotes", "name_dead_workers"]

_DEAD = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)")

_PATIENCE = 2.0  # seconds; the signal of a child's death ends the wait at once


class WorkerNotes:
    """Notes of a loader's workers, in shared memory: process number and index of the sample being loaded.

    Copies of the notes are empty. A worker beyond the first 256 takes no notes.
    """

    def __init__(self) -> None:
        self._rows = torch.full((256, 2), -1, dtype=torch.int64).share_memory_()

    def __deepcopy__(self, _memo: dict) -> WorkerNotes:
        return WorkerNotes()

    def take(self, index: int) -> None:
        """Note that this process loads sample `index`; without effect outside of workers."""
        worker = get_worker_info()
        if worker is not None and worker.id < len(self._rows):
            self._rows[worker.id] = torch.tensor([os.getpid(), index])

    def index_of(self, pid: int) -> int | None:
        """The sample that process `pid` was at, None where it took no note."""
        return next((index for noted, index in self._rows.tolist() if noted == pid), None)


@contextlib.contextmanager
def name_dead_workers(dataset: Any) -> Iterator[None]:
    """Say which samples were being loaded where a worker of the dataloader dies.

    Args:
        dataset: with `worker_notes` and `describe(index)`; others give torch's own error.

    Raises:
        ChildProcessError: a worker died within the context.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        cause = error if isinstance(error, RuntimeError) else _wait_for_death(error)
        found = _DEAD.search(str(cause))
        notes = getattr(dataset, "worker_notes", None)
        if found is None or notes is None:
            raise
        indices = [notes.index_of(int(pid)) for pid in found[1].split(",")]
        names = [dataset.describe(index) for index in indices if index is not None]
        where = " and ".join(names) if names else "nothing"
        raise ChildProcessError(
            f"a data worker died (process {found[1]}) while it was loading {where}: it was killed, mostly for want of "
            "memory, or crashed on that file; fewer workers need less memory, and --resume goes on from the last "
            "checkpoint"
        ) from cause


def _wait_for_death(error: Exception) -> Exception:
    """What torch raises when it learns of the death of the worker whose connection broke; `error` otherwise."""
    try:
        time.sleep(_PATIENCE)
    except RuntimeError as death:
        return death
    return error
