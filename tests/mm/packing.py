"""Instances as they come from `ragged_collate` and a data preprocessor, shared by the tests of heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet3d.structures import Det3DDataSample
from mmengine.structures import InstanceData

from raggedbev.mm.collate import ragged_collate
from raggedbev.ragged.pack import is_split


def packed(instances: Sequence[InstanceData], name: str = "gt_instances_3d") -> list[InstanceData]:
    """The same instances as views of ragged batches."""
    samples = [Det3DDataSample() for _ in instances]
    for sample, one in zip(samples, instances, strict=True):
        setattr(sample, name, one)
    batch = ragged_collate([{"data_samples": sample} for sample in samples])
    unpacked, _ = batch["data_samples"].unpack(torch.device("cpu"))
    found = [sample.get(name) for sample in unpacked]
    for field in instances[0].keys():  # noqa: SIM118
        assert is_split([getattr(one.get(field), "tensor", one.get(field)) for one in found])
    return found
