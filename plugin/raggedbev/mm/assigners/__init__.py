"""Hungarian assigners: mm-style configs around the matchers of `raggedbev.matching`.

`assign` takes one sample and returns mmdet's `AssignResult`; the batched assigners also have `assign_batch`, which
takes all layers and samples (or images) and returns a `LinearAssignment`.

- `query3d`: 3D boxes of queries (streaming PETR family, PETR, DETR3D, BEVFormer), and FocalHead's 2D boxes.
- `detection`: the list of costs of mmdet (DETR, Deformable DETR, DINO, Sparse R-CNN, MaskFormer and others).
- `transfusion`: decoded LiDAR boxes (TransFusion, BEVFusion).
"""

from raggedbev.mm.assigners.detection import BatchedHungarianAssigner
from raggedbev.mm.assigners.query3d import (
    BatchedHungarianAssigner2D,
    BatchedHungarianAssigner3D,
    PerSampleHungarianAssigner2D,
    PerSampleHungarianAssigner3D,
)
from raggedbev.mm.assigners.transfusion import BatchedTransFusionAssigner3D

__all__ = [
    "BatchedHungarianAssigner",
    "BatchedHungarianAssigner2D",
    "BatchedHungarianAssigner3D",
    "BatchedTransFusionAssigner3D",
    "PerSampleHungarianAssigner2D",
    "PerSampleHungarianAssigner3D",
]
