"""Matchers of whole batches for heads outside the streaming PETR family.

In: predictions of all layers and samples, padded ground truth. Out: one assignment for each layer and sample.

Costs that are not finite stay as they are, unless said otherwise: +inf forbids a pair, and a problem with NaN or -inf
has no solution. `match`, for one sample, raises then; `assign_batch`, which must not wait for the device, gives that
problem no pairs and says so in `status`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from raggedbev.matching import costs
from raggedbev.matching.assignment import LinearAssignment, check_solver, linear_assignment
from raggedbev.matching.bev_costs import bev_l1_cost
from raggedbev.matching.box_codes import BOX_CODES, encode_box3d
from raggedbev.matching.cost_terms import CostTerm, MatchInputs, widened
from raggedbev.matching.costs import ClassCost
from raggedbev.matching.overlaps import box3d_iou
from raggedbev.profiling.stages import stage
from raggedbev.ragged.batch import RaggedBatch

__all__ = ["BoxCodeMatcher3D", "OverlapAssignment", "TermMatcher", "TransFusionMatcher3D"]


@dataclass(frozen=True)
class TermMatcher:
    """Matching by a sum of terms (DETR, Deformable DETR, DINO, Sparse R-CNN, MaskFormer and others in mmdet).

    Attributes:
        terms: see `raggedbev.matching.cost_terms`; at least one.
        solver: see `linear_assignment`.
    """

    terms: tuple[CostTerm, ...]
    solver: str = "auto"

    def __post_init__(self) -> None:
        check_solver(self.solver)
        if not self.terms:
            raise ValueError("a match cost needs at least one term, got none")

    @torch.no_grad()
    def cost(self, inputs: MatchInputs) -> Tensor:
        """Match costs [..., G, P]."""
        inputs = inputs.widened()
        total = self.terms[0](inputs)
        for term in self.terms[1:]:
            total = total + term(inputs)
        return total

    def match(self, inputs: MatchInputs) -> Tensor:
        """Object of each prediction of one sample [P] int64, -1 for background; ValueError where there is none."""
        return linear_assignment(self.cost(inputs), solver=self.solver, check=True).gt_of_pred

    def assign_batch(self, inputs: MatchInputs, num_gt: Tensor) -> LinearAssignment:
        """Assignment of every leading index: inputs [..., B, ., .], objects per sample [B]."""
        with stage("cost"):
            cost = self.cost(inputs)
        with stage("matching"):
            return linear_assignment(cost, num_gt, solver=self.solver)


@dataclass(frozen=True)
class BoxCodeMatcher3D:
    """3D matching in the box codes of PETR, DETR3D and BEVFormer.

    Attributes:
        cls_cost: classification cost.
        reg_weight: weight of the L1 cost of coded boxes.
        box_code: 'petr' or 'detr3d', see `encode_box3d`.
        solver: see `linear_assignment`.
    """

    cls_cost: ClassCost = field(default_factory=ClassCost)
    reg_weight: float = 0.25
    box_code: str = "detr3d"
    solver: str = "auto"

    def __post_init__(self) -> None:
        check_solver(self.solver)
        if self.box_code not in BOX_CODES:
            raise ValueError(f"box_code must be one of {BOX_CODES}, got {self.box_code!r}")

    @property
    def replaces_nonfinite(self) -> bool:
        """Whether NaN and +inf become 100 and -inf becomes -100, as PETR has it; DETR3D and BEVFormer have not."""
        return self.box_code == "petr"

    @torch.no_grad()
    def cost(
        self,
        cls_logits: Tensor,
        box_preds: Tensor,
        gt_boxes: Tensor,
        gt_labels: Tensor,
        code_weights: Sequence[float] | Tensor | None = None,
        with_velo: bool = False,
    ) -> Tensor:
        """Match costs.

        Args:
            cls_logits: [..., P, C] logits.
            box_preds: [..., P, 8 or 10] coded boxes.
            gt_boxes: [..., G, 7 or 9] ground truth, gravity centre (leading dimensions broadcast).
            gt_labels: [..., G] int64.
            code_weights: factor of each box coordinate, as many as `box_preds` has; none: 1.
            with_velo: whether velocity counts; otherwise the first eight coordinates do.

        Returns:
            [..., G, P].
        """
        cls_logits, box_preds = widened(cls_logits), widened(box_preds)
        targets = encode_box3d(gt_boxes.to(box_preds.dtype), self.box_code)
        num_dims = 10 if with_velo else 8
        if min(box_preds.shape[-1], targets.shape[-1]) < num_dims:
            raise ValueError(
                f"coded boxes must have at least {num_dims} columns when with_velo is {with_velo}, "
                f"got {box_preds.shape[-1]} predicted and {targets.shape[-1]} of the ground truth"
            )
        if code_weights is not None:
            code_weights = costs.row_tensor(code_weights, box_preds)[..., :num_dims]
        reg = costs.box3d_l1_cost(
            box_preds[..., :num_dims], targets[..., :num_dims], weight=self.reg_weight, code_weights=code_weights
        )
        total = reg.add_(self.cls_cost(cls_logits, gt_labels))
        return costs.replace_nonfinite_(total) if self.replaces_nonfinite else total

    def match(
        self,
        cls_logits: Tensor,
        box_preds: Tensor,
        gt_boxes: Tensor,
        gt_labels: Tensor,
        code_weights: Sequence[float] | Tensor | None = None,
        with_velo: bool = False,
    ) -> Tensor:
        """Object of each prediction of one sample [P] int64, -1 for background; arguments as in `cost`."""
        cost = self.cost(cls_logits, box_preds, gt_boxes, gt_labels, code_weights, with_velo)
        return linear_assignment(cost, solver=self.solver, check=not self.replaces_nonfinite).gt_of_pred

    def assign_batch(
        self,
        cls_logits: Tensor,
        box_preds: Tensor,
        gt_boxes: RaggedBatch,
        gt_labels: RaggedBatch,
        code_weights: Sequence[float] | Tensor | None = None,
        with_velo: bool = False,
    ) -> LinearAssignment:
        """Assignment of every leading index and sample; arguments as in `cost`, ground truth [B, G, .], [B, G]."""
        with stage("cost"):
            cost = self.cost(cls_logits, box_preds, gt_boxes.tensor, gt_labels.tensor, code_weights, with_velo)
        with stage("matching"):
            return linear_assignment(cost, gt_boxes.sample_sizes, solver=self.solver)


@dataclass(frozen=True, eq=False)
class OverlapAssignment(LinearAssignment):
    """A `LinearAssignment` with the overlaps of its pairs.

    Attributes:
        max_overlaps: [..., P] 3D IoU of each prediction with its object; 0 for background.
    """

    max_overlaps: Tensor | None = None


@dataclass(frozen=True)
class TransFusionMatcher3D:
    """3D matching of decoded boxes (TransFusion, BEVFusion).

    Boxes are those of mmdet3d's LiDAR tensors: x, y, z of the bottom centre, length, width, height (m), yaw (rad), and
    what follows has no influence.

    Attributes:
        cls_cost: classification cost.
        reg_weight: weight of the L1 cost of centres in the ground plane.
        iou_weight: weight of the negative 3D IoU.
        solver: see `linear_assignment`.
    """

    cls_cost: ClassCost = field(default_factory=lambda: ClassCost(1.0, "softmax"))
    reg_weight: float = 1.0
    iou_weight: float = 1.0
    solver: str = "auto"

    def __post_init__(self) -> None:
        check_solver(self.solver)

    @torch.no_grad()
    def cost_and_overlaps(
        self, cls_logits: Tensor, boxes: Tensor, gt_boxes: Tensor, gt_labels: Tensor, pc_range: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        """Match costs and 3D IoU, both [..., G, P].

        Args:
            cls_logits: [..., P, C] logits.
            boxes: [..., P, 7 or more] decoded boxes.
            gt_boxes: [..., G, 7 or more] ground truth (leading dimensions broadcast).
            gt_labels: [..., G] int64.
            pc_range: lowest x, y, z and highest x, y, z (m), host numbers.
        """
        cls_logits, boxes = widened(cls_logits), widened(boxes)
        overlaps = box3d_iou(boxes, gt_boxes, z_origin="bottom")
        cost = bev_l1_cost(boxes, gt_boxes, pc_range, weight=self.reg_weight)
        cost = cost + self.cls_cost(cls_logits, gt_labels)
        return cost - overlaps * self.iou_weight, overlaps

    def match(
        self, cls_logits: Tensor, boxes: Tensor, gt_boxes: Tensor, gt_labels: Tensor, pc_range: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        """Object of each prediction of one sample [P] int64, -1 for background, and `max_overlaps` [P]."""
        cost, overlaps = self.cost_and_overlaps(cls_logits, boxes, gt_boxes, gt_labels, pc_range)
        gt_of_pred = linear_assignment(cost, solver=self.solver, check=True).gt_of_pred
        return gt_of_pred, _overlaps_of_pairs(overlaps, gt_of_pred)

    def assign_batch(
        self,
        cls_logits: Tensor,
        boxes: Tensor,
        gt_boxes: RaggedBatch,
        gt_labels: RaggedBatch,
        pc_range: Sequence[float],
    ) -> OverlapAssignment:
        """Assignment of every leading index and sample; arguments as in `cost_and_overlaps`, ground truth [B, G, .]."""
        with stage("cost"):
            cost, overlaps = self.cost_and_overlaps(cls_logits, boxes, gt_boxes.tensor, gt_labels.tensor, pc_range)
        with stage("matching"):
            found = linear_assignment(cost, gt_boxes.sample_sizes, solver=self.solver)
        return OverlapAssignment(
            found.pred_of_gt,
            found.gt_of_pred,
            found.status,
            max_overlaps=_overlaps_of_pairs(overlaps, found.gt_of_pred),
        )


def _overlaps_of_pairs(overlaps: Tensor, gt_of_pred: Tensor) -> Tensor:
    """Overlap of every prediction with its object: [..., G, P], [..., P] -> [..., P], 0 for background."""
    if not overlaps.shape[-2]:
        return overlaps.new_zeros(gt_of_pred.shape)
    picked = overlaps.gather(-2, gt_of_pred.clamp(min=0).unsqueeze(-2)).squeeze(-2)
    return torch.where(gt_of_pred >= 0, picked, 0.0)
