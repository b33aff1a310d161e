"""Losses: ground truth and predictions of a whole batch in, loss tensors out, without reading the device."""

from raggedbev.losses.denoising import (
    DenoisingConfig,
    DenoisingOutput,
    DenoisingQueries,
    attention_mask,
    prepare_denoising,
    unpack_uniform,
)
from raggedbev.losses.focal2d import FocalHeadLossConfig, focal_head_loss
from raggedbev.losses.graphed import CudaGraphs, GraphedLoss, GraphLimitWarning
from raggedbev.losses.ground_truth import GroundTruth2D, GroundTruth3D, PackedGroundTruth2D, PackedGroundTruth3D
from raggedbev.losses.nonfinite import count_nonfinite
from raggedbev.losses.streampetr import FocalLossConfig, StreamPETRLossConfig, streampetr_loss
from raggedbev.losses.terms import L1, BalancedL1, SmoothL1

__all__ = [
    "L1",
    "BalancedL1",
    "CudaGraphs",
    "DenoisingConfig",
    "DenoisingOutput",
    "DenoisingQueries",
    "FocalHeadLossConfig",
    "FocalLossConfig",
    "GraphLimitWarning",
    "GraphedLoss",
    "GroundTruth2D",
    "GroundTruth3D",
    "PackedGroundTruth2D",
    "PackedGroundTruth3D",
    "SmoothL1",
    "StreamPETRLossConfig",
    "attention_mask",
    "count_nonfinite",
    "focal_head_loss",
    "prepare_denoising",
    "streampetr_loss",
    "unpack_uniform",
]
