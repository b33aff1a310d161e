"""Losses of DETR-like heads, given the assignment, against sums over pairs written out.

The heads themselves are compared under tests/mm.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from raggedbev import linear_assignment
from raggedbev.losses.class_loss import focal_loss_sums
from raggedbev.losses.detr import CrossEntropy, Focal, QualityFocal, SetLosses, SetPrediction, set_losses
from raggedbev.losses.terms import (
    AVG_FACTOR_EPS,
    L1,
    BalancedL1,
    SmoothL1,
    aligned_iou,
    giou_loss,
    quality_focal_loss,
    sigmoid_focal_loss,
)
from raggedbev.matching.costs import cxcywh_to_xyxy
from raggedbev.ragged import RaggedBatch, combine_data

L, P, C = 3, 6, 4
SIZES = [2, 0, 9]


def case(width, sizes=SIZES, layers=L, seed=0):
    """Predictions with an assignment found for random costs; with four numbers, boxes of images."""
    g = torch.Generator().manual_seed(seed)
    batch = len(sizes)
    labels = combine_data([torch.randint(0, C, (n,), generator=g) for n in sizes])
    boxes = combine_data([torch.rand(n, width, generator=g, dtype=torch.float64) * 0.5 + 0.1 for n in sizes])
    logits = torch.randn(layers, batch, P, C, generator=g, dtype=torch.float64, requires_grad=True)
    preds = (torch.rand(layers, batch, P, width, generator=g, dtype=torch.float64) * 0.5 + 0.1).requires_grad_()
    cost = torch.rand(layers, batch, boxes.max_sample_size, P, generator=g)
    assignment = linear_assignment(cost, labels.sample_sizes.expand(layers, -1))
    size = torch.tensor([90.0, 60, 90, 60], dtype=torch.float64).expand(batch, 1, 4) if width == 4 else None
    background = (assignment.gt_of_pred < 0).flatten(1).sum(1)
    return SetPrediction(logits, preds, labels, boxes.tensor, assignment, background, size)


def config(**changes):
    return SetLosses(**{"cls": Focal(), "cls_weight": 2.0, "bbox_weight": 0.25, "num_classes": C, **changes})


def pairs_of(part, layer):
    """Sample, prediction and object of every match."""
    found = part.assignment.gt_of_pred[layer]
    return [(b, p, int(found[b, p])) for b, p in (found >= 0).nonzero().tolist()]


def written_out(part, settings, layer):
    """A layer's losses, pair by pair."""
    pairs = pairs_of(part, layer)
    labels, quality = torch.full(part.logits.shape[1:3], C), torch.zeros(part.logits.shape[1:3], dtype=torch.float64)
    box_sum, iou_sum = torch.zeros(()), torch.zeros(())
    for b, p, g in pairs:
        pred, target = part.boxes[layer, b, p], part.gt_boxes[b, g]
        labels[b, p] = part.gt_labels.tensor[b, g]
        weights = 1.0 if settings.code_weights is None else settings.code_weights
        if not settings.replace_nonfinite or target.isfinite().all():
            box_sum = box_sum + (settings.bbox(pred, target) * weights).sum()
        if part.image_size is not None:
            corners = [cxcywh_to_xyxy(box) * part.image_size[b, 0] for box in (pred, target)]
            iou_sum = iou_sum + giou_loss(*corners)
            quality[b, p] = aligned_iou(*(cxcywh_to_xyxy(box.detach()) for box in (pred, target)))
    if isinstance(settings.cls, QualityFocal):
        cls_sum = quality_focal_loss(part.logits[layer], labels, quality).sum()
    else:
        cls_sum = sigmoid_focal_loss(part.logits[layer], labels).sum()
    count = max(len(pairs), 1) + AVG_FACTOR_EPS
    negatives = int(part.num_negatives[layer]) * settings.background_weight
    losses = {
        "loss_cls": cls_sum / (max(len(pairs) + negatives, 1) + AVG_FACTOR_EPS) * settings.cls_weight,
        "loss_bbox": box_sum / count * settings.bbox_weight,
    }
    if settings.iou_weight is not None:
        losses["loss_iou"] = iou_sum / count * settings.iou_weight
    return losses


