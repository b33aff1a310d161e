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

_MOST_L1_TERMS = 4  # of the operator
_LEAST_EPS = 1e-30  # the operator's logarithms in float32 have nothing below the normal numbers


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
        l1: at most four distances, which are added. One with a negative weight is computed in plain torch, slower.
        overlap: an overlap, which is subtracted.
        extra: [..., G, P] the cost of other terms, which is added; filler rows are not looked at.
        extra_weight: factor of `extra`.
        num_gt: [...] integer, objects per sample; rows beyond are filler. None: G.
        replace_nonfinite: NaN and +inf become 100 and -inf becomes -100, as StreamPETR's matching has it.

    Returns:
        Costs and their minima.

    Raises:
        TypeError: something is no tensor of real numbers, `labels` or `num_gt` no tensor of int32 or int64, a weight no
            number.
        ValueError: shapes, devices or the number of distances do not fit, or a weight is NaN.
    """
    _check_tensors(cls_logits, labels, num_gt, l1, overlap, extra)
    _check_weights(l1, overlap, extra_weight)
    if cls_logits.dim() < 2 or labels.dim() < 1:
        raise ValueError(
            "cls_logits must be [..., P, C] and labels [..., G], "
            f"got {tuple(cls_logits.shape)} and {tuple(labels.shape)}"
        )
    lead, gt_lead = cls_logits.shape[:-2], labels.shape[:-1]
    if gt_lead != lead[len(lead) - len(gt_lead) :]:  # not simply shared: one copy for each problem
        lead = gt_lead = _common_lead(lead, gt_lead)
        cls_logits = cls_logits.expand(*lead, *cls_logits.shape[-2:])
        labels = labels.expand(*lead, labels.shape[-1])
    if num_gt is None:
        num_gt = labels.new_full(gt_lead, labels.shape[-1])
    if extra is not None:
        _check_shape("extra", extra, (*lead, labels.shape[-1], cls_logits.shape[-2]), 2)
    is_double = any(
        tensor is not None and tensor.dtype == torch.float64
        for tensor in (cls_logits, extra, *[term.preds for term in l1])
    )
    dtype = torch.float64 if is_double else torch.float32

    def data(tensor: Tensor) -> Tensor:
        if tensor.requires_grad:
            tensor = tensor.detach()
        return tensor if tensor.dtype == dtype else tensor.to(dtype)

    for i, term in enumerate(l1):
        if term.weight < 0:  # the operator multiplies coordinates by the weight
            shape = (*lead, cls_logits.shape[-2]), (*gt_lead, labels.shape[-1])
            distance = _distance(f"l1[{i}].", data(term.preds), data(term.targets), term.factors, *shape)
            distance = distance.mul_(float(term.weight))
            extra, extra_weight = distance if extra is None else data(extra) * extra_weight + distance, 1.0
    l1 = [term for term in l1 if not term.weight < 0]
    has_no_digits = class_cost.kind == "focal" and class_cost.eps < _LEAST_EPS and not is_double
    cost, minima = (_match_cost_with_torch if has_no_digits else _match_cost)(
        data(cls_logits),
        labels,
        num_gt,
        [data(term.preds) for term in l1],
        [data(term.targets) for term in l1],
        [None if term.factors is None else data(term.factors) for term in l1],
        [float(term.weight) for term in l1],
        None if overlap is None else data(overlap.preds),
        None if overlap is None else data(overlap.targets),
        None if overlap is None else data(overlap.image_sizes),
        None if extra is None else data(extra),
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
    return MatchCost(cost, minima)


def _check_tensors(
    cls_logits: Tensor,
    labels: Tensor,
    num_gt: Tensor | None,
    l1: Sequence[L1Term],
    overlap: OverlapTerm | None,
    extra: Tensor | None,
) -> None:
    """TypeError for what is no tensor of real numbers, ValueError for one that is not on the device of the logits."""
    device = getattr(cls_logits, "device", None)

    def check(name: str, tensor: Tensor) -> None:
        if not isinstance(tensor, Tensor) or tensor.is_complex():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{name} must be a tensor of real numbers, got {kind}")
        if tensor.device != device:
            raise ValueError(f"{name} must be on {device}, got {tensor.device}")

    check("cls_logits", cls_logits)
    check("labels", labels)
    if num_gt is not None:
        check("num_gt", num_gt)
    for i, term in enumerate(l1):
        check(f"l1[{i}].preds", term.preds)
        check(f"l1[{i}].targets", term.targets)
        if term.factors is not None:
            check(f"l1[{i}].factors", term.factors)
    if overlap is not None:
        check("overlap.preds", overlap.preds)
        check("overlap.targets", overlap.targets)
        check("overlap.image_sizes", overlap.image_sizes)
    if extra is not None:
        check("extra", extra)


def _check_weights(l1: Sequence[L1Term], overlap: OverlapTerm | None, extra_weight: float) -> None:
    """Also the number of terms, and how boxes overlap."""
    if len(l1) > _MOST_L1_TERMS:
        raise ValueError(f"there must be at most {_MOST_L1_TERMS} L1 terms, got {len(l1)}")
    for i, term in enumerate(l1):
        costs.check_number(f"l1[{i}].weight", term.weight)
    if overlap is not None:
        if overlap.iou_mode not in ("iou", "giou"):
            raise ValueError(f"iou_mode must be 'iou' or 'giou', got {overlap.iou_mode!r}")
        costs.check_number("overlap.weight", overlap.weight)
    costs.check_number("extra_weight", extra_weight)


def _common_lead(lead: torch.Size, gt_lead: torch.Size) -> torch.Size:
    """Leading dimensions of logits [..., P, C] and labels [..., G], broadcast."""
    try:
        return torch.broadcast_shapes(lead, gt_lead)
    except RuntimeError:
        raise ValueError(
            f"labels must have leading dimensions that go with {tuple(lead)} of the predictions, got {tuple(gt_lead)}"
        ) from None


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
    for name, integers in (("labels", labels), ("num_gt", num_gt)):
        if integers.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"{name} must be int32 or int64, got {integers.dtype}")
    num_preds, num_rows = cls_logits.shape[-2], labels.shape[-1]
    lead, gt_lead = cls_logits.shape[:-2], labels.shape[:-1]
    _check_shape("num_gt", num_gt, gt_lead)
    if softmax:
        total = costs.classification_cost(cls_logits, labels, weight=class_weight)
    else:
        total = costs.focal_loss_cost(cls_logits, labels, weight=class_weight, alpha=alpha, gamma=gamma, eps=eps)
    shape = (*lead, num_preds), (*gt_lead, num_rows)
    for i, (own, target, factor, weight) in enumerate(zip(preds, gt, factors, weights, strict=True)):
        total = total + _distance(f"l1[{i}].", own, target, factor, *shape) * weight
    if boxes is not None and gt_boxes is not None and sizes is not None:
        _check_shape("overlap.preds", boxes, (*lead, num_preds, 4), 2)
        _check_shape("overlap.targets", gt_boxes, (*gt_lead, num_rows, 4), 2)
        _check_shape("overlap.image_sizes", sizes, (*gt_lead, 2), 1)
        pixels = costs.cxcywh_to_xyxy(boxes) * torch.cat([sizes, sizes], dim=-1).unsqueeze(-2)
        mode = "giou" if giou else "iou"
        total = total + costs.iou_cost(pixels, gt_boxes, weight=overlap_weight, iou_mode=mode)
    if extra is not None:
        total = total + extra * extra_weight
    if finite:
        total = costs.replace_nonfinite_(total)
    rows = torch.arange(num_rows, device=labels.device)
    total = torch.where((rows < num_gt.unsqueeze(-1)).unsqueeze(-1), total, 0.0)
    return total, block_minima(total)


def _distance(
    name: str,
    preds: Tensor,
    targets: Tensor,
    factors: Tensor | None,
    of_preds: tuple[int, ...],
    of_targets: tuple[int, ...],
) -> Tensor:
    """L1 distance [..., G, P] of one term; the shapes without D are checked, `name` begins its parts' names."""
    width = preds.shape[-1] if preds.dim() else 0
    _check_shape(f"{name}preds", preds, (*of_preds, width), 2)
    _check_shape(f"{name}targets", targets, (*of_targets, width), 2)
    if factors is not None:
        _check_shape(f"{name}factors", factors, (width,), 1)
    return costs.box3d_l1_cost(preds, targets, code_weights=factors)


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...], own_dims: int = 0) -> None:
    """ValueError unless the last `own_dims` dimensions are those of `shape`, and the others broadcast to it."""
    found = tuple(tensor.shape)
    lead, own = found[: max(len(found) - own_dims, 0)], found[max(len(found) - own_dims, 0) :]
    into, wanted = shape[: len(shape) - own_dims], shape[len(shape) - own_dims :]
    missing = len(into) - len(lead)
    if own != wanted or missing < 0 or any(n not in (1, m) for n, m in zip(lead, into[missing:], strict=True)):
        raise ValueError(
            f"{name} must have shape {tuple(shape)} or broadcast to it in the leading dimensions, got {found}"
        )


