"""Time matching from predictions to pairs, costs and assignment together, against one problem after the other.

    python benchmarks/matching.py --json work_dirs/bench/matching-cpu.json
    python benchmarks/matching.py --device cuda --json work_dirs/bench/matching-cuda.json

A line is one kind of scene and one shape, problems x objects x predictions in float32: medians in ms for all decoder
layers and samples of StreamPETR's 3D head, the arms taking turns; in brackets, how many times slower than the package.
Total costs must agree before anything is timed. Scenes: 'trained' one close and confident prediction per object;
'crowded' all objects of one class and within a few metres, which compete for the same predictions.

Arms: 'native' is `HungarianMatcher3D.assign_batch`; 'native+graph', on CUDA, the same captured in a graph; 'scipy'
makes the costs of one sample of one layer in plain torch, copies them to the host for SciPy's solver, and the pairs
back, as the published heads do; on CUDA torch-linear-assignment, where it is installed, solves the costs of
`match_cost`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from assignment import SHORTEST, Shape, seconds, solve_torch_linear_assignment, total_costs, version_of
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from raggedbev import RaggedBatch, combine_data
from raggedbev.matching import HungarianMatcher3D, costs
from raggedbev.profiling.interleave import Progress, calls_to_last
from raggedbev.profiling.report import describe_machine, write_json

KINDS = ("trained", "crowded")
SHAPES = ("48x10x900", "48x60x428", "48x100x900")
LAYERS, CLASSES = 6, 10


@dataclass(frozen=True)
class Scene:
    """Predictions [layers, samples, P, .] and ground truth [samples, G, .]."""

    logits: Tensor
    boxes: Tensor
    gt_boxes: RaggedBatch
    gt_labels: RaggedBatch

    def cost(self, of: tuple[int, int] | slice = slice(None)) -> Tensor:
        """[..., G, P] in plain torch, of one layer and sample, or of all."""
        sample = of[1] if isinstance(of, tuple) else of
        matcher = HungarianMatcher3D()
        targets = costs.normalize_box3d(self.gt_boxes.tensor[sample])
        total = costs.box3d_l1_cost(self.boxes[of], targets, weight=matcher.reg_weight, num_dims=8)
        total += matcher.cls_cost(self.logits[of], self.gt_labels.tensor[sample])
        return costs.replace_nonfinite_(total)


def make_scene(kind: str, shape: Shape, seed: int, device: torch.device) -> Scene:
    """Six layers, where so many divide the problems."""
    g = torch.Generator().manual_seed(seed)
    layers = LAYERS if shape.problems % LAYERS == 0 else 1
    samples, objects, preds = shape.problems // layers, shape.num_gt, shape.num_preds
    spread = 6.0 if kind == "crowded" else 100.0
    gt_boxes = torch.rand(samples, objects, 9, generator=g) * 4 + 0.5
    gt_boxes[..., :2] = (torch.rand(samples, objects, 2, generator=g) - 0.5) * spread
    gt_labels = torch.randint(0, 1 if kind == "crowded" else CLASSES, (samples, objects), generator=g)
    logits = torch.randn(layers, samples, preds, CLASSES, generator=g) - 4
    boxes = torch.randn(layers, samples, preds, 10, generator=g)
    boxes[..., :2] = (torch.rand(layers, samples, preds, 2, generator=g) - 0.5) * 100
    if kind == "trained":
        own = torch.rand(layers, samples, preds, generator=g).argsort(-1)[..., :objects, None]
        near = costs.normalize_box3d(gt_boxes).expand(layers, -1, -1, -1)[:, :, : own.shape[2]]
        near = near + 0.2 * torch.randn(near.shape, generator=g)
        boxes.scatter_(2, own.expand(-1, -1, -1, 10), near)
        sure = 7.0 * torch.nn.functional.one_hot(gt_labels, CLASSES)[:, : own.shape[2]].expand(layers, -1, -1, -1)
        logits.scatter_add_(2, own.expand(-1, -1, -1, CLASSES), sure)
    return Scene(
        logits.to(device),
        boxes.to(device),
        combine_data([*gt_boxes]).to(device),
        combine_data([*gt_labels]).to(device),
    )


# ---- arms: a scene in, pred_of_gt [layers, samples, G] out -----------------------------------------------------------

Arm = Callable[[], Tensor]


def native(scene: Scene) -> Arm:
    matcher = HungarianMatcher3D()
    inputs = (scene.logits, scene.boxes, scene.gt_boxes, scene.gt_labels)
    return lambda: matcher.assign_batch(*inputs).pred_of_gt


def captured(arm: Arm) -> Arm:
    """The same as a graph."""
    for _ in range(3):
        arm()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = arm()

    def replay() -> Tensor:
        graph.replay()
        return found

    return replay


def one_by_one(scene: Scene) -> Arm:
    layers, samples = scene.logits.shape[:2]

    def run() -> Tensor:
        found = torch.full((layers, samples, scene.gt_labels.shape[1]), -1, device=scene.logits.device)
        for layer in range(layers):
            for sample in range(samples):
                rows, cols = linear_sum_assignment(scene.cost((layer, sample)).cpu().numpy())
                rows, cols = torch.from_numpy(rows).to(found.device), torch.from_numpy(cols).to(found.device)
                found[layer, sample, rows] = cols
        return found

    return run


def by_torch_linear_assignment(scene: Scene) -> Arm:
    matcher = HungarianMatcher3D()

    def run() -> Tensor:
        cost = matcher.cost(scene.logits, scene.boxes, scene.gt_boxes.tensor, scene.gt_labels.tensor)
        return solve_torch_linear_assignment(cost.flatten(0, 1)).unflatten(0, cost.shape[:2])

    return run


def make_arms(scene: Scene) -> dict[str, Arm]:
    arms = {"native": native(scene), "scipy": one_by_one(scene)}
    if scene.logits.is_cuda:
        arms["native+graph"] = captured(arms["native"])
        if version_of("torch-linear-assignment"):
            arms["torch-linear-assignment"] = by_torch_linear_assignment(scene)
    return arms


def time_case(scene: Scene, repeats: int) -> dict[str, float]:
    """Median milliseconds per arm."""
    arms = make_arms(scene)
    cost = scene.cost().flatten(0, 1)
    totals = {name: total_costs(cost, arm().flatten(0, 1)) for name, arm in arms.items()}
    for name, total in totals.items():
        torch.testing.assert_close(
            total, totals["scipy"], rtol=1e-5, atol=1e-4, msg=lambda text, name=name: f"{name} is not optimal: {text}"
        )
    rounds = {
        name: calls_to_last(lambda n, arm=arm: n * seconds(lambda _: arm(), [cost], n), SHORTEST)
        for name, arm in arms.items()
    }
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, arm in arms.items():
            times[name].append(seconds(lambda _, arm=arm: arm(), [cost], rounds[name]) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def line(kind: str, shape: Shape, times: dict[str, float]) -> str:
    """One row of the table."""
    cells = [f"{name} {ms:.3f} ({ms / times['native']:.2f}x)" for name, ms in times.items()]
    return f"{kind:9} {shape!s:12} " + "  ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", type=Shape.parse, help="problems x objects x predictions")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="default: all")
    parser.add_argument("--device", default="cpu", type=torch.device, help="cpu or cuda (default: cpu)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on the CPU (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each arm (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of what is drawn at random (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the report here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    versions = {package: version_of(package) for package in ("scipy", "torch-linear-assignment")}
    report = describe_machine(args.device) | {"versions": versions, "threads": args.threads}
    print(f"{report['device']}, torch {report['torch']}, scipy {versions['scipy']}", flush=True)
    shapes = args.shapes or [Shape.parse(text) for text in SHAPES]
    rows = []
    progress = Progress(len(args.kinds) * len(shapes))
    for kind in args.kinds:
        for shape in shapes:
            progress.step(f"{kind} {shape}")
            times = time_case(make_scene(kind, shape, args.seed, args.device), args.repeats)
            rows.append({"kind": kind, "shape": str(shape), **vars(shape), "ms": times})
            progress.clear()
            print(line(kind, shape, times), flush=True)
    report["rows"] = rows
    if args.json:
        write_json(report, args.json)


if __name__ == "__main__":
    sys.exit(main())
