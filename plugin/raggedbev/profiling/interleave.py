"""Interleaved measuring: competing versions of one piece of work in, their stage times side by side out.

Every repeat runs each version once, so that a slow moment of the machine falls on all of them, and each repeat starts
with another version. Host syncs and peak memory are taken in the warm-up, outside the timed repeats.
"""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable, Mapping

import torch

from raggedbev.profiling.memory import peak_memory
from raggedbev.profiling.report import Arm, rows_of
from raggedbev.profiling.stages import StageTimer
from raggedbev.profiling.syncs import HostSyncCounter

COUNTING = 6.0
"""How much longer than a timed run it takes to count syncs and memory, roughly."""


def measure_arms(
    work: Mapping[str, Callable[[], object]],
    *,
    device: str | torch.device = "cpu",
    repeats: int = 5,
    progress: Progress | None = None,
    weight: float = 1.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Arm]:
    """Runs every version once to warm up and count, then ``repeats`` times in turn under a stage timer.

    Args:
        work: Version name to a function that does the work once; it marks its parts with
            :func:`raggedbev.profiling.stage`. One with a method ``reset`` drops there what earlier runs left, and
            only the work's own memory is counted.
        device: Where the work runs.
        repeats: Timed runs of each version, at least 1.
        progress: Told of every run; default: none.
        weight: How long a run takes, in the progress's units.
        clock: Host clock in seconds, for the CPU.

    Returns:
        What was measured, by version name.

    Raises:
        ValueError: No work, or fewer than one repeat.
    """
    if not work or repeats < 1:
        raise ValueError(f"measuring needs work and at least 1 repeat, got {list(work)} and {repeats}")
    progress = progress or Progress(0, silent=True)
    arms = {name: Arm() for name in work}
    for name, run in work.items():
        progress.step(f"counting syncs and memory of {name}", COUNTING * weight)
        _count(arms[name], run, torch.device(device))
    names = list(work)
    for repeat in range(repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            progress.step(f"repeat {repeat + 1}/{repeats} of {name}", weight)
            gc.collect()
            with StageTimer(device, clock=clock) as timer:
                work[name]()
            arms[name].repeats.append(rows_of(timer.milliseconds()))
    progress.done()
    return arms


def _count(arm: Arm, run: Callable[[], object], device: torch.device) -> None:
    """The warm-up runs: first use of every kernel; then the count; then peak memory, which needs a run unmodified."""
    if device.type == "cuda":
        run()
    with HostSyncCounter(device) as syncs:
        run()
    arm.host_syncs = syncs.count
    getattr(run, "reset", lambda: None)()
    gc.collect()
    arm.peak_memory_mib = round(peak_memory(run, device) / 2**20, 3)


def calls_to_last(spend: Callable[[int], float], shortest: float, most: int = 10_000) -> int:
    """How many calls of a short piece of work one measurement needs to be worth reading a clock for.

    Args:
        spend: Makes so many calls and returns the seconds that they took.
        shortest: Seconds that a measurement lasts at least.
        most: Calls in one measurement.

    Returns:
        1 to ``most``. A run that something interrupted does not decide: each is made twice, and the faster one counts.
    """
    calls = 1
    while calls < most and (spent := min(spend(calls), spend(calls))) < shortest:
        wanted = math.ceil(1.2 * calls * shortest / max(spent, 1e-9))
        calls = min(max(calls + 1, min(10 * calls, wanted)), most)
    return calls


class Progress:
    """Progress lines with the time left: one changing line on a terminal, else a line every few seconds.

    Args:
        total: Weight of all steps.
        silent: Prints nothing.
        every: Seconds between lines where the output is no terminal.
    """

    def __init__(self, total: float, silent: bool = False, every: float = 5.0) -> None:
        self.total = total
        self.silent = silent
        self.every = every
        self.begun = 0
        self.finished = 0.0
        self.current = 0.0
        self.started = time.monotonic()
        self.printed = -float("inf")
        self.width = 0

    def step(self, what: str, weight: float = 1.0) -> None:
        """Announces the step that starts now, and how long it takes in units of the total."""
        now = time.monotonic()
        self.begun += 1
        self.finished += self.current
        self.current = weight
        is_terminal = sys.stderr.isatty()
        if self.silent or (not is_terminal and now - self.printed < self.every):
            return
        left = ""
        if self.begun > 2:
            left = f", {(now - self.started) / self.finished * max(self.total - self.finished, 0.0):.0f} s left"
        line = f"[{100 * self.finished / self.total:.0f} %] {what}{left}"
        padded = line.ljust(self.width)
        print(f"\r{padded}" if is_terminal else line, end="" if is_terminal else "\n", file=sys.stderr, flush=True)
        self.printed, self.width = now, len(line)

    def clear(self) -> None:
        """Wipes the changing line, so that something else can be printed."""
        if not self.silent and sys.stderr.isatty():
            print(f"\r{' ' * self.width}\r", end="", file=sys.stderr, flush=True)
            self.width = 0

    def done(self) -> None:
        """Ends the changing line."""
        self.clear()
