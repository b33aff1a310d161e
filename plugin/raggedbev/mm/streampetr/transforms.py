"""Transforms of the StreamPETR pipeline, except image augmentation (`transforms_image.py`).

In: a frame of `StreamNuScenesDataset`. Out: `dict(inputs=dict(img=...), data_samples=Det3DDataSample)`. The usual
order: LoadMultiViewImageTurbo (or LoadMultiViewImages), mmdet3d's LoadAnnotations3D, StreamPETRLoadCamInstances,
StreamPETRRangeFilter, StreamPETRResizeCropFlipTurbo (or StreamPETRResizeCropFlip), StreamPETRGlobalRotScale,
PackStreamPETRInputs.
"""

from collections.abc import Sequence

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet3d.datasets.transforms import LoadMultiViewImageFromFiles
from mmdet3d.registry import TRANSFORMS
from mmdet3d.structures import Det3DDataSample
from mmengine.structures import InstanceData

from raggedbev.mm.images.files import decode_by_opencv, frame_name, read_file
from raggedbev.mm.images.loading import mixed_sizes_message
from raggedbev.mm.packed import BOX_NUMBERS


@TRANSFORMS.register_module()
class LoadMultiViewImages(LoadMultiViewImageFromFiles):
    """Read the images of all cameras, one after the other, by OpenCV; a missing or broken one is named.

    Takes `img_paths`. Adds `img` (list of N uint8 arrays [H, W, 3], BGR), `img_shape`, `ori_shape` and `pad_shape`
    (height, width of the first image), `scale_factor`.

    Args:
        backend_args: arguments of mmengine's file back end.
    """

    def __init__(self, backend_args: dict | None = None) -> None:
        super().__init__(color_type="color", backend_args=backend_args)

    def transform(self, results: dict) -> dict:
        """Read the images.

        Raises:
            FileNotFoundError: an image is missing.
            ValueError: an image cannot be decoded, or its file ends early.
        """
        results["img"] = [self._read(path, frame_name(results)) for path in results["img_paths"]]
        shape = results["img"][0].shape[:2]
        results.update(img_shape=shape, ori_shape=shape, pad_shape=shape, scale_factor=1.0)
        return results

    def _read(self, path: str, frame: str) -> np.ndarray:
        return decode_by_opencv(path, read_file(path, self.backend_args, frame), self.color_type, frame)


@TRANSFORMS.register_module()
class StreamPETRLoadCamInstances(BaseTransform):
    """2D ground truth of every image, as the 2D head wants it.

    Takes `cam_instances`. Adds lists of one array per camera: `gt_bboxes` float32 [G, 4] (x0, y0, x1, y1 in pixels),
    `gt_bboxes_labels` int64 [G], `centers_2d` float32 [G, 2] (projected 3D centres), `depths` float32 [G] (metres).
    Boxes narrower or lower than a pixel and classes that the config does not name are dropped.
    """

    def transform(self, results: dict) -> dict:
        """Split the camera instances into arrays.

        Raises:
            KeyError: the info file has no 2D boxes.
            ValueError: a number of an object of a known class is NaN or infinite.
        """
        if "cam_instances" not in results:
            raise KeyError(
                f"frame {results['token']} has no cam_instances: make the info file with tools/create_infos.py"
            )
        keys = {"gt_bboxes": "bboxes", "gt_bboxes_labels": "labels", "centers_2d": "centers2d", "depths": "depths"}
        results.update({key: [] for key in keys})
        for camera, instances in enumerate(results["cam_instances"]):
            known = instances["labels"] >= 0
            for key in ("bboxes", "centers2d", "depths"):
                _check_finite(results, f"{key} of camera {camera}", instances[key], known)
            size = instances["bboxes"][:, 2:] - instances["bboxes"][:, :2]
            keep = (size >= 1).all(axis=1) & known
            for key, source in keys.items():
                results[key].append(instances[source][keep])
        return results


