"""The 2D heads with their losses: per image as published, and batched. Adapters only; the losses live in
`raggedbev.losses`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from mmdet3d.registry import MODELS
from torch import Tensor

from raggedbev.losses import FocalHeadLossConfig, GroundTruth2D, focal_head_loss
from raggedbev.losses.focal2d import focal_head_losses, focal_head_sums
from raggedbev.losses.reference import focal_head_loss_reference
from raggedbev.mm import convert
from raggedbev.mm.heads.common import (
    LossRunner,
    build_assigner,
    full_precision,
    mean_over_processes,
    require_assigner,
)
from raggedbev.mm.nonfinite import NonfiniteCounter
from raggedbev.mm.streampetr.focal_head import FocalHeadBase

__all__ = ["BatchedFocalHead", "PerSampleFocalHead"]

_OUTPUTS = ("enc_cls_scores", "enc_bbox_preds", "pred_centers2d", "centerness")


class _FocalLoss(NonfiniteCounter, FocalHeadBase):
    """Loss configs of the 2D head; subclasses say how the loss is computed."""

    batched: bool

    def _build_loss(
        self,
        loss_cls2d: Mapping | None,
        loss_centerness: Mapping | None,
        loss_bbox2d: Mapping | None,
        loss_iou2d: Mapping | None,
        loss_centers2d: Mapping | None,
        train_cfg: Mapping | None,
    ) -> None:
        bbox_weight, bbox = convert.coordinate_loss("loss_bbox2d", loss_bbox2d, published=5.0)
        center_weight, center = convert.coordinate_loss("loss_centers2d", loss_centers2d, published=10.0)
        self.loss_config = FocalHeadLossConfig(
            num_classes=self.num_classes,
            bbox_weight=bbox_weight,
            iou_weight=convert.giou_weight("loss_iou2d", loss_iou2d, published=2.0),
            center_weight=center_weight,
            bbox=bbox,
            center=center,
            stride=self.stride,
            **convert.quality_focal_loss(loss_cls2d),
            **convert.gaussian_focal_loss(loss_centerness),
        )
        self.assigner = build_assigner(type(self).__name__, train_cfg, self.batched, "BatchedHungarianAssigner2D")

    def loss(self, outs: dict[str, Tensor], gt2d: GroundTruth2D, pad_shape: tuple[int, int]) -> dict[str, Tensor]:
        """Losses of what `forward` gave for the objects of all images, under their published names.

        Args:
            outs: 'enc_cls_scores' [I, T, C] logits, 'enc_bbox_preds' [I, T, 4], 'pred_centers2d' [I, T, 2],
                'centerness' [I, T, 1] logits.
            gt2d: ground truth of the I images on the device of the predictions.
            pad_shape: height and width of the padded images in pixels.

        Raises:
            ValueError: shapes do not fit the config, or there is no assigner.
        """
        predictions = [outs[name] for name in _OUTPUTS]
        with full_precision(predictions[0]):
            self.count_nonfinite(*(tensor.unsqueeze(0) for tensor in predictions))
            return self._compute(predictions, gt2d, tuple(pad_shape))

    @abstractmethod
    def _compute(self, predictions: list[Tensor], gt: GroundTruth2D, pad_shape: tuple[int, int]) -> dict[str, Tensor]:
        """The losses, in the way of the subclass."""


@MODELS.register_module(force=True)
class BatchedFocalHead(_FocalLoss):
    """StreamPETR's 2D head with the loss of all images at once; its assigner needs `assign_batch`.

    Args:
        *args: see `FocalHeadBase`.
        padded_sizes: lengths in rising order (and multiples of the last) that the objects of a batch are padded to;
            None: the fullest image's, or multiples of 16 with `loss_graph` or `loss_compile`.
        loss_graph: on CUDA, capture the loss once per padded length and replay it (`GraphedLoss`).
        loss_compile: compile the loss with `torch.compile`; a string names its backend.
        **kwargs: see `FocalHeadBase`.

    Raises:
        ValueError: both `loss_graph` and `loss_compile`, or sizes that do not rise.
    """

    batched = True

    def __init__(
        self,
        *args: Any,
        padded_sizes: Sequence[int] | None = None,
        loss_graph: bool = False,
        loss_compile: bool | str = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        parts = (focal_head_loss, focal_head_sums, focal_head_losses)
        self.runner = LossRunner(type(self).__name__, *parts, padded_sizes, loss_graph, loss_compile)

    def _compute(self, predictions: list[Tensor], gt: GroundTruth2D, pad_shape: tuple[int, int]) -> dict[str, Tensor]:
        assigner, config = require_assigner(self), self.loss_config
        gt = gt if self.runner.buckets is None else gt.packed(self.runner.buckets)
        if self.runner.is_plain:
            return focal_head_loss(*predictions, gt, assigner, config, pad_shape, mean_over_processes)
        return self.runner(config, *predictions, gt.packed(), assigner, config, pad_shape)


@MODELS.register_module()
class PerSampleFocalHead(_FocalLoss):
    """StreamPETR's 2D head with per-image loops as published; any assigner with the published `assign`.

    Heatmaps are drawn object by object, unless the assigner's `arm` is 'reference'. Arguments as in `FocalHeadBase`.
    """

    batched = False

    def _compute(self, predictions: list[Tensor], gt: GroundTruth2D, pad_shape: tuple[int, int]) -> dict[str, Tensor]:
        assigner = require_assigner(self)
        return focal_head_loss_reference(
            *predictions,
            gt,
            _ImageMatcher(assigner),
            self.loss_config,
            pad_shape,
            mean_over_processes,
            arm=getattr(assigner, "arm", "published"),
        )


class _ImageMatcher:
    """An mm-style assigner in the form that the per-image loss asks for."""

    def __init__(self, assigner: Any) -> None:
        self.assigner = assigner

    def match(
        self,
        cls_logits: Tensor,
        box_preds: Tensor,
        center_preds: Tensor,
        gt_boxes: Tensor,
        gt_labels: Tensor,
        gt_centers: Tensor,
        pad_shape: tuple[int, int],
    ) -> Tensor:
        """Object of each token [T] int64, -1 for background."""
        return (
            self.assigner.assign(
                box_preds, cls_logits, center_preds, gt_boxes, gt_labels, gt_centers, pad_shape
            ).gt_inds
            - 1
        )
