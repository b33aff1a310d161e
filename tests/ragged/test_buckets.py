"""Buckets: padded lengths that many batches share."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raggedbev import Buckets, combine_data
from raggedbev.workloads.generate import PRESETS, draw_counts


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ((16,), {0: 0, 1: 16, 16: 16, 17: 32, 33: 48, 160: 160}),
        ((8, 16, 32), {0: 0, 7: 8, 9: 16, 17: 32, 32: 32, 33: 64, 65: 96}),
        ((1,), {0: 0, 1: 1, 7: 7}),
    ],
)
def test_lengths_are_rounded_up(sizes, wanted):
    buckets = Buckets(sizes)
    assert {size: buckets(size) for size in wanted} == wanted


@pytest.mark.parametrize("sizes", [(), (0,), (-1, 4), (8, 8), (16, 8)])
def test_bad_lengths_are_named(sizes):
    with pytest.raises(ValueError, match="positive lengths in rising order, got"):
        Buckets(sizes)


def test_lists_from_configs_are_as_good_as_tuples():
    assert Buckets([8, 16]) == Buckets((8, 16)) and hash(Buckets([8, 16])) == hash(Buckets((8, 16)))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_packing_to_a_length(requires_grad, device):
    rows = [torch.ones(n, 2, device=device, requires_grad=requires_grad) for n in (3, 0, 5)]
    batch, exact = combine_data(rows, max_sample_size=8), combine_data(rows)
    assert batch.shape == (3, 8, 2) and batch.max_sample_size == 8
    assert torch.equal(batch.tensor[:, :5], exact.tensor) and not batch.tensor[:, 5:].any()
    assert batch.sample_sizes.tolist() == [3, 0, 5] and batch.mask.sum().item() == 8
    other = combine_data([row[:, 0] for row in rows], other_with_same_sample_sizes=batch, max_sample_size=8)
    assert other.shape == (3, 8) and other.layout is batch.layout


def test_lengths_that_do_not_fit_are_named():
    rows = [torch.ones(3), torch.ones(5)]
    with pytest.raises(ValueError, match="max_sample_size must be at least 5, got 4"):
        combine_data(rows, max_sample_size=4)
    with pytest.raises(ValueError, match="must be 8 as in other_with_same_sample_sizes, got 9"):
        combine_data(rows, other_with_same_sample_sizes=combine_data(rows, max_sample_size=8), max_sample_size=9)


def test_an_epoch_needs_a_handful():
    """nuScenes trainval in batches of 8: 30 to 60 objects a sample, some 13 in each of 6 images."""
    objects, image_objects = draw_counts(28130, PRESETS["streampetr_r50_704"], np.random.default_rng(0))
    for counts in (objects, image_objects):
        fullest = set(counts[:28128].reshape(3516, -1).max(1).tolist())
        assert len(fullest) > 10 and len({Buckets()(size) for size in fullest}) <= 3
