"""nuScenes tables, read once: a data root goes in, keyframes and annotations as NumPy arrays come out.

The real data set and a synthetic root of the same format take the same way, through nuscenes-devkit. Whatever is
wrong with the root becomes a :class:`DataError` with one sentence. Letters: S samples (keyframes), A annotations.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from infos.geometry import quaternion_to_matrix
from raggedbev.geometry import rigid_matrix
from raggedbev.nuscenes import CAMERAS, INFO_CLASSES

if TYPE_CHECKING:
    from nuscenes.nuscenes import NuScenes

LIDAR = "LIDAR_TOP"

# Attribute numbers of info files; the last one stands for "no attribute".
ATTRIBUTES = (
    "cycle.with_rider", "cycle.without_rider",
    "pedestrian.moving", "pedestrian.standing", "pedestrian.sitting_lying_down",
    "vehicle.moving", "vehicle.parked", "vehicle.stopped", "None",
)  # fmt: skip

TABLES = (
    "category", "attribute", "visibility", "instance", "sensor", "calibrated_sensor", "ego_pose", "log",
    "scene", "sample", "sample_data", "sample_annotation", "map",
)  # fmt: skip
# Per version: output name -> name of the devkit's scene split.
SPLITS = {
    "v1.0-mini": {"train": "mini_train", "val": "mini_val"},
    "v1.0-trainval": {"train": "train", "val": "val"},
    "v1.0-test": {"test": "test"},
}
_MAX_VELOCITY_GAP = 1.5  # seconds between neighbouring annotations of an object; twice that for a centred difference


class DataError(Exception):
    """The data root cannot be used; the message says why in one sentence."""


@dataclass(frozen=True)
class Annotations:
    """Annotated boxes of S samples in global coordinates, ordered by sample.

    Attributes:
        offsets: [S+1] int64; sample s owns rows offsets[s]:offsets[s+1].
        center: [A, 3] gravity centres, metres.
        size_lwh: [A, 3] length, width, height, metres.
        rotation: [A, 3, 3] box to global.
        velocity: [A, 3] metres per second, NaN where it cannot be estimated, z replaced by 0.
        label: [A] int64 index into INFO_CLASSES or -1.
        num_lidar_pts, num_radar_pts: [A] int64.
        attribute: [A] int64 index into ATTRIBUTES.
    """

    offsets: np.ndarray
    center: np.ndarray
    size_lwh: np.ndarray
    rotation: np.ndarray
    velocity: np.ndarray
    label: np.ndarray
    num_lidar_pts: np.ndarray
    num_radar_pts: np.ndarray
    attribute: np.ndarray


def open_tables(data_root: Path, version: str) -> NuScenes:
    """Load a nuScenes root with the devkit.

    Raises:
        DataError: the root, the version folder or a table is missing, or a table is broken.
    """
    if not data_root.is_dir():
        raise DataError(f"data root {data_root} does not exist; give --data-root the folder that holds {version}/")
    folder = data_root / version
    if not folder.is_dir():
        there = sorted(path.name for path in data_root.glob("v1.0-*") if path.is_dir())
        found = f"it has {', '.join(there)}" if there else "it has no nuScenes version at all"
        raise DataError(f"{data_root} has no folder {version}; {found}")
    for table in TABLES:
        if not (folder / f"{table}.json").is_file():
            raise DataError(f"table {folder / table}.json is missing")

    from nuscenes.nuscenes import NuScenes

    try:
        return NuScenes(version=version, dataroot=str(data_root), verbose=False)
    except UnicodeDecodeError as error:
        raise DataError(f"a table in {folder} is not UTF-8 text: {error}") from error
    except json.JSONDecodeError as error:
        raise DataError(_name_broken_table(folder, error)) from error
    except AssertionError as error:
        raise DataError(f"the devkit rejects {data_root}: {error}") from error
    except KeyError as error:
        raise DataError(f"the tables in {folder} do not fit together: key or token {error} is missing") from error
    except (IndexError, TypeError) as error:
        raise DataError(f"the tables in {folder} do not have the nuScenes layout: {error}") from error


def _name_broken_table(folder: Path, error: json.JSONDecodeError) -> str:
    """Find the table that does not parse; the devkit's own error does not say which one it was."""
    for path in sorted(folder.glob("*.json")):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as found:
            return f"table {path} is not valid JSON: {found}"
    return f"a table in {folder} is not valid JSON: {error}"


