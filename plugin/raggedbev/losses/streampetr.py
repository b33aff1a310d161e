"""The loss of StreamPETR's 3D head, for all decoder layers and samples at once.

In: predictions [L, B, Q, ...], ground truth, an assigner with `assign_batch`, optionally what was predicted for
denoising queries. Out: one scalar tensor per published loss name. Nothing is read from the device (the assigner
decides about itself).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from raggedbev.losses.class_loss import focal_loss_sums
from raggedbev.losses.denoising import DenoisingOutput
from raggedbev.losses.ground_truth import GroundTruth3D, PackedGroundTruth3D
from raggedbev.losses.set_prediction import (
    ReduceMean,
    check_devices,
    class_targets,
    gather_predictions,
    masked_sum,
    mean_over_ranks,
    num_matched,
    per_layer,
    widened,
)
from raggedbev.losses.terms import AVG_FACTOR_EPS, L1, CoordinateLoss
from raggedbev.matching.costs import normalize_box3d, row_tensor
from raggedbev.profiling.stages import stage

__all__ = [
    "FocalLossConfig",
    "StreamPETRLossConfig",
    "StreamPETRSums",
    "denoising_positives",
    "layer_keys",
    "streampetr_loss",
    "streampetr_losses",
    "streampetr_sums",
]

_CODE_WEIGHTS = (2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class FocalLossConfig:
    """Sigmoid focal loss: weight of the loss, weight of positives, focusing exponent."""

    weight: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0


@dataclass(frozen=True)
class StreamPETRLossConfig:
    """Settings of the 3D loss.

    Attributes:
        num_classes: C, also the label of background.
        cls: classification loss.
        bbox_weight: weight of the box loss.
        code_weights: [10] factor of each box coordinate in the loss.
        match_costs: [10] factor of each box coordinate in the match cost.
        match_with_velo: whether velocity counts in the match cost (it always counts in the loss).
        sync_cls_avg_factor: whether the classification loss, too, is normalised by the mean count over ranks.
        dn_weight: weight of the denoising losses.
        bbox: loss of a box coordinate.
    """

    num_classes: int = 10
    cls: FocalLossConfig = field(default_factory=FocalLossConfig)
    bbox_weight: float = 0.25
    code_weights: Sequence[float] | Tensor = _CODE_WEIGHTS
    match_costs: Sequence[float] | Tensor = _CODE_WEIGHTS
    match_with_velo: bool = False
    sync_cls_avg_factor: bool = False
    dn_weight: float = 1.0
    bbox: CoordinateLoss = field(default_factory=L1)


def layer_keys(name: str, num_layers: int) -> list[str]:
    """Published key of each decoder layer's loss, in layer order: 'd0.loss_cls', 'd1.loss_cls', ..., 'loss_cls'."""
    return [f"d{layer}.{name}" for layer in range(num_layers - 1)] + [name]


def denoising_positives(num_known: Tensor, split: float) -> Tensor:
    """Objects expected to stay within `split` of their place, of `num_known` noised ones: the published normaliser."""
    return num_known * (3.14159 / 6 * split * split * split)


def check_predictions(
    cls_logits: Tensor, box_preds: Tensor, gt: GroundTruth3D | PackedGroundTruth3D, config: StreamPETRLossConfig
) -> None:
    """Raise a ValueError where shapes of predictions, ground truth and config do not fit."""
    if cls_logits.dim() != 4 or cls_logits.shape[-1] != config.num_classes:
        raise ValueError(f"cls_logits must be [L, B, Q, {config.num_classes}], got {tuple(cls_logits.shape)}")
    wanted = (*cls_logits.shape[:3], len(config.code_weights))
    if tuple(box_preds.shape) != wanted or wanted[-1] != 10:
        raise ValueError(
            f"box_preds must be {(*wanted[:3], 10)} with 10 code weights, got {tuple(box_preds.shape)} "
            f"with {wanted[-1]} code weights"
        )
    if cls_logits.shape[1] != gt.num_samples:
        raise ValueError(f"predictions are for {cls_logits.shape[1]} samples, ground truth is for {gt.num_samples}")
    check_devices(gt.boxes, cls_logits, box_preds)


def streampetr_loss(
    cls_logits: Tensor,
    box_preds: Tensor,
    gt: GroundTruth3D | PackedGroundTruth3D,
    assigner: Any,
    config: StreamPETRLossConfig,
    dn: DenoisingOutput | None = None,
    reduce_mean: ReduceMean | None = None,
) -> dict[str, Tensor]:
    """Losses of all decoder layers, and of the denoising queries.

    Args:
        cls_logits: [L, B, Q, C] logits.
        box_preds: [L, B, Q, 10] coded boxes (see `normalize_box3d`).
        gt: ground truth of the B samples.
        assigner: has `assign_batch(cls_logits, box_preds, gt_boxes, gt_labels, code_weights, with_velo) ->
            LinearAssignment`, for instance `HungarianMatcher3D`.
        config: weights and settings.
        dn: predictions for denoising queries; where there are none, the `dn_` keys repeat the matching losses without
            gradient, as published.
        reduce_mean: mean over ranks, called once with all counts; none: one rank.

    Returns:
        Scalar tensors 'loss_cls', 'loss_bbox', 'd{i}.loss_cls', 'd{i}.loss_bbox' for the layers before the last, and
        the same with 'dn_'. A layer's loss that is NaN becomes 0, an infinite one the largest finite number.

    Raises:
        ValueError: shapes do not fit.
    """
    return streampetr_losses(streampetr_sums(cls_logits, box_preds, gt, assigner, config, dn), config, reduce_mean)


