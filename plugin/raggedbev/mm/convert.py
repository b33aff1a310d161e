"""Reads mm-style config dicts of losses and match costs into the settings of the core: dict in, checked values out.

A type that is not implemented, and a key that would change nothing, raise a ValueError.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

from raggedbev.losses import FocalLossConfig
from raggedbev.losses.terms import L1, BalancedL1, CoordinateLoss, SmoothL1
from raggedbev.matching import (
    BoxCodeMatcher3D,
    ClassCost,
    HungarianMatcher2D,
    HungarianMatcher3D,
    TermMatcher,
    TransFusionMatcher3D,
)
from raggedbev.matching.box_codes import BOX_CODES
from raggedbev.matching.cost_terms import (
    BoxL1Term,
    ClassTerm,
    CostTerm,
    IoUTerm,
    MaskCrossEntropyTerm,
    MaskDiceTerm,
    MaskFocalTerm,
)

__all__ = [
    "coordinate_loss",
    "focal_loss",
    "gaussian_focal_loss",
    "giou_weight",
    "matcher_2d",
    "matcher_3d",
    "quality_focal_loss",
    "read_config",
    "term_matcher",
    "transfusion_matcher",
]

Config = Mapping[str, Any] | None

_CLASS_COSTS = {
    "FocalLossCost": {"weight": 1.0, "alpha": 0.25, "gamma": 2.0, "eps": 1e-12},
    "ClassificationCost": {"weight": 1.0},
}
_TERMS = {
    "FocalLossCost": {**_CLASS_COSTS["FocalLossCost"], "binary_input": False},
    "ClassificationCost": _CLASS_COSTS["ClassificationCost"],
    "BBoxL1Cost": {"weight": 1.0, "box_format": "xyxy"},
    "IoUCost": {"weight": 1.0, "iou_mode": "giou"},
    "CrossEntropyLossCost": {"weight": 1.0},
    "DiceCost": {"weight": 1.0, "pred_act": False, "eps": 1e-3, "naive_dice": True},
}
# parameters that a type has in mmdet, with the one value that is implemented here
_FIXED = {
    "FocalLossCost": {"binary_input": False},
    "CrossEntropyLossCost": {"use_sigmoid": True},
    "FocalLoss": {"use_sigmoid": True, "reduction": "mean"},
    "QualityFocalLoss": {"use_sigmoid": True, "reduction": "mean"},
    "GaussianFocalLoss": {"reduction": "mean"},
    "L1Loss": {"reduction": "mean"},
    "SmoothL1Loss": {"reduction": "mean"},
    "BalancedL1Loss": {"reduction": "mean"},
    "GIoULoss": {"reduction": "mean"},
}


def read_config(
    name: str, config: Mapping[str, Any], types: Mapping[str, Mapping[str, Any]]
) -> tuple[str, dict[str, Any]]:
    """Type and parameters of a config dict.

    Args:
        name: the key that holds the dict, for messages.
        config: dict with 'type' and parameters; a scope ('mmdet.' in front of the type, or the key '_scope_' that
            mmengine adds to inherited configs) is ignored.
        types: known types with their parameters' defaults. Parameters that the type has in mmdet, but that have one
            possible value here ('use_sigmoid': True, 'reduction': 'mean', 'binary_input': False), may be given with
            that value.

    Returns:
        The type without scope, and all of its parameters.

    Raises:
        ValueError: not a dict with a type, unknown type, unknown key, or a parameter whose value is not implemented.
    """
    if not isinstance(config, Mapping) or not isinstance(config.get("type"), str):
        raise ValueError(f"{name} must be a dict with a type, one of {', '.join(types)}, got {config!r}")
    kind = config["type"].rsplit(".", 1)[-1]
    if kind not in types:
        raise ValueError(f"{name} must have one of the types {', '.join(types)}, got {config['type']}")
    values, fixed = dict(types[kind]), _FIXED.get(kind, {})
    for key, value in config.items():
        if key in values:
            values[key] = _same_kind(f"{name}.{key}", value, values[key])
        elif key in fixed:
            if value != fixed[key]:
                raise ValueError(f"{name} implements {key}={fixed[key]!r} only, got {value!r}")
        elif key not in ("type", "_scope_"):
            raise ValueError(f"{name} of type {kind} does not use {key!r}; it uses {', '.join(values)}")
    return kind, values


def _same_kind(name: str, value: Any, default: Any) -> Any:
    """`value` if it is of the default's kind (a number other than NaN, a string, or a bool)."""
    kinds = {str: (str, "a string"), bool: (bool, "True or False")}
    kind, description = kinds.get(type(default), ((int, float), "a number"))
    if not isinstance(value, kind) or isinstance(value, bool) != isinstance(default, bool) or value != value:
        raise ValueError(f"{name} must be {description}, got {value!r}")
    return value


