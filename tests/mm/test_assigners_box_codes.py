"""The 3D assigner inside heads that call it as those of PETR, DETR3D and BEVFormer do, one sample and layer at a time.

The published behaviour is written down here once more, pair by pair, since those projects are not installed.
"""

from __future__ import annotations

import math

import pytest
import torch
from mmdet.models.utils import multi_apply
from mmdet3d.models.task_modules.samplers import PseudoSampler
from mmdet3d.registry import TASK_UTILS
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment

import raggedbev.mm  # noqa: F401
from raggedbev.matching import HungarianMatcher3D
from raggedbev.ragged import combine_data

PC_RANGE = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]
NUM_CLASSES, NUM_QUERIES = 10, 9
SIZES = [3, 0, 14, 1]
CONFIG = {
    "type": "BatchedHungarianAssigner3D",
    "cls_cost": {"type": "FocalLossCost", "weight": 2.0},
    "reg_cost": {"type": "BBox3DL1Cost", "weight": 0.25},
    "iou_cost": {"type": "IoUCost", "weight": 0.0},
    "pc_range": PC_RANGE,
}
codes = pytest.mark.parametrize("code", ["petr", "detr3d"])


def build(code, **changes):
    return TASK_UTILS.build({**CONFIG, "box_code": code, **changes})


def coded(code, box):
    """One box as the head regresses it, first eight numbers."""
    x, y, z, length, width, height, yaw = box[:7]
    if code == "petr":
        yaw = -yaw - math.pi / 2
        yaw -= math.floor(yaw / (2 * math.pi) + 0.5) * 2 * math.pi
    return [x, y, math.log(length), math.log(width), z, math.log(height), math.sin(yaw), math.cos(yaw)]


def published_costs(code, boxes, logits, gt_boxes, gt_labels):
    """[Q][G]: focal 2.0 and L1 0.25 on eight numbers; PETR replaces what is not finite."""
    rows = []
    for box, scores in zip(boxes.tolist(), logits.tolist(), strict=True):
        row = []
        for gt, label in zip(gt_boxes.tolist(), gt_labels.tolist(), strict=True):
            p = 1 / (1 + math.exp(-scores[label]))
            positive = -math.log(p + 1e-12) * 0.25 * (1 - p) ** 2
            negative = -math.log(1 - p + 1e-12) * 0.75 * p**2
            distance = sum(abs(a - b) for a, b in zip(box[:8], coded(code, gt), strict=True))
            row.append(2.0 * (positive - negative) + 0.25 * distance)
        rows.append(row)
    cost = torch.tensor(rows, dtype=torch.float64).reshape(len(boxes), len(gt_boxes))
    return cost.nan_to_num(nan=100.0, posinf=100.0, neginf=-100.0) if code == "petr" else cost


def published_gt_inds(code, *sample):
    """0 for background, i + 1 for object i."""
    gt_inds = torch.zeros(len(sample[0]), dtype=torch.long)
    preds, objects = linear_sum_assignment(published_costs(code, *sample))
    gt_inds[torch.from_numpy(preds)] = torch.from_numpy(objects) + 1
    return gt_inds


def samples(seed=0, velocity=True):
    """Predictions of each sample [Q, 10], [Q, C], and its objects [G, 9], [G]."""
    g = torch.Generator().manual_seed(seed)
    result = []
    for n in SIZES:
        boxes = torch.randn(NUM_QUERIES, 10, generator=g) * torch.tensor([20.0, 20, 1, 1, 1, 1, 1, 1, 3, 3])
        gt = torch.rand(n, 9, generator=g) * torch.tensor([80.0, 80, 4, 5, 3, 2, 7, 4, 4])
        gt = gt + torch.tensor([-40.0, -40, -2, 0.5, 0.5, 0.5, -3.5, -2, -2])
        logits = torch.randn(NUM_QUERIES, NUM_CLASSES, generator=g)
        gt_labels = torch.randint(0, NUM_CLASSES, (n,), generator=g)
        result.append((boxes, logits, gt if velocity else gt[:, :7], gt_labels))
    return result


