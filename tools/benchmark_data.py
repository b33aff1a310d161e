#!/usr/bin/env python
"""Time the way of camera images from files to batches: mmdet3d's transforms against this package's, same files.

Four tables. Frame: reading, decoding and resizing the six images of one frame in one process. Loader: samples and
images per second of a DataLoader with 0 to 2 workers, and the time that the main process spends per step. Transfer:
that time for ground truth alone, collated and copied tensor by tensor or packed. Pixels: how far the results are apart.
The versions run in turn, and medians are shown.

Without --images, street scenes of 1600x900 are rendered once (JPEG, quality 90, 4:2:0, some grain) and kept in the work
directory.

Examples:
    python tools/benchmark_data.py --json work_dirs/bench/data.json --chart work_dirs/bench/data.png
    python tools/benchmark_data.py --images data/nuscenes/samples --pipelines streampetr --batch-size 8 --workers 0 4
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import shared.environment  # noqa: F401

import cv2
import mmcv
import numpy as np
import torch
from mmengine.dataset import pseudo_collate, worker_init_fn
from PIL import Image
from shared.image_files import PIPELINES, STOCK, TURBO, ImageFrames, check_images, find_images, make_images, pipelines
from torch.utils.data import DataLoader

from raggedbev.mm.images import EncodedImage, resize_image
from raggedbev.mm.images.files import read_file, simplejpeg
from raggedbev.mm.images.threads import choose_threads, map_in_threads
from raggedbev.mm.transfer_timing import measure_transfer
from raggedbev.profiling.interleave import Progress
from raggedbev.profiling.report import describe_machine, write_json

PACKAGES = ("simplejpeg", "opencv-python-headless", "pillow", "mmcv", "mmdet3d", "numpy")
RESTLESS = 2.0  # slowest repeat over fastest, from which on the run is not to be quoted


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of camera images (default: rendered ones)")
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/benchmark_data"), help="for rendered images")
    parser.add_argument("--frames", type=int, default=4, help="frames to render (default: 4)")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=(704, 396),
        metavar=("WIDTH", "HEIGHT"),
        help="of the network's input (default: 704 396)",
    )
    parser.add_argument("--pipelines", nargs="+", choices=PIPELINES, default=list(PIPELINES), help="default: all")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="numbers of workers (default: 0 1 2)")
    parser.add_argument("--batch-size", type=int, default=2, help="samples (default: 2)")
    parser.add_argument("--steps", type=int, default=6, help="timed steps of a loader run (default: 6)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each version (default: 5)")
    parser.add_argument("--threads", type=int, help="decoding threads of a process (default: its share of the cores)")
    parser.add_argument("--transfer-batch-size", type=int, default=8, help="samples of the transfer (default: 8)")
    parser.add_argument("--device", default="cpu", help="where the transfer goes, cpu or cuda (default: cpu)")
    parser.add_argument("--seed", type=int, default=0, help="seed of what is drawn at random (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--chart", type=Path, help="draw the chart here (PNG)")
    args = parser.parse_args(arguments)
    for name in ("frames", "batch_size", "steps", "repeats", "threads", "transfer_batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    kind = args.device.partition(":")[0]
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
        parser.error(f"--device must be cpu, or cuda where torch finds one, got {args.device}")
    if min(args.size) < 1 or min(args.workers) < 0:
        parser.error(f"--size must be positive and --workers not negative, got {args.size} and {args.workers}")
    args.size = tuple(args.size)
    return args


class Bench:
    """All measurements on the same files.

    Args:
        args: the command line.
        frames: paths of each frame's images.
    """

    def __init__(self, args: argparse.Namespace, frames: list[list[str]]) -> None:
        self.args = args
        self.frames = frames
        self.threads = args.threads or choose_threads(None)
        self.frame_work = self._frame_versions()
        loader_runs = args.repeats * len(args.workers) * len(args.pipelines) * len((STOCK, TURBO))
        self.progress = Progress((args.repeats + 1) * len(self.frame_work) + loader_runs + len(args.workers))

    def report(self) -> dict[str, Any]:
        """Everything that is measured."""
        report = describe_machine("cpu")
        report["versions"] = {name: _version(name) for name in PACKAGES}
        sizes = [os.path.getsize(path) for frame in self.frames for path in frame]
        first = mmcv.imread(self.frames[0][0]).shape
        report["files"] = {
            "images": len(sizes),
            "mean_kilobytes": round(statistics.mean(sizes) / 1000, 1),
            "size": [first[1], first[0]],
            "rendered": self.args.images is None,
        }
        report.update(
            result_size=list(self.args.size),
            batch_size=self.args.batch_size,
            threads_of_decoding=self.threads,
            repeats=self.args.repeats,
        )
        report["frame"] = self.frame_times()
        report["loader"] = self.loader_times()
        report["transfer"] = self.transfer_times()
        self.progress.done()
        report["pixels"] = self.pixel_differences()
        return report

    # ---- one frame, one process ----

    def _frame_versions(self) -> dict[str, Callable[[list[str]], object]]:
        """Functions that read, decode and resize a frame; `mmcv` is the baseline."""
        size = self.args.size

        def turbo(threads: int, **options: Any) -> Callable[[list[str]], object]:
            resize = functools.partial(_read_and_resize, size=size, **options)
            return lambda paths: map_in_threads(resize, paths, threads)

        stock = ImageFrames(self.frames, "resize", pipelines("resize", size, None)[STOCK][:-1], len(self.frames))
        several = sorted({1, self.threads})
        bicubic = {"interpolation": "bicubic", "antialias": True}
        return {
            "mmcv": lambda paths: [mmcv.imresize(mmcv.imread(path), size) for path in paths],
            "mmdet3d transforms": lambda paths: stock[self.frames.index(paths)],
            "mmcv, Pillow's bicubic": lambda paths: [_by_pillow(mmcv.imread(path), size) for path in paths],
            **{f"turbo, full size, {_threads(n)}": turbo(n, scaled_decoding=False) for n in several},
            **{f"turbo, {_threads(n)}": turbo(n) for n in several},
            **{f"turbo, Pillow's bicubic, {_threads(n)}": turbo(n, **bicubic) for n in several},
        }

    def frame_times(self) -> dict[str, dict[str, float]]:
        """Milliseconds per frame and images per second of each version."""
        names = list(self.frame_work)
        wall: dict[str, list[float]] = {name: [] for name in names}
        cpu: dict[str, list[float]] = {name: [] for name in names}
        for repeat in range(self.args.repeats + 1):
            for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
                self.progress.step(f"frame: {name}")
                before, before_cpu = time.perf_counter(), time.process_time()
                for paths in self.frames:
                    self.frame_work[name](paths)
                if repeat:  # the first run reads the files and starts the threads
                    wall[name].append((time.perf_counter() - before) * 1e3 / len(self.frames))
                    cpu[name].append((time.process_time() - before_cpu) * 1e3 / len(self.frames))
        baseline = statistics.median(wall[names[0]])
        images = len(self.frames[0])
        return {
            name: {
                "milliseconds": round(statistics.median(wall[name]), 3),
                "cpu_milliseconds": round(statistics.median(cpu[name]), 3),
                "images_per_second": round(images * 1e3 / statistics.median(wall[name]), 1),
                "over_mmcv": round(baseline / statistics.median(wall[name]), 2),
                "fastest_and_slowest": [round(min(wall[name]), 3), round(max(wall[name]), 3)],
            }
            for name in names
        }

    # ---- the loader ----

    def loader_times(self) -> list[dict[str, Any]]:
        """Samples per second and the main process's share, by pipeline and number of workers."""
        rows = []
        for kind in self.args.pipelines:
            configs = pipelines(kind, self.args.size, self.args.threads)
            for workers in self.args.workers:
                found: dict[str, list[tuple[float, float]]] = {name: [] for name in configs}
                for repeat in range(self.args.repeats):
                    for name in list(configs)[:: 1 - 2 * (repeat % 2)]:
                        self.progress.step(f"loader: {kind}, {workers} workers, {name}")
                        found[name].append(self._run_loader(kind, configs[name], workers))
                rows.append({"pipeline": kind, "workers": workers, **self._loader_row(found)})
        return rows

    def _run_loader(self, kind: str, pipeline: list[dict], workers: int) -> tuple[float, float]:
        """Seconds per step of one run, waiting and main process's CPU time."""
        steps = self.args.steps + 1 + 2 * workers  # the first ones find the workers starting, with nothing prefetched
        loader = DataLoader(
            ImageFrames(self.frames, kind, pipeline, steps * self.args.batch_size),
            batch_size=self.args.batch_size,
            num_workers=workers,
            collate_fn=pseudo_collate,
            worker_init_fn=functools.partial(worker_init_fn, num_workers=workers, rank=0, seed=self.args.seed),
        )
        np.random.seed(self.args.seed)
        batches = iter(loader)
        for _ in range(steps - self.args.steps):
            next(batches)
        before, before_cpu = time.perf_counter(), time.process_time()
        for _ in range(self.args.steps):
            next(batches)
        spent = time.perf_counter() - before, time.process_time() - before_cpu
        if workers:
            batches._shutdown_workers()
        return spent[0] / self.args.steps, spent[1] / self.args.steps

    def _loader_row(self, found: Mapping[str, list[tuple[float, float]]]) -> dict[str, Any]:
        row: dict[str, Any] = {}
        for name, runs in found.items():
            step = statistics.median(run[0] for run in runs)
            row[name] = {
                "samples_per_second": round(self.args.batch_size / step, 2),
                "images_per_second": round(self.args.batch_size * len(self.frames[0]) / step, 1),
                "milliseconds_per_step": round(step * 1e3, 2),
                "main_process_milliseconds": round(statistics.median(run[1] for run in runs) * 1e3, 2),
                "fastest_and_slowest": [round(pick(run[0] for run in runs) * 1e3, 2) for pick in (min, max)],
            }
        row["ratio"] = round(row[TURBO]["samples_per_second"] / row[STOCK]["samples_per_second"], 2)
        return row

    # ---- ground truth ----

    def transfer_times(self) -> list[dict[str, Any]]:
        """Main-process time per batch for ground truth, by number of workers."""
        rows = []
        for workers in self.args.workers:
            self.progress.step(f"transfer: {workers} workers")
            batches = max(3, 4 * self.args.repeats)
            rows.append(measure_transfer(self.args.transfer_batch_size, batches, workers, device=self.args.device))
        return rows

    # ---- pixels ----

    def pixel_differences(self) -> dict[str, dict[str, float]]:
        """How far results are from mmcv's (bilinear) and from Pillow's (bicubic), over all images."""
        size = self.args.size
        pairs: dict[str, Callable[[str, np.ndarray], tuple[np.ndarray, np.ndarray]]] = {
            "decoded at full size, against mmcv": lambda p, full: (EncodedImage(p, read_file(p)).decode(), full),
            "full size, bilinear, against mmcv": lambda p, full: (
                _read_and_resize(p, size, scaled_decoding=False),
                mmcv.imresize(full, size),
            ),
            "scaled, bilinear, against mmcv": lambda p, full: (_read_and_resize(p, size), mmcv.imresize(full, size)),
            "full size, bicubic, against Pillow": lambda p, full: (
                _read_and_resize(p, size, interpolation="bicubic", antialias=True, scaled_decoding=False),
                _by_pillow(full, size),
            ),
            "scaled, bicubic, against Pillow": lambda p, full: (
                _read_and_resize(p, size, interpolation="bicubic", antialias=True),
                _by_pillow(full, size),
            ),
            "mmcv, bilinear, against Pillow": lambda p, full: (mmcv.imresize(full, size), _by_pillow(full, size)),
        }
        images = [(path, mmcv.imread(path)) for frame in self.frames for path in frame]
        return {name: _difference([make(*image) for image in images]) for name, make in pairs.items()}


