"""Targets of CenterPoint's and TransFusion's heads against loops over objects; the stock heads: tests/mm."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from bev_cases import FACTOR, HEIGHT, ORIGIN, TASKS, VOXEL, WIDTH, batches, degenerate_boxes, random_boxes, same_bits

from raggedbev import combine_data
from raggedbev.heatmap import BevGrid, CenterHeadConfig, center_head_targets, transfusion_heatmap
from raggedbev.heatmap.reference import center_head_targets_reference, transfusion_heatmap_reference
from raggedbev.profiling.syncs import HostSyncCounter

GRID = BevGrid(WIDTH, HEIGHT, ORIGIN, VOXEL, FACTOR)
CONFIG = CenterHeadConfig(TASKS, GRID, max_objects=30)


def pack(samples, device="cpu"):
    boxes = combine_data([one.to(device) for one, _ in samples])
    return boxes, combine_data([one.to(device) for _, one in samples], other_with_same_sample_sizes=boxes)


def assert_targets_equal(found, expected):
    for kind, (ours, theirs) in zip(found._fields, zip(found, expected, strict=True), strict=True):
        assert len(ours) == len(theirs) == len(TASKS)
        for task, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert one.is_contiguous() and same_bits(one.cpu(), other.cpu()), (kind, task)


@pytest.mark.parametrize(
    "changes", [{}, {"cos_first": True, "log_dims": False}, {"max_objects": 2, "min_radius": 0, "min_overlap": 0.5}]
)
def test_center_head_equals_the_loop(changes, generator, device):
    config = dataclasses.replace(CONFIG, **changes)
    for samples in batches(generator)[: 20 if device.type == "cpu" else None]:
        lists = [[part.to(device) for part in parts] for parts in zip(*samples, strict=True)]
        assert_targets_equal(
            center_head_targets(*pack(samples, device), config), center_head_targets_reference(*lists, config)
        )


def test_center_head_without_velocity(generator):
    samples = [(boxes[:, :7], labels) for boxes, labels in batches(generator)[6]]
    found = center_head_targets(*pack(samples), CONFIG)
    assert found.anno_boxes[0].shape == (3, 30, 8)
    assert_targets_equal(found, center_head_targets_reference(*zip(*samples, strict=True), CONFIG))


def test_center_head_of_float64_and_half_boxes(generator):
    boxes, labels = random_boxes(generator, 20)
    double = center_head_targets(*pack([(boxes.double(), labels)]), CONFIG)
    assert double.heatmaps[0].dtype == double.anno_boxes[0].dtype == torch.float64
    assert_targets_equal(double, center_head_targets_reference([boxes.double()], [labels], CONFIG))
    half = center_head_targets(*pack([(boxes.half(), labels)]), CONFIG)
    assert_targets_equal(half, center_head_targets_reference([boxes.half().float()], [labels], CONFIG))


def test_slots_go_class_by_class():
    """Labels 1 and 2 are one task: its slots hold the objects of 1, then those of 2, and skipped ones are zero."""
    boxes, _ = degenerate_boxes()
    usable, unusable = boxes[0], boxes[14]
    samples = [(torch.stack([usable, unusable, usable + 1, usable + 2]), torch.tensor([2, 1, 1, 2]))]
    found = center_head_targets(*pack(samples), CONFIG)
    assert found.masks[1][0, :5].tolist() == [0, 1, 1, 1, 0]
    assert found.anno_boxes[1][0, 1:4, 2].tolist() == [boxes[0, 2] + 1, boxes[0, 2], boxes[0, 2] + 2]
    assert all(int(mask.sum()) == 0 for task, mask in enumerate(found.masks) if task != 1)


def test_transfusion_equals_the_loop(generator, device):
    for samples in batches(generator)[: 20 if device.type == "cpu" else None]:
        lists = [[part.to(device) for part in parts] for parts in zip(*samples, strict=True)]
        found = transfusion_heatmap(*pack(samples, device), GRID, 10)
        assert same_bits(found, transfusion_heatmap_reference(*lists, GRID, 10))


def test_transfusion_draws_at_the_transposed_cell():
    box = torch.tensor([[ORIGIN[0] + 5.5 * 1.6, ORIGIN[1] + 2.5 * 2.0, 0.0, 4.0, 2.0, 1.5, 0.0]])
    heatmap = transfusion_heatmap(*pack([(box, torch.tensor([3]))]), GRID, 10)
    assert heatmap[0, 3, 5, 2] == 1 and (heatmap == 1).sum() == 1


def test_nothing_waits(generator):
    boxes, labels = pack(batches(generator)[6])
    center_head_targets(boxes, labels, CONFIG)
    transfusion_heatmap(boxes, labels, GRID, 10)
    with HostSyncCounter("cpu") as syncs:
        center_head_targets(boxes, labels, CONFIG)
        transfusion_heatmap(boxes, labels, GRID, 10)
    assert dict(syncs.by_kind) == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_neither_syncs_nor_refuses_graph_capture(generator):
    boxes, labels = pack(batches(generator)[6], "cuda")
    expected = center_head_targets(boxes, labels, CONFIG)
    torch.cuda.set_sync_debug_mode("error")
    try:
        center_head_targets(boxes, labels, CONFIG)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = center_head_targets(boxes, labels, CONFIG)
    graph.replay()
    assert_targets_equal(captured, expected)


def test_compiles_into_one_graph(generator):
    targets = torch.compile(center_head_targets, fullgraph=True, backend="aot_eager")
    for samples in batches(generator)[5:8]:
        assert_targets_equal(targets(*pack(samples), CONFIG), center_head_targets(*pack(samples), CONFIG))


def test_wrong_input(generator):
    boxes, labels = pack(batches(generator)[6])
    with pytest.raises(ValueError, match=r"gt_boxes must be \[B, G, 7 or 9\], got \(3, 30, 8\)"):
        center_head_targets(combine_data([torch.zeros(30, 8)] * 3), labels, CONFIG)
    with pytest.raises(ValueError, match="gt_labels must be integers"):
        center_head_targets(boxes, labels.float(), CONFIG)
    with pytest.raises(ValueError, match="gt_boxes must have a floating-point type"):
        transfusion_heatmap(boxes.long(), labels, GRID, 10)
    with pytest.raises(ValueError, match="every task needs a class"):
        CenterHeadConfig((2, 0), GRID)
    with pytest.raises(ValueError, match="max_objects must not be negative, got -1"):
        CenterHeadConfig((2,), GRID, max_objects=-1)
    with pytest.raises(ValueError, match="a map needs sizes that are not negative and cells that are positive"):
        BevGrid(4, 4, ORIGIN, (0.4, 0.0), 4)
