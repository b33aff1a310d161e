"""Random and degenerate inputs of both losses, shared by the tests of this folder."""

from __future__ import annotations

import torch

from raggedbev.losses import DenoisingConfig, DenoisingOutput, GroundTruth2D, GroundTruth3D, prepare_denoising

SIZES = [[0], [0, 0], [1], [5], [2, 0, 3], [1] * 5, [40, 1], [0, 33]]
PAD_SHAPE = (64, 96)
TOKENS = 24
QUERIES = 30


def ground_truth_3d(sizes, dtype, seed=0):
    """Objects inside the published range."""
    g = torch.Generator().manual_seed(seed)
    boxes, labels = [], []
    for n in sizes:
        parts = [
            (torch.rand(n, 3, generator=g, dtype=dtype) - 0.5) * torch.tensor([90.0, 90.0, 6.0], dtype=dtype),
            torch.rand(n, 3, generator=g, dtype=dtype) * 4 + 0.5,
            (torch.rand(n, 1, generator=g, dtype=dtype) - 0.5) * 6,
            torch.randn(n, 2, generator=g, dtype=dtype) * 3,
        ]
        boxes.append(torch.cat(parts, dim=1))
        labels.append(torch.randint(0, 10, (n,), generator=g))
    return GroundTruth3D(boxes, labels)


def predictions_3d(layers, batch, dtype, queries=QUERIES, seed=1):
    """Logits [L, B, Q, 10] and coded boxes [L, B, Q, 10]."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(layers, batch, queries, 10, generator=g, dtype=dtype) * 2 - 3
    boxes = torch.randn(layers, batch, queries, 10, generator=g, dtype=dtype)
    boxes[..., :3] *= 20
    return logits, boxes


def denoising_3d(gt, layers, dtype, seed=2):
    """Queries for `gt` with random predictions, NaN where there is no object."""
    queries = prepare_denoising(gt, DenoisingConfig(groups=3), generator=torch.Generator().manual_seed(seed))
    logits, boxes = predictions_3d(layers, gt.num_samples, dtype, queries.pad, seed)
    for tensor in (logits, boxes):
        tensor.masked_fill_(~queries.valid.unsqueeze(-1), float("nan"))
    return DenoisingOutput(logits, boxes, queries)


def ground_truth_2d(sizes, dtype, seed=3):
    """Boxes inside an image of PAD_SHAPE, some centres on its right and lower border."""
    g = torch.Generator().manual_seed(seed)
    height, width = PAD_SHAPE
    boxes, labels, centers = [], [], []
    for n in sizes:
        corner = torch.rand(n, 2, generator=g, dtype=dtype) * torch.tensor([width - 20.0, height - 20.0], dtype=dtype)
        size = torch.rand(n, 2, generator=g, dtype=dtype) * 18 + 2
        box = torch.cat([corner, corner + size], dim=1)
        center = corner + size * torch.rand(n, 2, generator=g, dtype=dtype)
        center[::7] = torch.tensor([width, height], dtype=dtype)
        boxes.append(box)
        centers.append(center)
        labels.append(torch.randint(0, 10, (n,), generator=g))
    return GroundTruth2D(boxes, labels, centers)


def predictions_2d(images, dtype, seed=4):
    """Logits [I, T, 10], boxes [I, T, 4], centres [I, T, 2], centreness logits [I, T, 1]."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, TOKENS, 10, generator=g, dtype=dtype) - 2
    boxes = torch.rand(images, TOKENS, 4, generator=g, dtype=dtype) * 0.5 + 0.1
    centers = torch.rand(images, TOKENS, 2, generator=g, dtype=dtype)
    centerness = torch.randn(images, TOKENS, 1, generator=g, dtype=dtype) * 3
    return logits, boxes, centers, centerness
