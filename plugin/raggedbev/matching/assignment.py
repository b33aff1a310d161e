"""Linear assignment of whole batches: cost matrices [..., G, P] and object counts in, index pairs out.

Every leading dimension (layers, samples, query groups) is just more problems. The native solver runs on the device of
the costs, without a host read; where it is not compiled, SciPy takes all problems in one copy to the host and one back.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, cast, overload

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from raggedbev._extension import COMPILED, add_batch_dim, define_operator, load_operator
from raggedbev.ragged.batch import RaggedBatch
from raggedbev.ragged.ops import batched_indexing_access, get_indices_from_mask

__all__ = ["IndexPairs", "LinearAssignment", "linear_assignment"]

OK, INFEASIBLE, INVALID = 0, 1, 2
_SOLVERS = ("auto", "native", "scipy")
_NONFINITE = ("report", "last_resort")
COLUMNS_PER_MINIMUM = 64
"""Predictions of one entry of `minima`."""


class IndexPairs(NamedTuple):
    """The pairs of an assignment as indices, for `batched_indexing_access` and its relatives.

    Attributes:
        gt_index: [..., K] int64, objects that have a prediction, in order; K is the lesser of G and P.
        pred_index: [..., K] int64, their predictions.
    """

    gt_index: RaggedBatch
    pred_index: RaggedBatch


def index_pairs(pred_of_gt: Tensor, gt_of_pred: Tensor) -> IndexPairs:
    """Ragged indices of the pairs in pred_of_gt [..., G] and gt_of_pred [..., P], which name the same ones."""
    room = min(pred_of_gt.shape[-1], gt_of_pred.shape[-1])
    gt_index = get_indices_from_mask(pred_of_gt >= 0, max_num=room)
    return IndexPairs(gt_index, cast(RaggedBatch, batched_indexing_access(pred_of_gt, gt_index)))


class LinearAssignment(NamedTuple):
    """Result of `linear_assignment`.

    Attributes:
        pred_of_gt: [..., G] int64, the prediction of each object; -1 on filler and on objects left over.
        gt_of_pred: [..., P] int64, the object of each prediction; -1 for background.
        status: [...] int8: 0 solved, 1 infeasible (forbidden edges leave objects without a prediction), 2 NaN or -inf
            in the costs.
    """

    pred_of_gt: Tensor
    gt_of_pred: Tensor
    status: Tensor

    def pairs(self) -> IndexPairs:
        """The same as ragged index pairs; nothing is read from the device."""
        return index_pairs(self.pred_of_gt, self.gt_of_pred)


class LinearAssignmentWithDuals(NamedTuple):
    """Result of `linear_assignment` with `duals=True`: the fields of `LinearAssignment`, and a proof.

    Where status is 0, dual_of_gt + dual_of_pred is nowhere above the cost and equal to it on the pairs, up to rounding
    in float64; this proves them optimal.

    Attributes:
        pred_of_gt: [..., G] int64.
        gt_of_pred: [..., P] int64.
        status: [...] int8.
        dual_of_gt: [..., G] float64; 0 on filler.
        dual_of_pred: [..., P] float64; none is positive but by rounding, and those of background are 0 (with more
            objects than predictions the two change places).
    """

    pred_of_gt: Tensor
    gt_of_pred: Tensor
    status: Tensor
    dual_of_gt: Tensor
    dual_of_pred: Tensor

    def pairs(self) -> IndexPairs:
        """See `LinearAssignment.pairs`."""
        return index_pairs(self.pred_of_gt, self.gt_of_pred)


@overload
def linear_assignment(
    cost: Tensor | RaggedBatch,
    num_gt: Tensor | None = ...,
    *,
    solver: str = ...,
    nonfinite: str = ...,
    duals: Literal[False] = ...,
    check: bool = ...,
    minima: Tensor | None = ...,
) -> LinearAssignment: ...


@overload
def linear_assignment(
    cost: Tensor | RaggedBatch,
    num_gt: Tensor | None = ...,
    *,
    solver: str = ...,
    nonfinite: str = ...,
    duals: Literal[True],
    check: bool = ...,
    minima: Tensor | None = ...,
) -> LinearAssignmentWithDuals: ...


def linear_assignment(
    cost: Tensor | RaggedBatch,
    num_gt: Tensor | None = None,
    *,
    solver: str = "auto",
    nonfinite: str = "report",
    duals: bool = False,
    check: bool = False,
    minima: Tensor | None = None,
) -> LinearAssignment | LinearAssignmentWithDuals:
    """Match objects to predictions so that each problem's total cost is smallest.

    Every object gets one prediction, and every prediction at most one object; with more objects than predictions,
    every prediction gets one object. Costs are read in their own type (half types as float32) and added up in float64.
    The native solver is a shortest augmenting path method (Jonker and Volgenant 1987) in which all free predictions
    are one node; it is deterministic, and equal costs go to the lowest prediction that is free. One large value that
    stands for 'hardly ever' (1e9 or FLT_MAX, say) does not cost the other costs their digits; two large values of
    different magnitude do.

    Args:
        cost: [..., G, P] any floating dtype, rows beyond `num_gt` are filler; or a RaggedBatch that is ragged along
            one of its last two dimensions, which is then the object dimension. Detached: no gradient flows.
        num_gt: [...] int32 or int64, objects per problem (broadcast to the leading dimensions of `cost`), on its
            device; none: G, or the sample sizes of a RaggedBatch. On an accelerator values outside [0, G] count as
            the nearer end.
        solver: 'native', 'scipy', or 'auto': native where it is compiled for the device of `cost`, else SciPy.
        nonfinite: 'report': +inf forbids an edge; objects that cannot be matched get -1 and status 1; a problem with
            NaN or -inf gets -1 throughout and status 2. 'last_resort': such edges count as worse than every finite
            assignment, so the problem is always solved; status still reports what was met.
        duals: return dual variables, too (native solver only).
        check: raise for a problem without a solution; reads the device, which torch.vmap does not allow and breaks the
            graph of torch.compile. With 'last_resort' there is none, whatever `status` reports.
        minima: [..., G, ceil(P / 64)] smallest cost of every 64 predictions, as `raggedbev.matching.match_cost` returns
            them: the native solver need not look for them. They must be those of `cost`; a RaggedBatch has none.

    Returns:
        The pairs, on the device of `cost`.

    Raises:
        TypeError: `cost` is no tensor and no ragged batch, or `num_gt` or `minima` are no tensors.
        ValueError: shapes, dtypes, devices or options do not fit, or `check` found a problem.
    """
    check_solver(solver)
    if nonfinite not in _NONFINITE:
        raise ValueError(f"nonfinite must be one of {_NONFINITE}, got {nonfinite!r}")
    if not isinstance(cost, Tensor | RaggedBatch):
        raise TypeError(f"cost must be a tensor or RaggedBatch, got {type(cost).__name__}")
    if not cost.dtype.is_floating_point or cost.dim() < 2:
        raise ValueError(f"cost must be a floating-point tensor [..., G, P], got {tuple(cost.shape)} {cost.dtype}")
    if isinstance(cost, RaggedBatch):
        if minima is not None:
            raise ValueError("minima belong to a tensor of costs; a RaggedBatch must come without")
        cost, num_gt = _of_ragged(cost, num_gt)
    elif num_gt is not None:
        num_gt = _broadcast(num_gt, cost)
    if minima is not None:
        _check_minima(minima, cost)
    if cost.requires_grad:
        cost = cost.detach()
    if cost.layout != torch.strided:
        raise ValueError(f"cost must be a dense tensor, got {cost.layout}")
    solve = _solve_on_host if solver == "scipy" else _solve
    results = solve(cost, num_gt, minima, nonfinite == "last_resort", duals)
    if check and nonfinite == "report":
        _raise_status(results[2])
    return LinearAssignmentWithDuals(*results) if duals else LinearAssignment(results[0], results[1], results[2])


def check_solver(solver: str) -> None:
    """Raise a ValueError for a solver that does not exist."""
    if solver not in _SOLVERS:
        raise ValueError(f"solver must be one of {_SOLVERS}, got {solver!r}")
    if solver == "native" and not COMPILED:
        raise ValueError("solver='native' needs the compiled operators, and they were not built; 'auto' takes SciPy")


def _of_ragged(cost: RaggedBatch, num_gt: Tensor | None) -> tuple[Tensor, Tensor]:
    """Cost [..., G, P] and counts [...]."""
    if num_gt is not None:
        raise ValueError("num_gt comes with the RaggedBatch; it must not be given as well")
    if cost.non_uniform_dim < cost.dim() - 2:
        raise ValueError(
            f"the ragged dimension must be one of the last two, got {cost.non_uniform_dim} of {cost.dim()}"
        )
    by_row = cost.get_non_uniform_dimension_transposed_to(cost.dim() - 2)
    sizes = cost.sample_sizes
    sizes = sizes.reshape(*sizes.shape, *[1] * (cost.dim() - 2 - sizes.dim()))
    return by_row.tensor, sizes.expand(by_row.shape[:-2])


def _broadcast(num_gt: Tensor, cost: Tensor) -> Tensor:
    """Counts [...] for cost [..., G, P]."""
    if not isinstance(num_gt, Tensor):
        raise TypeError(f"num_gt must be an int32 or int64 tensor, got {type(num_gt).__name__}")
    if num_gt.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"num_gt must be int32 or int64, got {num_gt.dtype}")
    if num_gt.device != cost.device:
        raise ValueError(f"num_gt must be on {cost.device} like cost, got {num_gt.device}")
    lead = cost.shape[:-2]
    if num_gt.shape == lead:
        return num_gt
    try:
        return num_gt.expand(lead)
    except RuntimeError:
        raise ValueError(
            f"num_gt must be {tuple(lead)} like cost, or broadcast to that, got {tuple(num_gt.shape)}"
        ) from None


def _check_minima(minima: Tensor, cost: Tensor) -> None:
    """[..., G, blocks] for cost [..., G, P]."""
    if not isinstance(minima, Tensor):
        raise TypeError(f"minima must be a tensor, got {type(minima).__name__}")
    shape = (*cost.shape[:-1], -(-cost.shape[-1] // COLUMNS_PER_MINIMUM))
    if minima.shape != shape:
        raise ValueError(f"minima must have shape {shape}, got {tuple(minima.shape)}")
    if minima.device != cost.device:
        raise ValueError(f"minima must be on {cost.device} like cost, got {minima.device}")
    if minima.dtype != cost.dtype or minima.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"minima must have the type of float32 or float64 costs, got {minima.dtype} for {cost.dtype} costs"
        )


def _solve_with_scipy(
    cost: Tensor, num_gt: Tensor | None, _minima: Tensor | None, last_resort: bool, duals: bool
) -> tuple[Tensor, ...]:
    """All problems on the host; one copy there and one back."""
    if duals:
        raise ValueError("dual variables come from the native solver only, and SciPy is used")
    lead, (num_rows, num_cols) = cost.shape[:-2], cost.shape[-2:]
    counts = cost.new_full(lead, num_rows, dtype=torch.long) if num_gt is None else num_gt
    matrices, sizes = _to_host(cost.reshape(math.prod(lead), num_rows, num_cols), counts.reshape(-1))
    if sizes.size and (sizes.min() < 0 or sizes.max() > num_rows):
        raise ValueError(f"num_gt must lie in [0, {num_rows}], got values in [{sizes.min()}, {sizes.max()}]")
    packed = torch.from_numpy(_solve_all(matrices, sizes, last_resort)).to(cost.device)  # [problems, G + P + 1]
    packed = packed.reshape(*lead, packed.shape[-1])
    pred_of_gt, gt_of_pred, status = packed.split([num_rows, num_cols, 1], dim=-1)
    no_duals = cost.new_empty((*lead, 0), dtype=torch.double)
    status = status.squeeze(-1).to(torch.int8)
    return pred_of_gt.clone(), gt_of_pred.clone(), status, no_duals, no_duals.clone()


def _to_host(cost: Tensor, num_gt: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """[problems, G, P] float32/float64 and [problems] int64 on the host, in one copy."""
    if cost.dtype not in (torch.float32, torch.float64):
        cost = cost.float()
    if cost.device.type == "cpu":
        return cost.detach().resolve_neg().numpy(), num_gt.long().numpy()
    entries = cost.shape[1] * cost.shape[2]
    packed = torch.cat([cost.reshape(-1, entries), num_gt.unsqueeze(1).to(cost.dtype)], dim=1)
    host = packed.cpu().numpy()
    return host[:, :entries].reshape(cost.shape), host[:, entries].astype(np.int64)


def _solve_all(matrices: np.ndarray, counts: np.ndarray, last_resort: bool) -> np.ndarray:
    """[problems, G + P + 1] int64: pred_of_gt, gt_of_pred, status."""
    problems, num_rows, num_cols = matrices.shape
    packed = np.full((problems, num_rows + num_cols + 1), -1, dtype=np.int64)
    packed[:, -1] = OK
    for matrix, count, out in zip(matrices, counts.tolist(), packed, strict=True):
        if count and num_cols:
            rows, columns, out[-1] = _solve_one(matrix[:count], last_resort)
            out[rows] = columns
            out[num_rows + columns] = rows
    return packed


def _solve_one(matrix: np.ndarray, last_resort: bool) -> tuple[np.ndarray, np.ndarray, int]:
    """Matched rows, their columns, and the status of one problem."""
    finite = np.isfinite(matrix)
    if finite.all():
        return (*linear_sum_assignment(_summable(matrix)), OK)
    invalid = bool((np.isnan(matrix) | np.isneginf(matrix)).any())
    if invalid and not last_resort:
        return np.empty(0, np.int64), np.empty(0, np.int64), INVALID
    matrix = _summable(np.where(finite, matrix, 0.0).astype(np.float64))
    rows, columns = linear_sum_assignment(_with_finite_sentinels(matrix, finite))
    allowed = finite[rows, columns]
    status = INVALID if invalid else OK if allowed.all() else INFEASIBLE
    return (rows, columns, status) if last_resort else (rows[allowed], columns[allowed], status)


def _with_finite_sentinels(matrix: np.ndarray, finite: np.ndarray) -> np.ndarray:
    """Float64 costs whose entries that are not `finite` cost more than any sum of the others."""
    values = matrix[finite] if finite.any() else np.zeros(1)
    worst, best = float(values.max()), float(values.min())
    unit = max(abs(worst), abs(best)) or 1.0
    return np.where(finite, matrix, worst + (min(matrix.shape) + 1) * (worst - best) + unit)


def _summable(matrix: np.ndarray) -> np.ndarray:
    """Finite costs with the same optimal pairs, whose sums keep the digits of all of them.

    The largest magnitude becomes no larger than it takes, if all others together do not come near it; costs that are
    too large to be added up are scaled down.
    """
    magnitude = np.abs(matrix, dtype=np.float64)
    largest = float(magnitude.max())
    outlier = magnitude == largest
    huge = 16.0 * (min(matrix.shape) + 1) * (float(magnitude.max(where=~outlier, initial=0.0)) or 1.0)
    if largest > huge:
        return np.where(outlier, np.copysign(huge, matrix, dtype=np.float64), matrix)
    return matrix if largest <= 1e200 else matrix * 2.0**-512


def _raise_status(status: Tensor) -> None:
    """ValueError for the first problem without a solution."""
    if not torch.compiler.is_compiling() and torch._C._functorch.is_batchedtensor(status):
        raise ValueError("check=True reads the result, which torch.vmap does not allow")
    values = status.flatten().tolist()
    if not any(values):
        return
    index = next(number for number, value in enumerate(values) if value)
    reason = (
        "the forbidden (+inf) edges leave objects, or predictions where these are fewer, without a pair"
        if values[index] == INFEASIBLE
        else "the costs contain NaN or -inf"
    )
    raise ValueError(f"assignment problem {index} has no solution: {reason}")


def _solve_fake(
    cost: Tensor, _num_gt: Tensor | None, _minima: Tensor | None, _last_resort: bool, duals: bool
) -> tuple[Tensor, ...]:
    lead, (num_rows, num_cols) = cost.shape[:-2], cost.shape[-2:]
    return (
        cost.new_empty((*lead, num_rows), dtype=torch.long),
        cost.new_empty((*lead, num_cols), dtype=torch.long),
        cost.new_empty(lead, dtype=torch.int8),
        cost.new_empty((*lead, num_rows if duals else 0), dtype=torch.double),
        cost.new_empty((*lead, num_cols if duals else 0), dtype=torch.double),
    )


_solve_on_host = define_operator(
    "linear_assignment_on_host(Tensor cost, Tensor? num_gt, Tensor? minima, bool last_resort, bool duals) "
    "-> (Tensor pred_of_gt, Tensor gt_of_pred, Tensor status, Tensor dual_of_gt, Tensor dual_of_pred)",
    _solve_with_scipy,
    fake=_solve_fake,
    vmap=add_batch_dim,
)
_solve = load_operator("linear_assignment", fallback=_solve_on_host, fake=_solve_fake, vmap=add_batch_dim)
