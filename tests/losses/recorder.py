"""Graphs on the CPU: records the operators below autograd, and replays them into the memory of the recording.

A stand-in for CUDA graphs that is as strict: nothing is computed by recording, reading a value while it records
raises, and replaying one recording ruins what the others of its pool left in shared memory, unless it reads that.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "bincount"}


class Recording(TorchDispatchMode):
    """Operators with their arguments and results, in order.

    Attributes:
        calls: (operator, arguments, keyword arguments, results).
        read: addresses of memory that was there before.
        made: memory that the recording fills, by address.
    """

    def __init__(self):
        super().__init__()
        self.calls, self.read, self.made = [], set(), {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if name in READS:
            raise RuntimeError(f"{name} reads a value, which a capture does not allow")
        kwargs = kwargs or {}
        self.read |= {address(tensor) for tensor in tensors_of((args, kwargs))} - self.made.keys()
        result = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, result))
        for tensor in tensors_of(result):
            if address(tensor) not in self.read:
                self.made.setdefault(address(tensor), tensor)
        return result

    def replay(self):
        with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
            for func, args, kwargs, result in self.calls:
                again = func(*args, **kwargs)
                for old, new in zip(tensors_of(result), tensors_of(again), strict=True):
                    if address(old) != address(new):
                        old.copy_(new)

    def ruin(self):
        with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
            for tensor in self.made.values():
                memory = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
                memory.fill_(float("nan") if memory.is_floating_point() else 0)


def tensors_of(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.numel()]


def address(tensor):
    return tensor.untyped_storage().data_ptr()


class Recorder:
    """A backend for `GraphedLoss` on the CPU.

    Attributes:
        pools: recordings by pool.
        warm_ups: calls of `warm_up`.
    """

    def __init__(self):
        self.pools, self.warm_ups = [], 0

    def __deepcopy__(self, memo):
        return Recorder()

    def supports(self, tensor):
        return tensor.device.type == "cpu"

    def new_pool(self):
        self.pools.append([])
        return self.pools[-1]

    def warm_up(self, work):
        self.warm_ups += 1
        work()

    def record(self, work, pool):
        with Recording() as recording:
            result = work()
        recording.ruin()
        pool.append(recording)

        def replay():
            for other in pool:
                if other is not recording and not recording.read & other.made.keys():
                    other.ruin()
            recording.replay()

        return replay, result
