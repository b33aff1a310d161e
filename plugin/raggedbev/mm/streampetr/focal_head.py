"""2D head: image features in, per-token class logits, boxes, centres and centreness out. It only serves training."""

import math
from abc import abstractmethod

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from raggedbev.mm.streampetr.embedding import inverse_sigmoid


def _tower(in_channels: int, embed_dims: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, embed_dims, kernel_size=3, padding=1), nn.GroupNorm(32, embed_dims), nn.ReLU()
    )


def prior_bias(probability: float = 0.01) -> float:
    """The bias for which a sigmoid starts at ``probability`` (Lin et al., focal loss, section 3.3)."""
    return -math.log((1 - probability) / probability)


class FocalHeadBase(BaseModule):
    """The 2D head of Focal-PETR and StreamPETR without its loss, which subclasses add.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the feature map.
        embed_dims: Channels of the two towers, a multiple of 32.
        stride: Stride of the feature map in pixels.
        loss_cls2d, loss_centerness, loss_bbox2d, loss_iou2d, loss_centers2d, train_cfg: Handed to ``_build_loss``.
        init_cfg: As for every mmengine module.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 256,
        embed_dims: int = 256,
        stride: int = 16,
        loss_cls2d: dict | None = None,
        loss_centerness: dict | None = None,
        loss_bbox2d: dict | None = None,
        loss_iou2d: dict | None = None,
        loss_centers2d: dict | None = None,
        train_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.num_classes = num_classes
        self.stride = stride
        self.shared_cls = _tower(in_channels, embed_dims)
        self.shared_reg = _tower(in_channels, embed_dims)
        self.cls = nn.Conv2d(embed_dims, num_classes, kernel_size=1)
        self.centerness = nn.Conv2d(embed_dims, 1, kernel_size=1)
        self.ltrb = nn.Conv2d(embed_dims, 4, kernel_size=1)
        self.center2d = nn.Conv2d(embed_dims, 2, kernel_size=1)
        for layer in (self.cls, self.centerness):
            nn.init.constant_(layer.bias, prior_bias())
        self._build_loss(
            loss_cls2d=loss_cls2d,
            loss_centerness=loss_centerness,
            loss_bbox2d=loss_bbox2d,
            loss_iou2d=loss_iou2d,
            loss_centers2d=loss_centers2d,
            train_cfg=train_cfg,
        )

    @abstractmethod
    def _build_loss(self, **configs: dict | None) -> None:
        """Take the loss and assigner configs, one keyword argument each."""

    @abstractmethod
    def loss(self, outs: dict[str, Tensor], gt2d: object, pad_shape: tuple[int, int]) -> dict[str, Tensor]:
        """Losses of what :meth:`forward` gave, for the objects ``gt2d`` of all images."""

    def forward(self, feats: Tensor, location: Tensor) -> dict[str, Tensor]:
        """Predict for every token of every image.

        Args:
            feats: ``[I, in_channels, H, W]``.
            location: Token centres ``[H, W, 2]`` as (u, v) over the padded image size.

        Returns:
            ``enc_cls_scores [I, H*W, num_classes]`` logits, ``enc_bbox_preds [I, H*W, 4]`` (cx, cy, w, h) and
            ``pred_centers2d [I, H*W, 2]``, both over the padded image size, ``centerness [I, H*W, 1]`` logits.
        """
        cls_feats, reg_feats = self.shared_cls(feats), self.shared_reg(feats)
        ltrb, offset = _tokens(self.ltrb(reg_feats)).sigmoid(), _tokens(self.center2d(reg_feats))
        point = location.to(ltrb.dtype).flatten(0, 1)  # [H*W, 2]
        corner0 = (point - ltrb[..., :2]).clamp(min=0, max=1)
        corner1 = (point + ltrb[..., 2:]).clamp(min=0, max=1)
        return {
            "enc_cls_scores": _tokens(self.cls(cls_feats)),
            "enc_bbox_preds": torch.cat([(corner0 + corner1) / 2, corner1 - corner0], dim=-1),
            "pred_centers2d": (inverse_sigmoid(point) + offset).sigmoid(),
            "centerness": _tokens(self.centerness(cls_feats)),
        }


def _tokens(maps: Tensor) -> Tensor:
    """``[I, K, H, W] -> [I, H*W, K]``."""
    return maps.flatten(2).transpose(1, 2)
