"""From collated frames to what the model takes.

In: `dict(inputs=dict(img=[B x uint8 [N, 3, H, W]]), data_samples=[B])` of the dataloader; with windows of T frames
img is [T, N, 3, H, W] and data_samples T lists of B. Out: normalised images, stacked matrices and the ground truth, all
on the model's device.
"""

from collections.abc import Sequence

import numpy as np
import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from mmengine.model import BaseDataPreprocessor
from torch import Tensor
from torch.nn.functional import pad

MATRICES = ("intrinsics", "extrinsics", "lidar2img", "ego_pose", "ego_pose_inv")


@MODELS.register_module()
class StreamPETRDataPreprocessor(BaseDataPreprocessor):
    """Normalise and pad images, stack matrices, move the ground truth.

    Args:
        mean: per channel, of 0 to 255.
        std: per channel.
        bgr_to_rgb: exchange the first and the third channel first; mean and std are those of the result.
        pad_size_divisor: height and width are padded (right, bottom, with 0 after normalising) to multiples of it.
        non_blocking: copy to the device asynchronously; of use with pinned memory.
    """

    def __init__(
        self,
        mean: Sequence[float] = (123.675, 116.28, 103.53),
        std: Sequence[float] = (58.395, 57.12, 57.375),
        bgr_to_rgb: bool = True,
        pad_size_divisor: int = 32,
        non_blocking: bool = False,
    ) -> None:
        super().__init__(non_blocking=non_blocking)
        if len(mean) != 3 or len(std) != 3:
            raise ValueError(f"mean and std must have 3 numbers each, got {mean} and {std}")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.bgr_to_rgb = bgr_to_rgb
        self.pad_size_divisor = pad_size_divisor

    def forward(self, data: dict, training: bool = False) -> dict:
        """Prepare a batch.

        Args:
            data: collated frames, see above.
            training: taken because mmengine passes it; both modes are prepared alike.

        Returns:
            dict(inputs, data_samples). `inputs`: img float32 [B, N, 3, Hp, Wp]; intrinsics, extrinsics, lidar2img
            float32 [B, N, 4, 4]; ego_pose, ego_pose_inv float32 [B, 4, 4]; timestamp float64 [B] (seconds);
            prev_exists float32 [B]; pad_shape (Hp, Wp). `data_samples`: B samples. With windows T follows B
            everywhere, and data_samples are B lists of T.

        Raises:
            ValueError: images of several sizes.
        """
        images = self._stack_images(data["inputs"]["img"])
        windows = images.dim() == 6
        batch = list(data["data_samples"])
        frames = batch
        if windows:
            batch = [list(window) for window in zip(*batch, strict=True)]
            frames = [frame for window in batch for frame in window]
        leading = images.shape[:-4]

        inputs: dict = {"img": self._normalise(images.to(self.device, non_blocking=self._non_blocking))}
        for key in MATRICES:
            inputs[key] = self._stack_meta(frames, key, np.float32, leading)
        inputs["timestamp"] = self._stack_meta(frames, "timestamp", np.float64, leading)
        inputs["prev_exists"] = self._stack_meta(frames, "prev_exists", np.float32, leading)
        inputs["pad_shape"] = (inputs["img"].shape[-2], inputs["img"].shape[-1])

        self._move_ground_truth(frames)
        for frame in frames:
            frame.set_metainfo({"pad_shape": inputs["pad_shape"], "batch_input_shape": inputs["pad_shape"]})
        return {"inputs": inputs, "data_samples": batch}

    @staticmethod
    def _stack_images(images: Tensor | Sequence[Tensor]) -> Tensor:
        if isinstance(images, Tensor):
            return images
        shapes = {tuple(image.shape) for image in images}
        if len(shapes) > 1:
            raise ValueError(f"the images of a batch must have one size and number, got {sorted(shapes)}")
        return torch.stack(list(images))

    def _normalise(self, images: Tensor) -> Tensor:
        if self.bgr_to_rgb:
            images = images.flip(-3)
        images = (images.float() - self.mean) / self.std
        height, width = images.shape[-2:]
        divisor = self.pad_size_divisor
        return pad(images, (0, -width % divisor, 0, -height % divisor))

    def _stack_meta(self, frames: list[Det3DDataSample], key: str, dtype: type, leading: torch.Size) -> Tensor:
        """[*leading, ...] on the device, of one meta value per frame."""
        values = np.stack([np.asarray(getattr(frame, key)) for frame in frames]).astype(dtype)
        stacked = torch.from_numpy(values).to(self.device, non_blocking=self._non_blocking)
        return stacked.view(*leading, *values.shape[1:])

    def _move_ground_truth(self, frames: list[Det3DDataSample]) -> None:
        """Put the ground truth of all frames on the device, one copy per data type."""
        if self.device.type == "cpu":
            return
        instances = [frame.gt_instances_3d for frame in frames if "gt_instances_3d" in frame]
        instances += [item for frame in frames for item in frame.get("gt_instances_2d", [])]
        owners = [(item, key) for item in instances for key in item.keys()]  # noqa: SIM118
        host = [item.get(key) for item, key in owners]
        moved = iter(self._move([getattr(value, "tensor", value) for value in host]))
        for (item, key), value in zip(owners, host, strict=True):
            tensor = next(moved)
            if not isinstance(value, Tensor):
                tensor = type(value)(tensor, box_dim=value.box_dim, with_yaw=value.with_yaw)
            setattr(item, key, tensor)

    def _move(self, tensors: list[Tensor]) -> list[Tensor]:
        """Tensors on the device: those of one type are joined, copied once and split."""
        moved: list[Tensor] = list(tensors)
        for dtype in {tensor.dtype for tensor in tensors}:
            places = [i for i, tensor in enumerate(tensors) if tensor.dtype == dtype]
            joined = torch.cat([tensors[i].reshape(-1) for i in places])
            joined = joined.to(self.device, non_blocking=self._non_blocking)
            for i, part in zip(places, joined.split([tensors[i].numel() for i in places]), strict=True):
                moved[i] = part.view(tensors[i].shape)
        return moved
