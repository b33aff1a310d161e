"""mmdet's heads as installed, with the type of their assigner swapped: same costs, same pairs, same losses."""

from __future__ import annotations

import copy
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.models.dense_heads import MaskFormerHead
from mmdet.models.task_modules.assigners import HungarianAssigner
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

from raggedbev import _extension
from raggedbev.matching.cost_terms import MatchInputs
from raggedbev.mm.assigners import BatchedHungarianAssigner
from raggedbev.profiling.syncs import HostSyncCounter
from raggedbev.ragged import combine_data

NUM_CLASSES, NUM_QUERIES, NUM_LAYERS = 5, 9, 2
SIZES = [3, 0, 12]
SHAPES = [(90, 120), (100, 100), (64, 96)]
SOFTMAX = {"type": "ClassificationCost", "weight": 1.0}
FOCAL = {"type": "FocalLossCost", "weight": 2.0}
L1 = {"type": "BBoxL1Cost", "weight": 5.0, "box_format": "xywh"}
GIOU = {"type": "IoUCost", "iou_mode": "giou", "weight": 2.0}
MASK_FOCAL = {"type": "FocalLossCost", "weight": 20.0, "binary_input": True}
MASK_CE = {"type": "CrossEntropyLossCost", "weight": 5.0, "use_sigmoid": True}
DICE = {"type": "DiceCost", "weight": 5.0, "pred_act": True, "eps": 1.0}
PUBLISHED = {
    "detr": [SOFTMAX, L1, GIOU],
    "deformable detr": [FOCAL, L1, GIOU],
    "sparse rcnn": [FOCAL, {**L1, "box_format": "xyxy"}, GIOU],
    "maskformer": [SOFTMAX, MASK_FOCAL, {**DICE, "weight": 1.0}],
    "mask2former": [{**SOFTMAX, "weight": 2.0}, MASK_CE, DICE],
}


@pytest.fixture(autouse=True)
def mmdet_scope():
    """As in a run of an mmdet config, whatever other tests left behind."""
    with DefaultScope.overwrite_default_scope("mmdet"):
        yield


published = pytest.mark.parametrize("match_costs", PUBLISHED.values(), ids=PUBLISHED)


def image(size, shape, seed=0, dtype=torch.float32):
    """Predictions and objects of one image, in pixels."""
    g = torch.Generator().manual_seed(seed)

    def corners(count):
        low = torch.rand(count, 2, generator=g, dtype=dtype) * torch.tensor([shape[1], shape[0]], dtype=dtype) * 0.6
        return torch.cat([low, low + torch.rand(count, 2, generator=g, dtype=dtype) * 40 + 1], dim=1)

    preds = InstanceData(
        scores=torch.randn(NUM_QUERIES, NUM_CLASSES, generator=g, dtype=dtype) * 2,
        bboxes=corners(NUM_QUERIES),
        masks=torch.randn(NUM_QUERIES, 6, 7, generator=g) * 3,  # mmdet's costs of masks know float32 only
    )
    truth = InstanceData(
        labels=torch.randint(0, NUM_CLASSES, (size,), generator=g),
        bboxes=corners(size),
        masks=torch.randint(0, 2, (size, 6, 7), generator=g),
    )
    return preds, truth, {"img_shape": shape}


def images(dtype=torch.float32):
    return [image(n, shape, i, dtype) for i, (n, shape) in enumerate(zip(SIZES, SHAPES, strict=True))]


def stock(match_costs):
    return TASK_UTILS.build({"type": "HungarianAssigner", "match_costs": match_costs})


def ours(match_costs, **options):
    return TASK_UTILS.build({"type": "BatchedHungarianAssigner", "match_costs": match_costs, **options})


def stock_cost(match_costs, preds, truth, meta):
    return torch.stack([cost(preds, truth, meta) for cost in stock(match_costs).match_costs]).sum(0)


