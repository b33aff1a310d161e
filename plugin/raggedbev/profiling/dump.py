"""Tensor dumps: nested tensors in, one ``.npz`` out; two dumps in, the differences out.

For finding where two runs part: dump the inputs, intermediate values and losses of each, then compare the files.
"""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch


def flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Walks mappings, sequences and dataclasses down to tensors, arrays and numbers.

    Args:
        tree: Nested values. ``None`` is skipped.
        prefix: Name of the root.

    Yields:
        Dotted name (``"losses.d0.loss_cls"``, ``"boxes.3"``) and values; types NumPy lacks become float32.

    Raises:
        TypeError: A leaf is neither tensor, array, number nor text.
    """
    if tree is None:
        return
    if isinstance(tree, torch.Tensor):
        host = tree.detach().cpu()
        yield prefix, (host.float() if host.dtype is torch.bfloat16 else host).numpy()
    elif isinstance(tree, np.ndarray | np.generic | bool | int | float | str):
        yield prefix, np.asarray(tree)
    elif isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from flatten(value, _join(prefix, str(name)))
    elif isinstance(tree, list | tuple):
        for position, value in enumerate(tree):
            yield from flatten(value, _join(prefix, str(position)))
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        for field in dataclasses.fields(tree):
            yield from flatten(getattr(tree, field.name), _join(prefix, field.name))
    else:
        raise TypeError(f"{prefix or 'the root'} cannot be dumped: want tensors, arrays, numbers, got {type(tree)}")


def save_dump(path: str | Path, values: Any) -> list[str]:
    """Writes nested tensors to one compressed ``.npz``.

    Args:
        path: File to write; folders are made.
        values: Nested tensors, see :func:`flatten`; the root is usually a dict.

    Returns:
        The names in the file.

    Raises:
        ValueError: Two values would get one name.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, array in flatten(values):
        if name in arrays:
            raise ValueError(f"two values of the dump are called {name!r}; rename one")
        arrays[name] = array
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
    return list(arrays)


def load_dump(path: str | Path) -> dict[str, np.ndarray]:
    """Reads a dump. Raises FileNotFoundError or ValueError naming the file if it is no dump."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise FileNotFoundError(f"no tensor dump at {path}") from None
    except (ValueError, OSError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a tensor dump (.npz): {error}") from None


@dataclasses.dataclass(frozen=True)
class Difference:
    """How one array of two dumps differs.

    Attributes:
        name: Dotted name.
        problem: Why the values cannot be compared (missing, other shape), or empty.
        max_abs: Largest absolute difference.
        max_rel: Largest difference relative to the second dump's value.
        num_outside: Entries with ``|a - b| > atol + rtol * |b|``; NaN equals NaN.
        size: Entries in all.
        worst: Index of the largest absolute difference.
    """

    name: str
    problem: str = ""
    max_abs: float = 0.0
    max_rel: float = 0.0
    num_outside: int = 0
    size: int = 0
    worst: tuple[int, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether every entry is within the tolerance."""
        return not self.problem and self.num_outside == 0


def compare_dumps(
    first: str | Path | Mapping[str, np.ndarray],
    second: str | Path | Mapping[str, np.ndarray],
    rtol: float = 1e-5,
    atol: float = 0.0,
) -> list[Difference]:
    """Compares two dumps array by array.

    Args:
        first: File or arrays by name.
        second: The same of the run that is taken as right.
        rtol: Relative tolerance.
        atol: Absolute tolerance, in the unit of the values.

    Returns:
        One entry per name of either dump; arrays that disagree come first, the largest relative difference leading.
    """
    a, b = (x if isinstance(x, Mapping) else load_dump(x) for x in (first, second))
    found = [_difference(name, a.get(name), b.get(name), rtol, atol) for name in dict.fromkeys([*a, *b])]
    return sorted(found, key=lambda d: (d.agrees, not d.problem, -d.max_rel))


def format_differences(differences: list[Difference], limit: int = 20) -> str:
    """A table of the differences, one line each, with a summary line at the end."""
    lines = []
    for d in differences[:limit]:
        verdict = (
            d.problem or f"abs {d.max_abs:.3g}  rel {d.max_rel:.3g}  outside {d.num_outside}/{d.size} at {d.worst}"
        )
        lines.append(f"{'same  ' if d.agrees else 'DIFFER'} {d.name}: {verdict}")
    if len(differences) > limit:
        lines.append(f"... and {len(differences) - limit} more")
    lines.append(f"{sum(d.agrees for d in differences)} of {len(differences)} arrays agree")
    return "\n".join(lines)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _difference(name: str, a: np.ndarray | None, b: np.ndarray | None, rtol: float, atol: float) -> Difference:
    if a is None or b is None:
        return Difference(name, problem=f"only in the {'second' if a is None else 'first'} dump")
    if a.shape != b.shape:
        return Difference(name, problem=f"shapes {a.shape} and {b.shape}")
    if a.dtype.kind in "US" or b.dtype.kind in "US":
        return Difference(name, num_outside=int((a != b).sum()), size=a.size)
    if not a.size:
        return Difference(name)
    x, y = a.astype(np.float64), b.astype(np.float64)
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        gap = np.where(same, 0.0, np.nan_to_num(np.abs(x - y), nan=np.inf))
        relative = np.where(same, 0.0, np.nan_to_num(gap / np.abs(y), nan=np.inf))
        outside = ~same & ~(gap <= atol + rtol * np.abs(np.nan_to_num(y, posinf=0.0, neginf=0.0)))
    worst = np.unravel_index(int(gap.argmax()), gap.shape)
    return Difference(
        name,
        max_abs=float(gap.max()),
        max_rel=float(relative.max()),
        num_outside=int(outside.sum()),
        size=a.size,
        worst=tuple(int(i) for i in worst),
    )
