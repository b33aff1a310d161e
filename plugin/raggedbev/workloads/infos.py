"""Ground truth of the loss benchmark from a nuScenes info file (mmdet3d v2): a path in, objects of a batch out."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raggedbev.nuscenes import DETECTION_CLASSES, INFO_CLASSES
from raggedbev.workloads.generate import LossSizes, Objects, image_transform

# Info files number the classes in an order of their own; -1 stands for all others.
_LABEL = np.array([DETECTION_CLASSES.index(name) for name in INFO_CLASSES] + [-1])


def read_objects(path: str | Path, sizes: LossSizes, batch_size: int, first: int = 0) -> Objects:
    """Reads the objects of ``batch_size`` consecutive frames, starting again at the end of the file.

    Args:
        path: Info file (``.pkl``) with ``data_list``, ``instances`` and ``cam_instances``. Pickles run code when they
            are opened: read only files that you or your tools made.
        sizes: Image size to bring the 2D boxes to, and the range that limits the 3D boxes.
        batch_size: Samples B.
        first: Index of the first frame.

    Raises:
        ValueError: No such file, another format, no frame, or no ``cam_instances``.
    """
    frames = _read_frames(Path(path))
    chosen = [frames[(first + i) % len(frames)] for i in range(batch_size)]
    samples = [_objects_3d(frame, sizes) for frame in chosen]
    images = [image for frame in chosen for image in _objects_2d(frame, sizes, path)]
    boxes, labels = zip(*samples, strict=True)
    image_boxes, image_labels, image_centers = zip(*images, strict=True)
    return Objects(list(boxes), list(labels), list(image_boxes), list(image_labels), list(image_centers))


def count_objects(path: str | Path, sizes: LossSizes) -> tuple[np.ndarray, np.ndarray]:
    """Objects of each frame [F] and of each of its images [F, N] that training keeps; arguments as `read_objects`."""
    frames = _read_frames(Path(path))
    objects = [len(_objects_3d(frame, sizes)[1]) for frame in frames]
    images = [[len(labels) for _, labels, _ in _objects_2d(frame, sizes, path)] for frame in frames]
    return np.array(objects), np.array(images)


def _read_frames(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise ValueError(f"no info file at {path}; make one with tools/create_infos.py")
    try:
        with path.open("rb") as file:
            content = pickle.load(file)
    except (pickle.UnpicklingError, EOFError, ImportError, AttributeError, ValueError, IndexError) as error:
        raise ValueError(f"{path} is not an info file: {error}") from None
    if not isinstance(content, dict) or "data_list" not in content:
        raise ValueError(
            f"{path} is not an mmdet3d v2 info file: it has no 'data_list'; make it with tools/create_infos.py"
        )
    if not content["data_list"]:
        raise ValueError(f"{path} has no frames")
    return content["data_list"]


def _objects_3d(frame: dict[str, Any], sizes: LossSizes) -> tuple[Tensor, Tensor]:
    """Boxes [G, 9] with gravity centres and labels [G] of the known classes inside the range."""
    instances = frame.get("instances", [])
    boxes = np.array([i["bbox_3d"] for i in instances], np.float32).reshape(-1, 7)
    velocity = np.array([i.get("velocity", (0.0, 0.0)) for i in instances], np.float32).reshape(-1, 2)
    labels = _LABEL[np.array([i["bbox_label_3d"] for i in instances], np.int64)]
    velocity[np.isnan(velocity[:, 0])] = 0.0
    x0, y0, _, x1, y1, _ = sizes.pc_range
    inside = (boxes[:, 0] > x0) & (boxes[:, 1] > y0) & (boxes[:, 0] < x1) & (boxes[:, 1] < y1)
    valid = np.array([i.get("bbox_3d_isvalid", True) for i in instances], bool)
    keep = (labels >= 0) & inside & valid
    return torch.from_numpy(np.concatenate([boxes, velocity], 1)[keep]), torch.from_numpy(labels[keep])


def _objects_2d(frame: dict[str, Any], sizes: LossSizes, path: str | Path) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Per camera boxes [G, 4], labels [G] and centres [G, 2] in pixels of the scaled and cropped image."""
    cameras = frame.get("cam_instances")
    if not cameras or len(cameras) < sizes.num_cameras:
        raise ValueError(
            f"{path} needs cam_instances of {sizes.num_cameras} cameras, got {len(cameras or {})}; "
            "make it with tools/create_infos.py"
        )
    scale, crop = image_transform(sizes.image_size)
    height, width = sizes.image_size
    shift, limit = np.array([0.0, crop], np.float32), np.array([width, height], np.float32)
    images = []
    for instances in list(cameras.values())[: sizes.num_cameras]:
        corners = np.array([i["bbox"] for i in instances], np.float32).reshape(-1, 2, 2) * scale - shift
        centers = np.array([i["center_2d"] for i in instances], np.float32).reshape(-1, 2) * scale - shift
        labels = _LABEL[np.array([i["bbox_label"] for i in instances], np.int64)]
        corners, centers = corners.clip(0.0, limit), centers.clip(0.0, limit)
        keep = (labels >= 0) & ((corners[:, 1] - corners[:, 0]).min(1, initial=np.inf) >= 2.0)
        kept_boxes, kept_centers = (torch.from_numpy(x[keep]) for x in (corners.reshape(-1, 4), centers))
        images.append((kept_boxes, torch.from_numpy(labels[keep]), kept_centers))
    return images
