"""Resizing as the first thing that happens to camera images, while they are decoded.

In: `img` as the loader left it, arrays or :class:`EncodedImage`. Out: arrays of the new size, and matrices and 2D
boxes that follow. Whatever comes later, photometric distortion above all, has fewer pixels to work on.
"""

import functools
from collections.abc import Sequence

import cv2
import mmcv
import numpy as np
import torch
from mmcv.image.geometric import cv2_interp_codes
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS
from torch.nn.functional import interpolate

from raggedbev.mm.images.files import EncodedImage, frame_name
from raggedbev.mm.images.loading import mixed_sizes_message
from raggedbev.mm.images.threads import choose_threads, map_in_threads

ANTIALIASED = ("bilinear", "bicubic")
WINDOW = "window_draws"  # key of a dict that the frames of a window share


def resize_image(
    image: np.ndarray | EncodedImage,
    size: tuple[int, int],
    interpolation: str = "bilinear",
    antialias: bool = False,
    scaled_decoding: bool = True,
) -> np.ndarray:
    """Resize one image; an encoded one is decoded first.

    Without `antialias` the pixels are those of `mmcv.imresize`; with it those of Pillow up to one level (two where
    the image grows), several times faster.

    Args:
        image: [H, W, 3] or [H, W].
        size: width and height of the result.
        interpolation: one of mmcv's for OpenCV; with `antialias` 'bilinear' or 'bicubic'.
        antialias: widen the filter with the scale, as Pillow does. For uint8 images.
        scaled_decoding: decode JPEG at 1/2, 1/4 or 1/8 where that is still as large as the result.

    Returns:
        [height, width, ...] of the image's type, C-contiguous.
    """
    width, height = size
    if isinstance(image, EncodedImage):
        image = image.decode((height, width) if scaled_decoding else None)
    if image.shape[:2] == (height, width):
        return np.ascontiguousarray(image)
    if not antialias:
        return mmcv.imresize(image, size, interpolation=interpolation, backend="cv2")
    planes = image[..., None] if image.ndim == 2 else image
    pixels = torch.from_numpy(np.ascontiguousarray(planes))[None].permute(0, 3, 1, 2)
    resized = interpolate(pixels, size=(height, width), mode=interpolation, antialias=True)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy()).reshape(height, width, *image.shape[2:])


