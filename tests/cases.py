"""Ragged cases that all tests share, degenerate ones first, and makers of batches for them.

Filler is poisoned (NaN, or the extreme value of an integer type): whatever reads it shows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raggedbev.ragged import RaggedBatch

SIZES = [[0], [0, 0], [5], [2, 0, 3], [1] * 33]
"""Entries per sample."""

FLOATING = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INTEGER = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
DTYPES = [*FLOATING, *INTEGER, torch.bool]
INDEX_DTYPES = [torch.int32, torch.int64]


def batch_shapes(count: int) -> list[tuple[int, ...]]:
    """Ways to arrange `count` samples in batch dimensions."""
    shapes: list[tuple[int, ...]] = [(count,), (1, count), (count, 1)]
    return [*shapes, (2, count // 2)] if count > 2 and count % 2 == 0 else shapes


def scrambled(tensor: Tensor) -> Tensor:
    """The same values with the strides of a tensor whose first and last dimension were exchanged."""
    return tensor.transpose(0, -1).contiguous().transpose(0, -1) if tensor.dim() > 1 else tensor


class Maker:
    """Makes reproducible random tensors and ragged batches of one type on one device.

    Args:
        dtype: of the data.
        index_dtype: of indices and of the sizes that batches are made from.
        contiguous: whether tensors are laid out as usual.
        finite: whether filler is an ordinary number instead of poison (for numerical differentiation).
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float64,
        index_dtype: torch.dtype = torch.int64,
        contiguous: bool = True,
        finite: bool = False,
        seed: int = 0,
    ) -> None:
        self.device, self.dtype, self.index_dtype = device, dtype, index_dtype
        self.contiguous, self.finite = contiguous, finite
        self.generator = torch.Generator().manual_seed(seed)

    def _placed(self, tensor: Tensor) -> Tensor:
        tensor = tensor.to(self.device)
        return tensor if self.contiguous else scrambled(tensor)

    def _random(self, shape: Sequence[int]) -> Tensor:
        values = torch.randint(0, 100, tuple(shape), generator=self.generator)
        if self.dtype == torch.bool:
            return values % 2 == 1
        return values.to(self.dtype) / 8 if self.dtype.is_floating_point else values.to(self.dtype)

    def data(self, *shape: int) -> Tensor:
        """Random tensor: multiples of 1/8 (which add up without rounding), or integers below 100."""
        return self._placed(self._random(shape))

    def sizes(self, sizes: Sequence[int], batch_shape: Sequence[int]) -> Tensor:
        """[*batch_shape]."""
        return torch.tensor(sizes, dtype=self.index_dtype, device=self.device).reshape(tuple(batch_shape))

    def _padding(self, sizes: Tensor, length: int, shape: Sequence[int], dim: int) -> Tensor:
        steps = torch.arange(length) >= sizes.cpu().unsqueeze(-1)
        view = [1] * len(shape)
        view[: sizes.dim()], view[dim] = sizes.shape, length
        return steps.reshape(view).expand(tuple(shape))

    def ragged(
        self, sizes: Sequence[int], batch_shape: Sequence[int], *inner: int, before: Sequence[int] = (), extra: int = 1
    ) -> RaggedBatch:
        """[*batch_shape, *before, max(sizes) + extra, *inner]."""
        lengths, num = self.sizes(sizes, batch_shape), max(sizes, default=0) + extra
        shape, dim = (*batch_shape, *before, num, *inner), len(batch_shape) + len(before)
        tensor = self._random(shape)
        if not self.finite and self.dtype != torch.bool:
            poison = float("nan") if self.dtype.is_floating_point else torch.iinfo(self.dtype).max
            tensor = tensor.masked_fill(self._padding(lengths, num, shape, dim), poison)
        return RaggedBatch(self._placed(tensor), sample_sizes=lengths, non_uniform_dim=dim)

    def index_tensor(self, batch_shape: Sequence[int], count: int, limit: int, hostile: bool = True) -> Tensor:
        """[*batch_shape, count] in [0, limit), or partly outside it."""
        low, high = (-2, limit + 2) if hostile or not limit else (0, limit)
        values = torch.randint(low, high, (*batch_shape, count), generator=self.generator)
        return self._placed(values.to(self.index_dtype))

    def indices(
        self, sizes: Sequence[int], batch_shape: Sequence[int], limit: int, hostile: bool = True, extra: int = 1
    ) -> RaggedBatch:
        """[*batch_shape, max(sizes) + extra] with filler far outside."""
        num, lengths = max(sizes, default=0) + extra, self.sizes(sizes, batch_shape)
        index = self.index_tensor(batch_shape, num, limit, hostile)
        outside = self._padding(lengths, num, index.shape, index.dim() - 1).to(self.device)
        return RaggedBatch(index.masked_fill(outside, 2**31 - 1), sample_sizes=lengths)

    def mask(self, *shape: int) -> Tensor:
        """Random bool tensor."""
        return self._placed(torch.rand(shape, generator=self.generator) > 0.5)

    def samples(self, sizes: Sequence[int], *inner: int) -> list[Tensor]:
        """One tensor [n, *inner] per sample."""
        return [self.data(size, *inner) for size in sizes]
