"""Loss terms, unreduced: predictions and targets in, one value per row out.

Sums, weights and normalisers are the caller's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "AVG_FACTOR_EPS",
    "aligned_iou",
    "gaussian_focal_loss",
    "giou_loss",
    "one_hot",
    "quality_focal_loss",
    "sigmoid_focal_loss",
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
