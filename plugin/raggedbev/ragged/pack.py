"""Packing: (nested) lists of per-sample tensors in, one `RaggedBatch` out.

Data and sizes of the whole batch go to an accelerator in one copy. What was split by `split_reversibly` is not packed
again: the way back gives the batch itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from raggedbev.ragged import primitives
from raggedbev.ragged.batch import RaggedBatch
from raggedbev.ragged.layout import Layout, is_transformed
from raggedbev.ragged.transfer import BufferPlan

__all__ = ["combine_data", "is_split", "split_reversibly"]


def combine_data(
    data_list: Sequence,
    other_with_same_sample_sizes: RaggedBatch | None = None,
    device: torch.device | str | None = None,
    flatten_batch_dims: bool = True,
    max_sample_size: int | None = None,
) -> RaggedBatch:
    """Pack per-sample tensors into one padded batch.

    Args:
        data_list: (nested) list of tensors [n_i, ...] with the same dtype, device and trailing shape; n_i may be zero.
        other_with_same_sample_sizes: a batch of samples with the same sizes; its sizes and mask are shared instead of
            made anew. The sizes are compared where the host knows them.
        device: where the batch goes; default: where the samples are (or where `other_with_same_sample_sizes` is).
        flatten_batch_dims: nested lists give one batch dimension (True) or one per nesting level.
        max_sample_size: padded length, at least max n_i, which is the default; see `Buckets`. With
            `other_with_same_sample_sizes` the length is that batch's.

    Returns:
        Batch [B, max n_i, ...] (or [B0, B1, .., max n_i, ...]); the filler is zero. Samples that require a gradient get
        one. All the views of `split_reversibly`, in order: the batch that was split, with its padded length.

    Raises:
        TypeError: not a (nested) list of tensors, or the other batch is none.
        ValueError: no sample at all (then nothing tells dtype and data shape; `RaggedBatch.empty` is told); dtypes,
            devices, trailing shapes or nesting differ; the sizes are not those of the other batch; or
            `max_sample_size` is too small; or the device is not that of the other batch.
    """
    samples, batch_shape = _flatten_nested(data_list)
    if not samples:
        raise ValueError(
            f"combine_data needs at least one sample to know dtype and data shape, got {data_list!r}; "
            "RaggedBatch.empty makes a batch without samples"
        )
    if flatten_batch_dims:
        batch_shape = (len(samples),)
    first, other = samples[0], other_with_same_sample_sizes
    if hasattr(first, _PART):
        split = _split_batch(samples, batch_shape)
        if split is not None and _fits(split, other, device, max_sample_size):
            return split
    try:
        sizes = [sample.shape[0] for sample in samples]
    except IndexError:
        scalar = next(index for index, sample in enumerate(samples) if sample.dim() == 0)
        raise ValueError(
            f"samples must have at least one dimension, [n, ...], got a scalar (sample {scalar})"
        ) from None
    if other is not None and not isinstance(other, RaggedBatch):
        raise TypeError(f"other_with_same_sample_sizes must be a RaggedBatch, got {type(other).__name__}")
    if device is not None:
        target = torch.device(device)
        if other is not None and not _is_on(other.device, target):
            raise ValueError(f"device must be {other.device} as that of other_with_same_sample_sizes, got {target}")
    else:
        target = first.device if other is None else other.device
    length = max(sizes)
    if other is not None:
        _check_other(other, batch_shape, sizes, length)
        length = other.max_sample_size
    if max_sample_size is not None:
        if max_sample_size < length or (other is not None and max_sample_size != length):
            wanted = f"at least {length}" if other is None else f"{length} as in other_with_same_sample_sizes"
            raise ValueError(f"max_sample_size must be {wanted}, got {max_sample_size}")
        length = max_sample_size
    padded, sample_sizes = _pack(samples, sizes, length, target, with_sizes=other is None)
    num = len(batch_shape)
    if num > 1:
        padded = padded.reshape(batch_shape + padded.shape[1:])
        sample_sizes = None if sample_sizes is None else sample_sizes.reshape(batch_shape)
    layout = Layout(sample_sizes, None, length, sizes) if other is None else other.layout
    return RaggedBatch.from_layout(padded, layout, num)


class _Part:
    """What a view of `split_reversibly` remembers. Copies of the view, pickled ones too, have None in its place."""

    __slots__ = ("batch", "index")

    def __init__(self, batch: RaggedBatch, index: int) -> None:
        self.batch, self.index = batch, index

    def __deepcopy__(self, _memo: dict) -> None:
        return None

    def __reduce__(self) -> tuple:
        return type(None), ()


_PART = "_ragged_part"  # attribute of such a view


def split_reversibly(batch: RaggedBatch) -> list[Tensor]:
    """As `RaggedBatch.split` with one batch dimension, but `combine_data` of these very tensors is `batch` itself.

    So ground truth that was packed once can go through code that wants a list of samples, without being packed again.
    Writes to a view are writes to the batch; a list with another tensor among them is packed as any other.
    """
    views = batch.split()
    for index, view in enumerate(views):
        setattr(view, _PART, _Part(batch, index))
    return views


def is_split(samples: list[Tensor]) -> bool:
    """Whether `combine_data` of these tensors is a batch that was split by `split_reversibly`."""
    return bool(samples) and _split_batch(samples, (len(samples),)) is not None


def _split_batch(samples: list[Tensor], batch_shape: tuple[int, ...]) -> RaggedBatch | None:
    """The batch whose views `samples` are, all of them in order."""
    parts = [getattr(sample, _PART, None) for sample in samples]
    batch = None if parts[0] is None else parts[0].batch
    if batch is None or tuple(batch.batch_shape) != batch_shape:
        return None
    in_order = all(part is not None and part.batch is batch and part.index == i for i, part in enumerate(parts))
    return batch if in_order else None


def _fits(batch: RaggedBatch, other: RaggedBatch | None, device: torch.device | str | None, length: int | None) -> bool:
    """Whether `combine_data` with these arguments may give `batch`."""
    if other is not None and batch.layout is not other.layout:
        return False
    if device is not None and not _is_on(batch.device, torch.device(device)):
        return False
    return length is None or length == batch.max_sample_size


def _is_on(device: torch.device, wanted: torch.device) -> bool:
    """Whether `device` is the wanted one; without an index the current one is wanted."""
    if device.type == wanted.type == "cuda" and wanted.index is None:
        return device.index == torch.cuda.current_device()
    return device == wanted


def _pack(
    samples: list[Tensor], sizes: list[int], length: int, target: torch.device, with_sizes: bool
) -> tuple[Tensor, Tensor | None]:
    """Padded samples [B, length, ...], and their sizes [B] if these are asked for, on `target`."""
    first = samples[0]
    to_device = target.type != "cpu"  # nobody waits for an asynchronous copy to the host
    if is_transformed() or _has_tangents():
        padded = _pad_one_by_one(samples, length).to(target, non_blocking=to_device)
    elif torch.is_grad_enabled() and any(sample.requires_grad for sample in samples):
        padded = _pad_with_gradient(samples, length).to(target, non_blocking=to_device)
    elif not all(sample.is_cpu for sample in samples):
        padded = _pad_on_device(samples, sizes, length).to(target, non_blocking=to_device)
    elif target.type != "cpu":
        return _pack_through_one_buffer(samples, sizes, length, target, with_sizes)
    else:
        padded = torch.empty((len(samples), length, *first.shape[1:]), dtype=first.dtype)
        primitives.ragged_pack_(padded, samples)
    return padded, _to_device(sizes, target) if with_sizes else None


def _pack_through_one_buffer(
    samples: list[Tensor], sizes: list[int], length: int, target: torch.device, with_sizes: bool
) -> tuple[Tensor, Tensor | None]:
    """Data and sizes side by side in one host buffer (page-locked for CUDA), which goes to `target` as a whole."""
    plan = BufferPlan()
    plan.add((len(samples), length, *samples[0].shape[1:]), samples[0].dtype)
    if with_sizes:
        plan.add((len(samples),), torch.long)
    host = plan.staging(target)
    padded, *lengths = plan.views(host)
    primitives.ragged_pack_(padded, samples)
    if with_sizes:
        lengths[0].copy_(torch.tensor(sizes))
    padded, *lengths = plan.views(host.to(target, non_blocking=True))
    return padded, lengths[0] if with_sizes else None


def _pad_on_device(samples: list[Tensor], sizes: list[int], length: int) -> Tensor:
    """[B, length, ...] on the device of the samples, without a synchronisation."""
    _check_samples(samples)
    padded = samples[0].new_zeros((len(samples), length, *samples[0].shape[1:]))
    rows = [row.narrow(0, 0, size) for row, size in zip(padded.unbind(0), sizes, strict=True)]
    torch._foreach_copy_(rows, [sample.detach() for sample in samples])
    return padded


def _has_tangents() -> bool:
    """Whether forward-mode derivatives are being taken."""
    return not torch.compiler.is_compiling() and forward_ad._current_level >= 0


def _pad_one_by_one(samples: list[Tensor], length: int) -> Tensor:
    """[B, length, ...] on the device of the samples, by operations that every transform knows."""
    _check_samples(samples)
    padding = (0, 0) * (samples[0].dim() - 1)
    return torch.stack([pad(sample, (*padding, 0, length - sample.shape[0])) for sample in samples])


def _pad_with_gradient(samples: list[Tensor], length: int) -> Tensor:
    """[B, length, ...] on the device of the samples."""
    _check_samples(samples)
    padded = pad_sequence(samples, batch_first=True)
    missing = length - padded.shape[1]
    if not missing:
        return padded
    return torch.cat([padded, padded.new_zeros((padded.shape[0], missing, *padded.shape[2:]))], dim=1)


def _to_device(sizes: list[int], device: torch.device) -> Tensor:
    """[B] int64, asynchronously."""
    if device.type == "cpu":
        return torch.from_numpy(np.array(sizes, dtype=np.int64))  # a quarter of the time of torch.tensor
    return torch.tensor(sizes, pin_memory=device.type == "cuda").to(device, non_blocking=True)


def _flatten_nested(data: Sequence) -> tuple[list[Tensor], tuple[int, ...]]:
    """Samples in order, and the shape of the nesting."""
    if isinstance(data, Tensor | str) or not isinstance(data, Sequence):
        raise TypeError(f"combine_data takes a (nested) list of tensors, got {type(data).__name__}")
    num_tensors = sum([isinstance(item, Tensor) for item in data])
    if num_tensors == len(data):
        return list(data), (len(data),)
    if num_tensors:
        raise ValueError(f"combine_data needs tensors at one nesting level only, got {_describe(data)}")
    parts = [_flatten_nested(item) for item in data]
    shapes = {shape for _, shape in parts}
    if len(shapes) > 1:
        raise ValueError(f"nested lists must have the same lengths, got {sorted(shapes)}")
    return [sample for samples, _ in parts for sample in samples], (len(parts), *shapes.pop())


def _describe(data: Sequence) -> str:
    return f"[{', '.join(type(item).__name__ for item in data)}]"


def _check_other(other: RaggedBatch, batch_shape: tuple[int, ...], sizes: list[int], length: int) -> None:
    if tuple(other.batch_shape) != batch_shape or other.max_sample_size < length:
        raise ValueError(
            f"other_with_same_sample_sizes has batch shape {tuple(other.batch_shape)} and up to "
            f"{other.max_sample_size} entries, got samples {batch_shape} with up to {length}"
        )
    known = other.layout.host_sizes()
    if known is not None and known != sizes:
        raise ValueError(f"samples must have the sizes of other_with_same_sample_sizes, {known}, got {sizes}")


def _check_samples(samples: list[Tensor]) -> None:
    first = samples[0]
    for index, sample in enumerate(samples):
        for name, value, wanted in (
            ("dtype", sample.dtype, first.dtype),
            ("device", sample.device, first.device),
            ("shape after the first dimension", sample.shape[1:], first.shape[1:]),
        ):
            if value != wanted:
                raise ValueError(
                    f"all samples must have the same {name}, got {_plain(wanted)} and {_plain(value)} (sample {index})"
                )


def _plain(value: object) -> object:
    return tuple(value) if isinstance(value, torch.Size) else value
