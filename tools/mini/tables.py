"""The thirteen nuScenes tables.

In: the scenes and what was observed in every keyframe (`FrameRecord`). Out: lists of dicts, ready for JSON.
Tokens are hashes of what they name, so they depend on the seed alone.
"""

from __future__ import annotations

import datetime
import hashlib
from dataclasses import dataclass

import numpy as np

from .geometry import quaternion, yaw_quaternion
from .layout import ANNOTATION_RANGE, Scene
from .models import MODELS
from .rig import IMAGE_HEIGHT, IMAGE_WIDTH, Sensor

VERSION = "v1.0-mini"
LOCATION = "synthetic-town"
CATEGORIES = (
    ("human.pedestrian.adult", "A grown-up on foot."),
    ("human.pedestrian.child", "A child on foot."),
    ("human.pedestrian.wheelchair", "A person in a wheelchair."),
    ("human.pedestrian.stroller", "A pushed stroller."),
    ("human.pedestrian.personal_mobility", "A person on a scooter, skateboard or the like."),
    ("human.pedestrian.police_officer", "A police officer on foot."),
    ("human.pedestrian.construction_worker", "A worker on a construction site."),
    ("animal", "Any animal."),
    ("vehicle.car", "Passenger car, van or pick-up."),
    ("vehicle.motorcycle", "Motorcycle, with its rider if there is one."),
    ("vehicle.bicycle", "Bicycle, with its rider if there is one."),
    ("vehicle.bus.bendy", "One section of an articulated bus."),
    ("vehicle.bus.rigid", "Bus without a joint."),
    ("vehicle.truck", "Lorry, with cab and load."),
    ("vehicle.construction", "Vehicle built for construction work."),
    ("vehicle.emergency.ambulance", "Ambulance."),
    ("vehicle.emergency.police", "Police car or motorcycle."),
    ("vehicle.trailer", "Trailer, annotated apart from what pulls it."),
    ("movable_object.barrier", "Movable road barrier."),
    ("movable_object.trafficcone", "Traffic cone."),
    ("movable_object.pushable_pullable", "Object that people push or pull."),
    ("movable_object.debris", "Debris on the road."),
    ("static_object.bicycle_rack", "Area with parked bicycles."),
)
ATTRIBUTES = (
    ("vehicle.moving", "The vehicle moves."),
    ("vehicle.stopped", "The vehicle stands and is about to move on."),
    ("vehicle.parked", "The vehicle stands for longer."),
    ("cycle.with_rider", "Somebody rides it."),
    ("cycle.without_rider", "Nobody rides it."),
    ("pedestrian.sitting_lying_down", "The person sits or lies."),
    ("pedestrian.standing", "The person stands."),
    ("pedestrian.moving", "The person walks."),
)
VISIBILITY = (("1", "v0-40", 0.4), ("2", "v40-60", 0.6), ("3", "v60-80", 0.8), ("4", "v80-100", 1.01))


@dataclass(frozen=True)
class FrameRecord:
    """What one keyframe showed, for the annotated things of its scene.

    Attributes:
        seen, alone: [things] visible pixels over all cameras, and those that would be visible without occlusion.
        lidar_points: [things] points inside the box.
    """

    seen: np.ndarray
    alone: np.ndarray
    lidar_points: np.ndarray


