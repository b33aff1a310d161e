"""The TransFusion mixin beside the published loops over samples, layers and objects, written out here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bev_cases import FACTOR, HEIGHT, ORIGIN, VOXEL, WIDTH, batches, random_boxes, same_bits
from mmdet3d.models.utils import clip_sigmoid, draw_heatmap_gaussian, gaussian_radius
from mmdet3d.registry import MODELS, TASK_UTILS
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment
from torch import nn

from raggedbev.mm.heads.transfusion import BatchedTransFusionLoss
from raggedbev.profiling.syncs import HostSyncCounter

from .packing import packed

CLASSES, PROPOSALS, LAYERS = 10, 12, 3
TRAIN_CFG = ConfigDict(
    grid_size=[WIDTH * FACTOR, HEIGHT * FACTOR, 41],
    voxel_size=[*VOXEL, 0.2],
    point_cloud_range=[*ORIGIN, -5.0, ORIGIN[0] + 51.2, ORIGIN[1] + 48.0, 3.0],
    out_size_factor=FACTOR,
    gaussian_overlap=0.1,
    min_radius=2,
    pos_weight=-1,
    code_weights=[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2],
    assigner=dict(type="Ours"),
)


class Coder:
    """Boxes as the head predicts them: cells, bottom z, logarithms of sizes, sine and cosine of the yaw, velocity."""

    code_size = 10

    def encode(self, boxes):
        cells = (boxes[:, :2] - torch.tensor(ORIGIN)) / (torch.tensor(VOXEL) * FACTOR)
        yaw = boxes[:, 6:7]
        return torch.cat([cells, boxes[:, 2:3], boxes[:, 3:6].log(), yaw.sin(), yaw.cos(), boxes[:, 7:]], 1)

    def decode(self, heatmap, rot, dim, center, height, vel):
        center[:, 0] = center[:, 0] * FACTOR * VOXEL[0] + ORIGIN[0]  # in place, as the published coder
        center[:, 1] = center[:, 1] * FACTOR * VOXEL[1] + ORIGIN[1]
        yaw = torch.atan2(rot[:, :1], rot[:, 1:])
        boxes = torch.cat([center, height, dim.exp(), yaw, vel], 1).permute(0, 2, 1)
        return [{"bboxes": one} for one in boxes]


class Found:
    def __init__(self, gt_inds, max_overlaps):
        self.gt_inds, self.max_overlaps = gt_inds, max_overlaps


class Assigner:
    """Hungarian matching on distances of one sample and layer; without objects there are no overlaps."""

    def assign(self, bboxes, gt_bboxes, gt_labels, cls_pred, train_cfg):
        assert cls_pred.shape == (1, CLASSES, PROPOSALS) and len(bboxes) == PROPOSALS
        gt_inds = torch.zeros(PROPOSALS, dtype=torch.long)
        if not len(gt_bboxes):
            return Found(gt_inds, None)
        distance = torch.cdist(bboxes[:, :2], gt_bboxes[:, :2]).nan_to_num(1e6)
        rows, columns = linear_sum_assignment(distance.clamp(max=1e6).numpy())
        gt_inds[rows] = torch.from_numpy(columns) + 1
        overlaps = torch.zeros(PROPOSALS)
        overlaps[rows] = 1.1 * torch.exp(-distance[rows, columns] / 20)
        return Found(gt_inds, overlaps)


class Batch:
    def __init__(self, gt_of_pred, max_overlaps):
        self.gt_of_pred, self.max_overlaps = gt_of_pred, max_overlaps


class BatchAssigner(Assigner):
    """The same for all layers and samples."""

    def assign_batch(self, cls_logits, boxes, gt_boxes, gt_labels, train_cfg):
        layers, batch = boxes.shape[:2]
        gt_of_pred, overlaps = torch.full((layers, batch, PROPOSALS), -1), torch.zeros(layers, batch, PROPOSALS)
        for sample, (gt, labels) in enumerate(zip(gt_boxes.split(), gt_labels.split(), strict=True)):
            for layer in range(layers):
                logits = cls_logits[layer, sample].T[None]
                found = self.assign(boxes[layer, sample], gt, labels, logits, train_cfg)
                gt_of_pred[layer, sample] = found.gt_inds - 1
                if found.max_overlaps is not None:
                    overlaps[layer, sample] = found.max_overlaps
        return Batch(gt_of_pred, overlaps)


class Replay(BatchAssigner):
    """Gives the answer of the first call in all later ones."""

    answer = None

    def assign_batch(self, *args):
        if self.answer is None:
            self.answer = super().assign_batch(*args)
        return self.answer


class Head(nn.Module):
    """The part of the published head that targets and losses need."""

    def __init__(self, assigner=None, auxiliary=True, **train_cfg):
        super().__init__()
        self.num_classes, self.num_proposals, self.num_decoder_layers = CLASSES, PROPOSALS, LAYERS
        self.auxiliary = auxiliary
        self.train_cfg = ConfigDict(TRAIN_CFG, **train_cfg)
        self.bbox_coder, self.bbox_assigner = Coder(), assigner or Assigner()
        focal = dict(type="mmdet.FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, reduction="mean")
        self.loss_cls = MODELS.build(focal)
        self.loss_bbox = MODELS.build(dict(type="mmdet.L1Loss", reduction="mean", loss_weight=0.25))
        self.loss_heatmap = MODELS.build(dict(type="mmdet.GaussianFocalLoss", reduction="mean"))


class Ours(BatchedTransFusionLoss, Head):
    pass


class Loops(Head):
    """Targets and losses sample by sample, layer by layer, object by object."""

    def targets_of_sample(self, gt, preds):
        names = ("heatmap", "rot", "dim", "center", "height", "vel")
        boxes = self.bbox_coder.decode(*(preds[name].detach().clone() for name in names))[0]["bboxes"]
        gt_boxes = gt.bboxes_3d.tensor
        gt_inds, overlaps = [], []
        for layer in range(LAYERS if self.auxiliary else 1):
            part = slice(layer * PROPOSALS, (layer + 1) * PROPOSALS)
            logits = preds["heatmap"][..., part].detach()
            found = self.bbox_assigner.assign(boxes[part], gt_boxes, gt.labels_3d, logits, self.train_cfg)
            gt_inds.append(found.gt_inds)
            overlaps.append(torch.zeros(PROPOSALS) if found.max_overlaps is None else found.max_overlaps)
        gt_inds, overlaps = torch.cat(gt_inds), torch.cat(overlaps).clamp(0, 1)
        positive = (gt_inds > 0).nonzero().flatten()
        labels = torch.full((len(gt_inds),), CLASSES)
        label_weights = torch.ones(len(gt_inds), dtype=torch.long)
        box_targets, box_weights = torch.zeros(len(gt_inds), 10), torch.zeros(len(gt_inds), 10)
        if len(positive):
            labels[positive] = gt.labels_3d[gt_inds[positive] - 1]
            box_targets[positive] = self.bbox_coder.encode(gt_boxes[gt_inds[positive] - 1])
            box_weights[positive] = 1
            if self.train_cfg.pos_weight > 0:
                label_weights[positive] = self.train_cfg.pos_weight
        mean = float(overlaps[positive].sum() / max(len(positive), 1))
        heatmap = self.heatmap_of_sample(torch.cat([gt.bboxes_3d.gravity_center, gt_boxes[:, 3:]], 1), gt.labels_3d)
        return labels, label_weights, box_targets, box_weights, overlaps, len(positive), mean, heatmap

    def heatmap_of_sample(self, boxes, labels):
        low, voxel = torch.tensor(self.train_cfg.point_cloud_range), torch.tensor(self.train_cfg.voxel_size)
        heatmap = torch.zeros(CLASSES, HEIGHT, WIDTH)
        for box, label in zip(boxes, labels, strict=True):
            width, length = box[3] / voxel[0] / FACTOR, box[4] / voxel[1] / FACTOR
            if width > 0 and length > 0 and 0 <= label < CLASSES:
                radius = gaussian_radius((length, width), min_overlap=self.train_cfg.gaussian_overlap)
                x, y = ((box[i] - low[i]) / voxel[i] / FACTOR for i in range(2))
                cell = torch.tensor([y, x]).to(torch.int32)
                draw_heatmap_gaussian(heatmap[label], cell, max(self.train_cfg.min_radius, int(radius)))
        return heatmap

    def get_targets(self, batch_gt, preds_dict):
        rows = [
            self.targets_of_sample(gt, {name: maps[i : i + 1] for name, maps in preds_dict[0].items()})
            for i, gt in enumerate(batch_gt)
        ]
        columns = list(zip(*rows, strict=True))
        stacked = [torch.stack(columns[i]) for i in (0, 1, 2, 3, 4, 7)]
        return *stacked[:5], int(np.sum(columns[5])), float(np.mean(columns[6])), stacked[5]

    def loss_by_feat(self, preds_dicts, batch_gt):
        preds = preds_dicts[0][0]
        labels, label_weights, targets, weights, _, num_pos, mean, heatmap = self.get_targets(batch_gt, preds_dicts[0])
        peaks = max(heatmap.eq(1).float().sum().item(), 1)
        dense = clip_sigmoid(preds["dense_heatmap"]).float()
        losses = {"loss_heatmap": self.loss_heatmap(dense, heatmap, avg_factor=peaks)}
        for layer in range(LAYERS if self.auxiliary else 1):
            last = layer == LAYERS - 1 or not self.auxiliary
            prefix = "layer_-1" if last else f"layer_{layer}"
            part = slice(layer * PROPOSALS, (layer + 1) * PROPOSALS)
            scores = preds["heatmap"][..., part].permute(0, 2, 1).reshape(-1, CLASSES)
            losses[f"{prefix}_loss_cls"] = self.loss_cls(
                scores, labels[:, part].reshape(-1), label_weights[:, part].reshape(-1), avg_factor=max(num_pos, 1)
            )
            codes = torch.cat([preds[name][..., part] for name in ("center", "height", "dim", "rot", "vel")], 1)
            scaled = weights[:, part] * torch.tensor(self.train_cfg.code_weights)
            losses[f"{prefix}_loss_bbox"] = self.loss_bbox(
                codes.permute(0, 2, 1), targets[:, part], scaled, avg_factor=max(num_pos, 1)
            )
        losses["matched_ious"] = torch.tensor(mean)
        return losses


def usable(samples):
    """Without boxes at which the loop fails, and with labels that index a map."""
    kept = []
    for boxes, labels in samples:
        keep = ~boxes[:, 3:5].isinf().any(1) & boxes.isfinite().all(1) & (boxes[:, 3:6] > 0).all(1)
        keep &= (labels >= 0) & (labels < CLASSES)
        kept.append((boxes[keep], labels[keep]))
    return kept


def instances(samples):
    return [
        InstanceData(bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9, origin=(0.5, 0.5, 0.5)), labels_3d=labels)
        for boxes, labels in samples
    ]


def predictions(generator, batch, layers=LAYERS):
    def draw(*shape):
        return torch.randn(batch, *shape, generator=generator)

    channels = {"heatmap": CLASSES, "center": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}
    preds = {name: draw(count, layers * PROPOSALS) for name, count in channels.items()}
    preds["center"] = preds["center"] * 8 + 15
    preds["dense_heatmap"] = draw(CLASSES, HEIGHT, WIDTH)
    return {name: tensor.requires_grad_() for name, tensor in preds.items()}


def losses_and_gradients(head, preds, gt):
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in preds.items()}
    losses = head.loss_by_feat(([{name: tensor.clone() for name, tensor in leaves.items()}],), gt)
    sum(loss for key, loss in losses.items() if key != "matched_ious").backward()
    return {key: loss.detach() for key, loss in losses.items()}, {name: leaf.grad for name, leaf in leaves.items()}


@pytest.mark.parametrize("assigner", [Assigner, BatchAssigner])
@pytest.mark.parametrize("changes", [{}, {"pos_weight": 2, "min_radius": 0, "gaussian_overlap": 0.5}])
def test_targets_equal_the_loops(assigner, changes, generator):
    loops, ours = Loops(**changes), Ours(assigner(), **changes)
    for samples in batches(generator)[:20]:
        gt, preds = instances(usable(samples)), predictions(generator, len(samples))
        expected, found = loops.get_targets(gt, [preds]), ours.get_targets(gt, [preds])
        for place, (one, other) in enumerate(zip(found, expected, strict=True)):
            if isinstance(other, torch.Tensor):
                assert same_bits(one, other), place
            else:
                assert float(one) == pytest.approx(other, rel=1e-6)


@pytest.mark.parametrize("auxiliary", [True, False])
@pytest.mark.parametrize("case", [0, 1, 5, 6, 7, 8])
def test_losses_equal_the_loops(case, auxiliary, generator):
    samples = usable(batches(generator)[case])
    gt, preds = instances(samples), predictions(generator, len(samples), LAYERS if auxiliary else 1)
    expected, expected_gradients = losses_and_gradients(Loops(auxiliary=auxiliary), preds, gt)
    found, gradients = losses_and_gradients(Ours(BatchAssigner(), auxiliary), preds, gt)
    assert list(found) == list(expected)
    for key, loss in expected.items():
        torch.testing.assert_close(found[key], loss, rtol=1e-6, atol=0)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("sizes", [(12, 0, 3), (0, 0)], ids=str)
def test_packed_objects_give_the_same_numbers(sizes, generator):
    gt = instances(usable([random_boxes(generator, n) for n in sizes]))
    preds, head = predictions(generator, len(sizes)), Ours(BatchAssigner())
    expected, expected_gradients = losses_and_gradients(head, preds, gt)
    found, gradients = losses_and_gradients(head, preds, packed(gt))
    assert all(torch.equal(found[key], loss) for key, loss in expected.items())
    assert all(torch.equal(gradients[name], one) for name, one in expected_gradients.items())


def test_with_the_batched_assigner_of_this_package(generator):
    """All layers and samples at once give what its `assign`, called sample by sample, gives."""
    config = {
        "type": "BatchedTransFusionAssigner3D",
        "cls_cost": {"type": "FocalLossCost", "gamma": 2, "alpha": 0.25, "weight": 0.15},
        "reg_cost": {"type": "BBoxBEVL1Cost", "weight": 0.25},
        "iou_cost": {"type": "IoU3DCost", "weight": 0.25},
    }
    assigner = TASK_UTILS.build(config)
    samples = usable(batches(generator)[7])
    gt, preds = instances([*samples, *usable(batches(generator)[0])]), predictions(generator, 4)
    found = Ours(assigner).get_targets(gt, [preds])
    expected = Loops(assigner).get_targets(gt, [preds])
    assert expected[5] > 0
    for place, (one, other) in enumerate(zip(found[:5], expected[:5], strict=True)):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, msg=str(place))


def test_points_without_an_image(generator):
    """What no camera sees has no loss, as in the published head."""
    gt, preds = instances(usable([random_boxes(generator, 20)])), predictions(generator, 1)
    ours = Ours(BatchAssigner())
    everywhere, _ = losses_and_gradients(ours, preds, gt)
    ours.on_the_image_mask = torch.zeros(1, LAYERS * PROPOSALS)
    nowhere, _ = losses_and_gradients(ours, preds, gt)
    assert everywhere["layer_-1_loss_bbox"] > 0
    assert nowhere["layer_-1_loss_cls"] == nowhere["layer_-1_loss_bbox"] == 0


def test_targets_wait_for_nothing_but_the_assigner(generator):
    gt, preds = instances(usable([random_boxes(generator, 20)] * 2)), predictions(generator, 2)
    ours = Ours(Replay())
    ours.get_targets(gt, [preds])
    with HostSyncCounter("cpu") as syncs:
        ours.get_targets(gt, [preds])
    assert dict(syncs.by_kind) == {}
