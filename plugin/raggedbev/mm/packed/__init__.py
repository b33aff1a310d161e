"""Ground truth of a batch in one buffer: packed in the loader's workers, copied once, read by the heads where it lies.

In: data samples of a batch. Out: `PackedSamples`, which travels as one tensor and becomes, on the model's device, the
same data samples again. Their instances are plain `InstanceData` whose tensors are views of ragged batches; where a
batched head packs them, `combine_data` finds these batches behind the views, and nothing is packed again.
"""

from raggedbev.mm.packed.boxes import tensor_of
from raggedbev.mm.packed.checks import BOX_NUMBERS, stacked_meta
from raggedbev.mm.packed.instances import PackedInstances, UnitList, column
from raggedbev.mm.packed.naming import describe_sample, names_of
from raggedbev.mm.packed.packer import META_KEYS, new_buffer
from raggedbev.mm.packed.samples import PackedSamples, UnpackedSamples

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
    "stacked_meta",
    "tensor_of",
]
