"""The loss of DETR-like detectors, 2D and 3D: decoder layers, encoder proposals and other queries in, losses out.

In: kinds of predictions, each with the assignment of all its layers and samples. Out: one scalar tensor per key that
the published heads give. Nothing is read from the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from raggedbev.losses.class_loss import focal_loss_sums, quality_focal_loss_sums
from raggedbev.losses.set_prediction import (
    ReduceMean,
    class_targets,
    gather_predictions,
    gather_targets,
    masked_sum,
    mean_over_ranks,
    num_matched,
    per_layer,
    prediction_sum,
)
from raggedbev.losses.terms import AVG_FACTOR_EPS, L1, CoordinateLoss, aligned_iou, giou_loss
from raggedbev.matching.assignment import LinearAssignment
from raggedbev.matching.costs import cxcywh_to_xyxy
from raggedbev.ragged.batch import RaggedBatch

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


@dataclass(frozen=True, eq=False)
class SetLosses:
    """Settings of `set_losses`.

    Attributes:
        cls: class loss.
        cls_weight: factor of the class loss.
        bbox_weight: factor of the loss of box coordinates.
        num_classes: the label of background.
        bbox: loss of a box coordinate.
        code_weights: [D] factor of each box coordinate; none: 1.
        iou_weight: factor of the GIoU loss; none: there is no such loss.
        iou_eps: lower bound of union and enclosing area of the GIoU loss, in square pixels.
        background_weight: what a background prediction counts in the normaliser of the class loss; an object counts 1.
        sync_cls_avg_factor: whether that normaliser is averaged over ranks.
        replace_nonfinite: whether objects whose box is not finite are classified only, a loss that is NaN becomes 0,
            and an infinite one the largest finite number.
    """

    cls: ClassLoss
    cls_weight: float
    bbox_weight: float
    num_classes: int
    bbox: CoordinateLoss = field(default_factory=L1)
    code_weights: Tensor | None = None
    iou_weight: float | None = None
    iou_eps: float = 1e-6
    background_weight: float = 0.0
    sync_cls_avg_factor: bool = False
    replace_nonfinite: bool = False


@dataclass(frozen=True, eq=False)
class SetPrediction:
    """Predictions of L layers with their assignment.

    *S are the problems of a layer: [B] samples, or [B, groups] of denoising queries.

    Attributes:
        logits: [L, *S, P, C].
        boxes: [L, *S, P, D] coded boxes; with `image_size`, centre and size in units of the image.
        gt_labels: [*S, G] int64 (dimensions of size 1 broadcast).
        gt_boxes: [*S, G, D] coded as `boxes` (dimensions of size 1 broadcast).
        assignment: of predictions [L, *S, P] and objects [L, *S, G].
        num_negatives: background predictions per layer [L] that the class normaliser counts.
        image_size: [*S, 1, 4] width, height, width, height in pixels (dimensions of size 1 broadcast); none: no images.
        groups: L counts groups of queries, this many for each decoder layer; a layer's loss is the mean of its groups.
    """

    logits: Tensor
    boxes: Tensor
    gt_labels: RaggedBatch
    gt_boxes: Tensor
    assignment: LinearAssignment
    num_negatives: Tensor
    image_size: Tensor | None = None
    groups: int = 1


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
        sets: kinds of predictions by the pattern of their keys, for instance '{}' and 'enc_{}'.
        config: weights and settings.
        reduce_mean: mean over ranks, called once; none: one rank.

    Returns:
        Scalar tensors 'loss_cls', 'loss_bbox' and, with images, 'loss_iou' of each kind's last layer, put into the
        pattern; then those of the other layers with 'd{layer}.' in front.
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
    for (pattern, part), own, own_cls in zip(
        sets.items(), _normaliser(means).split(lengths), _normaliser(cls_means).split(lengths), strict=True
    ):
        pairs, solved = _pairs(part), _one_where_solved(part)
        columns = {"loss_cls": _finite(_class_sum(part, pairs, config) / own_cls * config.cls_weight, config)}
        for name, (total, weight) in _box_sums(part, pairs, config).items():
            columns[name] = _finite(total / own * weight, config) * solved
        losses |= _named({name: _layer_means(values, part.groups) for name, values in columns.items()}, pattern)
    return losses


def _normaliser(counts: Tensor) -> Tensor:
    return counts.clamp(min=1) + AVG_FACTOR_EPS


def _finite(losses: Tensor, config: SetLosses) -> Tensor:
    return torch.nan_to_num(losses) if config.replace_nonfinite else losses


def _layer_means(losses: Tensor, groups: int) -> Tensor:
    return losses if groups == 1 else losses.unflatten(0, (-1, groups)).mean(1)


def _one_where_solved(part: SetPrediction) -> Tensor:
    """1 for each layer [L]; NaN where one of its assignments could not be solved."""
    unsolved = (part.assignment.status != 0).flatten(1).any(1)
    return torch.where(unsolved, torch.nan, 1.0).to(part.boxes.dtype)


class _Pairs(NamedTuple):
    """Objects with their predictions; rows without one are zero on both sides.

    Attributes:
        keep: [L, *S, G] bool, whether an object has a prediction.
        boxes: [L, *S, G, D] predicted.
        targets: [L, *S, G, D].
    """

    keep: Tensor
    boxes: Tensor
    targets: Tensor


def _pairs(part: SetPrediction) -> _Pairs:
    found, keep = gather_predictions(part.assignment, part.boxes)
    rows = keep.unsqueeze(-1)
    return _Pairs(keep, torch.where(rows, found, 0.0), torch.where(rows, part.gt_boxes, 0.0))


def _class_sum(part: SetPrediction, pairs: _Pairs, config: SetLosses) -> Tensor:
    """Sums of the class loss [L]."""
    labels, quality = class_targets(part.assignment, part.gt_labels, config.num_classes), None
    if config.cls.needs_quality:
        overlap = aligned_iou(cxcywh_to_xyxy(pairs.boxes.detach()), cxcywh_to_xyxy(pairs.targets))
        quality = gather_targets(part.assignment, overlap.unsqueeze(-1)).squeeze(-1)
    return config.cls(part.logits, labels, quality)


def _box_sums(part: SetPrediction, pairs: _Pairs, config: SetLosses) -> dict[str, tuple[Tensor, float]]:
    """Sums of the losses of boxes [L], and their factors."""
    regressed = pairs.keep & pairs.targets.isfinite().all(-1) if config.replace_nonfinite else pairs.keep
    coordinates = masked_sum(pairs.boxes, pairs.targets, regressed, config.bbox, config.code_weights)
    sums = {"loss_bbox": (coordinates, config.bbox_weight)}
    if part.image_size is not None and config.iou_weight is not None:
        corners, targets = (cxcywh_to_xyxy(boxes) * part.image_size for boxes in (pairs.boxes, pairs.targets))
        giou = giou_loss(corners, targets, config.iou_eps)
        sums["loss_iou"] = (prediction_sum(torch.where(pairs.keep, giou, 0.0)), config.iou_weight)
    return sums


def _named(columns: Mapping[str, Tensor], pattern: str) -> dict[str, Tensor]:
    """Losses [L] under mmdet's keys, the last layer's first."""
    values = {pattern.format(name): per_layer(column) for name, column in columns.items()}
    named = {name: layers[-1] for name, layers in values.items()}
    for layer in range(len(next(iter(values.values()))) - 1):
        named |= {f"d{layer}.{name}": layers[layer] for name, layers in values.items()}
    return named
