#!/usr/bin/env python
"""Time the losses, or whole training iterations, per-sample against batched.

Every version ("arm") runs once per repeat, in turn, on the same predictions and ground truth; before that the arms'
losses and gradients are compared. The table shows medians, and how many times faster the batched arm is.

Scope `loss` needs torch, NumPy and SciPy only; scope `iteration` trains an mm config and needs the mm packages.

Examples:
    python tools/benchmark_loss.py streampetr_r50_704 --batch-size 8 --json work_dirs/bench/loss.json
    python tools/benchmark_loss.py streampetr_r50_704 --device cuda --repeats 30 --predictions trained
    python tools/benchmark_loss.py --scope iteration configs/streampetr/streampetr_r50-704x256_8xb2-24e_nuscenes.py
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raggedbev.profiling.infos import read_objects
from raggedbev.profiling.interleave import Progress, measure_arms
from raggedbev.profiling.loss_scope import ARMS, Agreement, LossArm, LossSettings, compare_arms
from raggedbev.profiling.report import disturbance, format_table, make_report, write_json
from raggedbev.profiling.syncs import HostSyncCounter
from raggedbev.profiling.workload import PRESETS, LossSizes, Objects, generate_objects, generate_predictions

AGREEMENT = 1e-4  # relative; float32 sums over some 10^5 terms in other orders stay below it
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
    parser.add_argument("--repeats", type=int, help="timed runs of each arm (default: 10; scope iteration: 3)")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), help="versions to time (default: all of the scope)")
    parser.add_argument("--predictions", choices=["untrained", "trained"], default="untrained", help="scope loss")
    parser.add_argument("--infos", help="info file to take the ground truth from (default: drawn like nuScenes)")
    parser.add_argument("--real-data", action="store_true", help="scope iteration: batches of the config's data set")
    parser.add_argument(
        "--load-data",
        action="store_true",
        help="with --real-data: a step loads its batch, the published and reference arms by OpenCV and Pillow",
    )
    parser.add_argument("--checkpoint", help="scope iteration: start from these weights (default: new ones)")
    parser.add_argument("--threads", type=int, help="threads of torch on the CPU (default: torch's own choice)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="write the report here")
    parser.add_argument("--chart", help="draw the stage chart here (PNG; needs matplotlib)")
    args = parser.parse_args(arguments)
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
    if args.chart and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--chart needs matplotlib, which is not installed")


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
    batch_size = args.batch_size or 8
    objects = next(draw_objects(args, sizes, batch_size))
    generator = torch.Generator().manual_seed(args.seed)
    trained = args.predictions == "trained"
    predictions = generate_predictions(objects, sizes, generator, trained=trained, device=args.device)
    on_device = objects.to(args.device)
    arms = {name: LossArm(name, on_device, predictions, sizes, settings) for name in args.arms or ARMS}
    agreement = compare_arms(arms)
    print(agreement.sentence(), flush=True)
    details = {"predictions": args.predictions, "ground_truth": args.infos or "drawn with nuScenes statistics"}
    details |= {"objects_per_sample": [len(labels) for labels in objects.labels]}
    details |= {"objects_2d": sum(len(labels) for labels in objects.image_labels)}
    return _measure(args, arms, batch_size, agreement, args.repeats or 10, details)


def run_iteration(args: argparse.Namespace) -> dict[str, Any]:
    """Times whole training steps of a config."""
    import benchmark_iteration as iteration

    config = iteration.load_config(args.config)
    batch_size = args.batch_size or config.train_dataloader.batch_size
    if args.real_data:
        batches = iteration.dataset_batches(config, batch_size, STREAM_LENGTH, args.seed)
    else:
        sizes = iteration.sizes_of(config)
        objects = draw_objects(args, sizes, batch_size)
        batches = iteration.synthetic_batches(objects, sizes, STREAM_LENGTH, args.seed)
    arms = iteration.build_arms(config, torch.device(args.device), batches, args.seed, args.checkpoint, args.arms)
    agreement = Agreement.of_losses({name: arm.losses() for name, arm in arms.items()})
    print(agreement.sentence(), flush=True)
    if args.load_data:
        for name, arm in arms.items():
            arm.stream = iteration.dataset_stream(config, batch_size, args.seed, published=name != "batched")
    details = {"data": "of the config" if args.real_data else "synthetic", "data_in_step": args.load_data}
    return _measure(args, arms, batch_size, agreement, args.repeats or 3, details)


def _loss_problem(config: str) -> tuple[LossSizes, LossSettings]:
    """Sizes and loss settings of a preset or an mm config."""
    if config in PRESETS:
        return PRESETS[config], LossSettings.published(PRESETS[config])
    import benchmark_iteration as iteration

    loaded = iteration.load_config(config)
    return iteration.sizes_of(loaded), iteration.settings_of(loaded)


def _measure(
    args: argparse.Namespace,
    arms: dict[str, Any],
    batch_size: int,
    agreement: Agreement,
    repeats: int,
    details: dict[str, Any],
) -> dict[str, Any]:
    """Times the arms and makes the report."""
    runs = (repeats + 1) * len(arms)
    measured = measure_arms(arms, device=args.device, repeats=repeats, progress=Progress(runs))
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
        agreement=agreement.as_dict(),
        host_syncs_method=HostSyncCounter(args.device).method,
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
    print(format_table(report))
    print(f"host syncs: {report['host_syncs_method']}")
    print(f"{report['device']}, torch {report['torch']}, {report['threads']} threads, batch {report['batch_size']}")
    if disturbance(report):
        print(f"warning: {disturbance(report)}")
    if args.json:
        write_json(report, args.json)
        print(f"report: {Path(args.json)}")
    if args.chart:
        from plots import stage_chart

        stage_chart(report, args.chart)
        print(f"chart: {Path(args.chart)}")
    worst = report["agreement"]["losses"]
    if worst > AGREEMENT:
        print(f"error: the arms' losses differ by {worst:.2g} (relative), more than {AGREEMENT:g}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
