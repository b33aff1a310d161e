"""Makes the whole data set on several processes and puts it in place in one step.

In: target folder and sizes. Out: files on disk. Everything is written next to the target first, so an interrupted
run leaves no half data set behind.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from . import lidar, render, scenery
from .layout import Scene, make_scene, scene_names
from .models import MODELS
from .rig import CAMERA_MOUNTS, LIDAR_CHANNEL
from .tables import VERSION, FrameRecord, build_tables, file_name

MARKER = "synthetic.json"
GENERATOR = 3  # raised whenever the same seed gives other bytes
MAX_FRAMES = 80  # keeps the common map within a few thousand metres
JPEG_QUALITY = 85
BYTES_PER_FRAME = 1_700_000
MAP_RESOLUTION = 0.1  # metres per pixel, as the devkit expects

Job = tuple[int, int]  # scene and keyframe


def make_dataset(out: Path, scenes: int, frames: int, seed: int, workers: int, quiet: bool = False) -> bool:
    """Write a data set.

    Args:
        out: data root to make; must be missing, empty, or a data set of this tool, which is replaced.
        scenes: 1..10.
        frames: keyframes per scene, 2..80.
        seed: everything random follows from it.
        workers: processes.
        quiet: no progress bar.

    Returns:
        False if `out` already held exactly this data set, in which case nothing is done.

    Raises:
        ValueError: an argument is out of range, or `out` holds something else.
        OSError: not enough disk space, or writing failed.
    """
    names = scene_names(scenes)
    if not 2 <= frames <= MAX_FRAMES:
        raise ValueError(f"frames must lie in 2..{MAX_FRAMES}, got {frames}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    out = out.resolve()
    recipe = {"generator": GENERATOR, "scenes": scenes, "frames": frames, "seed": seed}
    if _recipe_of(out) == recipe:
        return False
    partial, old = out.with_name(out.name + ".partial"), out.with_name(out.name + ".old")
    for leftover in (partial, old):
        if _recipe_of(leftover) is not None:
            shutil.rmtree(leftover)
    _check_space(out, scenes * frames * BYTES_PER_FRAME)
    try:
        _write(partial, recipe, [make_scene(seed, i, name, frames) for i, name in enumerate(names)], workers, quiet)
        if out.exists():
            out.rename(old)
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    return True


def _recipe_of(folder: Path) -> dict | None:
    """The recipe a data set of this tool was made with; None where there is nothing yet."""
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    if not any(folder.iterdir()):
        return None
    marker = folder / MARKER
    if not marker.is_file():
        raise ValueError(f"{folder} holds something other than a data set of this tool; choose another folder")
    try:
        return json.loads(marker.read_text())
    except json.JSONDecodeError:
        return {}


def _check_space(out: Path, needed: int) -> None:
    parent = next(p for p in (out, *out.parents) if p.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise OSError(f"{parent} has {free / 1e6:.0f} MB of free space, the data set needs about {needed / 1e6:.0f} MB")


def _write(root: Path, recipe: dict, scenes: list[Scene], workers: int, quiet: bool) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / MARKER).write_text(json.dumps(recipe))
    for channel in [mount[0] for mount in CAMERA_MOUNTS] + [LIDAR_CHANNEL]:
        (root / "samples" / channel).mkdir(parents=True)
    jobs = [(i, k) for i, scene in enumerate(scenes) for k in range(len(scene.times))]
    results = _run(jobs, root, scenes, workers)
    found = dict(results if quiet else progress(results, len(jobs), "keyframes"))
    records = [[found[i, k] for k in range(len(scene.times))] for i, scene in enumerate(scenes)]
    tables = build_tables(scenes, records, recipe["seed"])
    (root / VERSION).mkdir()
    for name, rows in tables.items():
        (root / VERSION / f"{name}.json").write_text(json.dumps(rows, indent=0))
    _write_map(root / tables["map"][0]["filename"], scenes)


def _run(jobs: list[Job], root: Path, scenes: list[Scene], workers: int) -> Iterator[tuple[Job, FrameRecord]]:
    """Observe all keyframes, in this process for one worker, else in a pool; results come in any order."""
    if workers == 1:
        observer = _Observer(root, scenes)
        yield from map(observer.observe, jobs)
        return
    # A fresh process each: forking one that has used OpenCV's threads can hang.
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(workers, len(jobs)), _start_worker, (root, scenes)) as pool:
        yield from pool.imap_unordered(_observe, jobs)


class _Observer:
    """Writes the files of single keyframes."""

    def __init__(self, root: Path, scenes: list[Scene]) -> None:
        self.root, self.scenes = root, scenes
        # Jobs come scene by scene, so one backdrop at a time is enough.
        self.backdrop = lru_cache(maxsize=1)(lambda index: render.make_backdrop(scenes[index]))

    def observe(self, job: Job) -> tuple[Job, FrameRecord]:
        index, frame = job
        scene, backdrop = self.scenes[index], self.backdrop(index)
        corners = render.world_corners(backdrop, frame)
        ego = scene.ego_pose(scene.times[frame])
        shadow = render.shadow_map(backdrop, corners, ego)
        annotated = sum(thing.annotated for thing in scene.things)
        seen, alone, points = np.zeros(annotated, int), np.zeros(annotated, int), np.zeros(annotated, int)
        for sensor in scene.rig:
            if sensor.is_camera:
                pose = scene.ego_pose(scene.times[frame] + sensor.delay * 1e-6)
                view = render.render(backdrop, sensor, pose, corners, shadow)
                seen += view.seen[:annotated]
                alone += view.alone[:annotated]
                data = cv2.imencode(".jpg", view.image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
            else:
                cloud = lidar.sweep(scene, frame, sensor, ego, corners)
                points = lidar.count_points(scene, frame, sensor, ego, cloud)
                data = cloud.tobytes()
            (self.root / file_name(scene, frame, sensor)).write_bytes(data)
        return job, FrameRecord(seen, alone, points)


_workers: list[_Observer] = []  # the observer of this worker process


def _start_worker(root: Path, scenes: list[Scene]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's business
    cv2.setNumThreads(1)
    _workers[:] = [_Observer(root, scenes)]


def _observe(job: Job) -> tuple[Job, FrameRecord]:
    return _workers[0].observe(job)


def _write_map(path: Path, scenes: list[Scene]) -> None:
    """One mask of the road surface for all scenes; the devkit's origin is the lower left corner."""
    high = np.max([scene.road.xy.max(0) for scene in scenes], axis=0) + 80.0
    width, height = np.ceil(high / MAP_RESOLUTION).astype(int)
    mask = np.zeros((height, width), np.uint8)
    for scene in scenes:
        scenery.paint_drivable(scene, mask, np.zeros(2), MAP_RESOLUTION, 255)
    path.parent.mkdir()
    if not cv2.imwrite(str(path), cv2.flip(mask, 0), [cv2.IMWRITE_PNG_COMPRESSION, 3]):
        raise OSError(f"cannot write {path}")


