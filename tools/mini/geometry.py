"""Rotations, quaternions and oriented rectangles, in NumPy.

In: angles in radians, poses (x, y, yaw). Out: matrices, wxyz quaternions, overlap tests.
"""

from __future__ import annotations

import numpy as np


def yaw_matrix(yaw: float) -> np.ndarray:
    """Rotation about z, [3, 3], counter-clockwise by `yaw` radians."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def pitch_matrix(pitch: float) -> np.ndarray:
    """Rotation about y, [3, 3]; a positive pitch lowers the x axis."""
    c, s = np.cos(pitch), np.sin(pitch)
    return np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])


def yaw_quaternion(yaw: float) -> list[float]:
    """Quaternion wxyz of a rotation about z."""
    return [float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))]


def quaternion(rotation: np.ndarray) -> list[float]:
    """Quaternion wxyz of a rotation matrix [3, 3], with the largest component computed first for accuracy."""
    m = rotation
    squares = np.array(
        [
            1 + m[0, 0] + m[1, 1] + m[2, 2],
            1 + m[0, 0] - m[1, 1] - m[2, 2],
            1 - m[0, 0] + m[1, 1] - m[2, 2],
            1 - m[0, 0] - m[1, 1] + m[2, 2],
        ]
    )
    rows = np.array(
        [
            [squares[0], m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]],
            [m[2, 1] - m[1, 2], squares[1], m[0, 1] + m[1, 0], m[0, 2] + m[2, 0]],
            [m[0, 2] - m[2, 0], m[0, 1] + m[1, 0], squares[2], m[1, 2] + m[2, 1]],
            [m[1, 0] - m[0, 1], m[0, 2] + m[2, 0], m[1, 2] + m[2, 1], squares[3]],
        ]
    )
    best = rows[int(np.argmax(squares))]
    return [float(v) for v in best / np.linalg.norm(best)]


def footprint(pose: np.ndarray, length: np.ndarray, width: np.ndarray, margin: float = 0.0) -> np.ndarray:
    """Corners of oriented rectangles on the ground.

    Args:
        pose: [..., 3] centre x, y and yaw.
        length: [...] extent along the heading, metres.
        width: [...] extent across it.
        margin: metres added on every side.

    Returns:
        [..., 4, 2] corners, counter-clockwise from the front right one.
    """
    half_l = np.asarray(length)[..., None] / 2 + margin
    half_w = np.asarray(width)[..., None] / 2 + margin
    along = half_l * np.array([1.0, 1.0, -1.0, -1.0])
    across = half_w * np.array([-1.0, 1.0, 1.0, -1.0])
    c, s = np.cos(pose[..., 2:3]), np.sin(pose[..., 2:3])
    return np.stack([pose[..., 0:1] + along * c - across * s, pose[..., 1:2] + along * s + across * c], axis=-1)


def rectangles_overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Separating axis test between rectangles [..., 4, 2]; broadcasts; returns bool [...]."""
    overlap = np.ones(np.broadcast_shapes(a.shape, b.shape)[:-2], bool)
    for owner in (a, b):
        for edge in (owner[..., 1, :] - owner[..., 0, :], owner[..., 2, :] - owner[..., 1, :]):
            pa = (a * edge[..., None, :]).sum(-1)
            pb = (b * edge[..., None, :]).sum(-1)
            overlap &= (pa.max(-1) > pb.min(-1)) & (pb.max(-1) > pa.min(-1))
    return overlap
