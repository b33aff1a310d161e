"""StreamPETR: preprocessed images and camera geometry in; losses (training) or boxes (test) out, frame by frame."""

import importlib.util
import json
import logging
import pickle
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import mmengine
import torch
from mmdet3d.models.detectors.base import Base3DDetector
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.dist import barrier, get_dist_info
from mmengine.logging import print_log
from mmengine.structures import InstanceData
from torch import Tensor, nn

from raggedbev.losses import GroundTruth2D, GroundTruth3D
from raggedbev.mm.heads.common import pack_boxes_3d
from raggedbev.mm.packed import column
from raggedbev.mm.streampetr.grid_mask import GridMask
from raggedbev.ragged.pack import is_split, split_reversibly

FRAME_KEYS = ("intrinsics", "lidar2img", "ego_pose", "ego_pose_inv", "timestamp", "prev_exists")


def token_location(height: int, width: int, stride: int, pad_shape: tuple[int, int], device: torch.device) -> Tensor:
    """Centres of the cells of a feature map over the padded image size: ``[height, width, 2]`` float32 as (u, v)."""
    pad_h, pad_w = pad_shape
    u = (torch.arange(width, dtype=torch.float32, device=device) * stride + stride / 2) / pad_w
    v = (torch.arange(height, dtype=torch.float32, device=device) * stride + stride / 2) / pad_h
    return torch.stack([u.expand(height, width), v[:, None].expand(height, width)], dim=-1)


def ground_truth_3d(samples: Sequence[Det3DDataSample]) -> GroundTruth3D:
    """3D objects of a batch, with gravity centres; those that `ragged_collate` packed are not packed again."""
    instances = [s.gt_instances_3d for s in samples]
    boxes, labels = [one.bboxes_3d for one in instances], [one.labels_3d for one in instances]
    if is_split([b.tensor for b in boxes]):
        return GroundTruth3D(box_list=split_reversibly(pack_boxes_3d(boxes, labels)[0]), label_list=labels)
    return GroundTruth3D(
        box_list=[torch.cat([b.gravity_center, b.tensor[:, 3:]], dim=1) for b in boxes], label_list=labels
    )


def ground_truth_2d(samples: Sequence[Det3DDataSample]) -> GroundTruth2D:
    """2D objects of all images of a batch, sample by sample."""
    columns = [
        [tensor for s in samples for tensor in column(s.gt_instances_2d, name)]
        for name in ("bboxes", "labels", "centers2d")
    ]
    return GroundTruth2D(*columns)


@contextmanager
def _eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Modules in eval mode without gradients; afterwards every part is in the mode it was in."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


