"""Batched and per-sample losses against the recorded numbers of the published code: costs, pairs, losses, gradients,
heatmaps."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from raggedbev.heatmap.targets import focal_head_heatmap
from raggedbev.losses import (
    DenoisingConfig,
    DenoisingOutput,
    FocalHeadLossConfig,
    StreamPETRLossConfig,
    focal_head_loss,
    prepare_denoising,
    streampetr_loss,
    unpack_uniform,
)
from raggedbev.losses.reference import (
    focal_head_heatmap_reference,
    focal_head_loss_reference,
    streampetr_loss_reference,
)
from raggedbev.matching import HungarianMatcher2D, HungarianMatcher3D
from raggedbev.matching.reference import PerSampleMatcher2D, PerSampleMatcher3D

from .golden import CASES_2D, CASES_3D, ground_truth_2d, ground_truth_3d, load, tensor

PAD_SHAPE = (256, 704)
LOSS_RTOL = {"f32": 2e-6, "f64": 1e-12}
GRAD_ATOL = {"f32": 1e-6, "f64": 1e-14}
PREDS_2D = ("cls_logits", "box_preds", "center_preds", "centerness_logits")
CONFIG_3D = StreamPETRLossConfig()
precisions = pytest.mark.parametrize("precision", ["f32", "f64"])
arms = pytest.mark.parametrize("arm", ["batched", "reference", "published"])


def denoising_output(data, precision, gt):
    if "dn_cls_logits" not in data:
        return None
    uniform = unpack_uniform(tensor(data["dn_rand01"], precision), data["gt_counts"].tolist(), int(data["dn_groups"]))
    queries = prepare_denoising(gt, DenoisingConfig(), uniform)
    # The recorded float64 run had its denoising targets in float32.
    queries = dataclasses.replace(queries, known_boxes=queries.known_boxes.float())
    return DenoisingOutput(tensor(data["dn_cls_logits"], precision), tensor(data["dn_box_preds"], precision), queries)


def losses_3d(arm, data, precision, preds):
    gt = ground_truth_3d(data, precision)
    dn = denoising_output(data, precision, gt)
    if arm == "batched":
        return streampetr_loss(*preds, gt, HungarianMatcher3D(), CONFIG_3D, dn)
    return streampetr_loss_reference(*preds, gt, PerSampleMatcher3D(arm=arm), CONFIG_3D, dn)


def losses_2d(arm, data, precision, preds):
    gt, config = ground_truth_2d(data, precision), FocalHeadLossConfig()
    if arm == "batched":
        return focal_head_loss(*preds, gt, HungarianMatcher2D(), config, PAD_SHAPE)
    return focal_head_loss_reference(*preds, gt, PerSampleMatcher2D(arm=arm), config, PAD_SHAPE, arm=arm)


def leaves(data, precision, names):
    return [tensor(data[name], precision).requires_grad_() for name in names]


def check_losses(losses, data, precision):
    assert list(losses) == list(data["loss_keys"])
    recorded = dict(zip(data["loss_keys"], data[f"loss_{precision}"], strict=True))
    for key, value in losses.items():
        rtol = 2e-5 if key == "centerness_losses" and precision == "f32" else LOSS_RTOL[precision]
        np.testing.assert_allclose(float(value.detach()), recorded[key], rtol=rtol, atol=0, err_msg=key)


def check_gradient(grad, data, precision, name):
    """Sampled entries, and sums per problem, of a gradient [problems.., rows, columns]."""
    atol = GRAD_ATOL[precision]
    grad = grad.detach().numpy()
    positions = data[f"grad_{name}_pos"]
    np.testing.assert_allclose(grad.reshape(-1)[positions], data[f"grad_{name}_at_{precision}"], rtol=0, atol=atol)
    for kind, values in (("sum", grad), ("abssum", np.abs(grad))):
        np.testing.assert_allclose(
            values.astype(np.float64).sum((-2, -1)), data[f"grad_{name}_{kind}_{precision}"], rtol=1e-5, atol=20 * atol
        )
    assert (~np.isfinite(grad)).sum() == data[f"grad_{name}_nonfinite_{precision}"].sum()


@arms
@precisions
@pytest.mark.parametrize("case", CASES_3D)
def test_losses_and_gradients_3d(case, precision, arm):
    data = load(case)
    preds = leaves(data, precision, ("cls_logits", "box_preds"))
    losses = losses_3d(arm, data, precision, preds)
    check_losses(losses, data, precision)
    assert [value.requires_grad for value in losses.values()] == expected_requires_grad(data)
    sum(losses.values()).backward()
    for name, leaf in zip(("cls", "box"), preds, strict=True):
        check_gradient(leaf.grad, data, precision, name)
    if precision == "f64":
        layer, sample, query, _ = data["match_f64"].T
        matched = preds[1].grad[layer, sample, query]
        np.testing.assert_allclose(matched, data["grad_box_matched_f64"], rtol=0, atol=1e-13)


def expected_requires_grad(data):
    """As recorded; the denoising predictions are constants in these tests."""
    constant = "dn_cls_logits" in data
    return [
        bool(g) and not (constant and "dn_" in k) for k, g in zip(data["loss_keys"], data["loss_has_grad"], strict=True)
    ]


@arms
@precisions
@pytest.mark.parametrize("case", CASES_2D)
def test_losses_and_gradients_2d(case, precision, arm):
    data = load(case)
    preds = leaves(data, precision, PREDS_2D)
    losses = losses_2d(arm, data, precision, preds)
    check_losses(losses, data, precision)
    sum(losses.values()).backward()
    for name, leaf in zip(("cls", "box", "center", "centerness"), preds, strict=True):
        check_gradient(leaf.grad, data, precision, name)
    image, token, _ = data["match_f64"].T
    for name, grad in (("box", preds[1].grad), ("center", preds[2].grad)):
        if precision == "f64":
            np.testing.assert_allclose(grad[image, token], data[f"grad_{name}_matched_f64"], rtol=0, atol=1e-13)
        others = torch.ones(grad.shape[:2], dtype=torch.bool)
        others[image, token] = False
        assert (grad[others] == 0).all() and bool(data[f"grad_{name}_zero_elsewhere"])


@precisions
@pytest.mark.parametrize("case", CASES_3D)
def test_costs_and_pairs_3d(case, precision):
    data, matcher = load(case), HungarianMatcher3D()
    gt = ground_truth_3d(data, precision)
    logits, boxes = tensor(data["cls_logits"], precision), tensor(data["box_preds"], precision)
    cost = matcher.cost(logits, boxes, gt.boxes.tensor, gt.labels.tensor, CONFIG_3D.match_costs).numpy()
    layer, sample, query, obj = data["cost_at"].T
    np.testing.assert_allclose(cost[layer, sample, obj, query], data[f"cost_{precision}"], rtol=LOSS_RTOL[precision])
    batched = matcher.assign_batch(logits, boxes, gt.boxes, gt.labels, CONFIG_3D.match_costs).gt_of_pred
    recorded = {tuple(pair) for pair in data[f"match_{precision}"].tolist()}
    assert recorded == {(*index, int(batched[tuple(index)])) for index in (batched >= 0).nonzero().tolist()}
    per_sample = PerSampleMatcher3D()
    for layer in range(len(logits)):
        for sample in range(gt.num_samples):
            one = per_sample.match(
                logits[layer, sample],
                boxes[layer, sample],
                gt.box_list[sample],
                gt.label_list[sample],
                CONFIG_3D.match_costs,
            )
            assert torch.equal(one, batched[layer, sample])


@precisions
@pytest.mark.parametrize("case", CASES_2D)
def test_costs_and_pairs_2d(case, precision):
    data, matcher = load(case), HungarianMatcher2D()
    gt = ground_truth_2d(data, precision)
    preds = [tensor(data[name], precision) for name in PREDS_2D[:3]]
    cost = matcher.cost(*preds, gt.boxes.tensor, gt.labels.tensor, gt.centers.tensor, PAD_SHAPE).numpy()
    image, token, obj = data["cost_at"].T
    np.testing.assert_allclose(cost[image, obj, token], data[f"cost_{precision}"], rtol=LOSS_RTOL[precision])
    batched = matcher.assign_batch(*preds, gt.boxes, gt.labels, gt.centers, PAD_SHAPE).gt_of_pred
    recorded = {tuple(pair) for pair in data[f"match_{precision}"].tolist()}
    assert recorded == {(*index, int(batched[tuple(index)])) for index in (batched >= 0).nonzero().tolist()}
    per_image = PerSampleMatcher2D()
    for image in range(gt.num_images):
        objects = (gt.box_list[image], gt.label_list[image], gt.center_list[image])
        assert torch.equal(per_image.match(*(p[image] for p in preds), *objects, PAD_SHAPE), batched[image])


@pytest.mark.parametrize("case", CASES_2D)
def test_heatmaps_are_bit_exact(case):
    data = load(case)
    gt = ground_truth_2d(data, "f32")
    np.testing.assert_array_equal(focal_head_heatmap(gt.boxes, gt.centers, PAD_SHAPE, 16), data["heatmaps"])
    np.testing.assert_array_equal(focal_head_heatmap_reference(gt, PAD_SHAPE, 16), data["heatmaps"])
