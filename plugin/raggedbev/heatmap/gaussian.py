"""Draws one Gaussian per object into a batch of heatmaps.

In: per object its cell (x, y), its radius, the map it belongs to and, for one map per class, its label; all integers on
the maps' device, as a ragged batch or as flat lists. Out: the element-wise maximum over the objects of each map.
Nothing is read back to the host.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raggedbev._extension import load_operator
from raggedbev.ragged.batch import RaggedBatch
from raggedbev.ragged.layout import Layout, is_readable

__all__ = ["DEFAULT_TABLE_RADIUS", "MAX_TABLE_RADIUS", "draw_gaussian_heatmap", "gaussian_table", "table_offset"]

DEFAULT_TABLE_RADIUS = 128
MAX_TABLE_RADIUS = 512
LAYOUTS = ("yx", "xy")
TABLES = ("float64", "torch")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_FALLBACK_CELLS = 1 << 22  # cells evaluated at a time by the plain torch path

Objects = Tensor | RaggedBatch


def draw_gaussian_heatmap(
    map_index: Objects | None,
    x: Objects,
    y: Objects,
    radius: Objects,
    num_maps: int | None,
    height: int,
    width: int,
    *,
    labels: Objects | None = None,
    num_classes: int | None = None,
    layout: str = "yx",
    clip: bool = True,
    dtype: torch.dtype = torch.float32,
    max_radius: int | None = None,
    tables: str = "float64",
    sigma_factor: float = 6.0,
    k: float = 1.0,
) -> Tensor:
    """Draws every object of every map at once; equals drawing them one by one, bit for bit.

    An object of radius R colours the cells with |dx|, |dy| <= R around (x, y) with
    `k * exp(-(dx^2 + dy^2) / (2 sigma^2))`, sigma = (2R + 1) / sigma_factor ("Objects as Points", Zhou et al. 2019,
    section 3); where objects overlap, the larger value stays. Of a square that reaches over the border the part inside
    the map is drawn. A map index or a radius of -1 leaves an object out; so does a label outside [0, num_classes).
    Filler of ragged batches may have any value.

    Values come from tables made once per device for radii up to `max_radius`. A larger radius is drawn as well: its
    values are computed in float64 on the device, whose `exp` may differ from the table's in the last bit.

    Args:
        map_index: [K] (or any shape, the same for all lists), integer: map of each object, for instance its image.
            None with ragged batches: the number of the sample.
        x: [K], or ragged [B, G], integer column of each centre, in cells.
        y: row of each centre, in cells.
        radius: radius R, in cells; 0 colours one cell.
        num_maps: number of maps. None with ragged batches: B.
        height: rows of a map.
        width: columns of a map.
        labels: class of each object, for one map per class; None: one map for all objects.
        num_classes: classes C; given exactly with `labels`.
        layout: 'yx': rows of the result are y; 'xy': rows are x, so that objects are drawn at the transposed cell
            (`height` and `width` are those of the result all the same).
        clip: what happens to an object whose centre lies outside the map: the part of its square inside is drawn
            (True), or nothing (False).
        dtype: floating-point type of the result.
        max_radius: largest radius with a table, known on the host; None means max(height, width), at most 128. A table
            holds about max_radius^3 / 3 values.
        tables: 'float64': values are computed on the host in float64 and cast to `dtype` (mmdet3d's heads); 'torch':
            they are computed by torch in `dtype` on the device, values below the type's epsilon being zero (mmdet's
            CenterNet family).
        sigma_factor: object diameter in standard deviations.
        k: value at a centre.

    Returns:
        [num_maps, height, width], or [num_maps, C, height, width] with labels, of type `dtype` on the device of the
        inputs; zero where nothing was drawn.

    Raises:
        ValueError: for shapes, types, devices or sizes that do not fit, and on the CPU also for a radius below -1 or a
            map index outside [-1, num_maps); the sentence names what arrived. On other devices such objects are
            skipped.
        TypeError: flat lists without `map_index` or `num_maps`, or a mixture of ragged batches and tensors.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {LAYOUTS}, got {layout!r}")
    if (labels is None) != (num_classes is None):
        raise ValueError(f"labels and num_classes belong together, got num_classes={num_classes}")
    given = {"x": x, "y": y, "radius": radius, "map_index": map_index, "labels": labels}
    entries, sizes = _unpack({name: value for name, value in given.items() if value is not None})
    if sizes is not None and num_maps is None:
        num_maps = entries["x"].shape[0]
    if num_maps is None or (sizes is None and map_index is None):
        raise TypeError("flat lists of objects need map_index and num_maps; a ragged batch does without them")
    if map_index is None and num_maps != entries["x"].shape[0]:
        raise ValueError(
            f"without map_index there is a map per sample, B = {entries['x'].shape[0]}, got num_maps={num_maps}"
        )
    _check_options(num_maps, num_classes, height, width, dtype, max_radius, tables, sigma_factor, k)
    if max_radius is None:
        max_radius = min(max(height, width), DEFAULT_TABLE_RADIUS)
    table = gaussian_table(max_radius, float(sigma_factor), float(k), dtype, entries["x"].device, tables)
    across, down = ("x", "y") if layout == "yx" else ("y", "x")
    heatmap = _draw(
        entries[across],
        entries[down],
        entries["radius"],
        entries.get("map_index"),
        entries.get("labels"),
        sizes,
        table,
        num_maps,
        1 if num_classes is None else num_classes,
        height,
        width,
        max_radius,
        float(sigma_factor),
        float(k),
        clip,
    )
    return heatmap.squeeze(1) if num_classes is None else heatmap


