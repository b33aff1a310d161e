"""Image augmentation of the StreamPETR pipeline: resize, crop and flip, with 2D boxes and matrices following.

In: BGR images of one size, `intrinsics`, `extrinsics` and, in training, the 2D ground truth. Out: all of that for
images of `final_dim`. `StreamPETRResizeCropFlip` resizes with Pillow, as published; `StreamPETRResizeCropFlipTurbo`
decodes, resizes and crops all cameras at once.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS
from PIL import Image

from raggedbev.mm.images.files import EncodedImage, frame_name
from raggedbev.mm.images.resize import crop_image, resize_image
from raggedbev.mm.images.threads import choose_threads, map_in_threads


@dataclass(frozen=True)
class ImageAugmentation:
    """One draw, for all images of a frame.

    Attributes:
        ratio: nominal scale; the size is truncated to whole pixels.
        size: width, height after scaling.
        crop: x, y of the crop's upper left corner in the scaled image.
        flip: whether left and right are exchanged after the crop.
    """

    ratio: float
    size: tuple[int, int]
    crop: tuple[int, int]
    flip: bool

    def matrix(self, width: int) -> np.ndarray:
        """[3, 3] from pixels of the original image to pixels of the result, whose width is given."""
        x, y = self.crop
        if self.flip:
            return np.array([[-self.ratio, 0, x + width], [0, self.ratio, -y], [0, 0, 1]], dtype=np.float64)
        return np.array([[self.ratio, 0, -x], [0, self.ratio, -y], [0, 0, 1]], dtype=np.float64)


def visible_boxes(boxes: np.ndarray, depths: np.ndarray, height: int, width: int) -> np.ndarray:
    """Find the boxes of an image that nearer ones do not cover completely.

    Boxes are painted from far to near, each onto the whole pixels within it, on a map of the farthest one; so the
    farthest stays unless the whole image is covered, as published.

    Args:
        boxes: [G, 4] x0, y0, x1, y1 in pixels.
        depths: [G] metres.
        height: of the image.
        width: of the image.

    Returns:
        Indices of the visible boxes, far ones first.
    """
    if not len(boxes):
        return np.zeros(0, dtype=np.int64)
    order = np.argsort(-depths, kind="stable")
    low = np.ceil(boxes[order, :2]).astype(np.int64)
    high = np.floor(boxes[order, 2:]).astype(np.int64)
    painted = np.zeros((height, width), dtype=np.int64)
    for rank, ((x0, y0), (x1, y1)) in enumerate(zip(low, high, strict=True)):
        painted[y0:y1, x0:x1] = rank
    seen = np.zeros(len(order), dtype=bool)
    seen[painted] = True
    return order[seen]


@TRANSFORMS.register_module()
class StreamPETRResizeCropFlip(BaseTransform):
    """Scale, crop and flip all images of a frame by one draw.

    Changes `img` (to `final_dim`; where the scaled image is smaller, black), `intrinsics`, `lidar2img` (intrinsics
    times extrinsics), and where they are there `gt_bboxes`, `gt_bboxes_labels`, `centers_2d`, `depths`: boxes are
    clipped, those under `min_box_size` pixels or wholly covered by nearer ones are dropped, the rest is sorted from
    far to near; centres are clipped, too. Adds `scale_factor`, `crop_offset`, `flip`.

    NumPy's global generator is used in the order: scale, share cut from the bottom, crop x, flip, image rotation.

    Args:
        ida_aug_conf: `H`, `W` of the original images and `final_dim` (height, width) of the result; for training
            also `resize_lim` (least and greatest scale); optional `bot_pct_lim` (least and greatest share of the
            height cut from the bottom, default (0, 0)), `rand_flip` (default True) and `rot_lim`, which has to be
            (0, 0).
        training: draw at random; else scale to cover `final_dim` and crop at the bottom, in the middle.
        min_box_size: least width and height of a 2D box in pixels.

    Raises:
        ValueError: an unknown or missing key, an image rotation, an image of another size.
    """

    KEYS = ("H", "W", "final_dim", "resize_lim", "bot_pct_lim", "rand_flip", "rot_lim")

    def __init__(self, ida_aug_conf: Mapping, training: bool = True, min_box_size: float = 2.0) -> None:
        needed = ("H", "W", "final_dim", "resize_lim") if training else ("H", "W", "final_dim")
        missing = [key for key in needed if key not in ida_aug_conf]
        unknown = [key for key in ida_aug_conf if key not in self.KEYS]
        if missing or unknown:
            raise ValueError(f"ida_aug_conf needs the keys {needed} and may have {self.KEYS}, got {list(ida_aug_conf)}")
        if any(ida_aug_conf.get("rot_lim", (0, 0))):
            raise ValueError(
                f"ida_aug_conf.rot_lim must be (0, 0), got {ida_aug_conf['rot_lim']}: 2D boxes cannot turn"
            )
        self.height, self.width = ida_aug_conf["H"], ida_aug_conf["W"]
        self.final_dim = tuple(ida_aug_conf["final_dim"])
        self.resize_lim = tuple(ida_aug_conf.get("resize_lim", ()))
        self.bot_pct_lim = tuple(ida_aug_conf.get("bot_pct_lim", (0.0, 0.0)))
        self.rand_flip = ida_aug_conf.get("rand_flip", True)
        self.training = training
        self.min_box_size = min_box_size

    def transform(self, results: dict) -> dict:
        """Augment the frame."""
        augmentation = self.draw() if self.training else self.fixed()
        for image, path in zip(results["img"], results["img_paths"], strict=True):
            self._check_size(image, path, frame_name(results))
        results["img"] = self._augment_images(results["img"], augmentation)
        matrix = augmentation.matrix(self.final_dim[1])
        results["intrinsics"] = results["intrinsics"].copy()
        results["intrinsics"][:, :3, :3] = matrix @ results["intrinsics"][:, :3, :3]
        results["lidar2img"] = results["intrinsics"] @ results["extrinsics"]
        if "gt_bboxes" in results:
            self._augment_boxes(results, augmentation)
        results.update(
            img_shape=self.final_dim,
            pad_shape=self.final_dim,
            scale_factor=augmentation.ratio,
            crop_offset=augmentation.crop,
            flip=augmentation.flip,
        )
        return results

    def draw(self) -> ImageAugmentation:
        """Draw an augmentation for training."""
        final_height, final_width = self.final_dim
        ratio = np.random.uniform(*self.resize_lim)
        width, height = int(self.width * ratio), int(self.height * ratio)
        crop_y = int((1 - np.random.uniform(*self.bot_pct_lim)) * height) - final_height
        crop_x = int(np.random.uniform(0, max(0, width - final_width)))
        flip = bool(self.rand_flip and np.random.choice([0, 1]))
        np.random.uniform(0.0, 0.0)  # the image rotation, which is always 0
        return ImageAugmentation(ratio, (width, height), (crop_x, crop_y), flip)

    def fixed(self) -> ImageAugmentation:
        """The augmentation for test."""
        final_height, final_width = self.final_dim
        ratio = max(final_height / self.height, final_width / self.width)
        width, height = int(self.width * ratio), int(self.height * ratio)
        crop_y = int((1 - np.mean(self.bot_pct_lim)) * height) - final_height
        crop_x = max(0, width - final_width) // 2
        return ImageAugmentation(ratio, (width, height), (crop_x, crop_y), False)

    def _check_size(self, image: np.ndarray | EncodedImage, path: str, frame: str) -> None:
        if image.shape[:2] != (self.height, self.width):
            raise ValueError(
                f"camera image {path} has height and width {tuple(image.shape[:2])}, but ida_aug_conf expects "
                f"{(self.height, self.width)} ({frame})"
            )

    def _augment_images(self, images: list, augmentation: ImageAugmentation) -> list[np.ndarray]:
        return [self._augment_image(np.asarray(image), augmentation) for image in images]

    def _augment_image(self, image: np.ndarray, augmentation: ImageAugmentation) -> np.ndarray:
        x, y = augmentation.crop
        height, width = self.final_dim
        result = Image.fromarray(image).resize(augmentation.size, Image.Resampling.BICUBIC)
        result = result.crop((x, y, x + width, y + height))
        if augmentation.flip:
            result = result.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(result)

    def _augment_boxes(self, results: dict, augmentation: ImageAugmentation) -> None:
        height, width = self.final_dim
        keys = ("gt_bboxes", "gt_bboxes_labels", "centers_2d", "depths")
        augmented = {key: [] for key in keys}
        for boxes, labels, centers, depths in zip(*(results[key] for key in keys), strict=True):
            corners = self._augment_points(boxes.reshape(-1, 2, 2), augmentation)
            boxes = corners.reshape(-1, 4)
            if augmentation.flip:
                boxes = boxes[:, [2, 1, 0, 3]]
            centers = self._augment_points(centers, augmentation)
            keep = ((boxes[:, 2:] - boxes[:, :2]) >= self.min_box_size).all(axis=1).nonzero()[0]
            keep = keep[visible_boxes(boxes[keep], depths[keep], height, width)]
            for key, values in zip(keys, (boxes, labels, centers, depths), strict=True):
                augmented[key].append(values[keep])
        results.update(augmented)

    def _augment_points(self, points: np.ndarray, augmentation: ImageAugmentation) -> np.ndarray:
        """Pixels [..., 2] of the original image, clipped to the result."""
        height, width = self.final_dim
        points = points * np.float32(augmentation.ratio) - np.array(augmentation.crop, dtype=np.float32)
        points = np.clip(points, 0, np.array([width, height], dtype=np.float32))
        if augmentation.flip:
            points[..., 0] = width - points[..., 0]
        return points


@TRANSFORMS.register_module()
class StreamPETRResizeCropFlipTurbo(StreamPETRResizeCropFlip):
    """The same augmentation from the same draws, in one pass over each image and for all cameras at once.

    Takes arrays, or what `LoadMultiViewImageTurbo(defer=True)` leaves: then images are decoded here, at 1/2, 1/4 or
    1/8 where that is still as large as the scaled image. From full images the pixels are those of
    `StreamPETRResizeCropFlip` up to one level, from the smaller ones they differ a little.

    Args:
        ida_aug_conf: see `StreamPETRResizeCropFlip`.
        training: see there.
        min_box_size: see there.
        scaled_decoding: allow the smaller decodings.
        num_threads: threads; default: this process's share of the cores.
    """

    def __init__(
        self,
        ida_aug_conf: Mapping,
        training: bool = True,
        min_box_size: float = 2.0,
        scaled_decoding: bool = True,
        num_threads: int | None = None,
    ) -> None:
        super().__init__(ida_aug_conf, training, min_box_size)
        if num_threads is not None:
            choose_threads(num_threads)
        self.scaled_decoding = scaled_decoding
        self.num_threads = num_threads

    def _augment_images(self, images: list, augmentation: ImageAugmentation) -> list[np.ndarray]:
        augment = functools.partial(self._augment_image, augmentation=augmentation)
        return map_in_threads(augment, images, choose_threads(self.num_threads))

    def _augment_image(self, image: np.ndarray | EncodedImage, augmentation: ImageAugmentation) -> np.ndarray:
        scaled = resize_image(image, augmentation.size, "bicubic", antialias=True, scaled_decoding=self.scaled_decoding)
        return crop_image(scaled, augmentation.crop, self.final_dim[::-1], augmentation.flip)
