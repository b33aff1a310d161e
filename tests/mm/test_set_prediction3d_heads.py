"""Heads of the PETR and DETR3D families, one sample at a time, against the same heads with the batched loss.

`test_set_prediction_heads.py` compares them on two ranks.
"""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet3d.registry import MODELS
from mmdet3d.structures import CameraInstance3DBoxes, DepthInstance3DBoxes, LiDARInstance3DBoxes
from mmengine.structures import InstanceData

import raggedbev.mm.heads.set_prediction3d as module
from raggedbev import _extension
from raggedbev.mm.heads import BatchedSetPrediction3DMixin, BatchedSetPredictionMixin, batched_head
from raggedbev.profiling.syncs import HostSyncCounter

from . import detr3d_heads
from .detr3d_heads import (
    ASSIGNER,
    FOCAL,
    NUM_CLASSES,
    BatchedHybridHead,
    BEVFormerHead,
    DETR3DHead,
    HybridHead,
    PETRHead,
    arguments,
    compare,
    ground_truth,
    predictions,
    run,
)
from .packing import packed

SIZES = [3, 0, 12]
SOFTMAX = {"type": "mmdet.CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 2.0}
SOFTMAX_ASSIGNER = {**ASSIGNER, "cls_cost": {"type": "mmdet.ClassificationCost", "weight": 2.0}}
HEADS = {
    "DETR3D": (DETR3DHead, {}),
    "DETR3D, ranks": (DETR3DHead, {"sync_cls_avg_factor": True, "code_weights": [2.0, 1.5, *[1.0] * 6, 0.2, 0.0]}),
    "DETR3D, no velocity": (DETR3DHead, {"code_size": 8}),
    "DETR3D, softmax": (DETR3DHead, {"loss_cls": SOFTMAX, "bg_cls_weight": 0.1, "assigner": SOFTMAX_ASSIGNER}),
    "DETR3D, streaming code": (DETR3DHead, {"box_code": "streampetr"}),
    "PETR": (PETRHead, {"box_code": "petr"}),
    "PETR, ranks": (PETRHead, {"box_code": "petr", "sync_cls_avg_factor": True}),
    "PETR, no velocity": (PETRHead, {"box_code": "petr", "code_size": 8}),
    "PETR, smooth L1": (PETRHead, {"box_code": "petr", "loss_bbox": {"type": "mmdet.SmoothL1Loss", "beta": 0.5}}),
    "BEVFormer": (BEVFormerHead, {}),
    "BEVFormer, balanced L1": (BEVFormerHead, {"loss_bbox": {"type": "mmdet.BalancedL1Loss", "gamma": 1.0}}),
    "BEVFormer, groups": (BEVFormerHead, {"group_detr": 3}),
    "one-to-many": (HybridHead, {}),
}
heads = pytest.mark.parametrize("name", HEADS)


def build(name, batched, **changes):
    stock, options = HEADS[name]
    options = copy.deepcopy({**options, **changes})
    if not batched:
        return stock(**options)
    if stock is HybridHead:
        return BatchedHybridHead(**options)
    return batched_head(stock, average_over_ranks=stock.averages)(**options)


def case(name, sizes=SIZES, layers=2, dtype=torch.float64, seed=0, queries=9):
    """Both heads, objects and predictions."""
    stock, ours = build(name, batched=False), build(name, batched=True)
    queries = 18 if name == "one-to-many" else queries
    proposals = 15 if name in ("DETR3D", "PETR") else 0
    return (
        stock,
        ours,
        ground_truth(sizes, stock.code_size, seed),
        predictions(stock, len(sizes), layers, queries, proposals, dtype, seed),
    )


# -- equal losses and gradients --------------------------------------------------------------------------


@heads
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("sizes", [SIZES, [0, 0], [4]], ids=str)
def test_losses_and_gradients_are_the_published_heads(name, dtype, sizes):
    found, grads = compare(*case(name, sizes, dtype=dtype))
    assert all(value.isfinite() for value in found.values()) and all(grad.isfinite().all() for grad in grads)
    assert ("enc_loss_cls" in found) == (name in ("DETR3D", "PETR"))
    assert len(found) == (8 if name == "one-to-many" else 4) + 2 * ("enc_loss_cls" in found)
    assert (found["loss_bbox"] > 0) == any(sizes)


@heads
@pytest.mark.parametrize("layers, sizes", [(1, [2, 5]), (6, [1, 7, 0, 3, 12, 2, 0, 9])], ids=["1x2", "6x8"])
def test_layers_and_batch_sizes(name, layers, sizes):
    compare(*case(name, sizes, layers, seed=1))


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(HEADS)),
    sizes=st.lists(st.integers(0, 14), min_size=1, max_size=5),
    layers=st.sampled_from([1, 2, 3]),
    queries=st.sampled_from([3, 12]),
    seed=st.integers(0, 10**6),
)
def test_random_cases(name, sizes, layers, queries, seed):
    compare(*case(name, sizes, layers, seed=seed, queries=queries))


