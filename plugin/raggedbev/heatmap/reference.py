"""The meaning of the heatmap operator and of the heads' targets: one object after the other, in NumPy and slices.

In and out as in `gaussian.py`, `radius.py` and `targets`; reads every object on the host, so it is slow and meant for
tests and benchmarks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from raggedbev.heatmap.radius import centernet_radius, whole_radius
from raggedbev.heatmap.targets import BevGrid, CenterHeadConfig, CenterHeadTargets, CenterNetTargets


def draw_gaussian_heatmap_reference(
    map_index: Tensor,
    x: Tensor,
    y: Tensor,
    radius: Tensor,
    num_maps: int,
    height: int,
    width: int,
    *,
    labels: Tensor | None = None,
    num_classes: int | None = None,
    layout: str = "yx",
    clip: bool = True,
    dtype: torch.dtype = torch.float32,
    sigma_factor: float = 6.0,
    k: float = 1.0,
) -> Tensor:
    """Draws the objects one by one; arguments and result of `draw_gaussian_heatmap` for flat lists."""
    classes = 1 if num_classes is None else num_classes
    heatmap = torch.zeros((num_maps, classes, height, width), dtype=dtype, device=map_index.device)
    label_of = torch.zeros_like(map_index) if labels is None else labels
    lists = (map_index, label_of, *((x, y) if layout == "yx" else (y, x)), radius)
    for map_id, label, column, row, size in zip(*(entry.flatten().tolist() for entry in lists), strict=True):
        inside = 0 <= column < width and 0 <= row < height
        if 0 <= map_id < num_maps and 0 <= label < classes and size >= 0 and (clip or inside):
            draw_one_gaussian(heatmap[map_id, label], column, row, size, sigma_factor=sigma_factor, k=k)
    return heatmap.squeeze(1) if num_classes is None else heatmap


def draw_one_gaussian(
    heatmap: Tensor, x: int, y: int, radius: int, *, sigma_factor: float = 6.0, k: float = 1.0
) -> None:
    """Draws one object into one map [H, W], in place.

    Args:
        heatmap: [H, W] map that is drawn into.
        x: column of the centre, in cells; may lie outside.
        y: row of the centre, in cells; may lie outside.
        radius: radius R >= 0 in cells.
        sigma_factor: object diameter in standard deviations.
        k: value at the centre.
    """
    height, width = heatmap.shape
    left, right = max(x - radius, 0), min(x + radius, width - 1)
    top, bottom = max(y - radius, 0), min(y + radius, height - 1)
    if left > right or top > bottom:
        return
    sigma = (2 * radius + 1) / sigma_factor
    dx = np.arange(left - x, right - x + 1, dtype=np.float64)[None, :]
    dy = np.arange(top - y, bottom - y + 1, dtype=np.float64)[:, None]
    gaussian = torch.from_numpy(np.exp(-(dx * dx + dy * dy) / (2 * sigma * sigma)))
    region = heatmap[top : bottom + 1, left : right + 1]
    torch.maximum(region, gaussian.to(region.device, region.dtype) * k, out=region)


def _radius_of_corners(height: float, width: float, min_overlap: float, divided: bool) -> float:
    """Smallest of the three roots in float64; `divided`: by the leading coefficients, as CenterNet has it."""
    total, area = height + width, height * width
    quadratics = (
        (1.0, -total, area * (1 - min_overlap) / (1 + min_overlap)),
        (4.0, -2 * total, area * (1 - min_overlap)),
        (4 * min_overlap, 2 * min_overlap * total, area * (min_overlap - 1)),
    )
    roots = []
    for number, (a, b, c) in enumerate(quadratics):
        root = math.sqrt(b * b - 4 * a * c)
        if divided:
            roots.append((-b + (root if number == 2 else -root)) / (2 * a))
        else:
            roots.append((-b + root) / 2)
    return min(roots)


def centerpoint_radius_reference(height: float, width: float, min_overlap: float = 0.5) -> float:
    """`centerpoint_radius` of one box, in float64."""
    return _radius_of_corners(height, width, min_overlap, divided=False)


def centernet_radius_reference(height: float, width: float, min_overlap: float) -> float:
    """`centernet_radius` of one box, in float64."""
    return _radius_of_corners(height, width, min_overlap, divided=True)


def center_head_targets_reference(
    box_list: Sequence[Tensor], label_list: Sequence[Tensor], config: CenterHeadConfig
) -> CenterHeadTargets:
    """`center_head_targets` object by object.

    Args:
        box_list: per sample [G, 7 or 9].
        label_list: per sample [G].
        config: as there.
    """
    tasks: list[tuple[list[Tensor], ...]] = []
    first = 0
    for num_classes in config.classes_per_task:
        samples = [
            _center_task(boxes, labels, range(first, first + num_classes), config)
            for boxes, labels in zip(box_list, label_list, strict=True)
        ]
        tasks.append(tuple(list(parts) for parts in zip(*samples, strict=True)))
        first += num_classes
    return CenterHeadTargets(*([torch.stack(parts) for parts in kind] for kind in zip(*tasks, strict=True)))


def _center_task(boxes: Tensor, labels: Tensor, classes: range, config: CenterHeadConfig) -> tuple[Tensor, ...]:
    """Heatmap, boxes, cells and mask of one sample and task."""
    grid, slots = config.grid, config.max_objects
    heatmap = boxes.new_zeros(len(classes), grid.height, grid.width)
    anno_boxes, inds = boxes.new_zeros(slots, boxes.shape[1] + 1), labels.new_zeros(slots, dtype=torch.int64)
    mask = torch.zeros(slots, dtype=torch.uint8, device=boxes.device)
    mine = [index for label in classes for index in range(len(labels)) if int(labels[index]) == label]
    for slot, index in enumerate(mine[:slots]):
        box = boxes[index]
        place, radius = grid.places(box), int(grid.radii(box, config.min_overlap, config.min_radius))
        x, y = (float(part) for part in place)
        if radius < 0 or not (-1 < x < grid.width and -1 < y < grid.height):
            continue
        column, row = int(x), int(y)
        draw_one_gaussian(heatmap[int(labels[index]) - classes.start], column, row, radius)
        inds[slot], mask[slot] = row * grid.width + column, 1
        dims = box[3:6].log() if config.log_dims else box[3:6]
        rotation = [box[6:7].cos(), box[6:7].sin()] if config.cos_first else [box[6:7].sin(), box[6:7].cos()]
        cell = torch.tensor([column, row], device=boxes.device)
        anno_boxes[slot] = torch.cat([place - cell, box[2:3], dims, *rotation, box[7:]])
    return heatmap, anno_boxes, inds, mask


def transfusion_heatmap_reference(
    box_list: Sequence[Tensor],
    label_list: Sequence[Tensor],
    grid: BevGrid,
    num_classes: int,
    min_overlap: float = 0.1,
    min_radius: int = 2,
) -> Tensor:
    """`transfusion_heatmap` object by object, from lists per sample."""
    heatmap = box_list[0].new_zeros(len(box_list), num_classes, grid.height, grid.width)
    for sample, (boxes, labels) in enumerate(zip(box_list, label_list, strict=True)):
        for box, label in zip(boxes, labels.tolist(), strict=True):
            place, radius = grid.places(box), int(grid.radii(box, min_overlap, min_radius))
            if radius >= 0 and 0 <= label < num_classes and bool(place.isfinite().all()):
                draw_one_gaussian(heatmap[sample, label], int(place[1]), int(place[0]), radius)
    return heatmap


def centernet_targets_reference(
    box_list: Sequence[Tensor],
    label_list: Sequence[Tensor],
    num_classes: int,
    map_shape: tuple[int, int],
    image_shape: tuple[int, int],
    min_overlap: float = 0.3,
) -> CenterNetTargets:
    """`centernet_targets` object by object, from lists per image; Gaussians in float64."""
    height, width = map_shape
    batch, first = len(box_list), box_list[0]
    heatmap = first.new_zeros(batch, num_classes, height, width)
    wh, offset, weight = (first.new_zeros(batch, 2, height, width) for _ in range(3))
    ratio = torch.tensor([width / image_shape[1], height / image_shape[0]], dtype=first.dtype, device=first.device)
    for image, (boxes, labels) in enumerate(zip(box_list, label_list, strict=True)):
        for box, label in zip(boxes, labels.tolist(), strict=True):
            center, size = (box[:2] + box[2:]) * ratio / 2, (box[2:] - box[:2]) * ratio
            x, y = (float(part) for part in center)
            radius = int(whole_radius(centernet_radius(size[1], size[0], min_overlap), 0))
            if radius < 0 or not (0 <= label < num_classes and -1 < x < width and -1 < y < height):
                continue
            column, row = int(x), int(y)
            draw_one_gaussian(heatmap[image, label], column, row, radius)
            wh[image, :, row, column] = size
            offset[image, :, row, column] = center - torch.tensor([column, row], device=first.device)
            weight[image, :, row, column] = 1
    return CenterNetTargets(heatmap, wh, offset, weight)
