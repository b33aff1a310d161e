"""Match costs: predictions and padded ground truth in, cost matrices [..., G, P] out.

Ground truth forms the rows, so that a solver reads one object's costs as one contiguous row. Leading dimensions
broadcast: ground truth [B, G, ...] against the predictions of all decoder layers [L, B, P, ...] gives [L, B, G, P].
Every entry depends on its own object and prediction only, so filler never influences valid entries; what stands in
filler rows is unspecified.
Match costs carry no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "ClassCost",
    "bbox_l1_cost",
    "box3d_l1_cost",
    "center_l1_cost",
    "check_number",
    "classification_cost",
    "cxcywh_to_xyxy",
    "focal_loss_cost",
    "iou_cost",
    "l1_cost",
    "normalize_box3d",
    "replace_nonfinite_",
    "row_tensor",
    "widened",
    "xyxy_to_cxcywh",
]


def widened(values: Tensor) -> Tensor:
    """`values` detached, half types as float32: their range is too small for the logarithms of a class cost."""
    values = values.detach()
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def check_number(name: str, value: float) -> None:
    """TypeError for what is no number, ValueError for NaN."""
    try:
        is_nan = float(value) != float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if is_nan:
        raise ValueError(f"{name} must be a number, got {value}")


def _comparable(preds: Tensor, targets: Tensor, width: int | None = None) -> tuple[Tensor, Tensor]:
    """Both in one floating-point type, half types and integers as float32; a ValueError unless they are as wide."""
    widths = [values.shape[-1] if values.dim() > 1 else None for values in (preds, targets)]
    if None in widths or widths[0] != widths[1] or width not in (None, widths[0]):
        what = "the same width" if width is None else f"width {width}"
        raise ValueError(
            f"preds [..., P, D] and targets [..., G, D] must have {what}, "
            f"got {tuple(preds.shape)} and {tuple(targets.shape)}"
        )
    dtype = torch.promote_types(torch.promote_types(preds.dtype, targets.dtype), torch.float32)
    return preds.detach().to(dtype), targets.detach().to(dtype)


def row_tensor(values: Sequence[float] | Tensor, like: Tensor) -> Tensor:
    """[len(values)] in dtype and on the device of `like`; host numbers are filled in there, not copied."""
    if isinstance(values, Tensor):
        return values.to(like)
    if like.device.type == "cpu":
        return torch.tensor([float(value) for value in values], dtype=like.dtype)
    return torch.cat([torch.full((1,), float(value), dtype=like.dtype, device=like.device) for value in values])


def normalize_box3d(boxes: Tensor) -> Tensor:
    """Boxes as the 3D head predicts them.

    Args:
        boxes: [..., 9]: centre x, y, z, length, width, height (m), yaw (rad), velocity x, y (m/s).

    Returns:
        [..., 10]: x, y, z, log of the three dimensions, sin yaw, cos yaw, velocity x, y. Non-finite where a dimension
        is not positive.

    Raises:
        ValueError: another number of columns.
    """
    if boxes.shape[-1] != 9:
        raise ValueError(f"boxes must have 9 columns, the last two for velocity, got {tuple(boxes.shape)}")
    center, dims, yaw, velocity = boxes.split([3, 3, 1, 2], dim=-1)
    return torch.cat([center, dims.log(), yaw.sin(), yaw.cos(), velocity], dim=-1)


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """[..., 4] centre and size to corners."""
    center, half = boxes[..., :2], boxes[..., 2:] * 0.5
    return torch.cat([center - half, center + half], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """[..., 4] corners to centre and size."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def replace_nonfinite_(cost: Tensor) -> Tensor:
    """NaN and +inf as 100 and -inf as -100, as StreamPETR's matching has it; in place."""
    return cost.nan_to_num_(nan=100.0, posinf=100.0, neginf=-100.0)


def _class_columns(class_cost: Tensor, labels: Tensor) -> Tensor:
    """Pick each object's class: [..., P, C] and labels [..., G] to [..., G, P]; labels outside [0, C) cost nothing."""
    num_preds, num_classes = class_cost.shape[-2:]
    lead = torch.broadcast_shapes(class_cost.shape[:-2], labels.shape[:-1])
    problems, num_gt = lead.numel(), labels.shape[-1]
    by_class = F.pad(class_cost.detach().transpose(-1, -2), (0, 0, 0, 1))  # [..., C + 1, P], the last row is zero
    by_class = by_class.expand(*lead, num_classes + 1, num_preds).reshape(problems * (num_classes + 1), num_preds)
    known = (labels >= 0) & (labels < num_classes)
    row = torch.where(known, labels, num_classes).expand(*lead, num_gt).reshape(problems, num_gt)
    first = torch.arange(problems, device=row.device) * (num_classes + 1)
    return by_class[row + first.unsqueeze(1)].reshape(*lead, num_gt, num_preds)


