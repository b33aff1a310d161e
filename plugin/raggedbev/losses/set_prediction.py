"""Set prediction: an assignment of all layers and samples in, targets and matched pairs out, ready for the loss terms.

Batches are [..., B, P] throughout: any leading dimensions (decoder layers), samples, predictions. Ground truth [B, G,
...] is shared by the leading dimensions and broadcast, not copied.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from raggedbev.losses.terms import CoordinateLoss
from raggedbev.matching.assignment import LinearAssignment
from raggedbev.ragged.batch import RaggedBatch

__all__ = [
    "ReduceMean",
    "check_devices",
    "class_targets",
    "gather_predictions",
    "gather_targets",
    "masked_sum",
    "mean_over_ranks",
    "num_matched",
    "per_layer",
    "prediction_sum",
    "widened",
]

ReduceMean = Callable[[Tensor], Tensor]
"""Mean of a tensor over all ranks of a distributed run."""


def check_devices(ground_truth: RaggedBatch, *predictions: Tensor) -> None:
    """Raise a ValueError unless ground truth and predictions are on one device."""
    for tensor in predictions:
        if tensor.device != ground_truth.device:
            raise ValueError(f"ground truth is on {ground_truth.device}, predictions are on {tensor.device}")


def widened(tensor: Tensor) -> Tensor:
    """Half-precision predictions as float32; losses are computed in float32 or wider."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def prediction_sum(values: Tensor) -> Tensor:
    """Sum over samples, predictions and coordinates of [L, B, ...]: [L]."""
    return values.flatten(1).sum(1)


def per_layer(values: Tensor) -> tuple[Tensor, ...]:
    """[L] as L scalars; what `torch.compile` returns must not be views of one tensor, so there they are copies."""
    if torch.compiler.is_compiling():
        return tuple(value.clone() for value in values.unbind())
    return values.unbind()


def num_matched(assignment: LinearAssignment) -> Tensor:
    """Matched predictions per layer [L] int64, for an assignment of [L, B, P]; stays on the device."""
    return (assignment.gt_of_pred >= 0).flatten(1).sum(1)


def mean_over_ranks(counts: Tensor, reduce_mean: ReduceMean | None) -> Tensor:
    """Mean over ranks of all `counts` [K], in one call of `reduce_mean` (one rank when it is None)."""
    return counts if reduce_mean is None else reduce_mean(counts)


def class_targets(assignment: LinearAssignment, labels: RaggedBatch, num_classes: int) -> Tensor:
    """Class of each prediction.

    Args:
        assignment: of predictions [..., B, P].
        labels: [B, G] int64 classes of the objects.
        num_classes: the label of background.

    Returns:
        [..., B, P] int64.
    """
    gt_of_pred = assignment.gt_of_pred
    if labels.max_sample_size == 0:
        return torch.full_like(gt_of_pred, num_classes)
    lead = gt_of_pred.shape[:-1]
    found = labels.tensor.expand(*lead, -1).gather(-1, gt_of_pred.clamp(min=0))
    return torch.where(gt_of_pred >= 0, found, num_classes)


def gather_targets(assignment: LinearAssignment, targets: Tensor) -> Tensor:
    """Target of each prediction, zero for background: padded [B, G, D] -> [..., B, P, D]."""
    gt_of_pred, width = assignment.gt_of_pred, targets.shape[-1]
    lead = gt_of_pred.shape[:-1]
    if targets.shape[-2] == 0:
        return targets.new_zeros((*gt_of_pred.shape, width))
    index = gt_of_pred.clamp(min=0).unsqueeze(-1).expand(*gt_of_pred.shape, width)
    found = targets.expand(*lead, *targets.shape[-2:]).gather(-2, index)
    return torch.where((gt_of_pred >= 0).unsqueeze(-1), found, 0.0)


def gather_predictions(assignment: LinearAssignment, preds: Tensor) -> tuple[Tensor, Tensor]:
    """Prediction of each object.

    Args:
        assignment: of predictions [..., B, P] and objects [..., B, G].
        preds: [..., B, P, D].

    Returns:
        [..., B, G, D] predictions (unspecified where there is none) and [..., B, G] bool, True where there is one.
    """
    pred_of_gt = assignment.pred_of_gt
    if preds.shape[-2] == 0:
        preds = F.pad(preds, (0, 0, 0, 1))  # one row to point at
    index = pred_of_gt.clamp(min=0).unsqueeze(-1).expand(*pred_of_gt.shape, preds.shape[-1])
    return preds.gather(-2, index), pred_of_gt >= 0


def masked_sum(
    preds: Tensor, targets: Tensor, keep: Tensor, loss: CoordinateLoss, code_weights: Tensor | None = None
) -> Tensor:
    """Weighted loss of the coordinates of the rows in `keep`, summed per layer.

    Rows that do not count are replaced before the subtraction, on both sides: neither their values nor their
    gradients, NaN and infinity included, reach the result.

    Args:
        preds: [L, B, K, D].
        targets: [B, K, D] (or [L, B, K, D]).
        keep: [L, B, K] bool.
        loss: of a coordinate.
        code_weights: [D] factor of each coordinate; none: 1.

    Returns:
        [L].
    """
    rows = keep.unsqueeze(-1)
    terms = loss(torch.where(rows, preds, 0.0), torch.where(rows, targets, 0.0))
    return prediction_sum(terms if code_weights is None else terms * code_weights)
