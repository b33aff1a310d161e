"""Time the fused match cost against the sum of its terms in plain torch.

    python benchmarks/match_cost.py --json work_dirs/bench/match-cost-cpu.json
    python benchmarks/match_cost.py --problems 48 --shapes 60x900 --kinds 3d

Every kind and shape is one line: medians in ms of one call for the whole batch in float32, both arms taking turns;
results must agree before anything is timed. Peak memory is what torch allocates for one call, as a
multiple of the cost matrix itself. Kinds: '3d' as in StreamPETR (10 classes, 8 of 10 coordinates),
'2d' as in its FocalHead (boxes, centres and GIoU).
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from raggedbev.matching import HungarianMatcher2D, HungarianMatcher3D, costs
from raggedbev.profiling.interleave import Progress
from raggedbev.profiling.memory import peak_memory

KINDS = ("3d", "2d")
SHAPES = ("10x900", "20x428", "60x428", "60x900", "100x900")
LAYERS = 6  # problems that share their ground truth, in 3D
PAD_SHAPE = (256, 704)

Arms = dict[str, Callable[[], Tensor]]


def arms_3d(problems: int, num_gt: int, num_preds: int, rand: Callable[..., Tensor], labels: Tensor) -> Arms:
    lead, samples = (problems // len(labels), len(labels)), len(labels)
    logits, boxes = rand(*lead, num_preds, 10) * 8 - 6, rand(*lead, num_preds, 10) * 100 - 50
    truth, weights = rand(samples, num_gt, 9) * 50 + 0.1, rand(10) + 0.5
    matcher = HungarianMatcher3D()

    def composed() -> Tensor:
        targets = costs.normalize_box3d(truth)
        total = costs.box3d_l1_cost(boxes, targets, weight=matcher.reg_weight, code_weights=weights, num_dims=8)
        return costs.replace_nonfinite_(total.add_(matcher.cls_cost(logits, labels)))

    return {"fused": lambda: matcher.cost(logits, boxes, truth, labels, weights), "composed": composed}


def arms_2d(problems: int, num_gt: int, num_preds: int, rand: Callable[..., Tensor], labels: Tensor) -> Arms:
    logits, boxes, points = (rand(problems, num_preds, width) for width in (10, 4, 2))
    low = rand(problems, num_gt, 2) * 600
    truth, centers = torch.cat([low, low + rand(problems, num_gt, 2) * 100 + 1], -1), low + 10
    matcher = HungarianMatcher2D()

    def composed() -> Tensor:
        size = costs.row_tensor((PAD_SHAPE[1], PAD_SHAPE[0]), boxes)
        size4 = torch.cat([size, size])
        total = costs.bbox_l1_cost(boxes, truth / size4, weight=matcher.reg_weight)
        total += matcher.cls_cost(logits, labels)
        total += costs.iou_cost(costs.cxcywh_to_xyxy(boxes) * size4, truth, weight=matcher.iou_weight)
        total += costs.center_l1_cost(points, centers / size, weight=matcher.center_weight)
        return costs.replace_nonfinite_(total)

    return {
        "fused": lambda: matcher.cost(logits, boxes, points, truth, labels, centers, PAD_SHAPE),
        "composed": composed,
    }


def make_arms(kind: str, problems: int, num_gt: int, num_preds: int, device: torch.device) -> Arms:
    """Calls that compute the same [..., G, P]."""
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).to(device)

    samples = problems // LAYERS if kind == "3d" and problems % LAYERS == 0 else problems
    labels = torch.randint(0, 10, (samples, num_gt), generator=generator).to(device)
    return (arms_3d if kind == "3d" else arms_2d)(problems, num_gt, num_preds, rand, labels)


def peak_of_result(call: Callable[[], Tensor], device: torch.device) -> float:
    """Bytes that torch has allocated for one call at its peak, its result included, per byte of the result."""
    size = call().nbytes
    return peak_memory(call, device) / size


def time_case(arms: Arms, repeats: int, device: torch.device) -> dict[str, float]:
    """Median milliseconds per arm."""
    torch.testing.assert_close(arms["fused"](), arms["composed"](), rtol=1e-4, atol=1e-4)
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, call in arms.items():
            start = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=48, help="problems in a batch (default: 48)")
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="objects x predictions")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS, help="default: all")
    parser.add_argument("--repeats", type=int, default=21, help="timed runs of each arm (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on the CPU (default: %(default)s)")
    parser.add_argument("--device", default="cpu", type=torch.device, help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the report here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    report = {
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else platform.processor(),
        "threads": args.threads,
        "problems": args.problems,
        "rows": [],
    }
    progress = Progress(len(args.kinds) * len(args.shapes))
    for kind in args.kinds:
        for shape in args.shapes:
            progress.step(f"{kind} {shape}")
            num_gt, num_preds = (int(number) for number in shape.split("x"))
            arms = make_arms(kind, args.problems, num_gt, num_preds, args.device)
            peaks = {name: peak_of_result(call, args.device) for name, call in arms.items()}
            times = time_case(arms, args.repeats, args.device)
            report["rows"].append({"kind": kind, "shape": shape, "ms": times, "peak": peaks})
            ratio = times["composed"] / times["fused"]
            memory = f"peak memory {peaks['fused']:.2f} and {peaks['composed']:.2f} of the result"
            progress.clear()
            print(
                f"{kind} {args.problems} x {shape:8} fused {times['fused']:8.3f} ms, "
                f"composed {times['composed']:8.3f} ms ({ratio:5.1f}x); {memory}",
                flush=True,
            )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
