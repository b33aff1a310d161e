"""The ragged batch: samples of different size along one dimension in one padded tensor.

In: a padded tensor with the number of valid entries per sample (or a mask). Out: `RaggedBatch`, on which ordinary
batched torch code runs, with the raggedness travelling along.

    samples      [[a, b], [], [c]]
    tensor       [[a, b], [x, x], [c, x]]     x = filler: any value, NaN included
    sample_sizes [2, 0, 1]
    mask         [[1, 1], [0, 0], [1, 0]]     made from sample_sizes when asked for (or the other way round)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from raggedbev.ragged.arguments import (
    flat_shape,
    integers,
    require_dim,
    require_integers,
    require_representable,
    require_tensor,
    required_parameters,
    resolve_shape,
)
from raggedbev.ragged.layout import Layout, checked_layout, is_transformed
from raggedbev.ragged.primitives import ragged_fill

__all__ = ["RaggedBatch"]


class RaggedBatch:
    """A padded tensor together with the number of valid entries per sample.

    Valid entries come first along the ragged dimension; what follows is filler and is never read as data.

    Args:
        tensor: [*batch, ..., max_sample_size, ...] data of any dtype.
        mask: [*batch, max_sample_size] bool, True for valid entries. Either this or `sample_sizes` is needed.
        sample_sizes: [*batch] integer, valid entries per sample, on the device of `tensor`.
        non_uniform_dim: the ragged dimension; the first one after the batch dimensions by default.

    Raises:
        TypeError: not a tensor, sizes that are not integers, a mask that is not bool.
        ValueError: shapes, devices or values do not fit. Values are checked where that costs no device synchronisation
            (on the CPU), and everywhere with `RAGGEDBEV_DEBUG=1`.
    """

    def __init__(
        self,
        tensor: Tensor,
        mask: Tensor | None = None,
        sample_sizes: Tensor | None = None,
        non_uniform_dim: int | None = None,
    ) -> None:
        self._layout, self._non_uniform_dim = checked_layout(tensor, mask, sample_sizes, non_uniform_dim)
        self._tensor = tensor

    @classmethod
    def from_layout(cls, tensor: Tensor, layout: Layout, non_uniform_dim: int) -> RaggedBatch:
        """From a layout that is known to fit; nothing is checked."""
        batch = cls.__new__(cls)
        batch._tensor, batch._layout, batch._non_uniform_dim = tensor, layout, non_uniform_dim
        return batch

    # -- constructors ------------------------------------------------------------------------------

    @classmethod
    def from_full_tensor(
        cls, tensor: Tensor, non_uniform_dim: int = 1, num_batch_dims: int | None = None
    ) -> RaggedBatch:
        """All entries of `tensor` are valid. `num_batch_dims` defaults to `non_uniform_dim`."""
        require_tensor("tensor", tensor)
        num_batch_dims = non_uniform_dim if num_batch_dims is None else num_batch_dims
        require_dim("non_uniform_dim", non_uniform_dim, 1, tensor.dim())
        require_dim("num_batch_dims", num_batch_dims, 1, non_uniform_dim + 1)
        length, batch_shape = tensor.shape[non_uniform_dim], tensor.shape[:num_batch_dims]
        sizes = torch.full(batch_shape, length, dtype=torch.long, device=tensor.device)
        return cls.from_layout(tensor, Layout(sizes, None, length), non_uniform_dim)

    @classmethod
    def from_oversize_tensor(
        cls,
        tensor: Tensor,
        sample_sizes: Tensor,
        max_sample_size: int | None = None,
        non_uniform_dim: int | None = None,
    ) -> RaggedBatch:
        """From a tensor that is padded wider than needed; it is cropped to `max_sample_size`.

        Without `max_sample_size` the largest sample size is read from the device: one synchronisation on an
        accelerator.
        """
        require_tensor("tensor", tensor)
        require_integers("sample_sizes", sample_sizes)
        dim = sample_sizes.dim() if non_uniform_dim is None else non_uniform_dim
        require_dim("non_uniform_dim", dim, sample_sizes.dim(), tensor.dim())
        if max_sample_size is None:
            max_sample_size = int(sample_sizes.max()) if sample_sizes.numel() else 0
        if not 0 <= max_sample_size <= tensor.shape[dim]:
            raise ValueError(f"max_sample_size must lie in [0, {tensor.shape[dim]}], got {max_sample_size}")
        return cls(tensor.narrow(dim, 0, max_sample_size), sample_sizes=sample_sizes, non_uniform_dim=dim)

    @classmethod
    def empty(
        cls,
        batch_shape: int | Sequence[int] = 0,
        data_shape: Sequence[int] = (),
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> RaggedBatch:
        """No entries at all: a tensor [*batch_shape, 0, *data_shape]."""
        batch_shape = flat_shape((batch_shape,))
        tensor = torch.empty((*batch_shape, 0, *data_shape), dtype=dtype, device=device)
        return cls(tensor, sample_sizes=torch.zeros(batch_shape, dtype=torch.long, device=device))

    def create_with_sample_sizes_like_self(self, tensor: Tensor, non_uniform_dim: int | None = None) -> RaggedBatch:
        """Other data with the same raggedness; mask and sample sizes are shared, not copied."""
        require_tensor("tensor", tensor)
        layout, shape = self._layout, tensor.shape
        batch_shape = layout.batch_shape
        num = len(batch_shape)
        dim = num if non_uniform_dim is None else non_uniform_dim
        if shape[:num] != batch_shape:
            raise ValueError(f"tensor must start with the batch shape {tuple(batch_shape)}, got {tuple(shape)}")
        require_dim("non_uniform_dim", dim, num, len(shape))
        if shape[dim] != layout.max_sample_size:
            raise ValueError(f"dimension {dim} must have {layout.max_sample_size} entries, got {tuple(shape)}")
        if tensor.device != self._tensor.device:
            raise ValueError(f"tensor must be on {self._tensor.device} like the sizes, got {tensor.device}")
        return self.from_layout(tensor, layout, dim)

    # -- accessors ---------------------------------------------------------------------------------

    @property
    def tensor(self) -> Tensor:
        """The padded tensor."""
        return self._tensor

    @property
    def mask(self) -> Tensor:
        """[*batch, max_sample_size] bool, True for valid entries."""
        return self._layout.mask

    @property
    def sample_sizes(self) -> Tensor:
        """[*batch] int64, valid entries per sample."""
        return self._layout.sample_sizes

    @property
    def layout(self) -> Layout:
        """Sizes and mask, as shared by batches with the same raggedness."""
        return self._layout

    @property
    def non_uniform_dim(self) -> int:
        """The ragged dimension of `tensor`."""
        return self._non_uniform_dim

    @property
    def num_batch_dims(self) -> int:
        """Leading batch dimensions."""
        return len(self._layout.batch_shape)

    @property
    def batch_shape(self) -> torch.Size:
        """Sizes of the batch dimensions."""
        return self._layout.batch_shape

    @property
    def max_sample_size(self) -> int:
        """Padded length of the ragged dimension (host integer)."""
        return self._layout.max_sample_size

    @property
    def shape(self) -> torch.Size:
        """Shape of the padded tensor."""
        return self._tensor.shape

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the padded tensor."""
        return self._tensor.dtype

    @property
    def device(self) -> torch.device:
        """Device of the padded tensor, the mask and the sizes."""
        return self._tensor.device

    @property
    def requires_grad(self) -> bool:
        """Whether the padded tensor requires a gradient."""
        return self._tensor.requires_grad

    @property
    def total_num_entries(self) -> int:
        """Valid entries of the whole batch. Reads the device: one synchronisation on an accelerator, unless the batch
        was packed from lists, so that the host knows the sizes."""
        return sum(self._layout.read_sizes())

    @property
    def total_num_samples_in_batch(self) -> int:
        """Number of samples over all batch dimensions (host integer, no device read)."""
        return math.prod(self.batch_shape)

    def size(self, dim: int | None = None) -> torch.Size | int:
        """As `Tensor.size` of the padded tensor."""
        return self._tensor.shape if dim is None else self._tensor.shape[dim]

    def dim(self) -> int:
        """Dimensions of the padded tensor."""
        return self._tensor.dim()

    def detach(self) -> RaggedBatch:
        """The same without gradient history."""
        return self._with(self._tensor.detach())

    def __len__(self) -> int:
        return self._tensor.shape[0]

    def __getitem__(self, item: Any) -> Tensor:
        return self._tensor[item]

    def __setitem__(self, item: Any, value: Any) -> None:
        self._tensor[item] = value

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._tensor)

    def __repr__(self) -> str:
        layout = f"non_uniform_dim={self._non_uniform_dim}, sample_sizes={self.sample_sizes}"
        return f"RaggedBatch({layout}, tensor={self._tensor})"

    def __getstate__(self) -> dict[str, Any]:
        return {"tensor": self._tensor, "layout": self._layout, "non_uniform_dim": self._non_uniform_dim}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._tensor, self._layout, self._non_uniform_dim = state["tensor"], state["layout"], state["non_uniform_dim"]

    # -- data --------------------------------------------------------------------------------------

    def _with(self, tensor: Tensor) -> RaggedBatch:
        return self.from_layout(tensor, self._layout, self._non_uniform_dim)

    def _broadcastable_mask(self) -> Tensor:
        """Mask as [*batch, 1.., max_sample_size, 1..], in line with the data."""
        shape = [1] * self.dim()
        shape[: self.num_batch_dims] = self.batch_shape
        shape[self._non_uniform_dim] = self.max_sample_size
        return self.mask.reshape(shape)

    def get_existence_weights(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """1 for valid entries and 0 for filler, broadcastable to the data."""
        return self._broadcastable_mask().to(dtype)

    def with_padded_set_to(self, value: float) -> RaggedBatch:
        """A copy whose filler is `value`; the gradient of filler is zero."""
        tensor, layout, dim = self._tensor, self._layout, self._non_uniform_dim
        if value != 0:
            require_representable("value", value, tensor.dtype)
        filled = ragged_fill(tensor, layout.sample_sizes, value, dim - tensor.dim())
        return self.from_layout(filled, layout, dim)

    def set_padded_to(self, value: float) -> RaggedBatch:
        """Write the filler in place; returns self.

        Autograd sees the write: the gradient of filler is zero. Where memory cannot be written to, this batch gets a
        copy instead: where entries share memory (an expanded view), a leaf that requires a gradient or a view of one,
        one of several views that one operation made of a tensor with a gradient (`split`, `unbind`), and inside
        `torch.func` transforms.
        """
        tensor = self._tensor
        require_representable("value", value, tensor.dtype)
        if not (_is_protected(tensor) or _shares_memory(tensor) or is_transformed()):
            try:
                tensor.masked_fill_(~self._broadcastable_mask(), value)
            except RuntimeError:
                if not (tensor.requires_grad and tensor._is_view()):
                    raise
            else:
                return self
        self._tensor = self.with_padded_set_to(value)._tensor
        return self

    def get_non_uniform_dimension_transposed_to(self, dim: int) -> RaggedBatch:
        """The ragged dimension exchanged with data dimension `dim`."""
        require_dim("dim", dim, self.num_batch_dims, self.dim())
        return self.from_layout(self._tensor.transpose(self._non_uniform_dim, dim), self._layout, dim)

    def split(self) -> list:
        """(Nested) list of the samples, cropped to their sizes: views.

        Reads the device once for the whole batch: one synchronisation on an accelerator, unless the batch was packed
        from lists, so that the host knows the sizes.
        """
        sizes = iter(self._layout.read_sizes())
        dim = self._non_uniform_dim - self.num_batch_dims

        def views(tensor: Tensor, levels: int) -> Any:
            if not levels:
                return tensor.narrow(dim, 0, next(sizes))
            return [views(part, levels - 1) for part in tensor.unbind(0)]

        return views(self._tensor, self.num_batch_dims)

    def apply(self, fn: Callable[..., Tensor | tuple[Tensor, ...]]) -> RaggedBatch | tuple[RaggedBatch, ...]:
        """New batch from `fn(tensor)`, `fn(tensor, mask)` or `fn(tensor, mask, sample_sizes)`, by what `fn` takes.

        Args:
            fn: function, module, partial, builtin or other callable. Its positional parameters without a default
                count; one that has none of them (`*args`), or no signature, gets the tensor only.

        Returns:
            The result with the same raggedness; a tuple of results gives a tuple of batches. Results must keep the
            batch dimensions and the ragged dimension.
        """
        count = required_parameters(fn)
        arguments = (self._tensor, self.mask if count > 1 else None, self.sample_sizes if count > 2 else None)
        result = fn(*arguments[:count])
        dim = self._non_uniform_dim
        if isinstance(result, tuple):
            return tuple(self.create_with_sample_sizes_like_self(r, dim) for r in result)
        return self.create_with_sample_sizes_like_self(result, dim)

    # -- batch and data dimensions -----------------------------------------------------------------

    def _map_batch(self, on_batch: Callable[[Tensor, int], Tensor], same_samples: bool = True) -> RaggedBatch:
        """Change the batch dimensions of data, sizes and mask by `on_batch(tensor, num_trailing_dims)`."""
        before = self.num_batch_dims
        layout = self._layout.map(on_batch, same_samples)
        tensor = on_batch(self._tensor, self.dim() - before)
        return self.from_layout(tensor, layout, self._non_uniform_dim + len(layout.batch_shape) - before)

    def _batch_dim(self, dim: int, count: int | None = None) -> int:
        count = self.num_batch_dims if count is None else count
        wrapped = dim + count if dim < 0 else dim
        if not 0 <= wrapped < count:
            raise ValueError(f"batch dimension must lie in [{-count}, {count}), got {dim}")
        return wrapped

    def unsqueeze_batch_dim(self, dim: int) -> RaggedBatch:
        """Insert a batch dimension of size one; `dim` counts batch dimensions only."""
        dim = self._batch_dim(dim, self.num_batch_dims + 1)
        return self._map_batch(lambda t, _: t.unsqueeze(dim))

    def squeeze_batch_dim(self, dim: int) -> RaggedBatch:
        """Remove a batch dimension of size one."""
        dim = self._batch_dim(dim)
        if self.batch_shape[dim] != 1 or self.num_batch_dims == 1:
            raise ValueError(f"batch dimension {dim} of {tuple(self.batch_shape)} cannot be squeezed")
        return self._map_batch(lambda t, _: t.squeeze(dim))

    def reshape_batch_dims(self, *shape: int | Sequence[int]) -> RaggedBatch:
        """Reshape the batch dimensions (one -1 allowed), data dimensions untouched."""
        target = resolve_shape(shape, self.total_num_samples_in_batch)
        return self._map_batch(lambda t, trailing: t.reshape(*target, *t.shape[t.dim() - trailing :]))

    def flatten_batch_dims(self) -> RaggedBatch:
        """All batch dimensions as one."""
        return self.reshape_batch_dims(self.total_num_samples_in_batch)

    def repeat_samples(self, num_repeats: int | Sequence[int], batch_dim: int | Sequence[int] = 0) -> RaggedBatch:
        """Repeat the samples along batch dimensions, as `Tensor.repeat`; a view where the dimension has size one."""
        repeats, dims = integers("num_repeats", num_repeats), integers("batch_dim", batch_dim)
        if len(repeats) != len(dims):
            raise ValueError(f"num_repeats and batch_dim must have the same length, got {len(repeats)} and {len(dims)}")
        if any(count < 0 for count in repeats):
            raise ValueError(f"num_repeats must not be negative, got {num_repeats}")
        counts = [1] * self.num_batch_dims
        wrapped = [self._batch_dim(dim) for dim in dims]
        if len(set(wrapped)) < len(wrapped):
            raise ValueError(f"batch_dim must name each dimension once, got {batch_dim}")
        for dim, count in zip(wrapped, repeats, strict=True):
            counts[dim] = count
        if all(count == 1 or size == 1 for count, size in zip(counts, self.batch_shape, strict=True)):
            shape = [count if size == 1 else size for count, size in zip(counts, self.batch_shape, strict=True)]
            return self.broadcast_batch_dims_to_shape(shape)
        return self._map_batch(lambda t, trailing: t.repeat(*counts, *[1] * trailing), same_samples=False)

    def broadcast_batch_dims_to_shape(self, *shape: int | Sequence[int]) -> RaggedBatch:
        """Expand batch dimensions of size one (and add leading ones), without copying."""
        target = flat_shape(shape)
        missing = len(target) - self.num_batch_dims
        fits = missing >= 0 and all(
            have in (want, 1) for have, want in zip(self.batch_shape, target[max(missing, 0) :], strict=True)
        )
        if not fits or any(size < 0 for size in target):
            raise ValueError(f"batch shape {tuple(self.batch_shape)} cannot be broadcast to {target}")

        def expand(t: Tensor, trailing: int) -> Tensor:
            return t[(None,) * missing].expand(*target, *t.shape[t.dim() - trailing :])

        return self._map_batch(expand, same_samples=False)

    @staticmethod
    def broadcast_batch_dims(batches: Sequence[RaggedBatch]) -> tuple[RaggedBatch, ...]:
        """Expand the batch dimensions of all `batches` to their common shape, without copying."""
        if not batches:
            raise ValueError("broadcast_batch_dims needs at least one batch, got none")
        shapes = [tuple(batch.batch_shape) for batch in batches]
        try:
            common = torch.broadcast_shapes(*shapes)
        except RuntimeError:
            raise ValueError(f"batch shapes must broadcast with each other, got {shapes}") from None
        return tuple(batch.broadcast_batch_dims_to_shape(common) for batch in batches)

    def unsqueeze_data_dim(self, dim: int) -> RaggedBatch:
        """Insert a data dimension of size one at position `dim` of the tensor."""
        wrapped = dim + self.dim() + 1 if dim < 0 else dim
        if not self.num_batch_dims <= wrapped <= self.dim():
            raise ValueError(f"dim must lie in [{self.num_batch_dims}, {self.dim() + 1}), got {dim}")
        shifted = self._non_uniform_dim + (wrapped <= self._non_uniform_dim)
        return self.from_layout(self._tensor.unsqueeze(wrapped), self._layout, shifted)

    # -- conversions -------------------------------------------------------------------------------

    def to(self, *args: Any, **kwargs: Any) -> RaggedBatch:
        """As `Tensor.to`: a device moves data, sizes and mask, a dtype changes the data only."""
        tensor = self._tensor.to(*args, **kwargs)
        if tensor.device == self.device:
            return self._with(tensor)
        positional = next((arg for arg in args if isinstance(arg, bool)), False)
        non_blocking = bool(kwargs.get("non_blocking", positional))
        layout = self._layout.map(lambda t, _: t.to(tensor.device, non_blocking=non_blocking), same_samples=True)
        return self.from_layout(tensor, layout, self._non_uniform_dim)

    def to_device(self, device: torch.device | str) -> RaggedBatch:
        """Move data, sizes and mask."""
        return self.to(device)

    def to_dtype(self, dtype: torch.dtype) -> RaggedBatch:
        """Convert the data."""
        return self.to(dtype)

    def cpu(self) -> RaggedBatch:
        """Move to the host."""
        return self.to("cpu")

    def float(self) -> RaggedBatch:
        """Data as float32."""
        return self.to(torch.float32)

    def half(self) -> RaggedBatch:
        """Data as float16."""
        return self.to(torch.float16)

    def bfloat16(self) -> RaggedBatch:
        """Data as bfloat16."""
        return self.to(torch.bfloat16)

    def double(self) -> RaggedBatch:
        """Data as float64."""
        return self.to(torch.float64)

    def int(self) -> RaggedBatch:
        """Data as int32."""
        return self.to(torch.int32)

    def long(self) -> RaggedBatch:
        """Data as int64."""
        return self.to(torch.int64)

    def bool(self) -> RaggedBatch:
        """Data as bool."""
        return self.to(torch.bool)

    def pin_memory(self) -> RaggedBatch:
        """Data, sizes and mask in page-locked memory."""
        layout = self._layout.map(lambda t, _: t.pin_memory(), same_samples=True)
        return self.from_layout(self._tensor.pin_memory(), layout, self._non_uniform_dim)


def _is_protected(tensor: Tensor) -> bool:
    """Whether autograd forbids writing to `tensor`: a leaf that requires a gradient, or a view of one."""
    if not tensor.requires_grad or not torch.is_grad_enabled():
        return False
    if torch.compiler.is_compiling():
        return tensor.is_leaf or tensor._base is not None  # whose leaf the base is cannot be asked there
    base = tensor._base
    return tensor.is_leaf or (base is not None and base.is_leaf and base.requires_grad)


def _shares_memory(tensor: Tensor) -> bool:
    """Whether several entries may lie at the same place in memory; in compiled code, where strides are no numbers that
    can be sorted, whether the tensor is expanded."""
    dimensions = list(zip(tensor.stride(), tensor.shape, strict=True))
    if torch.compiler.is_compiling():
        return any(stride == 0 and size > 1 for stride, size in dimensions)
    reach = 1  # of the dimensions with smaller strides
    for stride, size in sorted(dimensions):
        if size > 1:
            if stride < reach:
                return True
            reach += stride * (size - 1)
    return False


def _flatten(batch: RaggedBatch) -> tuple[list, int]:
    """Leaves, and the ragged dimension counted from the last batch dimension: so `vmap` may take batch dimensions."""
    sizes = batch.sample_sizes
    return [batch.tensor, sizes], batch.non_uniform_dim - (sizes.dim() if isinstance(sizes, Tensor) else 0)


def _flatten_with_keys(batch: RaggedBatch) -> tuple[list, int]:
    leaves, context = _flatten(batch)
    return [(pytree.GetAttrKey(name), leaf) for name, leaf in zip(_LEAVES, leaves, strict=True)], context


def _unflatten(leaves: Any, data_dim: int) -> RaggedBatch:
    tensor, sizes = leaves
    dim = data_dim + (sizes.dim() if isinstance(sizes, Tensor) else 0)
    length = tensor.shape[dim] if isinstance(tensor, Tensor) and tensor.dim() > dim else 0
    return RaggedBatch.from_layout(tensor, Layout(sizes, None, length), dim)


_LEAVES = ("tensor", "sample_sizes")
pytree.register_pytree_node(
    RaggedBatch,
    _flatten,
    _unflatten,
    serialized_type_name="raggedbev.RaggedBatch",
    flatten_with_keys_fn=_flatten_with_keys,
)
torch.serialization.add_safe_globals([RaggedBatch, Layout])  # for torch.load(weights_only=True)
