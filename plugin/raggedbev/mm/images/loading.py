"""The loader of camera images: paths in, one array or encoded image per camera out.

It stands where mmdet3d's LoadMultiViewImageFromFiles stands, with the same keys, and takes the frames of
`StreamNuScenesDataset`, too.
"""

import copy
import functools
from collections.abc import Sequence
from concurrent.futures import Future

import mmcv
import numpy as np
from mmdet3d.datasets.transforms import LoadMultiViewImageFromFiles
from mmdet3d.registry import TRANSFORMS

from raggedbev.mm.images.files import EncodedImage, frame_name, read_file
from raggedbev.mm.images.threads import choose_threads, map_in_threads, start_in_thread

BEGUN = "images_begun"  # key of images that are being read already
MIXED_SIZES = ("error", "pad")


@TRANSFORMS.register_module(force=True)
class LoadMultiViewImageTurbo(LoadMultiViewImageFromFiles):
    """Load the images of all cameras, in parallel, by libjpeg-turbo.

    A drop-in for mmdet3d's `LoadMultiViewImageFromFiles`: from `images` (per camera `img_path`, `cam2img`,
    `lidar2cam`) it makes the same keys, with the same pixels. Images of several sizes, which mmdet3d's loader pads, are
    an error unless `mixed_sizes` says otherwise. Frames with `img_paths` (`StreamNuScenesDataset`) get
    `img`, `img_shape`, `ori_shape`, `pad_shape` and `scale_factor`. Past frames come along as further entries of
    `images` or `img_paths`, all read at once; of a dataset's windows `prefetch` reads them.

    With `defer=True` the entries of `img` are :class:`EncodedImage`, which `ResizeMultiViewImageTurbo` and
    `StreamPETRResizeCropFlipTurbo` decode at no more than the size they need; for other transforms leave it False.

    Args:
        to_float32: cast the images to float32.
        color_type: as in `mmcv.imfrombytes`.
        backend_args: arguments of mmengine's file back end.
        num_views: kept in the results.
        num_ref_frames: must not be positive; mmdet3d's choice among past frames needs keys that its datasets no
            longer have.
        test_mode: taken because mmdet3d's loader has it; it belongs to that choice.
        set_default_scale: set `scale_factor` to 1.
        defer: leave decoding to the resize that follows.
        mixed_sizes: what happens to a frame whose images differ in size: 'error', or 'pad' with black at the right
            and the bottom, as mmdet3d's loader does.
        num_threads: threads that decode; default: this process's share of the cores.
    """

    def __init__(
        self,
        to_float32: bool = False,
        color_type: str = "unchanged",
        backend_args: dict | None = None,
        num_views: int = 5,
        num_ref_frames: int = -1,
        test_mode: bool = False,
        set_default_scale: bool = True,
        defer: bool = False,
        mixed_sizes: str = "error",
        num_threads: int | None = None,
    ) -> None:
        super().__init__(to_float32, color_type, backend_args, num_views, num_ref_frames, test_mode, set_default_scale)
        if num_ref_frames > 0:
            raise ValueError(
                f"num_ref_frames must not be positive, got {num_ref_frames}: list past frames in images or img_paths"
            )
        if mixed_sizes not in MIXED_SIZES:
            raise ValueError(f"mixed_sizes must be one of {MIXED_SIZES}, got {mixed_sizes!r}")
        if defer and (to_float32 or mixed_sizes == "pad"):
            raise ValueError("defer=True leaves the pixels to a later transform: no to_float32, no mixed_sizes='pad'")
        if num_threads is not None:
            choose_threads(num_threads)
        self.defer = defer
        self.mixed_sizes = mixed_sizes
        self.num_threads = num_threads

    def transform(self, results: dict) -> dict:
        """Load the images of a frame.

        Raises:
            FileNotFoundError: an image is missing.
            ValueError: an image cannot be decoded, its data are damaged, its file ends early, or it has another size
                than the others; or the frame has no cameras.
        """
        paths = self._paths(results)
        if not paths:
            raise ValueError(f"{frame_name(results) or 'a frame'} has no camera images: its list of cameras is empty")
        begun: list[Future] | None = results.pop(BEGUN, None)
        if begun is None:
            load = functools.partial(self._load, frame=frame_name(results))
            images = map_in_threads(load, paths, choose_threads(self.num_threads))
        else:
            images = [future.result() for future in begun]
        if len({image.shape for image in images}) > 1:
            images = self._make_equal(images, paths, frame_name(results))
        shape = images[0].shape[:2]
        results.update(img=images, img_shape=shape, ori_shape=shape, pad_shape=shape)
        if "img_paths" in results or self.set_default_scale:
            results["scale_factor"] = 1.0
        if "img_paths" not in results:
            self._add_stock_keys(results, paths)
        return results

    def prefetch(self, frames: Sequence[dict]) -> None:
        """Begin to load the images of several frames, which then pass the pipeline one after the other.

        Args:
            frames: results as `transform` takes them.
        """
        threads = choose_threads(self.num_threads)
        if threads == 1:
            return
        for frame in frames:
            load = functools.partial(self._load, frame=frame_name(frame))
            frame[BEGUN] = [start_in_thread(load, path, threads) for path in self._paths(frame)]

    @staticmethod
    def _paths(results: dict) -> list[str]:
        if "img_paths" in results:
            return list(results["img_paths"])
        return [camera["img_path"] for camera in results["images"].values()]

    def _load(self, path: str, frame: str) -> EncodedImage | np.ndarray:
        image = EncodedImage(path, read_file(path, self.backend_args, frame), self.color_type, frame)
        if self.defer:
            return image
        pixels = image.decode()
        return pixels.astype(np.float32) if self.to_float32 else pixels

    def _make_equal(self, images: list, paths: list[str], frame: str) -> list[np.ndarray]:
        channels = {image.shape[2:] for image in images}
        if self.mixed_sizes == "pad" and len(channels) == 1:
            size = tuple(max(image.shape[side] for image in images) for side in range(2))
            return [mmcv.impad(image, shape=size, pad_val=0) for image in images]
        raise ValueError(mixed_sizes_message(images, paths, frame) + "; mixed_sizes='pad' pads them")

    def _add_stock_keys(self, results: dict, paths: list[str]) -> None:
        cameras = results["images"].values()
        results["filename"] = paths
        results["cam2img"] = [camera["cam2img"] for camera in cameras]
        results["lidar2cam"] = [camera["lidar2cam"] for camera in cameras]
        results["ori_cam2img"] = copy.deepcopy(results["cam2img"])
        channels = 1 if len(results["img"][0].shape) < 3 else results["img"][0].shape[2]
        results["img_norm_cfg"] = dict(
            mean=np.zeros(channels, dtype=np.float32), std=np.ones(channels, dtype=np.float32), to_rgb=False
        )
        results["num_views"] = self.num_views
        results["num_ref_frames"] = self.num_ref_frames


def mixed_sizes_message(images: Sequence, paths: Sequence[str], frame: str) -> str:
    """An error text that names the first image whose shape differs from the first one's."""
    first = images[0].shape
    other = next(number for number, image in enumerate(images) if image.shape != first)
    return (
        f"the images of {frame or 'a frame'} must have one size: {paths[0]} has {tuple(first)}, "
        f"{paths[other]} has {tuple(images[other].shape)}"
    )
