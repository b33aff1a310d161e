"""Adapters for mmdetection3d. Importing this package registers the swap-ins, `Batched*` heads and assigners and
`*Turbo` transforms: names of ours only, so nothing of a user's clashes. A name that a published head insists on is in a
scope of its own, `raggedbev.mm.registry`.

Heads and transforms are registered as functions that import them when a config first asks for one, and with the heads
the model port, `raggedbev.mm.streampetr`; once they are imported, the classes themselves are registered.
`BatchedCenterNetHead` is in mmdet's registry, where its configs look, and the heads of the DETR family are in both.
The heads of PETR, DETR3D and BEVFormer are built from the classes that a user's project registers.
`ragged_collate` is in mmengine's registry of functions; the data preprocessors for what it packs are registered as
the heads are.
"""

from __future__ import annotations

import importlib
from typing import Any

from mmdet.registry import MODELS as MMDET_MODELS
from mmdet3d.registry import MODELS, TRANSFORMS
from mmengine.registry import Registry

from raggedbev.mm import assigners, collate

__all__ = ["assigners", "collate"]


def _register_on_demand(name: str, module: str, registry: Registry = MODELS) -> None:
    """Register `module.name` under its name, imported when it is built."""

    def build(**config: Any) -> Any:
        return getattr(importlib.import_module(module), name)(**config)

    build.__name__ = build.__qualname__ = name
    if name not in registry.module_dict:
        registry.register_module(name=name, module=build)


_register_on_demand("BatchedStreamPETRHead", "raggedbev.mm.heads.streampetr_head")
_register_on_demand("BatchedFocalHead", "raggedbev.mm.heads.focal_head")
_register_on_demand("BatchedCenterHead", "raggedbev.mm.heads.center_head")
_register_on_demand("RaggedDet3DDataPreprocessor", "raggedbev.mm.preprocessor")
_register_on_demand("RaggedDetDataPreprocessor", "raggedbev.mm.preprocessor", MMDET_MODELS)
_register_on_demand("BatchedCenterNetHead", "raggedbev.mm.heads.centernet_head", MMDET_MODELS)
for _registry in (MODELS, MMDET_MODELS):
    for _kind in ("DETR", "ConditionalDETR", "DABDETR", "DeformableDETR", "DINO"):
        _register_on_demand(f"Batched{_kind}Head", "raggedbev.mm.heads.set_prediction", _registry)


def _register_project_head(stock: str, average_over_ranks: bool) -> None:
    """Register 'Batched' + `stock`: the head that a project registers as `stock`, with the batched loss."""

    def build(**config: Any) -> Any:
        heads = importlib.import_module("raggedbev.mm.heads.set_prediction3d")
        return heads.build_batched_head(stock, average_over_ranks, config)

    build.__name__ = build.__qualname__ = f"Batched{stock}"
    MODELS.register_module(name=f"Batched{stock}", module=build)


_register_project_head("PETRHead", average_over_ranks=False)
_register_project_head("DETR3DHead", average_over_ranks=True)
_register_project_head("BEVFormerHead", average_over_ranks=True)
for _kind, _module in (("LoadMultiViewImageTurbo", "loading"), ("ResizeMultiViewImageTurbo", "resize")):
    _register_on_demand(_kind, f"raggedbev.mm.images.{_module}", TRANSFORMS)