def _match_cost_fake(cls_logits: Tensor, labels: Tensor, *_args: object) -> tuple[Tensor, Tensor]:
    *lead, num_preds, _ = cls_logits.shape
    blocks = (num_preds + COLUMNS_PER_MINIMUM - 1) // COLUMNS_PER_MINIMUM
    return (
        cls_logits.new_empty((*lead, labels.shape[-1], num_preds)),
        cls_logits.new_empty((*lead, labels.shape[-1], blocks)),
    )


def _mapped_match_cost(operator: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Any]:
    """vmap rule: the mapped dimension is the first of those that predictions and ground truth share."""

    def rule(info: Any, in_dims: Sequence[Any], *args: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        def first(tensor: Tensor, dim: int | None) -> Tensor:
            return tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)

        logits, labels = (first(args[i], in_dims[i]) for i in (0, 1))
        lead, gt_lead = logits.shape[1:-2], labels.shape[1:-1]
        place = len(lead) - len(gt_lead)

        def of_samples(tensor: Tensor, own_dims: int, into: Sequence[int] = gt_lead) -> Tensor:
            """[V, ..., own dimensions] -> [V, *into, own dimensions]"""
            given, own = tensor.shape[1 : tensor.dim() - own_dims], tensor.shape[tensor.dim() - own_dims :]
            tensor = tensor.reshape(info.batch_size, *[1] * (len(into) - len(given)), *given, *own)
            return tensor.expand(info.batch_size, *into, *own)

        def of_problems(tensor: Tensor) -> Tensor:
            """[V, ..., N, D] -> [layers, V, samples, N, D]"""
            return of_samples(tensor, 2, lead).movedim(0, place)

        preds, gt, factors = list(args[3]), list(args[4]), list(args[5])
        for i, dim in enumerate(in_dims[5]):
            preds[i] = of_samples(first(preds[i], in_dims[3][i]), 2, lead)
            gt[i] = of_samples(first(gt[i], in_dims[4][i]), 2)
            if dim is not None:  # the operator has one for all problems
                factor = first(factors[i], dim)
                preds[i], gt[i] = (
                    part * factor.reshape(len(factor), *[1] * (part.dim() - 2), -1) for part in (preds[i], gt[i])
                )
                factors[i] = None
            preds[i] = preds[i].movedim(0, place)
        boxes, gt_boxes, sizes, extra = args[7:11]
        if boxes is not None:
            boxes = of_problems(first(boxes, in_dims[7]))
            gt_boxes = of_samples(first(gt_boxes, in_dims[8]), 2)
            sizes = of_samples(first(sizes, in_dims[9]), 1)
        if extra is not None:
            extra = of_problems(first(extra, in_dims[10]))
        found = operator(
            of_problems(logits), labels, of_samples(first(args[2], in_dims[2]), 0), preds, gt, factors, args[6],
            boxes, gt_boxes, sizes, extra, *args[11:],
        )  # fmt: skip
        return found, (place, place)

    return rule


_match_cost = load_operator(
    "match_cost", fallback=_match_cost_with_torch, fake=_match_cost_fake, vmap=_mapped_match_cost
)
