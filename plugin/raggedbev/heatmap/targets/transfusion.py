"""Heatmap of TransFusion's head (BEVFusion): boxes and labels of the batch in, one map per sample and class out."""

from __future__ import annotations

import torch
from torch import Tensor

from raggedbev.heatmap.gaussian import draw_gaussian_heatmap
from raggedbev.heatmap.targets.cells import BevGrid, whole_cells
from raggedbev.heatmap.targets.center_head import check_ground_truth
from raggedbev.ragged.batch import RaggedBatch

__all__ = ["transfusion_heatmap"]


def transfusion_heatmap(
    gt_boxes: RaggedBatch,
    gt_labels: RaggedBatch,
    grid: BevGrid,
    num_classes: int,
    min_overlap: float = 0.1,
    min_radius: int = 2,
) -> Tensor:
    """Heatmap of all samples at once, as the published head makes it object by object.

    Radii are those of CenterPoint. Rows of the map are x and columns are y (an object is drawn at the transposed cell).
    There is no check of the range: of an object outside, the part of its square that reaches the map is drawn. Left out
    are objects whose length or width is not positive, whose centre is not finite, or whose label is not a class.

    Args:
        gt_boxes: [B, G, 7 or 9] gravity centre x, y, z, length, width, height (metres), ...
        gt_labels: [B, G] integer labels.
        grid: the head's map.
        num_classes: C.
        min_overlap: overlap that defines the radius.
        min_radius: smallest radius in cells.

    Returns:
        [B, C, grid.height, grid.width] of type float32, or float64 for float64 boxes.

    Raises:
        ValueError: boxes and labels do not fit each other, or boxes have another width.
    """
    labels = check_ground_truth(gt_boxes, gt_labels)
    boxes = gt_boxes.tensor
    boxes = boxes if boxes.dtype == torch.float64 else boxes.float()
    cells = grid.places(boxes).trunc()
    radius = torch.where(cells.isfinite().all(-1), grid.radii(boxes, min_overlap, min_radius), -1)
    x, y = whole_cells(cells).unbind(-1)
    ragged = gt_boxes.create_with_sample_sizes_like_self
    return draw_gaussian_heatmap(
        None,
        ragged(x),
        ragged(y),
        ragged(radius),
        None,
        grid.height,
        grid.width,
        labels=ragged(labels),
        num_classes=num_classes,
        layout="xy",
        dtype=boxes.dtype,
    )
