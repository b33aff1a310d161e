"""raggedbev: batched ground-truth handling, matching, targets and losses for bird's-eye-view detectors.

This package imports torch, NumPy and SciPy only; what plugs into mmdetection3d lives in `raggedbev.mm`.
"""

from raggedbev.heatmap import draw_gaussian_heatmap
from raggedbev.matching import LinearAssignment, linear_assignment
from raggedbev.ragged import (
    Buckets,
    RaggedBatch,
    apply_mask_to_tensor,
    average_over_targets,
    batched_bool_indexing,
    batched_bool_indexing_write,
    batched_index_mapping,
    batched_indexing_access,
    batched_indexing_write,
    batched_inverse_indexing_access,
    combine_data,
    copy_to_device,
    get_compact_from_named_tuple,
    get_compact_lists,
    get_indices_from_mask,
    get_mask_from_indices,
    squeeze_except_batch_and_sample,
    sum_over_targets,
)

__all__ = [
    "Buckets",
    "LinearAssignment",
    "RaggedBatch",
    "__version__",
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
    "draw_gaussian_heatmap",
    "get_compact_from_named_tuple",
    "get_compact_lists",
    "get_indices_from_mask",
    "get_mask_from_indices",
    "linear_assignment",
    "squeeze_except_batch_and_sample",
    "sum_over_targets",
]
__version__ = "0.1.0"
