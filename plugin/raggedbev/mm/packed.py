"""Ground truth of a batch in one buffer: packed in the loader's workers, copied once, read by the heads where it lies.

In: data samples of a batch. Out: `PackedSamples`, which travels as one tensor and becomes, on the model's device, the
same data samples again. Their instances are plain `InstanceData` whose tensors are views of ragged batches; where a
batched head packs them, `combine_data` finds these batches behind the views, and nothing is packed again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor
from torch.utils.data import get_worker_info

from raggedbev.ragged import Buckets, RaggedBatch, copy_to_device
from raggedbev.ragged.layout import Layout
from raggedbev.ragged.pack import split_reversibly
from raggedbev.ragged.primitives import ragged_pack_
from raggedbev.ragged.transfer import BufferPlan

__all__ = [
    "BOX_NUMBERS",
    "META_KEYS",
    "PackedInstances",
    "PackedSamples",
    "UnitList",
    "UnpackedSamples",
    "column",
    "describe_sample",
    "names_of",
    "new_buffer",
    "tensor_of",
]

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
_NAMES_OF_SAMPLES = ("token", "sample_idx", "img_id", "lidar_path", "img_path", "img_paths")
BOX_NUMBERS = 7  # of a box, that have to be finite; velocities behind them may be unknown


class _BoxClass(NamedTuple):
    """What boxes of mmdet3d or mmdet are besides their tensor."""

    kind: type
    state: tuple[tuple[str, Any], ...]

    @staticmethod
    def of(value: Any) -> _BoxClass | None:
        """None for what is no box object."""
        if isinstance(value, Tensor) or not isinstance(getattr(value, "__dict__", {}).get("tensor"), Tensor):
            return None
        return _BoxClass(type(value), tuple((key, v) for key, v in vars(value).items() if key != "tensor"))

    def wrap(self, tensor: Tensor) -> Any:
        """Box object around `tensor` itself; the constructors of mmdet3d would copy it."""
        boxes = self.kind.__new__(self.kind)
        boxes.__dict__.update(self.state)
        boxes.tensor = tensor
        return boxes


def tensor_of(value: Any) -> Tensor:
    """A tensor, or that of a box object."""
    return value if isinstance(value, Tensor) else value.tensor


# -- on the device -----------------------------------------------------------------------------------------------------


class PackedInstances:
    """Instances of U units (samples or images) in ragged batches.

    Args:
        fields: by name [U, G, ...]; they share sizes and mask.
        box_classes: by name, for fields whose units are box objects.
        kept: by name one value per unit, for fields that cannot be packed.
    """

    def __init__(
        self, fields: dict[str, RaggedBatch], box_classes: dict[str, _BoxClass], kept: dict[str, list]
    ) -> None:
        self.fields, self.box_classes, self.kept = fields, box_classes, kept
        self._views: dict[str, list[Tensor]] = {}

    def views(self, name: str) -> list[Tensor]:
        """A field unit by unit; views of which `combine_data` makes the batch again. No device is read."""
        if name not in self._views:
            self._views[name] = split_reversibly(self.fields[name])
        return self._views[name]

    def instance(self, unit: int) -> InstanceData:
        """Instances of one unit; their tensors are views of the batches."""
        instance = InstanceData()
        for name in self.fields:
            view, box_class = self.views(name)[unit], self.box_classes.get(name)
            setattr(instance, name, view if box_class is None else box_class.wrap(view))
        for name, values in self.kept.items():
            setattr(instance, name, values[unit])
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
        views = [] if len(self._made) == len(self) else self._pack.views(name)
        return [tensor_of(self._made[i].get(name)) if i in self._made else views[i] for i in self._units]


def column(units: Sequence[InstanceData], name: str) -> list[Tensor]:
    """A field of all units; of a `UnitList` without making its instances."""
    return units.column(name) if isinstance(units, UnitList) else [tensor_of(unit.get(name)) for unit in units]


class UnpackedSamples(NamedTuple):
    """A batch on the model's device.

    Attributes:
        samples: B data samples; with windows T lists of B.
        inputs: packed meta values: float32 [B, ...] (float64 for times); with windows [B, T, ...].
    """

    samples: list
    inputs: dict[str, Tensor]


# -- in the worker -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Group:
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
    box_classes: dict[str, _BoxClass]
    kept: dict[str, list]

    def unpack(self, views: list[Tensor], device: torch.device) -> PackedInstances:
        layout = Layout(views[self.sizes_slot], None, self.length, self.sizes)
        fields = {name: RaggedBatch.from_layout(views[slot], layout, 1) for name, slot in self.slots.items()}
        return PackedInstances(fields, self.box_classes, copy_to_device(self.kept, device))


@dataclass(frozen=True, eq=False)
class PackedSamples:
    """Data samples of a batch, their ground truth and matrices in one buffer of bytes.

    Attributes:
        frames: per frame of a window (one where there are no windows) the B data samples without what was packed.
        windows: whether the samples are windows.
        groups: per frame the packed fields.
        metas: slots of packed meta values.
        plan: places in `buffer`.
        buffer: [bytes] uint8 on the host.
    """

    frames: list[list[BaseDataElement]]
    windows: bool
    groups: list[list[_Group]]
    metas: dict[str, int]
    plan: BufferPlan
    buffer: Tensor

    @classmethod
    def pack(
        cls, data_samples: Sequence, meta_keys: Sequence[str] = META_KEYS, padded_sizes: Sequence[int] | None = None
    ) -> PackedSamples:
        """Pack B data samples, or B windows of T.

        Args:
            data_samples: per item a data sample, or a list of T. They stay as they are.
            meta_keys: meta values that become tensors, where the samples have them: 'timestamp' float64, all others
                float32.
            padded_sizes: lengths in rising order (and multiples of the last) that instances are padded to; None: the
                fullest unit's.

        Raises:
            ValueError: what cannot be trained on, naming the sample: NaN or infinite boxes, fields of unequal length,
                meta values of unequal shape.
        """
        windows = not isinstance(data_samples[0], BaseDataElement)
        items = [list(item) if windows else [item] for item in data_samples]
        lengths = [len(item) for item in items]
        if len(set(lengths)) > 1:
            raise ValueError(f"the windows of a batch must have one length, got {lengths}")
        frames = [list(frame) for frame in zip(*items, strict=True)]
        packer = _Packer(None if padded_sizes is None else Buckets(tuple(padded_sizes)))
        groups = [packer.add_instances(frame) for frame in frames]
        metas = packer.add_metas(items, meta_keys)
        buffer = packer.fill()
        packed = [{group.name for group in frame_groups} for frame_groups in groups]
        rest = [[_without(sample, names) for sample in frame] for frame, names in zip(frames, packed, strict=True)]
        return cls(rest, windows, groups, metas, packer.plan, buffer)

    def pin_memory(self) -> PackedSamples:
        """With the buffer in page-locked memory; the dataloader calls this where it is told to pin."""
        return replace(self, buffer=self.buffer.pin_memory())

    def __iter__(self) -> Iterator:
        raise TypeError(
            "the data samples are packed (collate_fn is ragged_collate), which this data preprocessor does not know: "
            "use RaggedDet3DDataPreprocessor, RaggedDetDataPreprocessor, StreamPETRDataPreprocessor, or pseudo_collate"
        )

    def unpack(self, device: torch.device) -> UnpackedSamples:
        """The batch on `device`: one copy, asynchronous where the buffer is page-locked."""
        if device.type == "cpu":
            there = self.buffer
        else:
            host = self.buffer.pin_memory() if device.type == "cuda" else self.buffer
            there = host.to(device, non_blocking=True)
        views = self.plan.views(there)
        for samples, groups in zip(self.frames, self.groups, strict=True):
            _move_rest(samples, device)
            for group in groups:
                _set_instances(samples, group, group.unpack(views, device))
        inputs = {key: views[slot] for key, slot in self.metas.items()}
        return UnpackedSamples(self.frames if self.windows else self.frames[0], inputs)


def _move_rest(samples: list[BaseDataElement], device: torch.device) -> None:
    """Other data of the samples, segmentation masks for example, sample by sample."""
    for sample in samples:
        for name, value in sample.items():
            if isinstance(value, Tensor | BaseDataElement):
                setattr(sample, name, value.to(device, non_blocking=True))


def _set_instances(samples: list[BaseDataElement], group: _Group, pack: PackedInstances) -> None:
    stop = 0
    for index, sample in enumerate(samples):
        if group.counts is None:
            setattr(sample, group.name, pack.instance(index))
        else:
            start, stop = stop, stop + group.counts[index]
            setattr(sample, group.name, UnitList(pack, start, stop))


class _Packer:
    """Collects what goes into one buffer: where, and how it is written there."""

    def __init__(self, buckets: Buckets | None) -> None:
        self.plan = BufferPlan()
        self.buckets = buckets
        self._ragged: list[tuple[int, list[Tensor], str, list[str]]] = []  # slot, tensors, field, names of the units
        self._dense: list[tuple[int, np.ndarray]] = []

    def add_instances(self, samples: list[BaseDataElement]) -> list[_Group]:
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
    ) -> _Group | None:
        keys = sorted(units[0].keys()) if units else []
        for unit, title in zip(units, titles, strict=True):
            if sorted(unit.keys()) != keys:
                raise ValueError(f"{title} has the fields {sorted(unit.keys())}, those before have {keys}")
        columns = {key: [unit.get(key) for unit in units] for key in keys}
        packable = {key: classes for key, values in columns.items() if (classes := _common_class(values)) is not None}
        if not packable:
            return None
        tensors = {key: [tensor_of(value) for value in columns[key]] for key in packable}
        sizes = _common_sizes(tensors, titles)
        length = max(sizes) if self.buckets is None else self.buckets(max(sizes))
        sizes_slot = self._add_dense(np.array(sizes, dtype=np.int64), torch.long)
        slots = {}
        for key, column in tensors.items():
            slots[key] = self.plan.add((len(units), length, *column[0].shape[1:]), column[0].dtype)
            self._ragged.append((slots[key], column, key, titles))
        return _Group(
            name=name,
            counts=counts,
            sizes=tuple(sizes),
            length=length,
            sizes_slot=sizes_slot,
            slots=slots,
            box_classes={key: box_class for key, box_class in packable.items() if isinstance(box_class, _BoxClass)},
            kept={key: values for key, values in columns.items() if key not in packable},
        )

    def add_metas(self, items: list[list[BaseDataElement]], keys: Sequence[str]) -> dict[str, int]:
        """Meta values of B windows of T samples as [B, T, ...], or [B, ...] where T is 1, by their slots."""
        slots = {}
        for key in keys:
            if not any(key in sample for item in items for sample in item):
                continue
            dtype = np.float64 if key in _FLOAT64_KEYS else np.float32
            rows = [_meta_row(item, index, key, dtype) for index, item in enumerate(items)]
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
            _check_finite(views[slot], tensors, field_name, titles)
        return buffer


def new_buffer(num_bytes: int) -> Tensor:
    """[num_bytes] uint8; in a loader's worker shared memory, which reaches the main process without another copy."""
    if get_worker_info() is None:
        return torch.empty(num_bytes, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(num_bytes)
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, (num_bytes,), (1,))


