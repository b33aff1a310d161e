"""Time the native assignment solver against a loop over SciPy's and the batch solvers that are installed.

    python benchmarks/assignment.py --json work_dirs/bench/assignment-cpu.json
    python benchmarks/assignment.py --threads 1 2 --kinds crowded --shapes 48x60x428
    python benchmarks/assignment.py --study small          # one to six problems of few objects: what a call costs
    python benchmarks/assignment.py --study growth --json work_dirs/bench/growth.json --plot work_dirs/bench/growth.png
    python benchmarks/assignment.py --device cuda --json work_dirs/bench/assignment-cuda.json

A line is one kind of cost and one shape, problems x objects x predictions in float32: medians in ms for the whole
batch, the solvers taking turns. Total costs must agree before anything is timed. In brackets: how many times slower
than the native solver on as many threads. Kinds: 'random' uniform costs; 'trained' one close prediction per object;
'crowded' all objects within a few metres, which compete for the same predictions; 'sentinels' random, and FLT_MAX for
three of ten pairs. Calls of the small study take turns with at least eight batches and 64 problems: a processor that
sees the same few costs again and again foresees its branches, which no training loop lets it do.

Peers: SciPy's solver, one problem after the other (on CUDA with the copies to the host and back); lapx's batch solver
where lapx is installed; on CUDA torch-linear-assignment where that is installed. A peer that would need more than
--budget seconds for a line is left out of it.

Growth: time against the number of objects, of predictions and of problems, for all peers as far as the budget reaches.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from raggedbev import linear_assignment
from raggedbev.profiling.interleave import Progress, calls_to_last
from raggedbev.profiling.report import describe_machine, write_json

KINDS = ("random", "trained", "crowded", "sentinels")
KINDS_OF = {"table": KINDS[:3], "small": KINDS, "growth": KINDS[1:3]}
TABLE = ("48x10x900", "48x60x428", "48x100x900", "48x200x300", "48x200x900", "8x60x20000")
SMALL = tuple(f"{problems}x{objects}x{preds}" for problems in (1, 2, 6) for objects, preds in
              ((1, 10), (1, 900), (5, 5), (5, 10), (5, 900), (10, 900), (20, 20), (60, 900)))  # fmt: skip
GROWTH = {
    "objects": tuple(f"48x{objects}x900" for objects in (5, 10, 20, 50, 100, 200, 400)),
    "predictions": tuple(f"8x60x{preds}" for preds in (100, 300, 900, 2000, 5000, 10000, 20000)),
    "problems": tuple(f"{problems}x60x428" for problems in (1, 4, 16, 48, 128, 512, 1024, 4096)),
}
SHORTEST = 20e-3  # seconds of a measurement, at least


@dataclass(frozen=True)
class Shape:
    """Size of a batch."""

    problems: int
    num_gt: int
    num_preds: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        try:
            return cls(*map(int, text.split("x")))
        except (TypeError, ValueError):
            raise argparse.ArgumentTypeError(
                f"a shape is problems x objects x predictions, like 48x60x428, got {text}"
            ) from None

    def __str__(self) -> str:
        return f"{self.problems}x{self.num_gt}x{self.num_preds}"


def make_costs(kind: str, shape: Shape, seed: int) -> Tensor:
    """[problems, num_gt, num_preds] float32."""
    problems, num_gt, num_preds = shape.problems, shape.num_gt, shape.num_preds
    generator = torch.Generator().manual_seed(seed)
    if kind in ("random", "sentinels"):
        cost = torch.rand(problems, num_gt, num_preds, generator=generator)
        forbidden = torch.rand(cost.shape, generator=generator) < (0.3 if kind == "sentinels" else 0.0)
        return cost.masked_fill_(forbidden, torch.finfo(cost.dtype).max)
    spread = 6.0 if kind == "crowded" else 100.0
    objects = (torch.rand(problems, num_gt, 2, generator=generator) - 0.5) * spread
    preds = (torch.rand(problems, num_preds, 2, generator=generator) - 0.5) * 100
    if kind == "trained":
        own = torch.stack([torch.randperm(num_preds, generator=generator)[:num_gt] for _ in range(problems)])
        near = objects[:, : own.shape[1]] + 0.5 * torch.randn(problems, own.shape[1], 2, generator=generator)
        preds.scatter_(1, own.unsqueeze(-1).expand(-1, -1, 2), near)
    cost = (objects[:, :, None, 0] - preds[:, None, :, 0]).abs_()
    cost += (objects[:, :, None, 1] - preds[:, None, :, 1]).abs_()
    return cost.mul_(0.5).add_(0.1 * torch.randn(problems, 1, num_preds, generator=generator))


def batches_of(study: str, shape: Shape) -> int:
    """How many batches the calls of a line take turns with: eight problems of 20 x 20 are few enough to be learnt."""
    return max(8, 64 // shape.problems) if study == "small" else 1


# ---- solvers: costs in, pred_of_gt [problems, num_gt] int64 with -1 for none out, on the device of the costs ---------


def solve_native(cost: Tensor) -> Tensor:
    return linear_assignment(cost, solver="native").pred_of_gt


def solve_scipy(cost: Tensor) -> Tensor:
    found = np.full(cost.shape[:2], -1)
    for pairs, matrix in zip(found, cost.cpu().numpy(), strict=True):
        rows, columns = linear_sum_assignment(matrix)
        pairs[rows] = columns
    return torch.from_numpy(found).to(cost.device)


def lapx_solver(threads: int) -> Callable[[Tensor], Tensor]:
    from lap import lapjvr_batch

    def solve_lapx(cost: Tensor) -> Tensor:
        _, rows, columns = lapjvr_batch(cost.numpy(), extend_cost=True, return_cost=True, n_threads=threads)
        found = np.full(cost.shape[:2], -1)
        for pairs, row, column in zip(found, rows, columns, strict=True):
            pairs[row] = column
        return torch.from_numpy(found)

    return solve_lapx


def solve_torch_linear_assignment(cost: Tensor) -> Tensor:
    from torch_linear_assignment import batch_linear_assignment

    return batch_linear_assignment(cost).long()


def on_threads(solve: Callable[[Tensor], Tensor], threads: int) -> Callable[[Tensor], Tensor]:
    def solve_on_threads(cost: Tensor) -> Tensor:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        return solve(cost)

    return solve_on_threads


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def solvers(device: torch.device, threads: list[int]) -> dict[str, Callable[[Tensor], Tensor]]:
    """What is installed here, the native solver first; its name has the number of threads when there are several."""
    if device.type == "cuda":
        arms = {"native": solve_native, "scipy": solve_scipy}
        if version_of("torch-linear-assignment"):
            arms["torch-linear-assignment"] = solve_torch_linear_assignment
        return arms
    arms = {}
    for number in threads:
        arms[f"native@{number}"] = on_threads(solve_native, number)
    arms["scipy"] = solve_scipy
    for number in threads if version_of("lapx") else []:
        arms[f"lapx@{number}"] = lapx_solver(number)
    return {name.replace("@1", ""): solve for name, solve in arms.items()} if threads == [1] else arms


# ---- timing ----------------------------------------------------------------------------------------------------------


def total_costs(cost: Tensor, pred_of_gt: Tensor) -> Tensor:
    """[problems] float64, of the matched pairs."""
    matched = cost.gather(2, pred_of_gt.clamp(min=0).unsqueeze(-1)).squeeze(-1).double()
    return torch.where(pred_of_gt >= 0, matched, 0.0).sum(-1)


def seconds(solve: Callable[[Tensor], Tensor], costs: list[Tensor], rounds: int = 1) -> float:
    """Of one call, when `rounds` are made of all batches. Costs are read before, as if they had just been made."""
    wait = torch.cuda.synchronize if costs[0].is_cuda else lambda: None
    for cost in costs:
        cost.sum()
    wait()
    start = time.perf_counter()
    for _ in range(rounds):
        for cost in costs:
            solve(cost)
    wait()
    return (time.perf_counter() - start) / (rounds * len(costs))


def time_case(
    arms: dict[str, Callable[[Tensor], Tensor]], costs: list[Tensor], repeats: int, budget: float
) -> dict[str, float]:
    """Median milliseconds of a batch per solver, of those that stay within `budget` seconds."""
    problems = len(costs[0])
    part = costs[0][: math.ceil(problems / 16)]
    rounds, totals = {}, {}
    for name, solve in arms.items():
        solve(part)
        a_round = seconds(solve, [part]) * problems / len(part) * len(costs)
        if a_round * (repeats + 2) <= budget or not totals:
            totals[name] = torch.cat([total_costs(cost, solve(cost)) for cost in costs])
            rounds[name] = calls_to_last(lambda n, solve=solve: n * len(costs) * seconds(solve, costs, n), SHORTEST)
    least = torch.stack(list(totals.values())).amin(0)
    for name, total in totals.items():
        torch.testing.assert_close(total, least, msg=lambda text, name=name: f"{name} is not optimal: {text}")
    times: dict[str, list[float]] = {name: [] for name in rounds}
    for _ in range(repeats):
        for name in rounds:
            times[name].append(seconds(arms[name], costs, rounds[name]) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def line(kind: str, shape: Shape, times: dict[str, float]) -> str:
    """One row of the table."""
    cells = []
    for name, ms in times.items():
        native = times.get("native@" + name.partition("@")[2], next(iter(times.values())))
        slower = "" if name.startswith("native") else f" ({ms / native:.2f}x)"
        cells.append(f"{name} {ms:.3f}{slower}")
    threads = [ms for name, ms in times.items() if name.startswith("native")]
    if len(threads) > 1:
        cells.append(f"{threads[0] / threads[-1]:.2f}x by threads")
    return f"{kind:9} {shape!s:12} " + "  ".join(cells)


def plot(report: dict[str, Any], path: Path) -> None:
    """Time of a batch against objects, predictions and problems; a row per kind of cost, all axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = list(dict.fromkeys(row["kind"] for row in report["rows"]))
    axes_of = {"objects": "num_gt", "predictions": "num_preds", "problems": "problems"}
    fixed = {"objects": "48 problems, 900 predictions", "predictions": "8 problems, 60 objects",
             "problems": "60 objects, 428 predictions"}  # fmt: skip
    figure, panels = pyplot.subplots(
        len(kinds), len(axes_of), figsize=(10, 2.6 * len(kinds)), sharey=True, squeeze=False, layout="constrained"
    )
    for panels_of_kind, kind in zip(panels, kinds, strict=True):
        for panel, (axis, key) in zip(panels_of_kind, axes_of.items(), strict=True):
            rows = [row for row in report["rows"] if row["kind"] == kind and row["axis"] == axis]
            for number, name in enumerate(dict.fromkeys(name for row in rows for name in row["ms"])):
                points = [(row[key], row["ms"][name]) for row in rows if name in row["ms"]]
                panel.plot(*zip(*points, strict=True), "os^Dvx"[number % 6] + "-", markersize=3, label=name)
            panel.set(xscale="log", yscale="log", xlabel=f"{axis} ({fixed[axis]})", title=kind)
            panel.grid(alpha=0.3)
        panels_of_kind[0].set_ylabel("ms for the batch")
    panels[0][0].legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


