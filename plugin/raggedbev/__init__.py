"""raggedbev: batched ground-truth handling, matching, targets and losses for bird's-eye-view detectors.

This package imports torch, NumPy and SciPy only; what plugs into mmdetection3d lives in `raggedbev.mm`.
"""

from raggedbev.heatmap import draw_gaussian_heatmap

__all__ = ["__version__", "draw_gaussian_heatmap"]
__version__ = "0.1.0"
