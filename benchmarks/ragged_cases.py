"""What benchmarks/ragged.py times: per helper this package, and compositions of torch operations that do the same.

In: sizes of a problem. Out: cases, each with arms that return the same tensor. The compositions get what helps them:
masks and row numbers are made beforehand, index filler is known to be 0, indices are known to be in range, and fresh
results are masked in place. On the CPU they may also use boolean indexing, which on an accelerator would wait for the
device. Filler of the data is NaN, and must not reach a result or a gradient.

Shapes: B samples, G objects (padded), P predictions, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from raggedbev import (
    RaggedBatch,
    average_over_targets,
    batched_bool_indexing,
    batched_bool_indexing_write,
    batched_index_mapping,
    batched_indexing_access,
    batched_indexing_write,
    batched_inverse_indexing_access,
    combine_data,
    get_indices_from_mask,
    get_mask_from_indices,
    sum_over_targets,
)

OURS = "raggedbev"
PREDICTIONS_PER_OBJECT = 3  # as 900 queries for 300 objects
INDEX_BYTES = 8

Arms = dict[str, Callable[[], Tensor]]


@dataclass(frozen=True)
class Case:
    """One helper on one problem.

    Attributes:
        name: the helper, with what is particular in brackets.
        arms: what is timed, by name; `OURS` is this package.
        inputs: tensors that the backward pass gives gradients to; empty where there is none.
        forward_bytes: what has to be read and written at least.
        backward_bytes: the same for the backward pass.
        baseline: the arm that ratios refer to; none: the fastest composition.
        on_host: whether the data start on the host, so that wall time counts on an accelerator too.
    """

    name: str
    arms: Arms
    inputs: tuple[Tensor, ...]
    forward_bytes: int
    backward_bytes: int = 0
    baseline: str | None = None
    on_host: bool = False


@dataclass(frozen=True)
class Problem:
    """Made-up data of one size; everything on one device. Data tensors require a gradient."""

    sizes: Tensor  # [B], at least one sample is full
    mask: Tensor  # [B, G]
    index: Tensor  # [B, G] int64, different predictions within a sample, filler 0
    repeated: Tensor  # [B, G] int64, a tenth as many different predictions, filler 0
    classes: Tensor  # [B, G] int64 in [0, C), filler 0
    selected: Tensor  # [B, P] bool, as many True as there are objects
    dense: Tensor  # [B, P, C]
    target: Tensor  # [B, P, C]
    values: Tensor  # [B, G, C], filler NaN
    objects_like: RaggedBatch  # [B, G], whose sizes and mask all ragged batches of the problem share
    num_valid: int  # objects of the batch

    @property
    def batch(self) -> int:
        return self.mask.shape[0]

    @property
    def objects(self) -> int:
        return self.mask.shape[1]

    @property
    def predictions(self) -> int:
        return self.dense.shape[1]

    @property
    def channels(self) -> int:
        return self.dense.shape[2]

    @property
    def device(self) -> torch.device:
        return self.dense.device

    def ragged(self, tensor: Tensor) -> RaggedBatch:
        """A tensor [B, G, ...] with the sizes of the problem; sizes and mask are shared."""
        return self.objects_like.create_with_sample_sizes_like_self(tensor)

    def row_bytes(self, rows: int) -> int:
        """Bytes of that many rows of C channels."""
        return rows * self.channels * self.dense.element_size()


def make_problem(
    batch: int, objects: int, channels: int, device: str | torch.device, dtype: torch.dtype, seed: int = 0
) -> Problem:
    """Data drawn from the seed, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    shape, predictions = (batch, objects), objects * PREDICTIONS_PER_OBJECT
    sizes = torch.randint(0, objects + 1, (batch,), generator=generator)
    sizes[0] = objects
    mask = torch.arange(objects) < sizes.unsqueeze(1)
    index = torch.rand(batch, predictions, generator=generator).argsort(1)[:, :objects]
    repeated = torch.randint(0, max(predictions // 10, 1), shape, generator=generator)
    classes = torch.randint(0, channels, shape, generator=generator)
    selected = torch.zeros(batch, predictions, dtype=torch.bool)
    selected[torch.arange(batch).unsqueeze(1).expand(shape)[mask], index[mask]] = True
    dense, target, values = (
        torch.randn(batch, rows, channels, generator=generator) for rows in (predictions, predictions, objects)
    )
    values[~mask] = float("nan")
    like = RaggedBatch(mask, sample_sizes=sizes).to_device(device)
    return Problem(
        sizes=like.sample_sizes,
        mask=like.mask,
        index=torch.where(mask, index, 0).to(device),
        repeated=torch.where(mask, repeated, 0).to(device),
        classes=torch.where(mask, classes, 0).to(device),
        selected=selected.to(device),
        dense=dense.to(device, dtype).requires_grad_(),
        target=target.to(device, dtype).requires_grad_(),
        values=values.to(device, dtype).requires_grad_(),
        objects_like=like,
        num_valid=int(sizes.sum()),
    )


class Constants:
    """What a composition may prepare, since it depends on sizes and shapes only."""

    def __init__(self, p: Problem) -> None:
        self.filler = ~p.mask.unsqueeze(-1)  # [B, G, 1]
        self.samples = torch.arange(p.batch, device=p.device).unsqueeze(1)  # [B, 1]
        self.first_row = self.samples * p.predictions  # [B, 1]
        self.entries = torch.arange(p.objects, device=p.device).expand(p.batch, -1)  # [B, G]
        self.positions = torch.arange(p.predictions, device=p.device).expand(p.batch, -1)  # [B, P]
        self.may_sync = p.device.type == "cpu"


def spread(index: Tensor, channels: int) -> Tensor:
    """[B, K] -> [B, K, C] as `gather` and `scatter` want it."""
    return index.unsqueeze(-1).expand(-1, -1, channels)


def make_cases(p: Problem) -> list[Case]:
    """All cases of one problem."""
    c = Constants(p)
    return [
        access(p, c, "batched_indexing_access", p.index),
        access(p, c, "batched_indexing_access [repeated indices]", p.repeated),
        access_columns(p, c),
        inverse_access(p, c),
        write(p, c),
        mapping(p, c),
        mask_from_indices(p, c),
        indices_from_mask(p, c),
        bool_indexing(p, c),
        bool_indexing_write(p, c),
        total(p, c),
        average(p, c),
        fill(p, c),
    ]


# -- gathering and scattering --------------------------------------------------------------------------------------


def access(p: Problem, c: Constants, name: str, index: Tensor) -> Case:
    data, ragged_index, shape = p.dense, p.ragged(index), (p.batch, p.objects, p.channels)

    def rows() -> Tensor:
        return (index + c.first_row).flatten()

    arms: Arms = {
        OURS: lambda: batched_indexing_access(data, ragged_index).tensor,
        "gather": lambda: data.gather(1, spread(index, p.channels)).masked_fill_(c.filler, 0),
        "index_select": lambda: data.flatten(0, 1).index_select(0, rows()).view(shape).masked_fill_(c.filler, 0),
        "embedding": lambda: F.embedding(rows(), data.flatten(0, 1)).view(shape).masked_fill_(c.filler, 0),
        "advanced indexing": lambda: data[c.samples, index].masked_fill_(c.filler, 0),
    }
    indices = p.num_valid * INDEX_BYTES
    forward = p.row_bytes(p.num_valid) + p.row_bytes(p.batch * p.objects) + indices
    backward = p.row_bytes(p.num_valid) + p.row_bytes(p.batch * p.predictions) + indices
    return Case(name, arms, (data,), forward, backward)


def access_columns(p: Problem, c: Constants) -> Case:
    """Class costs [B, P, G] from probabilities [B, P, C]."""
    data, index = p.dense, p.classes
    ragged_index, filler = p.ragged(index), c.filler.transpose(1, 2)

    def wide() -> Tensor:
        return index.unsqueeze(1).expand(-1, p.predictions, -1)

    arms: Arms = {
        OURS: lambda: batched_indexing_access(data, ragged_index, dim_to_index_in=2).tensor,
        "gather": lambda: data.gather(2, wide()).masked_fill_(filler, 0),
        "gather, where": lambda: torch.where(filler, 0, data.gather(2, wide())),
    }
    element = data.element_size()
    found = p.num_valid * p.predictions * element
    room = p.batch * p.predictions * p.objects * element
    every = p.row_bytes(p.batch * p.predictions)
    indices = p.num_valid * INDEX_BYTES
    return Case("batched_indexing_access [dimension 2]", arms, (data,), found + room + indices, found + every + indices)


def inverse_access(p: Problem, c: Constants) -> Case:
    data, ragged_data, ragged_index = p.values, p.ragged(p.values), p.ragged(p.index)

    def room() -> Tensor:  # one row more, for the filler
        return data.new_zeros(p.batch, p.predictions + 1, p.channels)

    def slots() -> Tensor:
        return torch.where(p.mask, p.index, p.predictions)

    def flat() -> Tensor:
        return (slots() + c.samples * (p.predictions + 1)).flatten()

    def index_copy() -> Tensor:
        out = room().flatten(0, 1).index_copy_(0, flat(), data.flatten(0, 1))
        return out.view(p.batch, -1, p.channels)[:, : p.predictions]

    def nonzero() -> Tensor:
        sample, entry = p.mask.nonzero(as_tuple=True)
        out = data.new_zeros(p.batch, p.predictions, p.channels)
        return out.index_put_((sample, p.index[sample, entry]), data[sample, entry])

    arms: Arms = {
        OURS: lambda: batched_inverse_indexing_access(ragged_data, ragged_index, p.predictions),
        "scatter": lambda: room().scatter_(1, spread(slots(), p.channels), data)[:, : p.predictions],
        "index_put": lambda: room().index_put_((c.samples, slots()), data)[:, : p.predictions],
        "index_copy": index_copy,
    }
    if c.may_sync:
        arms["nonzero, index_put"] = nonzero
    valid, indices = p.row_bytes(p.num_valid), p.num_valid * INDEX_BYTES
    forward = valid + p.row_bytes(p.batch * p.predictions) + indices
    backward = valid + p.row_bytes(p.batch * p.objects) + indices
    return Case("batched_inverse_indexing_access", arms, (data,), forward, backward)


def source_of_target(p: Problem, c: Constants, index: Tensor, numbers: Tensor) -> Tensor:
    """[B, P] int64: `numbers` [B, G] at the positions that `index` names, -1 elsewhere."""
    room = torch.full((p.batch, p.predictions + 1), -1, device=p.device)
    return room.scatter_(1, torch.where(p.mask, index, p.predictions), numbers)[:, : p.predictions]


def take_or_keep(values: Tensor, source: Tensor, into: Tensor) -> Tensor:
    """values[b, source[b, t]] where that is not negative, else `into`."""
    found = values.gather(1, spread(source.clamp(min=0), values.shape[-1]))
    return torch.where((source >= 0).unsqueeze(-1), found, into)


def write(p: Problem, c: Constants) -> Case:
    data, into = p.values, p.target
    ragged_data, ragged_index = p.ragged(data), p.ragged(p.index)

    def padded_scatter() -> Tensor:
        slots = torch.where(p.mask, p.index, p.predictions)
        return F.pad(into, (0, 0, 0, 1)).scatter_(1, spread(slots, p.channels), data)[:, : p.predictions]

    def nonzero() -> Tensor:
        sample, entry = p.mask.nonzero(as_tuple=True)
        return into.index_put((sample, p.index[sample, entry]), data[sample, entry])

    arms: Arms = {
        OURS: lambda: batched_indexing_write(ragged_data, ragged_index, into),
        "pad, scatter": padded_scatter,
        "entry of target, gather, where": lambda: take_or_keep(data, source_of_target(p, c, p.index, c.entries), into),
    }
    if c.may_sync:
        arms["nonzero, index_put"] = nonzero
    every, indices = p.row_bytes(p.batch * p.predictions), p.num_valid * INDEX_BYTES
    return Case(
        "batched_indexing_write",
        arms,
        (data, into),
        2 * every + indices,  # each target comes from one place
        2 * every + p.row_bytes(p.batch * p.objects) + indices,
    )


def mapping(p: Problem, c: Constants) -> Case:
    source, into, sources, targets = p.dense, p.target, p.repeated, p.index
    ragged_sources, ragged_targets = p.ragged(sources), p.ragged(targets)

    def padded_scatter() -> Tensor:
        found = source.gather(1, spread(sources, p.channels))
        slots = torch.where(p.mask, targets, p.predictions)
        return F.pad(into, (0, 0, 0, 1)).scatter_(1, spread(slots, p.channels), found)[:, : p.predictions]

    def nonzero() -> Tensor:
        sample, entry = p.mask.nonzero(as_tuple=True)
        return into.index_put((sample, targets[sample, entry]), source[sample, sources[sample, entry]])

    arms: Arms = {
        OURS: lambda: batched_index_mapping(source, ragged_sources, ragged_targets, into),
        "gather, pad, scatter": padded_scatter,
        "source of target, gather, where": lambda: take_or_keep(source, source_of_target(p, c, targets, sources), into),
    }
    if c.may_sync:
        arms["nonzero, index_put"] = nonzero
    every, indices = p.row_bytes(p.batch * p.predictions), 2 * p.num_valid * INDEX_BYTES
    return Case("batched_index_mapping", arms, (source, into), 2 * every + indices, 3 * every + indices)


# -- masks ---------------------------------------------------------------------------------------------------------


def mask_from_indices(p: Problem, c: Constants) -> Case:
    ragged_index, num = p.ragged(p.index), p.predictions

    def room() -> Tensor:
        return torch.zeros(p.batch, num + 1, dtype=torch.bool, device=p.device)

    def nonzero() -> Tensor:
        out = torch.zeros(p.batch, num, dtype=torch.bool, device=p.device)
        out[c.samples.expand_as(p.index)[p.mask], p.index[p.mask]] = True
        return out

    arms: Arms = {
        OURS: lambda: get_mask_from_indices(num, ragged_index),
        "scatter": lambda: room().scatter_(1, torch.where(p.mask, p.index, num), True)[:, :num],
    }
    if c.may_sync:
        arms["boolean indexing"] = nonzero
    return Case("get_mask_from_indices", arms, (), p.num_valid * INDEX_BYTES + p.batch * num)


def positions_by_rank(p: Problem, c: Constants) -> Tensor:
    """[B, K] positions of the True entries of `selected` in order, 0 in the filler."""
    slots = torch.where(p.selected, p.selected.cumsum(1) - 1, p.objects)
    room = torch.zeros(p.batch, p.objects + 1, dtype=torch.long, device=p.device)
    return room.scatter_(1, slots, c.positions)[:, : p.objects]


def positions_by_sort(p: Problem, c: Constants) -> Tensor:
    order = p.selected.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, : p.objects]
    return order.masked_fill(~found_mask(p, c), 0)


def found_mask(p: Problem, c: Constants) -> Tensor:
    """[B, K] True for as many entries as `selected` has."""
    return c.entries < p.selected.sum(1, keepdim=True)


def indices_from_mask(p: Problem, c: Constants) -> Case:
    def nonzero() -> Tensor:
        out = torch.zeros(p.batch, p.objects, dtype=torch.long, device=p.device)
        out[found_mask(p, c)] = p.selected.nonzero(as_tuple=True)[1]
        return out

    arms: Arms = {
        OURS: lambda: get_indices_from_mask(p.selected, p.objects).tensor,
        "cumsum, scatter": lambda: positions_by_rank(p, c),
        "sort": lambda: positions_by_sort(p, c),
    }
    if c.may_sync:
        arms["nonzero"] = nonzero
    return Case("get_indices_from_mask", arms, (), p.batch * p.predictions + p.batch * p.objects * INDEX_BYTES)


def bool_indexing(p: Problem, c: Constants) -> Case:
    data = p.dense

    def take(positions: Callable[[Problem, Constants], Tensor]) -> Tensor:
        found = data.gather(1, spread(positions(p, c), p.channels))
        return found.masked_fill_(~found_mask(p, c).unsqueeze(-1), 0)

    def boolean() -> Tensor:
        out = data.new_zeros(p.batch, p.objects, p.channels)
        out[found_mask(p, c)] = data[p.selected]
        return out

    arms: Arms = {
        OURS: lambda: batched_bool_indexing(data, p.selected, p.objects).tensor,
        "cumsum, scatter, gather": lambda: take(positions_by_rank),
        "sort, gather": lambda: take(positions_by_sort),
    }
    if c.may_sync:
        arms["boolean indexing"] = boolean
    valid, mask = p.row_bytes(p.num_valid), p.batch * p.predictions
    forward = valid + p.row_bytes(p.batch * p.objects) + mask
    backward = valid + p.row_bytes(p.batch * p.predictions) + mask
    return Case("batched_bool_indexing", arms, (data,), forward, backward)


def bool_indexing_write(p: Problem, c: Constants) -> Case:
    data, into = p.values, p.target
    ragged_data = p.ragged(data)

    def by_rank() -> Tensor:
        rank = (p.selected.cumsum(1) - 1).clamp_(min=0)
        return torch.where(p.selected.unsqueeze(-1), data.gather(1, spread(rank, p.channels)), into)

    def boolean() -> Tensor:
        out = into.clone()
        out[p.selected] = data[p.mask]
        return out

    arms: Arms = {
        OURS: lambda: batched_bool_indexing_write(ragged_data, p.selected, into),
        "cumsum, gather, where": by_rank,
    }
    if c.may_sync:
        arms["boolean indexing"] = boolean
        arms["masked_scatter"] = lambda: into.masked_scatter(p.selected.unsqueeze(-1), data[p.mask])
    every, mask = p.row_bytes(p.batch * p.predictions), p.batch * p.predictions
    backward = 2 * every + p.row_bytes(p.batch * p.objects) + mask
    return Case("batched_bool_indexing_write", arms, (data, into), 2 * every + mask, backward)


# -- reductions ----------------------------------------------------------------------------------------------------


def total(p: Problem, c: Constants) -> Case:
    data, ragged_data = p.values, p.ragged(p.values)
    arms: Arms = {
        OURS: lambda: sum_over_targets(ragged_data),
        "masked_fill, sum": lambda: data.masked_fill(c.filler, 0).sum(1),
        "where, sum": lambda: torch.where(c.filler, 0, data).sum(1),
    }
    return Case("sum_over_targets", arms, (data,), *reduction_bytes(p))


def average(p: Problem, c: Constants) -> Case:
    data, ragged_data = p.values, p.ragged(p.values)

    def divisor() -> Tensor:
        return p.sizes.clamp(min=1).unsqueeze(-1)

    arms: Arms = {
        OURS: lambda: average_over_targets(ragged_data),
        "masked_fill, sum, divide": lambda: data.masked_fill(c.filler, 0).sum(1) / divisor(),
        "where, sum, divide": lambda: torch.where(c.filler, 0, data).sum(1) / divisor(),
    }
    return Case("average_over_targets", arms, (data,), *reduction_bytes(p))


def reduction_bytes(p: Problem) -> tuple[int, int]:
    per_sample = p.row_bytes(p.batch)
    return p.row_bytes(p.num_valid) + per_sample, per_sample + p.row_bytes(p.batch * p.objects)


def fill(p: Problem, c: Constants) -> Case:
    data, ragged_data = p.values, p.ragged(p.values)
    arms: Arms = {
        OURS: lambda: ragged_data.with_padded_set_to(0).tensor,
        "masked_fill": lambda: data.masked_fill(c.filler, 0),
        "where": lambda: torch.where(c.filler, 0, data),
    }
    moved = p.row_bytes(p.num_valid) + p.row_bytes(p.batch * p.objects)
    return Case("RaggedBatch.with_padded_set_to", arms, (data,), moved, moved)


# -- packing -------------------------------------------------------------------------------------------------------


def packing(p: Problem) -> Case:
    """`combine_data` of B lists on the host, with sample sizes, to the device of the problem."""
    data, counts = p.values.detach().cpu(), p.sizes.tolist()
    samples = [sample[:count].clone() for sample, count in zip(data, counts, strict=True)]

    def slice_copies() -> Tensor:
        longest = max(len(sample) for sample in samples)
        out = torch.zeros(len(samples), longest, p.channels, dtype=data.dtype, device=p.device)
        sizes = torch.zeros(len(samples), dtype=torch.long)
        for i, sample in enumerate(samples):
            out[i, : len(sample)] = sample
            sizes[i] = len(sample)
        sizes.to(p.device)
        return out

    def pad() -> Tensor:
        torch.tensor([len(sample) for sample in samples]).to(p.device)
        return pad_sequence(samples, batch_first=True).to(p.device)

    arms: Arms = {
        OURS: lambda: combine_data(samples, device=p.device).tensor,
        "slice copies": slice_copies,
        "pad_sequence": pad,
    }
    moved = p.row_bytes(p.num_valid) + p.row_bytes(p.batch * p.objects)
    return Case("combine_data", arms, (), moved, baseline="slice copies", on_host=True)
