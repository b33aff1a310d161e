"""Index helpers: padded data with index lists or masks in, gathered, scattered or compacted data out.

Data are tensors [*batch, N, ...] or ragged batches, indices [*batch, K] int32 or int64 (tensor or ragged batch). An
index that lies outside the data (for ragged data: outside its sample) is treated as filler: such an entry is not read
and not written. With `RAGGEDBEV_DEBUG=1` it raises an IndexError instead. Nothing but the functions that say so reads
the device. Each helper checks its arguments and calls one operator of `primitives`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from raggedbev.ragged import primitives
from raggedbev.ragged.arguments import require_representable
from raggedbev.ragged.batch import RaggedBatch
from raggedbev.ragged.layout import Layout, debug_mode, is_readable

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
_MOST = 2**63 - 1


def batched_indexing_access(data: Data, indices: Data, filler: float = 0, dim_to_index_in: int | None = None) -> Data:
    """out[i, j] = data[i, indices[i, j]].

    Args:
        data: [*batch, N, ...] tensor or ragged batch; entries outside a sample are never read.
        indices: [*batch, K]; filler entries and indices outside the data give `filler`. Duplicates add up in the
            gradient, in a fixed order and in float32 or wider.
        filler: value of such entries.
        dim_to_index_in: dimension of `data` that is indexed (negative: from the end); by default the ragged one, or the
            first after the batch dimensions.

    Returns:
        `data` with K entries instead of N along the dimension; a ragged batch (ragged there) if the indices are one.

    Raises:
        TypeError: not tensors or ragged batches, or indices that are not int32 or int64.
        ValueError: shapes or devices do not fit.
        IndexError: an index is out of range (only with `RAGGEDBEV_DEBUG=1`).
    """
    index, num_indices = _read_indices(indices, "indices")
    source = _read_data(data, index, "data")
    num, dims = index.dim() - 1, source.dim()
    dim = dim_to_index_in
    if dim is None:
        dim = max(data.non_uniform_dim, num) if isinstance(data, RaggedBatch) else num
    elif not isinstance(dim, int):
        raise TypeError(f"dim_to_index_in must be an integer, got {dim!r}")
    elif dim < 0:
        dim += dims
    if not num <= dim < dims:
        raise ValueError(f"dim_to_index_in must lie in [{num}, {dims}), got {dim_to_index_in}")
    _check_filler(filler, source)
    num_rows = _valid_rows(data, dim, index)
    if debug_mode():
        _check_range(index, num_indices, num_rows, source.shape[dim], "indices")
    found = primitives.ragged_gather(source, index, num_indices, num_rows, filler, dim - dims)
    return RaggedBatch.from_layout(found, indices.layout, dim) if isinstance(indices, RaggedBatch) else found


def batched_inverse_indexing_access(data: Data, indices: Data, num_targets: int, filler: float = 0) -> Tensor:
    """out[i, indices[i, j]] = data[i, j], and `filler` elsewhere.

    Args:
        data: [*batch, K, ...] tensor or ragged batch.
        indices: [*batch, K]; of entries with the same index the last one wins.
        num_targets: entries of the result.
        filler: value where nothing is written.

    Returns:
        [*batch, num_targets, ...]. The gradient goes to the entries that won.

    Raises:
        TypeError: not tensors or ragged batches, or indices that are not int32 or int64.
        ValueError: shapes or devices do not fit.
        IndexError: an index is out of range (only with `RAGGEDBEV_DEBUG=1`).
    """
    _require_count("num_targets", num_targets)
    return _write(data, None, indices, None, ("data", "", "indices", ""), num_targets, filler)


def batched_indexing_write(to_write: Data, indices: Data, into: Data) -> Data:
    """A copy of `into` with out[i, indices[i, j]] = to_write[i, j].

    Args:
        to_write: [*batch, K, ...] tensor or ragged batch, in the dtype of `into`.
        indices: [*batch, K]; of entries with the same index the last one wins.
        into: [*batch, N, ...] tensor or ragged batch (then nothing is written outside its samples).

    Returns:
        As `into`. Gradients flow to both; overwritten entries get none.

    Raises:
        TypeError: not tensors or ragged batches, or indices that are not int32 or int64.
        ValueError: shapes, dtypes or devices do not fit.
        IndexError: an index is out of range (only with `RAGGEDBEV_DEBUG=1`).
    """
    return _written_batch(to_write, None, indices, into, ("to_write", "", "indices", "into"))


def batched_index_mapping(source: Data, source_indices: Data, target_indices: Data, target: Data) -> Data:
    """A copy of `target` with out[i, target_indices[i, j]] = source[i, source_indices[i, j]], in one pass.

    Args:
        source: [*batch, N, ...] tensor or ragged batch, in the dtype of `target`.
        source_indices: [*batch, K] positions in `source`.
        target_indices: [*batch, K] positions in `target`; of entries with the same one the last one wins.
        target: [*batch, T, ...] tensor or ragged batch (then nothing is written outside its samples).

    Returns:
        As `target`. An entry of which either index is filler or out of range is not written.

    Raises:
        TypeError: not tensors or ragged batches, or indices that are not int32 or int64.
        ValueError: shapes, dtypes or devices do not fit.
        IndexError: an index is out of range (only with `RAGGEDBEV_DEBUG=1`).
    """
    names = ("source", "source_indices", "target_indices", "target")
    return _written_batch(source, source_indices, target_indices, target, names)


def get_mask_from_indices(num: int, indices: Data) -> Tensor:
    """[*batch, num] bool, True at the entries that `indices` [*batch, K] name.

    Raises:
        TypeError: indices that are not int32 or int64.
        ValueError: `num` is negative, or the indices have the wrong shape.
        IndexError: an index is out of range (only with `RAGGEDBEV_DEBUG=1`; otherwise it is treated as filler).
    """
    _require_count("num", num)
    index, num_indices = _read_indices(indices, "indices")
    if debug_mode():
        _check_range(index, num_indices, None, num, "indices")
    return primitives.ragged_mask_from_indices(index, num_indices, num)


def get_indices_from_mask(mask: Data, max_num: int | None = None) -> RaggedBatch:
    """Positions of the True entries of each sample, in order.

    Args:
        mask: [*batch, N] bool tensor, or ragged batch (whose filler never counts).
        max_num: room for that many positions (further ones are dropped), which does not read the device; none: the
            largest count, which is read from the device.

    Returns:
        [*batch, max_num] int64, filler 0.

    Raises:
        TypeError: the mask is not bool.
        ValueError: shapes do not fit, or `max_num` is negative.
    """
    tensor = _read_mask(mask)
    num = tensor.dim() - 1
    return _counted(*_positions(tensor, _valid_rows(mask, num, tensor), max_num), num)


def batched_bool_indexing(data: Data, mask: Data, max_num: int | None = None) -> RaggedBatch:
    """The entries of each sample where `mask` is True, in order.

    Args:
        data: [*batch, N, ...] tensor or ragged batch (its filler is never selected).
        mask: [*batch, N] bool tensor, or ragged batch (whose filler never counts).
        max_num: room for that many entries per sample, which does not read the device; none: the largest count, which
            is read from the device.

    Returns:
        [*batch, max_num, ...], filler 0.

    Raises:
        TypeError: not tensors or ragged batches, or the mask is not bool.
        ValueError: shapes or devices do not fit, or `max_num` is negative.
    """
    selected = _read_mask(mask)
    source = _read_rows(data, selected, "data")
    num = selected.dim() - 1
    num_rows = _fewer(_valid_rows(mask, num, selected), _valid_rows(data, num, selected))
    indices, counts = _positions(selected, num_rows, max_num)
    return _counted(primitives.ragged_gather(source, indices, counts, None, 0, num - source.dim()), counts, num)


def batched_bool_indexing_write(to_write: Data, mask: Data, into: Data) -> Data:
    """The inverse of `batched_bool_indexing`: a copy of `into` with `to_write` where `mask` is True, in order.

    Args:
        to_write: [*batch, K, ...] tensor or ragged batch, in the dtype of `into`; entries beyond the True ones are not
            written.
        mask: [*batch, N] bool tensor, or ragged batch (whose filler never counts).
        into: [*batch, N, ...] tensor or ragged batch (its filler is not written to).

    Returns:
        As `into`.

    Raises:
        TypeError: not tensors or ragged batches, or the mask is not bool.
        ValueError: shapes, dtypes or devices do not fit.
    """
    selected = _read_mask(mask)
    target = _read_rows(into, selected, "into")
    source = _read_data(to_write, selected, "to_write")
    num = selected.dim() - 1
    _check_written(source, target, num, ("to_write", "into"))
    num_rows = _fewer(_valid_rows(mask, num, selected), _valid_rows(into, num, selected))
    indices, counts = primitives.ragged_indices_from_mask(selected, num_rows, source.shape[num])
    num_source = _valid_rows(to_write, num, selected)
    written = primitives.ragged_write(source, None, indices, counts, num_source, None, target, target.shape[num])
    return _as(into, written)


def apply_mask_to_tensor(data: Tensor, mask: Tensor, value: float = 0) -> Tensor:
    """`data` [*mask.shape, ...] with `value` where `mask` is False; the gradient is zero there.

    Raises:
        TypeError: not tensors, the mask is not bool, or the value is no number.
        ValueError: shapes or devices do not fit, or the data cannot hold the value.
    """
    if not isinstance(data, Tensor) or not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"data must be a tensor and mask a bool tensor, got {_kind(data)} and {_kind(mask)}")
    if data.shape[: mask.dim()] != mask.shape:
        raise ValueError(f"data must start with the shape {tuple(mask.shape)} of the mask, got {tuple(data.shape)}")
    if data.device != mask.device:
        raise ValueError(f"mask must be on {data.device} like the data, got {mask.device}")
    require_representable("value", value, data.dtype)
    return data.masked_fill(~mask.reshape(mask.shape + (1,) * (data.dim() - mask.dim())), value)


def squeeze_except_batch_and_sample(data: RaggedBatch) -> RaggedBatch:
    """Remove data dimensions of size one; batch dimensions and the ragged dimension stay.

    Raises:
        TypeError: not a ragged batch.
    """
    if not isinstance(data, RaggedBatch):
        raise TypeError(f"squeeze_except_batch_and_sample takes a RaggedBatch, got {type(data).__name__}")
    keep = [
        d for d in range(data.dim()) if d <= data.num_batch_dims - 1 or d == data.non_uniform_dim or data.shape[d] != 1
    ]
    squeezed = data.tensor.reshape([data.shape[d] for d in keep])
    return data.create_with_sample_sizes_like_self(squeezed, keep.index(data.non_uniform_dim))


def get_compact_lists(*batches: RaggedBatch) -> tuple[list, ...]:
    """Per batch the (nested) list of cropped samples, see `RaggedBatch.split` (which reads the device).

    Raises:
        TypeError: not ragged batches.
    """
    for batch in batches:
        if not isinstance(batch, RaggedBatch):
            raise TypeError(f"get_compact_lists takes RaggedBatches, got {type(batch).__name__}")
    return tuple(batch.split() for batch in batches)


def get_compact_from_named_tuple(batches: Any) -> Any:
    """A named tuple of ragged batches as the same named tuple of lists (this reads the device); other fields stay as
    they are.

    Raises:
        TypeError: not a named tuple.
    """
    if not hasattr(batches, "_make"):
        raise TypeError(f"get_compact_from_named_tuple takes a named tuple, got {type(batches).__name__}")
    return batches._make(field.split() if isinstance(field, RaggedBatch) else field for field in batches)


def _kind(value: Any) -> str:
    return str(value.dtype) if isinstance(value, Tensor | RaggedBatch) else type(value).__name__


def _require_count(name: str, value: Any) -> None:
    if not isinstance(value, int | torch.SymInt | np.integer) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if value < 0:
        raise ValueError(f"{name} must not be negative, got {value}")
    if value > _MOST:
        raise ValueError(f"{name} must fit into 64 bits, got {value}")


def _check_filler(filler: Any, data: Tensor) -> None:
    if filler != 0:
        require_representable("filler", filler, data.dtype)


def _read_indices(indices: Data, name: str) -> tuple[Tensor, Tensor | None]:
    """Indices [*batch, K], and how many of them are valid [*batch] (None: all)."""
    if isinstance(indices, RaggedBatch):
        index: Any = indices.tensor
        if indices.non_uniform_dim != index.dim() - 1:
            raise ValueError(
                f"{name} must be ragged along their last dimension, got non_uniform_dim={indices.non_uniform_dim} of "
                f"{tuple(index.shape)}"
            )
        num_indices = _valid_rows(indices, indices.non_uniform_dim, index)
    else:
        index, num_indices = indices, None
        if not isinstance(index, Tensor):
            raise TypeError(f"{name} must be a tensor or RaggedBatch, got {type(index).__name__}")
    if index.dtype is not torch.int64 and index.dtype is not torch.int32:
        raise TypeError(f"{name} must be int32 or int64, got {index.dtype}")
    if index.dim() == 0:
        raise ValueError(f"{name} must be [*batch, K], got a scalar")
    return index, num_indices


def _read_mask(mask: Data) -> Tensor:
    """Mask [*batch, N]."""
    tensor = mask.tensor if isinstance(mask, RaggedBatch) else mask
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.bool:
        raise TypeError(f"mask must be a bool tensor or RaggedBatch, got {_kind(mask)}")
    if tensor.dim() == 0:
        raise ValueError("mask must be [*batch, N], got a scalar")
    return tensor


def _read_data(data: Data, index: Tensor, name: str) -> Tensor:
    """Tensor [*batch, N, ...], with the batch dimensions and the device of `index` [*batch, K]."""
    tensor = data.tensor if isinstance(data, RaggedBatch) else data
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor or RaggedBatch, got {type(tensor).__name__}")
    shape, wanted = tensor.shape, index.shape
    num = len(wanted) - 1
    if len(shape) <= num or (shape[0] != wanted[0] if num == 1 else shape[:num] != wanted[:num]):
        raise ValueError(
            f"{name} must be [*batch, N, ...] with the batch shape {tuple(wanted[:num])} of the indices (or mask), got "
            f"{tuple(shape)}"
        )
    if not (tensor.is_cpu and index.is_cpu) and tensor.device != index.device:
        raise ValueError(f"{name} must be on {index.device} like the indices (or mask), got {tensor.device}")
    return tensor


def _read_rows(data: Data, mask: Tensor, name: str) -> Tensor:
    """As `_read_data`, with one entry for each of `mask` [*batch, N]."""
    tensor, num = _read_data(data, mask, name), mask.dim() - 1
    if tensor.shape[num] != mask.shape[num]:
        raise ValueError(f"{name} must start with the shape {tuple(mask.shape)} of mask, got {tuple(tensor.shape)}")
    return tensor


def _valid_rows(data: Data, dim: int, index: Tensor) -> Tensor | None:
    """[*batch] valid entries along `dim` for every sample of `index` [*batch, K]; None: all."""
    if not isinstance(data, RaggedBatch) or data.non_uniform_dim > dim:
        return None  # filler along a later dimension is moved like any value, and stays filler
    num = index.dim() - 1
    if data.non_uniform_dim < dim:
        return _rows_outside_filler(data, dim, index.shape[:num])
    sizes = data.sample_sizes
    if sizes.dim() == num:
        return sizes
    if sizes.dim() > num:
        raise ValueError(f"data with the batch shape {tuple(sizes.shape)} need indices [*batch, K], got {index.shape}")
    return sizes.reshape(sizes.shape + (1,) * (num - sizes.dim())).expand(index.shape[:num])


def _rows_outside_filler(data: RaggedBatch, dim: int, batch_shape: torch.Size) -> Tensor | None:
    """[*batch]: all rows or none, where the ragged dimension is one of the batch dimensions of the indices."""
    ragged, batch_dims = data.non_uniform_dim, data.num_batch_dims
    if ragged >= len(batch_shape):
        return None
    shape = [1] * len(batch_shape)
    shape[:batch_dims], shape[ragged] = data.batch_shape, data.max_sample_size
    return (data.mask.reshape(shape) * data.shape[dim]).expand(batch_shape)


def _fewer(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The smaller of two sizes per sample; None: no limit."""
    if a is None or b is None or a is b:
        return b if a is None else a
    return torch.minimum(a, b)