@heads
def test_all_objects_equal(name):
    stock, ours, instances, preds = case(name, [4, 3])
    for one in instances:
        one.bboxes_3d.tensor[:] = one.bboxes_3d.tensor[:1].clone()
        one.labels_3d[:] = 2
    compare(stock, ours, instances, preds)


@heads
@pytest.mark.parametrize("column, value", [(3, 0.5), (-1, float("nan")), (-2, float("inf"))])
def test_objects_that_are_not_finite_are_classified_but_not_regressed(name, column, value):
    """Velocities are NaN for objects without a past; the cost does not see them."""
    stock, ours, instances, preds = case(name, [4, 3])
    if stock.code_size == 10:
        instances[0].bboxes_3d.tensor[1, column] = value
    found, grads = compare(stock, ours, instances, preds)
    assert all(value.isfinite() for value in found.values()) and all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("name", ["PETR", "PETR, smooth L1", "DETR3D, streaming code"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("where", ["logits", "boxes", "layer"])
def test_predictions_that_are_not_finite(name, value, where):
    """Where costs are replaced, losses are numbers: 0 for NaN, as published."""
    stock, ours, instances, preds = case(name, [4, 0, 12])
    with torch.no_grad():
        if where == "logits":
            preds["all_cls_scores"][0, 0, 4:7, 1] = value
        elif where == "boxes":
            preds["all_bbox_preds"][0, 2, :5, 3] = value
        else:
            preds["all_cls_scores"][1], preds["all_bbox_preds"][1] = value, value
    if "smooth" in name:  # mmdet's smooth L1 has NaN slopes there, ours 0
        found, wanted = run(ours, instances, preds)[0], run(stock, instances, preds)[0]
        assert all(torch.allclose(found[key], wanted[key], rtol=1e-10) for key in wanted)
    else:
        found, _ = compare(stock, ours, instances, preds)
    assert all(value.isfinite() for value in found.values())


def test_problems_without_a_solution_are_not_silent():
    stock, ours, instances, preds = case("DETR3D", layers=3)
    with torch.no_grad():
        preds["all_bbox_preds"][1, 0, 4, 2] = torch.nan
    with pytest.raises(ValueError, match="invalid numeric entries"):
        run(stock, instances, preds)
    found, grads = run(ours, instances, preds)
    assert {key for key, value in found.items() if value.isnan()} == {"d1.loss_bbox"}
    assert all(grad[[0, 2]].isfinite().all() for grad in grads[:2])


def test_boxes_of_background_do_not_count():
    stock, ours, instances, preds = case("DETR3D")
    wanted, _ = run(ours, instances, preds)
    with torch.no_grad():
        preds["all_bbox_preds"][:, 1] = torch.nan  # of the sample without objects
    found, grads = compare(stock, ours, instances, preds)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("name", ["DETR3D", "PETR", "DETR3D, softmax"])
def test_labels_out_of_range_are_background(name):
    _, ours, instances, preds = case(name, [2])
    instances[0].labels_3d[:] = torch.tensor([-1, NUM_CLASSES + 3])
    found, grads = run(ours, instances, preds)
    assert all(value.isfinite() for value in found.values()) and all(grad.isfinite().all() for grad in grads)
    assert found["loss_bbox"] > 0


def test_codes_of_both_families_differ():
    """Twins in everything but the code: the same predictions have other losses."""
    losses = []
    for name in ("DETR3D", "PETR"):
        _, ours, instances, preds = case(name)
        losses.append(run(ours, instances, preds)[0])
    assert not torch.allclose(losses[0]["loss_bbox"], losses[1]["loss_bbox"], rtol=1e-3)


@pytest.mark.parametrize("kind", [LiDARInstance3DBoxes, DepthInstance3DBoxes, CameraInstance3DBoxes])
def test_boxes_of_any_frame(kind):
    """Their centre of gravity is theirs to say."""
    stock, ours, instances, preds = case("DETR3D", [3, 2])
    for one in instances:
        one.bboxes_3d = kind(one.bboxes_3d.tensor, box_dim=9)
    compare(stock, ours, instances, preds)


def test_samples_without_objects_may_have_boxes_of_any_width():
    _, ours, instances, preds = case("DETR3D", [3, 0])
    wanted, _ = run(ours, instances, preds)
    instances[1].bboxes_3d = LiDARInstance3DBoxes(torch.zeros(0, 7))
    found, _ = run(ours, instances, preds)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@heads
def test_packed_objects_give_the_same_numbers(name):
    _, ours, instances, preds = case(name)
    (wanted, wanted_grads), (found, found_grads) = run(ours, instances, preds), run(ours, packed(instances), preds)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert all(torch.equal(one, other) for one, other in zip(found_grads, wanted_grads, strict=True))


# -- what the device and other ranks are asked -----------------------------------------------------------


@pytest.mark.skipif(not _extension.COMPILED, reason="SciPy's solver copies to the host and back")
@heads
def test_nothing_waits_for_the_device(name):
    stock, ours, instances, preds = case(name, dtype=torch.float32)
    method = "loss" if isinstance(ours, BEVFormerHead) else "loss_by_feat"
    with HostSyncCounter("cpu") as syncs:
        losses = getattr(ours, method)(*arguments(ours, instances), preds)
        sum(losses.values()).backward()
    assert dict(syncs.by_kind) == {}
    with HostSyncCounter("cpu") as syncs:
        run(stock, instances, preds)
    assert syncs.count > 0


@heads
def test_counts_of_all_layers_are_averaged_at_once_or_not_at_all(name, monkeypatch):
    calls = []

    def mean(counts):
        calls.append(counts)
        return counts * 1.5

    _, ours, instances, preds = case(name)
    alone, _ = run(ours, instances, preds)
    monkeypatch.setattr(module, "mean_over_processes", mean)
    found, _ = run(ours, instances, preds)
    averages = HEADS[name][0].averages
    assert len(calls) == averages
    for key, value in alone.items():
        scaled = averages and ("bbox" in key or ours.sync_cls_avg_factor)
        torch.testing.assert_close(found[key] * (1.5 if scaled else 1.0), value, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_are_converted(dtype):
    _, ours, instances, preds = case("DETR3D")
    halved = {key: value.detach().to(dtype) for key, value in preds.items()}
    whole = {key: value.float() for key, value in halved.items()}
    found, wanted = ours.loss_by_feat(instances, halved), ours.loss_by_feat(instances, whole)
    assert all(torch.equal(found[key], wanted[key]) and found[key].dtype == torch.float32 for key in wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = ours.loss_by_feat(instances, whole)
    assert all(torch.equal(mixed[key], wanted[key]) for key in wanted)


# -- as a user writes it ---------------------------------------------------------------------------------


@pytest.fixture
def projects():
    """The three heads, registered as their projects do."""
    kinds = [DETR3DHead, PETRHead, BEVFormerHead]
    for kind in kinds:
        MODELS.register_module(module=kind)
    yield
    for kind in kinds:
        del MODELS.module_dict[kind.__name__]


@pytest.mark.parametrize("name", ["DETR3D", "PETR", "BEVFormer"])
def test_config_changes_the_type(projects, name):
    stock, options = HEADS[name]
    ours, theirs = (MODELS.build({"type": prefix + stock.__name__, **options}) for prefix in ("Batched", ""))
    assert type(ours).__name__ == f"Batched{stock.__name__}" and isinstance(ours, stock)
    assert ours.average_over_ranks is stock.averages
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    _, _, instances, preds = case(name)
    compare(theirs, ours, instances, preds)


def test_the_stock_loss_can_be_asked_for_beside_the_batched_one():
    """As the page shows, to check a head of one's own."""
    _, ours, instances, preds = case("DETR3D")
    batched, stock = ours.loss_by_feat(instances, preds), DETR3DHead.loss_by_feat(ours, instances, preds)
    assert list(batched) == list(stock)
    assert all(torch.allclose(batched[key], stock[key], rtol=1e-10) for key in stock)


def test_a_project_that_is_not_imported_is_asked_for():
    with pytest.raises(ValueError, match=r"no PETRHead is registered: name the project that has it in custom_imports"):
        MODELS.build({"type": "BatchedPETRHead"})


def test_a_head_of_ones_own():
    class MyHead(DETR3DHead):
        """Layers of its own would be here."""

    class BatchedMyHead(BatchedSetPrediction3DMixin, MyHead):
        def loss_by_feat(self, *args, **kwargs):
            losses = super().loss_by_feat(*args, **kwargs)
            return {**losses, "loss_extra": losses["loss_cls"] * 0.5}

    _, ours, instances, preds = case("DETR3D")
    wanted, _ = run(ours, instances, preds)
    found, _ = run(BatchedMyHead(), instances, preds)
    assert torch.equal(found.pop("loss_extra"), 0.5 * wanted["loss_cls"])
    assert all(torch.equal(found[key], wanted[key]) for key in wanted) and len(found) == len(wanted)


def test_methods_that_take_something_else_stay_the_heads():
    class Named(BEVFormerHead):
        def loss_by_feat(self, features):
            return f"own {features}"

    assert batched_head(Named)().loss_by_feat("features") == "own features"
    assert batched_head(DETR3DHead) is batched_head(DETR3DHead)

    class Trained(DETR3DHead):
        def loss(self, features, samples):
            return f"{samples} of {features}"

    assert batched_head(Trained)().loss("features", samples="samples") == "samples of features"


def test_other_targets_are_refused():
    class InFront(BatchedSetPrediction3DMixin, DETR3DHead):
        def get_targets(self, *args):
            return args

    class NoHead(BatchedSetPrediction3DMixin, torch.nn.Module):
        pass

    class WrongMixin(BatchedSetPredictionMixin, DETR3DHead):
        pass

    with pytest.raises(ValueError, match="InFront cannot batch the loss: InFront has its own get_targets"):
        InFront()
    with pytest.raises(ValueError, match="NoHead must name the mixin in front of a head whose loss_by_feat or loss"):
        NoHead()
    with pytest.raises(ValueError, match=r"WrongMixin must name the mixin in front of .*BatchedSetPrediction3DMixin"):
        WrongMixin()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"assigner": {**ASSIGNER, "type": "FewArguments"}}, "needs an assigner with assign_batch and encode, got Few"),
        (
            {"loss_cls": {"type": "mmdet.QualityFocalLoss"}},
            "of the types FocalLoss, CrossEntropyLoss, got Qualit",
        ),
        ({"loss_cls": {**FOCAL, "reduction": "sum"}}, "implements loss_cls with reduction='mean' only, got 'sum'"),
        (
            {"loss_bbox": {"type": "mmdet.MSELoss"}},
            "BatchedDETR3DHead implements loss_bbox of the types L1Loss, SmoothL1Loss, BalancedL1Loss, got MSELoss",
        ),
        ({"code_weights": [1.0] * 8}, "needs as many code_weights as its code_size, 10, got 8"),
        ({"loss_cls": {**SOFTMAX, "class_weight": [1.0, 2.0]}}, "one number for each of the 7 classes with background"),
    ],
)
def test_what_is_not_implemented_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        build("DETR3D", batched=True, **changes)


