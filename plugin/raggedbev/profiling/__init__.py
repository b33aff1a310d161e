"""Measuring: stage timers, host-sync counts, interleaved benchmarks, tensor dumps that can be compared."""

from raggedbev.profiling.dump import Difference, compare_dumps, format_differences, load_dump, save_dump
from raggedbev.profiling.stages import StageTimer, stage
from raggedbev.profiling.syncs import HostSyncCounter

__all__ = [
    "Difference",
    "HostSyncCounter",
    "StageTimer",
    "compare_dumps",
    "format_differences",
    "load_dump",
    "save_dump",
    "stage",
]
