#!/usr/bin/env python
"""A DETR of one's own in plain torch, with a batched loss; needs no mm package and no GPU.

Images with coloured rectangles go in; a small encoder, a transformer decoder of three layers, and heads for class and
box come out. `batched_loss` is the whole set-prediction loss of all layers and samples; `per_sample_loss` says what it
means, with loops and SciPy. The model trains on the batched one, and now and then both are compared and timed.

    python examples/own_detr_head.py
    python examples/own_detr_head.py --steps 600 --batch-size 32 --objects 6

Exits with 1 when the two losses, or their gradients, differ by more than rounding, or when nothing was learned.

Shapes: L layers, B samples, Q queries, C classes, G objects (padded). Boxes are centre and size in units of the image.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from raggedbev import combine_data, linear_assignment
from raggedbev.losses.class_loss import focal_loss_sums
from raggedbev.losses.set_prediction import class_targets, gather_targets
from raggedbev.losses.terms import giou_loss, sigmoid_focal_loss
from raggedbev.matching import ClassCost, L1Term, OverlapTerm, match_cost
from raggedbev.matching.costs import cxcywh_to_xyxy, focal_loss_cost, iou_cost

COLORS = torch.tensor([[1.0, 0.2, 0.2], [0.2, 1.0, 0.2], [0.3, 0.3, 1.0]])  # of the classes
NUM_CLASSES = len(COLORS)
CLASS_WEIGHT, L1_WEIGHT, GIOU_WEIGHT = 2.0, 5.0, 2.0
TOLERANCE = 1e-10  # relative, in float64: there rounding does not turn a near tie of two assignments

Loss = Callable[[Tensor, Tensor, list[Tensor], list[Tensor]], Tensor]


class SmallDETR(nn.Module):
    """Images [B, 3, H, W] to logits [L, B, Q, C] and boxes [L, B, Q, 4]."""

    def __init__(self, queries: int = 16, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(5, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 1)
        )
        self.queries = nn.Embedding(queries, width)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(width, 4, 2 * width, dropout=0, batch_first=True) for _ in range(layers)
        )
        self.classes, self.boxes = nn.Linear(width, NUM_CLASSES), nn.Linear(width, 4)
        nn.init.constant_(self.classes.bias, -3.0)  # few of the queries are objects

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        size, height, width = len(images), *images.shape[-2:]
        rows = torch.linspace(-1, 1, height).view(1, 1, -1, 1).expand(size, 1, height, width)
        columns = torch.linspace(-1, 1, width).expand(size, 1, height, width)
        tokens = self.encoder(torch.cat([images, rows, columns], 1)).flatten(2).transpose(1, 2)
        query = self.queries.weight.expand(size, -1, -1)
        states = []
        for layer in self.layers:
            query = layer(query, tokens)
            states.append(query)
        stacked = torch.stack(states)
        return self.classes(stacked), self.boxes(stacked).sigmoid()


# -- the loss: of everything at once, and one sample after the other ------------------------------------------------


def batched_loss(logits: Tensor, boxes: Tensor, gt_labels: list[Tensor], gt_boxes: list[Tensor]) -> Tensor:
    """Set-prediction loss [L] of logits [L, B, Q, C] and boxes [L, B, Q, 4]; nothing waits for the device."""
    labels = combine_data(gt_labels)  # [B, G], ragged
    targets = combine_data(gt_boxes, other_with_same_sample_sizes=labels)  # [B, G, 4]
    cost = match_cost(
        logits,
        labels.tensor,
        ClassCost(CLASS_WEIGHT),
        l1=[L1Term(boxes, targets.tensor, L1_WEIGHT)],
        overlap=OverlapTerm(boxes, cxcywh_to_xyxy(targets.tensor), boxes.new_ones(2), GIOU_WEIGHT),
        num_gt=labels.sample_sizes,
    )  # [L, B, G, Q]
    found = linear_assignment(cost.cost, labels.sample_sizes, minima=cost.minima)
    matched = found.gt_of_pred >= 0  # [L, B, Q]
    num_matched = matched.flatten(1).sum(1).clamp(min=1)  # [L]

    target_boxes = gather_targets(found, targets.tensor)  # [L, B, Q, 4], zero for background
    boxes = torch.where(matched.unsqueeze(-1), boxes, 0.0)
    l1 = (boxes - target_boxes).abs().flatten(1).sum(1)
    giou = giou_loss(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target_boxes))
    giou = torch.where(matched, giou, 0.0).flatten(1).sum(1)
    focal = focal_loss_sums(logits, class_targets(found, labels, NUM_CLASSES))
    return (CLASS_WEIGHT * focal + L1_WEIGHT * l1 + GIOU_WEIGHT * giou) / num_matched


def per_sample_loss(logits: Tensor, boxes: Tensor, gt_labels: list[Tensor], gt_boxes: list[Tensor]) -> Tensor:
    """The same with loops over layers and samples, as heads are usually written."""
    layers = []
    for layer_logits, layer_boxes in zip(logits, boxes, strict=True):
        total, num_matched = logits.new_zeros(()), 0
        for sample_logits, sample_boxes, labels, targets in zip(
            layer_logits, layer_boxes, gt_labels, gt_boxes, strict=True
        ):
            with torch.no_grad():
                cost = focal_loss_cost(sample_logits, labels, weight=CLASS_WEIGHT)
                cost += L1_WEIGHT * (targets.unsqueeze(1) - sample_boxes).abs().sum(-1)  # [G, Q]
                cost += iou_cost(cxcywh_to_xyxy(sample_boxes), cxcywh_to_xyxy(targets), weight=GIOU_WEIGHT)
                objects, queries = map(torch.from_numpy, linear_sum_assignment(cost.numpy()))
            num_matched += len(queries)
            target_labels = torch.full((len(sample_logits),), NUM_CLASSES)
            target_labels[queries] = labels[objects]
            total = total + CLASS_WEIGHT * sigmoid_focal_loss(sample_logits, target_labels).sum()
            total = total + L1_WEIGHT * (sample_boxes[queries] - targets[objects]).abs().sum()
            corners = cxcywh_to_xyxy(sample_boxes[queries]), cxcywh_to_xyxy(targets[objects])
            total = total + GIOU_WEIGHT * giou_loss(*corners).sum()
        layers.append(total / max(num_matched, 1))
    return torch.stack(layers)


# -- data and training ----------------------------------------------------------------------------------------------


def make_batch(size: int, objects: int, generator: torch.Generator) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Images [B, 3, 32, 32], labels and boxes of up to `objects` rectangles each; some images have none."""
    images = 0.1 * torch.rand(size, 3, 32, 32, generator=generator)
    gt_labels, gt_boxes = [], []
    for image, count in zip(images, torch.randint(0, objects + 1, (size,), generator=generator).tolist(), strict=True):
        labels = torch.randint(0, NUM_CLASSES, (count,), generator=generator)
        extents = torch.randint(4, 13, (count, 2), generator=generator)
        corners = (torch.rand(count, 2, generator=generator) * (33 - extents)).long()
        for label, (x, y), (width, height) in zip(labels, corners.tolist(), extents.tolist(), strict=True):
            image[:, y : y + height, x : x + width] = COLORS[label].view(3, 1, 1)
        gt_labels.append(labels)
        gt_boxes.append(torch.cat([corners + extents / 2, extents], 1) / 32)
    return images, gt_labels, gt_boxes