def _unpack(given: dict[str, Objects]) -> tuple[dict[str, Tensor], Tensor | None]:
    """Objects as [B, G] int64, and the sizes [B] of ragged batches; flat lists are [1, K] without sizes."""
    first = given["x"]
    ragged = isinstance(first, RaggedBatch)
    layout: Layout | None = None
    entries: dict[str, Tensor] = {}
    for name, value in given.items():
        if isinstance(value, RaggedBatch) != ragged:
            kinds = ", ".join(f"{key}: {type(entry).__name__}" for key, entry in given.items())
            raise TypeError(f"objects must be ragged batches or tensors, all of one kind, got {kinds}")
        if isinstance(value, RaggedBatch):
            if value.tensor.dim() != 2 or value.non_uniform_dim != 1:
                raise ValueError(f"{name} must be a ragged batch [B, G], got {tuple(value.shape)}")
            layout = value.layout if layout is None else layout
            entries[name] = value.tensor
        else:
            entries[name] = value
        _check_entry(name, entries[name], entries["x"])
    if layout is None:
        return {name: entry.reshape(1, -1).to(torch.int64) for name, entry in entries.items()}, None
    return {name: entry.to(torch.int64) for name, entry in entries.items()}, layout.sample_sizes.to(torch.int64)


def _check_entry(name: str, entry: Tensor, x: Tensor) -> None:
    if entry.is_floating_point() or entry.is_complex() or entry.dtype == torch.bool:
        raise ValueError(f"{name} must have an integer type, got {entry.dtype}")
    if entry.shape != x.shape:
        raise ValueError(f"{name} must have the shape of x {tuple(x.shape)}, got {tuple(entry.shape)}")
    if entry.device != x.device:
        raise ValueError(f"{name} must be on the device of x {x.device}, got {entry.device}")


def _check_options(
    num_maps: int,
    num_classes: int | None,
    height: int,
    width: int,
    dtype: torch.dtype,
    max_radius: int | None,
    tables: str,
    sigma_factor: float,
    k: float,
) -> None:
    for name, size in (
        ("num_maps", num_maps),
        ("num_classes", num_classes or 0),
        ("height", height),
        ("width", width),
    ):
        if size < 0:
            raise ValueError(f"{name} must not be negative, got {size}")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(str(d) for d in _DTYPES)}, got {dtype}")
    if max_radius is not None and not 0 <= max_radius <= MAX_TABLE_RADIUS:
        raise ValueError(f"max_radius must lie in [0, {MAX_TABLE_RADIUS}], got {max_radius}")
    if tables not in TABLES:
        raise ValueError(f"tables must be one of {TABLES}, got {tables!r}")
    if not (math.isfinite(sigma_factor) and sigma_factor > 0):
        raise ValueError(f"sigma_factor must be positive, got {sigma_factor}")
    if not (math.isfinite(k) and k > 0):
        raise ValueError(f"k must be positive, got {k}")


# ---- tables


