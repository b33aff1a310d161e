"""Linear assignment of whole batches: cost matrices [..., G, P] and object counts in, index pairs out.

Every leading dimension (layers, samples, query groups) is just more problems. This module's solver is SciPy's: all
problems travel to the host in one copy and the pairs travel back in one; the result lives on the device of the costs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from raggedbev.ragged.batch import RaggedBatch

__all__ = ["LinearAssignment", "linear_assignment"]

OK, INFEASIBLE, INVALID = 0, 1, 2
_SOLVERS = ("auto", "scipy")
_NONFINITE = ("report", "last_resort")


@dataclass(frozen=True, eq=False)
class LinearAssignment:
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


def linear_assignment(
    cost: Tensor | RaggedBatch,
    num_gt: Tensor | None = None,
    *,
    solver: str = "auto",
    nonfinite: str = "report",
    check: bool = False,
) -> LinearAssignment:
    """Match objects to predictions so that each problem's total cost is smallest.

    Every object gets one prediction, and every prediction at most one object; with more objects than predictions,
    every prediction gets one object. Costs are compared in float64. Ties are resolved as SciPy does, the same on
    every device.

    Args:
        cost: [..., G, P] any floating dtype, rows beyond `num_gt` are filler; or a RaggedBatch that is ragged along
            one of its last two dimensions, which is then the object dimension. Detached: no gradient flows.
        num_gt: [...] integer, objects per problem (broadcast to the leading dimensions of `cost`), on its device;
            none: G, or the sample sizes of a RaggedBatch.
        solver: 'scipy', or 'auto' for the best one available.
        nonfinite: 'report': +inf forbids an edge; objects that cannot be matched get -1 and status 1; a problem with
            NaN or -inf gets -1 throughout and status 2. 'last_resort': such edges count as worse than every finite
            assignment, so the problem is always solved; status still reports what was met.
        check: raise for a status other than 0.

    Returns:
        The pairs, on the device of `cost`.

    Raises:
        ValueError: shapes, dtypes or options do not fit, or `check` found a problem.
    """
    check_solver(solver)
    if nonfinite not in _NONFINITE:
        raise ValueError(f"nonfinite must be one of {_NONFINITE}, got {nonfinite!r}")
    if not cost.dtype.is_floating_point or cost.dim() < 2:
        raise ValueError(f"cost must be a floating-point tensor [..., G, P], got {tuple(cost.shape)} {cost.dtype}")
    cost, num_gt = _unwrap(cost, num_gt)
    lead, (num_rows, num_cols) = cost.shape[:-2], cost.shape[-2:]
    matrices, counts = _to_host(cost.detach(), num_gt)
    if counts.size and (counts.min() < 0 or counts.max() > num_rows):
        raise ValueError(f"num_gt must lie in [0, {num_rows}], got values in [{counts.min()}, {counts.max()}]")
    packed = _solve_all(matrices, counts, nonfinite == "last_resort")
    if check and packed[:, -1].any():
        _raise_status(packed[:, -1])
    result = torch.from_numpy(packed).to(cost.device)  # [problems, G + P + 1]: one copy for everything
    pred_of_gt, gt_of_pred, status = result.split([num_rows, num_cols, 1], dim=-1)
    return LinearAssignment(
        pred_of_gt.reshape(*lead, num_rows), gt_of_pred.reshape(*lead, num_cols), status.to(torch.int8).reshape(lead)
    )


def check_solver(solver: str) -> None:
    """Raise a ValueError for a solver that does not exist."""
    if solver not in _SOLVERS:
        raise ValueError(f"solver must be one of {_SOLVERS}, got {solver!r}")


def _unwrap(cost: Tensor | RaggedBatch, num_gt: Tensor | None) -> tuple[Tensor, Tensor]:
    """Cost [..., G, P] and counts [...] from either input form."""
    if isinstance(cost, RaggedBatch):
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
    if num_gt is None:
        return cost, torch.full(cost.shape[:-2], cost.shape[-2], dtype=torch.long, device=cost.device)
    if num_gt.is_floating_point() or num_gt.dtype == torch.bool:
        raise ValueError(f"num_gt must be an integer tensor, got {num_gt.dtype}")
    return cost, num_gt.expand(cost.shape[:-2])


def _to_host(cost: Tensor, num_gt: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """[problems, G, P] float32/float64 and [problems] int64 on the host, in one copy."""
    if cost.dtype not in (torch.float32, torch.float64):
        cost = cost.float()
    problems = math.prod(cost.shape[:-2])
    if cost.device.type == "cpu":
        return cost.reshape(problems, *cost.shape[-2:]).numpy(), num_gt.reshape(problems).long().numpy()
    entries = cost.shape[-2] * cost.shape[-1]
    packed = torch.cat([cost.reshape(problems, entries), num_gt.reshape(problems, 1).to(cost.dtype)], dim=1)
    host = packed.cpu().numpy()
    return host[:, :entries].reshape(problems, *cost.shape[-2:]), host[:, entries].astype(np.int64)


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
        return (*linear_sum_assignment(matrix), OK)
    invalid = bool((np.isnan(matrix) | np.isneginf(matrix)).any())
    if invalid and not last_resort:
        return np.empty(0, np.int64), np.empty(0, np.int64), INVALID
    rows, columns = linear_sum_assignment(_with_finite_sentinels(matrix, finite))
    allowed = finite[rows, columns]
    status = INVALID if invalid else OK if allowed.all() else INFEASIBLE
    return (rows, columns, status) if last_resort else (rows[allowed], columns[allowed], status)


def _with_finite_sentinels(matrix: np.ndarray, finite: np.ndarray) -> np.ndarray:
    """Non-finite entries replaced by a cost that no sum of finite ones outweighs."""
    matrix = matrix.astype(np.float64)
    values = matrix[finite]
    if not values.size:
        return np.zeros_like(matrix)
    if np.abs(values).max() > 1e200:
        matrix, values = matrix * 2.0**-512, values * 2.0**-512
    worst, best = values.max(), values.min()
    sentinel = worst + (min(matrix.shape) + 1) * (worst - best) + 1
    return np.where(finite, matrix, sentinel)


def _raise_status(status: np.ndarray) -> None:
    index = int(np.flatnonzero(status)[0])
    reason = (
        "the forbidden (+inf) edges leave an object without a prediction"
        if status[index] == INFEASIBLE
        else ("the costs contain NaN or -inf")
    )
    raise ValueError(f"assignment problem {index} has no solution: {reason}")
