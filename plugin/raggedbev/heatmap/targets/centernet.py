"""Targets of CenterNet's 2D head: boxes and labels of all images in, maps of centres, sizes and offsets out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from raggedbev.heatmap.gaussian import draw_gaussian_heatmap
from raggedbev.heatmap.radius import centernet_radius, whole_radius
from raggedbev.ragged.batch import RaggedBatch
from raggedbev.ragged.primitives import ragged_write

__all__ = ["CenterNetTargets", "centernet_targets"]


class CenterNetTargets(NamedTuple):
    """Maps of B images.

    Attributes:
        center_heatmap: [B, C, H, W].
        wh: [B, 2, H, W] width and height of the box in cells, at the cells of centres.
        offset: [B, 2, H, W] x and y from the cell to the centre, in cells.
        weight: [B, 2, H, W] 1 at the cells of centres, 0 elsewhere.
    """

    center_heatmap: Tensor
    wh: Tensor
    offset: Tensor
    weight: Tensor


def centernet_targets(
    gt_boxes: RaggedBatch,
    gt_labels: RaggedBatch,
    num_classes: int,
    map_shape: tuple[int, int],
    image_shape: tuple[int, int],
    min_overlap: float = 0.3,
) -> CenterNetTargets:
    """Targets of all images at once, as mmdet's CenterNetHead makes them object by object.

    Where several objects share a cell, the last one gives size and offset. Left out are objects whose centre lies
    outside the map, whose label is not a class, or whose corners are not finite.

    Args:
        gt_boxes: [B, G, 4] corners x0, y0, x1, y1 in pixels.
        gt_labels: [B, G] integer labels.
        num_classes: C.
        map_shape: height H and width W of the maps in cells.
        image_shape: height and width of the padded images in pixels.
        min_overlap: overlap that defines the radius.

    Returns:
        Maps of the type of the boxes, on their device.

    Raises:
        ValueError: boxes and labels do not fit each other.
    """
    boxes, labels = gt_boxes.tensor, gt_labels.tensor
    if boxes.dim() != 3 or boxes.shape[-1] != 4 or not boxes.is_floating_point():
        raise ValueError(f"gt_boxes must be floating point [B, G, 4], got {boxes.dtype} {tuple(boxes.shape)}")
    if labels.shape != boxes.shape[:2] or labels.is_floating_point() or labels.device != boxes.device:
        raise ValueError(
            f"gt_labels must be integers {tuple(boxes.shape[:2])} on {boxes.device} like gt_boxes, got "
            f"{labels.dtype} {tuple(labels.shape)} on {labels.device}"
        )
    height, width = map_shape
    height_ratio, width_ratio = float(height / image_shape[0]), float(width / image_shape[1])
    left, top, right, bottom = boxes.unbind(-1)
    center = torch.stack([(left + right) * width_ratio / 2, (top + bottom) * height_ratio / 2], dim=-1)
    cells = center.trunc()
    box_height, box_width = (bottom - top) * height_ratio, (right - left) * width_ratio
    radius = whole_radius(centernet_radius(box_height, box_width, min_overlap), 0)
    x, y = cells.unbind(-1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    drawn = gt_boxes.mask & inside & (radius >= 0) & (labels >= 0) & (labels < num_classes)
    x, y = (torch.where(drawn, entry, 0).long() for entry in (x, y))

    ragged = gt_boxes.create_with_sample_sizes_like_self
    heatmap = draw_gaussian_heatmap(
        None,
        ragged(x),
        ragged(y),
        ragged(torch.where(drawn, radius, -1)),
        None,
        height,
        width,
        labels=ragged(labels),
        num_classes=num_classes,
        dtype=boxes.dtype,
        tables="torch",
    )
    sizes, ones = torch.stack([box_width, box_height], dim=-1), torch.ones_like(center)
    rows = torch.cat([sizes, center - cells, ones], dim=-1)  # [B, G, 6]
    cell = torch.where(drawn, y * width + x, -1)
    written = ragged_write(rows, None, cell, None, None, None, None, height * width)
    maps = written.transpose(1, 2).unflatten(2, (height, width))
    return CenterNetTargets(heatmap, *(part.contiguous() for part in maps.split(2, dim=1)))
