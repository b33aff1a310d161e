"""Pictures of heatmaps and radii: the deeper the colour, the larger the value."""

from __future__ import annotations

from collections.abc import Callable

import torch
from panels import Cell, Panel, Picture, kind
from torch import Tensor

from raggedbev import combine_data, draw_gaussian_heatmap
from raggedbev.heatmap import centernet_radius, centerpoint_radius, whole_radius


def heat(name: str, image: Tensor) -> Panel:
    """A map [H, W]."""
    rows = [
        (f"y = {y}", [Cell(f"{value:.2f}" if 0 < value < 1 else f"{value:g}", share=value) for value in values])
        for y, values in enumerate(image.tolist())
    ]
    return Panel(name, kind(image), rows)


def draw_heatmap() -> Picture:
    x = combine_data([torch.tensor([2, 5]), torch.tensor([6])])
    y = combine_data([torch.tensor([2, 3]), torch.tensor([0])])
    radius = combine_data([torch.tensor([2, 2]), torch.tensor([1])])
    maps = draw_gaussian_heatmap(None, x, y, radius, None, 6, 8)
    return Picture(
        "draw_gaussian_heatmap(None, x, y, radius, None, height=6, width=8)",
        [[heat("map of sample 1", maps[0])], [heat("map of sample 2", maps[1])]],
        [
            "Sample 1 has objects at (2, 2) and (5, 3) with radius 2: where their squares overlap the larger value",
            "stays. Sample 2 has one at (6, 0) with radius 1, of which the part inside the map is drawn.",
        ],
    )


def draw_radii() -> Picture:
    sizes = torch.tensor([[4.0, 4.0], [4.0, 16.0], [16.0, 16.0], [40.0, 20.0]])
    height, width = sizes.unbind(1)
    columns = {
        "height": height,
        "width": width,
        "centernet_radius": centernet_radius(height, width, 0.3),
        "centerpoint_radius": centerpoint_radius(height, width, 0.1),
    }
    rows = [(name, [Cell(f"{value:.3g}") for value in values.tolist()]) for name, values in columns.items()]
    for name in ("centernet_radius", "centerpoint_radius"):
        whole = whole_radius(columns[name], 2 if name == "centerpoint_radius" else 0)
        rows.append(
            (f"whole, {name.removesuffix('_radius')}", [Cell(str(value), share=0.4) for value in whole.tolist()])
        )
    return Picture(
        "Radii of four boxes",
        [[Panel("one box per column", "cells", rows)]],
        [
            "centernet_radius(height, width, 0.3) and centerpoint_radius(height, width, 0.1), as CenterNet and",
            "CenterPoint call them; coloured: whole_radius of them, at least 0 and 2.",
        ],
    )


PICTURES: dict[str, Callable[[], Picture]] = {"draw_gaussian_heatmap": draw_heatmap, "radii": draw_radii}
