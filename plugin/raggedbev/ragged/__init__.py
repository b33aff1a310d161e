"""Ragged batches: samples of different size in one padded tensor, and the helpers that work on them."""

from raggedbev.ragged.batch import RaggedBatch
from raggedbev.ragged.buckets import Buckets
from raggedbev.ragged.ops import (
    apply_mask_to_tensor,
    batched_bool_indexing,
    batched_bool_indexing_write,
    batched_index_mapping,
    batched_indexing_access,
    batched_indexing_write,
    batched_inverse_indexing_access,
    get_compact_from_named_tuple,
    get_compact_lists,
    get_indices_from_mask,
    get_mask_from_indices,
    squeeze_except_batch_and_sample,
)
from raggedbev.ragged.pack import combine_data
from raggedbev.ragged.reductions import average_over_targets, sum_over_targets
from raggedbev.ragged.transfer import copy_to_device

__all__ = [
    "Buckets",
    "RaggedBatch",
    "apply_mask_to_tensor",
    "average_over_targets",
    "batched_bool_indexing",
    "batched_bool_indexing_write",
    "batched_index_mapping",
    "batched_indexing_access",
    "batched_indexing_write",
    "batched_inverse_indexing_access",
    "combine_data",
    "copy_to_device",
    "get_compact_from_named_tuple",
    "get_compact_lists",
    "get_indices_from_mask",
    "get_mask_from_indices",
    "squeeze_except_batch_and_sample",
    "sum_over_targets",
]