SETTINGS = {
    "3D": (10, {"code_weights": torch.linspace(0.2, 2.0, 10, dtype=torch.float64), "replace_nonfinite": True}),
    "3D, smooth": (8, {"bbox": SmoothL1(0.2), "replace_nonfinite": True}),
    "2D": (4, {"iou_weight": 2.0, "background_weight": 0.1, "bbox": L1()}),
    "2D, quality": (4, {"iou_weight": 2.0, "cls": QualityFocal(), "bbox": BalancedL1(beta=0.1)}),
}


@pytest.mark.parametrize("sizes", [SIZES, [0, 0], [3]], ids=str)
@pytest.mark.parametrize("name", SETTINGS)
def test_sums_over_pairs(name, sizes):
    width, changes = SETTINGS[name]
    part, settings = case(width, sizes), config(**changes)
    losses = set_losses({"{}": part}, settings)
    names = list(written_out(part, settings, 0))
    assert list(losses) == names + [f"d{layer}.{key}" for layer in range(L - 1) for key in names]
    for layer in range(L):
        for key, wanted in written_out(part, settings, layer).items():
            found = losses[key if layer == L - 1 else f"d{layer}.{key}"]
            torch.testing.assert_close(found, wanted.to(found), rtol=1e-12, atol=1e-14)
            slopes = torch.autograd.grad(found, (part.logits, part.boxes), retain_graph=True, allow_unused=True)
            leaves = (part.logits, part.boxes)
            expected = torch.autograd.grad(wanted, leaves, allow_unused=True) if wanted.requires_grad else (None, None)
            for one, other in zip(slopes, expected, strict=True):
                one, other = (torch.zeros(1).double() if slope is None else slope for slope in (one, other))
                torch.testing.assert_close(*torch.broadcast_tensors(one, other), rtol=1e-12, atol=1e-14)


def test_objects_that_are_not_finite_are_skipped():
    part, settings = case(10), config(replace_nonfinite=True)
    wanted = [written_out(part, settings, layer)["loss_bbox"].detach() for layer in range(L)]
    part.gt_boxes[2, 0, 8] = torch.nan
    losses = set_losses({"{}": part}, settings)
    assert all(value.isfinite() for value in losses.values())
    torch.testing.assert_close(losses["loss_bbox"], written_out(part, settings, L - 1)["loss_bbox"])
    assert losses["loss_bbox"] <= wanted[L - 1]


def test_losses_that_are_not_finite_are_replaced():
    part = case(10)
    with torch.no_grad():
        part.logits[0] = torch.nan
        part.boxes[1] = torch.inf
    losses = set_losses({"{}": part}, config(replace_nonfinite=True))
    assert losses["d0.loss_cls"] == 0 and losses["d1.loss_bbox"] == torch.finfo(torch.float64).max
    assert set_losses({"{}": part}, config())["d0.loss_cls"].isnan()


def test_unsolved_problems_have_nan_box_losses():
    part = case(10)
    status = part.assignment.status.clone()
    status[1, 2] = 2
    part = dataclasses.replace(part, assignment=part.assignment._replace(status=status))
    losses = set_losses({"{}": part}, config(replace_nonfinite=True))
    assert [key for key, value in losses.items() if value.isnan()] == ["d1.loss_bbox"]


