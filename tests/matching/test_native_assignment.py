"""The native solver: optimal by its dual variables, by exact arithmetic and by a certificate that knows no solver, on
every kind of cost; equal to its host twin bit for bit; an operator like the others."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys

import pytest
import torch
from assignment_cases import (
    INF,
    KINDS,
    MOST,
    NAN,
    SIZES,
    check_duals,
    exact_total,
    has_negative_cycle,
    least_exact_total,
    leveled,
    make,
    pairs_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from raggedbev import _extension
from raggedbev.matching import linear_assignment
from raggedbev.matching.fused import block_minima
from raggedbev.ragged.batch import RaggedBatch

pytestmark = pytest.mark.skipif(not _extension.COMPILED, reason="the compiled operators were not built")
needs_cuda = pytest.mark.skipif(
    not (_extension.COMPILED and torch.cuda.is_available())
    or not torch._C._dispatch_has_kernel_for_dispatch_key("raggedbev::linear_assignment", "CUDA"),
    reason="needs a CUDA device, and the operator compiled for it",
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_optimal_by_duals_and_certificate(kind, dtype):
    for seed, (num_gt, num_preds) in enumerate(SIZES):
        cost = make(kind, num_gt, num_preds, seed, dtype)
        result = linear_assignment(cost, duals=True, check=True, solver="native")
        assert len(pairs_of(result)) == min(num_gt, num_preds)
        check_duals(cost, result)
        if min(num_gt, num_preds):
            assert not has_negative_cycle(cost, pairs_of(result))


def test_the_certificate_finds_what_is_not_optimal():
    cost = torch.tensor([[1.0, 2.0, 9.0], [2.0, 1.0, 9.0]])
    assert not has_negative_cycle(cost, [(0, 0), (1, 1)])
    assert has_negative_cycle(cost, [(0, 1), (1, 0)]) and has_negative_cycle(cost, [(0, 0), (1, 2)])
    assert has_negative_cycle(cost.T, [(0, 1), (1, 0)]) and not has_negative_cycle(cost.T, [(0, 0), (1, 1)])
    cost = torch.tensor([[MOST, MOST, MOST], [2.0, 1.0, MOST], [1.0, 1.5, MOST]])
    assert has_negative_cycle(cost, [(0, 2), (1, 0), (2, 1)]) and has_negative_cycle(cost, [(0, 0), (1, 1), (2, 2)])
    assert not has_negative_cycle(cost, [(0, 2), (1, 1), (2, 0)])


@pytest.mark.parametrize("value", [MOST, INF, NAN, -INF])
@pytest.mark.parametrize("size", [(9, 9), (20, 24), (33, 65), (70, 64)], ids=str)
def test_optimal_by_the_certificate_with_holes(size, value):
    """As many pairs as possible beside the holes, and of these the best; the more holes, the fewer can be avoided."""
    unavoidable = 0
    for seed, share in enumerate((0.1, 0.5, 0.85, 0.97)):
        cost = make("crowded", *size, seed)
        hole = torch.rand(size, generator=torch.Generator().manual_seed(seed)) < share
        result = linear_assignment(torch.where(hole, value, cost), nonfinite="last_resort", solver="native")
        assert len(pairs_of(result)) == min(size)
        assert not has_negative_cycle(torch.where(hole, INF, cost), pairs_of(result))
        unavoidable += sum(bool(hole[pair]) for pair in pairs_of(result))
    assert unavoidable > 5


def test_optimal_duals_of_a_larger_crowd():
    """Many long paths: dual variables in float32 go wrong here."""
    for seed in range(4):
        cost = make("crowded", 60, 428, seed)
        result = linear_assignment(cost, duals=True, check=True, solver="native")
        check_duals(cost, result)
        assert not has_negative_cycle(cost, pairs_of(result))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("width", [15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 130, 2047, 2048, 2049, 2113])
def test_rows_of_every_width(width, dtype):
    """Narrow rows are looked at as a whole, wide ones by blocks; the last block shares columns with the one before."""
    num_gt = min(20, width)
    cost = make("crowded", num_gt, width, width, dtype)
    backwards = cost.flip(1)  # the smallest ones lie elsewhere
    few = torch.where(torch.arange(width) * num_gt % width < num_gt, cost, INF)  # most blocks are forbidden
    fewer = few.clone()
    fewer[:, few[0].isfinite().nonzero()[-1]] = INF
    for costs in (cost, backwards, few):
        result = linear_assignment(costs, duals=True, check=True, solver="native")
        assert len(pairs_of(result)) == num_gt
        check_duals(torch.where(costs.isfinite(), costs, 1e6), result)
        known = linear_assignment(costs, duals=True, minima=block_minima(costs), solver="native")
        assert all(torch.equal(one, other) for one, other in zip(known, result, strict=True))
    assert linear_assignment(fewer, solver="native").status == 1
    assert len(pairs_of(linear_assignment(fewer, solver="native"))) == num_gt - 1
    for column, value in itertools.product((0, width // 2, width - 1), (NAN, -INF)):
        spoiled = cost.clone()
        spoiled[-1, column] = value
        assert linear_assignment(spoiled, solver="native").status == 2


@pytest.mark.parametrize("kind", ["all equal", "small integers", "products"])
def test_duals_of_integers_are_exact(kind):
    for seed, size in enumerate(SIZES):
        cost = make(kind, *size, seed)
        result = linear_assignment(cost, duals=True, solver="native")
        slack = cost.double() - result.dual_of_gt.unsqueeze(1) - result.dual_of_pred
        assert (slack >= 0).all() and all(slack[pair] == 0 for pair in pairs_of(result))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "trained"])
def test_optimal_in_exact_arithmetic(kind):
    for seed, size in enumerate(itertools.product(range(1, 6), range(1, 6))):
        cost = make(kind, *size, seed)
        found = exact_total(cost, pairs_of(linear_assignment(cost, solver="native")))
        assert found == least_exact_total(cost)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(6, 6), (6, 8), (7, 7), (8, 7)], ids=str)
def test_brute_force(kind, size):
    few, many = sorted(size)
    picks = torch.tensor(list(itertools.permutations(range(many), few)))
    for seed in range(3):
        cost = make(kind, *size, seed, torch.float64)
        result = linear_assignment(cost, solver="native")
        cost = leveled(cost)
        by_row = cost if size[0] <= size[1] else cost.T
        found = sum(float(cost[pair]) for pair in pairs_of(result))
        assert found == pytest.approx(float(by_row[torch.arange(few), picks].sum(-1).min()), rel=1e-12, abs=1e-12)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer keeps what is given back")
def test_memory_is_that_of_the_largest_problem_and_is_given_back():
    environment = {**os.environ, "RAGGEDBEV_HOST_TWIN": "0", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", MEMORY], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    few, most, after = map(int, done.stdout.split())
    assert few < 20 and most > 60 and after < 20  # MB


MEMORY = """
import torch
from raggedbev.matching import linear_assignment

