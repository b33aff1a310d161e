"""Heads with their losses: batched and per sample agree, wrong parts are named, non-finite predictions are counted."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmdet.models.task_modules.assigners import AssignResult, BaseAssigner
from mmdet3d.registry import TASK_UTILS

from .small_heads import PAD_SHAPE, head_2d, head_3d, outputs_2d, outputs_3d, truth_2d, truth_3d


@TASK_UTILS.register_module()
class FirstComeAssigner(BaseAssigner):
    """Gives object i to prediction i; has no `assign_batch`."""

    def assign(
        self, bbox_pred, cls_pred, gt_bboxes, gt_labels, gt_bboxes_ignore=None, code_weights=None, with_velo=False
    ):
        gt_inds = torch.zeros(len(bbox_pred), dtype=torch.long)
        gt_inds[: len(gt_labels)] = torch.arange(1, len(gt_labels) + 1)
        return AssignResult(len(gt_labels), gt_inds, None, labels=None)


@pytest.mark.parametrize("with_dn", [False, True])
def test_3d_losses_agree(with_dn):
    gt = truth_3d()
    losses = [head_3d(kind).loss(outputs_3d(gt, with_dn), gt) for kind in ("PerSample", "Batched")]
    assert len(losses[0]) == 8 and list(losses[0]) == list(losses[1])
    for key, value in losses[0].items():
        torch.testing.assert_close(losses[1][key], value, rtol=1e-5, atol=1e-6)


def test_2d_losses_agree():
    losses = [head_2d(kind).loss(outputs_2d(), truth_2d(), PAD_SHAPE) for kind in ("PerSample", "Batched")]
    assert list(losses[0]) == [
        "enc_loss_cls",
        "enc_loss_bbox",
        "enc_loss_iou",
        "centers2d_losses",
        "centerness_losses",
    ]
    for key, value in losses[0].items():
        torch.testing.assert_close(losses[1][key], value, rtol=1e-5, atol=1e-6)


def test_settings_reach_the_loss():
    gt = truth_3d()
    outs = outputs_3d(gt)
    plain, changed = (
        head_3d("Batched"),
        head_3d("Batched", loss_bbox={"type": "L1Loss", "loss_weight": 0.5}, dn_weight=2.0),
    )
    with torch.no_grad():
        changed.code_weights.fill_(0.0)
        changed.code_weights[0] = 2.0
    config = changed.loss_config()
    assert config.bbox_weight == 0.5 and config.dn_weight == 2.0 and config.code_weights is changed.code_weights
    one, two = plain.loss(outs, gt), changed.loss(outs, gt)
    torch.testing.assert_close(two["loss_cls"], one["loss_cls"])
    torch.testing.assert_close(two["dn_loss_cls"], 2 * one["dn_loss_cls"])
    assert two["loss_bbox"] < one["loss_bbox"]


def test_losses_of_coordinates_are_the_configs():
    """Any of mmdet's; the others of a head have no effect on each other."""
    gt = truth_3d()
    outs, smooth = outputs_3d(gt), {"type": "mmdet.SmoothL1Loss", "beta": 2.0, "loss_weight": 0.25}
    plain = head_3d("Batched").loss(outs, gt)
    losses = [head_3d(kind, loss_bbox=smooth).loss(outs, gt) for kind in ("PerSample", "Batched")]
    for key, value in losses[0].items():
        torch.testing.assert_close(losses[1][key], value, rtol=1e-5, atol=1e-6)
        assert (value < plain[key]) if "bbox" in key else torch.equal(losses[1][key], plain[key])
    balanced = {"type": "mmdet.BalancedL1Loss", "loss_weight": 10.0, "beta": 0.1}
    plain = head_2d("Batched").loss(outputs_2d(), truth_2d(), PAD_SHAPE)
    for key, changed in (("loss_bbox2d", "enc_loss_bbox"), ("loss_centers2d", "centers2d_losses")):
        found = head_2d("Batched", **{key: balanced}).loss(outputs_2d(), truth_2d(), PAD_SHAPE)
        assert [name for name in found if not torch.equal(found[name], plain[name])] == [changed]


