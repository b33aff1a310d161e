"""Matching one sample at a time, as the published assigners do it.

It is the meaning of the batched matchers, and the benchmark's baseline.

In: predictions of one decoder layer and sample (or image) and its objects. Out: the object of each prediction. Costs
are built as [P, G], every call reads the device several times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from raggedbev.matching.costs import ClassCost, cxcywh_to_xyxy, normalize_box3d, row_tensor, xyxy_to_cxcywh
from raggedbev.matching.hungarian import HungarianMatcher2D, HungarianMatcher3D
from raggedbev.profiling.stages import stage

__all__ = ["ARMS", "PerSampleMatcher2D", "PerSampleMatcher3D"]

ARMS = ("published", "reference")


def _check_arm(arm: str) -> None:
    if arm not in ARMS:
        raise ValueError(f"arm must be one of {ARMS}, got {arm!r}")


def _class_cost(cost: ClassCost, logits: Tensor, labels: Tensor) -> Tensor:
    """[P, C], [G] -> [P, G]; a label outside [0, C) costs nothing."""
    num_classes = logits.shape[-1]
    known = (labels >= 0) & (labels < num_classes)
    index = labels.clamp(0, num_classes - 1)
    if cost.kind == "softmax":
        return -logits.softmax(-1)[:, index] * known * cost.weight
    prob = logits.sigmoid()
    negative = -(1 - prob + cost.eps).log() * (1 - cost.alpha) * prob.pow(cost.gamma)
    positive = -(prob + cost.eps).log() * cost.alpha * (1 - prob).pow(cost.gamma)
    picked = positive[:, index] - negative[:, index]
    return torch.where(known, picked, 0.0) * cost.weight


def _overlaps(preds: Tensor, targets: Tensor, mode: str, eps: float = 1e-6) -> Tensor:
    """IoU or GIoU of [P, 4] and [G, 4] corners in pixels: [P, G]."""
    preds, targets = preds[:, None], targets[None]
    sides = (torch.minimum(preds[..., 2:], targets[..., 2:]) - torch.maximum(preds[..., :2], targets[..., :2])).clamp(
        min=0
    )
    overlap = sides[..., 0] * sides[..., 1]
    areas = [(box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1]) for box in (preds, targets)]
    union = (areas[0] + areas[1] - overlap).clamp(min=eps)
    if mode == "iou":
        return overlap / union
    sides = (torch.maximum(preds[..., 2:], targets[..., 2:]) - torch.minimum(preds[..., :2], targets[..., :2])).clamp(
        min=0
    )
    enclosed = (sides[..., 0] * sides[..., 1]).clamp(min=eps)
    return overlap / union - (enclosed - union) / enclosed


def _solve(cost: Tensor, arm: str) -> tuple[Tensor, Tensor]:
    """Cost [P, G] -> matched predictions and their objects, on the host."""
    if arm == "published":
        cost = torch.nan_to_num(cost.cpu(), nan=100.0, posinf=100.0, neginf=-100.0)
    else:
        cost = torch.nan_to_num(cost, nan=100.0, posinf=100.0, neginf=-100.0).cpu()
    preds, objects = linear_sum_assignment(cost)
    return torch.from_numpy(preds), torch.from_numpy(objects)


def _object_of_pred(pairs: tuple[Tensor, Tensor], num_preds: int, device: torch.device) -> Tensor:
    gt_of_pred = torch.full((num_preds,), -1, dtype=torch.long, device=device)
    preds, objects = (index.to(device) for index in pairs)
    gt_of_pred[preds] = objects
    return gt_of_pred


@dataclass(frozen=True)
class PerSampleMatcher3D:
    """3D matching of one sample.

    Attributes:
        config: weights of the costs.
        arm: 'published' replaces non-finite costs on the host, 'reference' on the device; same results.
    """

    config: HungarianMatcher3D = field(default_factory=HungarianMatcher3D)
    arm: str = "reference"

    def __post_init__(self) -> None:
        _check_arm(self.arm)

    @torch.no_grad()
    def match(
        self,
        cls_logits: Tensor,
        box_preds: Tensor,
        gt_boxes: Tensor,
        gt_labels: Tensor,
        code_weights: Sequence[float] | Tensor | None = None,
        with_velo: bool = False,
    ) -> Tensor:
        """[P, C], [P, 10] against [G, 9], [G]: object of each prediction [P] int64, -1 for background."""
        if len(gt_boxes) == 0 or len(box_preds) == 0:
            return torch.full((len(box_preds),), -1, dtype=torch.long, device=box_preds.device)
        with stage("cost"):
            targets = normalize_box3d(gt_boxes.to(box_preds.dtype))
            if code_weights is not None:
                factors = row_tensor(code_weights, box_preds)
                box_preds, targets = box_preds * factors, targets * factors
            if not with_velo:
                box_preds, targets = box_preds[:, :8], targets[:, :8]
            cost = _class_cost(self.config.cls_cost, cls_logits, gt_labels)
            cost = cost + torch.cdist(box_preds, targets, p=1) * self.config.reg_weight
        with stage("matching"):
            return _object_of_pred(_solve(cost, self.arm), len(box_preds), box_preds.device)


@dataclass(frozen=True)
class PerSampleMatcher2D:
    """2D matching of one image; attributes as in `PerSampleMatcher3D`."""

    config: HungarianMatcher2D = field(default_factory=HungarianMatcher2D)
    arm: str = "reference"

    def __post_init__(self) -> None:
        _check_arm(self.arm)

    @torch.no_grad()
    def match(
        self,
        cls_logits: Tensor,
        box_preds: Tensor,
        center_preds: Tensor,
        gt_boxes: Tensor,
        gt_labels: Tensor,
        gt_centers: Tensor,
        pad_shape: tuple[int, int],
    ) -> Tensor:
        """[P, C], [P, 4], [P, 2] against [G, 4], [G], [G, 2]: object of each prediction [P] int64, else -1."""
        if len(gt_boxes) == 0 or len(box_preds) == 0:
            return torch.full((len(box_preds),), -1, dtype=torch.long, device=box_preds.device)
        with stage("cost"):
            config, height, width = self.config, *pad_shape
            size = box_preds.new_tensor([width, height, width, height])
            gt_boxes, gt_centers = gt_boxes.to(box_preds.dtype), gt_centers.to(box_preds.dtype)
            if config.box_format == "xywh":
                reg = torch.cdist(box_preds, xyxy_to_cxcywh(gt_boxes / size), p=1)
            else:
                reg = torch.cdist(cxcywh_to_xyxy(box_preds), gt_boxes / size, p=1)
            overlap = _overlaps(cxcywh_to_xyxy(box_preds) * size, gt_boxes, config.iou_mode)
            cost = reg * config.reg_weight + _class_cost(config.cls_cost, cls_logits, gt_labels)
            cost = cost - overlap * config.iou_weight
            cost = cost + torch.cdist(center_preds, gt_centers / size[:2], p=1) * config.center_weight
        with stage("matching"):
            return _object_of_pred(_solve(cost, self.arm), len(box_preds), box_preds.device)
