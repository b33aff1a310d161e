"""Linear assignment: optimal pairs, rectangular and degenerate problems, non-finite costs."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from raggedbev import _extension
from raggedbev.matching import linear_assignment
from raggedbev.ragged import RaggedBatch

INF, NAN = float("inf"), float("nan")


def random_costs(*shape, dtype=torch.float64, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype) * 4 - 2


def check_consistent(result, num_gt, num_preds):
    """Both index lists name the same pairs, one to one, and as many as possible."""
    for pred_of_gt, gt_of_pred, n in zip(
        result.pred_of_gt.flatten(0, -2).tolist(),
        result.gt_of_pred.flatten(0, -2).tolist(),
        num_gt.flatten().tolist(),
        strict=True,
    ):
        pairs = {(g, p) for g, p in enumerate(pred_of_gt) if p >= 0}
        assert pairs == {(g, p) for p, g in enumerate(gt_of_pred) if g >= 0}
        assert len(pairs) == min(n, num_preds) and all(g < n for g, _ in pairs)


@pytest.mark.parametrize("num_rows, num_preds", [(0, 5), (4, 0), (1, 1), (3, 3), (4, 9), (6, 2), (5, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_total_cost_is_smallest(num_rows, num_preds, dtype, device):
    cost = random_costs(3, 2, num_rows, num_preds, dtype=dtype).to(device)
    num_gt = torch.tensor(
        [[0, num_rows], [max(num_rows - 1, 0), 1 if num_rows else 0], [num_rows, num_rows]], device=device
    )
    result = linear_assignment(cost, num_gt)
    assert result.pred_of_gt.device == cost.device and result.pred_of_gt.dtype == torch.int64
    assert result.status.dtype == torch.int8 and (result.status == 0).all() and result.status.shape == (3, 2)
    assert result.gt_of_pred.shape == (3, 2, num_preds)
    check_consistent(result, num_gt, num_preds)
    for i, j in itertools.product(range(3), range(2)):
        matrix = cost[i, j, : num_gt[i, j]].double().cpu().numpy()
        rows, cols = linear_sum_assignment(matrix)
        found = result.pred_of_gt[i, j].tolist()
        total = sum(matrix[g, p] for g, p in enumerate(found) if p >= 0)
        assert total == pytest.approx(matrix[rows, cols].sum(), abs=1e-12)


@pytest.mark.parametrize("num_rows, num_preds", [(0, 5), (4, 0), (1, 1), (4, 9), (6, 2)])
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)], ids=str)
def test_index_pairs(lead, num_rows, num_preds, device):
    cost = random_costs(*lead, num_rows, num_preds).to(device)
    num_gt = torch.arange(3, device=device).clamp(max=num_rows) if lead else None
    found = linear_assignment(cost, num_gt)
    gt_index, pred_index = found.pairs()
    counts = (found.pred_of_gt >= 0).sum(-1)
    for index in (gt_index, pred_index):
        assert index.shape == (*lead, min(num_rows, num_preds)) and torch.equal(index.sample_sizes, counts)
        assert not index.tensor[~index.mask].any()
    rows, *indices = [
        part.reshape(counts.numel(), part.shape[-1]).tolist()
        for part in (found.pred_of_gt, gt_index.tensor, pred_index.tensor)
    ]
    for pred_of_gt, count, gts, preds in zip(rows, counts.flatten().tolist(), *indices, strict=True):
        wanted = [(g, p) for g, p in enumerate(pred_of_gt) if p >= 0]
        assert list(zip(gts, preds, strict=True))[:count] == wanted


def test_brute_force():
    cost = random_costs(20, 4, 5, seed=3)
    result = linear_assignment(cost)
    for matrix, found in zip(cost, result.pred_of_gt, strict=True):
        best = min(sum(matrix[g, p] for g, p in enumerate(pick)) for pick in itertools.permutations(range(5), 4))
        torch.testing.assert_close(matrix[torch.arange(4), found].sum(), best)


def test_filler_is_never_read():
    cost = random_costs(2, 4, 6)
    clean = linear_assignment(cost[:, :2])
    cost[:, 2:] = NAN
    result = linear_assignment(cost, torch.tensor([2, 2], dtype=torch.int32))
    assert torch.equal(result.pred_of_gt[:, :2], clean.pred_of_gt) and (result.pred_of_gt[:, 2:] == -1).all()
    assert (result.status == 0).all()


def test_result_is_a_named_tuple():
    cost = random_costs(2, 3, 4)
    pred_of_gt, gt_of_pred, status = result = linear_assignment(cost)
    assert pred_of_gt is result.pred_of_gt and gt_of_pred is result.gt_of_pred and status is result.status


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("solver", ["auto", "scipy"])
def test_counts_in_either_type_and_any_layout(dtype, solver, device):
    cost = random_costs(2, 3, 4, 6).to(device)
    num_gt = torch.tensor([[4, 1], [0, 2], [3, 3]], dtype=dtype, device=device).T
    result = linear_assignment(cost, num_gt, solver=solver)
    assert torch.equal((result.pred_of_gt >= 0).sum(-1), num_gt.long())
    assert torch.equal(result.pred_of_gt, linear_assignment(cost, num_gt.contiguous().long()).pred_of_gt)
    one_each = linear_assignment(cost, torch.ones(3, dtype=dtype, device=device), solver=solver)
    assert ((one_each.pred_of_gt >= 0).sum(-1) == 1).all()


@pytest.mark.skipif(not _extension.COMPILED, reason="SciPy needs the data")
def test_shapes_without_data():
    cost = torch.zeros(2, 3, 5, 7, device="meta")
    result = linear_assignment(cost, torch.zeros(2, 3, dtype=torch.long, device="meta"))
    assert (result.pred_of_gt.shape, result.gt_of_pred.shape, result.status.shape) == ((2, 3, 5), (2, 3, 7), (2, 3))
    assert {field.device.type for field in result} == {"meta"}


def test_shapes_and_layouts():
    cost = random_costs(3, 6, 4)
    one = linear_assignment(cost[0])
    assert one.pred_of_gt.shape == (6,) and one.status.shape == ()
    transposed = linear_assignment(cost.transpose(1, 2))
    assert torch.equal(transposed.pred_of_gt, linear_assignment(cost.transpose(1, 2).contiguous()).pred_of_gt)
    assert linear_assignment(torch.zeros(0, 3, 4)).pred_of_gt.shape == (0, 3)
    expanded = linear_assignment(cost, torch.tensor(2))
    assert (expanded.pred_of_gt[:, 2:] == -1).all()


def test_ragged_costs():
    cost, sizes = random_costs(3, 5, 4), torch.tensor([4, 0, 2])
    wanted = linear_assignment(cost.transpose(1, 2), sizes)
    by_column = linear_assignment(RaggedBatch(cost, sample_sizes=sizes, non_uniform_dim=2))
    by_row = linear_assignment(RaggedBatch(cost.transpose(1, 2), sample_sizes=sizes))
    assert torch.equal(by_column.pred_of_gt, wanted.pred_of_gt) and torch.equal(by_row.gt_of_pred, wanted.gt_of_pred)
    groups = RaggedBatch(cost.unsqueeze(1).expand(3, 2, 5, 4), sample_sizes=sizes, non_uniform_dim=3)
    assert torch.equal(linear_assignment(groups).pred_of_gt[:, 1], wanted.pred_of_gt)
    with pytest.raises(ValueError, match="num_gt comes with the RaggedBatch"):
        linear_assignment(groups, sizes)


def test_no_gradient():
    result = linear_assignment(random_costs(2, 3, 4).requires_grad_())
    assert not result.pred_of_gt.requires_grad


def test_forbidden_edges():
    cost = torch.tensor(
        [[[INF, 1.0, 5.0], [1.0, INF, 2.0]], [[INF, INF, INF], [3.0, 1.0, 2.0]], [[INF, INF, 1.0], [INF, INF, 2.0]]]
    )
    result = linear_assignment(cost)
    assert result.pred_of_gt.tolist() == [[1, 0], [-1, 1], [2, -1]]
    assert result.status.tolist() == [0, 1, 1]
    with pytest.raises(ValueError, match="assignment problem 1 has no solution: the forbidden"):
        linear_assignment(cost, check=True)


@pytest.mark.parametrize("value", [NAN, -INF])
def test_invalid_costs(value):
    cost = random_costs(2, 2, 3)
    cost[1, 0, 2] = value
    result = linear_assignment(cost)
    assert result.status.tolist() == [0, 2]
    assert (
        (result.pred_of_gt[1] == -1).all() and (result.gt_of_pred[1] == -1).all() and (result.pred_of_gt[0] >= 0).all()
    )
    with pytest.raises(ValueError, match="problem 1 has no solution: the costs contain NaN"):
        linear_assignment(cost, check=True)
    solved = linear_assignment(cost, nonfinite="last_resort")
    assert (solved.pred_of_gt >= 0).all() and solved.status.tolist() == [0, 2] and solved.pred_of_gt[1, 0] != 2


@pytest.mark.parametrize("solver", ["auto", "scipy"])
def test_check_lets_pass_what_the_last_resort_solved(solver):
    cost = torch.tensor([[[INF, INF, INF], [3.0, 1.0, 2.0]], [[NAN, 1.0, 5.0], [1.0, -INF, 2.0]]])
    with pytest.raises(ValueError, match="assignment problem 0 has no solution"):
        linear_assignment(cost, check=True, solver=solver)
    found = linear_assignment(cost, nonfinite="last_resort", check=True, solver=solver)
    assert found.status.tolist() == [1, 2] and (found.pred_of_gt >= 0).all()


@pytest.mark.parametrize("scale", [1.0, 1e-300, 1e290, 3e38])
def test_last_resort_avoids_nonfinite_edges_whatever_the_scale(scale):
    """Using one edge less of them is worth any finite cost: negative costs, and a chain that must be re-routed."""
    cost = np.array([[-5.0, 4.0, NAN], [-5.0, NAN, NAN], [-3.0, INF, 2.0]]) * scale
    result = linear_assignment(torch.from_numpy(cost), nonfinite="last_resort")
    assert result.pred_of_gt.tolist() == [1, 0, 2]
    everything = linear_assignment(torch.full((2, 3), NAN), nonfinite="last_resort")
    assert sorted(everything.pred_of_gt.tolist()) == [0, 1]


@pytest.mark.parametrize("solver", ["auto", "scipy"])
@pytest.mark.parametrize("num", [2, 4, 30])
def test_one_nonfinite_edge_less_is_worth_many_dear_ones(num, solver):
    """The diagonal costs 10 each; beside it all is free, but for one edge."""
    cost = torch.full((num, num), NAN).fill_diagonal_(10.0)
    cost.diagonal(1).fill_(0.0)
    result = linear_assignment(cost, nonfinite="last_resort", solver=solver)
    assert result.pred_of_gt.tolist() == list(range(num))


@pytest.mark.parametrize("solver", ["auto", "scipy"])
@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"nonfinite": "ignore"}, r"nonfinite must be one of \('report', 'last_resort'\), got 'ignore'"),
        ({"num_gt": torch.tensor([1.0])}, "num_gt must be int32 or int64, got torch.float32"),
        ({"num_gt": torch.tensor([True])}, "num_gt must be int32 or int64, got torch.bool"),
        ({"num_gt": torch.tensor([1], dtype=torch.int16)}, "num_gt must be int32 or int64, got torch.int16"),
        ({"num_gt": torch.tensor([4])}, r"num_gt must lie in \[0, 3\], got values in \[4, 4\]"),
        ({"num_gt": torch.tensor([-1])}, r"num_gt must lie in \[0, 3\], got values in \[-1, -1\]"),
        ({"num_gt": torch.tensor([1, 2])}, r"num_gt must be \(1,\) like cost, or broadcast to that, got \(2,\)"),
        ({"num_gt": torch.tensor([[1]])}, r"num_gt must be \(1,\) like cost, or broadcast to that, got \(1, 1\)"),
        ({"num_gt": torch.tensor([1], device="meta")}, "num_gt must be on cpu like cost, got meta"),
    ],
)
def test_wrong_arguments(arguments, message, solver):
    with pytest.raises(ValueError, match=f"^{message}$"):
        linear_assignment(torch.zeros(1, 3, 4), solver=solver, **arguments)


@pytest.mark.parametrize("solver", ["auto", "scipy"])
@pytest.mark.parametrize("num_gt", [[1], 1, np.array([1])], ids=lambda value: type(value).__name__)
def test_counts_that_are_no_tensor(num_gt, solver):
    with pytest.raises(TypeError, match=f"^num_gt must be an int32 or int64 tensor, got {type(num_gt).__name__}$"):
        linear_assignment(torch.zeros(1, 3, 4), num_gt, solver=solver)


@pytest.mark.parametrize("solver", ["auto", "scipy"])
@pytest.mark.parametrize(
    "minima, message",
    [
        (torch.zeros(2, 3, 1), r"minima must have shape \(2, 3, 2\), got \(2, 3, 1\)"),
        (torch.zeros(3, 2), r"minima must have shape \(2, 3, 2\), got \(3, 2\)"),
        (torch.zeros(2, 3, 2, dtype=torch.float64), "type of float32 or float64 costs, got torch.float64 for"),
        (torch.zeros(2, 3, 2, device="meta"), "minima must be on cpu like cost, got meta"),
    ],
)
def test_wrong_minima(minima, message, solver):
    with pytest.raises(ValueError, match=message):
        linear_assignment(torch.zeros(2, 3, 70), minima=minima, solver=solver)
    with pytest.raises(TypeError, match="minima must be a tensor, got list"):
        linear_assignment(torch.zeros(2, 3, 70), minima=[0.0], solver=solver)


@pytest.mark.parametrize("solver", ["auto", "scipy"])
def test_vmap(solver, device):
    cost, num_gt = random_costs(3, 2, 4, 6).to(device), torch.tensor([[4, 1], [0, 2], [3, 3]], device=device)
    wanted = linear_assignment(cost, num_gt, solver=solver)
    mapped = torch.vmap(lambda *args: linear_assignment(*args, solver=solver), in_dims=(1, 1))(cost, num_gt)
    assert all(torch.equal(one, other.transpose(0, 1)) for one, other in zip(mapped, wanted, strict=True))
    shared = torch.vmap(lambda costs: linear_assignment(costs, num_gt[:, 0], solver=solver).pred_of_gt, 1)(cost)
    assert torch.equal(shared[0], wanted.pred_of_gt[:, 0]) and (shared[1, 1] == -1).all()


@pytest.mark.parametrize("solver", ["auto", "scipy"])
def test_compile_and_export(solver):
    cost, num_gt = random_costs(2, 4, 6), torch.tensor([4, 1])

    class Match(torch.nn.Module):
        def forward(self, cost, num_gt):
            return linear_assignment(cost, num_gt, solver=solver)

    wanted = Match()(cost, num_gt)
    found = torch.compile(Match(), fullgraph=True, backend="aot_eager")(cost, num_gt)
    exported = torch.export.export(Match(), (cost, num_gt)).module()(cost, num_gt)
    for result in (found, exported):
        assert all(torch.equal(one, other) for one, other in zip(result, wanted, strict=True))
    assert torch.equal(
        torch.func.functionalize(lambda cost: linear_assignment(cost, solver=solver).pred_of_gt)(cost),
        linear_assignment(cost, solver=solver).pred_of_gt,
    )


@pytest.mark.parametrize("solver", ["auto", "scipy"])
def test_check_under_transforms(solver):
    """Compiled code leaves its graph to read the result, and raises where it must."""
    cost, forbidden = random_costs(2, 4, 6), torch.full((2, 4, 6), INF)

    def match(cost):
        return linear_assignment(cost, solver=solver, check=True).pred_of_gt

    def match_or_nothing(cost):
        try:
            return match(cost) + 0
        except ValueError:
            return torch.full((2, 4), -7)

    with pytest.raises(ValueError, match=r"^check=True reads the result, which torch\.vmap does not allow$"):
        torch.vmap(match)(cost)
    compiled = torch.compile(match_or_nothing, backend="eager")
    assert torch.equal(compiled(cost), match(cost)) and (compiled(forbidden) == -7).all()


def test_operator_of_scipy():
    for shape in ((4, 6), (2, 4, 6), (0, 4, 6), (3, 0, 6)):
        cost, num_gt = random_costs(*shape), torch.full(shape[:-2], shape[-2])
        arguments = (cost, num_gt, None, False, False)
        torch.library.opcheck(torch.ops.raggedbev.linear_assignment_on_host.default, arguments)


def test_module_can_be_loaded_again():
    code = "import importlib, raggedbev.matching.assignment as module; importlib.reload(module)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("solver", ["auto", "scipy"])
def test_lazily_negated_and_sparse_costs(solver):
    cost = random_costs(4, 6)
    negated = torch.imag(torch.complex(cost, -cost).conj())
    assert negated.is_neg() and torch.equal(negated, cost)
    assert torch.equal(
        linear_assignment(negated, solver=solver).pred_of_gt, linear_assignment(cost, solver=solver).pred_of_gt
    )
    with pytest.raises(ValueError, match=r"^cost must be a dense tensor, got torch.sparse_coo$"):
        linear_assignment(cost.to_sparse(), solver=solver)


@pytest.mark.parametrize("solver", ["auto", "scipy"])
def test_predictions_without_an_object(solver):
    cost = torch.tensor([[INF, 1.0], [INF, 2.0], [INF, 1.0]])
    with pytest.raises(ValueError, match=r"leave objects, or predictions where these are fewer, without a pair$"):
        linear_assignment(cost, solver=solver, check=True)


def test_solvers_that_there_are():
    with pytest.raises(ValueError, match=r"^solver must be one of \('auto', 'native', 'scipy'\), got 'auction'$"):
        linear_assignment(torch.zeros(1, 3, 4), solver="auction")


@pytest.mark.parametrize(
    "cost",
    [torch.zeros(3, 4, dtype=dtype) for dtype in (torch.int64, torch.int8, torch.bool, torch.complex64)]
    + [torch.zeros(4), torch.tensor(1.0)],
    ids=lambda cost: f"{cost.dtype}-{cost.dim()}",
)
def test_wrong_costs(cost):
    found = re.escape(f"{tuple(cost.shape)} {cost.dtype}")
    with pytest.raises(ValueError, match=rf"^cost must be a floating-point tensor \[..., G, P\], got {found}$"):
        linear_assignment(cost)


def test_costs_that_are_no_tensor():
    with pytest.raises(TypeError, match="cost must be a tensor or RaggedBatch, got ndarray"):
        linear_assignment(np.zeros((2, 3)))


def test_wrong_ragged_costs():
    cost = RaggedBatch(random_costs(2, 3, 4, 5), sample_sizes=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match=r"^the ragged dimension must be one of the last two, got 1 of 4$"):
        linear_assignment(cost)