@pytest.mark.parametrize("kind", ["PerSample", "Batched"])
def test_nonfinite_predictions_are_counted_and_stay_out_of_checkpoints(kind):
    gt, head = truth_3d(), head_3d(kind)
    assert head.nonfinite_predictions is None
    outs = outputs_3d(gt)
    head.loss(outs, gt)
    assert head.nonfinite_predictions.tolist() == [0, 0]
    with torch.no_grad():
        outs["all_bbox_preds"][1, 0, 3] = float("nan")
        outs["all_cls_scores"][1, 2, 0, 0] = float("inf")
    losses = head.loss(outs, gt)
    head.loss(outs, gt)
    assert head.nonfinite_predictions.tolist() == [0, 22]
    assert all(value.isfinite() for value in losses.values())
    assert not any("nonfinite" in key for key in head.state_dict())

    focal, outs_2d = head_2d(kind), outputs_2d()
    outs_2d["centerness"][0, 0] = float("nan")
    focal.loss(outs_2d, truth_2d(), PAD_SHAPE)
    assert focal.nonfinite_predictions.tolist() == [1]


def test_batched_head_with_an_assigner_for_samples():
    with pytest.raises(
        ValueError,
        match=r"BatchedStreamPETRHead needs an assigner with assign_batch, got PerSampleHungarianAssigner3D; "
        "use BatchedHungarianAssigner3D",
    ):
        head_3d("Batched", assigner="PerSampleHungarianAssigner3D")
    with pytest.raises(ValueError, match="got PerSampleHungarianAssigner2D; use BatchedHungarianAssigner2D"):
        head_2d("Batched", train_cfg={"assigner": {"type": "PerSampleHungarianAssigner2D"}})
    with pytest.raises(ValueError, match="got FirstComeAssigner"):
        head_3d("Batched", assigner="FirstComeAssigner")


def test_per_sample_head_takes_any_assigner():
    gt = truth_3d()
    outs = outputs_3d(gt)
    wanted = head_3d("PerSample").loss(outs, gt)
    found = head_3d("PerSample", assigner="BatchedHungarianAssigner3D").loss(outs, gt)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    other = head_3d("PerSample", assigner="FirstComeAssigner").loss(outs, gt)
    assert other["loss_bbox"] > wanted["loss_bbox"]


@pytest.mark.parametrize("kind", ["PerSample", "Batched"])
def test_wrong_shapes_and_settings(kind):
    gt, head = truth_3d(), head_3d(kind)
    outs = outputs_3d(gt)
    with pytest.raises(
        ValueError, match=r"box_preds must be \(2, 3, 14, 10\) with 10 code weights, got \(2, 3, 14, 8\)"
    ):
        head.loss({**outs, "all_bbox_preds": outs["all_bbox_preds"][..., :8]}, gt)
    with pytest.raises(ValueError, match=f"{kind}StreamPETRHead has 2 decoder layers, got predictions of 1"):
        head.loss(
            {**outs, "all_cls_scores": outs["all_cls_scores"][:1], "all_bbox_preds": outs["all_bbox_preds"][:1]}, gt
        )
    with pytest.raises(ValueError, match="predictions are for 2 samples, ground truth is for 3"):
        head.loss(
            {**outs, "all_cls_scores": outs["all_cls_scores"][:, :2], "all_bbox_preds": outs["all_bbox_preds"][:, :2]},
            gt,
        )
    with pytest.raises(
        ValueError, match=r"train_cfg of .* must be dict\(assigner=...\), got the keys \['assigner', 'pts'\]"
    ):
        head_3d(kind, train_cfg={"assigner": {"type": "FirstComeAssigner"}, "pts": {}})
    with pytest.raises(ValueError, match="loss_iou2d must have one of the types GIoULoss"):
        head_2d(kind, loss_iou2d={"type": "mmdet.IoULoss"})
    with pytest.raises(ValueError, match="was built without train_cfg"):
        head_2d(kind, train_cfg=None).loss(outputs_2d(), truth_2d(), PAD_SHAPE)


@pytest.mark.parametrize("kind", ["PerSample", "Batched"])
def test_losses_are_computed_in_full_precision(kind):
    gt, head = truth_3d(), head_3d(kind)
    outs = outputs_3d(gt)
    wanted = head.loss(outs, gt)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head.loss(outs, gt)
    assert all(torch.equal(found[key], wanted[key]) and found[key].dtype == torch.float32 for key in wanted)


def test_two_processes():
    """Losses share their counts, and DDP its gradients, with both kinds of heads; one rank has no objects."""
    script = Path(__file__).with_name("two_ranks.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr[-2000:]
    assert sorted(re.findall(r"rank\d", result.stdout)) == ["rank0", "rank1"]  # their lines may run into each other
