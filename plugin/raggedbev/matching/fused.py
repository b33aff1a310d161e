"""All terms of a match cost in one pass over the pairs: predictions and padded ground truth in, costs [..., G, P] out.

The operator computes what the functions of `costs` compute term by term; their sum is its meaning, and what runs where
nothing is compiled. Beside the costs it returns the minima that the solver starts from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from raggedbev._extension import load_operator
from raggedbev.matching import costs
from raggedbev.matching.assignment import COLUMNS_PER_MINIMUM
from raggedbev.matching.costs import ClassCost

__all__ = ["L1Term", "MatchCost", "OverlapTerm", "match_cost"]


@dataclass(frozen=True, eq=False)
class L1Term:
    """Weighted L1 distance: weight * sum over d of |factor_d pred_d - factor_d target_d|.

    Attributes:
        preds: [..., P, D].
        targets: [..., G, D].
        weight: factor of the distance.
        factors: [D], none: 1.
    """

    preds: Tensor
    targets: Tensor
    weight: float = 1.0
    factors: Tensor | None = None


@dataclass(frozen=True, eq=False)
class OverlapTerm:
    """Negative overlap of 2D boxes, times `weight`.

    Attributes:
        preds: [..., P, 4] centre and size in units of the image.
        targets: [..., G, 4] corners in pixels.
        image_sizes: [..., 2] width and height of the image in pixels.
        weight: factor of the overlap.
        iou_mode: 'giou' or 'iou'.
    """

    preds: Tensor
    targets: Tensor
    image_sizes: Tensor
    weight: float = 1.0
    iou_mode: str = "giou"


@dataclass(frozen=True, eq=False)
class MatchCost:
    """Result of `match_cost`.

    Attributes:
        cost: [..., G, P] float32 or float64, zero in rows of filler.
        minima: [..., G, ceil(P / 64)] smallest cost of every 64 predictions, NaN where a NaN or -inf is among them.
    """

    cost: Tensor
    minima: Tensor


def match_cost(
    cls_logits: Tensor,
    labels: Tensor,
    class_cost: ClassCost,
    *,
    l1: Sequence[L1Term] = (),
    overlap: OverlapTerm | None = None,
    extra: Tensor | None = None,
    extra_weight: float = 1.0,
    num_gt: Tensor | None = None,
    replace_nonfinite: bool = True,
) -> MatchCost:
    """Cost of every object with every prediction.

    Leading dimensions of ground truth broadcast to those of the predictions: objects [B, G, ...] serve all decoder
    layers [L, B, P, ...]. Half types are computed in float32. There is no gradient.

    Args:
        cls_logits: [..., P, C] logits.
        labels: [..., G] integer; a label outside [0, C) has class cost 0, whatever the logits.
        class_cost: the classification cost.
        l1: at most four distances, which are added. A negative weight takes the slower path of plain torch.
        overlap: an overlap, which is subtracted.
        extra: [..., G, P] the cost of other terms, which is added; filler rows are not looked at.
        extra_weight: factor of `extra`.
        num_gt: [...] integer, objects per sample; rows beyond are filler. None: G.
        replace_nonfinite: NaN and +inf become 100 and -inf becomes -100, as StreamPETR's matching has it.

    Returns:
        Costs and their minima.

    Raises:
        ValueError: shapes or devices do not fit, or a weight is NaN.
    """
    if cls_logits.dim() < 2 or labels.dim() < 1:
        raise ValueError(
            "cls_logits must be [..., P, C] and labels [..., G], "
            f"got {tuple(cls_logits.shape)} and {tuple(labels.shape)}"
        )
    dtype = _common_type([cls_logits, *(term.preds for term in l1), *([] if extra is None else [extra])])
    lead = cls_logits.shape[:-2]
    gt_lead = labels.shape[:-1]
    if gt_lead != lead[len(lead) - len(gt_lead) :]:  # not simply shared: one copy for each problem
        lead = gt_lead = _common_lead(lead, gt_lead)

    def check_device(name: str, tensor: Tensor) -> None:
        if tensor.device != cls_logits.device:
            raise ValueError(f"{name} must be on {cls_logits.device}, got {tensor.device}")

    def fold(name: str, tensor: Tensor, into: torch.Size, own_dims: int) -> Tensor:
        """Leading dimensions as one, without views that change nothing: for small batches they take their time."""
        check_device(name, tensor)
        if tensor.requires_grad:
            tensor = tensor.detach()
        shape = tensor.shape
        num = len(shape) - own_dims
        if shape[:num] != into:
            try:
                tensor = tensor.expand((*into, *shape[num:]))
            except RuntimeError:
                raise ValueError(
                    f"{name} must have the leading dimensions {tuple(into)}, got shape {tuple(shape)}"
                ) from None
        return tensor if len(into) == 1 else tensor.reshape(math.prod(into), *shape[num:])

    def fold_data(name: str, tensor: Tensor, into: torch.Size, own_dims: int = 2) -> Tensor:
        return fold(name, tensor if tensor.dtype == dtype else tensor.to(dtype), into, own_dims)

    if num_gt is None:
        num_gt = labels.new_full(gt_lead, labels.shape[-1])
    boxes = gt_boxes = sizes = None
    if overlap is not None:
        if overlap.iou_mode not in ("iou", "giou"):
            raise ValueError(f"iou_mode must be 'iou' or 'giou', got {overlap.iou_mode!r}")
        boxes = fold_data("overlap.preds", overlap.preds, lead)
        gt_boxes = fold_data("overlap.targets", overlap.targets, gt_lead)
        sizes = fold_data("overlap.image_sizes", overlap.image_sizes, gt_lead, 1)
    if extra is not None and extra.shape[-2:] != (labels.shape[-1], cls_logits.shape[-2]):
        raise ValueError(
            f"extra must be [..., {labels.shape[-1]}, {cls_logits.shape[-2]}] like the costs, got {tuple(extra.shape)}"
        )
    for i, term in enumerate(l1):
        if term.factors is not None:
            check_device(f"l1[{i}].factors", term.factors)
    _check_weights(class_cost, l1, overlap, extra_weight)
    is_negative = any(term.weight < 0 for term in l1)
    cost, minima = (_match_cost_with_torch if is_negative else _match_cost)(
        fold_data("cls_logits", cls_logits, lead),
        fold("labels", labels, gt_lead, 1),
        fold("num_gt", num_gt, gt_lead, 0),
        [fold_data(f"l1[{i}].preds", term.preds, lead) for i, term in enumerate(l1)],
        [fold_data(f"l1[{i}].targets", term.targets, gt_lead) for i, term in enumerate(l1)],
        [None if term.factors is None else term.factors.to(dtype) for term in l1],
        [float(term.weight) for term in l1],
        boxes,
        gt_boxes,
        sizes,
        None if extra is None else fold_data("extra", extra, lead),
        class_cost.kind == "softmax",
        float(class_cost.weight),
        float(class_cost.alpha),
        float(class_cost.gamma),
        float(class_cost.eps),
        0.0 if overlap is None else float(overlap.weight),
        float(extra_weight),
        overlap is not None and overlap.iou_mode == "giou",
        replace_nonfinite,
    )
    if len(lead) != 1:
        cost, minima = cost.reshape(*lead, *cost.shape[1:]), minima.reshape(*lead, *minima.shape[1:])
    return MatchCost(cost, minima)


def _check_weights(
    class_cost: ClassCost, l1: Sequence[L1Term], overlap: OverlapTerm | None, extra_weight: float
) -> None:
    """ValueError for a weight that is NaN: all costs would be."""
    weights = {"class_cost.weight": class_cost.weight, "extra_weight": extra_weight}
    weights |= {f"l1[{i}].weight": term.weight for i, term in enumerate(l1)}
    if overlap is not None:
        weights["overlap.weight"] = overlap.weight
    for name, weight in weights.items():
        if weight != weight:
            raise ValueError(f"{name} must be a number, got {weight}")


def _common_lead(lead: torch.Size, gt_lead: torch.Size) -> torch.Size:
    """Leading dimensions of logits [..., P, C] and labels [..., G], broadcast."""
    try:
        return torch.broadcast_shapes(lead, gt_lead)
    except RuntimeError:
        raise ValueError(
            f"labels must have leading dimensions that go with {tuple(lead)} of the predictions, got {tuple(gt_lead)}"
        ) from None


def _common_type(tensors: Sequence[Tensor]) -> torch.dtype:
    """float64 if any tensor has it, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def block_minima(cost: Tensor) -> Tensor:
    """Smallest cost of every 64 predictions, NaN where a NaN or -inf is among them: [..., P] -> [..., blocks]."""
    missing = -cost.shape[-1] % COLUMNS_PER_MINIMUM
    blocks = F.pad(cost, (0, missing), value=math.inf).unflatten(-1, (-1, COLUMNS_PER_MINIMUM))
    lowest = blocks.amin(-1) if blocks.shape[-2] else blocks.new_empty(blocks.shape[:-1])
    return torch.where(lowest == -math.inf, math.nan, lowest)


