"""The batched 3D loss equals the per-sample one, forward and backward, on any input."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raggedbev.losses import DenoisingOutput, GroundTruth3D, StreamPETRLossConfig, streampetr_loss
from raggedbev.losses.reference import streampetr_loss_reference
from raggedbev.losses.terms import BalancedL1, SmoothL1
from raggedbev.matching import ClassCost, HungarianMatcher3D
from raggedbev.matching.reference import PerSampleMatcher3D

from .random_cases import SIZES, denoising_3d, ground_truth_3d, predictions_3d

RTOL = {torch.float32: 1e-5, torch.float64: 1e-10}
LAYERS = 3
dtypes = pytest.mark.parametrize("dtype", list(RTOL))


def run(fn, assigner, preds, gt, dn, config, **options):
    """Losses, and gradients of their sum, of all predictions."""
    preds = [tensor.clone().requires_grad_() for tensor in preds]
    dn_preds = []
    if dn is not None:
        dn_preds = [tensor.clone().requires_grad_() for tensor in (dn.cls_logits, dn.box_preds)]
        dn = DenoisingOutput(*dn_preds, dn.queries)
    losses = fn(*preds, gt, assigner, config, dn, **options)
    sum(losses.values()).backward()
    return losses, [tensor.grad for tensor in (*preds, *dn_preds) if tensor.grad is not None]


def check_parity(preds, gt, dn=None, config=None, matcher=None, **options):
    config, matcher = config or StreamPETRLossConfig(), matcher or HungarianMatcher3D()
    rtol = RTOL[preds[0].dtype]
    batched, batched_grads = run(streampetr_loss, matcher, preds, gt, dn, config, **options)
    for arm in ("published", "reference"):
        loop, loop_grads = run(
            streampetr_loss_reference, PerSampleMatcher3D(matcher, arm), preds, gt, dn, config, **options
        )
        assert list(batched) == list(loop)
        for key in loop:
            torch.testing.assert_close(
                batched[key], loop[key], rtol=rtol, atol=rtol, msg=lambda m, key=key: f"{key}: {m}"
            )
        assert len(batched_grads) == len(loop_grads)
        for one, other in zip(batched_grads, loop_grads, strict=True):
            torch.testing.assert_close(one, other, rtol=rtol, atol=rtol * 1e-2, equal_nan=True)
    return batched, batched_grads


@dtypes
@pytest.mark.parametrize("with_dn", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_parity(sizes, with_dn, dtype):
    gt = ground_truth_3d(sizes, dtype)
    dn = denoising_3d(gt, LAYERS, dtype) if with_dn else None
    losses, grads = check_parity(predictions_3d(LAYERS, len(sizes), dtype), gt, dn)
    assert all(value.isfinite() for value in losses.values())
    assert all(grad.isfinite().all() for grad in grads)


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=8),
    layers=st.sampled_from([1, 2, 6]),
    queries=st.sampled_from([4, 15, 40]),
    with_dn=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_random_cases(sizes, layers, queries, with_dn, seed):
    """In float64: among random cases in float32 some have two assignments of equal cost but for rounding."""
    dtype = torch.float64
    gt = ground_truth_3d(sizes, dtype, seed)
    dn = denoising_3d(gt, layers, dtype, seed + 2) if with_dn else None
    check_parity(predictions_3d(layers, len(sizes), dtype, queries, seed + 1), gt, dn)


@dtypes
def test_all_objects_equal(dtype):
    gt = ground_truth_3d([5, 0, 4], dtype)
    for boxes, labels in zip(gt.box_list, gt.label_list, strict=True):
        boxes[:], labels[:] = gt.box_list[0][0].clone(), 3
    losses, grads = check_parity(predictions_3d(LAYERS, 3, dtype), gt, denoising_3d(gt, LAYERS, dtype))
    assert all(value.isfinite() for value in losses.values()) and all(grad.isfinite().all() for grad in grads)


@dtypes
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["logit", "box", "whole layer", "everything", "denoising"])
def test_nonfinite_predictions(where, value, dtype):
    gt = ground_truth_3d([4, 0, 7], dtype)
    logits, boxes = predictions_3d(LAYERS, 3, dtype)
    dn = denoising_3d(gt, LAYERS, dtype)
    targets = {
        "logit": [logits[1, 0, 5:9, 2]],
        "box": [boxes[1, 2, :9, 3]],
        "whole layer": [logits[0], boxes[0]],
        "everything": [logits, boxes],
        "denoising": [dn.cls_logits[1, 0, 0], dn.box_preds[0, 2, 3]],
    }
    for tensor in targets[where]:
        tensor.fill_(value)
    losses, _ = check_parity((logits, boxes), gt, dn)
    assert all(value.isfinite() for value in losses.values())


@dtypes
def test_nonfinite_layers_leave_others_alone(dtype):
    gt = ground_truth_3d([4, 2], dtype)
    logits, boxes = predictions_3d(LAYERS, 2, dtype)
    clean = streampetr_loss(logits, boxes, gt, HungarianMatcher3D(), StreamPETRLossConfig())
    logits[1], boxes[1] = float("nan"), float("nan")
    losses = streampetr_loss(logits, boxes, gt, HungarianMatcher3D(), StreamPETRLossConfig())
    assert losses["d1.loss_cls"] == 0 and losses["d1.loss_bbox"] == 0
    for key in ("loss_cls", "loss_bbox", "d0.loss_cls", "d0.loss_bbox"):
        assert torch.equal(losses[key], clean[key])


@dtypes
@pytest.mark.parametrize("column, value", [(7, float("nan")), (8, float("inf")), (3, 0.0), (4, -1.0)])
def test_objects_with_nonfinite_targets_are_classified_but_not_regressed(column, value, dtype):
    gt = ground_truth_3d([4, 3], dtype)
    gt.box_list[0][1, column] = value
    losses, grads = check_parity(predictions_3d(LAYERS, 2, dtype), gt, denoising_3d(gt, LAYERS, dtype))
    assert all(value.isfinite() for value in losses.values())
    assert all(grad.isfinite().all() for grad in grads)


@dtypes
def test_labels_out_of_range_are_background(dtype):
    gt = ground_truth_3d([4, 3], dtype)
    gt.label_list[0][:2] = torch.tensor([10, -1])
    gt.label_list[1][0] = 255
    check_parity(predictions_3d(LAYERS, 2, dtype), gt, denoising_3d(gt, LAYERS, dtype))


@dtypes
@pytest.mark.parametrize("queries", [0, 1, 3])
def test_more_objects_than_queries(queries, dtype):
    gt = ground_truth_3d([4, 0, 9], dtype)
    check_parity(predictions_3d(LAYERS, 3, dtype, queries), gt, denoising_3d(gt, LAYERS, dtype))


@dtypes
@pytest.mark.parametrize("sync", [False, True])
def test_mean_over_ranks(sync, dtype):
    """Other ranks have 1.5 times the objects; the counts travel in one call."""
    calls = []

    def reduce_mean(counts):
        calls.append(tuple(counts.shape))
        return counts * 1.25

    config = dataclasses.replace(StreamPETRLossConfig(), sync_cls_avg_factor=sync)
    gt = ground_truth_3d([4, 3], dtype)
    preds, dn = predictions_3d(LAYERS, 2, dtype), denoising_3d(gt, LAYERS, dtype)
    check_parity(preds, gt, dn, config, reduce_mean=reduce_mean)
    calls.clear()
    streampetr_loss(*preds, gt, HungarianMatcher3D(), config, dn, reduce_mean)
    streampetr_loss(*preds, gt, HungarianMatcher3D(), config, None, reduce_mean)
    assert calls == [(LAYERS + 1,), (LAYERS + 1,)]


@pytest.mark.parametrize(
    "options",
    [{"match_with_velo": True, "bbox": SmoothL1(0.5)}, {"dn_weight": 0.5, "bbox_weight": 2.0, "bbox": BalancedL1()}],
)
@pytest.mark.parametrize("cls_cost", [ClassCost(1.0, "softmax"), ClassCost(3.0, alpha=0.4, gamma=1.5)])
def test_other_settings(options, cls_cost):
    gt = ground_truth_3d([4, 0, 7], torch.float64)
    config = dataclasses.replace(StreamPETRLossConfig(), **options)
    preds, dn = predictions_3d(LAYERS, 3, torch.float64), denoising_3d(gt, LAYERS, torch.float64)
    check_parity(preds, gt, dn, config, HungarianMatcher3D(cls_cost, 0.5))


def test_without_denoising_its_keys_repeat_the_losses_without_gradient():
    gt = ground_truth_3d([2], torch.float64)
    logits, boxes = (tensor.requires_grad_() for tensor in predictions_3d(LAYERS, 1, torch.float64))
    losses = streampetr_loss(logits, boxes, gt, HungarianMatcher3D(), StreamPETRLossConfig())
    for key in ("loss_cls", "d0.loss_bbox"):
        copy = losses[key.replace("loss_", "dn_loss_")]
        assert torch.equal(copy, losses[key]) and losses[key].requires_grad and not copy.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_predictions_are_widened(dtype):
    gt = ground_truth_3d([3, 1], torch.float32)
    preds = [tensor.to(dtype) for tensor in predictions_3d(LAYERS, 2, torch.float32)]
    half = streampetr_loss(*preds, gt, HungarianMatcher3D(), StreamPETRLossConfig())
    full = streampetr_loss(*(p.float() for p in preds), gt, HungarianMatcher3D(), StreamPETRLossConfig())
    assert all(torch.equal(half[key], full[key]) and half[key].dtype == torch.float32 for key in full)


def test_padding_does_not_matter():
    """A wider padding of the ground truth, with NaN in it, changes nothing."""
    gt = ground_truth_3d([4, 2], torch.float64)
    wide = GroundTruth3D(gt.box_list, gt.label_list)
    boxes = torch.full((2, 9, 9), float("nan"), dtype=torch.float64)
    labels = torch.full((2, 9), 99)
    for sample, (box, label) in enumerate(zip(gt.box_list, gt.label_list, strict=True)):
        boxes[sample, : len(box)], labels[sample, : len(box)] = box, label
    wide.__dict__["boxes"] = type(gt.boxes)(boxes, sample_sizes=gt.boxes.sample_sizes)
    wide.__dict__["labels"] = type(gt.boxes)(labels, sample_sizes=gt.boxes.sample_sizes)
    preds, config = predictions_3d(LAYERS, 2, torch.float64), StreamPETRLossConfig()
    one, one_grads = run(streampetr_loss, HungarianMatcher3D(), preds, gt, None, config)
    two, two_grads = run(streampetr_loss, HungarianMatcher3D(), preds, wide, None, config)
    torch.testing.assert_close(two, one, rtol=1e-13, atol=0)  # only the order of summation differs
    torch.testing.assert_close(two_grads, one_grads, rtol=1e-13, atol=0)


def test_objects_on_another_device():
    gt, preds = ground_truth_3d([2, 1], torch.float32), predictions_3d(LAYERS, 2, torch.float32)
    elsewhere = GroundTruth3D(
        [boxes.to("meta") for boxes in gt.box_list], [labels.to("meta") for labels in gt.label_list]
    )
    for function, assigner in (
        (streampetr_loss, HungarianMatcher3D()),
        (streampetr_loss_reference, PerSampleMatcher3D()),
    ):
        with pytest.raises(ValueError, match="ground truth is on meta, predictions are on cpu"):
            function(*preds, elsewhere, assigner, StreamPETRLossConfig())
    mixed = GroundTruth3D([gt.box_list[0], gt.box_list[1].to("meta")], gt.label_list)
    with pytest.raises(ValueError, match=r"all samples must have the same device, got cpu and meta \(sample 1\)"):
        streampetr_loss(*preds, mixed, HungarianMatcher3D(), StreamPETRLossConfig())


def test_sizes_that_disagree():
    gt = ground_truth_3d([2, 3], torch.float32)
    with pytest.raises(ValueError, match=r"GroundTruth3D: label_list of sample 1 must be \(3,\), got \(2,\)"):
        GroundTruth3D(gt.box_list, [gt.label_list[0], gt.label_list[1][1:]])
    with pytest.raises(ValueError, match="GroundTruth3D: label_list has 1 samples, box_list has 2"):
        GroundTruth3D(gt.box_list, gt.label_list[:1])


def test_wrong_shapes_are_named():
    gt = ground_truth_3d([2], torch.float32)
    logits, boxes = predictions_3d(LAYERS, 1, torch.float32)
    config, matcher = StreamPETRLossConfig(), HungarianMatcher3D()
    with pytest.raises(ValueError, match=r"cls_logits must be \[L, B, Q, 10\], got \(3, 1, 30, 9\)"):
        streampetr_loss(logits[..., :9], boxes, gt, matcher, config)
    with pytest.raises(ValueError, match=r"box_preds must be \(3, 1, 30, 10\).*got \(3, 1, 30, 8\)"):
        streampetr_loss(logits, boxes[..., :8], gt, matcher, config)
    with pytest.raises(ValueError, match="with 8 code weights"):
        streampetr_loss(logits, boxes[..., :8], gt, matcher, dataclasses.replace(config, code_weights=(1.0,) * 8))
    with pytest.raises(ValueError, match="predictions are for 1 samples, ground truth is for 2"):
        streampetr_loss(logits, boxes, ground_truth_3d([1, 1], torch.float32), matcher, config)
