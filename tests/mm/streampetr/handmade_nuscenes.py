"""A very small data set in the nuScenes format, with an info file as mmdet3d's converter writes it.

Two scenes of mini_val with four frames each and six cameras of 160x90. The tables hold everything in the global frame
and the info file in the lidar frame, computed apart from each other, so that each checks the other.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import cv2
import numpy as np
from pyquaternion import Quaternion

from raggedbev.nuscenes import CAMERAS, INFO_CLASSES

CAMERA_YAWS = np.deg2rad([0.0, -55.0, 55.0, 180.0, 110.0, -110.0])
CATEGORIES = {
    "vehicle.car": "car",
    "vehicle.truck": "truck",
    "human.pedestrian.adult": "pedestrian",
    "movable_object.barrier": "barrier",
    "static_object.bicycle_rack": None,
}
# category, position in the ego frame of frame 0, size (width, length, height), yaw, global velocity, points, attribute
OBJECTS = (
    ("vehicle.car", (12.0, 3.0, 0.8), (1.9, 4.6, 1.7), 0.4, (0.0, 0.0), 9, "vehicle.parked"),
    ("vehicle.truck", (-9.0, -4.0, 1.5), (2.5, 7.0, 3.0), 2.9, (3.0, 1.0), 5, "vehicle.moving"),
    ("human.pedestrian.adult", (5.0, -6.0, 0.9), (0.7, 0.7, 1.8), -1.2, (0.0, 0.9), 4, "pedestrian.moving"),
    ("movable_object.barrier", (20.0, 0.5, 0.5), (2.0, 0.5, 1.0), 1.57, (0.0, 0.0), 3, None),
    ("vehicle.car", (15.0, -9.0, 0.8), (1.9, 4.6, 1.7), 0.0, (0.0, 0.0), 0, "vehicle.parked"),
    ("static_object.bicycle_rack", (8.0, 8.0, 0.5), (1.0, 3.0, 1.0), 0.0, (0.0, 0.0), 7, None),
)
SCENES = ("scene-0103", "scene-0916")
FRAMES = 4
PERIOD = 0.5  # seconds between frames
TABLES = ("category", "attribute", "visibility", "instance", "sensor", "calibrated_sensor", "ego_pose")
TABLES += ("log", "scene", "sample", "sample_data", "sample_annotation", "map")


def rigid(yaw: float, translation: tuple) -> np.ndarray:
    """[4, 4] of a turn about z and a shift."""
    matrix = np.eye(4)
    matrix[:3, :3] = Quaternion(axis=[0, 0, 1], radians=yaw).rotation_matrix
    matrix[:3, 3] = translation
    return matrix


LIDAR2EGO = rigid(-np.pi / 2, (0.94, 0.0, 1.84))
CAMERA_AXES = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])  # camera axes in a forward frame
CAMERA_MATRIX = np.array([[80.0, 0, 80], [0, 80, 45], [0, 0, 1]])


def timestamp(scene: int, frame: int) -> float:
    """Seconds."""
    return 1.5e9 + 1000 * scene + PERIOD * frame


def ego_pose(scene: int, frame: int) -> np.ndarray:
    """Ego to global [4, 4]."""
    return rigid(0.3 + 0.2 * scene + 0.02 * frame, (1000.0 + 300 * scene + 2 * frame, 600.0 + frame, 0.0))


def object_pose(scene: int, frame: int, item: tuple) -> np.ndarray:
    """Global pose [4, 4] of one of OBJECTS."""
    pose = ego_pose(scene, 0) @ rigid(item[3], item[1])
    pose[:2, 3] += np.array(item[4]) * PERIOD * frame
    return pose


def token(kind: str, *numbers: int) -> str:
    """A readable stand-in for nuScenes' tokens."""
    return "-".join([kind, *map(str, numbers)])


def quaternion(matrix: np.ndarray) -> list[float]:
    """w, x, y, z of a rigid transform."""
    return Quaternion(matrix=matrix[:3, :3]).elements.tolist()