def _match_cost_with_torch(
    cls_logits: Tensor,
    labels: Tensor,
    num_gt: Tensor,
    preds: list[Tensor],
    gt: list[Tensor],
    factors: list[Tensor | None],
    weights: list[float],
    boxes: Tensor | None,
    gt_boxes: Tensor | None,
    sizes: Tensor | None,
    extra: Tensor | None,
    softmax: bool,
    class_weight: float,
    alpha: float,
    gamma: float,
    eps: float,
    overlap_weight: float,
    extra_weight: float,
    giou: bool,
    finite: bool,
) -> tuple[Tensor, Tensor]:
    """The sum of the terms, one after another."""
    problems, num_preds, samples = len(cls_logits), cls_logits.shape[1], len(labels)
    layers = problems // samples if samples else 0

    def by_layer(tensor: Tensor) -> Tensor:
        return tensor.reshape(layers, samples, *tensor.shape[1:])

    logits = by_layer(cls_logits)
    if softmax:
        total = costs.classification_cost(logits, labels, weight=class_weight)
    else:
        total = costs.focal_loss_cost(logits, labels, weight=class_weight, alpha=alpha, gamma=gamma, eps=eps)
    for own, target, factor, weight in zip(preds, gt, factors, weights, strict=True):
        total += costs.box3d_l1_cost(by_layer(own), target, weight=weight, code_weights=factor)
    if boxes is not None and gt_boxes is not None and sizes is not None:
        pixels = costs.cxcywh_to_xyxy(by_layer(boxes)) * torch.cat([sizes, sizes], dim=-1).unsqueeze(1)
        total += costs.iou_cost(pixels, gt_boxes, weight=overlap_weight, iou_mode="giou" if giou else "iou")
    if extra is not None:
        total += by_layer(extra) * extra_weight
    if finite:
        costs.replace_nonfinite_(total)
    rows = torch.arange(labels.shape[1], device=labels.device)
    total = torch.where((rows < num_gt.unsqueeze(1)).unsqueeze(-1), total, 0.0)
    total = total.reshape(problems, labels.shape[1], num_preds)
    return total, block_minima(total)


