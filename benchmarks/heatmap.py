"""Time the heatmap operator and the heads' targets against loops over objects.

    python benchmarks/heatmap.py --json work_dirs/bench/heatmap-cpu.json --plot work_dirs/bench/heatmap-cpu.png
    python benchmarks/heatmap.py --device cuda --cases draw --json work_dirs/bench/heatmap-cuda.json

Medians in ms of arms that take turns; before anything is timed their results must be equal, bit for bit. Loops are
those of mmdet3d as installed (`draw_heatmap_gaussian`, `CenterHead.get_targets`) where it is, else those of
`raggedbev.heatmap.reference`. Cases:

    draw      48 maps of 16x44 with 14 objects, 48 maps of 20x50 with 50, the same with 20 classes, 8x10 maps of 180x180
    focal     targets of StreamPETR's 2D head, centres and radii included: 48 images, 14 objects
    center    targets of CenterPoint's head: batch 8, 128x128, 60 objects, six tasks
    sweep     the operator alone, over numbers of objects and over radii; drawn by --plot

On a busy machine: --threads 1 --clock process counts the time on the CPU instead of the time that passes.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raggedbev import combine_data, draw_gaussian_heatmap
from raggedbev.heatmap import BevGrid, CenterHeadConfig, center_head_targets
from raggedbev.heatmap.reference import center_head_targets_reference, draw_one_gaussian
from raggedbev.heatmap.targets import focal_head_heatmap
from raggedbev.losses import GroundTruth2D
from raggedbev.losses.reference import focal_head_heatmap_reference
from raggedbev.profiling.interleave import Progress, calls_to_last

CASES = ("draw", "focal", "center", "sweep")
TASKS = (1, 2, 2, 1, 2, 2)
# name: maps, classes (0: one map for all), height, width, objects of a map, largest radius
DRAWN = {
    "48 maps of 16x44, 14 objects": (48, 0, 16, 44, 14, 6),
    "48 maps of 20x50, 50 objects": (48, 0, 20, 50, 50, 6),
    "48 maps of 20x50, 50 objects, 20 classes": (48, 20, 20, 50, 50, 6),
    "8 maps of 180x180, 60 objects, 10 classes": (8, 10, 180, 180, 60, 12),
}
_SHORTEST = 2e-3  # seconds that are worth reading a clock for
OBJECTS, RADII = (1, 4, 16, 64, 256, 1024), (0, 1, 2, 4, 8, 16, 32, 64)

CLOCKS = {"wall": time.perf_counter, "process": time.process_time}

Arm = Callable[[], Any]


def stock() -> tuple[Any, Any] | None:
    """mmdet3d's `draw_heatmap_gaussian` and registry, if it is installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import mmdet3d.models
            from mmdet3d.registry import MODELS
    except ImportError:
        return None
    return mmdet3d.models.utils.draw_heatmap_gaussian, MODELS