def our_cost(match_costs, preds, truth, meta):
    height, width = meta["img_shape"]
    size = torch.tensor([width, height], dtype=preds.bboxes.dtype)
    given = MatchInputs(
        preds.scores,
        truth.labels,
        preds.bboxes,
        truth.bboxes,
        size,
        preds.masks.flatten(1),
        truth.masks.flatten(1),
    )
    return ours(match_costs).matcher.cost(given)


@published
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_costs_are_those_of_mmdet(match_costs, dtype):
    has_masks = any(cost["type"] == "DiceCost" for cost in match_costs)
    tolerance = 1e-11 if dtype == torch.float64 and not has_masks else 2e-5
    for case in images(dtype):
        found, wanted = our_cost(match_costs, *case), stock_cost(match_costs, *case)
        torch.testing.assert_close(found, wanted.T, rtol=tolerance, atol=tolerance)


@published
@pytest.mark.parametrize("solver", ["auto", "scipy"])
def test_assign_is_that_of_mmdet(match_costs, solver):
    for preds, truth, meta in images():
        found, wanted = (
            builder.assign(preds, truth, img_meta=meta)
            for builder in (ours(match_costs, solver=solver), stock(match_costs))
        )
        assert torch.equal(found.gt_inds, wanted.gt_inds) and torch.equal(found.labels, wanted.labels)
        assert found.gt_inds.dtype == wanted.gt_inds.dtype and found.labels.dtype == wanted.labels.dtype
        assert found.num_gts == wanted.num_gts and found.max_overlaps is wanted.max_overlaps is None


@published
def test_assign_batch_is_mmdet_in_a_loop(match_costs):
    layers = [images(), [image(n, shape, 9 + i) for i, (n, shape) in enumerate(zip(SIZES, SHAPES, strict=True))]]
    truth = [case[1] for case in layers[0]]
    layers[1] = [(preds, own, meta) for (preds, _, meta), own in zip(layers[1], truth, strict=True)]

    def stacked(name):
        return torch.stack([torch.stack([getattr(preds, name) for preds, _, _ in layer]) for layer in layers])

    gt_boxes = combine_data([t.bboxes for t in truth]).with_padded_set_to(float("nan"))
    gt_labels = combine_data([t.labels for t in truth]).with_padded_set_to(-(2**40))
    gt_masks = combine_data([t.masks.flatten(1).float() for t in truth]).with_padded_set_to(float("nan"))
    for shapes in (SHAPES, torch.tensor(SHAPES)):
        found = ours(match_costs).assign_batch(
            stacked("scores"), stacked("bboxes"), gt_boxes, gt_labels, shapes, stacked("masks").flatten(-2), gt_masks
        )
        assert (found.status == 0).all() and found.pred_of_gt.shape == (2, 3, 12)
        for index, layer in enumerate(layers):
            for b, (preds, own, meta) in enumerate(layer):
                wanted = stock(match_costs).assign(preds, own, img_meta=meta).gt_inds
                assert torch.equal(found.gt_of_pred[index, b] + 1, wanted)


def test_one_shape_for_all_images():
    preds, truth, _ = image(3, (90, 120))
    parts = preds.scores[None], preds.bboxes[None], combine_data([truth.bboxes]), combine_data([truth.labels])
    found = [ours([L1]).assign_batch(*parts, shape).gt_of_pred for shape in ((90, 120), [(90, 120)], (1000, 1))]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@pytest.mark.skipif(not _extension.COMPILED, reason="SciPy's solver copies to the host and back")
@published
def test_nothing_waits_for_the_device(match_costs):
    preds, truth, _ = zip(*images(), strict=True)
    parts = [torch.stack([getattr(p, name) for p in preds]) for name in ("scores", "bboxes", "masks")]
    gt = [combine_data([getattr(t, name) for t in truth]) for name in ("bboxes", "labels")]
    gt_masks = combine_data([t.masks.flatten(1) for t in truth])
    assigner = ours(match_costs)
    with HostSyncCounter("cpu") as syncs:
        assigner.assign_batch(parts[0], parts[1], *gt, SHAPES, parts[2].flatten(-2), gt_masks)
    assert dict(syncs.by_kind) == {}


