"""Reads mm-style config dicts of losses and match costs into the settings of the core: dict in, checked values out.

A type that is not implemented, and a key that would change nothing, raise a ValueError.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raggedbev.losses import FocalLossConfig
from raggedbev.matching import ClassCost, HungarianMatcher2D, HungarianMatcher3D

__all__ = [
    "focal_loss",
    "gaussian_focal_loss",
    "l1_or_giou_weight",
    "matcher_2d",
    "matcher_3d",
    "quality_focal_loss",
    "read_config",
]

Config = Mapping[str, Any] | None

_CLASS_COSTS = {
    "FocalLossCost": {"weight": 1.0, "alpha": 0.25, "gamma": 2.0, "eps": 1e-12},
    "ClassificationCost": {"weight": 1.0},
}
_FIXED = {"use_sigmoid": True, "reduction": "mean", "binary_input": False}


def read_config(
    name: str, config: Mapping[str, Any], types: Mapping[str, Mapping[str, Any]]
) -> tuple[str, dict[str, Any]]:
    """Type and parameters of a config dict.

    Args:
        name: the key that holds the dict, for messages.
        config: dict with 'type' (a scope such as 'mmdet.' in front is ignored) and parameters.
        types: known types with their parameters' defaults. Parameters that mmdet has, but that have one possible
            value here ('use_sigmoid': True, 'reduction': 'mean', 'binary_input': False), may be given with that
            value.

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
    values = dict(types[kind])
    for key, value in config.items():
        if key in values:
            values[key] = _same_kind(f"{name}.{key}", value, values[key])
        elif key in _FIXED:
            if value != _FIXED[key]:
                raise ValueError(f"{name} implements {key}={_FIXED[key]!r} only, got {value!r}")
        elif key != "type":
            raise ValueError(f"{name} of type {kind} does not use {key!r}; it uses {', '.join(values)}")
    return kind, values


def _same_kind(name: str, value: Any, default: Any) -> Any:
    """`value` if it is of the default's kind (a number, or a string)."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(default, str) != isinstance(value, str) or not (is_number or isinstance(value, str)):
        raise ValueError(f"{name} must be {'a string' if isinstance(default, str) else 'a number'}, got {value!r}")
    return value


def focal_loss(config: Config) -> FocalLossConfig:
    """'FocalLoss'; none: as published (weight 2)."""
    if config is None:
        return FocalLossConfig()
    _, values = read_config("loss_cls", config, {"FocalLoss": {"loss_weight": 1.0, "alpha": 0.25, "gamma": 2.0}})
    return FocalLossConfig(values["loss_weight"], values["alpha"], values["gamma"])


def l1_or_giou_weight(name: str, config: Config, kind: str, published: float) -> float:
    """Weight of 'L1Loss' or 'GIoULoss', whichever `kind` asks for; none: `published`."""
    if config is None:
        return published
    return read_config(name, config, {kind: {"loss_weight": 1.0}})[1]["loss_weight"]


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


def _class_cost(config: Mapping[str, Any]) -> ClassCost:
    kind, values = read_config("cls_cost", config, _CLASS_COSTS)
    return ClassCost(kind="focal" if kind == "FocalLossCost" else "softmax", **values)


def matcher_3d(
    cls_cost: Mapping[str, Any], reg_cost: Mapping[str, Any], iou_cost: Config, solver: str = "auto"
) -> HungarianMatcher3D:
    """Matcher from the costs of a 3D Hungarian assigner.

    Raises:
        ValueError: see `read_config`; also an `iou_cost` with a weight other than 0, which 3D matching does not have.
    """
    _, reg = read_config("reg_cost", reg_cost, {"BBox3DL1Cost": {"weight": 1.0}})
    if iou_cost is not None:
        overlap = {"weight": 1.0, "iou_mode": "giou", "iou_calculator": ""}
        _, iou = read_config("iou_cost", iou_cost, {"IoUCost": overlap, "IoU3DCost": overlap})
        if iou["weight"] != 0:
            raise ValueError(f"iou_cost is not implemented for 3D boxes: its weight must be 0, got {iou['weight']}")
    return HungarianMatcher3D(_class_cost(cls_cost), reg["weight"], solver)


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
        cls_cost=_class_cost(cls_cost),
        reg_weight=reg["weight"],
        box_format=reg["box_format"],
        iou_weight=iou["weight"],
        iou_mode=iou["iou_mode"],
        center_weight=center["weight"],
        solver=solver,
    )
