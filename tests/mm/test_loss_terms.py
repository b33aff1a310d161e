"""Unreduced loss terms against mmdet's losses as installed: values and gradients of every element."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.models.losses import (
    BalancedL1Loss,
    FocalLoss,
    GaussianFocalLoss,
    GIoULoss,
    L1Loss,
    QualityFocalLoss,
    SmoothL1Loss,
)
from mmdet.models.losses.utils import weight_reduce_loss

from raggedbev.losses import terms

RTOL = {torch.float32: 2e-5, torch.float64: 1e-11}
SHAPE, CLASSES = (4, 30), 7
dtypes = pytest.mark.parametrize("dtype", RTOL, ids=str)
seeds = st.integers(0, 10**6)


def numbers(*shape, dtype, seed, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).mul(scale).to(dtype)


def labels_and_quality(dtype, seed):
    """Labels, background among them, and target scores."""
    generator = torch.Generator().manual_seed(seed)
    quality = torch.rand(*SHAPE, generator=generator, dtype=torch.float64).to(dtype)
    return torch.randint(0, CLASSES + 1, SHAPE, generator=generator), quality


def boxes(dtype, seed):
    """Corners in pixels; some boxes are points, some lie apart, some are equal to the next set's."""
    low = numbers(*SHAPE, 2, dtype=dtype, seed=seed, scale=20.0)
    size = numbers(*SHAPE, 2, dtype=dtype, seed=seed + 1, scale=15.0).abs()
    size[0, :3], low[1, :3] = 0.0, 500.0
    return torch.cat([low, low + size], dim=-1)


def check(ours, theirs, preds, rtol=None):
    """Every element, and the gradient of their sum with factors of their own."""
    results = []
    for function in (ours, theirs):
        inputs = preds.clone().requires_grad_()
        values = function(inputs)
        factors = torch.linspace(0.5, 2.0, values.numel(), dtype=values.dtype).reshape(values.shape)
        results.append((values.detach(), torch.autograd.grad((values * factors).sum(), inputs)[0]))
    rtol = rtol or RTOL[preds.dtype]
    for one, other in zip(*results, strict=True):
        assert one.dtype == other.dtype == preds.dtype
        torch.testing.assert_close(one, other, rtol=rtol, atol=rtol * float(other.abs().max()))
    assert (results[0][1] != 0).any()


@dtypes
@given(seed=seeds, gamma=st.sampled_from([0.5, 1.0, 2.0, 3.0]), alpha=st.sampled_from([0.25, 0.6]))
@settings(max_examples=8, deadline=None)
def test_sigmoid_focal(dtype, seed, gamma, alpha):
    labels, _ = labels_and_quality(dtype, seed)
    loss = FocalLoss(gamma=gamma, alpha=alpha, reduction="none")

    def theirs(logits):
        return loss(logits.flatten(0, 1), labels.flatten()).reshape(logits.shape)

    check(
        lambda x: terms.sigmoid_focal_loss(x, labels, alpha, gamma), theirs, numbers(*SHAPE, 7, dtype=dtype, seed=seed)
    )


@dtypes
@given(seed=seeds, beta=st.sampled_from([1.0, 2.0, 2.5]))
@settings(max_examples=8, deadline=None)
def test_quality_focal(dtype, seed, beta):
    labels, quality = labels_and_quality(dtype, seed)
    loss = QualityFocalLoss(beta=beta, reduction="none")

    def theirs(logits):
        return loss(logits.flatten(0, 1), (labels.flatten(), quality.flatten())).reshape(SHAPE)

    check(
        lambda x: terms.quality_focal_loss(x, labels, quality, beta).sum(-1),
        theirs,
        numbers(*SHAPE, 7, dtype=dtype, seed=seed),
    )


