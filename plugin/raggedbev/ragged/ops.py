"""Index helpers: padded data with index lists or masks in, gathered, scattered or compacted data out.

Data are tensors [*batch, N, ...] or ragged batches, indices [*batch, K] int32 or int64 (tensor or ragged batch). An
index that lies outside the data (for ragged data: outside its sample) is treated as filler: such an entry is not read
and not written. With `RAGGEDBEV_DEBUG=1` it raises an IndexError instead. Nothing but the functions that say so reads
the device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from raggedbev.ragged.batch import RaggedBatch, debug_mode

__all__ = [
    "apply_mask_to_tensor",
    "batched_bool_indexing",
    "batched_bool_indexing_write",
    "batched_index_mapping",
    "batched_indexing_access",
    "batched_indexing_write",
    "batched_inverse_indexing_access",
    "get_compact_from_named_tuple",
    "get_compact_lists",
    "get_indices_from_mask",
    "get_mask_from_indices",
    "squeeze_except_batch_and_sample",
]

Data = Tensor | RaggedBatch


@dataclass(frozen=True)
class _Indices:
    """index: [*batch, K] int64, 0 where not valid; valid: [*batch, K] bool; ragged: the batch that they came in."""

    index: Tensor
    valid: Tensor
    ragged: RaggedBatch | None


def _read_indices(indices: Data, limit: Tensor | int, name: str = "indices") -> _Indices:
    """Checked indices; valid are those below `limit` ([*batch] sizes or one number) that are not filler."""
    tensor = indices.tensor if isinstance(indices, RaggedBatch) else indices
    if tensor.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name} must be int32 or int64, got {tensor.dtype}")
    if tensor.dim() < 2 or (isinstance(indices, RaggedBatch) and indices.non_uniform_dim != tensor.dim() - 1):
        raise ValueError(f"{name} must be [*batch, K], ragged along K or not at all, got {tuple(tensor.shape)}")
    tensor = tensor.long()
    limit = limit.unsqueeze(-1) if isinstance(limit, Tensor) else limit
    inside = (tensor >= 0) & (tensor < limit)
    entries = indices.mask if isinstance(indices, RaggedBatch) else torch.ones_like(inside)
    if debug_mode() and not torch.compiler.is_compiling():
        _raise_outside(tensor, entries & ~inside, name)
    valid = entries & inside
    return _Indices(torch.where(valid, tensor, 0), valid, indices if isinstance(indices, RaggedBatch) else None)


def _raise_outside(index: Tensor, outside: Tensor, name: str) -> None:
    if outside.any():
        *sample, entry = outside.nonzero()[0].tolist()
        value = int(index[(*sample, entry)])
        where = sample[0] if len(sample) == 1 else tuple(sample)
        raise IndexError(f"{name} of sample {where}, entry {entry}: {value} is out of range")


def _as_tensor(data: Data) -> Tensor:
    return data.tensor if isinstance(data, RaggedBatch) else data


def _sizes(data: Data, dim: int) -> Tensor | int:
    """How many entries may be read along `dim`: per sample for data that are ragged there."""
    if isinstance(data, RaggedBatch) and data.non_uniform_dim == dim:
        return data.sample_sizes
    return data.shape[dim]


def _check_batch(data: Data, indices: Data, name: str) -> int:
    """Number of batch dimensions, which the indices define."""
    num = indices.dim() - 1
    if data.dim() <= num or data.shape[:num] != indices.shape[:-1]:
        raise ValueError(
            f"{name} must start with the batch shape {tuple(indices.shape[:-1])} of the indices, "
            f"got {tuple(data.shape)}"
        )
    return num


def _take(data: Tensor, index: Tensor) -> Tensor:
    """data [*batch, N, *rest] at valid indices [*batch, K]: [*batch, K, *rest].

    The gradient adds up duplicates in a fixed order: `gather` does on the CPU, advanced indexing on CUDA. Half
    precision is added up in float32.
    """
    num, rest = index.dim() - 1, data.shape[index.dim() :]
    if data.shape[num] == 0:
        data = torch.cat([data, data.new_zeros((*data.shape[:num], 1, *rest))], dim=num)  # a row to point at
    wide = data.float() if data.dtype in (torch.float16, torch.bfloat16) else data
    if data.device.type == "cuda":
        batch, count = index.shape[:-1].numel(), index.shape[-1]
        rows = torch.arange(batch, device=index.device).unsqueeze(1)
        found = wide.reshape(batch, *wide.shape[num:])[rows, index.reshape(batch, count)]
        return found.reshape(*index.shape, *rest).to(data.dtype)
    spread = index.reshape(*index.shape, *[1] * len(rest)).expand(*index.shape, *rest)
    return wide.gather(num, spread).to(data.dtype)


def _broadcast(mask: Tensor, data: Tensor) -> Tensor:
    return mask.reshape(*mask.shape, *[1] * (data.dim() - mask.dim()))


def _last_entry_of_target(indices: _Indices, num_targets: int) -> Tensor:
    """[*batch, num_targets] int64: the last entry that points at each target, -1 where none does."""
    entries = torch.arange(indices.index.shape[-1], device=indices.index.device).expand_as(indices.index)
    slots = torch.where(indices.valid, indices.index, num_targets)
    last = torch.full((*indices.index.shape[:-1], num_targets + 1), -1, dtype=torch.long, device=entries.device)
    return last.scatter_reduce(-1, slots, entries, reduce="amax")[..., :num_targets]


def batched_indexing_access(data: Data, indices: Data, filler: float = 0, dim_to_index_in: int | None = None) -> Data:
    """out[i, j] = data[i, indices[i, j]].

    Args:
        data: [*batch, N, ...] tensor or ragged batch; entries outside a sample are never read.
        indices: [*batch, K]; filler entries and indices outside the data give `filler`. Duplicates add up in the
            gradient.
        filler: value of such entries.
        dim_to_index_in: dimension of `data` that is indexed; by default the ragged one, or the first after the batch
            dimensions.

    Returns:
        `data` with K entries instead of N along the dimension; a ragged batch (ragged there) if the indices are one.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    num = _check_batch(data, indices, "data")
    dim = dim_to_index_in
    if dim is None:
        dim = data.non_uniform_dim if isinstance(data, RaggedBatch) else num
    if not num <= dim < data.dim():
        raise ValueError(f"dim_to_index_in must lie in [{num}, {data.dim()}), got {dim}")
    read = _read_indices(indices, _sizes(data, dim))
    found = _take(_as_tensor(data).movedim(dim, num), read.index)
    found = found.masked_fill(~_broadcast(read.valid, found), filler).movedim(num, dim)
    return found if read.ragged is None else read.ragged.create_with_sample_sizes_like_self(found, dim)