def _check_range(index: Tensor, num_indices: Tensor | None, num_rows: Tensor | None, num: int, name: str) -> None:
    """IndexError for the first valid entry of `index` [*batch, K] outside [0, num_rows) (debug mode; reads the
    device)."""
    if not is_readable(index):
        return
    entries = torch.arange(index.shape[-1], device=index.device)
    limits = None if num_rows is None else num_rows.clamp(max=num)
    outside = (index < 0) | (index >= (num if limits is None else limits.unsqueeze(-1)))
    if num_indices is not None:
        outside &= entries < num_indices.unsqueeze(-1)
    if outside.any():
        *sample, entry = outside.nonzero()[0].tolist()
        where = sample[0] if len(sample) == 1 else tuple(sample)
        limit = num if limits is None else int(limits[tuple(sample)])
        value = int(index[(*sample, entry)])
        raise IndexError(f"{name} of sample {where}, entry {entry}: {value} is out of range for {limit} entries")


def _check_written(source: Tensor, target: Tensor, num: int, names: tuple[str, str]) -> None:
    if source.dtype != target.dtype:
        raise ValueError(f"{names[0]} must have the dtype {target.dtype} of {names[1]}, got {source.dtype}")
    shape, wanted = source.shape, target.shape
    if len(shape) != len(wanted) or (len(shape) > num + 1 and shape[num + 1 :] != wanted[num + 1 :]):
        raise ValueError(
            f"{names[0]} and {names[1]} must have the same shape after dimension {num}, got {tuple(shape)} and "
            f"{tuple(wanted)}"
        )


