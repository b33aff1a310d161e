"""Measuring: stage timers, host-sync counts, and dumps of tensors that can be compared later."""

from raggedbev.profiling.stages import StageTimer, stage

__all__ = ["StageTimer", "stage"]