@dtypes
@given(seed=seeds, alpha=st.sampled_from([1.0, 2.0]), gamma=st.sampled_from([2.0, 4.0]))
@settings(max_examples=8, deadline=None)
def test_gaussian_focal(dtype, seed, alpha, gamma):
    _, heatmap = labels_and_quality(dtype, seed)
    heatmap[::2, ::5] = 1.0
    loss = GaussianFocalLoss(alpha=alpha, gamma=gamma, reduction="none")

    def theirs(logits):  # heads clip the scores, in place where mmdet's helper does
        return loss(logits.sigmoid().clamp(min=1e-4, max=1 - 1e-4), heatmap)

    check(
        lambda x: terms.gaussian_focal_loss(x, heatmap, alpha, gamma),
        theirs,
        numbers(*SHAPE, dtype=dtype, seed=seed, scale=6.0),
    )


COORDINATES = [
    (terms.L1(), L1Loss(reduction="none")),
    (terms.SmoothL1(), SmoothL1Loss(reduction="none")),
    (terms.SmoothL1(0.11), SmoothL1Loss(beta=0.11, reduction="none")),
    (terms.BalancedL1(), BalancedL1Loss(reduction="none")),
    (terms.BalancedL1(0.4, 1.0, 0.7), BalancedL1Loss(alpha=0.4, gamma=1.0, beta=0.7, reduction="none")),
]
coordinates = pytest.mark.parametrize("ours, theirs", COORDINATES, ids=[str(ours) for ours, _ in COORDINATES])


@dtypes
@coordinates
@given(seed=seeds)
@settings(max_examples=8, deadline=None)
def test_coordinates(ours, theirs, dtype, seed):
    targets = numbers(*SHAPE, 10, dtype=dtype, seed=seed + 1, scale=1.0)
    preds = numbers(*SHAPE, 10, dtype=dtype, seed=seed, scale=1.0)
    preds[0] = targets[0]
    check(lambda x: ours(x, targets), lambda x: theirs(x, targets), preds)


@coordinates
def test_nothing_is_lost_where_prediction_and_target_are_equal(ours, theirs):
    row = torch.tensor([0.0, 3.0, -1e3], requires_grad=True)
    ours(row, row.detach()).sum().backward()
    assert torch.equal(ours(row, row.detach()), torch.zeros(3)) and torch.equal(row.grad, torch.zeros(3))


@coordinates
def test_infinite_differences_have_a_finite_slope(ours, theirs):
    row = torch.tensor([torch.inf, -torch.inf], requires_grad=True)
    ours(row, torch.zeros(2)).sum().backward()
    assert row.grad.isfinite().all() and row.grad[0] == -row.grad[1] > 0


def test_balanced_l1_is_the_published_formula():
    """In its two pieces, with the bound b that makes them meet at 1."""
    b = torch.tensor(1.5 / 0.5, dtype=torch.float64).exp() - 1
    difference = torch.tensor([0.0, 0.2, 0.999, 1.0, 4.0], dtype=torch.float64)
    below = 0.5 / b * (b * difference + 1) * (b * difference + 1).log() - 0.5 * difference
    above = 1.5 * difference + 1.5 / b - 0.5
    wanted = torch.where(difference < 1, below, above)
    torch.testing.assert_close(terms.balanced_l1_loss(difference, torch.zeros(5)), wanted, rtol=1e-14, atol=1e-14)


@dtypes
@given(seed=seeds, eps=st.sampled_from([1e-6, 1e-2]))
@settings(max_examples=8, deadline=None)
def test_giou(dtype, seed, eps):
    targets = boxes(dtype, seed + 2)
    loss = GIoULoss(eps=eps, reduction="none")
    preds = boxes(dtype, seed)
    preds[2] = targets[2]

    def theirs(x):
        return loss(x.flatten(0, 1), targets.flatten(0, 1)).reshape(SHAPE)

    # Slopes of a box that is its target cancel: what is left in float32 is rounding.
    check(lambda x: terms.giou_loss(x, targets, eps), theirs, preds, rtol=1e-3 if dtype == torch.float32 else None)


def test_normalisers_have_mmdets_epsilon():
    values = torch.rand(5, dtype=torch.float64)
    assert weight_reduce_loss(values, avg_factor=1e-7) == values.sum() / (1e-7 + terms.AVG_FACTOR_EPS)
