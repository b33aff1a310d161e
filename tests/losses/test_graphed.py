"""Captured losses: replays equal the loss as it is, bit for bit, whatever happens in between.

On the CPU a recorder stands in for CUDA graphs; what needs the real ones runs where there is a CUDA device.
"""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
from functools import partial

import pytest
import torch
from torch.utils import _pytree as pytree

from raggedbev import Buckets
from raggedbev.losses import (
    CudaGraphs,
    DenoisingConfig,
    DenoisingOutput,
    FocalHeadLossConfig,
    GraphedLoss,
    GraphLimitWarning,
    StreamPETRLossConfig,
    focal_head_loss,
    prepare_denoising,
    streampetr_loss,
)
from raggedbev.losses.focal2d import focal_head_losses, focal_head_sums
from raggedbev.losses.streampetr import streampetr_losses, streampetr_sums
from raggedbev.matching import HungarianMatcher2D, HungarianMatcher3D
from raggedbev.profiling.syncs import HostSyncCounter

from .random_cases import (
    PAD_SHAPE,
    detr_loss,
    detr_predictions,
    ground_truth_2d,
    ground_truth_3d,
    predictions_2d,
    predictions_3d,
)
from .recorder import Recorder

LAYERS = 2
BUCKETS = Buckets((8,))
SETTINGS_3D = {"assigner": HungarianMatcher3D(), "config": StreamPETRLossConfig()}
SETTINGS_2D = {"assigner": HungarianMatcher2D(), "config": FocalHeadLossConfig(), "pad_shape": PAD_SHAPE}


@pytest.fixture
def backend(device):
    """Real graphs where there are any."""
    return CudaGraphs() if device.type == "cuda" else Recorder()


def inputs_3d(sizes, seed, device="cpu", with_dn=True):
    """Predictions that require a gradient, packed ground truth, and denoising queries with their predictions."""
    gt = ground_truth_3d(sizes, torch.float32, seed).packed(BUCKETS)
    predictions, dn = predictions_3d(LAYERS, len(sizes), torch.float32, seed=seed + 1), None
    if with_dn:
        queries = prepare_denoising(gt, DenoisingConfig(groups=2), generator=torch.Generator().manual_seed(seed))
        dn = DenoisingOutput(*predictions_3d(LAYERS, len(sizes), torch.float32, queries.pad, seed + 2), queries)
    return on_device((*predictions, gt, dn), device)


def inputs_2d(sizes, seed, device="cpu"):
    gt = ground_truth_2d(sizes, torch.float32, seed).packed(BUCKETS)
    return on_device((*predictions_2d(len(sizes), torch.float32, seed + 1), gt), device)


def inputs_detr(sizes, seed, device="cpu"):
    gt = ground_truth_2d(sizes, torch.float32, seed).packed(BUCKETS)
    return on_device((*detr_predictions(LAYERS, len(sizes), torch.float32, seed + 1), gt), device)


def on_device(inputs, device):
    """Predictions, but nothing of the ground truth, require a gradient."""

    def move(leaf):
        return leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf

    moved = pytree.tree_map(move, inputs)
    for tensor in predictions_of(moved):
        tensor.requires_grad_()
    return moved


def predictions_of(inputs):
    found = [leaf for leaf in inputs if isinstance(leaf, torch.Tensor)]
    dn = [leaf for leaf in inputs if isinstance(leaf, DenoisingOutput)]
    return found + [tensor for output in dn for tensor in (output.cls_logits, output.box_preds)]


def loss_3d(logits, boxes, gt, dn):
    return streampetr_loss(logits, boxes, gt, dn=dn, **SETTINGS_3D)


def loss_2d(*inputs):
    return focal_head_loss(*inputs, **SETTINGS_2D)


def sums_3d(logits, boxes, gt, dn):
    return streampetr_sums(logits, boxes, gt, dn=dn, **SETTINGS_3D)


def sums_2d(*inputs):
    return focal_head_sums(*inputs, **SETTINGS_2D)


def doubled(counts):
    return counts * 2


def ranks_3d(sums):
    return streampetr_losses(sums, SETTINGS_3D["config"], doubled)


def ranks_2d(sums):
    return focal_head_losses(sums, SETTINGS_2D["config"], doubled)


LOSSES = {
    "3d": (loss_3d, inputs_3d, dict),
    "3d without denoising": (loss_3d, partial(inputs_3d, with_dn=False), dict),
    "2d": (loss_2d, inputs_2d, dict),
    "detr": (detr_loss, inputs_detr, dict),
    "3d, several ranks": (sums_3d, inputs_3d, ranks_3d),
    "2d, several ranks": (sums_2d, inputs_2d, ranks_2d),
}
# With buckets of 8: three batches of one padded length, then others.
BATCHES = [[4, 0, 7], [8, 8, 1], [1, 2, 3], [9, 0, 0], [0, 0, 0], [3, 3, 8], [16, 1, 12]]


def losses_and_gradients(loss, inputs, finish=dict):
    losses = finish(loss(*inputs))
    total = sum((0.5 + number) * value for number, value in enumerate(losses.values()))
    return losses, torch.autograd.grad(total, predictions_of(inputs), allow_unused=True)