def batched_inverse_indexing_access(data: Data, indices: Data, num_targets: int, filler: float = 0) -> Tensor:
    """out[i, indices[i, j]] = data[i, j], and `filler` elsewhere.

    Args:
        data: [*batch, K, ...] tensor or ragged batch.
        indices: [*batch, K]; of entries with the same index the last one wins.
        num_targets: entries of the result.
        filler: value where nothing is written.

    Returns:
        [*batch, num_targets, ...].
    """
    num = _check_batch(data, indices, "data")
    last = _last_entry_of_target(_written_entries(data, indices, num, num_targets), num_targets)
    found = _take(_as_tensor(data), last.clamp(min=0))
    return found.masked_fill(~_broadcast(last >= 0, found), filler)


def _written_entries(data: Data, indices: Data, num: int, limit: Tensor | int, name: str = "indices") -> _Indices:
    """Indices whose entry is neither filler of the indices nor of the data."""
    if data.shape[num] != indices.shape[-1]:
        raise ValueError(
            f"data and {name} must have the same number of entries, got {data.shape[num]} and {indices.shape[-1]}"
        )
    read = _read_indices(indices, limit, name)
    if isinstance(data, RaggedBatch) and data.non_uniform_dim == num:
        return replace(read, valid=read.valid & data.mask)
    return read


def batched_indexing_write(to_write: Data, indices: Data, into: Data) -> Data:
    """A copy of `into` with out[i, indices[i, j]] = to_write[i, j].

    Args:
        to_write: [*batch, K, ...] tensor or ragged batch, in the dtype of `into`.
        indices: [*batch, K]; of entries with the same index the last one wins.
        into: [*batch, N, ...] tensor or ragged batch (then nothing is written outside its samples).

    Returns:
        As `into`. Gradients flow to both; overwritten entries get none.
    """
    num = _check_batch(to_write, indices, "to_write")
    _check_batch(into, indices, "into")
    read = _written_entries(to_write, indices, num, _sizes(into, num))
    return _write(_as_tensor(to_write), _last_entry_of_target(read, into.shape[num]), into)


def _write(source: Tensor, entry_of_target: Tensor, into: Data) -> Data:
    """`into` with source[i, entry_of_target[i, t]] at t where that is not negative."""
    target = _as_tensor(into)
    if source.dtype != target.dtype:
        raise ValueError(f"what is written must have the dtype {target.dtype}, got {source.dtype}")
    found = _take(source, entry_of_target.clamp(min=0))
    written = torch.where(_broadcast(entry_of_target >= 0, target), found, target)
    if isinstance(into, RaggedBatch):
        return into.create_with_sample_sizes_like_self(written, into.non_uniform_dim)
    return written


