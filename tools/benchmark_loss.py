#!/usr/bin/env python
"""Time the losses, or whole training iterations, per-sample against batched.

Every version ("arm") runs once per repeat, in turn, on the same predictions and ground truth; before that the arms'
losses and gradients are compared. The table shows medians, and how many times faster the batched arm is; host syncs
and peak memory come from runs of their own.

Scope `loss` needs torch, NumPy and SciPy only; scope `iteration` trains an mm config and needs the mm packages.

Arms:
    published         per-sample, per-layer and per-object loops as the published code has them
    reference         the same without needless work on the host: the fair baseline
    batched           this package
    batched+graph     its loss as a CUDA graph (CUDA only)
    batched+compile   its loss under torch.compile; the first run compiles, for about a minute on a CPU

Examples:
    python tools/benchmark_loss.py streampetr_r50_704 --batch-size 8 --out work_dirs/bench
    python tools/benchmark_loss.py --batch-sizes 1 2 4 8 16 32 64 --repeats 5 --out work_dirs/bench
    python tools/benchmark_loss.py --arms batched batched+compile --repeats 5
    python tools/benchmark_loss.py streampetr_r50_704 --device cuda --repeats 30 --predictions trained
    python tools/benchmark_loss.py --scope iteration configs/streampetr/streampetr_r50-704x256_8xb2-24e_nuscenes.py
"""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import shared.environment  # noqa: F401

import numpy as np
import torch

from raggedbev.profiling.interleave import COUNTING, Progress, measure_arms
from raggedbev.profiling.memory import METHODS
from raggedbev.profiling.report import (
    disturbance,
    format_sweep,
    format_table,
    join_sweep,
    make_report,
    write_json,
)
from raggedbev.profiling.syncs import HostSyncCounter
from raggedbev.workloads.generate import PRESETS, LossSizes, Objects, generate_objects, generate_predictions
from raggedbev.workloads.infos import read_objects
from raggedbev.workloads.losses import (
    ARMS,
    Agreement,
    LossArm,
    LossSettings,
    check_arms,
    compare_arms,
    usual_arms,
)

AGREEMENT = 1e-4  # relative; float32 sums over some 10^5 terms in other orders stay below it
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}
STREAM_LENGTH = 4  # batches that the iteration scope goes through in turn


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "config", nargs="?", default="streampetr_r50_704", help=f"preset ({', '.join(PRESETS)}) or mm config file"
    )
    parser.add_argument("--scope", choices=["loss", "iteration"], default="loss", help="what is timed (default: loss)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--batch-size", type=int, help="samples (default: 8; scope iteration: the config's)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", metavar="B", help="several of them: how times grow")
    parser.add_argument("--repeats", type=int, help="timed runs of each arm (default: 10; scope iteration: 3)")
    parser.add_argument(
        "--arms", nargs="+", choices=list(ARMS), help="versions to time (default: all on cuda, on cpu the first three)"
    )
    parser.add_argument("--predictions", choices=["untrained", "trained"], default="untrained", help="scope loss")
    parser.add_argument("--infos", help="info file to take the ground truth from (default: drawn like nuScenes)")
    parser.add_argument("--real-data", action="store_true", help="scope iteration: batches of the config's data set")
    parser.add_argument(
        "--load-data",
        action="store_true",
        help="with --real-data: a step loads its batch, the published and reference arms as the published code does",
    )
    parser.add_argument("--checkpoint", help="scope iteration: start from these weights (default: new ones)")
    parser.add_argument("--threads", type=int, help="threads of torch on the CPU (default: torch's own choice)")
    parser.add_argument(
        "--clock",
        choices=list(CLOCKS),
        default="wall",
        help="on the cpu: wall time, or the time of this process alone, for busy machines (default: wall)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of what is drawn at random (default: %(default)s)")
    parser.add_argument("--json", help="write the report here")
    parser.add_argument("--chart", help="draw the stage chart here (PNG; needs matplotlib)")
    parser.add_argument("--growth-chart", help="draw the batch sizes here (PNG; needs matplotlib)")
    parser.add_argument("--out", help="folder for report.json and, with matplotlib, stages.png and growth.png")
    args = parser.parse_args(arguments)
    args.command = shlex.join(["tools/benchmark_loss.py", *(sys.argv[1:] if arguments is None else arguments)])
    if args.out:
        folder = Path(args.out)
        args.json = args.json or str(folder / "report.json")
        if importlib.util.find_spec("matplotlib") is not None:
            args.chart = args.chart or str(folder / "stages.png")
            if args.batch_sizes:
                args.growth_chart = args.growth_chart or str(folder / "growth.png")
    _check(args)
    return args