@TRANSFORMS.register_module()
class StreamPETRRangeFilter(BaseTransform):
    """Keep 3D boxes of known classes whose centre lies strictly within the range in x and y.

    Changes `gt_bboxes_3d` (yaw is brought to [-pi, pi), too) and `gt_labels_3d`; 2D boxes stay.

    Args:
        point_cloud_range: x, y, z minimum and x, y, z maximum in metres; z does not matter.
    """

    def __init__(self, point_cloud_range: Sequence[float]) -> None:
        if len(point_cloud_range) != 6:
            raise ValueError(f"point_cloud_range must have 6 numbers, got {point_cloud_range}")
        self.point_cloud_range = tuple(float(value) for value in point_cloud_range)

    def transform(self, results: dict) -> dict:
        """Filter the 3D ground truth.

        Raises:
            ValueError: a box of a known class is NaN or infinite; its velocity may be.
        """
        boxes, labels = results["gt_bboxes_3d"], results["gt_labels_3d"]
        _check_finite(results, "gt_bboxes_3d", boxes.tensor[:, :BOX_NUMBERS].numpy(), np.asarray(labels) >= 0)
        low = boxes.tensor.new_tensor(self.point_cloud_range[:2])
        high = boxes.tensor.new_tensor(self.point_cloud_range[3:5])
        centers = boxes.tensor[:, :2]
        keep = ((centers > low) & (centers < high)).all(dim=1) & (torch.as_tensor(labels) >= 0)
        results["gt_bboxes_3d"] = boxes[keep]
        results["gt_labels_3d"] = labels[keep.numpy()]
        results["gt_bboxes_3d"].limit_yaw(offset=0.5, period=2 * np.pi)
        return results


@TRANSFORMS.register_module()
class StreamPETRGlobalRotScale(BaseTransform):
    """Turn, scale and shift the lidar frame; images and the global frame stay.

    With a the angle, s the scale and t the shift drawn, points become p' = s Rz(-a) p + t. `lidar2img` and `ego_pose`
    follow (a point keeps its pixel and its global position), `ego_pose_inv` too, and so do the 3D boxes (velocities
    turn and scale with them). `extrinsics` stay as they are, so `lidar2img` is no longer their product with
    `intrinsics`.

    NumPy's global generator is used in the order: angle, scale, three normals of the shift.

    Args:
        rot_range: least and greatest angle in radians.
        scale_ratio_range: least and greatest scale.
        translation_std: standard deviations of the shift in metres.
    """

    def __init__(
        self,
        rot_range: Sequence[float] = (-0.3925, 0.3925),
        scale_ratio_range: Sequence[float] = (0.95, 1.05),
        translation_std: Sequence[float] = (0.0, 0.0, 0.0),
    ) -> None:
        self.rot_range = tuple(rot_range)
        self.scale_ratio_range = tuple(scale_ratio_range)
        self.translation_std = tuple(translation_std)

    def transform(self, results: dict) -> dict:
        """Draw the transform and apply it."""
        angle = np.random.uniform(*self.rot_range)
        scale = np.random.uniform(*self.scale_ratio_range)
        shift = np.random.normal(scale=self.translation_std, size=3)

        cos, sin = np.cos(angle), np.sin(angle)
        forward = np.eye(4)
        forward[:3, :3] = scale * np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
        forward[:3, 3] = shift
        backward = np.linalg.inv(forward)
        results["lidar2img"] = results["lidar2img"] @ backward
        results["ego_pose"] = results["ego_pose"] @ backward
        results["ego_pose_inv"] = forward @ results["ego_pose_inv"]

        boxes = results["gt_bboxes_3d"]
        boxes.rotate(-angle)
        boxes.scale(scale)
        boxes.translate(shift)
        return results


