#!/usr/bin/env python
"""Time the helpers of the ragged batch against compositions of torch operations, forward and backward.

    python benchmarks/ragged.py --json work_dirs/bench/ragged-cpu.json
    python benchmarks/ragged.py --device cuda --json work_dirs/bench/ragged-cuda.json
    python benchmarks/ragged.py --batch 8 --objects 30 --channels 1 256 --helpers batched_indexing_access

Every combination of --batch, --objects and --channels is one problem. Before anything is timed, all arms of a case must
give the same values and gradients. Then each repeat runs every arm once, in turn, starting with another arm each time.
A line shows the medians of this package and of the fastest composition, their ratio (above 1: this package is faster),
and GB/s by the bytes that have to be read and written at least, also as a share of what copying a large tensor reaches
in the same run. `combine_data` packs 48 lists (--lists), and its ratio is that to a loop of slice copies.

On the CPU a measurement repeats short work until it lasts; data that fit stay in the caches, for all arms alike. The
allocator is told to keep what is freed (--malloc keep): otherwise it hands large tensors back to the system and pays
page faults for the next one, or does not, by what happened to lie beside them, and that decides the large cases. On
CUDA it is one call between two device events, after the L2 cache was overwritten; the time that the host takes to issue
the call, and the number of kernels and copies that it starts, are written to the JSON beside it.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from ragged_cases import OURS, Case, make_cases, make_problem, packing
from torch import Tensor

from raggedbev.profiling.interleave import Progress, calls_to_last
from raggedbev.profiling.report import describe_machine, write_json

COPY_BYTES = {"cpu": 256 * 2**20, "cuda": 2**30}
FLUSH_BYTES = 256 * 2**20  # more than the L2 cache of any device
SHORTEST = 2e-3  # seconds that one measurement on the CPU lasts at least
LARGE_BYTES = 16 * 2**20  # from here on the memory limits the device, not the launch
FEWEST_REPEATS = 3
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 2e-2}
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}

Work = Callable[[], object]


# -- clocks --------------------------------------------------------------------------------------------------------


class HostClock:
    """Time of a call as the host sees it."""

    def __init__(self, device: torch.device, read: Callable[[], float] = time.perf_counter) -> None:
        self._calls: dict[Work, int] = {}
        self._read = read
        self._wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def prepare(self, work: Work) -> None:
        """Warms up, and finds how many calls one measurement needs."""
        work()
        self._calls[work] = calls_to_last(lambda calls: self._time(work, calls), SHORTEST)

    def measure(self, work: Work) -> dict[str, float]:
        """Milliseconds per call."""
        return {"ms": 1e3 * self._time(work, self._calls[work]) / self._calls[work]}

    def _time(self, work: Work, calls: int) -> float:
        self._wait()
        start = self._read()
        for _ in range(calls):
            work()
            self._wait()
        return self._read() - start


class DeviceClock:
    """Time between two device events around a call, with a cold L2 cache."""

    def __init__(self, device: torch.device) -> None:
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)

    def prepare(self, work: Work) -> None:
        """Warms up."""
        for _ in range(3):
            work()
        torch.cuda.synchronize()

    def measure(self, work: Work) -> dict[str, float]:
        """Milliseconds of the device, and of the host until the call was issued."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self._flush.zero_()
        start.record()
        before = time.perf_counter()
        work()
        issued = time.perf_counter() - before
        end.record()
        end.synchronize()
        return {"ms": start.elapsed_time(end), "host_ms": 1e3 * issued}


Clock = HostClock | DeviceClock


def measure(arms: Mapping[str, Work], clock: Clock, repeats: int, budget: float) -> dict[str, dict[str, Any]]:
    """Medians and extremes per arm, in interleaved repeats; stops early when `budget` seconds are spent."""
    for work in arms.values():
        clock.prepare(work)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    names, deadline = list(arms), time.perf_counter() + budget
    for repeat in range(repeats):
        if repeat >= FEWEST_REPEATS and time.perf_counter() > deadline:
            break
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(clock.measure(arms[name]))
    return {name: summarize(rows) for name, rows in found.items()}


