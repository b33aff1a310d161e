"""nuScenes as streams of frames.

In: an mmdet3d 1.x info file (`tools/create_infos.py`, or mmdet3d's own converter). Out: per frame what the pipeline
needs (image paths, camera and pose matrices, ground truth), in the order in which a temporal model has to see it:
scene by scene, sorted by lidar time, cut into sequences (`flag`) that `StreamSampler` deals to its batch slots.
"""

import copy
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from mmdet3d.datasets import NuScenesDataset
from mmdet3d.registry import DATASETS

from raggedbev.mm.images.loading import LoadMultiViewImageTurbo
from raggedbev.mm.images.resize import WINDOW
from raggedbev.mm.packed import names_of
from raggedbev.mm.streampetr.frames import camera_arrays, frame_matrices, join_path, map_labels
from raggedbev.mm.streampetr.infos import InfoFile, find_scenes, no_garbage_collection
from raggedbev.mm.streampetr.sequences import draw_window, sequence_flags, stream_order
from raggedbev.nuscenes import CAMERAS, DETECTION_CLASSES

DEFAULT_PREFIX = {
    "pts": "samples/LIDAR_TOP",
    "sweeps": "sweeps/LIDAR_TOP",
    **{camera: f"samples/{camera}" for camera in CAMERAS},
}


