"""Heads of the PETR and DETR3D families, one layer and one sample at a time, written for tests from what is published.

Their projects are not installed. `DETR3DHead` is called with instances and averages over ranks, `PETRHead` with lists
and does not, `BEVFormerHead` has its method under the name `loss`; `HybridHead` has auxiliary one-to-many queries.
"""

from __future__ import annotations

import math
import warnings

import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mmdet3d.registry import MODELS, TASK_UTILS
    from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.dist import all_reduce, get_world_size
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment
from torch import nn

from raggedbev.mm.heads import BatchedSetPrediction3DMixin, QuerySet

NUM_CLASSES = 6
FOCAL = {"type": "mmdet.FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 2.0}
ASSIGNER = {
    "type": "BatchedHungarianAssigner3D",
    "cls_cost": {"type": "FocalLossCost", "weight": 2.0},
    "reg_cost": {"type": "BBox3DL1Cost", "weight": 0.25},
    "iou_cost": {"type": "IoUCost", "weight": 0.0},
    "pc_range": [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0],
}


def mean_over_ranks(number):
    """As mmdet's `reduce_mean`."""
    if get_world_size() == 1:
        return number
    value = torch.tensor([float(number)])
    all_reduce(value, op="mean")
    return float(value)


class PublishedLoss(BaseModule):
    """What the heads share: one layer's losses, with targets found sample by sample.

    Args:
        box_code: what is regressed; one of the assigner's.
        code_size: 10, or 8 without velocity.
        code_weights: factors of the coordinates.
        loss_cls, loss_bbox: mmdet's losses.
        sync_cls_avg_factor: whether the class loss's normaliser is averaged over ranks.
        layers: decoder layers.
        with_assigner: a head for inference only has none.
    """

    averages = True

    def __init__(
        self,
        box_code="detr3d",
        code_size=10,
        code_weights=(1.0,) * 8 + (0.2, 0.2),
        loss_cls=FOCAL,
        loss_bbox=None,
        sync_cls_avg_factor=False,
        bg_cls_weight=0.0,
        layers=6,
        assigner=ASSIGNER,
    ):
        super().__init__()
        self.num_classes, self.code_size, self.box_code = NUM_CLASSES, code_size, box_code
        self.code_weights = nn.Parameter(torch.tensor(code_weights[:code_size]), requires_grad=False)
        self.loss_cls = MODELS.build(loss_cls)
        self.loss_bbox = MODELS.build(loss_bbox or {"type": "mmdet.L1Loss", "loss_weight": 0.25})
        self.cls_out_channels = NUM_CLASSES + (not self.loss_cls.use_sigmoid)
        self.sync_cls_avg_factor, self.bg_cls_weight = sync_cls_avg_factor, bg_cls_weight
        self.cls_branches = nn.ModuleList(nn.Linear(4, NUM_CLASSES) for _ in range(layers))
        if assigner:
            self.assigner = TASK_UTILS.build({**assigner, "box_code": box_code})

    def normalize(self, boxes):
        """[n, 7 or 9] -> [n, 8 or 10]."""
        x, y, z, length, width, height, yaw, *velocity = boxes.unbind(-1)
        length, width, height = length.log(), width.log(), height.log()
        if self.box_code == "petr":
            yaw = -yaw - math.pi / 2
            yaw = yaw - torch.floor(yaw / (2 * math.pi) + 0.5) * (2 * math.pi)
        place = (x, y, length, width, z, height)
        if self.box_code == "streampetr":
            place = (x, y, z, length, width, height)
        return torch.stack([*place, yaw.sin(), yaw.cos(), *velocity], dim=-1)

    def match(self, logits, boxes, gt_boxes, gt_labels):
        """Matched queries and their objects of one sample; PETR replaces costs that are not finite."""
        if not self.loss_cls.use_sigmoid:
            cost = -logits.softmax(-1)[:, gt_labels] * 2.0
        else:
            score = logits.sigmoid()[:, gt_labels]
            cost = 0.25 * (1 - score) ** 2 * -(score + 1e-12).log() - 0.75 * score**2 * -(1 - score + 1e-12).log()
            cost = cost * 2.0
        targets = self.normalize(gt_boxes.to(boxes.dtype))
        cost = cost + 0.25 * (boxes[:, None, :8] - targets[None, :, :8]).abs().sum(-1)
        if self.box_code != "detr3d":
            cost = torch.nan_to_num(cost, nan=100.0, posinf=100.0, neginf=-100.0)
        queries, objects = linear_sum_assignment(cost.detach().numpy())
        return torch.from_numpy(queries), torch.from_numpy(objects)

    def layer_losses(self, logits, boxes, gt_boxes, gt_labels):
        """Both losses of one layer [B, P, .]."""
        labels, targets, weights, positives = [], [], [], 0
        for sample in range(len(logits)):
            queries, objects = self.match(logits[sample], boxes[sample], gt_boxes[sample], gt_labels[sample])
            positives += len(queries)
            labels.append(torch.full((logits.shape[1],), NUM_CLASSES))
            labels[-1][queries] = gt_labels[sample][objects]
            targets.append(boxes.new_zeros((logits.shape[1], self.code_size - 1)))
            targets[-1][queries] = gt_boxes[sample][objects].to(boxes.dtype)
            weights.append(torch.zeros_like(boxes[sample]))
            weights[-1][queries] = 1.0
        labels, targets, weights = torch.cat(labels), self.normalize(torch.cat(targets)), torch.cat(weights)
        count = positives + (len(labels) - positives) * self.bg_cls_weight
        if self.averages and self.sync_cls_avg_factor:
            count = mean_over_ranks(count)
        loss_cls = self.loss_cls(logits.flatten(0, 1), labels, torch.ones(len(labels)), avg_factor=max(count, 1))
        count = max(mean_over_ranks(positives) if self.averages else positives, 1)
        rows = targets.isfinite().all(-1)
        weights = weights * self.code_weights.to(boxes.dtype)
        loss_bbox = self.loss_bbox(boxes.flatten(0, 1)[rows], targets[rows], weights[rows], avg_factor=count)
        return torch.nan_to_num(loss_cls), torch.nan_to_num(loss_bbox)

    def all_losses(self, gt_boxes, gt_labels, logits, boxes, ending=""):
        """Losses of decoder layers [L, B, P, .] under their keys."""
        layers = [self.layer_losses(*one, gt_boxes, gt_labels) for one in zip(logits, boxes, strict=True)]
        names = ("loss_cls" + ending, "loss_bbox" + ending)
        losses = dict(zip(names, layers[-1], strict=True))
        for index, layer in enumerate(layers[:-1]):
            losses |= dict(zip((f"d{index}.{name}" for name in names), layer, strict=True))
        return losses

    def proposal_losses(self, gt_boxes, gt_labels, preds):
        """Losses of encoder proposals, where there are any."""
        if preds["enc_cls_scores"] is None:
            return {}
        found = self.layer_losses(preds["enc_cls_scores"], preds["enc_bbox_preds"], gt_boxes, gt_labels)
        return dict(zip(("enc_loss_cls", "enc_loss_bbox"), found, strict=True))


def from_gravity_center(boxes):
    return torch.cat([boxes.gravity_center, boxes.tensor[:, 3:]], dim=1)


class DETR3DHead(PublishedLoss):
    def loss_by_feat(self, batch_gt_instances_3d, preds_dicts, batch_gt_instances_3d_ignore=None):
        gt_boxes = [from_gravity_center(one.bboxes_3d) for one in batch_gt_instances_3d]
        gt_labels = [one.labels_3d for one in batch_gt_instances_3d]
        losses = self.proposal_losses(gt_boxes, gt_labels, preds_dicts)
        preds = preds_dicts["all_cls_scores"], preds_dicts["all_bbox_preds"]
        return losses | self.all_losses(gt_boxes, gt_labels, *preds)


class PETRHead(PublishedLoss):
    averages = False

    def loss_by_feat(self, gt_bboxes_list, gt_labels_list, preds_dicts, gt_bboxes_ignore=None):
        gt_boxes = [from_gravity_center(boxes) for boxes in gt_bboxes_list]
        losses = self.proposal_losses(gt_boxes, [torch.zeros_like(labels) for labels in gt_labels_list], preds_dicts)
        return losses | self.all_losses(
            gt_boxes, gt_labels_list, preds_dicts["all_cls_scores"], preds_dicts["all_bbox_preds"]
        )


class BEVFormerHead(PublishedLoss):
    """Args: group_detr: groups of queries, each matched on its own."""

    def __init__(self, group_detr=1, **options):
        super().__init__(**options)
        self.group_detr = group_detr

    def loss(self, gt_bboxes_list, gt_labels_list, preds_dicts, gt_bboxes_ignore=None, img_metas=None):
        gt_boxes = [from_gravity_center(boxes) for boxes in gt_bboxes_list]
        losses = {}
        parts = (preds_dicts[name].chunk(self.group_detr, dim=2) for name in ("all_cls_scores", "all_bbox_preds"))
        for group in zip(*parts, strict=True):
            for key, value in self.all_losses(gt_boxes, gt_labels_list, *group).items():
                losses[key] = losses.get(key, 0) + value / self.group_detr
        return losses


class HybridHead(DETR3DHead):
    """DETR3D's with auxiliary queries behind the others, of which `repeats` are to find the same object."""

    own, repeats = 8, 3

    def loss_by_feat(self, batch_gt_instances_3d, preds_dicts, batch_gt_instances_3d_ignore=None):
        gt_boxes = [from_gravity_center(one.bboxes_3d) for one in batch_gt_instances_3d]
        gt_labels = [one.labels_3d for one in batch_gt_instances_3d]
        preds = [preds_dicts[name] for name in ("all_cls_scores", "all_bbox_preds")]
        losses = self.all_losses(gt_boxes, gt_labels, *(part[:, :, : self.own] for part in preds))
        many = [boxes.repeat(self.repeats, 1) for boxes in gt_boxes], [one.repeat(self.repeats) for one in gt_labels]
        return losses | self.all_losses(*many, *(part[:, :, self.own :] for part in preds), ending="_aux")


class BatchedHybridHead(BatchedSetPrediction3DMixin, HybridHead):
    def query_sets(self, preds_dicts):
        logits, boxes = preds_dicts["all_cls_scores"], preds_dicts["all_bbox_preds"]
        own, aux = slice(None, self.own), slice(self.own, None)
        return {
            "{}": QuerySet(logits[:, :, own], boxes[:, :, own]),
            "{}_aux": QuerySet(logits[:, :, aux], boxes[:, :, aux], repeats=self.repeats),
        }


def ground_truth(sizes, code_size=10, seed=0):
    """B instances with boxes and labels."""
    g = torch.Generator().manual_seed(seed)
    instances = []
    for count in sizes:
        boxes = torch.rand(count, 9, generator=g) * torch.tensor([80.0, 80, 4, 5, 3, 2, 12, 4, 4])
        boxes = boxes + torch.tensor([-40.0, -40, -2, 0.5, 0.5, 0.5, -6, -2, -2])
        boxes = LiDARInstance3DBoxes(boxes[:, : code_size - 1], box_dim=code_size - 1)
        instances.append(InstanceData(bboxes_3d=boxes, labels_3d=torch.randint(0, NUM_CLASSES, (count,), generator=g)))
    return instances


def predictions(head, batch, layers=2, queries=9, proposals=0, dtype=torch.float64, seed=0):
    """What the head's `forward` would give, requiring gradients."""
    g = torch.Generator().manual_seed(100 + seed)

    def outputs(*lead):
        logits = torch.randn(*lead, head.cls_out_channels, generator=g, dtype=torch.float64) * 2 - 1
        boxes = torch.randn(*lead, head.code_size, generator=g, dtype=torch.float64)
        boxes[..., :2] *= 20
        return [part.to(dtype).requires_grad_() for part in (logits, boxes)]

    enc = outputs(batch, proposals) if proposals else [None, None]
    names = ("all_cls_scores", "all_bbox_preds", "enc_cls_scores", "enc_bbox_preds")
    return dict(zip(names, [*outputs(layers, batch, queries), *enc], strict=True))


def arguments(head, instances):
    """Ground truth as the head takes it."""
    if isinstance(head, DETR3DHead):
        return (instances,)
    return [one.bboxes_3d for one in instances], [one.labels_3d for one in instances]


def run(head, instances, preds):
    """Losses, and the gradients of their sum with factors of their own."""
    leaves = [value for value in preds.values() if value is not None]
    for leaf in leaves:
        leaf.grad = None
    method = head.loss if isinstance(head, BEVFormerHead) else head.loss_by_feat
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        losses = method(*arguments(head, instances), preds)
    sum(value.sum() * (1 + 0.1 * i) for i, value in enumerate(losses.values())).backward()
    return losses, [leaf.grad for leaf in leaves]


def compare(stock, ours, instances, preds):
    """Every key, value and gradient; gives the batched head's."""
    wanted, wanted_grads = run(stock, instances, preds)
    found, found_grads = run(ours, instances, preds)
    rtol = 1e-10 if preds["all_cls_scores"].dtype == torch.float64 else 1e-5
    assert list(found) == list(wanted)
    for key, value in wanted.items():
        assert found[key].dtype == value.dtype and found[key].dim() == 0
        torch.testing.assert_close(
            found[key], value, rtol=rtol, atol=rtol * 1e-2, equal_nan=True, msg=lambda m, key=key: f"{key}: {m}"
        )
    for one, other in zip(found_grads, wanted_grads, strict=True):
        scale = float(other.nan_to_num().abs().max())
        torch.testing.assert_close(one, other, rtol=rtol, atol=rtol * scale, equal_nan=True)
    return found, found_grads