def summarize(rows: list[dict[str, float]]) -> dict[str, Any]:
    summary: dict[str, Any] = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    times = [row["ms"] for row in rows]
    return summary | {"min_ms": min(times), "max_ms": max(times), "repeats": len(rows)}


def clock_of(args: argparse.Namespace, on_host: bool = False) -> Clock:
    """Device events on CUDA, unless the work starts on the host; there the chosen clock."""
    device = torch.device(args.device)
    if device.type == "cuda" and not on_host:
        return DeviceClock(device)
    return HostClock(device, CLOCKS[args.clock])


def copy_bandwidth(args: argparse.Namespace) -> float:
    """GB/s of copying a large tensor; bytes read and bytes written count."""
    device = torch.device(args.device)
    source = torch.ones(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = measure({"copy": lambda: target.copy_(source)}, clock_of(args), repeats=10, budget=10)
    return 2 * source.numel() / copied["copy"]["ms"] / 1e6


def count_device_work(work: Work) -> int:
    """Kernels, copies and fills that one call starts on the device."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        work()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())


# -- cases ---------------------------------------------------------------------------------------------------------


def passes(case: Case) -> Iterator[tuple[str, dict[str, Work], int]]:
    """Name, arms and bytes of the forward and, where there is one, of the backward pass."""
    yield "forward", dict(case.arms), case.forward_bytes
    if not case.inputs:
        return
    results = {name: arm() for name, arm in case.arms.items()}
    gradient = torch.randn_like(results[OURS])

    def backward(out: Tensor) -> Work:
        return lambda: torch.autograd.grad(out, case.inputs, gradient, retain_graph=True)

    yield "backward", {name: backward(out) for name, out in results.items()}, case.backward_bytes


def check_agreement(case: Case) -> None:
    """Raises a RuntimeError when an arm's values or gradients are not those of this package."""
    expected = case.arms[OURS]()
    generator = torch.Generator().manual_seed(0)
    weights = None
    if case.inputs:
        weights = torch.randn(expected.shape, generator=generator).to(expected.device, expected.dtype)
    wanted = [expected.detach(), *gradients(expected, case, weights)]
    for name, arm in case.arms.items():
        out = arm()
        for ours, theirs in zip(wanted, [out.detach(), *gradients(out, case, weights)], strict=True):
            if not same(ours, theirs):
                raise RuntimeError(f"{case.name}: the arm {name!r} and this package disagree")


def gradients(out: Tensor, case: Case, weights: Tensor | None) -> tuple[Tensor, ...]:
    return () if weights is None else torch.autograd.grad(out, case.inputs, weights)


def same(ours: Tensor, theirs: Tensor) -> bool:
    """Up to rounding, relative to the largest entry; NaN nowhere."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    if not ours.is_floating_point() or not ours.numel():
        return torch.equal(ours, theirs)
    difference = (ours.double() - theirs.double()).abs().max()
    return bool(difference <= TOLERANCE[ours.dtype] * theirs.double().abs().max().clamp(min=1))


def run_case(case: Case, shape: Mapping[str, int], args: argparse.Namespace, copy: float) -> Iterator[dict[str, Any]]:
    """One result per pass."""
    check_agreement(case)
    for direction, arms, num_bytes in passes(case):
        clock = clock_of(args, case.on_host)
        measured = measure(arms, clock, args.repeats, args.budget)
        others = [name for name in arms if name != OURS]
        baseline = case.baseline or min(others, key=lambda name: measured[name]["ms"])
        ours = measured[OURS]
        speed = num_bytes / ours["ms"] / 1e6
        yield {
            "helper": case.name,
            "pass": direction,
            **shape,
            "bytes": num_bytes,
            "arms": measured,
            "baseline": baseline,
            "ratio": measured[baseline]["ms"] / ours["ms"],
            "ratio_of_minima": measured[baseline]["min_ms"] / ours["min_ms"],
            "gb_per_s": speed,
            "share_of_copy": speed / copy,
            "device_work": count_device_work(arms[OURS]) if isinstance(clock, DeviceClock) else None,
        }


def keep_freed_memory() -> bool:
    """Tells the C library to keep freed memory for later allocations of this process; whether it can."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All problems; prints a line per result."""
    if args.threads:
        torch.set_num_threads(args.threads)
    keeps_memory = args.malloc == "keep" and keep_freed_memory()
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    copy = copy_bandwidth(args)
    report = describe_machine(device) | {
        "load": os.getloadavg(),
        "dtype": args.dtype,
        "clock": args.clock,
        "keeps_freed_memory": keeps_memory,
        "repeats": args.repeats,
        "seed": args.seed,
        "copy_gb_per_s": copy,
        "skipped": [],
        "results": [],
    }
    print(f"{report['device']}, torch {report['torch']}, {report['threads']} threads, copying: {copy:.1f} GB/s")
    problems = [
        (batch, *rest, make_cases) for batch, *rest in itertools.product(args.batch, args.objects, args.channels)
    ]
    problems += [(args.lists, *rest, lambda p: [packing(p)]) for rest in itertools.product(args.objects, args.channels)]
    progress = Progress(len(problems))
    for batch, objects, channels, cases_of in problems:
        progress.step(f"{batch} x {objects} x {channels}")
        problem = make_problem(batch, objects, channels, device, dtype, args.seed)
        shape = {"batch": batch, "objects": objects, "channels": channels}
        for case in cases_of(problem):
            if args.helpers and case.name.partition(" ")[0] not in args.helpers:
                continue
            if max(case.forward_bytes, case.backward_bytes) > args.max_mib * 2**20:
                report["skipped"].append({"helper": case.name, **shape})
                continue
            for result in run_case(case, shape, args, copy):
                report["results"].append(result)
                progress.clear()
                print(line_of(result), flush=True)
    report["summary"] = summary_of(report["results"])
    return report


# -- report --------------------------------------------------------------------------------------------------------


def line_of(result: Mapping[str, Any]) -> str:
    shape = f"B={result['batch']} G={result['objects']} C={result['channels']}"
    ours, other = (result["arms"][name]["ms"] for name in (OURS, result["baseline"]))
    return (
        f"{result['helper']:<44} {result['pass']:<9} {shape:<20} {ours:>10.4f} ms  {other:>10.4f} ms "
        f"{result['baseline']:<32} {result['ratio']:>7.2f}x {result['gb_per_s']:>8.2f} GB/s "
        f"({100 * result['share_of_copy']:.0f} % of copying)"
    )


def summary_of(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per helper and pass: median and worst ratio; for large cases the share of the copy bandwidth, and how much longer
    the backward pass takes than the forward pass."""
    rows = []
    forward_ms = {case_of(r): r["arms"][OURS]["ms"] for r in results if r["pass"] == "forward"}
    for helper, direction in dict.fromkeys((r["helper"], r["pass"]) for r in results):
        group = [r for r in results if (r["helper"], r["pass"]) == (helper, direction)]
        worst = min(group, key=lambda r: r["ratio"])
        large = [r for r in group if r["bytes"] >= LARGE_BYTES]
        shares = [r["share_of_copy"] for r in large]
        slowdowns = [r["arms"][OURS]["ms"] / forward_ms[case_of(r)] for r in large if direction == "backward"]
        rows.append(
            {
                "helper": helper,
                "pass": direction,
                "cases": len(group),
                "slower_than_baseline": sum(r["ratio"] < 1 for r in group),
                "median_ratio": statistics.median(r["ratio"] for r in group),
                "median_ratio_of_minima": statistics.median(r["ratio_of_minima"] for r in group),
                "worst_ratio": worst["ratio"],
                "worst_at": {key: worst[key] for key in ("batch", "objects", "channels", "baseline")},
                "median_share_of_copy_from_16_mib": statistics.median(shares) if shares else None,
                "worst_share_of_copy_from_16_mib": min(shares, default=None),
                "worst_backward_over_forward_from_16_mib": max(slowdowns, default=None),
                "most_device_work": max(
                    (r["device_work"] for r in group if r["device_work"] is not None), default=None
                ),
            }
        )
    return rows


def case_of(result: Mapping[str, Any]) -> tuple:
    return tuple(result[key] for key in ("helper", "batch", "objects", "channels"))


def print_summary(summary: list[dict[str, Any]]) -> None:
    print(f"\n{'helper':<44} {'pass':<9} {'median':>8} {'worst':>8}  {'slower':>9}", end="")
    print("  from 16 MiB on: share of copying, backward over forward (at worst)")
    for row in summary:
        shares = (row["median_share_of_copy_from_16_mib"], row["worst_share_of_copy_from_16_mib"])
        slowdown = row["worst_backward_over_forward_from_16_mib"]
        print(
            f"{row['helper']:<44} {row['pass']:<9} {row['median_ratio']:>7.2f}x {row['worst_ratio']:>7.2f}x  "
            f"{row['slower_than_baseline']:>4}/{row['cases']:<4}"
            + ("" if shares[0] is None else f"  {100 * shares[0]:.0f} % ({100 * shares[1]:.0f} % at worst)")
            + ("" if slowdown is None else f"  {slowdown:.2f}x")
        )


def disturbance(results: list[dict[str, Any]]) -> str:
    """A warning if the repeats of many arms differ more than twofold, else an empty string."""
    spreads = [arm["max_ms"] / arm["min_ms"] for r in results for arm in r["arms"].values() if arm["min_ms"] > 0]
    disturbed = sum(spread > 2 for spread in spreads)
    if disturbed <= len(spreads) / 4:
        return ""
    return f"the repeats of {disturbed} of {len(spreads)} arms differ more than twofold: other work disturbed this run"


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 64, 512], help="samples (default: 8 64 512)")
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 30, 300], help="at most (default: 1 30 300)")
    parser.add_argument("--channels", type=int, nargs="+", default=[1, 16, 256], help="(default: 1 16 256)")
    parser.add_argument("--lists", type=int, default=48, help="lists that combine_data packs (default: 48)")
    parser.add_argument("--helpers", nargs="+", help="time these only (default: all)")
    parser.add_argument(
        "--dtype",
        choices=[str(t).removeprefix("torch.") for t in TOLERANCE],
        default="float32",
        help="of the data (default: %(default)s)",
    )
    parser.add_argument("--repeats", type=int, help="(default: 15; cuda: 50)")
    parser.add_argument("--budget", type=float, default=20, help="seconds per case and pass (default: 20)")
    parser.add_argument("--max-mib", type=int, default=2048, help="skip cases that move more in a pass (default: 2048)")
    parser.add_argument("--threads", type=int, help="threads of torch on the CPU (default: torch's own choice)")
    parser.add_argument(
        "--clock",
        choices=list(CLOCKS),
        default="wall",
        help="wall time, or time on the CPU with --threads 1, for a machine that does other work (default: wall)",
    )
    parser.add_argument(
        "--malloc",
        choices=["keep", "default"],
        default="keep",
        help="keep: glibc's malloc keeps what is freed; default: as it is configured (default: keep)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of what is drawn at random (default: %(default)s)")
    parser.add_argument("--json", help="write the report here")
    args = parser.parse_args(arguments)
    device = args.device.partition(":")[0]
    if device not in COPY_BYTES:
        parser.error(f"--device must be cpu or cuda, got {args.device}")
    if device == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: torch finds no CUDA device on this machine; use --device cpu")
    if args.clock == "process" and (device != "cpu" or args.threads != 1):
        parser.error(f"--clock process needs --device cpu --threads 1, got {args.device} and {args.threads} threads")
    args.repeats = args.repeats or (50 if device == "cuda" else 15)
    for name, values in (("batch", args.batch), ("objects", args.objects), ("channels", args.channels)):
        if min(values) < 1:
            parser.error(f"--{name} must be at least 1, got {values}")
    if args.lists < 1 or args.repeats < 1:
        parser.error(f"--lists and --repeats must be at least 1, got {args.lists} and {args.repeats}")
    return args


def main(arguments: list[str] | None = None) -> int:
    """Runs, prints and writes the report."""
    args = parse_args(arguments)
    report = run(args)
    print_summary(report["summary"])
    if report["skipped"]:
        print(f"{len(report['skipped'])} cases were skipped, since they move more than {args.max_mib} MiB")
    if warning := disturbance(report["results"]):
        report["warning"] = warning
        print(f"warning: {warning}")
    if args.json:
        write_json(report, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
