"""Heatmap of StreamPETR's 2D head: boxes and centres of all images in, one map per image out."""

from __future__ import annotations

import torch
from torch import Tensor

from raggedbev.heatmap.gaussian import draw_gaussian_heatmap
from raggedbev.ragged.batch import RaggedBatch

__all__ = ["focal_head_heatmap"]


def focal_head_heatmap(
    gt_boxes: RaggedBatch, gt_centers: RaggedBatch, pad_shape: tuple[int, int], stride: int
) -> Tensor:
    """Class-agnostic centre heatmap of StreamPETR's 2D head.

    An object is drawn at the cell of its projected 3D centre; its radius is the distance from that centre to the
    nearest edge of its box, in cells, rounded up, at least 1. A centre on the right or lower border of the image lies
    just outside the map, and colours the cells that its square reaches. Objects with a non-finite box or centre are
    skipped.

    Args:
        gt_boxes: [I, G, 4] corners in pixels.
        gt_centers: [I, G, 2] u, v in pixels.
        pad_shape: height and width of the padded image in pixels.
        stride: pixels per cell.

    Returns:
        [I, height // stride, width // stride] float32.
    """
    boxes, centers = gt_boxes.tensor, gt_centers.tensor
    to_edges = torch.cat([centers - boxes[..., :2], boxes[..., 2:] - centers], dim=-1)
    radius = (to_edges.amin(-1) / stride).ceil().clamp(min=1)
    cell = (centers / stride).trunc()
    usable = gt_boxes.mask & boxes.isfinite().all(-1) & centers.isfinite().all(-1)
    height, width = pad_shape[0] // stride, pad_shape[1] // stride
    x, y = torch.where(usable.unsqueeze(-1), cell, 0.0).long().unbind(-1)
    radius = torch.where(usable, radius, -1.0).long()
    ragged = gt_boxes.create_with_sample_sizes_like_self
    return draw_gaussian_heatmap(None, ragged(x), ragged(y), ragged(radius), None, height, width)
