#!/usr/bin/env python
"""A set-prediction loss on ragged batches, and beside it the same loss as loops over layers and samples.

In: ground truth as lists, one entry per sample, with different numbers of objects; predictions of all decoder layers
as dense tensors. Out: a box, a class and an existence loss per layer. `batched_loss` does every layer and sample at
once; `per_sample_loss` says what it means, and is what it is compared with.

    python examples/minimal_loss.py
    python examples/minimal_loss.py --device cuda --batch-size 32 --max-objects 100 --predictions 300

Prints both losses and how far their values and gradients are apart; exits with 1 when that is more than rounding.

Shapes: L layers, B samples, G objects (padded), P predictions, C classes, K matched pairs (padded); `*` stands for the
batch dimensions, [B] or [L, B].
"""

from __future__ import annotations

import argparse
import sys
from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from raggedbev import (
    RaggedBatch,
    average_over_targets,
    batched_indexing_access,
    batched_indexing_write,
    combine_data,
    get_indices_from_mask,
    get_mask_from_indices,
    linear_assignment,
    sum_over_targets,
)

DISTANCE_COST = 0.05  # per metre of L1 distance between corners
BACKGROUND_WEIGHT = 0.1  # of the existence loss of predictions without an object
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}  # relative: sums are rounded in another order, nothing else


class Predictions(NamedTuple):
    """Decoder outputs."""

    boxes: Tensor  # [*, P, 4] corners x1, y1, x2, y2 in metres
    class_logits: Tensor  # [*, P, C]
    existence_logits: Tensor  # [*, P]


