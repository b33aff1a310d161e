#!/usr/bin/env python
"""The whole idea on one machine: make data, train per-sample and batched, compare, evaluate, time, draw.

In: nothing but the installed package (the mini data set is made if it is not there). Out: a summary on the terminal,
and loss curves, stage chart and detections as PNG in the work directory. Started by `make demo`.

The trainings of an earlier call in the same work directory are replaced when the new ones have ended well; a failed or
interrupted call leaves them.

Example:
    python tools/demo.py --iterations 12 --work-dir work_dirs/short_demo
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import shared.environment  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "configs/streampetr/streampetr_r18-352x128_1xb2-demo_nuscenes-mini{}.py"
RUNS = {"per-sample": CONFIG.format(""), "batched": CONFIG.format("_batched")}
DATA = Path("data/mini")
# Both runs compute in float32 and add up the same terms in another order, so that the losses of a step differ by some
# 1e-7 relative. AdamW divides every gradient by its own size: where a gradient is nothing but rounding, its sign alone
# decides on a full step. So the difference grows up to tenfold a step, until it tips a match and the runs part for
# good; five steps stay below 1e-7 * 10^4. That later losses agree is checked from equal weights, see `time_stages`.
COMPARED_STEPS, TOLERANCE = 5, 1e-3
TRAIN_LINE = re.compile(r"Iter\(train\)\s*\[\s*(\d+)/\s*(\d+)\].*?\bloss: ([-+.\deainf]+)")
TEST_LINE = re.compile(r"\((?:test|val)\)\s*\[\s*(\d+)/\s*(\d+)\]()")


class StepFailed(RuntimeError):
    """A step of the demo ended with an error; the message says which, and where its log is."""


@dataclass(frozen=True)
class Comparison:
    """How far the losses of two runs are apart.

    Attributes:
        largest: Largest relative difference of the total loss within the compared steps.
        step: The step where it is, from 1.
        compared: Number of compared steps.
        overall: The same over all steps.
        key: The loss term with the largest relative difference in the first step, where the weights are still equal.
        first_step: That difference.
    """

    largest: float
    step: int
    compared: int
    overall: float
    key: str
    first_step: float

    @property
    def agrees(self) -> bool:
        """Whether the runs agree within the tolerance."""
        return self.compared > 0 and self.largest <= TOLERANCE


def relative_difference(a: float, b: float) -> float:
    """|a - b| over the larger of both; 0 for two NaN, infinite if one is."""
    if a == b or (a != a and b != b):
        return 0.0
    difference = abs(a - b) / max(abs(a), abs(b))
    return difference if difference == difference else float("inf")


def compare_losses(first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]]) -> Comparison:
    """Compares the losses of two runs step by step.

    Args:
        first: Loss key to one value per step; has the key `loss`, the total.
        second: The same of the other run.

    Raises:
        ValueError: The runs have other keys or other numbers of steps.
    """
    if set(first) != set(second):
        raise ValueError(f"the runs log other losses: {sorted(set(first) ^ set(second))}")
    lengths = {len(values) for run in (first, second) for values in run.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"the runs must have the same number of steps, at least one; got {sorted(lengths)}")
    apart = [relative_difference(a, b) for a, b in zip(first["loss"], second["loss"], strict=True)]
    compared = apart[:COMPARED_STEPS]
    at_start = {key: relative_difference(first[key][0], second[key][0]) for key in first}
    key = max(at_start, key=lambda name: at_start[name])
    largest = max(compared)
    return Comparison(largest, compared.index(largest) + 1, len(compared), max(apart), key, at_start[key])


def read_losses(work_dir: Path) -> dict[str, list[float]]:
    """Loss values per training step that a run logged.

    Args:
        work_dir: Work directory of the run, with one run in it.

    Raises:
        ValueError: The run logged no losses.
    """
    logs = sorted(work_dir.glob("*/vis_data/scalars.json"))
    steps = [json.loads(line) for log in logs[-1:] for line in log.read_text().splitlines() if line.strip()]
    steps = [step for step in steps if "loss" in step]
    if not steps:
        raise ValueError(f"no losses were logged under {work_dir}")
    keys = [key for key in steps[0] if "loss" in key]
    return {key: [step[key] for step in steps] for key in keys}


def read_metrics(work_dir: Path) -> dict[str, float]:
    """mAP and NDS of the last evaluation under a work directory."""
    found: dict[str, float] = {}
    for path in sorted([*work_dir.glob("*/*.json"), *work_dir.glob("*/vis_data/*.json")]):
        for line in path.read_text().splitlines():
            if not line.startswith("{"):
                continue
            try:
                values = json.loads(line)
            except json.JSONDecodeError:
                continue
            found |= {key.rpartition("/")[2]: value for key, value in values.items() if key.endswith(("/mAP", "/NDS"))}
    if not {"mAP", "NDS"} <= set(found):
        raise ValueError(f"no mAP and NDS were logged under {work_dir}")
    return found


@dataclass(frozen=True)
class Step:
    """A tool to run.

    Attributes:
        name: What it does.
        command: Arguments after the Python interpreter.
        log: File for its output.
        progress: Finds (step, steps, loss) in a line; without it, the tool's output is shown as it is.
    """

    name: str
    command: Sequence[str]
    log: Path
    progress: re.Pattern[str] | None = None


def run_steps(*steps: Step) -> None:
    """Runs tools side by side, their outputs going to logs and their progress to the terminal.

    Several tools share the processor's cores evenly. If one fails, the others are stopped.

    Raises:
        StepFailed: A tool ended with an error.
    """
    threads = {} if len(steps) == 1 else {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // len(steps)))}
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **threads}
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with ExitStack() as stack:
        processes = []
        for step in steps:
            step.log.parent.mkdir(parents=True, exist_ok=True)
            start = [sys.executable, *step.command]
            processes.append(stack.enter_context(subprocess.Popen(start, cwd=ROOT, env=environment, **pipe)))
        pool = stack.enter_context(ThreadPoolExecutor(len(steps)))
        for process in processes:
            stack.callback(process.kill)
        for done in as_completed([pool.submit(_follow, *pair) for pair in zip(steps, processes, strict=True)]):
            done.result()


def _follow(step: Step, process: subprocess.Popen[str]) -> None:
    """Reads a tool's output to its end; raises StepFailed if it failed."""
    started = shown = time.monotonic()
    with step.log.open("w") as file:
        for line in process.stdout:
            file.write(line)
            shown = _show(step, line, started, shown)
    if process.wait():
        tail = "".join(f"  | {line}\n" for line in step.log.read_text().splitlines()[-12:])
        raise StepFailed(f"{step.name} failed with status {process.returncode}; its log is {step.log}\n{tail}")