@MODELS.register_module()
class StreamPETR(Base3DDetector):
    """The StreamPETR detector (Wang et al., "Exploring Object-Centric Temporal Modeling", arXiv 2303.11926).

    Training takes single frames of streams (``img [B, N, 3, H, W]``) or sliding windows (``img [B, T, N, 3, H, W]``); a
    test takes one stream per process. Under automatic mixed precision only backbone and neck are cast.

    Args:
        img_backbone: Config of the image backbone.
        img_neck: Config of the neck, of which level 0 is used.
        pts_bbox_head: Config of the 3D head.
        img_roi_head: Config of the 2D head, used in training only; None for no 2D losses.
        data_preprocessor: Config of the data preprocessor.
        use_grid_mask: Whether training images are augmented by GridMask.
        stride: Stride of neck level 0 in pixels.
        num_frame_head_grads: Frames at the end of a window that train the heads.
        num_frame_backbone_grads: Frames at the end of a window that train backbone and neck.
        num_frame_losses: Frames at the end of a window whose losses count.
        image_dtype: 'bfloat16' computes backbone and neck in mixed precision without loss scaling, on CPUs too; None
            leaves precision to the optimiser wrapper.
        init_cfg: As for every mmengine module.
    """

    def __init__(
        self,
        img_backbone: dict,
        img_neck: dict,
        pts_bbox_head: dict,
        img_roi_head: dict | None = None,
        data_preprocessor: dict | None = None,
        use_grid_mask: bool = False,
        stride: int = 16,
        num_frame_head_grads: int = 1,
        num_frame_backbone_grads: int = 1,
        num_frame_losses: int = 1,
        image_dtype: str | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        if not 1 <= num_frame_losses <= num_frame_head_grads:
            raise ValueError(
                f"num_frame_losses must lie in 1..num_frame_head_grads={num_frame_head_grads}, got {num_frame_losses}"
            )
        if num_frame_backbone_grads < 1:
            raise ValueError(f"num_frame_backbone_grads must be at least 1, got {num_frame_backbone_grads}")
        if image_dtype not in (None, "bfloat16"):
            raise ValueError(f"image_dtype must be None or 'bfloat16', got {image_dtype!r}")
        self.image_dtype = image_dtype
        self.img_backbone = MODELS.build(img_backbone)
        if getattr(self.img_backbone, "with_cp", False):
            # mmdet's backbones leave the choice of torch.utils.checkpoint's variant to torch, which warns of it.
            warnings.filterwarnings("ignore", r"torch\.utils\.checkpoint: the use_reentrant parameter", UserWarning)
        self.img_neck = MODELS.build(img_neck)
        self.pts_bbox_head = MODELS.build(pts_bbox_head)
        self.img_roi_head = None if img_roi_head is None else MODELS.build(img_roi_head)
        self.grid_mask = GridMask() if use_grid_mask else nn.Identity()
        self.stride = stride
        if self.img_roi_head is not None and self.img_roi_head.stride != stride:
            raise ValueError(
                f"img_roi_head.stride must be the detector's stride={stride}, got {self.img_roi_head.stride}"
            )
        self.num_frame_head_grads = num_frame_head_grads
        self.num_frame_backbone_grads = num_frame_backbone_grads
        self.num_frame_losses = num_frame_losses
        self._last_frame: tuple[str, float] | None = None

    def train(self, mode: bool = True) -> "StreamPETR":
        """Set the mode; a switch between training and test drops the memory, as the streams are different ones."""
        if mode != self.training:
            self.reset_memory()
        return super().train(mode)

    def reset_memory(self) -> None:
        """Forget all past frames."""
        self.pts_bbox_head.reset_memory()
        self._last_frame = None

    def init_weights(self) -> None:
        """Initialise; without pretrained weights of the backbone, say so and start from random ones."""
        pretrained = _pretrained_config(self.img_backbone.init_cfg)
        if pretrained is None:
            self._announce_random_backbone("its init_cfg names no checkpoint", logging.INFO)
        else:
            checkpoint = pretrained["checkpoint"]
            pretrained["checkpoint"] = _downloadable(checkpoint)
            try:
                self.img_backbone.init_weights()
            except (OSError, ImportError, RuntimeError, KeyError, pickle.UnpicklingError) as error:
                _release_waiting_ranks(checkpoint, error)
                reason = f"{checkpoint} could not be loaded ({type(error).__name__}: {error})"
                self._announce_random_backbone(reason, logging.WARNING)
                self.img_backbone.init_cfg = [
                    {"type": "Kaiming", "layer": "Conv2d"},
                    {"type": "Constant", "val": 1, "layer": ["_BatchNorm", "GroupNorm"]},
                ]
        super().init_weights()

    def _announce_random_backbone(self, reason: str, level: int) -> None:
        message = f"The image backbone starts from random weights: {reason}."
        if getattr(self.img_backbone, "norm_eval", False):
            level = logging.WARNING
            message += " Its batch norms stay as they are (norm_eval=True), which suits pretrained weights only."
        print_log(message, "current", level)

    def loss(self, inputs: dict[str, Any], data_samples: Sequence) -> dict[str, Tensor]:
        """Losses of a batch of frames or of sliding windows.

        Args:
            inputs: From the data preprocessor: ``img [B, N, 3, H, W]`` or ``[B, T, N, 3, H, W]``; ``intrinsics``,
                ``lidar2img``, ``ego_pose``, ``ego_pose_inv``, ``timestamp``, ``prev_exists`` with the same leading
                sizes; ``pad_shape`` (h, w) in pixels.
            data_samples: Per sample one data sample, or a list of T.

        Returns:
            Losses of both heads; for windows with the prefix ``frame_{i}_``.
        """
        windows = inputs["img"].dim() == 6
        if not windows:
            inputs = {k: v.unsqueeze(1) if isinstance(v, Tensor) else v for k, v in inputs.items()}
            data_samples = [[sample] for sample in data_samples]
        length = inputs["img"].shape[1]
        most = max(self.num_frame_head_grads, self.num_frame_backbone_grads)
        if length < most:
            raise ValueError(f"windows must have at least {most} frames (num_frame_*_grads), got {length}")
        feats = self._window_feats(inputs["img"])
        losses = {}
        with torch.autocast(feats.device.type, enabled=False):
            for i in range(length):
                frame = self._frame(inputs, i)
                if i < length - self.num_frame_head_grads:
                    with _eval_mode(self.pts_bbox_head):
                        self.pts_bbox_head(feats[:, i], self._location(feats, frame), frame)
                    continue
                frame_losses = self._frame_losses(
                    feats[:, i], frame, [sample[i] for sample in data_samples], i >= length - self.num_frame_losses
                )
                prefix = f"frame_{i}_" if windows else ""
                losses.update({prefix + key: value for key, value in frame_losses.items()})
        return losses

    def predict(self, inputs: dict[str, Any], data_samples: Sequence[Det3DDataSample]) -> list[Det3DDataSample]:
        """Detect in the next frame of the stream.

        Args:
            inputs: As for :meth:`loss`, with B = 1.
            data_samples: One data sample; its metainfo has ``scene_token`` and ``timestamp``.

        Returns:
            The data sample with ``pred_instances_3d``: ``bboxes_3d``, ``scores_3d``, ``labels_3d``.

        Raises:
            ValueError: If the batch has more than one sample, or no scene is named.
        """
        if len(data_samples) != 1:
            raise ValueError(f"StreamPETR tests one stream per process: batch size must be 1, got {len(data_samples)}")
        self._follow_stream(data_samples[0].metainfo)
        outs = self._forward({**inputs, "prev_exists": torch.ones_like(inputs["prev_exists"])})
        results = [
            InstanceData(bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9), scores_3d=scores, labels_3d=labels)
            for boxes, scores, labels in self.pts_bbox_head.predict(outs)
        ]
        return self.add_pred_to_datasample(data_samples, results)

    def _forward(self, inputs: dict[str, Any], data_samples: Sequence | None = None) -> dict[str, Any]:
        """Raw outputs of the 3D head for single frames ``img [B, N, 3, H, W]``; advances the memory."""
        feats = self.extract_feat(inputs["img"])
        with torch.autocast(feats.device.type, enabled=False):
            frame = {**{key: inputs[key] for key in FRAME_KEYS}, "pad_shape": inputs["pad_shape"]}
            return self.pts_bbox_head(feats, self._location(feats, frame), frame)

    def extract_feat(self, images: Tensor) -> Tensor:
        """Features of neck level 0, ``[..., C, H / stride, W / stride]`` float32, of images ``[..., 3, H, W]``."""
        with self._image_precision(images.device.type):
            levels = self.img_neck(self.img_backbone(self.grid_mask(images.flatten(0, -4))))
        feats = levels[0].unflatten(0, images.shape[:-3])
        return feats.float() if feats.dtype in (torch.float16, torch.bfloat16) else feats

    def _image_precision(self, device_type: str) -> AbstractContextManager:
        """Context in which backbone and neck run."""
        if self.image_dtype is None:
            return nullcontext()
        return torch.autocast(device_type, dtype=getattr(torch, self.image_dtype))

    def _window_feats(self, images: Tensor) -> Tensor:
        """Features of windows ``[B, T, N, 3, H, W]``; only the last frames have gradients."""
        earlier = images.shape[1] - self.num_frame_backbone_grads
        feats = self.extract_feat(images[:, earlier:])
        if earlier == 0:
            return feats
        with _eval_mode(self.img_backbone, self.img_neck, self.grid_mask):
            earlier_feats = self.extract_feat(images[:, :earlier])
        return torch.cat([earlier_feats, feats], dim=1)

    def _frame(self, inputs: dict[str, Any], index: int) -> dict[str, Any]:
        """Geometry of one frame of a batch of windows."""
        return {**{key: inputs[key][:, index] for key in FRAME_KEYS}, "pad_shape": inputs["pad_shape"]}

    def _location(self, feats: Tensor, frame: dict[str, Any]) -> Tensor:
        return token_location(*feats.shape[-2:], self.stride, frame["pad_shape"], feats.device)

    def _frame_losses(
        self, feats: Tensor, frame: dict[str, Any], samples: list[Det3DDataSample], wanted: bool
    ) -> dict[str, Tensor]:
        """Losses of one frame, features ``[B, N, C, H, W]``; unless ``wanted``, only the memory is advanced."""
        location = self._location(feats, frame)
        gt = ground_truth_3d(samples)
        outs = self.pts_bbox_head(feats, location, frame, gt=gt)
        if not wanted:
            return {}
        losses = dict(self.pts_bbox_head.loss(outs, gt))
        if self.img_roi_head is not None:
            outs_2d = self.img_roi_head(feats.flatten(0, 1), location)
            losses.update(self.img_roi_head.loss(outs_2d, ground_truth_2d(samples), frame["pad_shape"]))
        return losses

    def _follow_stream(self, metainfo: dict[str, Any]) -> None:
        """Drop the memory unless the frame continues the scene of the frame before."""
        missing = [key for key in ("scene_token", "timestamp") if key not in metainfo]
        if missing:
            raise ValueError(f"test samples need {' and '.join(missing)} in their metainfo, got {sorted(metainfo)}")
        scene, time = metainfo["scene_token"], metainfo["timestamp"]
        last, self._last_frame = self._last_frame, (scene, time)
        if last is None or last[0] != scene or time <= last[1]:
            self.pts_bbox_head.reset_memory()


def _pretrained_config(init_cfg: dict | Sequence[dict] | None) -> dict | None:
    """The part of an init_cfg that names a checkpoint, if any."""
    configs = [init_cfg] if isinstance(init_cfg, dict) else init_cfg or []
    return next((config for config in configs if config["type"] == "Pretrained"), None)


def _downloadable(checkpoint: str) -> str:
    """The address of a ``torchvision://`` model where torchvision is not installed, which mmengine needs to find it."""
    scheme, _, name = checkpoint.partition("://")
    if scheme != "torchvision" or importlib.util.find_spec("torchvision") is not None:
        return checkpoint
    addresses = json.loads((Path(mmengine.__file__).parent / "hub" / "torchvision_0.12.json").read_text())
    return addresses.get(name, checkpoint)


def _release_waiting_ranks(checkpoint: str, error: Exception) -> None:
    """After a failed download on rank 0, meet the barrier at which mmengine lets the other ranks wait for it."""
    rank, world_size = get_dist_info()
    failed_alone = isinstance(error, OSError) or "invalid hash value" in str(error)
    if world_size > 1 and rank == 0 and "://" in checkpoint and failed_alone:
        barrier()
