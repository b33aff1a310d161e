"""CenterNet's 2D head with the targets of all images at once. Adapters only; the targets live in
`raggedbev.heatmap`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet.models.dense_heads import CenterNetHead
from mmdet.registry import MODELS
from mmdet.structures.bbox import get_box_tensor
from mmengine.structures import InstanceData
from torch import Tensor

from raggedbev.heatmap import centernet_targets
from raggedbev.mm.heads.center_head_losses import count_peaks, regression_loss
from raggedbev.profiling.stages import stage
from raggedbev.ragged import combine_data

__all__ = ["BatchedCenterNetHead"]


@MODELS.register_module(force=True)
class BatchedCenterNetHead(CenterNetHead):
    """mmdet's CenterNetHead with batched targets, and a loss that never waits for the device.

    Arguments, parameters, state dict, predictions, loss names and loss values are those of `CenterNetHead`.
    """

    def get_targets(
        self, gt_bboxes: Sequence[Tensor], gt_labels: Sequence[Tensor], feat_shape: tuple, img_shape: tuple
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Targets of all images.

        Args:
            gt_bboxes: per image [G, 4] corners in pixels.
            gt_labels: per image [G].
            feat_shape: [B, C, H, W] of the predicted heatmap.
            img_shape: height and width of the padded images in pixels.

        Returns:
            'center_heatmap_target' [B, C, H, W], 'wh_target', 'offset_target' and 'wh_offset_target_weight'
            [B, 2, H, W], and the number of peaks, at least 1, as a scalar tensor.
        """
        with stage("GT packing"):
            boxes = combine_data([get_box_tensor(one) for one in gt_bboxes])
            labels = combine_data(list(gt_labels), other_with_same_sample_sizes=boxes)
        with stage("targets"):
            shape, image = (int(feat_shape[2]), int(feat_shape[3])), (int(img_shape[0]), int(img_shape[1]))
            targets = centernet_targets(boxes, labels, self.num_classes, shape, image)
            maps = {
                "center_heatmap_target": targets.center_heatmap,
                "wh_target": targets.wh,
                "offset_target": targets.offset,
                "wh_offset_target_weight": targets.weight,
            }
            return maps, count_peaks(targets.center_heatmap)

    def loss_by_feat(
        self,
        center_heatmap_preds: Sequence[Tensor],
        wh_preds: Sequence[Tensor],
        offset_preds: Sequence[Tensor],
        batch_gt_instances: Sequence[InstanceData],
        batch_img_metas: Sequence[dict[str, Any]],
        batch_gt_instances_ignore: Any = None,
    ) -> dict[str, Tensor]:
        """Losses of all images.

        Args:
            center_heatmap_preds: one map [B, C, H, W] in (0, 1).
            wh_preds: one map [B, 2, H, W].
            offset_preds: one map [B, 2, H, W].
            batch_gt_instances: per image `bboxes` and `labels`.
            batch_img_metas: per image a dict; 'batch_input_shape' of the first counts.
            batch_gt_instances_ignore: unused, as in the stock head.

        Returns:
            'loss_center_heatmap', 'loss_wh', 'loss_offset'.

        Raises:
            ValueError: several feature levels.
        """
        levels = {len(center_heatmap_preds), len(wh_preds), len(offset_preds)}
        if levels != {1}:
            raise ValueError(f"CenterNet has one feature level, got {sorted(levels)}")
        targets, peaks = self.get_targets(
            [instances.bboxes for instances in batch_gt_instances],
            [instances.labels for instances in batch_gt_instances],
            center_heatmap_preds[0].shape,
            batch_img_metas[0]["batch_input_shape"],
        )
        weight = targets["wh_offset_target_weight"]
        with stage("loss terms"):
            return {
                "loss_center_heatmap": self.loss_center_heatmap(
                    center_heatmap_preds[0], targets["center_heatmap_target"], avg_factor=peaks
                ),
                "loss_wh": regression_loss(self.loss_wh, wh_preds[0], targets["wh_target"], weight, peaks * 2),
                "loss_offset": regression_loss(
                    self.loss_offset, offset_preds[0], targets["offset_target"], weight, peaks * 2
                ),
            }