def focal_loss(config: Config) -> FocalLossConfig:
    """'FocalLoss'; none: as published (weight 2)."""
    if config is None:
        return FocalLossConfig()
    _, values = read_config("loss_cls", config, {"FocalLoss": {"loss_weight": 1.0, "alpha": 0.25, "gamma": 2.0}})
    return FocalLossConfig(values["loss_weight"], values["alpha"], values["gamma"])


_COORDINATE_LOSSES: dict[str, tuple[type, dict[str, float]]] = {
    "L1Loss": (L1, {}),
    "SmoothL1Loss": (SmoothL1, {"beta": 1.0}),
    "BalancedL1Loss": (BalancedL1, {"alpha": 0.5, "gamma": 1.5, "beta": 1.0}),
}


def coordinate_loss(name: str, config: Config, published: float) -> tuple[float, CoordinateLoss]:
    """Weight and loss of box coordinates: 'L1Loss', 'SmoothL1Loss' or 'BalancedL1Loss'; none: L1 times `published`."""
    if config is None:
        return published, L1()
    types = {kind: {"loss_weight": 1.0, **values} for kind, (_, values) in _COORDINATE_LOSSES.items()}
    kind, values = read_config(name, config, types)
    return values.pop("loss_weight"), _COORDINATE_LOSSES[kind][0](**values)


def giou_weight(name: str, config: Config, published: float) -> float:
    """Weight of 'GIoULoss'; none: `published`."""
    if config is None:
        return published
    return read_config(name, config, {"GIoULoss": {"loss_weight": 1.0}})[1]["loss_weight"]


def quality_focal_loss(config: Config) -> dict[str, float]:
    """'QualityFocalLoss' as the fields `cls_weight`, `beta`; none: as published (weight 2)."""
    if config is None:
        return {}
    _, values = read_config("loss_cls2d", config, {"QualityFocalLoss": {"loss_weight": 1.0, "beta": 2.0}})
    return {"cls_weight": values["loss_weight"], "beta": values["beta"]}


def gaussian_focal_loss(config: Config) -> dict[str, float]:
    """'GaussianFocalLoss' as the fields `centerness_*`; none: as published (weight 1)."""
    if config is None:
        return {}
    types = {"GaussianFocalLoss": {"loss_weight": 1.0, "alpha": 2.0, "gamma": 4.0}}
    _, values = read_config("loss_centerness", config, types)
    return {
        "centerness_weight": values["loss_weight"],
        "centerness_alpha": values["alpha"],
        "centerness_gamma": values["gamma"],
    }


def _class_cost(kind: str, values: Mapping[str, Any]) -> ClassCost:
    return ClassCost(kind="focal" if kind == "FocalLossCost" else "softmax", **values)


def matcher_3d(
    cls_cost: Mapping[str, Any],
    reg_cost: Mapping[str, Any],
    iou_cost: Config,
    solver: str = "auto",
    box_code: str = "streampetr",
    pc_range: Sequence[float] | None = None,
) -> HungarianMatcher3D | BoxCodeMatcher3D:
    """Matcher from the costs of a 3D Hungarian assigner.

    Raises:
        ValueError: see `read_config`; also an `iou_cost` with a weight other than 0, which 3D matching does not have, a
            `pc_range` that is no range, and an unknown `box_code`.
    """
    if pc_range is not None:
        _check_range(pc_range)
    class_cost = _class_cost(*read_config("cls_cost", cls_cost, _CLASS_COSTS))
    _, reg = read_config("reg_cost", reg_cost, {"BBox3DL1Cost": {"weight": 1.0}})
    if iou_cost is not None:
        _check_unused_overlap(iou_cost)
    if box_code == "streampetr":
        return HungarianMatcher3D(class_cost, reg["weight"], solver)
    if box_code in BOX_CODES:
        return BoxCodeMatcher3D(class_cost, reg["weight"], solver, box_code)
    raise ValueError(f"box_code must be one of {('streampetr', *BOX_CODES)}, got {box_code!r}")


def _check_range(pc_range: Sequence[float]) -> None:
    """Six numbers, the lowest x, y, z below the highest: 3D matching needs no more of them."""
    values = list(pc_range) if isinstance(pc_range, Iterable) else [pc_range]
    numbers = len(values) == 6 and all(isinstance(value, Real) for value in values)
    if not numbers or not all(low < high for low, high in zip(values[:3], values[3:], strict=True)):
        raise ValueError(f"pc_range must be six numbers, lowest x, y, z, then highest x, y, z, got {values}")