def split_samples(nusc: NuScenes, version: str) -> dict[str, list[dict]]:
    """Sample records of each split of a version, scenes by their start time, frames in order.

    Args:
        nusc: the loaded tables.
        version: a key of SPLITS.

    Returns:
        split name ("train", "val" or "test") -> sample records; splits of which no scene is there are empty.

    Raises:
        DataError: no scene belongs to any split of the version, or a scene's chain of samples is broken.
    """
    from nuscenes.utils.splits import create_splits_scenes

    names = create_splits_scenes()
    samples: dict[str, list[dict]] = {}
    for split, devkit_split in SPLITS[version].items():
        wanted = set(names[devkit_split])
        chains = [_scene_chain(nusc, scene) for scene in nusc.scene if scene["name"] in wanted]
        chains.sort(key=lambda chain: chain[0]["timestamp"])
        samples[split] = [sample for chain in chains for sample in chain]
    if not any(samples.values()):
        present = ", ".join(scene["name"] for scene in nusc.scene[:3]) or "none"
        raise DataError(f"no scene of {nusc.table_root} belongs to a split of {version} (scenes there: {present} ...)")
    return samples


def _scene_chain(nusc: NuScenes, scene: dict) -> list[dict]:
    chain, token = [], scene["first_sample_token"]
    try:
        while token:
            chain.append(nusc.get("sample", token))
            token = chain[-1]["next"]
            if len(chain) > len(nusc.sample):
                raise DataError(f"the samples of scene {scene['name']} follow each other in a circle")
    except KeyError as error:
        raise DataError(f"scene {scene['name']} names sample {error}, which is not in table sample") from error
    if not chain:
        raise DataError(f"scene {scene['name']} has no samples")
    return chain


def keyframe_data(nusc: NuScenes, samples: list[dict]) -> dict[str, list[dict]]:
    """sample_data records of the lidar and the six cameras, one list per channel, in the order of `samples`.

    Raises:
        DataError: a sample lacks one of the seven channels.
    """
    records: dict[str, list[dict]] = {}
    for channel in (LIDAR, *CAMERAS):
        try:
            records[channel] = [nusc.get("sample_data", sample["data"][channel]) for sample in samples]
        except KeyError as error:
            token = next(sample["token"] for sample in samples if channel not in sample["data"])
            raise DataError(f"sample {token} has no keyframe of {channel} in table sample_data") from error
    return records


def drop_absent_scenes(nusc: NuScenes, samples: list[dict]) -> tuple[list[dict], list[str]]:
    """Leave out scenes of which no keyframe file was downloaded.

    Folders are listed once each, so that checking 240,000 files costs no call per file.

    Returns:
        the samples whose files exist, and the names of the scenes left out.

    Raises:
        DataError: a scene is there in part; the message names the first missing file.
    """
    root, listed = Path(nusc.dataroot), {}
    missing, total = defaultdict(list), defaultdict(int)
    for channel, records in keyframe_data(nusc, samples).items():
        for sample, record in zip(samples, records, strict=True):
            folder, _, name = record["filename"].rpartition("/")
            if folder not in listed:
                path = root / folder
                listed[folder] = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
            total[sample["scene_token"]] += 1
            if name not in listed[folder]:
                missing[sample["scene_token"]].append((channel, record["filename"]))
    for scene, files in missing.items():
        if len(files) < total[scene]:
            channel, filename = files[0]
            kind = "lidar" if channel == LIDAR else "image"
            name = nusc.get("scene", scene)["name"]
            raise DataError(f"{kind} file {root / filename} of {name} is missing ({len(files)} of its files are)")
    kept = [sample for sample in samples if sample["scene_token"] not in missing]
    return kept, [nusc.get("scene", scene)["name"] for scene in missing]


