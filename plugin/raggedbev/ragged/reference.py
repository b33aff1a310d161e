"""The ragged helpers as loops over samples: they define what each helper means, and are the baseline of benchmarks.

Same names, arguments and results as the helpers. Nothing is checked, and every sample costs host reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from raggedbev.ragged.batch import RaggedBatch
from raggedbev.ragged.ops import Data

__all__ = [
    "apply_mask_to_tensor",
    "average_over_targets",
    "batched_bool_indexing",
    "batched_bool_indexing_write",
    "batched_index_mapping",
    "batched_indexing_access",
    "batched_indexing_write",
    "batched_inverse_indexing_access",
    "combine_data",
    "get_compact_from_named_tuple",
    "get_compact_lists",
    "get_indices_from_mask",
    "get_mask_from_indices",
    "squeeze_except_batch_and_sample",
    "sum_over_targets",
]

Sample = tuple[int, ...]


def _samples(batch_shape: Sequence[int]) -> Iterator[Sample]:
    """Position of every sample in the batch."""
    return product(*(range(length) for length in batch_shape))


def _tensor(data: Data) -> Tensor:
    return data.tensor if isinstance(data, RaggedBatch) else data


def _size(data: Data, dim: int, sample: Sample) -> int:
    """Valid entries of one sample along `dim`; none where the sample itself is filler."""
    if not isinstance(data, RaggedBatch) or data.non_uniform_dim > dim:
        return data.shape[dim]
    size, ragged = int(data.sample_sizes[sample[: data.num_batch_dims]]), data.non_uniform_dim
    if ragged == dim:
        return size
    return data.shape[dim] if ragged >= len(sample) or sample[ragged] < size else 0


def _valid_entries(indices: Data, sample: Sample) -> list[tuple[int, int]]:
    """Entry and value of the indices of one sample."""
    size = _size(indices, indices.dim() - 1, sample)
    return list(enumerate(_tensor(indices)[sample][:size].tolist()))


def batched_indexing_access(data: Data, indices: Data, filler: float = 0, dim_to_index_in: int | None = None) -> Data:
    """out[i, j] = data[i, indices[i, j]]."""
    num, source = indices.dim() - 1, _tensor(data)
    dim = dim_to_index_in
    if dim is None:
        dim = max(data.non_uniform_dim, num) if isinstance(data, RaggedBatch) else num
    dim %= source.dim()
    out = source.new_full((*source.shape[:dim], indices.shape[-1], *source.shape[dim + 1 :]), filler)
    for sample in _samples(indices.shape[:-1]):
        limit = _size(data, dim, sample)
        for entry, row in _valid_entries(indices, sample):
            if 0 <= row < limit:
                out[sample].select(dim - num, entry).copy_(source[sample].select(dim - num, row))
    return indices.create_with_sample_sizes_like_self(out, dim) if isinstance(indices, RaggedBatch) else out


def batched_inverse_indexing_access(data: Data, indices: Data, num_targets: int, filler: float = 0) -> Tensor:
    """out[i, indices[i, j]] = data[i, j]."""
    num, source = indices.dim() - 1, _tensor(data)
    out = source.new_full((*source.shape[:num], num_targets, *source.shape[num + 1 :]), filler)
    return _tensor(batched_indexing_write(data, indices, out))


def batched_indexing_write(to_write: Data, indices: Data, into: Data) -> Data:
    """out[i, indices[i, j]] = to_write[i, j], one after the other."""
    entries = torch.arange(indices.shape[-1], device=indices.device).expand(indices.shape)
    return batched_index_mapping(to_write, entries, indices, into)


def batched_index_mapping(source: Data, source_indices: Data, target_indices: Data, target: Data) -> Data:
    """out[i, target_indices[i, j]] = source[i, source_indices[i, j]], one after the other."""
    out, num = _tensor(target).clone(memory_format=torch.contiguous_format), target_indices.dim() - 1
    for sample in _samples(target_indices.shape[:-1]):
        pairs = zip(_valid_entries(source_indices, sample), _valid_entries(target_indices, sample), strict=False)
        for (_, read), (_, written) in pairs:
            if 0 <= read < _size(source, num, sample) and 0 <= written < _size(target, num, sample):
                out[sample][written] = _tensor(source)[sample][read]
    if isinstance(target, RaggedBatch):
        return target.create_with_sample_sizes_like_self(out, target.non_uniform_dim)
    return out


def get_mask_from_indices(num: int, indices: Data) -> Tensor:
    """True at the entries that `indices` name."""
    mask = torch.zeros((*indices.shape[:-1], num), dtype=torch.bool, device=indices.device)
    for sample in _samples(indices.shape[:-1]):
        for _, row in _valid_entries(indices, sample):
            if 0 <= row < num:
                mask[sample][row] = True
    return mask


def get_indices_from_mask(mask: Data, max_num: int | None = None) -> RaggedBatch:
    """Positions of the True entries of each sample."""
    num = mask.dim() - 1
    batch_shape = mask.shape[:-1]
    rows = [_tensor(mask)[s][: _size(mask, num, s)].nonzero()[:, 0][:max_num] for s in _samples(batch_shape)]
    length = max((len(row) for row in rows), default=0) if max_num is None else max_num
    found = torch.zeros((*batch_shape, length), dtype=torch.long, device=mask.device)
    sizes = torch.zeros(batch_shape, dtype=torch.long, device=mask.device)
    for sample, row in zip(_samples(batch_shape), rows, strict=True):
        found[sample][: len(row)] = row
        sizes[sample] = len(row)
    return RaggedBatch(found, sample_sizes=sizes)


def batched_bool_indexing(data: Data, mask: Data, max_num: int | None = None) -> RaggedBatch:
    """The entries of each sample where `mask` is True."""
    dim = mask.dim() - 1
    indices = get_indices_from_mask(_inside(mask, data), max_num)
    return indices.create_with_sample_sizes_like_self(_tensor(batched_indexing_access(data, indices, 0, dim)), dim)


def batched_bool_indexing_write(to_write: Data, mask: Data, into: Data) -> Data:
    """A copy of `into` with the entries of `to_write` where `mask` is True, in order."""
    indices = get_indices_from_mask(_inside(mask, into), to_write.shape[mask.dim() - 1])
    entries = torch.arange(indices.shape[-1], device=mask.device).expand(indices.shape)
    return batched_index_mapping(to_write, entries, indices, into)


def _inside(mask: Data, data: Data) -> Tensor:
    """Mask without filler, its own and that of `data`."""
    num = mask.dim() - 1
    inside = torch.zeros_like(_tensor(mask))
    for sample in _samples(mask.shape[:-1]):
        size = min(_size(mask, num, sample), _size(data, num, sample))
        inside[sample][:size] = _tensor(mask)[sample][:size]
    return inside


def _reduce(batch: RaggedBatch, nothing: float, mean: bool) -> Tensor:
    """Each sample by itself, cropped; `nothing` for an empty one."""
    num, dim = batch.num_batch_dims, batch.non_uniform_dim
    dtype = torch.float32 if batch.dtype in (torch.float16, torch.bfloat16) else None
    rows = []
    for sample in _samples(batch.batch_shape):
        size = _size(batch, dim, sample)
        total = batch.tensor[sample].narrow(dim - num, 0, size).sum(dim - num, dtype=dtype)
        if mean:
            total = total / size if size else torch.full_like(total, nothing)
        rows.append(total)
    shape = (*batch.shape[:dim], *batch.shape[dim + 1 :])
    stacked = torch.stack(rows) if rows else torch.sum(batch.tensor, dim, dtype=dtype)
    return stacked.reshape(shape).to(batch.dtype if dtype else stacked.dtype)


def sum_over_targets(batch: RaggedBatch) -> Tensor:
    """Sum of each cropped sample."""
    return _reduce(batch, 0, mean=False)


def average_over_targets(batch: RaggedBatch, nans_to_zero: bool = True) -> Tensor:
    """Mean of each cropped sample."""
    return _reduce(batch, 0.0 if nans_to_zero else float("nan"), mean=True)


def combine_data(
    data_list: Sequence,
    other_with_same_sample_sizes: RaggedBatch | None = None,
    device: torch.device | str | None = None,
    flatten_batch_dims: bool = True,
    max_sample_size: int | None = None,
) -> RaggedBatch:
    """Slice by slice."""
    other = other_with_same_sample_sizes
    batch_shape, level = [], data_list
    while not isinstance(level, Tensor):
        batch_shape.append(len(level))
        level = level[0]
    samples = data_list
    for _ in batch_shape[1:]:
        samples = [sample for inner in samples for sample in inner]
    if device is None:
        device = samples[0].device if other is None else other.device
    length = max(len(sample) for sample in samples) if other is None else other.max_sample_size
    length = length if max_sample_size is None else max_sample_size
    tensor = torch.zeros(len(samples), length, *samples[0].shape[1:], dtype=samples[0].dtype, device=device)
    for b, sample in enumerate(samples):
        tensor[b, : len(sample)] = sample
    sizes = torch.tensor([len(sample) for sample in samples], device=device)
    if flatten_batch_dims:
        return RaggedBatch(tensor, sample_sizes=sizes)
    return RaggedBatch(tensor.reshape(*batch_shape, *tensor.shape[1:]), sample_sizes=sizes.reshape(batch_shape))


def apply_mask_to_tensor(data: Tensor, mask: Tensor, value: float = 0) -> Tensor:
    """Entry by entry."""
    out = data.clone(memory_format=torch.contiguous_format)
    for entry in _samples(mask.shape):
        if not mask[entry]:
            out[entry] = value
    return out


def squeeze_except_batch_and_sample(data: RaggedBatch) -> RaggedBatch:
    """One dimension after the other."""
    tensor, dim = data.tensor, data.non_uniform_dim
    for d in range(tensor.dim() - 1, data.num_batch_dims - 1, -1):
        if d != dim and tensor.shape[d] == 1:
            tensor = tensor.squeeze(d)
            dim -= d < dim
    return data.create_with_sample_sizes_like_self(tensor, dim)


def get_compact_lists(*batches: RaggedBatch) -> tuple[list, ...]:
    """Sample by sample."""

    def compact(batch: RaggedBatch, sample: Sample) -> Any:
        num, dim = batch.num_batch_dims, batch.non_uniform_dim
        if len(sample) < num:
            return [compact(batch, (*sample, i)) for i in range(batch.batch_shape[len(sample)])]
        return batch.tensor[sample].narrow(dim - num, 0, _size(batch, dim, sample))

    return tuple(compact(batch, ()) for batch in batches)


def get_compact_from_named_tuple(batches: Any) -> Any:
    """Field by field."""
    fields = [get_compact_lists(field)[0] if isinstance(field, RaggedBatch) else field for field in batches]
    return type(batches)(*fields)
