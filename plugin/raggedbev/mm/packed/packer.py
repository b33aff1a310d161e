"""Fields of data samples, written side by side into one buffer in a loader's worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor
from torch.utils.data import get_worker_info

from raggedbev.mm.packed.boxes import BoxClass, common_class, tensor_of
from raggedbev.mm.packed.checks import check_finite, common_sizes, meta_row
from raggedbev.mm.packed.instances import PackedInstances, UnitList
from raggedbev.mm.packed.naming import describe_sample
from raggedbev.ragged import Buckets, RaggedBatch, copy_to_device
from raggedbev.ragged.layout import Layout
from raggedbev.ragged.primitives import ragged_pack_
from raggedbev.ragged.transfer import BufferPlan

META_KEYS = (
    "intrinsics",
    "extrinsics",
    "lidar2img",
    "lidar2cam",
    "cam2img",
    "ego_pose",
    "ego_pose_inv",
    "lidar2ego",
    "ego2global",
    "img_aug_matrix",
    "lidar_aug_matrix",
    "timestamp",
    "prev_exists",
)
_FLOAT64_KEYS = ("timestamp",)  # seconds since 1970: in float32 they would be minutes off


@dataclass(frozen=True)
class Group:
    """One field of the B data samples of a frame, as packed.

    Attributes:
        name: of the data samples' field.
        counts: units of each sample; None where the field is one `InstanceData`.
        sizes: instances of each unit.
        length: padded number of instances.
        sizes_slot: slot of the sizes [U].
        slots: slot of [U, length, ...] by field of the instances.
    """

    name: str
    counts: tuple[int, ...] | None
    sizes: tuple[int, ...]
    length: int
    sizes_slot: int
    slots: dict[str, int]
    box_classes: dict[str, BoxClass]
    kept: dict[str, list]

    def unpack(self, views: list[Tensor], device: torch.device) -> PackedInstances:
        layout = Layout(views[self.sizes_slot], None, self.length, self.sizes)
        fields = {name: RaggedBatch.from_layout(views[slot], layout, 1) for name, slot in self.slots.items()}
        return PackedInstances(fields, self.box_classes, copy_to_device(self.kept, device))


class Packer:
    """Collects what goes into one buffer: where, and how it is written there."""

    def __init__(self, buckets: Buckets | None) -> None:
        self.plan = BufferPlan()
        self.buckets = buckets
        self._ragged: list[tuple[int, list[Tensor], str, list[str]]] = []  # slot, tensors, field, names of the units
        self._dense: list[tuple[int, np.ndarray]] = []

    def add_instances(self, samples: list[BaseDataElement]) -> list[Group]:
        """Every field that is an `InstanceData`, or a list of them, in all samples."""
        groups = []
        for name in sorted(samples[0].keys()):
            values = [sample.get(name) for sample in samples]
            titles = [f"{name} of {describe_sample(sample, index)}" for index, sample in enumerate(samples)]
            if all(isinstance(value, InstanceData) for value in values):
                group = self._add_group(name, None, values, titles)
            elif all(_is_instance_list(value) for value in values):
                units = [unit for value in values for unit in value]
                counts = tuple(len(value) for value in values)
                titles = [
                    f"{title}, image {i}" for title, count in zip(titles, counts, strict=True) for i in range(count)
                ]
                group = self._add_group(name, counts, units, titles)
            else:
                continue
            if group is not None:
                groups.append(group)
        return groups

    def _add_group(
        self, name: str, counts: tuple[int, ...] | None, units: list[InstanceData], titles: list[str]
    ) -> Group | None:
        keys = sorted(units[0].keys()) if units else []
        for unit, title in zip(units, titles, strict=True):
            if sorted(unit.keys()) != keys:
                raise ValueError(f"{title} has the fields {sorted(unit.keys())}, those before have {keys}")
        columns = {key: [unit.get(key) for unit in units] for key in keys}
        packable = {key: classes for key, values in columns.items() if (classes := common_class(values)) is not None}
        if not packable:
            return None
        tensors = {key: [tensor_of(value) for value in columns[key]] for key in packable}
        sizes = common_sizes(tensors, titles)
        length = max(sizes) if self.buckets is None else self.buckets(max(sizes))
        sizes_slot = self._add_dense(np.array(sizes, dtype=np.int64), torch.long)
        slots = {}
        for key, column in tensors.items():
            slots[key] = self.plan.add((len(units), length, *column[0].shape[1:]), column[0].dtype)
            self._ragged.append((slots[key], column, key, titles))
        return Group(
            name=name,
            counts=counts,
            sizes=tuple(sizes),
            length=length,
            sizes_slot=sizes_slot,
            slots=slots,
            box_classes={key: box_class for key, box_class in packable.items() if isinstance(box_class, BoxClass)},
            kept={key: values for key, values in columns.items() if key not in packable},
        )

    def add_metas(self, items: list[list[BaseDataElement]], keys: Sequence[str]) -> dict[str, int]:
        """Meta values of B windows of T samples as [B, T, ...], or [B, ...] where T is 1, by their slots."""
        slots = {}
        for key in keys:
            if not any(key in sample for item in items for sample in item):
                continue
            dtype = np.float64 if key in _FLOAT64_KEYS else np.float32
            rows = [meta_row(item, index, key, dtype) for index, item in enumerate(items)]
            for index, row in enumerate(rows):
                if row.shape != rows[0].shape:
                    raise ValueError(
                        f"{key} of {describe_sample(items[index][0], index)} is {row.shape}, that of sample 0 "
                        f"{rows[0].shape}"
                    )
            slots[key] = self._add_dense(np.stack(rows), torch.float64 if dtype is np.float64 else torch.float32)
        return slots

    def _add_dense(self, values: np.ndarray, dtype: torch.dtype) -> int:
        slot = self.plan.add(values.shape, dtype)
        self._dense.append((slot, values))
        return slot

    def fill(self) -> Tensor:
        """The buffer, written; in shared memory in a loader's worker."""
        buffer = new_buffer(self.plan.num_bytes)
        views = self.plan.views(buffer)
        for slot, values in self._dense:
            views[slot].copy_(torch.from_numpy(values))
        for slot, tensors, field_name, titles in self._ragged:
            ragged_pack_(views[slot], tensors)
            check_finite(views[slot], tensors, field_name, titles)
        return buffer


def new_buffer(num_bytes: int) -> Tensor:
    """[num_bytes] uint8; in a loader's worker shared memory, which reaches the main process without another copy."""
    if get_worker_info() is None:
        return torch.empty(num_bytes, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(num_bytes)
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, (num_bytes,), (1,))


def _is_instance_list(value: Any) -> bool:
    return isinstance(value, list | tuple | UnitList) and all(isinstance(unit, InstanceData) for unit in value)
