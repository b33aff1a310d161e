"""From collated frames to what the model takes.

In: `dict(inputs=dict(img=[B x uint8 [N, 3, H, W]]), data_samples=[B])` of the dataloader; with windows of T frames
img is [T, N, 3, H, W] and data_samples T lists of B; or all of that as packed by `ragged_collate`. Out: normalised
images, stacked matrices and the ground truth, all on the model's device.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from mmengine.model import BaseDataPreprocessor
from torch import Tensor
from torch.nn.functional import pad

from raggedbev.mm.packed import PackedSamples, describe_sample, stacked_meta
from raggedbev.mm.preprocessor import unpacked_samples

INPUT_KEYS = ("intrinsics", "extrinsics", "lidar2img", "ego_pose", "ego_pose_inv", "timestamp", "prev_exists")


@MODELS.register_module()
class StreamPETRDataPreprocessor(BaseDataPreprocessor):
    """Normalise and pad images, stack matrices, move the ground truth by one copy.

    Args:
        mean: per channel, of 0 to 255.
        std: per channel.
        bgr_to_rgb: exchange the first and the third channel first; mean and std are those of the result.
        pad_size_divisor: height and width are padded (right, bottom, with 0 after normalising) to multiples of it.
        non_blocking: copy images asynchronously, of use with pinned memory; all else always is.
        meta_keys: of batches of `pseudo_collate`, see `ragged_collate`.
    """

    def __init__(
        self,
        mean: Sequence[float] = (123.675, 116.28, 103.53),
        std: Sequence[float] = (58.395, 57.12, 57.375),
        bgr_to_rgb: bool = True,
        pad_size_divisor: int = 32,
        non_blocking: bool = True,
        meta_keys: Sequence[str] | None = None,
    ) -> None:
        super().__init__(non_blocking=non_blocking)
        if len(mean) != 3 or len(std) != 3:
            raise ValueError(f"mean and std must have 3 numbers each, got {mean} and {std}")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.bgr_to_rgb = bgr_to_rgb
        self.meta_keys = meta_keys
        self.pad_size_divisor = pad_size_divisor

    def forward(self, data: dict, training: bool = False) -> dict:
        """Prepare a batch.

        Args:
            data: collated frames, see the module.
            training: taken because mmengine passes it; both modes are prepared alike.

        Returns:
            dict(inputs, data_samples). `inputs`: img float32 [B, N, 3, Hp, Wp]; intrinsics, extrinsics, lidar2img
            float32 [B, N, 4, 4]; ego_pose, ego_pose_inv float32 [B, 4, 4]; timestamp float64 [B] (seconds);
            prev_exists float32 [B]; pad_shape (Hp, Wp). `data_samples`: B samples. With windows T follows B
            everywhere, and data_samples are B lists of T.

        Raises:
            ValueError: images of several sizes, matrices that are missing, not finite or of several shapes, or ground
                truth that cannot be trained on (see `PackedSamples.pack`); the sample is named.
        """
        data_samples = data["data_samples"]
        images = data["inputs"]["img"]
        if not isinstance(images, Tensor):
            images = _stack_images(images, data_samples)
        images = images.to(self.device, non_blocking=self._non_blocking)
        samples, tensors = unpacked_samples(data_samples, self.device, self.meta_keys)
        missing = [key for key in INPUT_KEYS if key not in tensors]
        if missing:
            raise _missing_error(samples, missing)
        inputs: dict = {"img": self._normalise(images), **{key: tensors[key] for key in INPUT_KEYS}}
        inputs["pad_shape"] = (inputs["img"].shape[-2], inputs["img"].shape[-1])
        for frame in _frames(samples):
            frame.set_metainfo({"pad_shape": inputs["pad_shape"], "batch_input_shape": inputs["pad_shape"]})
        if images.dim() == 6:
            samples = [list(window) for window in zip(*samples, strict=True)]
        return {"inputs": inputs, "data_samples": samples}

    def _normalise(self, images: Tensor) -> Tensor:
        if self.bgr_to_rgb:
            images = images.flip(-3)
        images = (images.float() - self.mean) / self.std
        height, width = images.shape[-2:]
        divisor = self.pad_size_divisor
        return pad(images, (0, -width % divisor, 0, -height % divisor))


def _missing_error(samples: list, missing: list[str]) -> ValueError:
    """Why meta values are not in the inputs of B samples, or of T lists of B."""
    items = list(zip(*samples, strict=True)) if isinstance(samples[0], list) else [[sample] for sample in samples]
    for key in missing:
        if any(key in frame for frame in _frames(samples)):
            values = [[sample.metainfo.get(key) for sample in item] for item in items]
            try:
                stacked_meta(values, key, [item[0] for item in items])
            except ValueError as error:
                return error
    return ValueError(
        f"{describe_sample(items[0][0], 0)} lacks {', '.join(missing)}: they must be among the meta_keys of its "
        "pipeline and of ragged_collate"
    )


def _frames(samples: list) -> Iterator[Det3DDataSample]:
    """The data samples of B items, or of T lists of B."""
    for item in samples:
        yield from item if isinstance(item, list) else [item]


def _stack_images(images: Sequence[Tensor], data_samples: Any) -> Tensor:
    """[B, ...] on the host; a ValueError that names the samples where sizes differ."""
    shapes = [tuple(image.shape) for image in images]
    if len(set(shapes)) == 1:
        return torch.stack(list(images))
    frames = data_samples.frames if isinstance(data_samples, PackedSamples) else list(data_samples)
    first = frames[0] if isinstance(frames[0], list | tuple) else frames
    other = next(index for index, shape in enumerate(shapes) if shape != shapes[0])
    names = [describe_sample(first[index], index) for index in (0, other)]
    raise ValueError(
        f"the images of a batch must have one size and number, got {sorted(set(shapes))}: {shapes[0]} in {names[0]}, "
        f"{shapes[other]} in {names[1]}"
    )
