"""Image files and pipelines of the loader benchmark.

In: a folder of camera images, or nothing, then scenes of `create_mini.py` are rendered and given grain. Out: frames of
six images, and for each kind of pipeline the one that mmdet3d or the published code has and the fast one.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mini.build import make_dataset
from mmdet3d.registry import TRANSFORMS
from mmengine.registry import init_default_scope
from torch.utils.data import Dataset

import raggedbev.mm.streampetr  # noqa: F401  registers the transforms
from raggedbev.mm.images import EncodedImage
from raggedbev.mm.images.files import read_file
from raggedbev.mm.images.loading import mixed_sizes_message
from raggedbev.nuscenes import CAMERAS

WIDTH, HEIGHT = 1600, 900
QUALITY, GRAIN = 90, 1.5  # JPEG quality; standard deviation of the grain, in levels of 255
SUFFIXES = (".jpg", ".jpeg", ".png")
PIPELINES = ("resize", "photometric", "streampetr")
STOCK, TURBO = "stock", "turbo"


def find_images(folder: Path) -> list[list[str]]:
    """The images below a folder as frames of one image per camera.

    With folders CAM_FRONT and so on, as nuScenes has them, a frame takes the next image of each; else the next six
    images in order of their names.

    Raises:
        FileNotFoundError: there is no such folder, or it has too few images.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; without --images the tool makes images of its own")
    by_camera = [sorted(map(str, (folder / camera).glob("*.jpg"))) for camera in CAMERAS]
    if all(by_camera):
        return [list(frame) for frame in zip(*by_camera, strict=False)]
    images = sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    count = len(CAMERAS)
    if len(images) < count:
        raise FileNotFoundError(f"{folder} has {len(images)} images, a frame needs {count}")
    return [images[i : i + count] for i in range(0, len(images) - count + 1, count)]


def check_images(frames: Sequence[Sequence[str]], kinds: Sequence[str]) -> None:
    """Decode every image once, so that a bad one is told before anything is measured.

    Args:
        frames: paths of each frame's images.
        kinds: of pipelines that will read them.

    Raises:
        ValueError: an image that cannot be decoded, of another size than the others of its frame, or of a size that
            'streampetr' is not written for.
    """
    for paths in frames:
        images = [EncodedImage(path, read_file(path)) for path in paths]
        shapes = [image.decode().shape for image in images]
        if len(set(shapes)) > 1:
            raise ValueError(mixed_sizes_message(images, paths, ""))
        if "streampetr" in kinds and shapes[0][:2] != (HEIGHT, WIDTH):
            raise ValueError(
                f"the pipeline streampetr takes images of {WIDTH}x{HEIGHT}, {paths[0]} has "
                f"{shapes[0][1]}x{shapes[0][0]}: leave it out with --pipelines resize photometric"
            )


def make_images(folder: Path, frames: int, seed: int) -> list[list[str]]:
    """Rendered street scenes of 1600x900 with grain, JPEG 4:2:0; made once.

    Args:
        folder: where they go.
        frames: frames of six images.
        seed: of scene and grain.
    """
    scenes = folder / "scenes"
    made = make_dataset(scenes, 1, max(frames, 2), seed, os.cpu_count() or 1)
    target = folder / "images"
    rng = np.random.default_rng(seed)
    result = find_images(scenes / "samples")[:frames]
    for frame in result:
        for number, source in enumerate(frame):
            path = target / Path(source).parent.name / Path(source).name
            grain = rng.normal(0.0, GRAIN, (HEIGHT, WIDTH, 1))
            frame[number] = str(path)
            if made or not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                image = np.clip(cv2.imread(source) + grain, 0, 255).astype(np.uint8)
                flags = [cv2.IMWRITE_JPEG_QUALITY, QUALITY, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x221111]
                cv2.imwrite(str(path), image, flags)
    return result


def pipelines(kind: str, size: tuple[int, int], threads: int | None, scaled_decoding: bool = True) -> dict[str, list]:
    """The stock pipeline of a kind and the fast one.

    Args:
        kind: 'resize' (mmdet3d's loader, resize and packing), 'photometric' (the same with mmdet3d's photometric
            distortion, before the resize in the stock pipeline and after it in the fast one) or 'streampetr' (the
            published image augmentation: OpenCV, Pillow).
        size: width and height of the result.
        threads: threads of the fast one; None: the process's share of the cores.
        scaled_decoding: whether the fast one may decode at a fraction of the size.
    """
    fast = {"num_threads": threads}
    load = dict(type="LoadMultiViewImageTurbo", color_type="color", defer=True, **fast)
    if kind == "streampetr":
        conf = dict(H=HEIGHT, W=WIDTH, final_dim=(size[1] * 256 // 396, size[0]), resize_lim=(0.38, 0.55))
        pack = dict(type="PackStreamPETRInputs")
        augment = dict(type="StreamPETRResizeCropFlipTurbo", ida_aug_conf=conf, scaled_decoding=scaled_decoding, **fast)
        stock = [dict(type="LoadMultiViewImages"), dict(type="StreamPETRResizeCropFlip", ida_aug_conf=conf), pack]
        return {STOCK: stock, TURBO: [load, augment, pack]}
    distortion = [dict(type="PhotoMetricDistortion3D")] if kind == "photometric" else []
    resize = dict(type="Resize3D", scale=size, keep_ratio=False)
    pack = dict(type="Pack3DDetInputs", keys=["img"])
    stock = [
        dict(type="LoadMultiViewImageFromFiles", color_type="color", to_float32=bool(distortion)),
        dict(type="MultiViewWrapper", transforms=[*distortion, resize]),
        pack,
    ]
    turbo = [load, dict(type="ResizeMultiViewImageTurbo", scale=size, scaled_decoding=scaled_decoding, **fast)]
    if distortion:
        turbo.append(dict(type="MultiViewWrapper", transforms=distortion, collected_keys=[]))
    return {STOCK: stock, TURBO: [*turbo, pack]}


class ImageFrames(Dataset):
    """Frames of image files through a pipeline.

    Args:
        frames: paths of each frame's images.
        kind: of pipeline, see :func:`pipelines`.
        pipeline: configs of its transforms.
        length: items; frames come around again.
    """

    def __init__(self, frames: Sequence[Sequence[str]], kind: str, pipeline: Sequence[dict], length: int) -> None:
        init_default_scope("mmdet3d")
        self.frames = frames
        self.kind = kind
        self.transforms = [TRANSFORMS.build(copy.deepcopy(step)) for step in pipeline]
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        results = self._info(self.frames[index % len(self.frames)], index)
        for transform in self.transforms:
            results = transform(results)
        return results

    def _info(self, paths: Sequence[str], index: int) -> dict[str, Any]:
        """What mmdet3d's datasets, or `StreamNuScenesDataset`, hand to the loader."""
        intrinsics = np.array([[1266.0, 0.0, 816.0], [0.0, 1266.0, 491.0], [0.0, 0.0, 1.0]])
        if self.kind == "streampetr":
            matrices = np.stack([np.eye(4)] * len(paths))
            matrices[:, :3, :3] = intrinsics
            return {
                "sample_idx": index,
                "img_paths": list(paths),
                "intrinsics": matrices,
                "extrinsics": np.stack([np.eye(4)] * len(paths)),
            }
        images = {
            name: {"img_path": path, "cam2img": intrinsics.copy(), "lidar2cam": np.eye(4)}
            for name, path in zip(CAMERAS, paths, strict=True)
        }
        return {"sample_idx": index, "images": images}
