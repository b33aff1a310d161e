"""The reduced model of the golden data: its configuration, weights and frames (tests/golden/model)."""

from pathlib import Path

import numpy as np
import torch
from mmdet3d.registry import MODELS
from torch import Tensor, nn

import raggedbev.mm.streampetr  # noqa: F401 - registers the parts
from raggedbev.losses import GroundTruth3D, unpack_uniform
from raggedbev.mm.streampetr.focal_head import FocalHeadBase
from raggedbev.mm.streampetr.head import StreamPETRHeadBase

FOLDER = Path(__file__).parents[2] / "golden" / "model"
PC_RANGE = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]
POSITION_RANGE = [-61.2, -61.2, -10.0, 61.2, 61.2, 10.0]
GROUPS = 3
NUM_CAMERAS = 3
PAD_SHAPE = (64, 96)
NECK = {"type": "StreamPETRNeck", "in_channels": [32, 48], "out_channels": 64, "num_outs": 2}
ROI_HEAD = {"type": "SumFocalHead", "in_channels": 64, "embed_dims": 64}


@MODELS.register_module(name="SumStreamPETRHead", force=True)
class SumHead(StreamPETRHeadBase):
    """The 3D head with a loss that needs no assignment: the mean squares of all outputs."""

    def _build_loss(self, **configs):
        self.loss_configs = configs

    def loss(self, outs, gt):
        logits, boxes = outs["all_cls_scores"], outs["all_bbox_preds"]
        losses = {"loss_cls": logits.square().mean(), "loss_bbox": (boxes / 10).square().mean()}
        if outs["dn"] is not None:
            losses["dn_loss_cls"] = outs["dn"].cls_logits.square().sum()
        return losses


@MODELS.register_module(name="SumFocalHead", force=True)
class SumFocalHead(FocalHeadBase):
    """The 2D head with a loss that needs no assignment."""

    def _build_loss(self, **configs):
        self.loss_configs = configs

    def loss(self, outs, gt2d, pad_shape):
        return {f"{name}_loss": values.square().mean() for name, values in outs.items()}


def head_config(**changes) -> dict:
    """Config of the reduced 3D head."""
    config = {
        "type": "SumStreamPETRHead",
        "in_channels": 64,
        "embed_dims": 256,
        "num_query": 40,
        "memory_len": 48,
        "topk_proposals": 16,
        "num_propagated": 16,
        "scalar": GROUPS,
        "depth_num": 32,
        "position_range": POSITION_RANGE,
        "pc_range": PC_RANGE,
        "transformer": {
            "type": "StreamPETRTransformer",
            "num_layers": 2,
            "num_heads": 8,
            "ffn_dims": 128,
            "dropout": 0.0,
        },
        "bbox_coder": {
            "type": "StreamPETRBoxCoder",
            "post_center_range": [-35, -35, -4, 35, 35, 2],
            "pc_range": PC_RANGE,
            "max_num": 30,
            "num_classes": 10,
        },
    }
    return {**config, **changes}


def build_parts() -> nn.ModuleDict:
    """Neck and heads of the reduced model with the golden weights, in float32, under their checkpoint names."""
    parts = nn.ModuleDict(
        {
            "img_neck": MODELS.build(NECK),
            "img_roi_head": MODELS.build(ROI_HEAD),
            "pts_bbox_head": MODELS.build(head_config()),
        }
    )
    weights = read_weights()
    for branch in ("cls", "reg"):
        first = f"pts_bbox_head.{branch}_branches.0."
        for name in [name for name in weights if name.startswith(first)]:
            for i in range(1, 6):
                weights[name.replace(f"{branch}_branches.0.", f"{branch}_branches.{i}.")] = weights[name]
    parts.load_state_dict(weights, strict=True)
    return parts


def read_weights() -> dict[str, Tensor]:
    """Weights by checkpoint name, float32."""
    with np.load(FOLDER / "weights.npz", allow_pickle=False) as file:
        stored = {name: file[name] for name in file.files}
    names = stored.pop("__int8_names__").tolist()
    scale = dict(zip(names, stored.pop("__int8_scale__"), strict=True))
    offset = dict(zip(names, stored.pop("__int8_offset__"), strict=True))
    return {
        name: torch.from_numpy((q * scale[name] + offset[name]).astype(np.float32) if name in scale else q)
        for name, q in stored.items()
    }


class Frames:
    """The four input frames as tensors."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.inputs = np.load(FOLDER / "inputs.npz", allow_pickle=False)
        self.location = torch.from_numpy(self.inputs["location"])

    def tensor(self, key: str) -> Tensor:
        value = torch.from_numpy(self.inputs[key])
        return value.to(self.dtype) if value.is_floating_point() and not key.endswith("timestamp") else value

    def frame(self, index: int) -> dict:
        """Geometry of frame 1..4 as the head takes it."""
        keys = ("intrinsics", "lidar2img", "ego_pose", "ego_pose_inv", "timestamp", "prev_exists")
        return {**{key: self.tensor(f"f{index}.{key}") for key in keys}, "pad_shape": PAD_SHAPE}

    def ground_truth(self, index: int) -> GroundTruth3D:
        boxes = [self.tensor(f"f{index}.gt_boxes_gravity_{b}") for b in range(2)]
        return GroundTruth3D(boxes, [self.tensor(f"f{index}.gt_labels_{b}") for b in range(2)])

    def dn_uniform(self, index: int) -> Tensor:
        """The recorded noise ``[groups, B, G, 3]``."""
        sizes = [len(boxes) for boxes in self.ground_truth(index).box_list]
        return unpack_uniform(self.tensor(f"f{index}.dn_uniform"), sizes, GROUPS)