def assert_equal_bits(found, wanted):
    for one, other in zip(pytree.tree_leaves(found), pytree.tree_leaves(wanted), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
            assert one.requires_grad == other.requires_grad


@pytest.mark.parametrize("case", LOSSES)
def test_replays_equal_the_loss_itself(case, device, backend):
    loss, make, finish = LOSSES[case]
    graphed = GraphedLoss(loss, backend=backend)
    for seed, sizes in enumerate(BATCHES):
        inputs = make(sizes, seed, device)
        found, wanted = (losses_and_gradients(function, inputs, finish) for function in (graphed, loss))
        assert list(found[0]) == list(wanted[0])
        assert_equal_bits(found, wanted)
    assert (graphed.num_captures, graphed.num_replays, graphed.num_eager) == (3, len(BATCHES), 0)


def test_replays_read_nothing_on_the_host():
    graphed = GraphedLoss(loss_3d, backend=Recorder())
    losses_and_gradients(graphed, inputs_3d([4, 2], 0))
    inputs = inputs_3d([1, 7], 1)
    with HostSyncCounter("cpu") as syncs:
        losses_and_gradients(graphed, inputs)
    assert dict(syncs.by_kind) == {} and graphed.num_captures == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("case", LOSSES)
def test_on_the_device_nothing_waits(case):
    loss, make, finish = LOSSES[case]
    graphed = GraphedLoss(loss)
    batches = [make(sizes, seed, "cuda") for seed, sizes in enumerate(BATCHES)]
    for inputs in batches:
        losses_and_gradients(graphed, inputs, finish)
    captured = graphed.num_captures
    torch.cuda.set_sync_debug_mode("error")
    try:
        for inputs in batches:
            losses_and_gradients(graphed, inputs, finish)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (graphed.num_captures, graphed.num_eager) == (captured, 0)


def square_sum(x, factor=2.0):
    return {"loss": factor * (x * x).sum(), "entries": x.detach().abs().sum(), "count": len(x)}


def leaf(*values, device=None):
    return torch.tensor(values, device=device, requires_grad=True)


def test_losses_that_wait_for_each_other_have_lanes_of_their_own(device, backend):
    """Two frames of a window: both forward passes come before the backward passes."""
    graphed = GraphedLoss(square_sum, backend=backend)
    for _ in range(2):
        first, second = leaf(1.0, 2.0, device=device), leaf(5.0, 7.0, device=device)
        (graphed(first)["loss"] + graphed(second)["loss"]).backward()
        assert first.grad.tolist() == [4.0, 8.0] and second.grad.tolist() == [20.0, 28.0]
    assert graphed.num_captures == 2 and graphed.num_replays == 4


def test_a_dropped_loss_frees_its_lane(device, backend):
    graphed = GraphedLoss(square_sum, backend=backend)
    for _ in range(3):
        graphed(leaf(1.0, 2.0, device=device))
        gc.collect()
    assert graphed.num_captures == 1


def test_results_and_gradients_outlive_the_next_replay(device, backend):
    graphed = GraphedLoss(square_sum, backend=backend)
    x, y = leaf(1.0, 2.0, device=device), leaf(3.0, 4.0, device=device)
    first = graphed(x)
    first["loss"].backward()
    gradient = x.grad
    second = graphed(y)
    second["loss"].backward()
    assert float(first["loss"].detach()) == 10.0 and gradient.tolist() == [4.0, 8.0]
    assert float(second["loss"].detach()) == 50.0 and graphed.num_captures == 1


def test_other_lengths_in_one_pool_do_not_disturb_each_other(device, backend):
    graphed = GraphedLoss(square_sum, backend=backend)
    for values in ((1.0, 2.0), (1.0, 2.0, 3.0), (4.0, 5.0), (6.0,), (7.0, 8.0, 9.0)):
        x = leaf(*values, device=device)
        graphed(x)["loss"].backward()
        assert x.grad.tolist() == [4 * value for value in values]
    assert graphed.num_captures == 3


def test_outputs_without_gradient_and_constants():
    found = GraphedLoss(square_sum, backend=Recorder())(leaf(1.0, -2.0))
    assert found["count"] == 2 and float(found["entries"]) == 3.0
    assert not found["entries"].requires_grad and found["loss"].requires_grad


def test_inputs_without_gradient():
    graphed = GraphedLoss(lambda x, unused, target: (x - target).abs().sum(), backend=Recorder())
    x, unused, target = leaf(1.0, 5.0), leaf(2.0), torch.tensor([3.0, 3.0])
    graphed(x, unused, target).backward()
    assert x.grad.tolist() == [-1.0, 1.0] and unused.grad is None and target.grad is None


def test_without_gradients_at_all():
    graphed = GraphedLoss(square_sum, backend=Recorder())
    with torch.no_grad():
        assert float(graphed(leaf(1.0, 2.0))["loss"]) == 10.0
        assert not graphed(leaf(3.0, 2.0))["loss"].requires_grad
    assert graphed.num_captures == 1
    for _ in range(2):
        with torch.inference_mode():
            assert graphed(torch.tensor([1.0, 3.0]))["loss"].is_inference()
        with torch.no_grad():
            assert float(graphed(torch.tensor([1.0, 4.0]))["loss"]) == 34.0
    assert graphed.num_captures == 3
    assert graphed(leaf(1.0, 2.0))["loss"].requires_grad
    assert not graphed(torch.tensor([1.0, 2.0]))["loss"].requires_grad
    assert graphed.num_captures == 5


KEYS = {
    "shape": (leaf(1.0), leaf(1.0, 2.0)),
    "type": (leaf(1.0), torch.ones(1, dtype=torch.float64, requires_grad=True)),
    "gradient": (leaf(1.0), torch.ones(1)),
    "layout": (torch.ones(2, 3), torch.ones(3, 2).T),
}


@pytest.mark.parametrize("what", KEYS)
def test_what_makes_a_capture(what):
    graphed = GraphedLoss(square_sum, backend=Recorder())
    one, other = KEYS[what]
    for x in (one, other, one, other):
        graphed(x)
    assert graphed.num_captures == 2


def test_constants_make_a_capture_of_their_own():
    graphed = GraphedLoss(square_sum, backend=Recorder())
    assert [float(graphed(torch.ones(2), factor)["loss"]) for factor in (2.0, 3.0, 2.0)] == [4.0, 6.0, 4.0]
    assert graphed.num_captures == 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        graphed(torch.ones(2), 2.0)
    assert graphed.num_captures == 3
    with pytest.raises(TypeError, match="unhashable"):
        graphed(torch.ones(2), {1, 2})


def test_beyond_the_limit_it_runs_as_it_is_and_says_so_once():
    graphed = GraphedLoss(square_sum, max_captures=2, backend=Recorder())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = [float(graphed(torch.ones(size))["loss"]) for size in (1, 2, 3, 4, 1, 2, 3)]
    assert found == [2.0, 4.0, 6.0, 8.0, 2.0, 4.0, 6.0]
    assert (graphed.num_captures, graphed.num_replays, graphed.num_eager) == (2, 4, 3)
    assert [entry.category for entry in caught] == [GraphLimitWarning] and caught[0].filename == __file__
    assert "captured for 2 sets of shapes" in str(caught[0].message)
    with pytest.raises(ValueError, match="max_captures must be at least 1, got 0"):
        GraphedLoss(square_sum, max_captures=0)


def test_beyond_the_limit_lanes_do_not_multiply():
    graphed = GraphedLoss(square_sum, max_captures=1, backend=Recorder())
    first, second = leaf(1.0), leaf(2.0)
    with pytest.warns(GraphLimitWarning):
        total = graphed(first)["loss"] + graphed(second)["loss"]
    total.backward()
    assert first.grad.item() == 4.0 and second.grad.item() == 8.0 and graphed.num_eager == 1


def test_on_the_cpu_it_runs_as_it_is():
    graphed = GraphedLoss(square_sum)
    x = leaf(1.0, 2.0)
    graphed(x)["loss"].backward()
    assert x.grad.tolist() == [4.0, 8.0]
    assert (graphed.num_captures, graphed.num_eager) == (0, 1)


def test_inside_a_compiled_function_it_is_the_loss():
    graphed = GraphedLoss(square_sum, backend=Recorder())
    compiled = torch.compile(lambda x: graphed(x)["loss"] + 1, fullgraph=True, backend="eager")
    assert float(compiled(torch.ones(2))) == 5.0 and graphed.num_captures == 0


def test_a_second_backward_pass():
    graphed = GraphedLoss(square_sum, backend=Recorder())
    x = leaf(1.0, 2.0)
    loss = graphed(x)["loss"]
    loss.backward(retain_graph=True)
    loss.backward(retain_graph=True)
    assert x.grad.tolist() == [8.0, 16.0]
    graphed(leaf(3.0, 4.0))
    with pytest.raises(RuntimeError, match="has been replayed since"):
        loss.backward()


def test_gradients_of_gradients_are_refused():
    graphed = GraphedLoss(square_sum, backend=Recorder())
    x, weight = leaf(1.0, 2.0), leaf(3.0)
    (slope,) = torch.autograd.grad(graphed(x)["loss"] * weight, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_a_loss_that_reads_values_cannot_be_captured():
    graphed = GraphedLoss(lambda x: x.sum() / max(float(x.detach()[0]), 1.0), backend=Recorder())
    with pytest.raises(RuntimeError, match="reads a value"):
        graphed(leaf(1.0, 2.0))
    assert graphed.num_captures == 0


def test_copies_capture_for_themselves():
    """A model with averaged weights is a deep copy; checkpoints and workers pickle."""
    graphed = GraphedLoss(square_sum, max_captures=3)
    graphed.backend = Recorder()
    graphed(leaf(1.0))
    other = copy.deepcopy(graphed)
    assert (other.num_captures, other.max_captures) == (0, 3)
    other(leaf(1.0))
    assert other.num_captures == 1 and graphed.num_replays == 1
    graphed.backend = CudaGraphs()
    assert pickle.loads(pickle.dumps(graphed)).max_captures == 3
