"""Terms of a match cost that is a list of weighted terms (DETR and its descendants in mmdet).

Every term is called with the same `MatchInputs`, says in `reads` which of them it looks at, and gives one [..., G, P];
the cost is their sum. Leading dimensions broadcast, filler stays in its own rows, half types are converted to float32,
no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from raggedbev.matching import costs
from raggedbev.matching.costs import ClassCost, widened

__all__ = [
    "BoxL1Term",
    "ClassTerm",
    "CostTerm",
    "IoUTerm",
    "MaskCrossEntropyTerm",
    "MaskDiceTerm",
    "MaskFocalTerm",
    "MatchInputs",
    "fields_read",
]


@dataclass(frozen=True, eq=False)
class MatchInputs:
    """What terms look at; only what the chosen terms ask for has to be there.

    Attributes:
        cls_logits: [..., P, C] logits.
        gt_labels: [..., G] int64.
        boxes: [..., P, 4] corners in pixels.
        gt_boxes: [..., G, 4] corners in pixels.
        image_size: [2] or [..., 2] width and height in pixels.
        masks: [..., P, N] mask logits (or probabilities, see `MaskDiceTerm`) of N points.
        gt_masks: [..., G, N] 0 or 1 (any type).
    """

    cls_logits: Tensor | None = None
    gt_labels: Tensor | None = None
    boxes: Tensor | None = None
    gt_boxes: Tensor | None = None
    image_size: Tensor | None = None
    masks: Tensor | None = None
    gt_masks: Tensor | None = None

    def widened(self) -> MatchInputs:
        """Floating-point tensors detached, half types as float32."""
        values = {name: getattr(self, name) for name in _FIELDS}
        return MatchInputs(**{name: widened(value) for name, value in values.items() if value is not None})

    def get(self, term: object, *names: str) -> list[Tensor]:
        """The tensors of these names; a ValueError names the first that is missing."""
        found = []
        for name in names:
            value = getattr(self, name)
            if value is None:
                raise ValueError(f"{type(term).__name__} needs {name}, and there is none")
            found.append(value)
        return found


_FIELDS = tuple(entry.name for entry in fields(MatchInputs))

CostTerm = Callable[[MatchInputs], Tensor]


def fields_read(terms: Sequence[CostTerm]) -> frozenset[str]:
    """Names of the fields of `MatchInputs` that these terms read: `reads` of each; all, if one does not say."""
    return frozenset(name for term in terms for name in getattr(term, "reads", _FIELDS))


@dataclass(frozen=True)
class ClassTerm:
    """Classification cost."""

    reads: ClassVar[tuple[str, ...]] = ("cls_logits", "gt_labels")
    cost: ClassCost

    def __call__(self, inputs: MatchInputs) -> Tensor:
        return self.cost(*inputs.get(self, *self.reads))


@dataclass(frozen=True)
class BoxL1Term:
    """L1 distance of boxes in units of the image.

    Attributes:
        weight: factor of the cost.
        box_format: boxes are compared as 'xyxy' (corners) or 'xywh' (centre and size).
    """

    reads: ClassVar[tuple[str, ...]] = ("boxes", "gt_boxes", "image_size")
    weight: float = 1.0
    box_format: str = "xyxy"

    def __post_init__(self) -> None:
        if self.box_format not in ("xywh", "xyxy"):
            raise ValueError(f"box_format must be 'xywh' or 'xyxy', got {self.box_format!r}")

    def coded(self, inputs: MatchInputs, centered: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Predictions [..., P, 4] and objects [..., G, 4] whose distance counts.

        Args:
            inputs: what is compared.
            centered: [..., P, 4] its `boxes` as centre and size, if somebody has made them already.
        """
        boxes, gt_boxes, size = inputs.get(self, *self.reads)
        gt_boxes = gt_boxes.to(boxes.dtype)
        if self.box_format == "xywh":
            boxes = costs.xyxy_to_cxcywh(boxes) if centered is None else centered
            gt_boxes = costs.xyxy_to_cxcywh(gt_boxes)
        size = torch.cat([size, size], dim=-1).to(boxes.dtype).unsqueeze(-2)
        return boxes / size, gt_boxes / size

    def __call__(self, inputs: MatchInputs) -> Tensor:
        return costs.l1_cost(*self.coded(inputs)).mul_(self.weight)


