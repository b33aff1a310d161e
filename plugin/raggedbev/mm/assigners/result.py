"""What assigners return to a head that calls them for one sample: mmdet's `AssignResult`."""

from __future__ import annotations

import torch.nn.functional as F
from mmdet.models.task_modules.assigners import AssignResult
from torch import Tensor

__all__ = ["assign_result"]


def assign_result(gt_of_pred: Tensor, gt_labels: Tensor, max_overlaps: Tensor | None = None) -> AssignResult:
    """mmdet's form of an assignment.

    Args:
        gt_of_pred: [P] int64 object of each prediction, -1 for background.
        gt_labels: [G] integer labels.
        max_overlaps: [P] overlap of each prediction with its object, where a head asks for it.

    Returns:
        `gt_inds` 0 for background and i + 1 for object i; `labels` int64, -1 for background.
    """
    gt_inds = gt_of_pred + 1
    labels = F.pad(gt_labels.long(), (1, 0), value=-1).index_select(0, gt_inds)
    return AssignResult(len(gt_labels), gt_inds, max_overlaps=max_overlaps, labels=labels)