def _read_and_resize(path: str, size: tuple[int, int], **options: Any) -> np.ndarray:
    return resize_image(EncodedImage(path, read_file(path)), size, **options)


def _threads(number: int) -> str:
    return f"{number} thread{'s' if number > 1 else ''}"


def _by_pillow(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def _difference(pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float | None]:
    """Mean and largest absolute difference in levels of 255, and PSNR in dB (None: no difference)."""
    apart = [np.abs(left.astype(np.int16) - right) for left, right in pairs]
    square = statistics.mean(float(np.mean(a.astype(np.float64) ** 2)) for a in apart)
    return {
        "mean": round(statistics.mean(float(a.mean()) for a in apart), 4),
        "max": int(max(a.max() for a in apart)),
        "psnr": round(10 * float(np.log10(255**2 / square)), 2) if square else None,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def format_report(report: Mapping[str, Any]) -> str:
    """The tables as text."""
    lines = [f"{'frame of 6 images: read, decode, resize':<40}{'ms':>9}{'CPU ms':>9}{'images/s':>10}{'ratio':>8}"]
    for name, row in report["frame"].items():
        cells = f"{row['milliseconds']:>9.1f}{row['cpu_milliseconds']:>9.1f}{row['images_per_second']:>10.0f}"
        lines.append(f"  {name:<38}{cells}{row['over_mmcv']:>7.2f}x")
    lines.append(
        f"\n{'loader, batch ' + str(report['batch_size']):<24}{'samples/s':>20}{'main process ms':>21}{'ratio':>9}"
    )
    lines.append(f"{'':<24}{'stock':>10}{'turbo':>10}{'stock':>11}{'turbo':>10}")
    for row in report["loader"]:
        stock, turbo = row[STOCK], row[TURBO]
        rates = f"{stock['samples_per_second']:>10.2f}{turbo['samples_per_second']:>10.2f}"
        mains = f"{stock['main_process_milliseconds']:>11.1f}{turbo['main_process_milliseconds']:>10.1f}"
        lines.append(
            f"  {row['pipeline'] + ', ' + str(row['workers']) + ' workers':<22}{rates}{mains}{row['ratio']:>8.2f}x"
        )
    tensors = report["transfer"][0]["tensors"]
    lines.append(f"\n{f'ground truth, {tensors} tensors':<34}{'main process ms':>30}{'ratio':>9}")
    lines.append(f"{'':<34}{'pseudo_collate':>15}{'ragged_collate':>15}")
    for row in report["transfer"]:
        stock, packed = row["arms"]["pseudo_collate"]["main_ms"], row["arms"]["ragged_collate"]["main_ms"]
        label = f"batch {row['batch_size']}, {row['num_workers']} workers, {row['device']}"
        lines.append(f"  {label:<32}{stock:>15.2f}{packed:>15.2f}{row['speedup']:>8.2f}x")
    lines.append(f"\n{'pixels, levels of 255':<40}{'mean':>9}{'max':>7}{'PSNR':>8}")
    for name, row in report["pixels"].items():
        psnr = "same" if row["psnr"] is None else f"{row['psnr']:.1f}"
        lines.append(f"  {name:<38}{row['mean']:>9.3f}{row['max']:>7}{psnr:>8}")
    return "\n".join(lines)


def restlessness(report: Mapping[str, Any]) -> float:
    """The largest ratio of the slowest to the fastest repeat of a version."""
    ranges = [row["fastest_and_slowest"] for row in report["frame"].values()]
    ranges += [row[name]["fastest_and_slowest"] for row in report["loader"] for name in (STOCK, TURBO)]
    return max(slow / fast for fast, slow in ranges if fast > 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; exit status 1 for bad input."""
    args = parse_args(arguments)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)  # as in the workers of mmengine's loaders
    try:
        frames = find_images(args.images) if args.images else make_images(args.work_dir, args.frames, args.seed)
        check_images(frames, args.pipelines)
        bench = Bench(args, frames)
        report = bench.report()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(format_report(report))
    files = report["files"]
    print(f"{files['images']} files of {files['size'][0]}x{files['size'][1]}, {files['mean_kilobytes']} kB each")
    print(f"{report['device']}, {report['threads_of_decoding']} threads decode, repeats: {report['repeats']}")
    if simplejpeg is None:
        print("warning: simplejpeg is not installed, OpenCV decodes in its place: pip install simplejpeg")
    if restlessness(report) > RESTLESS:
        print(f"warning: repeats of one version differ {restlessness(report):.1f}-fold: other work disturbed this run")
    if args.json:
        write_json(report, args.json)
        print(f"report: {args.json}")
    if args.chart:
        from shared.plots import data_chart

        data_chart(report, args.chart)
        print(f"chart: {args.chart}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
