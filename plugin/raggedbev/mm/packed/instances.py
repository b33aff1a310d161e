"""Packed instances on the device: ragged batches in, `InstanceData` whose tensors are views of them out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from mmengine.structures import InstanceData
from torch import Tensor

from raggedbev.mm.packed.boxes import BoxClass, tensor_of
from raggedbev.ragged import RaggedBatch
from raggedbev.ragged.pack import split_reversibly


class UnitRest(NamedTuple):
    """What a unit has besides packed fields.

    Attributes:
        kind: `InstanceData` or a class derived from it.
        metainfo: its meta information.
        kept: fields that cannot be packed.
    """

    kind: type[InstanceData]
    metainfo: dict[str, Any]
    kept: dict[str, Any]

    @staticmethod
    def of(unit: InstanceData, fields: Sequence[str], packed: Sequence[str]) -> UnitRest:
        """All of a unit with these fields but the `packed` ones; the same object for all units without more."""
        kept = {key: unit.get(key) for key in fields if key not in packed}
        metainfo = dict(unit.metainfo_items())
        return UnitRest(type(unit), metainfo, kept) if kept or metainfo or type(unit) is not InstanceData else _NOTHING


_NOTHING = UnitRest(InstanceData, {}, {})


class PackedInstances:
    """Instances of U units (samples or images) in ragged batches.

    Args:
        fields: by name [U, G, ...]; they share sizes and mask.
        box_classes: by name, for fields whose units are box objects.
        rest: per unit.
    """

    def __init__(
        self, fields: dict[str, RaggedBatch], box_classes: dict[str, BoxClass], rest: Sequence[UnitRest]
    ) -> None:
        self.fields, self.box_classes, self.rest = fields, box_classes, rest
        self._views: dict[str, list[Tensor]] = {}

    def views(self, name: str) -> list[Tensor]:
        """A field unit by unit; views of which `combine_data` makes the batch again. No device is read."""
        if name not in self._views:
            self._views[name] = split_reversibly(self.fields[name])
        return self._views[name]

    def instance(self, unit: int) -> InstanceData:
        """Instances of one unit; their tensors are views of the batches."""
        rest = self.rest[unit]
        instance = rest.kind()
        if rest.metainfo:
            instance.set_metainfo(rest.metainfo)
        for name in self.fields:
            view, box_class = self.views(name)[unit], self.box_classes.get(name)
            setattr(instance, name, view if box_class is None else box_class.wrap(view))
        for name, value in rest.kept.items():
            setattr(instance, name, value)
        return instance


class UnitList(Sequence):
    """Units `start` to `stop` of a pack as a list of `InstanceData`, each made when it is asked for."""

    def __init__(self, pack: PackedInstances, start: int, stop: int) -> None:
        self._pack, self._units = pack, range(start, stop)
        self._made: dict[int, InstanceData] = {}

    def __len__(self) -> int:
        return len(self._units)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        unit = self._units[index]
        if unit not in self._made:
            self._made[unit] = self._pack.instance(unit)
        return self._made[unit]

    def column(self, name: str) -> list[Tensor]:
        """A field of all units."""
        if len(self._made) == len(self) or name not in self._pack.fields:
            return [tensor_of(unit.get(name)) for unit in self]
        views = self._pack.views(name)
        return [tensor_of(self._made[i].get(name)) if i in self._made else views[i] for i in self._units]


def column(units: Sequence[InstanceData], name: str) -> list[Tensor]:
    """A field of all units; of a `UnitList` without making its instances."""
    return units.column(name) if isinstance(units, UnitList) else [tensor_of(unit.get(name)) for unit in units]