def sensor_poses(nusc: NuScenes, records: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Poses of sensor recordings.

    Args:
        nusc: the loaded tables.
        records: N sample_data records.

    Returns:
        sensor2ego [N, 4, 4] and ego2global [N, 4, 4] at the time of each recording.
    """
    calibrations = [nusc.get("calibrated_sensor", record["calibrated_sensor_token"]) for record in records]
    poses = [nusc.get("ego_pose", record["ego_pose_token"]) for record in records]
    return _transforms(calibrations), _transforms(poses)


def intrinsics(nusc: NuScenes, records: list[dict]) -> np.ndarray:
    """Intrinsics [N, 3, 3] of N camera recordings.

    Raises:
        DataError: a camera has no 3x3 matrix.
    """
    matrices = [
        nusc.get("calibrated_sensor", record["calibrated_sensor_token"])["camera_intrinsic"] for record in records
    ]
    try:
        return np.array(matrices, dtype=np.float64).reshape(len(records), 3, 3)
    except ValueError as error:
        raise DataError(f"table calibrated_sensor has a camera without a 3x3 camera_intrinsic: {error}") from error


def read_annotations(nusc: NuScenes, samples: list[dict]) -> Annotations:
    """All annotations of the samples as arrays."""
    counts = [len(sample["anns"]) for sample in samples]
    records = [nusc.get("sample_annotation", token) for sample in samples for token in sample["anns"]]
    size = _column(records, "size", 3)
    return Annotations(
        offsets=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
        center=_column(records, "translation", 3),
        size_lwh=size[:, [1, 0, 2]],
        rotation=quaternion_to_matrix(_column(records, "rotation", 4)),
        velocity=_velocities(nusc, records),
        label=_labels(records),
        num_lidar_pts=np.array([record["num_lidar_pts"] for record in records], dtype=np.int64),
        num_radar_pts=np.array([record["num_radar_pts"] for record in records], dtype=np.int64),
        attribute=_attributes(nusc, records),
    )


def other_categories(nusc: NuScenes) -> list[str]:
    """Annotated category names outside INFO_CLASSES, sorted."""
    from nuscenes.eval.detection.utils import category_to_detection_name

    names = {record["category_name"] for record in nusc.sample_annotation}
    return sorted(name for name in names if category_to_detection_name(name) is None)


def _transforms(records: list[dict]) -> np.ndarray:
    rotation = quaternion_to_matrix(_column(records, "rotation", 4))
    return rigid_matrix(rotation, _column(records, "translation", 3))


def _column(records: list[dict], key: str, width: int) -> np.ndarray:
    return np.array([record[key] for record in records], dtype=np.float64).reshape(-1, width)


def _velocities(nusc: NuScenes, records: list[dict]) -> np.ndarray:
    """Finite differences over the neighbouring annotations of the same object, as the devkit's ``box_velocity``."""
    first = [nusc.get("sample_annotation", record["prev"]) if record["prev"] else record for record in records]
    last = [nusc.get("sample_annotation", record["next"]) if record["next"] else record for record in records]
    seconds = [
        1e-6 * np.array([nusc.get("sample", record["sample_token"])["timestamp"] for record in ends])
        for ends in (first, last)
    ]
    gap = seconds[1] - seconds[0]
    centred = np.array([bool(record["prev"] and record["next"]) for record in records], dtype=bool)
    known = (gap > 0) & (gap <= np.where(centred, 2, 1) * _MAX_VELOCITY_GAP)
    distance = _column(last, "translation", 3) - _column(first, "translation", 3)
    velocity = np.full((len(records), 3), np.nan)
    velocity[known] = distance[known] / gap[known, None]
    velocity[:, 2] = 0
    return velocity


def _labels(records: list[dict]) -> np.ndarray:
    from nuscenes.eval.detection.utils import category_to_detection_name

    number = {name: INFO_CLASSES.index(category_to_detection_name(name)) if category_to_detection_name(name) else -1
              for name in {record["category_name"] for record in records}}  # fmt: skip
    return np.array([number[record["category_name"]] for record in records], dtype=np.int64)


def _attributes(nusc: NuScenes, records: list[dict]) -> np.ndarray:
    number = {record["token"]: record["name"] for record in nusc.attribute}
    unknown = sorted(set(number.values()) - set(ATTRIBUTES))
    if unknown:
        raise DataError(f"table attribute has {unknown[0]!r}, which is not a nuScenes attribute")
    number = {token: ATTRIBUTES.index(name) for token, name in number.items()}
    none = len(ATTRIBUTES) - 1
    tokens = [record["attribute_tokens"] for record in records]
    return np.array([number[token[0]] if token else none for token in tokens], dtype=np.int64)
