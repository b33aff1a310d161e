"""What the targets of several heads share: places of boxes on a bird's-eye-view map, constants on the device."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from raggedbev.heatmap.radius import centerpoint_radius, whole_radius

__all__ = ["BevGrid", "constant", "whole_cells"]

_FARTHEST = 2.0**30  # cells; a centre beyond lies outside every map


@functools.lru_cache(maxsize=64)
def _cached_constant(values: tuple[int, ...], device: torch.device) -> Tensor:
    tensor = torch.tensor(values, dtype=torch.int64)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor if device.type == "cpu" else tensor.to(device)


@torch.compiler.assume_constant_result
def constant(values: tuple[int, ...], device: torch.device) -> Tensor:
    """[len(values)] int64 on `device`, copied there once; callers must not write to it."""
    with torch.inference_mode(False), torch.no_grad():
        return _cached_constant(values, device)


@dataclass(frozen=True)
class BevGrid:
    """A bird's-eye-view map.

    Attributes:
        width: cells along x.
        height: cells along y.
        origin: x and y of the corner of cell (0, 0) in metres.
        voxel_size: x and y size of a voxel in metres.
        voxels_per_cell: voxels along the side of a cell (the head's out_size_factor).
    """

    width: int
    height: int
    origin: tuple[float, float]
    voxel_size: tuple[float, float]
    voxels_per_cell: int

    def __post_init__(self) -> None:
        if min(self.width, self.height) < 0 or min(*self.voxel_size, self.voxels_per_cell) <= 0:
            raise ValueError(f"a map needs sizes that are not negative and cells that are positive, got {self}")

    def places(self, boxes: Tensor) -> Tensor:
        """[..., 2] x and y of box centres in cells, with a fraction; boxes [..., D] begin with x, y (metres)."""
        columns = (boxes[..., 0] - self.origin[0]) / self.voxel_size[0] / self.voxels_per_cell
        rows = (boxes[..., 1] - self.origin[1]) / self.voxel_size[1] / self.voxels_per_cell
        return torch.stack([columns, rows], dim=-1)

    def radii(self, boxes: Tensor, min_overlap: float, least: int) -> Tensor:
        """[...] int64 radii of boxes [..., 5 or more], x, y, z, length and width in metres.

        -1 where length or width is not a positive, finite number.
        """
        length = boxes[..., 3] / self.voxel_size[0] / self.voxels_per_cell
        width = boxes[..., 4] / self.voxel_size[1] / self.voxels_per_cell
        radius = whole_radius(centerpoint_radius(width, length, min_overlap), least)
        return torch.where((width > 0) & (length > 0), radius, -1)

    def holds(self, cells: Tensor) -> Tensor:
        """[...] bool, whether whole cells [..., 2] lie on the map; NaN does not."""
        x, y = cells.unbind(-1)
        return (x >= 0) & (x < self.width) & (y >= 0) & (y < self.height)


def whole_cells(cells: Tensor) -> Tensor:
    """Cells [..., 2] of floating point as int64; what is not finite, or far outside, stays far outside."""
    return cells.nan_to_num(-_FARTHEST, -_FARTHEST, -_FARTHEST).clamp(-_FARTHEST, _FARTHEST).long()
