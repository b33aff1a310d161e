"""Charts of the tools: a benchmark report or loss histories in, PNG files out."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter

from raggedbev.profiling.report import BASELINES, disturbance, main_row, table_rows

_COLORS = {
    "published": "#9aa5b1",
    "reference": "#5b7fa6",
    "per-sample": "#5b7fa6",
    "batched": "#e4672e",
    "batched+graph": "#8f2d56",
    "batched+compile": "#d8a31a",
}
_SHORTEST = 0.002  # of the longest bar
_MORE_COLORS = ("#3f9c74", "#8a63b0", "#c2a33a", "#444b54")


def stage_chart(report: Mapping[str, Any], path: str | Path, title: str | None = None) -> None:
    """Draws the stage table as grouped horizontal bars: a group per row, a bar per arm, the ratio at the end.

    Rows that are too short to be seen are left out; the table has them.

    Args:
        report: Report of the benchmark, see :func:`raggedbev.profiling.report.make_report`.
        path: PNG to write; folders are made.
        title: Headline; default: config, batch size and device.
    """
    arms = report["arms"]
    rows = table_rows(report)
    longest = max((arm.get(row) or 0.0 for arm in arms.values() for row, _, _ in rows), default=1.0) or 1.0
    rows = [row for row in rows if max(arm.get(row[0]) or 0.0 for arm in arms.values()) > _SHORTEST * longest]
    height = 0.8 / len(arms)
    figure, axes = plt.subplots(figsize=(9.5, 1.3 + len(rows) * (0.16 + 0.17 * len(arms))), layout="constrained")
    for number, (name, color) in enumerate(zip(arms, _colors(arms), strict=True)):
        places = [i - 0.4 + height * (number + 0.5) for i in range(len(rows))]
        values = [arms[name].get(row) or 0.0 for row, _, _ in rows]
        axes.barh(places, values, height * 0.92, color=color, label=name)
        for place, value in zip(places, values, strict=True):
            axes.text(value + longest * 0.006, place, _milliseconds(value), va="center", fontsize=7, color="#333333")
    for place, (row, _, _) in enumerate(rows):
        if row in report["speedup"]:
            ratio = f"{report['speedup'][row]:.1f}x"
            axes.text(longest * 1.19, place, ratio, va="center", ha="right", fontsize=9, fontweight="bold")
    axes.set_yticks(range(len(rows)), ["    " * depth + label for _, label, depth in rows])
    axes.tick_params(axis="y", length=0)
    for tick in axes.get_yticklabels():
        tick.set_horizontalalignment("left")
    axes.tick_params(axis="y", pad=_label_width(rows))
    axes.set_xlim(0, longest * 1.2)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    repeats = report.get("repeats", "?")
    axes.set_xlabel(f"milliseconds, median of {repeats} repeats; at the right: {report['speedup_of']}")
    headline = title or f"{Path(report['config']).stem}, batch {report['batch_size']}\n{report['device']}"
    axes.set_title("\n".join([*_warning(report), headline]), fontsize=10, loc="left")
    _name_origin(figure, report)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(arms), frameon=False, fontsize=8)
    _save(figure, path)


def growth_chart(report: Mapping[str, Any], path: str | Path) -> None:
    """Draws what batch sizes cost: time, how many times faster, and peak memory, over the batch size.

    Args:
        report: Report with a ``sweep``, see :func:`raggedbev.profiling.report.join_sweep`.
        path: PNG to write; folders are made.
    """
    sweep, row = report["sweep"], main_row(report)
    sizes, arms = [int(size) for size in sweep], list(report["arms"])
    figure, (time, faster, memory) = plt.subplots(1, 3, figsize=(11.0, 3.6), layout="constrained")
    for name, color in zip(arms, _colors(arms), strict=True):
        style = {"color": color, "marker": "o", "markersize": 4, "linewidth": 4.0 if name == arms[0] else 1.6}
        time.plot(sizes, [entry["arms"][name][row] for entry in sweep.values()], label=name, **style)
        memory.plot(sizes, [entry["arms"][name]["peak_memory_mib"] for entry in sweep.values()], **style)
        for slower, line in zip(BASELINES, ("-", "--"), strict=True):
            if name in BASELINES or slower not in report["speedups"]:
                continue
            ratios = [entry["speedups"][slower][name][row] for entry in sweep.values()]
            faster.plot(sizes, ratios, linestyle=line, label=f"{name} over {slower}", **style)
            faster.annotate(
                f"{ratios[-1]:.1f}x", (sizes[-1], ratios[-1]), (4, 0), textcoords="offset points", fontsize=8
            )
    titles = (f"{row}, ms", "times faster", "peak memory, MiB")
    for plot, title in zip((time, faster, memory), titles, strict=True):
        plot.set_xscale("log", base=2)
        plot.set_xticks(sizes, [str(size) for size in sizes])
        plot.set_xlabel("batch size")
        plot.set_title(title, fontsize=10, loc="left")
        plot.grid(axis="y", linewidth=0.3)
        plot.spines[["top", "right"]].set_visible(False)
    for plot in (time, memory):
        plot.set_yscale("log")
        plot.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        plot.yaxis.set_major_formatter("{x:g}")
        plot.yaxis.set_minor_formatter(NullFormatter())
    faster.set_ylim(bottom=0)
    for plot in (time, faster):
        if plot.get_legend_handles_labels()[0]:
            plot.legend(frameon=False, fontsize=8, handlelength=3.5)
    headline = f"{Path(report['config']).stem}, {report['device']}"
    figure.suptitle("\n".join([headline, *_warning(report)]), fontsize=10, x=0.01, ha="left")
    _name_origin(figure, report)
    _save(figure, path)


def loss_curves(
    curves: Mapping[str, Mapping[str, Sequence[float]]], path: str | Path, keys: Sequence[str] = ("loss",)
) -> None:
    """Draws losses over training steps, run by run, and below them how far the runs are apart.

    Args:
        curves: Run name to loss key to one value per step.
        path: PNG to write; folders are made.
        keys: Losses to draw, one column each.
    """
    layout = {"sharex": True, "squeeze": False, "height_ratios": (3, 1), "layout": "constrained"}
    figure, axes = plt.subplots(2, len(keys), figsize=(4.2 * len(keys), 5.2), **layout)
    names = list(curves)
    for column, key in enumerate(keys):
        top, bottom = axes[:, column]
        for number, (name, color) in enumerate(zip(names, _colors(names), strict=True)):
            values = curves[name][key]
            style = {"linewidth": 3.2, "alpha": 0.55} if number == 0 else {"linewidth": 1.2}
            top.plot(range(1, len(values) + 1), values, color=color, label=name, **style)
        first = curves[names[0]][key]
        for name, color in list(zip(names, _colors(names), strict=True))[1:]:
            apart = [max(_relative(a, b), 1e-9) for a, b in zip(curves[name][key], first, strict=False)]
            bottom.semilogy(range(1, len(apart) + 1), apart, color=color, linewidth=1.2)
        bottom.grid(axis="y", linewidth=0.3)
        bottom.set_xlabel("step")
        top.set_title(key, fontsize=10)
        for plot in (top, bottom):
            plot.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("loss")
    axes[1, 0].set_ylabel("relative difference")
    axes[0, 0].legend(frameon=False)
    _save(figure, path)


def data_chart(report: Mapping[str, Any], path: str | Path) -> None:
    """Draws the loader benchmark: at the left the time of one frame, at the right samples per second.

    Args:
        report: what `benchmark_data.py` writes.
        path: PNG to write; folders are made.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(12.5, 4.6), layout="constrained", width_ratios=(1, 1.15))
    frame = report["frame"]
    times = [row["milliseconds"] for row in frame.values()]
    colors = [_COLORS["batched" if name.startswith("turbo") else "published"] for name in frame]
    left.barh(range(len(frame)), times, 0.72, color=colors)
    left.set_yticks(range(len(frame)), list(frame))
    left.invert_yaxis()
    for place, row in enumerate(frame.values()):
        label = f"{_milliseconds(row['milliseconds'])} ms, {row['over_mmcv']:.1f}x"
        left.text(row["milliseconds"] + max(times) * 0.01, place, label, va="center", fontsize=8)
    left.set_xlim(0, max(times) * 1.28)
    width, height = report["result_size"]
    left.set_xlabel("milliseconds; ratio to mmcv")
    left.set_title(f"Six images read, decoded, resized to {width}x{height}", fontsize=10, loc="left")

    rows = report["loader"]
    for offset, name, color in ((-0.2, "stock", _COLORS["published"]), (0.2, "turbo", _COLORS["batched"])):
        rates = [row[name]["samples_per_second"] for row in rows]
        right.bar([i + offset for i in range(len(rows))], rates, 0.38, color=color, label=name)
    highest = max(row[name]["samples_per_second"] for row in rows for name in ("stock", "turbo"))
    for place, row in enumerate(rows):
        top = max(row["stock"]["samples_per_second"], row["turbo"]["samples_per_second"]) + highest * 0.02
        right.text(place, top, f"{row['ratio']:.1f}x", ha="center", fontsize=9, fontweight="bold")
    right.set_xticks(range(len(rows)), [row["workers"] for row in rows])
    kinds = [row["pipeline"] for row in rows]
    for kind in dict.fromkeys(kinds):
        middle = kinds.index(kind) + (kinds.count(kind) - 1) / 2
        right.annotate(kind, (middle, 0), (0, -24), textcoords="offset points", ha="center", annotation_clip=False)
    right.set_xlabel("pipeline, number of workers", labelpad=16)
    right.set_ylim(0, highest * 1.12)
    right.set_ylabel("samples per second")
    right.set_title(f"Loader, batch {report['batch_size']}; {report['device']}", fontsize=10, loc="left")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _warning(report: Mapping[str, Any]) -> list[str]:
    """Lines of a headline that say why the figures are not to be quoted."""
    reason = disturbance(report)
    return textwrap.wrap(f"warning: {reason}", 100) if reason else []


def _name_origin(figure: Any, report: Mapping[str, Any]) -> None:
    """Date and command in small letters below the plots."""
    origin = ", ".join(str(report[key])[:length] for key, length in (("date", 16), ("command", None)) if key in report)
    figure.supxlabel(textwrap.fill(origin, 160), x=0.01, ha="left", fontsize=6, color="#777777")


def _relative(a: float, b: float) -> float:
    return abs(a - b) / max(abs(b), 1e-12)


def _colors(names: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """A fixed colour for the usual arms, the others in turn."""
    others = iter(_MORE_COLORS * len(names))
    return [_COLORS.get(name) or next(others) for name in names]


def _milliseconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _label_width(rows: Sequence[tuple[str, str, int]]) -> float:
    """Points from the axis to the start of left-aligned row labels."""
    return 6.0 * max((len(label) + 4 * 0.5 * depth for _, label, depth in rows), default=0) + 4.0


def _save(figure: Any, path: str | Path) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    plt.close(figure)
