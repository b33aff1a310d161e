"""Batched matchers give the pairs of the per-sample ones, on random and degenerate input."""

from __future__ import annotations

import pytest
import torch

from raggedbev.matching import ClassCost, HungarianMatcher2D, HungarianMatcher3D, TransFusionMatcher3D
from raggedbev.matching.hungarian import check_same_objects
from raggedbev.matching.reference import ARMS, PerSampleMatcher2D, PerSampleMatcher3D
from raggedbev.ragged import combine_data

SIZES = [[0, 0], [1], [4, 0, 11], [1] * 5]
arms = pytest.mark.parametrize("arm", ARMS)


def predictions(*lead, count=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*lead, count, 10, generator=g), torch.randn(*lead, count, 10, generator=g) * 3


def objects_3d(sizes):
    g = torch.Generator().manual_seed(1)
    boxes = [torch.rand(n, 9, generator=g) * 4 + 0.1 for n in sizes]
    return boxes, [torch.randint(-1, 12, (n,), generator=g) for n in sizes]


@arms
@pytest.mark.parametrize("with_velo", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_3d(sizes, with_velo, arm):
    matcher = HungarianMatcher3D()
    logits, codes = predictions(2, len(sizes))
    codes[1, 0, :3, 4], logits[0, 0, 2] = float("nan"), float("inf")
    boxes, labels = objects_3d(sizes)
    weights = [2.0, 2.0, *[1.0] * 8]
    batched = matcher.assign_batch(logits, codes, combine_data(boxes), combine_data(labels), weights, with_velo)
    assert (batched.status == 0).all()
    for one in (PerSampleMatcher3D(matcher, arm), matcher):
        for layer in range(2):
            for b in range(len(sizes)):
                found = one.match(logits[layer, b], codes[layer, b], boxes[b], labels[b], weights, with_velo)
                assert torch.equal(found, batched.gt_of_pred[layer, b])
                assert (found >= 0).sum() == min(sizes[b], 8)


@arms
@pytest.mark.parametrize(
    "matcher", [HungarianMatcher2D(), HungarianMatcher2D(ClassCost(1.0, "softmax"), box_format="xyxy", iou_mode="iou")]
)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_2d(sizes, matcher, arm):
    g = torch.Generator().manual_seed(2)
    logits, boxes2d = predictions(len(sizes))[0], torch.rand(len(sizes), 8, 4, generator=g) * 0.4 + 0.1
    centers = torch.rand(len(sizes), 8, 2, generator=g)
    boxes2d[0, 3, 1] = float("nan")
    low = [torch.rand(n, 2, generator=g) * 40 for n in sizes]
    gt_boxes = [torch.cat([x, x + 10], dim=1) for x in low]
    gt_centers, labels = [x + 4 for x in low], objects_3d(sizes)[1]
    truth = [combine_data(part) for part in (gt_boxes, labels, gt_centers)]
    batched = matcher.assign_batch(logits, boxes2d, centers, *truth, (64, 96))
    for one in (PerSampleMatcher2D(matcher, arm), matcher):
        for i in range(len(sizes)):
            found = one.match(logits[i], boxes2d[i], centers[i], gt_boxes[i], labels[i], gt_centers[i], (64, 96))
            assert torch.equal(found, batched.gt_of_pred[i])


def test_velocity_counts_only_when_asked():
    logits, codes = torch.zeros(1, 2, 10), torch.zeros(1, 2, 10)
    codes[0, 1, 8] = 5.0
    box = torch.tensor([[[0.0, 0, 0, 1, 1, 1, 0, 5, 0]]])
    cost = [
        HungarianMatcher3D().cost(logits, codes, box, torch.zeros(1, 1, dtype=torch.long), None, velo)[0, 0]
        for velo in (False, True)
    ]
    assert cost[0][0] == cost[0][1] and cost[1][0] > cost[1][1]


def test_wrong_settings():
    with pytest.raises(ValueError, match="'focal' or 'softmax', got 'dice'"):
        ClassCost(kind="dice")
    with pytest.raises(ValueError, match="arm must be one of"):
        PerSampleMatcher3D(arm="fast")


@pytest.mark.parametrize("kind", ["3d", "2d", "transfusion"])
def test_ground_truth_that_does_not_fit_together(kind):
    """Boxes of two objects with labels of one: nobody would see it in the pairs."""

    def assign(boxes, labels, centers=(1, 3)):
        logits, codes = predictions(2, len(boxes))
        box_width = {"3d": 9, "2d": 4, "transfusion": 7}[kind]
        gt = [combine_data([torch.rand(n, box_width) for n in boxes])]
        gt.append(combine_data([torch.zeros(n, dtype=torch.long) for n in labels]))
        if kind == "3d":
            return HungarianMatcher3D().assign_batch(logits, codes, *gt)
        if kind == "transfusion":
            return TransFusionMatcher3D().assign_batch(logits, codes, *gt, [-50, -50, -5, 50, 50, 3])
        gt.append(combine_data([torch.rand(n, 2) for n in centers]))
        return HungarianMatcher2D().assign_batch(logits, codes[..., :4], codes[..., :2], *gt, (64, 96))

    assert (assign([1, 3], [1, 3]).status == 0).all()
    message = r"gt_labels must have as many objects as gt_boxes in every sample, got \[1, 3\] and \[3, 1\]"
    with pytest.raises(ValueError, match=message):
        assign([3, 1], [1, 3])
    with pytest.raises(ValueError, match=r"gt_labels must begin with \[B, G\] like gt_boxes, got "):
        assign([4, 1], [1, 3])
    if kind == "2d":
        with pytest.raises(ValueError, match="gt_centers must have as many objects as gt_boxes"):
            assign([1, 3], [1, 3], centers=(3, 0))


def test_parts_of_the_ground_truth():
    boxes, labels = (combine_data(part) for part in objects_3d([1, 3]))
    check_same_objects(boxes=boxes, labels=labels)
    with pytest.raises(TypeError, match=r"^labels must be a RaggedBatch, got Tensor$"):
        check_same_objects(boxes=boxes, labels=labels.tensor)
    with pytest.raises(TypeError, match=r"^labels must be a RaggedBatch, got NoneType$"):
        check_same_objects(boxes=boxes, labels=None)


def test_pad_shape():
    """Height and width first, as mmdet has it with the channels behind."""
    logits, codes = predictions()

    def cost(pad_shape):
        gt = torch.rand(2, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1]), torch.zeros(2, 2)
        return HungarianMatcher2D().cost(logits, codes[:, :4], codes[:, :2], *gt, pad_shape)

    for same in ((64, 96, 3), torch.tensor([64, 96]), torch.Size([64, 96])):
        assert torch.equal(cost(same), cost((64, 96)))
    assert not torch.equal(cost((96, 64)), cost((64, 96)))
    for wrong in (None, (5,), 7):
        with pytest.raises(ValueError, match="pad_shape must be height and width, got "):
            cost(wrong)