@pytest.mark.parametrize(
    "cost, key, value",
    [
        (SOFTMAX, "weight", 3.0),
        (FOCAL, "weight", 3.0),
        (FOCAL, "alpha", 0.4),
        (FOCAL, "gamma", 1.0),
        (FOCAL, "eps", 1e-2),
        (FOCAL, "binary_input", True),
        (MASK_FOCAL, "weight", 3.0),
        (MASK_FOCAL, "alpha", 0.4),
        (MASK_FOCAL, "gamma", 1.0),
        (MASK_FOCAL, "eps", 1e-2),
        (L1, "weight", 3.0),
        (L1, "box_format", "xyxy"),
        (GIOU, "weight", 3.0),
        (GIOU, "iou_mode", "iou"),
        (MASK_CE, "weight", 3.0),
        (DICE, "weight", 3.0),
        (DICE, "pred_act", False),
        (DICE, "eps", 0.1),
        (DICE, "naive_dice", False),
    ],
    ids=lambda part: part["type"] if isinstance(part, dict) else str(part),
)
def test_every_key_has_mmdets_effect(cost, key, value):
    case = image(3, (90, 120), dtype=torch.float64)
    changed = {**cost, key: value}
    before, after = our_cost([cost], *case), our_cost([changed], *case)
    assert not torch.allclose(before.float(), after.float(), rtol=1e-3, atol=1e-6)
    tolerance = 1e-9 if after.dtype == torch.float64 else 2e-5
    torch.testing.assert_close(after, stock_cost([changed], *case).T, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", ["ClassificationCost", "FocalLossCost", "BBoxL1Cost", "IoUCost", "DiceCost"])
def test_defaults_are_mmdets(kind):
    case = image(3, (90, 120), dtype=torch.float64)
    cost = [{"type": kind}]
    torch.testing.assert_close(our_cost(cost, *case), stock_cost(cost, *case).T, rtol=1e-5, atol=1e-6)
    assert torch.equal(our_cost(cost, *case), our_cost(cost[0], *case))


@pytest.mark.parametrize(
    "match_costs, message",
    [
        ([], "at least one term, got none"),
        ("FocalLossCost", "match_costs must be a dict or a list of dicts, got 'FocalLossCost'"),
        ([FOCAL, "IoUCost"], r"match_costs\[1\] must be a dict with a type, one of FocalLossCost, "),
        ([{"type": "BinaryFocalLossCost"}], r"match_costs\[0\] must have one of the types .*, got BinaryFocalLossCost"),
        ([{**GIOU, "iou_mode": "iof"}], "iou_mode must be 'iou' or 'giou', got 'iof'"),
        ([{**L1, "box_format": "cxcywh"}], "box_format must be 'xywh' or 'xyxy', got 'cxcywh'"),
        ([{**L1, "wieght": 1.0}], "BBoxL1Cost does not use 'wieght'; it uses weight, box_format"),
        ([{**MASK_CE, "use_sigmoid": False}], "implements use_sigmoid=True only, got False"),
        ([{**DICE, "pred_act": 1}], r"match_costs\[0\].pred_act must be True or False, got 1"),
        ([{**DICE, "weight": True}], r"match_costs\[0\].weight must be a number, got True"),
        ([SOFTMAX, {**L1, "weight": float("nan")}], r"match_costs\[1\].weight must be a number, got nan"),
    ],
)
def test_wrong_costs_are_named(match_costs, message):
    with pytest.raises(ValueError, match=message):
        BatchedHungarianAssigner(match_costs)


@pytest.mark.parametrize("cost", [L1, GIOU, FOCAL, {**L1, "box_format": "xyxy"}], ids=str)
def test_negative_weights_are_those_of_mmdet(cost):
    case = image(3, (90, 120), dtype=torch.float64)
    costs = [SOFTMAX, GIOU, {**cost, "weight": -1.5}]
    torch.testing.assert_close(our_cost(costs, *case), stock_cost(costs, *case).T, rtol=1e-9, atol=1e-9)
    preds, truth, meta = image(3, (90, 120))
    found, wanted = (builder(costs).assign(preds, truth, img_meta=meta).gt_inds for builder in (ours, stock))
    assert torch.equal(found, wanted)


def test_scopes_of_inherited_configs_are_ignored():
    costs = [{**FOCAL, "type": "mmdet.FocalLossCost", "_scope_": "mmdet"}, {**L1, "_scope_": "mmdet"}]
    assert ours(costs).matcher == ours([FOCAL, L1]).matcher


def test_ground_truth_that_does_not_fit_together():
    """Nobody would see it in the pairs."""
    g = torch.Generator().manual_seed(0)
    scores, boxes = torch.randn(2, 7, NUM_CLASSES, generator=g), torch.rand(2, 7, 4, generator=g)

    def parts(box_sizes, label_sizes):
        gt_labels = combine_data([torch.zeros(n, dtype=torch.long) for n in label_sizes])
        return scores, boxes, combine_data([torch.rand(n, 4) for n in box_sizes]), gt_labels

    with pytest.raises(ValueError, match=r"gt_boxes must have as many objects as gt_labels .* \[1, 3\] and \[3, 1\]"):
        ours([FOCAL, L1]).assign_batch(*parts([1, 3], [3, 1]), (90, 120))
    with pytest.raises(
        ValueError, match=r"gt_boxes must begin with \[B, G\] like gt_labels, got \(2, 3\) and \(2, 2\)"
    ):
        ours([FOCAL, L1]).assign_batch(*parts([1, 3], [1, 2]), (90, 120))
    with pytest.raises(TypeError, match="gt_labels must be a RaggedBatch, got Tensor"):
        ours([FOCAL]).assign_batch(scores, boxes, None, torch.zeros(2, 3, dtype=torch.long))


def test_shapes_of_images():
    preds, truth, _ = image(3, (90, 120))
    scores, boxes = preds.scores.expand(2, -1, -1), preds.bboxes.expand(2, -1, -1)
    gt_boxes, gt_labels = (combine_data([part, part]) for part in (truth.bboxes, truth.labels))

    def assign(img_shape):
        return ours([FOCAL, L1]).assign_batch(scores, boxes, gt_boxes, gt_labels, img_shape).pred_of_gt

    expected = assign([(90, 120), (64, 96)])
    for same in (
        np.array([[90, 120], [64, 96]]),
        [np.array([90, 120]), np.array([64, 96])],
        [[90, 120, 3], [64, 96, 3]],
    ):
        assert torch.equal(assign(same), expected)
    for same in (np.array([90, 120]), [(90, 120)], torch.tensor([[90, 120]])):
        assert torch.equal(assign(same), assign((90, 120, 3)))
    with pytest.raises(ValueError, match="img_shape must be one for all images or one for each of 2, got 3"):
        assign([(90, 120)] * 3)
    for wrong in ([], [90]):
        with pytest.raises(ValueError, match="img_shape must be height and width of the image, got "):
            assign(wrong)


def test_wrong_input():
    preds, truth, meta = image(3, (90, 120))
    with pytest.raises(ValueError, match="solver must be one of"):
        ours([FOCAL], solver="fast")
    with pytest.raises(ValueError, match="gt_instances_ignore must be None"):
        ours([FOCAL]).assign(preds, truth, img_meta=meta, gt_instances_ignore=truth)
    with pytest.raises(ValueError, match="BoxL1Term needs image_size, and there is none"):
        ours([L1]).assign(preds, truth)
    with pytest.raises(ValueError, match="MaskDiceTerm needs masks, and there is none"):
        ours([DICE]).assign(InstanceData(scores=preds.scores), truth)


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_values_that_mmdet_refuses(bad):
    """SciPy refuses NaN and -inf; so does `assign`, and `assign_batch` says which problem it was."""
    preds, truth, meta = image(3, (90, 120))
    preds.bboxes[2, 1] = bad
    costs = [FOCAL, L1] if bad != bad else [{"type": "BBoxL1Cost", "weight": -1.0}]
    with pytest.raises(ValueError, match="matrix contains invalid numeric entries"):
        stock(costs).assign(preds, truth, img_meta=meta)
    with pytest.raises(ValueError, match="has no solution: the costs contain NaN or -inf"):
        ours(costs).assign(preds, truth, img_meta=meta)
    scores, boxes = preds.scores.expand(2, -1, -1), preds.bboxes.expand(2, -1, -1)
    gt_boxes, gt_labels = (combine_data([part, part[:0]]) for part in (truth.bboxes, truth.labels))
    found = ours(costs).assign_batch(scores, boxes, gt_boxes, gt_labels, (90, 120))
    assert found.status.tolist() == [2, 0] and (found.gt_of_pred == -1).all()


def test_infinite_boxes_are_left_out_as_in_mmdet():
    preds, truth, meta = image(3, (90, 120))
    preds.bboxes[:4, 2] = float("inf")
    found, wanted = (builder([FOCAL, L1]).assign(preds, truth, img_meta=meta).gt_inds for builder in (ours, stock))
    assert torch.equal(found, wanted) and (found[:4] == 0).all()
    preds.bboxes[:, 2] = float("inf")
    with pytest.raises(ValueError, match="infeasible"):
        stock([FOCAL, L1]).assign(preds, truth, img_meta=meta)
    with pytest.raises(ValueError, match="leave objects, or predictions where these are fewer, without a pair"):
        ours([FOCAL, L1]).assign(preds, truth, img_meta=meta)


def test_no_predictions():
    preds, truth, meta = image(3, (90, 120))
    preds = preds[:0]
    found, wanted = (builder([FOCAL, L1]).assign(preds, truth, img_meta=meta) for builder in (ours, stock))
    assert torch.equal(found.gt_inds, wanted.gt_inds) and found.num_gts == wanted.num_gts == 3


# -- whole heads ---------------------------------------------------------------------------------------


SIGMOID_LOSS = {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 2.0}
QUALITY_LOSS = {"type": "QualityFocalLoss", "use_sigmoid": True, "beta": 2.0, "loss_weight": 1.0}
SOFTMAX_LOSS = {"type": "CrossEntropyLoss", "bg_cls_weight": 0.1, "use_sigmoid": False, "class_weight": 1.0}
HEADS = {
    "DETRHead": {"loss_cls": SOFTMAX_LOSS},
    "ConditionalDETRHead": {"loss_cls": SIGMOID_LOSS},
    "DABDETRHead": {"loss_cls": SIGMOID_LOSS},
    "DeformableDETRHead": {"loss_cls": SIGMOID_LOSS, "num_pred_layer": 3, "as_two_stage": True},
    "DINOHead": {"loss_cls": SIGMOID_LOSS, "num_pred_layer": 3, "as_two_stage": True},
    "DINOHead with quality": {"loss_cls": QUALITY_LOSS, "num_pred_layer": 3, "as_two_stage": True},
}


def build_model(config, scope="mmdet"):
    with DefaultScope.overwrite_default_scope(scope), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of mmcv's own layers
        return MODELS.build(config)


def build_head(name, assigner):
    options = copy.deepcopy(HEADS[name])
    costs = PUBLISHED["detr" if name == "DETRHead" else "deformable detr"]
    train_cfg = {"assigner": {"type": assigner, "match_costs": copy.deepcopy(costs)}}
    return build_model(
        {"type": name.split()[0], "num_classes": NUM_CLASSES, "embed_dims": 16, "train_cfg": train_cfg, **options}
    )


def head_outputs(name, channels):
    """Outputs of a head for a batch, with gradients; encoder proposals and denoising queries where it has them."""
    g = torch.Generator().manual_seed(3)
    two_stage = HEADS[name].get("as_two_stage", False)
    denoising = 2 * 2 * max(SIZES) if name.startswith("DINO") else 0

    def outputs(*lead):
        logits = torch.randn(*lead, channels, generator=g)
        return logits.requires_grad_(), (torch.rand(*lead, 4, generator=g) * 0.4 + 0.1).requires_grad_()

    parts = list(outputs(NUM_LAYERS, len(SIZES), denoising + NUM_QUERIES))
    if two_stage:
        parts += outputs(len(SIZES), 20)
    options = {}
    if denoising:
        options["dn_meta"] = {"num_denoising_queries": denoising, "num_denoising_groups": 2}
    return parts, options


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning")  # in mmdet's cross entropy
@pytest.mark.parametrize("sizes", [SIZES, [0, 0, 0]], ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_losses_and_gradients_of_stock_heads(name, sizes):
    truth = [
        InstanceData(bboxes=t.bboxes[:n], labels=t.labels[:n]) for (_, t, _), n in zip(images(), sizes, strict=True)
    ]
    metas = [{"img_shape": shape} for shape in SHAPES]
    results = []
    for assigner in ("HungarianAssigner", "BatchedHungarianAssigner"):
        head = build_head(name, assigner)
        assert type(head.assigner) is (BatchedHungarianAssigner if "Batched" in assigner else HungarianAssigner)
        parts, options = head_outputs(name, head.cls_out_channels)
        losses = head.loss_by_feat(*parts, batch_gt_instances=truth, batch_img_metas=metas, **options)
        sum(value.sum() for value in losses.values()).backward()
        results.append((losses, [part.grad for part in parts]))
    (wanted, wanted_grads), (found, found_grads) = results
    assert list(found) == list(wanted) and len(found) >= 3 * NUM_LAYERS
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert all(torch.equal(one, other) for one, other in zip(found_grads, wanted_grads, strict=True))


def masks_of_kind(kind, count):
    if kind == "bitmaps":
        g = torch.Generator().manual_seed(count)
        return BitmapMasks(torch.randint(0, 2, (count, 6, 7), generator=g).numpy().astype("uint8"), 6, 7)
    corners = [1.0, 1.0, 5.0, 1.0, 5.0, 4.0]
    return PolygonMasks([[np.array(corners) + i / 3] for i in range(count)], 6, 7)


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning")  # in mmdet's cross entropy
@pytest.mark.parametrize("kind", ["bitmaps", "polygons"])
def test_masks_that_no_cost_asks_for_stay_as_they_are(kind):
    """A data set with masks, and a stock head that matches boxes."""
    metas = [{"img_shape": shape} for shape in SHAPES]
    losses = []
    for assigner in ("HungarianAssigner", "BatchedHungarianAssigner"):
        head = build_head("DETRHead", assigner)
        truth = [
            InstanceData(bboxes=t.bboxes, labels=t.labels, masks=masks_of_kind(kind, len(t))) for _, t, _ in images()
        ]
        parts, _ = head_outputs("DETRHead", head.cls_out_channels)
        losses.append(head.loss_by_feat(*parts, batch_gt_instances=truth, batch_img_metas=metas))
    assert list(losses[0]) == list(losses[1]) and all(torch.equal(losses[1][key], losses[0][key]) for key in losses[0])


@pytest.mark.parametrize("kind", ["bitmaps", "polygons"])
@pytest.mark.parametrize("name", ["maskformer", "mask2former"])
def test_masks_of_mmdets_kinds_are_drawn_where_a_cost_asks(name, kind):
    preds, truth, meta = image(3, (90, 120))
    masks = masks_of_kind(kind, 3)
    drawn = InstanceData(labels=truth.labels, bboxes=truth.bboxes, masks=masks.to_tensor(torch.long, "cpu"))
    kept = InstanceData(labels=truth.labels, bboxes=truth.bboxes, masks=masks)
    found = ours(PUBLISHED[name]).assign(preds, kept, img_meta=meta)
    assert torch.equal(found.gt_inds, stock(PUBLISHED[name]).assign(preds, drawn, img_meta=meta).gt_inds)


def test_keywords_that_mmdet_lets_pass():
    preds, truth, meta = image(3, (90, 120))
    found, wanted = (builder([FOCAL, L1]).assign(preds, truth, meta, epoch=3).gt_inds for builder in (ours, stock))
    assert torch.equal(found, wanted)


def test_targets_of_maskformers_head():
    """`_get_targets_single` of the stock head, which resizes the objects' masks before it asks the assigner."""
    g = torch.Generator().manual_seed(5)
    scores, masks = torch.randn(NUM_QUERIES, 6, generator=g), torch.randn(NUM_QUERIES, 8, 8, generator=g)
    truth = InstanceData(
        labels=torch.randint(0, 5, (4,), generator=g), masks=torch.randint(0, 2, (4, 16, 16), generator=g)
    )
    targets = []
    for builder in (stock, ours):
        sampler = TASK_UTILS.build({"type": "MaskPseudoSampler"})
        head = SimpleNamespace(
            assigner=builder(PUBLISHED["maskformer"]), sampler=sampler, num_queries=NUM_QUERIES, num_classes=5
        )
        targets.append(MaskFormerHead._get_targets_single(head, scores, masks, truth, {}))
    for found, wanted in zip(targets[1][:6], targets[0][:6], strict=True):
        assert torch.equal(found, wanted)


# -- as a user writes it -------------------------------------------------------------------------------


CONFIG = """
_base_ = ['mmdet::{base}']
custom_imports = dict(imports=['raggedbev.mm'], allow_failed_imports=False)
model = dict(train_cfg=dict(assigner=dict(type='BatchedHungarianAssigner')))
"""


@pytest.mark.parametrize(
    "base, costs",
    [
        ("detr/detr_r50_8xb2-150e_coco.py", PUBLISHED["detr"]),
        ("conditional_detr/conditional-detr_r50_8xb2-50e_coco.py", PUBLISHED["deformable detr"]),
        ("dab_detr/dab-detr_r50_8xb2-50e_coco.py", [{**FOCAL, "eps": 1e-8}, L1, GIOU]),
        ("deformable_detr/deformable-detr_r50_16xb2-50e_coco.py", PUBLISHED["deformable detr"]),
        ("dino/dino-4scale_r50_8xb2-12e_coco.py", PUBLISHED["deformable detr"]),
    ],
)
@pytest.mark.parametrize("scope", ["mmdet", "mmdet3d"])
def test_one_line_of_a_config(tmp_path, base, costs, scope):
    path = tmp_path / "config.py"
    path.write_text(CONFIG.format(base=base))
    model = Config.fromfile(path).model
    head = model.bbox_head
    head.update(train_cfg=model.train_cfg)
    if "as_two_stage" in model or head.type == "DINOHead":
        head.update(num_pred_layer=2, embed_dims=16)
    head.setdefault("_scope_", "mmdet")
    assigner = build_model(head, scope).assigner
    assert type(assigner) is BatchedHungarianAssigner
    assert assigner.matcher == ours(costs).matcher


@pytest.mark.parametrize("kind", ["BatchedHungarianAssigner", "mmdet.BatchedHungarianAssigner"])
@pytest.mark.parametrize("scope", ["mmdet", "mmdet3d"])
def test_name_in_either_scope(kind, scope):
    with DefaultScope.overwrite_default_scope(scope):
        assigner = TASK_UTILS.build({"type": kind, "match_costs": [{**FOCAL, "type": "mmdet.FocalLossCost"}, L1]})
    assert type(assigner) is BatchedHungarianAssigner
