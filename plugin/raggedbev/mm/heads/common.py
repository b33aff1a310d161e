"""What the loss adapters of all heads share: building the assigner, averaging over ranks, full precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmdet3d.registry import TASK_UTILS
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor

__all__ = ["build_assigner", "full_precision", "mean_over_processes", "require_assigner"]


def mean_over_processes(counts: Tensor) -> Tensor:
    """Mean of `counts` over all processes of a distributed run."""
    if get_world_size() == 1:
        return counts
    counts = counts.clone()
    all_reduce(counts, op="mean")
    return counts


def full_precision(tensor: Tensor) -> torch.autocast:
    """Context without automatic mixed precision on the device of `tensor`."""
    return torch.autocast(tensor.device.type, enabled=False)


def build_assigner(head: str, train_cfg: Mapping[str, Any] | None, batched: bool, replacement: str) -> Any:
    """The assigner of `train_cfg`, or None without one (a head for inference only).

    Args:
        head: class name of the head, for messages.
        train_cfg: dict(assigner=dict(type=...)).
        batched: whether the head needs `assign_batch`.
        replacement: name of an assigner that has it.

    Raises:
        ValueError: other keys, or an assigner that the head cannot use.
    """
    if train_cfg is None:
        return None
    unknown = sorted(set(train_cfg) - {"assigner"})
    if unknown or "assigner" not in train_cfg:
        raise ValueError(f"train_cfg of {head} must be dict(assigner=...), got the keys {sorted(train_cfg)}")
    assigner = TASK_UTILS.build(train_cfg["assigner"])
    needed = "assign_batch" if batched else "assign"
    if not hasattr(assigner, needed):
        raise ValueError(f"{head} needs an assigner with {needed}, got {type(assigner).__name__}; use {replacement}")
    return assigner


def require_assigner(head: Any) -> Any:
    """The head's assigner; a ValueError where it was built without one."""
    if head.assigner is None:
        raise ValueError(
            f"{type(head).__name__} was built without train_cfg, which names the assigner that its loss needs"
        )
    return head.assigner
