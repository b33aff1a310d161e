"""Batches are normalised, padded and stacked; double precision times stay; bad batches are named."""

import numpy as np
import pytest
import torch
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.dataset import pseudo_collate

from raggedbev.mm.collate import ragged_collate
from raggedbev.mm.streampetr.dataset import StreamNuScenesDataset
from raggedbev.mm.streampetr.preprocessor import StreamPETRDataPreprocessor

MEAN = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
STD = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)


@pytest.fixture
def dataset(nuscenes_root, pipelines):
    return StreamNuScenesDataset(data_root=str(nuscenes_root), ann_file="infos.pkl", pipeline=pipelines.train)


@pytest.fixture
def windows(nuscenes_root, pipelines):
    return StreamNuScenesDataset(
        data_root=str(nuscenes_root), ann_file="infos.pkl", pipeline=pipelines.train, queue_length=3, random_length=0
    )


def test_batch(dataset, device):
    items = [dataset[1], dataset[4]]
    images = [item["inputs"]["img"].clone() for item in items]
    counts = [len(item["data_samples"].gt_instances_3d) for item in items]
    tensors = [item["data_samples"].gt_instances_3d.bboxes_3d.tensor.clone() for item in items]
    preprocessor = StreamPETRDataPreprocessor().to(device)
    batch = preprocessor(pseudo_collate(items), training=True)
    inputs, samples = batch["inputs"], batch["data_samples"]

    expected = (torch.stack(images).flip(2).float() - MEAN) / STD
    torch.testing.assert_close(inputs["img"].cpu(), expected)
    for key in ("intrinsics", "extrinsics", "lidar2img"):
        assert inputs[key].shape == (2, 6, 4, 4) and inputs[key].dtype == torch.float32
    for key in ("ego_pose", "ego_pose_inv"):
        assert inputs[key].shape == (2, 4, 4) and inputs[key].dtype == torch.float32
    np.testing.assert_array_equal(inputs["lidar2img"][1].cpu(), samples[1].lidar2img.astype(np.float32))
    assert inputs["timestamp"].dtype == torch.float64
    assert inputs["timestamp"].tolist() == [1.5e9 + 0.5, 1.5e9 + 1000]
    assert inputs["prev_exists"].dtype == torch.float32 and inputs["prev_exists"].tolist() == [1.0, 0.0]
    assert inputs["pad_shape"] == samples[0].pad_shape == samples[0].batch_input_shape == (32, 64)

    for sample, count, tensor in zip(samples, counts, tensors, strict=True):
        instances = sample.gt_instances_3d
        assert len(instances) == count
        assert isinstance(instances.bboxes_3d, LiDARInstance3DBoxes)
        torch.testing.assert_close(instances.bboxes_3d.tensor.cpu(), tensor, rtol=0, atol=0)
        values = [instances.bboxes_3d.tensor, instances.labels_3d]
        values += [item[key] for item in sample.gt_instances_2d for key in ("bboxes", "labels", "centers2d", "depths")]
        assert len(sample.gt_instances_2d) == 6
        assert all(
            value.device.type == device.type for value in [*values, *inputs.values()] if hasattr(value, "device")
        )
    assert not preprocessor.state_dict()


def test_padding(dataset):
    batch = pseudo_collate([dataset[0]])
    batch["inputs"]["img"] = [image[..., :30, :50] for image in batch["inputs"]["img"]]
    inputs = StreamPETRDataPreprocessor(bgr_to_rgb=False, pad_size_divisor=32)(batch)["inputs"]
    assert inputs["img"].shape == (1, 6, 3, 32, 64) and inputs["pad_shape"] == (32, 64)
    assert not inputs["img"][..., 30:, :].any() and not inputs["img"][..., 50:].any()
    assert inputs["img"][..., :30, :50].any()


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_windows(windows, batch_size):
    items = [windows[index] for index in (2, 5, 7)[:batch_size]]
    tokens = [[sample.token for sample in item["data_samples"]] for item in items]
    batch = StreamPETRDataPreprocessor()(pseudo_collate(items), training=True)
    inputs, samples = batch["inputs"], batch["data_samples"]
    assert inputs["img"].shape == (batch_size, 3, 6, 3, 32, 64)
    assert inputs["lidar2img"].shape == (batch_size, 3, 6, 4, 4)
    assert inputs["ego_pose"].shape == (batch_size, 3, 4, 4)
    assert inputs["timestamp"].shape == inputs["prev_exists"].shape == (batch_size, 3)
    assert [[sample.token for sample in window] for window in samples] == tokens
    for b, window in enumerate(samples):
        assert inputs["timestamp"][b].tolist() == [sample.timestamp for sample in window]
        np.testing.assert_array_equal(inputs["ego_pose"][b, 1], window[1].ego_pose.astype(np.float32))
    expected = [[0.0, 1.0, 1.0], [0.0, 1.0, 1.0], [0.0, 1.0, 1.0]]
    expected[1] = [0.0, 0.0, 1.0]  # its second frame starts a scene
    assert inputs["prev_exists"].tolist() == expected[:batch_size]


def test_without_ground_truth(nuscenes_root, pipelines):
    dataset = StreamNuScenesDataset(
        data_root=str(nuscenes_root), ann_file="infos.pkl", pipeline=pipelines.test, test_mode=True
    )
    batch = StreamPETRDataPreprocessor()(pseudo_collate([dataset[0]]))
    assert batch["inputs"]["img"].shape == (1, 6, 3, 32, 64)
    assert batch["data_samples"][0].token == "sample-0-0"


def test_images_of_several_sizes(dataset):
    batch = pseudo_collate([dataset[0], dataset[1]])
    batch["inputs"]["img"][1] = batch["inputs"]["img"][1][..., :16]
    with pytest.raises(ValueError, match=r"got \[\(6, 3, 32, 16\), .*sample 1 of the batch \(token sample-0-1"):
        StreamPETRDataPreprocessor()(batch)


def test_bad_normalisation():
    with pytest.raises(ValueError, match="3 numbers"):
        StreamPETRDataPreprocessor(mean=[0.0])


@pytest.mark.parametrize("collate", [ragged_collate, pseudo_collate])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            np.eye(4),
            r"lidar2img of sample 1 of the batch \(token sample-0-1.* is \(4, 4\), that of sample 0 \(6, 4, 4\)",
        ),
        (np.full((6, 4, 4), np.nan), "lidar2img of sample 1 of the batch .* must be finite"),
        (None, "lidar2img of sample 1 of the batch .* is missing"),
    ],
    ids=["shape", "nan", "none"],
)
def test_bad_matrices_are_named(dataset, collate, value, message):
    items = [dataset[0], dataset[1]]
    items[1]["data_samples"].set_metainfo({"lidar2img": value})
    with pytest.raises(ValueError, match=message):
        StreamPETRDataPreprocessor()(collate(items))


def test_matrices_that_no_meta_keys_name(dataset):
    with pytest.raises(ValueError, match=r"lacks ego_pose, .*among the meta_keys"):
        StreamPETRDataPreprocessor(meta_keys=["intrinsics", "extrinsics", "lidar2img"])(pseudo_collate([dataset[0]]))


def test_images_are_copied_asynchronously():
    assert (
        StreamPETRDataPreprocessor()._non_blocking and not StreamPETRDataPreprocessor(non_blocking=False)._non_blocking
    )
