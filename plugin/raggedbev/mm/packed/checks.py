"""What a loss can be computed for: fields, matrices and boxes in, an error that names the sample out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from torch import Tensor

from raggedbev.mm.packed.naming import describe_sample

BOX_NUMBERS = 7  # of a box, that have to be finite; velocities behind them may be unknown
_FINITE_FIELDS = ("centers2d", "centers_2d", "depths")


def common_sizes(tensors: dict[str, list[Tensor]], titles: list[str]) -> list[int]:
    """Instances of each unit, in which all fields must agree."""
    columns = {key: [len(tensor) for tensor in column] for key, column in tensors.items()}
    for index, title in enumerate(titles):
        found = {key: column[index] for key, column in columns.items()}
        if len(set(found.values())) > 1:
            counts = ", ".join(f"{count} {key}" for key, count in found.items())
            raise ValueError(f"{title} must have as many of each field, got {counts}")
    return next(iter(columns.values()))


def stacked_meta(items: Sequence[Sequence[Any]], key: str, samples: Sequence[BaseDataElement]) -> np.ndarray:
    """A meta value of B windows of T samples as [B, T, ...], or [B, ...] where T is 1.

    Args:
        items: per window the value of each sample, None where it has none.
        key: name of the value.
        samples: the first of each window, for messages.

    Returns:
        float64 of times (seconds since 1970: in float32 they would be minutes off), float32 of all else.

    Raises:
        ValueError: a sample lacks it, or it is not finite numbers of one shape; the sample is named.
    """
    dtype = np.float64 if "timestamp" in key else np.float32

    def wrong(index: int, reason: str) -> ValueError:
        return ValueError(f"{key} of {describe_sample(samples[index], index)} {reason}")

    rows: list[np.ndarray] = []
    for index, values in enumerate(items):
        if any(value is None for value in values):
            raise wrong(index, "is missing, which other samples of the batch have")
        try:
            arrays = [np.asarray(value, dtype=dtype) for value in values]
            row = arrays[0] if len(arrays) == 1 else np.stack(arrays)
        except (TypeError, ValueError) as error:
            raise wrong(index, f"must be numbers of one shape: {error}") from error
        if not np.isfinite(row).all():
            raise wrong(index, f"must be finite, got {row.tolist()}")
        if rows and row.shape != rows[0].shape:
            raise wrong(index, f"is {row.shape}, that of sample 0 {rows[0].shape}")
        rows.append(row)
    return np.stack(rows)


def check_finite(tensors: Sequence[Tensor], name: str, titles: Sequence[str], packed: Tensor | None = None) -> None:
    """Check boxes, centres and depths of units, by the name of their field; other fields may hold anything.

    Args:
        tensors: per unit [G, ...].
        name: of the field.
        titles: of the units.
        packed: all of them in one tensor [U, G, ...], where there is one.

    Raises:
        ValueError: a number is NaN or infinite; velocities of boxes may be.
    """
    whole = name in _FINITE_FIELDS
    if not whole and "bboxes" not in name:
        return
    if packed is not None and torch.isfinite(packed if whole else packed[..., :BOX_NUMBERS]).all():
        return
    for tensor, title in zip(tensors, titles, strict=True):
        fits = tensor.is_cpu and tensor.is_floating_point() and (1 if whole else 2) <= tensor.dim() <= 2
        if not fits or not len(tensor):
            continue
        finite = torch.isfinite(tensor if whole else tensor[:, :BOX_NUMBERS]).reshape(len(tensor), -1).all(1)
        wrong = (~finite).nonzero().flatten().tolist()
        if wrong:
            raise ValueError(f"{title}: {name}[{wrong[0]}] is not finite, {tensor[wrong[0]].tolist()}")
