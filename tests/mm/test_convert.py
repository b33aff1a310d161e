"""Config dicts of losses and costs: types, defaults, and one clear error for everything else."""

from __future__ import annotations

import pytest

from raggedbev.losses import FocalLossConfig
from raggedbev.losses.terms import L1, BalancedL1, SmoothL1
from raggedbev.matching import ClassCost, HungarianMatcher2D, HungarianMatcher3D
from raggedbev.mm import convert

FOCAL = {"type": "FocalLossCost", "weight": 2.0}


def test_published_losses():
    loss = {"type": "mmdet.FocalLoss", "use_sigmoid": True, "gamma": 1.5, "alpha": 0.3, "loss_weight": 2.0}
    assert convert.focal_loss(loss) == FocalLossConfig(2.0, 0.3, 1.5)
    assert convert.focal_loss({"type": "FocalLoss"}) == FocalLossConfig(1.0, 0.25, 2.0)
    assert convert.focal_loss(None) == FocalLossConfig()
    assert convert.coordinate_loss("loss_bbox", {"type": "mmdet.L1Loss", "loss_weight": 0.25}, 9.0) == (0.25, L1())
    assert convert.coordinate_loss("loss_bbox", None, 9.0) == (9.0, L1())
    assert convert.coordinate_loss("loss_bbox", {"type": "SmoothL1Loss", "beta": 0.1}, 9.0) == (1.0, SmoothL1(0.1))
    balanced = {"type": "mmdet.BalancedL1Loss", "alpha": 0.4, "gamma": 1.0, "beta": 2.0, "loss_weight": 0.5}
    assert convert.coordinate_loss("loss_bbox", balanced, 9.0) == (0.5, BalancedL1(0.4, 1.0, 2.0))
    assert convert.giou_weight("loss_iou", {"type": "GIoULoss", "loss_weight": 3.0}, 9.0) == 3.0
    assert convert.giou_weight("loss_iou", None, 9.0) == 9.0
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
    "loss, message",
    [
        (
            {"type": "GIoULoss"},
            "have one of the types L1Loss, SmoothL1Loss, BalancedL1Loss, got GIoULoss",
        ),
        ({"type": "L1Loss", "beta": 1.0}, "loss_bbox of type L1Loss does not use 'beta'; it uses loss_weight"),
        ({"type": "SmoothL1Loss", "beta": 0.0}, "beta of SmoothL1 must be above 0, got 0.0"),
        ({"type": "BalancedL1Loss", "alpha": -1.0}, "alpha of BalancedL1 must be above 0, got -1.0"),
    ],
)
def test_wrong_coordinate_losses(loss, message):
    with pytest.raises(ValueError, match=message):
        convert.coordinate_loss("loss_bbox", loss, 1.0)


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