def progress(items: Iterable, total: int, unit: str) -> Iterator:
    """Pass items on; a bar with the remaining time on a terminal, a line every tenth part elsewhere (stderr)."""
    begin = shown = time.monotonic()
    terminal = sys.stderr.isatty()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        text = f"{done}/{total} {unit}, {now - begin:.0f} s, {(now - begin) / done * (total - done):.0f} s left"
        if terminal and (now - shown > 0.2 or done == total):
            shown = now
            print(f"\r[{'#' * (30 * done // total):<30}] {text} ", end="", file=sys.stderr, flush=True)
        elif not terminal and done * 10 // total > (done - 1) * 10 // total:
            print(text, file=sys.stderr, flush=True)
    if terminal:
        print(file=sys.stderr)


def summary(root: Path) -> str:
    """Counts of a finished data set, as text for people."""
    names = ("scene", "sample", "instance", "sample_annotation", "category")
    tables = {name: json.loads((root / VERSION / f"{name}.json").read_text()) for name in names}
    categories = {row["token"]: row["name"] for row in tables["category"]}
    kinds = {row["token"]: categories[row["category_token"]] for row in tables["instance"]}
    counts = Counter(kinds[row["instance_token"]] for row in tables["sample_annotation"])
    lines = [
        f"{len(tables['scene'])} scenes, {len(tables['sample'])} keyframes, {len(tables['instance'])} objects, "
        f"{len(tables['sample_annotation'])} boxes:"
    ]
    order = dict.fromkeys(model.category for model in MODELS.values() if model.category)
    lines += [f"  {name:<28}{counts[name]:>6}" for name in order]
    return "\n".join(lines)