def _as(like: Data, tensor: Tensor) -> Data:
    """`tensor` as a ragged batch if `like` is one."""
    return (
        RaggedBatch.from_layout(tensor, like.layout, like.non_uniform_dim) if isinstance(like, RaggedBatch) else tensor
    )


def _written_batch(
    source: Data, source_indices: Data | None, target_indices: Data, into: Data, names: tuple[str, str, str, str]
) -> Data:
    return _as(into, _write(source, source_indices, target_indices, into, names))


def _write(
    source: Data,
    source_indices: Data | None,
    target_indices: Data,
    into: Data | None,
    names: tuple[str, str, str, str],
    num_targets: int = 0,
    filler: float = 0,
) -> Tensor:
    """out[i, target_indices[i, j]] = source[i, source_indices[i, j]] in a copy of `into`, or beside `filler`."""
    index, num_indices = _read_indices(target_indices, names[2])
    values = _read_data(source, index, names[0])
    _check_filler(filler, values)
    num = index.dim() - 1
    num_rows = _valid_rows(source, num, index)
    index_source = None
    if source_indices is None:
        have, wanted = values.shape[num], index.shape[num]
        if have != wanted:
            raise ValueError(f"{names[0]} and {names[2]} must have the same number of entries, got {have} and {wanted}")
    else:
        index_source, num_indices_source = _read_indices(source_indices, names[1])
        if index_source.shape != index.shape or index_source.device != index.device:
            raise ValueError(
                f"{names[1]} must be {tuple(index.shape)} on {index.device} like {names[2]}, got "
                f"{tuple(index_source.shape)} on {index_source.device}"
            )
        num_indices = _fewer(num_indices, num_indices_source)
        if debug_mode():
            _check_range(index_source, num_indices, num_rows, values.shape[num], names[1])
    target, num_targets_valid = None, None
    if into is not None:
        target = _read_data(into, index, names[3])
        _check_written(values, target, num, (names[0], names[3]))
        num_targets, num_targets_valid = target.shape[num], _valid_rows(into, num, index)
    if debug_mode():
        _check_range(index, num_indices, num_targets_valid, num_targets, names[2])
    return primitives.ragged_write(
        values, index_source, index, num_indices, num_rows, num_targets_valid, target, num_targets, filler
    )


def _positions(mask: Tensor, num_rows: Tensor | None, max_num: int | None) -> tuple[Tensor, Tensor]:
    """Positions [*batch, max_num] of the True entries of mask [*batch, N], and their number [*batch]."""
    if max_num is not None:
        _require_count("max_num", max_num)
    room = mask.shape[-1] if max_num is None else max_num
    indices, counts = primitives.ragged_indices_from_mask(mask, num_rows, room)
    if max_num is None:
        indices = indices[..., : int(counts.max()) if counts.numel() else 0].contiguous()
    return indices, counts


def _counted(tensor: Tensor, counts: Tensor, num: int) -> RaggedBatch:
    """[*batch, K, ...] with `counts` [*batch] valid entries."""
    return RaggedBatch.from_layout(tensor, Layout(counts, None, tensor.shape[num]), num)