def seconds(arm: Arm, device: torch.device, clock: str) -> float:
    """One call; on CUDA until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = CLOCKS[clock]()
    arm()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return CLOCKS[clock]() - start


def medians(arms: dict[str, Arm], device: torch.device, repeats: int, clock: str) -> dict[str, float]:
    """Milliseconds per call and arm; fast arms are called several times in a row."""

    def spend(arm: Arm, calls: int) -> float:
        def several() -> None:
            for _ in range(calls):
                arm()

        return seconds(several, device, clock)

    calls = {}
    for name, arm in arms.items():
        arm()
        calls[name] = calls_to_last(functools.partial(spend, arm), _SHORTEST)
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, arm in arms.items():
            times[name].append(spend(arm, calls[name]) / calls[name] * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def draw_objects(
    maps: int, classes: int, height: int, width: int, objects: int, largest: int, seed: int, device: torch.device
) -> dict[str, Tensor]:
    """x, y, radius and label of every object [maps, objects]."""
    generator = torch.Generator().manual_seed(seed)
    ranges = {"x": (0, width), "y": (0, height), "radius": (1, largest + 1), "labels": (0, max(classes, 1))}
    return {
        name: torch.randint(low, high, (maps, objects), generator=generator).to(device)
        for name, (low, high) in ranges.items()
    }


def draw_case(sizes: Sequence[int], seed: int, device: torch.device) -> dict[str, Arm]:
    maps, classes, height, width, objects, _ = sizes
    entries = draw_objects(*sizes, seed, device)
    index = torch.arange(maps, device=device).unsqueeze(1).expand(maps, objects)
    per_class = {"labels": entries["labels"], "num_classes": classes} if classes else {}
    installed = stock()

    def operator() -> Tensor:
        place = entries["x"], entries["y"], entries["radius"]
        return draw_gaussian_heatmap(index, *place, maps, height, width, **per_class)

    def loop() -> Tensor:
        heatmap = torch.zeros(maps, max(classes, 1), height, width, device=device)
        for number in range(maps):
            for k in range(objects):
                one = heatmap[number, entries["labels"][number, k]]
                center, radius = (entries["x"][number, k], entries["y"][number, k]), int(entries["radius"][number, k])
                if installed is not None:
                    installed[0](one, center, radius)
                else:
                    draw_one_gaussian(one, int(center[0]), int(center[1]), radius)
        return heatmap if classes else heatmap.squeeze(1)

    return {"loop": loop, "batched": operator}


def focal_case(seed: int, device: torch.device) -> dict[str, Arm]:
    generator = torch.Generator().manual_seed(seed)
    low = [torch.rand(14, 2, generator=generator) * torch.tensor([640.0, 220.0]) for _ in range(48)]
    boxes = [torch.cat([one, one + 10 + 50 * torch.rand(14, 2, generator=generator)], 1) for one in low]
    centers = [(one[:, :2] + one[:, 2:]) / 2 for one in boxes]
    labels = [torch.zeros(14, dtype=torch.long, device=device) for _ in boxes]
    truth = GroundTruth2D([one.to(device) for one in boxes], labels, [one.to(device) for one in centers])
    packed = truth.boxes, truth.centers
    return {
        "loop": lambda: focal_head_heatmap_reference(truth, (256, 704), 16),
        "batched": lambda: focal_head_heatmap(*packed, (256, 704), 16),
    }


def center_case(seed: int, device: torch.device) -> dict[str, Arm]:
    """The stock head and ours where mmdet3d is installed, packing included; the reference's loop elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    place = (torch.rand(8, 60, 2, generator=generator) - 0.5) * 100
    rest = torch.rand(8, 60, 7, generator=generator) * 3 + 0.5
    boxes = list(torch.cat([place, rest], -1).to(device).unbind(0))
    labels = list(torch.randint(0, 10, (8, 60), generator=generator).to(device).unbind(0))
    installed = stock()
    if installed is None:
        config = CenterHeadConfig(TASKS, BevGrid(128, 128, (-51.2, -51.2), (0.2, 0.2), 4))

        def targets() -> Any:
            packed = combine_data(boxes)
            return center_head_targets(packed, combine_data(labels, other_with_same_sample_sizes=packed), config)

        return {"loop": lambda: center_head_targets_reference(boxes, labels, config), "batched": targets}
    from mmdet3d.structures import LiDARInstance3DBoxes
    from mmengine.structures import InstanceData

    import raggedbev.mm  # noqa: F401

    names = iter("abcdefghij")
    config = {
        "in_channels": 4,
        "share_conv_channel": 4,
        "tasks": [{"num_class": count, "class_names": [next(names) for _ in range(count)]} for count in TASKS],
        "separate_head": {"type": "SeparateHead", "init_bias": -2.19, "final_kernel": 3},
        "bbox_coder": {
            "type": "CenterPointBBoxCoder", "pc_range": [-51.2, -51.2], "out_size_factor": 4, "voxel_size": [0.2, 0.2],
        },
        "train_cfg": {
            "grid_size": [512, 512, 1], "voxel_size": [0.2, 0.2, 8], "out_size_factor": 4, "dense_reg": 1,
            "point_cloud_range": [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0], "gaussian_overlap": 0.1, "max_objs": 500,
            "min_radius": 2,
        },
    }  # fmt: skip
    truth = [
        InstanceData(bboxes_3d=LiDARInstance3DBoxes(one, box_dim=9), labels_3d=label)
        for one, label in zip(boxes, labels, strict=True)
    ]
    kinds = {"loop": "CenterHead", "batched": "BatchedCenterHead"}
    heads = {name: installed[1].build({"type": kind, **config}) for name, kind in kinds.items()}
    return {name: lambda head=head: head.get_targets(truth) for name, head in heads.items()}


