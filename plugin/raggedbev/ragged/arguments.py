"""What members and helpers are handed: checks that print what came, and arguments that may be given in several ways."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "flat_shape",
    "integers",
    "require_dim",
    "require_integers",
    "require_representable",
    "require_tensor",
    "required_parameters",
    "resolve_shape",
]

_WRAPPERS = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)


def require_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")


def require_integers(name: str, value: Any) -> None:
    require_tensor(name, value)
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} must be an integer tensor, got {value.dtype}")


def require_representable(name: str, value: Any, dtype: torch.dtype) -> None:
    """A number that `dtype` can hold: no fraction in integers, nothing beyond their range."""
    if not isinstance(value, bool | int | float | complex | np.number | torch.SymInt | torch.SymFloat):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if value != 0 and not _holds(dtype, value):
        raise ValueError(f"{name} must be representable in {dtype}, got {value}")


def _holds(dtype: torch.dtype, value: Any) -> bool:
    if dtype.is_complex or isinstance(value, complex):
        return dtype.is_complex
    if dtype.is_floating_point:
        return bool(value != value or math.isinf(value) or abs(value) <= torch.finfo(dtype).max)
    if dtype == torch.bool:
        return bool(value == 1)
    info = torch.iinfo(dtype)
    return bool(info.min <= value <= info.max and value == int(value))


def require_dim(name: str, dim: int, low: int, high: int) -> None:
    """dim in [low, high)."""
    if not isinstance(dim, int | torch.SymInt):
        raise TypeError(f"{name} must be an integer, got {dim!r}")
    if low >= high:
        raise ValueError(f"{name} must be at least {low}, which takes more dimensions than the tensor has, got {dim}")
    if not low <= dim < high:
        raise ValueError(f"{name} must lie in [{low}, {high}), got {dim}")


def required_parameters(fn: Callable) -> int:
    """How many of (tensor, mask, sample_sizes) `fn` takes; one where its signature cannot be read."""
    while isinstance(fn, torch.nn.Module):
        inner = getattr(fn, "_orig_mod", fn)  # of a compiled module
        inner = inner.module if isinstance(inner, _WRAPPERS) else inner
        if inner is fn:
            fn = fn.forward
        else:
            fn = inner
    schema = getattr(fn, "schema", None)  # of a scripted function
    if isinstance(schema, torch.FunctionSchema):
        required = sum(not argument.has_default_value() for argument in schema.arguments if argument.name != "self")
        return min(max(required, 1), 3)
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        return 1
    except AttributeError:  # a function that is defined in code under torch.compile
        return min(max(fn.__code__.co_argcount - len(fn.__defaults__ or ()), 1), 3)
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = sum(p.kind in positional and p.default is inspect.Parameter.empty for p in parameters)
    return min(max(required, 1), 3)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | torch.SymInt | np.integer) and not isinstance(value, bool)


def integers(name: str, value: Any) -> list[int]:
    """`[2]` from 2, `[2, 3]` from a sequence."""
    values: list[Any] = [value] if _is_integer(value) else list(value) if isinstance(value, Sequence) else [None]
    if not all(_is_integer(item) for item in values):
        raise TypeError(f"{name} must be an integer or a sequence of integers, got {value!r}")
    return values


def flat_shape(shape: tuple) -> tuple[int, ...]:
    """`(2, 3)` from both `f(2, 3)` and `f((2, 3))`."""
    return tuple(integers("a batch shape", shape[0] if len(shape) == 1 else shape))


def resolve_shape(shape: tuple, numel: int) -> tuple[int, ...]:
    target = flat_shape(shape)
    if target.count(-1) == 1:
        known = math.prod([n for n in target if n != -1])
        if known and numel % known == 0:
            return tuple(numel // known if n == -1 else n for n in target)
    if not target or any(n < 0 for n in target) or math.prod(target) != numel:
        raise ValueError(f"cannot reshape {numel} samples to the batch shape {target}")
    return target
