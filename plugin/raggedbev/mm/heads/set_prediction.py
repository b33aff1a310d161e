"""mmdet's DETR-like heads with the loss of all layers and images at once.

A stock head computes its loss layer by layer and image by image; the mixin replaces that, and nothing else: layers,
state dict, predictions and configs stay. `raggedbev.losses.detr` has the loss itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.models.dense_heads import (
    ConditionalDETRHead,
    DABDETRHead,
    DeformableDETRHead,
    DETRHead,
    DINOHead,
)
from mmdet.models.losses import CrossEntropyLoss, FocalLoss, GIoULoss, QualityFocalLoss
from mmdet.registry import MODELS as MMDET_MODELS
from mmdet3d.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor

from raggedbev.losses.detr import SetLosses, SetPrediction, denoising_assignment, set_losses
from raggedbev.losses.set_prediction import widened
from raggedbev.matching.costs import cxcywh_to_xyxy, xyxy_to_cxcywh
from raggedbev.mm.heads.common import check_num_layers, full_precision, mean_over_processes
from raggedbev.mm.heads.loss_modules import check_module, class_loss, class_weight, coordinate_loss
from raggedbev.profiling.stages import stage
from raggedbev.ragged import RaggedBatch, combine_data

__all__ = [
    "BatchedConditionalDETRHead",
    "BatchedDABDETRHead",
    "BatchedDETRHead",
    "BatchedDINOHead",
    "BatchedDeformableDETRHead",
    "BatchedSetPredictionMixin",
]

_STOCK = (DETRHead, DeformableDETRHead, DINOHead)
_REPLACED = (
    "loss_by_feat",
    "loss_by_feat_single",
    "get_targets",
    "_get_targets_single",
    "loss_dn",
    "_loss_dn_single",
    "get_dn_targets",
    "_get_dn_targets_single",
    "split_outputs",
)


class BatchedSetPredictionMixin:
    """Gives a head of mmdet's DETR family a batched `loss_by_feat`; put it in front of the head among the bases.

    Keys, values and gradients of the losses are the stock head's. Background predictions have the class loss only:
    their boxes, NaN included, do not count. A layer whose match costs are NaN has NaN box losses; the stock head,
    which waits for the device anyway, raises there. Half-precision predictions are converted to float32.

    The head may derive from `DETRHead`, `DeformableDETRHead` or `DINOHead` of mmdet and change everything but what the
    mixin replaces, the methods from `loss_by_feat` down to the targets. Its losses must be `FocalLoss`,
    `CrossEntropyLoss` (softmax) or `QualityFocalLoss`; `L1Loss`, `SmoothL1Loss` or `BalancedL1Loss`; `GIoULoss`. Its
    assigner needs `assign_batch`. Heads of 3D boxes take `BatchedSetPrediction3DMixin`.

    Raises:
        ValueError: when it is built, if one of these does not hold.

    Example:
        >>> @MODELS.register_module()
        ... class BatchedMyHead(BatchedSetPredictionMixin, MyHead):
        ...     pass
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        name = type(self).__name__
        _check_methods(type(self))
        assigner = getattr(self, "assigner", None)
        if assigner is not None and not hasattr(assigner, "assign_batch"):
            raise ValueError(
                f"{name} needs an assigner with assign_batch, got {type(assigner).__name__}; "
                "use BatchedHungarianAssigner"
            )
        weights = class_weight(name, self.loss_cls, self.cls_out_channels)
        self.register_buffer("_class_weight", weights, persistent=False)
        self._set_losses()

    def loss_by_feat(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Losses of all layers and images.

        Args:
            *args: as the stock head's `loss_by_feat`: `all_layers_cls_scores` [L, B, P, C] logits,
                `all_layers_bbox_preds` [L, B, P, 4] centre and size in units of the image; Deformable DETR and DINO
                also `enc_cls_scores` [B, Q, C] and `enc_bbox_preds` [B, Q, 4], or None; `batch_gt_instances`, B times
                `bboxes` [G, 4] corners in pixels and `labels` [G] int64; `batch_img_metas`, B times `img_shape`; DINO
                also `dn_meta`, whose queries come first in P, or None; `batch_gt_instances_ignore` None.
            **kwargs: the same by name.

        Returns:
            Scalar tensors under the stock head's keys.

        Raises:
            ValueError: shapes or devices do not fit, or the head was built without an assigner.
        """
        given = _stock_signature(type(self)).bind(self, *args, **kwargs).arguments
        if given.get("batch_gt_instances_ignore") is not None:
            raise ValueError(f"{type(self).__name__} has no ignored boxes: batch_gt_instances_ignore must be None")
        if getattr(self, "assigner", None) is None:
            raise ValueError(f"{type(self).__name__} was built without train_cfg, which names its assigner")
        logits, boxes = given["all_layers_cls_scores"], given["all_layers_bbox_preds"]
        self._check_predictions("all_layers", logits, boxes, num_dims=4)
        with full_precision(logits):
            truth = _Truth(logits, boxes, given["batch_gt_instances"], given["batch_img_metas"])
            sets = {"{}": (widened(logits), widened(boxes), truth.labels)}
            if given.get("enc_cls_scores") is not None:
                sets["enc_{}"] = self._proposals(given["enc_cls_scores"], given["enc_bbox_preds"], truth)
            dn_meta = given.get("dn_meta")
            denoising = {} if dn_meta is None else self._split_denoising(sets, dn_meta, truth)
            parts = {pattern: self._matched(*part, truth) for pattern, part in sets.items()}
            with stage("loss terms"):
                return set_losses(parts | denoising, self._set_losses(), mean_over_processes)

    def _proposals(self, logits: Tensor, boxes: Tensor, truth: _Truth) -> tuple[Tensor, Tensor, RaggedBatch]:
        """Encoder proposals as one layer [1, B, Q, .], and the labels they are to find [B, G].

        Deformable DETR asks them only whether there is an object, class 0; DINO for its class.
        """
        self._check_predictions("enc", logits, boxes, num_dims=3)
        labels = truth.labels
        if not isinstance(self, DINOHead):
            labels = labels.apply(torch.zeros_like)
        return widened(logits).unsqueeze(0), widened(boxes).unsqueeze(0), labels

    def _matched(self, logits: Tensor, boxes: Tensor, labels: RaggedBatch, truth: _Truth) -> SetPrediction:
        """Predictions [L, B, P, .] with the assigner's answer for all of them."""
        corners = cxcywh_to_xyxy(boxes.detach()) * truth.box_scale
        assignment = self.assigner.assign_batch(logits.detach(), corners, truth.boxes, labels, truth.image_shape)
        background = (assignment.gt_of_pred < 0).flatten(1).sum(1)
        return SetPrediction(logits, boxes, labels, truth.box_targets, assignment, background, truth.box_scale)

    def _split_denoising(
        self, sets: dict[str, tuple[Tensor, Tensor, RaggedBatch]], dn_meta: Mapping[str, int], truth: _Truth
    ) -> dict[str, SetPrediction]:
        """Takes the denoising queries out of `sets['{}']`, and gives them with the objects they were made from.

        Per group there are twice as many queries as objects of the fullest image: noised objects first, then
        negatives, of which the class normaliser counts one per object.
        """
        logits, boxes, labels = sets["{}"]
        total, groups = dn_meta["num_denoising_queries"], dn_meta["num_denoising_groups"]
        size, most = total // max(groups, 1), truth.labels.max_sample_size
        if not 0 <= total <= logits.shape[2] or groups < 1 or size * groups != total or size < most:
            raise ValueError(
                f"dn_meta must have groups of equal size for up to {most} objects within {logits.shape[2]} queries, "
                f"got num_denoising_queries={total} and num_denoising_groups={groups}"
            )
        sets["{}"] = (logits[:, :, total:], boxes[:, :, total:], labels)
        noisy = [part[:, :, :total].unflatten(2, (groups, size)) for part in (logits, boxes)]
        assignment = denoising_assignment(labels.sample_sizes, most, size, groups, len(logits))
        part = SetPrediction(
            *noisy,
            labels.unsqueeze_batch_dim(1),
            truth.box_targets.unsqueeze(1),
            assignment,
            (assignment.gt_of_pred >= 0).flatten(1).sum(1),
            truth.box_scale.unsqueeze(1),
        )
        return {"dn_{}": part}

    def _set_losses(self) -> SetLosses:
        """Settings of the loss, from the head's own loss modules.

        Raises:
            ValueError: a loss that is not implemented.
        """
        name = type(self).__name__
        check_module(name, "loss_iou", self.loss_iou, GIoULoss)
        return SetLosses(
            cls=class_loss(name, self.loss_cls, self._class_weight, (FocalLoss, CrossEntropyLoss, QualityFocalLoss)),
            cls_weight=self.loss_cls.loss_weight,
            bbox_weight=self.loss_bbox.loss_weight,
            num_classes=self.num_classes,
            bbox=coordinate_loss(name, "loss_bbox", self.loss_bbox),
            iou_weight=self.loss_iou.loss_weight,
            iou_eps=self.loss_iou.eps,
            background_weight=self.bg_cls_weight,
            sync_cls_avg_factor=self.sync_cls_avg_factor,
        )

    def _check_predictions(self, kind: str, logits: Tensor, boxes: Tensor, num_dims: int) -> None:
        """Logits [..., P, cls_out_channels] and boxes [..., P, 4] with the same leading dimensions."""
        wanted = (*logits.shape[:-1], self.cls_out_channels), (*logits.shape[:-1], 4)
        if logits.dim() != num_dims or (tuple(logits.shape), tuple(boxes.shape)) != wanted:
            dims = "L, B, P" if num_dims == 4 else "B, Q"
            raise ValueError(
                f"{kind}_cls_scores must be [{dims}, {self.cls_out_channels}] and {kind}_bbox_preds [{dims}, 4], got "
                f"{tuple(logits.shape)} and {tuple(boxes.shape)}"
            )
        if num_dims == 4:
            check_num_layers(self, len(logits))


class _Truth:
    """Objects and image sizes of a batch, packed on the device of the predictions.

    Attributes:
        boxes: [B, G, 4] corners in pixels.
        labels: [B, G] int64.
        image_shape: [B, 2] height and width in pixels.
        box_scale: [B, 1, 4] width, height, width, height in pixels.
        box_targets: [B, G, 4] centre and size in units of the image.
    """

    def __init__(
        self,
        logits: Tensor,
        boxes: Tensor,
        instances: Sequence[InstanceData],
        metas: Sequence[Mapping[str, Any]],
    ) -> None:
        num_images, device = logits.shape[1], logits.device
        if len(instances) != num_images or len(metas) != num_images:
            raise ValueError(
                f"predictions are of {num_images} images, got objects of {len(instances)} and img_metas of {len(metas)}"
            )
        for index, truth in enumerate(instances):
            if truth.bboxes.device != device or truth.labels.device != device:
                raise ValueError(
                    f"objects must be on the device of the predictions, {device}, got those of image {index} on "
                    f"{truth.bboxes.device} (bboxes) and {truth.labels.device} (labels)"
                )
        dtype = widened(boxes).dtype
        with stage("GT packing"):
            packed = combine_data([truth.bboxes for truth in instances])
            labels = combine_data([truth.labels for truth in instances], other_with_same_sample_sizes=packed)
            shapes = torch.tensor([meta["img_shape"][:2] for meta in metas], pin_memory=device.type == "cuda")
            self.image_shape = shapes.to(device, non_blocking=True).to(dtype)
        self.boxes, self.labels = packed.to_dtype(dtype), labels.long()
        self.box_scale = self.image_shape.flip(-1).repeat(1, 2).unsqueeze(1)
        self.box_targets = xyxy_to_cxcywh(self.boxes.tensor / self.box_scale)


def _stock_head(head: type) -> type:
    """Which stock head's loss the mixin replaces in `head`."""
    return next(base for base in head.__mro__ if base in _STOCK)


def _stock_signature(head: type) -> inspect.Signature:
    return inspect.signature(_stock_head(head).loss_by_feat)


def _check_methods(head: type) -> None:
    """What the mixin replaces must come from mmdet; classes in front of it may still extend `loss_by_feat`."""
    position = head.__mro__.index(BatchedSetPredictionMixin)
    behind = head.__mro__[position + 1 :]
    if not any(base in _STOCK for base in behind):
        raise ValueError(
            f"{head.__name__} must name the mixin in front of a head that derives from mmdet's DETRHead; heads of 3D "
            "boxes take BatchedSetPrediction3DMixin"
        )
    for base in (*head.__mro__[:position], *behind):
        names = _REPLACED if base in behind else _REPLACED[1:]
        changed = [name for name in names if name in vars(base) and base not in _STOCK]
        if changed:
            raise ValueError(
                f"{head.__name__} cannot batch the loss: {base.__name__} has its own {changed[0]}, and the mixin "
                "replaces those of DETRHead, DeformableDETRHead and DINOHead"
            )


def _register(head: type) -> type:
    MODELS.register_module(module=head, force=True)
    return MMDET_MODELS.register_module(module=head, force=True)


@_register
class BatchedDETRHead(BatchedSetPredictionMixin, DETRHead):
    """In place of mmdet's `DETRHead`; arguments as there.

    Args:
        num_classes: classes without background.
        *args: see `DETRHead`.
        loss_cls: with a number as `class_weight`, that is the weight of every class, and `bg_cls_weight` (default: the
            same) that of background, in the loss and in its normaliser.
        **kwargs: see `DETRHead`.
    """

    def __init__(self, num_classes: int, *args: Any, loss_cls: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        if loss_cls is None:
            loss_cls = {"type": "CrossEntropyLoss", "class_weight": 1.0, "bg_cls_weight": 0.1}
        loss_cls, weight, background = dict(loss_cls), loss_cls.get("class_weight"), 0.0
        if weight is not None:
            background = loss_cls.pop("bg_cls_weight", weight)
            if not isinstance(weight, float) or not isinstance(background, float):
                raise ValueError(
                    f"class_weight and bg_cls_weight of BatchedDETRHead must be floats, got {weight!r} and "
                    f"{background!r}"
                )
            weights = torch.full((num_classes + 1,), weight)
            weights[num_classes] = background
            loss_cls["class_weight"] = weights
        super().__init__(num_classes, *args, loss_cls=loss_cls, **kwargs)
        self.bg_cls_weight = background


@_register
class BatchedConditionalDETRHead(BatchedSetPredictionMixin, ConditionalDETRHead):
    """In place of mmdet's `ConditionalDETRHead`; arguments as there."""


@_register
class BatchedDABDETRHead(BatchedSetPredictionMixin, DABDETRHead):
    """In place of mmdet's `DABDETRHead`; arguments as there."""


@_register
class BatchedDeformableDETRHead(BatchedSetPredictionMixin, DeformableDETRHead):
    """In place of mmdet's `DeformableDETRHead`, with one stage or two; arguments as there."""


@_register
class BatchedDINOHead(BatchedSetPredictionMixin, DINOHead):
    """In place of mmdet's `DINOHead`, denoising included; arguments as there."""
