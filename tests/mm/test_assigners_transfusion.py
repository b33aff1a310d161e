"""The assigner of TransFusion and BEVFusion: overlaps as mmdet3d's, and targets in a head that calls it as theirs."""

from __future__ import annotations

import math

import pytest
import torch
from mmcv.ops import box_iou_rotated
from mmdet.models.task_modules import AssignResult
from mmdet.registry import TASK_UTILS as MMDET_TASK_UTILS
from mmdet3d.models.task_modules.samplers import PseudoSampler
from mmdet3d.registry import TASK_UTILS
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment

from raggedbev import _extension
from raggedbev.matching.overlaps import box3d_iou, rotated_intersection
from raggedbev.mm.assigners import BatchedTransFusionAssigner3D
from raggedbev.profiling.syncs import HostSyncCounter
from raggedbev.ragged import combine_data

NUM_CLASSES, NUM_PROPOSALS, NUM_LAYERS = 10, 9, 2
SIZES = [3, 0, 14, 1]
COSTS = {
    "iou_calculator": {"type": "BboxOverlaps3D", "coordinate": "lidar"},
    "cls_cost": {"type": "mmdet.FocalLossCost", "gamma": 2.0, "alpha": 0.25, "weight": 0.15},
    "reg_cost": {"type": "BBoxBEVL1Cost", "weight": 0.25},
    "iou_cost": {"type": "IoU3DCost", "weight": 0.25},
}
TRAIN_CFG = ConfigDict(
    point_cloud_range=[-54.0, -54.0, -5.0, 54.0, 54.0, 3.0],
    pos_weight=-1,
    assigner={"type": "HungarianAssigner3D", "_scope_": "raggedbev.mm", **COSTS},
)


def lidar_boxes(count, seed, spread=6.0):
    """[count, 9] tensors of LiDAR boxes, many of which overlap."""
    g = torch.Generator().manual_seed(seed)
    scale = torch.tensor([spread, spread, 1.5, 4.0, 2.0, 2.0, 7.0, 4.0, 4.0])
    return torch.rand(count, 9, generator=g) * scale + torch.tensor([0, 0, -1, 0.4, 0.4, 0.4, -3.5, -2, -2])


def sample(size, seed):
    """Decoded boxes [layers * Q, 9] and logits [1, C, layers * Q], and the objects' boxes [G, 9] and labels [G]."""
    g = torch.Generator().manual_seed(seed)
    gt_boxes, gt_labels = lidar_boxes(size, seed, 30.0), torch.randint(0, NUM_CLASSES, (size,), generator=g)
    boxes = lidar_boxes(NUM_LAYERS * NUM_PROPOSALS, seed + 100, 30.0)
    known = min(size, NUM_PROPOSALS)
    boxes[:known] = gt_boxes[:known] + torch.randn(known, 9, generator=g) * 0.1
    return boxes, torch.randn(1, NUM_CLASSES, len(boxes), generator=g), gt_boxes, gt_labels


def build(**changes):
    return TASK_UTILS.build({"type": "BatchedTransFusionAssigner3D", **COSTS, **changes})


def stock_overlaps(boxes, gt_boxes):
    return LiDARInstance3DBoxes.overlaps(LiDARInstance3DBoxes(boxes, 9), LiDARInstance3DBoxes(gt_boxes, 9))


def published_costs(boxes, logits, gt_boxes, gt_labels):
    """Costs [Q, G] and overlaps [Q, G] from logits [C, Q]; the IoU is mmdet3d's."""
    iou = stock_overlaps(boxes, gt_boxes)
    cost = torch.zeros(len(boxes), len(gt_boxes), dtype=torch.float64)
    for p, (box, scores) in enumerate(zip(boxes.tolist(), logits.T.tolist(), strict=True)):
        for g, (gt, label) in enumerate(zip(gt_boxes.tolist(), gt_labels.tolist(), strict=True)):
            prob = 1 / (1 + math.exp(-scores[label]))
            positive = -math.log(prob + 1e-12) * 0.25 * (1 - prob) ** 2
            negative = -math.log(1 - prob + 1e-12) * 0.75 * prob**2
            center = (abs(box[0] - gt[0]) + abs(box[1] - gt[1])) / 108
            cost[p, g] = 0.15 * (positive - negative) + 0.25 * center - 0.25 * iou[p, g].item()
    return cost, iou


