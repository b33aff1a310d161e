"""Reductions over the valid entries of a ragged batch: filler, NaN included, never reaches a result."""

from __future__ import annotations

import torch
from torch import Tensor

from raggedbev.ragged import primitives
from raggedbev.ragged.batch import RaggedBatch

__all__ = ["average_over_targets", "sum_over_targets"]

_HALF = (torch.float16, torch.bfloat16)


def _wide_sum(batch: RaggedBatch) -> Tensor:
    """Sum over the ragged dimension, in float32 for half precision."""
    if not isinstance(batch, RaggedBatch):
        raise TypeError(f"reductions take a RaggedBatch, got {type(batch).__name__}")
    data = batch.tensor
    return primitives.ragged_sum(data, batch.sample_sizes, batch.non_uniform_dim - data.dim())


def sum_over_targets(batch: RaggedBatch) -> Tensor:
    """Sum of the valid entries of each sample.

    Args:
        batch: ragged along any dimension, for instance [B, G, ...].

    Returns:
        The shape of `batch` without its ragged dimension, in its dtype (int64 for bool and integers); 0 for an empty
        sample. Half precision is added up in float32.

    Raises:
        TypeError: not a ragged batch.
    """
    total = _wide_sum(batch)
    return total.to(batch.dtype) if batch.dtype in _HALF else total


def average_over_targets(batch: RaggedBatch, nans_to_zero: bool = True) -> Tensor:
    """Mean of the valid entries of each sample.

    Args:
        batch: floating-point data, ragged along any dimension.
        nans_to_zero: whether an empty sample averages to 0 (otherwise to NaN). A NaN among the valid entries stays
            NaN either way.

    Returns:
        The shape of `batch` without its ragged dimension, in its dtype. Half precision is added up and divided in
        float32.

    Raises:
        TypeError: not a ragged batch, or no floating-point data.
    """
    if isinstance(batch, RaggedBatch) and not batch.dtype.is_floating_point:
        raise TypeError(f"average_over_targets needs floating-point data, got {batch.dtype}")
    total = _wide_sum(batch)
    mean = total / batch.layout.divisors(total.dtype, int(nans_to_zero), total.dim() - batch.num_batch_dims)
    return mean.to(batch.dtype) if batch.dtype in _HALF else mean
