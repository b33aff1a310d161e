"""GridMask against a literal drawing of its rectangles, and its use of NumPy's random numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raggedbev.mm.streampetr.grid_mask import GridMask


def draw(height, width):
    """The kept pixels ``[height, width]`` drawn stripe by stripe, or None if the mask is skipped."""
    if np.random.rand() > 0.7:
        return None
    d = np.random.randint(2, height)
    a, b = np.random.randint(d), np.random.randint(d)
    np.random.randint(1)
    stripe = min(max(int(d / 2 + 0.5), 1), d - 1)
    canvas_h, canvas_w = int(1.5 * height), int(1.5 * width)
    canvas = np.zeros((canvas_h, canvas_w), dtype=bool)
    for i in range(canvas_h // d):
        canvas[d * i + a : min(d * i + a + stripe, canvas_h)] = True
    for i in range(canvas_w // d):
        canvas[:, d * i + b : min(d * i + b + stripe, canvas_w)] = True
    top, left = (canvas_h - height) // 2, (canvas_w - width) // 2
    return canvas[top : top + height, left : left + width]


@pytest.mark.parametrize(("height", "width"), [(256, 704), (128, 352), (5, 7)])
def test_equals_the_drawing(height, width, device):
    mask = GridMask()
    images = torch.ones(2, 3, height, width, device=device)
    masked = 0
    for seed in range(40):
        np.random.seed(seed)
        expected = draw(height, width)
        following = np.random.rand()
        np.random.seed(seed)
        out = mask(images)
        assert np.random.rand() == following
        if expected is None:
            assert out is images
        else:
            masked += 1
            assert (out.cpu().bool().numpy() == expected).all()
    assert 20 <= masked <= 36


def test_keeps_values_and_zeroes_the_rest():
    np.random.seed(1)
    images = torch.randn(2, 3, 32, 32)
    out = GridMask(prob=1.0)(images)
    zero = out == 0
    assert 0.1 < zero.float().mean() < 0.5
    assert torch.equal(out[~zero], images[~zero])
    assert (zero == zero[0, 0]).all()


def test_eval_mode_draws_one_number_and_changes_nothing():
    images = torch.randn(1, 3, 16, 16)
    np.random.seed(3)
    np.random.rand()
    following = np.random.rand()
    np.random.seed(3)
    assert GridMask(prob=1.0).eval()(images) is images
    assert np.random.rand() == following