class StreamPETRSums(NamedTuple):
    """The loss of one rank before it is normalised.

    Attributes:
        cls: class loss [L].
        bbox: box loss [L].
        counts: matches [L] and valid denoising queries, [L + 1].
        dn_cls: class loss of the denoising queries [L], None without any.
        dn_bbox: their box loss [L].
        dn_split: their `DenoisingQueries.split`.
    """

    cls: Tensor
    bbox: Tensor
    counts: Tensor
    dn_cls: Tensor | None
    dn_bbox: Tensor | None
    dn_split: float


def streampetr_sums(
    cls_logits: Tensor,
    box_preds: Tensor,
    gt: GroundTruth3D | PackedGroundTruth3D,
    assigner: Any,
    config: StreamPETRLossConfig,
    dn: DenoisingOutput | None = None,
) -> StreamPETRSums:
    """What `streampetr_losses` normalises; arguments as in `streampetr_loss`. No rank waits for another here."""
    check_predictions(cls_logits, box_preds, gt, config)
    cls_logits, box_preds = widened(cls_logits), widened(box_preds)
    assignment = assigner.assign_batch(
        cls_logits.detach(), box_preds.detach(), gt.boxes, gt.labels, config.match_costs, config.match_with_velo
    )
    with stage("targets"):
        code_weights = row_tensor(config.code_weights, box_preds)
        counts = _counts(num_matched(assignment), dn, cls_logits.dtype)
        labels = class_targets(assignment, gt.labels, config.num_classes)
        targets = normalize_box3d(gt.boxes.tensor.to(box_preds.dtype))  # [B, G, 10]
        matched_preds, keep = gather_predictions(assignment, box_preds)
    with stage("loss terms"):
        cls_sum = focal_loss_sums(cls_logits, labels, alpha=config.cls.alpha, gamma=config.cls.gamma)
        bbox_sum = masked_sum(matched_preds, targets, keep & targets.isfinite().all(-1), config.bbox, code_weights)
        if dn is None or dn.queries.pad == 0:
            return StreamPETRSums(cls_sum, bbox_sum, counts, None, None, 0.0)
        return StreamPETRSums(cls_sum, bbox_sum, counts, *_denoising_sums(dn, config, code_weights), dn.queries.split)


def streampetr_losses(
    sums: StreamPETRSums, config: StreamPETRLossConfig, reduce_mean: ReduceMean | None = None
) -> dict[str, Tensor]:
    """Losses of one rank, normalised; arguments and result as in `streampetr_loss`."""
    with stage("loss terms"):
        mean_counts = mean_over_ranks(sums.counts, reduce_mean)
        cls_counts = mean_counts if config.sync_cls_avg_factor else sums.counts
        losses = _named(
            _normalised(sums.cls, cls_counts[:-1], config.cls.weight),
            _normalised(sums.bbox, mean_counts[:-1], config.bbox_weight),
            prefix="",
        )
        if sums.dn_cls is None or sums.dn_bbox is None:
            return {**losses, **{_denoising_key(key): value.detach() for key, value in losses.items()}}
        dn_cls_count = denoising_positives(cls_counts[-1], sums.dn_split)
        return losses | _named(
            config.dn_weight * _normalised(sums.dn_cls, dn_cls_count, config.cls.weight),
            config.dn_weight * _normalised(sums.dn_bbox, mean_counts[-1], config.bbox_weight),
            prefix="dn_",
        )


def _counts(matched: Tensor, dn: DenoisingOutput | None, dtype: torch.dtype) -> Tensor:
    """Matches per layer, then denoising objects [L + 1].

    The denoising count is always there, so that ranks with and without objects reduce tensors of one shape.
    """
    known = matched.new_zeros(()) if dn is None else dn.queries.num_known
    return torch.cat([matched, known.reshape(1)]).to(dtype)


def _normalised(sums: Tensor, counts: Tensor, weight: float) -> Tensor:
    return torch.nan_to_num(sums / (counts.clamp(min=1) + AVG_FACTOR_EPS) * weight)


def _denoising_sums(dn: DenoisingOutput, config: StreamPETRLossConfig, code_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Losses [L] of the valid denoising queries; positions without an object are masked on the way in."""
    queries, boxes = dn.queries, widened(dn.box_preds)
    cls_sum = focal_loss_sums(
        widened(dn.cls_logits),
        queries.known_labels,
        valid=queries.valid,
        alpha=config.cls.alpha,
        gamma=config.cls.gamma,
    )
    targets = normalize_box3d(queries.known_boxes.to(boxes.dtype))  # [B, P, 10]
    keep = queries.valid & targets.isfinite().all(-1)
    return cls_sum, masked_sum(boxes, targets, keep.expand(boxes.shape[:-1]), config.bbox, code_weights)


def _named(cls: Tensor, bbox: Tensor, prefix: str) -> dict[str, Tensor]:
    """Losses [L] under their published keys, the last layer's first."""
    columns = [
        dict(zip(layer_keys(f"{prefix}{name}", len(values)), per_layer(values), strict=True))
        for name, values in (("loss_cls", cls), ("loss_bbox", bbox))
    ]
    order = [key for pair in zip(*columns, strict=True) for key in pair]
    merged = {**columns[0], **columns[1]}
    return {key: merged[key] for key in order[-2:] + order[:-2]}


def _denoising_key(key: str) -> str:
    """'d0.loss_cls' -> 'd0.dn_loss_cls'."""
    return key.replace("loss_", "dn_loss_")
