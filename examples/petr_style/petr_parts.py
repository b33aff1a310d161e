"""A head in the manner of PETR: per sample and layer, and batched. Tokens and ground truth in, losses out.

What a project of one's own has: a head that loops, an assigner for one sample, and beside them the head whose loss
does all layers and samples at once. Weights, predictions and loss keys of the two heads are the same.

Shapes: L layers, B samples, Q queries, C classes, N tokens, G objects. Boxes are coded as PETR codes them: x, y,
log length, log width, z, log height, sine and cosine of the angle, velocity x, y.
"""

from __future__ import annotations

from typing import Any

import torch
from mmdet3d.registry import MODELS, TASK_UTILS
from mmengine.model import BaseModule
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from raggedbev import combine_data
from raggedbev.losses.class_loss import focal_loss_sums
from raggedbev.losses.set_prediction import class_targets, gather_targets, masked_sum, num_matched
from raggedbev.losses.terms import l1_loss, sigmoid_focal_loss
from raggedbev.matching.box_codes import encode_box3d
from raggedbev.matching.costs import focal_loss_cost
from raggedbev.mm.assigners.result import assign_result

CLASS_WEIGHT, BOX_WEIGHT = 2.0, 0.25


@TASK_UTILS.register_module()
class PerSamplePETRAssigner:
    """Hungarian matching of one sample with SciPy, on the host; the keys are those of PETR's assigner."""

    def __init__(self, cls_cost: dict, reg_cost: dict, iou_cost: dict, pc_range: list[float], box_code: str) -> None:
        self.cls_weight, self.reg_weight, self.box_code = cls_cost["weight"], reg_cost["weight"], box_code

    @torch.no_grad()
    def assign(self, bbox_pred: Tensor, cls_pred: Tensor, gt_bboxes: Tensor, gt_labels: Tensor) -> Any:
        """Boxes [Q, 10], logits [Q, C], objects [G, 9] and [G] -> mmdet's AssignResult."""
        distance = torch.cdist(encode_box3d(gt_bboxes, self.box_code)[:, :8], bbox_pred[:, :8], p=1)
        cost = focal_loss_cost(cls_pred, gt_labels, weight=self.cls_weight) + self.reg_weight * distance
        objects, queries = linear_sum_assignment(cost.nan_to_num(100.0, 100.0, -100.0).cpu().numpy())
        gt_of_pred = torch.full((len(bbox_pred),), -1)
        gt_of_pred[queries] = torch.from_numpy(objects)
        return assign_result(gt_of_pred.to(gt_labels.device), gt_labels)


@MODELS.register_module()
class PETRStyleHead(BaseModule):
    """Queries attend to tokens [B, N, `in_channels`] through `num_layers` decoder layers; the loss is a loop.

    Centres are offsets from a learned reference point of the query, within `pc_range`.
    """

    def __init__(
        self,
        in_channels: int,
        num_query: int,
        num_classes: int,
        num_layers: int,
        pc_range: list[float],
        code_weights: list[float],
        train_cfg: dict,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.queries, self.references = nn.Embedding(num_query, in_channels), nn.Embedding(num_query, 3)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(in_channels, 4, 2 * in_channels, dropout=0, batch_first=True)
            for _ in range(num_layers)
        )
        self.cls_branch, self.reg_branch = nn.Linear(in_channels, num_classes), nn.Linear(in_channels, 10)
        self.register_buffer("code_weights", torch.tensor(code_weights))
        self.register_buffer("pc_range", torch.tensor(pc_range), persistent=False)
        self.assigner = TASK_UTILS.build(train_cfg["assigner"])

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [L, B, Q, C] and coded boxes [L, B, Q, 10]."""
        query, states = self.queries.weight.expand(len(tokens), -1, -1), []
        for layer in self.layers:
            query = layer(query, tokens)
            states.append(query)
        stacked = torch.stack(states)
        offsets, others = self.reg_branch(stacked).split([3, 7], dim=-1)
        low, high = self.pc_range.split(3)
        x, y, z = ((offsets + self.references.weight).sigmoid() * (high - low) + low).split(1, dim=-1)
        return self.cls_branch(stacked), torch.cat([x, y, others[..., :2], z, others[..., 2:]], dim=-1)

    def loss(self, tokens: Tensor, gt_boxes: list[Tensor], gt_labels: list[Tensor]) -> dict[str, Tensor]:
        """Losses of a batch whose objects are [G, 9] and [G] per sample."""
        return self.loss_by_feat(*self(tokens), gt_boxes, gt_labels)

    def loss_by_feat(
        self, logits: Tensor, boxes: Tensor, gt_boxes: list[Tensor], gt_labels: list[Tensor]
    ) -> dict[str, Tensor]:
        """`loss_cls` and `loss_bbox` of the last layer, `d0.loss_cls` and so on of the others."""
        layers = [self.loss_of_layer(*layer, gt_boxes, gt_labels) for layer in zip(logits, boxes, strict=True)]
        return self.named(*(torch.stack(terms) for terms in zip(*layers, strict=True)))

    def loss_of_layer(
        self, logits: Tensor, boxes: Tensor, gt_boxes: list[Tensor], gt_labels: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        classes, regression, num_pos = logits.new_zeros(()), logits.new_zeros(()), 0
        for scores, preds, objects, labels in zip(logits, boxes, gt_boxes, gt_labels, strict=True):
            result = self.assigner.assign(preds, scores, objects, labels)
            positive = torch.nonzero(result.gt_inds > 0).flatten()
            num_pos += len(positive)
            target_labels = torch.full_like(result.gt_inds, self.num_classes)
            target_labels[positive] = result.labels[positive]
            targets = encode_box3d(objects, "petr")[result.gt_inds[positive] - 1]
            classes = classes + sigmoid_focal_loss(scores, target_labels).sum()
            regression = regression + ((preds[positive] - targets).abs() * self.code_weights).sum()
        num_pos = max(num_pos, 1)
        return CLASS_WEIGHT * classes / num_pos, BOX_WEIGHT * regression / num_pos

    @staticmethod
    def named(classes: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        """Losses [L] and [L] by their keys."""
        prefixes = [*(f"d{layer}." for layer in range(len(classes) - 1)), ""]
        losses = {f"{prefix}loss_cls": loss for prefix, loss in zip(prefixes, classes, strict=True)}
        return losses | {f"{prefix}loss_bbox": loss for prefix, loss in zip(prefixes, boxes, strict=True)}


@MODELS.register_module()
class BatchedPETRStyleHead(PETRStyleHead):
    """The same head with one loss for all layers and samples; its assigner needs `assign_batch`."""

    def loss_by_feat(
        self, logits: Tensor, boxes: Tensor, gt_boxes: list[Tensor], gt_labels: list[Tensor]
    ) -> dict[str, Tensor]:
        """Keys and values of the looping head; nothing waits for the device."""
        objects = combine_data(gt_boxes)  # [B, G, 9], ragged
        labels = combine_data(gt_labels, other_with_same_sample_sizes=objects)  # [B, G]
        found = self.assigner.assign_batch(logits, boxes, objects, labels)
        targets = gather_targets(found, encode_box3d(objects.tensor, "petr"))  # [L, B, Q, 10]
        matched = found.gt_of_pred >= 0  # [L, B, Q]
        num_pos = num_matched(found).clamp(min=1)  # [L]
        classes = focal_loss_sums(logits, class_targets(found, labels, self.num_classes))
        regression = masked_sum(boxes, targets, matched, l1_loss, self.code_weights)
        return self.named(CLASS_WEIGHT * classes / num_pos, BOX_WEIGHT * regression / num_pos)
