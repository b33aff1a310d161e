"""Packed ground truth: the same losses as from lists, whatever the padded length; a tree of tensors."""

from __future__ import annotations

import pytest
import torch
from torch.utils import _pytree as pytree

from raggedbev import Buckets
from raggedbev.losses import (
    DenoisingConfig,
    DenoisingOutput,
    FocalHeadLossConfig,
    PackedGroundTruth2D,
    PackedGroundTruth3D,
    StreamPETRLossConfig,
    focal_head_loss,
    prepare_denoising,
    streampetr_loss,
    unpack_uniform,
)
from raggedbev.matching import HungarianMatcher2D, HungarianMatcher3D
from raggedbev.profiling.syncs import HostSyncCounter

from .random_cases import PAD_SHAPE, SIZES, ground_truth_2d, ground_truth_3d, predictions_2d, predictions_3d

GROUPS = 3
BUCKETS = Buckets((4, 16))


def losses_3d(gt, noise):
    """With predictions of denoising queries that do not depend on the padded length."""
    queries = prepare_denoising(gt, DenoisingConfig(groups=GROUPS), uniform=noise)
    logits, boxes = (tensor.double().requires_grad_() for tensor in predictions_3d(2, gt.num_samples, torch.float64))
    codes = torch.cat([queries.known_boxes, queries.known_boxes[..., :1]], dim=-1) + 0.1
    dn = DenoisingOutput(codes.expand(2, *codes.shape), codes.expand(2, *codes.shape), queries)
    losses = streampetr_loss(logits, boxes, gt, HungarianMatcher3D(), StreamPETRLossConfig(), dn)
    return losses, torch.autograd.grad(sum(losses.values()), (logits, boxes))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_3d_losses_do_not_depend_on_the_padded_length(sizes):
    gt = ground_truth_3d(sizes, torch.float64)
    noise = torch.rand(GROUPS * sum(sizes), 3, dtype=torch.float64)
    wanted = losses_3d(gt, unpack_uniform(noise, sizes, GROUPS))
    for buckets in (None, BUCKETS):
        packed = gt.packed(buckets)
        length = packed.boxes.max_sample_size
        assert length == (max(sizes) if buckets is None else buckets(max(sizes)))
        spread = torch.nn.functional.pad(unpack_uniform(noise, sizes, GROUPS), (0, 0, 0, length - max(sizes)))
        found = losses_3d(packed, spread)
        assert list(found[0]) == list(wanted[0])
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_2d_losses_do_not_depend_on_the_padded_length(sizes):
    gt, found = ground_truth_2d(sizes, torch.float64), []
    for truth in (gt, gt.packed(), gt.packed(BUCKETS)):
        preds = [tensor.requires_grad_() for tensor in predictions_2d(len(sizes), torch.float64)]
        losses = focal_head_loss(*preds, truth, HungarianMatcher2D(), FocalHeadLossConfig(), PAD_SHAPE)
        found.append((losses, torch.autograd.grad(sum(losses.values()), preds)))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-12, atol=1e-12)


def test_it_is_packed_once():
    gt = ground_truth_3d([3, 1], torch.float32)
    assert gt.packed(Buckets()) is gt.packed(Buckets()) and gt.packed().boxes is gt.boxes
    assert gt.packed().packed(Buckets()) is gt.packed()
    truth = ground_truth_2d([3, 1], torch.float32)
    assert truth.packed(BUCKETS) is truth.packed(BUCKETS) and truth.packed().centers is truth.centers


def test_packing_reads_nothing():
    truths = (ground_truth_3d([3, 1], torch.float32), ground_truth_2d([3, 1], torch.float32))
    with HostSyncCounter("cpu") as syncs:
        for truth in truths:
            truth.packed(BUCKETS), truth.packed()
    assert dict(syncs.by_kind) == {}


@pytest.mark.parametrize("make", [ground_truth_3d, ground_truth_2d])
def test_a_tree_of_tensors(make):
    packed = make([3, 1], torch.float32).packed(BUCKETS)
    leaves, spec = pytree.tree_flatten(packed)
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves) and len(leaves) == (
        3 if make is ground_truth_3d else 4
    )
    again = pytree.tree_unflatten([leaf + 0 for leaf in leaves], spec)
    assert type(again) is type(packed)
    assert torch.equal(again.boxes.tensor, packed.boxes.tensor) and again.labels.layout is again.boxes.layout
    assert again.boxes.sample_sizes.tolist() == [3, 1] and again.boxes.max_sample_size == 4


def test_denoising_is_a_tree_of_tensors():
    gt = ground_truth_3d([3, 1], torch.float32)
    queries = prepare_denoising(gt, DenoisingConfig(groups=GROUPS))
    output = DenoisingOutput(torch.zeros(1), torch.ones(1), queries)
    leaves, spec = pytree.tree_flatten(output)
    again = pytree.tree_unflatten(leaves, spec)
    assert len(leaves) == 7 and vars(again.queries) == vars(queries) and again.box_preds is output.box_preds


def test_batches_that_disagree_are_named():
    truth, other = ground_truth_3d([3, 1], torch.float32), ground_truth_3d([3, 1, 0], torch.float32)
    with pytest.raises(ValueError, match=r"labels must be a ragged batch \(2, 3\), got \(3, 3\)"):
        PackedGroundTruth3D(truth.boxes, other.labels)
    with pytest.raises(ValueError, match="labels must be int64, got"):
        PackedGroundTruth3D(truth.boxes, truth.labels.to_dtype(torch.int32))
    with pytest.raises(ValueError, match=r"labels has the sizes \[1, 3\], boxes has \[3, 1\]"):
        PackedGroundTruth3D(truth.boxes, ground_truth_3d([1, 3], torch.float32).labels)
    flat = ground_truth_2d([3, 1], torch.float32)
    with pytest.raises(ValueError, match=r"centers must be a ragged batch \(2, 3, 2\), got \(2, 3, 4\)"):
        PackedGroundTruth2D(flat.boxes, flat.labels, flat.boxes)
