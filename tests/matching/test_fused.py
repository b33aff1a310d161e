"""The fused match cost: equal to the sum of its terms, whatever the shapes, the layout and the values."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raggedbev import _extension
from raggedbev.matching import ClassCost, fused
from raggedbev.matching.fused import L1Term, OverlapTerm, _match_cost_with_torch, block_minima, match_cost

needs_operator = pytest.mark.skipif(not _extension.COMPILED, reason="the compiled operators were not built")
INF, NAN = float("inf"), float("nan")
TOLERANCE = {torch.float32: {"rtol": 2e-5, "atol": 2e-5}, torch.float64: {"rtol": 1e-12, "atol": 1e-12}}


def case(
    layers=2,
    samples=3,
    num_gt=5,
    num_preds=70,
    num_classes=4,
    dims=(8,),
    factors=True,
    overlap=None,
    extra=False,
    dtype=torch.float32,
    seed=0,
    device="cpu",
):
    """Arguments of match_cost."""
    g = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=g).to(device, dtype)

    lead = (layers, samples)
    labels = torch.randint(-1, num_classes + 2, (samples, num_gt), generator=g).to(device)
    l1 = [
        L1Term(
            rand(*lead, num_preds, d) * 20 - 10,
            rand(samples, num_gt, d) * 20 - 10,
            0.25 * (i + 1),
            rand(d) + 0.5 if factors else None,
        )
        for i, d in enumerate(dims)
    ]
    boxes = None
    if overlap is not None:
        low = rand(samples, num_gt, 2) * 60
        truth = torch.cat([low, low + rand(samples, num_gt, 2) * 50 + 1], dim=-1)
        sizes = torch.tensor([[96.0, 64.0]], device=device, dtype=dtype).expand(samples, 2)
        boxes = OverlapTerm(rand(*lead, num_preds, 4), truth, sizes, 2.0, overlap)
    arguments = {
        "cls_logits": rand(*lead, num_preds, num_classes) * 12 - 6,
        "labels": labels,
        "class_cost": ClassCost(),
        "l1": l1,
        "overlap": boxes,
        "num_gt": torch.randint(0, num_gt + 1, (samples,), generator=g).to(device),
    }
    return arguments | ({"extra": rand(*lead, num_gt, num_preds), "extra_weight": -1.5} if extra else {})


def composed(
    cls_logits,
    labels,
    class_cost,
    *,
    l1=(),
    overlap=None,
    extra=None,
    extra_weight=1.0,
    num_gt=None,
    replace_nonfinite=True,
):
    """The same with plain torch."""
    num_gt = torch.full(labels.shape[:1], labels.shape[1]) if num_gt is None else num_gt
    return _match_cost_with_torch(
        cls_logits,
        labels,
        num_gt,
        [term.preds for term in l1],
        [term.targets for term in l1],
        [term.factors for term in l1],
        [term.weight for term in l1],
        None if overlap is None else overlap.preds,
        None if overlap is None else overlap.targets,
        None if overlap is None else overlap.image_sizes,
        None if extra is None else extra,
        class_cost.kind == "softmax",
        class_cost.weight,
        class_cost.alpha,
        class_cost.gamma,
        class_cost.eps,
        0.0 if overlap is None else overlap.weight,
        extra_weight,
        overlap is not None and overlap.iou_mode == "giou",
        replace_nonfinite,
    )


def check(arguments):
    found, (cost, _) = match_cost(**arguments), composed(**arguments)
    assert found.cost.dtype == cost.dtype
    torch.testing.assert_close(found.cost, cost, equal_nan=True, **TOLERANCE[cost.dtype])
    torch.testing.assert_close(found.minima, block_minima(found.cost), rtol=0, atol=0, equal_nan=True)
    return found.cost


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    "class_cost",
    [ClassCost(), ClassCost(1.5, alpha=0.4, gamma=1.3, eps=1e-6), ClassCost(0.5, gamma=0.0), ClassCost(3.0, "softmax")],
    ids=str,
)
@pytest.mark.parametrize("dims, overlap", [((8,), None), ((10,), None), ((4, 2), "giou"), ((4,), "iou"), ((), None)])
@pytest.mark.parametrize("extra", [False, True])
def test_equals_the_sum_of_its_terms(class_cost, dims, overlap, extra, dtype, device):
    arguments = case(dims=dims, overlap=overlap, extra=extra, dtype=dtype, device=device)
    cost = check({**arguments, "class_cost": class_cost})
    rows = torch.arange(cost.shape[-2], device=device) < arguments["num_gt"].unsqueeze(1)
    assert rows.any() and cost[:, rows].abs().sum() > 0 and (cost[:, ~rows] == 0).all()


@settings(max_examples=60, deadline=None)
@given(
    layers=st.integers(0, 3),
    samples=st.integers(0, 3),
    num_gt=st.integers(0, 11),
    num_preds=st.sampled_from([0, 1, 31, 63, 64, 65, 255, 256, 257, 600]),
    num_classes=st.sampled_from([1, 2, 10, 80]),
    dims=st.lists(st.integers(0, 13), max_size=4),
    factors=st.booleans(),
    overlap=st.sampled_from([None, "iou", "giou"]),
    extra=st.booleans(),
    softmax=st.booleans(),
    double=st.booleans(),
    seed=st.integers(0, 9),
)
def test_shapes(layers, samples, num_gt, softmax, double, **arguments):
    dtype = torch.float64 if double else torch.float32
    arguments = case(layers, samples, num_gt, dtype=dtype, **arguments)
    check({**arguments, "class_cost": ClassCost(1.0, "softmax" if softmax else "focal")})


@pytest.mark.parametrize("replace", [True, False])
@pytest.mark.parametrize("overlap, dims", [(None, (8,)), ("giou", (4, 2)), ("iou", (4, 2))])
@pytest.mark.parametrize("extra", [False, True])
def test_nonfinite_predictions_and_objects(overlap, dims, extra, replace, device):
    arguments = case(overlap=overlap, dims=dims, extra=extra, num_preds=200, num_gt=6, device=device)
    arguments["num_gt"] = torch.tensor([6, 3, 5], device=device)
    arguments["cls_logits"][0, :, :5] = torch.tensor([NAN, INF, -INF, 1e30, -1e30], device=device).unsqueeze(1)
    arguments["l1"][0].preds[1, :, 10:13, 1] = torch.tensor([NAN, INF, -INF], device=device)
    arguments["l1"][0].targets[0, 4, 2] = NAN
    if overlap is not None:
        arguments["overlap"].preds[1, :, 20:23, 2] = torch.tensor([NAN, INF, -INF], device=device)
        arguments["overlap"].targets[2, 1, 3] = INF
    if extra:
        arguments["extra"][:, :, 2, 30:33] = torch.tensor([NAN, INF, -INF], device=device)
    cost = check({**arguments, "replace_nonfinite": replace})
    assert bool(cost.isfinite().all()) == replace
    if replace:
        assert (cost[0, 0, 4] == 100).all()


def test_filler_reaches_nothing(device):
    arguments = case(overlap="giou", dims=(4, 2), extra=True, device=device)
    arguments["num_gt"] = torch.tensor([2, 0, 5], device=device)
    before = match_cost(**arguments).cost
    arguments["extra"][:, 0, 2:], arguments["extra"][:, 1] = NAN, -INF
    for term in [*arguments["l1"], arguments["overlap"]]:
        term.targets[0, 2:], term.targets[1] = NAN, INF
    arguments["labels"][0, 2:] = 10**12
    after = match_cost(**arguments)
    assert torch.equal(before, after.cost) and after.minima.isfinite().all()


def test_unknown_labels_cost_nothing_whatever_the_logits(device):
    arguments = case(dims=(), num_classes=3, device=device)
    arguments["labels"].fill_(3)
    arguments["cls_logits"].fill_(NAN)
    assert (match_cost(**arguments).cost == 0).all()


def test_small_functions_are_exact_to_float32(device):
    """Focal costs over the whole range of logits, in units of what a cost can be."""
    logits = torch.cat([torch.linspace(-100, 100, 40001), torch.linspace(-1e-3, 1e-3, 101)]).to(device)
    for class_cost in (ClassCost(1.0), ClassCost(1.0, gamma=1.5)):
        found = match_cost(logits.unsqueeze(1), torch.zeros(1, dtype=torch.long, device=device), class_cost).cost[0]
        wanted = class_cost(logits.double().unsqueeze(1), torch.zeros(1, dtype=torch.long, device=device))[0]
        plain = class_cost(logits.unsqueeze(1), torch.zeros(1, dtype=torch.long, device=device))[0]
        error, plain_error = (found - wanted).abs(), (plain - wanted).abs()
        assert error.max() <= plain_error.max() + 1e-6
        small = logits.abs() < 8
        torch.testing.assert_close(found[small].double(), wanted[small], rtol=3e-4, atol=1e-7)


def test_layouts_and_types(device):
    arguments = case(dims=(8,), overlap="giou", num_classes=5, device=device)
    expected = match_cost(**arguments).cost
    wide = torch.zeros(*arguments["l1"][0].preds.shape[:-1], 10, device=device)
    wide[..., :8] = arguments["l1"][0].preds
    turned = arguments["cls_logits"].transpose(-1, -2).contiguous().transpose(-1, -2)
    strange = {
        **arguments,
        "cls_logits": turned,
        "labels": arguments["labels"].int(),
        "num_gt": arguments["num_gt"].int(),
        "l1": [L1Term(wide[..., :8], *vars_of(arguments["l1"][0])[1:])],
    }
    assert torch.equal(match_cost(**strange).cost, expected)
    half = {**arguments, "cls_logits": arguments["cls_logits"].half(), "overlap": None}
    rounded = {**half, "cls_logits": half["cls_logits"].float()}
    assert torch.equal(match_cost(**half).cost, match_cost(**rounded).cost)
    assert match_cost(**{**rounded, "cls_logits": rounded["cls_logits"].double()}).cost.dtype == torch.float64


def vars_of(term):
    return term.preds, term.targets, term.weight, term.factors


def test_ground_truth_broadcasts(device):
    arguments = case(layers=2, samples=3, dims=(4,), device=device)
    shared = match_cost(**arguments).cost
    term = arguments["l1"][0]
    own = {
        **arguments,
        "labels": arguments["labels"].expand(2, 3, -1),
        "num_gt": arguments["num_gt"].expand(2, 3),
        "l1": [L1Term(term.preds, term.targets.expand(2, *term.targets.shape), term.weight, term.factors)],
    }
    assert torch.equal(match_cost(**own).cost, shared)
    one = {
        "cls_logits": arguments["cls_logits"][:, :1],
        "labels": arguments["labels"],
        "class_cost": ClassCost(),
    }
    found = match_cost(**one).cost
    assert found.shape == (2, 3, 5, 70)
    for b in range(3):
        single = match_cost(one["cls_logits"][1, 0], one["labels"][b], ClassCost()).cost
        assert torch.equal(found[1, b], single)


def test_settings_change_the_result():
    base = case(dims=(8,), overlap="giou", num_gt=4, dtype=torch.float64)
    base["labels"].clamp_(0, 3)
    base["num_gt"].fill_(4)
    term, boxes = base["l1"][0], base["overlap"]
    variants = [
        {"class_cost": ClassCost(1.0)},
        {"class_cost": ClassCost(kind="softmax")},
        {"class_cost": ClassCost(alpha=0.3)},
        {"class_cost": ClassCost(gamma=1.0)},
        {"class_cost": ClassCost(eps=1e-2)},
        {"l1": [L1Term(term.preds, term.targets, 1.0, term.factors)]},
        {"l1": [L1Term(term.preds, term.targets, term.weight)]},
        {"l1": [term, term]},
        {"overlap": OverlapTerm(boxes.preds, boxes.targets, boxes.image_sizes, 1.0)},
        {"overlap": OverlapTerm(boxes.preds, boxes.targets, boxes.image_sizes, 2.0, "iou")},
        {"overlap": OverlapTerm(boxes.preds, boxes.targets, boxes.image_sizes * 2, 2.0)},
        {"overlap": None},
        {"extra": base["cls_logits"].new_ones(2, 3, 4, 70)},
        {"extra": base["cls_logits"].new_ones(2, 3, 4, 70), "extra_weight": 0.5},
    ]
    results = [match_cost(**base).cost, *(match_cost(**{**base, **variant}).cost for variant in variants)]
    for i, first in enumerate(results):
        assert all(not torch.allclose(first, second) for second in results[:i]), i


PATHS = [pytest.param("_match_cost", marks=needs_operator), "_match_cost_with_torch"]
"""The operator, and what runs where it was not built."""


LEADING = " or broadcast to it in the leading dimensions, got "


@pytest.mark.parametrize("path", PATHS)
def test_wrong_arguments(monkeypatch, path):
    monkeypatch.setattr(fused, "_match_cost", getattr(fused, path))
    good = case(dims=(8, 2), overlap="giou")
    term, boxes = good["l1"][0], good["overlap"]

    def fails(error, message, **changes):
        with pytest.raises(error, match=message):
            match_cost(**{**good, **changes})

    fails(
        ValueError,
        rf"l1\[0\].preds must have shape \(2, 3, 70, 8\){LEADING}\(2, 3, 69, 8\)",
        l1=[L1Term(term.preds[:, :, 1:], term.targets)],
    )
    fails(
        ValueError,
        rf"l1\[0\].targets must have shape \(3, 5, 8\){LEADING}\(3, 5, 7\)",
        l1=[L1Term(term.preds, term.targets[..., 1:])],
    )
    fails(
        ValueError,
        rf"l1\[0\].factors must have shape \(8,\){LEADING}\(3,\)",
        l1=[L1Term(term.preds, term.targets, 1.0, torch.ones(3))],
    )
    fails(ValueError, "at most 4 L1 terms", l1=[term] * 5)
    fails(
        ValueError,
        "iou_mode must be 'iou' or 'giou', got 'diou'",
        overlap=OverlapTerm(boxes.preds, boxes.targets, boxes.image_sizes, 1.0, "diou"),
    )
    fails(
        ValueError,
        rf"overlap.targets must have shape \(3, 5, 4\){LEADING}\(3, 5, 3\)",
        overlap=OverlapTerm(boxes.preds, boxes.targets[..., 1:], boxes.image_sizes),
    )
    fails(TypeError, "labels must be int32 or int64, got torch.float32", labels=good["labels"].float())
    fails(TypeError, "num_gt must be int32 or int64, got torch.bool", num_gt=good["num_gt"].bool())
    fails(
        ValueError,
        rf"l1\[1\].preds must have shape \(2, 3, 70, 2\){LEADING}\(4, 3, 70, 2\)",
        l1=[term, L1Term(torch.zeros(4, 3, 70, 2), torch.zeros(3, 5, 2))],
    )
    fails(
        ValueError,
        r"labels must have leading dimensions that go with \(2, 3\) of the predictions, got \(4,\)",
        labels=torch.zeros(4, 5, dtype=torch.int64),
    )
    fails(
        ValueError,
        r"cls_logits must be \[..., P, C\] and labels \[..., G\], got \(4,\) and \(5,\)",
        cls_logits=torch.zeros(4),
        labels=good["labels"][0],
    )
    fails(ValueError, r"got \(2, 3, 70, 4\) and \(\)", labels=torch.tensor(1))
    fails(ValueError, r"l1\[0\].weight must be a number, got nan", l1=[L1Term(term.preds, term.targets, NAN)])
    fails(TypeError, r"l1\[0\].weight must be a number, got 'a'", l1=[L1Term(term.preds, term.targets, "a")])
    fails(ValueError, "overlap.weight must be a number, got nan", overlap=OverlapTerm(*vars_of_overlap(boxes), NAN))
    fails(ValueError, "extra_weight must be a number, got nan", extra_weight=NAN)
    fails(TypeError, "cls_logits must be a tensor of real numbers, got list", cls_logits=[[1.0]])
    fails(TypeError, "num_gt must be a tensor of real numbers, got list", num_gt=[1, 2, 3])
    fails(
        TypeError,
        r"l1\[0\].preds must be a tensor of real numbers, got torch.complex64",
        l1=[L1Term(term.preds * 1j, term.targets)],
    )
    fails(
        TypeError,
        "overlap.image_sizes must be a tensor of real numbers, got tuple",
        overlap=OverlapTerm(boxes.preds, boxes.targets, (3, 4)),
    )
    fails(ValueError, rf"num_gt must have shape \(3,\){LEADING}\(4,\)", num_gt=torch.ones(4, dtype=torch.int64))
    fails(TypeError, "extra must be a tensor of real numbers, got float", extra=1.0)
    fails(TypeError, "extra must be a tensor of real numbers, got torch.complex64", extra=torch.zeros(5, 70) * 1j)
    for shape in ((2, 3, 5, 69), (2, 3, 4, 70), (2, 3, 5, 1), ()):
        found = rf"extra must have shape \(2, 3, 5, 70\){LEADING}\({', '.join(map(str, shape))}\)"
        fails(ValueError, found, extra=torch.zeros(shape))
    fails(
        ValueError,
        rf"extra must have shape \(2, 3, 5, 70\){LEADING}\(4, 3, 5, 70\)",
        extra=torch.zeros(4, 3, 5, 70),
    )


@pytest.mark.parametrize(
    "name, field",
    [
        ("cls_logits", None),
        ("labels", None),
        ("num_gt", None),
        ("l1", "preds"),
        ("l1", "targets"),
        ("l1", "factors"),
        ("overlap", "preds"),
        ("overlap", "targets"),
        ("overlap", "image_sizes"),
        ("extra", None),
    ],
)
def test_every_tensor_is_on_one_device(name, field):
    good = case(dims=(8,), overlap="giou", extra=True)
    value = good[name]
    if field is None:
        changed = value.to("meta")
    else:
        term = value[0] if name == "l1" else value
        changed = dataclasses.replace(term, **{field: getattr(term, field).to("meta")})
        changed = [changed] if name == "l1" else changed
    where = "meta, got cpu" if name == "cls_logits" else "cpu, got meta"
    with pytest.raises(ValueError, match=f"must be on {where}"):
        match_cost(**{**good, name: changed})


@pytest.mark.parametrize("replace", [True, False])
def test_negative_weights_of_distances(replace, device):
    arguments = case(dims=(8, 2), overlap="giou", device=device)
    arguments["cls_logits"][0, 0, 0] = NAN
    arguments["l1"][1] = dataclasses.replace(arguments["l1"][1], weight=-0.5)
    cost = check({**arguments, "replace_nonfinite": replace})
    positive = dataclasses.replace(arguments["l1"][1], weight=0.5)
    without = match_cost(**{**arguments, "replace_nonfinite": replace, "l1": arguments["l1"][:1]}).cost
    added = match_cost(**{**arguments, "replace_nonfinite": replace, "l1": [arguments["l1"][0], positive]}).cost
    finite = without.isfinite() & (without != 100)
    torch.testing.assert_close(cost[finite], (2 * without - added)[finite], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("weight", [1.0, -1.0])
def test_wrong_shapes_of_distances_whatever_their_weight(monkeypatch, path, weight):
    monkeypatch.setattr(fused, "_match_cost", getattr(fused, path))
    logits, labels = torch.zeros(5, 3), torch.zeros(3, dtype=torch.int64)
    for preds, targets, name in (
        ((1, 2), (3, 2), "preds"), ((5, 2), (1, 2), "targets"), ((5, 2), (3, 3), "targets"), ((5, 0), (3, 1), "targets")
    ):  # fmt: skip
        term = L1Term(torch.zeros(preds), torch.zeros(targets), weight)
        with pytest.raises(
            ValueError, match=rf"l1\[0\].{name} must have shape .* got \({targets[0] if name == 'targets' else 1}, "
        ):
            match_cost(logits, labels, ClassCost(), l1=[term])
    good = L1Term(torch.zeros(5, 2), torch.zeros(3, 2), weight)
    with pytest.raises(ValueError, match=rf"extra must have shape \(3, 5\){LEADING}\(2, 3, 5\)"):
        match_cost(logits, labels, ClassCost(), l1=[good], extra=torch.zeros(2, 3, 5))
    with pytest.raises(ValueError, match="at most 4 L1 terms"):
        match_cost(logits, labels, ClassCost(), l1=[L1Term(torch.zeros(5, 2), torch.zeros(3, 2), weight)] * 5)


@pytest.mark.parametrize("eps", [0.0, 1e-40, 1e-29, 1e-12])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_any_eps(eps, dtype):
    """Where a probability has no digits left, the logarithm is that of eps."""
    logits = torch.tensor([-800.0, -200, -100, -88, -60, -20, 0, 20, 60, 88, 100, 200, 800], dtype=dtype).unsqueeze(1)
    for replace in (True, False):
        check(
            {
                "cls_logits": logits.unsqueeze(0),
                "labels": torch.tensor([[0]]),
                "class_cost": ClassCost(1.0, eps=eps),
                "replace_nonfinite": replace,
            }
        )


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("overlap, dims", [("giou", (8, 2)), (None, (4,))])
def test_vmap(monkeypatch, overlap, dims, path):
    """Over batches with their own ground truth, over predictions alone, over factors, and over single samples."""
    monkeypatch.setattr(fused, "_match_cost", getattr(fused, path))
    batches = [case(overlap=overlap, dims=dims, extra=True, seed=seed) for seed in range(3)]
    names = ("cls_logits", "labels", "num_gt", "extra")

    def tensors(batch):
        terms = [*batch["l1"], *([batch["overlap"]] if overlap else [])]
        return [*(batch[name] for name in names), *(part for term in terms for part in parts_of(term))]

    def parts_of(term):
        return (term.preds, term.targets, term.image_sizes if isinstance(term, OverlapTerm) else term.factors)

    def cost(*args):
        terms = [args[i : i + 3] for i in range(4, len(args), 3)]
        boxes = OverlapTerm(*terms.pop(), 2.0) if overlap else None
        l1 = [L1Term(preds, targets, 0.25, factors) for preds, targets, factors in terms]
        found = match_cost(args[0], args[1], ClassCost(), l1=l1, overlap=boxes, extra=args[3], num_gt=args[2])
        return found.cost, found.minima

    stacked = [torch.stack(parts) for parts in zip(*map(tensors, batches), strict=True)]
    own = tensors(batches[0])
    for mapped in (range(len(own)), (0,), (1, 2), (3,), (6,), (4, 6)):
        in_dims = tuple(0 if i in mapped else None for i in range(len(own)))
        given = [stacked[i] if i in mapped else part for i, part in enumerate(own)]
        found = torch.vmap(cost, in_dims)(*given)
        for index in range(3):
            wanted = cost(*(part[index] if i in mapped else part for i, part in enumerate(given)))
            for one, other in zip(found, wanted, strict=True):
                torch.testing.assert_close(one[index], other, rtol=1e-5, atol=1e-5)
    single = torch.vmap(lambda logits, labels: match_cost(logits, labels, ClassCost()).cost)
    found = single(own[0][0], own[1])
    assert torch.equal(found, match_cost(own[0][0], own[1], ClassCost()).cost)


def operator_arguments(dtype=torch.float32, overlap="giou", extra=False):
    arguments = case(dims=(8, 2), overlap=overlap, extra=extra, dtype=dtype, num_preds=70)
    l1, boxes = arguments["l1"], arguments["overlap"]
    return (
        arguments["cls_logits"],
        arguments["labels"],
        arguments["num_gt"],
        [term.preds for term in l1],
        [term.targets for term in l1],
        [l1[0].factors, None],
        [term.weight for term in l1],
        boxes.preds if boxes else None,
        boxes.targets if boxes else None,
        boxes.image_sizes.contiguous() if boxes else None,
        arguments["extra"] if extra else None,
        False, 2.0, 0.25, 2.0, 1e-12, 2.0, 1.0, True, True,
    )  # fmt: skip


@needs_operator
@pytest.mark.parametrize("overlap, extra", [(None, False), ("giou", False), (None, True)])
def test_operator_is_complete(overlap, extra):
    torch.library.opcheck(torch.ops.raggedbev.match_cost.default, operator_arguments(overlap=overlap, extra=extra))


def test_compiles_without_a_break():
    arguments = case(overlap="giou", dims=(4, 2))
    class_cost, num_gt = arguments["class_cost"], arguments["num_gt"]

    def cost(logits, labels, boxes, truth, sizes):
        overlap = OverlapTerm(boxes, truth, sizes)
        return match_cost(logits, labels, class_cost, overlap=overlap, num_gt=num_gt).cost

    tensors = (arguments["cls_logits"], arguments["labels"], *vars_of_overlap(arguments["overlap"]))
    compiled = torch.compile(cost, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*tensors), cost(*tensors))


def vars_of_overlap(term):
    return term.preds, term.targets, term.image_sizes


TWIN = """
import sys, torch
sys.path.insert(0, {folder!r})
import test_fused
from raggedbev.matching import ClassCost
found = []
for dtype in (torch.float32, torch.float64):
    for dims, overlap in [((8,), None), ((10, 3), None), ((4, 2), "giou"), ((4,), "iou"), ((), None)]:
        for preds in (1, 64, 130, 300):
            for cls in (ClassCost(), ClassCost(gamma=1.5), ClassCost(1.0, "softmax")):
                arguments = test_fused.case(
                    num_gt=11, num_preds=preds, dims=dims, overlap=overlap, extra=preds > 64, dtype=dtype
                )
                arguments["cls_logits"][0, 0, 0], arguments["cls_logits"][1] = float("nan"), float("inf")
                for replace in (True, False):
                    result = test_fused.match_cost(**{{**arguments, "class_cost": cls, "replace_nonfinite": replace}})
                    found += [result.cost, result.minima]
