"""Heads with their losses. Importing this package registers the per-sample names beside the batched ones;
`raggedbev.mm.streampetr` does."""

from mmdet3d.registry import TASK_UTILS

from raggedbev.mm.assigners import PerSampleHungarianAssigner2D, PerSampleHungarianAssigner3D
from raggedbev.mm.heads.focal_head import BatchedFocalHead, PerSampleFocalHead
from raggedbev.mm.heads.streampetr_head import BatchedStreamPETRHead, PerSampleStreamPETRHead

__all__ = ["BatchedFocalHead", "BatchedStreamPETRHead", "PerSampleFocalHead", "PerSampleStreamPETRHead"]

TASK_UTILS.register_module(module=PerSampleHungarianAssigner2D)
TASK_UTILS.register_module(module=PerSampleHungarianAssigner3D)
