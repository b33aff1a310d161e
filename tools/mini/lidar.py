"""Lidar sweeps: 32 beams cast against ground and blocks.

In: blocks in the world and the lidar's pose. Out: points in the nuScenes layout, and the number inside each box.
"""

from __future__ import annotations

import numpy as np

from .layout import Scene
from .models import MODELS, block_planes
from .rig import Sensor, sensor_to_global

BEAMS, STEPS = 32, 1080
ELEVATIONS = np.radians(np.linspace(-30.67, 10.67, BEAMS))
MAX_RANGE = 100.0
RANGE_NOISE = 0.015  # metres, standard deviation
GROUND_INTENSITY = 12.0


def sweep(scene: Scene, frame: int, sensor: Sensor, ego_pose: np.ndarray, corners: list[np.ndarray]) -> np.ndarray:
    """Points of one turn, all at the keyframe's instant.

    Returns:
        float32 [n, 5]: x, y, z in the lidar frame, intensity in 0..255, ring (0 is the lowest beam).
    """
    rng = np.random.default_rng([scene.seed, scene.index, 4, frame])
    rotation, position = sensor_to_global(sensor, ego_pose)
    azimuths = (np.arange(STEPS) + rng.random()) * (2 * np.pi / STEPS) - np.pi
    flat = np.cos(ELEVATIONS)
    rays = np.stack(
        [
            flat[None] * np.cos(azimuths)[:, None],
            flat[None] * np.sin(azimuths)[:, None],
            np.broadcast_to(np.sin(ELEVATIONS), (STEPS, BEAMS)),
        ],
        -1,
    )  # [steps, beams, 3] in the lidar frame
    distance = np.full((STEPS, BEAMS), np.inf)
    owner = np.full((STEPS, BEAMS), -1)
    down = rays[..., 2] < -1e-3
    distance[down] = -position[2] / rays[..., 2][down]
    for index, blocks in enumerate(corners):
        local = (blocks - position) @ rotation
        if np.hypot(local[..., 0], local[..., 1]).min() < MAX_RANGE:
            for block in local:
                _cast(block, rays, azimuths, distance, owner, index)
    return _returns(scene, rng, rays, distance, owner)


def _cast(
    block: np.ndarray, rays: np.ndarray, azimuths: np.ndarray, distance: np.ndarray, owner: np.ndarray, index: int
) -> None:
    """Shorten the rays that meet a convex block [8, 3]; only the steps that can meet it are looked at."""
    angles = np.arctan2(block[:, 1], block[:, 0])
    middle = np.arctan2(np.sin(angles).sum(), np.cos(angles).sum())
    spread = (angles - middle + np.pi) % (2 * np.pi) - np.pi
    off = (azimuths - middle + np.pi) % (2 * np.pi) - np.pi
    steps = np.nonzero((off >= spread.min()) & (off <= spread.max()))[0]
    if not len(steps):
        return
    normals, offsets = block_planes(block)  # [6, 3], [6]; the lidar is the origin
    along = rays[steps] @ normals.T  # [m, beams, 6]
    with np.errstate(divide="ignore", invalid="ignore"):
        t = offsets / along
    enter = np.where(along < 0, t, -np.inf).max(-1)
    leave = np.where(along > 0, t, np.inf).min(-1)
    missed = ((along == 0) & (offsets < 0)).any(-1)
    hit = (enter < leave) & (enter > 0.5) & (enter < distance[steps]) & ~missed
    rows, columns = np.nonzero(hit)
    distance[steps[rows], columns] = enter[rows, columns]
    owner[steps[rows], columns] = index


def _returns(
    scene: Scene, rng: np.random.Generator, rays: np.ndarray, distance: np.ndarray, owner: np.ndarray
) -> np.ndarray:
    """Noise, losses and intensities."""
    noise, luck, gloss = (rng.standard_normal(distance.shape), rng.random(distance.shape), rng.random(distance.shape))
    reflectivity = np.array([MODELS[t.kind].reflectivity for t in scene.things] + [GROUND_INTENSITY])[owner]
    chance = np.where(owner < 0, np.clip(1.5 - distance / 60.0, 0.0, 0.98), np.clip(1.6 - distance / 100.0, 0.0, 0.98))
    kept = (distance < MAX_RANGE) & (luck < chance)
    reach = (distance + RANGE_NOISE * noise)[kept]
    intensity = np.clip(reflectivity * (0.4 + 1.2 * gloss), 0, 255)[kept]
    ring = np.broadcast_to(np.arange(BEAMS), distance.shape)[kept]
    columns = (rays[kept] * reach[:, None], intensity.round()[:, None], ring[:, None])
    return np.concatenate(columns, 1).astype(np.float32)


def count_points(scene: Scene, frame: int, sensor: Sensor, ego_pose: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points inside each annotated box (bottom on the ground), borders included; int [annotated things]."""
    rotation, position = sensor_to_global(sensor, ego_pose)
    world = points[:, :3].astype(float) @ rotation.T + position
    counts = []
    for thing in scene.things:
        if thing.annotated:
            x, y, yaw = thing.poses[frame]
            width, length, height = thing.size
            dx, dy = world[:, 0] - x, world[:, 1] - y
            c, s = np.cos(yaw), np.sin(yaw)
            inside = (np.abs(dx * c + dy * s) <= length / 2) & (np.abs(dy * c - dx * s) <= width / 2)
            inside &= (world[:, 2] >= 0) & (world[:, 2] <= height)
            counts.append(np.count_nonzero(inside))
    return np.array(counts, int)
