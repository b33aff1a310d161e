"""Config dicts of losses and costs: types, defaults, and one clear error for everything else."""

from __future__ import annotations

import pytest

from raggedbev.losses import FocalLossConfig
from raggedbev.matching import ClassCost, HungarianMatcher2D, HungarianMatcher3D
from raggedbev.mm import convert

FOCAL = {"type": "FocalLossCost", "weight": 2.0}


def test_published_losses():
    loss = {"type": "mmdet.FocalLoss", "use_sigmoid": True, "gamma": 1.5, "alpha": 0.3, "loss_weight": 2.0}
    assert convert.focal_loss(loss) == FocalLossConfig(2.0, 0.3, 1.5)
    assert convert.focal_loss({"type": "FocalLoss"}) == FocalLossConfig(1.0, 0.25, 2.0)
    assert convert.focal_loss(None) == FocalLossConfig()
    assert convert.l1_or_giou_weight("loss_bbox", {"type": "mmdet.L1Loss", "loss_weight": 0.25}, "L1Loss", 9.0) == 0.25
    assert convert.l1_or_giou_weight("loss_bbox", None, "L1Loss", 9.0) == 9.0
    quality = {"type": "mmdet.QualityFocalLoss", "use_sigmoid": True, "beta": 1.0, "loss_weight": 3.0}
    assert convert.quality_focal_loss(quality) == {"cls_weight": 3.0, "beta": 1.0}
    assert convert.gaussian_focal_loss({"type": "mmdet.GaussianFocalLoss", "reduction": "mean"}) == {
        "centerness_weight": 1.0,
        "centerness_alpha": 2.0,
        "centerness_gamma": 4.0,
    }


def test_published_assigners():
    box3d = {"type": "BBox3DL1Cost", "weight": 0.25}
    assert convert.matcher_3d(FOCAL, box3d, {"type": "IoUCost", "weight": 0.0}) == HungarianMatcher3D()
    softmax = convert.matcher_3d({"type": "mmdet.ClassificationCost"}, box3d, None, "scipy")
    assert softmax == HungarianMatcher3D(ClassCost(1.0, "softmax"), 0.25, "scipy")
    box2d = {"type": "BBoxL1Cost", "weight": 5.0, "box_format": "xywh"}
    giou, center = {"type": "IoUCost", "iou_mode": "giou", "weight": 2.0}, {"type": "BBox3DL1Cost", "weight": 10.0}
    assert convert.matcher_2d(FOCAL, box2d, giou, center) == HungarianMatcher2D()


@pytest.mark.parametrize(
    "loss, message",
    [
        ({"type": "mmdet.CrossEntropyLoss"}, "one of the types FocalLoss, got mmdet.CrossEntropyLoss"),
        ({"loss_weight": 2.0}, "must be a dict with a type, one of FocalLoss"),
        ("FocalLoss", "must be a dict with a type"),
        ({"type": "FocalLoss", "los_weight": 2.0}, "does not use 'los_weight'; it uses loss_weight, alpha, gamma"),
        ({"type": "FocalLoss", "use_sigmoid": False}, "use_sigmoid=True only, got False"),
        ({"type": "FocalLoss", "reduction": "sum"}, "reduction='mean' only, got 'sum'"),
        ({"type": "FocalLoss", "gamma": "2"}, "loss_cls.gamma must be a number, got '2'"),
        ({"type": "FocalLoss", "gamma": True}, "loss_cls.gamma must be a number, got True"),
    ],
)
def test_wrong_losses(loss, message):
    with pytest.raises(ValueError, match=message):
        convert.focal_loss(loss)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"iou_cost": {"type": "IoUCost", "weight": 1.0}},
            "not implemented for 3D boxes: its weight must be 0, got 1.0",
        ),
        ({"reg_cost": {"type": "BBoxL1Cost"}}, "reg_cost must have one of the types BBox3DL1Cost"),
        ({"cls_cost": {"type": "DiceCost"}}, "cls_cost must have one of the types FocalLossCost, ClassificationCost"),
        ({"cls_cost": {"type": "ClassificationCost", "alpha": 1}}, "does not use 'alpha'"),
    ],
)
def test_wrong_costs(changes, message):
    config = {"cls_cost": FOCAL, "reg_cost": {"type": "BBox3DL1Cost"}, "iou_cost": None, **changes}
    with pytest.raises(ValueError, match=message):
        convert.matcher_3d(**config)
