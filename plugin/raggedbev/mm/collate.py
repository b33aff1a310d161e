"""Collation in the loader's workers: per-sample items in, packed ground truth and stacked images out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import FUNCTIONS
from torch import Tensor

from raggedbev.mm.packed import PackedSamples, new_buffer

__all__ = ["ragged_collate"]


@FUNCTIONS.register_module()
def ragged_collate(
    data_batch: Sequence[dict[str, Any]],
    meta_keys: Sequence[str] | None = None,
    padded_sizes: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Collate a batch so that all of its ground truth reaches the main process and the device as one tensor.

    `collate_fn=dict(type='ragged_collate')` of a dataloader switches it on. The model needs a data preprocessor that
    knows the result: `RaggedDet3DDataPreprocessor`, `RaggedDetDataPreprocessor` (mmdet) or
    `StreamPETRDataPreprocessor`.

    Args:
        data_batch: items of the dataset, with 'inputs' and 'data_samples' (a data sample, or a list of T).
        meta_keys: meta values of the samples that become tensors of the model's `inputs`, where any sample has them:
            times ('timestamp' in their name) in float64, all others in float32. None: those of
            `raggedbev.mm.packed.META_KEYS` that are finite numbers of one shape in all samples.
        padded_sizes: lengths in rising order (and multiples of the last) that objects are padded to, so that shapes
            repeat and CUDA graphs and compiled code are used again; None: the fullest sample's.

    Returns:
        The keys of the items: 'data_samples' as `PackedSamples`; 'inputs' as of `pseudo_collate`, but images of
        several cameras and one size stacked, [B, ..., 3, H, W].

    Raises:
        ValueError: ground truth that cannot be trained on, see `PackedSamples.pack`.
    """
    packed = PackedSamples.pack([item["data_samples"] for item in data_batch], meta_keys, padded_sizes)
    rest = pseudo_collate([{key: value for key, value in item.items() if key != "data_samples"} for item in data_batch])
    inputs = rest.get("inputs")
    if isinstance(inputs, dict) and "img" in inputs:
        inputs["img"] = _stacked([item["inputs"]["img"] for item in data_batch])
    return {**rest, "data_samples": packed}


def _stacked(images: list) -> Tensor | list:
    """[B, ..., 3, H, W] of images [..., 3, H, W] of one size with several cameras; others as they are."""
    first = images[0]
    if not isinstance(first, Tensor) or first.dim() < 4:
        return images
    if any(image.shape != first.shape or image.dtype != first.dtype for image in images):
        return images
    shape = (len(images), *first.shape)
    buffer = new_buffer(len(images) * first.numel() * first.itemsize)
    return torch.stack(images, out=buffer.view(first.dtype).view(shape))
