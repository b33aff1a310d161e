"""Assigners from configs: one sample at a time and all at once give the same pairs; wrong configs are named."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from mmdet3d.registry import TASK_UTILS

import raggedbev.mm.streampetr  # noqa: F401
from raggedbev.ragged import combine_data

CONFIG_3D = {
    "cls_cost": {"type": "FocalLossCost", "weight": 2.0},
    "reg_cost": {"type": "BBox3DL1Cost", "weight": 0.25},
    "iou_cost": {"type": "IoUCost", "weight": 0.0},
    "pc_range": [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0],
}
CONFIG_2D = {
    "cls_cost": {"type": "FocalLossCost", "weight": 2.0},
    "reg_cost": {"type": "BBoxL1Cost", "weight": 5.0, "box_format": "xywh"},
    "iou_cost": {"type": "IoUCost", "iou_mode": "giou", "weight": 2.0},
    "centers2d_cost": {"type": "BBox3DL1Cost", "weight": 10.0},
}
SIZES = [3, 0, 9]


def build(name, **changes):
    config = CONFIG_3D if name.endswith("3D") else CONFIG_2D
    return TASK_UTILS.build({"type": name, **config, **changes})


def inputs():
    g = torch.Generator().manual_seed(0)
    logits, codes = torch.randn(2, 3, 7, 10, generator=g), torch.randn(2, 3, 7, 10, generator=g)
    boxes = [torch.rand(n, 9, generator=g) + 0.1 for n in SIZES]
    return logits, codes, boxes, [torch.randint(0, 10, (n,), generator=g) for n in SIZES]


@pytest.mark.parametrize("name", ["PerSampleHungarianAssigner3D", "BatchedHungarianAssigner3D"])
def test_assign_3d_equals_assign_batch(name):
    logits, codes, boxes, labels = inputs()
    weights = torch.tensor([2.0, 2, 1, 1, 1, 1, 1, 1, 1, 1])
    batched = build("BatchedHungarianAssigner3D").assign_batch(
        logits, codes, combine_data(boxes), combine_data(labels), weights
    )
    assigner = build(name)
    for layer in range(2):
        for b, n in enumerate(SIZES):
            result = assigner.assign(codes[layer, b], logits[layer, b], boxes[b], labels[b], None, weights)
            assert torch.equal(result.gt_inds - 1, batched.gt_of_pred[layer, b])
            matched = result.gt_inds > 0
            assert result.num_gts == n and matched.sum() == min(n, 7)
            assert torch.equal(result.labels[matched], labels[b][result.gt_inds[matched] - 1])
            assert (result.labels[~matched] == -1).all() and result.gt_inds.dtype == torch.int64


@pytest.mark.parametrize("name", ["PerSampleHungarianAssigner2D", "BatchedHungarianAssigner2D"])
def test_assign_2d_equals_assign_batch(name):
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 7, 10, generator=g)
    boxes2d, centers = torch.rand(3, 7, 4, generator=g), torch.rand(3, 7, 2, generator=g)
    corners = [torch.rand(n, 2, generator=g) * 40 for n in SIZES]
    gt_boxes, gt_centers = [torch.cat([x, x + 9], 1) for x in corners], [x + 3 for x in corners]
    labels = [torch.randint(0, 10, (n,), generator=g) for n in SIZES]
    truth = [combine_data(part) for part in (gt_boxes, labels, gt_centers)]
    batched = build("BatchedHungarianAssigner2D").assign_batch(logits, boxes2d, centers, *truth, (64, 96))
    assigner = build(name)
    for i in range(3):
        found = assigner.assign(boxes2d[i], logits[i], centers[i], gt_boxes[i], labels[i], gt_centers[i], (64, 96))
        assert torch.equal(found.gt_inds - 1, batched.gt_of_pred[i])


@pytest.mark.parametrize("name", ["PerSampleHungarianAssigner3D", "BatchedHungarianAssigner3D"])
def test_wrong_settings_3d(name):
    for pc_range in ([0, 1], [-1, -1, -1, 1, 1, -1], [1, 1, 1, -1, -1, -1], [*"abcdef"], [0, 0, float("nan"), 1, 1, 1]):
        with pytest.raises(ValueError, match="pc_range must be six numbers, lowest x, y, z, then highest x, y, z, got"):
            build(name, pc_range=pc_range)
    with pytest.raises(ValueError, match="not implemented for 3D boxes"):
        build(name, iou_cost={"type": "IoUCost", "weight": 2.0})
    with pytest.raises(TypeError, match="unexpected keyword argument 'box_cost'"):
        build(name, box_cost={})
    with pytest.raises(ValueError, match="gt_bboxes_ignore must be None"):
        logits, codes, boxes, labels = inputs()
        build(name).assign(codes[0, 0], logits[0, 0], boxes[0], labels[0], boxes[0])


SOFTMAX = {"type": "ClassificationCost", "weight": 2.0}
FOCAL = CONFIG_3D["cls_cost"]
CLASS_CHANGES = [
    ("cls_cost", FOCAL, SOFTMAX),
    ("cls_cost", FOCAL, {**FOCAL, "weight": 1.0}),
    ("cls_cost", FOCAL, {**FOCAL, "alpha": 0.5}),
    ("cls_cost", FOCAL, {**FOCAL, "gamma": 1.0}),
    ("cls_cost", FOCAL, {**FOCAL, "eps": 1e-2}),
    ("cls_cost", SOFTMAX, {**SOFTMAX, "weight": 1.0}),
]


def changes_of(config, cases):
    """(key of the assigner, config, the same with one key changed), named by that key."""
    changes = [*CLASS_CHANGES, *((key, config[key], {**config[key], **more}) for key, more in cases)]
    names = [f"{key}.{next(k for k in after if before.get(k) != after[k])}" for key, before, after in changes]
    return [pytest.param(*change, id=name) for change, name in zip(changes, names, strict=True)]


@pytest.mark.parametrize("name", ["PerSampleHungarianAssigner3D", "BatchedHungarianAssigner3D"])
@pytest.mark.parametrize("key, before, after", changes_of(CONFIG_3D, [("reg_cost", {"weight": 1.0})]))
def test_every_key_of_3d_changes_the_costs(name, key, before, after):
    logits, codes, boxes, labels = inputs()
    given = logits[0, 2], codes[0, 2], boxes[2], labels[2]
    one, other = (build(name, **{key: config}).config.cost(*given) for config in (before, after))
    assert (one != other).any()


@pytest.mark.parametrize("name", ["PerSampleHungarianAssigner2D", "BatchedHungarianAssigner2D"])
@pytest.mark.parametrize(
    "key, before, after",
    changes_of(
        CONFIG_2D,
        [
            ("reg_cost", {"weight": 1.0}),
            ("reg_cost", {"box_format": "xyxy"}),
            ("iou_cost", {"weight": 1.0}),
            ("iou_cost", {"iou_mode": "iou"}),
            ("centers2d_cost", {"weight": 1.0}),
        ],
    ),
)
def test_every_key_of_2d_changes_the_costs(name, key, before, after):
    g = torch.Generator().manual_seed(0)
    preds = [torch.rand(7, width, generator=g) for width in (10, 4, 2)]
    low = torch.rand(3, 2, generator=g) * 40
    truth = torch.cat([low, low + 9], dim=1), torch.tensor([0, 4, 9]), low + 3
    one, other = (build(name, **{key: config}).config.cost(*preds, *truth, (64, 96)) for config in (before, after))
    assert (one != other).any()


@pytest.mark.parametrize(
    "iou_cost",
    [
        {"type": "IoUCost", "weight": 0.0},
        {"type": "mmdet.IoUCost", "weight": 0.0, "iou_mode": "iou"},
        {"type": "IoU3DCost", "weight": 0.0, "iou_calculator": {"type": "BboxOverlaps3D", "coordinate": "lidar"}},
        {"type": "IoUCost", "weight": 0, "iou_calculator": "BboxOverlaps3D"},
        None,
    ],
    ids=str,
)
@pytest.mark.parametrize("box_code", ["streampetr", "petr", "detr3d"])
def test_overlaps_that_count_nothing_are_accepted(iou_cost, box_code):
    plain = build("BatchedHungarianAssigner3D", box_code=box_code).config
    assert build("BatchedHungarianAssigner3D", box_code=box_code, iou_cost=iou_cost).config == plain


@pytest.mark.parametrize(
    "key, config, message",
    [
        ("iou_cost", {"type": "IoUCost", "weight": 0.0, "iou_mode": "diou"}, "iou_mode must be 'iou' or 'giou', got"),
        ("iou_cost", {"type": "IoUCost", "weight": 0.0, "iou_calculator": 3}, "a string or a dict with a type, got 3"),
        ("iou_cost", {"type": "IoUCost", "weight": 0.0, "reduction": "mean"}, "does not use 'reduction'"),
        ("cls_cost", {**FOCAL, "use_sigmoid": True}, "FocalLossCost does not use 'use_sigmoid'"),
        ("cls_cost", {**SOFTMAX, "binary_input": False}, "ClassificationCost does not use 'binary_input'"),
        ("cls_cost", {**FOCAL, "binary_input": True}, "implements binary_input=False only, got True"),
        ("cls_cost", {**FOCAL, "weight": float("nan")}, "cls_cost.weight must be a number, got nan"),
        ("reg_cost", {"type": "BBox3DL1Cost", "reduction": "mean"}, "BBox3DL1Cost does not use 'reduction'"),
    ],
)
def test_keys_that_would_change_nothing(key, config, message):
    with pytest.raises(ValueError, match=message):
        build("BatchedHungarianAssigner3D", **{key: config})


def test_keys_of_mmdet_with_the_value_that_there_is():
    build("BatchedHungarianAssigner3D", cls_cost={**FOCAL, "binary_input": False})


def test_wrong_solver_and_arm():
    with pytest.raises(ValueError, match="solver must be one of"):
        build("BatchedHungarianAssigner3D", solver="fast")
    with pytest.raises(ValueError, match="box_format must be 'xywh' or 'xyxy', got 'yx'"):
        build("BatchedHungarianAssigner2D", reg_cost={"type": "BBoxL1Cost", "box_format": "yx"})
    with pytest.raises(ValueError, match="arm must be one of"):
        build("PerSampleHungarianAssigner2D", arm="fast")


def test_importing_the_adapters_registers_batched_names_only():
    code = """
import warnings; warnings.simplefilter("ignore")
import mmdet3d.models
from mmdet3d.registry import MODELS, TASK_UTILS
before = set(MODELS.module_dict) | set(TASK_UTILS.module_dict)
import raggedbev.mm
print(*((set(MODELS.module_dict) | set(TASK_UTILS.module_dict)) - before))
head = MODELS.build(dict(type="BatchedFocalHead", in_channels=32, embed_dims=32))
print(type(head).__name__, "PerSampleFocalHead" in MODELS.module_dict)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600)
    added, last = result.stdout.splitlines()[-2:]
    assert {"BatchedHungarianAssigner3D", "BatchedPETRHead", "RaggedDet3DDataPreprocessor"} <= set(added.split())
    assert all(name.startswith(("Batched", "Ragged")) for name in added.split())
    assert last == "BatchedFocalHead True"
