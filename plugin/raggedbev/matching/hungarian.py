"""Matchers of whole batches.

In: predictions of all layers and samples, padded ground truth. Out: one assignment for each layer and sample.

The settings of a matcher are those of StreamPETR's two Hungarian assigners. Costs of the terms are added up,
non-finite sums replaced as published, and all problems solved in one call.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from raggedbev.matching import costs
from raggedbev.matching.assignment import LinearAssignment, check_solver, linear_assignment
from raggedbev.matching.costs import ClassCost, widened
from raggedbev.matching.fused import L1Term, MatchCost, OverlapTerm, match_cost
from raggedbev.profiling.stages import stage
from raggedbev.ragged.batch import RaggedBatch

__all__ = ["HungarianMatcher2D", "HungarianMatcher3D", "check_same_objects"]


def check_same_objects(**parts: RaggedBatch) -> None:
    """Raise unless all parts of the ground truth [B, G, ...], one at least, have the same numbers of objects.

    Numbers that only an accelerator knows are not compared (but with `RAGGEDBEV_DEBUG=1`): that waits for the device.

    Raises:
        TypeError: a part is no RaggedBatch.
        ValueError: numbers of samples, of objects, or the room for them differ.
    """
    for name, part in parts.items():
        if not isinstance(part, RaggedBatch):
            raise TypeError(f"{name} must be a RaggedBatch, got {type(part).__name__}")
    (first_name, first), *others = parts.items()
    for name, part in others:
        if part.shape[:2] != first.shape[:2]:
            raise ValueError(
                f"{name} must begin with [B, G] like {first_name}, "
                f"got {tuple(part.shape[:2])} and {tuple(first.shape[:2])}"
            )
        if part.layout is first.layout:
            continue
        sizes, wanted = part.layout.host_sizes(), first.layout.host_sizes()
        if sizes is not None and wanted is not None and list(sizes) != list(wanted):
            raise ValueError(
                f"{name} must have as many objects as {first_name} in every sample, "
                f"got {list(sizes)} and {list(wanted)}"
            )


class _Matcher:
    """What both matchers share."""

    solver: str

    @abstractmethod
    def match_cost(self, *args: Any, **kwargs: Any) -> MatchCost:
        """Match costs [..., G, P], finite, with their minima."""

    def cost(self, *args: Any, **kwargs: Any) -> Tensor:
        """Match costs [..., G, P], finite; arguments as in `match_cost`."""
        return self.match_cost(*args, **kwargs).cost

    @torch.no_grad()
    def match(self, *args: Any, **kwargs: Any) -> Tensor:
        """Object of each prediction of one sample [P] int64, -1 for background; arguments as in `cost`."""
        cost = self.match_cost(*args, **kwargs)
        return linear_assignment(cost.cost, solver=self.solver, minima=cost.minima).gt_of_pred

    def _solve(self, cost: MatchCost, num_gt: Tensor) -> LinearAssignment:
        with stage("matching"):
            return linear_assignment(cost.cost, num_gt, solver=self.solver, minima=cost.minima)


@dataclass(frozen=True)
class HungarianMatcher3D(_Matcher):
    """Batched 3D matching (streaming PETR family).

    Attributes:
        cls_cost: classification cost.
        reg_weight: weight of the L1 cost of coded boxes.
        solver: see `linear_assignment`.
    """

    cls_cost: ClassCost = field(default_factory=ClassCost)
    reg_weight: float = 0.25
    solver: str = "auto"

    def __post_init__(self) -> None:
        check_solver(self.solver)

    def encode(self, boxes: Tensor) -> Tensor:
        """Ground truth as the head regresses it.

        Args:
            boxes: [..., 9], see `normalize_box3d`.

        Returns:
            [..., 10].

        Raises:
            ValueError: another number of columns.
        """
        return costs.normalize_box3d(boxes)

    @torch.no_grad()
    def match_cost(
        self,
        cls_logits: Tensor,
        box_preds: Tensor,
        gt_boxes: Tensor,
        gt_labels: Tensor,
        code_weights: Sequence[float] | Tensor | None = None,
        with_velo: bool = False,
        num_gt: Tensor | None = None,
    ) -> MatchCost:
        """Match costs.

        Args:
            cls_logits: [..., P, C] logits.
            box_preds: [..., P, 10] coded boxes.
            gt_boxes: [..., G, 9] ground truth (leading dimensions broadcast).
            gt_labels: [..., G] int64.
            code_weights: [10] factor of each box coordinate.
            with_velo: whether velocity counts.
            num_gt: [...] objects per sample; none: G.

        Returns:
            [..., G, P], finite.

        Raises:
            ValueError: shapes, or the number of `code_weights`, do not fit.
        """
        box_preds = widened(box_preds)
        targets = self.encode(gt_boxes.to(box_preds.dtype))
        factors = None if code_weights is None else costs.row_tensor(code_weights, box_preds)
        if factors is not None and factors.shape != box_preds.shape[-1:]:
            raise ValueError(f"code_weights must have {box_preds.shape[-1]} entries, got {tuple(factors.shape)}")
        if not with_velo:
            box_preds, targets = box_preds[..., :8], targets[..., :8]
            factors = None if factors is None else factors[:8]
        l1 = L1Term(box_preds, targets, self.reg_weight, factors)
        return match_cost(cls_logits, gt_labels, self.cls_cost, l1=[l1], num_gt=num_gt)

    @torch.no_grad()
    def assign_batch(
        self,
        cls_logits: Tensor,
        box_preds: Tensor,
        gt_boxes: RaggedBatch,
        gt_labels: RaggedBatch,
        code_weights: Sequence[float] | Tensor | None = None,
        with_velo: bool = False,
    ) -> LinearAssignment:
        """Assignment of every leading index and sample.

        Args:
            cls_logits: [..., B, P, C] logits.
            box_preds: [..., B, P, 10] coded boxes.
            gt_boxes: [B, G, 9] ground truth.
            gt_labels: [B, G] int64.
            code_weights: [10] factor of each box coordinate.
            with_velo: whether velocity counts.

        Returns:
            The assignment [..., B].

        Raises:
            TypeError: the ground truth is no RaggedBatch.
            ValueError: shapes or numbers of objects do not fit.
        """
        check_same_objects(gt_boxes=gt_boxes, gt_labels=gt_labels)
        with stage("cost"):
            cost = self.match_cost(
                cls_logits,
                box_preds,
                gt_boxes.tensor,
                gt_labels.tensor,
                code_weights,
                with_velo,
                gt_boxes.sample_sizes,
            )
        return self._solve(cost, gt_boxes.sample_sizes)


@dataclass(frozen=True)
class HungarianMatcher2D(_Matcher):
    """Batched 2D matching (FocalHead).

    Attributes:
        cls_cost: classification cost.
        reg_weight: weight of the L1 cost of normalised boxes.
        box_format: boxes are compared as 'xywh' or 'xyxy'.
        iou_weight: weight of the overlap cost.
        iou_mode: 'giou' or 'iou'.
        center_weight: weight of the L1 cost of normalised centres.
        solver: see `linear_assignment`.
    """

    cls_cost: ClassCost = field(default_factory=ClassCost)
    reg_weight: float = 5.0
    box_format: str = "xywh"
    iou_weight: float = 2.0
    iou_mode: str = "giou"
    center_weight: float = 10.0
    solver: str = "auto"

    def __post_init__(self) -> None:
        check_solver(self.solver)
        if self.box_format not in ("xywh", "xyxy"):
            raise ValueError(f"box_format must be 'xywh' or 'xyxy', got {self.box_format!r}")
        if self.iou_mode not in ("iou", "giou"):
            raise ValueError(f"iou_mode must be 'iou' or 'giou', got {self.iou_mode!r}")

    @torch.no_grad()
    def match_cost(
        self,
        cls_logits: Tensor,
        box_preds: Tensor,
        center_preds: Tensor,
        gt_boxes: Tensor,
        gt_labels: Tensor,
        gt_centers: Tensor,
        pad_shape: tuple[int, int],
        num_gt: Tensor | None = None,
    ) -> MatchCost:
        """Match costs.

        Args:
            cls_logits: [..., P, C] logits.
            box_preds: [..., P, 4] centre and size in units of the padded image.
            center_preds: [..., P, 2] in units of the padded image.
            gt_boxes: [..., G, 4] corners in pixels.
            gt_labels: [..., G] int64.
            gt_centers: [..., G, 2] pixels.
            pad_shape: height and width of the padded image in pixels.
            num_gt: [...] objects per image; none: G.

        Returns:
            [..., G, P], finite.

        Raises:
            ValueError: shapes or `pad_shape` do not fit.
        """
        try:
            height, width = pad_shape[0], pad_shape[1]
        except (TypeError, IndexError):
            raise ValueError(f"pad_shape must be height and width, got {pad_shape!r}") from None
        box_preds = widened(box_preds)
        size = costs.row_tensor((width, height), box_preds)
        gt_boxes, gt_centers = gt_boxes.to(box_preds.dtype), gt_centers.to(box_preds.dtype)
        in_image = gt_boxes / torch.cat([size, size])
        if self.box_format == "xywh":
            boxes = L1Term(box_preds, costs.xyxy_to_cxcywh(in_image), self.reg_weight)
        else:
            boxes = L1Term(costs.cxcywh_to_xyxy(box_preds), in_image, self.reg_weight)
        centers = L1Term(center_preds, gt_centers / size, self.center_weight)
        overlap = OverlapTerm(box_preds, gt_boxes, size, self.iou_weight, self.iou_mode)
        return match_cost(cls_logits, gt_labels, self.cls_cost, l1=[boxes, centers], overlap=overlap, num_gt=num_gt)

    @torch.no_grad()
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
        """Assignment of every leading index and image.

        Args:
            cls_logits: [..., I, P, C] logits.
            box_preds: [..., I, P, 4] centre and size in units of the padded image.
            center_preds: [..., I, P, 2] in units of the padded image.
            gt_boxes: [I, G, 4] corners in pixels.
            gt_labels: [I, G] int64.
            gt_centers: [I, G, 2] pixels.
            pad_shape: height and width of the padded image in pixels.

        Returns:
            The assignment [..., I].

        Raises:
            TypeError: the ground truth is no RaggedBatch.
            ValueError: shapes or numbers of objects do not fit.
        """
        check_same_objects(gt_boxes=gt_boxes, gt_labels=gt_labels, gt_centers=gt_centers)
        ground_truth = (gt_boxes.tensor, gt_labels.tensor, gt_centers.tensor)
        with stage("cost"):
            cost = self.match_cost(cls_logits, box_preds, center_preds, *ground_truth, pad_shape, gt_boxes.sample_sizes)
        return self._solve(cost, gt_boxes.sample_sizes)
