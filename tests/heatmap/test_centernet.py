"""Targets of CenterNet's head against a loop over objects; the stock head: tests/mm."""

from __future__ import annotations

import pytest
import torch
from bev_cases import same_bits

from raggedbev import combine_data
from raggedbev.heatmap import centernet_targets
from raggedbev.heatmap.reference import centernet_targets_reference
from raggedbev.profiling.syncs import HostSyncCounter

MAP, IMAGE, CLASSES = (24, 32), (96, 160), 5
NAN = float("nan")


def pack(samples, device="cpu"):
    boxes = combine_data([one.to(device) for one, _ in samples])
    return boxes, combine_data([one.to(device) for _, one in samples], other_with_same_sample_sizes=boxes)


def random_sample(generator, count):
    low = torch.rand(count, 2, generator=generator) * torch.tensor([150.0, 90.0]) - 5
    high = low + torch.rand(count, 2, generator=generator) * 60
    return torch.cat([low, high], 1), torch.randint(-1, CLASSES + 1, (count,), generator=generator)


DEGENERATE = torch.tensor(
    [
        [10.0, 10, 30, 40],
        [10, 10, 30, 40],  # the same cell: the later one counts
        [10, 10, 30, 40.5],
        [20, 20, 20, 20],  # no size
        [0, 0, 0, 0],
        [-6, -6, 0, 0],  # centre in (-1, 0)
        [150, 90, 170, 102],  # centre on the corner, outside
        [-300, -300, -200, -200],
        [NAN, 0, 10, 10],
        [0, 0, float("inf"), 10],
        [0, 0, 160, 96],
    ]
)


def cases(generator):
    none = (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    degenerate = (DEGENERATE, torch.arange(len(DEGENERATE)) % CLASSES)
    one_class = (DEGENERATE, torch.zeros(len(DEGENERATE), dtype=torch.int64))
    sizes = torch.randint(0, 40, (12, 2), generator=generator).tolist()
    return [[none], [degenerate, none, one_class], [random_sample(generator, 500)]] + [
        [random_sample(generator, n) for n in pair] for pair in sizes
    ]


def test_equals_the_loop(generator, device):
    for samples in cases(generator):
        lists = [[part.to(device) for part in parts] for parts in zip(*samples, strict=True)]
        found = centernet_targets(*pack(samples, device), CLASSES, MAP, IMAGE)
        expected = centernet_targets_reference(*lists, CLASSES, MAP, IMAGE)
        torch.testing.assert_close(found.center_heatmap, expected.center_heatmap, rtol=1e-5, atol=0)
        for one, other in zip(found[1:], expected[1:], strict=True):
            assert one.is_contiguous() and same_bits(one, other)


def test_nothing_waits(generator):
    boxes, labels = pack(cases(generator)[4])
    centernet_targets(boxes, labels, CLASSES, MAP, IMAGE)
    with HostSyncCounter("cpu") as syncs:
        centernet_targets(boxes, labels, CLASSES, MAP, IMAGE)
    assert dict(syncs.by_kind) == {}


def test_compiles_into_one_graph(generator):
    targets = torch.compile(centernet_targets, fullgraph=True, backend="aot_eager")
    for samples in cases(generator)[1:4]:
        found = targets(*pack(samples), CLASSES, MAP, IMAGE)
        expected = centernet_targets(*pack(samples), CLASSES, MAP, IMAGE)
        assert all(same_bits(one, other) for one, other in zip(found, expected, strict=True))


def test_wrong_input(generator):
    boxes, labels = pack(cases(generator)[4])
    with pytest.raises(ValueError, match=r"gt_boxes must be floating point \[B, G, 4\]"):
        centernet_targets(boxes.long(), labels, CLASSES, MAP, IMAGE)
    with pytest.raises(ValueError, match="gt_labels must be integers"):
        centernet_targets(boxes, labels.float(), CLASSES, MAP, IMAGE)