def check(gt_inds, overlaps, boxes, logits, gt_boxes, gt_labels):
    """The pairs are as cheap as SciPy's (L1 distances often tie), and `overlaps` are theirs."""
    cost, iou = published_costs(boxes, logits, gt_boxes, gt_labels)
    matched = (gt_inds > 0).nonzero()[:, 0]
    objects = gt_inds[matched] - 1
    assert len(set(objects.tolist())) == len(matched) == min(cost.shape)
    assert cost[matched, objects].sum().item() == pytest.approx(
        cost[linear_sum_assignment(cost)].sum().item(), abs=1e-4
    )
    wanted = torch.zeros(len(boxes))
    wanted[matched] = iou[matched, objects]
    torch.testing.assert_close(overlaps, wanted, rtol=0, atol=2e-5)


# -- overlaps ------------------------------------------------------------------------------------------


def test_overlaps_are_those_of_mmdet3d():
    boxes, gt_boxes = lidar_boxes(80, 0), lidar_boxes(50, 1)
    gt_boxes[:10], gt_boxes[10:20] = boxes[:10], boxes[10:20] + 1e-3
    wanted = stock_overlaps(boxes, gt_boxes)
    assert (wanted > 0).float().mean() > 0.2
    torch.testing.assert_close(box3d_iou(boxes, gt_boxes).T, wanted, rtol=0, atol=2e-5)


def test_areas_are_those_of_mmcv():
    boxes, gt_boxes = (lidar_boxes(count, seed)[:, [0, 1, 3, 4, 6]] for count, seed in ((80, 2), (50, 3)))
    shared = rotated_intersection(boxes, gt_boxes)
    areas = boxes[:, 2:4].prod(1), gt_boxes[:, 2:4].prod(1)
    iou = shared / (areas[0] + areas[1].unsqueeze(1) - shared)
    torch.testing.assert_close(iou.T, box_iou_rotated(boxes, gt_boxes), rtol=0, atol=2e-5)


def test_z_is_the_bottom_as_in_lidar_boxes():
    boxes = LiDARInstance3DBoxes(lidar_boxes(20, 4), 9)
    other = LiDARInstance3DBoxes(lidar_boxes(20, 5), 9)
    centred = [torch.cat([b.gravity_center, b.tensor[:, 3:]], dim=1) for b in (boxes, other)]
    bottom = box3d_iou(boxes.tensor, other.tensor, z_origin="bottom")
    torch.testing.assert_close(box3d_iou(*centred, z_origin="center"), bottom, rtol=0, atol=1e-5)
    assert not torch.allclose(box3d_iou(*centred), bottom, atol=1e-2)


# -- in a head -----------------------------------------------------------------------------------------


class SmallHead:
    """Targets of one sample, as BEVFusion's head makes them from its decoded boxes."""

    def __init__(self, train_cfg):
        self.train_cfg = train_cfg
        with DefaultScope.overwrite_default_scope("mmdet3d"):
            self.bbox_assigner = MMDET_TASK_UTILS.build(train_cfg.assigner)
        self.bbox_sampler = PseudoSampler()

    def get_targets_single(self, boxes, score, gt_boxes, gt_labels):
        results = []
        for layer in range(NUM_LAYERS):
            own = slice(NUM_PROPOSALS * layer, NUM_PROPOSALS * (layer + 1))
            if self.train_cfg.assigner.type != "HungarianAssigner3D":
                raise NotImplementedError
            results.append(self.bbox_assigner.assign(boxes[own], gt_boxes, gt_labels, score[..., own], self.train_cfg))
        ensemble = AssignResult(
            num_gts=sum(result.num_gts for result in results),
            gt_inds=torch.cat([result.gt_inds for result in results]),
            max_overlaps=torch.cat([result.max_overlaps for result in results]),
            labels=torch.cat([result.labels for result in results]),
        )
        sampled = self.bbox_sampler.sample(ensemble, InstanceData(priors=boxes), InstanceData(bboxes_3d=gt_boxes))
        positive = sampled.pos_inds
        assert len(positive) + len(sampled.neg_inds) == len(boxes)
        labels = torch.full((len(boxes),), NUM_CLASSES)
        labels[positive] = gt_labels[sampled.pos_assigned_gt_inds]
        targets = torch.zeros(len(boxes), 9)
        if len(positive):
            targets[positive] = sampled.pos_gt_bboxes
        overlaps = ensemble.max_overlaps.clamp(min=0.0, max=1.0)
        matched_iou = float(overlaps[positive].sum() / max(len(positive), 1))
        return ensemble.gt_inds, labels, targets, overlaps, matched_iou


