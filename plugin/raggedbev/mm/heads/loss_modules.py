"""mmdet's loss modules in, the batched losses that compute the same out; others are refused with one sentence."""

from __future__ import annotations

import torch
from mmdet.models.losses import (
    BalancedL1Loss,
    CrossEntropyLoss,
    L1Loss,
    QualityFocalLoss,
    SmoothL1Loss,
)
from torch import Tensor, nn

from raggedbev.losses.detr import ClassLoss, CrossEntropy, Focal, QualityFocal
from raggedbev.losses.terms import L1, BalancedL1, CoordinateLoss, SmoothL1

__all__ = ["check_module", "class_loss", "class_weight", "coordinate_loss"]


def check_module(head: str, key: str, module: nn.Module, *kinds: type) -> None:
    """Raise a ValueError where `module`, the head's `key`, is of another type, or reduces otherwise than 'mean'."""
    if type(module) not in kinds:
        names = ", ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{head} implements {key} of the types {names}, got {type(module).__name__}")
    if module.reduction != "mean":
        raise ValueError(f"{head} implements {key} with reduction='mean' only, got {module.reduction!r}")


def class_weight(head: str, module: nn.Module, num_channels: int) -> Tensor | None:
    """Class weights [C] of a cross entropy; None for other losses, and without weights.

    Raises:
        ValueError: the head's cross entropy has another number of weights.
    """
    weights = getattr(module, "class_weight", None) if isinstance(module, CrossEntropyLoss) else None
    if weights is None:
        return None
    weights = torch.as_tensor(weights)
    if weights.shape != (num_channels,):
        raise ValueError(
            f"class_weight of {head} must have one number for each of the {num_channels} classes with background, got "
            f"shape {tuple(weights.shape)}"
        )
    return weights


def class_loss(head: str, module: nn.Module, weights: Tensor | None, kinds: tuple[type, ...]) -> ClassLoss:
    """The batched class loss of the head's `loss_cls`.

    Args:
        head: class name of the head, for messages.
        module: loss module, of one of `kinds`.
        weights: [C] class weights of a cross entropy, or None.
        kinds: types that the head may have, among `FocalLoss`, `CrossEntropyLoss` and `QualityFocalLoss`.

    Raises:
        ValueError: another type, or settings that are not implemented.
    """
    check_module(head, "loss_cls", module, *kinds)
    if isinstance(module, CrossEntropyLoss):
        if module.use_sigmoid or module.use_mask or module.ignore_index is not None:
            raise ValueError(f"{head} implements CrossEntropyLoss as softmax without ignore_index only")
        return CrossEntropy(weights)
    if module.activated or not module.use_sigmoid:
        raise ValueError(f"{head} implements {type(module).__name__} of logits with use_sigmoid=True only")
    if isinstance(module, QualityFocalLoss):
        return QualityFocal(module.beta)
    return Focal(module.alpha, module.gamma)


def coordinate_loss(head: str, key: str, module: nn.Module) -> CoordinateLoss:
    """The loss of box coordinates of the head's `key`: L1, smooth L1 or balanced L1.

    Raises:
        ValueError: another type, or settings that are not implemented.
    """
    check_module(head, key, module, L1Loss, SmoothL1Loss, BalancedL1Loss)
    if isinstance(module, SmoothL1Loss):
        return SmoothL1(module.beta)
    if isinstance(module, BalancedL1Loss):
        return BalancedL1(module.alpha, module.gamma, module.beta)
    return L1()
