"""DETR-like heads of 3D boxes (PETR, DETR3D, BEVFormer) with the loss of all layers and samples at once.

Their projects are not part of mmdet3d's package. A config that imports one of them names `BatchedPETRHead`,
`BatchedDETR3DHead` or `BatchedBEVFormerHead`, and the head that the project has registered becomes a batched one; any
other head of the family takes the mixin.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from mmdet.models.losses import CrossEntropyLoss, FocalLoss
from mmdet3d.registry import MODELS
from torch import Tensor

from raggedbev.losses.detr import SetLosses, SetPrediction, set_losses
from raggedbev.losses.set_prediction import widened
from raggedbev.matching.costs import row_tensor
from raggedbev.mm.heads.common import check_num_layers, full_precision, mean_over_processes, pack_boxes_3d
from raggedbev.mm.heads.loss_modules import class_loss, class_weight, coordinate_loss
from raggedbev.profiling.stages import stage
from raggedbev.ragged.batch import RaggedBatch

__all__ = ["BatchedSetPrediction3DMixin", "QuerySet", "batched_head", "build_batched_head"]

_ENTRIES = ("loss_by_feat", "loss")
_GROUND_TRUTHS = (("batch_gt_instances_3d",), ("gt_bboxes_list", "gt_labels_list"))
_IGNORED = ("batch_gt_instances_3d_ignore", "gt_bboxes_ignore")
_REPLACED = ("loss_by_feat_single", "loss_single", "get_targets", "_get_target_single")


class QuerySet(NamedTuple):
    """Queries that are matched on their own.

    Attributes:
        logits: [L, B, P, C].
        boxes: [L, B, P, D] coded boxes.
        repeats: queries that are to find the same object.
    """

    logits: Tensor
    boxes: Tensor
    repeats: int = 1


class BatchedSetPrediction3DMixin:
    """Gives a DETR-like head of 3D boxes a batched loss; put it in front of the head among the bases.

    It replaces `loss_by_feat(batch_gt_instances_3d, preds_dicts)` as DETR3D has it, or `loss_by_feat` or `loss` with
    `(gt_bboxes_list, gt_labels_list, preds_dicts)`, as PETR and BEVFormer have it; keys, values and gradients are those
    of the published heads. The head has `num_classes`, `cls_out_channels`, `code_size`, `code_weights`,
    `bg_cls_weight`, `sync_cls_avg_factor`, `loss_cls` (`FocalLoss`, or `CrossEntropyLoss` as softmax), `loss_bbox`
    (`L1Loss`, `SmoothL1Loss` or `BalancedL1Loss`), and a `BatchedHungarianAssigner3D` whose `box_code` says what it
    regresses. With `group_detr` (BEVFormer's Group-DETR variant), every group of queries is matched on its own, and a
    loss is the mean of its groups.

    Objects whose code is not finite are classified but not regressed. A loss that is NaN becomes 0, an infinite one
    the largest finite number. A layer with an assignment problem that has no solution (NaN among its costs, with
    `box_code='detr3d'`) has a NaN box loss; the published heads raise there, for which they wait for the device.
    Half-precision predictions are converted to float32.

    Attributes:
        average_over_ranks: whether counts are averaged over ranks, the class loss's only with `sync_cls_avg_factor`.
            PETR's head does not.

    Raises:
        ValueError: when it is built, if one of these does not hold.

    Example:
        >>> @MODELS.register_module()
        ... class BatchedMyHead(BatchedSetPrediction3DMixin, MyHead):
        ...     pass
    """

    average_over_ranks = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        name = type(self).__name__
        _entry(type(self))
        assigner = getattr(self, "assigner", None)
        if assigner is not None and not (hasattr(assigner, "assign_batch") and hasattr(assigner, "encode")):
            raise ValueError(
                f"{name} needs an assigner with assign_batch and encode, got {type(assigner).__name__}; "
                "use BatchedHungarianAssigner3D"
            )
        if len(self.code_weights) != self.code_size:
            raise ValueError(
                f"{name} needs as many code_weights as its code_size, {self.code_size}, got {len(self.code_weights)}"
            )
        weights = class_weight(name, self.loss_cls, self.cls_out_channels)
        self.register_buffer("_class_weight", weights, persistent=False)
        self._set_losses()

    def loss_by_feat(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Losses of all layers and samples.

        Args:
            *args: as the published head's: `batch_gt_instances_3d`, B times `bboxes_3d` and `labels_3d`, or
                `gt_bboxes_list` and `gt_labels_list`, B boxes [G] and labels [G] int64; `preds_dicts`, a dict of
                `all_cls_scores` [L, B, P, C] logits, `all_bbox_preds` [L, B, P, code_size], and `enc_cls_scores`
                [B, Q, C] and `enc_bbox_preds` [B, Q, code_size], or None; ignored boxes None.
            **kwargs: the same by name.

        Returns:
            Scalar tensors `loss_cls` and `loss_bbox` of the last layer, `d0.loss_cls`, ... of the others, and
            `enc_loss_cls`, `enc_loss_bbox`.

        Raises:
            ValueError: shapes or devices do not fit, or the head was built without an assigner.
        """
        if _entry(type(self))[0] != "loss_by_feat":
            return super().loss_by_feat(*args, **kwargs)
        return self._batched_loss(args, kwargs)

    def loss(self, *args: Any, **kwargs: Any) -> Any:
        """As `loss_by_feat`, for heads whose method has this name; for others, the head's own."""
        if _entry(type(self))[0] != "loss":
            return super().loss(*args, **kwargs)
        return self._batched_loss(args, kwargs)

    def query_sets(self, preds_dicts: Mapping[str, Any]) -> dict[str, QuerySet]:
        """Kinds of decoder queries by the pattern of their keys.

        A head with auxiliary one-to-many queries overrides this, for instance with `{'{}': QuerySet(...), '{}_aux':
        QuerySet(..., repeats=4)}`; each kind has its own normaliser.
        """
        return {"{}": QuerySet(preds_dicts["all_cls_scores"], preds_dicts["all_bbox_preds"])}

    def _batched_loss(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        given = _entry(type(self))[1].bind(self, *args, **kwargs).arguments
        for ignored in _IGNORED:
            if given.get(ignored) is not None:
                raise ValueError(f"{type(self).__name__} has no ignored boxes: {ignored} must be None")
        if getattr(self, "assigner", None) is None:
            raise ValueError(f"{type(self).__name__} was built without train_cfg, which names its assigner")
        preds = given["preds_dicts"]
        queries = self.query_sets(preds)
        for pattern, part in queries.items():
            self._check_predictions(pattern.format("decoder"), part.logits, part.boxes, num_dims=4)
        logits = next(iter(queries.values())).logits
        truth = self._ground_truth(given, logits)
        with full_precision(logits):
            sets = {}
            if preds.get("enc_cls_scores") is not None:
                sets["enc_{}"] = self._proposals(preds["enc_cls_scores"], preds["enc_bbox_preds"], truth, given)
            sets |= {pattern: self._matched(part, truth, self._groups(part)) for pattern, part in queries.items()}
            with stage("loss terms"):
                return set_losses(sets, self._set_losses(), mean_over_processes if self.average_over_ranks else None)

    def _proposals(self, logits: Tensor, boxes: Tensor, truth: _Truth, given: Mapping[str, Any]) -> SetPrediction:
        """Encoder proposals as one layer: with lists of boxes and labels, objects are class 0, as published."""
        self._check_predictions("encoder", logits, boxes, num_dims=3)
        if "gt_labels_list" in given:
            truth = truth._replace(labels=truth.labels.apply(torch.zeros_like))
        return self._matched(QuerySet(logits.unsqueeze(0), boxes.unsqueeze(0)), truth, 1)

    def _groups(self, queries: QuerySet) -> int:
        groups, total = getattr(self, "group_detr", 1), queries.logits.shape[2]
        if total % groups:
            raise ValueError(f"{type(self).__name__} needs as many queries in each of {groups} groups, got {total}")
        return groups

    def _matched(self, queries: QuerySet, truth: _Truth, groups: int) -> SetPrediction:
        """Queries with the assigner's answer for all of them; groups [B, groups * P] become layers of their own."""
        truth = truth.repeated(queries.repeats)
        logits, boxes = (
            widened(part).unflatten(2, (groups, -1)).transpose(1, 2).flatten(0, 1) if groups > 1 else widened(part)
            for part in queries[:2]
        )
        gt_boxes = truth.boxes.to_dtype(boxes.dtype)
        assignment = self.assigner.assign_batch(logits.detach(), boxes.detach(), gt_boxes, truth.labels)
        with stage("targets"):
            background = (assignment.gt_of_pred < 0).flatten(1).sum(1)
            targets = self.assigner.encode(gt_boxes.tensor)
        return SetPrediction(logits, boxes, truth.labels, targets, assignment, background, groups=groups)

    def _set_losses(self) -> SetLosses:
        """Settings of the loss, from the head's own loss modules; a ValueError where one is not implemented."""
        name = type(self).__name__
        weights = self.code_weights
        return SetLosses(
            cls=class_loss(name, self.loss_cls, self._class_weight, (FocalLoss, CrossEntropyLoss)),
            cls_weight=self.loss_cls.loss_weight,
            bbox_weight=self.loss_bbox.loss_weight,
            num_classes=self.num_classes,
            bbox=coordinate_loss(name, "loss_bbox", self.loss_bbox),
            code_weights=weights.detach() if isinstance(weights, Tensor) else row_tensor(weights, torch.empty(0)),
            background_weight=self.bg_cls_weight,
            sync_cls_avg_factor=self.sync_cls_avg_factor,
            replace_nonfinite=True,
        )

    def _check_predictions(self, kind: str, logits: Tensor, boxes: Tensor, num_dims: int) -> None:
        """Logits [..., P, cls_out_channels] and boxes [..., P, code_size] with the same leading dimensions."""
        wanted = (*logits.shape[:-1], self.cls_out_channels), (*logits.shape[:-1], self.code_size)
        if logits.dim() != num_dims or (tuple(logits.shape), tuple(boxes.shape)) != wanted:
            dims = "L, B, P" if num_dims == 4 else "B, Q"
            raise ValueError(
                f"{kind} scores must be [{dims}, {self.cls_out_channels}] and boxes [{dims}, {self.code_size}] with "
                f"this head's code_size, got {tuple(logits.shape)} and {tuple(boxes.shape)}"
            )
        if num_dims == 4:
            check_num_layers(self, len(logits))

    def _ground_truth(self, given: Mapping[str, Any], logits: Tensor) -> _Truth:
        """Objects of the batch, on the device of the predictions."""
        if "gt_labels_list" in given:
            boxes, labels = list(given["gt_bboxes_list"]), list(given["gt_labels_list"])
        else:
            instances = given["batch_gt_instances_3d"]
            boxes, labels = [one.bboxes_3d for one in instances], [one.labels_3d for one in instances]
        if not len(boxes) == len(labels) == logits.shape[1]:
            raise ValueError(
                f"predictions are of {logits.shape[1]} samples, got boxes of {len(boxes)} and labels of {len(labels)}"
            )
        for index, (own_boxes, own_labels) in enumerate(zip(boxes, labels, strict=True)):
            self._check_objects(f"sample {index}", own_boxes.tensor, own_labels, logits.device)
        return _Truth(*pack_boxes_3d(boxes, labels, self.code_size - 1))

    def _check_objects(self, sample: str, boxes: Tensor, labels: Tensor, device: torch.device) -> None:
        if boxes.device != device or labels.device != device:
            raise ValueError(
                f"objects must be on the device of the predictions, {device}, got those of {sample} on {boxes.device} "
                f"(boxes) and {labels.device} (labels)"
            )
        if len(boxes) != len(labels):
            raise ValueError(f"{sample} must have one label for each box, got {len(labels)} for {len(boxes)}")
        if len(boxes) and boxes.shape[1] != self.code_size - 1:
            raise ValueError(
                f"a head with code_size {self.code_size} needs boxes of {self.code_size - 1} numbers, got those of "
                f"{sample} with {boxes.shape[1]}"
            )


class _Truth(NamedTuple):
    """Objects of a batch.

    Attributes:
        boxes: [B, G, 7 or 9] from the gravity centre on.
        labels: [B, G] int64, with the raggedness of `boxes`.
    """

    boxes: RaggedBatch
    labels: RaggedBatch

    def repeated(self, times: int) -> _Truth:
        """All objects of a sample, then all of them again, and so on."""
        if times == 1:
            return self
        sizes = self.boxes.sample_sizes
        position = torch.arange(self.boxes.max_sample_size * times, device=sizes.device)
        source = position % sizes.clamp(min=1).unsqueeze(1)  # [B, times * G]
        boxes = self.boxes.tensor.gather(1, source.unsqueeze(-1).expand(-1, -1, self.boxes.shape[-1]))
        packed = RaggedBatch(boxes, sample_sizes=sizes * times)
        return _Truth(packed, packed.create_with_sample_sizes_like_self(self.labels.tensor.gather(1, source)))


@functools.cache
def _entry(head: type) -> tuple[str, inspect.Signature]:
    """The method of the head behind the mixin that takes ground truth and predictions, and its signature.

    Raises:
        ValueError: there is none, or a class in front of the mixin changes what the mixin replaces.
    """
    position = head.__mro__.index(BatchedSetPrediction3DMixin)
    for base in head.__mro__[:position]:
        changed = [name for name in _REPLACED if name in vars(base)]
        if changed:
            raise ValueError(
                f"{head.__name__} cannot batch the loss: {base.__name__} has its own {changed[0]}, which the mixin "
                "replaces"
            )
    for name in _ENTRIES:
        method = next((vars(base)[name] for base in head.__mro__[position + 1 :] if name in vars(base)), None)
        signature = inspect.signature(method) if method is not None else None
        if signature is not None and any(
            {"preds_dicts", *names} <= signature.parameters.keys() for names in _GROUND_TRUTHS
        ):
            return name, signature
    raise ValueError(
        f"{head.__name__} must name the mixin in front of a head whose loss_by_feat or loss takes preds_dicts, and "
        "batch_gt_instances_3d or gt_bboxes_list and gt_labels_list"
    )


@functools.cache
def batched_head(stock: type, average_over_ranks: bool = True) -> type:
    """The head `stock` with the batched loss, `Batched` in front of its name.

    Args:
        stock: class of a head, see `BatchedSetPrediction3DMixin`.
        average_over_ranks: see `BatchedSetPrediction3DMixin`.
    """
    bases = (BatchedSetPrediction3DMixin, stock)
    return type(f"Batched{stock.__name__}", bases, {"average_over_ranks": average_over_ranks, "__doc__": stock.__doc__})


def build_batched_head(stock: str, average_over_ranks: bool, config: Mapping[str, Any]) -> Any:
    """A head that a project has registered in mmdet3d as `stock`, with the batched loss.

    Raises:
        ValueError: nothing is registered under this name.
    """
    head = MODELS.get(stock)
    if head is None:
        raise ValueError(
            f"Batched{stock} is {stock} with a batched loss, and no {stock} is registered: name the project that has "
            "it in custom_imports"
        )
    return batched_head(head, average_over_ranks)(**config)