def megabytes(key):
    with open("/proc/self/status") as status:
        return int(next(line.split()[1] for line in status if line.startswith(key))) // 1024

torch.set_num_threads(1)
cost = torch.rand(1, 3000, 3000)
linear_assignment(cost[:, :5, :5])
before = megabytes("VmRSS")
linear_assignment(cost, torch.tensor([10]))
few = megabytes("VmHWM") - before
linear_assignment(cost, torch.tensor([2950]))
print(few, megabytes("VmHWM") - before, megabytes("VmRSS") - before)
"""


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.integers(1, 24), st.integers(1, 40), st.integers(0, 999))
def test_properties(kind, num_gt, num_preds, seed):
    """Permuted, shifted, scaled, padded: the total moves along."""
    cost = make(kind, num_gt, num_preds, seed, torch.float64)

    def total(matrix):
        result = linear_assignment(matrix, solver="native", check=True)
        return math.fsum(float(leveled(matrix)[pair]) for pair in pairs_of(result))

    generator = torch.Generator().manual_seed(seed)
    expected = total(cost)
    tolerance = 1e-9 * max(1.0, float(leveled(cost).abs().max())) * num_gt
    rows, columns = torch.randperm(num_gt, generator=generator), torch.randperm(num_preds, generator=generator)
    assert total(cost[rows][:, columns]) == pytest.approx(expected, abs=tolerance)
    result = linear_assignment(cost, solver="native")
    pairs, avoids_sentinels = result.pred_of_gt, all(cost[pair] < MOST for pair in pairs_of(result))
    assert total(cost * 0.25) == expected * 0.25 or not avoids_sentinels
    assert torch.equal(linear_assignment(cost * 2**-40, solver="native").pred_of_gt, pairs)
    for filler in (NAN, -INF, -1e9):
        padded = torch.cat([cost, torch.full((3, num_preds), filler)])
        found = linear_assignment(padded, torch.tensor(num_gt), solver="native", check=True).pred_of_gt
        assert torch.equal(found[:num_gt], pairs) and (found[num_gt:] == -1).all()
    if num_gt <= num_preds:
        shift = torch.randn(num_gt, 1, generator=generator, dtype=torch.float64)
        shifted = linear_assignment(cost + shift, solver="native")
        assert not has_negative_cycle(cost + shift, pairs_of(shifted))
        if avoids_sentinels:
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


@pytest.mark.parametrize("size", [(3, 4), (4, 3), (1, 1), (2, 40)], ids=str)
@pytest.mark.parametrize("value", [INF, -INF, NAN])
def test_non_finite_anywhere(value, size):
    """At every place, and at all places of a row: an error where SciPy has one, and its total where it has none."""
    cost = torch.randn(size, generator=torch.Generator().manual_seed(0))
    places = [*itertools.product(*map(range, size)), *((row, slice(None)) for row in range(size[0]))]
    for place in places:
        changed = cost.clone()
        changed[place] = value
        try:
            expected = changed[linear_sum_assignment(changed)].sum()
        except ValueError:
            with pytest.raises(ValueError, match="has no solution"):
                linear_assignment(changed, solver="native", check=True)
            continue
        result = linear_assignment(changed, solver="native", check=True)
        torch.testing.assert_close(sum(changed[pair] for pair in pairs_of(result)), expected)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_non_finite_costs(data):
    """Raises when SciPy raises; else the totals are equal, and as many objects as possible are matched in any case."""
    num_gt, num_preds = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    values = st.sampled_from([INF, INF, INF, 0.0, 1.0, 2.5, -3.0, MOST, NAN, -INF][: data.draw(st.integers(4, 10))])
    cost = torch.tensor([[data.draw(values) for _ in range(num_preds)] for _ in range(num_gt)])
    result = linear_assignment(cost, solver="native")
    try:
        expected = cost.double()[linear_sum_assignment(cost.double())].sum()
    except ValueError:
        assert result.status != 0
    else:
        assert result.status == 0
        found = sum(cost.double()[pair] for pair in pairs_of(result))
        assert found <= expected + 1e-15 * abs(expected)  # SciPy loses digits beside FLT_MAX
    if result.status == 1:
        most = linear_sum_assignment(cost.isinf().double())
        assert len(pairs_of(result)) == int(cost.isfinite()[most].sum())
    assert all(cost[pair].isfinite() for pair in pairs_of(result))
    last_resort = linear_assignment(cost, solver="native", nonfinite="last_resort")
    assert len(pairs_of(last_resort)) == min(num_gt, num_preds)
    assert last_resort.status == result.status


def test_native_and_scipy_agree_on_batches():
    cost = torch.randn(3, 4, 20, 50, generator=torch.Generator().manual_seed(1))
    num_gt = torch.randint(0, 21, (3, 4), generator=torch.Generator().manual_seed(2))
    native, scipy = (linear_assignment(cost, num_gt, solver=solver) for solver in ("native", "scipy"))
    assert torch.equal(native.pred_of_gt, scipy.pred_of_gt) and torch.equal(native.gt_of_pred, scipy.gt_of_pred)


def test_ties_go_to_the_lowest_free_prediction():
    assert linear_assignment(torch.zeros(3, 5), solver="native").pred_of_gt.tolist() == [0, 1, 2]
    cost = torch.ones(2, 300)
    cost[0, [70, 130, 299]] = 0
    cost[1, [69, 250]] = 0
    assert linear_assignment(cost, solver="native").pred_of_gt.tolist() == [70, 69]
    cost[1, 69], cost[1, 70] = 1, 0
    assert linear_assignment(cost, solver="native").pred_of_gt.tolist() == [70, 250]


@pytest.mark.parametrize("values", [5, 40, 150])
@pytest.mark.parametrize("own", [0, 1], ids=["identical rows", "similar rows"])
def test_ties_do_not_depend_on_the_width(values, own):
    """Columns that nobody can have change nothing, though rows of another width are searched in another way."""
    for seed in range(5 if "RAGGEDBEV_HOST_TWIN" in os.environ else 100):  # lanes one by one take their time
        g = torch.Generator().manual_seed(seed)
        num_gt, num_preds = 20 + seed % 40, 64 + seed % 128
        cost = torch.randint(0, values, (1, num_preds), generator=g).float()
        cost = cost + torch.randint(0, own + 1, (num_gt, num_preds), generator=g)
        expected = linear_assignment(cost, duals=True, solver="native")
        for width in (200, 333, 2100):
            padded = torch.nn.functional.pad(cost, (0, width - num_preds), value=INF)
            found = linear_assignment(padded, duals=True, solver="native")
            for name in ("pred_of_gt", "status", "dual_of_gt"):
                assert torch.equal(getattr(found, name), getattr(expected, name)), (seed, width, name)


def test_same_result_alone_in_a_batch_and_on_any_number_of_threads():
    kinds = [make(kind, 20, 50, 3) for kind in KINDS]
    cost = torch.stack(kinds * 20)
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(linear_assignment(cost, duals=True, solver="native"))
    finally:
        torch.set_num_threads(threads)
    alone = [linear_assignment(matrix, duals=True, solver="native") for matrix in kinds]
    for field, values in enumerate(zip(*results, strict=True)):
        expected = torch.stack([result[field] for result in alone] * 20)
        assert all(torch.equal(value, expected) for value in values)


def test_duals_come_from_the_native_solver_only():
    with pytest.raises(ValueError, match="dual variables come from the native solver only"):
        linear_assignment(torch.zeros(2, 3), duals=True, solver="scipy")


TWIN_SIZES = [(0, 4), (1, 7), (6, 3), (33, 66), (70, 5), (9, 2113), (7, 2050), (30, 193), (40, 277), (12, 2048)]


def results_of_everything(device="cpu"):
    """Of problems of every kind, with and without holes, in batches with any number of objects."""
    results = []
    for kind in KINDS:
        for seed, size in enumerate(TWIN_SIZES):
            generator = torch.Generator().manual_seed(seed)
            dtype = torch.float64 if seed % 2 else torch.float32
            cost = torch.stack([make(kind, *size, seed + number, dtype) for number in range(2)]).to(device)
            num_gt = torch.tensor([size[0], size[0] * 2 // 3], device=device)
            results.append(linear_assignment(cost, num_gt, duals=True, solver="native"))
            minima = block_minima(cost)
            results.append(linear_assignment(cost, num_gt, duals=True, solver="native", minima=minima))
            for hole, nonfinite in ((INF, "report"), (INF, "last_resort"), (NAN, "last_resort")):
                holes = torch.rand(cost.shape, generator=generator) < 0.3
                holes[1, :1] = True
                filled = cost.masked_fill(holes.to(device), hole)
                results.append(linear_assignment(filled, num_gt, nonfinite=nonfinite, duals=True, solver="native"))
    return [tuple(field.cpu() for field in result) for result in results]


def assert_same_bits(found, expected):
    assert len(found) == len(expected) == len(KINDS) * len(TWIN_SIZES) * 5
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("twin", ["1", "shuffle"])
def test_host_twin_is_equal_bit_by_bit(tmp_path, twin):
    """The algorithm of the device, its lanes in order and in others."""
    path = tmp_path / "twin.pt"
    done = subprocess.run(
        [sys.executable, __file__, str(path)],
        env={**os.environ, "RAGGEDBEV_HOST_TWIN": twin, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert_same_bits(torch.load(path), results_of_everything())


@needs_cuda
def test_cuda_is_equal_to_the_cpu_bit_by_bit():
    assert_same_bits(results_of_everything("cuda"), results_of_everything())


@needs_cuda
@pytest.mark.parametrize("size", [(10, 900), (60, 428), (200, 300), (300, 300), (20, 20000), (50, 20)], ids=str)
def test_cuda_in_every_layout_of_its_memory(size):
    """All, some or none of the state in shared memory: by size, and by how many problems share a multiprocessor."""
    for problems in (1, 48, 4000 if size[0] * size[1] < 20000 else 200):
        cost = torch.stack([make("crowded", *size, seed) for seed in range(4)]).repeat(problems // 4 + 1, 1, 1)
        cost = cost[:problems]
        found = linear_assignment(cost.cuda(), duals=True, solver="native")
        expected = linear_assignment(cost[:4], duals=True, solver="native")
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one.cpu(), other.repeat(problems // 4 + 1, *[1] * (other.dim() - 1))[:problems])


@needs_cuda
@pytest.mark.parametrize("nonfinite", ["report", "last_resort"])
def test_cuda_never_waits_for_the_device(nonfinite):
    cost, num_gt = torch.randn(3, 4, 9, 70, device="cuda"), torch.randint(0, 10, (3, 4), device="cuda")
    cost[0, 0, 0, :] = INF
    linear_assignment(cost, num_gt)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for counts in (num_gt, num_gt.int(), None):
            result = linear_assignment(cost.half(), counts, nonfinite=nonfinite)
            linear_assignment(cost.transpose(-1, -2), nonfinite=nonfinite, duals=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert result.status[0, 0] == 1


@needs_cuda
def test_cuda_graph_replays_with_other_costs_and_counts():
    cost, num_gt = torch.rand(6, 12, 40, device="cuda"), torch.full((6,), 12, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        linear_assignment(cost, num_gt, duals=True)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = linear_assignment(cost, num_gt, duals=True)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        new_cost = torch.randn(6, 12, 40, generator=generator)
        new_cost[torch.rand(new_cost.shape, generator=generator) < 0.2 * seed] = INF
        counts = torch.randint(-2, 15, (6,), generator=generator)  # out of range, too: no error on the device
        cost.copy_(new_cost)
        num_gt.copy_(counts)
        graph.replay()
        expected = linear_assignment(new_cost, counts.clamp(0, 12), duals=True)
        assert all(torch.equal(one.cpu(), other) for one, other in zip(result, expected, strict=True))


@needs_cuda
def test_cuda_stream_of_the_caller():
    cost = torch.rand(8, 30, 300)
    expected = linear_assignment(cost).pred_of_gt
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # what comes on another stream comes before the costs
        found = linear_assignment(cost.cuda(non_blocking=True)).pred_of_gt
    stream.synchronize()
    assert torch.equal(found.cpu(), expected)


@needs_cuda
@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (2, 0, 0)], ids=str)
def test_cuda_without_rows_columns_or_problems(shape):
    result = linear_assignment(torch.zeros(shape, device="cuda"), duals=True)
    torch.cuda.synchronize()
    assert (result.status == 0).all() and (result.pred_of_gt == -1).all() and (result.gt_of_pred == -1).all()


@needs_cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_cuda_device_of_the_costs():
    cost = torch.rand(2, 5, 9)
    result = linear_assignment(cost.to("cuda:1"))
    assert result.pred_of_gt.device == torch.device("cuda:1")
    assert torch.equal(result.pred_of_gt.cpu(), linear_assignment(cost).pred_of_gt)


@pytest.mark.parametrize(
    "shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (3, 4, 6), (2, 6, 4), (3, 4), (2, 1, 4, 6), (2, 0, 4, 6)], ids=str
)
@pytest.mark.parametrize("duals", [False, True])
def test_opcheck(shape, duals):
    cost = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    num_gt = torch.randint(0, shape[-2] + 1, shape[:-2], generator=torch.Generator().manual_seed(0))
    for counts, minima in ((num_gt, None), (None, None), (num_gt, block_minima(cost))):
        torch.library.opcheck(torch.ops.raggedbev.linear_assignment, (cost, counts, minima, False, duals))


def test_compile_and_vmap():
    cost, num_gt = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([5, 0, 3])
    wanted = linear_assignment(cost, num_gt)

    def match(costs):
        return linear_assignment(costs, num_gt).pred_of_gt

    compiled = torch.compile(match, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(cost), wanted.pred_of_gt)
    assert torch.equal(torch.vmap(match)(cost), wanted.pred_of_gt)

    def match_pairs(costs):
        return linear_assignment(costs, num_gt).pairs().pred_index

    compiled = torch.compile(match_pairs, fullgraph=True, backend="aot_eager")(cost)
    assert torch.equal(compiled.tensor, wanted.pairs().pred_index.tensor)


def test_strided_and_half_costs():
    cost = torch.randn(6, 9, 4, generator=torch.Generator().manual_seed(0))
    strided = linear_assignment(cost.permute(2, 0, 1), solver="native")
    assert torch.equal(strided.pred_of_gt, linear_assignment(cost.permute(2, 0, 1).contiguous()).pred_of_gt)
    for dtype in (torch.float16, torch.bfloat16):
        half = cost.to(dtype)
        assert torch.equal(linear_assignment(half).pred_of_gt, linear_assignment(half.float()).pred_of_gt)


def test_wrong_arguments_of_the_operator():
    operator = torch.ops.raggedbev.linear_assignment
    with pytest.raises(ValueError, match=r"cost must be \[\.\.\., G, P\], got \(3,\)"):
        operator(torch.zeros(3), torch.zeros(2, dtype=torch.long), None, False, False)
    with pytest.raises(TypeError, match="cost must have a floating-point type"):
        operator(torch.zeros(1, 2, 3, dtype=torch.long), torch.zeros(1, dtype=torch.long), None, False, False)
    with pytest.raises(ValueError, match=r"num_gt must be \(1,\) on cpu like cost, got \(2,\) on cpu"):
        operator(torch.zeros(1, 2, 3), torch.zeros(2, dtype=torch.long), None, False, False)
    with pytest.raises(TypeError, match=r"num_gt must be int32 or int64, got torch\.int16"):
        operator(torch.zeros(1, 2, 3), torch.zeros(1, dtype=torch.int16), None, False, False)
    with pytest.raises(ValueError, match=r"num_gt must lie in \[0, 2\], got values in \[3, 3\]"):
        operator(torch.zeros(1, 2, 3), torch.tensor([3]), None, False, False)
    with pytest.raises(ValueError, match=r"cost must have at most 2\^30 rows and columns, got \(1, 0, 1073741825\)"):
        operator(torch.zeros(1, 0, 2**30 + 1), torch.zeros(1, dtype=torch.long), None, False, False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_known_minima_change_nothing(kind, dtype):
    for num_gt, num_preds in SIZES:
        cost = torch.stack([make(kind, num_gt, num_preds, seed, dtype) for seed in range(3)])
        if num_gt > 1 and num_preds > 3:
            cost[1, 1, 2], cost[2, -1, 3] = NAN, INF
        counts = torch.tensor([num_gt, num_gt, max(num_gt - 1, 0)])
        for nonfinite in ("report", "last_resort"):
            plain = linear_assignment(cost, counts, nonfinite=nonfinite, duals=True)
            known = linear_assignment(cost, counts, nonfinite=nonfinite, duals=True, minima=block_minima(cost))
            for one, other in zip(plain, known, strict=True):
                assert torch.equal(one, other)


def test_minima_that_do_not_fit():
    cost = torch.zeros(2, 3, 70)
    operator = torch.ops.raggedbev.linear_assignment
    with pytest.raises(ValueError, match=r"minima must have shape \(2, 3, 2\), got \(2, 3, 1\)"):
        operator(cost, None, torch.zeros(2, 3, 1), False, False)
    with pytest.raises(ValueError, match=r"minima must have the type .* got torch\.float64 on cpu for torch\.float32"):
        operator(cost, None, torch.zeros(2, 3, 2, dtype=torch.float64), False, False)
    with pytest.raises(ValueError, match="a RaggedBatch must come without"):
        linear_assignment(RaggedBatch(cost, sample_sizes=torch.tensor([3, 1])), minima=torch.zeros(2, 3, 2))


if __name__ == "__main__":
    torch.save(results_of_everything(), sys.argv[1])