@detr3d_heads.TASK_UTILS.register_module()
class FewArguments:
    """Assigns one sample at a time."""

    def __init__(self, **_):
        pass


def _changed(preds, **changes):
    return {key: change(preds[key]) if (change := changes.get(key)) else value for key, value in preds.items()}


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"all_cls_scores": lambda t: t[..., :4]},
            r"decoder scores must be \[L, B, P, 6\] and boxes \[L, B, P, 10\] with this head's code_size, "
            r"got \(2, 3, 9, 4\) and \(2, 3, 9, 10\)",
        ),
        ({"all_bbox_preds": lambda t: t[..., :8]}, r"code_size, got \(2, 3, 9, 6\) and \(2, 3, 9, 8\)"),
        ({"all_bbox_preds": lambda t: t[:1]}, r"got \(2, 3, 9, 6\) and \(1, 3, 9, 10\)"),
        ({"enc_bbox_preds": lambda t: t[:, 1:]}, r"encoder scores must be \[B, Q, 6\] and boxes \[B, Q, 10\]"),
        (
            {key: lambda t: t.repeat(4, 1, 1, 1) for key in ("all_cls_scores", "all_bbox_preds")},
            "BatchedDETR3DHead must have predictions of 1 to 6 decoder layers, got 8",
        ),
        (
            {key: lambda t: t[:0] for key in ("all_cls_scores", "all_bbox_preds")},
            "must have predictions of 1 to 6 decoder layers, got 0",
        ),
    ],
)
def test_wrong_predictions(changes, message):
    _, ours, instances, preds = case("DETR3D")
    with pytest.raises(ValueError, match=message):
        ours.loss_by_feat(instances, _changed(preds, **changes))


