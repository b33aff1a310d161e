"""Heads with their losses. Importing this package registers the per-sample names beside the batched ones;
`raggedbev.mm.streampetr` does."""

from mmdet3d.registry import TASK_UTILS

from raggedbev.mm.assigners import PerSampleHungarianAssigner2D, PerSampleHungarianAssigner3D
from raggedbev.mm.heads.center_head import BatchedCenterHead, BatchedCenterTargets
from raggedbev.mm.heads.centernet_head import BatchedCenterNetHead
from raggedbev.mm.heads.focal_head import BatchedFocalHead, PerSampleFocalHead
from raggedbev.mm.heads.set_prediction import (
    BatchedConditionalDETRHead,
    BatchedDABDETRHead,
    BatchedDeformableDETRHead,
    BatchedDETRHead,
    BatchedDINOHead,
    BatchedSetPredictionMixin,
)
from raggedbev.mm.heads.set_prediction3d import BatchedSetPrediction3DMixin, QuerySet, batched_head
from raggedbev.mm.heads.streampetr_head import BatchedStreamPETRHead, PerSampleStreamPETRHead
from raggedbev.mm.heads.transfusion import BatchedTransFusionLoss

__all__ = [
    "BatchedCenterHead",
    "BatchedCenterNetHead",
    "BatchedCenterTargets",
    "BatchedConditionalDETRHead",
    "BatchedDABDETRHead",
    "BatchedDETRHead",
    "BatchedDINOHead",
    "BatchedDeformableDETRHead",
    "BatchedFocalHead",
    "BatchedSetPrediction3DMixin",
    "BatchedSetPredictionMixin",
    "BatchedStreamPETRHead",
    "BatchedTransFusionLoss",
    "PerSampleFocalHead",
    "PerSampleStreamPETRHead",
    "QuerySet",
    "batched_head",
]

TASK_UTILS.register_module(module=PerSampleHungarianAssigner2D)
TASK_UTILS.register_module(module=PerSampleHungarianAssigner3D)