def _match_cost_fake(cls_logits: Tensor, labels: Tensor, *_args: object) -> tuple[Tensor, Tensor]:
    problems, num_preds = cls_logits.shape[:2]
    blocks = (num_preds + COLUMNS_PER_MINIMUM - 1) // COLUMNS_PER_MINIMUM
    return (
        cls_logits.new_empty((problems, labels.shape[1], num_preds)),
        cls_logits.new_empty((problems, labels.shape[1], blocks)),
    )


def _mapped_match_cost(operator: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Any]:
    """vmap rule: mapped dimensions stand between layers and samples, so that problem n still has ground truth n % M."""

    def rule(info: Any, in_dims: Sequence[Any], *args: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        def first(tensor: Tensor, dim: int | None) -> Tensor:
            return tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)

        logits, labels = (first(args[i], in_dims[i]) for i in (0, 1))
        samples, problems = labels.shape[1], logits.shape[1]
        layers = problems // samples if samples else 0

        def of_problems(tensor: Tensor) -> Tensor:
            """[V, L * M, ...] -> [L * V * M, ...]"""
            return tensor.reshape(info.batch_size, layers, samples, *tensor.shape[2:]).transpose(0, 1).flatten(0, 2)

        def of_samples(tensor: Tensor, dim: int | None) -> Tensor:
            return first(tensor, dim).flatten(0, 1)

        preds, gt, factors = list(args[3]), list(args[4]), list(args[5])
        for i, dim in enumerate(in_dims[5]):
            preds[i], gt[i] = first(preds[i], in_dims[3][i]), first(gt[i], in_dims[4][i])
            if dim is not None:  # the operator has one for all problems
                factor = first(factors[i], dim)[:, None, None]
                preds[i], gt[i], factors[i] = preds[i] * factor, gt[i] * factor, None
            preds[i], gt[i] = of_problems(preds[i]), gt[i].flatten(0, 1)
        boxes, gt_boxes, sizes, extra = args[7:11]
        if boxes is not None:
            boxes = of_problems(first(boxes, in_dims[7]))
            gt_boxes, sizes = of_samples(gt_boxes, in_dims[8]), of_samples(sizes, in_dims[9])
        if extra is not None:
            extra = of_problems(first(extra, in_dims[10]))
        found = operator(
            of_problems(logits), labels.flatten(0, 1), of_samples(args[2], in_dims[2]), preds, gt, factors, args[6],
            boxes, gt_boxes, sizes, extra, *args[11:],
        )  # fmt: skip
        cost, minima = (
            part.reshape(layers, info.batch_size, samples, *part.shape[1:]).transpose(0, 1).flatten(1, 2)
            for part in found
        )
        return (cost, minima), (0, 0)

    return rule


_match_cost = load_operator(
    "match_cost", fallback=_match_cost_with_torch, fake=_match_cost_fake, vmap=_mapped_match_cost
)
