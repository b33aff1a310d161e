"""Data samples of a batch as one buffer: packed in a worker, copied once, unpacked on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor

from raggedbev.mm.packed.instances import PackedInstances, UnitList
from raggedbev.mm.packed.naming import describe_sample
from raggedbev.mm.packed.packer import Group, Packer, check_value, moved
from raggedbev.ragged import Buckets
from raggedbev.ragged.transfer import BufferPlan, Slot

_UNKNOWN = (
    "the data samples are packed (collate_fn is ragged_collate), which this data preprocessor does not know: "
    "use RaggedDet3DDataPreprocessor, RaggedDetDataPreprocessor, StreamPETRDataPreprocessor, or pseudo_collate"
)


class UnpackedSamples(NamedTuple):
    """A batch on the model's device.

    Attributes:
        samples: B data samples; with windows T lists of B.
        inputs: packed meta values: float32 [B, ...] (float64 for times); with windows [B, T, ...].
    """

    samples: list
    inputs: dict[str, Tensor]


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
    groups: list[list[Group]]
    metas: dict[str, int]
    plan: BufferPlan
    buffer: Tensor

    @classmethod
    def pack(
        cls, data_samples: Sequence, meta_keys: Sequence[str] | None = None, padded_sizes: Sequence[int] | None = None
    ) -> PackedSamples:
        """Pack B data samples, or B windows of T.

        Args:
            data_samples: per item a data sample, or a list of T. They stay as they are.
            meta_keys: meta values that become tensors, where any sample has them: times ('timestamp' in their name)
                float64, all others float32. None: those of `META_KEYS` that are numbers of one shape in all samples;
                others stay in the meta information only.
            padded_sizes: lengths in rising order (and multiples of the last) that instances are padded to; None: the
                fullest unit's.

        Raises:
            ValueError: what cannot be trained on, naming the sample: NaN or infinite boxes, fields of unequal length,
                meta values asked for by `meta_keys` that are missing, not finite or of unequal shape.
        """
        windows = not isinstance(data_samples[0], BaseDataElement)
        items = [list(item) if windows else [item] for item in data_samples]
        lengths = [len(item) for item in items]
        if len(set(lengths)) > 1:
            raise ValueError(f"the windows of a batch must have one length, got {lengths}")
        frames = [list(frame) for frame in zip(*items, strict=True)]
        packer = Packer(None if padded_sizes is None else Buckets(tuple(padded_sizes)))
        groups = [packer.add_instances(frame) for frame in frames]
        metas = packer.add_metas(items, meta_keys)
        buffer = packer.fill()
        packed = [{group.name for group in frame_groups} for frame_groups in groups]
        rest = [[_without(sample, names) for sample in frame] for frame, names in zip(frames, packed, strict=True)]
        for frame in rest:
            for index, sample in enumerate(frame):
                for name, value in sample.items():
                    check_value(value, name, describe_sample(sample, index))
        return cls(rest, windows, groups, metas, packer.plan, buffer)

    def pin_memory(self) -> PackedSamples:
        """With the buffer in page-locked memory; the dataloader calls this where it is told to pin."""
        return replace(self, buffer=self.buffer.pin_memory())

    def __len__(self) -> int:
        """B, or T of windows: as the list that `pseudo_collate` would give."""
        return len(self.frames) if self.windows else len(self.frames[0])

    def __getitem__(self, index: int) -> PackedSamples:
        """Frame `index` of windows, which is how test-time augmentation takes its versions one by one."""
        if not self.windows:
            raise ValueError(_UNKNOWN)
        frame = range(len(self))[index]
        plan = BufferPlan()
        plan.num_bytes, plan.slots = self.plan.num_bytes, list(self.plan.slots)
        if len(self) > 1:
            for number in self.metas.values():  # [B, T, ...], of which one T is taken
                start, shape, strides, dtype = plan.slots[number]
                start += frame * strides[1]
                plan.slots[number] = Slot(start, shape[:1] + shape[2:], strides[:1] + strides[2:], dtype)
        return replace(self, frames=[self.frames[frame]], windows=False, groups=[self.groups[frame]], plan=plan)

    def __iter__(self) -> Iterator:
        raise ValueError(_UNKNOWN)

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
    """Other data of the samples, segmentation masks for example, sample by sample; what has no `.to` stays."""
    for sample in samples:
        for name, value in sample.items():
            there = moved(value, device)
            if there is not value:
                setattr(sample, name, there)


def _set_instances(samples: list[BaseDataElement], group: Group, pack: PackedInstances) -> None:
    stop = 0
    for index, sample in enumerate(samples):
        if group.counts is None:
            setattr(sample, group.name, pack.instance(index))
        else:
            start, stop = stop, stop + group.counts[index]
            setattr(sample, group.name, UnitList(pack, start, stop))


def _without(sample: BaseDataElement, names: set[str]) -> BaseDataElement:
    """A new data sample that lacks some fields; values are shared."""
    out = type(sample)()
    for key, value in sample.metainfo_items():
        out.set_field(value, key, field_type="metainfo")
    for key, value in sample.items():
        if key not in names:
            setattr(out, key, value)
    return out
