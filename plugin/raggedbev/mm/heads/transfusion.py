"""Targets and losses of TransFusion's head (mmdet3d's BEVFusion project) for all samples at once. Adapters only; the
heatmap lives in `raggedbev.heatmap`.

Letters: B samples, L decoder layers with a loss, P proposals of a layer, C classes, D numbers of a coded box.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmdet3d.models.utils import clip_sigmoid
from mmengine.structures import InstanceData
from torch import Tensor

from raggedbev.heatmap import transfusion_heatmap
from raggedbev.matching.costs import row_tensor
from raggedbev.mm.heads.center_head import bev_grid, pack_ground_truth
from raggedbev.mm.heads.center_head_losses import count_peaks, regression_loss
from raggedbev.profiling.stages import stage
from raggedbev.ragged import RaggedBatch, combine_data

__all__ = ["BatchedTransFusionLoss"]

_CODES = ("center", "height", "dim", "rot", "vel")


class BatchedTransFusionLoss:
    """Mixin: `get_targets` and `loss_by_feat` of BEVFusion's TransFusionHead without loops over samples and objects.

    The project is not part of mmdet3d's package; with it on the path, a config finds the head by its new name:

        from projects.BEVFusion.bevfusion.transfusion_head import TransFusionHead

        @MODELS.register_module()
        class BatchedTransFusionHead(BatchedTransFusionLoss, TransFusionHead):
            pass

    Targets, loss names and loss values are those of the head. Matching is the assigner's: all layers and samples at
    once where it has `assign_batch`, as `BatchedTransFusionAssigner3D` does, otherwise one `assign` per layer and
    sample. A sample without objects is allowed. The name of the assigner's type does not matter.
    """

    def get_targets(
        self, batch_gt_instances_3d: Sequence[InstanceData], preds_dict: Sequence[dict[str, Tensor]]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Targets of all samples.

        Args:
            batch_gt_instances_3d: per sample `bboxes_3d` and `labels_3d`.
            preds_dict: a list of one dict of predictions [B, channels, L * P].

        Returns:
            labels [B, L * P] (C for background), label weights [B, L * P], coded boxes [B, L * P, D], their weights
            [B, L * P, D], overlaps with the matched objects [B, L * P], the number of matched proposals and the mean
            over samples of their mean overlap (scalar tensors), heatmaps [B, C, H, W].
        """
        preds = preds_dict[0]
        gravity_boxes, gt_labels = pack_ground_truth(batch_gt_instances_3d)
        with stage("GT packing"):
            tensors = [instances.bboxes_3d.tensor for instances in batch_gt_instances_3d]
            gt_boxes = combine_data(tensors, other_with_same_sample_sizes=gravity_boxes)
        with torch.no_grad():
            gt_of_pred, overlaps = self._match(batch_gt_instances_3d, preds, gt_boxes, gt_labels)
        with stage("targets"):
            matched = gt_of_pred >= 0
            labels = torch.where(matched, _take(gt_labels.tensor, gt_of_pred), self.num_classes)
            pos_weight = self.train_cfg["pos_weight"]
            label_weights = torch.ones_like(labels)
            if pos_weight > 0:
                label_weights = torch.where(matched, int(pos_weight), label_weights)
            coded = self.bbox_coder.encode(gt_boxes.tensor.flatten(0, 1)).unflatten(0, gt_boxes.shape[:2])
            box_targets = torch.where(matched.unsqueeze(-1), _take(coded, gt_of_pred), 0.0)
            box_weights = matched.unsqueeze(-1).expand_as(box_targets).to(box_targets.dtype)
            overlaps = overlaps.clamp(min=0.0, max=1.0)
            per_sample = matched.sum(1)
            mean_overlap = (torch.where(matched, overlaps, 0.0).sum(1) / per_sample.clamp(min=1)).mean()
            heatmap = transfusion_heatmap(
                gravity_boxes,
                gt_labels,
                bev_grid(self.train_cfg),
                self.num_classes,
                self.train_cfg["gaussian_overlap"],
                self.train_cfg["min_radius"],
            )
        return labels, label_weights, box_targets, box_weights, overlaps, per_sample.sum(), mean_overlap, heatmap

    def _num_layers(self) -> int:
        return self.num_decoder_layers if self.auxiliary else 1

    def _match(
        self,
        batch_gt_instances_3d: Sequence[InstanceData],
        preds: dict[str, Tensor],
        gt_boxes: RaggedBatch,
        gt_labels: RaggedBatch,
    ) -> tuple[Tensor, Tensor]:
        """Object of every proposal, -1 for background, and its overlap with it, both [B, L * P]."""
        names = ("heatmap", "rot", "dim", "center", "height", "vel")
        copies = [preds[name].detach().clone() if name in preds else None for name in names]
        logits = preds["heatmap"].detach()  # [B, C, L * P]
        boxes = torch.stack([sample["bboxes"] for sample in self.bbox_coder.decode(*copies)])  # [B, L * P, 7 or 9]
        layers = (self._num_layers(), self.num_proposals)
        if hasattr(self.bbox_assigner, "assign_batch"):
            by_layer = [tensor.unflatten(1, layers).transpose(0, 1) for tensor in (logits.transpose(1, 2), boxes)]
            found = self.bbox_assigner.assign_batch(*by_layer, gt_boxes, gt_labels, self.train_cfg)
            return found.gt_of_pred.transpose(0, 1).flatten(1), found.max_overlaps.transpose(0, 1).flatten(1)
        pairs, overlaps = [], []
        for sample, instances in enumerate(batch_gt_instances_3d):
            for layer in range(layers[0]):
                part = slice(layer * self.num_proposals, (layer + 1) * self.num_proposals)
                found = self.bbox_assigner.assign(
                    boxes[sample, part],
                    instances.bboxes_3d.tensor.to(boxes.device),
                    instances.labels_3d,
                    logits[sample : sample + 1, :, part],
                    self.train_cfg,
                )
                pairs.append(found.gt_inds - 1)
                overlap = found.max_overlaps
                overlaps.append(boxes.new_zeros(self.num_proposals) if overlap is None else overlap)
        shape = (len(batch_gt_instances_3d), -1)
        return torch.cat(pairs).view(shape), torch.cat(overlaps).view(shape)

    def loss_by_feat(
        self,
        preds_dicts: Sequence[Sequence[dict[str, Tensor]]],
        batch_gt_instances_3d: Sequence[InstanceData],
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """Losses of the heatmap and of every layer.

        Args:
            preds_dicts: a tuple of one list of one dict: 'dense_heatmap' [B, C, H, W] and, all [B, channels, L * P],
                'heatmap', 'center', 'height', 'dim', 'rot' and, with velocity, 'vel'.
            batch_gt_instances_3d: per sample `bboxes_3d` and `labels_3d`.
            args: unused, as in the project's head.
            kwargs: unused, as in the project's head.

        Returns:
            'loss_heatmap', 'layer_0_loss_cls', 'layer_0_loss_bbox', ..., 'layer_-1_loss_cls', 'layer_-1_loss_bbox' and
            'matched_ious'.
        """
        preds = preds_dicts[0][0]
        labels, label_weights, box_targets, box_weights, _, num_pos, mean_overlap, heatmap = self.get_targets(
            batch_gt_instances_3d, preds_dicts[0]
        )
        if hasattr(self, "on_the_image_mask"):
            label_weights = label_weights * self.on_the_image_mask
            box_weights = box_weights * self.on_the_image_mask[:, :, None]
            num_pos = box_weights.amax(-1).sum()
        count = num_pos.clamp(min=1)
        with stage("loss terms"):
            dense = clip_sigmoid(preds["dense_heatmap"]).float()
            losses = {"loss_heatmap": self.loss_heatmap(dense, heatmap.float(), avg_factor=count_peaks(heatmap))}
            coded = torch.cat([preds[name] for name in _CODES if name in preds], dim=1).transpose(1, 2)
            weights = box_weights * row_tensor(self.train_cfg["code_weights"], box_weights)
            for layer in range(self._num_layers()):
                last = layer == self._num_layers() - 1
                prefix = "layer_-1" if last else f"layer_{layer}"
                part = slice(layer * self.num_proposals, (layer + 1) * self.num_proposals)
                losses[f"{prefix}_loss_cls"] = self.loss_cls(
                    preds["heatmap"][..., part].transpose(1, 2).reshape(-1, self.num_classes).float(),
                    labels[:, part].reshape(-1),
                    label_weights[:, part].reshape(-1),
                    avg_factor=count,
                )
                losses[f"{prefix}_loss_bbox"] = regression_loss(
                    self.loss_bbox, coded[:, part], box_targets[:, part], weights[:, part], count
                )
            losses["matched_ious"] = mean_overlap.to(losses["layer_-1_loss_cls"].dtype)
        return losses


def _take(values: Tensor, index: Tensor) -> Tensor:
    """values [B, G, ...] at index [B, N]; zero where the index is negative or there are no objects."""
    if not values.shape[1]:
        return values.new_zeros((*index.shape, *values.shape[2:]))
    picked = index.clamp(min=0).reshape(*index.shape, *[1] * (values.dim() - 2)).expand(*index.shape, *values.shape[2:])
    return values.gather(1, picked)
