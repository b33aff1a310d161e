"""The benchmark's report: stage times per arm and repeat in, medians, ratios, a text table and JSON out.

Rows follow the published stage table: Training Iteration > {Forward > {Remaining, Loss > {StreamPETR Head,
Focal Head}}, Optimization, Remaining}, with Data before Forward where a step loads its batch. Stages inside one of
these get its name in front: ``"Focal Head > cost"``.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from raggedbev.profiling.stages import StagePath

ITERATION, FORWARD, OPTIMIZATION, REMAINING = "Training Iteration", "Forward", "Optimization", "Remaining"
DATA = "Data"
LOSS, HEAD_3D, HEAD_2D = "Loss", "StreamPETR Head", "Focal Head"
FORWARD_REMAINING = f"{FORWARD} > {REMAINING}"
BASELINES = ("published", "reference")
_FEWEST_REPEATS = 3
_INNER_ORDER = ("GT packing", "cost", "matching", "targets", "loss terms", "backward", "step")
MAIN_ROWS = (ITERATION, DATA, FORWARD, FORWARD_REMAINING, LOSS, HEAD_3D, HEAD_2D, OPTIMIZATION, REMAINING)
_MEASURED_MAIN = frozenset(MAIN_ROWS) - {FORWARD_REMAINING, REMAINING}
_INDENT = {
    ITERATION: 0,
    DATA: 1,
    FORWARD: 1,
    FORWARD_REMAINING: 2,
    LOSS: 2,
    HEAD_3D: 3,
    HEAD_2D: 3,
    OPTIMIZATION: 1,
    REMAINING: 1,
}


def rows_of(milliseconds: Mapping[StagePath, float]) -> dict[str, float]:
    """Turns the stage paths of one repeat into rows of the table, with the remainders worked out.

    Args:
        milliseconds: Time per path, as :meth:`raggedbev.profiling.StageTimer.milliseconds` gives it.

    Returns:
        Milliseconds per row; a row that is reached by several paths holds their sum.
    """
    rows: dict[str, float] = {}
    for path, spent in milliseconds.items():
        start = max((i for i, name in enumerate(path) if name in _MEASURED_MAIN), default=0)
        row = " > ".join(path[start:])
        rows[row] = rows.get(row, 0.0) + spent
    if FORWARD in rows:
        rows[FORWARD_REMAINING] = rows[FORWARD] - rows.get(LOSS, 0.0)
    if ITERATION in rows:
        rows[REMAINING] = rows[ITERATION] - sum(rows.get(row, 0.0) for row in (DATA, FORWARD, OPTIMIZATION))
    return rows


@dataclass
class Arm:
    """What was measured of one arm.

    Attributes:
        repeats: Rows of every timed repeat, milliseconds.
        host_syncs: Waits of the host for the device in one repeat, forward and backward.
        peak_memory_mib: Memory that torch had allocated for a repeat at most, MiB; see ``peak_memory``.
    """

    repeats: list[dict[str, float]] = field(default_factory=list)
    host_syncs: int | None = None
    peak_memory_mib: float | None = None

    def medians(self) -> dict[str, float]:
        """Median per row over the repeats; a repeat that never entered a stage counts 0 there."""
        rows = dict.fromkeys(row for repeat in self.repeats for row in repeat)
        return {row: statistics.median(repeat.get(row, 0.0) for repeat in self.repeats) for row in rows}


def make_report(
    arms: Mapping[str, Arm],
    *,
    device: str | torch.device,
    config: str,
    batch_size: int,
    scope: str,
    baseline: str,
    target: str,
    **details: Any,
) -> dict[str, Any]:
    """Builds the JSON report.

    Args:
        arms: What was measured, by arm name.
        device: Where it ran.
        config: Preset name or config path.
        batch_size: Samples per iteration.
        scope: ``"loss"`` or ``"iteration"``.
        baseline: Arm whose times are the numerators of ``speedup``.
        target: Arm whose times are the denominators.
        details: More entries for the top level (repeats, agreement of the losses, ...).

    Returns:
        The report. Main rows that the scope does not measure are ``None``.
    """
    report = describe_machine(device)
    report.update(config=config, batch_size=batch_size, scope=scope, **details)
    report["arms"] = {}
    for name, arm in arms.items():
        medians = arm.medians()
        rows = dict.fromkeys(MAIN_ROWS) | {row: round(spent, 4) for row, spent in medians.items()}
        report["arms"][name] = rows | {"host_syncs": arm.host_syncs, "peak_memory_mib": arm.peak_memory_mib}
    report["speedup"] = speedup(arms[baseline].medians(), arms[target].medians())
    report["speedup_of"] = f"{target} over {baseline}"
    report["speedups"] = {
        slower: {name: speedup(arms[slower].medians(), arm.medians()) for name, arm in arms.items() if name != slower}
        for slower in BASELINES
        if slower in arms
    }
    report["spread"] = {name: _spread(arm) for name, arm in arms.items()}
    return report


def speedup(baseline: Mapping[str, float], target: Mapping[str, float]) -> dict[str, float]:
    """Ratio of the times per row that both have: above 1 the target is faster."""
    return {row: round(spent / target[row], 3) for row, spent in baseline.items() if target.get(row, 0.0) > 0.0}


def describe_machine(device: str | torch.device) -> dict[str, Any]:
    """Device, versions and date, for the top of a report."""
    kind = torch.device(device).type
    on_cuda = kind == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_cuda else f"cpu: {_cpu_name()}, {os.cpu_count()} cores",
        "device_type": kind,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if on_cuda else None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def write_json(report: Mapping[str, Any], path: str | Path) -> None:
    """Writes the report; folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")


