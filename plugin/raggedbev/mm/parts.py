"""What this package registers: in, the registries of the mm packages; out, the names of ours, for `raggedbev.info`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import mmdet.registry
import mmdet3d.registry
import mmengine.registry

__all__ = ["registered_parts"]

_REGISTRIES = {"mmengine": mmengine.registry, "mmdet": mmdet.registry, "mmdet3d": mmdet3d.registry}


def registered_parts() -> dict[str, list[str]]:
    """Names by what registers them and where, for example "raggedbev.mm: mmdet3d model"."""
    parts: dict[str, list[str]] = {}
    known: set[tuple[str, str]] = set()
    for module in ("raggedbev.mm", "raggedbev.mm.hooks", "raggedbev.mm.streampetr"):
        importlib.import_module(module)
        for registry, name in _ours():
            if (registry, name) not in known:
                known.add((registry, name))
                parts.setdefault(f"{module}: {registry}", []).append(name)
    return parts


def _ours() -> Iterator[tuple[str, str]]:
    for package, registries in _REGISTRIES.items():
        for registry in vars(registries).values():
            if getattr(registry, "scope", None) != package or not hasattr(registry, "module_dict"):
                continue
            for name, part in sorted(registry.module_dict.items()):
                if getattr(part, "__module__", "").split(".")[0] == "raggedbev":
                    yield f"{package} {registry.name}", name
