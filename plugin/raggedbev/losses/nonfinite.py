"""Non-finite predictions: predictions in, how many of them are NaN or infinite out, counted on the device."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["count_nonfinite"]


@torch.no_grad()
def count_nonfinite(*predictions: Tensor) -> Tensor:
    """NaN and infinite entries per layer.

    Args:
        predictions: tensors [L, ...] with the same L.

    Returns:
        [L] int64 on the device of the predictions; nothing is read from it.
    """
    counts = [(~tensor.isfinite()).flatten(1).sum(1) for tensor in predictions]
    return torch.stack(counts).sum(0)
