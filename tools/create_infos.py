"""Write mmdet3d 1.4 info files for a nuScenes-format data root.

    python tools/create_infos.py --data-root data/nuscenes --version v1.0-trainval
    python tools/create_infos.py --data-root data/mini --version v1.0-mini

In: a nuScenes root (the real data set, or a synthetic one of tools/create_mini.py). Out: nuscenes_infos_train.pkl and
nuscenes_infos_val.pkl (v1.0-test: nuscenes_infos_test.pkl) in the v2 layout of mmdet3d 1.4, with `cam_instances`, and
with scene_token, scene_name, prev, next and frame_idx, which models of image sequences need.
"""

from __future__ import annotations

import argparse
import gc
import os
import pickle
import sys
import time
from pathlib import Path

import shared.environment  # noqa: F401

from infos.entries import build_entries
from infos.tables import SPLITS, DataError, drop_absent_scenes, open_tables, other_categories, split_samples
from tqdm import tqdm

from raggedbev.nuscenes import INFO_CLASSES


def create_infos(data_root: Path, version: str, out_dir: Path | None = None, max_sweeps: int = 10) -> dict[str, Path]:
    """Write the info files of one nuScenes version.

    Args:
        data_root: folder that holds the version's tables, `samples/` and `sweeps/`.
        version: "v1.0-mini", "v1.0-trainval" or "v1.0-test".
        out_dir: where the files go; default is `data_root`.
        max_sweeps: largest number of earlier lidar sweeps listed per keyframe, at least 1. Readers recognise the
            start of a scene by a keyframe without any.

    Returns:
        split -> file written. A split of which the root has no scene gets a file without samples, and a warning.

    Raises:
        DataError: the root cannot be used.
        ValueError: unknown version or too few sweeps.
    """
    if version not in SPLITS:
        raise ValueError(f"version must be one of {', '.join(SPLITS)}, got {version!r}")
    if max_sweeps < 1:
        raise ValueError(f"max_sweeps must be at least 1, got {max_sweeps}")
    print(f"Reading the tables of {data_root / version}", flush=True)
    nusc = open_tables(data_root, version)
    out_dir = out_dir or data_root
    out_dir.mkdir(parents=True, exist_ok=True)

    metainfo = {
        "categories": {name: i for i, name in enumerate(INFO_CLASSES)} | dict.fromkeys(other_categories(nusc), -1),
        "dataset": "nuscenes",
        "version": version,
        "info_version": "1.1",
    }
    written = {}
    for split, found in split_samples(nusc, version).items():
        samples, absent = drop_absent_scenes(nusc, found)
        if absent:
            print(f"Warning: left out {len(absent)} {split} scenes without any file, such as {absent[0]}")
        if found and not samples:
            raise DataError(f"{data_root} has none of the {split} split's files (first scene: {absent[0]})")
        with tqdm(total=len(samples), desc=split, unit="sample", dynamic_ncols=True, disable=not samples) as bar:
            entries = build_entries(nusc, samples, max_sweeps, version != "v1.0-test", bar.update)
        written[split] = out_dir / f"nuscenes_infos_{split}.pkl"
        _write_whole(written[split], {"metainfo": metainfo, "data_list": entries})
        if not entries:
            print(f"Warning: {written[split]} has no samples, because no scene of the root is in the {split} split")
        else:
            print(f"{written[split]}: {len({e['scene_token'] for e in entries})} scenes, {len(entries)} samples")
    return written


def _write_whole(path: Path, content: dict) -> None:
    """Write under another name first, so that a kill leaves the old file or the new one, never a part."""
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        pickle.dump(content, file, protocol=4)
    os.replace(part, path)


def _parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="folder that holds v1.0-*/, samples/ and sweeps/")
    parser.add_argument("--version", choices=list(SPLITS), required=True, help="which tables to read")
    parser.add_argument("--out-dir", type=Path, help="where the info files go (default: the data root)")
    parser.add_argument("--max-sweeps", type=int, default=10, help="earlier lidar sweeps per sample (default: 10)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    arguments = _parse_arguments(argv)
    started = time.perf_counter()
    gc.disable()  # millions of live records and no cycles: collections would only cost time
    try:
        create_infos(arguments.data_root, arguments.version, arguments.out_dir, arguments.max_sweeps)
    except (DataError, ValueError, OSError) as error:
        print(f"create_infos: {error}", file=sys.stderr)
        return 1
    finally:
        gc.enable()
    print(f"Done in {time.perf_counter() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
