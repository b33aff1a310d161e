"""Match costs of LiDAR heads: decoded boxes and padded ground truth in, cost matrices [..., G, P] out.

As in `raggedbev.matching.costs`: leading dimensions broadcast, filler stays in its own rows, no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raggedbev.matching.costs import l1_cost
from raggedbev.matching.overlaps import box3d_iou

__all__ = ["bev_l1_cost", "centers_in_range", "iou3d_cost"]


def centers_in_range(boxes: Tensor, pc_range: Sequence[float]) -> Tensor:
    """Centres in the ground plane, in units of the point cloud range.

    Args:
        boxes: [..., 2 or more], x and y first (m).
        pc_range: lowest x, y, z and highest x, y, z (m), host numbers.

    Returns:
        [..., 2] in [0, 1] for boxes in the range.

    Raises:
        ValueError: `pc_range` is not six numbers, or the highest x or y is not above the lowest.
    """
    values = [float(value) for value in pc_range]
    if len(values) != 6 or not (values[0] < values[3] and values[1] < values[4]):
        raise ValueError(f"the point cloud range must be six numbers, lowest x, y, z first, got {list(pc_range)}")
    low_x, low_y, _, high_x, high_y, _ = values
    x, y = boxes.detach()[..., :2].unbind(-1)
    return torch.stack([(x - low_x) / (high_x - low_x), (y - low_y) / (high_y - low_y)], dim=-1)


def bev_l1_cost(boxes: Tensor, gt_boxes: Tensor, pc_range: Sequence[float], *, weight: float = 1.0) -> Tensor:
    """L1 distance of centres in the ground plane, see `centers_in_range`.

    Args:
        boxes: [..., P, 2 or more], x and y first (m).
        gt_boxes: [..., G, 2 or more], likewise; which point of a box z means has no influence.
        pc_range: lowest x, y, z and highest x, y, z (m), host numbers.
        weight: factor of the result.

    Returns:
        [..., G, P].
    """
    gt_centers = centers_in_range(gt_boxes.to(boxes.dtype), pc_range)
    return l1_cost(centers_in_range(boxes, pc_range), gt_centers).mul_(weight)


def iou3d_cost(boxes: Tensor, gt_boxes: Tensor, *, weight: float = 1.0, z_origin: str = "bottom") -> Tensor:
    """Negative intersection over union of 3D boxes: [..., P, 7 or more], [..., G, 7 or more] -> [..., G, P].

    Boxes and `z_origin` are those of `raggedbev.matching.overlaps.box3d_iou`.
    """
    return box3d_iou(boxes, gt_boxes, z_origin=z_origin).mul_(-weight)
