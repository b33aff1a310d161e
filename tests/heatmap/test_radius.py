"""Radii of both families: formulas, whole numbers, sizes that no box has. The heads' own functions: tests/mm."""

from __future__ import annotations

import math

import pytest
import torch

from raggedbev.heatmap import centernet_radius, centerpoint_radius, whole_radius
from raggedbev.heatmap.reference import centernet_radius_reference, centerpoint_radius_reference

FAMILIES = [(centerpoint_radius, centerpoint_radius_reference), (centernet_radius, centernet_radius_reference)]
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(("batched", "single"), FAMILIES)
@pytest.mark.parametrize("overlap", [0.1, 0.3, 0.7])
def test_formulas(batched, single, overlap, generator, device):
    height, width = (torch.rand(2, 300, generator=generator, dtype=torch.float64) * 60).unbind()
    found = batched(height.to(device), width.to(device), overlap).cpu()
    expected = [single(h, w, overlap) for h, w in zip(height.tolist(), width.tolist(), strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("overlap", [0.1, 0.3, 0.7])
def test_centernet_radius_keeps_the_overlap(overlap, generator):
    """Corners moved by the radius, both ways: the definition."""
    height, width = (torch.rand(2, 200, generator=generator, dtype=torch.float64) * 60 + 1).unbind()
    r = centernet_radius(height, width, overlap)
    area = height * width
    shifted = (height - r) * (width - r) / (2 * area - (height - r) * (width - r))
    smaller = (height - 2 * r) * (width - 2 * r) / area
    larger = area / ((height + 2 * r) * (width + 2 * r))
    assert (torch.stack([shifted, smaller, larger]).amin(0) - overlap).abs().max() < 1e-9


def test_whole_radius():
    values = torch.tensor([-7.5, -0.5, 0.0, 1.99, 2.0, 3.7, 1e30, INF, -INF, NAN])
    found = whole_radius(values, 2).tolist()
    assert found == [2, 2, 2, 2, 2, 3, 2**62, -1, -1, -1]
    assert whole_radius(values[:2], 0).tolist() == [0, 0]


@pytest.mark.parametrize(("batched", "single"), FAMILIES)
def test_sizes_that_no_box_has(batched, single):
    height = torch.tensor([NAN, INF, 1e30, 0.0, -3.0])
    found = whole_radius(batched(height, torch.tensor([3.0, 3.0, 1e30, 0.0, 2.0]), 0.3), 0)
    assert found[:3].tolist() == [-1, -1, -1] and found[3] == 0
    assert math.isclose(single(4.0, 4.0, 0.3), float(batched(*torch.full((2,), 4.0), 0.3)), rel_tol=1e-6)


@pytest.mark.parametrize("overlap", [0.0, 1.0, -0.1, NAN])
def test_wrong_overlap(overlap):
    for batched, _ in FAMILIES:
        with pytest.raises(ValueError, match="min_overlap must lie in"):
            batched(torch.ones(1), torch.ones(1), overlap)
    with pytest.raises(ValueError, match="smallest radius must not be negative, got -1"):
        whole_radius(torch.ones(1), -1)
