"""Draws one Gaussian per object into a batch of heatmaps.

In: per object the map it belongs to, its cell (x, y) and its radius, all integers on the maps' device.
Out: [num_maps, H, W], the element-wise maximum over the objects of each map. Nothing is read back to the host.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raggedbev._extension import load_operator

DEFAULT_TABLE_RADIUS = 128
MAX_TABLE_RADIUS = 512
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_FALLBACK_CELLS = 1 << 22  # cells evaluated at a time by the plain torch path


def draw_gaussian_heatmap(
    map_index: Tensor,
    x: Tensor,
    y: Tensor,
    radius: Tensor,
    num_maps: int,
    height: int,
    width: int,
    *,
    dtype: torch.dtype = torch.float32,
    max_radius: int | None = None,
    sigma_factor: float = 6.0,
    k: float = 1.0,
) -> Tensor:
    """Draws every object of every map at once; equals drawing them one by one, bit for bit.

    An object of radius R colours the cells with |dx|, |dy| <= R around (x, y) with
    `k * exp(-(dx^2 + dy^2) / (2 sigma^2))`, sigma = (2R + 1) / sigma_factor ("Objects as Points", Zhou et al. 2019,
    section 3); where objects overlap, the larger value stays. Of a square that reaches over the border, also of one
    whose centre lies outside, the part inside the map is drawn. Objects with a negative radius or with a map index
    outside [0, num_maps) are skipped, which is how padding entries are marked.

    Values come from tables made on the host in float64 and cast to `dtype` (then multiplied by `k`), kept per device
    for radii up to `max_radius`. A larger radius is drawn as well: its values are computed in float64 on the device,
    whose `exp` may differ from the host's in the last float64 bit.

    Args:
        map_index: [K] (or any shape, the same for the first four), integer: map of each object, for instance its image,
            or sample * num_classes + class.
        x: [K] integer column of each centre, in cells.
        y: [K] integer row of each centre, in cells.
        radius: [K] integer radius R, in cells; 0 colours one cell.
        num_maps: number of maps.
        height: rows of a map.
        width: columns of a map.
        dtype: floating-point type of the result.
        max_radius: largest radius with a table, known on the host; None means max(height, width), at most 128. A table
            holds about max_radius^3 / 3 values.
        sigma_factor: object diameter in standard deviations.
        k: value at a centre.

    Returns:
        [num_maps, height, width] heatmaps of type `dtype` on the device of the inputs; zero where nothing was drawn.

    Raises:
        ValueError: for shapes, types, devices or sizes that do not fit; the sentence names what arrived.
    """
    _check_objects(map_index=map_index, x=x, y=y, radius=radius)
    _check_options(num_maps, height, width, dtype, max_radius, sigma_factor, k)
    if max_radius is None:
        max_radius = min(max(height, width), DEFAULT_TABLE_RADIUS)
    table = gaussian_table(max_radius, float(sigma_factor), float(k), dtype, map_index.device)
    objects = [entry.reshape(-1).to(torch.int64) for entry in (map_index, x, y, radius)]
    return _draw(*objects, table, num_maps, height, width, max_radius, float(sigma_factor), float(k))


def _check_objects(**entries: Tensor) -> None:
    shape, device = entries["map_index"].shape, entries["map_index"].device
    for name, entry in entries.items():
        if entry.is_floating_point() or entry.is_complex() or entry.dtype == torch.bool:
            raise ValueError(f"{name} must have an integer type, got {entry.dtype}")
        if entry.shape != shape:
            raise ValueError(f"{name} must have the shape of map_index {tuple(shape)}, got {tuple(entry.shape)}")
        if entry.device != device:
            raise ValueError(f"{name} must be on the device of map_index {device}, got {entry.device}")


def _check_options(
    num_maps: int, height: int, width: int, dtype: torch.dtype, max_radius: int | None, sigma_factor: float, k: float
) -> None:
    for name, size in (("num_maps", num_maps), ("height", height), ("width", width)):
        if size < 0:
            raise ValueError(f"{name} must not be negative, got {size}")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(str(d) for d in _DTYPES)}, got {dtype}")
    if max_radius is not None and not 0 <= max_radius <= MAX_TABLE_RADIUS:
        raise ValueError(f"max_radius must lie in [0, {MAX_TABLE_RADIUS}], got {max_radius}")
    if not (math.isfinite(sigma_factor) and sigma_factor > 0):
        raise ValueError(f"sigma_factor must be positive, got {sigma_factor}")
    if not (math.isfinite(k) and k > 0):
        raise ValueError(f"k must be positive, got {k}")


def table_offset(radius: Any) -> Any:
    """Where the table of `radius` (int or integer tensor) begins: after the (r + 1)^2 values of every smaller r."""
    return radius * (radius + 1) * (2 * radius + 1) // 6


@functools.lru_cache(maxsize=64)
def _cached_table(max_radius: int, sigma_factor: float, k: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    values = np.empty(table_offset(max_radius + 1), dtype=np.float64)
    squares = np.arange(max_radius + 1, dtype=np.float64) ** 2
    for radius in range(max_radius + 1):
        sigma = (2 * radius + 1) / sigma_factor
        distances = squares[: radius + 1, None] + squares[None, : radius + 1]  # [R + 1, R + 1], squared
        gaussian = np.exp(-distances / (2 * sigma * sigma))
        values[table_offset(radius) : table_offset(radius + 1)] = gaussian.reshape(-1)
    table = torch.from_numpy(values).to(dtype) * k
    if device.type == "cuda":
        return table.pin_memory().to(device, non_blocking=True)
    return table.to(device)


@torch.compiler.assume_constant_result
def gaussian_table(max_radius: int, sigma_factor: float, k: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Gaussian values of all radii up to `max_radius`, made once per set of arguments; callers must not write to it.

    Returns:
        [sum of (R + 1)^2] values on `device`; those of radius R begin at `table_offset(R)`, and the value at distance
        (dx, dy) follows at |dy| * (R + 1) + |dx|.
    """
    with torch.inference_mode(False), torch.no_grad():
        return _cached_table(max_radius, sigma_factor, k, dtype, device)


