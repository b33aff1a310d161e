"""CenterPoint's head with the targets of all samples and tasks at once. Adapters only; the targets live in
`raggedbev.heatmap`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet3d.models.dense_heads import CenterHead
from mmdet3d.models.utils import clip_sigmoid
from mmdet3d.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor

from raggedbev.heatmap import BevGrid, CenterHeadConfig, center_head_targets
from raggedbev.matching.costs import row_tensor
from raggedbev.mm.heads.center_head_losses import count_peaks, regression_loss
from raggedbev.mm.heads.common import pack_boxes_3d
from raggedbev.profiling.stages import stage
from raggedbev.ragged import RaggedBatch

__all__ = ["BatchedCenterHead", "BatchedCenterTargets", "bev_grid", "pack_ground_truth"]


def bev_grid(train_cfg: Mapping[str, Any]) -> BevGrid:
    """The map that a head's train_cfg describes."""
    factor = train_cfg["out_size_factor"]
    low, voxel = train_cfg["point_cloud_range"], train_cfg["voxel_size"]
    return BevGrid(
        width=int(train_cfg["grid_size"][0] // factor),
        height=int(train_cfg["grid_size"][1] // factor),
        origin=(float(low[0]), float(low[1])),
        voxel_size=(float(voxel[0]), float(voxel[1])),
        voxels_per_cell=factor,
    )


def pack_ground_truth(batch_gt_instances_3d: Sequence[InstanceData]) -> tuple[RaggedBatch, RaggedBatch]:
    """Boxes [B, G, 7 or 9], from the gravity centre on, and labels [B, G], on the device of the labels."""
    boxes = [instances.bboxes_3d for instances in batch_gt_instances_3d]
    return pack_boxes_3d(boxes, [instances.labels_3d for instances in batch_gt_instances_3d])


class BatchedCenterTargets:
    """Mixin: `get_targets` of a head with the attributes and settings of mmdet3d's CenterHead, without loops.

    Put it before the head's class, `class Head(BatchedCenterTargets, DSVTCenterHead): cos_first = True`.

    Attributes:
        cos_first: whether the cosine of the yaw comes before the sine, as in DSVT's head.
    """

    cos_first = False

    def center_config(self) -> CenterHeadConfig:
        """Settings of the targets, from class names and train_cfg."""
        return CenterHeadConfig(
            classes_per_task=tuple(len(names) for names in self.class_names),
            grid=bev_grid(self.train_cfg),
            max_objects=self.train_cfg["max_objs"] * self.train_cfg["dense_reg"],
            min_overlap=self.train_cfg["gaussian_overlap"],
            min_radius=self.train_cfg["min_radius"],
            log_dims=self.norm_bbox,
            cos_first=self.cos_first,
        )

    def get_targets(
        self, batch_gt_instances_3d: Sequence[InstanceData]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Targets of all samples.

        Args:
            batch_gt_instances_3d: per sample `bboxes_3d` and `labels_3d`.

        Returns:
            Per task heatmaps [B, C, H, W], boxes [B, M, 10] (8 without velocity), cells [B, M] and masks [B, M], see
            `raggedbev.heatmap.CenterHeadTargets`.
        """
        boxes, labels = pack_ground_truth(batch_gt_instances_3d)
        with stage("targets"):
            return tuple(center_head_targets(boxes, labels, self.center_config()))


@MODELS.register_module(force=True)
class BatchedCenterHead(BatchedCenterTargets, CenterHead):
    """mmdet3d's CenterHead with batched targets, and a loss that never waits for the device.

    Arguments, parameters, state dict, predictions, loss names and loss values are those of `CenterHead`. Boxes without
    velocity are allowed where `common_heads` has no 'vel'.
    """

    def loss_by_feat(
        self,
        preds_dicts: Sequence[Sequence[dict[str, Tensor]]],
        batch_gt_instances_3d: Sequence[InstanceData],
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """Losses of all tasks.

        Args:
            preds_dicts: per task a list of one dict of maps [B, channels, H, W]: 'heatmap' (logits), 'reg', 'height',
                'dim', 'rot' and, with velocity, 'vel'. As in the stock head, 'heatmap' is overwritten by its sigmoid.
            batch_gt_instances_3d: per sample `bboxes_3d` and `labels_3d`.
            args: unused, as in the stock head.
            kwargs: unused, as in the stock head.

        Returns:
            'task0.loss_heatmap', 'task0.loss_bbox', 'task1.loss_heatmap', ...
        """
        losses = {}
        targets = self.get_targets(batch_gt_instances_3d)
        with stage("loss terms"):
            code_weights = row_tensor(self.train_cfg["code_weights"], targets[1][0])
            for task, (preds, heatmap, boxes, cells, mask) in enumerate(zip(preds_dicts, *targets, strict=True)):
                maps = preds[0]
                maps["heatmap"] = clip_sigmoid(maps["heatmap"])
                losses[f"task{task}.loss_heatmap"] = self.loss_cls(
                    maps["heatmap"], heatmap, avg_factor=count_peaks(heatmap)
                )
                parts = [maps[name] for name in ("reg", "height", "dim", "rot", "vel") if name in maps]
                maps["anno_box"] = torch.cat(parts, dim=1)
                losses[f"task{task}.loss_bbox"] = self._box_loss(maps["anno_box"], boxes, cells, mask, code_weights)
        return losses

    def _box_loss(self, maps: Tensor, boxes: Tensor, cells: Tensor, mask: Tensor, code_weights: Tensor) -> Tensor:
        """Box loss of one task: maps [B, D, H, W], boxes [B, M, D], cells and mask [B, M], code weights [D]."""
        if maps.shape[1] != boxes.shape[-1]:
            raise ValueError(
                f"{type(self).__name__} predicts {maps.shape[1]} numbers per box, the ground truth has "
                f"{boxes.shape[-1]}; 'vel' of common_heads belongs to boxes with velocity"
            )
        if len(code_weights) != boxes.shape[-1]:
            raise ValueError(f"code_weights must have {boxes.shape[-1]} numbers, got {len(code_weights)}")
        rows = maps.permute(0, 2, 3, 1).contiguous()
        preds = self._gather_feat(rows.view(rows.size(0), -1, rows.size(3)), cells)
        weights = mask.unsqueeze(2).expand_as(boxes).float() * (~torch.isnan(boxes)).float() * code_weights
        return regression_loss(self.loss_bbox, preds, boxes, weights, mask.float().sum() + 1e-4)