def require_equal(arms: dict[str, Arm]) -> None:
    """Raises an AssertionError where the arms' results differ."""
    results = [torch.utils._pytree.tree_leaves(arm()) for arm in arms.values()]
    for one, other in zip(*results, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other), "the arms disagree"


def sweep(seed: int, device: torch.device, repeats: int, clock: str, progress: Progress) -> list[dict[str, Any]]:
    """The operator over objects of a map (radius 4) and over radii (60 objects): 8 maps of 128x128."""
    rows = []
    for kind, values in (("objects", OBJECTS), ("radius", RADII)):
        for value in values:
            progress.step(f"sweep, {kind} {value}", 0.25)
            objects, radius = (value, 4) if kind == "objects" else (60, value)
            entries = draw_objects(8, 0, 128, 128, objects, 1, seed, device)
            index = torch.arange(8, device=device).unsqueeze(1).expand(8, objects)
            size = torch.full_like(index, radius)

            def operator(index: Tensor = index, size: Tensor = size, entries: dict[str, Tensor] = entries) -> Tensor:
                return draw_gaussian_heatmap(index, entries["x"], entries["y"], size, 8, 128, 128)

            ms = medians({"batched": operator}, device, repeats, clock)["batched"]
            rows.append({"kind": kind, "value": value, "ms": ms})
            progress.clear()
            print(f"8 maps of 128x128, {objects:5} objects, radius {radius:3}: {ms:8.3f} ms", flush=True)
    return rows


def plot(rows: list[dict[str, Any]], path: Path, device: str) -> None:
    """Two curves: milliseconds over objects and over radius."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    labels = {"objects": "objects of a map (radius 4)", "radius": "radius in cells (60 objects a map)"}
    for panel, (kind, label) in zip(axes, labels.items(), strict=True):
        points = [(row["value"], row["ms"]) for row in rows if row["kind"] == kind]
        panel.plot(*zip(*points, strict=True), marker="o", color="#e4672e")
        panel.set_xscale("symlog", base=2, linthresh=1)  # radius 0 has its place too
        panel.set_yscale("log")
        panel.set_xticks([value for value, _ in points], [str(value) for value, _ in points])
        panel.set_xlim(points[0][0] * 0.8 - 0.2, points[-1][0] * 1.2)
        panel.set(xlabel=label, ylabel="ms")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"draw_gaussian_heatmap, 8 maps of 128x128, {device}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES, help="default: all")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each arm (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads on the CPU (default: torch's)")
    parser.add_argument("--clock", default="wall", choices=CLOCKS, help="time that passes, or time on the CPU")
    parser.add_argument("--seed", type=int, default=0, help="seed of what is drawn at random (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--plot", type=Path, help="write a PNG of the sweep here")
    args = parser.parse_args()
    if args.clock == "process" and (args.device != "cpu" or args.threads != 1):
        parser.error(f"--clock process needs --device cpu --threads 1, got {args.device} and {args.threads} threads")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU"
    report: dict[str, Any] = {
        "device": name,
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "threads": torch.get_num_threads(),
        "clock": args.clock,
        "loops": "mmdet3d" if stock() else "raggedbev.heatmap.reference",
        "rows": [],
    }
    cases: dict[str, Callable[[], dict[str, Arm]]] = {}
    if "draw" in args.cases:
        cases |= {key: lambda sizes=sizes: draw_case(sizes, args.seed, device) for key, sizes in DRAWN.items()}
    if "focal" in args.cases:
        cases["Focal head, 48 images, 14 objects"] = lambda: focal_case(args.seed, device)
    if "center" in args.cases:
        cases["CenterHead, batch 8, 128x128, 60 objects"] = lambda: center_case(args.seed, device)
    progress = Progress(len(cases) + ("sweep" in args.cases) * (len(OBJECTS) + len(RADII)) / 4)
    for case, make in cases.items():
        progress.step(case)
        arms = make()
        require_equal(arms)
        ms = medians(arms, device, args.repeats, args.clock)
        report["rows"].append({"case": case, "ms": ms, "ratio": ms["loop"] / ms["batched"]})
        progress.clear()
        print(f"{case:45} {ms['loop']:10.2f} ms -> {ms['batched']:8.3f} ms  {ms['loop'] / ms['batched']:7.1f}x")
    if "sweep" in args.cases:
        report["sweep"] = sweep(args.seed, device, args.repeats, args.clock, progress)
        if args.plot:
            plot(report["sweep"], args.plot, name)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
