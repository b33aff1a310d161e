"""Overlaps of rotated boxes: against polygon clipping in float64, and exactly where the answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raggedbev.matching.overlaps import box3d_iou, rotated_intersection

FLOATS = [torch.float32, torch.float64]
EPS = {torch.float32: 5e-6, torch.float64: 1e-13}
INF, NAN = float("inf"), float("nan")


def corners(box):
    """Four corners, counterclockwise."""
    x, y, length, width, yaw = box
    cos, sin = math.cos(yaw), math.sin(yaw)
    return [
        (x + (i * length * cos - j * width * sin) / 2, y + (i * length * sin + j * width * cos) / 2)
        for i, j in ((1, 1), (-1, 1), (-1, -1), (1, -1))
    ]


def clipped_area(box, other):
    """Sutherland and Hodgman's clipping, one side after another."""
    polygon, sides = corners(box), corners(other)
    for (ax, ay), (bx, by) in zip(sides, sides[1:] + sides[:1], strict=True):
        distance = [(bx - ax) * (y - ay) - (by - ay) * (x - ax) for x, y in polygon]
        kept = []
        for i, (p, d) in enumerate(zip(polygon, distance, strict=True)):
            q, e = polygon[(i + 1) % len(polygon)], distance[(i + 1) % len(polygon)]
            if d >= 0:
                kept.append(p)
            if (d >= 0) != (e >= 0):
                t = d / (d - e)
                kept.append((p[0] + t * (q[0] - p[0]), p[1] + t * (q[1] - p[1])))
        polygon = kept
    area = sum(p[0] * q[1] - q[0] * p[1] for p, q in zip(polygon, polygon[1:] + polygon[:1], strict=True))
    return max(area / 2, 0.0)


def clipped_iou(box, other, center=False):
    x, y, z, length, width, height, yaw = box
    ox, oy, oz, o_length, o_width, o_height, o_yaw = other
    low, o_low = (z - height / 2, oz - o_height / 2) if center else (z, oz)
    shared = max(min(low + height, o_low + o_height) - max(low, o_low), 0.0)
    shared *= clipped_area((x, y, length, width, yaw), (ox, oy, o_length, o_width, o_yaw))
    return shared / (length * width * height + o_length * o_width * o_height - shared)


def random_boxes(*lead, seed, spread=4.0):
    """Cars, more or less, that often overlap: [..., 7]."""
    g = torch.Generator().manual_seed(seed)
    center = (torch.rand(*lead, 3, generator=g, dtype=torch.float64) - 0.5) * torch.tensor([spread, spread, 1.5])
    size = torch.rand(*lead, 3, generator=g, dtype=torch.float64) * torch.tensor([4.0, 2.0, 2.0]) + 0.3
    yaw = (torch.rand(*lead, 1, generator=g, dtype=torch.float64) - 0.5) * 7
    return torch.cat([center, size, yaw], dim=-1)


def bird_eye(boxes):
    return boxes[..., [0, 1, 3, 4, 6]]


@pytest.mark.parametrize("dtype", FLOATS)
def test_areas_equal_clipping(dtype, device):
    preds, targets = random_boxes(40, seed=0).to(dtype), random_boxes(30, seed=1).to(dtype)
    targets[:5] = preds[:5]
    targets[5:10], targets[5:10, 6] = preds[5:10], preds[5:10, 6] + math.pi / 2
    targets[10:15], targets[10:15, 0] = preds[10:15], preds[10:15, 0] + 0.5
    found = rotated_intersection(bird_eye(preds).to(device), bird_eye(targets).to(device)).cpu()
    wanted = torch.tensor(
        [[clipped_area(p, g) for p in bird_eye(preds).tolist()] for g in bird_eye(targets).tolist()],
        dtype=torch.float64,
    )
    assert found.shape == (30, 40) and found.dtype == dtype and (wanted > 0).double().mean() > 0.5
    torch.testing.assert_close(found.double(), wanted, rtol=EPS[dtype], atol=EPS[dtype])
    assert (found[wanted == 0] == 0).all()


