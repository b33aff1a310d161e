"""The loss of DETR-like 2D detectors: decoder layers, encoder proposals and denoising queries in, named losses out.

In: kinds of predictions, each with the assignment of all its layers and images. Out: one scalar tensor per key that
mmdet's heads give. Nothing is read from the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from raggedbev.losses.class_loss import focal_loss_sums, quality_focal_loss_sums
from raggedbev.losses.set_prediction import (
    ReduceMean,
    class_targets,
    gather_predictions,
    gather_targets,
    mean_over_ranks,
    num_matched,
    prediction_sum,
)
from raggedbev.losses.terms import AVG_FACTOR_EPS, aligned_iou, giou_loss
from raggedbev.matching import LinearAssignment
from raggedbev.matching.costs import cxcywh_to_xyxy
from raggedbev.ragged import RaggedBatch

__all__ = [
    "ClassLoss",
    "CrossEntropy",
    "Focal",
    "QualityFocal",
    "SetLosses",
    "SetPrediction",
    "denoising_assignment",
    "set_losses",
]


class ClassLoss(Protocol):
    """A class loss, summed per layer."""

    needs_quality: ClassVar[bool]

    def __call__(self, logits: Tensor, labels: Tensor, quality: Tensor | None) -> Tensor:
        """[L, ..., P, C] logits, [L, ..., P] int64 labels, [L, ..., P] overlaps of matched predictions: [L]."""


@dataclass(frozen=True)
class Focal:
    """Sigmoid focal loss; labels outside [0, C) are background."""

    needs_quality: ClassVar[bool] = False
    alpha: float = 0.25
    gamma: float = 2.0

    def __call__(self, logits: Tensor, labels: Tensor, quality: Tensor | None) -> Tensor:
        return focal_loss_sums(logits, labels, alpha=self.alpha, gamma=self.gamma)


@dataclass(frozen=True)
class QualityFocal:
    """Quality focal loss; labels outside [0, C) are background."""

    needs_quality: ClassVar[bool] = True
    beta: float = 2.0

    def __call__(self, logits: Tensor, labels: Tensor, quality: Tensor | None) -> Tensor:
        if quality is None:
            raise ValueError("the quality focal loss needs the overlaps of matched predictions")
        return quality_focal_loss_sums(logits, labels, quality, beta=self.beta)


@dataclass(frozen=True, eq=False)
class CrossEntropy:
    """Softmax cross entropy; the last of the C classes is background, and so are labels outside [0, C).

    Attributes:
        class_weight: [C] factor of each class, or None.
    """

    needs_quality: ClassVar[bool] = False
    class_weight: Tensor | None = None

    def __call__(self, logits: Tensor, labels: Tensor, quality: Tensor | None) -> Tensor:
        background = logits.shape[-1] - 1
        labels = torch.where((labels >= 0) & (labels < background), labels, background)
        weight = None if self.class_weight is None else self.class_weight.to(logits.dtype)
        losses = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), weight, reduction="none")
        return prediction_sum(losses.reshape(labels.shape))


@dataclass(frozen=True)
class SetLosses:
    """Settings of `set_losses`.

    Attributes:
        cls: class loss.
        cls_weight: factor of the class loss.
        bbox_weight: factor of the L1 loss of boxes in units of the image.
        iou_weight: factor of the GIoU loss.
        iou_eps: lower bound of union and enclosing area of the GIoU loss, in square pixels.
        num_classes: the label of background.
        background_weight: what a background prediction counts in the normaliser of the class loss; an object counts 1.
        sync_cls_avg_factor: whether that normaliser is averaged over ranks.
    """

    cls: ClassLoss
    cls_weight: float
    bbox_weight: float
    iou_weight: float
    iou_eps: float
    num_classes: int
    background_weight: float = 0.0
    sync_cls_avg_factor: bool = False


@dataclass(frozen=True, eq=False)
class SetPrediction:
    """Predictions of L layers with their assignment.

    *S are the problems of a layer: [B] images, or [B, groups] of denoising queries.

    Attributes:
        logits: [L, *S, P, C].
        boxes: [L, *S, P, 4] centre and size in units of the image.
        gt_labels: [*S, G] int64 (dimensions of size 1 broadcast).
        gt_boxes: [*S, G, 4] centre and size in units of the image (dimensions of size 1 broadcast).
        image_size: [*S, 1, 4] width, height, width, height in pixels (dimensions of size 1 broadcast).
        assignment: of predictions [L, *S, P] and objects [L, *S, G].
        num_negatives: background predictions per layer [L] that the class normaliser counts.
    """

    logits: Tensor
    boxes: Tensor
    gt_labels: RaggedBatch
    gt_boxes: Tensor
    image_size: Tensor
    assignment: LinearAssignment
    num_negatives: Tensor


def denoising_assignment(
    sizes: Tensor, num_objects: int, num_queries: int, groups: int, layers: int
) -> LinearAssignment:
    """The assignment that denoising queries are made with: query i of each group answers for object i.

    Args:
        sizes: [B] objects of each image.
        num_objects: G, padded number of objects.
        num_queries: Q, queries of a group; those beyond an image's objects are background.
        groups: groups of queries.
        layers: L.

    Returns:
        Of predictions [L, B, groups, Q] and objects [L, B, groups, G].
    """

    def numbered(length: int) -> Tensor:
        index = torch.arange(length, device=sizes.device)
        own = torch.where(index < sizes.unsqueeze(1), index, -1)  # [B, length]
        return own.unsqueeze(1).expand(layers, -1, groups, -1)

    status = torch.zeros((layers, len(sizes), groups), dtype=torch.int8, device=sizes.device)
    return LinearAssignment(numbered(num_objects), numbered(num_queries), status)


def set_losses(
    sets: Mapping[str, SetPrediction], config: SetLosses, reduce_mean: ReduceMean | None = None
) -> dict[str, Tensor]:
    """Losses of all kinds of predictions.

    Background predictions have the class loss only; their boxes, NaN included, do not reach any other. Where an
    assignment could not be solved (NaN among its costs, or no prediction left for an object), the box losses of that
    layer are NaN.

    Args:
        sets: kinds of predictions by the prefix of their keys, for instance '' and 'enc_'.
        config: weights and settings.
        reduce_mean: mean over ranks, called once; none: one rank.

    Returns:
        Scalar tensors '{prefix}loss_cls', '{prefix}loss_bbox', '{prefix}loss_iou' of each kind's last layer, then
        those of the other layers as 'd{layer}.{prefix}loss_...'.
    """
    parts = list(sets.values())
    dtype = parts[0].logits.dtype
    positives = [num_matched(part.assignment) for part in parts]
    counts = torch.cat(positives).to(dtype)
    negatives = torch.cat([part.num_negatives for part in parts]).to(dtype)
    cls_counts = counts + negatives * config.background_weight if config.background_weight else counts
    if not config.sync_cls_avg_factor:
        means, cls_means = mean_over_ranks(counts, reduce_mean), cls_counts
    elif cls_counts is counts:
        means = cls_means = mean_over_ranks(counts, reduce_mean)
    else:
        means, cls_means = mean_over_ranks(torch.stack([counts, cls_counts]), reduce_mean).unbind()
    lengths = [len(positive) for positive in positives]
    losses: dict[str, Tensor] = {}
    for (prefix, part), own, own_cls in zip(
        sets.items(), _normaliser(means).split(lengths), _normaliser(cls_means).split(lengths), strict=True
    ):
        cls_sum, bbox_sum, iou_sum = _sums(part, config)
        columns = {
            "loss_cls": cls_sum / own_cls * config.cls_weight,
            "loss_bbox": bbox_sum / own * config.bbox_weight,
            "loss_iou": iou_sum / own * config.iou_weight,
        }
        losses |= _named(columns, prefix, len(own))
    return losses


def _normaliser(counts: Tensor) -> Tensor:
    return counts.clamp(min=1) + AVG_FACTOR_EPS


def _sums(part: SetPrediction, config: SetLosses) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of class, L1 and GIoU losses [L]."""
    found, keep = gather_predictions(part.assignment, part.boxes)
    rows = keep.unsqueeze(-1)
    boxes, targets = torch.where(rows, found, 0.0), torch.where(rows, part.gt_boxes, 0.0)  # [L, *S, G, 4]
    corners, target_corners = cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets)
    giou = giou_loss(corners * part.image_size, target_corners * part.image_size, config.iou_eps)
    unsolved = (part.assignment.status != 0).flatten(1).any(1)
    factor = torch.where(unsolved, torch.nan, 1.0).to(boxes.dtype)
    bbox_sum = prediction_sum((boxes - targets).abs()) * factor
    iou_sum = prediction_sum(torch.where(keep, giou, 0.0)) * factor
    labels, quality = class_targets(part.assignment, part.gt_labels, config.num_classes), None
    if config.cls.needs_quality:
        overlap = aligned_iou(corners.detach(), target_corners)
        quality = gather_targets(part.assignment, overlap.unsqueeze(-1)).squeeze(-1)
    return config.cls(part.logits, labels, quality), bbox_sum, iou_sum


def _named(columns: Mapping[str, Tensor], prefix: str, num_layers: int) -> dict[str, Tensor]:
    """Losses [L] under mmdet's keys, the last layer's first."""
    values = {name: column.unbind() for name, column in columns.items()}
    named = {f"{prefix}{name}": layers[-1] for name, layers in values.items()}
    for layer in range(num_layers - 1):
        named |= {f"d{layer}.{prefix}{name}": layers[layer] for name, layers in values.items()}
    return named