def _draw_plain(
    map_index: Tensor,
    x: Tensor,
    y: Tensor,
    radius: Tensor,
    table: Tensor,
    num_maps: int,
    height: int,
    width: int,
    max_radius: int,
    sigma_factor: float,
    k: float,
) -> Tensor:
    heatmap = table.new_zeros((num_maps, height * width))
    if heatmap.numel() == 0:
        return heatmap.view(num_maps, height, width)
    drawn = (map_index >= 0) & (map_index < num_maps) & (radius >= 0)
    map_index = torch.where(drawn, map_index, 0)
    columns = torch.arange(width, device=x.device)
    rows = torch.arange(height, device=x.device)
    step = max(1, _FALLBACK_CELLS // (height * width))
    for start in range(0, map_index.shape[0], step):
        part = slice(start, start + step)
        size = torch.where(drawn[part], radius[part], 0)[:, None, None]  # [K, 1, 1]
        dx = (columns[None, None, :] - x[part, None, None]).abs()  # [K, 1, W]
        dy = (rows[None, :, None] - y[part, None, None]).abs()  # [K, H, 1]
        inside = (dx <= size) & (dy <= size) & (dx >= 0) & (dy >= 0) & drawn[part, None, None]  # [K, H, W]
        small = size.clamp(max=max_radius)
        cell = table_offset(small) + dy.clamp(min=0).minimum(small) * (small + 1) + dx.clamp(min=0).minimum(small)
        sigma = (2 * size.double() + 1) / sigma_factor
        beyond = torch.exp(-(dy.double() ** 2 + dx.double() ** 2) / (2 * sigma * sigma)).to(table.dtype) * k
        value = torch.where(size <= max_radius, table[cell], beyond).masked_fill(~inside, 0)
        target = map_index[part, None].expand(-1, height * width)
        heatmap.scatter_reduce_(0, target, value.view(-1, height * width), reduce="amax")
    return heatmap.view(num_maps, height, width)


def _draw_fake(
    map_index: Tensor,
    x: Tensor,
    y: Tensor,
    radius: Tensor,
    table: Tensor,
    num_maps: int,
    height: int,
    width: int,
    max_radius: int,
    sigma_factor: float,
    k: float,
) -> Tensor:
    return table.new_empty((num_maps, height, width))


_draw = load_operator("draw_gaussian_heatmap", fallback=_draw_plain, fake=_draw_fake)
