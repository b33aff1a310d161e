"""Heatmap targets of one sample as layers for its picture: an info entry in, RGBA images out.

Cameras: the target of StreamPETR's 2D head, one map for all classes. Bird's-eye view: the targets of CenterPoint's,
one map per class, each class in a colour of its own.
"""

from __future__ import annotations

import numpy as np
import torch
from matplotlib import colors

from raggedbev import combine_data
from raggedbev.heatmap import BevGrid, CenterHeadConfig, center_head_targets, focal_head_heatmap
from raggedbev.nuscenes import INFO_CLASSES

STRIDE = 16  # pixels of the camera's image per cell
GRID = BevGrid(width=128, height=128, origin=(-51.2, -51.2), voxel_size=(0.2, 0.2), voxels_per_cell=4)
BEV_EXTENT = (-51.2, 51.2, -51.2, 51.2)  # metres: left, right, bottom, top
CAMERA_COLOR = "#ff4d2e"
CLASS_COLORS = (
    "#ff4d2e", "#ffb000", "#c77dff", "#ff66b3", "#ffe74c", "#00c2ff", "#4d7dff", "#39e58c", "#ff8f5a", "#9ad1d4",
)  # fmt: skip
_OPACITY = 0.85


def camera_layer(instances: list[dict], width: int, height: int) -> np.ndarray:
    """[rows, columns, 4] RGBA in [0, 1] of one camera image.

    Args:
        instances: `cam_instances` of the camera: 'bbox' and 'center_2d' in pixels.
        width: of the image in pixels.
        height: of the image in pixels.
    """
    boxes = torch.tensor([one["bbox"] for one in instances], dtype=torch.float32).reshape(-1, 4)
    centers = torch.tensor([one["center_2d"] for one in instances], dtype=torch.float32).reshape(-1, 2)
    packed = combine_data([boxes])
    ragged_centers = combine_data([centers], other_with_same_sample_sizes=packed)
    heatmap = focal_head_heatmap(packed, ragged_centers, (height, width), STRIDE)
    return _colored(heatmap.numpy(), (CAMERA_COLOR,))


def bev_layer(info: dict) -> np.ndarray:
    """[128, 128, 4] RGBA in [0, 1] of all classes; row 0 is the lowest y (metres, lidar frame)."""
    rows = [one for one in info.get("instances", []) if one["bbox_label_3d"] >= 0 and one["bbox_3d_isvalid"]]
    boxes = combine_data([torch.tensor([one["bbox_3d"] for one in rows], dtype=torch.float32).reshape(-1, 7)])
    labels = torch.tensor([one["bbox_label_3d"] for one in rows], dtype=torch.int64)
    config = CenterHeadConfig(classes_per_task=(len(INFO_CLASSES),), grid=GRID)
    packed = combine_data([labels], other_with_same_sample_sizes=boxes)
    return _colored(center_head_targets(boxes, packed, config).heatmaps[0][0].numpy(), CLASS_COLORS)


def _colored(heatmaps: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """[C, H, W] values in [0, 1] as RGBA: the colour of the class with the largest value, as opaque as that."""
    palette = np.array([colors.to_rgb(name) for name in names])
    strongest = heatmaps.argmax(axis=0)
    return np.concatenate([palette[strongest], _OPACITY * heatmaps.max(axis=0)[..., None]], axis=-1)
