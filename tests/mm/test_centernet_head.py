"""BatchedCenterNetHead beside mmdet's CenterNetHead as installed: the same targets bit for bit, the same losses."""

from __future__ import annotations

import pytest
import torch
from bev_cases import same_bits
from mmdet.models.utils import gaussian_radius
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

import raggedbev.mm  # noqa: F401
from raggedbev.heatmap import centernet_radius
from raggedbev.profiling.syncs import HostSyncCounter

from .packing import packed

MAP, IMAGE, CLASSES = (24, 32), (96, 160), 5


@pytest.fixture(autouse=True)
def _in_mmdet():
    with DefaultScope.overwrite_default_scope("mmdet"):
        yield


def pair(**changes):
    config = {"in_channels": 4, "feat_channels": 4, "num_classes": CLASSES, **changes}
    stock, ours = (MODELS.build({"type": kind, **config}) for kind in ("CenterNetHead", "BatchedCenterNetHead"))
    ours.load_state_dict(stock.state_dict())
    return stock, ours


def sample(generator, count):
    """Boxes with their centres on the map (in (-1, 0) cells too), where the stock loop can index, and labels."""
    center = torch.rand(count, 2, generator=generator) * torch.tensor([164.0, 99.0]) - torch.tensor([4.9, 3.9])
    half = torch.rand(count, 2, generator=generator) * torch.tensor([60.0, 40.0])
    boxes = torch.cat([center - half, center + half], 1)
    cells = (boxes[:, :2] + boxes[:, 2:]) * torch.tensor([MAP[1] / IMAGE[1], MAP[0] / IMAGE[0]]) / 2
    on_map = ((cells > -1) & (cells < torch.tensor([MAP[1], MAP[0]]))).all(1)
    return boxes[on_map], torch.randint(0, CLASSES, (int(on_map.sum()),), generator=generator)


def cases(generator):
    same_cell = torch.tensor([[10.0, 10, 30, 40], [9, 9, 31, 41.5], [20, 25, 20, 25]])
    found = [
        [sample(generator, 0)],
        [sample(generator, 0), sample(generator, 2)],
        [(same_cell, torch.tensor([1, 1, 2])), (same_cell.flip(0), torch.tensor([0, 0, 0]))],
        [(torch.tensor([[0.0, 0, 160, 96], [0, 0, 0, 0]]), torch.tensor([4, 0]))],
        [sample(generator, 600), sample(generator, 1)],
    ]
    sizes = torch.randint(0, 40, (40, 3), generator=generator).tolist()
    return found + [[sample(generator, n) for n in three] for three in sizes]


def test_targets_equal_the_stock_loop(generator):
    stock, ours = pair()
    for samples in cases(generator):
        boxes, labels = (list(parts) for parts in zip(*samples, strict=True))
        shape = (len(samples), CLASSES, *MAP)
        expected, average = stock.get_targets(boxes, labels, shape, IMAGE)
        found, peaks = ours.get_targets(boxes, labels, shape, IMAGE)
        assert list(found) == list(expected) and float(peaks) == float(average)
        for name, target in expected.items():
            assert same_bits(found[name], target), name


def test_radius_equals_the_stock_function(generator):
    sizes = 10 ** (torch.rand(3000, 2, generator=generator) * 5 - 2)
    for overlap in (0.3, 0.7):
        found = centernet_radius(sizes[:, 0], sizes[:, 1], overlap)
        expected = torch.stack([gaussian_radius([height, width], min_overlap=overlap) for height, width in sizes])
        assert torch.equal(found, expected)


def ground_truth(samples):
    metas = [{"batch_input_shape": IMAGE}] * len(samples)
    return [InstanceData(bboxes=boxes, labels=labels) for boxes, labels in samples], metas


def losses_and_gradients(head, feature, samples):
    head.zero_grad()
    losses = head.loss_by_feat(*head((feature,)), *ground_truth(samples))
    sum(losses.values()).backward()
    gradients = {name: parameter.grad for name, parameter in head.named_parameters()}
    return {key: loss.detach() for key, loss in losses.items()}, gradients


@pytest.mark.parametrize("case", range(8))
def test_losses_equal_the_stock_head(case, generator):
    stock, ours = pair()
    samples = cases(generator)[case]
    feature = torch.randn(len(samples), 4, *MAP, generator=generator)
    expected, expected_gradients = losses_and_gradients(stock, feature, samples)
    found, gradients = losses_and_gradients(ours, feature, samples)
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    for name, gradient in expected_gradients.items():
        assert torch.equal(gradients[name], gradient), name


@pytest.mark.parametrize("sizes", [(9, 0, 3), (0, 0)], ids=str)
def test_packed_objects_give_the_same_numbers(sizes, generator):
    _, ours = pair()
    gt, metas = ground_truth([sample(generator, n) for n in sizes])
    feature = torch.randn(len(sizes), 4, *MAP, generator=generator)
    expected, found = (ours.loss_by_feat(*ours((feature,)), one, metas) for one in (gt, packed(gt, "gt_instances")))
    assert all(torch.equal(found[key], loss) for key, loss in expected.items())


def test_nothing_waits_from_predictions_to_gradients(generator):
    stock, ours = pair()
    samples = cases(generator)[6]
    feature = torch.randn(len(samples), 4, *MAP, generator=generator)
    losses_and_gradients(ours, feature, samples)
    with HostSyncCounter("cpu") as syncs:
        losses_and_gradients(ours, feature, samples)
    assert dict(syncs.by_kind) == {}
    with HostSyncCounter("cpu") as syncs:
        losses_and_gradients(stock, feature, samples)
    assert syncs.count > 100


def test_several_levels():
    _, ours = pair()
    maps = [torch.zeros(1, 2, *MAP)] * 2
    with pytest.raises(ValueError, match=r"CenterNet has one feature level, got \[2\]"):
        ours.loss_by_feat(maps, maps, maps, *ground_truth([(torch.zeros(0, 4), torch.zeros(0).long())]))


def test_stock_config_with_another_type_builds():
    config = Config.fromfile("configs/centernet/centernet_r18_8xb16-crop512-140e_coco_batched.py")
    head = MODELS.build(config.model.bbox_head)
    assert type(head).__name__ == "BatchedCenterNetHead" and head.num_classes == 80
