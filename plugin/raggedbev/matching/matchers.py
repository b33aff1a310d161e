"""Matchers of whole batches for heads outside the streaming PETR family.

In: predictions of all layers and samples, padded ground truth. Out: one assignment for each layer and sample.

Costs that are not finite stay as they are, unless said otherwise: +inf forbids a pair, and a problem with NaN or -inf
has no solution. `match`, for one sample, raises then; `assign_batch`, which must not wait for the device, gives that
problem no pairs and says so in `status`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from raggedbev.matching.assignment import IndexPairs, LinearAssignment, check_solver, index_pairs, linear_assignment
from raggedbev.matching.bev_costs import centers_in_range
from raggedbev.matching.box_codes import BOX_CODES, encode_box3d
from raggedbev.matching.cost_terms import BoxL1Term, ClassTerm, CostTerm, IoUTerm, MatchInputs, fields_read
from raggedbev.matching.costs import ClassCost, row_tensor, widened, xyxy_to_cxcywh
from raggedbev.matching.fused import L1Term, MatchCost, OverlapTerm, match_cost
from raggedbev.matching.hungarian import HungarianMatcher3D, check_same_objects
from raggedbev.matching.overlaps import box3d_iou
from raggedbev.profiling.stages import stage
from raggedbev.ragged.batch import RaggedBatch

__all__ = ["BoxCodeMatcher3D", "OverlapAssignment", "TermMatcher", "TransFusionMatcher3D"]

_MAX_DISTANCES = 4  # of `match_cost`


def _overlap_in_pixels(term: IoUTerm, inputs: MatchInputs) -> OverlapTerm:
    """The term as `match_cost` takes it, in units of a pixel."""
    boxes, gt_boxes = inputs.get(term, *term.reads)
    return OverlapTerm(xyxy_to_cxcywh(boxes), gt_boxes, boxes.new_ones(2), term.weight, term.iou_mode)


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

    @property
    def reads(self) -> frozenset[str]:
        """Names of the fields of `MatchInputs` that its terms look at."""
        return fields_read(self.terms)

    def _split(self) -> tuple[ClassTerm | None, list[BoxL1Term], IoUTerm | None, list[CostTerm]]:
        """A class cost, the distances and the overlap that are computed with it in one pass, and the other terms.

        The overlap is GIoU only: the pass takes centres and sizes, and a box with an infinite corner has none, which
        GIoU makes NaN anyway and IoU does not.
        """
        class_term: ClassTerm | None = None
        distances: list[BoxL1Term] = []
        overlap: IoUTerm | None = None
        others: list[CostTerm] = []
        has_class = any(isinstance(term, ClassTerm) for term in self.terms)
        for term in self.terms:
            if isinstance(term, ClassTerm) and class_term is None:
                class_term = term
            elif isinstance(term, BoxL1Term) and has_class and len(distances) < _MAX_DISTANCES:
                distances.append(term)
            elif isinstance(term, IoUTerm) and has_class and overlap is None and term.iou_mode == "giou":
                overlap = term
            else:
                others.append(term)
        return class_term, distances, overlap, others

    @torch.no_grad()
    def _cost(self, inputs: MatchInputs, num_gt: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Match costs [..., G, P], and their minima where they come from one pass."""
        inputs = inputs.widened()
        class_term, distances, overlap, others = self._split()
        extra = functools.reduce(torch.add, [term(inputs) for term in others]) if others else None
        if class_term is None:
            assert extra is not None  # there is a term
            return extra, None
        logits, labels = inputs.get(class_term, *class_term.reads)
        if extra is not None and extra.shape[:-2] != logits.shape[:-2]:
            lead = torch.broadcast_shapes(extra.shape[:-2], logits.shape[:-2])
            logits = logits.expand(*lead, *logits.shape[-2:])
        overlaps = None if overlap is None else _overlap_in_pixels(overlap, inputs)
        centered = None if overlaps is None else overlaps.preds
        fused = match_cost(
            logits,
            labels,
            class_term.cost,
            l1=[L1Term(*term.coded(inputs, centered), term.weight) for term in distances],
            overlap=overlaps,
            extra=extra,
            num_gt=num_gt,
            replace_nonfinite=False,
        )
        return fused.cost, fused.minima

    def cost(self, inputs: MatchInputs, num_gt: Tensor | None = None) -> Tensor:
        """Match costs [..., G, P]; with `num_gt` [...], rows beyond are filler."""
        return self._cost(inputs, num_gt)[0]

    def match(self, inputs: MatchInputs) -> Tensor:
        """Assignment of one sample.

        Args:
            inputs: its predictions and objects, without leading dimensions.

        Returns:
            Object of each prediction [P] int64, -1 for background.

        Raises:
            ValueError: costs with NaN or -inf, or +inf that leaves an object without a prediction; or something that a
                term reads is missing.
        """
        cost, minima = self._cost(inputs, None)
        return linear_assignment(cost, solver=self.solver, check=True, minima=minima).gt_of_pred

    def assign_batch(self, inputs: MatchInputs, num_gt: Tensor) -> LinearAssignment:
        """Assignment of every leading index and sample.

        Args:
            inputs: predictions [..., B, P, .], padded ground truth [B, G, .].
            num_gt: [B] int32 or int64, objects per sample.

        Returns:
            The assignment [..., B]; a problem whose costs contain NaN or -inf has no pairs and status 2.

        Raises:
            ValueError: shapes do not fit, or something that a term reads is missing.
        """
        with stage("cost"):
            cost, minima = self._cost(inputs, num_gt)
        with stage("matching"):
            return linear_assignment(cost, num_gt, solver=self.solver, minima=minima)


