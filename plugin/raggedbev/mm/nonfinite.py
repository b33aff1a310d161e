"""Counts of NaN and infinite predictions: predictions of a module in, counts on their device out, read by a hook."""

from __future__ import annotations

import torch
from torch import Tensor

from raggedbev.losses import count_nonfinite

__all__ = ["NonfiniteCounter"]


class NonfiniteCounter:
    """Counts NaN and infinite predictions on the device, for a hook to read when it logs.

    Attributes:
        nonfinite_predictions: [L] int64 per layer since the start, on the device of the predictions; None before the
            first loss. Not part of the state dict.
    """

    nonfinite_predictions: Tensor | None = None

    def count_nonfinite(self, *predictions: Tensor) -> None:
        """Add the non-finite entries of predictions [L, ...]; nothing is read from the device."""
        counts = count_nonfinite(*predictions)
        if self.nonfinite_predictions is None or self.nonfinite_predictions.device != counts.device:
            self.nonfinite_predictions = torch.zeros_like(counts)
        self.nonfinite_predictions += counts