@pytest.mark.parametrize("size", SIZES)
def test_targets_of_a_head_that_insists_on_the_published_name(size):
    boxes, logits, gt_boxes, gt_labels = sample(size, size)
    head = SmallHead(TRAIN_CFG)
    assert type(head.bbox_assigner) is BatchedTransFusionAssigner3D
    gt_inds, labels, targets, overlaps, matched_iou = head.get_targets_single(boxes, logits, gt_boxes, gt_labels)
    for own in (slice(NUM_PROPOSALS), slice(NUM_PROPOSALS, None)):
        check(gt_inds[own], overlaps[own], boxes[own], logits[0][:, own], gt_boxes, gt_labels)
    matched = gt_inds > 0
    assert matched.sum() == NUM_LAYERS * min(size, NUM_PROPOSALS)
    assert torch.equal(labels < NUM_CLASSES, matched)
    assert torch.equal(labels[matched], gt_labels[gt_inds[matched] - 1])
    assert torch.equal(targets[matched], gt_boxes[gt_inds[matched] - 1])
    assert (matched_iou > 0.1) if size else (matched_iou == 0)


def test_assign_and_assign_batch():
    parts = [sample(n, 10 + i) for i, n in enumerate(SIZES)]
    boxes = torch.stack([part[0].unflatten(0, (NUM_LAYERS, NUM_PROPOSALS)) for part in parts], dim=1)
    logits = torch.stack([part[1][0].T.unflatten(0, (NUM_LAYERS, NUM_PROPOSALS)) for part in parts], dim=1)
    gt_boxes = combine_data([part[2] for part in parts]).with_padded_set_to(float("nan"))
    gt_labels = combine_data([part[3] for part in parts]).with_padded_set_to(-5)
    assigner = build()
    found = assigner.assign_batch(logits, boxes, gt_boxes, gt_labels, TRAIN_CFG)
    assert (found.status == 0).all() and found.max_overlaps.shape == (NUM_LAYERS, len(SIZES), NUM_PROPOSALS)
    for layer in range(NUM_LAYERS):
        for b, (_, _, own_boxes, own_labels) in enumerate(parts):
            case = boxes[layer, b], own_boxes, own_labels, logits[layer, b].T[None], TRAIN_CFG
            result = assigner.assign(*case)
            assert torch.equal(result.gt_inds, found.gt_of_pred[layer, b] + 1)
            assert torch.equal(result.max_overlaps, found.max_overlaps[layer, b])
            check(result.gt_inds, result.max_overlaps, boxes[layer, b], logits[layer, b].T, own_boxes, own_labels)
            assert result.gt_inds.dtype == torch.int64 and result.num_gts == SIZES[b]
            assert torch.equal(result.labels >= 0, result.gt_inds > 0)


@pytest.mark.parametrize("size, count", [(0, 5), (4, 0), (0, 0)])
def test_overlaps_are_a_tensor_also_where_there_is_nothing(size, count):
    result = build().assign(
        torch.rand(count, 9),
        torch.rand(size, 9),
        torch.zeros(size).long(),
        torch.rand(1, NUM_CLASSES, count),
        TRAIN_CFG,
    )
    assert result.max_overlaps.tolist() == [0.0] * count and result.gt_inds.tolist() == [0] * count
    assert result.labels.tolist() == [-1] * count and result.num_gts == size


@pytest.mark.skipif(not _extension.COMPILED, reason="SciPy's solver copies to the host and back")
def test_nothing_waits_for_the_device():
    boxes, logits = torch.rand(2, 3, 8, 9), torch.randn(2, 3, 8, NUM_CLASSES)
    gt_boxes = combine_data([torch.rand(n, 9) for n in (2, 0, 11)])
    gt_labels = combine_data([torch.zeros(n, dtype=torch.long) for n in (2, 0, 11)])
    with HostSyncCounter("cpu") as syncs:
        build().assign_batch(logits, boxes, gt_boxes, gt_labels, TRAIN_CFG)
    assert dict(syncs.by_kind) == {}


