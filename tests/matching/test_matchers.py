"""Matchers of other head families: all at once as one by one, filler, bad values, and no wait for the device."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from raggedbev import _extension
from raggedbev.matching import (
    BoxCodeMatcher3D,
    ClassCost,
    HungarianMatcher2D,
    HungarianMatcher3D,
    TermMatcher,
    TransFusionMatcher3D,
    hungarian,
    matchers,
)
from raggedbev.matching.cost_terms import BoxL1Term, ClassTerm, IoUTerm, MaskDiceTerm, MatchInputs
from raggedbev.matching.costs import row_tensor
from raggedbev.matching.fused import block_minima
from raggedbev.matching.overlaps import box3d_iou
from raggedbev.profiling.syncs import HostSyncCounter
from raggedbev.ragged import combine_data

SIZES = [[0, 0], [1], [4, 0, 11], [1] * 5]
RANGE = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)
NAN, INF = float("nan"), float("inf")
sizes_cases = pytest.mark.parametrize("sizes", SIZES, ids=str)
MATCHERS = [
    BoxCodeMatcher3D(box_code="petr"),
    BoxCodeMatcher3D(ClassCost(1.0, "softmax"), box_code="detr3d"),
    TransFusionMatcher3D(ClassCost(0.15), 0.25, 0.25),
    TermMatcher((ClassTerm(ClassCost()), BoxL1Term(5.0, "xywh"), IoUTerm(2.0))),
    TermMatcher((ClassTerm(ClassCost(1.0, "softmax")), MaskDiceTerm(pred_act=True))),
]
every_matcher = pytest.mark.parametrize("matcher", MATCHERS, ids=lambda m: f"{type(m).__name__}-{MATCHERS.index(m)}")


def objects(sizes, poison=None):
    """Boxes [B, G, 9] and labels [B, G], with rows of filler of any kind if asked for."""
    g = torch.Generator().manual_seed(1)
    boxes, labels = [], []
    for n in sizes:
        plane = (torch.rand(n, 3, generator=g, dtype=torch.float64) - 0.5) * torch.tensor([40.0, 40.0, 2.0])
        rest = torch.rand(n, 6, generator=g, dtype=torch.float64) * 3 + 0.5
        boxes.append(torch.cat([plane, rest], dim=1))
        labels.append(torch.randint(0, 10, (n,), generator=g))
    boxes, labels = combine_data(boxes), combine_data(labels)
    if poison is not None:
        boxes, labels = boxes.with_padded_set_to(poison), labels.with_padded_set_to(2**40)
    return boxes, labels


def predictions(matcher, *lead, count=8):
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(*lead, count, 10, generator=g, dtype=torch.float64)
    boxes = torch.randn(*lead, count, 10, generator=g, dtype=torch.float64) * 3
    if isinstance(matcher, HungarianMatcher3D):
        return logits, boxes
    decoded = torch.cat([boxes[..., :3] * 5, boxes[..., 3:6].exp().clamp(max=9), boxes[..., 6:9]], dim=-1)
    return logits, decoded


def call(matcher, preds, boxes, labels, sizes=None):
    """`match` for one sample, `assign_batch` where `sizes` are given: (gt_of_pred, the whole answer)."""
    logits, pred_boxes = preds
    if isinstance(matcher, TermMatcher):
        given = MatchInputs(
            logits,
            labels if sizes is None else labels.tensor,
            corners(pred_boxes),
            corners(boxes if sizes is None else boxes.tensor),
            row_tensor((100.0, 80.0), logits),
            pred_boxes,
            (boxes if sizes is None else boxes.tensor).sin().gt(0),  # no two objects alike: solvers break ties
        )
        found = matcher.match(given) if sizes is None else matcher.assign_batch(given, sizes)
    else:
        extra = (RANGE,) if isinstance(matcher, TransFusionMatcher3D) else ()
        method = matcher.match if sizes is None else matcher.assign_batch
        found = method(logits, pred_boxes, boxes, labels, *extra)
    if sizes is not None:
        return found.gt_of_pred, found
    return (found[0], found) if isinstance(found, tuple) else (found, found)


def corners(boxes):
    """Some image box of a 3D box."""
    low = boxes[..., :2] + 30
    return torch.cat([low, low + boxes[..., 3:5].abs() + 0.1], dim=-1)


@every_matcher
@sizes_cases
@pytest.mark.parametrize("poison", [NAN, INF, 0.0])
def test_all_at_once_as_one_by_one(matcher, sizes, poison):
    preds = predictions(matcher, 2, len(sizes))
    padded_boxes, padded_labels = objects(sizes, poison)
    boxes, labels = (part.split() for part in (padded_boxes, padded_labels))
    gt_of_pred, found = call(matcher, preds, padded_boxes, padded_labels, padded_boxes.sample_sizes)
    assert gt_of_pred.shape == (2, len(sizes), 8) and (found.status == 0).all()
    for layer in range(2):
        for b, n in enumerate(sizes):
            one, _ = call(matcher, [part[layer, b] for part in preds], boxes[b], labels[b])
            assert torch.equal(one, gt_of_pred[layer, b]) and (one >= 0).sum() == min(n, 8)


@every_matcher
def test_solvers_agree(matcher):
    sizes = [3, 0, 6]
    preds, (boxes, labels) = predictions(matcher, len(sizes)), objects(sizes)
    scipy = type(matcher)(**{**vars(matcher), "solver": "scipy"})
    default = call(matcher, preds, boxes, labels, boxes.sample_sizes)[0]
    assert torch.equal(default, call(scipy, preds, boxes, labels, boxes.sample_sizes)[0])
    with pytest.raises(ValueError, match="solver must be one of"):
        type(matcher)(**{**vars(matcher), "solver": "fast"})


@every_matcher
def test_minima_of_one_pass_go_to_the_solver(matcher, monkeypatch):
    """Masks and 3D overlaps included: they are added in that pass."""
    solved = []
    for module in (hungarian, matchers):
        solve = module.linear_assignment
        monkeypatch.setattr(
            module, "linear_assignment", lambda cost, *a, s=solve, **k: solved.append((cost, k)) or s(cost, *a, **k)
        )
    preds, (boxes, labels) = predictions(matcher, 3, count=70), objects([3, 0, 6])
    call(matcher, preds, boxes, labels, boxes.sample_sizes)
    call(matcher, [part[2] for part in preds], boxes.split()[2], labels.split()[2])
    assert [cost.dim() for cost, _ in solved] == [3, 2]
    for cost, given in solved:
        assert torch.equal(given["minima"], block_minima(cost))


@pytest.mark.skipif(not _extension.COMPILED, reason="SciPy's solver copies to the host and back")
@every_matcher
def test_nothing_waits_for_the_device(matcher):
    sizes = [3, 0, 12]
    preds, (boxes, labels) = predictions(matcher, 2, len(sizes)), objects(sizes)
    with HostSyncCounter("cpu") as syncs:
        found = call(matcher, preds, boxes, labels, boxes.sample_sizes)[1]
        pairs = found.pairs()
    assert dict(syncs.by_kind) == {}
    assert torch.equal(pairs.gt_index.sample_sizes, boxes.sample_sizes.clamp(max=8).expand(2, -1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_matcher
def test_on_the_device_nothing_waits(matcher):
    """Torch itself reports waits there; the answer is that of the host."""
    if not torch._C._dispatch_has_kernel_for_dispatch_key("raggedbev::linear_assignment", "CUDA"):
        pytest.skip("the solver was not compiled for CUDA")
    sizes = [3, 0, 12]
    preds, (boxes, labels) = predictions(matcher, 2, len(sizes)), objects(sizes)
    wanted = call(matcher, preds, boxes, labels, boxes.sample_sizes)[0]
    on_device = [part.cuda() for part in preds], boxes.to("cuda"), labels.to("cuda")
    call(matcher, *on_device, on_device[1].sample_sizes)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = call(matcher, *on_device, on_device[1].sample_sizes)[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found.cpu(), wanted)


@every_matcher
def test_any_number_of_leading_dimensions(matcher):
    sizes = [3, 0, 12]
    preds, (boxes, labels) = predictions(matcher, 2, 2, len(sizes)), objects(sizes)
    found = call(matcher, preds, boxes, labels, boxes.sample_sizes)[0]
    flat = [part.flatten(0, 1) for part in preds]
    assert torch.equal(found.flatten(0, 1), call(matcher, flat, boxes, labels, boxes.sample_sizes)[0])
    one_layer = [part[1, 0] for part in preds]
    assert torch.equal(found[1, 0], call(matcher, one_layer, boxes, labels, boxes.sample_sizes)[0])


@pytest.mark.skipif(not _extension.COMPILED, reason="SciPy's solver is no part of a graph")
@every_matcher
def test_compiles_without_a_graph_break(matcher):
    sizes = [3, 0, 12]
    preds, (boxes, labels) = predictions(matcher, 2, len(sizes)), objects(sizes)

    @torch.compile(fullgraph=True, backend="eager")
    def compiled(preds, boxes, labels):
        return call(matcher, preds, boxes, labels, boxes.sample_sizes)[0]

    wanted = call(matcher, preds, boxes, labels, boxes.sample_sizes)[0]
    assert torch.equal(compiled(preds, boxes, labels), wanted)


@pytest.mark.parametrize("code", ["petr", "detr3d"])
def test_first_eight_numbers_count_unless_velocity_is_asked_for(code):
    matcher = BoxCodeMatcher3D(box_code=code)
    logits, codes = torch.zeros(2, 10), torch.zeros(2, 10)
    codes[1, 8] = 5.0
    box, label = torch.tensor([[0.0, 0, 0, 1, 1, 1, 0, 5, 0]]), torch.zeros(1, dtype=torch.long)
    plain, with_velo = (matcher.cost(logits, codes, box, label, None, velo)[0] for velo in (False, True))
    assert plain[0] == plain[1] and with_velo[0] > with_velo[1]
    assert torch.equal(plain, matcher.cost(logits, codes[:, :8], box[:, :7], label)[0])
    with pytest.raises(ValueError, match="at least 10 columns when with_velo is True, got 10 predicted and 8 of"):
        matcher.cost(logits, codes, box[:, :7], label, None, True)


def test_code_weights_scale_their_own_number():
    matcher, box = BoxCodeMatcher3D(), torch.tensor([[0.0, 0, 0, 1, 1, 1, 0, 0, 0]])
    label, codes = torch.zeros(1, dtype=torch.long), torch.zeros(10, 10)
    codes[:, 7] = 1.0
    codes[:, 4].fill_(0.0)
    codes += torch.eye(10)
    weights = torch.arange(1.0, 11.0)
    cost = matcher.cost(torch.zeros(10, 3), codes, box, label, weights, True)
    cost = cost - matcher.cost(torch.zeros(10, 3), codes - torch.eye(10), box, label, weights, True)
    torch.testing.assert_close(cost[0], 0.25 * weights)
    both = weights, torch.cat([weights[:8], weights[:2]])
    eight = [matcher.cost(torch.zeros(10, 3), codes, box, label, factors) for factors in both]
    assert torch.equal(*eight)
    torch.testing.assert_close(eight[0], matcher.cost(torch.zeros(10, 3), codes[:, :8], box, label, weights[:8]))
    with pytest.raises(ValueError, match=r"code_weights must have 10 entries, got \(8,\)"):
        matcher.cost(torch.zeros(10, 3), codes, box, label, weights[:8])


def test_petr_replaces_what_is_not_finite_and_detr3d_reports_it():
    logits, codes = torch.zeros(1, 4, 10), torch.zeros(1, 4, 10)
    codes[0, 1, 0] = NAN
    boxes, labels = objects([2, 0])
    boxes, labels = boxes.float(), labels
    logits, codes = logits.expand(2, 4, 10), codes.expand(2, 4, 10)
    assert (BoxCodeMatcher3D(box_code="petr").assign_batch(logits, codes, boxes, labels).status == 0).all()
    found = BoxCodeMatcher3D(box_code="detr3d").assign_batch(logits, codes, boxes, labels)
    assert found.status.tolist() == [2, 0] and (found.gt_of_pred == -1).all() and (found.pred_of_gt == -1).all()
    one = boxes.split()[0], labels.split()[0]
    assert (BoxCodeMatcher3D(box_code="petr").match(logits[0], codes[0], *one) >= 0).sum() == 2
    with pytest.raises(ValueError, match="has no solution: the costs contain NaN or -inf"):
        BoxCodeMatcher3D(box_code="detr3d").match(logits[0], codes[0], *one)


@pytest.mark.parametrize("code", ["petr", "detr3d"])
def test_cost_is_class_cost_and_distance_of_codes(code):
    (logits, codes), (boxes, labels) = predictions(BoxCodeMatcher3D(), 1), objects([3])
    cost = BoxCodeMatcher3D(box_code=code).cost(logits[0], codes[0], boxes.tensor[0], labels.tensor[0])
    for g, (x, y, z, length, width, height, yaw, *_) in enumerate(boxes.tensor[0].tolist()):
        angle = yaw if code == "detr3d" else -yaw - math.pi / 2
        target = [x, y, math.log(length), math.log(width), z, math.log(height), math.sin(angle), math.cos(angle)]
        for p in range(8):
            prob = logits[0, p, labels.tensor[0, g]].sigmoid().item()
            wanted = -0.5 * (1 - prob) ** 2 * math.log(prob) + 1.5 * prob**2 * math.log(1 - prob)
            wanted += 0.25 * sum(abs(a - b) for a, b in zip(codes[0, p].tolist(), target, strict=False))
            assert cost[g, p].item() == pytest.approx(wanted, rel=1e-9)


@sizes_cases
def test_overlaps_of_pairs(sizes):
    matcher = MATCHERS[2]
    logits, boxes = predictions(matcher, 2, len(sizes))
    gt_boxes, gt_labels = objects(sizes, NAN)
    for b, part in enumerate(gt_boxes.split()):
        take = min(len(part), 3)
        boxes[:, b, :take] = part[:take]
    found = matcher.assign_batch(logits, boxes, gt_boxes, gt_labels, RANGE)
    assert found.max_overlaps.shape == (2, len(sizes), 8)
    for layer in range(2):
        for b, (own_boxes, own_labels) in enumerate(zip(gt_boxes.split(), gt_labels.split(), strict=True)):
            iou = box3d_iou(boxes[layer, b], own_boxes)
            wanted = [iou[g, p].item() if g >= 0 else 0.0 for p, g in enumerate(found.gt_of_pred[layer, b].tolist())]
            assert found.max_overlaps[layer, b].tolist() == wanted
            one, overlaps = matcher.match(logits[layer, b], boxes[layer, b], own_boxes, own_labels, RANGE)
            assert torch.equal(one, found.gt_of_pred[layer, b]) and overlaps.tolist() == wanted
    if max(sizes) > 1:
        assert (found.max_overlaps > 0.9).any()


def test_transfusion_cost_by_hand():
    matcher = TransFusionMatcher3D(ClassCost(0.15), 0.25, 0.5)
    (logits, boxes), (gt_boxes, gt_labels) = predictions(matcher, 1), objects([3])
    found, overlaps = matcher.cost_and_overlaps(logits[0], boxes[0], gt_boxes.tensor[0], gt_labels.tensor[0], RANGE)
    cost = found.cost
    for g in range(3):
        for p in range(8):
            prob = logits[0, p, gt_labels.tensor[0, g]].sigmoid().item()
            wanted = 0.15 * (-0.25 * (1 - prob) ** 2 * math.log(prob) + 0.75 * prob**2 * math.log(1 - prob))
            wanted += 0.25 * (boxes[0, p, :2] - gt_boxes.tensor[0, g, :2]).abs().sum().item() / 108
            assert cost[g, p].item() == pytest.approx(wanted - 0.5 * overlaps[g, p].item(), rel=1e-9)


@pytest.mark.parametrize("kind", [torch.half, torch.bfloat16], ids=str)
def test_half_predictions_are_computed_in_float32(kind):
    """Ground truth keeps its digits, too: metres and pixels have more than half types hold."""
    boxes, labels = (part.tensor for part in objects([3]))
    weights = [1.1, *[0.9] * 9]
    for matcher in (*MATCHERS[:3], HungarianMatcher3D()):
        logits, codes = (part.to(kind) for part in predictions(matcher, 1))
        logits[0, 0] = 60.0  # 1 - sigmoid is 0, and in float16 so is 1e-12
        found = []
        for given in ((logits, codes), (logits.float(), codes.float())):
            if isinstance(matcher, TransFusionMatcher3D):
                cost, overlaps = matcher.cost_and_overlaps(*given, boxes, labels, RANGE)
                found.append(torch.stack([cost.cost, overlaps]))
            else:
                found.append(matcher.cost(*given, boxes, labels, weights))
        assert found[0].dtype == torch.float32 and found[0].isfinite().all() and torch.equal(*found)


@pytest.mark.parametrize("kind", [torch.half, torch.bfloat16], ids=str)
@pytest.mark.parametrize("box_format", ["xywh", "xyxy"])
def test_half_predictions_in_images_are_computed_in_float32(kind, box_format):
    matcher = HungarianMatcher2D(box_format=box_format)
    g = torch.Generator().manual_seed(0)
    preds = [torch.rand(8, width, generator=g).to(kind) for width in (10, 4, 2)]
    low = torch.rand(3, 2, generator=g) * 1500
    truth = torch.cat([low, low + 77.7], dim=1), torch.tensor([0, 3, 7]), low + 33.3
    found = [matcher.cost(*given, *truth, (927, 1601)) for given in (preds, [part.float() for part in preds])]
    assert found[0].dtype == torch.float32 and torch.equal(*found)


def test_total_is_the_smallest():
    matcher = MATCHERS[3]
    (logits, boxes), (gt_boxes, gt_labels) = predictions(matcher, 1), objects([5])
    given = MatchInputs(
        logits[0],
        gt_labels.tensor[0],
        corners(boxes[0]),
        corners(gt_boxes.tensor[0]),
        torch.tensor([100.0, 80.0], dtype=torch.float64),
    )
    cost, gt_of_pred = matcher.cost(given), matcher.match(given)
    rows, columns = linear_sum_assignment(cost.numpy())
    matched = gt_of_pred >= 0
    assert cost[gt_of_pred[matched], matched.nonzero()[:, 0]].sum().item() == pytest.approx(cost[rows, columns].sum())


def test_every_term_counts_as_often_as_it_is_listed():
    (logits, boxes), (gt_boxes, gt_labels) = predictions(MATCHERS[3], 2, 2), objects([3, 1])
    given = MatchInputs(
        logits,
        gt_labels.tensor,
        corners(boxes),
        corners(gt_boxes.tensor),
        torch.tensor([100.0, 80.0], dtype=torch.float64),
    )
    l1, overlap, focal = BoxL1Term(5.0, "xywh"), IoUTerm(2.0), ClassTerm(ClassCost())
    softmax, plain_iou = ClassTerm(ClassCost(1.0, "softmax")), IoUTerm(3.0, "iou")
    for terms in (
        (l1,),
        (l1, overlap),
        (focal,),
        (overlap, focal),
        (l1, *[focal] * 2),
        (plain_iou, overlap, *[l1] * 6, softmax, focal, overlap),
    ):
        wanted = sum(term(given) for term in terms)
        torch.testing.assert_close(TermMatcher(terms).cost(given), wanted, rtol=1e-12, atol=1e-12)


def test_wrong_settings():
    with pytest.raises(ValueError, match="at least one term, got none"):
        TermMatcher(())
    with pytest.raises(ValueError, match="box_code must be one of"):
        BoxCodeMatcher3D(box_code="streampetr")


def test_masks_with_more_leading_dimensions_than_classes():
    g = torch.Generator().manual_seed(0)
    logits, masks = torch.randn(3, 8, 5, generator=g), torch.randn(2, 3, 8, 16, generator=g)
    labels, gt_masks = torch.randint(0, 5, (3, 4), generator=g), torch.rand(3, 4, 16, generator=g).round()
    terms = (ClassTerm(ClassCost()), MaskDiceTerm(pred_act=True))
    cost = TermMatcher(terms).cost(MatchInputs(logits, labels, masks=masks, gt_masks=gt_masks))
    wanted = [term(MatchInputs(logits, labels, masks=masks, gt_masks=gt_masks)) for term in terms]
    assert cost.shape == (2, 3, 4, 8)
    torch.testing.assert_close(cost, wanted[0] + wanted[1], rtol=1e-5, atol=1e-5)
