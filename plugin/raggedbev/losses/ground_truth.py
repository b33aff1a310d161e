"""Ground truth of a batch: per-sample tensors in, packed once, handed as ragged batches to denoising and losses."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from raggedbev.profiling.stages import stage
from raggedbev.ragged.batch import RaggedBatch
from raggedbev.ragged.pack import combine_data

__all__ = ["GroundTruth2D", "GroundTruth3D"]


def _check_lists(kind: str, unit: str, widths: dict[str, tuple[list[Tensor], int | None]]) -> None:
    """Each list has one tensor [G] (width None) or [G, width] per sample, all lists with the same G."""
    first = next(iter(widths))
    reference = widths[first][0]
    for name, (tensors, width) in widths.items():
        if len(tensors) != len(reference):
            raise ValueError(f"{kind}: {name} has {len(tensors)} {unit}s, {first} has {len(reference)}")
        for index, (tensor, anchor) in enumerate(zip(tensors, reference, strict=True)):
            wanted = (len(anchor),) if width is None else (len(anchor), width)
            if tuple(tensor.shape) != wanted:
                raise ValueError(f"{kind}: {name} of {unit} {index} must be {wanted}, got {tuple(tensor.shape)}")
            if width is None and tensor.dtype != torch.int64:
                raise ValueError(f"{kind}: {name} of {unit} {index} must be int64, got {tensor.dtype}")


class _Objects:
    """Boxes and labels of U units (samples or images), packed at the first use."""

    box_list: list[Tensor]
    label_list: list[Tensor]

    @cached_property
    def boxes(self) -> RaggedBatch:
        """[U, G, width of a box]."""
        with stage("GT packing"):
            return combine_data(self.box_list)

    @cached_property
    def labels(self) -> RaggedBatch:
        """[U, G] int64, with the raggedness of `boxes`."""
        return self._packed_like_boxes(self.label_list)

    def _packed_like_boxes(self, tensors: list[Tensor]) -> RaggedBatch:
        boxes = self.boxes
        with stage("GT packing"):
            return combine_data(tensors, other_with_same_sample_sizes=boxes)


@dataclass(frozen=True, eq=False)
class GroundTruth3D(_Objects):
    """3D objects of a batch; `boxes` is [B, G, 9], `labels` [B, G].

    Attributes:
        box_list: per sample [G, 9]: gravity centre x, y, z (m), length, width, height (m), yaw (rad), velocity x, y
            (m/s).
        label_list: per sample [G] int64 class indices.
    """

    box_list: list[Tensor]
    label_list: list[Tensor]

    def __post_init__(self) -> None:
        _check_lists("GroundTruth3D", "sample", {"box_list": (self.box_list, 9), "label_list": (self.label_list, None)})

    @property
    def num_samples(self) -> int:
        """B."""
        return len(self.box_list)


@dataclass(frozen=True, eq=False)
class GroundTruth2D(_Objects):
    """2D objects of all images of a batch, sample by sample and camera by camera.

    `boxes` is [I, G, 4], `labels` [I, G], `centers` [I, G, 2].

    Attributes:
        box_list: per image [G, 4]: x0, y0, x1, y1 in pixels of the padded image.
        label_list: per image [G] int64 class indices.
        center_list: per image [G, 2]: projected 3D centres u, v in pixels.
    """

    box_list: list[Tensor]
    label_list: list[Tensor]
    center_list: list[Tensor]

    def __post_init__(self) -> None:
        lists = {
            "box_list": (self.box_list, 4),
            "label_list": (self.label_list, None),
            "center_list": (self.center_list, 2),
        }
        _check_lists("GroundTruth2D", "image", lists)

    @property
    def num_images(self) -> int:
        """I."""
        return len(self.box_list)

    @cached_property
    def centers(self) -> RaggedBatch:
        """[I, G, 2], with the raggedness of `boxes`."""
        return self._packed_like_boxes(self.center_list)
