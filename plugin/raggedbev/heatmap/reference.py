"""The meaning of the heatmap operator: one object after the other, in NumPy and slices.

In and out as in `gaussian.py`; reads every object on the host, so it is slow and meant for tests and benchmarks.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def draw_gaussian_heatmap_reference(
    map_index: Tensor,
    x: Tensor,
    y: Tensor,
    radius: Tensor,
    num_maps: int,
    height: int,
    width: int,
    *,
    dtype: torch.dtype = torch.float32,
    sigma_factor: float = 6.0,
    k: float = 1.0,
) -> Tensor:
    """Draws the objects one by one; arguments and result of `draw_gaussian_heatmap`."""
    heatmap = torch.zeros((num_maps, height, width), dtype=dtype, device=map_index.device)
    for entry in zip(map_index.flatten(), x.flatten(), y.flatten(), radius.flatten(), strict=True):
        map_id, column, row, size = (int(value) for value in entry)
        if 0 <= map_id < num_maps and size >= 0:
            draw_one_gaussian(heatmap[map_id], column, row, size, sigma_factor=sigma_factor, k=k)
    return heatmap


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