@pytest.mark.parametrize("z_origin", ["bottom", "center"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_iou_equals_clipping(dtype, z_origin, device):
    preds, targets = random_boxes(40, seed=2).to(dtype), random_boxes(30, seed=3).to(dtype)
    found = box3d_iou(preds.to(device), targets.to(device), z_origin=z_origin).cpu()
    wanted = torch.tensor(
        [[clipped_iou(p, g, z_origin == "center") for p in preds.tolist()] for g in targets.tolist()],
        dtype=torch.float64,
    )
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=EPS[dtype])
    assert (found > 0).double().mean() > 0.3


def test_the_two_conventions_of_z_differ():
    low = torch.tensor([[0.0, 0, 0, 2, 2, 2, 0]])
    high = torch.tensor([[0.0, 0, 1, 2, 2, 4, 0]])
    assert box3d_iou(low, high).item() == pytest.approx(4 / 20)
    assert box3d_iou(low, high, z_origin="center").item() == pytest.approx(8 / 16)
    from_bottom = torch.tensor([[0.0, 0, -1, 2, 2, 4, 0]])  # the same box by its bottom
    assert box3d_iou(low - torch.tensor([0, 0, 1.0, 0, 0, 0, 0]), from_bottom).item() == pytest.approx(8 / 16)


@pytest.mark.parametrize("z_origin", ["bottom", "center"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_identical_boxes_overlap_exactly(dtype, z_origin):
    boxes = random_boxes(300, seed=4).to(dtype)
    boxes[:, :2] += 1000.1
    assert (box3d_iou(boxes, boxes, z_origin=z_origin).diagonal() == 1).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_no_overlap_exceeds_one(dtype):
    """Not by rounding either: the same boxes the other way round, and turned by whole circles."""
    boxes = random_boxes(1000, seed=11).to(dtype)
    for turns in (0.5, 1.0, 3.0):
        turned = boxes.clone()
        turned[:, 6] += turns * 2 * math.pi
        iou = box3d_iou(boxes.unsqueeze(1), turned.unsqueeze(1)).flatten()
        assert (iou <= 1).all() and (iou > 1 - 1e-5).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_boxes_that_are_apart_or_touch_share_exactly_nothing(dtype):
    boxes = random_boxes(200, seed=5).to(dtype)
    turned = boxes.clone()
    radius = boxes[:, 3:5].square().sum(-1).sqrt()
    turned[:, :2] += radius.unsqueeze(1) * torch.tensor([0.8, 0.6], dtype=dtype) * 1.01
    turned[:, 6] += 0.3
    assert (box3d_iou(boxes, turned).diagonal() == 0).all()
    above = boxes.clone()
    above[:, 2] += boxes[:, 5] * 1.001
    assert (box3d_iou(boxes, above).diagonal() == 0).all()
    unit = torch.tensor([[0.0, 0, 1, 1, 0]], dtype=dtype)
    beside = torch.tensor([[1.0, 0, 1, 1, 0], [0, -1, 1, 1, 0], [1, 1, 1, 1, 0], [1, 0.5, 1, 2, 0]], dtype=dtype)
    assert (rotated_intersection(beside, unit) == 0).all()


def test_diagonal_neighbours_whose_projections_overlap():
    """Separated by one box's edges only, in either role."""
    square, diamond = torch.tensor([[0.0, 0, 2, 2, 0]]), torch.tensor([[1.5, 1.5, 1.3, 1.3, math.pi / 4]])
    assert rotated_intersection(square, diamond).item() == 0 and rotated_intersection(diamond, square).item() == 0


@pytest.mark.parametrize("dtype", FLOATS)
def test_contained_boxes(dtype):
    outer = random_boxes(100, seed=6).to(dtype)
    inner = outer.clone()
    inner[:, 2] += outer[:, 5] * 0.25
    inner[:, 3:6] *= 0.5
    for turn in (0.0, math.pi):
        inner[:, 6] = outer[:, 6] + turn
        for found in (box3d_iou(inner, outer), box3d_iou(outer, inner)):
            torch.testing.assert_close(found.diagonal(), torch.full((100,), 0.125, dtype=dtype), rtol=0, atol=2e-6)


def test_a_cross():
    beam, crossing = torch.tensor([[3.0, 4, 10, 2, 0.7]]), torch.tensor([[3.0, 4, 10, 1, 0.7 + math.pi / 2]])
    assert rotated_intersection(beam, crossing).item() == pytest.approx(2.0, abs=1e-5)


@given(st.integers(0, 10**6), st.floats(-12, -1), st.sampled_from(FLOATS))
@settings(max_examples=60, deadline=None)
def test_a_small_change_of_a_box_changes_little(seed, exponent, dtype):
    """Nearly coincident edges, where lists of corners go wrong."""
    g = torch.Generator().manual_seed(seed)
    boxes = random_boxes(20, seed=seed).to(dtype)
    change = 10**exponent
    moved = boxes + (torch.rand(20, 7, generator=g, dtype=dtype) - 0.5) * change
    iou = box3d_iou(boxes, moved).diagonal()
    assert (iou <= 1).all() and (iou >= 1 - 40 * change - 40 * torch.finfo(dtype).eps).all()


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_order_and_frame_do_not_matter(seed):
    preds, targets = random_boxes(6, seed=seed), random_boxes(5, seed=seed + 1)
    iou = box3d_iou(preds, targets)
    torch.testing.assert_close(iou, box3d_iou(targets, preds).T, rtol=0, atol=1e-12)
    turn, shift = seed % 7 - 3.0, torch.tensor([100.0, -50.0], dtype=torch.float64)
    rotation = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]], dtype=torch.float64)
    moved = [
        torch.cat([boxes[:, :2] @ rotation.T + shift, boxes[:, 2:6], boxes[:, 6:] + turn], dim=1)
        for boxes in (preds, targets)
    ]
    torch.testing.assert_close(iou, box3d_iou(*moved), rtol=0, atol=1e-11)