# ---- program ---------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--study", choices=("table", "small", "growth"), default="table", help="which lines (default: table)"
    )
    parser.add_argument("--shapes", nargs="+", type=Shape.parse, help="problems x objects x predictions")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, help="default: by study; sentinels for small only")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--threads", nargs="+", type=int, default=[1], help="of native and lapx, CPU (default: 1)")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each arm (default: %(default)s)")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds that a peer may take for a line")
    parser.add_argument("--seed", type=int, default=0, help="seed of what is drawn at random (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--plot", type=Path, help="draw the growth here (needs matplotlib)")
    args = parser.parse_args()
    if args.plot and args.study != "growth":
        parser.error("--plot draws --study growth")

    device = torch.device(args.device)
    torch.set_num_threads(args.threads[0])
    arms = solvers(device, args.threads)
    versions = {package: version_of(package) for package in ("scipy", "lapx", "torch-linear-assignment")}
    report = describe_machine(device) | {"versions": versions, "threads": args.threads, "study": args.study}
    installed = ", ".join(f"{package} {version}" for package, version in versions.items() if version)
    print(f"{report['device']}, torch {report['torch']}, {installed}", flush=True)

    if args.study == "growth":
        shapes = {axis: tuple(map(Shape.parse, texts)) for axis, texts in GROWTH.items()}
    else:
        shapes = {"": tuple(map(Shape.parse, TABLE if args.study == "table" else SMALL))}
    if args.shapes:
        shapes = {axis: tuple(args.shapes) for axis in shapes}
    rows = []
    kinds = args.kinds or KINDS_OF[args.study]
    progress = Progress(len(kinds) * sum(map(len, shapes.values())))
    for kind in kinds:
        for axis, shapes_of_axis in shapes.items():
            for shape in shapes_of_axis:
                progress.step(f"{kind} {shape}")
                seeds = range(args.seed, args.seed + batches_of(args.study, shape))
                costs = [make_costs(kind, shape, seed).to(device) for seed in seeds]
                times = time_case(arms, costs, args.repeats, args.budget)
                rows.append({"kind": kind, "axis": axis, "shape": str(shape), **vars(shape), "ms": times})
                progress.clear()
                print(line(kind, shape, times), flush=True)
    report["rows"] = rows
    if args.json:
        write_json(report, args.json)
    if args.plot:
        plot(report, args.plot)


if __name__ == "__main__":
    sys.exit(main())
