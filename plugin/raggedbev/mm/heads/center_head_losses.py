"""Losses of heads with heatmaps as their stock modules compute them, without reading a value on the host."""

from __future__ import annotations

from functools import partial

import torch
from mmdet.models.losses import L1Loss, SmoothL1Loss
from mmdet.models.losses.smooth_l1_loss import l1_loss, smooth_l1_loss
from torch import Tensor, nn

__all__ = ["count_peaks", "regression_loss"]


def count_peaks(heatmap: Tensor) -> Tensor:
    """Number of cells that are exactly 1, at least 1: float32 scalar."""
    return heatmap.eq(1).float().sum().clamp(min=1)


def regression_loss(module: nn.Module, pred: Tensor, target: Tensor, weight: Tensor, avg_factor: Tensor) -> Tensor:
    """What `module(pred, target, weight, avg_factor=avg_factor)` gives.

    mmdet's L1 and smooth L1 losses look whether any weight is positive, which waits for the device, and give
    sum(pred * weight) where none is. Here both are computed. Other modules, and other reductions than 'mean', are
    called as they are.

    Args:
        module: loss module of the head's config.
        pred: predictions of any shape.
        target: targets of the same shape.
        weight: weights of the same shape.
        avg_factor: scalar normaliser.

    Returns:
        Scalar loss.
    """
    if type(module) not in (L1Loss, SmoothL1Loss) or module.reduction != "mean":
        return module(pred, target, weight, avg_factor=avg_factor)
    compute = l1_loss if type(module) is L1Loss else partial(smooth_l1_loss, beta=module.beta)
    any_positive = (weight > 0).any()
    # Where the first branch is not taken, its target may be NaN, and must not reach the gradient.
    reachable = torch.where(any_positive, target, torch.zeros_like(target))
    loss = module.loss_weight * compute(pred, reachable, weight, reduction="mean", avg_factor=avg_factor)
    return torch.where(any_positive, loss, (pred * weight).sum())