def write_dataset(root: Path) -> None:
    """Write tables, images and `infos.pkl`."""
    write_tables(root)
    rng = np.random.default_rng(0)
    for camera in CAMERAS:
        folder = root / "samples" / camera
        folder.mkdir(parents=True)
        for scene in range(len(SCENES)):
            for frame in range(FRAMES):
                coarse = rng.integers(0, 256, (9, 16, 3), dtype=np.uint8)
                image = cv2.resize(coarse, (160, 90), interpolation=cv2.INTER_CUBIC)
                cv2.imwrite(str(folder / f"{token('sample', scene, frame)}.jpg"), image)
    (root / "infos.pkl").write_bytes(pickle.dumps(make_content()))


# ---- the tables ----


def write_tables(root: Path) -> None:
    """The thirteen tables, as far as evaluation reads them."""
    tables: dict[str, list] = {name: [] for name in TABLES}
    tables["category"] = [{"token": name, "name": name, "description": ""} for name in CATEGORIES]
    attributes = sorted({item[6] for item in OBJECTS if item[6]})
    tables["attribute"] = [{"token": name, "name": name, "description": ""} for name in attributes]
    tables["visibility"] = [{"token": str(i), "level": "", "description": ""} for i in range(1, 5)]
    tables["sensor"] = [{"token": "lidar", "channel": "LIDAR_TOP", "modality": "lidar"}]
    tables["calibrated_sensor"] = [
        {
            "token": "lidar",
            "sensor_token": "lidar",
            "translation": LIDAR2EGO[:3, 3].tolist(),
            "rotation": quaternion(LIDAR2EGO),
            "camera_intrinsic": [],
        }
    ]
    tables["log"] = [{"token": "log", "logfile": "", "vehicle": "", "date_captured": "", "location": "boston-seaport"}]
    (root / "maps").mkdir()
    cv2.imwrite(str(root / "maps" / "map.png"), np.zeros((2, 2), np.uint8))
    tables["map"] = [{"token": "map", "log_tokens": ["log"], "category": "semantic_prior", "filename": "maps/map.png"}]
    for scene, name in enumerate(SCENES):
        add_scene(tables, scene, name)
    (root / "v1.0-mini").mkdir()
    for name, rows in tables.items():
        (root / "v1.0-mini" / f"{name}.json").write_text(json.dumps(rows))


def add_scene(tables: dict[str, list], scene: int, name: str) -> None:
    """Rows of one scene."""
    tables["scene"].append(
        {
            "token": token("scene", scene),
            "log_token": "log",
            "nbr_samples": FRAMES,
            "first_sample_token": token("sample", scene, 0),
            "last_sample_token": token("sample", scene, FRAMES - 1),
            "name": name,
            "description": "",
        }
    )
    for number, item in enumerate(OBJECTS):
        tables["instance"].append(
            {
                "token": token("instance", scene, number),
                "category_token": item[0],
                "nbr_annotations": FRAMES,
                "first_annotation_token": token("annotation", scene, number, 0),
                "last_annotation_token": token("annotation", scene, number, FRAMES - 1),
            }
        )
    for frame in range(FRAMES):
        add_frame(tables, scene, frame)


def neighbours(kind: str, numbers: tuple, frame: int) -> dict[str, str]:
    """prev and next of a row."""
    return {
        "prev": token(kind, *numbers, frame - 1) if frame > 0 else "",
        "next": token(kind, *numbers, frame + 1) if frame < FRAMES - 1 else "",
    }


def add_frame(tables: dict[str, list], scene: int, frame: int) -> None:
    """Rows of one frame."""
    name = token("sample", scene, frame)
    time = {"timestamp": int(timestamp(scene, frame) * 1e6)}
    pose = ego_pose(scene, frame)
    tables["sample"].append(
        {"token": name, "scene_token": token("scene", scene), **time, **neighbours("sample", (scene,), frame)}
    )
    tables["ego_pose"].append(
        {"token": name, "translation": pose[:3, 3].tolist(), "rotation": quaternion(pose), **time}
    )
    tables["sample_data"].append(
        {
            "token": token("lidar", scene, frame),
            "sample_token": name,
            "ego_pose_token": name,
            "calibrated_sensor_token": "lidar",
            "fileformat": "pcd",
            "is_key_frame": True,
            "height": 0,
            "width": 0,
            "filename": f"samples/LIDAR_TOP/{name}.pcd.bin",
            **time,
            **neighbours("lidar", (scene,), frame),
        }
    )
    for number, item in enumerate(OBJECTS):
        box = object_pose(scene, frame, item)
        tables["sample_annotation"].append(
            {
                "token": token("annotation", scene, number, frame),
                "sample_token": name,
                "instance_token": token("instance", scene, number),
                "visibility_token": "4",
                "attribute_tokens": [item[6]] if item[6] else [],
                "translation": box[:3, 3].tolist(),
                "size": list(item[2]),
                "rotation": quaternion(box),
                "num_lidar_pts": item[5],
                "num_radar_pts": 0,
                **neighbours("annotation", (scene, number), frame),
            }
        )


