"""BatchedCenterHead beside mmdet3d's CenterHead as installed: the same targets bit for bit, the same losses."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from bev_cases import FACTOR, HEIGHT, ORIGIN, TASKS, VOXEL, WIDTH, batches, random_boxes, same_bits
from mmdet3d.models.utils import gaussian_radius
from mmdet3d.registry import MODELS
from mmdet3d.structures import DepthInstance3DBoxes, LiDARInstance3DBoxes
from mmengine.structures import InstanceData

import raggedbev.mm  # noqa: F401
from raggedbev.heatmap import centerpoint_radius, whole_radius
from raggedbev.mm.heads.center_head import BatchedCenterHead, BatchedCenterTargets
from raggedbev.profiling.syncs import HostSyncCounter

from .packing import packed

NAMES = iter("abcdefghijklmnop")
HEADS = {"reg": (2, 2), "height": (1, 2), "dim": (3, 2), "rot": (2, 2), "vel": (2, 2)}
CONFIG = {
    "in_channels": 8,
    "tasks": [{"num_class": n, "class_names": [next(NAMES) for _ in range(n)]} for n in TASKS],
    "common_heads": HEADS,
    "share_conv_channel": 8,
    "bbox_coder": {
        "type": "CenterPointBBoxCoder",
        "post_center_range": [-61.2, -61.2, -10.0, 61.2, 61.2, 10.0],
        "pc_range": list(ORIGIN),
        "out_size_factor": FACTOR,
        "voxel_size": list(VOXEL),
        "code_size": 9,
    },
    "separate_head": {"type": "SeparateHead", "init_bias": -2.19, "final_kernel": 3},
    "loss_cls": {"type": "mmdet.GaussianFocalLoss", "reduction": "mean"},
    "loss_bbox": {"type": "mmdet.L1Loss", "reduction": "mean", "loss_weight": 0.25},
    "train_cfg": {
        "grid_size": [WIDTH * FACTOR, HEIGHT * FACTOR, 1],
        "voxel_size": [*VOXEL, 8],
        "point_cloud_range": [*ORIGIN, -5.0, ORIGIN[0] + 51.2, ORIGIN[1] + 48.0, 3.0],
        "out_size_factor": FACTOR,
        "dense_reg": 1,
        "gaussian_overlap": 0.1,
        "max_objs": 500,
        "min_radius": 2,
        "code_weights": [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2],
    },
}


def build(kind, **changes):
    config = copy.deepcopy(CONFIG)
    config["train_cfg"] |= changes.pop("train_cfg", {})
    return MODELS.build(config | {"type": kind} | changes)


def pair(**changes):
    """The stock head and ours with the same weights."""
    stock, ours = build("CenterHead", **changes), build("BatchedCenterHead", **changes)
    assert isinstance(ours, BatchedCenterHead) and set(stock.state_dict()) == set(ours.state_dict())
    ours.load_state_dict(stock.state_dict())
    return stock, ours


def instances(samples, box_type=LiDARInstance3DBoxes):
    width = samples[0][0].shape[1]
    return [
        InstanceData(bboxes_3d=box_type(boxes, box_dim=width, origin=(0.5, 0.5, 0.5)), labels_3d=labels)
        for boxes, labels in samples
    ]


def assert_same_targets(stock, ours, gt):
    for kind, (theirs, found) in enumerate(zip(stock.get_targets(gt), ours.get_targets(gt), strict=True)):
        for task, (one, other) in enumerate(zip(found, theirs, strict=True)):
            assert same_bits(one, other), (kind, task)


def usable(samples):
    """Without boxes at which the stock loop fails: it cannot make a whole radius of infinite sizes."""
    return [(boxes[~boxes[:, 3:5].isinf().any(1)], labels[~boxes[:, 3:5].isinf().any(1)]) for boxes, labels in samples]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm_bbox": False},
        {"train_cfg": {"max_objs": 3, "dense_reg": 2}},
        {"train_cfg": {"min_radius": 0, "gaussian_overlap": 0.7}},
    ],
)
def test_targets_equal_the_stock_loop(changes, generator):
    stock, ours = pair(**changes)
    for samples in batches(generator):
        assert_same_targets(stock, ours, instances(usable(samples)))


def test_targets_of_other_box_types(generator):
    stock, ours = pair()
    assert_same_targets(stock, ours, instances([random_boxes(generator, 20)] * 2, DepthInstance3DBoxes))


def test_radius_equals_the_stock_function(generator):
    sizes = 10 ** (torch.rand(3000, 2, generator=generator) * 5 - 2)
    for overlap in (0.1, 0.5, 0.7):
        found = centerpoint_radius(sizes[:, 0], sizes[:, 1], overlap)
        expected = torch.stack([gaussian_radius((height, width), min_overlap=overlap) for height, width in sizes])
        assert torch.equal(found, expected)
        assert whole_radius(found, 2).tolist() == [max(2, int(radius)) for radius in expected]


def features(generator, batch):
    return [torch.randn(batch, 8, HEIGHT, WIDTH, generator=generator)]


def losses_and_gradients(head, feats, gt):
    head.zero_grad()
    losses = head.loss_by_feat(head(feats), gt)
    sum(losses.values()).backward()
    gradients = {name: parameter.grad for name, parameter in head.named_parameters()}
    return {key: loss.detach() for key, loss in losses.items()}, gradients


@pytest.mark.parametrize("loss_bbox", ["mmdet.L1Loss", "mmdet.SmoothL1Loss"])
@pytest.mark.parametrize("case", [0, 1, 4, 5, 6, 7])
def test_losses_equal_the_stock_head(case, loss_bbox, generator):
    stock, ours = pair(loss_bbox={"type": loss_bbox, "reduction": "mean", "loss_weight": 0.3})
    samples = batches(generator)[case]
    feats, gt = features(generator, len(samples)), instances(samples)
    expected, expected_gradients = losses_and_gradients(stock, feats, gt)
    found, gradients = losses_and_gradients(ours, feats, gt)
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    for name, gradient in expected_gradients.items():
        assert (gradient is None) == (gradients[name] is None)
        assert gradient is None or torch.equal(gradients[name], gradient), name


@pytest.mark.parametrize("sizes", [(30, 0, 7), (0, 0), (1,)], ids=str)
def test_packed_objects_give_the_same_numbers(sizes, generator):
    head = build("BatchedCenterHead")
    gt, feats = instances([random_boxes(generator, n) for n in sizes]), features(generator, len(sizes))
    expected, expected_gradients = losses_and_gradients(head, feats, gt)
    found, gradients = losses_and_gradients(head, feats, packed(gt))
    assert all(torch.equal(found[key], loss) for key, loss in expected.items())
    assert all(torch.equal(gradients[name], one) for name, one in expected_gradients.items() if one is not None)


def test_losses_of_degenerate_boxes(generator):
    """NaN velocities make the stock loss NaN; so is ours."""
    stock, ours = pair()
    samples = usable(batches(generator)[2])
    feats, gt = features(generator, 1), instances(samples)
    expected, _ = losses_and_gradients(stock, feats, gt)
    found, _ = losses_and_gradients(ours, feats, gt)
    assert all(same_bits(found[key], expected[key]) for key in expected)
    assert any(loss.isnan() for loss in expected.values())


def test_without_velocity(generator):
    common = {name: value for name, value in HEADS.items() if name != "vel"}
    ours = build("BatchedCenterHead", common_heads=common, train_cfg={"code_weights": [1.0] * 8})
    gt = instances([(boxes[:, :7], labels) for boxes, labels in batches(generator)[6]])
    losses, gradients = losses_and_gradients(ours, features(generator, 3), gt)
    assert all(loss.isfinite() for loss in losses.values()) and all(g is not None for g in gradients.values())
    assert ours.get_targets(gt)[1][0].shape[-1] == 8
    with pytest.raises(ValueError, match="predicts 10 numbers per box, the ground truth has 8"):
        losses_and_gradients(build("BatchedCenterHead"), features(generator, 3), gt)
    with pytest.raises(ValueError, match="code_weights must have 10 numbers, got 8"):
        wrong = build("BatchedCenterHead", train_cfg={"code_weights": [1.0] * 8})
        losses_and_gradients(wrong, features(generator, 3), instances(batches(generator)[6]))


def test_cos_before_sin(generator):
    class DsvtLike(BatchedCenterTargets, type(build("CenterHead"))):
        cos_first = True

    config = copy.deepcopy(CONFIG)
    gt = instances([random_boxes(generator, 30)])
    swapped = DsvtLike(**config).get_targets(gt)[1]
    for one, other in zip(swapped, build("BatchedCenterHead").get_targets(gt)[1], strict=True):
        assert torch.equal(one[..., [0, 1, 2, 3, 4, 5, 7, 6, 8, 9]], other)


def test_nothing_waits_from_predictions_to_gradients(generator):
    stock, ours = pair()
    gt, feats = instances(batches(generator)[7]), features(generator, 3)
    losses_and_gradients(ours, feats, gt)
    with HostSyncCounter("cpu") as syncs:
        losses_and_gradients(ours, feats, gt)
    assert dict(syncs.by_kind) == {}
    with HostSyncCounter("cpu") as syncs:
        losses_and_gradients(stock, feats, gt)
    assert syncs.count > 500


def test_predictions_are_those_of_the_stock_head(generator):
    changes = {
        "test_cfg": {
            "max_per_img": 500,
            "min_radius": [4, 12, 10, 1, 0.85, 0.175],
            "post_max_size": 83,
            "nms_type": "circle",
        }
    }
    stock, ours = (head.eval() for head in pair(**changes))
    feats, metas = features(generator, 2), [{"box_type_3d": LiDARInstance3DBoxes}] * 2
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the stock coder copies a tensor in a way that torch dislikes
        expected, found = (head.predict_by_feat(head(feats), metas) for head in (stock, ours))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.bboxes_3d.tensor, other.bboxes_3d.tensor)
        assert torch.equal(one.scores_3d, other.scores_3d) and torch.equal(one.labels_3d, other.labels_3d)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_the_device_nothing_waits(generator):
    ours = build("BatchedCenterHead").cuda()
    gt = [sample.to("cuda") for sample in instances(batches(generator)[7])]
    feats = [feature.cuda() for feature in features(generator, 3)]
    losses_and_gradients(ours, feats, gt)
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses_and_gradients(ours, feats, gt)
    finally:
        torch.cuda.set_sync_debug_mode("default")
