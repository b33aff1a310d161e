"""Packing: (nested) lists of per-sample tensors in, one `RaggedBatch` out.

There is one host-to-device copy for the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from raggedbev.ragged.batch import Layout, RaggedBatch

__all__ = ["combine_data"]


def combine_data(
    data_list: Sequence,
    other_with_same_sample_sizes: RaggedBatch | None = None,
    device: torch.device | str | None = None,
    flatten_batch_dims: bool = True,
) -> RaggedBatch:
    """Pack per-sample tensors into one padded batch.

    Args:
        data_list: (nested) list of tensors [n_i, ...] with the same dtype, device and trailing shape; n_i may be zero.
        other_with_same_sample_sizes: a batch of samples with the same sizes; its sizes and mask are shared instead of
            made anew.
        device: where the batch goes; default: where the samples are (or where `other_with_same_sample_sizes` is).
        flatten_batch_dims: nested lists give one batch dimension (True) or one per nesting level.

    Returns:
        Batch [B, max n_i, ...] (or [B0, B1, .., max n_i, ...]); the filler is zero. A list without samples gives
        float32.

    Raises:
        ValueError: dtypes, devices, trailing shapes or nesting differ, or the sizes are not those of the other batch.
    """
    samples, batch_shape = _flatten_nested(data_list)
    if flatten_batch_dims:
        batch_shape = (len(samples),)
    other = other_with_same_sample_sizes
    if device is None and other is not None:
        device = other.device
    if not samples:
        return RaggedBatch.empty(batch_shape, device=device)
    _check_samples(samples)
    sizes = [len(sample) for sample in samples]
    target = torch.device(device) if device is not None else samples[0].device
    length = max(sizes)
    if other is not None and (tuple(other.batch_shape) != tuple(batch_shape) or other.max_sample_size < length):
        raise ValueError(
            f"other_with_same_sample_sizes has batch shape {tuple(other.batch_shape)} and up to "
            f"{other.max_sample_size} entries, got samples {tuple(batch_shape)} with up to {length}"
        )
    padded = _to_device(pad_sequence(list(samples), batch_first=True), target)
    if other is None:
        layout = Layout(_to_device(torch.tensor(sizes, dtype=torch.long), target), None, length)
        return RaggedBatch.from_layout(padded, layout, 1).reshape_batch_dims(batch_shape)
    if other.max_sample_size > length:
        filler = padded.new_zeros((len(samples), other.max_sample_size - length, *padded.shape[2:]))
        padded = torch.cat([padded, filler], dim=1)
    return other.create_with_sample_sizes_like_self(padded.reshape(*batch_shape, *padded.shape[1:]))


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """One copy; asynchronous from page-locked memory on CUDA."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _flatten_nested(data: Sequence) -> tuple[list[Tensor], tuple[int, ...]]:
    """Samples in order, and the shape of the nesting."""
    if isinstance(data, Tensor):
        raise ValueError("combine_data takes a list of per-sample tensors, got a single tensor")
    if not data or all(isinstance(item, Tensor) for item in data):
        return list(data), (len(data),)
    if any(isinstance(item, Tensor) for item in data):
        raise ValueError("combine_data needs tensors at one nesting level only, got tensors beside lists")
    parts = [_flatten_nested(item) for item in data]
    shapes = {shape for _, shape in parts}
    if len(shapes) > 1:
        raise ValueError(f"nested lists must have the same lengths, got {sorted(shapes)}")
    return [sample for samples, _ in parts for sample in samples], (len(parts), *shapes.pop())


def _check_samples(samples: list[Tensor]) -> None:
    first = samples[0]
    for index, sample in enumerate(samples):
        if sample.dim() == 0:
            raise ValueError(f"sample {index} must have at least one dimension, got a scalar")
        for name, value, wanted in (
            ("dtype", sample.dtype, first.dtype),
            ("device", sample.device, first.device),
            ("shape after the first dimension", tuple(sample.shape[1:]), tuple(first.shape[1:])),
        ):
            if value != wanted:
                raise ValueError(f"all samples must have the same {name}, got {wanted} and {value} (sample {index})")