def _check_unused_overlap(iou_cost: Mapping[str, Any]) -> None:
    """Configs of 3D heads carry an overlap cost that counts nothing."""
    if isinstance(iou_cost, Mapping) and "iou_calculator" in iou_cost:
        calculator = iou_cost["iou_calculator"]
        if not isinstance(calculator, str) and not (isinstance(calculator, Mapping) and "type" in calculator):
            raise ValueError(f"iou_cost.iou_calculator must be a string or a dict with a type, got {calculator!r}")
        iou_cost = {key: value for key, value in iou_cost.items() if key != "iou_calculator"}
    overlap = {"weight": 1.0, "iou_mode": "giou"}
    _, iou = read_config("iou_cost", iou_cost, {"IoUCost": overlap, "IoU3DCost": overlap})
    if iou["iou_mode"] not in ("iou", "giou"):
        raise ValueError(f"iou_cost.iou_mode must be 'iou' or 'giou', got {iou['iou_mode']!r}")
    if iou["weight"] != 0:
        raise ValueError(f"iou_cost is not implemented for 3D boxes: its weight must be 0, got {iou['weight']}")


def matcher_2d(
    cls_cost: Mapping[str, Any],
    reg_cost: Mapping[str, Any],
    iou_cost: Mapping[str, Any],
    centers2d_cost: Mapping[str, Any],
    solver: str = "auto",
) -> HungarianMatcher2D:
    """Matcher from the costs of a 2D Hungarian assigner."""
    _, reg = read_config("reg_cost", reg_cost, {"BBoxL1Cost": {"weight": 1.0, "box_format": "xyxy"}})
    _, iou = read_config("iou_cost", iou_cost, {"IoUCost": {"weight": 1.0, "iou_mode": "giou"}})
    _, center = read_config("centers2d_cost", centers2d_cost, {"BBox3DL1Cost": {"weight": 1.0}})
    return HungarianMatcher2D(
        cls_cost=_class_cost(*read_config("cls_cost", cls_cost, _CLASS_COSTS)),
        reg_weight=reg["weight"],
        box_format=reg["box_format"],
        iou_weight=iou["weight"],
        iou_mode=iou["iou_mode"],
        center_weight=center["weight"],
        solver=solver,
    )


def transfusion_matcher(
    cls_cost: Mapping[str, Any],
    reg_cost: Mapping[str, Any],
    iou_cost: Mapping[str, Any],
    iou_calculator: Mapping[str, Any],
    solver: str = "auto",
) -> TransFusionMatcher3D:
    """Matcher from the costs of TransFusion's Hungarian assigner.

    Raises:
        ValueError: see `read_config`; also an `iou_calculator` whose coordinate is not 'lidar'.
    """
    class_cost = _class_cost(*read_config("cls_cost", cls_cost, _CLASS_COSTS))
    _, reg = read_config("reg_cost", reg_cost, {"BBoxBEVL1Cost": {"weight": 1.0}})
    _, iou = read_config("iou_cost", iou_cost, {"IoU3DCost": {"weight": 1.0}})
    _, calculator = read_config("iou_calculator", iou_calculator, {"BboxOverlaps3D": {"coordinate": "lidar"}})
    if calculator["coordinate"] != "lidar":
        raise ValueError(f"iou_calculator implements coordinate='lidar' only, got {calculator['coordinate']!r}")
    return TransFusionMatcher3D(class_cost, reg["weight"], iou["weight"], solver)


def _term(kind: str, values: dict[str, Any]) -> CostTerm:
    """One term of a match cost."""
    if kind == "FocalLossCost" and values.pop("binary_input"):
        return MaskFocalTerm(**values)
    if kind in _CLASS_COSTS:
        return ClassTerm(_class_cost(kind, values))
    terms = {
        "BBoxL1Cost": BoxL1Term,
        "IoUCost": IoUTerm,
        "CrossEntropyLossCost": MaskCrossEntropyTerm,
        "DiceCost": MaskDiceTerm,
    }
    return terms[kind](**values)


def term_matcher(match_costs: Mapping[str, Any] | Sequence[Mapping[str, Any]], solver: str = "auto") -> TermMatcher:
    """Matcher from the list of match costs of mmdet's Hungarian assigner; one dict is a list of one.

    Raises:
        ValueError: see `read_config`; an empty list, or something else than dicts.
    """
    configs = [match_costs] if isinstance(match_costs, Mapping) else match_costs
    if isinstance(configs, str) or not isinstance(configs, Sequence):
        raise ValueError(f"match_costs must be a dict or a list of dicts, got {match_costs!r}")
    terms = [_term(*read_config(f"match_costs[{i}]", config, _TERMS)) for i, config in enumerate(configs)]
    return TermMatcher(tuple(terms), solver)
