"""Heatmap targets of the 2D head: edges of the map, padding, non-finite objects; recorded maps are in
tests/losses/test_golden.py."""

from __future__ import annotations

import pytest
import torch

from raggedbev.heatmap.targets import focal_head_heatmap
from raggedbev.losses import GroundTruth2D
from raggedbev.losses.reference import focal_head_heatmap_reference

PAD_SHAPE, STRIDE = (64, 96), 16
BOX = [10.0, 10.0, 60.0, 60.0]


def ground_truth(*images):
    """Per image a list of (box, centre)."""
    return GroundTruth2D(
        [torch.tensor([box for box, _ in objects]).reshape(-1, 4) for objects in images],
        [torch.zeros(len(objects), dtype=torch.long) for objects in images],
        [torch.tensor([center for _, center in objects]).reshape(-1, 2) for objects in images],
    )


def draw(gt, device="cpu"):
    return focal_head_heatmap(gt.boxes.to(device), gt.centers.to(device), PAD_SHAPE, STRIDE)


@pytest.mark.parametrize(
    "images", [[[]], [[], []], [[(BOX, [30.0, 40.0])], []], [[(BOX, [30.0, 40.0])] * 3, [(BOX, [96.0, 64.0])]]]
)
def test_equals_drawing_one_by_one(images, device):
    gt = ground_truth(*images)
    heatmap = draw(gt, device)
    assert heatmap.shape == (len(images), 4, 6) and heatmap.dtype == torch.float32
    assert torch.equal(heatmap.cpu(), focal_head_heatmap_reference(gt, PAD_SHAPE, STRIDE))


def test_random_objects(device):
    g = torch.Generator().manual_seed(0)
    images = []
    for n in (40, 0, 7):
        low = torch.rand(n, 2, generator=g) * 60
        high = low + torch.rand(n, 2, generator=g) * 60
        center = low + (high - low) * torch.rand(n, 2, generator=g) * 1.2
        images.append([([*a, *b], c) for a, b, c in zip(low.tolist(), high.tolist(), center.tolist(), strict=True)])
    gt = ground_truth(*images)
    assert torch.equal(draw(gt, device).cpu(), focal_head_heatmap_reference(gt, PAD_SHAPE, STRIDE))


def test_peak_is_one_and_radius_is_the_nearest_edge():
    heatmap = draw(ground_truth([(BOX, [30.0, 40.0])]))[0]
    assert heatmap[2, 1] == 1 and (heatmap == 1).sum() == 1
    assert heatmap[2, 3] > 0 and heatmap[2, 4] == 0  # 20 pixels to the edge: 2 cells


def test_centre_on_the_lower_right_border_has_no_peak():
    heatmap = draw(ground_truth([([50.0, 30.0, 96.0, 64.0], [96.0, 64.0])]))[0]
    assert heatmap[3, 5] > 0 and heatmap.max() < 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nonfinite_objects_are_skipped(value):
    gt = ground_truth([(BOX, [value, 40.0]), ([10.0, value, 60.0, 60.0], [30.0, 40.0])])
    assert (draw(gt) == 0).all() and (focal_head_heatmap_reference(gt, PAD_SHAPE, STRIDE) == 0).all()
