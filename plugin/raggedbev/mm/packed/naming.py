"""How messages name data samples: a sample in, what tells it from others out."""

from __future__ import annotations

from typing import Any

from mmengine.structures import BaseDataElement

_NAMES_OF_SAMPLES = ("token", "sample_idx", "img_id", "lidar_path", "img_path", "img_paths")


def names_of(values: Any) -> str:
    """What tells a sample from others, of a data sample or a dict: its token, number or file, as far as it has them."""
    known = {key: values.get(key) for key in _NAMES_OF_SAMPLES if key in values}
    first = {key: next(iter(value), None) if isinstance(value, list | tuple) else value for key, value in known.items()}
    return ", ".join(f"{key} {value}" for key, value in first.items())


def describe_sample(sample: BaseDataElement, index: int) -> str:
    """How messages name a data sample: its place in the batch, and what its meta information says."""
    names = names_of(sample)
    return f"sample {index} of the batch" + (f" ({names})" if names else "")