def names_of(values: Any) -> str:
    """What tells a sample from others, of a data sample or a dict: its token, number or file, as far as it has them."""
    known = {key: values.get(key) for key in _NAMES_OF_SAMPLES if key in values}
    first = {key: next(iter(value), None) if isinstance(value, list | tuple) else value for key, value in known.items()}
    return ", ".join(f"{key} {value}" for key, value in first.items())


def describe_sample(sample: BaseDataElement, index: int) -> str:
    """How messages name a data sample: its place in the batch, and what its meta information says."""
    names = names_of(sample)
    return f"sample {index} of the batch" + (f" ({names})" if names else "")


def _is_instance_list(value: Any) -> bool:
    return isinstance(value, list | tuple | UnitList) and all(isinstance(unit, InstanceData) for unit in value)


def _common_class(values: list) -> _BoxClass | type | None:
    """What the values of a field are in all units, Tensor or one class of boxes; None where they cannot be packed."""
    first = values[0]
    box_class = _BoxClass.of(first)
    if not isinstance(first, Tensor) and box_class is None:
        return None
    if any(
        _BoxClass.of(value) != box_class or isinstance(value, Tensor) != isinstance(first, Tensor) for value in values
    ):
        return None
    tensors = [tensor_of(value) for value in values]
    alike = {(tensor.dtype, tensor.shape[1:], tensor.is_cpu and not tensor.requires_grad) for tensor in tensors}
    if tensors[0].dim() == 0 or len(alike) > 1 or not next(iter(alike))[2]:
        return None
    return box_class or Tensor


