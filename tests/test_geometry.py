"""Rigid motions: inverses, broadcasting, empty batches."""

from __future__ import annotations

import numpy as np
import pytest

from raggedbev.geometry import invert_rigid, rigid_matrix


@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 0), (2, 3)])
def test_inverse(shape):
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(*shape, 3, 3)))[0]
    shift = rng.normal(size=(*shape, 3)) * 1000
    motion = rigid_matrix(rotation, shift)
    assert motion.shape == (*shape, 4, 4) and motion.dtype == np.float64
    points = np.concatenate([rng.normal(size=(*shape, 3)), np.ones((*shape, 1))], -1)[..., None]
    moved = (motion @ points)[..., :3, 0]
    np.testing.assert_allclose(moved, (rotation @ points[..., :3, :])[..., 0] + shift, rtol=0, atol=1e-10)
    np.testing.assert_allclose(invert_rigid(motion), np.linalg.inv(motion), rtol=0, atol=1e-10)