def _show(step: Step, line: str, started: float, shown: float) -> float:
    """Prints a line of a tool, or its progress every five seconds; returns when something was printed last."""
    if step.progress is None:
        print("  " + line.rstrip(), flush=True)
        return shown
    match, now = step.progress.search(line), time.monotonic()
    if match is None or (now - shown < 5 and match[1] != match[2]):
        return shown
    loss = f", loss {match[3]}" if match[3] else ""
    left = (now - started) * (int(match[2]) / int(match[1]) - 1)
    print(f"  {step.name}: {match[1]}/{match[2]}{loss}, {left:.0f} s left", flush=True)
    return now


@contextmanager
def replacing(folder: Path) -> Iterator[None]:
    """Makes room for a new folder, and brings the old one back if an error or an interruption comes.

    Args:
        folder: There or not. The old one waits beside it under another name, also where this process is killed.
    """
    old = folder.with_name(f"{folder.name}.earlier")
    if old.exists():
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.exists():
        folder.rename(old)
    try:
        yield
    except BaseException:
        if old.exists():
            shutil.rmtree(folder, ignore_errors=True)
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


class Demo:
    """The steps of the demo, sharing a work directory.

    Args:
        work_dir: Where everything but the data goes.
        iterations: Training steps of each run.
    """

    def __init__(self, work_dir: Path, iterations: int) -> None:
        self.work_dir = work_dir.absolute()
        self.iterations = iterations
        self.summary: list[str] = []
        self.pictures: list[Path] = []

    def make_data(self) -> None:
        """The mini data set and its info files, unless they are there."""
        infos = [ROOT / DATA / f"nuscenes_infos_{split}.pkl" for split in ("train", "val")]
        if all(path.is_file() for path in infos):
            print(f"  {DATA} is there", flush=True)
            return
        run_steps(Step("making data", ["tools/create_mini.py", "--out", str(DATA)], self._log("create_mini")))
        command = ["tools/create_infos.py", "--data-root", str(DATA), "--version", "v1.0-mini"]
        run_steps(Step("making info files", command, self._log("create_infos")))

    def train(self) -> None:
        """Both versions from one seed, side by side."""
        steps = []
        earlier = [name for name in RUNS if self._folder(name).exists()]
        if earlier:
            print(f"  replaces the earlier results in {_short(self.work_dir)}: {', '.join(earlier)}", flush=True)
        for name, config in RUNS.items():
            folder = self._folder(name)
            options = [
                f"train_cfg.max_iters={self.iterations}",
                f"train_cfg.val_interval={self.iterations + 1}",
                "default_hooks.logger.interval=1",
                f"default_hooks.checkpoint.interval={self.iterations}",
                "log_processor.window_size=1",
                "train_dataloader.num_workers=1",
                "randomness.seed=0",
            ]
            command = ["tools/train.py", config, "--work-dir", str(folder), "--cfg-options", *options]
            steps.append(Step(f"training {name}", command, self._log(f"train_{name}"), TRAIN_LINE))
        with ExitStack() as stack:
            for name in RUNS:
                stack.enter_context(replacing(self._folder(name)))
            run_steps(*steps)

    def compare(self) -> bool:
        """The losses of both versions step by step; draws the curves."""
        from shared.plots import loss_curves

        curves = {name: read_losses(self._folder(name)) for name in RUNS}
        result = compare_losses(*curves.values())
        print(f"  step   {'per-sample':>12} {'batched':>12}  relative difference of the total loss")
        for step in sorted({0, 1, 2, 3, 4, 9, self.iterations - 1} & set(range(len(curves["batched"]["loss"])))):
            a, b = (run["loss"][step] for run in curves.values())
            print(f"  {step + 1:>4}   {a:12.6f} {b:12.6f}  {relative_difference(a, b):.1e}")
        self._picture("loss_curves.png", lambda path: loss_curves(curves, path, _keys_to_draw(curves["batched"])))
        verdict = "agree" if result.agrees else "DISAGREE"
        self.summary += [
            f"losses       {verdict}: at most {result.largest:.1e} relative apart in the first {result.compared} steps "
            f"(tolerance {TOLERANCE:g}), {result.overall:.1e} over all {self.iterations};",
            f"             a term of step 1, where weights are equal, at most {result.first_step:.1e} ({result.key})",
        ]
        return result.agrees

    def evaluate(self) -> None:
        """mAP and NDS of the batched run on the validation scenes."""
        name, folder = "batched", self._folder("batched")
        checkpoint, test_dir = folder / f"iter_{self.iterations}.pth", folder / "test"
        options = [f"test_evaluator.jsonfile_prefix={folder / 'results'}", "test_dataloader.num_workers=2"]
        options += ["default_hooks.logger.interval=1"]
        command = ["tools/test.py", RUNS[name], str(checkpoint), "--work-dir", str(test_dir), "--cfg-options", *options]
        run_steps(Step("evaluating", command, self._log("test"), TEST_LINE))
        metrics = read_metrics(test_dir)
        scores = f"mAP {metrics['mAP']:.4f}, NDS {metrics['NDS']:.4f}"
        self.summary.append(f"validation   {scores} after {self.iterations} steps from random weights")

    def time_stages(self) -> None:
        """The stage table of a training iteration from the trained weights, and of the losses at published sizes."""
        from raggedbev.profiling.report import disturbance

        checkpoint = ["--checkpoint", str(self._folder("batched") / f"iter_{self.iterations}.pth")]
        jobs = {
            "iteration": [
                *(RUNS["batched"], "--scope", "iteration", "--real-data", "--repeats", "3", *checkpoint),
                *("--arms", "published", "batched"),
            ],
            "loss": ["streampetr_r50_704", "--scope", "loss", "--repeats", "3"],
        }
        for scope, arguments in jobs.items():
            report = self.work_dir / f"stages_{scope}.json"
            chart = self.work_dir / f"stages_{scope}.png"
            command = ["tools/benchmark_loss.py", *arguments, "--json", str(report), "--chart", str(chart)]
            run_steps(Step(f"timing the {scope}", command, self._log(f"benchmark_{scope}")))
            self._note_picture(chart)
            measured = json.loads(report.read_text())
            if scope == "iteration":
                apart = measured["agreement"]["losses"]
                self.summary.append(
                    f"losses       after step {self.iterations}, from equal weights: a term at most {apart:.1e} apart"
                )
            ratio = measured["speedup"]
            rows = [row for row in ("Training Iteration", "Loss") if row in ratio]
            faster = ", ".join(f"{row} {ratio[row]:.2f}x" for row in rows)
            self.summary.append(f"time         {measured['speedup_of']}, {_name(measured)}: {faster}")
            if disturbance(measured):
                self.summary.append(f"             warning: {disturbance(measured)}")

    def draw(self) -> None:
        """Detections of the batched run on two validation frames, beside the truth."""
        from matplotlib import image
        from visualize import draw_sample, load_infos, load_predictions

        results = next(self._folder("batched").rglob("results_nusc.json"), None)
        if results is None:
            raise ValueError(f"evaluation left no results_nusc.json under {self._folder('batched')}")
        infos = load_infos(ROOT / DATA / "nuscenes_infos_val.pkl")
        detections = load_predictions(results)
        for number, info in enumerate((infos[len(infos) // 4], infos[-1])):
            found = detections[info["token"]]
            scores = sorted((box["detection_score"] for box in found), reverse=True)
            lowest = scores[min(30, len(scores)) - 1] if scores else 0.0
            picture = draw_sample(info, ROOT / DATA, found, lowest)
            self._picture(f"detections_{number}.png", lambda path, picture=picture: image.imsave(path, picture))

    def _folder(self, run: str) -> Path:
        return self.work_dir / run

    def _log(self, name: str) -> Path:
        return self.work_dir / "logs" / f"{name}.log"

    def _picture(self, name: str, draw: Callable[[Path], None]) -> None:
        path = self.work_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(path)
        self._note_picture(path)

    def _note_picture(self, path: Path) -> None:
        self.pictures.append(_short(path))


def _keys_to_draw(losses: Mapping[str, Sequence[float]]) -> list[str]:
    wanted = ("loss", "loss_cls", "loss_bbox", "dn_loss_cls", "enc_loss_cls")
    return [key for key in wanted if key in losses]


def _short(path: Path) -> Path:
    """A path relative to where the demo was started, if it lies there."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _name(report: Mapping[str, object]) -> str:
    return f"{report['scope']} of {Path(str(report['config'])).stem}, batch {report['batch_size']}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all steps; exit status 1 if one fails or the losses disagree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=10, help="training steps of each run (default: 10)")
    parser.add_argument(
        "--work-dir",
        type=Path,
        default=ROOT / "work_dirs/demo",
        help="its earlier results are replaced (default: work_dirs/demo)",
    )
    args = parser.parse_args(arguments)
    if args.iterations < 1:
        parser.error(f"--iterations must be at least 1, got {args.iterations}")
    demo = Demo(args.work_dir, args.iterations)
    steps = {
        "Data": demo.make_data,
        "Training, per-sample and batched, from one seed": demo.train,
        "The losses, step by step": demo.compare,
        "Evaluation": demo.evaluate,
        "Where the time goes": demo.time_stages,
        "Detections": demo.draw,
    }
    started = time.monotonic()
    agrees = True
    for number, (title, step) in enumerate(steps.items(), 1):
        print(f"[{number}/{len(steps)}] {title} ({time.monotonic() - started:.0f} s so far)", flush=True)
        try:
            agrees = step() is not False and agrees
        except (StepFailed, ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\ndemo: interrupted; earlier trainings are as they were, and the data set stays", file=sys.stderr)
            return 130
    print(f"\nDone in {time.monotonic() - started:.0f} s.")
    print("\n".join(demo.summary))
    print("\n".join(f"{'' if number else 'pictures':<12} {path}" for number, path in enumerate(demo.pictures)))
    print(f"logs         {_short(demo.work_dir / 'logs')}")
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main())
