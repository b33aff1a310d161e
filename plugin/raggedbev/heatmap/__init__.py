"""Gaussian heatmap targets: object centres and radii in, one map per image (or sample and class) out."""

from raggedbev.heatmap.gaussian import draw_gaussian_heatmap
from raggedbev.heatmap.radius import centernet_radius, centerpoint_radius, whole_radius
from raggedbev.heatmap.targets import (
    BevGrid,
    CenterHeadConfig,
    CenterHeadTargets,
    CenterNetTargets,
    center_head_targets,
    centernet_targets,
    focal_head_heatmap,
    transfusion_heatmap,
)

__all__ = [
    "BevGrid",
    "CenterHeadConfig",
    "CenterHeadTargets",
    "CenterNetTargets",
    "center_head_targets",
    "centernet_radius",
    "centernet_targets",
    "centerpoint_radius",
    "draw_gaussian_heatmap",
    "focal_head_heatmap",
    "transfusion_heatmap",
    "whole_radius",
]
