"""Random and degenerate inputs of both losses, shared by the tests of this folder."""

from __future__ import annotations

import torch

from raggedbev.losses import DenoisingConfig, DenoisingOutput, GroundTruth2D, GroundTruth3D, prepare_denoising
from raggedbev.losses.detr import Focal, SetLosses, SetPrediction, set_losses
from raggedbev.matching import TermMatcher
from raggedbev.matching.cost_terms import BoxL1Term, ClassTerm, IoUTerm, MatchInputs
from raggedbev.matching.costs import ClassCost, cxcywh_to_xyxy, xyxy_to_cxcywh

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


DETR_MATCHER = TermMatcher((ClassTerm(ClassCost()), BoxL1Term(5.0, "xywh"), IoUTerm(2.0)))
DETR_SETTINGS = SetLosses(cls=Focal(), cls_weight=2.0, bbox_weight=5.0, num_classes=10, iou_weight=2.0)


def detr_loss(logits, boxes, gt):
    """The loss of a DETR head: predictions [L, B, Q, .], packed objects in pixels of images of PAD_SHAPE."""
    size = gt.boxes.tensor.new_full((gt.num_images, 2), PAD_SHAPE[1])
    size[:, 1] = PAD_SHAPE[0]
    scale = size.repeat(1, 2).unsqueeze(1)
    given = MatchInputs(
        cls_logits=logits.detach(),
        boxes=cxcywh_to_xyxy(boxes.detach()) * scale,
        gt_boxes=gt.boxes.tensor,
        gt_labels=gt.labels.tensor,
        image_size=size,
    )
    assignment = DETR_MATCHER.assign_batch(given, gt.boxes.sample_sizes)
    background = (assignment.gt_of_pred < 0).flatten(1).sum(1)
    targets = xyxy_to_cxcywh(gt.boxes.tensor / scale)
    part = SetPrediction(logits, boxes, gt.labels, targets, assignment, background, scale)
    return set_losses({"{}": part}, DETR_SETTINGS)


def detr_predictions(layers, batch, dtype, seed=5):
    """Logits [L, B, Q, 10] and boxes [L, B, Q, 4] in units of the image."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(layers, batch, QUERIES, 10, generator=g, dtype=dtype) - 2
    return logits, torch.rand(layers, batch, QUERIES, 4, generator=g, dtype=dtype) * 0.5 + 0.1
