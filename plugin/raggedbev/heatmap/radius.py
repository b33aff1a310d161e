"""Radii of Gaussians from box sizes: how far a corner may move while the overlap stays above a minimum.

In: sizes of boxes in cells, any shape. Out: a radius per box. Both families of formulas are here by name, since heads
are trained with one or the other; each keeps the order of operations of the head it is named after, so that results
agree to the last bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["centernet_radius", "centerpoint_radius", "whole_radius"]

_LARGEST = 2.0**62


def _smallest(first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """Element-wise minimum as Python's `min` takes it: what compares with NaN is false, so the earlier one stays."""
    smaller = torch.where(second < first, second, first)
    return torch.where(third < smaller, third, smaller)


def _root(values: Tensor) -> Tensor:
    """Square root taken in float64, like Python's: torch's float32 root is not always the nearest float32."""
    return torch.sqrt(values.double()).to(values.dtype)


def centerpoint_radius(height: Tensor, width: Tensor, min_overlap: float = 0.5) -> Tensor:
    """Radius as mmdet3d's CenterHead has it (and the heads of BEVFusion and DSVT).

    With s = height + width, p = height * width, m = min_overlap the smallest of

        (s + sqrt(s^2 - 4 p (1 - m) / (1 + m))) / 2
        (2 s + sqrt(4 s^2 - 16 (1 - m) p)) / 2
        (-2 m s + sqrt(4 m^2 s^2 + 16 m (1 - m) p)) / 2

    which are not divided by the leading coefficient as the quadratic formula would; published weights are trained so.

    Args:
        height: [...] first size of the box in cells (the head hands over the width of a box).
        width: [...] second size in cells.
        min_overlap: overlap that must remain, in (0, 1).

    Returns:
        [...] radius in cells, not yet whole; NaN where a root is not real.

    Raises:
        ValueError: `min_overlap` outside (0, 1).
    """
    _check_overlap(min_overlap)
    total = height + width
    inner = width * height * (1 - min_overlap) / (1 + min_overlap)
    first = (total + torch.sqrt(total**2 - 4 * inner)) / 2
    twice = 2 * total
    both = (1 - min_overlap) * width * height
    second = (twice + torch.sqrt(twice**2 - 16 * both)) / 2
    leading = 4 * min_overlap
    linear = -2 * min_overlap * total
    outer = (min_overlap - 1) * width * height
    third = (linear + torch.sqrt(linear**2 - 4 * leading * outer)) / 2
    return _smallest(first, second, third)


def centernet_radius(height: Tensor, width: Tensor, min_overlap: float) -> Tensor:
    """Radius as mmdet's CenterNet has it: the smaller roots of the quadratics, divided by their leading coefficients.

    Args:
        height: [...] of the box in cells.
        width: [...] of the box in cells.
        min_overlap: overlap that must remain, in (0, 1); CenterNet takes 0.3.

    Returns:
        [...] radius in cells, not yet whole; NaN where a root is not real.

    Raises:
        ValueError: `min_overlap` outside (0, 1).
    """
    _check_overlap(min_overlap)
    total = height + width
    inner = width * height * (1 - min_overlap) / (1 + min_overlap)
    first = (total - _root(total**2 - 4 * inner)) / 2
    twice = 2 * total
    both = (1 - min_overlap) * width * height
    second = (twice - _root(twice**2 - 16 * both)) / 8
    leading = 4 * min_overlap
    linear = -2 * min_overlap * total
    outer = (min_overlap - 1) * width * height
    third = (linear + _root(linear**2 - 4 * leading * outer)) / (2 * leading)
    return _smallest(first, second, third)


def whole_radius(radius: Tensor, least: int) -> Tensor:
    """Radii as the integers that are drawn: fractions cut off, at least `least`.

    Args:
        radius: [...] floating point, of any size.
        least: smallest radius.

    Returns:
        [...] int64; -1, which leaves an object out, where the radius is not finite.

    Raises:
        ValueError: `least` is negative.
    """
    if least < 0:
        raise ValueError(f"the smallest radius must not be negative, got {least}")
    usable = radius.isfinite()
    whole = torch.where(usable, radius, 0.0).clamp(-_LARGEST, _LARGEST).long().clamp(min=least)
    return torch.where(usable, whole, -1)


def _check_overlap(min_overlap: float) -> None:
    if not 0 < min_overlap < 1:
        raise ValueError(f"min_overlap must lie in (0, 1), got {min_overlap}")
