"""Many tensors, one copy: nests of arrays, tensors and ragged batches go to a device through one staging buffer.

In: any nest of containers. Out: the same nest, its data on the device.

    leaves   a: float32 [3]     b: int64 [2]              c: bool [2, 2]
    buffer   |aaaaaaaaaaaa....|bbbbbbbbbbbbbbbb|cccc............|    each starts at a multiple of 16 bytes
"""

from __future__ import annotations

import copy
import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from raggedbev.ragged.batch import RaggedBatch
from raggedbev.ragged.layout import Layout

__all__ = ["BufferPlan", "Slot", "copy_to_device"]

_ALIGNMENT = 16  # bytes: the widest load of a CUDA thread, and the largest element (complex128)
_LARGE = (
    1 << 20
)  # bytes from which a tensor is copied by itself: it would keep the small ones' memory alive, and they its


class Slot(NamedTuple):
    """Place of one tensor in a buffer.

    Attributes:
        start: first element, counted in elements of `dtype` from the begin of the buffer.
        shape: sizes of the dimensions.
        strides: steps of the dimensions in elements.
        dtype: type of the elements.
    """

    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype


class BufferPlan:
    """Where tensors of any types lie side by side in one buffer of bytes.

    Attributes:
        slots: in the order of `add`.
        num_bytes: needed length of the buffer; a multiple of 16.
    """

    def __init__(self) -> None:
        self.slots: list[Slot] = []
        self.num_bytes = 0

    def add(self, shape: Sequence[int], dtype: torch.dtype, strides: Sequence[int] | None = None) -> int:
        """Reserve room for a tensor; returns the number of its slot.

        Args:
            shape: of the tensor.
            dtype: of the tensor.
            strides: of a tensor without gaps and overlaps; row by row where they are not given.
        """
        shape = tuple(shape)
        strides = _contiguous_strides(shape) if strides is None else tuple(strides)
        self.slots.append(Slot(self.num_bytes // dtype.itemsize, shape, strides, dtype))
        self.num_bytes += -(-prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
        return len(self.slots) - 1

    def views(self, buffer: Tensor) -> list[Tensor]:
        """The tensors in `buffer` [num_bytes] uint8, in the order of `add`.

        Writes to one do not count as writes to another, although they share memory of the buffer.
        """
        typed = {dtype: buffer.view(dtype) for dtype in {slot.dtype for slot in self.slots}}
        return [typed[dtype].as_strided(shape, strides, start).data for start, shape, strides, dtype in self.slots]

    def staging(self, device: torch.device) -> Tensor:
        """A new host buffer for a copy to `device`, page-locked for CUDA.

        It may be dropped as soon as an asynchronous copy is queued: the caching host allocator does not hand out its
        memory again before the stream has passed the copy.
        """
        return torch.empty(self.num_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")


def copy_to_device(nested: Any, device: torch.device | str) -> Any:
    """Copy all data of a nest to a device, with one asynchronous transfer for everything small.

    Tensors of the host that have less than 1 MiB travel side by side in one page-locked buffer; larger ones, and those
    that require a gradient, go by a copy of their own. All copies are queued on the current stream: what is computed
    there sees the values, and the host waits for nothing. (A copy to the host waits, as its values are to be read.)

    Args:
        nested: lists, tuples, named tuples, dicts, deques, their subclasses and dataclasses, in any nesting, with
            tensors, NumPy arrays and `RaggedBatch`es as leaves. Everything else is handed on as it is.
        device: where the data goes.

    Returns:
        The same nest of the same types. Containers are shallow copies, into which the moved entries and fields are set;
        nothing is constructed anew, and what a dataclass holds besides its fields is handed on as it is. Arrays of
        numbers have become tensors, but for masked ones and those of types that torch lacks. Shape, dtype, strides of
        tensors without gaps, and what shares sizes with what are kept; a tensor that occurs twice is copied once.
        Tensors that are on `device` already are handed on as they are; so on the CPU nothing is copied.

    Example:
        >>> batch = {"boxes": [torch.ones(2, 9), torch.ones(0, 9)], "time": np.float64([0.5]), "token": "a"}
        >>> copy_to_device(batch, "cpu")["time"]
        tensor([0.5000], dtype=torch.float64)
    """
    target = torch.device(device)
    if target.type not in ("cpu", "meta") and target.index is None:
        target = torch.empty(0, device=target).device
    found: dict[int, Tensor] = {}
    for leaf in _leaves(nested):
        if id(leaf) not in found:
            found[id(leaf)] = leaf if isinstance(leaf, Tensor) else _from_numpy(leaf)
    moved = dict(zip(found, _copy_all(list(found.values()), target), strict=True))
    return _rebuild(nested, moved, {})


def _copy_all(tensors: list[Tensor], target: torch.device) -> list[Tensor]:
    """The tensors on `target`, in order."""
    out = list(tensors)
    packed = []
    for index, tensor in enumerate(tensors):
        if tensor.device == target:
            continue
        if target.type != "cpu" and _can_be_packed(tensor):
            packed.append(index)
        else:
            out[index] = _copy_alone(tensor, target)
    for index, copied in zip(packed, _copy_packed([tensors[i] for i in packed], target), strict=True):
        out[index] = copied
    return out


def _can_be_packed(tensor: Tensor) -> bool:
    return (
        type(tensor) is Tensor
        and tensor.is_cpu
        and tensor.layout == torch.strided
        and tensor.numel() * tensor.itemsize < _LARGE
        and not (tensor.requires_grad or tensor.is_conj() or tensor.is_neg() or tensor.is_quantized)
    )


def _copy_alone(tensor: Tensor, target: torch.device) -> Tensor:
    if target.type == "cpu":
        return tensor.to(target)
    if target.type == "cuda" and tensor.is_cpu and tensor.layout == torch.strided and not tensor.requires_grad:
        tensor = tensor.pin_memory()  # which is the tensor itself where it is pinned
    return tensor.to(target, non_blocking=True)


def _copy_packed(tensors: list[Tensor], target: torch.device) -> list[Tensor]:
    """Tensors of the host on `target`, by one copy."""
    if not tensors:
        return []
    plan = BufferPlan()
    for tensor in tensors:
        plan.add(tensor.shape, tensor.dtype, _kept_strides(tensor))
    host = plan.staging(target)
    torch._foreach_copy_(plan.views(host), tensors)
    return plan.views(host.to(target, non_blocking=True))


def _kept_strides(tensor: Tensor) -> tuple[int, ...] | None:
    """Strides of a tensor without gaps and overlaps that is not row by row; None for others, which become so."""
    if tensor.is_contiguous():
        return None
    return torch.empty_like(tensor, device="meta").stride()


def _contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def _from_numpy(array: np.ndarray) -> Tensor:
    """A view where torch can have one: neither of memory that is read-only nor backwards nor of foreign byte order."""
    fits = array.flags.writeable and array.dtype.isnative and min(array.strides, default=0) >= 0
    if not fits:
        array = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    if array.dtype.kind in "iu":
        array = array.view(f"{array.dtype.kind}{array.dtype.itemsize}")  # long long is a type of its own for torch
    return torch.from_numpy(array)


def _is_number_array(node: Any) -> bool:
    return (
        isinstance(node, np.ndarray)
        and not isinstance(node, np.ma.MaskedArray)
        and node.dtype.kind in "biufc"
        and node.dtype.type not in (np.longdouble, np.clongdouble)
    )


# -- nests -------------------------------------------------------------------------------------------------------------


def _leaves(node: Any) -> Iterator[Tensor | np.ndarray]:
    """Tensors and arrays of numbers, some perhaps more than once."""
    if isinstance(node, Tensor) or _is_number_array(node):
        yield node
    elif isinstance(node, RaggedBatch):
        yield node.tensor
        yield from node.layout.tensors()
    else:
        for child in _children(node):
            yield from _leaves(child)


def _children(node: Any) -> Sequence:
    if isinstance(node, list | tuple | deque):
        return node
    if isinstance(node, dict):
        return list(node.values())
    return [getattr(node, name) for name in _field_names(node)]


def _field_names(node: Any) -> list[str]:
    """Fields of a dataclass that are set; none of anything else."""
    if not dataclasses.is_dataclass(node) or isinstance(node, type):
        return []
    return [field.name for field in dataclasses.fields(node) if hasattr(node, field.name)]


def _rebuild(node: Any, moved: dict[int, Tensor], layouts: dict[int, Layout]) -> Any:
    """`node` with `moved` in place of its leaves, by their identity; `layouts` is filled with the moved layouts."""
    if isinstance(node, Tensor) or _is_number_array(node):
        return moved[id(node)]
    if isinstance(node, RaggedBatch):
        layout = layouts.get(id(node.layout))
        if layout is None:
            layout = node.layout.map(lambda tensor, _: moved[id(tensor)], same_samples=True)
            layouts[id(node.layout)] = layout
        return RaggedBatch.from_layout(moved[id(node.tensor)], layout, node.non_uniform_dim)
    children = [_rebuild(child, moved, layouts) for child in _children(node)]
    for kind, replace in _REPLACE.items():
        if isinstance(node, kind):
            return replace(node, children)
    names = _field_names(node)
    if not names:
        return node
    out = copy.copy(node)
    for name, child in zip(names, children, strict=True):
        object.__setattr__(out, name, child)  # of frozen ones, too
    return out


def _replace_in_sequence(node: Any, children: list) -> Any:
    if type(node) is list:
        return children
    out = copy.copy(node)
    out.clear()
    out.extend(children)
    return out


def _replace_in_tuple(node: tuple, children: list) -> tuple:
    if all(new is old for new, old in zip(children, node, strict=True)):
        return node
    return type(node)._make(children) if hasattr(node, "_make") else type(node)(children)


def _replace_in_dict(node: dict, children: list) -> dict:
    out = copy.copy(node)
    for key, child in zip(node, children, strict=True):
        out[key] = child
    return out


_REPLACE: dict[type | tuple[type, ...], Callable[[Any, list], Any]] = {
    (list, deque): _replace_in_sequence,
    tuple: _replace_in_tuple,
    dict: _replace_in_dict,
}
