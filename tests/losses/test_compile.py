"""Whole losses as one compiled graph, from packed ground truth to gradients, with the same numbers."""

from __future__ import annotations

import pytest
import torch

from raggedbev._extension import COMPILED
from raggedbev.losses import (
    DenoisingConfig,
    DenoisingOutput,
    FocalHeadLossConfig,
    StreamPETRLossConfig,
    focal_head_loss,
    prepare_denoising,
    streampetr_loss,
)
from raggedbev.matching import HungarianMatcher2D, HungarianMatcher3D
from raggedbev.ragged import Buckets

from .random_cases import (
    PAD_SHAPE,
    detr_loss,
    detr_predictions,
    ground_truth_2d,
    ground_truth_3d,
    predictions_2d,
    predictions_3d,
)

pytestmark = pytest.mark.skipif(not COMPILED, reason="SciPy's solver is no part of a graph")
BUCKETS = Buckets((8,))
SETTINGS_3D = (HungarianMatcher3D(), StreamPETRLossConfig())
SETTINGS_2D = (HungarianMatcher2D(), FocalHeadLossConfig())
BATCHES = ([4, 0, 7], [8, 1, 1])


def loss_3d(logits, boxes, dn_logits, dn_boxes, queries, gt):
    dn = None if queries is None else DenoisingOutput(dn_logits, dn_boxes, queries)
    return streampetr_loss(logits, boxes, gt, *SETTINGS_3D, dn)


def loss_2d(*inputs):
    return focal_head_loss(*inputs, *SETTINGS_2D, PAD_SHAPE)


def inputs_3d(sizes, seed, layers, with_dn):
    gt = ground_truth_3d(sizes, torch.float32, seed).packed(BUCKETS)
    predictions = predictions_3d(layers, len(sizes), torch.float32, seed=seed + 1)
    if not with_dn:
        return (*predictions, None, None, None, gt)
    queries = prepare_denoising(gt, DenoisingConfig(groups=2), generator=torch.Generator().manual_seed(seed))
    return (*predictions, *predictions_3d(layers, len(sizes), torch.float32, queries.pad, seed + 2), queries, gt)


def inputs_2d(sizes, seed):
    gt = ground_truth_2d(sizes, torch.float32, seed).packed(BUCKETS)
    return (*predictions_2d(len(sizes), torch.float32, seed + 1), gt)


def inputs_detr(sizes, seed):
    gt = ground_truth_2d(sizes, torch.float32, seed).packed(BUCKETS)
    return (*detr_predictions(2, len(sizes), torch.float32, seed + 1), gt)


def losses_and_gradients(loss, inputs):
    leaves = [leaf.requires_grad_() for leaf in inputs if isinstance(leaf, torch.Tensor)]
    losses = loss(*inputs)
    return losses, torch.autograd.grad(sum(losses.values()), leaves)


CASES = {
    "3d with denoising": (loss_3d, lambda sizes, seed: inputs_3d(sizes, seed, 2, True), "aot_eager"),
    "2d": (loss_2d, inputs_2d, "aot_eager"),
    "detr": (detr_loss, inputs_detr, "aot_eager"),
    "3d, one layer": (loss_3d, lambda sizes, seed: inputs_3d(sizes, seed, 1, False), "inductor"),
}


@pytest.mark.parametrize("case", CASES)
def test_whole_losses(case):
    """Other objects in the same bucket reuse the graph."""
    loss, make, backend = CASES[case]
    torch.compiler.reset()
    options = {"cpp.simdlen": 1} if backend == "inductor" else None  # spares the search for vector units
    compiled = torch.compile(loss, fullgraph=True, dynamic=False, backend=backend, options=options)
    for seed, sizes in enumerate(BATCHES):
        inputs = make(sizes, seed)
        with torch.compiler.set_stance("default" if seed == 0 else "fail_on_recompile"):
            found = losses_and_gradients(compiled, inputs)
        wanted = losses_and_gradients(loss, inputs)
        assert list(found[0]) == list(wanted[0])
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
