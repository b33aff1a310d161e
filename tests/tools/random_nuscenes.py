"""A nuScenes-format root of random numbers for tests: awkward poses and boxes, no rendering.

Everything the real tables can do is in it: boxes behind, across and outside the images, unknown categories, objects
seen once, gaps in time, no points, no attribute, sweeps between keyframes, scenes without boxes.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from raggedbev.nuscenes import CAMERAS

YAWS = (0, -55, 55, 180, 110, -110)  # degrees, camera heading in the ego frame
CATEGORIES = (
    "vehicle.car",
    "vehicle.truck",
    "vehicle.trailer",
    "vehicle.bus.rigid",
    "vehicle.construction",
    "vehicle.bicycle",
    "vehicle.motorcycle",
    "human.pedestrian.adult",
    "movable_object.trafficcone",
    "movable_object.barrier",
    "animal",
)
ATTRIBUTES = ("vehicle.moving", "vehicle.parked", "pedestrian.standing", "cycle.without_rider")


def quaternion(yaw: float, pitch: float = 0.0, roll: float = 0.0) -> np.ndarray:
    """wxyz of Rz(yaw) Ry(pitch) Rx(roll), radians."""

    def about(axis: int, angle: float) -> np.ndarray:
        q = np.zeros(4)
        q[0], q[1 + axis] = np.cos(angle / 2), np.sin(angle / 2)
        return q

    def multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        scalar = a[0] * b[0] - a[1:] @ b[1:]
        return np.concatenate([[scalar], a[0] * b[1:] + b[0] * a[1:] + np.cross(a[1:], b[1:])])

    return multiply(multiply(about(2, yaw), about(1, pitch)), about(0, roll))


class RandomNuScenes:
    """Builds the thirteen tables in memory; `write` puts them and the sensor files on disk."""

    def __init__(self, scenes=("scene-0061", "scene-0103"), frames=4, objects=30, seed=0, version="v1.0-mini"):
        self.version = version
        self.rng = np.random.default_rng(seed)
        self.files: list[str] = []
        self.tables: dict[str, list[dict]] = {
            "category": [{"token": f"cat{i}", "name": n, "description": ""} for i, n in enumerate(CATEGORIES)],
            "attribute": [{"token": f"attr{i}", "name": n, "description": ""} for i, n in enumerate(ATTRIBUTES)],
            "visibility": [{"token": str(i), "level": f"v{i}", "description": ""} for i in range(1, 5)],
            "sensor": [
                {"token": f"sensor-{c}", "channel": c, "modality": "lidar" if c == "LIDAR_TOP" else "camera"}
                for c in ("LIDAR_TOP", *CAMERAS)
            ],
            "log": [
                {"token": "log0", "logfile": "", "vehicle": "", "date_captured": "2018-01-01", "location": "nowhere"}
            ],
            "map": [
                {"token": "map0", "log_tokens": ["log0"], "category": "semantic_prior", "filename": "maps/map.png"}
            ],
        }
        filled = "instance calibrated_sensor ego_pose scene sample sample_data sample_annotation"
        self.tables.update({name: [] for name in filled.split()})
        for i, name in enumerate(scenes):
            self._add_scene(i, name, frames, objects)

    def write(self, root: Path, image: Image.Image | None = None) -> Path:
        """Write tables, one map and all sensor files (pictures only if `image` is given); returns `root`."""
        folder = root / self.version
        folder.mkdir(parents=True)
        for name, rows in self.tables.items():
            (folder / f"{name}.json").write_text(json.dumps(rows))
        (root / "maps").mkdir()
        Image.new("L", (8, 8)).save(root / "maps" / "map.png")
        for name in self.files:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if image is not None and name.endswith(".jpg"):
                image.save(path)
            else:
                path.touch()
        return root

    def _add_scene(self, index: int, name: str, frames: int, objects: int) -> None:
        token = f"scene{index}"
        start = 1_500_000_000_000_000 + (10 - index) * 10**9  # later scenes in the table start earlier
        for channel, yaw in zip(("LIDAR_TOP", *CAMERAS), (0, *YAWS), strict=True):
            self._add_calibration(f"{token}-{channel}", channel, np.deg2rad(yaw))
        samples = [f"{token}-sample{k}" for k in range(frames)]
        for k, sample in enumerate(samples):
            step = 0 if k < frames - 1 else 4_000_000  # a gap before the last frame
            row = {"token": sample, "timestamp": start + 900_000 * k + step, "scene_token": token}
            row.update(prev=samples[k - 1] if k else "", next=samples[k + 1] if k + 1 < frames else "")
            self.tables["sample"].append(row)
            self._add_keyframe(token, name, k, row, frames)
        self.tables["scene"].append(
            {
                "token": token,
                "name": name,
                "log_token": "log0",
                "nbr_samples": frames,
                "description": "",
                "first_sample_token": samples[0],
                "last_sample_token": samples[-1],
            }
        )
        self._add_objects(token, samples, objects)

    def _add_calibration(self, token: str, channel: str, yaw: float) -> None:
        rng = self.rng
        if channel == "LIDAR_TOP":
            rotation = quaternion(-np.pi / 2 + 0.02, 0.01, -0.02)
            row = {"translation": [0.94, 0.0, 1.84], "camera_intrinsic": []}
        else:
            rotation = quaternion(yaw - np.pi / 2, rng.uniform(-0.02, 0.02), -np.pi / 2 + rng.uniform(-0.02, 0.02))
            focal = rng.uniform(800, 1300)
            translation = [1.5 * np.cos(yaw), 0.8 * np.sin(yaw), 1.5]
            row = {"translation": translation, "camera_intrinsic": [[focal, 0, 810.5], [0, focal, 480.25], [0, 0, 1]]}
        row.update(token=f"cal-{token}", sensor_token=f"sensor-{channel}", rotation=rotation.tolist())
        self.tables["calibrated_sensor"].append(row)

    def _add_keyframe(self, scene: str, name: str, k: int, sample: dict, frames: int) -> None:
        for c, channel in enumerate(("LIDAR_TOP", *CAMERAS)):
            lidar = channel == "LIDAR_TOP"
            ext = "pcd.bin" if lidar else "jpg"
            records = [(f"{scene}-{channel}-{k}", sample["timestamp"] + 7_000 * c, True)]
            if lidar and k + 1 < frames:
                records.append((f"{scene}-{channel}-{k}s", sample["timestamp"] + 250_000, False))
            for token, time, key in records:
                self._add_pose(token, k + (0 if key else 0.5) + 0.03 * c)
                filename = f"{'samples' if key else 'sweeps'}/{channel}/{name}-{token}.{ext}"
                self.files.append(filename)
                size = {"width": 0, "height": 0} if lidar else {"width": 1600, "height": 900}
                self.tables["sample_data"].append(
                    dict(
                        token=token,
                        sample_token=sample["token"],
                        ego_pose_token=f"pose-{token}",
                        timestamp=time,
                        calibrated_sensor_token=f"cal-{scene}-{channel}",
                        fileformat=ext,
                        is_key_frame=key,
                        filename=filename,
                        prev="",
                        next="",
                        **size,
                    )
                )
            if lidar:
                self._link(scene, channel, k, frames)

    def _link(self, scene: str, channel: str, k: int, frames: int) -> None:
        rows = {row["token"]: row for row in self.tables["sample_data"]}
        key, sweep, before = f"{scene}-{channel}-{k}", f"{scene}-{channel}-{k}s", f"{scene}-{channel}-{k - 1}s"
        if k:
            rows[key]["prev"], rows[before]["next"] = before, key
        if k + 1 < frames:
            rows[key]["next"], rows[sweep]["prev"] = sweep, key

    def _add_pose(self, token: str, time: float) -> None:
        rotation = quaternion(0.6 + 0.05 * time, 0.01 * np.sin(time), 0.02)
        translation = [400 + 3 * time, 1100 + 2 * time, 0.1 * time]
        self.tables["ego_pose"].append(
            {"token": f"pose-{token}", "timestamp": 0, "rotation": rotation.tolist(), "translation": translation}
        )

    def _add_objects(self, scene: str, samples: list[str], objects: int) -> None:
        rng = self.rng
        for i in range(objects):
            instance, category = f"{scene}-object{i}", i % len(CATEGORIES)
            seen = samples if i % 3 else samples[i % len(samples) :][:1]
            tokens = [f"{instance}-{sample}" for sample in seen]
            self.tables["instance"].append(
                {
                    "token": instance,
                    "category_token": f"cat{category}",
                    "nbr_annotations": len(tokens),
                    "first_annotation_token": tokens[0],
                    "last_annotation_token": tokens[-1],
                }
            )
            near = i % 5 == 0  # some boxes surround or touch the cameras
            centre = np.array([405, 1103, 1.0]) + rng.uniform(-1, 1, 3) * ((6, 6, 1.5) if near else (35, 35, 1.5))
            speed = rng.uniform(-2, 2, 3) * (1, 1, 0.02)
            yaw, size = rng.uniform(-np.pi, np.pi), rng.uniform((0.4, 0.5, 0.8), (3, 12, 4))
            for k, (token, sample) in enumerate(zip(tokens, seen, strict=True)):
                self.tables["sample_annotation"].append(
                    {
                        "token": token,
                        "sample_token": sample,
                        "instance_token": instance,
                        "visibility_token": str(1 + i % 4),
                        "attribute_tokens": [] if i % 4 == 0 else [f"attr{i % len(ATTRIBUTES)}"],
                        "translation": (centre + k * speed).tolist(),
                        "size": size.tolist(),
                        "rotation": quaternion(yaw + 0.1 * k, *rng.uniform(-0.05, 0.05, 2)).tolist(),
                        "prev": tokens[k - 1] if k else "",
                        "next": tokens[k + 1] if k + 1 < len(tokens) else "",
                        "num_lidar_pts": int(rng.integers(0, 3)),
                        "num_radar_pts": int(rng.integers(0, 2)),
                    }
                )
