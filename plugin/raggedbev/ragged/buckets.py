"""Buckets: the largest sample of a batch in, a padded length out that many batches share.

CUDA graphs and compiled code serve one padded length each, so that lengths rounded up to a few are reused.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Buckets"]


@dataclass(frozen=True)
class Buckets:
    """Padded lengths to round up to.

    Attributes:
        sizes: lengths in rising order; beyond the last one come its multiples. (16,) stands for 16, 32, 48, ...

    Raises:
        ValueError: no length, or lengths that are not positive and rising.

    Example:
        >>> [Buckets((8, 16, 32))(size) for size in (0, 1, 8, 9, 30, 33)]
        [0, 8, 8, 16, 32, 64]
    """

    sizes: tuple[int, ...] = (16,)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(self.sizes))
        if not self.sizes or self.sizes[0] < 1 or list(self.sizes) != sorted(set(self.sizes)):
            raise ValueError(f"padded sizes (buckets) must be positive lengths in rising order, got {self.sizes}")

    def __call__(self, size: int) -> int:
        """The smallest length that holds `size` entries; 0 stays 0."""
        if size == 0:
            return 0
        last = self.sizes[-1]
        return next((length for length in self.sizes if length >= size), -(-size // last) * last)