class SmallHead:
    """Targets of all samples, as the published heads make them."""

    def __init__(self, assigner):
        self.assigner, self.sampler = assigner, PseudoSampler()

    def get_target_single(self, cls_score, bbox_pred, gt_labels, gt_bboxes, gt_bboxes_ignore=None):
        result = self.assigner.assign(bbox_pred, cls_score, gt_bboxes, gt_labels, gt_bboxes_ignore)
        sampled = self.sampler.sample(result, InstanceData(priors=bbox_pred), InstanceData(bboxes_3d=gt_bboxes))
        labels = gt_bboxes.new_full((len(bbox_pred),), NUM_CLASSES, dtype=torch.long)
        labels[sampled.pos_inds] = gt_labels[sampled.pos_assigned_gt_inds]
        targets = torch.zeros_like(bbox_pred)[..., : gt_bboxes.size(1)]
        if len(sampled.pos_inds):
            targets[sampled.pos_inds] = sampled.pos_gt_bboxes
        weights = torch.zeros_like(bbox_pred)
        weights[sampled.pos_inds] = 1.0
        return labels, targets, weights, sampled.pos_inds, sampled.neg_inds

    def get_targets(self, cls_scores, bbox_preds, gt_bboxes, gt_labels):
        ignored = [None for _ in cls_scores]
        return multi_apply(self.get_target_single, cls_scores, bbox_preds, gt_labels, gt_bboxes, ignored)


@codes
@pytest.mark.parametrize("velocity", [True, False])
def test_targets_of_a_published_head(code, velocity):
    bbox_preds, cls_scores, gt_bboxes, gt_labels = zip(*samples(velocity=velocity), strict=True)
    labels, targets, weights, positive, negative = SmallHead(build(code)).get_targets(
        cls_scores, bbox_preds, gt_bboxes, gt_labels
    )
    for b, sample in enumerate(zip(bbox_preds, cls_scores, gt_bboxes, gt_labels, strict=True)):
        gt_inds = published_gt_inds(code, *sample)
        matched = gt_inds > 0
        assert torch.equal(positive[b], matched.nonzero()[:, 0])
        assert torch.equal(negative[b], (~matched).nonzero()[:, 0])
        assert torch.equal(labels[b][matched], gt_labels[b][gt_inds[matched] - 1])
        assert (labels[b][~matched] == NUM_CLASSES).all()
        assert torch.equal(targets[b][matched], gt_bboxes[b][gt_inds[matched] - 1])
        assert (targets[b][~matched] == 0).all()
        assert weights[b][:, 0].sum() == min(SIZES[b], NUM_QUERIES)


@codes
@pytest.mark.parametrize("velocity", [True, False])
def test_assign_and_assign_batch(code, velocity):
    layers = [samples(seed, velocity) for seed in (0, 1)]
    truth = [(gt, labels) for _, _, gt, labels in layers[0]]
    gt_boxes, gt_labels = (combine_data(list(part)) for part in zip(*truth, strict=True))
    gt_boxes, gt_labels = gt_boxes.with_padded_set_to(float("nan")), gt_labels.with_padded_set_to(-1)
    boxes, logits = (torch.stack([torch.stack([s[i] for s in layer]) for layer in layers]) for i in (0, 1))
    assigner = build(code)
    found = assigner.assign_batch(logits, boxes, gt_boxes, gt_labels)
    assert (found.status == 0).all()
    for layer in range(2):
        for b, (gt, labels) in enumerate(truth):
            wanted = published_gt_inds(code, boxes[layer, b], logits[layer, b], gt, labels)
            result = assigner.assign(boxes[layer, b], logits[layer, b], gt, labels, None, eps=1e-7)
            assert torch.equal(result.gt_inds, wanted) and torch.equal(found.gt_of_pred[layer, b] + 1, wanted)
            assert result.max_overlaps is None and result.num_gts == SIZES[b]
            assert torch.equal(result.labels >= 0, wanted > 0)


