"""Transforms keep images, boxes and matrices in agreement, and draw random numbers in the published order."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.runner import Runner
from PIL import Image

from raggedbev.mm.images import LoadMultiViewImageTurbo
from raggedbev.mm.streampetr.dataset import StreamNuScenesDataset
from raggedbev.mm.streampetr.transforms import (
    LoadMultiViewImages,
    PackStreamPETRInputs,
    StreamPETRGlobalRotScale,
    StreamPETRLoadCamInstances,
    StreamPETRRangeFilter,
)
from raggedbev.mm.streampetr.transforms_image import (
    StreamPETRResizeCropFlip,
    StreamPETRResizeCropFlipTurbo,
    visible_boxes,
)

FULL = {"H": 900, "W": 1600, "final_dim": (256, 704), "resize_lim": (0.38, 0.55)}
SMALL = {"H": 900, "W": 1600, "final_dim": (128, 352), "resize_lim": (0.2, 0.26)}


@pytest.fixture
def frame(nuscenes_root):
    """A frame with its images."""
    dataset = StreamNuScenesDataset(data_root=str(nuscenes_root), ann_file="infos.pkl")
    results = StreamPETRLoadCamInstances()(LoadMultiViewImages()(dataset.get_data_info(2)))
    return results | results["ann_info"]


# ---- loading ----


def test_images(frame):
    assert len(frame["img"]) == 6
    assert frame["img_shape"] == frame["ori_shape"] == (90, 160)
    for image, path in zip(frame["img"], frame["img_paths"], strict=True):
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, cv2.imread(path))


def broken_images(good):
    return {"cut": good[: len(good) // 2], "empty": b"", "text": b"no image at all", "no data": good[:20]}


@pytest.fixture(params=[LoadMultiViewImages, LoadMultiViewImageTurbo])
def loader(request):
    return request.param()


@pytest.mark.parametrize("kind", ["cut", "empty", "text", "no data"])
def test_broken_image_is_named(frame, tmp_path, kind, loader):
    path = tmp_path / "broken.jpg"
    path.write_bytes(broken_images(Path(frame["img_paths"][0]).read_bytes())[kind])
    frame["img_paths"][3] = str(path)
    message = r"camera image .*broken\.jpg (is broken|cannot be decoded).*, frame sample-0-2: copy the file again"
    with pytest.raises(ValueError, match=message):
        loader(frame)


def test_missing_image_is_named(frame, loader):
    frame["img_paths"][5] = "somewhere/missing.jpg"
    message = r"camera image somewhere/missing\.jpg does not exist, frame sample-0-2"
    with pytest.raises(FileNotFoundError, match=message):
        loader(frame)


def test_cam_instances(frame):
    bus, car = (StreamNuScenesDataset.METAINFO["classes"].index(name) for name in ("bus", "car"))
    for camera in range(5):  # the thin third box is dropped
        assert frame["gt_bboxes_labels"][camera].tolist() == [bus, car]
        assert frame["gt_bboxes"][camera].dtype == np.float32
        assert frame["depths"][camera].tolist() == [8.0, 30.0]
    assert frame["gt_bboxes"][5].shape == (0, 4) and frame["centers_2d"][5].shape == (0, 2)
    del frame["cam_instances"]
    with pytest.raises(KeyError, match=r"sample-0-2 has no cam_instances"):
        StreamPETRLoadCamInstances()(frame)


# ---- range ----


def test_range_filter():
    x = [0.0, 50.0, 50.1, -50.0, 3.0, 3.0]
    y = [0.0, 49.9, 0.0, 0.0, -50.0, 3.0]
    boxes = torch.zeros(6, 9)
    boxes[:, 0], boxes[:, 1], boxes[:, 2] = torch.tensor(x), torch.tensor(y), 100.0
    boxes[:, 6] = torch.tensor([3.5, 0, 0, 0, 0, 0])
    results = {"gt_bboxes_3d": LiDARInstance3DBoxes(boxes, box_dim=9), "gt_labels_3d": np.array([1, 2, 3, 4, 5, -1])}
    results = StreamPETRRangeFilter([-50, -50, -5, 50.05, 50, 3])(results)
    assert results["gt_labels_3d"].tolist() == [1, 2]
    np.testing.assert_allclose(results["gt_bboxes_3d"].yaw, [3.5 - 2 * np.pi, 0], atol=1e-6)
    empty = StreamPETRRangeFilter([60, 60, 0, 70, 70, 1])(results)
    assert empty["gt_bboxes_3d"].tensor.shape == (0, 9) and len(empty["gt_labels_3d"]) == 0
    with pytest.raises(ValueError, match="point_cloud_range"):
        StreamPETRRangeFilter([0, 1])


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("column", [0, 5, 6])
def test_3d_box_that_is_not_finite_is_named(frame, value, column):
    boxes = frame["gt_bboxes_3d"].tensor
    boxes[1, column] = value
    message = r"gt_bboxes_3d of frame sample-0-2 must be finite, got \[.*(nan|inf).*\] for object 1$"
    range_filter = StreamPETRRangeFilter([-50, -50, -5, 50, 50, 3])
    with pytest.raises(ValueError, match=message):
        range_filter(frame)
    frame["gt_labels_3d"][1] = -1  # of a class that is not trained on
    assert len(range_filter(frame)["gt_bboxes_3d"]) < len(boxes)


def test_velocities_may_be_unknown(frame):
    frame["gt_bboxes_3d"].tensor[:, 7:] = np.nan
    assert len(StreamPETRRangeFilter([-60, -60, -5, 60, 60, 3])(frame)["gt_bboxes_3d"])


@pytest.mark.parametrize("key", ["bboxes", "centers2d", "depths"])
def test_2d_object_that_is_not_finite_is_named(frame, key):
    camera = next(i for i, instances in enumerate(frame["cam_instances"]) if (instances["labels"] >= 0).any())
    instances = frame["cam_instances"][camera]
    index = int((instances["labels"] >= 0).argmax())
    instances[key].reshape(len(instances[key]), -1)[index, -1] = np.nan
    message = rf"{key} of camera {camera} of frame sample-0-2 must be finite, got .*nan.* for object {index}$"
    with pytest.raises(ValueError, match=message):
        StreamPETRLoadCamInstances()(frame)
    instances["labels"][index] = -1
    StreamPETRLoadCamInstances()(frame)


# ---- resize, crop, flip ----


def fast(frame, training, num_threads=1, scaled_decoding=True, **conf):
    """A frame through the fast loader and the fast augmentation."""
    loader = LoadMultiViewImageTurbo(defer=True, color_type="color", num_threads=num_threads)
    augment = StreamPETRResizeCropFlipTurbo(
        {"H": 90, "W": 160, "final_dim": (32, 64), **conf},
        training=training,
        scaled_decoding=scaled_decoding,
        num_threads=num_threads,
    )
    return augment(loader(dict(frame)))


@pytest.mark.parametrize("training", [True, False])
def test_fast_augmentation_is_the_published_one(frame, training):
    """Same draws, same boxes and matrices; pixels up to one level from full images, close to it from smaller ones."""
    conf = {"resize_lim": (0.38, 0.55)}
    flips = set()
    for seed in range(4):
        np.random.seed(seed)
        transform = StreamPETRResizeCropFlip({"H": 90, "W": 160, "final_dim": (32, 64), **conf}, training=training)
        expected = transform(dict(frame))
        after = np.random.rand()
        for scaled_decoding in (False, True):
            np.random.seed(seed)
            result = fast(frame, training, scaled_decoding=scaled_decoding, **conf)
            assert np.random.rand() == after
            assert result.keys() == expected.keys()
            for key in ("intrinsics", "lidar2img", "scale_factor", "crop_offset", "flip", "img_shape"):
                np.testing.assert_array_equal(result[key], expected[key])
            for key in ("gt_bboxes", "gt_bboxes_labels", "centers_2d", "depths"):
                for left, right in zip(result[key], expected[key], strict=True):
                    np.testing.assert_array_equal(left, right)
            apart = np.abs(np.stack(result["img"]).astype(int) - np.stack(expected["img"]))
            assert bool(apart.max() > 1) is bool(scaled_decoding and expected["scale_factor"] <= 0.5)
            assert apart.mean() < (2.0 if scaled_decoding else 0.01)
        flips.add(expected["flip"])
    assert flips == ({True, False} if training else {False})


@pytest.mark.parametrize("num_threads", [2, 7])
def test_threads_change_nothing(frame, num_threads):
    results = []
    for threads in (1, num_threads):
        np.random.seed(1)
        results.append([fast(frame, True, threads, resize_lim=(0.38, 0.55)) for _ in range(3)])
    for left, right in zip(*results, strict=True):
        np.testing.assert_array_equal(np.stack(left["img"]), np.stack(right["img"]))
        np.testing.assert_array_equal(left["lidar2img"], right["lidar2img"])


def test_draws_follow_the_published_order():
    transform = StreamPETRResizeCropFlip(FULL)
    seen = set()
    for seed in range(20):
        np.random.seed(seed)
        drawn = transform.draw()
        after = np.random.rand()
        np.random.seed(seed)
        ratio = np.random.uniform(0.38, 0.55)
        size = int(1600 * ratio), int(900 * ratio)
        np.random.uniform(0.0, 0.0)
        crop_x = int(np.random.uniform(0, max(0, size[0] - 704)))
        flip = np.random.choice([0, 1])
        np.random.uniform(0.0, 0.0)
        assert (drawn.ratio, drawn.size, drawn.crop, drawn.flip) == (ratio, size, (crop_x, size[1] - 256), bool(flip))
        assert after == np.random.rand()
        seen.add(drawn.flip)
    assert seen == {False, True}


@pytest.mark.parametrize(("conf", "size", "crop"), [(FULL, (704, 396), (0, 140)), (SMALL, (352, 198), (0, 70))])
def test_augmentation_for_test(conf, size, crop):
    fixed = StreamPETRResizeCropFlip({**conf, "rot_lim": (0.0, 0.0)}, training=False).fixed()
    assert (fixed.ratio, fixed.size, fixed.crop, fixed.flip) == (conf["final_dim"][1] / 1600, size, crop, False)


@pytest.mark.parametrize("flip", [False, True])
def test_image_boxes_and_matrices_agree(frame, pipelines, flip, monkeypatch):
    transform = StreamPETRResizeCropFlip({**pipelines.ida_aug_conf, "final_dim": (32, 70)})
    np.random.seed(3)
    drawn = transform.draw()
    augmentation = type(drawn)(drawn.ratio, drawn.size, (5, drawn.crop[1]), flip)
    monkeypatch.setattr(transform, "draw", lambda: augmentation)
    before = {key: frame[key].copy() for key in ("intrinsics", "extrinsics", "lidar2img")}
    image = frame["img"][0]
    result = transform(dict(frame))

    x, y = augmentation.crop
    scaled = np.zeros((200, 200, 3), np.uint8)
    whole = np.asarray(Image.fromarray(image).resize(augmentation.size, Image.Resampling.BICUBIC))
    scaled[: whole.shape[0], : whole.shape[1]] = whole
    expected = scaled[y : y + 32, x : x + 70]
    np.testing.assert_array_equal(result["img"][0], expected[:, ::-1] if flip else expected)
    assert result["img_shape"] == (32, 70)

    point = np.array([3.0, 10.0, -1.0, 1.0])
    old, new = before["lidar2img"][0] @ point, result["lidar2img"][0] @ point
    pixel = old[:2] / old[2] * augmentation.ratio - augmentation.crop
    if flip:
        pixel[0] = 70 - pixel[0]
    np.testing.assert_allclose(new[:2] / new[2], pixel)
    np.testing.assert_allclose(new[2], old[2])
    np.testing.assert_array_equal(result["extrinsics"], before["extrinsics"])
    np.testing.assert_allclose(result["lidar2img"], result["intrinsics"] @ before["extrinsics"])
    np.testing.assert_array_equal(result["intrinsics"][:, 3], np.tile([0, 0, 0, 1.0], (6, 1)))

    # The car is far and comes first; the bus is in front.
    boxes = np.array([[70.0, 30, 120, 60], [20, 10, 90, 70]]) * augmentation.ratio - np.tile(augmentation.crop, 2)
    boxes = boxes.clip(0, [70, 32, 70, 32])
    centers = (np.array([[95.0, 45], [55, 40]]) * augmentation.ratio - augmentation.crop).clip(0, [70, 32])
    if flip:
        boxes = np.stack([70 - boxes[:, 2], boxes[:, 1], 70 - boxes[:, 0], boxes[:, 3]], axis=1)
        centers[:, 0] = 70 - centers[:, 0]
    np.testing.assert_allclose(result["gt_bboxes"][0], boxes, atol=1e-4)
    np.testing.assert_allclose(result["centers_2d"][0], centers, atol=1e-4)
    assert result["depths"][0].tolist() == [30.0, 8.0]
    assert result["gt_bboxes"][5].shape == (0, 4)


def test_small_boxes_are_dropped(frame, pipelines):
    boxes = [[50, 50, 53, 80], [50, 50, 80, 53], [50, 50, 80, 80], [0, 0, 160, 10]]
    frame["gt_bboxes"][0] = np.array(boxes, dtype=np.float32)
    frame["centers_2d"][0] = np.zeros((4, 2), np.float32)
    frame["gt_bboxes_labels"][0] = np.arange(4)
    frame["depths"][0] = np.arange(4, dtype=np.float32)
    result = StreamPETRResizeCropFlip(pipelines.ida_aug_conf, training=False)(frame)
    assert result["gt_bboxes_labels"][0].tolist() == [2]


def test_visibility_by_painting():
    far, middle, near = [0, 0, 10, 10], [2, 2, 8, 8], [1, 1, 9, 9]
    boxes = np.array([near, far, middle], dtype=np.float32)
    depths = np.array([1.0, 30.0, 5.0], dtype=np.float32)
    # The middle one is covered; the far one shows.
    assert visible_boxes(boxes, depths, 12, 12).tolist() == [1, 0]
    # The far one is covered, too, but the map's background counts as it.
    boxes[0] = [0, 0, 11, 11]
    assert visible_boxes(boxes, depths, 12, 12).tolist() == [1, 0]
    assert visible_boxes(boxes, depths, 11, 11).tolist() == [0]
    # Of equal depth: the order stays.
    assert visible_boxes(boxes[:2], np.ones(2), 20, 20).tolist() == [0, 1]
    # Boxes without a whole pixel are not painted.
    assert visible_boxes(np.array([[1.2, 1, 1.9, 5], [3, 3, 9, 9]]), np.array([1.0, 9.0]), 12, 12).tolist() == [1]
    assert visible_boxes(np.zeros((0, 4)), np.zeros(0), 5, 5).shape == (0,)


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({**FULL, "rot_lim": (-5.4, 5.4)}, r"rot_lim must be \(0, 0\)"),
        ({**FULL, "zoom": 1}, "ida_aug_conf needs the keys"),
        ({"H": 900, "W": 1600, "final_dim": (256, 704)}, "resize_lim"),
    ],
)
def test_bad_augmentation(conf, message):
    with pytest.raises(ValueError, match=message):
        StreamPETRResizeCropFlip(conf)


@pytest.mark.parametrize("kind", [StreamPETRResizeCropFlip, StreamPETRResizeCropFlipTurbo])
def test_image_of_another_size(frame, kind):
    message = r"sample-0-2\.jpg has height and width \(90, 160\).*\(900, 1600\) \(frame sample-0-2\)"
    with pytest.raises(ValueError, match=message):
        kind(FULL)(frame)


# ---- turning and scaling ----


def test_global_transform_keeps_pixels_and_places(frame):
    np.random.seed(0)
    angle, scale = np.random.uniform(-0.3925, 0.3925), np.random.uniform(0.95, 1.05)
    shift = np.random.normal(scale=[0.5, 0.5, 0.1], size=3)
    after = np.random.rand()
    before = {key: np.array(frame[key]) for key in ("lidar2img", "ego_pose", "ego_pose_inv", "extrinsics")}
    boxes = frame["gt_bboxes_3d"].clone()

    np.random.seed(0)
    result = StreamPETRGlobalRotScale(translation_std=[0.5, 0.5, 0.1])(frame)
    assert np.random.rand() == after

    turn = scale * np.array([[np.cos(-angle), -np.sin(-angle)], [np.sin(-angle), np.cos(-angle)]])
    new = result["gt_bboxes_3d"]
    for old_center, center in zip(boxes.gravity_center.numpy(), new.gravity_center.numpy(), strict=True):
        np.testing.assert_allclose(center[:2], turn @ old_center[:2] + shift[:2], atol=1e-4)
        old, moved = np.append(old_center, 1.0), np.append(center, 1.0)
        np.testing.assert_allclose(result["lidar2img"] @ moved, before["lidar2img"] @ old, rtol=1e-4, atol=1e-2)
        np.testing.assert_allclose(result["ego_pose"] @ moved, before["ego_pose"] @ old, atol=1e-3)
    np.testing.assert_allclose(result["ego_pose"] @ result["ego_pose_inv"], np.eye(4), atol=1e-9)
    np.testing.assert_allclose(new.yaw, boxes.yaw - angle, atol=1e-5)
    np.testing.assert_allclose(new.dims, scale * boxes.dims, rtol=1e-5)
    np.testing.assert_allclose(new.tensor[:, 7:], boxes.tensor[:, 7:].numpy() @ turn.T, atol=1e-5)
    np.testing.assert_array_equal(result["extrinsics"], before["extrinsics"])


def test_global_transform_without_boxes(frame):
    frame["gt_bboxes_3d"] = frame["gt_bboxes_3d"][torch.zeros(5, dtype=torch.bool)]
    assert StreamPETRGlobalRotScale()(frame)["gt_bboxes_3d"].tensor.shape == (0, 9)


# ---- packing ----


def test_packing(frame):
    lidar2img = frame["lidar2img"].copy()
    item = PackStreamPETRInputs()(frame)
    image, sample = item["inputs"]["img"], item["data_samples"]
    assert image.dtype == torch.uint8 and image.shape == (6, 3, 90, 160) and image.is_contiguous()
    np.testing.assert_array_equal(image[2, :, 4, 7], frame["img"][2][4, 7])
    assert isinstance(sample.timestamp, float) and sample.timestamp == 1.5e9 + 1
    assert sample.lidar2img.dtype == np.float64
    np.testing.assert_array_equal(sample.lidar2img, lidar2img)
    assert (sample.token, sample.sample_idx, sample.prev_exists) == ("sample-0-2", 2, True)
    assert len(sample.gt_instances_3d) == 5 and sample.gt_instances_3d.labels_3d.dtype == torch.int64
    assert [len(instances) for instances in sample.gt_instances_2d] == [2] * 5 + [0]
    assert set(sample.gt_instances_2d[0].keys()) == {"bboxes", "labels", "centers2d", "depths"}


def test_images_of_several_sizes(frame):
    frame["img"][1] = frame["img"][1][:50]
    message = rf"frame sample-0-2 must have one size: .* has \(90, 160, 3\), {frame['img_paths'][1]} has \(50, 160, 3\)"
    with pytest.raises(ValueError, match=message):
        PackStreamPETRInputs()(frame)


def test_parts_of_the_ground_truth_of_unequal_length(frame):
    labels = frame["gt_labels_3d"]
    frame["gt_labels_3d"] = labels[:-1]
    with pytest.raises(ValueError, match=r"frame sample-0-2 must have as many .* got 5 gt_bboxes_3d, 4 gt_labels_3d"):
        PackStreamPETRInputs()(frame)
    frame["gt_labels_3d"] = labels
    frame["depths"][3] = frame["depths"][3][:0]
    with pytest.raises(ValueError, match=r"frame sample-0-2, camera 3, must have as many .* 2 centers_2d, 0 depths"):
        PackStreamPETRInputs()(frame)


def fast_pipeline(pipelines, num_threads):
    """The training pipeline with the fast transforms."""
    swapped = {
        "mmdet3d.LoadMultiViewImages": dict(type="mmdet3d.LoadMultiViewImageTurbo", defer=True),
        "mmdet3d.StreamPETRResizeCropFlip": dict(type="mmdet3d.StreamPETRResizeCropFlipTurbo"),
    }
    steps = [{**step, **swapped.get(step["type"], {})} for step in pipelines.train]
    return [{**step, "num_threads": num_threads} if "Turbo" in step["type"] else step for step in steps]


def first_batches(root, pipeline, num_workers, count=3, **options):
    """Batches of a training loader with seed 5."""
    config = dict(
        batch_size=2,
        num_workers=num_workers,
        persistent_workers=False,
        sampler=dict(type="mmdet3d.StreamSampler"),
        batch_sampler=dict(type="mmdet3d.StreamBatchSampler"),
        dataset=dict(
            type="mmdet3d.StreamNuScenesDataset",
            data_root=str(root),
            ann_file="infos.pkl",
            pipeline=pipeline,
            **options,
        ),
    )
    np.random.seed(5)
    batches = iter(Runner.build_dataloader(config, seed=5))
    found = [next(batches) for _ in range(count)]
    if num_workers:
        batches._shutdown_workers()  # else the garbage collector does it, and takes seconds
    return found


@pytest.mark.parametrize(("num_workers", "queue_length"), [(0, 1), (0, 3), (2, 1)])
def test_runs_repeat_with_any_number_of_threads(nuscenes_root, pipelines, num_workers, queue_length):
    runs = [
        first_batches(nuscenes_root, fast_pipeline(pipelines, threads), num_workers, queue_length=queue_length)
        for threads in (1, 4)
    ]
    for left, right in zip(*runs, strict=True):
        for a, b in zip(left["inputs"]["img"], right["inputs"]["img"], strict=True):
            assert torch.equal(a, b)
    assert not torch.equal(runs[0][0]["inputs"]["img"][0], runs[0][1]["inputs"]["img"][0])


def test_windows_hold_the_frames_of_single_loads(nuscenes_root, pipelines):
    """Reading ahead changes no frame."""
    windows = {}
    for threads in (1, 3):
        np.random.seed(2)
        dataset = StreamNuScenesDataset(
            data_root=str(nuscenes_root),
            ann_file="infos.pkl",
            pipeline=fast_pipeline(pipelines, threads),
            queue_length=3,
            random_length=0,
        )
        windows[threads] = dataset[3]
    assert torch.equal(windows[1]["inputs"]["img"], windows[3]["inputs"]["img"])
    tokens = [sample.token for sample in windows[3]["data_samples"]]
    assert tokens == ["sample-0-1", "sample-0-2", "sample-0-3"]


@pytest.mark.parametrize("kind", ["missing", "cut"])
def test_bad_image_in_a_worker(nuscenes_root, tmp_path, pipelines, kind):
    """The error names the file and the frame; the next batch is whole again once the file is."""
    root = tmp_path / "copy"
    shutil.copytree(nuscenes_root, root)
    bad = root / "samples" / "CAM_BACK" / "sample-0-1.jpg"
    content = bad.read_bytes()
    if kind == "missing":
        bad.unlink()
    else:
        bad.write_bytes(content[:500])
    dataset = StreamNuScenesDataset(data_root=str(root), ann_file="infos.pkl", pipeline=fast_pipeline(pipelines, 2))
    loader = torch.utils.data.DataLoader(dataset, sampler=[1], num_workers=1, collate_fn=list)
    batches = iter(loader)
    with pytest.raises((FileNotFoundError, ValueError), match=rf"{bad} (does not exist|is broken).*frame sample-0-1"):
        next(batches)
    batches._shutdown_workers()  # else the garbage collector does it, and takes seconds
    bad.write_bytes(content)
    batches = iter(loader)
    assert next(batches)[0]["data_samples"].token == "sample-0-1"
    batches._shutdown_workers()
