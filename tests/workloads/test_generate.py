"""Inputs of the benchmark: sizes, statistics, reproducibility, and info files."""

import pickle

import numpy as np
import pytest
import torch

from raggedbev.workloads.generate import PRESETS, LossSizes, Objects, generate_objects, generate_predictions
from raggedbev.workloads.infos import read_objects

TINY = LossSizes(num_query=40, num_layers=2, image_size=(64, 96), num_cameras=2, dn_groups=2)


def _draw(seed=0, batch_size=4, sizes=TINY):
    return generate_objects(sizes, batch_size, np.random.default_rng(seed))


def _predict(objects, sizes=TINY, **kwargs):
    return generate_predictions(objects, sizes, torch.Generator().manual_seed(0), **kwargs)


def test_presets_have_the_published_sizes():
    published = PRESETS["streampetr_r50_704"]
    assert (published.num_query, published.num_layers, published.num_cameras) == (900, 6, 6)
    assert published.token_grid == (16, 44)
    assert PRESETS["streampetr_r50_428q"].num_query == 428


def test_objects_look_like_nuscenes():
    sizes = PRESETS["streampetr_r50_704"]
    objects = _draw(batch_size=40, sizes=sizes)
    counts = [len(boxes) for boxes in objects.boxes]
    assert min(counts) >= 30 and max(counts) <= 60
    assert 12 < np.mean([len(boxes) for boxes in objects.image_boxes]) < 14
    boxes, labels = torch.cat(objects.boxes), torch.cat(objects.labels)
    low, high = torch.tensor(sizes.pc_range).chunk(2)
    assert ((boxes[:, :3] >= low) & (boxes[:, :3] <= high)).all() and (boxes[:, 3:6] > 0).all()
    share = torch.bincount(labels, minlength=10) / len(labels)
    assert share.argmax() == 0 and 0.35 < share[0] < 0.52 and (share > 0).all()
    corners, centers = torch.cat(objects.image_boxes), torch.cat(objects.image_centers)
    limit = torch.tensor([704.0, 256.0])
    assert (corners >= 0).all() and (corners[:, 2:] <= limit).all() and (corners[:, 2:] >= corners[:, :2]).all()
    assert ((centers >= 0) & (centers <= limit)).all()


def test_the_same_seed_gives_the_same_inputs():
    for first, second in zip(_draw(3).boxes, _draw(3).boxes, strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(_draw(3).boxes[0][:30], _draw(4).boxes[0][:30])
    first, second = (_predict(_draw(3)).leaves() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("trained", [False, True])
def test_predictions_have_the_shapes_of_the_heads(trained):
    objects = _draw()
    predictions = _predict(objects, trained=trained)
    pad = 2 * max(len(boxes) for boxes in objects.boxes)
    assert {name: tuple(leaf.shape) for name, leaf in predictions.leaves().items()} == {
        "cls_logits": (2, 4, 40, 10),
        "box_preds": (2, 4, 40, 10),
        "token_logits": (8, 24, 10),
        "token_boxes": (8, 24, 4),
        "token_centers": (8, 24, 2),
        "centerness": (8, 24, 1),
        "dn_cls_logits": (2, 4, pad, 10),
        "dn_box_preds": (2, 4, pad, 10),
    }
    assert all(leaf.requires_grad and leaf.is_leaf and leaf.isfinite().all() for leaf in predictions.leaves().values())
    boxes = predictions.token_boxes.detach()
    assert (boxes >= 0).all() and (boxes <= 1).all()


def test_trained_predictions_find_the_objects():
    objects = _draw()
    trained = _predict(
        objects, sizes=LossSizes(num_query=200, num_layers=1, image_size=(64, 96), num_cameras=2), trained=True
    )
    for sample, boxes in enumerate(objects.boxes):
        nearest = torch.cdist(boxes[:, :3], trained.box_preds[0, sample, :, :3].detach()).amin(1)
        assert nearest.max() < 1.0


def test_samples_without_objects_and_without_denoising_work():
    empty = Objects([torch.zeros(0, 9)], [torch.zeros(0, dtype=torch.int64)], *([[x] * 2 for x in (
        torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2))]))  # fmt: skip
    predictions = _predict(empty, trained=True)
    assert predictions.dn.queries.pad == 0
    without = LossSizes(num_query=8, num_layers=1, image_size=(64, 96), num_cameras=2, dn_groups=0)
    assert _predict(_draw(sizes=without), sizes=without).dn is None


def _frame():
    instance = {"bbox_3d": [1.0, 2.0, 0.0, 4.0, 2.0, 1.5, 0.3], "velocity": [1.0, 0.0], "bbox_label_3d": 9}
    outside = {**instance, "bbox_3d": [80.0, 2.0, 0.0, 4.0, 2.0, 1.5, 0.3]}
    still = {**instance, "bbox_label_3d": 2, "velocity": [float("nan"), float("nan")]}
    other = {**instance, "bbox_label_3d": -1}
    seen = {"bbox": [800.0, 450.0, 900.0, 600.0], "bbox_label": 4, "center_2d": [850.0, 500.0], "depth": 9.0}
    above = {**seen, "bbox": [800.0, 0.0, 900.0, 10.0]}
    cameras = {"CAM_FRONT": [seen, above], "CAM_BACK": []}
    return {"instances": [instance, outside, still, other], "cam_instances": cameras}


def _write(path, content):
    path.write_bytes(pickle.dumps(content))
    return path


def test_info_files_give_objects_in_the_order_of_the_heads(tmp_path):
    path = _write(tmp_path / "infos.pkl", {"metainfo": {}, "data_list": [_frame()]})
    objects = read_objects(path, LossSizes(num_query=8, image_size=(256, 800), num_cameras=2), batch_size=3)
    assert len(objects.boxes) == 3 and len(objects.image_boxes) == 6
    assert objects.labels[0].tolist() == [5, 4]  # barrier, trailer
    torch.testing.assert_close(objects.boxes[1][:, 7:], torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    assert objects.image_labels[0].tolist() == [2] and objects.image_labels[1].tolist() == []
    torch.testing.assert_close(objects.image_boxes[0], torch.tensor([[400.0, 31.0, 450.0, 106.0]]))
    torch.testing.assert_close(objects.image_centers[0], torch.tensor([[425.0, 56.0]]))
    assert objects.image_boxes[1].shape == (0, 4) and objects.image_centers[1].shape == (0, 2)
    objects.ground_truth()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no info file at"),
        (b"no pickle", "is not an info file"),
        ([1, 2], "not an mmdet3d v2 info file"),
        ({"infos": []}, "not an mmdet3d v2 info file"),
        ({"data_list": []}, "has no frames"),
        ({"data_list": [{"instances": []}]}, "needs cam_instances of 2 cameras, got 0"),
    ],
)
def test_info_files_that_cannot_be_used_are_named(tmp_path, content, message):
    path = tmp_path / "infos.pkl"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_objects(path, TINY, batch_size=1)
