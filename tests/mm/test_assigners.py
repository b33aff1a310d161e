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
    with pytest.raises(ValueError, match="pc_range must have 6 numbers"):
        build(name, pc_range=[0, 1])
    with pytest.raises(ValueError, match="not implemented for 3D boxes"):
        build(name, iou_cost={"type": "IoUCost", "weight": 2.0})
    with pytest.raises(TypeError, match="unexpected keyword argument 'box_cost'"):
        build(name, box_cost={})
    with pytest.raises(ValueError, match="gt_bboxes_ignore must be None"):
        logits, codes, boxes, labels = inputs()
        build(name).assign(codes[0, 0], logits[0, 0], boxes[0], labels[0], boxes[0])


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
