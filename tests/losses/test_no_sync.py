"""Nothing waits for the device between predictions and losses, but the solver's one copy there and back."""

from __future__ import annotations

import pytest
import torch

from raggedbev._extension import COMPILED
from raggedbev.losses import (
    DenoisingConfig,
    DenoisingOutput,
    FocalHeadLossConfig,
    GroundTruth2D,
    GroundTruth3D,
    StreamPETRLossConfig,
    attention_mask,
    count_nonfinite,
    focal_head_loss,
    prepare_denoising,
    streampetr_loss,
)
from raggedbev.matching import HungarianMatcher2D, HungarianMatcher3D
from raggedbev.profiling.syncs import HostSyncCounter

from .random_cases import PAD_SHAPE, denoising_3d, ground_truth_2d, ground_truth_3d, predictions_2d, predictions_3d

SIZES = [4, 0, 7]


class Replay:
    """An assigner that knows its answer."""

    def __init__(self, matcher):
        self.matcher, self.answer = matcher, None

    def assign_batch(self, *args):
        if self.answer is None:
            self.answer = self.matcher.assign_batch(*args)
        return self.answer


def case_3d():
    gt, preds = ground_truth_3d(SIZES, torch.float32), predictions_3d(3, len(SIZES), torch.float32)
    return preds, gt, denoising_3d(gt, 3, torch.float32), StreamPETRLossConfig()


@pytest.mark.parametrize("sizes", [SIZES, [0, 0]])
def test_ground_truth_and_denoising(sizes):
    gt = ground_truth_3d(sizes, torch.float32)
    with HostSyncCounter("cpu") as syncs:
        queries = prepare_denoising(gt, DenoisingConfig())
        attention_mask(queries.pad, queries.groups, 10, 4, 8)
    assert dict(syncs.by_kind) == {}


def test_3d_loss_forward_and_backward():
    (logits, boxes), gt, dn, config = case_3d()
    assigner = Replay(HungarianMatcher3D())
    logits.requires_grad_(), boxes.requires_grad_()
    streampetr_loss(logits, boxes, gt, assigner, config, dn)
    with HostSyncCounter("cpu") as syncs:
        losses = streampetr_loss(logits, boxes, gt, assigner, config, dn, reduce_mean=lambda counts: counts * 1.5)
        sum(losses.values()).backward()
        count_nonfinite(logits, boxes)
    assert dict(syncs.by_kind) == {}


def test_2d_loss_forward_and_backward():
    gt, preds = ground_truth_2d(SIZES, torch.float32), predictions_2d(3, torch.float32)
    assigner, config = Replay(HungarianMatcher2D()), FocalHeadLossConfig()
    preds = [tensor.requires_grad_() for tensor in preds]
    focal_head_loss(*preds, gt, assigner, config, PAD_SHAPE)
    with HostSyncCounter("cpu") as syncs:
        losses = focal_head_loss(*preds, gt, assigner, config, PAD_SHAPE, reduce_mean=lambda counts: counts * 1.5)
        sum(losses.values()).backward()
    assert dict(syncs.by_kind) == {}


def test_costs():
    (logits, boxes), gt, _, config = case_3d()
    with HostSyncCounter("cpu") as syncs:
        HungarianMatcher3D().cost(logits, boxes, gt.boxes.tensor, gt.labels.tensor, config.match_costs)
    assert dict(syncs.by_kind) == {}


def test_losses_compile_without_a_graph_break():
    """Given the assignment, the whole loss is one graph."""
    (logits, boxes), gt, dn, config = case_3d()
    assigner = Replay(HungarianMatcher3D())
    wanted = streampetr_loss(logits, boxes, gt, assigner, config, dn)

    @torch.compile(fullgraph=True, backend="eager")
    def compiled(logits, boxes, dn_logits, dn_boxes):
        return streampetr_loss(logits, boxes, gt, assigner, config, DenoisingOutput(dn_logits, dn_boxes, dn.queries))

    found = compiled(logits, boxes, dn.cls_logits, dn.box_preds)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def training_step(device):
    """Packing, denoising queries, both losses and backward on a device, as a function to call again and again.

    The assigners give the answer of the first call in all later ones.
    """
    truth_3d, truth_2d = ground_truth_3d(SIZES, torch.float32), ground_truth_2d(SIZES, torch.float32)
    lists_3d = [[t.to(device) for t in part] for part in (truth_3d.box_list, truth_3d.label_list)]
    parts_2d = (truth_2d.box_list, truth_2d.label_list, truth_2d.center_list)
    lists_2d = [[t.to(device) for t in part] for part in parts_2d]
    denoising = DenoisingConfig(groups=3)
    pad = denoising.groups * max(SIZES)
    matching, noisy = predictions_3d(3, len(SIZES), torch.float32), predictions_3d(3, len(SIZES), torch.float32, pad)
    image = predictions_2d(len(SIZES), torch.float32)
    logits, boxes, dn_logits, dn_boxes, *preds_2d = (t.to(device).requires_grad_() for t in (*matching, *noisy, *image))
    assigner_3d, assigner_2d = Replay(HungarianMatcher3D()), Replay(HungarianMatcher2D())

    def step():
        gt, gt_2d = GroundTruth3D(*lists_3d), GroundTruth2D(*lists_2d)
        queries = prepare_denoising(gt, denoising)
        attention_mask(queries.pad, queries.groups, 10, 4, 8, device=device)
        dn = DenoisingOutput(dn_logits, dn_boxes, queries)
        losses = streampetr_loss(logits, boxes, gt, assigner_3d, StreamPETRLossConfig(), dn)
        losses |= focal_head_loss(*preds_2d, gt_2d, assigner_2d, FocalHeadLossConfig(), PAD_SHAPE)
        sum(losses.values()).backward()
        count_nonfinite(logits, boxes, dn_logits, dn_boxes)
        assert all(t.grad is not None for t in (logits, boxes, dn_logits, dn_boxes, *preds_2d))

    return step


def test_a_whole_step():
    step = training_step("cpu")
    step()
    with HostSyncCounter("cpu") as syncs:
        step()
    assert dict(syncs.by_kind) == {}


def test_gradients_read_nothing_either():
    """Counting from outside misses what gradients in C++ read, that of `prod` for instance; a profile does not."""
    step = training_step("cpu")
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    names = {event.key for event in profile.key_averages()}
    assert "raggedbev::class_loss_sums" in names or not COMPILED
    assert not names & {"aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_the_device_nothing_waits():
    """Torch itself reports waits there, with the solvers' answers given."""
    step = training_step("cuda")
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