class Losses(NamedTuple):
    """One value, [], or one per layer, [L]."""

    box: Tensor
    classes: Tensor
    existence: Tensor

    def total(self) -> Tensor:
        return torch.stack(self).sum()


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of boxes [..., 4]; leading dimensions broadcast."""
    low, high = boxes[..., :2].maximum(others[..., :2]), boxes[..., 2:].minimum(others[..., 2:])
    overlap = (high - low).clamp(min=0).prod(-1)
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(-1) + (others[..., 2:] - others[..., :2]).prod(-1)
    return overlap / (areas - overlap)


def box_cost(pred_boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """Cost of every pair, [..., P, 4] and [..., G, 4] -> [..., P, G]: distance less overlap, as in DETR.

    Boxes that overlap no prediction would be tied without the distance.
    """
    pred_boxes, gt_boxes = pred_boxes.unsqueeze(-2), gt_boxes.unsqueeze(-3)
    return DISTANCE_COST * (pred_boxes - gt_boxes).abs().sum(-1) - iou(pred_boxes, gt_boxes)


# -- batched -------------------------------------------------------------------------------------------------------


def batched_loss(gt_boxes: RaggedBatch, gt_labels: RaggedBatch, pred: Predictions, class_weights: Tensor) -> Losses:
    """All samples at once, and all layers when they are a batch dimension too.

    Args:
        gt_boxes: [*, G, 4], ragged along G, with batch dimensions [B] or [L, B].
        gt_labels: [*, G] int64, the same raggedness.
        pred: predictions with the same batch dimensions.
        class_weights: [C] weight of an object of that class in the existence loss.
    """
    num_predictions = pred.boxes.shape[-2]
    object_dim = gt_boxes.num_batch_dims + 1  # of costs [*, P, G]: 2 for [B, P, G]

    # Costs on padded tensors. What stands in the columns of filler objects does not matter: the wrapped costs are
    # ragged along their last dimension, so nobody reads it.
    with torch.no_grad():
        box_costs = box_cost(pred.boxes, gt_boxes.tensor)  # [*, P, G]
        class_prob = batched_indexing_access(pred.class_logits.softmax(-1), gt_labels, dim_to_index_in=object_dim)
        costs = gt_boxes.create_with_sample_sizes_like_self(box_costs - class_prob.tensor, non_uniform_dim=object_dim)
        gt_of_pred = linear_assignment(costs).gt_of_pred  # [*, P], -1 for background
        max_pairs = min(num_predictions, gt_boxes.max_sample_size)  # with a given maximum nothing is read back
        matched_preds = get_indices_from_mask(gt_of_pred >= 0, max_pairs)  # [*, K]
        matched_gts = batched_indexing_access(gt_of_pred, matched_preds)  # [*, K]

    # Matched pairs side by side; filler entries become zero.
    target_boxes = batched_indexing_access(gt_boxes, matched_gts).tensor  # [*, K, 4]
    target_labels = batched_indexing_access(gt_labels, matched_gts).tensor  # [*, K]
    boxes = batched_indexing_access(pred.boxes, matched_preds).tensor
    logits = batched_indexing_access(pred.class_logits, matched_preds).tensor  # [*, K, C]

    # One loss per pair, wrapped again so that the sums leave filler out.
    per_box = matched_preds.create_with_sample_sizes_like_self((boxes - target_boxes).abs().sum(-1))
    cross_entropy = F.cross_entropy(logits.flatten(0, -2), target_labels.flatten(), reduction="none")
    per_class = matched_preds.create_with_sample_sizes_like_self(cross_entropy.reshape(target_labels.shape))
    num_pairs = matched_preds.sample_sizes.sum(-1).clamp(min=1)  # [] or [L]

    # Existence of every prediction: the target is a mask made of the pairs, and the weights of objects are written
    # over that of the background.
    exists = get_mask_from_indices(num_predictions, matched_preds)  # [*, P]
    weights = torch.full_like(pred.existence_logits, BACKGROUND_WEIGHT)
    weights = batched_indexing_write(class_weights[target_labels], matched_preds, weights)
    per_prediction = F.binary_cross_entropy_with_logits(
        pred.existence_logits, exists.to(weights.dtype), weights, reduction="none"
    )
    existence = RaggedBatch.from_full_tensor(per_prediction, non_uniform_dim=gt_boxes.num_batch_dims)

    return Losses(
        box=sum_over_targets(per_box).sum(-1) / num_pairs,
        classes=sum_over_targets(per_class).sum(-1) / num_pairs,
        existence=average_over_targets(existence).mean(-1),
    )


def loss_of_all_layers(
    gt_boxes: list[Tensor], gt_labels: list[Tensor], pred: Predictions, class_weights: Tensor
) -> Losses:
    """`batched_loss` of ground truth lists (B samples) and predictions [L, B, ...]: layers become a batch dimension."""
    num_layers = pred.boxes.shape[0]
    boxes = combine_data(gt_boxes, device=pred.boxes.device)  # [B, G, 4]
    labels = combine_data(gt_labels, other_with_same_sample_sizes=boxes)  # [B, G]
    boxes = boxes.unsqueeze_batch_dim(0).repeat_samples(num_layers, 0)  # [L, B, G, 4], a view
    labels = labels.unsqueeze_batch_dim(0).repeat_samples(num_layers, 0)
    return batched_loss(boxes, labels, pred, class_weights)


# -- one sample after the other -------------------------------------------------------------------------------------


def per_sample_loss(
    gt_boxes: list[Tensor], gt_labels: list[Tensor], pred: Predictions, class_weights: Tensor
) -> Losses:
    """The same as loops over the L layers and B samples."""
    layers = []
    for layer in zip(*pred, strict=True):
        num_pairs = 0
        box, classes, existence = [], [], []
        for boxes, labels, pred_boxes, class_logits, existence_logits in zip(gt_boxes, gt_labels, *layer, strict=True):
            preds, gts = match_sample(boxes, labels, pred_boxes, class_logits)
            num_pairs += len(preds)
            box.append((pred_boxes[preds] - boxes[gts]).abs().sum())
            classes.append(F.cross_entropy(class_logits[preds], labels[gts], reduction="sum"))
            exists = torch.zeros_like(existence_logits)
            exists[preds] = 1
            weights = torch.full_like(existence_logits, BACKGROUND_WEIGHT)
            weights[preds] = class_weights[labels[gts]]
            existence.append(F.binary_cross_entropy_with_logits(existence_logits, exists, weights))
        num_pairs = max(num_pairs, 1)
        layers.append(
            Losses(
                box=torch.stack(box).sum() / num_pairs,
                classes=torch.stack(classes).sum() / num_pairs,
                existence=torch.stack(existence).mean(),
            )
        )
    return Losses(*(torch.stack(terms) for terms in zip(*layers, strict=True)))


@torch.no_grad()
def match_sample(boxes: Tensor, labels: Tensor, pred_boxes: Tensor, class_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Predictions and objects of one sample's cheapest pairs, each [K]."""
    cost = box_cost(pred_boxes, boxes) - class_logits.softmax(-1)[:, labels]  # [P, G]
    preds, gts = linear_sum_assignment(cost.cpu().numpy())
    return torch.from_numpy(preds).to(cost.device), torch.from_numpy(gts).to(cost.device)


