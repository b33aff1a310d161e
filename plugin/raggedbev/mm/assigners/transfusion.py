"""The assigner of TransFusion and BEVFusion: decoded LiDAR boxes, matched by class, centre and 3D IoU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmdet.models.task_modules.assigners import AssignResult, BaseAssigner
from mmdet3d.registry import TASK_UTILS
from torch import Tensor

from raggedbev.matching import OverlapAssignment
from raggedbev.mm.assigners.result import assign_result
from raggedbev.mm.convert import transfusion_matcher
from raggedbev.mm.registry import TASK_UTILS as OWN_TASK_UTILS
from raggedbev.ragged.batch import RaggedBatch

__all__ = ["BatchedTransFusionAssigner3D"]

_CLASS = {"type": "ClassificationCost", "weight": 1.0}
_CENTER = {"type": "BBoxBEVL1Cost", "weight": 1.0}
_IOU = {"type": "IoU3DCost", "weight": 1.0}
_CALCULATOR = {"type": "BboxOverlaps3D", "coordinate": "lidar"}


@OWN_TASK_UTILS.register_module(name="HungarianAssigner3D")
@TASK_UTILS.register_module()
class BatchedTransFusionAssigner3D(BaseAssigner):
    """In place of BEVFusion's `HungarianAssigner3D`.

    Boxes are tensors of mmdet3d's LiDAR boxes: x, y, z of the bottom centre, length, width, height (m), yaw (rad); what
    follows (velocity) has no influence.

    Its name in the scope `raggedbev.mm` is 'HungarianAssigner3D' as well, see `raggedbev.mm.registry`.

    Args:
        cls_cost: 'FocalLossCost' (weight, alpha, gamma, eps) or 'ClassificationCost' (weight).
        reg_cost: 'BBoxBEVL1Cost' (weight).
        iou_cost: 'IoU3DCost' (weight).
        iou_calculator: 'BboxOverlaps3D' with coordinate 'lidar', the only one.
        solver: see `raggedbev.matching.linear_assignment`.

    Raises:
        ValueError: a type, key or value that is not implemented; it is named.
    """

    def __init__(
        self,
        cls_cost: Mapping[str, Any] = _CLASS,
        reg_cost: Mapping[str, Any] = _CENTER,
        iou_cost: Mapping[str, Any] = _IOU,
        iou_calculator: Mapping[str, Any] = _CALCULATOR,
        solver: str = "auto",
    ) -> None:
        self.matcher = transfusion_matcher(cls_cost, reg_cost, iou_cost, iou_calculator, solver)

    def assign(
        self, bboxes: Tensor, gt_bboxes: Tensor, gt_labels: Tensor, cls_pred: Tensor, train_cfg: Mapping[str, Any]
    ) -> AssignResult:
        """Assign one sample.

        Args:
            bboxes: [P, 7 or more] decoded boxes.
            gt_bboxes: [G, 7 or more] ground truth.
            gt_labels: [G] integer labels.
            cls_pred: [1, C, P] logits.
            train_cfg: the head's, with `point_cloud_range`: lowest x, y, z, then highest (m).

        Returns:
            mmdet's result; `max_overlaps` [P] is the 3D IoU of each prediction with its object, 0 for background, also
            for a sample without objects.

        Raises:
            ValueError: the costs contain NaN or -inf, or the point cloud range is wrong.
        """
        if cls_pred.dim() != 3 or cls_pred.shape[0] != 1:
            raise ValueError(f"cls_pred must be [1, C, P], logits of one sample, got {tuple(cls_pred.shape)}")
        gt_of_pred, overlaps = self.matcher.match(
            cls_pred[0].T, bboxes, gt_bboxes, gt_labels, train_cfg["point_cloud_range"]
        )
        return assign_result(gt_of_pred, gt_labels, overlaps)

    def assign_batch(
        self,
        cls_logits: Tensor,
        boxes: Tensor,
        gt_boxes: RaggedBatch,
        gt_labels: RaggedBatch,
        train_cfg: Mapping[str, Any],
    ) -> OverlapAssignment:
        """Assign all layers and samples.

        Args:
            cls_logits: [..., B, P, C] logits.
            boxes: [..., B, P, 7 or more] decoded boxes.
            gt_boxes: [B, G, 7 or more] ground truth.
            gt_labels: [B, G] int64.
            train_cfg: as in `assign`.

        Returns:
            The assignment [..., B] with `max_overlaps` [..., B, P]; a problem whose costs contain NaN or -inf has no
            pairs and status 2.
        """
        return self.matcher.assign_batch(cls_logits, boxes, gt_boxes, gt_labels, train_cfg["point_cloud_range"])
