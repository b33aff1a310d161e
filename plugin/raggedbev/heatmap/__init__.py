"""Gaussian heatmap targets: object centres and radii in, one map per image (or sample and class) out."""

from raggedbev.heatmap.gaussian import draw_gaussian_heatmap

__all__ = ["draw_gaussian_heatmap"]
