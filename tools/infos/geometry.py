"""Rigid motions and image boxes for many objects at once.

In: NumPy arrays of quaternions, poses, box sizes and pinhole intrinsics. Out: matrices, headings and clipped 2D boxes.
Letters: N objects or sensors, S samples. Nothing here loops over objects.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

# The eight corners of a unit box, x forward, y left, z up.
_CORNER_SIGNS = np.array([[x, y, z] for x in (1, -1) for y in (1, -1) for z in (1, -1)], dtype=np.float64) / 2  # [8, 3]
_FIRST, _SECOND = np.array(list(combinations(range(8), 2))).T  # the 28 pairs of corners


def quaternion_to_matrix(quaternion: np.ndarray) -> np.ndarray:
    """Rotation matrices of quaternions.

    Args:
        quaternion: [..., 4], order (w, x, y, z), of any non-zero length.

    Returns:
        [..., 3, 3] matrices that rotate column vectors.
    """
    w, x, y, z = np.moveaxis(quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def heading(rotation: np.ndarray) -> np.ndarray:
    """Yaw of rotation matrices [..., 3, 3] in radians, as pyquaternion's ``yaw_pitch_roll`` defines it.

    It is the angle of the first row, not of the first column; the two differ once pitch and roll are not zero.
    """
    return np.arctan2(-rotation[..., 0, 1], rotation[..., 0, 0])


def box_corners(center: np.ndarray, size_lwh: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Corners of boxes.

    Args:
        center: [N, 3] gravity centres in metres.
        size_lwh: [N, 3] length, width and height in metres.
        rotation: [N, 3, 3] from the box frame (x along the length) to the frame of `center`.

    Returns:
        [N, 8, 3] in metres.
    """
    local = _CORNER_SIGNS * size_lwh[:, None, :]
    return local @ np.swapaxes(rotation, -1, -2) + center[:, None, :]


def project(points: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Pixels [N, P, 2] of camera-frame points [N, P, 3] under intrinsics [N, 3, 3]; meaningless where z <= 0."""
    image = points @ np.swapaxes(intrinsics, -1, -2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return image[..., :2] / image[..., 2:]


def clipped_image_boxes(corners: np.ndarray, intrinsics: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """2D boxes of 3D boxes: bounds of (convex hull of the projected corners in front of the camera) and the canvas.

    The hull is never built. A hull cut by the slab ``0 <= y <= height`` is convex, so its extent in x is an interval,
    and cutting by ``0 <= x <= width`` just intersects that interval with [0, width]; the same with the axes exchanged.
    The extent of hull and slab is attained at corners inside the slab, or where a segment between two corners crosses
    a border of the slab.

    Args:
        corners: [N, 8, 3] in the camera frame, metres, z forward.
        intrinsics: [N, 3, 3].
        size: [N, 2] canvas width and height in pixels.

    Returns:
        boxes [N, 4] (x0, y0, x1, y1) in pixels, and visible [N] bool: the intersection has an area. Rows that
        are not visible hold no meaningful box.
    """
    in_front = corners[..., 2] > 0  # [N, 8]
    pixels = project(corners, intrinsics)
    low = np.where(in_front[..., None], pixels, np.inf).min(axis=1)  # [N, 2]
    high = np.where(in_front[..., None], pixels, -np.inf).max(axis=1)
    boxes = np.concatenate([low, high], axis=1)
    visible = (in_front.sum(axis=1) >= 3) & (low < size).all(axis=1) & (high > 0).all(axis=1)
    cut = visible & ((low < 0) | (high > size)).any(axis=1)
    rows = np.flatnonzero(cut)
    for axis in (0, 1):
        extent = _extent_in_slab(pixels[rows], in_front[rows], size[rows, 1 - axis], axis)
        boxes[rows, axis] = np.maximum(extent[0], 0)
        boxes[rows, axis + 2] = np.minimum(extent[1], size[rows, axis])
    visible &= (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return boxes, visible


def _extent_in_slab(
    pixels: np.ndarray, in_front: np.ndarray, slab: np.ndarray, axis: int
) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest coordinate along `axis` of hulls [N, 8, 2] within ``0 <= other coordinate <= slab`` [N].

    Where hull and slab do not meet, the lowest is +inf and the highest -inf.
    """
    along, across = pixels[..., axis], pixels[..., 1 - axis]
    inside = in_front & (across >= 0) & (across <= slab[:, None])
    candidates, valid = [along], [inside]
    both = in_front[:, _FIRST] & in_front[:, _SECOND]  # [N, 28]
    start, step = across[:, _FIRST], across[:, _SECOND] - across[:, _FIRST]
    for border in (np.zeros(len(slab)), slab):
        with np.errstate(divide="ignore", invalid="ignore"):
            fraction = (border[:, None] - start) / step
            crossing = along[:, _FIRST] + fraction * (along[:, _SECOND] - along[:, _FIRST])
        candidates.append(crossing)
        valid.append(both & (fraction >= 0) & (fraction <= 1))
    values, keep = np.concatenate(candidates, axis=1), np.concatenate(valid, axis=1)
    return np.where(keep, values, np.inf).min(axis=1), np.where(keep, values, -np.inf).max(axis=1)