def _common_sizes(tensors: dict[str, list[Tensor]], titles: list[str]) -> list[int]:
    """Instances of each unit, in which all fields must agree."""
    columns = {key: [len(tensor) for tensor in column] for key, column in tensors.items()}
    for index, title in enumerate(titles):
        found = {key: column[index] for key, column in columns.items()}
        if len(set(found.values())) > 1:
            counts = ", ".join(f"{count} {key}" for key, count in found.items())
            raise ValueError(f"{title} must have as many of each field, got {counts}")
    return next(iter(columns.values()))


def _meta_row(item: list[BaseDataElement], index: int, key: str, dtype: type) -> np.ndarray:
    """[T, ...], or [...] where T is 1."""
    try:
        values = [np.asarray(sample.metainfo[key], dtype=dtype) for sample in item]
        return values[0] if len(values) == 1 else np.stack(values)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{key} of {describe_sample(item[0], index)} must be numbers of one shape in all samples: "
            f"{type(error).__name__} {error}"
        ) from error


def _check_finite(packed: Tensor, tensors: list[Tensor], name: str, titles: list[str]) -> None:
    """Boxes [U, G, D] that a loss can be computed for."""
    if "bboxes" not in name or not packed.is_floating_point() or packed.dim() != 3:
        return
    if torch.isfinite(packed[..., :BOX_NUMBERS]).all():
        return
    for tensor, title in zip(tensors, titles, strict=True):
        wrong = (~torch.isfinite(tensor[:, :BOX_NUMBERS])).any(1).nonzero().flatten().tolist()
        if wrong:
            raise ValueError(f"{title}: {name}[{wrong[0]}] is not finite, {tensor[wrong[0]].tolist()}")


def _without(sample: BaseDataElement, names: set[str]) -> BaseDataElement:
    """A new data sample that lacks some fields; values are shared."""
    out = type(sample)()
    for key, value in sample.metainfo_items():
        out.set_field(value, key, field_type="metainfo")
    for key, value in sample.items():
        if key not in names:
            setattr(out, key, value)
    return out