def test_wrong_objects():
    _, ours, instances, preds = case("DETR3D")

    def check(message, sample, **changes):
        changed = [InstanceData(**{**one, **(changes if i == sample else {})}) for i, one in enumerate(parts)]
        with pytest.raises(ValueError, match=message):
            ours.loss_by_feat(changed, preds)

    parts = [{"bboxes_3d": one.bboxes_3d, "labels_3d": one.labels_3d} for one in instances]
    elsewhere = LiDARInstance3DBoxes(torch.zeros(0, 9, device="meta"), box_dim=9)
    check(r"device of the predictions, cpu, got those of sample 1 on meta \(boxes\) and cpu", 1, bboxes_3d=elsewhere)
    labels = torch.zeros(3, dtype=torch.long, device="meta")
    check(r"got those of sample 0 on cpu \(boxes\) and meta \(labels\)", 0, labels_3d=labels)
    narrow = LiDARInstance3DBoxes(torch.ones(3, 7))
    check("code_size 10 needs boxes of 9 numbers, got those of sample 0 with 7", 0, bboxes_3d=narrow)
    with pytest.raises(ValueError, match="predictions are of 3 samples, got boxes of 2 and labels of 2"):
        ours.loss_by_feat(instances[:2], preds)
    with pytest.raises(ValueError, match="no ignored boxes: batch_gt_instances_3d_ignore must be None"):
        ours.loss_by_feat(instances, preds, batch_gt_instances_3d_ignore=[])
    with pytest.raises(ValueError, match="was built without train_cfg, which names its assigner"):
        build("DETR3D", batched=True, assigner=None).loss_by_feat(instances, preds)
    _, ours, instances, preds = case("PETR")
    boxes, labels = arguments(ours, instances)
    with pytest.raises(ValueError, match="sample 2 must have one label for each box, got 11 for 12"):
        ours.loss_by_feat(boxes, [*labels[:2], labels[2][1:]], preds)
    with pytest.raises(ValueError, match="predictions are of 3 samples, got boxes of 1 and labels of 3"):
        ours.loss_by_feat(boxes[:1], labels, preds)
    _, ours, instances, preds = case("BEVFormer, groups", queries=9)
    with pytest.raises(ValueError, match="needs as many queries in each of 3 groups, got 8"):
        ours.loss(*arguments(ours, instances), {**preds, **{key: preds[key][:, :, :8] for key in list(preds)[:2]}})
