"""Losses: ground truth and predictions of a whole batch in, loss tensors out, without reading the device."""

from raggedbev.losses.denoising import (
    DenoisingConfig,
    DenoisingOutput,
    DenoisingQueries,
    attention_mask,
    prepare_denoising,
    unpack_uniform,
)
from raggedbev.losses.ground_truth import GroundTruth2D, GroundTruth3D

__all__ = [
    "DenoisingConfig",
    "DenoisingOutput",
    "DenoisingQueries",
    "GroundTruth2D",
    "GroundTruth3D",
    "attention_mask",
    "prepare_denoising",
    "unpack_uniform",
]