@dataclass(frozen=True)
class IoUTerm:
    """Negative overlap of boxes in pixels.

    Attributes:
        weight: factor of the cost.
        iou_mode: 'giou' or 'iou'.
    """

    reads: ClassVar[tuple[str, ...]] = ("boxes", "gt_boxes")
    weight: float = 1.0
    iou_mode: str = "giou"

    def __post_init__(self) -> None:
        if self.iou_mode not in ("iou", "giou"):
            raise ValueError(f"iou_mode must be 'iou' or 'giou', got {self.iou_mode!r}")

    def __call__(self, inputs: MatchInputs) -> Tensor:
        boxes, gt_boxes = inputs.get(self, *self.reads)
        return costs.iou_cost(boxes, gt_boxes.to(boxes.dtype), weight=self.weight, iou_mode=self.iou_mode)


def _products(gt_masks: Tensor, masks: Tensor) -> Tensor:
    """Sums of products over points, not shortened by autocast: [..., G, N], [..., P, N] -> [..., G, P]."""
    with torch.autocast(masks.device.type, enabled=False):
        return gt_masks @ masks.transpose(-1, -2)


def _match_points(on: Tensor, off: Tensor, gt_masks: Tensor) -> Tensor:
    """Sum over points of `on` inside and `off` outside the object: [..., P, N] twice, [..., G, N] -> [..., G, P]."""
    gt_masks = gt_masks.to(on.dtype)
    return _products(gt_masks, on) + _products(1 - gt_masks, off)


@dataclass(frozen=True)
class MaskFocalTerm:
    """Mean focal loss of the points of a mask.

    Attributes:
        weight: factor of the cost.
        alpha: weight of points of the object.
        gamma: focusing exponent.
        eps: added inside logarithms.
    """

    reads: ClassVar[tuple[str, ...]] = ("masks", "gt_masks")
    weight: float = 1.0
    alpha: float = 0.25
    gamma: float = 2.0
    eps: float = 1e-12

    def __call__(self, inputs: MatchInputs) -> Tensor:
        masks, gt_masks = inputs.get(self, *self.reads)
        prob = masks.sigmoid()
        off = -(1 - prob + self.eps).log() * (1 - self.alpha) * prob.pow(self.gamma)
        on = -(prob + self.eps).log() * self.alpha * (1 - prob).pow(self.gamma)
        return _match_points(on, off, gt_masks).div_(masks.shape[-1]).mul_(self.weight)


@dataclass(frozen=True)
class MaskCrossEntropyTerm:
    """Mean binary cross entropy of the points of a mask, from logits."""

    reads: ClassVar[tuple[str, ...]] = ("masks", "gt_masks")
    weight: float = 1.0

    def __call__(self, inputs: MatchInputs) -> Tensor:
        masks, gt_masks = inputs.get(self, *self.reads)
        return _match_points(F.softplus(-masks), F.softplus(masks), gt_masks).div_(masks.shape[-1]).mul_(self.weight)


@dataclass(frozen=True)
class MaskDiceTerm:
    """Dice loss of masks (Milletari et al. 2016).

    Attributes:
        weight: factor of the cost.
        pred_act: masks are logits, and their sigmoid is taken; otherwise they are probabilities.
        eps: added to numerator and denominator.
        naive_dice: the denominator adds up the masks; otherwise their squares.
    """

    reads: ClassVar[tuple[str, ...]] = ("masks", "gt_masks")
    weight: float = 1.0
    pred_act: bool = False
    eps: float = 1e-3
    naive_dice: bool = True

    def __call__(self, inputs: MatchInputs) -> Tensor:
        masks, gt_masks = inputs.get(self, *self.reads)
        masks = masks.sigmoid() if self.pred_act else masks
        gt_masks = gt_masks.to(masks.dtype)
        shared = 2 * _products(gt_masks, masks)
        if not self.naive_dice:
            masks, gt_masks = masks.square(), gt_masks.square()
        whole = gt_masks.sum(-1).unsqueeze(-1) + masks.sum(-1).unsqueeze(-2)
        return (1 - (shared + self.eps) / (whole + self.eps)).mul_(self.weight)
