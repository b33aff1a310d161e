"""The benchmark of transfers runs, and both ways carry the same."""

from __future__ import annotations

import sys

import torch

from raggedbev.mm import transfer_timing


def test_both_ways(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["timing", "--batch-size", "2", "--repeats", "1", "--workers", "0"])
    transfer_timing.main()
    assert "132 tensors: " in capsys.readouterr().out
    batch = [transfer_timing.SyntheticFrames(2)[index] for index in (0, 1)]
    (one_by_one, packed) = (
        move(collate(batch), torch.device("cpu")) for collate, move in transfer_timing.ARMS.values()
    )
    assert sum(len(tensors) + 26 for _, tensors in one_by_one) == 132
    for (sample, _), other in zip(one_by_one, packed[0].samples, strict=True):
        assert torch.equal(sample.gt_instances_3d.bboxes_3d.tensor, other.gt_instances_3d.bboxes_3d.tensor)
        for left, right in zip(sample.gt_instances_2d, other.gt_instances_2d, strict=True):
            assert torch.equal(left.centers2d, right.centers2d)
