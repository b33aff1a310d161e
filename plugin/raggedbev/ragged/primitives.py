"""The primitive operators that every ragged helper is made of: move, add up, compact, fill.

In and out: canonical shapes, to which the helpers bring their data; any strides.

    data     [B, O, N, I]   B samples (batch dimensions flattened), O what lies between the batch and the ragged
                            dimension, N the ragged or indexed dimension, I what follows it
    indices  [B, K]         int32 or int64
    sizes    [B]            int32 or int64; None: everything is valid. Sizes outside [0, N] count as the nearer end.

Entry (b, k) of `indices` is valid when k < num_indices[b] and 0 <= indices[b, k] < num_rows[b]; every other entry is
filler: nothing is read or written for it, whatever its value. No operator reads the device, all are deterministic, and
each other's gradients: gather <-> scatter_add, sum <-> expand, fill -> fill. Half precision is added up in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raggedbev._extension import fold_into_batch, load_operator

Number = bool | int | float | complex

_HALF = (torch.float16, torch.bfloat16)


def ragged_gather(
    data: Tensor, indices: Tensor, num_indices: Tensor | None, num_rows: Tensor | None, filler: Number = 0
) -> Tensor:
    """out[b, :, k] = data[b, :, indices[b, k]], `filler` where the entry is not valid.

    Args:
        data: [B, O, N, I] of any dtype.
        indices: [B, K].
        num_indices: [B] entries of each sample.
        num_rows: [B] rows of each sample that may be read.
        filler: value of entries that are not valid; must be representable in the dtype.

    Returns:
        [B, O, K, I]. In the gradient duplicates add up (`ragged_scatter_add`).
    """
    return _gather(data, indices, num_indices, num_rows, filler)


def ragged_scatter_add(
    values: Tensor, indices: Tensor, num_indices: Tensor | None, num_rows: Tensor | None, num: int
) -> Tensor:
    """out[b, :, n] = sum of values[b, :, k] over the valid k with indices[b, k] = n, in ascending order of k.

    Args:
        values: [B, O, K, I] floating point; added up in float32 or wider.
        indices: [B, K].
        num_indices: [B] entries of each sample.
        num_rows: [B] rows of each sample that may be written to.
        num: N, rows of the result.

    Returns:
        [B, O, num, I], zero where nothing points. Its gradient is `ragged_gather`.
    """
    return _scatter_add(values, indices, num_indices, num_rows, num)


def ragged_write(
    source: Tensor,
    source_indices: Tensor | None,
    target_indices: Tensor,
    num_indices: Tensor | None,
    num_source: Tensor | None,
    num_targets_valid: Tensor | None,
    into: Tensor | None,
    num_targets: int,
    filler: Number = 0,
) -> tuple[Tensor, Tensor]:
    """out[b, target_indices[b, k]] = source[b, source_indices[b, k]]; of several such k the last one counts.

    Args:
        source: [B, S, I] of any dtype.
        source_indices: [B, K]; None: entry k reads row k.
        target_indices: [B, K].
        num_indices: [B] entries of each sample.
        num_source: [B] rows of each sample that may be read.
        num_targets_valid: [B] rows of each sample that may be written to.
        into: [B, T, I] what stands where nothing is written; None: `filler`.
        num_targets: T.
        filler: value of rows that are not written, without `into`.

    Returns:
        out [B, T, I], and the row [B, T] int64 of `source` that each row of it came from, -1 where nothing was
        written. An entry of which either index is not valid writes nothing. Gradients flow to `source` and to the rows
        of `into` that stay.
    """
    return _write(
        source, source_indices, target_indices, num_indices, num_source, num_targets_valid, into, num_targets, filler
    )


def ragged_mask_from_indices(indices: Tensor, num_indices: Tensor | None, num: int) -> Tensor:
    """[B, num] bool, True at (b, n) when a valid entry of `indices` [B, K] is n."""
    return _mask_from_indices(indices, num_indices, num)


def ragged_indices_from_mask(mask: Tensor, num_rows: Tensor | None, max_num: int) -> tuple[Tensor, Tensor]:
    """Positions of the True entries of each sample, in order.

    Args:
        mask: [B, N] bool.
        num_rows: [B] entries of each sample that count.
        max_num: room for that many positions; further ones are dropped.

    Returns:
        positions [B, max_num] int64, filler 0, and how many there are, [B] int64 (at most `max_num`).
    """
    return _indices_from_mask(mask, num_rows, max_num)


def ragged_fill(data: Tensor, sizes: Tensor, value: Number) -> Tensor:
    """A copy of `data` [B, O, N, I] with `value` in the rows n >= sizes[b]; their gradient is zero."""
    return _fill(data, sizes, value)


def ragged_sum(data: Tensor, sizes: Tensor) -> Tensor:
    """Sum over the rows n < sizes[b] of `data` [B, O, N, I]; other rows are not read.

    Returns:
        [B, O, I] in the dtype of `data`; float32 for half precision, int64 for integers and bool. Its gradient is
        `ragged_expand`.
    """
    return _sum(data, sizes)


def ragged_expand(values: Tensor, sizes: Tensor, num: int) -> Tensor:
    """`values` [B, O, I] repeated along a new ragged dimension: [B, O, num, I], zero in the rows n >= sizes[b]."""
    return _expand(values, sizes, num)


def ragged_pack_(out: Tensor, samples: Sequence[Tensor]) -> None:
    """Copy the samples [n_b, ...] into the first rows of out[b], [B, N, ...], and zeros into its other rows, in place.

    Samples may have any strides; dtype, device and trailing shape must be those of `out`, and n_b <= N. There is no
    gradient: none of the tensors may require one.

    Raises:
        ValueError: the samples do not fit into `out`.
    """
    _pack(out, list(samples))


def _below(sizes: Tensor | None, num: int, like: Tensor) -> Tensor:
    """[B, num] bool: n < sizes[b]."""
    steps = torch.arange(num, device=like.device)
    return (steps < like.shape[1]).expand(like.shape[0], num) if sizes is None else steps < sizes.unsqueeze(-1)


def _valid(indices: Tensor, num_indices: Tensor | None, num_rows: Tensor | None, num: int) -> Tensor:
    """[B, K] bool: which entries are valid."""
    valid = (indices >= 0) & (indices < num)
    if num_rows is not None:
        valid = valid & (indices < num_rows.unsqueeze(-1))
    return valid if num_indices is None else valid & _below(num_indices, indices.shape[1], indices)


def _take(data: Tensor, index: Tensor) -> Tensor:
    """Rows `index` [B, K], all of which exist, of data [B, O, N, I]; the gradient adds up in a fixed order."""
    if data.shape[2] == 0:  # a row to point at
        data = torch.cat([data, data.new_zeros((data.shape[0], data.shape[1], 1, data.shape[3]))], dim=2)
    wide = data.float() if data.dtype in _HALF else data
    if data.device.type == "cuda":  # there the gradient of gather adds in any order, that of an index does not
        sample = torch.arange(index.shape[0], device=index.device).unsqueeze(1)
        return wide.transpose(1, 2)[sample, index].transpose(1, 2).to(data.dtype)
    spread = index[:, None, :, None].expand(-1, data.shape[1], -1, data.shape[3])
    return wide.gather(2, spread).to(data.dtype)


def _gather_plain(
    data: Tensor, indices: Tensor, num_indices: Tensor | None, num_rows: Tensor | None, filler: Number
) -> Tensor:
    valid = _valid(indices, num_indices, num_rows, data.shape[2])
    found = _take(data, torch.where(valid, indices, 0).long())
    return found.masked_fill(~valid[:, None, :, None], filler)


def _gather_fake(
    data: Tensor, indices: Tensor, num_indices: Tensor | None, num_rows: Tensor | None, filler: Number
) -> Tensor:
    return data.new_empty((data.shape[0], data.shape[1], indices.shape[1], data.shape[3]))


def _scatter_add_plain(
    values: Tensor, indices: Tensor, num_indices: Tensor | None, num_rows: Tensor | None, num: int
) -> Tensor:
    valid = _valid(indices, num_indices, num_rows, num)
    slots = torch.where(valid, indices, num).long()  # what is not valid goes to a row of its own
    wide = values.float() if values.dtype in _HALF else values
    batch, outer, _, inner = values.shape
    if values.device.type == "cuda":
        sample = torch.arange(batch, device=slots.device).unsqueeze(1)
        zeros = wide.new_zeros((batch, num + 1, outer, inner))
        total = zeros.index_put((sample, slots), wide.transpose(1, 2), accumulate=True).transpose(1, 2)
    else:
        zeros = wide.new_zeros((batch, outer, num + 1, inner))
        total = zeros.scatter_add(2, slots[:, None, :, None].expand(-1, outer, -1, inner), wide)
    return total[:, :, :num].to(values.dtype).contiguous()


def _scatter_add_fake(
    values: Tensor, indices: Tensor, num_indices: Tensor | None, num_rows: Tensor | None, num: int
) -> Tensor:
    return values.new_empty((values.shape[0], values.shape[1], num, values.shape[3]))


def _last_entry(indices: Tensor, valid: Tensor, num: int) -> Tensor:
    """[B, num] int64: the last valid entry that points at each row, K where none does."""
    batch, count = indices.shape
    entries = torch.arange(count, device=indices.device).expand(batch, count)
    slots = torch.where(valid, indices, num).long()
    none = torch.full((batch, num + 1), -1, dtype=torch.long, device=indices.device)
    last = none.scatter_reduce(1, slots, entries, reduce="amax")[:, :num]
    return torch.where(last < 0, count, last)


def _write_plain(
    source: Tensor,
    source_indices: Tensor | None,
    target_indices: Tensor,
    num_indices: Tensor | None,
    num_source: Tensor | None,
    num_targets_valid: Tensor | None,
    into: Tensor | None,
    num_targets: int,
    filler: Number,
) -> tuple[Tensor, Tensor]:
    batch, count = target_indices.shape
    rows = torch.arange(count, device=source.device).expand(batch, count) if source_indices is None else source_indices
    valid = _valid(target_indices, num_indices, num_targets_valid, num_targets)
    valid = valid & _valid(rows, None, num_source, source.shape[1])
    none = torch.full((batch, 1), -1, dtype=torch.long, device=source.device)
    rows_or_none = torch.cat([rows.long(), none], dim=1)
    entry = rows_or_none.gather(1, _last_entry(target_indices, valid, num_targets))
    found = _take(source.unsqueeze(1), entry.clamp(min=0)).squeeze(1)
    written = (entry >= 0).unsqueeze(-1)
    if into is None:
        return found.masked_fill(~written, filler), entry
    return torch.where(written, found, into), entry


def _write_fake(
    source: Tensor,
    source_indices: Tensor | None,
    target_indices: Tensor,
    num_indices: Tensor | None,
    num_source: Tensor | None,
    num_targets_valid: Tensor | None,
    into: Tensor | None,
    num_targets: int,
    filler: Number,
) -> tuple[Tensor, Tensor]:
    out = source.new_empty((source.shape[0], num_targets, source.shape[2]))
    return out, source.new_empty((source.shape[0], num_targets), dtype=torch.long)


def _mask_from_indices_plain(indices: Tensor, num_indices: Tensor | None, num: int) -> Tensor:
    return _last_entry(indices, _valid(indices, num_indices, None, num), num) < indices.shape[1]


def _mask_from_indices_fake(indices: Tensor, num_indices: Tensor | None, num: int) -> Tensor:
    return indices.new_empty((indices.shape[0], num), dtype=torch.bool)


def _indices_from_mask_plain(mask: Tensor, num_rows: Tensor | None, max_num: int) -> tuple[Tensor, Tensor]:
    batch, num = mask.shape
    if num_rows is not None:
        mask = mask & _below(num_rows, num, mask)
    rank = mask.cumsum(-1) - 1
    slots = torch.where(mask & (rank < max_num), rank, max_num)
    positions = torch.arange(num, device=mask.device).expand(batch, num)
    none = torch.zeros((batch, max_num + 1), dtype=torch.long, device=mask.device)
    return none.scatter(1, slots, positions)[:, :max_num].contiguous(), mask.sum(-1).clamp(max=max_num)


def _indices_from_mask_fake(mask: Tensor, num_rows: Tensor | None, max_num: int) -> tuple[Tensor, Tensor]:
    counts = mask.new_empty((mask.shape[0],), dtype=torch.long)
    return mask.new_empty((mask.shape[0], max_num), dtype=torch.long), counts


def _fill_plain(data: Tensor, sizes: Tensor, value: Number) -> Tensor:
    return data.masked_fill(~_below(sizes, data.shape[2], data)[:, None, :, None], value)


def _fill_fake(data: Tensor, sizes: Tensor, value: Number) -> Tensor:
    return data.new_empty(data.shape)


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    if dtype in _HALF:
        return torch.float32
    return dtype if dtype.is_floating_point or dtype.is_complex else torch.int64


def _sum_plain(data: Tensor, sizes: Tensor) -> Tensor:
    return _fill_plain(data, sizes, 0).sum(2, dtype=_sum_dtype(data.dtype))


def _sum_fake(data: Tensor, sizes: Tensor) -> Tensor:
    return data.new_empty((data.shape[0], data.shape[1], data.shape[3]), dtype=_sum_dtype(data.dtype))


def _expand_plain(values: Tensor, sizes: Tensor, num: int) -> Tensor:
    valid = _below(sizes, num, values)[:, None, :, None]
    return values.unsqueeze(2).masked_fill(~valid, 0)


def _expand_fake(values: Tensor, sizes: Tensor, num: int) -> Tensor:
    return values.new_empty((values.shape[0], values.shape[1], num, values.shape[2]))


def _pack_plain(out: Tensor, samples: list[Tensor]) -> None:
    if out.dim() < 2 or out.shape[0] != len(samples):
        raise ValueError(f"out must be [{len(samples)}, N, ...] for {len(samples)} samples, got {tuple(out.shape)}")
    for b, sample in enumerate(samples):
        if sample.dtype != out.dtype or sample.device != out.device:
            raise ValueError(
                f"sample {b} must be {out.dtype} on {out.device} like out, got {sample.dtype} on {sample.device}"
            )
        if sample.dim() != out.dim() - 1 or sample.shape[1:] != out.shape[2:] or sample.shape[0] > out.shape[1]:
            raise ValueError(
                f"sample {b} must be [at most {out.shape[1]}, *{tuple(out.shape[2:])}], got {tuple(sample.shape)}"
            )
    for row, sample in zip(out, samples, strict=True):
        row[: sample.shape[0]].copy_(sample)
        row[sample.shape[0] :].zero_()


def _pack_fake(out: Tensor, samples: list[Tensor]) -> None:
    return None


_gather = load_operator("ragged_gather", fallback=_gather_plain, fake=_gather_fake, vmap=fold_into_batch)
_scatter_add = load_operator(
    "ragged_scatter_add", fallback=_scatter_add_plain, fake=_scatter_add_fake, vmap=fold_into_batch
)
_write = load_operator("ragged_write", fallback=_write_plain, fake=_write_fake, vmap=fold_into_batch)
_mask_from_indices = load_operator(
    "ragged_mask_from_indices",
    fallback=_mask_from_indices_plain,
    fake=_mask_from_indices_fake,
    vmap=fold_into_batch,
)
_indices_from_mask = load_operator(
    "ragged_indices_from_mask",
    fallback=_indices_from_mask_plain,
    fake=_indices_from_mask_fake,
    vmap=fold_into_batch,
)
_fill = load_operator("ragged_fill", fallback=_fill_plain, fake=_fill_fake, vmap=fold_into_batch)
_sum = load_operator("ragged_sum", fallback=_sum_plain, fake=_sum_fake, vmap=fold_into_batch)
_expand = load_operator("ragged_expand", fallback=_expand_plain, fake=_expand_fake, vmap=fold_into_batch)
_pack = load_operator("ragged_pack_", fallback=_pack_plain, fake=_pack_fake)
