"""Reductions over the valid entries of a ragged batch: filler, NaN included, never reaches a result."""

from __future__ import annotations

import torch
from torch import Tensor

from raggedbev.ragged.batch import RaggedBatch

__all__ = ["average_over_targets", "sum_over_targets"]

_WIDER = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


def _wide_sum(batch: RaggedBatch) -> Tensor:
    """Sum over the ragged dimension; half precision is added up, and returned, in float32."""
    clean = batch.with_padded_set_to(0).tensor
    return clean.sum(batch.non_uniform_dim, dtype=_WIDER.get(batch.dtype))


def sum_over_targets(batch: RaggedBatch) -> Tensor:
    """Sum of the valid entries of each sample.

    Args:
        batch: ragged along any dimension, for instance [B, G, ...].

    Returns:
        The shape of `batch` without its ragged dimension, in its dtype (int64 for bool and integers); 0 for an empty
        sample.
    """
    total = _wide_sum(batch)
    return total.to(batch.dtype) if batch.dtype in _WIDER else total


def average_over_targets(batch: RaggedBatch, nans_to_zero: bool = True) -> Tensor:
    """Mean of the valid entries of each sample.

    Args:
        batch: floating-point data, ragged along any dimension.
        nans_to_zero: whether an empty sample averages to 0 (otherwise to NaN). A NaN among the valid entries stays
            NaN either way.

    Returns:
        The shape of `batch` without its ragged dimension, in its dtype.
    """
    if not batch.dtype.is_floating_point:
        raise ValueError(f"average_over_targets needs floating-point data, got {batch.dtype}")
    total = _wide_sum(batch)
    sizes = batch.sample_sizes.reshape(*batch.batch_shape, *[1] * (total.dim() - batch.num_batch_dims))
    mean = total / sizes.clamp(min=1 if nans_to_zero else 0).to(total.dtype)
    return mean.to(batch.dtype)
