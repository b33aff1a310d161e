"""Data preprocessors that take packed batches: one copy for all ground truth, images beside it.

In: what `ragged_collate` or `pseudo_collate` gave. Out: what the stock preprocessor gives; the instances of the data
samples are views of ragged batches, which batched heads find behind them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.registry import MODELS as MMDET_MODELS
from mmdet3d.models.data_preprocessors import Det3DDataPreprocessor
from mmdet3d.registry import MODELS
from torch import Tensor

from raggedbev.mm.packed import PackedSamples, UnpackedSamples

__all__ = ["RaggedDet3DDataPreprocessor", "RaggedDetDataPreprocessor", "unpacked_samples"]


def unpacked_samples(data_samples: Any, device: Any, meta_keys: Sequence[str] | None = None) -> UnpackedSamples:
    """Data samples on the device, from `PackedSamples` or from the lists that `pseudo_collate` makes.

    Args:
        data_samples: `PackedSamples`, B data samples, or T lists of B.
        device: where the model is.
        meta_keys: of samples that are not packed yet, see `ragged_collate`.
    """
    if not isinstance(data_samples, PackedSamples):
        samples = list(data_samples)
        windows = isinstance(samples[0], Sequence)
        data_samples = PackedSamples.pack(list(zip(*samples, strict=True)) if windows else samples, meta_keys)
    return data_samples.unpack(device)


class _RaggedDataPreprocessor:
    """Mixin in front of a preprocessor: packed data samples are unpacked on the device."""

    def __init__(
        self, *args: Any, non_blocking: bool = True, meta_keys: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, non_blocking=non_blocking, **kwargs)
        self.meta_keys = meta_keys

    def cast_data(self, data: Any) -> Any:
        """Copy to the device what is not there yet."""
        if isinstance(data, UnpackedSamples):
            return data.samples
        return super().cast_data(data)

    def _unpacked(self, data: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Data with its samples unpacked, and the packed meta values."""
        if not data.get("data_samples"):
            return dict(data), {}
        unpacked = unpacked_samples(data["data_samples"], self.device, self.meta_keys)
        return {**data, "data_samples": unpacked}, unpacked.inputs


@MODELS.register_module(force=True)
class RaggedDet3DDataPreprocessor(_RaggedDataPreprocessor, Det3DDataPreprocessor):
    """mmdet3d's `Det3DDataPreprocessor` with one copy for all ground truth.

    Arguments and results are those of `Det3DDataPreprocessor`, but `non_blocking` is True by default. Matrices and
    times that were packed are in `inputs` under their names, [B, ...] on the device. Batches of `pseudo_collate` are
    packed here, with the `meta_keys` that may be given in addition.
    """

    def simple_process(self, data: dict, training: bool = False) -> dict:
        """Prepare a batch.

        Args:
            data: from the dataloader.
            training: whether batch augmentations apply.
        """
        data, tensors = self._unpacked(data)
        images = data["inputs"].get("img")
        if isinstance(images, Tensor) and images.dim() > 4:
            images = images.to(self.device, non_blocking=self._non_blocking)
            data["inputs"] = {**data["inputs"], "img": list(images.unbind(0))}
        out = super().simple_process(data, training)
        out["inputs"].update(tensors)
        return out


@MMDET_MODELS.register_module(force=True)
class RaggedDetDataPreprocessor(_RaggedDataPreprocessor, DetDataPreprocessor):
    """mmdet's `DetDataPreprocessor` with one copy for all ground truth.

    Arguments and results are those of `DetDataPreprocessor`, but `non_blocking` is True by default. Batches of
    `pseudo_collate` are packed here, with the `meta_keys` that may be given in addition.
    """

    def forward(self, data: dict, training: bool = False) -> dict:
        """Prepare a batch.

        Args:
            data: from the dataloader.
            training: whether batch augmentations apply.
        """
        return super().forward(self._unpacked(data)[0], training)
