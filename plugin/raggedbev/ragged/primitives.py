"""The primitive operators that every ragged helper is made of: move, write, add up, compact, fill.

In and out: tensors with the shapes that the helpers have, any strides; no views are made around an operator.

    data     [*batch, ..., N, ...]   N: the ragged or indexed dimension, at `dim`
    indices  [*batch, K]             int32 or int64; what is in front of K are the batch dimensions of a call
    sizes    [*batch]                int32 or int64; None: everything is valid. Sizes outside [0, N] count as the
                                     nearer end.

`dim` counts from the end (-1 is the last dimension), so that more batch dimensions in front change nothing. Entry k of
a sample's `indices` is valid when k < num_indices and 0 <= indices[k] < num_rows; every other entry is filler: nothing
is read or written for it, whatever its value. No operator reads the device, all are deterministic, and each other's
gradients: gather <-> scatter_add, write <-> write_backward, sum <-> expand, fill -> fill. Half precision is added up in
float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from raggedbev._extension import add_batch_dim, load_operator

Number = bool | int | float | complex

_HALF = (torch.float16, torch.bfloat16)


def ragged_gather(
    data: Tensor, indices: Tensor, num_indices: Tensor | None, num_rows: Tensor | None, filler: Number, dim: int
) -> Tensor:
    """Of each sample the rows that `indices` name, `filler` where the entry is not valid.

    Args:
        data: [*batch, ..., N, ...] of any dtype.
        indices: [*batch, K].
        num_indices: [*batch] entries of each sample.
        num_rows: [*batch] rows of each sample that may be read.
        filler: value of entries that are not valid; must be representable in the dtype.
        dim: where N is, from the end.

    Returns:
        [*batch, ..., K, ...]. In the gradient duplicates add up (`ragged_scatter_add`).
    """
    return _gather(data, indices, num_indices, num_rows, filler, dim)


def ragged_scatter_add(
    values: Tensor, indices: Tensor, num_indices: Tensor | None, num_rows: Tensor | None, num: int, dim: int
) -> Tensor:
    """Row n of each sample is the sum of its values k with indices[k] = n, in ascending order of k.

    Args:
        values: [*batch, ..., K, ...] floating point; added up in float32 or wider.
        indices: [*batch, K].
        num_indices: [*batch] entries of each sample.
        num_rows: [*batch] rows of each sample that may be written to.
        num: N, rows of the result.
        dim: where K is, from the end.

    Returns:
        [*batch, ..., num, ...], zero where nothing points. Its gradient is `ragged_gather`.
    """
    return _scatter_add(values, indices, num_indices, num_rows, num, dim)


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
) -> Tensor:
    """out[target_indices[k]] = source[source_indices[k]] in each sample; of several such k the last one counts.

    Args:
        source: [*batch, S, ...] of any dtype.
        source_indices: [*batch, K]; None: entry k reads row k.
        target_indices: [*batch, K].
        num_indices: [*batch] entries of each sample.
        num_source: [*batch] rows of each sample that may be read.
        num_targets_valid: [*batch] rows of each sample that may be written to.
        into: [*batch, T, ...] what stands where nothing is written; None: `filler`.
        num_targets: T.
        filler: value of rows that are not written, without `into`.

    Returns:
        [*batch, T, ...]. An entry of which either index is not valid writes nothing. Gradients flow to `source` and to
        the rows of `into` that stay (`ragged_write_backward`).
    """
    return _write(
        source, source_indices, target_indices, num_indices, num_source, num_targets_valid, into, num_targets, filler
    )


def ragged_write_backward(
    grad: Tensor,
    source_indices: Tensor | None,
    target_indices: Tensor,
    num_indices: Tensor | None,
    num_source: Tensor | None,
    num_targets_valid: Tensor | None,
    num: int,
    to_source: bool,
    to_into: bool,
) -> tuple[Tensor, Tensor]:
    """Where the rows of a result of `ragged_write` came from: its gradients, in one pass.

    Args:
        grad: [*batch, T, ...] floating point; added up in float32 or wider.
        source_indices: as they were written with, and so on.
        num: S, rows of the source.
        to_source: whether the first result is asked for.
        to_into: whether the second result is asked for.

    Returns:
        [*batch, S, ...] sums of the rows of `grad` that came from each row of the source, in ascending order of the
        entries k, and [*batch, T, ...] the rows of `grad` that nothing was written to, zero elsewhere. What is not
        asked for has no rows. The gradient is `ragged_write`.
    """
    return _write_backward(
        grad, source_indices, target_indices, num_indices, num_source, num_targets_valid, num, to_source, to_into
    )


def ragged_mask_from_indices(indices: Tensor, num_indices: Tensor | None, num: int) -> Tensor:
    """[*batch, num] bool, True where a valid entry of `indices` [*batch, K] points."""
    return _mask_from_indices(indices, num_indices, num)


def ragged_indices_from_mask(mask: Tensor, num_rows: Tensor | None, max_num: int) -> tuple[Tensor, Tensor]:
    """Positions of the True entries of each sample, in order.

    Args:
        mask: [*batch, N] bool.
        num_rows: [*batch] entries of each sample that count.
        max_num: room for that many positions; further ones are dropped.

    Returns:
        positions [*batch, max_num] int64, filler 0, and how many there are, [*batch] int64 (at most `max_num`).
    """
    return _indices_from_mask(mask, num_rows, max_num)


def ragged_fill(data: Tensor, sizes: Tensor, value: Number, dim: int) -> Tensor:
    """A copy of `data` [*batch, ..., N, ...] with `value` in the rows n >= sizes; their gradient is zero."""
    return _fill(data, sizes, value, dim)


def ragged_sum(data: Tensor, sizes: Tensor, dim: int) -> Tensor:
    """Sum over the rows n < sizes of `data` [*batch, ..., N, ...]; other rows are not read.

    Returns:
        [*batch, ..., ...] without N, in the dtype of `data`; float32 for half precision, int64 for integers and bool.
        Its gradient is `ragged_expand`.
    """
    return _sum(data, sizes, dim)


def ragged_expand(values: Tensor, sizes: Tensor, num: int, dim: int) -> Tensor:
    """`values` repeated along a new ragged dimension at `dim` of the result, with `num` rows: zero in the rows
    n >= sizes."""
    return _expand(values, sizes, num, dim)


def ragged_pack_(out: Tensor, samples: Sequence[Tensor]) -> None:
    """Copy the samples [n_b, ...] into the first rows of out[b], [B, N, ...], and zeros into its other rows, in place.

    Samples may have any strides; dtype, device and trailing shape must be those of `out`, and n_b <= N. There is no
    gradient: none of the tensors may require one.

    Raises:
        ValueError: the samples do not fit into `out`.
    """
    _pack(out, list(samples))


# -- plain torch and shapes --------------------------------------------------------------------------------------------


def _with_rows(tensor: Tensor, dim: int, num: int) -> list[int]:
    """The shape of `tensor` with `num` rows at `dim`."""
    shape = list(tensor.shape)
    shape[dim] = num
    return shape


def _fold(tensor: Tensor, num_batch_dims: int, dim: int) -> Tensor:
    """[*batch, ..., N, ...] as [B, O, N, I]."""
    shape, position = tensor.shape, dim + tensor.dim()
    outer = prod(shape[num_batch_dims:position])
    return tensor.reshape(prod(shape[:num_batch_dims]), outer, shape[position], prod(shape[position + 1 :]))


def _flat(tensor: Tensor, own_dims: int) -> Tensor:
    """[*batch, own dimensions] as [B, own dimensions]."""
    shape = tensor.shape
    num = len(shape) - own_dims
    return tensor.reshape(prod(shape[:num]), *shape[num:])


def _flat_sizes(sizes: Tensor | None) -> Tensor | None:
    return None if sizes is None else sizes.reshape(-1)


def _below(sizes: Tensor, num: int, like: Tensor) -> Tensor:
    """[*batch, num] bool: n < sizes."""
    return torch.arange(num, device=like.device) < sizes.unsqueeze(-1)


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
    data: Tensor, indices: Tensor, num_indices: Tensor | None, num_rows: Tensor | None, filler: Number, dim: int
) -> Tensor:
    folded, index = _fold(data, indices.dim() - 1, dim), _flat(indices, 1)
    valid = _valid(index, _flat_sizes(num_indices), _flat_sizes(num_rows), folded.shape[2])
    found = _take(folded, torch.where(valid, index, 0).long()).masked_fill(~valid[:, None, :, None], filler)
    return found.reshape(_with_rows(data, dim, indices.shape[-1]))


def _gather_fake(
    data: Tensor, indices: Tensor, num_indices: Tensor | None, num_rows: Tensor | None, filler: Number, dim: int
) -> Tensor:
    return data.new_empty(_with_rows(data, dim, indices.shape[-1]))


def _scatter_add_folded(values: Tensor, index: Tensor, valid: Tensor, num: int) -> Tensor:
    """[B, O, num, I] from values [B, O, K, I] and index [B, K]."""
    slots = torch.where(valid, index, num).long()  # what is not valid goes to a row of its own
    wide = values.float() if values.dtype in _HALF else values
    batch, outer, _, inner = values.shape
    if values.device.type == "cuda":
        sample = torch.arange(batch, device=slots.device).unsqueeze(1)
        zeros = wide.new_zeros((batch, num + 1, outer, inner))
        total = zeros.index_put((sample, slots), wide.transpose(1, 2), accumulate=True).transpose(1, 2)
    else:
        zeros = wide.new_zeros((batch, outer, num + 1, inner))
        total = zeros.scatter_add(2, slots[:, None, :, None].expand(-1, outer, -1, inner), wide)
    return total[:, :, :num].to(values.dtype)


def _scatter_add_plain(
    values: Tensor, indices: Tensor, num_indices: Tensor | None, num_rows: Tensor | None, num: int, dim: int
) -> Tensor:
    folded, index = _fold(values, indices.dim() - 1, dim), _flat(indices, 1)
    valid = _valid(index, _flat_sizes(num_indices), _flat_sizes(num_rows), num)
    return _scatter_add_folded(folded, index, valid, num).reshape(_with_rows(values, dim, num)).contiguous()


def _scatter_add_fake(
    values: Tensor, indices: Tensor, num_indices: Tensor | None, num_rows: Tensor | None, num: int, dim: int
) -> Tensor:
    return values.new_empty(_with_rows(values, dim, num))


def _last_entry(indices: Tensor, valid: Tensor, num: int) -> Tensor:
    """[B, num] int64: the last valid entry that points at each row, K where none does."""
    batch, count = indices.shape
    entries = torch.arange(count, device=indices.device).expand(batch, count)
    slots = torch.where(valid, indices, num).long()
    none = torch.full((batch, num + 1), -1, dtype=torch.long, device=indices.device)
    last = none.scatter_reduce(1, slots, entries, reduce="amax")[:, :num]
    return torch.where(last < 0, count, last)


def _source_of_target(
    source_indices: Tensor | None,
    target_indices: Tensor,
    num_indices: Tensor | None,
    num_source: Tensor | None,
    num_targets_valid: Tensor | None,
    num: int,
    num_targets: int,
) -> Tensor:
    """[B, num_targets] int64: the row of the source, of `num`, that is written to each target, -1 where none is."""
    targets = _flat(target_indices, 1)
    batch, count = targets.shape
    every = torch.arange(count, device=targets.device).expand(batch, count)
    rows = every if source_indices is None else _flat(source_indices, 1)
    valid = _valid(targets, _flat_sizes(num_indices), _flat_sizes(num_targets_valid), num_targets)
    valid = valid & _valid(rows, None, _flat_sizes(num_source), num)
    none = torch.full((batch, 1), -1, dtype=torch.long, device=targets.device)
    return torch.cat([rows.long(), none], dim=1).gather(1, _last_entry(targets, valid, num_targets))


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
) -> Tensor:
    num = target_indices.dim() - 1
    dim = num - source.dim()
    row = _source_of_target(
        source_indices, target_indices, num_indices, num_source, num_targets_valid, source.shape[num], num_targets
    )
    found = _take(_fold(source, num, dim), row.clamp(min=0)).reshape(_with_rows(source, dim, num_targets))
    written = (row >= 0).reshape(*found.shape[: num + 1], *[1] * (-dim - 1))
    return found.masked_fill(~written, filler) if into is None else torch.where(written, found, into)


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
) -> Tensor:
    return source.new_empty(_with_rows(source, target_indices.dim() - 1, num_targets))


def _write_backward_plain(
    grad: Tensor,
    source_indices: Tensor | None,
    target_indices: Tensor,
    num_indices: Tensor | None,
    num_source: Tensor | None,
    num_targets_valid: Tensor | None,
    num: int,
    to_source: bool,
    to_into: bool,
) -> tuple[Tensor, Tensor]:
    batch_dims = target_indices.dim() - 1
    dim = batch_dims - grad.dim()
    folded = _fold(grad, batch_dims, dim)
    row = _source_of_target(
        source_indices, target_indices, num_indices, num_source, num_targets_valid, num, folded.shape[2]
    )
    source, into = grad.new_empty(_with_rows(grad, dim, 0)), grad.new_empty(_with_rows(grad, dim, 0))
    if to_source:
        source = _scatter_add_folded(folded, row, row >= 0, num).reshape(_with_rows(grad, dim, num)).contiguous()
    if to_into:
        into = folded.masked_fill((row >= 0)[:, None, :, None], 0).reshape(grad.shape)
    return source, into


def _write_backward_fake(
    grad: Tensor,
    source_indices: Tensor | None,
    target_indices: Tensor,
    num_indices: Tensor | None,
    num_source: Tensor | None,
    num_targets_valid: Tensor | None,
    num: int,
    to_source: bool,
    to_into: bool,
) -> tuple[Tensor, Tensor]:
    dim = target_indices.dim() - 1
    into = _with_rows(grad, dim, grad.shape[dim] if to_into else 0)
    return grad.new_empty(_with_rows(grad, dim, num if to_source else 0)), grad.new_empty(into)


def _mask_from_indices_plain(indices: Tensor, num_indices: Tensor | None, num: int) -> Tensor:
    index = _flat(indices, 1)
    last = _last_entry(index, _valid(index, _flat_sizes(num_indices), None, num), num)
    return (last < index.shape[1]).reshape(_with_rows(indices, -1, num))


def _mask_from_indices_fake(indices: Tensor, num_indices: Tensor | None, num: int) -> Tensor:
    return indices.new_empty(_with_rows(indices, -1, num), dtype=torch.bool)


def _indices_from_mask_plain(mask: Tensor, num_rows: Tensor | None, max_num: int) -> tuple[Tensor, Tensor]:
    if num_rows is not None:
        mask = mask & _below(num_rows, mask.shape[-1], mask)
    rank = mask.cumsum(-1) - 1
    slots = torch.where(mask & (rank < max_num), rank, max_num)
    positions = torch.arange(mask.shape[-1], device=mask.device).expand(mask.shape)
    none = torch.zeros(_with_rows(mask, -1, max_num + 1), dtype=torch.long, device=mask.device)
    return none.scatter(-1, slots, positions)[..., :max_num].contiguous(), mask.sum(-1).clamp(max=max_num)


def _indices_from_mask_fake(mask: Tensor, num_rows: Tensor | None, max_num: int) -> tuple[Tensor, Tensor]:
    counts = mask.new_empty(mask.shape[:-1], dtype=torch.long)
    return mask.new_empty(_with_rows(mask, -1, max_num), dtype=torch.long), counts


def _fill_plain(data: Tensor, sizes: Tensor, value: Number, dim: int) -> Tensor:
    folded = _fold(data, sizes.dim(), dim)
    valid = _below(sizes.reshape(-1), folded.shape[2], folded)[:, None, :, None]
    return folded.masked_fill(~valid, value).reshape(data.shape)


def _fill_fake(data: Tensor, sizes: Tensor, value: Number, dim: int) -> Tensor:
    return data.new_empty(data.shape)


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    if dtype in _HALF:
        return torch.float32
    return dtype if dtype.is_floating_point or dtype.is_complex else torch.int64


def _sum_plain(data: Tensor, sizes: Tensor, dim: int) -> Tensor:
    return _fill_plain(data, sizes, 0, dim).sum(dim, dtype=_sum_dtype(data.dtype))


def _sum_fake(data: Tensor, sizes: Tensor, dim: int) -> Tensor:
    shape = list(data.shape)
    del shape[dim]
    return data.new_empty(shape, dtype=_sum_dtype(data.dtype))


def _expand_plain(values: Tensor, sizes: Tensor, num: int, dim: int) -> Tensor:
    single = values.unsqueeze(dim)
    return _fill_plain(single.expand(_with_rows(single, dim, num)), sizes, 0, dim)


def _expand_fake(values: Tensor, sizes: Tensor, num: int, dim: int) -> Tensor:
    shape = list(values.shape)
    shape.insert(len(shape) + 1 + dim, num)
    return values.new_empty(shape)


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


_gather = load_operator("ragged_gather", fallback=_gather_plain, fake=_gather_fake, vmap=add_batch_dim)
_scatter_add = load_operator(
    "ragged_scatter_add", fallback=_scatter_add_plain, fake=_scatter_add_fake, vmap=add_batch_dim
)
_write = load_operator("ragged_write", fallback=_write_plain, fake=_write_fake, vmap=add_batch_dim)
_write_backward = load_operator(
    "ragged_write_backward", fallback=_write_backward_plain, fake=_write_backward_fake, vmap=add_batch_dim
)
_mask_from_indices = load_operator(
    "ragged_mask_from_indices",
    fallback=_mask_from_indices_plain,
    fake=_mask_from_indices_fake,
    vmap=add_batch_dim,
)
_indices_from_mask = load_operator(
    "ragged_indices_from_mask",
    fallback=_indices_from_mask_plain,
    fake=_indices_from_mask_fake,
    vmap=add_batch_dim,
)
_fill = load_operator("ragged_fill", fallback=_fill_plain, fake=_fill_fake, vmap=add_batch_dim)
_sum = load_operator("ragged_sum", fallback=_sum_plain, fake=_sum_fake, vmap=add_batch_dim)
_expand = load_operator("ragged_expand", fallback=_expand_plain, fake=_expand_fake, vmap=add_batch_dim)
_pack = load_operator("ragged_pack_", fallback=_pack_plain, fake=_pack_fake)
