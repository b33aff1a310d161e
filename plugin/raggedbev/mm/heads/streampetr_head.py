"""The 3D heads with their losses: per sample as published, and batched. Adapters only; the losses live in
`raggedbev.losses`."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from mmdet3d.registry import MODELS
from torch import Tensor

from raggedbev.losses import DenoisingOutput, GroundTruth3D, PackedGroundTruth3D, StreamPETRLossConfig, streampetr_loss
from raggedbev.losses.reference import streampetr_loss_reference
from raggedbev.losses.streampetr import StreamPETRSums, streampetr_losses, streampetr_sums
from raggedbev.mm import convert
from raggedbev.mm.heads.common import (
    LossRunner,
    build_assigner,
    full_precision,
    mean_over_processes,
    require_assigner,
)
from raggedbev.mm.nonfinite import NonfiniteCounter
from raggedbev.mm.streampetr.head import StreamPETRHeadBase

__all__ = ["BatchedStreamPETRHead", "PerSampleStreamPETRHead"]


class _StreamPETRLoss(NonfiniteCounter, StreamPETRHeadBase):
    """Loss configs of the 3D head; subclasses say how the loss is computed."""

    batched: bool

    def _build_loss(self, loss_cls: Mapping | None, loss_bbox: Mapping | None, train_cfg: Mapping | None) -> None:
        self._cls = convert.focal_loss(loss_cls)
        self._bbox_weight, self._bbox = convert.coordinate_loss("loss_bbox", loss_bbox, published=0.25)
        self.assigner = build_assigner(type(self).__name__, train_cfg, self.batched, "BatchedHungarianAssigner3D")

    def loss_config(self) -> StreamPETRLossConfig:
        """Settings of the loss; code weights and match costs are the head's parameters, which checkpoints hold."""
        return StreamPETRLossConfig(
            num_classes=self.num_classes,
            cls=self._cls,
            bbox_weight=self._bbox_weight,
            bbox=self._bbox,
            code_weights=self.code_weights,
            match_costs=self.match_costs,
            match_with_velo=self.match_with_velo,
            sync_cls_avg_factor=self.sync_cls_avg_factor,
            dn_weight=self.dn_weight,
        )

    def loss(self, outs: dict[str, Any], gt: GroundTruth3D) -> dict[str, Tensor]:
        """Losses of what `forward` gave for the objects `gt`, under their published names.

        Args:
            outs: 'all_cls_scores' [L, B, Q, C] logits, 'all_bbox_preds' [L, B, Q, 10] coded boxes, 'dn'
                DenoisingOutput or None.
            gt: ground truth on the device of the predictions.

        Raises:
            ValueError: shapes do not fit the config, or there is no assigner.
        """
        logits, boxes = outs["all_cls_scores"], outs["all_bbox_preds"]
        layers = self.transformer.num_layers
        if len(logits) != layers:
            raise ValueError(f"{type(self).__name__} has {layers} decoder layers, got predictions of {len(logits)}")
        with full_precision(logits):
            self.count_nonfinite(logits, boxes)
            return self._compute(logits, boxes, gt, outs.get("dn"))

    @abstractmethod
    def _compute(self, logits: Tensor, boxes: Tensor, gt: GroundTruth3D, dn: Any) -> dict[str, Tensor]:
        """The losses, in the way of the subclass."""


def _filled(config: StreamPETRLossConfig, code_weights: Tensor, match_costs: Tensor) -> StreamPETRLossConfig:
    return dataclasses.replace(config, code_weights=code_weights, match_costs=match_costs)


def _loss(
    logits: Tensor,
    boxes: Tensor,
    gt: PackedGroundTruth3D,
    dn: DenoisingOutput | None,
    assigner: Any,
    config: StreamPETRLossConfig,
    *weights: Tensor,
) -> dict[str, Tensor]:
    """The loss of one rank, of tensors and constants only: the head's weights come by themselves."""
    return streampetr_loss(logits, boxes, gt, assigner, _filled(config, *weights), dn)


def _sums(
    logits: Tensor,
    boxes: Tensor,
    gt: PackedGroundTruth3D,
    dn: DenoisingOutput | None,
    assigner: Any,
    config: StreamPETRLossConfig,
    *weights: Tensor,
) -> StreamPETRSums:
    """As `_loss`, before the average over ranks."""
    return streampetr_sums(logits, boxes, gt, assigner, _filled(config, *weights), dn)


@MODELS.register_module(force=True)
class BatchedStreamPETRHead(_StreamPETRLoss):
    """StreamPETR's 3D head with the loss of all layers and samples at once; its assigner needs `assign_batch`.

    Args:
        *args: see `StreamPETRHeadBase`.
        padded_sizes: lengths in rising order (and multiples of the last) that the objects of a batch are padded to,
            which fixes the number of denoising queries too; None: the fullest sample's, or multiples of 16 with
            `loss_graph` or `loss_compile`.
        loss_graph: on CUDA, capture the loss once per padded length and replay it (`GraphedLoss`).
        loss_compile: compile the loss with `torch.compile`; a string names its backend.
        **kwargs: see `StreamPETRHeadBase`.

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
        parts = (_loss, _sums, streampetr_losses)
        self.runner = LossRunner(type(self).__name__, *parts, padded_sizes, loss_graph, loss_compile)

    def forward(
        self,
        feats: Tensor,
        location: Tensor,
        frame: Mapping[str, Any],
        gt: GroundTruth3D | PackedGroundTruth3D | None = None,
        dn_uniform: Tensor | None = None,
    ) -> dict[str, Any]:
        """As `StreamPETRHeadBase.forward`, with denoising queries for the padded number of objects."""
        if gt is not None and self.runner.buckets is not None:
            gt = gt.packed(self.runner.buckets)
        return super().forward(feats, location, frame, gt, dn_uniform)

    def _compute(self, logits: Tensor, boxes: Tensor, gt: GroundTruth3D, dn: Any) -> dict[str, Tensor]:
        assigner, config = require_assigner(self), self.loss_config()
        gt = gt if self.runner.buckets is None else gt.packed(self.runner.buckets)
        if self.runner.is_plain:
            return streampetr_loss(logits, boxes, gt, assigner, config, dn, mean_over_processes)
        constants = dataclasses.replace(config, code_weights=(), match_costs=())
        weights = (config.code_weights.detach(), config.match_costs.detach())
        return self.runner(constants, logits, boxes, gt.packed(), dn, assigner, constants, *weights)


@MODELS.register_module()
class PerSampleStreamPETRHead(_StreamPETRLoss):
    """StreamPETR's 3D head with per-sample loops as published; any assigner with the published `assign`.

    Arguments as in `StreamPETRHeadBase`.
    """

    batched = False

    def _compute(self, logits: Tensor, boxes: Tensor, gt: GroundTruth3D, dn: Any) -> dict[str, Tensor]:
        assigner = _SampleMatcher(require_assigner(self))
        return streampetr_loss_reference(logits, boxes, gt, assigner, self.loss_config(), dn, mean_over_processes)


class _SampleMatcher:
    """An mm-style assigner in the form that the per-sample loss asks for."""

    def __init__(self, assigner: Any) -> None:
        self.assigner = assigner

    def match(
        self,
        cls_logits: Tensor,
        box_preds: Tensor,
        gt_boxes: Tensor,
        gt_labels: Tensor,
        code_weights: Sequence[float] | Tensor,
        with_velo: bool,
    ) -> Tensor:
        """Object of each prediction [Q] int64, -1 for background."""
        result = self.assigner.assign(box_preds, cls_logits, gt_boxes, gt_labels, None, code_weights, with_velo)
        return result.gt_inds - 1
