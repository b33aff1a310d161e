"""Box codes, number by number."""

from __future__ import annotations

import math

import pytest
import torch

from raggedbev.matching.box_codes import encode_box3d

BOXES = torch.tensor(
    [[1.0, 2, 3, 4, 5, 6, 0.5, 7, 8], [-1, -2, -3, 0.4, 0.5, 0.6, -2.9, 0, 0], [0, 0, 0, 1, 1, 1, 3.1, 0, 0]],
    dtype=torch.float64,
)


@pytest.mark.parametrize("box_code", ["petr", "detr3d"])
def test_every_number(box_code):
    for box, code in zip(BOXES.tolist(), encode_box3d(BOXES, box_code).tolist(), strict=True):
        x, y, z, length, width, height, yaw, vx, vy = box
        angle = yaw if box_code == "detr3d" else -yaw - math.pi / 2
        wanted = [
            x,
            y,
            math.log(length),
            math.log(width),
            z,
            math.log(height),
            math.sin(angle),
            math.cos(angle),
            vx,
            vy,
        ]
        assert code == pytest.approx(wanted, rel=1e-12, abs=1e-12)


def test_without_velocity():
    assert torch.equal(encode_box3d(BOXES[:, :7], "petr"), encode_box3d(BOXES, "petr")[:, :8])


def test_wrong_input():
    with pytest.raises(ValueError, match="box_code must be one of"):
        encode_box3d(BOXES, "streampetr")
    with pytest.raises(ValueError, match=r"7 columns, or 9 with velocity, got \(3, 8\)"):
        encode_box3d(BOXES[:, :8], "petr")
