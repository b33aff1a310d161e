"""Boxes on a small bird's-eye-view map for tests of targets: random ones, and one of every degenerate kind."""

from __future__ import annotations

import torch
from torch import Tensor

NAN, INF = float("nan"), float("inf")
WIDTH, HEIGHT = 32, 24  # cells
VOXEL, FACTOR = (0.4, 0.5), 4
ORIGIN = (-25.6, -24.0)
TASKS = (1, 2, 2, 1, 2, 2)

CELL = (VOXEL[0] * FACTOR, VOXEL[1] * FACTOR)  # metres
_BOX = [0.3, 0.7, -1.0, 4.5, 1.9, 1.6, 0.4, 1.5, -0.5]


def _box(**changes: float) -> list[float]:
    names = ("x", "y", "z", "length", "width", "height", "yaw", "vx", "vy")
    return [changes.get(name, value) for name, value in zip(names, _BOX, strict=True)]


DEGENERATE = [
    _box(x=ORIGIN[0], y=ORIGIN[1]),  # corner of the map
    _box(x=ORIGIN[0] + WIDTH * CELL[0], y=0),  # the first place outside
    _box(x=ORIGIN[0] + WIDTH * CELL[0] - 1e-5, y=ORIGIN[1] + HEIGHT * CELL[1] - 1e-5),
    _box(x=ORIGIN[0] - 0.5 * CELL[0], y=0),  # in (-1, 0) cells
    _box(x=0, y=ORIGIN[1] - 0.999 * CELL[1]),
    _box(x=ORIGIN[0] - CELL[0], y=0),  # at -1 cells
    _box(x=0.0, y=8 * CELL[1]),  # on edges between cells
    _box(x=-90.0, y=70.0),
    _box(x=3e9, y=-1e30),
    _box(x=NAN),
    _box(y=INF),
    _box(length=NAN),
    _box(width=NAN),
    _box(height=NAN),
    _box(length=0.0),
    _box(width=0.0),
    _box(length=-3.0),
    _box(height=-1.0),
    _box(length=1e-20, width=1e-20),
    _box(length=300.0, width=280.0),
    _box(length=900.0, width=700.0),
    _box(yaw=NAN),
    _box(vx=NAN, vy=NAN),
    _box(yaw=1e6),
]


def random_boxes(generator: torch.Generator, count: int, spread: float = 1.3) -> tuple[Tensor, Tensor]:
    """[count, 9] boxes, some of them outside the map, and [count] labels, some of no class."""
    place = (torch.rand(count, 2, generator=generator) - 0.5) * torch.tensor([WIDTH * CELL[0], HEIGHT * CELL[1]])
    sizes = 10 ** (torch.rand(count, 3, generator=generator) * 2 - 0.7)  # 0.2 m to 20 m
    rest = torch.randn(count, 4, generator=generator) * 3
    boxes = torch.cat([place * spread, rest[:, :1], sizes, rest[:, 1:]], dim=1)
    return boxes, torch.randint(-1, sum(TASKS) + 1, (count,), generator=generator)


def degenerate_boxes(labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """All degenerate boxes, labelled in turn."""
    boxes = torch.tensor(DEGENERATE)
    return boxes, torch.arange(len(boxes)) % sum(TASKS) if labels is None else labels


def batches(generator: torch.Generator) -> list[list[tuple[Tensor, Tensor]]]:
    """Batches of samples (boxes, labels); degenerate ones first."""
    none = (torch.zeros(0, 9), torch.zeros(0, dtype=torch.int64))
    same_cell = torch.tensor([_BOX]).repeat(40, 1)
    one_task = torch.full((len(DEGENERATE),), 4)
    found = [
        [none],
        [none, none],
        [degenerate_boxes()],
        [degenerate_boxes(one_task), none, degenerate_boxes(torch.full_like(one_task, 99))],
        [(same_cell, torch.arange(40) % 10), (same_cell, torch.zeros(40, dtype=torch.int64))],
        [random_boxes(generator, 520), random_boxes(generator, 3)],
    ]
    for _ in range(40):
        sizes = torch.randint(0, 31, (3,), generator=generator).tolist()
        found.append([random_boxes(generator, size) for size in sizes])
    return found


def same_bits(found: Tensor, expected: Tensor) -> bool:
    """Equality in shape, type and value, NaN being equal to NaN."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if not found.is_floating_point():
        return torch.equal(found, expected)
    nan = expected.isnan()
    return torch.equal(found.isnan(), nan) and torch.equal(found.masked_fill(nan, 0), expected.masked_fill(nan, 0))
