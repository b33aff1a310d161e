"""Heads of mmdet as installed against the same heads with the batched loss: keys, values, gradients.

Run as a program by torchrun, this file compares both on two ranks.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import mmdet3d.models
    from mmdet.models.dense_heads import DeformableDETRHead, DETRHead, DINOHead
    from mmdet.registry import MODELS
    from mmdet.structures import DetDataSample
    from mmengine.config import Config
    from mmengine.registry import DefaultScope
    from mmengine.structures import InstanceData

import raggedbev.mm.heads.set_prediction as module
from raggedbev import _extension
from raggedbev.mm.heads import BatchedDETRHead, BatchedDINOHead, BatchedSetPredictionMixin
from raggedbev.profiling.syncs import HostSyncCounter

C, P, GROUPS = 5, 9, 2
SIZES = [3, 0, 12]
SHAPES = [(90, 120), (100, 100), (64, 96), (128, 80)]
FOCAL = {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 2.0}
QUALITY = {"type": "QualityFocalLoss", "use_sigmoid": True, "beta": 2.0, "loss_weight": 1.5}
SOFTMAX = {"type": "CrossEntropyLoss", "bg_cls_weight": 0.1, "use_sigmoid": False, "class_weight": 1.0}
BOXES = [
    {"type": "BBoxL1Cost", "weight": 5.0, "box_format": "xywh"},
    {"type": "IoUCost", "iou_mode": "giou", "weight": 2.0},
]
LISTED = {"type": "CrossEntropyLoss", "class_weight": [0.5, 1.0, 2.0, 1.0, 1.0, 0.2], "loss_weight": 3.0}
HEADS = {
    "DETRHead": {"loss_cls": SOFTMAX},
    "DETRHead, ranks": {"loss_cls": SOFTMAX, "sync_cls_avg_factor": True},
    "DETRHead, focal": {"loss_cls": FOCAL},
    "ConditionalDETRHead": {"loss_cls": FOCAL},
    "ConditionalDETRHead, class weights": {"loss_cls": LISTED},
    "ConditionalDETRHead, smooth L1": {"loss_cls": FOCAL, "loss_bbox": {"type": "SmoothL1Loss", "beta": 0.3}},
    "DABDETRHead": {"loss_cls": {**FOCAL, "loss_weight": 1.0, "gamma": 1.5, "alpha": 0.3}},
    "DABDETRHead, balanced L1": {"loss_cls": FOCAL, "loss_bbox": {"type": "BalancedL1Loss", "beta": 0.2, "gamma": 1}},
    "DeformableDETRHead": {"loss_cls": FOCAL, "sync_cls_avg_factor": True},
    "DeformableDETRHead, two stages": {"loss_cls": FOCAL, "sync_cls_avg_factor": True, "as_two_stage": True},
    "DINOHead": {"loss_cls": FOCAL, "sync_cls_avg_factor": True, "as_two_stage": True},
    "DINOHead, quality": {"loss_cls": QUALITY, "as_two_stage": True},
}
heads = pytest.mark.parametrize("name", HEADS)


@contextmanager
def mmdet():
    """As in a run of an mmdet config; mmdet's warnings of its own calls are left out."""
    with DefaultScope.overwrite_default_scope("mmdet"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def default_dtype(dtype):
    """mmdet makes the boxes of denoising queries in the default type, whatever the predictions are."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def build(name, batched, assigner=None, **changes):
    options = copy.deepcopy(HEADS[name]) | changes
    kind = name.split(",")[0]
    prefix = "Batched" if batched else ""
    softmax = options["loss_cls"]["type"] == "CrossEntropyLoss"
    cls_cost = {"type": "ClassificationCost"} if softmax else {"type": "FocalLossCost", "weight": 2.0}
    assigner = assigner or f"{prefix}HungarianAssigner"
    train_cfg = {"assigner": {"type": assigner, "match_costs": copy.deepcopy([cls_cost, *BOXES])}}
    config = {"type": prefix + kind, "num_classes": C, "embed_dims": 8, "train_cfg": train_cfg}
    config |= {"test_cfg": {"max_per_img": 5}, **options}
    with mmdet():
        return MODELS.build(config)


def case(name, channels, sizes=SIZES, layers=2, dtype=torch.float64, seed=0, queries=P):
    """Arguments of `loss_by_feat` by name; and the predictions among them, which require gradients."""
    g = torch.Generator().manual_seed(seed)
    metas = [{"img_shape": SHAPES[i % len(SHAPES)]} for i in range(len(sizes))]

    def corners(count, shape):
        size = torch.tensor([shape[1], shape[0]], dtype=dtype)
        low = torch.rand(count, 2, generator=g, dtype=dtype) * size * 0.6
        return torch.cat([low, low + (torch.rand(count, 2, generator=g, dtype=dtype) * 0.35 + 0.02) * size], dim=1)

    truth = [
        InstanceData(bboxes=corners(n, meta["img_shape"]), labels=torch.randint(0, C, (n,), generator=g))
        for n, meta in zip(sizes, metas, strict=True)
    ]

    def outputs(*lead):
        logits = torch.randn(*lead, channels, generator=g, dtype=dtype) * 2
        boxes = torch.rand(*lead, 4, generator=g, dtype=dtype) * 0.4 + 0.1
        return logits.requires_grad_(), boxes.requires_grad_()

    denoising = GROUPS * 2 * max(sizes) if name.startswith("DINO") else 0
    names = ("all_layers_cls_scores", "all_layers_bbox_preds")
    given = dict(zip(names, outputs(layers, len(sizes), denoising + queries), strict=True))
    if name.startswith(("DINO", "Deformable")):
        two_stage = HEADS[name].get("as_two_stage", False)
        proposals = outputs(len(sizes), 20) if two_stage else (None, None)
        given |= dict(zip(("enc_cls_scores", "enc_bbox_preds"), proposals, strict=True))
    preds = [value for value in given.values() if value is not None]
    given |= {"batch_gt_instances": truth, "batch_img_metas": metas}
    if name.startswith("DINO"):
        given["dn_meta"] = {"num_denoising_queries": denoising, "num_denoising_groups": GROUPS}
    return given, preds


def run(head, given, preds):
    """Losses as scalars, and the gradients of their sum with factors of their own."""
    for pred in preds:
        pred.grad = None
    with mmdet(), default_dtype(preds[0].dtype):
        losses = {key: value.sum() for key, value in head.loss_by_feat(**given).items()}
    sum(value * (1 + 0.1 * i) for i, value in enumerate(losses.values())).backward()
    return losses, [pred.grad for pred in preds]


def compare(name, dtype, **options):
    with default_dtype(dtype):
        stock, ours = build(name, batched=False), build(name, batched=True)
    given, preds = case(name, stock.cls_out_channels, dtype=dtype, **options)
    wanted, wanted_grads = run(stock, given, preds)
    found, found_grads = run(ours, given, preds)
    tolerance = {"rtol": 1e-10, "atol": 1e-13} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-7}
    assert list(found) == list(wanted)
    for key, value in wanted.items():
        assert found[key].dtype == value.dtype
        torch.testing.assert_close(found[key], value, **tolerance, msg=lambda m, key=key: f"{key}: {m}")
    for one, other in zip(found_grads, wanted_grads, strict=True):
        scale = float(other.abs().max())
        torch.testing.assert_close(one, other, rtol=tolerance["rtol"], atol=tolerance["rtol"] * scale)
    return found


@heads
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("sizes", [SIZES, [0, 0], [4]], ids=str)
def test_losses_and_gradients_are_the_stock_heads(name, dtype, sizes):
    found = compare(name, dtype, sizes=sizes)
    assert all(value.isfinite() for value in found.values())
    per_layer = 1 + name.startswith("DINO")
    assert len(found) == 3 * (2 * per_layer + HEADS[name].get("as_two_stage", False))


@heads
@pytest.mark.parametrize("sizes", [SIZES, [0, 0]], ids=str)
def test_packed_objects_give_the_same_numbers(name, sizes):
    from .packing import packed  # not at the top: this file is a script of two ranks, too

    with default_dtype(torch.float32):
        head = build(name, batched=True)
    given, preds = case(name, head.cls_out_channels, sizes=sizes, dtype=torch.float32)
    expected, gradients = run(head, given, preds)
    given = given | {"batch_gt_instances": packed(given["batch_gt_instances"], "gt_instances")}
    found, found_gradients = run(head, given, preds)
    assert all(torch.equal(found[key], loss) for key, loss in expected.items())
    assert all(torch.equal(one, other) for one, other in zip(found_gradients, gradients, strict=True))


@heads
@pytest.mark.parametrize("layers, sizes", [(1, [2, 5]), (6, [1, 7, 0, 3, 12, 2, 0, 9])], ids=["1x2", "6x8"])
def test_layers_and_batch_sizes(name, layers, sizes):
    compare(name, torch.float64, layers=layers, sizes=sizes, seed=1)


@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(sorted(HEADS)),
    sizes=st.lists(st.integers(0, 14), min_size=1, max_size=6),
    layers=st.sampled_from([1, 2, 3]),
    queries=st.sampled_from([3, 7, 12]),
    seed=st.integers(0, 10**6),
)
def test_random_cases(name, sizes, layers, queries, seed):
    compare(name, torch.float64, sizes=sizes, layers=layers, seed=seed, queries=queries)


def test_more_objects_than_queries():
    found = compare("DETRHead", torch.float64, sizes=[12, 30], queries=4)
    assert all(value > 0 for value in found.values())


def test_denoising_without_queries_of_its_own():
    """Without dn_meta all queries are matched, where mmdet's head stops with a TypeError."""
    head = build("DINOHead", batched=True)
    given, preds = case("DINOHead", C)
    found, _ = run(head, {**given, "dn_meta": None}, preds)
    assert list(found) == [
        *("loss_cls", "loss_bbox", "loss_iou", "d0.loss_cls", "d0.loss_bbox", "d0.loss_iou"),
        *("enc_loss_cls", "enc_loss_bbox", "enc_loss_iou"),
    ]


# -- what the device is asked ----------------------------------------------------------------------------


@pytest.mark.skipif(not _extension.COMPILED, reason="SciPy's solver copies to the host and back")
@heads
@pytest.mark.parametrize("sizes", [SIZES, [0, 0]], ids=str)
def test_nothing_waits_for_the_device(name, sizes):
    head = build(name, batched=True)
    given, _ = case(name, head.cls_out_channels, sizes=sizes, dtype=torch.float32)
    with HostSyncCounter("cpu") as syncs:
        losses = head.loss_by_feat(**given)
        sum(losses.values()).backward()
    assert dict(syncs.by_kind) == {}
    with HostSyncCounter("cpu") as syncs, mmdet():
        build(name, batched=False).loss_by_feat(**given)
    assert syncs.count > 0


@heads
def test_counts_of_all_layers_are_averaged_at_once(name, monkeypatch):
    calls = []

    def mean(counts):
        calls.append(counts)
        return counts * 1.5

    monkeypatch.setattr(module, "mean_over_processes", mean)
    head = build(name, batched=True)
    given, preds = case(name, head.cls_out_channels)
    found, _ = run(head, given, preds)
    monkeypatch.undo()
    alone, _ = run(head, given, preds)
    assert len(calls) == 1
    for key, value in alone.items():
        scaled = 1.5 if "cls" not in key or head.sync_cls_avg_factor else 1.0
        torch.testing.assert_close(found[key] * scaled, value, rtol=1e-6, atol=0)


def test_two_ranks():
    """One all_reduce in place of one or two per layer, none in heads without averages; one rank has no objects."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.count("equal") == 2


# -- values that are not finite --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["DETRHead", "DINOHead"])
def test_all_objects_equal(name):
    stock, ours = build(name, batched=False), build(name, batched=True)
    with default_dtype(torch.float64):
        given, preds = case(name, stock.cls_out_channels, sizes=[4, 3])
    for truth in given["batch_gt_instances"]:
        truth.bboxes[:], truth.labels[:] = truth.bboxes[:1].clone(), 2
    (wanted, wanted_grads), (found, found_grads) = run(stock, given, preds), run(ours, given, preds)
    assert all(torch.allclose(found[key], wanted[key], rtol=1e-10) for key in wanted)
    assert all(torch.allclose(one, other, rtol=1e-9) for one, other in zip(found_grads, wanted_grads, strict=True))


def test_problems_without_a_solution_are_not_silent():
    head = build("DETRHead", batched=True)
    given, preds = case("DETRHead", head.cls_out_channels, layers=3)
    with torch.no_grad():
        preds[1][1, 0, 4, 2] = torch.nan
    with pytest.raises(ValueError, match="invalid numeric entries"):
        run(build("DETRHead", batched=False), given, preds)
    found, grads = run(head, given, preds)
    bad = {key for key, value in found.items() if value.isnan()}
    assert bad == {"d1.loss_bbox", "d1.loss_iou"}
    assert all(grad[[0, 2]].isfinite().all() for grad in grads)


def test_boxes_of_background_do_not_count():
    head = build("DETRHead", batched=True)
    given, preds = case("DETRHead", head.cls_out_channels)
    wanted, _ = run(head, given, preds)
    with torch.no_grad():
        preds[1][:, 1] = torch.nan  # of the image without objects
    found, grads = run(head, given, preds)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("name", ["DETRHead", "DETRHead, focal"])
def test_labels_out_of_range_are_background(name):
    head = build(name, batched=True)
    given, preds = case(name, head.cls_out_channels, sizes=[2])
    given["batch_gt_instances"][0].labels[:] = torch.tensor([-1, C + 3])
    found, grads = run(head, given, preds)
    assert all(value.isfinite() for value in found.values()) and all(grad.isfinite().all() for grad in grads)
    assert found["loss_bbox"] > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_are_converted(dtype):
    head = build("DINOHead", batched=True)
    given, _ = case("DINOHead", C)
    halved = {key: value.to(dtype) if isinstance(value, torch.Tensor) else value for key, value in given.items()}
    whole = {key: value.float() if isinstance(value, torch.Tensor) else value for key, value in halved.items()}
    found, wanted = head.loss_by_feat(**halved), head.loss_by_feat(**whole)
    assert all(torch.equal(found[key], wanted[key]) and found[key].dtype == torch.float32 for key in wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = head.loss_by_feat(**whole)
    assert all(torch.equal(mixed[key], wanted[key]) for key in wanted)


# -- as a user writes it ---------------------------------------------------------------------------------


CONFIG = """
_base_ = ['mmdet::{base}']
custom_imports = dict(imports=['raggedbev.mm'], allow_failed_imports=False)
model = dict(
    bbox_head=dict(type='Batched{head}'),
    train_cfg=dict(assigner=dict(type='BatchedHungarianAssigner')))
"""
CONFIGS = {
    "DETRHead": "detr/detr_r50_8xb2-150e_coco.py",
    "ConditionalDETRHead": "conditional_detr/conditional-detr_r50_8xb2-50e_coco.py",
    "DABDETRHead": "dab_detr/dab-detr_r50_8xb2-50e_coco.py",
    "DeformableDETRHead": "deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py",
    "DINOHead": "dino/dino-4scale_r50_8xb2-12e_coco.py",
}


def head_config(model, **changes):
    """What the detector hands to its head."""
    return {**model["bbox_head"], "train_cfg": model["train_cfg"], "test_cfg": model["test_cfg"], **changes}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("scope", ["mmdet", "mmdet3d"])
def test_config_changes_two_types(tmp_path, kind, scope):
    path = tmp_path / "config.py"
    path.write_text(CONFIG.format(base=CONFIGS[kind], head=kind))
    model = Config.fromfile(path).model
    model.setdefault("test_cfg", None)
    scoped = {} if scope == "mmdet" else {"_scope_": "mmdet"}
    with DefaultScope.overwrite_default_scope(scope), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = MODELS.build(head_config(model, embed_dims=8, **scoped))
        model.bbox_head.type, model.train_cfg.assigner.type = kind, "HungarianAssigner"
        stock = MODELS.build(head_config(model, embed_dims=8, **scoped))
    assert type(ours).__name__ == f"Batched{kind}" and isinstance(ours, type(stock))
    assert list(ours.state_dict()) == list(stock.state_dict())
    ours.load_state_dict(stock.state_dict())
    assert ours.bg_cls_weight == stock.bg_cls_weight and ours.sync_cls_avg_factor == stock.sync_cls_avg_factor
    assert repr(ours.loss_cls) == repr(stock.loss_cls)


@pytest.mark.parametrize("name", ["DETRHead", "DABDETRHead", "DeformableDETRHead", "DINOHead"])
def test_from_hidden_states(name):
    """Through `loss` and `loss_and_predict`, as the detectors call the head."""
    stock, ours = build(name, batched=False), build(name, batched=True)
    ours.load_state_dict(stock.state_dict())
    given, _ = case(name, stock.cls_out_channels, dtype=torch.float32)
    samples = [
        DetDataSample(gt_instances=truth, metainfo={**meta, "scale_factor": (1.0, 1.0)})
        for truth, meta in zip(given["batch_gt_instances"], given["batch_img_metas"], strict=True)
    ]
    g = torch.Generator().manual_seed(4)
    queries = given["all_layers_cls_scores"].shape[2]
    inputs = [torch.randn(2, len(SIZES), queries, 8, generator=g)]
    if name != "DETRHead":
        inputs.append(torch.rand(2, len(SIZES), queries, 4, generator=g))
    more = {}
    if name in ("DeformableDETRHead", "DINOHead"):
        inputs += [given["enc_cls_scores"], given["enc_bbox_preds"]]
    if name == "DINOHead":
        more["dn_meta"] = given["dn_meta"]
    grads = []
    for head in (stock, ours):
        with mmdet():
            losses = head.loss(*inputs, batch_data_samples=samples, **more)
        sum(value.sum() for value in losses.values()).backward()
        grads.append([p.grad for p in head.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) > 4
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))
    if name in ("DETRHead", "DABDETRHead"):
        losses, predictions = ours.loss_and_predict(*inputs, batch_data_samples=samples)
        assert len(losses) == 6 and len(predictions) == len(SIZES)


@pytest.mark.parametrize("scope", ["mmdet", "mmdet3d"])
def test_names_need_no_scope(scope):
    registry = {"mmdet": MODELS, "mmdet3d": mmdet3d.registry.MODELS}[scope]
    assert registry.get("BatchedDINOHead") is BatchedDINOHead
    assert registry.get("BatchedDETRHead") is BatchedDETRHead


FRESH = """
import sys, warnings
warnings.simplefilter("ignore")
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
model = Config.fromfile(sys.argv[1]).model
assert "raggedbev.mm.heads" not in sys.modules
with DefaultScope.overwrite_default_scope("mmdet"):
    head = MODELS.build({**model.bbox_head, "train_cfg": model.train_cfg})
print(type(head).__name__, type(head.assigner).__name__)
"""


def test_config_in_a_fresh_process(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(CONFIG.format(base=CONFIGS["DINOHead"], head="DINOHead"))
    command = [sys.executable, "-c", FRESH, str(path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.split() == ["BatchedDINOHead", "BatchedHungarianAssigner"]


def test_a_head_of_ones_own():
    class MyHead(DINOHead):
        """Layers of its own would be here."""

    class BatchedMyHead(BatchedSetPredictionMixin, MyHead):
        def loss_by_feat(self, *args, **kwargs):
            losses = super().loss_by_feat(*args, **kwargs)
            return {**losses, "loss_extra": losses["loss_cls"] * 0.5}

    config = dict(num_classes=C, embed_dims=8, loss_cls=FOCAL, as_two_stage=True)
    costs = [{"type": "FocalLossCost", "weight": 2.0}, *BOXES]
    with mmdet():
        head = BatchedMyHead(
            **config, train_cfg={"assigner": {"type": "BatchedHungarianAssigner", "match_costs": costs}}
        )
    given, preds = case("DINOHead", C)
    wanted, _ = run(build("DINOHead", batched=True, sync_cls_avg_factor=False), given, preds)
    found, _ = run(head, given, preds)
    assert torch.equal(found.pop("loss_extra"), 0.5 * wanted["loss_cls"])
    assert all(torch.equal(found[key], wanted[key]) for key in wanted) and len(found) == len(wanted)


def test_other_targets_are_refused():
    class OtherTargets(DeformableDETRHead):
        def get_targets(self, *args):
            return super().get_targets(*args)

    class BehindTheMixin(BatchedSetPredictionMixin, OtherTargets):
        pass

    class InFrontOfTheMixin(BatchedSetPredictionMixin, DETRHead):
        def loss_by_feat_single(self, *args):
            return super().loss_by_feat_single(*args)

    class WrongOrder(DETRHead, BatchedSetPredictionMixin):
        pass

    for kind, message in (
        (BehindTheMixin, "BehindTheMixin cannot batch the loss: OtherTargets has its own get_targets"),
        (InFrontOfTheMixin, "cannot batch the loss: InFrontOfTheMixin has its own loss_by_feat_single"),
    ):
        with mmdet(), pytest.raises(ValueError, match=message):
            kind(num_classes=C, embed_dims=8, loss_cls=FOCAL, train_cfg=None)
    with pytest.raises(ValueError, match="WrongOrder must name the mixin in front of a head"):
        module._check_methods(WrongOrder)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"assigner": "HungarianAssigner"}, "needs an assigner with assign_batch, got HungarianAssigner; use Batched"),
        (
            {"loss_cls": {"type": "GHMC"}},
            "BatchedDETRHead implements loss_cls of the types FocalLoss, CrossEntropyLoss",
        ),
        ({"loss_cls": {**FOCAL, "activated": True}}, "implements FocalLoss of logits with use_sigmoid=True only"),
        ({"loss_cls": {**FOCAL, "reduction": "sum"}}, "implements loss_cls with reduction='mean' only, got 'sum'"),
        (
            {"loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True}},
            "CrossEntropyLoss as softmax without ignore_",
        ),
        ({"loss_cls": {**SOFTMAX, "class_weight": [1.0] * 6}}, "class_weight and bg_cls_weight .* must be floats, got"),
        (
            {"loss_bbox": {"type": "MSELoss"}},
            "implements loss_bbox of the types L1Loss, SmoothL1Loss, BalancedL1Loss, got MSELoss",
        ),
        ({"loss_bbox": {"type": "SmoothL1Loss", "beta": 0.0}}, "beta of SmoothL1 must be above 0, got 0.0"),
        ({"loss_iou": {"type": "DIoULoss"}}, "implements loss_iou of the types GIoULoss, got DIoULoss"),
        ({"loss_iou": {"type": "GIoULoss", "reduction": "none"}}, "loss_iou with reduction='mean' only, got 'none'"),
    ],
)
def test_what_is_not_implemented_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        build("DETRHead", batched=True, **changes)


def test_class_weights_of_another_length():
    loss = {**LISTED, "class_weight": [1.0, 2.0]}
    with pytest.raises(ValueError, match=r"one number for each of the 6 classes with background, got shape \(2,\)"):
        build("ConditionalDETRHead, class weights", batched=True, loss_cls=loss)


def _changed(given, **changes):
    return {key: change(given[key]) if (change := changes.get(key)) else value for key, value in given.items()}


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"all_layers_cls_scores": lambda t: t[..., :4]},
            r"all_layers_cls_scores must be \[L, B, P, 5\] and all_layers_",
        ),
        (
            {"all_layers_bbox_preds": lambda t: t[..., :3]},
            r"all_layers_bbox_preds \[L, B, P, 4\], got .*\(2, 3, 57, 3\)",
        ),
        ({"all_layers_bbox_preds": lambda t: t[:1]}, "all_layers_cls_scores must be"),
        ({"enc_bbox_preds": lambda t: t[:, 1:]}, r"enc_cls_scores must be \[B, Q, 5\] and enc_bbox_preds \[B, Q, 4\]"),
        (
            {key: lambda t: t.repeat(4, 1, 1, 1) for key in ("all_layers_cls_scores", "all_layers_bbox_preds")},
            "BatchedDINOHead must have predictions of 1 to 6 decoder layers, got 8",
        ),
        ({"batch_gt_instances": lambda t: t[1:]}, "predictions are of 3 images, got objects of 2 and img_metas of 3"),
        ({"batch_img_metas": lambda t: t[1:]}, "predictions are of 3 images, got objects of 3 and img_metas of 2"),
        (
            {"dn_meta": lambda t: {**t, "num_denoising_groups": 5}},
            "dn_meta must have groups of equal size for up to 12",
        ),
        ({"dn_meta": lambda t: {**t, "num_denoising_queries": 58}}, "within 57 queries, got num_denoising_queries=58"),
        ({"dn_meta": lambda t: {**t, "num_denoising_queries": 20}}, "num_denoising_queries=20 and num_denoising_group"),
    ],
)
def test_wrong_input(changes, message):
    given, _ = case("DINOHead", C)
    with pytest.raises(ValueError, match=message):
        build("DINOHead", batched=True).loss_by_feat(**_changed(given, **changes))


def test_wrong_objects():
    head = build("DETRHead", batched=True)
    given, _ = case("DETRHead", head.cls_out_channels)
    with pytest.raises(ValueError, match="has no ignored boxes: batch_gt_instances_ignore must be None"):
        head.loss_by_feat(**given, batch_gt_instances_ignore=[])
    elsewhere = copy.deepcopy(given["batch_gt_instances"])
    elsewhere[1] = InstanceData(bboxes=torch.zeros(0, 4, device="meta"), labels=torch.zeros(0, dtype=torch.long))
    with pytest.raises(
        ValueError, match=r"on the device of the predictions, cpu, got those of image 1 on meta \(bboxes\)"
    ):
        head.loss_by_feat(**{**given, "batch_gt_instances": elsewhere})
    with mmdet():
        unassigned = MODELS.build({"type": "BatchedDETRHead", "num_classes": C, "embed_dims": 8, "train_cfg": None})
    with pytest.raises(ValueError, match="was built without train_cfg, which names its assigner"):
        unassigned.loss_by_feat(**given)


# -- two ranks -------------------------------------------------------------------------------------------


def compare_ranks():
    """Losses and gradients of both kinds of heads, 2D and 3D; and how often the batched ones ask the other rank."""
    import torch.distributed as dist
    from mm.test_set_prediction3d_heads import HEADS as HEADS_3D
    from mm.test_set_prediction3d_heads import case as case_3d
    from mm.test_set_prediction3d_heads import compare as compare_3d
    from mm.test_set_prediction3d_heads import run as run_3d

    dist.init_process_group("gloo")
    rank, calls, reduce = dist.get_rank(), [], dist.all_reduce

    def counted(*args, **kwargs):
        calls.append(args[0].shape)
        return reduce(*args, **kwargs)

    dist.all_reduce = counted
    sizes = [0, 0] if rank else [4, 7]
    for name in HEADS:
        compare(name, torch.float64, sizes=sizes, seed=rank)
        head = build(name, batched=True)
        given, preds = case(name, head.cls_out_channels, sizes=sizes, seed=rank)
        calls.clear()
        run(head, given, preds)
        assert len(calls) == 1, f"{name}: {calls}"
    for name, (stock, _) in HEADS_3D.items():
        parts = case_3d(name, sizes, seed=rank)
        compare_3d(*parts)
        calls.clear()
        run_3d(*parts[1:])
        assert len(calls) == stock.averages, f"{name}: {calls}"
    dist.barrier()
    dist.destroy_process_group()
    print("equal", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.path.insert(0, os.fspath(Path(__file__).parents[1]))
    compare_ranks()
