"""The native solver: optimal by its dual variables, by exact arithmetic and by a certificate that knows no solver, on
every kind of cost; equal to its host twin bit for bit; an operator like the others."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raggedbev import _extension
from raggedbev.matching import linear_assignment

pytestmark = pytest.mark.skipif(not _extension.COMPILED, reason="the compiled operators were not built")
INF, NAN = float("inf"), float("nan")
MOST = float(np.finfo(np.float32).max)


def scenes(num_gt, num_preds, generator, spread, confidence):
    """DETR-like: L1 distances of objects and predictions in a plane, plus a class cost per prediction."""
    objects = (torch.rand(num_gt, 1, 2, generator=generator) - 0.5) * spread
    preds = (torch.rand(1, num_preds, 2, generator=generator) - 0.5) * 100
    return 0.5 * (objects - preds).abs().sum(-1) + confidence * torch.randn(1, num_preds, generator=generator)


def trained(num_gt, num_preds, generator):
    cost = scenes(num_gt, num_preds, generator, 100, 0.3)
    for row, column in zip(range(num_gt), torch.randperm(num_preds, generator=generator).tolist(), strict=False):
        cost[row, column] -= 20
    return cost


def uniform(num_gt, num_preds, generator):
    return torch.rand(num_gt, num_preds, generator=generator)


KINDS = {
    "random": uniform,
    "trained": trained,
    "untrained": lambda n, m, g: scenes(n, m, g, 100, 0.01) * 1e-3 + 2.2,
    "crowded": lambda n, m, g: scenes(n, m, g, 5, 0.1),
    "all equal": lambda n, m, g: torch.full((n, m), 0.5),
    "near ties": lambda n, m, g: 1 + 1e-6 * uniform(n, m, g),
    "small integers": lambda n, m, g: (uniform(n, m, g) * 4).floor(),
    "identical rows": lambda n, m, g: uniform(1, m, g).expand(n, m).clone(),
    "products": lambda n, m, g: torch.arange(n).float().unsqueeze(1) * torch.arange(m),
    "large offset": lambda n, m, g: 1e4 + uniform(n, m, g),
    "negative": lambda n, m, g: -uniform(n, m, g) * 100,
    "sentinels": lambda n, m, g: torch.where(uniform(n, m, g) < 0.3, MOST, uniform(n, m, g)),
}
SIZES = [(0, 4), (1, 1), (1, 7), (5, 5), (4, 9), (6, 3), (33, 65), (40, 130), (70, 64)]


def make(kind, num_gt, num_preds, seed=0, dtype=torch.float32):
    return KINDS[kind](num_gt, num_preds, torch.Generator().manual_seed(seed)).to(dtype)


def pairs_of(result):
    return [(g, p) for g, p in enumerate(result.pred_of_gt.tolist()) if p >= 0]


def check_duals(cost, result):
    """The dual variables are feasible and meet the cost on the pairs: no assignment is cheaper."""
    cost, of_gt, of_pred = cost.double(), result.dual_of_gt, result.dual_of_pred
    tolerance = 1e-11 * max(1.0, float(cost.abs().max()) if cost.numel() else 1.0)
    slack = cost - of_gt.unsqueeze(1) - of_pred
    assert (slack >= -tolerance).all()
    for g, p in pairs_of(result):
        assert abs(float(slack[g, p])) <= tolerance
    few, many, matched = (
        (of_gt, of_pred, result.gt_of_pred >= 0)
        if cost.shape[0] <= cost.shape[1]
        else (of_pred, of_gt, result.pred_of_gt >= 0)
    )
    assert few.isfinite().all() and (many <= 0).all() and (many[~matched] == 0).all()


def has_negative_cycle(cost, pairs):
    """In the residual graph over the rows and one node for all free columns: then, and only then, it is not optimal."""
    turned = cost.shape[0] > cost.shape[1]
    cost = cost.double().numpy().T if turned else cost.double().numpy()
    column_of = {p: g for g, p in pairs} if turned else dict(pairs)
    rows, free = len(cost), [c for c in range(cost.shape[1]) if c not in column_of.values()]
    length = np.full((rows + 1, rows + 1), INF)
    for i in range(rows):
        for j in range(rows):
            length[i, j] = cost[i, column_of[j]] - cost[i, column_of[i]]
        if free:
            length[i, rows] = cost[i, free].min() - cost[i, column_of[i]]
    length[rows, :] = 0
    for k in range(rows + 1):
        length = np.minimum(length, length[:, k : k + 1] + length[k : k + 1, :])
    return length.diagonal().min() < -1e-9 * max(1.0, np.abs(cost).max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_optimal_by_duals_and_certificate(kind, dtype):
    for seed, (num_gt, num_preds) in enumerate(SIZES):
        cost = make(kind, num_gt, num_preds, seed, dtype)
        result = linear_assignment(cost, duals=True, check=True, solver="native")
        assert len(pairs_of(result)) == min(num_gt, num_preds)
        check_duals(cost, result)
        if min(num_gt, num_preds) and kind != "sentinels":
            assert not has_negative_cycle(cost, pairs_of(result))


def test_the_certificate_finds_what_is_not_optimal():
    cost = torch.tensor([[1.0, 2.0, 9.0], [2.0, 1.0, 9.0]])
    assert not has_negative_cycle(cost, [(0, 0), (1, 1)])
    assert has_negative_cycle(cost, [(0, 1), (1, 0)]) and has_negative_cycle(cost, [(0, 0), (1, 2)])
    assert has_negative_cycle(cost.T, [(0, 1), (1, 0)]) and not has_negative_cycle(cost.T, [(0, 0), (1, 1)])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "trained"])
def test_optimal_in_exact_arithmetic(kind):
    for seed, (num_gt, num_preds) in enumerate(itertools.product(range(1, 6), range(1, 6))):
        cost = make(kind, num_gt, num_preds, seed)
        exact = [[Fraction(value) for value in row] for row in cost.double().tolist()]
        found = sum(exact[g][p] for g, p in pairs_of(linear_assignment(cost, solver="native")))
        if num_gt > num_preds:
            exact = [list(column) for column in zip(*exact, strict=True)]
        few, many = sorted((num_gt, num_preds))
        assert found == min(
            sum(exact[row][column] for row, column in enumerate(pick))
            for pick in itertools.permutations(range(many), few)
        )


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.integers(1, 24), st.integers(1, 40), st.integers(0, 999))
def test_properties(kind, num_gt, num_preds, seed):
    """Permuted, shifted, scaled, padded: the total moves along."""
    cost = make(kind, num_gt, num_preds, seed, torch.float64)
    if kind == "sentinels":
        cost = cost.clamp(max=1e6)

    def total(matrix, num=None):
        result = linear_assignment(matrix, num, solver="native", check=True)
        return sum(float(matrix[g, p]) for g, p in pairs_of(result))

    generator = torch.Generator().manual_seed(seed)
    expected = total(cost)
    tolerance = 1e-9 * max(1.0, float(cost.abs().max())) * num_gt
    rows, columns = torch.randperm(num_gt, generator=generator), torch.randperm(num_preds, generator=generator)
    assert total(cost[rows][:, columns]) == pytest.approx(expected, abs=tolerance)
    assert total(cost * 0.25) == expected * 0.25
    padded = torch.cat([cost, torch.full((3, num_preds), NAN)])
    assert total(padded, torch.tensor(num_gt)) == expected
    if num_gt <= num_preds:
        shift = torch.randn(num_gt, 1, generator=generator, dtype=torch.float64)
        assert total(cost + shift) == pytest.approx(expected + float(shift.sum()), abs=tolerance * 4)


@pytest.mark.parametrize("value", [INF, -INF, NAN])
@pytest.mark.parametrize("nonfinite", ["report", "last_resort"])
def test_non_finite_as_scipy_has_it(value, nonfinite):
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        cost = torch.randn(4, 5, 7, generator=generator)
        cost[torch.rand(cost.shape, generator=generator) < 0.02 * seed] = value
        num_gt = torch.tensor([5, 0, 3, 5])
        native = linear_assignment(cost, num_gt, nonfinite=nonfinite, solver="native")
        scipy = linear_assignment(cost, num_gt, nonfinite=nonfinite, solver="scipy")
        assert torch.equal(native.status, scipy.status)
        finite = torch.where(cost.isfinite(), cost, 0.0)
        matched = [result.pred_of_gt >= 0 for result in (native, scipy)]
        assert torch.equal(matched[0].sum(-1), matched[1].sum(-1))
        totals = [
            finite.gather(2, result.pred_of_gt.clamp(min=0).unsqueeze(-1)).squeeze(-1).double().mul(pairs).sum(-1)
            for result, pairs in zip((native, scipy), matched, strict=True)
        ]
        torch.testing.assert_close(*totals)


def test_native_and_scipy_agree_on_batches():
    cost = torch.randn(3, 4, 20, 50, generator=torch.Generator().manual_seed(1))
    num_gt = torch.randint(0, 21, (3, 4), generator=torch.Generator().manual_seed(2))
    native, scipy = (linear_assignment(cost, num_gt, solver=solver) for solver in ("native", "scipy"))
    assert torch.equal(native.pred_of_gt, scipy.pred_of_gt) and torch.equal(native.gt_of_pred, scipy.gt_of_pred)


def test_ties_go_to_the_lowest_free_prediction():
    result = linear_assignment(torch.zeros(3, 5), solver="native")
    assert result.pred_of_gt.tolist() == [0, 1, 2]


def test_duals_come_from_the_native_solver_only():
    with pytest.raises(ValueError, match="dual variables come from the native solver only"):
        linear_assignment(torch.zeros(2, 3), duals=True, solver="scipy")


def test_host_twin_is_equal_bit_by_bit(tmp_path):
    script = """