torch.save(found, sys.argv[1])
"""


@needs_operator
def test_host_twin_of_the_device_kernel(tmp_path):
    """The kernel's source, run on the host, gives the costs of the SIMD loops; minima included, NaN too."""
    results = []
    for twin in ("0", "1"):
        path = tmp_path / f"{twin}.pt"
        script = TWIN.format(folder=str(Path(__file__).parent))
        environment = {**os.environ, "RAGGEDBEV_HOST_TWIN": twin}
        done = subprocess.run([sys.executable, "-c", script, path], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        results.append(torch.load(path))
    assert len(results[0]) == len(results[1]) > 400
    for simd, twin in zip(*results, strict=True):
        torch.testing.assert_close(twin, simd, equal_nan=True, **TOLERANCE[simd.dtype])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graph_with_changing_ground_truth():
    arguments = case(overlap="giou", dims=(4, 2), device="cuda", num_preds=200)
    torch.cuda.set_sync_debug_mode("error")
    try:
        match_cost(**arguments)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = match_cost(**arguments)
        for count in (0, 5, 2):
            arguments["num_gt"].fill_(count)
            arguments["labels"].random_(0, 4)
            graph.replay()
            expected = match_cost(**arguments)
            assert torch.equal(captured.cost, expected.cost) and torch.equal(captured.minima, expected.minima)
    finally:
        torch.cuda.set_sync_debug_mode("default")
