"""Ground truth of a batch: per-sample tensors in, packed once, handed as ragged batches to denoising and losses.

Lists (`GroundTruth3D`) are what data loaders give; packed ground truth (`PackedGroundTruth3D`) consists of tensors, and
can enter compiled functions and captured graphs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from raggedbev.profiling.stages import stage
from raggedbev.ragged.batch import RaggedBatch
from raggedbev.ragged.buckets import Buckets
from raggedbev.ragged.layout import Layout
from raggedbev.ragged.pack import combine_data

__all__ = ["GroundTruth2D", "GroundTruth3D", "PackedGroundTruth2D", "PackedGroundTruth3D"]


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


def _check_packed(kind: str, widths: dict[str, tuple[RaggedBatch, int | None]]) -> None:
    """Each batch is [U, G] int64 (width None) or [U, G, width], all with the sizes of the first."""
    first = next(iter(widths))
    leading = widths[first][0].shape[:2]
    for name, (batch, width) in widths.items():
        wanted = tuple(leading) if width is None else (*leading, width)
        if tuple(batch.shape) != wanted or batch.num_batch_dims != 1 or batch.non_uniform_dim != 1:
            raise ValueError(f"{kind}: {name} must be a ragged batch {wanted}, got {tuple(batch.shape)}")
        if width is None and batch.dtype != torch.int64:
            raise ValueError(f"{kind}: {name} must be int64, got {batch.dtype}")
        if batch.device != widths[first][0].device:
            raise ValueError(f"{kind}: {name} is on {batch.device}, {first} is on {widths[first][0].device}")
        if batch.layout is not widths[first][0].layout:
            _check_sizes(kind, name, batch, first, widths[first][0])


def _check_sizes(kind: str, name: str, batch: RaggedBatch, first: str, other: RaggedBatch) -> None:
    """The same objects per unit, where the host knows how many there are."""
    sizes, wanted = batch.layout.host_sizes(), other.layout.host_sizes()
    if sizes is not None and wanted is not None and list(sizes) != list(wanted):
        raise ValueError(f"{kind}: {name} has the sizes {list(sizes)}, {first} has {list(wanted)}")


class _Objects:
    """Boxes and labels of U units (samples or images), packed at the first use."""

    box_list: list[Tensor]
    label_list: list[Tensor]

    @cached_property
    def boxes(self) -> RaggedBatch:
        """[U, G, width of a box]."""
        return self._pack_boxes(None)

    @cached_property
    def labels(self) -> RaggedBatch:
        """[U, G] int64, with the raggedness of `boxes`."""
        return self._pack_like(self.boxes, self.label_list)

    def _pack_boxes(self, buckets: Buckets | None) -> RaggedBatch:
        length = None if buckets is None else buckets(max((len(boxes) for boxes in self.box_list), default=0))
        with stage("GT packing"):
            return combine_data(self.box_list, max_sample_size=length)

    def _pack_like(self, boxes: RaggedBatch, tensors: list[Tensor]) -> RaggedBatch:
        with stage("GT packing"):
            return combine_data(tensors, other_with_same_sample_sizes=boxes)

    @cached_property
    def _packed(self) -> dict[Buckets | None, Any]:
        """What `packed` made."""
        return {}


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

    def packed(self, buckets: Buckets | None = None) -> PackedGroundTruth3D:
        """The same objects as tensors, padded to a length of `buckets` (none: to the fullest sample); packed once."""
        if buckets not in self._packed:
            boxes = self.boxes if buckets is None else self._pack_boxes(buckets)
            labels = self.labels if buckets is None else self._pack_like(boxes, self.label_list)
            self._packed[buckets] = PackedGroundTruth3D(boxes, labels)
        return self._packed[buckets]


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
        return self._pack_like(self.boxes, self.center_list)

    def packed(self, buckets: Buckets | None = None) -> PackedGroundTruth2D:
        """The same objects as tensors, padded to a length of `buckets` (none: to the fullest image); packed once."""
        if buckets not in self._packed:
            parts = [self.boxes, self.labels, self.centers]
            if buckets is not None:
                boxes = self._pack_boxes(buckets)
                parts = [boxes, *(self._pack_like(boxes, rows) for rows in (self.label_list, self.center_list))]
            self._packed[buckets] = PackedGroundTruth2D(*parts)
        return self._packed[buckets]


@dataclass(frozen=True, eq=False)
class PackedGroundTruth3D:
    """3D objects of a batch as padded tensors; the losses take it in place of `GroundTruth3D`. A pytree of tensors.

    Attributes:
        boxes: [B, G, 9], see `GroundTruth3D`.
        labels: [B, G] int64.
    """

    boxes: RaggedBatch
    labels: RaggedBatch

    def __post_init__(self) -> None:
        _check_packed("PackedGroundTruth3D", {"boxes": (self.boxes, 9), "labels": (self.labels, None)})

    @property
    def num_samples(self) -> int:
        """B."""
        return self.boxes.shape[0]

    def packed(self, buckets: Buckets | None = None) -> PackedGroundTruth3D:
        """This; what is packed keeps its length."""
        return self


@dataclass(frozen=True, eq=False)
class PackedGroundTruth2D:
    """2D objects of all images as padded tensors; the losses take it in place of `GroundTruth2D`. A pytree of tensors.

    Attributes:
        boxes: [I, G, 4], see `GroundTruth2D`.
        labels: [I, G] int64.
        centers: [I, G, 2].
    """

    boxes: RaggedBatch
    labels: RaggedBatch
    centers: RaggedBatch

    def __post_init__(self) -> None:
        parts = {"boxes": (self.boxes, 4), "labels": (self.labels, None), "centers": (self.centers, 2)}
        _check_packed("PackedGroundTruth2D", parts)

    @property
    def num_images(self) -> int:
        """I."""
        return self.boxes.shape[0]

    def packed(self, buckets: Buckets | None = None) -> PackedGroundTruth2D:
        """This; what is packed keeps its length."""
        return self


def _register(kind: type) -> None:
    """Makes packed ground truth a pytree of its padded tensors and the sizes that they share."""
    names = list(kind.__dataclass_fields__)  # type: ignore[attr-defined]

    def flatten(truth: Any) -> tuple[list[Any], None]:
        return [*(getattr(truth, name).tensor for name in names), truth.boxes.sample_sizes], None

    def unflatten(leaves: Any, _context: None) -> Any:
        *tensors, sizes = leaves
        length = tensors[0].shape[1] if isinstance(tensors[0], Tensor) and tensors[0].dim() > 1 else 0
        layout = Layout(sizes, None, length)
        truth: Any = object.__new__(kind)
        for name, tensor in zip(names, tensors, strict=True):
            object.__setattr__(truth, name, RaggedBatch.from_layout(tensor, layout, 1))
        return truth

    pytree.register_pytree_node(kind, flatten, unflatten, serialized_type_name=f"raggedbev.{kind.__name__}")


_register(PackedGroundTruth3D)
_register(PackedGroundTruth2D)