# -- command line ---------------------------------------------------------------------------------------------------


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--batch-size", type=int, default=8, help="samples (default: 8)")
    parser.add_argument("--layers", type=int, default=6, help="decoder layers (default: 6)")
    parser.add_argument("--max-objects", type=int, default=30, help="samples have 0 to this many objects (default: 30)")
    parser.add_argument("--predictions", type=int, default=100, help="per sample and layer (default: 100)")
    parser.add_argument("--classes", type=int, default=10, help="object classes (default: 10)")
    parser.add_argument(
        "--dtype", choices=["float32", "float64"], default="float32", help="of the data (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of what is drawn at random (default: %(default)s)")
    args = parser.parse_args(arguments)
    for name, least in (("batch_size", 1), ("layers", 1), ("max_objects", 0), ("predictions", 1), ("classes", 1)):
        if getattr(args, name) < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(args, name)}")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: torch finds no CUDA device on this machine; use --device cpu")
    return args


def random_boxes(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """[*shape, 4] corners in metres: boxes of 1 to 6 m in a square of 40 m."""
    centers = torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * 40 - 20
    sizes = torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * 5 + 1
    return torch.cat([centers - sizes / 2, centers + sizes / 2], dim=-1)


def make_problem(args: argparse.Namespace) -> tuple[list[Tensor], list[Tensor], Predictions, Tensor]:
    """Ground truth lists, predictions that require gradients, and class weights, all drawn from the seed."""
    generator = torch.Generator().manual_seed(args.seed)
    dtype = getattr(torch, args.dtype)
    counts = torch.randint(0, args.max_objects + 1, (args.batch_size,), generator=generator).tolist()
    counts[1:2] = [0 for _ in counts[1:2]]  # the second sample has no objects
    gt_boxes = [random_boxes((n,), generator).to(args.device, dtype) for n in counts]
    gt_labels = [torch.randint(0, args.classes, (n,), generator=generator).to(args.device) for n in counts]
    shape = (args.layers, args.batch_size, args.predictions)
    pred = Predictions(
        boxes=random_boxes(shape, generator),
        class_logits=torch.randn(*shape, args.classes, generator=generator, dtype=torch.float64),
        existence_logits=torch.randn(shape, generator=generator, dtype=torch.float64),
    )
    pred = Predictions(*(p.to(args.device, dtype).requires_grad_() for p in pred))
    class_weights = torch.linspace(0.5, 2, args.classes, dtype=dtype, device=args.device)
    return gt_boxes, gt_labels, pred, class_weights


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    """Relative to the largest entry; NaN on either side counts as infinitely far."""
    scale = theirs.detach().abs().max().clamp(min=torch.finfo(theirs.dtype).tiny)
    difference = (ours - theirs).detach().abs().max() / scale
    return float(difference.nan_to_num(nan=float("inf")))


def main(arguments: list[str] | None = None) -> int:
    """Compares the two; 0 when they agree."""
    args = parse_args(arguments)
    gt_boxes, gt_labels, pred, class_weights = make_problem(args)
    sizes = [len(labels) for labels in gt_labels]
    print(f"{args.layers} layers, {args.predictions} predictions; objects per sample: {sizes}")
    print(f"{args.dtype} on {args.device}; losses summed over the layers:\n")
    print(f"{'':<12}{'box':>16}{'classes':>16}{'existence':>16}")
    results = []
    for name, loss in (("batched", loss_of_all_layers), ("per sample", per_sample_loss)):
        losses = loss(gt_boxes, gt_labels, pred, class_weights)
        results.append((torch.stack(losses), torch.autograd.grad(losses.total(), pred)))
        print(f"{name:<12}" + "".join(f"{term.sum().item():>16.9g}" for term in losses))
    (batched, gradients), (expected, expected_gradients) = results
    in_losses = largest_difference(batched, expected)
    in_gradients = {
        name: largest_difference(*pair)
        for name, *pair in zip(Predictions._fields, gradients, expected_gradients, strict=True)
    }
    print(f"\nlargest difference, relative to the largest entry:\n{'losses':<32}{in_losses:.2e}")
    for name, difference in in_gradients.items():
        print(f"{'gradient of ' + name:<32}{difference:.2e}")
    tolerance = TOLERANCE[getattr(torch, args.dtype)]
    agree = max(in_losses, *in_gradients.values()) <= tolerance
    print(f"\n{'agree' if agree else 'DISAGREE'}: the tolerance is {tolerance:g}")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