def table_offset(radius: Any) -> Any:
    """Where the table of `radius` (int or integer tensor) begins: after the (r + 1)^2 values of every smaller r."""
    return radius * (radius + 1) * (2 * radius + 1) // 6


def _table_of_numpy(max_radius: int, sigma_factor: float, dtype: torch.dtype) -> Tensor:
    values = np.empty(table_offset(max_radius + 1), dtype=np.float64)
    squares = np.arange(max_radius + 1, dtype=np.float64) ** 2
    for radius in range(max_radius + 1):
        sigma = (2 * radius + 1) / sigma_factor
        distances = squares[: radius + 1, None] + squares[None, : radius + 1]  # [R + 1, R + 1], squared
        gaussian = np.exp(-distances / (2 * sigma * sigma))
        values[table_offset(radius) : table_offset(radius + 1)] = gaussian.reshape(-1)
    return torch.from_numpy(values).to(dtype)


def _table_of_torch(max_radius: int, sigma_factor: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    quadrants = []
    for radius in range(max_radius + 1):
        sigma = (2 * radius + 1) / sigma_factor
        axis = torch.arange(-radius, radius + 1, dtype=dtype, device=device)
        columns, rows = axis.view(1, -1), axis.view(-1, 1)
        gaussian = (-(columns * columns + rows * rows) / (2 * sigma * sigma)).exp()
        gaussian = gaussian.masked_fill(gaussian < torch.finfo(dtype).eps * gaussian.amax(), 0)
        quadrants.append(gaussian[radius:, radius:].reshape(-1))
    return torch.cat(quadrants)


@functools.lru_cache(maxsize=64)
def _cached_table(
    max_radius: int, sigma_factor: float, k: float, dtype: torch.dtype, device: torch.device, tables: str
) -> Tensor:
    if tables == "torch":
        return _table_of_torch(max_radius, sigma_factor, dtype, device) * k
    table = _table_of_numpy(max_radius, sigma_factor, dtype) * k
    if device.type == "cuda":
        return table.pin_memory().to(device, non_blocking=True)
    return table.to(device)


@torch.compiler.assume_constant_result
def gaussian_table(
    max_radius: int,
    sigma_factor: float,
    k: float,
    dtype: torch.dtype,
    device: torch.device,
    tables: str = "float64",
) -> Tensor:
    """Gaussian values of all radii up to `max_radius`, made once per set of arguments; callers must not write to it.

    Returns:
        [sum of (R + 1)^2] values on `device`; those of radius R begin at `table_offset(R)`, and the value at distance
        (dx, dy) follows at |dy| * (R + 1) + |dx|.
    """
    with torch.inference_mode(False), torch.no_grad():
        return _cached_table(max_radius, sigma_factor, k, dtype, device, tables)


# ---- operator


def _check_values(drawn: Tensor, radius: Tensor, map_index: Tensor | None, num_maps: int) -> None:
    """What the compiled operator checks on the CPU."""
    wrong = drawn & (radius < -1)
    if wrong.any():
        raise ValueError(f"radius must not be negative (-1 leaves an object out), got {int(radius[wrong][0])}")
    if map_index is None:
        return
    wrong = drawn & ((map_index < -1) | (map_index >= num_maps))
    if wrong.any():
        raise ValueError(
            f"map_index must lie in [0, {num_maps}) (-1 leaves an object out), got {int(map_index[wrong][0])}"
        )


def _draw_plain(
    x: Tensor,
    y: Tensor,
    radius: Tensor,
    map_index: Tensor | None,
    labels: Tensor | None,
    sizes: Tensor | None,
    table: Tensor,
    num_maps: int,
    num_classes: int,
    height: int,
    width: int,
    max_radius: int,
    sigma_factor: float,
    k: float,
    clip: bool,
) -> Tensor:
    batch, objects = x.shape
    valid = torch.ones_like(x, dtype=torch.bool)
    if sizes is not None:
        valid = torch.arange(objects, device=x.device) < sizes.unsqueeze(1)
    if is_readable(x):
        _check_values(valid, radius, map_index, num_maps)
    samples = torch.arange(batch, device=x.device).unsqueeze(1).expand(batch, objects)
    maps = samples if map_index is None else map_index
    classes = torch.zeros_like(x) if labels is None else labels
    valid = valid & (maps >= 0) & (maps < num_maps) & (classes >= 0) & (classes < num_classes) & (radius >= 0)
    if not clip:
        valid = valid & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    number = torch.where(valid, maps * num_classes + classes, 0)
    parts = [entry.reshape(-1) for entry in (number, x, y, radius, valid)]
    heatmap = table.new_zeros((num_maps * num_classes, height * width))
    if heatmap.numel() > 0:
        step = max(1, _FALLBACK_CELLS // (height * width))
        for start in range(0, batch * objects, step):
            objects_now = [part[start : start + step] for part in parts]
            heatmap = _draw_squares(heatmap, objects_now, table, height, width, max_radius, sigma_factor, k)
    return heatmap.view(num_maps, num_classes, height, width)


def _draw_squares(
    heatmap: Tensor,
    squares: list[Tensor],
    table: Tensor,
    height: int,
    width: int,
    max_radius: int,
    sigma_factor: float,
    k: float,
) -> Tensor:
    """`heatmap` [maps, height * width] with squares: map, x, y, radius and whether it is drawn, each [K]."""
    number, x, y, radius, valid = squares
    columns = torch.arange(width, device=x.device)
    rows = torch.arange(height, device=x.device)
    size = torch.where(valid, radius, 0)[:, None, None]  # [K, 1, 1]
    dx = (columns[None, None, :] - x[:, None, None]).abs()  # [K, 1, W]
    dy = (rows[None, :, None] - y[:, None, None]).abs()  # [K, H, 1]
    inside = (dx <= size) & (dy <= size) & (dx >= 0) & (dy >= 0) & valid[:, None, None]  # [K, H, W]
    small = size.clamp(max=max_radius)
    cell = table_offset(small) + dy.clamp(min=0).minimum(small) * (small + 1) + dx.clamp(min=0).minimum(small)
    sigma = (2 * size.double() + 1) / sigma_factor
    beyond = torch.exp(-(dy.double() ** 2 + dx.double() ** 2) / (2 * sigma * sigma)).to(table.dtype) * k
    value = torch.where(size <= max_radius, table[cell], beyond).masked_fill(~inside, 0)
    target = number[:, None].expand(-1, height * width)
    return heatmap.scatter_reduce(0, target, value.reshape(-1, height * width), reduce="amax")


def _draw_fake(
    x: Tensor,
    y: Tensor,
    radius: Tensor,
    map_index: Tensor | None,
    labels: Tensor | None,
    sizes: Tensor | None,
    table: Tensor,
    num_maps: int,
    num_classes: int,
    height: int,
    width: int,
    max_radius: int,
    sigma_factor: float,
    k: float,
    clip: bool,
) -> Tensor:
    return table.new_empty((num_maps, num_classes, height, width))


def _map_over_maps(operator: Callable[..., Any]) -> Callable[..., Any]:
    """vmap rule: each of the mapped calls gets maps of its own in one call of the operator."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        mapped: int = info.batch_size
        num_maps, max_radius = args[7], args[11]
        table, table_dim = args[6], in_dims[6]
        if table_dim is not None:
            raise ValueError(f"vmap cannot map the tables of radii up to {max_radius}, only objects")

        def fold(arg: Tensor | None, dim: int | None) -> Tensor | None:
            if arg is None:
                return None
            arg = arg.expand(mapped, *arg.shape) if dim is None else arg.movedim(dim, 0)
            return arg.reshape(mapped * arg.shape[1], *arg.shape[2:])

        x, y, radius, map_index, labels, sizes = (
            fold(arg, dim) for arg, dim in zip(args[:6], in_dims[:6], strict=True)
        )
        if map_index is not None:
            call = torch.arange(mapped, device=map_index.device).repeat_interleave(
                map_index.shape[0] // max(mapped, 1), output_size=map_index.shape[0]
            )
            exists = (map_index >= 0) & (map_index < num_maps)
            missing = torch.where(map_index < 0, map_index, map_index + mapped * num_maps)
            map_index = torch.where(exists, map_index + call.unsqueeze(1) * num_maps, missing)
        heatmap = operator(x, y, radius, map_index, labels, sizes, table, mapped * num_maps, *args[8:])
        return heatmap.unflatten(0, (mapped, num_maps)), 0

    return rule


_draw = load_operator("draw_gaussian_heatmap", fallback=_draw_plain, fake=_draw_fake, vmap=_map_over_maps)