def format_table(report: Mapping[str, Any]) -> str:
    """The stage table as text: a line per row, a column per arm, then the ratio of the report's ``speedup``."""
    arms, target = report["arms"], report["speedup_of"].partition(" over ")[0]
    ratios = {
        f"over {slower}": {row: f"{value:.2f}x" for row, value in faster[target].items()}
        for slower, faster in report["speedups"].items()
        if target in faster
    }
    labels = {row: "  " * depth + label for row, label, depth in table_rows(report)}
    width = max(len(label) for label in [*labels.values(), "host syncs", "peak memory, MiB"])
    columns = [max(len(name), 10) for name in arms]
    header = " " * width + "".join(f"  {n:>{w}}" for n, w in zip(arms, columns, strict=True))
    header += "".join(f"  {name:>14}" for name in ratios)
    lines = [header, "ms".ljust(len(header), "-")]
    for row, label in labels.items():
        cells = [_cell(arm.get(row), w, 2) for arm, w in zip(arms.values(), columns, strict=True)]
        cells += [f"  {ratio.get(row, ''):>14}" for ratio in ratios.values()]
        lines.append(f"{label:<{width}}{''.join(cells)}")
    for key, label, digits in (("host_syncs", "host syncs", 0), ("peak_memory_mib", "peak memory, MiB", 1)):
        if any(arm.get(key) is not None for arm in arms.values()):
            cells = [_cell(arm.get(key), w, digits) for arm, w in zip(arms.values(), columns, strict=True)]
            lines.append(f"{label:<{width}}{''.join(cells)}")
    repeats = f"medians of {report.get('repeats', '?')} interleaved repeats"
    lines.append(f"over ...: how many times faster {target} is; {repeats}" if ratios else repeats)
    return "\n".join(line.rstrip() for line in lines)