@TRANSFORMS.register_module()
class PackStreamPETRInputs(BaseTransform):
    """The frame as tensors and a data sample; nothing is cast to a narrower type.

    Gives `inputs.img` uint8 [N, 3, H, W] (BGR) and a `Det3DDataSample` with, where there is ground truth,
    `gt_instances_3d` (`bboxes_3d`, `labels_3d`) and `gt_instances_2d`, a list of one `InstanceData` per camera
    (`bboxes` [G, 4], `labels` [G], `centers2d` [G, 2], `depths` [G]); `eval_ann_info` in test mode; and as meta
    information the keys below.

    Args:
        meta_keys: what becomes meta information, where the frame has it.
    """

    META_KEYS = (
        "token",
        "sample_idx",
        "scene_token",
        "timestamp",
        "prev_exists",
        "intrinsics",
        "extrinsics",
        "lidar2img",
        "ego_pose",
        "ego_pose_inv",
        "cameras",
        "img_paths",
        "lidar_path",
        "num_pts_feats",
        "ori_shape",
        "img_shape",
        "pad_shape",
        "scale_factor",
        "crop_offset",
        "flip",
        "box_type_3d",
        "box_mode_3d",
    )

    def __init__(self, meta_keys: Sequence[str] = META_KEYS) -> None:
        self.meta_keys = tuple(meta_keys)

    def transform(self, results: dict) -> dict:
        """Pack one frame.

        Raises:
            ValueError: the images differ in size, or the parts of the ground truth in length.
        """
        if len({image.shape for image in results["img"]}) > 1:
            raise ValueError(mixed_sizes_message(results["img"], results["img_paths"], frame_name(results)))
        sample = Det3DDataSample()
        if "gt_bboxes_3d" in results:
            _check_lengths(results, "gt_bboxes_3d", "gt_labels_3d")
            sample.gt_instances_3d = InstanceData(
                bboxes_3d=results["gt_bboxes_3d"], labels_3d=torch.from_numpy(results["gt_labels_3d"])
            )
        if "gt_bboxes" in results:
            names = ("gt_bboxes", "gt_bboxes_labels", "centers_2d", "depths")
            for camera in range(len(results["gt_bboxes"])):
                _check_lengths(results, *names, camera=camera)
            columns = (results[key] for key in names)
            sample.gt_instances_2d = [
                InstanceData(
                    bboxes=torch.from_numpy(bboxes),
                    labels=torch.from_numpy(labels),
                    centers2d=torch.from_numpy(centers),
                    depths=torch.from_numpy(depths),
                )
                for bboxes, labels, centers, depths in zip(*columns, strict=True)
            ]
        if "eval_ann_info" in results:
            sample.eval_ann_info = results["eval_ann_info"]
        sample.set_metainfo({key: results[key] for key in self.meta_keys if key in results})
        images = torch.from_numpy(np.stack(results["img"])).permute(0, 3, 1, 2).contiguous()
        return {"inputs": {"img": images}, "data_samples": sample}


def _check_finite(results: dict, name: str, values: np.ndarray, known: np.ndarray) -> None:
    """Numbers [G, ...] of a frame's objects, of those that are `known` [G]; filters would drop NaN without a word."""
    wrong = ~np.isfinite(values).all(axis=tuple(range(1, values.ndim))) & known
    if wrong.any():
        index = int(wrong.argmax())
        frame = frame_name(results) or "a frame"
        raise ValueError(f"{name} of {frame} must be finite, got {values[index].tolist()} for object {index}")


def _check_lengths(results: dict, *names: str, camera: int | None = None) -> None:
    """Objects of a frame, or of one of its cameras, that all parts of the ground truth agree on."""
    counts = {name: len(results[name] if camera is None else results[name][camera]) for name in names}
    if len(set(counts.values())) > 1:
        where = "" if camera is None else f", camera {camera},"
        raise ValueError(
            f"frame {results['token']}{where} must have as many of each part of its ground truth, got "
            + ", ".join(f"{count} {name}" for name, count in counts.items())
        )
