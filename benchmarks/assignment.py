"""Time the native assignment solver against a loop over SciPy's, and lapx's batch solver where it is installed.

    python benchmarks/assignment.py --json work_dirs/bench/assignment-cpu.json
    python benchmarks/assignment.py --problems 48 --shapes 60x428 --kinds crowded

Every kind of cost and shape is one line: medians in ms for the whole batch, in float32 on the CPU, the solvers taking
turns; total costs must agree before anything is timed. Kinds: 'random' uniform costs; 'trained' one close prediction
per object; 'crowded' all objects within a few metres, which compete for the same predictions.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from raggedbev import linear_assignment

KINDS = ("random", "trained", "crowded")
SHAPES = ("10x900", "60x428", "100x900", "200x300", "200x900")


def make_costs(kind: str, problems: int, num_gt: int, num_preds: int, seed: int) -> Tensor:
    """[problems, num_gt, num_preds] float32."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "random":
        return torch.rand(problems, num_gt, num_preds, generator=generator)
    spread = 6.0 if kind == "crowded" else 100.0
    objects = (torch.rand(problems, num_gt, 2, generator=generator) - 0.5) * spread
    preds = (torch.rand(problems, num_preds, 2, generator=generator) - 0.5) * 100
    if kind == "trained":
        own = torch.stack([torch.randperm(num_preds, generator=generator)[:num_gt] for _ in range(problems)])
        near = objects[:, : own.shape[1]] + 0.5 * torch.randn(problems, own.shape[1], 2, generator=generator)
        preds.scatter_(1, own.unsqueeze(-1).expand(-1, -1, 2), near)
    distance = (objects.unsqueeze(2) - preds.unsqueeze(1)).abs().sum(-1)
    return 0.5 * distance + 0.1 * torch.randn(problems, 1, num_preds, generator=generator)


def solve_native(cost: Tensor) -> Tensor:
    return linear_assignment(cost, solver="native").pred_of_gt


def solve_scipy(cost: Tensor) -> Tensor:
    found = torch.full(cost.shape[:2], -1)
    for pairs, matrix in zip(found, cost.numpy(), strict=True):
        rows, columns = linear_sum_assignment(matrix)
        pairs[torch.from_numpy(rows)] = torch.from_numpy(columns)
    return found


def solvers() -> dict[str, Callable[[Tensor], Tensor]]:
    """What is installed here."""
    found = {"native": solve_native, "scipy": solve_scipy}
    try:
        from lap import lapjvr_batch
    except ImportError:
        return found

    def solve_lapx(cost: Tensor) -> Tensor:
        _, rows, columns = lapjvr_batch(cost.numpy(), extend_cost=True, return_cost=True, n_threads=1)
        pairs = torch.full(cost.shape[:2], -1)
        for problem, (row, column) in enumerate(zip(rows, columns, strict=True)):
            pairs[problem, torch.from_numpy(np.asarray(row))] = torch.from_numpy(np.asarray(column)).long()
        return pairs

    return {**found, "lapx": solve_lapx}


def total_costs(cost: Tensor, pred_of_gt: Tensor) -> Tensor:
    """[problems] float64, of the matched pairs."""
    matched = cost.double().gather(2, pred_of_gt.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return torch.where(pred_of_gt >= 0, matched, 0.0).sum(-1)


def time_case(cost: Tensor, repeats: int) -> dict[str, float]:
    """Median milliseconds per solver."""
    arms = solvers()
    expected = total_costs(cost, arms["scipy"](cost))
    for name, solve in arms.items():
        torch.testing.assert_close(total_costs(cost, solve(cost)), expected, msg=f"{name} is not optimal")
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, solve in arms.items():
            start = time.perf_counter()
            solve(cost)
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=48, help="problems in a batch (default: 48)")
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="objects x predictions")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="threads of the native solver (default: 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the report here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    report = {
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "threads": args.threads,
        "problems": args.problems,
        "rows": [],
    }
    for kind in args.kinds:
        for shape in args.shapes:
            num_gt, num_preds = (int(number) for number in shape.split("x"))
            times = time_case(make_costs(kind, args.problems, num_gt, num_preds, args.seed), args.repeats)
            report["rows"].append({"kind": kind, "shape": shape, "ms": times})
            ratios = "  ".join(
                f"{name} {ms:9.3f} ms ({ms / times['native']:5.1f}x)" for name, ms in times.items() if name != "native"
            )
            print(f"{kind:8} {args.problems} x {shape:8} native {times['native']:9.3f} ms  {ratios}", flush=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
