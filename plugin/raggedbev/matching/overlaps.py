"""Overlap of rotated boxes: predictions [..., P, D] and objects [..., G, D] in, one number per pair [..., G, P] out.

All leading dimensions broadcast. Every entry depends on its own two boxes only, so filler stays in its own rows. Memory
is some forty buffers of the result's size. Results carry no gradient.

The area is a boundary integral. In the frame of the object, a rectangle of half sizes a and b, the prediction's
vertical section at x is [l(x), u(x)], and what lies inside the object is clamp(u, -b, b) - clamp(l, -b, b). So the area
is the integral of clamp(y, -b, b) dx over the prediction's four edges, cut to |x| <= a: a closed form per edge, without
lists of corners, and continuous in the boxes, so rounding moves the area by rounding only, parallel and coincident
edges included.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

__all__ = ["Z_ORIGINS", "box3d_iou", "rotated_intersection"]

Z_ORIGINS = ("bottom", "center")


def _pair(preds: Tensor, targets: Tensor, width: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Columns of both: predictions as `width` tensors [..., 1, P] and targets as [..., G, 1]; half types as float32."""
    if min(preds.shape[-1], targets.shape[-1]) < width:
        raise ValueError(
            f"boxes must have at least {width} columns, got {tuple(preds.shape)} and {tuple(targets.shape)}"
        )
    dtype = torch.promote_types(preds.dtype, targets.dtype)
    if dtype in (torch.float16, torch.bfloat16):
        dtype = torch.float32
    columns = preds.detach()[..., :width].to(dtype).transpose(-1, -2).contiguous().unsqueeze(-2).unbind(-3)
    rows = targets.detach()[..., :width].to(dtype).transpose(-1, -2).contiguous().unsqueeze(-1).unbind(-3)
    return columns, rows


def _clamp(values: Tensor, limit: Tensor) -> Tensor:
    """`values` cut to [-limit, limit]."""
    return values.maximum(-limit).minimum(limit)


def _edge_integral(start: tuple[Tensor, Tensor], end: tuple[Tensor, Tensor], half: tuple[Tensor, Tensor]) -> Tensor:
    """Integral of clamp(y, -b, b) dx along the segment from `start` to `end`, cut to |x| <= a, for half = (a, b)."""
    (x0, y0), (x1, y1), (a, b) = start, end, half
    from_x, to_x = _clamp(x0, a), _clamp(x1, a)
    run = x1 - x0
    run = torch.where(run == 0, 1.0, run)
    from_y = torch.lerp(y0, y1, ((from_x - x0) / run).clamp(0, 1))
    to_y = torch.lerp(y0, y1, ((to_x - x0) / run).clamp(0, 1))
    low, high = from_y.minimum(to_y), from_y.maximum(to_y)
    rise = high - low
    rise = torch.where(rise == 0, 1.0, rise)
    below, above = ((-b - low) / rise).clamp(0, 1), ((high - b) / rise).clamp(0, 1)  # shares cut off by the clamp
    mean = (_clamp(low, b) + _clamp(high, b)) / 2
    mean = mean + below * (-b - mean) + above * (b - mean)
    return (to_x - from_x) * mean


def _intersection(
    center: tuple[Tensor, Tensor], turn: tuple[Tensor, Tensor], pred_half: tuple[Tensor, Tensor], half: tuple
) -> Tensor:
    """Area shared by the rectangle |x| <= a, |y| <= b, half = (a, b), and one whose centre and turn it sees.

    Args:
        center: x and y [..., G, P] of the other rectangle.
        turn: cosine and sine of its yaw [..., G, P].
        pred_half: its half sizes [..., 1, P].
        half: a and b [..., G, 1].
    """
    (x, y), (cos, sin), (length, width), (a, b) = center, turn, pred_half, half
    forth, left = (cos * length, sin * length), (-sin * width, cos * width)
    corners = [
        (x + i * forth[0] + j * left[0], y + i * forth[1] + j * left[1])
        for i, j in ((1, 1), (-1, 1), (-1, -1), (1, -1))  # counterclockwise
    ]
    area = _edge_integral(corners[3], corners[0], half)
    for start, end in itertools.pairwise(corners):
        area = area + _edge_integral(start, end, half)
    reach = cos.abs(), sin.abs()
    apart = x.abs() >= a + length * reach[0] + width * reach[1]
    apart |= y.abs() >= b + length * reach[1] + width * reach[0]
    apart |= (x * cos + y * sin).abs() >= length + a * reach[0] + b * reach[1]
    apart |= (y * cos - x * sin).abs() >= width + a * reach[1] + b * reach[0]
    return torch.where(apart, 0.0, (-area).clamp(min=0))


