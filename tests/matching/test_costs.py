"""Match costs: one entry at a time, broadcasting, filler and labels out of range."""

from __future__ import annotations

import pytest
import torch

from raggedbev.matching import costs


def _random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def corners(*shape, seed=0):
    low = _random(*shape, 2, seed=seed) * 50
    return torch.cat([low, low + _random(*shape, 2, seed=seed + 1) * 40 + 1], dim=-1)


def test_focal_cost_is_the_difference_of_two_focal_losses():
    logits, labels = _random(4, 3) * 6 - 3, torch.tensor([2, 0])
    cost = costs.focal_loss_cost(logits, labels, weight=2.0)
    for g, label in enumerate(labels.tolist()):
        for p in range(4):
            prob = logits[p, label].sigmoid()
            wanted = 2 * (-0.25 * (1 - prob) ** 2 * prob.log() + 0.75 * prob**2 * (1 - prob).log())
            torch.testing.assert_close(cost[g, p], wanted, rtol=1e-9, atol=1e-9)


def test_classification_cost_is_negative_probability():
    logits, labels = _random(4, 3), torch.tensor([2, 0])
    cost = costs.classification_cost(logits, labels, weight=3.0)
    torch.testing.assert_close(cost, -3 * logits.softmax(-1).T[labels])


@pytest.mark.parametrize("fn", [costs.focal_loss_cost, costs.classification_cost])
def test_labels_out_of_range_cost_nothing(fn):
    logits = _random(4, 3)
    cost = fn(logits, torch.tensor([3, -1, 1]))
    assert (cost[:2] == 0).all() and torch.equal(cost[2], fn(logits, torch.tensor([1]))[0])
    logits[0] = float("nan")
    assert (fn(logits, torch.tensor([7])) == 0).all()


def test_l1_costs_equal_pairwise_distances():
    preds, targets = _random(5, 10), _random(3, 10, seed=1)
    weights = [2.0, 2, 1, 1, 1, 1, 1, 1, 0.5, 0.5]
    scaled = (preds * torch.tensor(weights), targets * torch.tensor(weights))
    for dims in (None, 8):
        wanted = torch.cdist(scaled[1][:, :dims], scaled[0][:, :dims], p=1) * 0.25
        for factors in (weights, torch.tensor(weights)):
            got = costs.box3d_l1_cost(preds, targets, weight=0.25, code_weights=factors, num_dims=dims)
            torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(
        costs.center_l1_cost(preds[:, :2], targets[:, :2], weight=2), 2 * torch.cdist(targets[:, :2], preds[:, :2], p=1)
    )
    with pytest.raises(ValueError, match=r"code_weights must have 10 entries, got \(2,\)"):
        costs.box3d_l1_cost(preds, targets, code_weights=[1.0, 2.0])
    with pytest.raises(ValueError, match=r"must have the same width, got \(5, 10\) and \(3, 9\)"):
        costs.l1_cost(preds, targets[:, :9])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fn", [costs.focal_loss_cost, costs.classification_cost])
def test_class_costs_of_half_types_are_those_of_float32(fn, dtype):
    logits = torch.tensor([[-20.0, -12], [0, 12], [20, 3]]).to(dtype)
    cost = fn(logits, torch.tensor([0, 1]))
    assert cost.dtype == torch.float32 and cost.isfinite().all()
    assert torch.equal(cost, fn(logits.float(), torch.tensor([0, 1])))


@pytest.mark.parametrize("fn", [costs.l1_cost, costs.bbox_l1_cost, costs.iou_cost], ids=lambda fn: fn.__name__)
def test_types_of_boxes(fn):
    """The wider one; half types and integers are float32, as distances in pixels have no room in a half type."""
    boxes, targets = torch.tensor([[0.0, 0, 400, 300]]), torch.tensor([[0.0, 0, 60000, 60000]])
    expected = fn(boxes, targets)
    assert expected.isfinite().all()
    for preds in (boxes.half(), boxes.bfloat16(), boxes.long(), boxes.int()):
        found = fn(preds, targets)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=0)
        assert fn(preds, targets.double()).dtype == fn(boxes.double(), targets).dtype == torch.float64
    assert fn(boxes.half(), boxes.half()).dtype == torch.float32


@pytest.mark.parametrize("width", [3, 5])
def test_widths_of_boxes(width):
    wrong = torch.zeros(5, width)
    for fn, right in ((costs.bbox_l1_cost, 4), (costs.iou_cost, 4), (costs.center_l1_cost, 2)):
        message = rf"must have width {right}, got \(5, {width}\) and \(5, {width}\)"
        with pytest.raises(ValueError, match=message):
            fn(wrong, wrong)
    with pytest.raises(ValueError, match=r"same width, got \(4,\) and \(5, 4\)"):
        costs.l1_cost(torch.zeros(4), torch.zeros(5, 4))


