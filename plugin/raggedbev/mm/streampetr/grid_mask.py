"""GridMask augmentation: normalised images in, images with a regular pattern of zeroed squares out.

Chen et al., "GridMask Data Augmentation" (arXiv 2001.04086), with the settings of StreamPETR: the squares between
the marked stripes are removed, the stripes are half as wide as the grid, and one mask serves the whole batch.
"""

import numpy as np
import torch
from torch import Tensor, nn


class GridMask(nn.Module):
    """Zero a random grid of rectangles in training; images pass unchanged in eval mode.

    Random numbers come from NumPy's global generator in a fixed order: one to decide (also in eval mode, so that the
    stream does not depend on the mode), then period, two offsets, and one that is not used.

    Args:
        prob: Probability to apply the mask.
        ratio: Width of a kept stripe over the period of the grid.
        canvas_scale: The grid is laid out on a canvas this many times the image, of which the centre is used.
    """

    def __init__(self, prob: float = 0.7, ratio: float = 0.5, canvas_scale: float = 1.5) -> None:
        super().__init__()
        self.prob = prob
        self.ratio = ratio
        self.canvas_scale = canvas_scale

    def forward(self, images: Tensor) -> Tensor:
        """Mask images ``[..., H, W]``; all of them with the same mask."""
        if np.random.rand() > self.prob or not self.training:
            return images
        height, width = images.shape[-2:]
        period = int(np.random.randint(2, height))
        row_offset = int(np.random.randint(period))
        column_offset = int(np.random.randint(period))
        np.random.randint(1)  # the published augmentation draws a rotation angle of zero here
        stripe = min(max(int(period * self.ratio + 0.5), 1), period - 1)
        rows = self._stripes(height, period, row_offset, stripe, images.device)
        columns = self._stripes(width, period, column_offset, stripe, images.device)
        keep = rows[:, None] | columns[None, :]
        return images * keep.to(images.dtype)

    def _stripes(self, size: int, period: int, offset: int, stripe: int, device: torch.device) -> Tensor:
        """Which of the ``size`` central rows (or columns) of the canvas lie in a stripe: ``[size]`` bool."""
        canvas = int(self.canvas_scale * size)
        position = torch.arange(size, device=device) + (canvas - size) // 2 - offset
        index = torch.div(position, period, rounding_mode="floor")
        return (index >= 0) & (index < canvas // period) & (position - index * period < stripe)