def focal_loss_cost(
    cls_logits: Tensor,
    labels: Tensor,
    *,
    weight: float = 1.0,
    alpha: float = 0.25,
    gamma: float = 2.0,
    eps: float = 1e-12,
) -> Tensor:
    """Focal loss of calling a prediction the object's class, less that of calling it background.

    Args:
        cls_logits: [..., P, C] logits.
        labels: [..., G] int64; a label outside [0, C) has class cost 0.
        weight: factor of the result.
        alpha: weight of positives (Lin et al. 2017, equation 5).
        gamma: focusing exponent.
        eps: added inside the logarithms.

    Returns:
        [..., G, P], in float32 for half types.
    """
    prob = widened(cls_logits).sigmoid()
    negative = -(1 - prob + eps).log() * (1 - alpha) * prob.pow(gamma)
    positive = -(prob + eps).log() * alpha * (1 - prob).pow(gamma)
    return _class_columns((positive - negative) * weight, labels)


def classification_cost(cls_logits: Tensor, labels: Tensor, *, weight: float = 1.0) -> Tensor:
    """Negative softmax probability of the object's class (DETR, equation 9): [..., P, C], [..., G] -> [..., G, P]."""
    return _class_columns(widened(cls_logits).softmax(-1) * -weight, labels)


def _rows_and_columns(preds: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Per coordinate, targets as [..., G, 1] and predictions as [..., 1, P], each contiguous along its entries."""
    rows = targets.detach().transpose(-1, -2).contiguous().unsqueeze(-1).unbind(-3)
    columns = preds.detach().transpose(-1, -2).contiguous().unsqueeze(-2).unbind(-3)
    return list(zip(rows, columns, strict=True))


def l1_cost(preds: Tensor, targets: Tensor) -> Tensor:
    """Sum of absolute differences.

    One coordinate at a time is added up, so that memory stays at twice [..., G, P].

    Args:
        preds: [..., P, D].
        targets: [..., G, D] (leading dimensions broadcast).

    Returns:
        [..., G, P] in the wider of both types, in float32 for half types and integers.

    Raises:
        ValueError: the widths D differ.
    """
    preds, targets = _comparable(preds, targets)
    lead = torch.broadcast_shapes(preds.shape[:-2], targets.shape[:-2])
    total = difference = None
    for row, column in _rows_and_columns(preds, targets):
        del difference
        difference = (row - column).abs_()
        total = difference if total is None else total.add_(difference)
    return preds.new_zeros((*lead, targets.shape[-2], preds.shape[-2])) if total is None else total


def box3d_l1_cost(
    box_preds: Tensor,
    targets: Tensor,
    *,
    weight: float = 1.0,
    code_weights: Sequence[float] | Tensor | None = None,
    num_dims: int | None = None,
) -> Tensor:
    """L1 distance of coded 3D boxes.

    Args:
        box_preds: [..., P, D] coded boxes.
        targets: [..., G, D] coded ground truth, see `normalize_box3d`.
        weight: factor of the result.
        code_weights: [D] factor of each coordinate; none: 1.
        num_dims: leading coordinates that count; none: all (8 leaves out velocity).

    Returns:
        [..., G, P], see `l1_cost`.

    Raises:
        ValueError: the widths differ, or there are not D `code_weights`.
    """
    if code_weights is not None:
        factors = row_tensor(code_weights, box_preds)
        if factors.shape != box_preds.shape[-1:]:
            raise ValueError(f"code_weights must have {box_preds.shape[-1]} entries, got {tuple(factors.shape)}")
        box_preds, targets = box_preds * factors, targets * factors
    return l1_cost(box_preds[..., :num_dims], targets[..., :num_dims]).mul_(weight)


def bbox_l1_cost(box_preds: Tensor, gt_boxes: Tensor, *, weight: float = 1.0, box_format: str = "xywh") -> Tensor:
    """L1 distance of 2D boxes.

    Args:
        box_preds: [..., P, 4] centre and size.
        gt_boxes: [..., G, 4] corners, in the same units.
        weight: factor of the result.
        box_format: the representation that is compared: 'xywh' (centre and size) or 'xyxy' (corners).

    Returns:
        [..., G, P], see `l1_cost`.

    Raises:
        ValueError: boxes do not have four columns, or `box_format` is unknown.
    """
    box_preds, gt_boxes = _comparable(box_preds, gt_boxes, width=4)
    if box_format == "xywh":
        return l1_cost(box_preds, xyxy_to_cxcywh(gt_boxes)).mul_(weight)
    if box_format == "xyxy":
        return l1_cost(cxcywh_to_xyxy(box_preds), gt_boxes).mul_(weight)
    raise ValueError(f"box_format must be 'xywh' or 'xyxy', got {box_format!r}")


def center_l1_cost(center_preds: Tensor, gt_centers: Tensor, *, weight: float = 1.0) -> Tensor:
    """L1 distance of 2D centres in the same units: [..., P, 2], [..., G, 2] -> [..., G, P], see `l1_cost`."""
    return l1_cost(*_comparable(center_preds, gt_centers, width=2)).mul_(weight)


def iou_cost(
    pred_boxes: Tensor, gt_boxes: Tensor, *, weight: float = 1.0, iou_mode: str = "giou", eps: float = 1e-6
) -> Tensor:
    """Negative overlap of every object with every prediction.

    Args:
        pred_boxes: [..., P, 4] corners in pixels.
        gt_boxes: [..., G, 4] corners in pixels.
        weight: factor of the result.
        iou_mode: 'iou' or 'giou' (Rezatofighi et al. 2019).
        eps: lower bound of union and enclosing area, in square pixels.

    Returns:
        [..., G, P] in the wider of both types, in float32 for half types and integers.

    Raises:
        ValueError: boxes do not have four columns, or `iou_mode` is unknown.
    """
    if iou_mode not in ("iou", "giou"):
        raise ValueError(f"iou_mode must be 'iou' or 'giou', got {iou_mode!r}")
    pred_boxes, gt_boxes = _comparable(pred_boxes, gt_boxes, width=4)
    (gx0, px0), (gy0, py0), (gx1, px1), (gy1, py1) = _rows_and_columns(pred_boxes, gt_boxes)
    areas = (px1 - px0) * (py1 - py0) + (gx1 - gx0) * (gy1 - gy0)
    overlap = (px1.minimum(gx1) - px0.maximum(gx0)).clamp_min_(0)
    overlap *= (py1.minimum(gy1) - py0.maximum(gy0)).clamp_min_(0)
    union = areas.sub_(overlap).clamp_min_(eps)
    result = overlap / union
    if iou_mode == "giou":
        enclosed = (px1.maximum(gx1) - px0.minimum(gx0)).clamp_min_(0)
        enclosed *= (py1.maximum(gy1) - py0.minimum(gy0)).clamp_min_(0)
        enclosed.clamp_min_(eps)
        result -= (enclosed - union).div_(enclosed)
    return result.mul_(-weight)


@dataclass(frozen=True)
class ClassCost:
    """Which classification cost is used.

    Attributes:
        weight: factor of the cost.
        kind: 'focal' (sigmoid) or 'softmax'.
        alpha: weight of positives, focal only.
        gamma: focusing exponent, focal only.
        eps: added inside logarithms, focal only.
    """

    weight: float = 2.0
    kind: str = "focal"
    alpha: float = 0.25
    gamma: float = 2.0
    eps: float = 1e-12

    def __post_init__(self) -> None:
        if self.kind not in ("focal", "softmax"):
            raise ValueError(f"kind of classification cost must be 'focal' or 'softmax', got {self.kind!r}")
        for name in ("weight", "alpha", "gamma", "eps"):
            check_number(f"{name} of the classification cost", getattr(self, name))

    def __call__(self, cls_logits: Tensor, labels: Tensor) -> Tensor:
        """[..., P, C], [..., G] -> [..., G, P]."""
        if self.kind == "softmax":
            return classification_cost(cls_logits, labels, weight=self.weight)
        return focal_loss_cost(cls_logits, labels, weight=self.weight, alpha=self.alpha, gamma=self.gamma, eps=self.eps)