@DATASETS.register_module()
class StreamNuScenesDataset(NuScenesDataset):
    """nuScenes for models with memory.

    With `queue_length=1` an item is one frame, to be drawn in order by `StreamSampler` (training) or
    `ContiguousSampler` (test). With `queue_length=T > 1` an item is a window of T frames that ends at the given one,
    the earlier ones drawn in order from the last `T - 1 + random_length`; any sampler will do.

    Each frame carries, besides mmdet3d's keys: `intrinsics`, `extrinsics` (lidar to camera), `lidar2img` [N, 4, 4],
    `ego_pose` (lidar to global), `ego_pose_inv` [4, 4], all float64; `timestamp` (seconds, float64); `scene_token`;
    `prev_exists`: whether the frame before it in the dataset belongs to the same sequence.

    Args:
        data_root: root of the nuScenes data.
        ann_file: info file, absolute or below `data_root`.
        pipeline: transforms.
        metainfo: `classes` in the order of the model's outputs, and optionally `version`, which then has to be the
            info file's.
        seq_split_num: sequences that every scene is cut into.
        queue_length: frames of a training item.
        random_length: frames that a window leaves out; without effect where `queue_length` is 1.
        keep_in_memory: run the pipeline once a frame and process, and keep what it gave. For small data and pipelines
            without random parts; needs `queue_length=1`.
        cameras: names of the cameras, in the order of N.
        use_valid_flag: keep boxes with lidar or radar points only (else: with lidar points).
        filter_empty_gt: must be False, since a stream needs every frame.
        kwargs: see `mmdet3d.datasets.NuScenesDataset`.

    Raises:
        FileNotFoundError: no data root or info file.
        ValueError: an info file of another format or version, an unknown class, scenes that cannot be cut.
    """

    METAINFO: ClassVar[dict] = {
        "classes": DETECTION_CLASSES,
        "palette": [
            (255, 158, 0),
            (255, 99, 71),
            (233, 150, 70),
            (255, 127, 80),
            (255, 140, 0),
            (112, 128, 144),
            (255, 61, 99),
            (220, 20, 60),
            (0, 0, 230),
            (47, 79, 79),
        ],
    }

    def __init__(
        self,
        data_root: str,
        ann_file: str,
        pipeline: Sequence = (),
        metainfo: dict | None = None,
        data_prefix: dict | None = None,
        modality: dict | None = None,
        seq_split_num: int = 1,
        queue_length: int = 1,
        random_length: int = 1,
        keep_in_memory: bool = False,
        cameras: Sequence[str] = CAMERAS,
        use_valid_flag: bool = True,
        filter_empty_gt: bool = False,
        test_mode: bool = False,
        **kwargs,
    ) -> None:
        if filter_empty_gt:
            raise ValueError("filter_empty_gt must be False: leaving frames out would break the streams")
        if seq_split_num < 1 or queue_length < 1 or random_length < 0:
            raise ValueError(
                "seq_split_num and queue_length must be at least 1 and random_length at least 0, got "
                f"{seq_split_num}, {queue_length} and {random_length}"
            )
        if test_mode and queue_length > 1:
            raise ValueError(f"queue_length is for training, test_mode needs 1, got {queue_length}")
        if keep_in_memory and queue_length > 1:
            raise ValueError(f"keep_in_memory needs queue_length=1, got {queue_length}")
        self.seq_split_num = seq_split_num
        self.queue_length = queue_length
        self.random_length = random_length
        self.keep_in_memory = keep_in_memory
        self._kept_frames: dict[int, dict] = {}
        self.cameras = tuple(cameras)
        self._wanted_version = (metainfo or {}).get("version")
        super().__init__(
            data_root=data_root,
            ann_file=ann_file,
            pipeline=list(pipeline),
            metainfo=self._check_metainfo(metainfo),
            data_prefix={**DEFAULT_PREFIX, **(data_prefix or {})},
            modality=modality or {"use_camera": True, "use_lidar": False},
            use_valid_flag=use_valid_flag,
            filter_empty_gt=False,
            test_mode=test_mode,
            **kwargs,
        )

    def _check_metainfo(self, metainfo: dict | None) -> dict:
        """Metainfo for the base class: known classes, and the version left to the info file."""
        metainfo = {key: value for key, value in (metainfo or {}).items() if key != "version"}
        metainfo.setdefault("classes", self.METAINFO["classes"])
        unknown = [name for name in metainfo["classes"] if name not in self.METAINFO["classes"]]
        if unknown:
            raise ValueError(f"metainfo.classes must be among {self.METAINFO['classes']}, got {unknown}")
        return metainfo

    # ---- loading ----

    def full_init(self) -> None:
        """Load the info file, sort the frames, number the sequences."""
        if self._fully_initialized:
            return
        super().full_init()
        self._number_sequences(self._scene_tokens if self._indices is None else self._take(self._indices))

    def _take(self, indices: int | Sequence[int]) -> np.ndarray:
        """The scene tokens that a subset of the dataset keeps."""
        if isinstance(indices, int):
            return self._scene_tokens[:indices] if indices >= 0 else self._scene_tokens[indices:]
        return self._scene_tokens[list(indices)]

    def _number_sequences(self, scene_tokens: np.ndarray) -> None:
        self._scene_tokens = scene_tokens
        self.flag = sequence_flags(scene_tokens, self.seq_split_num)

    def get_subset_(self, indices: int | Sequence[int]) -> None:
        """Keep some frames only; sequences are numbered anew."""
        super().get_subset_(indices)
        self._number_sequences(self._take(indices))

    def get_subset(self, indices: int | Sequence[int]) -> "StreamNuScenesDataset":
        """A dataset of some of the frames, with sequences of its own."""
        subset = super().get_subset(indices)
        subset._number_sequences(self._take(indices))
        return subset

    @no_garbage_collection()
    def load_data_list(self) -> list[dict]:
        """Frames in stream order: scenes by their first lidar time, frames of a scene by lidar time."""
        content = self._info_file.read()
        metainfo = content["metainfo"]
        self._metainfo["version"] = metainfo.get("version") or self._wanted_version or "v1.0-trainval"
        for key, value in metainfo.items():
            self._metainfo.setdefault(key, value)
        self.label_mapping = map_labels(metainfo.get("categories"), self._metainfo["classes"])

        for info in content["data_list"]:
            self._info_file.check_frame(info, self.cameras)
        infos = sorted(content["data_list"], key=lambda info: info["timestamp"])
        scene_tokens = np.array(find_scenes(infos))
        order = stream_order(scene_tokens)
        self._scene_tokens = scene_tokens[order]
        frames = []
        for index, scene_token in zip(order, self._scene_tokens, strict=True):
            frames.append(self.parse_data_info({**infos[index], "scene_token": str(scene_token)}))
            infos[index] = None
        return frames

    @property
    def _info_file(self) -> InfoFile:
        return InfoFile(self.ann_file, self.data_root, self._wanted_version)

    def parse_data_info(self, info: dict) -> dict:
        """A frame of the info file, with paths joined, matrices made and labels mapped.

        Args:
            info: one entry of the info file's `data_list`.

        Returns:
            dict with `token`, `scene_token`, `timestamp`, `img_paths`, `lidar_path`, the matrices, `cam_instances`
            (per camera: `bboxes` [G, 4], `labels` [G], `centers2d` [G, 2], `depths` [G]; where the file has them)
            and `ann_info` or, in test mode, `eval_ann_info` (`gt_bboxes_3d`, `gt_labels_3d`).
        """
        images = [info["images"][camera] for camera in self.cameras]
        lidar = info["lidar_points"]
        frame = {key: info[key] for key in ("token", "scene_token", "prev", "next", "frame_idx") if key in info}
        frame["timestamp"] = float(info["timestamp"])
        frame["cameras"] = self.cameras
        frame["img_paths"] = [
            self._join(camera, image["img_path"]) for camera, image in zip(self.cameras, images, strict=True)
        ]
        frame["lidar_path"] = self._join("pts", lidar["lidar_path"])
        frame["num_pts_feats"] = lidar.get("num_pts_feats", 5)
        frame.update(frame_matrices(info, images))
        if "cam_instances" in info:
            frame["cam_instances"] = [
                camera_arrays(info["cam_instances"].get(camera) or [], self.label_mapping) for camera in self.cameras
            ]
        if not self.test_mode:
            if "instances" not in info:
                raise self._info_file.format_error("it has no annotations to train on")
            frame["ann_info"] = self.parse_ann_info(info)
        elif self.load_eval_anns and "instances" in info:
            frame["eval_ann_info"] = self.parse_ann_info(info)
        return frame

    def _join(self, sensor: str, path: str) -> str:
        return join_path(self.data_root, self.data_prefix[sensor], path)

    def parse_ann_info(self, info: dict) -> dict:
        """3D ground truth of a frame by mmdet3d's rules: valid boxes, unknown velocities 0, labels mapped."""
        self._info_file.check_objects(info)
        annotations = super().parse_ann_info(info)
        return {key: annotations[key] for key in ("gt_bboxes_3d", "gt_labels_3d")}

    # ---- items ----

    def get_data_info(self, idx: int) -> dict:
        """The frame at an index, as the pipeline takes it; `token` is nuScenes', `sample_idx` the index."""
        info = super().get_data_info(idx)
        index = info["sample_idx"]
        info["prev_exists"] = bool(index > 0 and self.flag[index - 1] == self.flag[index])
        info["box_type_3d"] = self.box_type_3d
        info["box_mode_3d"] = self.box_mode_3d
        return info

    def prepare_data(self, index: int) -> dict:
        """A frame, or a window of `queue_length` frames ending there, through the pipeline.

        Returns:
            dict(inputs=dict(img=[N, 3, H, W]), data_samples=sample), or for a window
            dict(inputs=dict(img=[T, N, 3, H, W]), data_samples=list of T samples).

        Raises:
            ValueError: the frames of a window have images of several sizes.
        """
        if self.queue_length == 1:
            return self._frame(index)
        infos = [self.get_data_info(int(frame_index)) for frame_index in self.window_indices(index)]
        previous_scene = None
        drawn: dict = {}
        for info in infos:
            info[WINDOW] = drawn
            info["prev_exists"] = info["scene_token"] == previous_scene
            previous_scene = info["scene_token"]
        for transform in self.pipeline.transforms:
            if isinstance(transform, LoadMultiViewImageTurbo):
                transform.prefetch(infos)
        frames = [self.pipeline(info) for info in infos]
        self._check_window(index, frames)
        return {
            "inputs": {"img": torch.stack([frame["inputs"]["img"] for frame in frames])},
            "data_samples": [frame["data_samples"] for frame in frames],
        }

    def _check_window(self, index: int, frames: list[dict]) -> None:
        """A ValueError where the images of a window have several sizes."""
        shapes = [tuple(frame["inputs"]["img"].shape) for frame in frames]
        for frame, shape in zip(frames, shapes, strict=True):
            if shape != shapes[0]:
                first, other = (names_of(one["data_samples"]) for one in (frames[0], frame))
                raise ValueError(
                    f"the images of a window must have one size and number, got {shapes[0]} in its first frame "
                    f"({first}) and {shape} in a later one ({other}); it ends at frame {index}"
                )

    def describe(self, index: int) -> str:
        """How messages name the frame at an index."""
        info = self.get_data_info(index)
        return f"frame {index} (token {info['token']}, {info['img_paths'][0]})"

    def _frame(self, index: int) -> dict:
        """A frame through the pipeline, or a copy of what the pipeline gave before."""
        if not self.keep_in_memory:
            return self.pipeline(self.get_data_info(index))
        if index not in self._kept_frames:
            self._kept_frames[index] = self.pipeline(self.get_data_info(index))
        return copy.deepcopy(self._kept_frames[index])

    def window_indices(self, index: int) -> np.ndarray:
        """Draw the frames of the window that ends at `index` (NumPy's global generator), in order.

        Before the first frame of the dataset the first frame stands in.
        """
        return draw_window(index, self.queue_length, self.random_length)
