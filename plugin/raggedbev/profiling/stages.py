"""Stage timers: named, nestable spans of work in, milliseconds per stage path out.

Library code marks its parts with ``with stage("cost"):``. As long as no :class:`StageTimer` is running that costs one
comparison and nothing is recorded. A running timer takes the host clock on the CPU, and pairs of device events on CUDA,
which are read only after the last stage has ended, so that measuring adds no synchronisation between stages.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

import torch

StagePath = tuple[str, ...]
Moment = float | torch.cuda.Event
"""Seconds of the host clock, or an event recorded on a CUDA stream."""


_timer: StageTimer | None = None


def stage(name: str) -> AbstractContextManager[None]:
    """Marks a span of work as one stage; stages nest, and a stage that is entered again adds to its own time.

    Args:
        name: Row of the stage table, for example ``"StreamPETR Head"`` or ``"cost"``.

    Returns:
        A context manager. It does nothing unless a :class:`StageTimer` runs in this thread, and nothing inside
        ``torch.compile`` and CUDA graph capture, where a span of host code has no time of its own.
    """
    if torch.compiler.is_compiling() or _timer is None:  # in this order: compiled code does not depend on the timer
        return nullcontext()
    return _timer.span(name)


class _Span:
    """One visit to a stage under a running timer."""

    __slots__ = ("name", "start", "timer")

    def __init__(self, timer: StageTimer, name: str) -> None:
        self.timer = timer
        self.name = name

    def __enter__(self) -> None:
        self.timer.path += (self.name,)
        self.timer.entered.setdefault(self.timer.path)
        if self.timer.nvtx:
            torch.cuda.nvtx.range_push(self.name)
        self.start = self.timer.now()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        timer = self.timer
        timer.spans.append((timer.path, self.start, timer.now()))
        if timer.nvtx:
            torch.cuda.nvtx.range_pop()
        timer.path = timer.path[:-1]


class StageTimer:
    """Measures every :func:`stage` entered in this thread while it is active.

    Timers do not nest: one runs at a time in a process. Stages entered in other threads are not recorded.

    Args:
        device: Device whose time counts: host clock for ``"cpu"``, events on the current stream for ``"cuda"``.
        nvtx: Also pushes an NVTX range per stage, for Nsight Systems. Default: on CUDA.
        clock: Host clock in seconds, for the CPU; ``time.process_time`` leaves out what other processes take.

    Raises:
        RuntimeError: ``cuda`` is asked for and torch finds no CUDA device, or another timer is running.

    Example:
        >>> with StageTimer("cpu") as timer:
        ...     with stage("Loss"), stage("cost"):
        ...         pass
        >>> sorted(timer.milliseconds())
        [('Loss',), ('Loss', 'cost')]
    """

    def __init__(
        self,
        device: str | torch.device = "cpu",
        nvtx: bool | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.device = torch.device(device)
        self.on_cuda = self.device.type == "cuda"
        if self.on_cuda and not torch.cuda.is_available():
            raise RuntimeError(f"stage timers for device {device} need a CUDA device, and torch finds none")
        self.nvtx = self.on_cuda if nvtx is None else nvtx
        self.clock = clock
        self.path: StagePath = ()
        self.entered: dict[StagePath, None] = {}
        self.spans: list[tuple[StagePath, Moment, Moment]] = []
        self._thread = 0

    def __enter__(self) -> StageTimer:
        global _timer
        if _timer is not None:
            raise RuntimeError("a StageTimer is already running in this process; end it before another starts")
        self._thread = threading.get_ident()
        _timer = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _timer
        _timer = None

    def span(self, name: str) -> AbstractContextManager[None]:
        """The context manager of one visit to stage ``name``."""
        if threading.get_ident() != self._thread:
            return nullcontext()
        if self.on_cuda and torch.cuda.is_current_stream_capturing():
            return nullcontext()
        return _Span(self, name)

    def now(self) -> Moment:
        """The present moment: seconds of the host clock, or an event recorded on the current CUDA stream."""
        if not self.on_cuda:
            return self.clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self) -> dict[StagePath, float]:
        """Time per stage path, in the order of entering, summed over visits. Waits for the device once.

        Returns:
            Milliseconds by path; a path is the tuple of the names of the stages around and of the stage itself.
        """
        if self.on_cuda and self.spans:
            torch.cuda.synchronize(self.device)
        total: dict[StagePath, float] = dict.fromkeys(self.entered, 0.0)
        for path, start, end in self.spans:
            total[path] += _milliseconds_between(start, end)
        return total

    def reset(self) -> None:
        """Forgets what was measured so far, so that one timer can serve many repeats."""
        self.spans.clear()
        self.entered.clear()


def _milliseconds_between(start: Moment, end: Moment) -> float:
    if isinstance(start, float) and isinstance(end, float):
        return 1e3 * (end - start)
    if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        return start.elapsed_time(end)
    raise TypeError(f"moments must be of one clock, got {start!r} and {end!r}")