def join_sweep(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One report of several batch sizes.

    Args:
        reports: One per batch size, of the same arms.

    Returns:
        The report of batch size 8, or of the largest, with all of them under ``sweep`` by batch size.
    """
    by_size = {report["batch_size"]: report for report in sorted(reports, key=lambda report: report["batch_size"])}
    main = by_size.get(8, by_size[max(by_size)])
    sweep = {str(size): {key: report[key] for key in _OF_A_BATCH if key in report} for size, report in by_size.items()}
    return {**main, "sweep": sweep}


_OF_A_BATCH = (
    *("arms", "speedup", "speedups", "spread", "agreement"),
    *("objects_per_sample", "objects_2d", "first_call_s"),
)


def format_sweep(report: Mapping[str, Any]) -> str:
    """The sweep as text: for each batch size the main row's time by arm, ratios, and peak memory by arm."""
    sweep = report["sweep"]
    arms = list(report["arms"])
    row = main_row(report)
    ratios = [(slower, name) for slower in report["speedups"] for name in arms if name not in BASELINES]
    heads = [f"{name}, ms" for name in arms] + [f"{name} / {slower[:3]}." for slower, name in ratios]
    heads += [f"{name}, MiB" for name in arms]
    widths = [max(len(head), 9) for head in heads]
    lines = [f"{row}, batch  " + "  ".join(f"{head:>{w}}" for head, w in zip(heads, widths, strict=True))]
    for size, entry in sweep.items():
        cells = [f"{entry['arms'][name][row]:.2f}" for name in arms]
        cells += [f"{entry['speedups'][slower][name].get(row, 0.0):.2f}x" for slower, name in ratios]
        cells += [f"{entry['arms'][name]['peak_memory_mib']:.1f}" for name in arms]
        start = size.rjust(len(row) + 7) + "  "
        lines.append(start + "  ".join(f"{cell:>{w}}" for cell, w in zip(cells, widths, strict=True)))
    return "\n".join(lines)


def main_row(report: Mapping[str, Any]) -> str:
    """The whole of what the report's scope measures."""
    return ITERATION if report["scope"] == "iteration" else LOSS


def disturbance(report: Mapping[str, Any]) -> str:
    """Why the figures of a report are not to be quoted, in one sentence; an empty string where nothing is known.

    Reasons are repeats of one arm that differ more than twofold, fewer than three repeats, and on the CPU a process
    that ran for less than seven tenths of the time that passed.
    """
    ranges = [
        limits for rows in report["spread"].values() for limits in (rows.get(ITERATION) or rows.get(LOSS),) if limits
    ]
    worst = max((high / low for low, high in ranges if low > 0), default=1.0)
    share = report.get("processor_share")
    busy = []
    if worst >= 2.0:
        busy.append(f"the repeats of one arm differ {worst:.1f}-fold")
    if share is not None and share < 0.7 and report.get("clock") != "process":
        busy.append(f"the process ran for {share:.0%} of the time only")
    reasons = [" and ".join(busy) + ": other work disturbed this run"] if busy else []
    if report.get("repeats", _FEWEST_REPEATS) < _FEWEST_REPEATS:
        reasons.append(f"the medians are of fewer than {_FEWEST_REPEATS} repeats")
    if not reasons:
        return ""
    advice = "; --threads 1 suffers least from other work" if busy and report["device_type"] == "cpu" else ""
    return f"{'; '.join(reasons)}; do not quote it{advice}"


def table_rows(report: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """Rows that some arm has, in the order of the published table, inner stages under their main row.

    Returns:
        (row, label without its parent, depth) per line.
    """
    present = dict.fromkeys(row for arm in report["arms"].values() for row, value in arm.items() if value is not None)
    mains = [row for row in MAIN_ROWS if row in present]
    base = min((_INDENT[row] for row in mains), default=0)
    rows = []
    for main in mains:
        rows.append((main, main.rpartition(" > ")[2], _INDENT[main] - base))
        if main in _MEASURED_MAIN:
            inner = [row for row in present if row.startswith(f"{main} > ") and row not in MAIN_ROWS]
            rows += [
                (row, row.rpartition(" > ")[2], _INDENT[main] - base + row.count(" > "))
                for row in _children_under_parents(inner)
            ]
    return rows


def _children_under_parents(rows: Sequence[str]) -> list[str]:
    """Orders ``a > b`` rows so that every row follows its parent; siblings as work flows, others as given."""
    known = {name: position for position, name in enumerate(_INNER_ORDER)}
    given = {row: len(known) + position for position, row in enumerate(rows)}

    def key(row: str) -> list[int]:
        parts = row.split(" > ")
        return [known.get(name, given.get(" > ".join(parts[: i + 1]), -1)) for i, name in enumerate(parts)]

    return sorted(rows, key=key)


def _cell(value: float | None, width: int, digits: int) -> str:
    return f"  {'-' if value is None else f'{value:.{digits}f}':>{width}}"


def _spread(arm: Arm) -> dict[str, list[float]]:
    """Fastest and slowest repeat of the main rows, ms: tells how much the machine was disturbed."""
    measured = [row for row in MAIN_ROWS if any(row in repeat for repeat in arm.repeats)]
    return {
        row: [round(pick(repeat.get(row, 0.0) for repeat in arm.repeats), 4) for pick in (min, max)] for row in measured
    }


def _cpu_name() -> str:
    """The processor's own name where Linux tells it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
