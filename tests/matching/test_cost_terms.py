"""Terms of a match cost, one pair at a time."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch

from raggedbev.matching import ClassCost
from raggedbev.matching.cost_terms import (
    BoxL1Term,
    ClassTerm,
    IoUTerm,
    MaskCrossEntropyTerm,
    MaskDiceTerm,
    MaskFocalTerm,
    MatchInputs,
    fields_read,
)

TERMS = [
    ClassTerm(ClassCost()),
    ClassTerm(ClassCost(1.0, "softmax")),
    BoxL1Term(5.0, "xywh"),
    BoxL1Term(5.0, "xyxy"),
    IoUTerm(2.0, "giou"),
    IoUTerm(2.0, "iou"),
    MaskFocalTerm(20.0),
    MaskCrossEntropyTerm(5.0),
    MaskDiceTerm(1.0, pred_act=True, eps=1.0),
    MaskDiceTerm(5.0, pred_act=True, naive_dice=False),
]
NAN = float("nan")


def inputs(*lead, samples=2, num_gt=3, num_preds=5):
    g = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.rand(*shape, generator=g, dtype=torch.float64)

    def corners(*shape):
        low = rand(*shape, 2) * 50
        return torch.cat([low, low + rand(*shape, 2) * 40 + 1], dim=-1)

    return MatchInputs(
        cls_logits=rand(*lead, samples, num_preds, 4) * 4 - 2,
        gt_labels=torch.randint(0, 4, (samples, num_gt), generator=g),
        boxes=corners(*lead, samples, num_preds),
        gt_boxes=corners(samples, num_gt),
        image_size=torch.tensor([[120.0, 90.0], [100.0, 110.0]], dtype=torch.float64)[:samples],
        masks=rand(*lead, samples, num_preds, 7) * 6 - 3,
        gt_masks=torch.randint(0, 2, (samples, num_gt, 7), generator=g),
    )


def select(given, *index):
    """One layer and sample."""
    layer, b = index
    return MatchInputs(
        given.cls_logits[layer, b],
        given.gt_labels[b],
        given.boxes[layer, b],
        given.gt_boxes[b],
        given.image_size[b],
        given.masks[layer, b],
        given.gt_masks[b],
    )


def box_l1(box, gt, size, box_format):
    if box_format == "xywh":
        box, gt = ([(r[0] + r[2]) / 2, (r[1] + r[3]) / 2, r[2] - r[0], r[3] - r[1]] for r in (box, gt))
    return sum(abs(a - b) / size[i % 2] for i, (a, b) in enumerate(zip(box, gt, strict=True)))


def focal(logit, is_object, alpha=0.25, gamma=2.0, eps=1e-12):
    p = 1 / (1 + math.exp(-logit))
    if is_object:
        return -math.log(p + eps) * alpha * (1 - p) ** gamma
    return -math.log(1 - p + eps) * (1 - alpha) * p**gamma


def pairs(given, term):
    found = term(given)
    return [(found[g, p].item(), g, p) for g in range(found.shape[0]) for p in range(found.shape[1])]


@pytest.mark.parametrize("box_format", ["xywh", "xyxy"])
def test_box_l1(box_format):
    given = select(inputs(1), 0, 1)
    for found, g, p in pairs(given, BoxL1Term(5.0, box_format)):
        wanted = 5 * box_l1(given.boxes[p].tolist(), given.gt_boxes[g].tolist(), [100, 110], box_format)
        assert found == pytest.approx(wanted, rel=1e-12)


def test_masks():
    given = select(inputs(1), 0, 0)
    logits, masks = given.masks.tolist(), given.gt_masks.tolist()
    for found, g, p in pairs(given, MaskFocalTerm(20.0, alpha=0.3, gamma=1.5, eps=1e-3)):
        points = [focal(x, y, 0.3, 1.5, 1e-3) for x, y in zip(logits[p], masks[g], strict=True)]
        assert found == pytest.approx(20 * sum(points) / 7, rel=1e-9)
    for found, g, p in pairs(given, MaskCrossEntropyTerm(5.0)):
        points = [math.log1p(math.exp(-x if y else x)) for x, y in zip(logits[p], masks[g], strict=True)]
        assert found == pytest.approx(5 * sum(points) / 7, rel=1e-9)


@pytest.mark.parametrize("naive", [True, False])
@pytest.mark.parametrize("act", [True, False])
def test_dice(naive, act):
    given = select(inputs(1), 0, 0)
    power = 1 if naive else 2
    for found, g, p in pairs(given, MaskDiceTerm(3.0, pred_act=act, eps=0.5, naive_dice=naive)):
        x = [1 / (1 + math.exp(-v)) if act else v for v in given.masks[p].tolist()]
        y = given.gt_masks[g].tolist()
        shared = 2 * sum(a * b for a, b in zip(x, y, strict=True))
        whole = sum(a**power for a in x) + sum(b**power for b in y)
        assert found == pytest.approx(3 * (1 - (shared + 0.5) / (whole + 0.5)), rel=1e-9)


@pytest.mark.parametrize("term", TERMS, ids=repr)
def test_leading_dimensions_broadcast_and_filler_stays_in_its_row(term):
    given = inputs(2)
    given.gt_labels[0, 2], given.gt_boxes[0, 2] = 99, NAN
    given = MatchInputs(**{**vars(given), "gt_masks": given.gt_masks.double()})
    given.gt_masks[0, 2] = NAN
    cost = term(given)
    assert cost.shape == (2, 2, 3, 5)
    assert cost[:, 0, :2].isfinite().all() and cost[:, 1].isfinite().all()
    for layer in range(2):
        for b in range(2):
            one = term(select(given, layer, b))
            torch.testing.assert_close(cost[layer, b], one, equal_nan=True, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("term", TERMS, ids=repr)
def test_autocast_changes_nothing(term):
    given = inputs(2).widened()
    given = MatchInputs(
        **{name: value.float() if value.is_floating_point() else value for name, value in vars(given).items()}
    )
    wanted = term(given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = term(given)
    assert found.dtype == torch.float32 and torch.equal(found, wanted)


@pytest.mark.parametrize("term", TERMS, ids=repr)
def test_missing_input_is_named(term):
    with pytest.raises(ValueError, match=rf"{type(term).__name__} needs (cls_logits|boxes|masks), and there is none"):
        term(MatchInputs())


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
@pytest.mark.parametrize("term", TERMS, ids=repr)
def test_nothing_to_match(term, shape):
    g, p = shape
    assert term(inputs(2, num_gt=g, num_preds=p)).shape == (2, 2, g, p)


def test_wrong_settings():
    with pytest.raises(ValueError, match="box_format must be 'xywh' or 'xyxy', got 'cxcywh'"):
        BoxL1Term(box_format="cxcywh")
    with pytest.raises(ValueError, match="iou_mode must be 'iou' or 'giou', got 'iof'"):
        IoUTerm(iou_mode="iof")


@pytest.mark.parametrize("term", TERMS, ids=str)
def test_a_term_looks_at_no_more_than_it_says(term):
    given = inputs()
    read = MatchInputs(**{name: getattr(given, name) for name in term.reads})
    assert torch.equal(term(read), term(given)) and fields_read([term]) == set(term.reads)


def test_a_term_that_does_not_say_may_look_at_everything():
    assert fields_read([TERMS[0], lambda given: given.cls_logits]) == {field.name for field in fields(MatchInputs)}
    assert fields_read([TERMS[0], TERMS[4]]) == {"cls_logits", "gt_labels", "boxes", "gt_boxes"}