def test_boxes_without_volume_overlap_nothing():
    box = torch.tensor([[0.0, 0, 0, 2, 2, 2, 0.3]])
    for column in (3, 4, 5):
        for size in (0.0, -1.0, INF):
            flat = box.clone()
            flat[0, column] = size
            assert box3d_iou(flat, box).item() == 0 and box3d_iou(box, flat).item() == 0
            assert box3d_iou(flat, flat).item() == 0
    tiny = torch.tensor([[0.0, 0, 0, 1e-6, 1e-6, 1e-6, 0.3]])
    assert box3d_iou(tiny, tiny).item() == 1


def test_nan_stays_with_its_box():
    preds, targets = random_boxes(6, seed=7), random_boxes(4, seed=8)
    wanted = box3d_iou(preds, targets)
    for column in range(7):
        bad_preds, bad_targets = preds.clone(), targets.clone()
        bad_preds[2, column], bad_targets[1, column] = NAN, NAN
        found = box3d_iou(bad_preds, bad_targets)
        assert found[1].isnan().all() and found[:, 2].isnan().all()
        rest = torch.ones(4, 6, dtype=torch.bool)
        rest[1], rest[:, 2] = False, False
        assert torch.equal(found[rest], wanted[rest])


def test_leading_dimensions_further_columns_and_types():
    preds, targets = random_boxes(3, 2, 5, seed=9), random_boxes(2, 4, seed=10)
    found = box3d_iou(torch.cat([preds, preds * INF], -1), torch.cat([targets, targets + NAN], -1))
    assert found.shape == (3, 2, 4, 5)
    for layer in range(3):
        for b in range(2):
            assert torch.equal(found[layer, b], box3d_iou(preds[layer, b], targets[b]))
    half = box3d_iou(preds.half(), targets.half())
    assert half.dtype == torch.float32 and torch.equal(half, box3d_iou(preds.half().float(), targets.half().float()))
    assert box3d_iou(preds.requires_grad_(), targets).requires_grad is False


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
def test_nothing_to_compare(shape):
    g, p = shape
    assert box3d_iou(torch.zeros(2, p, 7), torch.zeros(2, g, 7)).shape == (2, g, p)
    assert rotated_intersection(torch.zeros(p, 5), torch.zeros(g, 5)).shape == (g, p)


def test_wrong_input():
    boxes = torch.zeros(1, 7)
    with pytest.raises(ValueError, match=r"at least 7 columns, got \(1, 7\) and \(1, 6\)"):
        box3d_iou(boxes, boxes[:, :6])
    with pytest.raises(ValueError, match="at least 5 columns"):
        rotated_intersection(boxes[:, :4], boxes)
    with pytest.raises(ValueError, match="z_origin must be one of"):
        box3d_iou(boxes, boxes, z_origin="top")