def test_codes_differ():
    inds = [torch.cat([build(code).assign(*s).gt_inds for s in samples()]) for code in ("petr", "detr3d")]
    costs = [torch.cat([published_costs(code, *s).flatten() for s in samples()]) for code in ("petr", "detr3d")]
    assert not torch.allclose(*costs) and len(inds[0]) == len(inds[1])
    box = torch.tensor([[0.0, 0, 0, 1, 1, 1, 1.2, 0, 0]])
    preds = torch.stack([torch.tensor([*coded(code, box[0].tolist()), 0, 0]) for code in ("petr", "detr3d")])
    for index, code in enumerate(("petr", "detr3d")):
        found = build(code).assign(preds, torch.zeros(2, NUM_CLASSES), box, torch.zeros(1, dtype=torch.long))
        assert found.gt_inds.tolist() == [1 - index, index]


def test_streampetr_is_the_default():
    assert TASK_UTILS.build(CONFIG).matcher == HungarianMatcher3D()
    assert build("streampetr").matcher == HungarianMatcher3D()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_predictions_that_are_not_finite(bad):
    sample = samples()[0]
    sample[0][[2, 5], [0, 6]] = bad
    assert torch.equal(build("petr").assign(*sample).gt_inds, published_gt_inds("petr", *sample))
    if bad != bad:
        with pytest.raises(ValueError, match="invalid numeric entries"):
            published_gt_inds("detr3d", *sample)
        with pytest.raises(ValueError, match="the costs contain NaN or -inf"):
            build("detr3d").assign(*sample)
    else:
        assert torch.equal(build("detr3d").assign(*sample).gt_inds, published_gt_inds("detr3d", *sample))


@codes
@pytest.mark.parametrize(
    "key, value",
    [
        ("cls_cost", {"type": "FocalLossCost", "weight": 0.5}),
        ("cls_cost", {"type": "FocalLossCost", "weight": 2.0, "alpha": 0.5}),
        ("cls_cost", {"type": "FocalLossCost", "weight": 2.0, "gamma": 1.0}),
        ("cls_cost", {"type": "FocalLossCost", "weight": 2.0, "eps": 1e-2}),
        ("cls_cost", {"type": "mmdet.ClassificationCost", "weight": 2.0}),
        ("reg_cost", {"type": "BBox3DL1Cost", "weight": 1.0}),
    ],
    ids=lambda part: str(part) if isinstance(part, str) else "-".join(map(str, part.values())),
)
def test_every_key_changes_the_cost(code, key, value):
    boxes, logits, gt, labels = samples()[0]
    assigners = build(code), build(code, **{key: value})
    before, after = (assigner.matcher.cost(logits, boxes, gt, labels) for assigner in assigners)
    assert not torch.allclose(before, after)


def test_wrong_settings():
    with pytest.raises(ValueError, match=r"one of \('streampetr', 'petr', 'detr3d'\), got 'bevformer'"):
        build("bevformer")
    with pytest.raises(ValueError, match=r"its weight must be 0, got 1\.0"):
        build("petr", iou_cost={"type": "IoUCost", "weight": 1.0})
    with pytest.raises(ValueError, match="pc_range must be six numbers, lowest x, y, z, then"):
        build("petr", pc_range=[0.0])
    with pytest.raises(ValueError, match="solver must be one of"):
        build("petr", solver="fast")
    boxes, logits, gt, labels = samples()[0]
    with pytest.raises(ValueError, match="gt_bboxes_ignore must be None"):
        build("petr").assign(boxes, logits, gt, labels, gt)
    with pytest.raises(ValueError, match="7 columns, or 9 with velocity"):
        build("petr").assign(boxes, logits, gt[:, :8], labels)
