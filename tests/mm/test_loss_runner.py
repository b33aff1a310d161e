"""Heads whose loss is captured or compiled: same losses and gradients, padded lengths in buckets."""

from __future__ import annotations

import copy

import pytest
import torch

from raggedbev._extension import COMPILED
from raggedbev.mm.streampetr.detector import token_location

from ..losses.recorder import Recorder
from .small_heads import PAD_SHAPE, head_2d, head_3d, outputs_2d, outputs_3d, truth_2d, truth_3d

BATCHES = ([3, 0, 12], [1, 16, 2], [0, 0, 0], [5, 5, 17])


def recorded(head):
    """The head, with a recorder in place of CUDA graphs."""
    head.runner.loss.backend = head.runner.sums.backend = Recorder()
    return head


def check_3d(found, plain, sizes):
    gt, results = truth_3d(sizes), []
    for head in (found, plain):
        outs = outputs_3d(gt)
        losses = head.loss(outs, gt)
        leaves = (outs["all_cls_scores"], outs["all_bbox_preds"])
        results.append((losses, torch.autograd.grad(sum(losses.values()), leaves)))
    assert list(results[0][0]) == list(results[1][0])
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-7)


def check_2d(found, plain, sizes):
    gt, results = truth_2d(sizes), []
    for head in (found, plain):
        outs = {name: tensor.requires_grad_() for name, tensor in outputs_2d().items()}
        losses = head.loss(outs, gt, PAD_SHAPE)
        results.append((losses, torch.autograd.grad(sum(losses.values()), list(outs.values()))))
    assert list(results[0][0]) == list(results[1][0])
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-7)


def test_captured_3d_losses():
    head, plain = recorded(head_3d("Batched", loss_graph=True)), head_3d("Batched")
    for sizes in BATCHES[:2]:
        check_3d(head, plain, sizes)
    assert head.runner.loss.num_captures == 2  # the denoising queries of `outputs_3d` are not in buckets
    with torch.no_grad():
        head.code_weights.mul_(3.0)
        plain.code_weights.mul_(3.0)
    check_3d(head, plain, BATCHES[0])
    assert head.runner.loss.num_captures == 2
    head.dn_weight = plain.dn_weight = 0.5
    check_3d(head, plain, BATCHES[0])
    assert head.runner.loss.num_captures == 3


def test_captured_2d_losses():
    head, plain = recorded(head_2d("Batched", loss_graph=True)), head_2d("Batched")
    for sizes in BATCHES:
        check_2d(head, plain, sizes)
    assert head.runner.loss.num_captures == 3 and head.runner.loss.num_eager == 0


@pytest.mark.skipif(not COMPILED, reason="SciPy's solver is no part of a graph")
def test_compiled_losses():
    torch.compiler.reset()
    for make, check in ((head_2d, check_2d), (head_3d, check_3d)):
        head, plain = make("Batched", loss_compile="aot_eager"), make("Batched")
        for stance in ("default", "fail_on_recompile"):
            with torch.compiler.set_stance(stance):
                check(head, plain, BATCHES[0])


def frame(batch):
    matrix = torch.eye(4, dtype=torch.float64).repeat(batch, 1, 1)
    cameras = matrix.unsqueeze(1)
    past = {"ego_pose": matrix, "ego_pose_inv": matrix, "timestamp": torch.zeros(batch, dtype=torch.float64)}
    return {
        "intrinsics": cameras,
        "lidar2img": cameras,
        **past,
        "prev_exists": torch.zeros(batch),
        "pad_shape": PAD_SHAPE,
    }


@pytest.mark.parametrize(("options", "length"), [({}, 12), ({"padded_sizes": [8]}, 16), ({"loss_graph": True}, 16)])
def test_denoising_queries_have_the_padded_length(options, length):
    head, gt = head_3d("Batched", **options), truth_3d([3, 0, 12])
    feats, location = torch.randn(3, 1, 16, 4, 6), token_location(4, 6, 16, PAD_SHAPE, torch.device("cpu"))
    outs = head(feats, location, frame(3), gt)
    assert outs["dn"].queries.single_pad == length
    losses = head.loss(outs, gt)
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()


def test_training_with_captured_losses_follows_the_plain_head():
    """Batches of one bucket, one after another, with the optimiser's steps in between; without denoising noise."""
    torch.manual_seed(0)
    plain = head_3d("Batched", padded_sizes=[16], scalar=0, transformer=decoder())
    head = recorded(head_3d("Batched", loss_graph=True, scalar=0, transformer=decoder()))
    head.load_state_dict(plain.state_dict())
    feats, location = torch.randn(3, 1, 16, 4, 6), token_location(4, 6, 16, PAD_SHAPE, torch.device("cpu"))
    history = {}
    for name, model in (("plain", plain), ("captured", head)):
        optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
        history[name] = []
        for sizes in ([3, 0, 12], [1, 2, 3], [0, 0, 0]):
            gt = truth_3d(sizes)
            model.reset_memory()
            losses = model.loss(model(feats, location, frame(3), gt), gt)
            optimiser.zero_grad()
            sum(losses.values()).backward()
            optimiser.step()
            history[name].append({key: value.item() for key, value in losses.items()})
    assert history["plain"] == history["captured"] and head.runner.loss.num_replays == 3


def decoder():
    return {"type": "StreamPETRTransformer", "num_layers": 2, "num_heads": 8, "ffn_dims": 32, "dropout": 0.0}


def test_a_copied_head_captures_for_itself():
    head = recorded(head_2d("Batched", loss_graph=True))
    head.loss(outputs_2d(), truth_2d(), PAD_SHAPE)
    other = copy.deepcopy(head)
    assert other.runner.loss.num_captures == 0 and head.runner.loss.num_captures == 1
    assert list(head.state_dict()) == list(head_2d("Batched").state_dict())


@pytest.mark.parametrize("make", [head_2d, head_3d])
def test_bad_options_are_one_sentence(make):
    with pytest.raises(ValueError, match="takes loss_graph or loss_compile, not both"):
        make("Batched", loss_graph=True, loss_compile=True)
    with pytest.raises(ValueError, match=r"positive lengths in rising order, got \(16, 8\)"):
        make("Batched", padded_sizes=[16, 8])
