"""Makes the whole data set on several processes and puts it in place in one step.

In: target folder and sizes. Out: files on disk. Everything is written next to the target first, so an interrupted
run leaves no half data set behind.
"""
from __future__ import annotations

import json
import multiprocessing
import shutil
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
GENERATOR = 1  # raised whenever the same seed gives other bytes
JPEG_QUALITY = 85
BYTES_PER_FRAME = 1_700_000
MAP_RESOLUTION = 0.1  # metres per pixel, as the devkit expects


def make_dataset(out: Path, scenes: int, frames: int, seed: int, workers: int, quiet: bool = False) -> bool:
    """Write a data set.

    Args:
        out: data root to make; must be missing, empty, or a data set of this tool, which is replaced.
        scenes: 1..10.
        frames: keyframes per scene, at least 2.
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
    if frames < 2:
        raise ValueError(f"frames must be at least 2, got {frames}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    recipe = {"generator": GENERATOR, "scenes": scenes, "frames": frames, "seed": seed}
    found = _recipe_of(out)
    if found == recipe:
        return False
    partial = out.with_name(out.name + ".partial")
    _recipe_of(partial)
    _check_space(out, scenes * frames * BYTES_PER_FRAME)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write(partial, recipe, [make_scene(seed, i, name, frames) for i, name in enumerate(names)], workers, quiet)
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
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
        raise ValueError(f"{folder} holds something other than a data set of this tool; choose another --out")
    return json.loads(marker.read_text())


def _check_space(out: Path, needed: int) -> None:
    parent = next(p for p in (out, *out.absolute().parents) if p.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise OSError(f"{parent} has {free / 1e6:.0f} MB of free space, the data set needs about {needed / 1e6:.0f} MB")


def _write(root: Path, recipe: dict, scenes: list[Scene], workers: int, quiet: bool) -> None:
    root.mkdir(parents=True)
    (root / MARKER).write_text(json.dumps(recipe))
    for channel in [mount[0] for mount in CAMERA_MOUNTS] + [LIDAR_CHANNEL]:
        (root / "samples" / channel).mkdir(parents=True)
    jobs = [(i, k) for i, scene in enumerate(scenes) for k in range(len(scene.times))]
    records: list[list[FrameRecord]] = [[None] * len(scene.times) for scene in scenes]
    results = _run(jobs, root, scenes, workers)
    for (i, k), record in results if quiet else progress(results, len(jobs), "frames"):
        records[i][k] = record
    tables = build_tables(scenes, records, recipe["seed"])
    (root / VERSION).mkdir()
    for name, rows in tables.items():
        (root / VERSION / f"{name}.json").write_text(json.dumps(rows, indent=0))
    _write_map(root / tables["map"][0]["filename"], scenes)


def _run(
    jobs: list[tuple[int, int]], root: Path, scenes: list[Scene], workers: int
) -> Iterator[tuple[tuple[int, int], FrameRecord]]:
    """Observe all frames, in this process for one worker, else in a pool; results come in any order."""
    if workers == 1:
        _start_worker(root, scenes)
        yield from map(_observe, jobs)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(workers, len(jobs)), _start_worker, (root, scenes)) as pool:
        yield from pool.imap_unordered(_observe, jobs)


_state: dict[str, object] = {}


def _start_worker(root: Path, scenes: list[Scene]) -> None:
    cv2.setNumThreads(1)
    _state.update(root=root, scenes=scenes)
    _backdrop.cache_clear()


@lru_cache(maxsize=1)
def _backdrop(index: int) -> render.Backdrop:
    return render.make_backdrop(_state["scenes"][index])


def _observe(job: tuple[int, int]) -> tuple[tuple[int, int], FrameRecord]:
    """Write the files of one keyframe."""
    index, frame = job
    root, scene, backdrop = _state["root"], _state["scenes"][index], _backdrop(index)
    corners = render.world_corners(backdrop, frame)
    ego = scene.ego_pose(scene.times[frame])
    shadow = render.shadow_map(backdrop, corners, ego)
    annotated = sum(thing.annotated for thing in scene.things)
    seen, alone, points = np.zeros(annotated, int), np.zeros(annotated, int), np.zeros(annotated, int)
    for sensor in scene.rig:
        path = root / file_name(scene, frame, sensor)
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
        path.write_bytes(data)
    return job, FrameRecord(seen, alone, points)


def _write_map(path: Path, scenes: list[Scene]) -> None:
    """One mask of the road surface for all scenes; the devkit's origin is the lower left corner."""
    high = np.max([scene.road.xy.max(0) for scene in scenes], axis=0) + 60.0
    width, height = np.ceil(high / MAP_RESOLUTION).astype(int)
    mask = np.zeros((height, width), np.uint8)
    for scene in scenes:
        scenery.paint_drivable(scene, mask, np.zeros(2), MAP_RESOLUTION, 255)
    path.parent.mkdir()
    mask = (mask[::-1] > 127).astype(np.uint8) * 255
    if not cv2.imwrite(str(path), mask, [cv2.IMWRITE_PNG_BILEVEL, 1]):
        raise OSError(f"cannot write {path}")


def progress(items: Iterable, total: int, unit: str) -> Iterator:
    """Pass items on and draw a bar with the remaining time on stderr."""
    begin = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        spent = time.monotonic() - begin
        left = spent / done * (total - done)
        bar = "#" * (30 * done // total)
        print(f"\r[{bar:<30}] {done}/{total} {unit}, {spent:.0f} s, {left:.0f} s left ", end="", file=sys.stderr)
        sys.stderr.flush()
    print(file=sys.stderr)


def summary(root: Path) -> str:
    """Counts of a finished data set, as text for people."""
    load = {name: json.loads((root / VERSION / f"{name}.json").read_text()) for name in
            ("scene", "sample", "instance", "sample_annotation", "category")}
    names = {row["token"]: row["name"] for row in load["category"]}
    kinds = {row["token"]: names[row["category_token"]] for row in load["instance"]}
    counts = Counter(kinds[row["instance_token"]] for row in load["sample_annotation"])
    order = dict.fromkeys(model.category for model in MODELS.values() if model.category)
    lines = [f"{len(load['scene'])} scenes, {len(load['sample'])} keyframes, {len(load['instance'])} objects, "
             f"{len(load['sample_annotation'])} boxes"]
    lines += [f"  {name:<28}{counts[name]:>6}" for name in order]
    return "\n".join(lines)