def crop_image(image: np.ndarray, corner: tuple[int, int], size: tuple[int, int], flip: bool = False) -> np.ndarray:
    """Cut a window out of an image; black where it reaches beyond the image.

    Args:
        image: [H, W, ...].
        corner: x, y of the window's upper left corner.
        size: width and height of the window.
        flip: exchange left and right of the result.

    Returns:
        [height, width, ...], C-contiguous.
    """
    (x, y), (width, height) = corner, size
    inside = image[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)]
    if inside.shape[:2] != (height, width):
        whole = np.zeros((height, width, *image.shape[2:]), dtype=image.dtype)
        top, left = max(-y, 0), max(-x, 0)
        whole[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
        inside = whole
    return cv2.flip(inside, 1) if flip else np.ascontiguousarray(inside)


@TRANSFORMS.register_module(force=True)
class ResizeMultiViewImageTurbo(BaseTransform):
    """Resize the images of all cameras by one draw, in parallel; matrices and 2D boxes follow.

    Takes `img` of a loader, best `LoadMultiViewImageTurbo(defer=True)`. Changes `img`, `img_shape`, `pad_shape`,
    `scale_factor` ((x, y), factors from the images as they were), and where they are there `cam2img`, `lidar2img`,
    `intrinsics` (one [3, 3], [3, 4] or [4, 4] per camera, as list or array, or one for all), `gt_bboxes`, `centers_2d`
    (lists of one array per camera). What holds integers becomes floating point. To be put before
    PhotoMetricDistortion3D and the like.

    Args:
        scale: width and height of the result; or use `ratio_range`.
        ratio_range: least and greatest factor of both sides, drawn from NumPy's global generator once a frame; once for
            all frames of a window of `StreamNuScenesDataset`. Batches of more than one item then hold several sizes.
        interpolation: see :func:`resize_image`.
        antialias: see :func:`resize_image`.
        scaled_decoding: decode JPEG at 1/2, 1/4 or 1/8 where that is enough; the pixels differ a little from those of
            a full decoding. False: no difference.
        num_threads: threads; default: this process's share of the cores.

    Raises:
        ValueError: not exactly one of `scale` and `ratio_range`, a size or factor that is not positive, or an unknown
            interpolation.
    """

    MATRICES = ("cam2img", "lidar2img", "intrinsics")

    def __init__(
        self,
        scale: Sequence[int] | None = None,
        ratio_range: Sequence[float] | None = None,
        interpolation: str = "bilinear",
        antialias: bool = False,
        scaled_decoding: bool = True,
        num_threads: int | None = None,
    ) -> None:
        given = scale if scale is not None else ratio_range
        if (scale is None) == (ratio_range is None) or len(given) != 2 or min(given) <= 0:
            raise ValueError(
                "give either scale=(width, height) or ratio_range=(least, greatest), positive numbers; got "
                f"scale={scale}, ratio_range={ratio_range}"
            )
        known = ANTIALIASED if antialias else tuple(cv2_interp_codes)
        if interpolation not in known:
            raise ValueError(f"interpolation must be one of {known} with antialias={antialias}, got {interpolation!r}")
        if num_threads is not None:
            choose_threads(num_threads)
        self.scale = scale if scale is None else tuple(scale)
        self.ratio_range = ratio_range if ratio_range is None else tuple(ratio_range)
        self.interpolation = interpolation
        self.antialias = antialias
        self.scaled_decoding = scaled_decoding
        self.num_threads = num_threads

    def transform(self, results: dict) -> dict:
        """Resize the images of a frame.

        Raises:
            ValueError: an image cannot be decoded, or has another size than the others.
        """
        height, width = results["img"][0].shape[:2]
        if any(image.shape[:2] != (height, width) for image in results["img"]):
            paths = results.get("img_paths", results.get("filename"))
            paths = paths or [f"image {number}" for number in range(len(results["img"]))]
            raise ValueError(mixed_sizes_message(results["img"], paths, frame_name(results)))
        size = self._draw(width, height, results)
        resize = functools.partial(
            resize_image,
            size=size,
            interpolation=self.interpolation,
            antialias=self.antialias,
            scaled_decoding=self.scaled_decoding,
        )
        results["img"] = map_in_threads(resize, results["img"], choose_threads(self.num_threads))
        factors = size[0] / width, size[1] / height
        for key in self.MATRICES:
            if key in results:
                results[key] = self._scale_matrices(results[key], factors)
        for key in ("gt_bboxes", "centers_2d"):
            if key in results:
                results[key] = [self._scale_points(points, factors) for points in results[key]]
        shape = (size[1], size[0])
        results.update(img_shape=shape, pad_shape=shape, scale_factor=factors)
        return results

    def _draw(self, width: int, height: int, results: dict) -> tuple[int, int]:
        if self.scale is not None:
            return self.scale
        drawn = results.get(WINDOW, {})
        if id(self) not in drawn:
            drawn[id(self)] = np.random.uniform(*self.ratio_range)
        ratio = drawn[id(self)]
        return max(1, int(width * ratio + 0.5)), max(1, int(height * ratio + 0.5))

    @staticmethod
    def _scale_matrices(matrices: Sequence | np.ndarray, factors: tuple[float, float]) -> list | np.ndarray:
        if len(matrices) and np.ndim(matrices[0]) == 1:  # one for all
            matrix = _scaled(matrices, factors)
            return matrix if isinstance(matrices, np.ndarray) else matrix.tolist()
        scaled = [_scaled(matrix, factors) for matrix in matrices]
        return np.stack(scaled) if isinstance(matrices, np.ndarray) else scaled

    @staticmethod
    def _scale_points(points: np.ndarray, factors: tuple[float, float]) -> np.ndarray:
        """Points [G, 2] or boxes [G, 4] of one image."""
        points = _floating(points, np.float32)
        return points * np.array(factors * (points.shape[-1] // 2), dtype=points.dtype)


def _scaled(matrix: Sequence | np.ndarray, factors: tuple[float, float]) -> np.ndarray:
    """A matrix to pixels, of images whose sides grow by the factors."""
    matrix = _floating(matrix)
    matrix[0] *= factors[0]
    matrix[1] *= factors[1]
    return matrix


def _floating(values: Sequence | np.ndarray, kind: type = np.float64) -> np.ndarray:
    """A copy in floating point: as it is, or what was no floating point as `kind`."""
    array = np.array(values)
    return array if np.issubdtype(array.dtype, np.floating) else array.astype(kind)
