"""Info entries: keyframes and annotation arrays go in, the dictionaries of mmdet3d 1.4's v2 info files come out.

Samples are handled in chunks: all geometry of a chunk is array work, and Python only builds the dictionaries.
Letters: S samples of a chunk, A annotations of a chunk, K objects seen by one camera.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from infos import tables
from infos.geometry import box_corners, clipped_image_boxes, heading
from raggedbev.geometry import invert_rigid
from raggedbev.nuscenes import CAMERAS

if TYPE_CHECKING:
    from nuscenes.nuscenes import NuScenes

CHUNK = 128
_LIDAR_FEATURES = 5  # x, y, z, intensity, ring index


@dataclass(frozen=True)
class _Sensor:
    """One channel over the S samples of a chunk."""

    records: list[dict]  # S sample_data records
    sensor2ego: np.ndarray  # [S, 4, 4]
    ego2global: np.ndarray  # [S, 4, 4]
    global2sensor: np.ndarray  # [S, 4, 4]


def build_entries(
    nusc: NuScenes, samples: list[dict], max_sweeps: int, with_boxes: bool, progress: Callable[[int], object]
) -> list[dict]:
    """Info entries of one split.

    Args:
        nusc: the loaded tables.
        samples: sample records, frames of a scene together and in order.
        max_sweeps: largest number of earlier lidar sweeps listed per sample.
        with_boxes: whether annotations are read; entries of the test split have no `cam_instances`.
        progress: called with the number of samples after each chunk.

    Returns:
        One dictionary per sample: the keys of mmdet3d's converter, and scene_token, scene_name, prev, next, frame_idx.
    """
    frame_index = _frame_indices(samples)
    lidarseg = _lidarseg_files(nusc)
    entries = []
    for start in range(0, len(samples), CHUNK):
        chunk = samples[start : start + CHUNK]
        sensors = _read_sensors(nusc, chunk)
        images = _image_entries(nusc, sensors)
        sweeps = _sweep_entries(nusc, sensors[tables.LIDAR], max_sweeps)
        if with_boxes:
            annotations = tables.read_annotations(nusc, chunk)
            instances = _instances(annotations, sensors[tables.LIDAR])
            cam_instances = _cam_instances(nusc, annotations, sensors)
        lidar = sensors[tables.LIDAR]
        ego2global, lidar2ego = _float32_lists(lidar.ego2global), _float32_lists(lidar.sensor2ego)
        for i, sample in enumerate(chunk):
            entry = {
                "sample_idx": start + i,
                "token": sample["token"],
                "timestamp": sample["timestamp"] / 1e6,
                "ego2global": ego2global[i],
                "images": images[i],
                "lidar_points": {
                    "num_pts_feats": _LIDAR_FEATURES,
                    "lidar_path": _file_name(lidar.records[i]["filename"]),
                    "lidar2ego": lidar2ego[i],
                },
                "instances": instances[i] if with_boxes else [],
                "scene_token": sample["scene_token"],
                "scene_name": nusc.get("scene", sample["scene_token"])["name"],
                "prev": sample["prev"],
                "next": sample["next"],
                "frame_idx": frame_index[start + i],
            }
            if sweeps[i]:
                entry["lidar_sweeps"] = sweeps[i]
            if with_boxes:
                entry["cam_instances"] = cam_instances[i]
                if lidarseg:
                    entry["pts_semantic_mask_path"] = lidarseg[lidar.records[i]["token"]]
            entries.append(entry)
        progress(len(chunk))
    return entries


def _frame_indices(samples: list[dict]) -> list[int]:
    indices: list[int] = []
    scene = None
    for sample in samples:
        indices.append(indices[-1] + 1 if sample["scene_token"] == scene else 0)
        scene = sample["scene_token"]
    return indices


def _lidarseg_files(nusc: NuScenes) -> dict[str, str]:
    """Lidar sample_data token -> name of its lidarseg labels; empty where that extension is not installed."""
    if "lidarseg" not in nusc.table_names:
        return {}
    return {record["sample_data_token"]: _file_name(record["filename"]) for record in nusc.lidarseg}


def _read_sensors(nusc: NuScenes, samples: list[dict]) -> dict[str, _Sensor]:
    sensors = {}
    for channel, records in tables.keyframe_data(nusc, samples).items():
        sensor2ego, ego2global = tables.sensor_poses(nusc, records)
        sensors[channel] = _Sensor(records, sensor2ego, ego2global, invert_rigid(ego2global @ sensor2ego))
    return sensors


def _image_entries(nusc: NuScenes, sensors: dict[str, _Sensor]) -> list[dict[str, dict]]:
    """Per sample: camera -> image entry. lidar2cam spans the ego motion between the two exposures."""
    lidar = sensors[tables.LIDAR]
    lidar2global = lidar.ego2global @ lidar.sensor2ego
    images: list[dict[str, dict]] = [{} for _ in lidar.records]
    for camera in CAMERAS:
        sensor = sensors[camera]
        cam2img = tables.intrinsics(nusc, sensor.records).tolist()
        cam2ego = _float32_lists(sensor.sensor2ego)
        lidar2cam = _float32_lists(sensor.global2sensor @ lidar2global)
        for i, record in enumerate(sensor.records):
            images[i][camera] = {
                "img_path": _file_name(record["filename"]),
                "cam2img": cam2img[i],
                "sample_data_token": record["token"],
                "timestamp": record["timestamp"] / 1e6,
                "cam2ego": cam2ego[i],
                "lidar2cam": lidar2cam[i],
            }
    return images


def _sweep_entries(nusc: NuScenes, lidar: _Sensor, max_sweeps: int) -> list[list[dict]]:
    """Per sample: the lidar sweeps before it, newest first; empty at the start of a scene."""
    owners, records = [], []
    for i, record in enumerate(lidar.records):
        for _ in range(max_sweeps):
            if not record["prev"]:
                break
            record = nusc.get("sample_data", record["prev"])
            owners.append(i)
            records.append(record)
    sensor2ego, ego2global = tables.sensor_poses(nusc, records)
    lidar2global = lidar.ego2global @ lidar.sensor2ego
    lidar2sweep = invert_rigid(ego2global @ sensor2ego) @ lidar2global[owners]
    matrices = zip(
        _float32_lists(ego2global), _float32_lists(sensor2ego), _float32_lists(lidar2sweep), strict=True
    )  # fmt: skip
    sweeps: list[list[dict]] = [[] for _ in lidar.records]
    for owner, record, (pose, calibration, motion) in zip(owners, records, matrices, strict=True):
        sweeps[owner].append(
            {
                "timestamp": record["timestamp"] / 1e6,
                "ego2global": pose,
                "lidar_points": {
                    "num_pts_feats": _LIDAR_FEATURES,
                    "lidar_path": record["filename"],
                    "lidar2ego": calibration,
                    "lidar2sensor": motion,
                },
                "sample_data_token": record["token"],
            }
        )
    return sweeps


def _instances(annotations: tables.Annotations, lidar: _Sensor) -> list[list[dict]]:
    """Per sample: its annotated boxes in the lidar frame, all categories, also those without points."""
    center, rotation, velocity, _ = _to_sensor(annotations, lidar)
    boxes = np.concatenate([center, annotations.size_lwh, heading(rotation)[:, None]], axis=1)
    columns = zip(
        boxes.tolist(),
        velocity[:, :2].tolist(),
        annotations.label.tolist(),
        annotations.num_lidar_pts.tolist(),
        annotations.num_radar_pts.tolist(),
        strict=True,
    )
    flat = [
        {
            "bbox_label": label,
            "bbox_3d": box,
            "bbox_3d_isvalid": lidar_points + radar_points > 0,
            "bbox_label_3d": label,
            "num_lidar_pts": lidar_points,
            "num_radar_pts": radar_points,
            "velocity": speed,
        }
        for box, speed, label, lidar_points, radar_points in columns
    ]
    return [flat[a:b] for a, b in zip(annotations.offsets[:-1], annotations.offsets[1:], strict=True)]


def _cam_instances(
    nusc: NuScenes, annotations: tables.Annotations, sensors: dict[str, _Sensor]
) -> list[dict[str, list[dict]]]:
    """Per sample: camera -> the boxes of the ten classes that meet its image, in the order of the annotations."""
    instances: list[dict[str, list[dict]]] = [{} for _ in sensors[tables.LIDAR].records]
    for camera in CAMERAS:
        sensor = sensors[camera]
        intrinsics = tables.intrinsics(nusc, sensor.records)
        size = np.array([(record["width"], record["height"]) for record in sensor.records], dtype=np.float64)
        center, rotation, velocity, owner = _to_sensor(annotations, sensor)
        rows = np.flatnonzero((annotations.label >= 0) & (center[:, 2] > 0))
        center, rotation, velocity, owner = center[rows], rotation[rows], velocity[rows], owner[rows]
        corners = box_corners(center, annotations.size_lwh[rows], rotation)
        image_boxes, visible = clipped_image_boxes(corners, intrinsics[owner], size[owner])

        rows, center, rotation, velocity = rows[visible], center[visible], rotation[visible], velocity[visible]
        owner, image_boxes = owner[visible], image_boxes[visible]
        size_lhw = annotations.size_lwh[rows][:, [0, 2, 1]]
        boxes = np.concatenate([center, size_lhw, -heading(rotation)[:, None]], axis=1)
        homogeneous = (intrinsics[owner] @ center[:, :, None])[..., 0]  # [K, 3]
        columns = zip(
            owner.tolist(),
            annotations.label[rows].tolist(),
            image_boxes.tolist(),
            boxes.tolist(),
            velocity[:, [0, 2]].tolist(),
            (homogeneous[:, :2] / homogeneous[:, 2:]).tolist(),
            center[:, 2].tolist(),
            annotations.attribute[rows].tolist(),
            strict=True,
        )
        for sample in instances:
            sample[camera] = []
        for i, label, image_box, box, speed, pixel, depth, attribute in columns:
            instances[i][camera].append(
                {
                    "bbox_label": label,
                    "bbox_label_3d": label,
                    "bbox": image_box,
                    "bbox_3d_isvalid": True,
                    "bbox_3d": box,
                    "velocity": speed,
                    "center_2d": pixel,
                    "depth": depth,
                    "attr_label": attribute,
                }
            )
    return instances


def _to_sensor(
    annotations: tables.Annotations, sensor: _Sensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Centres [A, 3], rotations [A, 3, 3] and velocities [A, 3] in a sensor's frame, and the sample [A] of each row."""
    owner = np.repeat(np.arange(len(sensor.records)), np.diff(annotations.offsets))
    motion = sensor.global2sensor[owner]
    turn, shift = motion[:, :3, :3], motion[:, :3, 3]
    center = (turn @ annotations.center[:, :, None])[..., 0] + shift
    velocity = (turn @ annotations.velocity[:, :, None])[..., 0]
    return center, turn @ annotations.rotation, velocity, owner


def _float32_lists(matrices: np.ndarray) -> list:
    """Nested lists of float32-rounded numbers, the precision in which info files keep poses."""
    return matrices.astype(np.float32).tolist()


def _file_name(path: str) -> str:
    return path.rpartition("/")[2]
