"""The detector with its real heads: both kinds train alike, and training helps."""

from __future__ import annotations

import pytest
import torch

from raggedbev.mm.collate import ragged_collate
from raggedbev.mm.streampetr.detector import ground_truth_2d, ground_truth_3d
from raggedbev.ragged.pack import is_split

from .golden_model import PC_RANGE, head_config
from .test_detector import B, build, inputs, sample

LOSSES_2D = {
    "loss_cls2d": {"type": "mmdet.QualityFocalLoss", "use_sigmoid": True, "beta": 2.0, "loss_weight": 2.0},
    "loss_centerness": {"type": "mmdet.GaussianFocalLoss", "loss_weight": 1.0},
    "loss_bbox2d": {"type": "mmdet.L1Loss", "loss_weight": 5.0},
    "loss_iou2d": {"type": "mmdet.GIoULoss", "loss_weight": 2.0},
    "loss_centers2d": {"type": "mmdet.L1Loss", "loss_weight": 10.0},
}
ASSIGNER_2D = {
    "cls_cost": {"type": "FocalLossCost", "weight": 2.0},
    "reg_cost": {"type": "BBoxL1Cost", "weight": 5.0, "box_format": "xywh"},
    "iou_cost": {"type": "IoUCost", "iou_mode": "giou", "weight": 2.0},
    "centers2d_cost": {"type": "BBox3DL1Cost", "weight": 10.0},
}
LOSSES_3D = {
    "loss_cls": {"type": "mmdet.FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 2.0},
    "loss_bbox": {"type": "mmdet.L1Loss", "loss_weight": 0.25},
}
ASSIGNER_3D = {
    "cls_cost": {"type": "FocalLossCost", "weight": 2.0},
    "reg_cost": {"type": "BBox3DL1Cost", "weight": 0.25},
    "iou_cost": {"type": "IoUCost", "weight": 0.0},
    "pc_range": PC_RANGE,
}


def real(kind, **changes):
    """A tiny detector with the ``PerSample`` or ``Batched`` heads and assigners."""
    roi_head = {
        "type": f"{kind}FocalHead",
        "in_channels": 64,
        "embed_dims": 64,
        "train_cfg": {"assigner": {"type": f"{kind}HungarianAssigner2D", **ASSIGNER_2D}},
        **LOSSES_2D,
    }
    head = head_config(
        type=f"{kind}StreamPETRHead",
        train_cfg={"assigner": {"type": f"{kind}HungarianAssigner3D", **ASSIGNER_3D}},
        **LOSSES_3D,
    )
    return build(img_roi_head=roi_head, pts_bbox_head=head, **changes)


def step(model, batch, samples, seed=0):
    """Losses and gradients of one step with fixed noise."""
    torch.manual_seed(seed)
    model.zero_grad()
    losses = model(batch, samples, mode="loss")
    sum(losses.values()).backward()
    return losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("counts", [(4, 2), (0, 3), (0, 0), (60, 1)])
def test_both_kinds_agree(counts):
    """In float64, where what differs between the kinds is their meaning and not the order of their sums."""
    torch.manual_seed(5)
    samples = [sample(count) for count in counts]
    batch = inputs()
    batch["img"] = batch["img"].double()
    (per_sample, left), (batched, right) = (
        step(real(kind).double(), batch, samples) for kind in ("PerSample", "Batched")
    )
    assert set(per_sample) == set(batched) and len(batched) >= 2 * 2 + 5
    for name, loss in per_sample.items():
        assert loss.dtype == torch.float64
        torch.testing.assert_close(batched[name], loss, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
    assert set(left) == set(right)
    for name, gradient in left.items():
        largest = gradient.abs().max().item()
        torch.testing.assert_close(
            right[name], gradient, rtol=0, atol=1e-10 * largest + 1e-14, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_trainings_go_the_same_way():
    """Step by step through frames that follow each other; AdamW makes more of rounding with every step."""
    torch.manual_seed(5)
    frames = []
    for index, counts in enumerate([(3, 1), (2, 0), (5, 2)]):
        batch = inputs(prev_exists=float(index > 0), time=0.5 * index, seed=index)
        frames.append(({**batch, "img": batch["img"].double()}, [sample(count, time=0.5 * index) for count in counts]))
    histories, weights = [], []
    for kind in ("PerSample", "Batched"):
        model, history = real(kind).double(), []
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for index, frame in enumerate(frames):
            losses, _ = step(model, *frame, seed=index)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 35)
            optimizer.step()
            history.append({name: loss.item() for name, loss in losses.items()})
        histories.append(history)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    for per_sample, batched in zip(*histories, strict=True):
        assert batched == pytest.approx(per_sample, rel=1e-8)
    assert len({history["loss_cls"] for history in histories[0]}) == len(frames)
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["PerSample", "Batched"])
@pytest.mark.parametrize("counts", [(4, 2), (0, 3), (0, 0)])
def test_packed_objects_give_the_same_numbers(kind, counts):
    """The same bits, whether objects come from `ragged_collate` or as plain instances."""
    samples, model = [sample(count) for count in counts], real(kind)
    expected, expected_gradients = step(model, inputs(), samples)
    model.reset_memory()
    batch = ragged_collate([{"data_samples": one} for one in samples])
    packed, _ = batch["data_samples"].unpack(torch.device("cpu"))
    truth = ground_truth_3d(packed), ground_truth_2d(packed)
    assert all(is_split(one.box_list) and is_split(one.label_list) for one in truth)
    found, gradients = step(model, inputs(), packed)
    assert all(torch.equal(found[name], loss) for name, loss in expected.items())
    assert all(torch.equal(gradients[name], one) for name, one in expected_gradients.items())


@pytest.mark.parametrize("counts", [(3, 0), (0, 0)])
def test_every_parameter_has_a_gradient(counts):
    model = real("Batched")
    _, gradients = step(model, inputs(), [sample(count) for count in counts])
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(gradients)
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_windows_have_the_losses_of_each_frame():
    model = real("Batched", num_frame_head_grads=2, num_frame_backbone_grads=2, num_frame_losses=2)
    batch = inputs(frames=3, prev_exists=1.0)
    batch["prev_exists"][:, 0] = 0
    losses = model(batch, [[sample(2) for _ in range(3)] for _ in range(B)], mode="loss")
    names = {key.removeprefix("frame_1_") for key in losses if key.startswith("frame_1_")}
    assert "loss_cls" in names and "d0.loss_cls" in names
    assert {f"frame_{i}_{name}" for i in (1, 2) for name in names} == set(losses)


def test_losses_fall():
    torch.manual_seed(0)
    model, batch, samples = real("Batched"), inputs(1), [sample(3)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    history = []
    for seed in range(30):
        losses, _ = step(model, batch, samples, seed)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 35)
        optimizer.step()
        history.append(sum(losses.values()).item())
    assert sum(history[-3:]) < 0.7 * sum(history[:3])