def _bird_eye_intersection(preds: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> Tensor:
    """Area [..., G, P] from columns centre x, y, length, width (not negative), yaw."""
    px, py, p_length, p_width, p_yaw = preds
    gx, gy, g_length, g_width, g_yaw = targets
    x, y = px - gx, py - gy
    cos, sin = g_yaw.cos(), g_yaw.sin()
    turn = p_yaw - g_yaw
    return _intersection(
        (x * cos + y * sin, y * cos - x * sin),
        (turn.cos(), turn.sin()),
        (p_length / 2, p_width / 2),
        (g_length / 2, g_width / 2),
    )


@torch.no_grad()
def rotated_intersection(preds: Tensor, targets: Tensor) -> Tensor:
    """Area shared by rotated rectangles.

    Args:
        preds: [..., P, 5]: centre x, y, length (along the heading), width, yaw (rad, from x towards y).
        targets: [..., G, 5], in the same units.

    Returns:
        [..., G, P] in square units; exactly 0 for rectangles that are apart, touch, or have no area (a negative size
        counts as 0). NaN where a box has NaN.

    Raises:
        ValueError: fewer than five columns.
    """
    columns, rows = _pair(preds, targets, 5)
    return _bird_eye_intersection(
        (*columns[:2], columns[2].clamp(min=0), columns[3].clamp(min=0), columns[4]),
        (*rows[:2], rows[2].clamp(min=0), rows[3].clamp(min=0), rows[4]),
    )


@torch.no_grad()
def box3d_iou(preds: Tensor, targets: Tensor, *, z_origin: str = "bottom") -> Tensor:
    """Intersection over union of upright 3D boxes.

    Args:
        preds: [..., P, 7 or more]: x, y, z, length, width, height (m), yaw about z (rad, from x towards y); further
            columns are ignored.
        targets: [..., G, 7 or more], likewise.
        z_origin: what z means in both: 'bottom', the centre of the bottom face (tensors of mmdet3d's LiDAR boxes), or
            'center', the gravity centre.

    Returns:
        [..., G, P] in [0, 1]: exactly 1 for identical boxes and exactly 0 for boxes that do not overlap. A box without
        volume (a negative size counts as 0), or with an infinite one, overlaps nothing. NaN where a box has NaN.

    Raises:
        ValueError: fewer than seven columns, or an unknown `z_origin`.
    """
    if z_origin not in Z_ORIGINS:
        raise ValueError(f"z_origin must be one of {Z_ORIGINS}, got {z_origin!r}")
    (px, py, pz, *p_size, p_yaw), (gx, gy, gz, *g_size, g_yaw) = _pair(preds, targets, 7)
    p_length, p_width, p_height = (size.clamp(min=0) for size in p_size)
    g_length, g_width, g_height = (size.clamp(min=0) for size in g_size)
    rise = pz - gz
    if z_origin == "center":
        rise = rise + (g_height - p_height) / 2
    height = g_height.minimum(rise + p_height) - rise.clamp(min=0)
    shared = _bird_eye_intersection((px, py, p_length, p_width, p_yaw), (gx, gy, g_length, g_width, g_yaw))
    p_volume, g_volume = p_length * p_width * p_height, g_length * g_width * g_height
    total = p_volume + g_volume
    shared = (shared * height.clamp(min=0)).minimum(p_volume).minimum(g_volume)
    shared = torch.where(total.isinf(), 0.0, shared)
    return shared / (total - shared).clamp(min=torch.finfo(total.dtype).tiny)
