"""The sensors of the recording car: six cameras and one spinning lidar, mounted as in nuScenes.

In: a random generator for the small differences between cars. Out: `Sensor`s with their pose in the ego frame
(x forward, y left, z up, origin on the ground under the rear axle) and, for cameras, the intrinsics.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .geometry import pitch_matrix, yaw_matrix

IMAGE_WIDTH, IMAGE_HEIGHT = 1600, 900

# Columns: channel, position in the ego frame (m), yaw (deg), focal length (px), principal point (px),
# exposure relative to the lidar time stamp (microseconds; the lidar sweeps past the cameras one after the other).
CAMERA_MOUNTS = (
    ("CAM_FRONT", (1.701, 0.016, 1.511), 0.0, 1266.4, (816.3, 491.5), -35_491),
    ("CAM_FRONT_RIGHT", (1.551, -0.493, 1.496), -55.0, 1260.8, (808.0, 495.3), -27_469),
    ("CAM_FRONT_LEFT", (1.524, 0.495, 1.509), 55.0, 1272.6, (826.6, 479.8), -43_152),
    ("CAM_BACK", (0.028, 0.003, 1.579), 180.0, 809.2, (829.2, 481.8), -10_426),
    ("CAM_BACK_LEFT", (1.036, 0.485, 1.591), 110.0, 1256.7, (792.1, 492.8), -528),
    ("CAM_BACK_RIGHT", (1.015, -0.481, 1.562), -110.0, 1259.5, (807.3, 501.2), -20_058),
)
LIDAR_CHANNEL = "LIDAR_TOP"
LIDAR_POSITION = (0.944, 0.0, 1.840)
LIDAR_YAW = -90.0  # the x axis of the nuScenes lidar points to the right of the car

# Columns are the camera axes (right, down, forward) in a frame that looks along x.
OPTICAL_FRAME = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])


@dataclass(frozen=True)
class Sensor:
    """One sensor.

    Attributes:
        channel: name as in nuScenes.
        modality: "camera" or "lidar".
        translation: [3] position in the ego frame, metres.
        rotation: [3, 3] sensor axes in the ego frame.
        intrinsic: [3, 3] camera matrix in pixels, None for the lidar.
        delay: microseconds between the keyframe's time stamp and this sensor's.
    """

    channel: str
    modality: str
    translation: np.ndarray
    rotation: np.ndarray
    intrinsic: np.ndarray | None
    delay: int

    @property
    def is_camera(self) -> bool:
        return self.modality == "camera"


def make_rig(rng: np.random.Generator) -> list[Sensor]:
    """Seven sensors; each car differs a little in mounting angle, position and focal length."""
    sensors = []
    for channel, position, yaw, focal, centre, delay in CAMERA_MOUNTS:
        yaw_error, pitch_error = np.radians(rng.normal(0.0, 0.25, 2))
        focal = focal + rng.normal(0.0, 2.0)
        cx, cy = np.array(centre) + rng.normal(0.0, 3.0, 2)
        intrinsic = np.array([[focal, 0.0, cx], [0.0, focal, cy], [0.0, 0.0, 1.0]])
        rotation = yaw_matrix(np.radians(yaw) + yaw_error) @ pitch_matrix(pitch_error) @ OPTICAL_FRAME
        translation = np.array(position) + rng.normal(0.0, 0.005, 3)
        sensors.append(Sensor(channel, "camera", translation, rotation, intrinsic, delay))
    yaw_error = np.radians(rng.normal(0.0, 0.3))
    rotation = yaw_matrix(np.radians(LIDAR_YAW) + yaw_error)
    translation = np.array(LIDAR_POSITION) + rng.normal(0.0, 0.005, 3)
    sensors.append(Sensor(LIDAR_CHANNEL, "lidar", translation, rotation, None, 0))
    return sensors


def sensor_to_global(sensor: Sensor, ego_pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotation [3, 3] and position [3] of a sensor in the world, for an ego pose (x, y, yaw) on the ground."""
    turn = yaw_matrix(ego_pose[2])
    return turn @ sensor.rotation, turn @ sensor.translation + np.array([ego_pose[0], ego_pose[1], 0.0])
