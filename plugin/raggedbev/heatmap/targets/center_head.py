"""Targets of CenterPoint's head: boxes and labels of the whole batch in, the four targets of every task out.

Letters: B samples, G objects of a sample (padded), T tasks, C classes of a task, M slots of a task, D numbers per slot.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from raggedbev.heatmap.gaussian import draw_gaussian_heatmap
from raggedbev.heatmap.targets.cells import BevGrid, constant, whole_cells
from raggedbev.ragged.batch import RaggedBatch

__all__ = ["CenterHeadConfig", "CenterHeadTargets", "center_head_targets", "check_ground_truth"]

_BOX_WIDTHS = (7, 9)


@dataclass(frozen=True)
class CenterHeadConfig:
    """What the targets depend on.

    Attributes:
        classes_per_task: number of classes of each task; labels count through all tasks.
        grid: the head's map.
        max_objects: M, slots of a task and sample; further objects are left out.
        min_overlap: overlap that defines the radius.
        min_radius: smallest radius in cells.
        log_dims: whether the targets of the dimensions are logarithms (the head's norm_bbox).
        cos_first: whether the cosine of the yaw comes before the sine, as in DSVT's head.
    """

    classes_per_task: tuple[int, ...]
    grid: BevGrid
    max_objects: int = 500
    min_overlap: float = 0.1
    min_radius: int = 2
    log_dims: bool = True
    cos_first: bool = False

    def __post_init__(self) -> None:
        if not self.classes_per_task or min(self.classes_per_task) < 1:
            raise ValueError(f"every task needs a class, got classes_per_task={self.classes_per_task}")
        if self.max_objects < 0:
            raise ValueError(f"max_objects must not be negative, got {self.max_objects}")

    def tables_by_label(self, device: torch.device) -> Tensor:
        """[3, labels] int64: the task of each label, the first label of that task, and how many classes it has."""
        firsts = itertools.accumulate(self.classes_per_task, initial=0)
        tasks = list(enumerate(zip(firsts, self.classes_per_task, strict=False)))
        rows = [[(task, first, count)] * count for task, (first, count) in tasks]
        by_label = list(itertools.chain.from_iterable(rows))
        return constant(tuple(itertools.chain.from_iterable(zip(*by_label, strict=True))), device).view(3, -1)


class CenterHeadTargets(NamedTuple):
    """Per task, in order.

    Attributes:
        heatmaps: [B, C, H, W].
        anno_boxes: [B, M, D]: offset from the cell (2), z, dimensions (3), sine and cosine of the yaw and, where boxes
            have it, velocity (2); zero in slots without an object.
        inds: [B, M] int64, cell y * W + x.
        masks: [B, M] uint8, 1 in slots with an object.
    """

    heatmaps: list[Tensor]
    anno_boxes: list[Tensor]
    inds: list[Tensor]
    masks: list[Tensor]


def center_head_targets(gt_boxes: RaggedBatch, gt_labels: RaggedBatch, config: CenterHeadConfig) -> CenterHeadTargets:
    """Targets of all samples and tasks at once, as mmdet3d's CenterHead makes them object by object.

    A task's objects go to its slots class by class, in their order within a class; an object that cannot be drawn
    (length or width not positive or not finite, centre outside the map) leaves its slot empty. A centre in (-1, 0)
    cells lies in cell 0. Objects whose label belongs to no task are left out.

    Args:
        gt_boxes: [B, G, 7 or 9] gravity centre x, y, z, length, width, height (metres), yaw (radians) and velocity x, y
            (metres per second).
        gt_labels: [B, G] integer labels.
        config: tasks, map, slots.

    Returns:
        The four lists, on the device of the boxes. Of type float32, or float64 for float64 boxes.

    Raises:
        ValueError: boxes and labels do not fit each other, or boxes have another width.
    """
    labels, present = check_ground_truth(gt_boxes, gt_labels), gt_boxes.mask
    boxes = gt_boxes.tensor
    boxes = boxes if boxes.dtype == torch.float64 else boxes.float()
    batch, grid, num_tasks, slots = boxes.shape[0], config.grid, len(config.classes_per_task), config.max_objects
    num_classes = sum(config.classes_per_task)

    known = present & (labels >= 0) & (labels < num_classes)
    labels = torch.where(known, labels, 0)
    task, first_class, task_classes = config.tables_by_label(boxes.device)[:, labels]  # [B, G] each
    slot = _ranks(torch.where(known, task, -1), labels)

    places = grid.places(boxes)
    cells = places.trunc()
    radius = grid.radii(boxes, config.min_overlap, config.min_radius)
    drawn = known & (slot < slots) & (radius >= 0) & grid.holds(cells)
    whole = torch.where(drawn.unsqueeze(-1), whole_cells(cells), 0)
    x, y = whole.unbind(-1)

    samples = torch.arange(batch, device=boxes.device).unsqueeze(1)
    row = torch.where(drawn, (task * batch + samples) * slots + slot, num_tasks * batch * slots).reshape(-1)
    offset = places - cells
    codes = torch.cat([offset, _encode(boxes[..., 2:], config)], dim=-1).flatten(0, 1)

    # One more row takes what is left out. Targets of a task are adjacent, as a head that makes them by itself has them.
    shape, rows = (num_tasks, batch, slots), num_tasks * batch * slots + 1
    anno_boxes = codes.new_zeros((rows, codes.shape[-1])).index_copy_(0, row, codes)
    inds = labels.new_zeros(rows).index_copy_(0, row, (y * grid.width + x).reshape(-1))
    masks = torch.zeros(rows, dtype=torch.uint8, device=boxes.device).index_fill_(0, row, 1)

    # Maps in the order of tasks, then samples, then the task's classes.
    heatmap = draw_gaussian_heatmap(
        batch * first_class + samples * task_classes + labels - first_class,
        x,
        y,
        torch.where(drawn, radius, -1),
        batch * num_classes,
        grid.height,
        grid.width,
        dtype=boxes.dtype,
    )
    counts = config.classes_per_task
    parts = zip(heatmap.split([batch * count for count in counts]), counts, strict=True)
    return CenterHeadTargets(
        [part.view(batch, count, grid.height, grid.width) for part, count in parts],
        list(anno_boxes[:-1].view(*shape, codes.shape[-1]).unbind(0)),
        list(inds[:-1].view(shape).unbind(0)),
        list(masks[:-1].view(shape).unbind(0)),
    )


def check_ground_truth(gt_boxes: RaggedBatch, gt_labels: RaggedBatch) -> Tensor:
    """Raises a ValueError where boxes [B, G, 7 or 9] and labels [B, G] do not fit; gives the labels as int64."""
    if gt_boxes.tensor.dim() != 3 or gt_boxes.tensor.shape[-1] not in _BOX_WIDTHS or gt_boxes.non_uniform_dim != 1:
        raise ValueError(f"gt_boxes must be [B, G, 7 or 9], got {tuple(gt_boxes.shape)}")
    if not gt_boxes.tensor.is_floating_point():
        raise ValueError(f"gt_boxes must have a floating-point type, got {gt_boxes.dtype}")
    labels = gt_labels.tensor
    if labels.shape != gt_boxes.shape[:2] or labels.is_floating_point() or labels.device != gt_boxes.device:
        raise ValueError(
            f"gt_labels must be integers {tuple(gt_boxes.shape[:2])} on {gt_boxes.device} like gt_boxes, got "
            f"{labels.dtype} {tuple(labels.shape)} on {labels.device}"
        )
    return labels.long()


def _ranks(task: Tensor, labels: Tensor) -> Tensor:
    """[B, G] place of each object among those of its task, by class and then by order."""
    order = labels * task.shape[1] + torch.arange(task.shape[1], device=task.device)
    same_task = task.unsqueeze(1) == task.unsqueeze(2)
    return (same_task & (order.unsqueeze(1) < order.unsqueeze(2))).sum(-1)


def _encode(rest: Tensor, config: CenterHeadConfig) -> Tensor:
    """[B, G, D - 2] of z, dimensions, yaw and velocity [B, G, 5 or 7]."""
    dims, yaw = rest[..., 1:4], rest[..., 4:5]
    sine, cosine = torch.sin(yaw), torch.cos(yaw)
    rotation = [cosine, sine] if config.cos_first else [sine, cosine]
    return torch.cat([rest[..., :1], dims.log() if config.log_dims else dims, *rotation, rest[..., 5:]], dim=-1)
