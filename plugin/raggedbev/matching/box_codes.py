"""Box codes: ground truth [..., 9] in, boxes as a 3D head regresses them out.

Published heads differ in the order of the ten numbers and in what their angle means. The code of the streaming PETR
family is `raggedbev.matching.costs.normalize_box3d`; here are the others.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["BOX_CODES", "encode_box3d"]

BOX_CODES = ("petr", "detr3d")
"""'petr': PETR of mmdet3d's projects. 'detr3d': DETR3D, BEVFormer, and whatever else keeps the yaw as it is."""


def encode_box3d(boxes: Tensor, box_code: str) -> Tensor:
    """Boxes as a head regresses them.

    Args:
        boxes: [..., 7 or 9]: centre x, y, z, length, width, height (m), yaw (rad), and velocity x, y (m/s).
        box_code: one of `BOX_CODES`. The angle of 'petr' is -yaw - pi / 2, wrapped to [-pi, pi); that of 'detr3d' is
            the yaw.

    Returns:
        [..., 8 or 10]: x, y, log length, log width, z, log height, sine and cosine of the angle, and velocity x, y.
        Non-finite where a dimension is not positive.

    Raises:
        ValueError: another code, or another number of columns.
    """
    if box_code not in BOX_CODES:
        raise ValueError(f"box_code must be one of {BOX_CODES}, got {box_code!r}")
    if boxes.shape[-1] not in (7, 9):
        raise ValueError(f"boxes must have 7 columns, or 9 with velocity, got {tuple(boxes.shape)}")
    plane, z, footprint, height, yaw, velocity = boxes.split([2, 1, 2, 1, 1, boxes.shape[-1] - 7], dim=-1)
    if box_code == "petr":
        yaw = -yaw - math.pi / 2
        yaw = yaw - (yaw / (2 * math.pi) + 0.5).floor() * (2 * math.pi)
    return torch.cat([plane, footprint.log(), z, height.log(), yaw.sin(), yaw.cos(), velocity], dim=-1)
