"""Recorded numbers of the published loss code: reading helpers for the tests of this folder."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch

from raggedbev.losses import GroundTruth2D, GroundTruth3D

FOLDER = Path(__file__).parents[1] / "golden" / "loss"
CASES_3D = ["det3d_untrained", "det3d_trained", "det3d_ragged", "det3d_denoising", "det3d_no_objects"]
CASES_2D = ["focal_untrained", "focal_trained"]
DTYPES = {"f32": torch.float32, "f64": torch.float64}


@functools.cache
def load(case: str) -> dict[str, np.ndarray]:
    """All arrays of one case; not to be written to."""
    with np.load(FOLDER / f"{case}.npz", allow_pickle=False) as archive:
        return dict(archive)


def tensor(array: np.ndarray, precision: str) -> torch.Tensor:
    """Array as a tensor of the precision 'f32' or 'f64'."""
    return torch.as_tensor(array).to(DTYPES[precision])


def _split(array: np.ndarray, counts: np.ndarray, dtype: torch.dtype) -> list[torch.Tensor]:
    return list(torch.as_tensor(array).to(dtype).split(counts.tolist()))


def ground_truth_3d(data: dict[str, np.ndarray], precision: str) -> GroundTruth3D:
    """Ground truth as the published loss saw it."""
    counts = data["gt_counts"]
    boxes = _split(data[f"gt_boxes_{precision}"], counts, DTYPES[precision])
    return GroundTruth3D(boxes, _split(data["gt_labels"], counts, torch.int64))


def ground_truth_2d(data: dict[str, np.ndarray], precision: str) -> GroundTruth2D:
    """2D ground truth of the images of a case."""
    counts, dtype = data["gt_counts"], DTYPES[precision]
    return GroundTruth2D(
        _split(data["gt_boxes"], counts, dtype),
        _split(data["gt_labels"], counts, torch.int64),
        _split(data["gt_centers"], counts, dtype),
    )
