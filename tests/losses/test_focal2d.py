"""The batched 2D loss equals the per-image one, forward and backward, on any input."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raggedbev.losses import FocalHeadLossConfig, GroundTruth2D, focal_head_loss
from raggedbev.losses.reference import focal_head_loss_reference
from raggedbev.losses.terms import BalancedL1, SmoothL1
from raggedbev.matching import HungarianMatcher2D
from raggedbev.matching.reference import PerSampleMatcher2D

from .random_cases import PAD_SHAPE, SIZES, ground_truth_2d, predictions_2d

RTOL = {torch.float32: 1e-5, torch.float64: 1e-10}
dtypes = pytest.mark.parametrize("dtype", list(RTOL))
KEYS = ["enc_loss_cls", "enc_loss_bbox", "enc_loss_iou", "centers2d_losses", "centerness_losses"]


def run(fn, assigner, preds, gt, config, **options):
    preds = [tensor.clone().requires_grad_() for tensor in preds]
    losses = fn(*preds, gt, assigner, config, PAD_SHAPE, **options)
    sum(losses.values()).backward()
    return losses, [tensor.grad for tensor in preds]


def check_parity(preds, gt, config=None, matcher=None, **options):
    config, matcher = config or FocalHeadLossConfig(), matcher or HungarianMatcher2D()
    rtol = RTOL[preds[0].dtype]
    batched, batched_grads = run(focal_head_loss, matcher, preds, gt, config, **options)
    assert list(batched) == KEYS
    for arm in ("published", "reference"):
        per_image = PerSampleMatcher2D(matcher, arm)
        loop, loop_grads = run(focal_head_loss_reference, per_image, preds, gt, config, arm=arm, **options)
        for key in loop:
            torch.testing.assert_close(
                batched[key], loop[key], rtol=rtol, atol=rtol, equal_nan=True, msg=lambda m, key=key: f"{key}: {m}"
            )
        for one, other in zip(batched_grads, loop_grads, strict=True):
            torch.testing.assert_close(one, other, rtol=rtol, atol=rtol * 1e-2, equal_nan=True)
    return batched, batched_grads


@dtypes
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_parity(sizes, dtype):
    losses, grads = check_parity(predictions_2d(len(sizes), dtype), ground_truth_2d(sizes, dtype))
    assert all(value.isfinite() for value in losses.values())
    assert all(grad.isfinite().all() for grad in grads)


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=8), seed=st.integers(0, 10**6))
def test_random_cases(sizes, seed):
    """In float64: among random cases in float32 some have two assignments of equal cost but for rounding."""
    check_parity(predictions_2d(len(sizes), torch.float64, seed + 1), ground_truth_2d(sizes, torch.float64, seed))


@dtypes
def test_all_objects_equal(dtype):
    gt = ground_truth_2d([5, 0, 4], dtype)
    for index in (0, 2):
        gt.box_list[index][:] = gt.box_list[0][1].clone()
        gt.center_list[index][:] = gt.center_list[0][1].clone()
        gt.label_list[index][:] = 3
    losses, grads = check_parity(predictions_2d(3, dtype), gt)
    assert all(value.isfinite() for value in losses.values()) and all(grad.isfinite().all() for grad in grads)


@dtypes
def test_no_objects_leave_only_classification_and_centerness(dtype):
    losses, grads = check_parity(predictions_2d(2, dtype), ground_truth_2d([0, 0], dtype))
    assert [float(losses[key].detach()) == 0 for key in KEYS] == [False, True, True, True, False]
    assert (grads[1] == 0).all() and (grads[2] == 0).all()


@dtypes
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("token", [slice(3, 5), slice(None)])
def test_nonfinite_predictions(token, part, value, dtype):
    preds = predictions_2d(3, dtype)
    preds[part][1, token, 0] = value
    losses, _ = check_parity(preds, ground_truth_2d([4, 2, 0], dtype))
    finite = [bool(losses[key].isfinite()) for key in KEYS]
    assert finite[3] is (part != 2)
    if part == 1:
        assert finite == [False, False, False, True, True] or finite == [True, False, False, True, True]


@dtypes
def test_nonfinite_objects_and_labels_out_of_range(dtype):
    gt = ground_truth_2d([4, 2, 1], dtype)
    gt.label_list[0][:3] = torch.tensor([10, -1, 99])
    gt.center_list[1][0, 1] = float("nan")
    check_parity(predictions_2d(3, dtype), gt)


@dtypes
def test_mean_over_ranks_is_one_call(dtype):
    calls = []

    def reduce_mean(counts):
        calls.append(tuple(counts.shape))
        return counts * 1.5

    preds, gt = predictions_2d(2, dtype), ground_truth_2d([3, 1], dtype)
    check_parity(preds, gt, reduce_mean=reduce_mean)
    calls.clear()
    focal_head_loss(*preds, gt, HungarianMatcher2D(), FocalHeadLossConfig(), PAD_SHAPE, reduce_mean)
    assert calls == [(1,)]


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 1.5, "cls_weight": 0.5, "bbox": SmoothL1(0.1)},
        {"centerness_gamma": 3.0, "iou_weight": 0.1, "center": BalancedL1(beta=0.2)},
    ],
)
@pytest.mark.parametrize(
    "matcher", [HungarianMatcher2D(box_format="xyxy"), HungarianMatcher2D(iou_mode="iou", center_weight=0.0)]
)
def test_other_settings(matcher, options):
    config = dataclasses.replace(FocalHeadLossConfig(), **options)
    check_parity(predictions_2d(3, torch.float64), ground_truth_2d([4, 0, 6], torch.float64), config, matcher)


def test_objects_on_another_device():
    gt, preds = ground_truth_2d([2, 1], torch.float32), predictions_2d(2, torch.float32)
    lists = ([tensor.to("meta") for tensor in part] for part in (gt.box_list, gt.label_list, gt.center_list))
    with pytest.raises(ValueError, match="ground truth is on meta, predictions are on cpu"):
        focal_head_loss(*preds, GroundTruth2D(*lists), HungarianMatcher2D(), FocalHeadLossConfig(), PAD_SHAPE)


def test_sizes_that_disagree():
    gt = ground_truth_2d([2, 3], torch.float32)
    with pytest.raises(ValueError, match=r"GroundTruth2D: center_list of image 0 must be \(2, 2\), got \(1, 2\)"):
        GroundTruth2D(gt.box_list, gt.label_list, [gt.center_list[0][1:], gt.center_list[1]])


def test_wrong_shapes_are_named():
    preds, gt = predictions_2d(2, torch.float32), ground_truth_2d([1, 1], torch.float32)
    matcher, config = HungarianMatcher2D(), FocalHeadLossConfig()
    with pytest.raises(
        ValueError, match=r"box_preds must be \(2, 24, 4\) for 2 images of \(64, 96\) pixels at stride 16"
    ):
        focal_head_loss(preds[0], preds[1][:, :20], *preds[2:], gt, matcher, config, PAD_SHAPE)
    with pytest.raises(ValueError, match=r"cls_logits must be \(1, 24, 10\)"):
        focal_head_loss(*preds, ground_truth_2d([1], torch.float32), matcher, config, PAD_SHAPE)
    with pytest.raises(ValueError, match="arm must be one of"):
        focal_head_loss_reference(*preds, gt, PerSampleMatcher2D(), config, PAD_SHAPE, arm="fast")
