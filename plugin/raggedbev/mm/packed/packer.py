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
from raggedbev.mm.packed.checks import check_finite, common_sizes, stacked_meta
from raggedbev.mm.packed.instances import PackedInstances, UnitList, UnitRest
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
        box_classes: of fields whose units are box objects.
        rest: per unit what was not packed.
    """

    name: str
    counts: tuple[int, ...] | None
    sizes: tuple[int, ...]
    length: int
    sizes_slot: int
    slots: dict[str, int]
    box_classes: dict[str, BoxClass]
    rest: list[UnitRest]

    def unpack(self, views: list[Tensor], device: torch.device) -> PackedInstances:
        layout = Layout(views[self.sizes_slot], None, self.length, self.sizes)
        fields = {name: RaggedBatch.from_layout(views[slot], layout, 1) for name, slot in self.slots.items()}
        return PackedInstances(fields, self.box_classes, _moved(self.rest, device))


def _moved(rest: list[UnitRest], device: torch.device) -> list[UnitRest]:
    """Tensors by one copy, other values that have `.to` one by one; arrays and all else stay as they are."""
    if not any(unit.kept for unit in rest):
        return rest
    tensors = [{key: value for key, value in unit.kept.items() if isinstance(value, Tensor)} for unit in rest]
    out = []
    for unit, found in zip(rest, copy_to_device(tensors, device), strict=True):
        kept = {key: found[key] if key in found else moved(value, device) for key, value in unit.kept.items()}
        out.append(unit._replace(kept=kept))
    return out


def moved(value: Any, device: torch.device) -> Any:
    """A value on a device, as `BaseDataElement.to` would move it; lists of data elements, too."""
    if isinstance(value, list | tuple) and all(isinstance(element, BaseDataElement) for element in value):
        return [moved(element, device) for element in value]
    return value.to(device, non_blocking=True) if hasattr(value, "to") else value


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
        fields = [sorted(unit.keys()) for unit in units]  # mmengine makes them anew at every call
        filled = [unit for unit, names in zip(units, fields, strict=True) if names]
        keys = next((names for names in fields if names), [])
        for names, title in zip(fields, titles, strict=True):
            if names and names != keys:
                raise ValueError(f"{title} has the fields {names}, those before have {keys}")
        classes = {key: common_class([unit.get(key) for unit in filled]) for key in keys}
        packable = [key for key in keys if classes[key] is not None]
        if len(packable) < len(keys):
            self._check_kept(units, titles, packable)
        if not packable:
            return None
        tensors = {key: self._column(units, fields, key, tensor_of(filled[0].get(key))) for key in packable}
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
            box_classes={key: classes[key] for key in packable if isinstance(classes[key], BoxClass)},
            rest=[UnitRest.of(unit, names, packable) for unit, names in zip(units, fields, strict=True)],
        )

    @staticmethod
    def _column(units: list[InstanceData], fields: list[list[str]], key: str, like: Tensor) -> list[Tensor]:
        """A field of all units; of a unit without any fields a tensor of no instances."""
        return [tensor_of(unit.get(key)) if names else like[:0] for unit, names in zip(units, fields, strict=True)]

    @staticmethod
    def _check_kept(units: list[InstanceData], titles: list[str], packable: list[str]) -> None:
        for unit, title in zip(units, titles, strict=True):
            for key, value in unit.items():
                if key not in packable:
                    check_value(value, key, title)

    def add_metas(self, items: list[list[BaseDataElement]], keys: Sequence[str] | None) -> dict[str, int]:
        """Meta values of B windows of T samples as [B, T, ...], or [B, ...] where T is 1, by their slots."""
        slots = {}
        metas = [[sample.metainfo for sample in item] for item in items]
        for key in META_KEYS if keys is None else keys:
            values = [[meta.get(key) for meta in item] for item in metas]
            if all(value is None for item in values for value in item):
                continue
            try:
                stacked = stacked_meta(values, key, [item[0] for item in items])
            except ValueError:
                if keys is None:
                    continue
                raise
            slots[key] = self._add_dense(stacked, torch.from_numpy(stacked).dtype)
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
            check_finite(tensors, field_name, titles, views[slot])
        return buffer


def new_buffer(num_bytes: int) -> Tensor:
    """[num_bytes] uint8; in a loader's worker shared memory, which reaches the main process without another copy."""
    if get_worker_info() is None:
        return torch.empty(num_bytes, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(num_bytes)
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, (num_bytes,), (1,))


def check_value(value: Any, name: str, title: str) -> None:
    """Check a value of a field that stays unpacked, where it is a tensor or a box object."""
    if isinstance(value, Tensor) or BoxClass.of(value) is not None:
        check_finite([tensor_of(value)], name, [title])


def _is_instance_list(value: Any) -> bool:
    return isinstance(value, list | tuple | UnitList) and all(isinstance(unit, InstanceData) for unit in value)
