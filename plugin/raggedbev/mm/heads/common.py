"""What the loss adapters of all heads share: assigners, averages over ranks, precision, captured or compiled losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmdet3d.registry import TASK_UTILS
from mmdet3d.structures import BaseInstance3DBoxes, LiDARInstance3DBoxes
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor

from raggedbev.losses import GraphedLoss
from raggedbev.profiling.stages import stage
from raggedbev.ragged import Buckets, RaggedBatch, combine_data

__all__ = [
    "LossRunner",
    "build_assigner",
    "check_num_layers",
    "full_precision",
    "mean_over_processes",
    "pack_boxes_3d",
    "require_assigner",
]


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


def check_num_layers(head: Any, num_layers: int) -> None:
    """Raise a ValueError where a head gives losses for no layer, or for more layers than it has class branches."""
    branches = getattr(head, "cls_branches", None)
    most = num_layers if branches is None else len(branches)
    if not 1 <= num_layers <= most:
        raise ValueError(
            f"{type(head).__name__} must have predictions of 1 to {most or 'more'} decoder layers, got {num_layers}"
        )


def pack_boxes_3d(
    boxes: Sequence[BaseInstance3DBoxes], labels: Sequence[Tensor], width: int | None = None
) -> tuple[RaggedBatch, RaggedBatch]:
    """Objects of B samples, on the device of the labels.

    Args:
        boxes: B times boxes [G].
        labels: B times [G] int64.
        width: numbers of a box, for samples without objects, whose boxes may have any.

    Returns:
        Boxes [B, G, 7 or 9] from the gravity centre on, and labels [B, G].
    """
    device = labels[0].device

    def rows(one: Tensor) -> Tensor:
        return one if width is None or len(one) or one.shape[1] == width else one.new_empty((0, width))

    with stage("GT packing"):
        if all(isinstance(one, LiDARInstance3DBoxes) for one in boxes):
            packed = combine_data([rows(one.tensor) for one in boxes], device=device)
            bottom = packed.tensor
            middle = bottom[..., 2:3] + bottom[..., 5:6] * 0.5
            gravity = torch.cat([bottom[..., :2], middle, bottom[..., 3:]], dim=-1)
            packed = packed.create_with_sample_sizes_like_self(gravity)
        else:
            centered = [rows(torch.cat([one.gravity_center, one.tensor[:, 3:]], dim=1)) for one in boxes]
            packed = combine_data(centered, device=device)
        return packed, combine_data(labels, other_with_same_sample_sizes=packed)


class LossRunner:
    """Runs the loss of a head as it is, from a captured graph, or compiled.

    With several ranks only what comes before their average is captured or compiled: the sums.

    Args:
        head: class name of the head, for messages.
        loss: gives the losses of one rank.
        sums: gives the same before they are normalised; same arguments.
        finish: `finish(sums, config, reduce_mean)` gives the losses of a rank among others.
        padded_sizes: lengths that the objects of a batch are padded to, see `Buckets`; none: the fullest sample's, or
            multiples of 16 where a graph or compiled code is to be reused.
        loss_graph: whether the loss is captured (`GraphedLoss`); on the CPU it runs as it is.
        loss_compile: whether the loss is compiled; the name of a backend of `torch.compile`, True for its default.

    Attributes:
        buckets: padded lengths, or None.

    Raises:
        ValueError: both ways are asked for, or the lengths do not rise.
    """

    def __init__(
        self,
        head: str,
        loss: Callable[..., dict[str, Tensor]],
        sums: Callable[..., Any],
        finish: Callable[..., dict[str, Tensor]],
        padded_sizes: Sequence[int] | None,
        loss_graph: bool,
        loss_compile: bool | str,
    ) -> None:
        if loss_graph and loss_compile:
            raise ValueError(f"{head} takes loss_graph or loss_compile, not both")
        self.loss, self.sums, self.finish = loss, sums, finish
        self.is_plain = not (loss_graph or loss_compile)
        if loss_graph:
            self.loss, self.sums = GraphedLoss(loss), GraphedLoss(sums)
        elif loss_compile:
            options = {"backend": loss_compile} if isinstance(loss_compile, str) else {}
            self.loss, self.sums = (
                torch.compile(part, fullgraph=True, dynamic=False, **options) for part in (loss, sums)
            )
        if padded_sizes is None:
            self.buckets = None if self.is_plain else Buckets()
        else:
            self.buckets = Buckets(tuple(padded_sizes))

    def __call__(self, config: Any, *args: Any) -> dict[str, Tensor]:
        """Losses for the arguments of `loss`."""
        if get_world_size() == 1:
            return self.loss(*args)
        return self.finish(self.sums(*args), config, mean_over_processes)
