"""One function over many images, in threads of this process.

In: a function that spends its time outside the interpreter (reading, decoding, resizing), and its arguments. Out: its
results in order. Random numbers are drawn before, in the calling thread: the number of threads changes no result.
"""

import functools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from torch.utils.data import get_worker_info

T = TypeVar("T")
R = TypeVar("R")


def choose_threads(wanted: int | None) -> int:
    """Threads to use: those wanted, or this process's share of the cores.

    The cores are shared by the loader's workers and, with `torchrun`, by the processes of the machine.

    Raises:
        ValueError: fewer than one is wanted.
    """
    if wanted is not None:
        if wanted < 1:
            raise ValueError(f"num_threads must be at least 1, got {wanted}")
        return wanted
    worker = get_worker_info()
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) * (worker.num_workers if worker else 1)
    return max(1, _available_cores() // sharing)


def map_in_threads(function: Callable[[T], R], items: Iterable[T], threads: int) -> list[R]:
    """Results of the function for all items, in order; the error of the first item that has one.

    Args:
        function: what to do with an item.
        items: its arguments.
        threads: at most so many at once; with 1 everything runs in the calling thread.
    """
    items = list(items)
    if min(threads, len(items)) <= 1:
        return [function(item) for item in items]
    return list(_pool(os.getpid(), threads).map(function, items))


def start_in_thread(function: Callable[[T], R], item: T, threads: int) -> "Future[R]":
    """Begin with one item in the background; what is begun first is done first."""
    return _pool(os.getpid(), threads).submit(function, item)


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """The threads of a process; a forked worker has none of its parent's and makes its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix="raggedbev-images")


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