# ---- the info file ----


def make_content() -> dict:
    """A whole v2 info file."""
    categories = {name: label for label, name in enumerate(INFO_CLASSES)} | {"static_object.bicycle_rack": -1}
    return {
        "metainfo": {"categories": categories, "dataset": "nuscenes", "version": "v1.0-mini", "info_version": "1.1"},
        "data_list": [make_info(scene, frame) for scene in range(len(SCENES)) for frame in range(FRAMES)],
    }


def make_info(scene: int, frame: int) -> dict:
    """One entry of its data_list."""
    name = token("sample", scene, frame)
    info = {
        "sample_idx": FRAMES * scene + frame,
        "token": name,
        "timestamp": timestamp(scene, frame),
        "ego2global": ego_pose(scene, frame).tolist(),
        "images": {camera: make_image(name, yaw) for camera, yaw in zip(CAMERAS, CAMERA_YAWS, strict=True)},
        "lidar_points": {"num_pts_feats": 5, "lidar_path": f"{name}.pcd.bin", "lidar2ego": LIDAR2EGO.tolist()},
        "instances": [make_instance(scene, frame, item) for item in OBJECTS],
        "cam_instances": {camera: make_cam_instances(i) for i, camera in enumerate(CAMERAS)},
        "scene_token": token("scene", scene),
    }
    if frame > 0:
        info["lidar_sweeps"] = [{"timestamp": timestamp(scene, frame - 1)}]
    return info


def make_image(name: str, yaw: float) -> dict:
    """Entry of one camera that looks along a yaw."""
    cam2ego = rigid(yaw, (1.5, 0.0, 1.5)) @ CAMERA_AXES
    return {
        "img_path": f"{name}.jpg",
        "cam2img": CAMERA_MATRIX.tolist(),
        "cam2ego": cam2ego.tolist(),
        "lidar2cam": (np.linalg.inv(cam2ego) @ LIDAR2EGO).tolist(),
    }


def make_instance(scene: int, frame: int, item: tuple) -> dict:
    """3D ground truth of one object, in the lidar frame."""
    global2lidar = np.linalg.inv(ego_pose(scene, frame) @ LIDAR2EGO)
    box = global2lidar @ object_pose(scene, frame, item)
    width, length, height = item[2]
    label = INFO_CLASSES.index(CATEGORIES[item[0]]) if CATEGORIES[item[0]] else -1
    return {
        "bbox_3d": [*box[:3, 3].tolist(), length, width, height, np.arctan2(box[1, 0], box[0, 0])],
        "bbox_label": label,
        "bbox_label_3d": label,
        "velocity": (global2lidar[:2, :2] @ np.array(item[4])).tolist(),
        "num_lidar_pts": item[5],
        "num_radar_pts": 0,
        "bbox_3d_isvalid": item[5] > 0,
    }


def make_cam_instances(camera: int) -> list[dict]:
    """A bus in front of a car, a thin box; on the last camera nothing."""
    if camera == len(CAMERAS) - 1:
        return []
    boxes = (
        ((20.0, 10.0, 90.0, 70.0), "bus", 8.0),
        ((70.0, 30.0, 120.0, 60.0), "car", 30.0),
        ((5.0, 5.0, 5.5, 60.0), "truck", 4.0),
    )
    return [
        {
            "bbox": list(box),
            "bbox_label": INFO_CLASSES.index(name),
            "bbox_label_3d": INFO_CLASSES.index(name),
            "center_2d": [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2],
            "depth": depth,
        }
        for box, name, depth in boxes
    ]
