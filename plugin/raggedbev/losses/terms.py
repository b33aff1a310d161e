"""Loss terms, unreduced: predictions and targets in, one value per row out.

Sums, weights and normalisers are the caller's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "AVG_FACTOR_EPS",
    "L1",
    "BalancedL1",
    "CoordinateLoss",
    "SmoothL1",
    "aligned_iou",
    "balanced_l1_loss",
    "gaussian_focal_loss",
    "giou_loss",
    "l1_loss",
    "one_hot",
    "quality_focal_loss",
    "sigmoid_focal_loss",
    "smooth_l1_loss",
]

AVG_FACTOR_EPS = torch.finfo(torch.float32).eps
"""Added to every normaliser, as mmdet's weighted losses do."""


def one_hot(labels: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """[..., C] with 1 at the label; all zero where the label lies outside [0, num_classes), which is background."""
    return (labels.unsqueeze(-1) == torch.arange(num_classes, device=labels.device)).to(dtype)


def sigmoid_focal_loss(logits: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss (Lin et al. 2017, equation 5).

    Args:
        logits: [..., C].
        labels: [...] int64 class (leading dimensions broadcast); outside [0, C): background.
        alpha: weight of positives.
        gamma: focusing exponent.

    Returns:
        [..., C].
    """
    target = one_hot(labels, logits.shape[-1], logits.dtype).expand_as(logits)
    prob = logits.sigmoid()
    miss = (1 - prob) * target + prob * (1 - target)
    weight = (alpha * target + (1 - alpha) * (1 - target)) * miss.pow(gamma)
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none") * weight


def quality_focal_loss(logits: Tensor, labels: Tensor, quality: Tensor, beta: float = 2.0) -> Tensor:
    """Quality focal loss (Li et al. 2020, equation 5).

    Args:
        logits: [..., C].
        labels: [...] int64 class (leading dimensions broadcast); outside [0, C): background.
        quality: [...] target score of the row's class, without gradient.
        beta: exponent of the distance between score and target.

    Returns:
        [..., C].
    """
    positive = one_hot(labels, logits.shape[-1], torch.bool)
    target = torch.where(positive, quality.unsqueeze(-1), 0.0)
    distance = torch.where(positive, target - logits.sigmoid(), logits.sigmoid()).abs()
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none") * distance.pow(beta)


def gaussian_focal_loss(logits: Tensor, heatmap: Tensor, alpha: float = 2.0, gamma: float = 4.0) -> Tensor:
    """Focal loss on Gaussian targets (Law and Deng 2018, equation 1), the probability clamped to [1e-4, 1 - 1e-4].

    Args:
        logits: [...].
        heatmap: [...] targets in [0, 1]; cells equal to 1 are positives. The discount is computed in its own precision.
        alpha: focusing exponent.
        gamma: exponent that discounts negatives near a peak.

    Returns:
        [...].
    """
    eps = 1e-12
    prob = logits.sigmoid().clamp(min=1e-4, max=1 - 1e-4)
    positive = -(prob + eps).log() * (1 - prob).pow(alpha) * (heatmap == 1)
    negative = -(1 - prob + eps).log() * prob.pow(alpha) * (1 - heatmap).pow(gamma)
    return positive + negative


def l1_loss(preds: Tensor, targets: Tensor) -> Tensor:
    """Absolute difference: [...] and [...] -> [...]."""
    return (preds - targets).abs()


def smooth_l1_loss(preds: Tensor, targets: Tensor, beta: float = 1.0) -> Tensor:
    """Absolute difference, a parabola below `beta` (Girshick 2015, equation 3).

    Args:
        preds: [...].
        targets: [...].
        beta: difference where the parabola ends, above 0.

    Returns:
        [...].
    """
    difference = (preds - targets).abs()
    small = difference.clamp(max=beta)  # an infinite difference would make the parabola's gradient NaN
    return torch.where(difference < beta, 0.5 * small * small / beta, difference - 0.5 * beta)


def balanced_l1_loss(
    preds: Tensor, targets: Tensor, alpha: float = 0.5, gamma: float = 1.5, beta: float = 1.0
) -> Tensor:
    """Balanced L1 loss (Pang et al. 2019, equations 7 to 9): small differences weigh more than in smooth L1.

    Args:
        preds: [...].
        targets: [...].
        alpha: weight of small differences, above 0.
        gamma: slope of large differences.
        beta: difference from which on the loss is linear, above 0.

    Returns:
        [...].
    """
    difference = (preds - targets).abs()
    b = math.exp(gamma / alpha) - 1
    small = difference.clamp(max=beta)  # an infinite difference would make the curve's gradient NaN
    curve = alpha / b * (b * small + 1) * (b * small / beta + 1).log() - alpha * small
    return torch.where(difference < beta, curve, gamma * difference + gamma / b - alpha * beta)


class CoordinateLoss(Protocol):
    """Loss of every coordinate of a box, zero where prediction and target are equal."""

    def __call__(self, preds: Tensor, targets: Tensor) -> Tensor:
        """[..., D] and [..., D] -> [..., D]."""


@dataclass(frozen=True)
class L1:
    """Absolute difference of every coordinate."""

    def __call__(self, preds: Tensor, targets: Tensor) -> Tensor:
        return l1_loss(preds, targets)


@dataclass(frozen=True)
class SmoothL1:
    """Smooth L1 loss of every coordinate (Girshick 2015, equation 3).

    Attributes:
        beta: difference where the parabola ends, above 0.
    """

    beta: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("SmoothL1", beta=self.beta)

    def __call__(self, preds: Tensor, targets: Tensor) -> Tensor:
        return smooth_l1_loss(preds, targets, self.beta)


@dataclass(frozen=True)
class BalancedL1:
    """Balanced L1 loss of every coordinate (Pang et al. 2019, equations 7 to 9).

    Attributes:
        alpha: weight of small differences, above 0.
        gamma: slope of large differences.
        beta: difference from which on the loss is linear, above 0.
    """

    alpha: float = 0.5
    gamma: float = 1.5
    beta: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("BalancedL1", alpha=self.alpha, beta=self.beta)

    def __call__(self, preds: Tensor, targets: Tensor) -> Tensor:
        return balanced_l1_loss(preds, targets, self.alpha, self.gamma, self.beta)


def _check_positive(loss: str, **values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} of {loss} must be above 0, got {value}")


def _area(size: Tensor) -> Tensor:
    """Width times height, [..., 2] -> [...]; the gradient of `prod` would look for zeros on the host."""
    return size[..., 0] * size[..., 1]


def _overlap_and_union(boxes: Tensor, targets: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    low, high = boxes[..., :2].maximum(targets[..., :2]), boxes[..., 2:].minimum(targets[..., 2:])
    overlap = _area((high - low).clamp(min=0))
    areas = _area(boxes[..., 2:] - boxes[..., :2]) + _area(targets[..., 2:] - targets[..., :2])
    return overlap, (areas - overlap).clamp(min=eps)


def aligned_iou(boxes: Tensor, targets: Tensor, eps: float = 1e-6) -> Tensor:
    """Overlap of each box with its own target: [..., 4] corners in pixels -> [...]; the union is at least `eps`."""
    overlap, union = _overlap_and_union(boxes, targets, eps)
    return overlap / union


def giou_loss(boxes: Tensor, targets: Tensor, eps: float = 1e-6) -> Tensor:
    """1 - generalised IoU (Rezatofighi et al. 2019).

    Args:
        boxes: [..., 4] corners in pixels.
        targets: [..., 4] corners in pixels.
        eps: lower bound of union and enclosing area, in square pixels.

    Returns:
        [...] in [0, 2].
    """
    overlap, union = _overlap_and_union(boxes, targets, eps)
    low, high = boxes[..., :2].minimum(targets[..., :2]), boxes[..., 2:].maximum(targets[..., 2:])
    enclosed = _area((high - low).clamp(min=0)).clamp(min=eps)
    return 1 - (overlap / union - (enclosed - union) / enclosed)
