"""The assigner of mmdet's DETR-like heads: a list of match costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmdet.models.task_modules.assigners import AssignResult, BaseAssigner
from mmdet.registry import TASK_UTILS as MMDET_TASK_UTILS
from mmdet.structures.mask import BaseInstanceMasks
from mmdet3d.registry import TASK_UTILS
from mmengine.structures import InstanceData
from torch import Tensor

from raggedbev.matching import LinearAssignment
from raggedbev.matching.cost_terms import MatchInputs
from raggedbev.matching.costs import row_tensor
from raggedbev.matching.hungarian import check_same_objects
from raggedbev.mm.assigners.result import assign_result
from raggedbev.mm.convert import term_matcher
from raggedbev.ragged.batch import RaggedBatch

__all__ = ["BatchedHungarianAssigner"]

# fields of `MatchInputs`, and of mmdet's instances
_OF_PREDS = {"cls_logits": "scores", "boxes": "bboxes", "masks": "masks"}
_OF_TRUTH = {"gt_labels": "labels", "gt_boxes": "bboxes", "gt_masks": "masks"}


def _image_size(img_shape: Tensor | Sequence[Any] | None, like: Tensor) -> Tensor | None:
    """Width and height [2] or [B, 2] in dtype and on the device of `like`, from one or B heights and widths."""
    if img_shape is None:
        return None
    if isinstance(img_shape, Tensor):
        return img_shape.to(like).flip(-1)
    shapes = list(img_shape)
    if shapes and all(isinstance(shape, Sequence | np.ndarray) for shape in shapes):
        return torch.stack([row_tensor((width, height), like) for height, width, *_ in shapes])
    if len(shapes) < 2:
        raise ValueError(f"img_shape must be height and width of the image, got {img_shape!r}")
    return row_tensor((shapes[1], shapes[0]), like)


def _points(masks: Tensor | BaseInstanceMasks, device: torch.device) -> Tensor:
    """Points of masks [M, ...] side by side: [M, N]; mmdet's bitmaps and polygons are drawn on the device."""
    if isinstance(masks, BaseInstanceMasks):
        masks = masks.to_tensor(torch.uint8, device)
    return masks.flatten(1)


@MMDET_TASK_UTILS.register_module()
@TASK_UTILS.register_module()
class BatchedHungarianAssigner(BaseAssigner):
    """In place of mmdet's `HungarianAssigner`: DETR, Conditional DETR, DAB-DETR, Deformable DETR, DINO, Sparse R-CNN,
    QueryInst, MaskFormer, Mask2Former.

    It is registered in mmdet and in mmdet3d, so its name needs no scope in front.

    Args:
        match_costs: one dict or a list of them: 'FocalLossCost' (weight, alpha, gamma, eps, binary_input),
            'ClassificationCost' (weight), 'BBoxL1Cost' (weight, box_format), 'IoUCost' (weight, iou_mode 'giou' or
            'iou'), 'CrossEntropyLossCost' (weight), 'DiceCost' (weight, pred_act, eps, naive_dice).
        solver: see `raggedbev.matching.linear_assignment`.

    Raises:
        ValueError: a type, key or value that is not implemented; it is named.
    """

    def __init__(self, match_costs: Mapping[str, Any] | Sequence[Mapping[str, Any]], solver: str = "auto") -> None:
        self.matcher = term_matcher(match_costs, solver)

    def assign(
        self,
        pred_instances: InstanceData,
        gt_instances: InstanceData,
        img_meta: Mapping[str, Any] | None = None,
        gt_instances_ignore: InstanceData | None = None,
        **_kwargs: Any,
    ) -> AssignResult:
        """Assign one image.

        Args:
            pred_instances: as the costs ask: `scores` [P, C] logits, `bboxes` [P, 4] corners in pixels, `masks`
                [P, ...] logits or probabilities.
            gt_instances: `labels` [G] int64; as the costs ask: `bboxes` [G, 4] corners in pixels, `masks` [G, ...]
                tensor, `BitmapMasks` or `PolygonMasks`. Fields that no cost asks for may be of any kind.
            img_meta: `img_shape`, height and width in pixels, for 'BBoxL1Cost'.
            gt_instances_ignore: must be None.
            _kwargs: other keywords have no influence, as in mmdet.

        Returns:
            mmdet's result.

        Raises:
            ValueError: the costs contain NaN or -inf, or +inf leaves an object without a prediction; or something that
                a cost needs is missing.
        """
        if gt_instances_ignore is not None:
            raise ValueError("Hungarian assigners have no ignored boxes: gt_instances_ignore must be None")
        labels, num_preds = gt_instances.labels, len(pred_instances)
        if not len(gt_instances) or not num_preds:
            return assign_result(labels.new_full((num_preds,), -1, dtype=torch.long), labels)
        given = self._read(pred_instances, gt_instances, (img_meta or {}).get("img_shape"))
        return assign_result(self.matcher.match(given), labels)

    def _read(self, preds: InstanceData, truth: InstanceData, img_shape: Tensor | Sequence[Any] | None) -> MatchInputs:
        """What the costs look at."""
        reads = self.matcher.reads
        given = {name: preds.get(key) for name, key in _OF_PREDS.items() if name in reads}
        given |= {name: truth.get(key) for name, key in _OF_TRUTH.items() if name in reads}
        for name in ("masks", "gt_masks"):
            if given.get(name) is not None:
                given[name] = _points(given[name], truth.labels.device)
        if "image_size" in reads and given.get("boxes") is not None:
            given["image_size"] = _image_size(img_shape, given["boxes"])
        return MatchInputs(**given)

    def assign_batch(
        self,
        cls_logits: Tensor | None,
        boxes: Tensor | None,
        gt_boxes: RaggedBatch | None,
        gt_labels: RaggedBatch,
        img_shape: Tensor | Sequence[Any] | None = None,
        masks: Tensor | None = None,
        gt_masks: RaggedBatch | None = None,
    ) -> LinearAssignment:
        """Assign all layers and images; what no cost asks for may be None.

        Args:
            cls_logits: [..., B, P, C] logits.
            boxes: [..., B, P, 4] corners in pixels.
            gt_boxes: [B, G, 4] corners in pixels.
            gt_labels: [B, G] int64.
            img_shape: height and width in pixels: one pair for all images, a pair for each, or a tensor [B, 2].
            masks: [..., B, P, N] logits or probabilities of N points.
            gt_masks: [B, G, N].

        Returns:
            The assignment [..., B]; a problem whose costs contain NaN or -inf has no pairs and status 2.

        Raises:
            TypeError: ground truth is no RaggedBatch.
            ValueError: shapes or numbers of objects do not fit, or something that a cost needs is missing.
        """
        others = {"gt_boxes": gt_boxes, "gt_masks": gt_masks}
        check_same_objects(gt_labels=gt_labels, **{name: part for name, part in others.items() if part is not None})
        image_size = None if boxes is None else _image_size(img_shape, boxes)
        if image_size is not None and image_size.dim() > 1 and len(image_size) not in (1, boxes.shape[-3]):
            raise ValueError(
                f"img_shape must be one for all images or one for each of {boxes.shape[-3]}, got {len(image_size)}"
            )
        inputs = MatchInputs(
            cls_logits=cls_logits,
            gt_labels=gt_labels.tensor,
            boxes=boxes,
            gt_boxes=None if gt_boxes is None else gt_boxes.tensor,
            image_size=image_size,
            masks=masks,
            gt_masks=None if gt_masks is None else gt_masks.tensor,
        )
        return self.matcher.assign_batch(inputs, gt_labels.sample_sizes)