def test_costs_under_vmap():
    preds, targets = _random(7, 5, 4), _random(7, 3, 4, seed=1)
    for fn in (costs.l1_cost, costs.bbox_l1_cost, costs.iou_cost):
        assert torch.equal(torch.vmap(fn)(preds, targets), fn(preds, targets))
        assert torch.equal(torch.vmap(fn, (None, 0))(preds[0], targets), fn(preds[0], targets))
        assert torch.equal(torch.vmap(fn, (0, None))(preds, targets[0]), fn(preds, targets[0]))


@pytest.mark.parametrize("name", ["weight", "alpha", "gamma", "eps"])
def test_settings_are_numbers(name):
    with pytest.raises(ValueError, match=f"^{name} of the classification cost must be a number, got nan$"):
        costs.ClassCost(**{name: float("nan")})
    with pytest.raises(TypeError, match=f"^{name} of the classification cost must be a number, got None$"):
        costs.ClassCost(**{name: None})


def test_box_formats():
    preds, targets = costs.xyxy_to_cxcywh(corners(5)), corners(3, seed=4)
    torch.testing.assert_close(
        costs.bbox_l1_cost(preds, targets, box_format="xyxy"), torch.cdist(targets, costs.cxcywh_to_xyxy(preds), p=1)
    )
    torch.testing.assert_close(
        costs.bbox_l1_cost(preds, targets), torch.cdist(costs.xyxy_to_cxcywh(targets), preds, p=1)
    )
    with pytest.raises(ValueError, match="box_format must be 'xywh' or 'xyxy', got 'xy'"):
        costs.bbox_l1_cost(preds, targets, box_format="xy")


def test_overlap_by_hand():
    gt = torch.tensor([[0.0, 0, 10, 10]])
    preds = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [0, 0, 0, 0]])
    torch.testing.assert_close(costs.iou_cost(preds, gt, iou_mode="iou"), -torch.tensor([[1.0, 1 / 3, 0, 0]]))
    giou = torch.tensor([[1.0, 1 / 3, -(900 - 200) / 900, 0.0]])
    torch.testing.assert_close(costs.iou_cost(preds, gt, weight=2.0), -2 * giou)
    with pytest.raises(ValueError, match="iou_mode"):
        costs.iou_cost(preds, gt, iou_mode="diou")


def test_leading_dimensions_broadcast_and_filler_stays_in_its_row():
    logits, boxes = _random(4, 2, 6, 3), _random(4, 2, 6, 10, seed=1)
    labels, targets = torch.tensor([[1, 99], [0, 2]]), _random(2, 2, 10, seed=2)
    targets[0, 1] = float("nan")
    cost = costs.focal_loss_cost(logits, labels) + costs.box3d_l1_cost(boxes, targets)
    assert cost.shape == (4, 2, 2, 6)
    for layer in range(4):
        for b in range(2):
            one = costs.focal_loss_cost(logits[layer, b], labels[b]) + costs.box3d_l1_cost(boxes[layer, b], targets[b])
            torch.testing.assert_close(cost[layer, b], one, equal_nan=True, rtol=0, atol=0)
    assert cost[:, 0, 0].isfinite().all() and cost[:, 1].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
def test_nothing_to_match(shape):
    g, p = shape
    assert costs.focal_loss_cost(torch.zeros(2, p, 3), torch.zeros(2, g, dtype=torch.long)).shape == (2, g, p)
    assert costs.box3d_l1_cost(torch.zeros(2, p, 10), torch.zeros(2, g, 10)).shape == (2, g, p)
    assert costs.iou_cost(torch.zeros(2, p, 4), torch.zeros(2, g, 4)).shape == (2, g, p)


def test_coded_boxes():
    box = torch.tensor([[1.0, 2, 3, 4, 5, 6, 0.5, 7, 8]], dtype=torch.float64)
    coded = costs.normalize_box3d(box)[0]
    assert coded.shape == (10,) and coded[:3].tolist() == [1, 2, 3] and coded[8:].tolist() == [7, 8]
    torch.testing.assert_close(coded[3:6].exp(), box[0, 3:6])
    torch.testing.assert_close(torch.atan2(coded[6], coded[7]), box[0, 6])
    assert not costs.normalize_box3d(box * 0).isfinite().all()


def test_nonfinite_costs():
    cost = torch.tensor([float("nan"), float("inf"), float("-inf"), 1.0])
    assert costs.replace_nonfinite_(cost).tolist() == [100, 100, -100, 1]


def test_boxes_without_velocity_have_no_code() -> None:
    with pytest.raises(ValueError, match=r"boxes must have 9 columns, the last two for velocity, got \(2, 7\)"):
        costs.normalize_box3d(torch.rand(2, 7))
