"""Assignment problems of every kind, and what proves an answer optimal."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import torch

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
    "identical integers": lambda n, m, g: (uniform(1, m, g) * 5).floor().expand(n, m).clone(),
    "tied crowd": lambda n, m, g: (uniform(1, m, g) * 5).floor() + (uniform(n, m, g) * 3).floor(),
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
    ordinary = cost[cost.abs() < 1e30].abs()
    unit = ordinary.max() if ordinary.numel() else 0.0
    tolerance = 1e-11 * (unit + of_gt.abs().unsqueeze(1) + of_pred.abs())
    slack = cost - of_gt.unsqueeze(1) - of_pred
    assert (slack >= -tolerance).all()
    assert all(abs(slack[pair]) <= tolerance[pair] for pair in pairs_of(result))
    few, many, matched = (
        (of_gt, of_pred, result.gt_of_pred >= 0)
        if cost.shape[0] <= cost.shape[1]
        else (of_pred, of_gt, result.pred_of_gt >= 0)
    )
    assert few.isfinite().all() and (many <= 0).all() and (many[~matched] == 0).all()


def leveled(cost):
    """Float64 costs with the same optimal pairs, whose digits are not lost beside sentinels and forbidden edges: these
    are a little more than what all others can add up to."""
    cost = cost.double()
    beyond = cost > 1e30
    others = cost[~beyond].abs()
    return torch.where(beyond, 4.0 * (min(cost.shape) + 1) * (others.max() if others.numel() else 1.0), cost)


def has_negative_cycle(cost, pairs):
    """In the residual graph over the rows and one node for all free columns: then, and only then, it is not optimal."""
    turned = cost.shape[0] > cost.shape[1]
    cost = leveled(cost).numpy().T if turned else leveled(cost).numpy()
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
    return length.diagonal().min() < -1e-12 * max(1.0, np.abs(cost).max())


def exact_total(cost, pairs):
    return sum(Fraction(float(cost[g, p])) for g, p in pairs)


def least_exact_total(cost):
    """Over all assignments, in exact arithmetic."""
    exact = [[Fraction(value) for value in row] for row in cost.double().tolist()]
    if cost.shape[0] > cost.shape[1]:
        exact = [list(column) for column in zip(*exact, strict=True)]
    picks = itertools.permutations(range(len(exact[0])), len(exact))
    return min(sum(row[column] for row, column in zip(exact, pick, strict=True)) for pick in picks)
