"""Values of enormous size among the costs: the pairs stay those of the least total, in exact arithmetic."""

from __future__ import annotations

import itertools

import pytest
import torch
from assignment_cases import INF, MOST, check_duals, exact_total, least_exact_total, pairs_of

from raggedbev import _extension
from raggedbev.matching import linear_assignment

pytestmark = pytest.mark.skipif(not _extension.COMPILED, reason="the compiled operators were not built")


@pytest.mark.parametrize("solver", ["native", "scipy"])
@pytest.mark.parametrize("value", [1e17, MOST, 1.7e308, -MOST])
def test_a_value_beyond_all_others_does_not_cost_their_digits(value, solver):
    """Where it cannot be avoided, too, the other pairs are the best ones."""
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        num_gt, num_preds = (int(torch.randint(2, 6, (1,), generator=generator)) for _ in range(2))
        cost = torch.randint(-8, 8, (num_gt, num_preds), generator=generator).double()
        cost[torch.rand(cost.shape, generator=generator) < 0.5] = value
        if seed % 3 == 0:
            cost[0] = value
        if seed % 3 == 1:
            cost[:, 1:] = value
        if value == MOST:
            cost = cost.float()
        result = linear_assignment(cost, solver=solver, check=True)
        assert exact_total(cost, pairs_of(result)) == least_exact_total(cost)
        if solver == "native" and abs(value) < 1e300:
            check_duals(cost, linear_assignment(cost, duals=True))


@pytest.mark.parametrize("solver", ["native", "scipy"])
@pytest.mark.parametrize("value", [1e3, 1e6, 9e8, 1e9, 9e14, -9e14, 1e15])
@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-9, 1e-20])
def test_sentinels_of_any_size_keep_the_digits_of_other_costs(scale, value, solver):
    """As few sentinels as possible (or as many, where they are negative), and of these the best other pairs."""
    generator = torch.Generator().manual_seed(0)
    cost = torch.rand(400 if solver == "native" else 100, 4, 5, generator=generator) * scale
    sentinel = torch.rand(cost.shape, generator=generator) < 0.6
    picks = torch.tensor(list(itertools.permutations(range(5), 4)))
    others, number = (
        part[:, torch.arange(4), picks].double().sum(-1) for part in (cost.masked_fill(sentinel, 0.0), sentinel)
    )
    number = number.copysign(torch.tensor(value))
    best = others.masked_fill(number > number.amin(1, keepdim=True), INF).amin(1)
    found = linear_assignment(cost.masked_fill(sentinel, value), solver=solver).pred_of_gt
    index = (found.unsqueeze(1) == picks).all(-1).int().argmax(1, keepdim=True)
    assert torch.equal(number.gather(1, index)[:, 0], number.amin(1))
    torch.testing.assert_close(others.gather(1, index)[:, 0], best, rtol=1e-12, atol=0)


@pytest.mark.parametrize("solver", ["native", "scipy"])
@pytest.mark.parametrize("nonfinite", ["report", "last_resort"])
@pytest.mark.parametrize("sentinel", [INF, 1e9, 1e3])
@pytest.mark.parametrize("unit", [2.0**-100, 2.0**-50, 1.0])
def test_the_unit_of_the_costs_does_not_matter(unit, sentinel, nonfinite, solver):
    """Similar rows, a dozen of which can hardly be served: the pairs are those of the same costs in another unit."""
    generator = torch.Generator().manual_seed(0)
    cost = torch.rand(1, 60, generator=generator) + 1e-2 * torch.rand(40, 60, generator=generator)
    cost[:12, 5:] = INF
    expected = linear_assignment(torch.where(cost.isinf(), 1e4, cost).double(), solver="scipy").pred_of_gt
    hopeless = cost[torch.arange(40), expected].isinf()
    assert hopeless.sum() == 7
    cost = torch.where(cost.isinf(), sentinel, cost * unit)
    found = linear_assignment(cost, solver=solver, nonfinite=nonfinite).pred_of_gt
    assert torch.equal(found[~hopeless], expected[~hopeless])
    if solver == "native" and sentinel < INF:
        check_duals(cost, linear_assignment(cost, duals=True))


@pytest.mark.parametrize("solver", ["native", "scipy"])
@pytest.mark.parametrize("unit", [1e-10, 1.0, 100.0, 1e10])
@pytest.mark.parametrize("large, small", [(1e5, 1e-12), (1.0, 1e-17), (-1e5, 1e-12)])
def test_small_costs_that_are_no_path_of_their_own(large, small, unit, solver):
    """Every row's smallest cost is the large one or 0, so no path is as short as what is lost."""
    cost = torch.tensor([[large, INF, INF], [INF, small, 0], [INF, 3 * small, small]], dtype=torch.float64) * unit
    assert linear_assignment(cost, solver=solver).pred_of_gt.tolist() == [0, 1, 2]


@pytest.mark.parametrize("solver", ["native", "scipy"])
def test_a_sentinel_beyond_float32(solver):
    """What stands for a forbidden edge has no room in the costs' own type."""
    cost = torch.tensor([[7e36, INF], [-7e36, INF], [3.4e38, INF]])
    assert linear_assignment(cost, solver=solver).status == 1
    assert (linear_assignment(cost, solver=solver, nonfinite="last_resort").gt_of_pred >= 0).all()


@pytest.mark.parametrize("solver", ["native", "scipy"])
def test_costs_too_large_for_sums(solver):
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        cost = torch.randint(-9, 10, (4, 5), generator=generator).double() * 2.0**1020
        result = linear_assignment(cost, solver=solver, check=True)
        assert exact_total(cost, pairs_of(result)) == least_exact_total(cost)
        if seed % 2:
            cost[torch.rand(cost.shape, generator=generator) < 0.3] = INF
            rest = linear_assignment(cost, solver=solver, nonfinite="last_resort")
            assert (rest.pred_of_gt >= 0).all()
