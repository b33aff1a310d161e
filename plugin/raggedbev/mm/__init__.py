"""Adapters for mmdetection3d. Importing this package registers the batched swap-ins: `Batched*` names only, so
nothing of a user's clashes. A name that a published head insists on is in a scope of its own, `raggedbev.mm.registry`.

The batched StreamPETR heads are built on the model port, `raggedbev.mm.streampetr`. They are registered as functions
that import the port when a config first asks for one; once the port is imported, the classes themselves are
registered.
"""

from __future__ import annotations

import importlib
from typing import Any

from mmdet3d.registry import MODELS

from raggedbev.mm import assigners

__all__ = ["assigners"]


def _register_on_demand(name: str, module: str) -> None:
    """Register `module.name` under its name, imported when it is built."""

    def build(**config: Any) -> Any:
        return getattr(importlib.import_module(module), name)(**config)

    build.__name__ = build.__qualname__ = name
    if name not in MODELS.module_dict:
        MODELS.register_module(name=name, module=build)


_register_on_demand("BatchedStreamPETRHead", "raggedbev.mm.heads.streampetr_head")
_register_on_demand("BatchedFocalHead", "raggedbev.mm.heads.focal_head")