import sys, torch
from test_native_assignment import KINDS, make
from raggedbev.matching import linear_assignment
found = []
for kind in KINDS:
    for seed, size in enumerate([(0, 4), (1, 7), (6, 3), (33, 65), (40, 30)]):
        cost = make(kind, *size, seed, torch.float64 if seed % 2 else torch.float32)
        found.append(vars(linear_assignment(cost, duals=True)))
        for hole in (float("inf"), float("nan")):
            holes = torch.rand(cost.shape, generator=torch.Generator().manual_seed(seed)) < 0.2
            found.append(vars(linear_assignment(cost.masked_fill(holes, hole), nonfinite="last_resort", duals=True)))
torch.save(found, sys.argv[1])
"""
    results = []
    for twin in "01":
        path = tmp_path / f"{twin}.pt"
        done = subprocess.run(
            [sys.executable, "-c", script, str(path)],
            env={**os.environ, "RAGGEDBEV_HOST_TWIN": twin, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent,
        )
        assert done.returncode == 0, done.stderr
        results.append(torch.load(path))
    assert len(results[0]) == len(KINDS) * 5 * 3
    for one, other in zip(*results, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (3, 4, 6), (2, 6, 4)], ids=str)
@pytest.mark.parametrize("duals", [False, True])
def test_opcheck(shape, duals):
    cost = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    num_gt = torch.randint(0, shape[1] + 1, shape[:1], generator=torch.Generator().manual_seed(0))
    torch.library.opcheck(torch.ops.raggedbev.linear_assignment, (cost, num_gt, False, duals))


def test_compile_and_vmap():
    cost, num_gt = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([5, 0, 3])
    wanted = linear_assignment(cost, num_gt)

    def match(costs):
        return linear_assignment(costs, num_gt).pred_of_gt

    compiled = torch.compile(match, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(cost), wanted.pred_of_gt)
    assert torch.equal(torch.vmap(match)(cost), wanted.pred_of_gt)


def test_strided_and_half_costs():
    cost = torch.randn(6, 9, 4, generator=torch.Generator().manual_seed(0))
    strided = linear_assignment(cost.permute(2, 0, 1), solver="native")
    assert torch.equal(strided.pred_of_gt, linear_assignment(cost.permute(2, 0, 1).contiguous()).pred_of_gt)
    for dtype in (torch.float16, torch.bfloat16):
        half = cost.to(dtype)
        assert torch.equal(linear_assignment(half).pred_of_gt, linear_assignment(half.float()).pred_of_gt)


def test_wrong_arguments_of_the_operator():
    operator = torch.ops.raggedbev.linear_assignment
    with pytest.raises(ValueError, match=r"cost must be \[problems, G, P\], got \(2, 3\)"):
        operator(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), False, False)
    with pytest.raises(TypeError, match="cost must have a floating-point type"):
        operator(torch.zeros(1, 2, 3, dtype=torch.long), torch.zeros(1, dtype=torch.long), False, False)
    with pytest.raises(ValueError, match=r"num_gt must have B = 1 samples"):
        operator(torch.zeros(1, 2, 3), torch.zeros(2, dtype=torch.long), False, False)
    with pytest.raises(ValueError, match=r"num_gt must lie in \[0, 2\], got values in \[3, 3\]"):
        operator(torch.zeros(1, 2, 3), torch.tensor([3]), False, False)
