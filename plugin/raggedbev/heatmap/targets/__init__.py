"""Heatmap targets of heads: boxes and labels of the whole batch in, maps and regression targets out."""

from raggedbev.heatmap.targets.cells import BevGrid
from raggedbev.heatmap.targets.center_head import CenterHeadConfig, CenterHeadTargets, center_head_targets
from raggedbev.heatmap.targets.centernet import CenterNetTargets, centernet_targets
from raggedbev.heatmap.targets.focal_head import focal_head_heatmap
from raggedbev.heatmap.targets.transfusion import transfusion_heatmap

__all__ = [
    "BevGrid",
    "CenterHeadConfig",
    "CenterHeadTargets",
    "CenterNetTargets",
    "center_head_targets",
    "centernet_targets",
    "focal_head_heatmap",
    "transfusion_heatmap",
]
