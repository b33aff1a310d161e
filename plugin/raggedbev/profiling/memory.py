"""Peak memory: a piece of work in, the most bytes that torch had allocated for it at any moment out."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["METHODS", "peak_memory"]

METHODS = {
    "cuda": "torch.cuda.max_memory_allocated",
    "cpu": "every allocation of torch on the CPU, added up in order",
}
"""How `peak_memory` measures, by device type."""


def peak_memory(run: Callable[[], object], device: str | torch.device = "cpu") -> int:
    """Bytes beyond those allocated before, at the moment of most.

    On the CPU a profile lists what torch's allocator gave and took back; memory of other libraries, and vectors inside
    compiled operators, are not torch's and do not count. What lived before and is freed by the work makes room on CUDA,
    and is not noticed on the CPU; drop it first.

    Args:
        run: The work, which must not be profiled already.
        device: Whose memory counts.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
    with _without_profiler_chatter(), profile:
        run()
    result: Any = profile.profiler
    events = [event for event in result.kineto_results.events() if event.name() == "[memory]"]
    in_use = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.device_type() == torch.autograd.DeviceType.CPU:
            in_use += event.nbytes()
            peak = max(peak, in_use)
    return peak


@contextmanager
def _without_profiler_chatter() -> Iterator[None]:
    """Drops the lines that torch's profiler writes at every start and stop, and about blocks that lived before.

    Other lines to the standard error come through, at the end.
    """
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as lines:
        os.dup2(lines.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            lines.seek(0)
            for line in lines:
                if not line.startswith(b"USDT:") and b"Memory block of unknown size" not in line:
                    os.write(2, line)