def value_and_gradients(loss: Loss, logits: Tensor, boxes: Tensor, *gt: list[Tensor]) -> tuple[list[Tensor], float]:
    """Losses [L] and their gradients to logits and boxes in float64, and the seconds that took."""
    inputs = [logits.detach().double().requires_grad_(), boxes.detach().double().requires_grad_()]
    begin = time.perf_counter()
    value = loss(*inputs, *gt)
    gradients = torch.autograd.grad(value.sum(), inputs)
    return [value.detach(), *gradients], time.perf_counter() - begin


def compare(logits: Tensor, boxes: Tensor, labels: list[Tensor], targets: list[Tensor]) -> tuple[float, float, float]:
    """Largest difference, relative to the largest entry; seconds of the batched and of the per-sample loss."""
    inputs = logits, boxes, labels, [sample.double() for sample in targets]
    ours, batched_time = value_and_gradients(batched_loss, *inputs)
    theirs, loop_time = value_and_gradients(per_sample_loss, *inputs)
    differences = [
        ((mine - other).abs().max() / other.abs().max().clamp(min=1e-12)).nan_to_num(nan=float("inf")).item()
        for mine, other in zip(ours, theirs, strict=True)
    ]
    return max(differences), batched_time, loop_time


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def main(arguments: list[str] | None = None) -> int:
    """Train and compare; 0 when the losses agree and the training learned."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=positive, default=120, help="training steps (default: 120)")
    parser.add_argument("--batch-size", type=positive, default=16, help="images of a step (default: 16)")
    parser.add_argument("--objects", type=positive, default=4, help="most rectangles of an image (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and images (default: 0)")
    args = parser.parse_args(arguments)

    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    model = SmallDETR()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    first, worst, begin = None, 0.0, time.perf_counter()
    print(f"{'step':>6}{'loss':>10}{'batched':>12}{'per sample':>12}{'difference':>12}{'left':>8}")
    for step in range(1, args.steps + 1):
        images, *gt = make_batch(args.batch_size, args.objects, generator)
        logits, boxes = model(images)
        loss = batched_loss(logits, boxes, *gt).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 1 or step % max(args.steps // 6, 1) == 0:
            first = loss.item() if first is None else first
            difference, *seconds = compare(logits, boxes, *gt)
            worst = max(worst, difference)
            times = "".join(f"{1e3 * t:>9.2f} ms" for t in seconds)
            left = (time.perf_counter() - begin) / step * (args.steps - step)
            print(f"{step:>6}{loss.item():>10.3f}{times}{difference:>12.1e}{left:>6.0f} s")
    learned = args.steps == 1 or loss.item() < first
    if worst > TOLERANCE:
        print(f"DISAGREE: the losses differ by {worst:.1e}, the tolerance is {TOLERANCE:g}")
    if not learned:
        print(f"nothing was learned: the loss went from {first:.3f} to {loss.item():.3f}")
    return 0 if worst <= TOLERANCE and learned else 1


if __name__ == "__main__":
    sys.exit(main())
