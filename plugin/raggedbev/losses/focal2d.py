"""The loss of StreamPETR's 2D head (FocalHead), for all images at once.

In: predictions of every token of every image, 2D ground truth, an assigner with `assign_batch`. Out: one scalar tensor
per published loss name. Nothing is read from the device (the assigner decides about itself).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from raggedbev.heatmap.targets import focal_head_heatmap
from raggedbev.losses.class_loss import quality_focal_loss_sums
from raggedbev.losses.ground_truth import GroundTruth2D, PackedGroundTruth2D
from raggedbev.losses.set_prediction import (
    ReduceMean,
    check_devices,
    class_targets,
    gather_predictions,
    gather_targets,
    mean_over_ranks,
    widened,
)
from raggedbev.losses.terms import AVG_FACTOR_EPS, L1, CoordinateLoss, aligned_iou, gaussian_focal_loss, giou_loss
from raggedbev.matching.assignment import LinearAssignment
from raggedbev.matching.costs import cxcywh_to_xyxy, row_tensor, xyxy_to_cxcywh
from raggedbev.profiling.stages import stage

__all__ = ["FocalHeadLossConfig", "FocalHeadSums", "focal_head_loss", "focal_head_losses", "focal_head_sums"]


@dataclass(frozen=True)
class FocalHeadLossConfig:
    """Settings of the 2D loss.

    Attributes:
        num_classes: C, also the label of background.
        cls_weight: weight of the quality focal loss.
        beta: exponent of the quality focal loss.
        bbox_weight: weight of the loss of normalised boxes.
        iou_weight: weight of the GIoU loss.
        center_weight: weight of the loss of normalised centres.
        centerness_weight: weight of the Gaussian focal loss.
        centerness_alpha: focusing exponent of the Gaussian focal loss.
        centerness_gamma: exponent that discounts negatives near a peak.
        stride: pixels per token.
        bbox: loss of a coordinate of normalised boxes.
        center: loss of a coordinate of normalised centres.
    """

    num_classes: int = 10
    cls_weight: float = 2.0
    beta: float = 2.0
    bbox_weight: float = 5.0
    iou_weight: float = 2.0
    center_weight: float = 10.0
    centerness_weight: float = 1.0
    centerness_alpha: float = 2.0
    centerness_gamma: float = 4.0
    stride: int = 16
    bbox: CoordinateLoss = field(default_factory=L1)
    center: CoordinateLoss = field(default_factory=L1)


def check_predictions(
    cls_logits: Tensor,
    box_preds: Tensor,
    center_preds: Tensor,
    centerness_logits: Tensor,
    gt: GroundTruth2D | PackedGroundTruth2D,
    config: FocalHeadLossConfig,
    pad_shape: tuple[int, int],
) -> None:
    """Raise a ValueError where shapes of predictions, ground truth, config and image do not fit."""
    tokens = (pad_shape[0] // config.stride) * (pad_shape[1] // config.stride)
    wanted = {
        "cls_logits": (cls_logits, config.num_classes),
        "box_preds": (box_preds, 4),
        "center_preds": (center_preds, 2),
        "centerness_logits": (centerness_logits, 1),
    }
    for name, (tensor, width) in wanted.items():
        if tuple(tensor.shape) != (gt.num_images, tokens, width):
            raise ValueError(
                f"{name} must be {(gt.num_images, tokens, width)} for {gt.num_images} images of "
                f"{tuple(pad_shape)} pixels at stride {config.stride}, got {tuple(tensor.shape)}"
            )
    check_devices(gt.boxes, cls_logits, box_preds, center_preds, centerness_logits)


def focal_head_loss(
    cls_logits: Tensor,
    box_preds: Tensor,
    center_preds: Tensor,
    centerness_logits: Tensor,
    gt: GroundTruth2D | PackedGroundTruth2D,
    assigner: Any,
    config: FocalHeadLossConfig,
    pad_shape: tuple[int, int],
    reduce_mean: ReduceMean | None = None,
) -> dict[str, Tensor]:
    """Losses of the 2D head.

    As published, box, GIoU and centre losses are weighted sums over all tokens, so that a non-finite prediction of
    any token, matched or not, makes them NaN.

    Args:
        cls_logits: [I, T, C] logits; token = row * columns + column.
        box_preds: [I, T, 4] centre and size in units of the padded image.
        center_preds: [I, T, 2] projected centre in units of the padded image.
        centerness_logits: [I, T, 1] logits.
        gt: ground truth of the I images.
        assigner: has `assign_batch(cls_logits, box_preds, center_preds, gt_boxes, gt_labels, gt_centers, pad_shape) ->
            LinearAssignment`, for instance `HungarianMatcher2D`.
        config: weights and settings.
        pad_shape: height and width of the padded image in pixels.
        reduce_mean: mean over ranks, called once; none: one rank.

    Returns:
        Scalar tensors 'enc_loss_cls', 'enc_loss_bbox', 'enc_loss_iou', 'centers2d_losses', 'centerness_losses'.

    Raises:
        ValueError: shapes do not fit.
    """
    predictions = (cls_logits, box_preds, center_preds, centerness_logits)
    return focal_head_losses(focal_head_sums(*predictions, gt, assigner, config, pad_shape), config, reduce_mean)


class FocalHeadSums(NamedTuple):
    """The loss of one rank before it is normalised: scalars, `matched` being the number of matched tokens."""

    cls: Tensor
    bbox: Tensor
    iou: Tensor
    center: Tensor
    centerness: Tensor
    matched: Tensor


def focal_head_sums(
    cls_logits: Tensor,
    box_preds: Tensor,
    center_preds: Tensor,
    centerness_logits: Tensor,
    gt: GroundTruth2D | PackedGroundTruth2D,
    assigner: Any,
    config: FocalHeadLossConfig,
    pad_shape: tuple[int, int],
) -> FocalHeadSums:
    """What `focal_head_losses` normalises; arguments as in `focal_head_loss`. No rank waits for another here."""
    check_predictions(cls_logits, box_preds, center_preds, centerness_logits, gt, config, pad_shape)
    cls_logits, box_preds = widened(cls_logits), widened(box_preds)
    center_preds, centerness_logits = widened(center_preds), widened(centerness_logits)
    assignment = assigner.assign_batch(
        cls_logits.detach(), box_preds.detach(), center_preds.detach(), gt.boxes, gt.labels, gt.centers, pad_shape
    )
    with stage("targets"):
        count = (assignment.gt_of_pred >= 0).sum().to(cls_logits.dtype)
        size = row_tensor((pad_shape[1], pad_shape[0]) * 2, box_preds)  # [4]
        labels = class_targets(assignment, gt.labels, config.num_classes)
        keep, boxes, gt_boxes = _pairs(
            assignment, box_preds, xyxy_to_cxcywh(gt.boxes.tensor.to(size.dtype) / size)
        )  # [I, G, 4]
        _, centers, gt_centers = _pairs(assignment, center_preds, gt.centers.tensor.to(size.dtype) / size[:2])
        pred_px, target_px = cxcywh_to_xyxy(boxes) * size, cxcywh_to_xyxy(gt_boxes) * size
        with torch.no_grad():
            quality = gather_targets(assignment, aligned_iou(pred_px, target_px).unsqueeze(-1)).squeeze(-1)  # [I, T]
            heatmap = focal_head_heatmap(gt.boxes, gt.centers, pad_shape, config.stride).flatten(1).unsqueeze(-1)
    with stage("loss terms"):
        centerness = gaussian_focal_loss(centerness_logits, heatmap, config.centerness_alpha, config.centerness_gamma)
        all_images = (cls_logits.flatten(0, 1), labels.flatten(), quality.flatten())
        cls_sum = quality_focal_loss_sums(*(rows.unsqueeze(0) for rows in all_images), beta=config.beta)[0]
        # Unmatched tokens count only where they are not finite: 0 times a number, or NaN, in losses and gradients.
        corners = cxcywh_to_xyxy(box_preds) * size
        nowhere = giou_loss(corners, torch.zeros_like(corners))  # [I, T]
        bbox_sum = config.bbox(boxes, gt_boxes).sum() + (box_preds.abs() * 0).sum()
        iou_sum = torch.where(keep, giou_loss(pred_px, target_px), 0.0).sum() + (nowhere * 0).sum()
        center_sum = config.center(centers, gt_centers).sum() + (center_preds.abs() * 0).sum()
        return FocalHeadSums(cls_sum, bbox_sum, iou_sum, center_sum, centerness.sum(), count)


def focal_head_losses(
    sums: FocalHeadSums, config: FocalHeadLossConfig, reduce_mean: ReduceMean | None = None
) -> dict[str, Tensor]:
    """Losses of one rank, normalised; arguments and result as in `focal_head_loss`."""
    with stage("loss terms"):
        count = sums.matched
        mean_count = mean_over_ranks(count.reshape(1), reduce_mean)[0].clamp(min=1) + AVG_FACTOR_EPS
        return {
            "enc_loss_cls": sums.cls / (count.clamp(min=1) + AVG_FACTOR_EPS) * config.cls_weight,
            "enc_loss_bbox": sums.bbox / mean_count * config.bbox_weight,
            "enc_loss_iou": sums.iou / (count + AVG_FACTOR_EPS) * config.iou_weight,
            "centers2d_losses": sums.center / mean_count * config.center_weight,
            "centerness_losses": sums.centerness / mean_count * config.centerness_weight,
        }


def _pairs(assignment: LinearAssignment, preds: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which objects have a prediction [I, G], and both sides [I, G, D]; zero where there is none."""
    found, keep = gather_predictions(assignment, preds)
    rows = keep.unsqueeze(-1)
    return keep, torch.where(rows, found, 0.0), torch.where(rows, targets, 0.0)
