"""Denoising queries against the recorded published arrays, and their degenerate cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raggedbev.losses import DenoisingConfig, GroundTruth3D, attention_mask, prepare_denoising, unpack_uniform

from .golden import ground_truth_3d, load, tensor


@pytest.fixture(scope="module")
def data():
    return load("det3d_denoising")


@pytest.fixture(params=["f32", "f64"])
def queries(request, data):
    gt = ground_truth_3d(data, request.param)
    uniform = unpack_uniform(
        tensor(data["dn_rand01"], request.param), data["gt_counts"].tolist(), int(data["dn_groups"])
    )
    return prepare_denoising(gt, DenoisingConfig(groups=int(data["dn_groups"])), uniform)


def test_sizes(queries, data):
    assert (queries.pad, queries.single_pad) == (int(data["dn_pad_size"]), int(data["dn_single_pad"]))
    assert int(queries.num_known) == len(data["dn_known_labels"]) == int(queries.valid.sum())


def test_slots_labels_and_boxes(queries, data):
    slot = data["dn_map_known_indice"]
    batch = np.tile(data["dn_batch_idx"], int(data["dn_groups"]))
    assert queries.valid[batch, slot].all()
    np.testing.assert_array_equal(queries.known_labels[batch, slot], data["dn_known_labels"])
    np.testing.assert_array_equal(queries.known_boxes[batch, slot].float(), data["dn_known_boxes"])


def test_reference_points(queries, data):
    recorded = data["dn_ref_points"][:, : queries.pad]
    np.testing.assert_allclose(queries.reference_points, recorded, rtol=0, atol=1.2e-7)
    assert (queries.reference_points[~queries.valid] == 0).all()


def test_attention_mask(data):
    shape = tuple(data["dn_mask_shape"])
    recorded = np.unpackbits(data["dn_mask_packed"])[: shape[0] * shape[1]].reshape(shape).astype(bool)
    pad, queries = int(data["dn_pad_size"]), len(data["dn_learned_ref"])
    mask = attention_mask(pad, int(data["dn_groups"]), queries, shape[0] - pad - queries, shape[1] - pad - queries)
    np.testing.assert_array_equal(mask, recorded)


def _ground_truth(*sizes: int) -> GroundTruth3D:
    boxes = [torch.rand(n, 9, generator=torch.Generator().manual_seed(n)) + 1 for n in sizes]
    return GroundTruth3D(boxes, [torch.zeros(n, dtype=torch.long) for n in sizes])


@pytest.mark.parametrize("sizes", [(0,), (0, 0), (1,), (0, 3), (2, 0, 5)])
def test_shapes_follow_from_shapes(sizes):
    config = DenoisingConfig(groups=4)
    queries = prepare_denoising(_ground_truth(*sizes), config)
    pad = 4 * max(sizes)
    assert queries.reference_points.shape == (len(sizes), pad, 3)
    assert queries.valid.sum(1).tolist() == [4 * n for n in sizes]
    assert (queries.known_labels[~queries.valid] == config.num_classes).all()
    assert attention_mask(0, 4, 7, 2, 5) is None


def test_generator_repeats():
    gt = _ground_truth(3, 1)
    first, second, third = (
        prepare_denoising(gt, DenoisingConfig(), generator=torch.Generator().manual_seed(s)).reference_points
        for s in (0, 0, 1)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_noise_stays_in_the_box_and_far_noise_is_background():
    gt = _ground_truth(6)
    config = DenoisingConfig(groups=50)
    queries = prepare_denoising(gt, config)
    low, high = torch.tensor(config.pc_range[:3]), torch.tensor(config.pc_range[3:])
    moved = (queries.reference_points * (high - low) + low - queries.known_boxes[..., :3]) / (
        queries.known_boxes[..., 3:6] / 2
    )
    assert moved.abs().max() <= 1 + 1e-3
    clear = (moved.norm(dim=-1) - config.split).abs() > 1e-3
    assert torch.equal((queries.known_labels == config.num_classes)[clear], (moved.norm(dim=-1) > config.split)[clear])


def test_wrong_shapes_are_named():
    gt = _ground_truth(2, 1)
    with pytest.raises(ValueError, match=r"uniform must be \(10, 2, 2, 3\), got \(10, 3, 3\)"):
        prepare_denoising(gt, DenoisingConfig(), torch.rand(10, 3, 3))
    with pytest.raises(ValueError, match="multiple of groups"):
        attention_mask(7, 2, 5, 1, 3)
    with pytest.raises(ValueError, match=r"box_list of sample 0 must be \(2, 9\), got \(2, 7\)"):
        GroundTruth3D([torch.zeros(2, 7)], [torch.zeros(2, dtype=torch.long)])
    with pytest.raises(ValueError, match="must be int64"):
        GroundTruth3D([torch.zeros(2, 9)], [torch.zeros(2)])
