"""Rigid motions in NumPy: rotations and translations in, 4x4 matrices and their inverses out."""

from __future__ import annotations

import numpy as np

__all__ = ["invert_rigid", "rigid_matrix"]


def rigid_matrix(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """4x4 matrices [..., 4, 4] float64 from rotations [..., 3, 3] and translations [..., 3] in metres."""
    transform = np.zeros((*rotation.shape[:-2], 4, 4))
    transform[..., :3, :3] = rotation
    transform[..., :3, 3] = translation
    transform[..., 3, 3] = 1
    return transform


def invert_rigid(transform: np.ndarray) -> np.ndarray:
    """Inverse of rigid 4x4 transforms [..., 4, 4], by transposing the rotation; float64."""
    rotation = np.swapaxes(transform[..., :3, :3], -1, -2)
    return rigid_matrix(rotation, -(rotation @ transform[..., :3, 3:])[..., 0])