def token(*parts: object) -> str:
    """32 hexadecimal digits that name `parts`."""
    return hashlib.md5("/".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


def log_name(scene: Scene) -> str:
    return f"synthetic-{scene.seed}-{scene.name[-4:]}"


def timestamp(scene: Scene, frame: int, sensor: Sensor) -> int:
    """Microseconds."""
    return scene.timestamps[frame] + sensor.delay


def file_name(scene: Scene, frame: int, sensor: Sensor) -> str:
    """Path of a sensor's file, relative to the data root."""
    ending = "jpg" if sensor.is_camera else "pcd.bin"
    name = f"{log_name(scene)}__{sensor.channel}__{timestamp(scene, frame, sensor)}.{ending}"
    return f"samples/{sensor.channel}/{name}"


def build_tables(scenes: list[Scene], records: list[list[FrameRecord]], seed: int) -> dict[str, list[dict]]:
    """All tables by name.

    Args:
        scenes: the scenes.
        records: for each scene, one record per keyframe.
        seed: the data set's seed; enters every token.
    """
    tables: dict[str, list[dict]] = {
        "category": [
            {"token": token(seed, "category", name), "name": name, "description": text} for name, text in CATEGORIES
        ],
        "attribute": [
            {"token": token(seed, "attribute", name), "name": name, "description": text} for name, text in ATTRIBUTES
        ],
        "visibility": [
            {"token": key, "level": level, "description": f"visibility of the whole object is {level[1:]} %"}
            for key, level, _ in VISIBILITY
        ],
        "sensor": [
            {"token": token(seed, "sensor", s.channel), "channel": s.channel, "modality": s.modality}
            for s in scenes[0].rig
        ],
    }
    for name in (
        "log",
        "scene",
        "calibrated_sensor",
        "sample",
        "sample_data",
        "ego_pose",
        "instance",
        "sample_annotation",
    ):
        tables[name] = []
    for scene, frames in zip(scenes, records, strict=True):
        _add_scene(tables, scene, seed)
        _add_sensor_data(tables, scene, seed)
        _add_annotations(tables, scene, frames, seed)
    tables["map"] = [
        {
            "token": token(seed, "map"),
            "log_tokens": [log["token"] for log in tables["log"]],
            "category": "semantic_prior",
            "filename": f"maps/{token(seed, 'map')}.png",
        }
    ]
    return tables


def _link(rows: list[dict]) -> None:
    """Chain records by prev and next."""
    for i, row in enumerate(rows):
        row["prev"] = rows[i - 1]["token"] if i else ""
        row["next"] = rows[i + 1]["token"] if i + 1 < len(rows) else ""


def _add_scene(tables: dict[str, list[dict]], scene: Scene, seed: int) -> None:
    day = datetime.datetime.fromtimestamp(scene.timestamps[0] / 1e6, datetime.timezone.utc).date().isoformat()
    samples = [
        {
            "token": token(seed, scene.name, "sample", k),
            "timestamp": stamp,
            "scene_token": token(seed, scene.name, "scene"),
        }
        for k, stamp in enumerate(scene.timestamps)
    ]
    _link(samples)
    tables["sample"] += samples
    tables["log"].append(
        {
            "token": token(seed, scene.name, "log"),
            "logfile": log_name(scene),
            "vehicle": f"synthetic-{scene.index}",
            "date_captured": day,
            "location": LOCATION,
        }
    )
    tables["scene"].append(
        {
            "token": token(seed, scene.name, "scene"),
            "log_token": token(seed, scene.name, "log"),
            "nbr_samples": len(samples),
            "first_sample_token": samples[0]["token"],
            "last_sample_token": samples[-1]["token"],
            "name": scene.name,
            "description": scene.description,
        }
    )


def _add_sensor_data(tables: dict[str, list[dict]], scene: Scene, seed: int) -> None:
    for sensor in scene.rig:
        calibration = token(seed, scene.name, "calibrated_sensor", sensor.channel)
        tables["calibrated_sensor"].append(
            {
                "token": calibration,
                "sensor_token": token(seed, "sensor", sensor.channel),
                "translation": sensor.translation.tolist(),
                "rotation": quaternion(sensor.rotation),
                "camera_intrinsic": sensor.intrinsic.tolist() if sensor.is_camera else [],
            }
        )
        rows = []
        for frame, t in enumerate(scene.times):
            key = token(seed, scene.name, sensor.channel, frame)
            x, y, yaw = scene.ego_pose(t + sensor.delay * 1e-6)
            stamp = timestamp(scene, frame, sensor)
            tables["ego_pose"].append(
                {
                    "token": key,
                    "timestamp": stamp,
                    "rotation": yaw_quaternion(yaw),
                    "translation": [float(x), float(y), 0.0],
                }
            )
            rows.append(
                {
                    "token": key,
                    "sample_token": token(seed, scene.name, "sample", frame),
                    "ego_pose_token": key,
                    "calibrated_sensor_token": calibration,
                    "timestamp": stamp,
                    "fileformat": "jpg" if sensor.is_camera else "pcd",
                    "is_key_frame": True,
                    "height": IMAGE_HEIGHT if sensor.is_camera else 0,
                    "width": IMAGE_WIDTH if sensor.is_camera else 0,
                    "filename": file_name(scene, frame, sensor),
                }
            )
        _link(rows)
        tables["sample_data"] += rows


def _observed(scene: Scene, frames: list[FrameRecord], index: int) -> range:
    """Keyframes in which a thing is annotated: from the first to the last in which a sensor meets it in range."""
    poses = scene.things[index].poses
    met = [
        k
        for k, (record, t) in enumerate(zip(frames, scene.times, strict=True))
        if (record.lidar_points[index] > 0 or record.seen[index] > 0)
        and np.linalg.norm(poses[k, :2] - scene.ego_pose(t)[:2]) < ANNOTATION_RANGE
    ]
    return range(met[0], met[-1] + 1) if met else range(0)


def _visibility(record: FrameRecord, index: int) -> str:
    share = record.seen[index] / record.alone[index] if record.alone[index] else 0.0
    return next(key for key, _, upper in VISIBILITY if share < upper)


def _add_annotations(tables: dict[str, list[dict]], scene: Scene, frames: list[FrameRecord], seed: int) -> None:
    for index, thing in enumerate(scene.things):
        observed = _observed(scene, frames, index) if thing.annotated else range(0)
        if not observed:
            continue
        instance = token(seed, scene.name, "instance", index)
        rows = []
        for k in observed:
            x, y, yaw = thing.poses[k]
            attribute = thing.attribute[k]
            rows.append(
                {
                    "token": token(seed, scene.name, "annotation", index, k),
                    "sample_token": token(seed, scene.name, "sample", k),
                    "instance_token": instance,
                    "visibility_token": _visibility(frames[k], index),
                    "attribute_tokens": [token(seed, "attribute", attribute)] if attribute else [],
                    "translation": [float(x), float(y), float(thing.size[2]) / 2],
                    "size": [float(v) for v in thing.size],
                    "rotation": yaw_quaternion(yaw),
                    "num_lidar_pts": int(frames[k].lidar_points[index]),
                    "num_radar_pts": 0,
                }
            )
        _link(rows)
        tables["sample_annotation"] += rows
        tables["instance"].append(
            {
                "token": instance,
                "category_token": token(seed, "category", MODELS[thing.kind].category),
                "nbr_annotations": len(rows),
                "first_annotation_token": rows[0]["token"],
                "last_annotation_token": rows[-1]["token"],
            }
        )
