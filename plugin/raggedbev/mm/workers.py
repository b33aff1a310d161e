"""Which sample a data worker was at when it died.

In: a dataloader, whose workers then note what they load. Out: an error that names the sample, in place of a process
number.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import os
import re
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from raggedbev.mm.packed import names_of

__all__ = ["NotingStart", "WorkerNotes", "name_dead_workers", "note_items"]

_DEAD = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)")

_PATIENCE = 2.0  # seconds; the signal of a child's death ends the wait at once

_all_notes: weakref.WeakSet[WorkerNotes] = weakref.WeakSet()


class WorkerNotes:
    """Notes of a loader's workers, in shared memory: process, and number and index of dataset and item being loaded.

    Args:
        num_workers: of the loader.
        dataset: of the loader.
    """

    def __init__(self, num_workers: int, dataset: Any) -> None:
        self.dataset = dataset
        self._rows = torch.full((num_workers, 3), -1, dtype=torch.int64).share_memory_()

    def take(self, worker: int, dataset: int = -1, index: int = -1) -> None:
        """Note that worker number `worker`, which this process is, loads an item; without one, that it loads none."""
        self._rows[worker] = torch.tensor([os.getpid(), dataset, index])

    def of(self, pid: int) -> tuple[int, int] | None:
        """Dataset and item that process `pid` was at, (-1, -1) between two items; None for a process unknown here."""
        return next(((dataset, index) for noted, dataset, index in self._rows.tolist() if noted == pid), None)


class NotingStart:
    """A loader's `worker_init_fn` that has its worker note what it loads.

    Args:
        init: called first, the `worker_init_fn` that the loader had.
        notes: where to.
    """

    def __init__(self, init: Callable[[int], None] | None, notes: WorkerNotes) -> None:
        self.init = init
        self.notes = notes

    def __call__(self, worker: int) -> None:
        if self.init is not None:
            self.init(worker)
        self.notes.take(worker)
        for number, dataset in enumerate(_innermost(get_worker_info().dataset)):
            _note_calls(dataset, functools.partial(self.notes.take, worker), number)


def note_items(loader: DataLoader) -> None:
    """Have the workers that a loader starts from now on note what they load, for `name_dead_workers`."""
    if loader.num_workers > 0 and not isinstance(loader.worker_init_fn, NotingStart):
        notes = WorkerNotes(loader.num_workers, loader.dataset)
        _all_notes.add(notes)
        loader.worker_init_fn = NotingStart(loader.worker_init_fn, notes)


@contextlib.contextmanager
def name_dead_workers() -> Iterator[None]:
    """Say which samples were being loaded where a worker of a loader that `note_items` knows dies.

    A dataset with `describe(index)` names its items so, another one of mmengine by what `get_data_info` says. torch
    raises the error of a death wherever the main process is just then, so also within code that makes another error
    of it: causes are searched, too.

    Raises:
        ChildProcessError: a worker died within the context.
    """
    try:
        yield
    except ChildProcessError:
        raise
    except Exception as error:
        cause = _wait_for_death(error) if isinstance(error, ConnectionError | EOFError) else error
        pids = next((found[1] for one in _chain(cause) if (found := _DEAD.search(str(one)))), "")
        places = [_place(int(pid)) for pid in pids.split(",") if pid.strip()]
        known = [place for place in places if place is not None]
        if not known:
            raise
        names = " and ".join(filter(None, known))
        where = f"while it was loading {names}" if names else "between two samples"
        reason = "it was killed, mostly for want of memory" + (", or crashed on that file" if names else "")
        raise ChildProcessError(
            f"a data worker died (process {pids}) {where}: {reason}; fewer workers need less memory, and --resume goes "
            "on from the last checkpoint"
        ) from cause


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what it was raised from or while handling."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _wait_for_death(error: Exception) -> Exception:
    """What torch raises when it learns of the death of the worker whose connection broke; `error` otherwise."""
    try:
        time.sleep(_PATIENCE)
    except RuntimeError as death:
        return death
    return error


def _place(pid: int) -> str | None:
    """What a process was loading, empty between two items; None for a process that took no notes."""
    for notes in _all_notes:
        noted = notes.of(pid)
        if noted is not None:
            number, index = noted
            return _describe(list(_innermost(notes.dataset))[number], index) if index >= 0 else ""
    return None


def _describe(dataset: Any, index: int) -> str:
    if hasattr(dataset, "describe"):
        return dataset.describe(index)
    names = names_of(dataset.get_data_info(index)) if hasattr(dataset, "get_data_info") else ""
    return f"sample {index} of {type(dataset).__name__}" + (f" ({names})" if names else "")


def _innermost(dataset: Any) -> Iterator[Any]:
    """The datasets that load items, behind those that choose among the items of others."""
    parts = getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]
    inner = [part for part in parts if isinstance(part, Dataset) or hasattr(part, "metainfo")]
    if not inner:
        yield dataset
    for part in inner:
        yield from _innermost(part)


def _note_calls(dataset: Any, take: Callable[..., None], number: int) -> None:
    """Have a dataset of this process take a note before an item is loaded, and take it back after."""
    kind = type(dataset)
    name = "prepare_data" if hasattr(kind, "prepare_data") else "__getitem__"
    load = getattr(kind, name, None)
    if load is None or not hasattr(dataset, "__dict__"):
        return

    @functools.wraps(load)
    def noting(self: Any, index: Any) -> Any:
        take(number, operator.index(index))
        try:
            return load(self, index)
        finally:
            take()

    dataset.__class__ = type(kind.__name__, (kind,), {name: noting, "__module__": kind.__module__})
