"""One entry of an info file as a frame: paths, matrices and 2D ground truth as the pipeline takes them."""

import os.path as osp
from collections.abc import Mapping, Sequence

import numpy as np
from mmdet3d.datasets import NuScenesDataset

from raggedbev.geometry import invert_rigid


def join_path(data_root: str, prefix: str, path: str) -> str:
    """A bare file name lies in the sensor's folder `prefix`, a longer relative path below `data_root`."""
    if osp.dirname(path):
        return path if osp.isabs(path) else osp.join(data_root, path)
    return osp.join(prefix, path)


def frame_matrices(info: dict, images: Sequence[dict]) -> dict[str, np.ndarray]:
    """The frame's matrices, float64: [N, 4, 4] of the cameras, [4, 4] of the poses."""
    lidar2ego = np.array(info["lidar_points"]["lidar2ego"], dtype=np.float64)
    ego_pose = np.array(info["ego2global"], dtype=np.float64) @ lidar2ego
    intrinsics = np.tile(np.eye(4), (len(images), 1, 1))
    for matrix, image in zip(intrinsics, images, strict=True):
        matrix[:3, :3] = np.array(image["cam2img"], dtype=np.float64)[:3, :3]
    extrinsics = np.array([image["lidar2cam"] for image in images], dtype=np.float64).reshape(-1, 4, 4)
    return {
        "intrinsics": intrinsics,
        "extrinsics": extrinsics,
        "lidar2img": intrinsics @ extrinsics,
        "ego_pose": ego_pose,
        "ego_pose_inv": invert_rigid(ego_pose),
    }


def camera_arrays(instances: Sequence[dict], label_mapping: Mapping[int, int]) -> dict[str, np.ndarray]:
    """2D ground truth of one image as arrays, labels in the config's order."""
    return {
        "bboxes": np.array([item["bbox"] for item in instances], dtype=np.float32).reshape(-1, 4),
        "labels": np.array([label_mapping[item["bbox_label"]] for item in instances], dtype=np.int64),
        "centers2d": np.array([item["center_2d"] for item in instances], dtype=np.float32).reshape(-1, 2),
        "depths": np.array([item["depth"] for item in instances], dtype=np.float32),
    }


def map_labels(categories: Mapping[str, int] | None, classes: Sequence[str]) -> dict[int, int]:
    """From the info file's class numbers to those of the config (-1: not among them).

    Args:
        categories: numbers of the info file by name; None: mmdet3d's.
        classes: of the config, in order.
    """
    if categories is None:
        categories = {name: label for label, name in enumerate(NuScenesDataset.METAINFO["classes"])}
    mapping = dict.fromkeys([*categories.values(), -1], -1)
    for name, label in categories.items():
        if name in classes:
            mapping[label] = list(classes).index(name)
    return mapping
