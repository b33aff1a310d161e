"""Loads the compiled operators, and stands in for them where there are none.

In: the extension `raggedbev._C`, if it was built; per operator a plain torch implementation and a fake kernel.
Out: one callable per operator, which is the compiled operator where the dispatcher knows it and plain torch elsewhere.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.compiler import is_dynamo_compiling

NAMESPACE = "raggedbev"

R = TypeVar("R")


class SlowPathWarning(UserWarning):
    """An operator runs as plain torch: same results, slower."""


def _load_compiled() -> bool:
    if importlib.util.find_spec("raggedbev._C") is None:
        return False
    try:
        importlib.import_module("raggedbev._C")
    except ImportError as error:
        warnings.warn(
            f"raggedbev's compiled operators do not load with torch {torch.__version__} ({error}); plain torch is used "
            "instead: same results, slower. Installing raggedbev again rebuilds them.",
            SlowPathWarning,
            stacklevel=2,
        )
        return False
    return True


COMPILED = _load_compiled()
"""Whether `raggedbev._C` was built and loads."""


@functools.cache
def _warn_slow_path(name: str, device_type: str) -> None:
    warnings.warn(
        f"raggedbev.{name} runs as plain torch on {device_type}, because no compiled kernel for it was built: "
        "same results, slower.",
        SlowPathWarning,
        stacklevel=4,
    )


def load_operator(
    name: str,
    *,
    fallback: Callable[..., R],
    fake: Callable[..., R],
    vmap: Callable[[Callable[..., R]], Callable[..., Any]] | None = None,
    gradient: tuple[Callable[..., None], Callable[..., Any]] | None = None,
) -> Callable[..., R]:
    """The operator `name`: compiled where it was built for the device of its arguments, plain torch elsewhere.

    Args:
        name: name of the operator's schema in `csrc/library.cpp`; its first argument is a tensor.
        fallback: plain torch with the schema's arguments; used on every device that has no compiled kernel.
        fake: shapes and types of the results, from shapes and types only (`torch.compile`, `torch.export`).
        vmap: makes the operator's batching rule (see `torch.library.register_vmap`) from the operator.
        gradient: what is saved for the backward pass, and that pass (see `torch.library.register_autograd`); none for
            operators without gradient, or with one in C++.

    Returns:
        A callable with the schema's arguments, all of them, by position. A compiled operator is called past the
        argument parser of `torch.ops`, see `csrc/module.cpp`. The plain torch path warns once per operator and
        device type.
    """

    @functools.wraps(fallback)
    def slow_path(first: torch.Tensor, *args: object) -> R:
        if not torch.compiler.is_compiling():
            _warn_slow_path(name, first.device.type)
        return fallback(first, *args)

    qualified_name = f"{NAMESPACE}::{name}"
    if not COMPILED or not hasattr(getattr(torch.ops, NAMESPACE), name):
        return slow_path
    operator = getattr(getattr(torch.ops, NAMESPACE), name).default
    torch.library.register_fake(qualified_name, fake)
    torch.library.impl(qualified_name, "CompositeExplicitAutograd")(slow_path)
    if vmap is not None and hasattr(torch.library, "register_vmap"):  # torch >= 2.5
        torch.library.register_vmap(qualified_name, vmap(operator))
    if gradient is not None:
        torch.library.register_autograd(qualified_name, gradient[1], setup_context=gradient[0])
    caller = importlib.import_module("raggedbev._C").caller(qualified_name, operator)

    @functools.wraps(fallback)
    def call(*args: object) -> R:
        return operator(*args) if is_dynamo_compiling() else caller(*args)

    return call


_IN_PYTHON = torch.library.Library(NAMESPACE, "FRAGMENT")


def define_operator(
    schema: str,
    run: Callable[..., R],
    *,
    fake: Callable[..., R],
    vmap: Callable[[Callable[..., R]], Callable[..., Any]],
) -> Callable[..., R]:
    """An operator without gradient whose body is Python that cannot be traced.

    Args:
        schema: name, arguments and results, as in `csrc/library.cpp`.
        run: the body, for tensors on any device.
        fake, vmap: as in `load_operator`.

    Returns:
        The operator, which `torch.compile`, `torch.export` and `torch.vmap` take as a whole.
    """
    name = schema.partition("(")[0]
    qualified_name = f"{NAMESPACE}::{name}"
    operators = getattr(torch.ops, NAMESPACE)
    if hasattr(operators, name):  # the module is loaded again
        return getattr(operators, name).default
    _IN_PYTHON.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(qualified_name, "CompositeExplicitAutograd", lib=_IN_PYTHON)(run)
    operator = getattr(operators, name).default
    torch.library.register_fake(qualified_name, fake, lib=_IN_PYTHON)
    if hasattr(torch.library, "register_vmap"):  # torch >= 2.5
        torch.library.register_vmap(qualified_name, vmap(operator), lib=_IN_PYTHON)
    return operator


def add_batch_dim(operator: Callable[..., Any]) -> Callable[..., Any]:
    """vmap rule: the mapped dimension is one more in front of every tensor argument and of every result."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        def mapped(arg: Any, dim: int | None) -> Any:
            if not isinstance(arg, torch.Tensor):
                return arg
            return arg.expand(info.batch_size, *arg.shape) if dim is None else arg.movedim(dim, 0)

        results = operator(*(mapped(arg, dim) for arg, dim in zip(args, in_dims, strict=True)))
        return results, 0 if isinstance(results, torch.Tensor) else (0,) * len(results)

    return rule
