"""Frames come in stream order, with right matrices and ground truth; bad input is named."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS

from raggedbev.mm.streampetr.dataset import StreamNuScenesDataset
from raggedbev.mm.streampetr.samplers import StreamBatchSampler, StreamSampler
from raggedbev.mm.streampetr.sequences import sequence_flags

from . import handmade_nuscenes as world

CLASSES = StreamNuScenesDataset.METAINFO["classes"]


@pytest.fixture
def make(nuscenes_root):
    def make(ann_file="infos.pkl", **kwargs):
        return StreamNuScenesDataset(data_root=str(nuscenes_root), ann_file=ann_file, **kwargs)

    return make


def tokens(dataset):
    return [dataset.get_data_info(i)["token"] for i in range(len(dataset))]


@pytest.mark.parametrize(
    ("lengths", "splits", "expected"),
    [
        ([], 2, []),
        ([1], 1, [0]),
        ([4], 2, [0, 0, 1, 1]),
        ([5, 2], 2, [0, 0, 0, 1, 1, 2, 3]),
        ([3, 1], 1, [0, 0, 0, 1]),
    ],
)
def test_flags(lengths, splits, expected):
    scenes = np.repeat(np.arange(len(lengths)), lengths)
    assert sequence_flags(scenes, splits).tolist() == expected


@pytest.mark.parametrize(("length", "splits"), [(1, 2), (5, 4), (9, 6)])
def test_scene_that_cannot_be_cut(length, splits):
    with pytest.raises(ValueError, match=f"seq_split_num={splits} cannot cut a scene of {length} frames"):
        sequence_flags(np.zeros(length), splits)


def test_frames_kept_in_memory(make):
    """The pipeline runs once a frame; a change of what came out does not reach the kept frame."""
    calls = []

    def pipeline(info):
        calls.append(info["token"])
        return {"inputs": {"img": torch.zeros(1)}, "data_samples": [info["token"]]}

    dataset = make(keep_in_memory=True)
    dataset.pipeline = pipeline
    for _ in range(2):
        frame = dataset[1]
        assert frame["data_samples"] == [tokens(dataset)[1]]
        frame["inputs"]["img"] += 1
        frame["data_samples"].clear()
    assert torch.equal(dataset[1]["inputs"]["img"], torch.zeros(1))
    assert len(calls) == 1
    with pytest.raises(ValueError, match="keep_in_memory needs queue_length=1, got 8"):
        make(keep_in_memory=True, queue_length=8)


def test_order_of_shuffled_infos(make, save_infos, content):
    expected = [info["token"] for info in content["data_list"]]
    np.random.default_rng(0).shuffle(content["data_list"])
    dataset = make(save_infos(content), seq_split_num=2)
    assert tokens(dataset) == expected
    assert dataset.flag.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [dataset.get_data_info(i)["prev_exists"] for i in range(8)] == [False, True] * 4
    info = dataset.get_data_info(3)
    assert info["sample_idx"] == 3
    assert info["timestamp"].hex() == float(1.5e9 + 1.5).hex()


def test_scenes_from_sweeps_agree_with_scene_tokens(make, save_infos, content):
    recorded = make(save_infos(content))
    for info in content["data_list"]:
        del info["scene_token"]
    derived = make(save_infos(content))
    assert derived.flag.tolist() == recorded.flag.tolist() == [0] * 4 + [1] * 4
    assert derived.get_data_info(6)["scene_token"] == "sample-1-0"


def test_overlapping_scenes_stay_apart(make, save_infos, content):
    for info in content["data_list"][4:]:
        info["timestamp"] -= 1000 - 0.75
    dataset = make(save_infos(content))
    assert dataset.flag.tolist() == [0] * 4 + [1] * 4
    assert [token.split("-")[1] for token in tokens(dataset)] == ["0"] * 4 + ["1"] * 4


def test_matrices(make):
    info = make().get_data_info(5)
    assert info["token"] == "sample-1-1"
    for key in ("intrinsics", "extrinsics", "lidar2img"):
        assert info[key].shape == (6, 4, 4)
    for key in ("intrinsics", "extrinsics", "lidar2img", "ego_pose", "ego_pose_inv"):
        assert info[key].dtype == np.float64
    np.testing.assert_allclose(info["ego_pose"], world.ego_pose(1, 1) @ world.LIDAR2EGO, atol=1e-9)
    np.testing.assert_allclose(info["ego_pose"] @ info["ego_pose_inv"], np.eye(4), atol=1e-9)

    # The first object, ahead of the ego: seen by the front camera at its depth.
    box = world.object_pose(1, 1, world.OBJECTS[0])[:, 3]
    in_ego = np.linalg.inv(world.ego_pose(1, 1)) @ box
    pixel = info["lidar2img"][0] @ info["ego_pose_inv"] @ box
    np.testing.assert_allclose(pixel[2], in_ego[0] - 1.5, atol=1e-6)
    expected = world.CAMERA_MATRIX @ np.array([-in_ego[1], 1.5 - in_ego[2], in_ego[0] - 1.5])
    np.testing.assert_allclose(pixel[:3], expected, atol=1e-5)
    assert info["img_paths"][1].endswith("samples/CAM_FRONT_RIGHT/sample-1-1.jpg")


def test_ground_truth(make, save_infos, content):
    content["data_list"][0]["instances"][0]["velocity"] = [float("nan"), 3.0]
    info = make(save_infos(content)).get_data_info(0)
    boxes, labels = info["ann_info"]["gt_bboxes_3d"], info["ann_info"]["gt_labels_3d"]
    # The fifth object has no points; the sixth is of no class.
    assert [CLASSES[label] if label >= 0 else None for label in labels] == [
        "car",
        "truck",
        "pedestrian",
        "barrier",
        None,
    ]
    assert boxes.tensor[0, 7:].tolist() == [0.0, 0.0]
    center = info["ego_pose"] @ np.array([*boxes.gravity_center[1].tolist(), 1])
    np.testing.assert_allclose(center, world.object_pose(0, 0, world.OBJECTS[1])[:, 3], atol=1e-4)
    velocity = info["ego_pose"][:2, :2] @ boxes.tensor[1, 7:].numpy()
    np.testing.assert_allclose(velocity, world.OBJECTS[1][4], atol=1e-5)
    np.testing.assert_allclose(boxes.dims[1], [7.0, 2.5, 3.0], atol=1e-6)


def test_labels_follow_the_config_and_the_info_file(make, save_infos, content):
    classes = ["bus", "pedestrian"]
    info = make(metainfo={"classes": classes}).get_data_info(0)
    assert info["ann_info"]["gt_labels_3d"].tolist() == [-1, -1, 1, -1, -1]
    assert info["cam_instances"][0]["labels"].tolist() == [0, -1, -1]

    shifted = copy.deepcopy(content)  # an info file with other numbers for the same classes
    shifted["metainfo"]["categories"] = {
        name: label + 3 if label >= 0 else -1 for name, label in content["metainfo"]["categories"].items()
    }
    for frame in shifted["data_list"]:
        for item in [*frame["instances"], *(item for items in frame["cam_instances"].values() for item in items)]:
            for key in ("bbox_label", "bbox_label_3d"):
                item[key] += 3 if item[key] >= 0 else 0
    other = make(save_infos(shifted), metainfo={"classes": classes}).get_data_info(0)
    assert other["ann_info"]["gt_labels_3d"].tolist() == info["ann_info"]["gt_labels_3d"].tolist()
    assert other["cam_instances"][0]["labels"].tolist() == [0, -1, -1]


def test_frames_without_objects_stay(make, save_infos, content, pipelines):
    for info in content["data_list"]:
        info["instances"] = []
        info["cam_instances"] = {camera: [] for camera in info["cam_instances"]}
    dataset = make(save_infos(content), pipeline=pipelines.train)
    assert len(dataset) == 8
    sample = dataset[2]["data_samples"]
    assert sample.token == "sample-0-2"
    assert sample.gt_instances_3d.bboxes_3d.tensor.shape == (0, 9)
    assert [len(item) for item in sample.gt_instances_2d] == [0] * 6


def test_test_mode(make, pipelines):
    item = make(test_mode=True, pipeline=pipelines.test)[1]
    sample = item["data_samples"]
    assert item["inputs"]["img"].shape == (6, 3, 32, 64)
    assert "gt_instances_3d" not in sample
    assert len(sample.eval_ann_info["gt_labels_3d"]) == 5
    assert sample.prev_exists and sample.token == "sample-0-1"


def test_version_comes_from_the_info_file(make):
    assert make().metainfo["version"] == "v1.0-mini"
    assert make(metainfo={"version": "v1.0-mini"}).metainfo["version"] == "v1.0-mini"
    assert make().metainfo["classes"] == CLASSES


def test_subsets_have_sequences_of_their_own(make):
    assert make(indices=3).flag.tolist() == [0, 0, 0]
    dataset = make(seq_split_num=2)
    subset = dataset.get_subset([2, 3, 6, 7])
    assert subset.flag.tolist() == [0, 1, 2, 3]
    assert tokens(subset) == ["sample-0-2", "sample-0-3", "sample-1-2", "sample-1-3"]
    assert len(dataset.flag) == 8
    dataset.get_subset_(-4)
    assert dataset.flag.tolist() == [0, 0, 1, 1]
    assert tokens(dataset)[0] == "sample-1-0"


def test_stream_of_the_dataset(make):
    dataset = make(seq_split_num=2)
    batches = iter(StreamBatchSampler(StreamSampler(dataset, seed=0), 2))
    for _ in range(6):
        first, second = next(batches), next(batches)
        for a, b in zip(first, second, strict=True):
            assert b == a + 1
            assert not dataset.get_data_info(a)["prev_exists"] and dataset.get_data_info(b)["prev_exists"]


# ---- windows ----


def test_window_indices(make):
    dataset = make(queue_length=4, random_length=2)
    np.random.seed(0)
    seen = set()
    for _ in range(50):
        drawn = dataset.window_indices(6)
        assert len(drawn) == 4 and drawn[-1] == 6
        assert (np.diff(drawn) > 0).all() and drawn[0] >= 1
        seen.add(tuple(drawn))
    assert len(seen) == 10  # 3 of the 5 frames before
    assert dataset.window_indices(0).tolist() == [0, 0, 0, 0]


def test_window_crosses_scenes(make, pipelines):
    dataset = make(queue_length=5, random_length=0, pipeline=pipelines.train)
    item = dataset[6]
    assert item["inputs"]["img"].shape == (5, 6, 3, 32, 64)
    assert [sample.token for sample in item["data_samples"]] == [
        "sample-0-2",
        "sample-0-3",
        "sample-1-0",
        "sample-1-1",
        "sample-1-2",
    ]
    assert [sample.prev_exists for sample in item["data_samples"]] == [False, True, False, True, True]
    # Each frame draws an augmentation of its own.
    assert not torch.equal(
        torch.as_tensor(item["data_samples"][0].intrinsics), torch.as_tensor(item["data_samples"][1].intrinsics)
    )


# ---- bad input ----


def test_missing_data_root(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data_root .*nowhere.* does not exist.*create_mini\.py"):
        StreamNuScenesDataset(data_root=str(tmp_path / "nowhere"), ann_file="infos.pkl")


def test_missing_info_file(make):
    with pytest.raises(FileNotFoundError, match=r"none\.pkl does not exist.*create_infos\.py .*--version v1\.0-mini"):
        make("none.pkl", metainfo={"version": "v1.0-mini"})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([{"token": "a"}], "before 1.0"),
        ({"infos": [], "metadata": {"version": "v1.0-mini"}}, "before 1.0"),
        ({"something": 1}, "no data_list"),
        ({"metainfo": {}, "data_list": []}, "no frames"),
        ({"metainfo": {}, "data_list": [{"timestamp": 0.0, "image": {}}]}, "lacks token, ego2global, images"),
    ],
)
def test_info_file_of_another_format(make, save_infos, content, reason):
    with pytest.raises(ValueError, match=rf"changed\.pkl is not an info file .*{reason}.*create_infos\.py"):
        make(save_infos(content))


def test_info_file_cut_short(make, save_infos, content):
    path = save_infos(content)
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"changed\.pkl.*cannot be read"):
        make(path)


def test_missing_keys(make, save_infos, content):
    broken = copy.deepcopy(content)
    del broken["data_list"][3]["images"]["CAM_BACK"]
    with pytest.raises(ValueError, match=r"lacks images\.CAM_BACK\.img_path"):
        make(save_infos(broken))
    broken = copy.deepcopy(content)
    del broken["data_list"][0]["instances"]
    with pytest.raises(ValueError, match="no annotations"):
        make(save_infos(broken))
    assert len(make(save_infos(broken), test_mode=True)) == 8
    for item in content["data_list"][0]["instances"]:
        del item["velocity"]
    with pytest.raises(ValueError, match="an object lacks velocity"):
        make(save_infos(content))


def test_wrong_version(make):
    with pytest.raises(ValueError, match=r"holds v1\.0-mini, but metainfo\.version .* v1\.0-trainval"):
        make(metainfo={"version": "v1.0-trainval"})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"metainfo": {"classes": ["car", "tram"]}}, "tram"),
        ({"filter_empty_gt": True}, "filter_empty_gt"),
        ({"seq_split_num": 0}, "seq_split_num"),
        ({"seq_split_num": 3}, "cannot cut a scene of 4 frames"),
        ({"test_mode": True, "queue_length": 2}, "queue_length"),
    ],
)
def test_bad_arguments(make, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def pipeline_with(**transform):
    load = dict(type="mmdet3d.LoadMultiViewImageTurbo", color_type="color")
    return [load, transform, dict(type="mmdet3d.PackStreamPETRInputs")]


def test_windows_share_the_drawn_size(nuscenes_root):
    pipeline = pipeline_with(type="mmdet3d.ResizeMultiViewImageTurbo", ratio_range=(0.2, 0.9))
    dataset = StreamNuScenesDataset(
        data_root=str(nuscenes_root), ann_file="infos.pkl", pipeline=pipeline, queue_length=3
    )
    np.random.seed(0)
    shapes = [tuple(dataset[3]["inputs"]["img"].shape) for _ in range(3)]
    assert len(set(shapes)) > 1 and {shape[:3] for shape in shapes} == {(3, 6, 3)}


@TRANSFORMS.register_module()
class CropByFrame(BaseTransform):
    """Images whose height depends on the frame."""

    def transform(self, results):
        results["img"] = [image[: 40 + results["sample_idx"]] for image in results["img"]]
        return results


def test_windows_of_several_sizes_are_named(nuscenes_root):
    dataset = StreamNuScenesDataset(
        data_root=str(nuscenes_root),
        ann_file="infos.pkl",
        pipeline=pipeline_with(type="mmdet3d.CropByFrame"),
        queue_length=2,
        random_length=0,
    )
    message = (
        r"one size and number, got \(6, 3, 41, 160\) in its first frame \(token sample-0-1.*\) and "
        r"\(6, 3, 42, 160\) in a later one \(token sample-0-2, .*\); it ends at frame 2$"
    )
    with pytest.raises(ValueError, match=message):
        dataset[2]


def test_frames_are_named(nuscenes_root, pipelines):
    dataset = StreamNuScenesDataset(data_root=str(nuscenes_root), ann_file="infos.pkl", pipeline=pipelines.train)
    assert dataset.describe(2).startswith("frame 2 (token sample-0-2, ")