def test_groups_are_averaged():
    part = case(10, layers=6)
    alone = set_losses({"{}": part}, config())
    found = set_losses({"{}": dataclasses.replace(part, groups=3)}, config())
    assert list(found) == ["loss_cls", "loss_bbox", "d0.loss_cls", "d0.loss_bbox"]
    for key in ("loss_cls", "loss_bbox"):
        torch.testing.assert_close(found[f"d0.{key}"], sum(alone[f"d{i}.{key}"] for i in range(3)) / 3)
        torch.testing.assert_close(found[key], (alone[f"d3.{key}"] + alone[f"d4.{key}"] + alone[key]) / 3)


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("background", [0.0, 0.1])
def test_counts_of_all_kinds_are_averaged_in_one_call(sync, background):
    calls = []

    def mean(counts):
        calls.append(counts.numel())
        return counts * 2

    sets = {"{}": case(10), "enc_{}": case(10, layers=1, seed=1), "{}_aux": case(10, seed=2)}
    settings = config(sync_cls_avg_factor=sync, background_weight=background)
    alone, found = set_losses(sets, settings), set_losses(sets, settings, mean)
    assert len(calls) == 1 and list(found) == list(alone)
    assert {"enc_loss_cls", "loss_bbox_aux", "d1.loss_cls_aux"} <= set(found) and "d0.enc_loss_cls" not in found
    for key, value in alone.items():
        halved = 2 if "bbox" in key or sync else 1
        torch.testing.assert_close(found[key] * halved, value, rtol=1e-6, atol=0)


def test_cross_entropy_has_background_as_its_last_class():
    part = case(10)
    settings = config(cls=CrossEntropy(torch.tensor([1.0, 2.0, 0.5, 0.1])), num_classes=C - 1)
    labels = torch.full((L, 3, P), C - 1)
    for layer in range(L):
        for b, p, g in pairs_of(part, layer):
            labels[layer, b, p] = part.gt_labels.tensor[b, g]
    labels[labels > C - 1] = C - 1
    rows = torch.nn.functional.cross_entropy(
        part.logits.flatten(0, 2), labels.flatten(), settings.cls.class_weight.double(), reduction="none"
    )
    count = len(pairs_of(part, L - 1)) + AVG_FACTOR_EPS
    wanted = rows.reshape(L, -1).sum(1)[-1] / count * 2.0
    torch.testing.assert_close(set_losses({"{}": part}, settings)["loss_cls"], wanted)


def test_the_quality_focal_loss_asks_for_overlaps():
    with pytest.raises(ValueError, match="needs the overlaps of matched predictions"):
        QualityFocal()(torch.zeros(1, 2, C), torch.zeros(1, 2, dtype=torch.long), None)
    assert torch.equal(
        Focal()(torch.zeros(1, 2, C), torch.full((1, 2), C), None),
        focal_loss_sums(torch.zeros(1, 2, C), torch.full((1, 2), -1)),
    )


def test_the_loss_compiles_without_a_graph_break():
    """Given the assignment."""
    part, settings = case(10), config(replace_nonfinite=True)
    wanted = set_losses({"{}": part}, settings)

    @torch.compile(fullgraph=True, backend="eager")
    def compiled(logits, boxes):
        return set_losses({"{}": dataclasses.replace(part, logits=logits, boxes=boxes)}, settings)

    found = compiled(part.logits, part.boxes)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_padding_does_not_matter():
    part = case(10)
    boxes = torch.nn.functional.pad(part.gt_boxes, (0, 0, 0, 3), value=torch.nan)
    labels = torch.nn.functional.pad(part.gt_labels.tensor, (0, 3), value=99)
    assignment = part.assignment._replace(
        pred_of_gt=torch.nn.functional.pad(part.assignment.pred_of_gt, (0, 3), value=-1)
    )
    wide = RaggedBatch(labels, sample_sizes=part.gt_labels.sample_sizes)
    padded = dataclasses.replace(part, gt_boxes=boxes, gt_labels=wide, assignment=assignment)
    one, two = (set_losses({"{}": each}, config(replace_nonfinite=True)) for each in (part, padded))
    torch.testing.assert_close(two, one, rtol=1e-13, atol=0)