@pytest.mark.parametrize(
    "key, value",
    [
        ("cls_cost", {"type": "FocalLossCost", "weight": 0.5}),
        ("cls_cost", {"type": "FocalLossCost", "weight": 0.15, "alpha": 0.5}),
        ("cls_cost", {"type": "FocalLossCost", "weight": 0.15, "gamma": 1.0}),
        ("cls_cost", {"type": "FocalLossCost", "weight": 0.15, "eps": 1e-1}),
        ("cls_cost", {"type": "ClassificationCost", "weight": 0.15}),
        ("reg_cost", {"type": "BBoxBEVL1Cost", "weight": 1.0}),
        ("iou_cost", {"type": "IoU3DCost", "weight": 1.0}),
    ],
    ids=lambda part: part if isinstance(part, str) else "-".join(map(str, part.values())),
)
def test_every_key_changes_the_cost(key, value):
    boxes, logits, gt_boxes, gt_labels = sample(3, 0)
    parts = logits[0].T, boxes, gt_boxes, gt_labels, TRAIN_CFG.point_cloud_range
    before, after = (
        assigner.matcher.cost_and_overlaps(*parts)[0].cost for assigner in (build(), build(**{key: value}))
    )
    assert not torch.allclose(before, after)


def test_point_cloud_range_changes_the_cost():
    boxes, logits, gt_boxes, gt_labels = sample(3, 0)
    ranges = TRAIN_CFG.point_cloud_range, [-100.0, -54.0, -5.0, 54.0, 54.0, 3.0]
    costs = [build().matcher.cost_and_overlaps(logits[0].T, boxes, gt_boxes, gt_labels, r)[0].cost for r in ranges]
    assert not torch.allclose(*costs)


def test_predictions_that_are_not_finite():
    boxes, logits, gt_boxes, gt_labels = sample(3, 0)
    boxes[4, 3] = float("inf")
    boxes[5, 2] = -float("inf")
    assert build().assign(boxes, gt_boxes, gt_labels, logits, TRAIN_CFG).gt_inds[[4, 5]].sum() == 0
    boxes[4, 0] = float("nan")
    with pytest.raises(ValueError, match="the costs contain NaN or -inf"):
        build().assign(boxes, gt_boxes, gt_labels, logits, TRAIN_CFG)
    parts = logits[0].T.expand(2, -1, -1), boxes.expand(2, -1, -1)
    truth = combine_data([gt_boxes, gt_boxes[:0]]), combine_data([gt_labels, gt_labels[:0]])
    found = build().assign_batch(*parts, *truth, TRAIN_CFG)
    assert found.status.tolist() == [2, 0] and (found.max_overlaps == 0).all() and (found.gt_of_pred == -1).all()


def test_wrong_settings():
    with pytest.raises(ValueError, match="iou_calculator implements coordinate='lidar' only, got 'camera'"):
        build(iou_calculator={"type": "BboxOverlaps3D", "coordinate": "camera"})
    with pytest.raises(ValueError, match="iou_calculator must have one of the types BboxOverlaps3D"):
        build(iou_calculator={"type": "BboxOverlapsNearest3D"})
    with pytest.raises(ValueError, match="reg_cost must have one of the types BBoxBEVL1Cost, got BBox3DL1Cost"):
        build(reg_cost={"type": "BBox3DL1Cost", "weight": 1.0})
    with pytest.raises(ValueError, match="solver must be one of"):
        build(solver="fast")
    boxes, logits, gt_boxes, gt_labels = sample(3, 0)
    with pytest.raises(ValueError, match=r"cls_pred must be \[1, C, P\], logits of one sample, got \(10, 18\)"):
        build().assign(boxes, gt_boxes, gt_labels, logits[0], TRAIN_CFG)
    with pytest.raises(ValueError, match="the point cloud range must be six numbers"):
        build().assign(boxes, gt_boxes, gt_labels, logits, {"point_cloud_range": [0, 1]})


def test_published_name_beside_the_users_own_class():
    """In its own scope the name does not clash with the class that BEVFusion registers."""

    class HungarianAssigner3D:
        pass

    TASK_UTILS.register_module(module=HungarianAssigner3D)
    try:
        with DefaultScope.overwrite_default_scope("mmdet3d"):
            assert type(MMDET_TASK_UTILS.build(TRAIN_CFG.assigner)) is BatchedTransFusionAssigner3D
            assert type(MMDET_TASK_UTILS.build({"type": "HungarianAssigner3D"})) is HungarianAssigner3D
    finally:
        del TASK_UTILS.module_dict["HungarianAssigner3D"]
