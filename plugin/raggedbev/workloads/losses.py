"""Loss scope of the benchmark: predictions and ground truth in, one training step's loss work per arm out.

An arm computes the losses of both heads and their gradients: the per-sample loops as published, the same loops without
needless host work (the fair baseline), or this package's batched losses, as they are, as CUDA graphs, or compiled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from raggedbev.losses import (
    DenoisingOutput,
    FocalHeadLossConfig,
    GraphedLoss,
    GroundTruth3D,
    StreamPETRLossConfig,
    focal_head_loss,
    streampetr_loss,
)
from raggedbev.losses.reference import focal_head_loss_reference, streampetr_loss_reference
from raggedbev.matching import HungarianMatcher2D, HungarianMatcher3D
from raggedbev.matching.reference import PerSampleMatcher2D, PerSampleMatcher3D
from raggedbev.profiling.interleave import Progress
from raggedbev.profiling.report import HEAD_2D, HEAD_3D, LOSS
from raggedbev.profiling.stages import stage
from raggedbev.ragged import Buckets
from raggedbev.workloads.generate import LossSizes, Objects, Predictions

Losses = dict[str, Tensor]
Heads = tuple[Callable[..., Losses], Callable[..., Losses]]


@dataclass(frozen=True)
class LossSettings:
    """Weights, costs and assigners of both heads.

    Attributes:
        head_3d: Settings of the 3D loss.
        head_2d: Settings of the 2D loss.
        matcher_3d: Matcher of the 3D head.
        matcher_2d: Matcher of the 2D head.
    """

    head_3d: StreamPETRLossConfig = field(default_factory=StreamPETRLossConfig)
    head_2d: FocalHeadLossConfig = field(default_factory=FocalHeadLossConfig)
    matcher_3d: HungarianMatcher3D = field(default_factory=HungarianMatcher3D)
    matcher_2d: HungarianMatcher2D = field(default_factory=HungarianMatcher2D)

    @classmethod
    def published(cls, sizes: LossSizes) -> LossSettings:
        """The published settings at the given class count and stride."""
        return cls(
            head_3d=StreamPETRLossConfig(num_classes=sizes.num_classes),
            head_2d=FocalHeadLossConfig(num_classes=sizes.num_classes, stride=sizes.stride),
        )


def _batched(settings: LossSettings) -> Heads:
    return (
        partial(streampetr_loss, assigner=settings.matcher_3d, config=settings.head_3d),
        partial(focal_head_loss, assigner=settings.matcher_2d, config=settings.head_2d),
    )


def _per_sample(settings: LossSettings, arm: str) -> Heads:
    matcher_3d = PerSampleMatcher3D(settings.matcher_3d, arm)
    matcher_2d = PerSampleMatcher2D(settings.matcher_2d, arm)
    return (
        partial(streampetr_loss_reference, assigner=matcher_3d, config=settings.head_3d),
        partial(focal_head_loss_reference, assigner=matcher_2d, config=settings.head_2d, arm=arm),
    )


def _wrapped(settings: LossSettings, wrap: Callable[[Callable[..., Losses]], Callable[..., Losses]]) -> Heads:
    """The batched losses on packed ground truth, whose padded length is that of a bucket."""
    loss_3d, loss_2d = _batched(settings)
    buckets = Buckets()
    whole_3d = wrap(lambda logits, boxes, gt, dn: loss_3d(logits, boxes, gt, dn=dn))
    whole_2d = wrap(lambda *inputs: loss_2d(*inputs[:-1], pad_shape=inputs[-1]))

    def head_3d(logits: Tensor, boxes: Tensor, gt: GroundTruth3D, dn: DenoisingOutput | None) -> Losses:
        return whole_3d(logits, boxes, gt.packed(buckets), dn)

    def head_2d(*inputs: Any, pad_shape: tuple[int, int]) -> Losses:
        *predictions, gt = inputs
        return whole_2d(*predictions, gt.packed(buckets), tuple(pad_shape))

    return head_3d, head_2d


def _compiled(settings: LossSettings) -> Heads:
    torch.compiler.reset()  # or the arms of earlier batch sizes count as recompilations of this one's
    return _wrapped(settings, partial(torch.compile, fullgraph=True, dynamic=False))


ARMS: dict[str, Callable[[LossSettings], Heads]] = {
    "published": partial(_per_sample, arm="published"),
    "reference": partial(_per_sample, arm="reference"),
    "batched": _batched,
    "batched+graph": partial(_wrapped, wrap=GraphedLoss),
    "batched+compile": _compiled,
}
"""Arm name to the loss functions of the 3D and the 2D head with their settings filled in."""


def usual_arms(device: str | torch.device) -> list[str]:
    """All arms on CUDA; on the CPU those that need neither graphs nor a minute of compiling."""
    return list(ARMS) if torch.device(device).type == "cuda" else ["published", "reference", "batched"]


def check_arms(names: Sequence[str], device: str | torch.device) -> None:
    """Raise a ValueError for an arm that the device does not have."""
    if "batched+graph" in names and torch.device(device).type != "cuda":
        raise ValueError(f"the arm batched+graph replays CUDA graphs, which need --device cuda, got {device}")


class LossArm:
    """One version of the losses on fixed inputs; calling it computes losses and gradients once, with marked stages.

    Args:
        name: Arm, one of `ARMS`.
        objects: Ground truth, on the device of the predictions.
        predictions: Leaf tensors; their gradients are replaced by every call.
        sizes: Sizes of the problem.
        settings: Weights, costs and assigners.

    Attributes:
        first_call_s: Seconds of the first call, captures and compiling included; ``None`` before `compare_arms`.

    Raises:
        ValueError: There is no such arm.
    """

    first_call_s: float | None = None

    def __init__(
        self, name: str, objects: Objects, predictions: Predictions, sizes: LossSizes, settings: LossSettings
    ) -> None:
        if name not in ARMS:
            raise ValueError(f"arm must be one of {', '.join(ARMS)}, got {name!r}")
        self.objects = objects
        self.predictions = predictions
        self.sizes = sizes
        self.loss_3d, self.loss_2d = ARMS[name](settings)

    def __call__(self) -> dict[str, Losses]:
        """Losses of both heads by stage name; gradients are in the predictions."""
        p = self.predictions
        self.reset()
        gt_3d, gt_2d = self.objects.ground_truth()
        with stage(LOSS):
            with stage(HEAD_3D):
                found_3d = self.loss_3d(p.cls_logits, p.box_preds, gt_3d, dn=p.dn)
                _backward(found_3d)
            with stage(HEAD_2D):
                outputs = (p.token_logits, p.token_boxes, p.token_centers, p.centerness)
                found_2d = self.loss_2d(*outputs, gt_2d, pad_shape=self.sizes.image_size)
                _backward(found_2d)
        return {HEAD_3D: found_3d, HEAD_2D: found_2d}

    def reset(self) -> None:
        """Drops the gradients that the last call left."""
        for leaf in self.predictions.leaves().values():
            leaf.grad = None

    def gradients(self) -> dict[str, Tensor]:
        """Copies of the gradients that the last call left."""
        leaves = self.predictions.leaves()
        return {name: leaf.grad.clone() for name, leaf in leaves.items() if leaf.grad is not None}


def _backward(losses: Losses) -> None:
    """Gradients of the sum; denoising losses without denoising queries carry none."""
    with stage("backward"):
        torch.stack([loss for loss in losses.values() if loss.requires_grad]).sum().backward()


@dataclass(frozen=True)
class Agreement:
    """Largest differences between the arms, relative.

    Attributes:
        losses: Of a loss: |a - b| over the larger of the two.
        key: The loss with the largest difference.
        gradients: Of a gradient tensor: largest |a - b| over the tensor's largest entry; ``None`` if not compared.
        arms: Which arms were compared; the first is what the others are compared with.
    """

    losses: float
    key: str
    gradients: float | None
    arms: tuple[str, ...]

    @classmethod
    def of_losses(cls, losses: Mapping[str, Mapping[str, float]], gradients: float | None = None) -> Agreement:
        """Compares losses by arm and key.

        Raises:
            ValueError: The arms have other keys.
        """
        names = list(losses)
        first = losses[names[0]]
        worst, where = 0.0, next(iter(first), "")
        for name in names[1:]:
            if set(losses[name]) != set(first):
                raise ValueError(f"{names[0]} and {name} name other losses: {sorted(set(losses[name]) ^ set(first))}")
            for key, value in first.items():
                difference = _relative(value, losses[name][key])
                if difference > worst:
                    worst, where = difference, key
        return cls(worst, where, gradients, tuple(names))

    def sentence(self) -> str:
        """One line for the terminal."""
        if len(self.arms) < 2:
            return f"one arm only ({self.arms[0]}): nothing to compare"
        gradients = "" if self.gradients is None else f"; of a gradient {self.gradients:.1e}"
        compared = f"largest relative difference of a loss {self.losses:.1e} ({self.key}){gradients}"
        return f"{', '.join(self.arms)} compared: {compared}"

    def as_dict(self) -> dict[str, Any]:
        """For the report."""
        return {"losses": self.losses, "key": self.key, "gradients": self.gradients, "arms": list(self.arms)}


def compare_arms(arms: Mapping[str, LossArm], progress: Progress | None = None, weight: float = 1.0) -> Agreement:
    """Runs every arm once and compares losses and gradients with the first arm's.

    Args:
        arms: Arms by name.
        progress: Told of every arm; default: none.
        weight: How long a run takes, in the progress's units.
    """
    losses: dict[str, dict[str, float]] = {}
    gradients: dict[str, dict[str, Tensor]] = {}
    for name, arm in arms.items():
        if progress is not None:
            progress.step(f"first run of {name}", weight)
        start = time.perf_counter()
        found = arm()
        losses[name] = {
            f"{head}: {key}": float(loss.detach()) for head, rows in found.items() for key, loss in rows.items()
        }
        arm.first_call_s = time.perf_counter() - start
        gradients[name] = arm.gradients()
    first, *others = gradients.values()
    apart = [_gradient_difference(first, other) for other in others]
    return Agreement.of_losses(losses, max(apart, default=None))


def _gradient_difference(first: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Largest difference over all tensors, each relative to its largest entry."""
    apart = []
    for name, gradient in first.items():
        scale = max(float(gradient.abs().max()), float(other[name].abs().max())) if gradient.numel() else 0.0
        apart.append(float((gradient - other[name]).abs().max()) / scale if scale else 0.0)
    return max(apart, default=0.0)


def _relative(a: float, b: float) -> float:
    """0 for equal values and two NaN; infinite where one value is not finite."""
    if a == b or (a != a and b != b):
        return 0.0
    difference = abs(a - b) / max(abs(a), abs(b))
    return difference if difference == difference else float("inf")
