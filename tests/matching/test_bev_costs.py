"""Match costs of LiDAR heads, one entry at a time."""

from __future__ import annotations

import pytest
import torch

from raggedbev.matching.bev_costs import bev_l1_cost, iou3d_cost
from raggedbev.matching.overlaps import box3d_iou

RANGE = [-50.0, -40.0, -5.0, 70.0, 60.0, 3.0]


def boxes(*lead, seed=0):
    return torch.rand(*lead, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 4 + 0.5


def test_centres_in_units_of_the_range():
    preds, targets = boxes(5), boxes(3, seed=1)
    cost = bev_l1_cost(preds, targets, RANGE, weight=0.25)
    for g in range(3):
        for p in range(5):
            dx, dy = (preds[p] - targets[g]).abs()[:2].tolist()
            assert cost[g, p].item() == pytest.approx(0.25 * (dx / 120 + dy / 100), rel=1e-12)
    other_z = [*RANGE[:2], -1.0, *RANGE[3:5], 1.0]
    assert torch.equal(cost, bev_l1_cost(preds[:, :2], targets[:, :2], other_z, weight=0.25))


@pytest.mark.parametrize("wrong", [[0.0, 0, 1, 1], [0.0, 0, 0, 0, 1, 1], [5.0, 0, 0, 1, 1, 1]])
def test_wrong_ranges(wrong):
    with pytest.raises(ValueError, match="the point cloud range must be six numbers, lowest x, y, z first"):
        bev_l1_cost(boxes(1), boxes(1), wrong)


@pytest.mark.parametrize("z_origin", ["bottom", "center"])
def test_iou_cost_is_negative_overlap(z_origin):
    preds, targets = boxes(5), boxes(3, seed=1)
    cost = iou3d_cost(preds, targets, weight=2.0, z_origin=z_origin)
    assert torch.equal(cost, -2 * box3d_iou(preds, targets, z_origin=z_origin))


def test_leading_dimensions_broadcast_and_filler_stays_in_its_row():
    preds, targets = boxes(4, 2, 6), boxes(2, 3, seed=1)
    targets[0, 1:] = float("nan")
    cost = bev_l1_cost(preds, targets, RANGE) + iou3d_cost(preds, targets)
    assert cost.shape == (4, 2, 3, 6)
    for layer in range(4):
        for b in range(2):
            one = bev_l1_cost(preds[layer, b], targets[b], RANGE) + iou3d_cost(preds[layer, b], targets[b])
            torch.testing.assert_close(cost[layer, b], one, equal_nan=True, rtol=0, atol=0)
    assert cost[:, 0, 0].isfinite().all() and cost[:, 0, 1:].isnan().all() and cost[:, 1].isfinite().all()
    assert bev_l1_cost(preds[..., :0, :], targets, RANGE).shape == (4, 2, 3, 0)
