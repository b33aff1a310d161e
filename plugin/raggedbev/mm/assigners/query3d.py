"""Assigners of 3D query heads, and of FocalHead's 2D boxes.

Each head regresses its own code of a box; the 3D assigners match in the one that `box_code` names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmdet.models.task_modules.assigners import AssignResult, BaseAssigner
from mmdet3d.registry import TASK_UTILS
from torch import Tensor

from raggedbev.matching import BoxCodeMatcher3D, HungarianMatcher2D, HungarianMatcher3D, LinearAssignment
from raggedbev.matching.reference import PerSampleMatcher2D, PerSampleMatcher3D
from raggedbev.mm.assigners.result import assign_result
from raggedbev.mm.convert import matcher_2d, matcher_3d
from raggedbev.ragged.batch import RaggedBatch

__all__ = [
    "BatchedHungarianAssigner2D",
    "BatchedHungarianAssigner3D",
    "PerSampleHungarianAssigner2D",
    "PerSampleHungarianAssigner3D",
]

_FOCAL = {"type": "FocalLossCost", "weight": 2.0}
_BOX3D = {"type": "BBox3DL1Cost", "weight": 0.25}
_BOX2D = {"type": "BBoxL1Cost", "weight": 5.0, "box_format": "xywh"}
_GIOU = {"type": "IoUCost", "iou_mode": "giou", "weight": 2.0}
_CENTER = {"type": "BBox3DL1Cost", "weight": 10.0}


def _reject_ignored(gt_bboxes_ignore: Tensor | None) -> None:
    if gt_bboxes_ignore is not None:
        raise ValueError("Hungarian assigners have no ignored boxes: gt_bboxes_ignore must be None")


class _Assigner3D(BaseAssigner):
    """What the 3D assigners share: config and `assign`, which asks the matcher."""

    matcher: HungarianMatcher3D | BoxCodeMatcher3D | PerSampleMatcher3D

    def __init__(
        self,
        cls_cost: Mapping[str, Any] = _FOCAL,
        reg_cost: Mapping[str, Any] = _BOX3D,
        iou_cost: Mapping[str, Any] | None = None,
        pc_range: Sequence[float] | None = None,
        solver: str = "auto",
        box_code: str = "streampetr",
    ) -> None:
        self.matcher = self.config = matcher_3d(cls_cost, reg_cost, iou_cost, solver, box_code, pc_range)

    def assign(
        self,
        bbox_pred: Tensor,
        cls_pred: Tensor,
        gt_bboxes: Tensor,
        gt_labels: Tensor,
        gt_bboxes_ignore: Tensor | None = None,
        code_weights: Sequence[float] | Tensor | None = None,
        with_velo: bool = False,
        eps: float | None = None,
    ) -> AssignResult:
        """Assign one sample.

        Args:
            bbox_pred: [Q, 10] coded boxes.
            cls_pred: [Q, C] logits.
            gt_bboxes: [G, 9] ground truth, gravity centre.
            gt_labels: [G] int64.
            gt_bboxes_ignore: must be None.
            code_weights: [10] factor of each coordinate in the cost.
            with_velo: whether velocity counts in the cost.
            eps: has no influence; an argument of PETR's and DETR3D's assigner, where it has none either.

        Returns:
            mmdet's result.

        Raises:
            ValueError: `gt_bboxes_ignore` is given; or, with `box_code` 'detr3d', the costs contain NaN or -inf.
        """
        _reject_ignored(gt_bboxes_ignore)
        gt_of_pred = self.matcher.match(cls_pred, bbox_pred, gt_bboxes, gt_labels, code_weights, with_velo)
        return assign_result(gt_of_pred, gt_labels)


class _Assigner2D(BaseAssigner):
    """What the 2D assigners share: config and `assign`, which asks the matcher."""

    matcher: HungarianMatcher2D | PerSampleMatcher2D

    def __init__(
        self,
        cls_cost: Mapping[str, Any] = _FOCAL,
        reg_cost: Mapping[str, Any] = _BOX2D,
        iou_cost: Mapping[str, Any] = _GIOU,
        centers2d_cost: Mapping[str, Any] = _CENTER,
        solver: str = "auto",
    ) -> None:
        self.matcher = self.config = matcher_2d(cls_cost, reg_cost, iou_cost, centers2d_cost, solver)

    def assign(
        self,
        bbox_pred: Tensor,
        cls_pred: Tensor,
        pred_centers2d: Tensor,
        gt_bboxes: Tensor,
        gt_labels: Tensor,
        centers2d: Tensor,
        pad_shape: tuple[int, int],
        gt_bboxes_ignore: Tensor | None = None,
    ) -> AssignResult:
        """Assign one image.

        Args:
            bbox_pred: [T, 4] centre and size in units of the padded image.
            cls_pred: [T, C] logits.
            pred_centers2d: [T, 2] in units of the padded image.
            gt_bboxes: [G, 4] corners in pixels.
            gt_labels: [G] int64.
            centers2d: [G, 2] pixels.
            pad_shape: height and width of the padded image in pixels.
            gt_bboxes_ignore: must be None.

        Returns:
            mmdet's result.
        """
        _reject_ignored(gt_bboxes_ignore)
        gt_of_pred = self.matcher.match(cls_pred, bbox_pred, pred_centers2d, gt_bboxes, gt_labels, centers2d, pad_shape)
        return assign_result(gt_of_pred, gt_labels)


class PerSampleHungarianAssigner3D(_Assigner3D):
    """One sample at a time, as published.

    Args:
        cls_cost, reg_cost, iou_cost, pc_range: see `BatchedHungarianAssigner3D`.
        arm: 'published' replaces non-finite costs on the host, 'reference' on the device; same results.
    """

    def __init__(
        self,
        cls_cost: Mapping[str, Any] = _FOCAL,
        reg_cost: Mapping[str, Any] = _BOX3D,
        iou_cost: Mapping[str, Any] | None = None,
        pc_range: Sequence[float] | None = None,
        arm: str = "published",
    ) -> None:
        super().__init__(cls_cost, reg_cost, iou_cost, pc_range)
        self.matcher = PerSampleMatcher3D(self.config, arm)


class PerSampleHungarianAssigner2D(_Assigner2D):
    """One image at a time, as published.

    Args:
        cls_cost, reg_cost, iou_cost, centers2d_cost: see `BatchedHungarianAssigner2D`.
        arm: 'published' replaces non-finite costs on the host, and the head draws its heatmaps object by object;
            'reference' replaces them on the device, and heatmaps are drawn by one operator. Same results.
    """

    def __init__(
        self,
        cls_cost: Mapping[str, Any] = _FOCAL,
        reg_cost: Mapping[str, Any] = _BOX2D,
        iou_cost: Mapping[str, Any] = _GIOU,
        centers2d_cost: Mapping[str, Any] = _CENTER,
        arm: str = "published",
    ) -> None:
        super().__init__(cls_cost, reg_cost, iou_cost, centers2d_cost)
        self.matcher = PerSampleMatcher2D(self.config, arm)
        self.arm = arm


@TASK_UTILS.register_module()
class BatchedHungarianAssigner3D(_Assigner3D):
    """All layers and samples at once; in place of the `HungarianAssigner3D` of StreamPETR, PETR, DETR3D and BEVFormer.

    Args:
        cls_cost: 'FocalLossCost' (weight, alpha, gamma, eps) or 'ClassificationCost' (weight).
        reg_cost: 'BBox3DL1Cost' (weight).
        iou_cost: accepted with weight 0 only ('IoUCost' or 'IoU3DCost': weight, iou_mode, iou_calculator).
        pc_range: lowest x, y, z and highest x, y, z (m). Boxes are matched in metres, so the values have no influence;
            accepted because configs of this family of detectors give it.
        solver: see `raggedbev.matching.linear_assignment`.
        box_code: what the head regresses. 'streampetr': x, y, z, log dimensions, sine, cosine, velocity. 'detr3d'
            (DETR3D, BEVFormer): x, y, log length, log width, z, log height, sine, cosine, velocity; boxes may have 8
            columns, ground truth 7. 'petr' (mmdet3d's PETR project): the same with the angle -yaw - pi / 2. Costs that
            are not finite are replaced by +-100, as published; not so with 'detr3d', where `assign` raises and
            `assign_batch` reports status 2.

    Raises:
        ValueError: a type, key or value that is not implemented; it is named.
    """

    def encode(self, boxes: Tensor) -> Tensor:
        """Ground truth from the gravity centre on [..., 7 or 9] in `box_code`, which heads regress [..., 8 or 10]."""
        return self.config.encode(boxes)

    def assign_batch(
        self,
        cls_logits: Tensor,
        box_preds: Tensor,
        gt_boxes: RaggedBatch,
        gt_labels: RaggedBatch,
        code_weights: Sequence[float] | Tensor | None = None,
        with_velo: bool = False,
    ) -> LinearAssignment:
        """Assign [..., B, Q, C] logits and [..., B, Q, 10] coded boxes to ground truth [B, G, 9], [B, G]."""
        return self.config.assign_batch(cls_logits, box_preds, gt_boxes, gt_labels, code_weights, with_velo)


@TASK_UTILS.register_module()
class BatchedHungarianAssigner2D(_Assigner2D):
    """All images at once.

    Args:
        cls_cost: 'FocalLossCost' (weight, alpha, gamma, eps) or 'ClassificationCost' (weight).
        reg_cost: 'BBoxL1Cost' (weight, box_format 'xywh' or 'xyxy').
        iou_cost: 'IoUCost' (weight, iou_mode 'giou' or 'iou').
        centers2d_cost: 'BBox3DL1Cost' (weight), applied to projected centres.
        solver: see `raggedbev.matching.linear_assignment`.
    """

    def assign_batch(
        self,
        cls_logits: Tensor,
        box_preds: Tensor,
        center_preds: Tensor,
        gt_boxes: RaggedBatch,
        gt_labels: RaggedBatch,
        gt_centers: RaggedBatch,
        pad_shape: tuple[int, int],
    ) -> LinearAssignment:
        """Assign predictions [..., I, T, .] to 2D ground truth [I, G, .]."""
        return self.config.assign_batch(cls_logits, box_preds, center_preds, gt_boxes, gt_labels, gt_centers, pad_shape)
