"""The losses one sample at a time, as the published heads compute them.

They are the meaning of the batched losses, and the benchmark's baseline.

In and out as in `streampetr.py` and `focal2d.py`. Every layer, sample and (in the published arm) object is a step of
a Python loop that reads the device. Two arms give the same numbers:

- `published`: non-finite costs replaced on the host, heatmaps drawn object by object;
- `reference`: non-finite costs replaced on the device, heatmaps by the batched operator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raggedbev.heatmap.reference import draw_one_gaussian
from raggedbev.heatmap.targets import focal_head_heatmap
from raggedbev.losses import focal2d, streampetr
from raggedbev.losses.denoising import DenoisingOutput, DenoisingQueries
from raggedbev.losses.focal2d import FocalHeadLossConfig
from raggedbev.losses.ground_truth import GroundTruth2D, GroundTruth3D
from raggedbev.losses.set_prediction import ReduceMean, widened
from raggedbev.losses.streampetr import StreamPETRLossConfig, layer_keys
from raggedbev.losses.terms import (
    AVG_FACTOR_EPS,
    aligned_iou,
    gaussian_focal_loss,
    giou_loss,
    quality_focal_loss,
    sigmoid_focal_loss,
)
from raggedbev.matching.costs import cxcywh_to_xyxy, normalize_box3d, row_tensor, xyxy_to_cxcywh
from raggedbev.matching.reference import ARMS
from raggedbev.profiling.stages import stage

__all__ = ["focal_head_heatmap_reference", "focal_head_loss_reference", "streampetr_loss_reference"]


def streampetr_loss_reference(
    cls_logits: Tensor,
    box_preds: Tensor,
    gt: GroundTruth3D,
    assigner: Any,
    config: StreamPETRLossConfig,
    dn: DenoisingOutput | None = None,
    reduce_mean: ReduceMean | None = None,
) -> dict[str, Tensor]:
    """Arguments and result of `streampetr_loss`, one layer and one sample at a time.

    Args:
        cls_logits: [L, B, Q, C].
        box_preds: [L, B, Q, 10].
        gt: ground truth of the B samples.
        assigner: has `match(cls_logits [Q, C], box_preds [Q, 10], gt_boxes [G, 9], gt_labels [G], code_weights,
            with_velo)`, which gives the object of each prediction [Q], -1 for background; for instance
            `PerSampleMatcher3D`.
        config: weights and settings.
        dn: predictions for denoising queries.
        reduce_mean: mean over ranks, called per layer.

    Returns:
        Scalar tensors under the published names.
    """
    streampetr.check_predictions(cls_logits, box_preds, gt, config)
    cls_logits, box_preds = widened(cls_logits), widened(box_preds)
    num_layers = len(cls_logits)
    cls, bbox = layer_keys("loss_cls", num_layers), layer_keys("loss_bbox", num_layers)
    order = [num_layers - 1, *range(num_layers - 1)]
    losses: dict[str, Tensor] = {}
    for layer in order:
        losses[cls[layer]], losses[bbox[layer]] = _layer_losses(
            cls_logits[layer], box_preds[layer], gt, assigner, config, reduce_mean
        )
    known = 0 if dn is None else int(dn.queries.num_known)
    for layer in order:
        loss_cls, loss_bbox = losses[cls[layer]].detach(), losses[bbox[layer]].detach()
        mean_known = _mean_count(known, loss_cls, reduce_mean)
        if dn is not None and dn.queries.pad > 0:
            loss_cls, loss_bbox = _denoising_layer_losses(
                widened(dn.cls_logits[layer]), widened(dn.box_preds[layer]), dn.queries, config, known, mean_known
            )
        losses[cls[layer].replace("loss_", "dn_loss_")] = loss_cls
        losses[bbox[layer].replace("loss_", "dn_loss_")] = loss_bbox
    return losses


def _mean_count(count: float, like: Tensor, reduce_mean: ReduceMean | None) -> float:
    """Mean over ranks of a host count."""
    if reduce_mean is None:
        return float(count)
    return float(reduce_mean(like.new_tensor([count])).item())


def _layer_losses(
    cls_logits: Tensor,
    box_preds: Tensor,
    gt: GroundTruth3D,
    assigner: Any,
    config: StreamPETRLossConfig,
    reduce_mean: ReduceMean | None,
) -> tuple[Tensor, Tensor]:
    """Both losses of one layer: [B, Q, C], [B, Q, 10]."""
    labels, targets, weights = [], [], []
    num_pos = 0
    for sample, (boxes, classes) in enumerate(zip(gt.box_list, gt.label_list, strict=True)):
        gt_of_pred = assigner.match(
            cls_logits[sample].detach(),
            box_preds[sample].detach(),
            boxes,
            classes,
            config.match_costs,
            config.match_with_velo,
        )
        with stage("targets"):
            matched = (gt_of_pred >= 0).nonzero().squeeze(-1)
            objects = gt_of_pred[matched]
            sample_labels = classes.new_full((len(gt_of_pred),), config.num_classes)
            sample_labels[matched] = classes[objects]
            sample_targets = box_preds.new_zeros((len(gt_of_pred), 9))
            sample_targets[matched] = boxes[objects].to(box_preds.dtype)
            sample_weights = torch.zeros_like(box_preds[sample])
            sample_weights[matched] = 1.0
            num_pos += len(matched)
            labels.append(sample_labels)
            targets.append(sample_targets)
            weights.append(sample_weights)
    mean_pos = _mean_count(num_pos, box_preds, reduce_mean)
    return _row_losses(
        cls_logits.flatten(0, 1),
        box_preds.flatten(0, 1),
        torch.cat(labels),
        torch.cat(targets),
        torch.cat(weights) * row_tensor(config.code_weights, box_preds),
        config,
        cls_count=mean_pos if config.sync_cls_avg_factor else num_pos,
        bbox_count=mean_pos,
    )


def _denoising_layer_losses(
    cls_logits: Tensor,
    box_preds: Tensor,
    queries: DenoisingQueries,
    config: StreamPETRLossConfig,
    num_known: int,
    mean_known: float,
) -> tuple[Tensor, Tensor]:
    """Both denoising losses of one layer: [B, P, C], [B, P, 10]."""
    boxes = box_preds[queries.valid]
    cls_count = mean_known if config.sync_cls_avg_factor else num_known
    loss_cls, loss_bbox = _row_losses(
        cls_logits[queries.valid],
        boxes,
        queries.known_labels[queries.valid],
        queries.known_boxes[queries.valid].to(boxes.dtype),
        torch.ones_like(boxes) * row_tensor(config.code_weights, boxes),
        config,
        cls_count=cls_count * 3.14159 / 6 * queries.split**3,
        bbox_count=mean_known,
    )
    return config.dn_weight * loss_cls, config.dn_weight * loss_bbox


def _row_losses(
    cls_logits: Tensor,
    box_preds: Tensor,
    labels: Tensor,
    targets: Tensor,
    weights: Tensor,
    config: StreamPETRLossConfig,
    cls_count: float,
    bbox_count: float,
) -> tuple[Tensor, Tensor]:
    """Both losses of R rows: [R, C], [R, 10], [R], [R, 9], [R, 10]."""
    with stage("loss terms"):
        focal = sigmoid_focal_loss(cls_logits, labels, config.cls.alpha, config.cls.gamma)
        loss_cls = config.cls.weight * (focal.sum() / (max(cls_count, 1) + AVG_FACTOR_EPS))
        coded = normalize_box3d(targets)
        finite = coded.isfinite().all(-1)
        boxes = config.bbox(box_preds[finite], coded[finite]) * weights[finite]
        loss_bbox = config.bbox_weight * (boxes.sum() / (max(bbox_count, 1) + AVG_FACTOR_EPS))
        return torch.nan_to_num(loss_cls), torch.nan_to_num(loss_bbox)


def focal_head_heatmap_reference(gt: GroundTruth2D, pad_shape: tuple[int, int], stride: int) -> Tensor:
    """The heatmap target of `focal_head_heatmap`, drawn object by object on the host.

    Args:
        gt: ground truth of the I images.
        pad_shape: height and width of the padded image in pixels.
        stride: pixels per cell.

    Returns:
        [I, height // stride, width // stride] float32 on the device of the ground truth.
    """
    maps = []
    for boxes, centers in zip(gt.box_list, gt.center_list, strict=True):
        heatmap = torch.zeros(pad_shape[0] // stride, pad_shape[1] // stride, device=boxes.device)
        for box, center in zip(boxes, centers, strict=True):
            nearest = torch.cat([center - box[:2], box[2:] - center]).amin()
            x, y, radius, *edges = torch.cat([center / stride, (nearest / stride).reshape(1), box]).tolist()
            if all(map(math.isfinite, (x, y, radius, *edges))):
                draw_one_gaussian(heatmap, int(x), int(y), max(1, math.ceil(radius)))
        maps.append(heatmap)
    return torch.stack(maps)


def focal_head_loss_reference(
    cls_logits: Tensor,
    box_preds: Tensor,
    center_preds: Tensor,
    centerness_logits: Tensor,
    gt: GroundTruth2D,
    assigner: Any,
    config: FocalHeadLossConfig,
    pad_shape: tuple[int, int],
    reduce_mean: ReduceMean | None = None,
    arm: str = "reference",
) -> dict[str, Tensor]:
    """Arguments and result of `focal_head_loss`, one image at a time.

    Args:
        cls_logits: [I, T, C].
        box_preds: [I, T, 4].
        center_preds: [I, T, 2].
        centerness_logits: [I, T, 1].
        gt: ground truth of the I images.
        assigner: has `match(cls_logits, box_preds, center_preds, gt_boxes, gt_labels, gt_centers, pad_shape)` for one
            image, which gives the object of each token [T], -1 for background; for instance `PerSampleMatcher2D`.
        config: weights and settings.
        pad_shape: height and width of the padded image in pixels.
        reduce_mean: mean over ranks.
        arm: how the heatmap is made, see the module.

    Returns:
        Scalar tensors under the published names.
    """
    if arm not in ARMS:
        raise ValueError(f"arm must be one of {ARMS}, got {arm!r}")
    focal2d.check_predictions(cls_logits, box_preds, center_preds, centerness_logits, gt, config, pad_shape)
    cls_logits, box_preds = widened(cls_logits), widened(box_preds)
    center_preds, centerness_logits = widened(center_preds), widened(centerness_logits)
    size = box_preds.new_tensor([pad_shape[1], pad_shape[0]] * 2)
    targets = _image_targets(cls_logits, box_preds, center_preds, gt, assigner, config.num_classes, pad_shape, size)
    with stage("targets"):
        if arm == "published":
            heatmap = focal_head_heatmap_reference(gt, pad_shape, config.stride)
        else:
            heatmap = focal_head_heatmap(gt.boxes, gt.centers, pad_shape, config.stride)
        pred_px, target_px = cxcywh_to_xyxy(box_preds) * size, cxcywh_to_xyxy(targets.boxes) * size
        quality = aligned_iou(pred_px, target_px).detach()
        mean_pos = max(_mean_count(targets.num_pos, box_preds, reduce_mean), 1) + AVG_FACTOR_EPS
    with stage("loss terms"):
        classes = quality_focal_loss(cls_logits, targets.labels, quality, config.beta)
        heatmap = heatmap.flatten(1).unsqueeze(-1)
        centerness = gaussian_focal_loss(centerness_logits, heatmap, config.centerness_alpha, config.centerness_gamma)
        bbox = config.bbox(box_preds, targets.boxes) * targets.weights.unsqueeze(-1)
        center = config.center(center_preds, targets.centers) * targets.weights.unsqueeze(-1)
        iou = giou_loss(pred_px, target_px) * targets.weights
        return {
            "enc_loss_cls": config.cls_weight * classes.sum() / (max(targets.num_pos, 1) + AVG_FACTOR_EPS),
            "enc_loss_bbox": config.bbox_weight * bbox.sum() / mean_pos,
            "enc_loss_iou": config.iou_weight * iou.sum() / (targets.num_pos + AVG_FACTOR_EPS),
            "centers2d_losses": config.center_weight * center.sum() / mean_pos,
            "centerness_losses": config.centerness_weight * centerness.sum() / mean_pos,
        }


@dataclass(frozen=True)
class _ImageTargets:
    """Targets of the 2D loss.

    Attributes:
        labels: [I, T] int64.
        boxes: [I, T, 4] centre and size in units of the padded image.
        centers: [I, T, 2] in the same units.
        weights: [I, T], 1 where matched, else 0.
        num_pos: matched tokens of all images.
    """

    labels: Tensor
    boxes: Tensor
    centers: Tensor
    weights: Tensor
    num_pos: int


def _image_targets(
    cls_logits: Tensor,
    box_preds: Tensor,
    center_preds: Tensor,
    gt: GroundTruth2D,
    assigner: Any,
    num_classes: int,
    pad_shape: tuple[int, int],
    size: Tensor,
) -> _ImageTargets:
    """Match image by image; targets in units of the padded image of `size` [4] (width, height, width, height)."""
    labels, boxes, centers, weights = [], [], [], []
    num_pos = 0
    for image in range(gt.num_images):
        gt_boxes, gt_labels, gt_centers = gt.box_list[image], gt.label_list[image], gt.center_list[image]
        preds = (part[image].detach() for part in (cls_logits, box_preds, center_preds))
        gt_of_pred = assigner.match(*preds, gt_boxes, gt_labels, gt_centers, pad_shape)
        with stage("targets"):
            matched = (gt_of_pred >= 0).nonzero().squeeze(-1)
            objects = gt_of_pred[matched]
            image_labels = gt_labels.new_full((len(gt_of_pred),), num_classes)
            image_labels[matched] = gt_labels[objects]
            image_boxes, image_centers = torch.zeros_like(box_preds[image]), torch.zeros_like(center_preds[image])
            image_boxes[matched] = xyxy_to_cxcywh(gt_boxes[objects].to(size.dtype) / size)
            image_centers[matched] = gt_centers[objects].to(size.dtype) / size[:2]
            image_weights = torch.zeros_like(box_preds[image, :, 0])
            image_weights[matched] = 1.0
            num_pos += len(matched)
            labels.append(image_labels)
            boxes.append(image_boxes)
            centers.append(image_centers)
            weights.append(image_weights)
    with stage("targets"):
        return _ImageTargets(
            torch.stack(labels), torch.stack(boxes), torch.stack(centers), torch.stack(weights), num_pos
        )