def batched_index_mapping(source: Data, source_indices: Data, target_indices: Data, target: Data) -> Data:
    """A copy of `target` with out[i, target_indices[i, j]] = source[i, source_indices[i, j]].

    Args:
        source: [*batch, N, ...].
        source_indices: [*batch, K].
        target_indices: [*batch, K]; of entries with the same index the last one wins.
        target: [*batch, M, ...], dtype and trailing shape as `source`.

    Returns:
        As `target`. An entry of which either index is filler or out of range writes nothing.
    """
    num = _check_batch(source, source_indices, "source")
    _check_batch(target, target_indices, "target")
    if source_indices.shape != target_indices.shape:
        raise ValueError(
            f"source_indices and target_indices must have the same shape, got {tuple(source_indices.shape)} and "
            f"{tuple(target_indices.shape)}"
        )
    read_from = _read_indices(source_indices, _sizes(source, num), "source_indices")
    write_to = _read_indices(target_indices, _sizes(target, num), "target_indices")
    last = _last_entry_of_target(replace(write_to, valid=write_to.valid & read_from.valid), target.shape[num])
    entry = _take(read_from.index, last.clamp(min=0))
    return _write(_as_tensor(source), torch.where(last >= 0, entry, -1), target)


def get_mask_from_indices(num: int, indices: Data) -> Tensor:
    """[*batch, num] bool, True at the entries that `indices` [*batch, K] name."""
    return _last_entry_of_target(_read_indices(indices, num), num) >= 0


def get_indices_from_mask(mask: Tensor, max_num: int | None = None) -> RaggedBatch:
    """Positions of the True entries of each sample, in order.

    Args:
        mask: [*batch, N] bool.
        max_num: room for that many positions (further ones are dropped); none: the largest count, which is read from
            the device.

    Returns:
        [*batch, max_num] int64, filler 0.
    """
    if mask.dtype != torch.bool or mask.dim() < 2:
        raise ValueError(f"mask must be bool [*batch, N], got {tuple(mask.shape)} {mask.dtype}")
    sizes = mask.sum(-1)
    if max_num is None:
        max_num = int(sizes.max()) if sizes.numel() else 0
    rank = mask.cumsum(-1) - 1
    slots = torch.where(mask & (rank < max_num), rank, max_num)
    positions = torch.arange(mask.shape[-1], device=mask.device).expand_as(slots)
    found = torch.zeros((*mask.shape[:-1], max_num + 1), dtype=torch.long, device=mask.device)
    found = found.scatter(-1, slots, positions)[..., :max_num]
    return RaggedBatch(found, sample_sizes=sizes.clamp(max=max_num))


def batched_bool_indexing(data: Data, mask: Tensor, max_num: int | None = None) -> RaggedBatch:
    """The entries of each sample where `mask` is True, in order.

    Args:
        data: [*batch, N, ...] tensor or ragged batch (its filler is never selected).
        mask: [*batch, N] bool.
        max_num: room for that many entries per sample; none: the largest count, which is read from the device.

    Returns:
        [*batch, max_num, ...], filler 0.
    """
    if isinstance(data, RaggedBatch):
        mask = mask & data.mask
    indices = get_indices_from_mask(mask, max_num)
    return indices.create_with_sample_sizes_like_self(_take(_as_tensor(data), indices.tensor)).with_padded_set_to(0)


def batched_bool_indexing_write(to_write: RaggedBatch, mask: Tensor, into: Data) -> Data:
    """The inverse of `batched_bool_indexing`: a copy of `into` with `to_write` where `mask` is True, in order.

    Args:
        to_write: [*batch, K, ...]; entries beyond the True ones are not written.
        mask: [*batch, N] bool.
        into: [*batch, N, ...] tensor or ragged batch (its filler is not written to).

    Returns:
        As `into`.
    """
    if isinstance(into, RaggedBatch):
        mask = mask & into.mask
    rank = mask.cumsum(-1) - 1
    entry = torch.where(mask & (rank < to_write.sample_sizes.unsqueeze(-1)), rank, -1)
    return _write(to_write.tensor, entry, into)


def apply_mask_to_tensor(data: Tensor, mask: Tensor, value: float = 0) -> Tensor:
    """`data` [*mask.shape, ...] with `value` where `mask` is False."""
    if data.shape[: mask.dim()] != mask.shape:
        raise ValueError(f"data must start with the shape {tuple(mask.shape)} of the mask, got {tuple(data.shape)}")
    return data.masked_fill(~_broadcast(mask, data), value)


def squeeze_except_batch_and_sample(data: RaggedBatch) -> RaggedBatch:
    """Remove data dimensions of size one; batch dimensions and the ragged dimension stay."""
    keep = [
        d for d in range(data.dim()) if d <= data.num_batch_dims - 1 or d == data.non_uniform_dim or data.shape[d] != 1
    ]
    squeezed = data.tensor.reshape([data.shape[d] for d in keep])
    return data.create_with_sample_sizes_like_self(squeezed, keep.index(data.non_uniform_dim))


def get_compact_lists(*batches: RaggedBatch) -> tuple[list, ...]:
    """Per batch the (nested) list of cropped samples, see `RaggedBatch.split`."""
    return tuple(batch.split() for batch in batches)


def get_compact_from_named_tuple(batches: Any) -> Any:
    """A named tuple of ragged batches as the same named tuple of lists; other fields stay as they are."""
    return batches._make(field.split() if isinstance(field, RaggedBatch) else field for field in batches)
