"""What a loss can be computed for: fields, matrices and boxes in, an error that names the sample out."""

from __future__ import annotations

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from torch import Tensor

from raggedbev.mm.packed.naming import describe_sample

BOX_NUMBERS = 7  # of a box, that have to be finite; velocities behind them may be unknown


def common_sizes(tensors: dict[str, list[Tensor]], titles: list[str]) -> list[int]:
    """Instances of each unit, in which all fields must agree."""
    columns = {key: [len(tensor) for tensor in column] for key, column in tensors.items()}
    for index, title in enumerate(titles):
        found = {key: column[index] for key, column in columns.items()}
        if len(set(found.values())) > 1:
            counts = ", ".join(f"{count} {key}" for key, count in found.items())
            raise ValueError(f"{title} must have as many of each field, got {counts}")
    return next(iter(columns.values()))


def meta_row(item: list[BaseDataElement], index: int, key: str, dtype: type) -> np.ndarray:
    """[T, ...], or [...] where T is 1."""
    try:
        values = [np.asarray(sample.metainfo[key], dtype=dtype) for sample in item]
        return values[0] if len(values) == 1 else np.stack(values)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{key} of {describe_sample(item[0], index)} must be numbers of one shape in all samples: "
            f"{type(error).__name__} {error}"
        ) from error


def check_finite(packed: Tensor, tensors: list[Tensor], name: str, titles: list[str]) -> None:
    """Boxes [U, G, D] that a loss can be computed for."""
    if "bboxes" not in name or not packed.is_floating_point() or packed.dim() != 3:
        return
    if torch.isfinite(packed[..., :BOX_NUMBERS]).all():
        return
    for tensor, title in zip(tensors, titles, strict=True):
        wrong = (~torch.isfinite(tensor[:, :BOX_NUMBERS])).any(1).nonzero().flatten().tolist()
        if wrong:
            raise ValueError(f"{title}: {name}[{wrong[0]}] is not finite, {tensor[wrong[0]].tolist()}")