def _check(args: argparse.Namespace) -> None:
    """Raises ValueError in one sentence for what cannot work."""
    device = torch.device(args.device)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu or cuda, got {args.device}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA device on this machine; use --device cpu")
    for name in ("batch_size", "repeats", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    sizes = args.batch_sizes
    if sizes and (min(sizes) < 1 or len(set(sizes)) != len(sizes)):
        raise ValueError(f"--batch-sizes must be different numbers of at least 1, got {sizes}")
    if sizes and args.batch_size:
        raise ValueError("--batch-size and --batch-sizes exclude each other")
    if args.growth_chart and not sizes:
        raise ValueError("--growth-chart draws several batch sizes: give --batch-sizes as well")
    if args.clock == "process" and device.type != "cpu":
        raise ValueError("--clock process belongs to --device cpu; on cuda events of the device are read")
    check_arms(args.arms or [], args.device)
    is_preset = args.config in PRESETS
    if not is_preset and not args.config.endswith(".py"):
        raise ValueError(
            f"no preset {args.config!r}; presets are {', '.join(PRESETS)}, anything else must be a .py config"
        )
    if not is_preset and importlib.util.find_spec("mmengine") is None:
        raise ValueError(f"reading {args.config} needs mmengine, which is not installed; presets work without it")
    if args.scope == "iteration" and is_preset:
        raise ValueError(f"--scope iteration needs an mm config, got the preset {args.config}")
    if args.real_data and args.scope == "loss":
        raise ValueError("--real-data belongs to --scope iteration; scope loss takes ground truth from --infos")
    if args.load_data and not args.real_data:
        raise ValueError("--load-data needs --real-data")
    if args.checkpoint and args.scope == "loss":
        raise ValueError("--checkpoint belongs to --scope iteration; scope loss has --predictions trained")
    if (args.chart or args.growth_chart) and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("drawing charts needs matplotlib, which is not installed; --json works without it")


def draw_objects(args: argparse.Namespace, sizes: LossSizes, batch_size: int) -> Iterator[Objects]:
    """Ground truth of one batch after another."""
    generator = np.random.default_rng(args.seed)
    first = 0
    while True:
        if args.infos:
            yield read_objects(args.infos, sizes, batch_size, first)
            first += batch_size
        else:
            yield generate_objects(sizes, batch_size, generator)


def run_loss(args: argparse.Namespace) -> dict[str, Any]:
    """Times forward and backward of the losses alone."""
    sizes, settings = _loss_problem(args.config)
    names, repeats = args.arms or usual_arms(args.device), args.repeats or 10
    batch_sizes = sorted(args.batch_sizes or [args.batch_size or 8])
    progress = _progress(batch_sizes, len(names), repeats)
    reports = []
    for batch_size in batch_sizes:
        objects = next(draw_objects(args, sizes, batch_size))
        generator = torch.Generator().manual_seed(args.seed)
        trained = args.predictions == "trained"
        predictions = generate_predictions(objects, sizes, generator, trained=trained, device=args.device)
        on_device = objects.to(args.device)
        arms = {name: LossArm(name, on_device, predictions, sizes, settings) for name in names}
        agreement = compare_arms(arms, progress, batch_size)
        details = {"predictions": args.predictions, "ground_truth": args.infos or "drawn with nuScenes statistics"}
        details |= {"objects_per_sample": [len(labels) for labels in objects.labels]}
        details |= {"objects_2d": sum(len(labels) for labels in objects.image_labels)}
        details |= {"first_call_s": {name: round(arm.first_call_s or 0.0, 3) for name, arm in arms.items()}}
        reports.append(_measure(args, arms, batch_size, agreement, repeats, progress, details))
    return join_sweep(reports) if args.batch_sizes else reports[0]


def run_iteration(args: argparse.Namespace) -> dict[str, Any]:
    """Times whole training steps of a config."""
    from shared import benchmark_iteration as iteration

    config = iteration.load_config(args.config)
    names, repeats = args.arms or usual_arms(args.device), args.repeats or 3
    batch_sizes = sorted(args.batch_sizes or [args.batch_size or config.train_dataloader.batch_size])
    has_shapes = any("+" in name for name in names)  # what captures or compiles anew for each
    progress = _progress(batch_sizes, len(names), repeats + STREAM_LENGTH * has_shapes)
    reports = []
    for batch_size in batch_sizes:
        if args.real_data:
            batches = iteration.dataset_batches(config, batch_size, STREAM_LENGTH, args.seed)
        else:
            sizes = iteration.sizes_of(config)
            objects = draw_objects(args, sizes, batch_size)
            batches = iteration.synthetic_batches(objects, sizes, STREAM_LENGTH, args.seed)
        device = torch.device(args.device)
        arms = iteration.build_arms(config, device, batches, args.seed, args.checkpoint, names)
        losses = {}
        for name, arm in arms.items():
            progress.step(f"first run of {name}", batch_size)
            losses[name] = arm.losses()
        agreement = Agreement.of_losses(losses)
        if has_shapes:
            for name, arm in arms.items():
                progress.step(f"steps on all shapes by {name}", STREAM_LENGTH * batch_size)
                arm.warm_up()
        if args.load_data:
            for name, arm in arms.items():
                published = not name.startswith("batched")
                arm.stream = iteration.dataset_stream(config, batch_size, args.seed, published=published)
        details = {"data": "of the config" if args.real_data else "synthetic", "data_in_step": args.load_data}
        reports.append(_measure(args, arms, batch_size, agreement, repeats, progress, details))
    return join_sweep(reports) if args.batch_sizes else reports[0]


def _progress(batch_sizes: list[int], num_arms: int, repeats: int) -> Progress:
    """Each arm has a first run, the counting runs, and the timed ones; a run takes as long as its batch is large."""
    return Progress(sum(batch_sizes) * num_arms * (1 + COUNTING + repeats))


def _loss_problem(config: str) -> tuple[LossSizes, LossSettings]:
    """Sizes and loss settings of a preset or an mm config."""
    if config in PRESETS:
        return PRESETS[config], LossSettings.published(PRESETS[config])
    from shared import benchmark_iteration as iteration

    loaded = iteration.load_config(config)
    return iteration.sizes_of(loaded), iteration.settings_of(loaded)


def _measure(
    args: argparse.Namespace,
    arms: dict[str, Any],
    batch_size: int,
    agreement: Agreement,
    repeats: int,
    progress: Progress,
    details: dict[str, Any],
) -> dict[str, Any]:
    """Times the arms and makes the report."""
    print(f"batch {batch_size}: {agreement.sentence()}", flush=True)
    clock, started, ran = CLOCKS[args.clock], time.perf_counter(), time.process_time()
    measured = measure_arms(
        arms, device=args.device, repeats=repeats, progress=progress, weight=batch_size, clock=clock
    )
    share = (time.process_time() - ran) / (time.perf_counter() - started)
    baseline = "reference" if "reference" in arms else next(iter(arms))
    return make_report(
        measured,
        device=args.device,
        config=args.config,
        batch_size=batch_size,
        scope=args.scope,
        baseline=baseline,
        target="batched" if "batched" in arms else list(arms)[-1],
        repeats=repeats,
        seed=args.seed,
        clock=args.clock,
        command=args.command,
        processor_share=round(share, 2) if torch.device(args.device).type == "cpu" else None,
        agreement=agreement.as_dict(),
        host_syncs_method=HostSyncCounter(args.device).method,
        peak_memory_method=METHODS[torch.device(args.device).type],
        **details,
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; exit status 1 for bad input and for arms that disagree."""
    try:
        args = parse_args(arguments)
        if args.threads:
            torch.set_num_threads(args.threads)
        report = (run_loss if args.scope == "loss" else run_iteration)(args)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError:
        print("error: the largest batch does not fit into the device's memory; use a smaller one", file=sys.stderr)
        return 1
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = str(error).strip().partition("\n")[0]
        print(f"error: the arm batched+compile cannot be compiled here ({reason})", file=sys.stderr)
        return 1
    print(format_table(report))
    if "sweep" in report:
        print(f"\n{format_sweep(report)}\n")
    print(f"host syncs: {report['host_syncs_method']}; peak memory: {report['peak_memory_method']}")
    print(f"{report['device']}, torch {report['torch']}, {report['threads']} threads, batch {report['batch_size']}")
    if disturbance(report):
        print(f"warning: {disturbance(report)}")
    write_files(args, report)
    worst = max(entry["agreement"]["losses"] for entry in report.get("sweep", {"": report}).values())
    if worst > AGREEMENT:
        print(f"error: the arms' losses differ by {worst:.2g} (relative), more than {AGREEMENT:g}", file=sys.stderr)
        return 1
    return 0


def write_files(args: argparse.Namespace, report: dict[str, Any]) -> None:
    """The files that the command line asks for."""
    if args.json:
        write_json(report, args.json)
        print(f"report: {Path(args.json)}")
    if args.chart:
        from shared.plots import stage_chart

        stage_chart(report, args.chart)
        print(f"chart: {Path(args.chart)}")
    if args.growth_chart:
        from shared.plots import growth_chart

        growth_chart(report, args.growth_chart)
        print(f"chart: {Path(args.growth_chart)}")


if __name__ == "__main__":
    sys.exit(main())
