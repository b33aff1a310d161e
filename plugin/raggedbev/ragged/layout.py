"""The layout of a ragged batch: how many entries of each sample are valid.

In: sample sizes or a mask. Out: `Layout`, which makes either of the other and is shared by all batches with the same
raggedness; and the checks of what users hand over.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from raggedbev.ragged.arguments import require_dim, require_integers, require_tensor

__all__ = [
    "Layout",
    "checked_layout",
    "debug_mode",
    "is_readable",
    "is_transformed",
]

_DEBUG = os.environ.get("RAGGEDBEV_DEBUG", "0") == "1"


def debug_mode() -> bool:
    """Whether `RAGGEDBEV_DEBUG=1`, set before the import, asks for value checks, which read the device."""
    return _DEBUG


def is_readable(tensor: Tensor) -> bool:
    """Whether reading values for a check costs no device synchronisation (or was asked for)."""
    if torch.compiler.is_compiling() or type(tensor) is not Tensor:
        return False
    if tensor.device.type != "cpu" and (not _DEBUG or tensor.device.type == "meta" or _is_capturing(tensor)):
        return False
    return torch._C._functorch.maybe_get_level(tensor) == -1


def is_transformed() -> bool:
    """Whether this runs inside a transform of `torch.func` (`vmap`, `grad`, `jvp`)."""
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None


def _is_capturing(value: Any) -> bool:
    """Whether `value` is a tensor whose work becomes part of a CUDA graph just now."""
    if not isinstance(value, Tensor) or not value.is_cuda or torch.compiler.is_compiling():
        return False
    return torch.cuda.is_current_stream_capturing()


class Layout:
    """Sizes and mask, made of each other when asked for; shared by all batches with the same raggedness.

    What is made is kept until what it was made of is written to in place, as torch counts such writes: sizes that are
    overwritten between two replays of a CUDA graph never meet a stale mask. Sizes that a graph itself computes change
    with every replay and are not counted, so nothing that is made of them is kept. Writes through `.data`, a NumPy
    array or another process are not counted either: make a new batch after them.

    Args:
        sample_sizes: [*batch] int64 or None when only the mask is known.
        mask: [*batch, max_sample_size] bool or None when only the sizes are known.
        max_sample_size: padded length, a host integer.
        host_sizes: the sizes sample by sample, where the host knows them anyway: spares reading the device.
    """

    def __init__(
        self,
        sample_sizes: Tensor | None,
        mask: Tensor | None,
        max_sample_size: int,
        host_sizes: Sequence[int] | None = None,
    ) -> None:
        self._sizes = sample_sizes
        self._mask = mask
        self.max_sample_size = max_sample_size
        self._made: dict[Hashable, tuple[Tensor, int]] = {}
        self._replayed = _is_capturing(sample_sizes) or _is_capturing(mask)
        self._remember(host_sizes)

    def _remember(self, host_sizes: Sequence[int] | None) -> None:
        self._host: tuple[Sequence[int], int] | None = None
        if host_sizes is not None and self._sizes is not None and self._may_keep(self._sizes):
            self._host = (host_sizes, self._sizes._version)

    @property
    def sample_sizes(self) -> Tensor:
        """[*batch] int64."""
        return self._make("sizes", self.mask, _count) if self._sizes is None else self._sizes

    @property
    def mask(self) -> Tensor:
        """[*batch, max_sample_size] bool."""
        return self._make("mask", self.sample_sizes, self._compare) if self._mask is None else self._mask

    def divisors(self, dtype: torch.dtype, least: int, data_dims: int) -> Tensor:
        """[*batch, 1..] of type `dtype`, with `data_dims` dimensions of size one: the entries that count, but at least
        `least`, for means."""

        def make(sizes: Tensor) -> Tensor:
            counting = sizes.clamp(max=self.max_sample_size).clamp(min=least)
            return counting.to(dtype).reshape(sizes.shape + (1,) * data_dims)

        return self._make((dtype, least, data_dims), self.sample_sizes, make)

    @property
    def batch_shape(self) -> torch.Size:
        """Sizes of the batch dimensions."""
        return self.mask.shape[:-1] if self._sizes is None else self._sizes.shape

    def host_sizes(self) -> Sequence[int] | None:
        """The sizes sample by sample if they can be had without reading a device, None otherwise."""
        sizes = self.sample_sizes
        if is_readable(sizes):
            return _to_list(sizes)
        known = self._host
        return known[0] if known is not None and self._may_keep(sizes) and known[1] == sizes._version else None

    def read_sizes(self) -> Sequence[int]:
        """The sizes sample by sample; one synchronisation on an accelerator unless the host knows them. Those outside
        [0, max_sample_size] are the nearer end, as for every operator."""
        values = self.host_sizes()
        if values is None:
            sizes = self.sample_sizes
            values = _to_list(sizes)
            if self._may_keep(sizes):
                self._host = (values, sizes._version)
        if values and (min(values) < 0 or max(values) > self.max_sample_size):
            return [min(max(value, 0), self.max_sample_size) for value in values]
        return values

    def tensors(self) -> list[Tensor]:
        """What the layout holds: sizes, mask or both."""
        return [tensor for tensor in (self._sizes, self._mask) if tensor is not None]

    def map(self, on_batch: Callable[[Tensor, int], Tensor], same_samples: bool) -> Layout:
        """New layout from `on_batch(tensor, num_trailing_dims)`, applied to what is known of sizes and mask.

        Args:
            on_batch: changes the batch dimensions.
            same_samples: whether all samples stay, in their order.
        """
        sizes = None if self._sizes is None else on_batch(self._sizes, 0)
        mask = None if self._mask is None else on_batch(self._mask, 1)
        host = None if self._host is None or not same_samples else self.host_sizes()
        layout = Layout(sizes, mask, self.max_sample_size, host)
        layout._replayed |= self._replayed
        return layout

    def __getstate__(self) -> tuple:
        host = None if self._host is None else self.host_sizes()
        return self._sizes, self._mask, self.max_sample_size, host

    def __setstate__(self, state: tuple) -> None:
        self._sizes, self._mask, self.max_sample_size, host = state
        self._made, self._replayed = {}, False
        self._remember(host)

    def _compare(self, sizes: Tensor) -> Tensor:
        return torch.arange(self.max_sample_size, device=sizes.device) < sizes.unsqueeze(-1)

    def _make(self, name: Hashable, source: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
        if not self._may_keep(source) or _is_capturing(source):
            return make(source)
        known, version = self._made.get(name), source._version
        if known is None or known[1] != version:
            self._made[name] = known = (make(source), version)
        return known[0]

    def _may_keep(self, source: Tensor) -> bool:
        return not self._replayed and _is_versioned(source)


def _count(mask: Tensor) -> Tensor:
    return mask.sum(-1)


def _to_list(sizes: Tensor) -> list[int]:
    return sizes.tolist() if sizes.dim() == 1 else sizes.reshape(-1).tolist()


def _is_versioned(tensor: Tensor) -> bool:
    """Whether in-place writes to `tensor` are counted, and what is made of it can be used anywhere later on."""
    return not (
        torch.compiler.is_compiling()
        or torch.is_inference_mode_enabled()
        or tensor.is_inference()
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def checked_layout(tensor: Tensor, mask: Tensor | None, sizes: Tensor | None, dim: int | None) -> tuple[Layout, int]:
    require_tensor("tensor", tensor)
    if sizes is not None:
        require_integers("sample_sizes", sizes)
        sizes = sizes.long()
    if mask is not None:
        require_tensor("mask", mask)
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be a bool tensor, got {mask.dtype}")
    if sizes is not None:
        batch_shape = sizes.shape
    elif mask is not None:
        batch_shape = mask.shape[:-1]
    else:
        raise ValueError("RaggedBatch needs mask or sample_sizes; from_full_tensor is for batches without filler")
    num_batch_dims = len(batch_shape)
    dim = num_batch_dims if dim is None else dim
    if num_batch_dims < 1:
        raise ValueError("RaggedBatch needs at least one batch dimension, got a single sample size")
    if tensor.shape[:num_batch_dims] != batch_shape:
        raise ValueError(
            f"{'mask' if sizes is None else 'sample_sizes'} has the batch shape {tuple(batch_shape)} but the tensor "
            f"is {tuple(tensor.shape)}"
        )
    if tensor.dim() <= num_batch_dims:
        raise ValueError(
            f"the tensor must be [*batch, N, ...] with the batch shape {tuple(batch_shape)}, got {tuple(tensor.shape)}"
        )
    require_dim("non_uniform_dim", dim, num_batch_dims, tensor.dim())
    length = tensor.shape[dim]
    if mask is not None and mask.shape != (*batch_shape, length):
        raise ValueError(f"mask must be {(*batch_shape, length)}, got {tuple(mask.shape)}")
    for name, other in (("sample_sizes", sizes), ("mask", mask)):
        if other is not None and other.device != tensor.device:
            raise ValueError(f"{name} must be on {tensor.device} like the tensor, got {other.device}")
    layout = Layout(sizes, mask, length)
    _check_values(layout, sizes, mask)
    return layout, dim


def _check_values(layout: Layout, sizes: Tensor | None, mask: Tensor | None) -> None:
    if sizes is not None and sizes.numel() and is_readable(sizes):
        values = _to_list(sizes)
        low, high = min(values), max(values)
        if low < 0 or high > layout.max_sample_size:
            raise ValueError(f"sample_sizes must lie in [0, {layout.max_sample_size}], got values in [{low}, {high}]")
    if mask is not None and is_readable(mask):
        expected = Layout(mask.sum(-1) if sizes is None else sizes, None, layout.max_sample_size).mask
        wrong = (mask != expected).reshape(-1, layout.max_sample_size).any(-1) if mask.numel() else mask.new_zeros(0)
        if wrong.any():
            sample = int(wrong.nonzero()[0, 0])
            row = mask.reshape(-1, layout.max_sample_size)[sample].int().tolist()
            wanted = expected.reshape(-1, layout.max_sample_size)[sample].int().tolist()
            raise ValueError(
                "mask must have the valid entries of each sample first (and as many as sample_sizes says): "
                f"sample {sample} has {row}, expected {wanted}"
            )