@dataclass(frozen=True)
class BoxCodeMatcher3D(HungarianMatcher3D):
    """3D matching in the box codes of PETR, DETR3D and BEVFormer.

    Attributes:
        cls_cost: classification cost.
        reg_weight: weight of the L1 cost of coded boxes.
        solver: see `linear_assignment`.
        box_code: 'petr' or 'detr3d', see `encode_box3d`.
    """

    box_code: str = "detr3d"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.box_code not in BOX_CODES:
            raise ValueError(f"box_code must be one of {BOX_CODES}, got {self.box_code!r}")

    @property
    def replaces_nonfinite(self) -> bool:
        """Whether NaN and +inf become 100 and -inf becomes -100, as PETR has it; DETR3D and BEVFormer have not."""
        return self.box_code == "petr"

    def encode(self, boxes: Tensor) -> Tensor:
        """Ground truth [..., 7 or 9] as the head regresses it [..., 8 or 10], see `encode_box3d`."""
        return encode_box3d(boxes, self.box_code)

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
            box_preds: [..., P, 8 or 10] coded boxes.
            gt_boxes: [..., G, 7 or 9] ground truth, gravity centre (leading dimensions broadcast).
            gt_labels: [..., G] int64.
            code_weights: factor of each box coordinate, as many as `box_preds` has; none: 1.
            with_velo: whether velocity counts; otherwise the first eight coordinates do.
            num_gt: [...] objects per sample; none: G.

        Returns:
            [..., G, P].

        Raises:
            ValueError: shapes, columns or the number of `code_weights` do not fit.
        """
        box_preds = widened(box_preds)
        targets = self.encode(gt_boxes.to(box_preds.dtype))
        width = 10 if with_velo else 8
        if min(box_preds.shape[-1], targets.shape[-1]) < width:
            raise ValueError(
                f"coded boxes must have at least {width} columns when with_velo is {with_velo}, "
                f"got {box_preds.shape[-1]} predicted and {targets.shape[-1]} of the ground truth"
            )
        factors = None if code_weights is None else row_tensor(code_weights, box_preds)
        if factors is not None:
            if factors.shape != box_preds.shape[-1:]:
                raise ValueError(f"code_weights must have {box_preds.shape[-1]} entries, got {tuple(factors.shape)}")
            factors = factors[:width]
        l1 = L1Term(box_preds[..., :width], targets[..., :width], self.reg_weight, factors)
        return match_cost(
            cls_logits, gt_labels, self.cls_cost, l1=[l1], num_gt=num_gt, replace_nonfinite=self.replaces_nonfinite
        )

    def match(self, *args: Any, **kwargs: Any) -> Tensor:
        """Object of each prediction of one sample [P] int64, -1 for background; arguments as in `match_cost`.

        Raises:
            ValueError: with 'detr3d', costs with NaN or -inf, or +inf that leaves an object without a prediction.
        """
        cost = self.match_cost(*args, **kwargs)
        check = not self.replaces_nonfinite
        return linear_assignment(cost.cost, solver=self.solver, check=check, minima=cost.minima).gt_of_pred


class OverlapAssignment(NamedTuple):
    """The fields of `LinearAssignment`, and the overlaps of the pairs.

    Attributes:
        pred_of_gt: [..., G] int64.
        gt_of_pred: [..., P] int64.
        status: [...] int8.
        max_overlaps: [..., P] 3D IoU of each prediction with its object; 0 for background.
    """

    pred_of_gt: Tensor
    gt_of_pred: Tensor
    status: Tensor
    max_overlaps: Tensor

    def pairs(self) -> IndexPairs:
        """See `LinearAssignment.pairs`."""
        return index_pairs(self.pred_of_gt, self.gt_of_pred)


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
        self,
        cls_logits: Tensor,
        boxes: Tensor,
        gt_boxes: Tensor,
        gt_labels: Tensor,
        pc_range: Sequence[float],
        num_gt: Tensor | None = None,
    ) -> tuple[MatchCost, Tensor]:
        """Match costs with their minima, and 3D IoU [..., G, P].

        Args:
            cls_logits: [..., P, C] logits.
            boxes: [..., P, 7 or more] decoded boxes.
            gt_boxes: [..., G, 7 or more] ground truth (leading dimensions broadcast).
            gt_labels: [..., G] int64.
            pc_range: lowest x, y, z and highest x, y, z (m), host numbers.
            num_gt: [...] objects per sample; none: G.

        Returns:
            Both [..., G, P].

        Raises:
            ValueError: shapes or `pc_range` do not fit.
        """
        boxes = widened(boxes)
        gt_boxes = gt_boxes.to(boxes.dtype)
        overlaps = box3d_iou(boxes, gt_boxes, z_origin="bottom")
        l1 = L1Term(centers_in_range(boxes, pc_range), centers_in_range(gt_boxes, pc_range), self.reg_weight)
        cost = match_cost(
            cls_logits,
            gt_labels,
            self.cls_cost,
            l1=[l1],
            extra=overlaps,
            extra_weight=-self.iou_weight,
            num_gt=num_gt,
            replace_nonfinite=False,
        )
        return cost, overlaps

    def match(
        self, cls_logits: Tensor, boxes: Tensor, gt_boxes: Tensor, gt_labels: Tensor, pc_range: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        """Assignment of one sample.

        Args:
            cls_logits: [P, C] logits.
            boxes: [P, 7 or more] decoded boxes.
            gt_boxes: [G, 7 or more] ground truth.
            gt_labels: [G] int64.
            pc_range: lowest x, y, z and highest x, y, z (m), host numbers.

        Returns:
            Object of each prediction [P] int64, -1 for background, and 3D IoU of each with its object [P].

        Raises:
            ValueError: shapes or `pc_range` do not fit, or the costs contain NaN or infinities.
        """
        cost, overlaps = self.cost_and_overlaps(cls_logits, boxes, gt_boxes, gt_labels, pc_range)
        gt_of_pred = linear_assignment(cost.cost, solver=self.solver, check=True, minima=cost.minima).gt_of_pred
        return gt_of_pred, _overlaps_of_pairs(overlaps, gt_of_pred)

    def assign_batch(
        self,
        cls_logits: Tensor,
        boxes: Tensor,
        gt_boxes: RaggedBatch,
        gt_labels: RaggedBatch,
        pc_range: Sequence[float],
    ) -> OverlapAssignment:
        """Assignment of every leading index and sample.

        Args:
            cls_logits: [..., B, P, C] logits.
            boxes: [..., B, P, 7 or more] decoded boxes.
            gt_boxes: [B, G, 7 or more] ground truth.
            gt_labels: [B, G] int64.
            pc_range: lowest x, y, z and highest x, y, z (m), host numbers.

        Returns:
            The assignment [..., B], and the overlaps of its pairs.

        Raises:
            TypeError: the ground truth is no RaggedBatch.
            ValueError: shapes, `pc_range` or numbers of objects do not fit.
        """
        check_same_objects(gt_boxes=gt_boxes, gt_labels=gt_labels)
        with stage("cost"):
            cost, overlaps = self.cost_and_overlaps(
                cls_logits, boxes, gt_boxes.tensor, gt_labels.tensor, pc_range, gt_boxes.sample_sizes
            )
        with stage("matching"):
            found = linear_assignment(cost.cost, gt_boxes.sample_sizes, solver=self.solver, minima=cost.minima)
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
