"""The loader stands where mmdet3d's stands: same keys, same pixels; errors name the image and its frame."""

import copy
import os
from concurrent.futures import Future

import cv2
import numpy as np
import pytest
import torch
from mmdet3d.datasets.transforms import LoadMultiViewImageFromFiles
from mmdet3d.registry import TRANSFORMS

from raggedbev.mm.images import EncodedImage, LoadMultiViewImageTurbo, threads

CAMERAS = ("front", "left", "right")


@pytest.fixture
def frame(picture, tmp_path) -> dict:
    """A frame as mmdet3d's datasets give it."""
    images = {}
    for number, name in enumerate(CAMERAS):
        path = tmp_path / f"{name}.jpg"
        cv2.imwrite(str(path), np.roll(picture, 20 * number, axis=1))
        matrix = (np.eye(4) * (number + 1)).tolist()
        images[name] = {"img_path": str(path), "cam2img": matrix, "lidar2cam": matrix}
    return {"images": images, "sample_idx": 7}


def assert_same(left, right, key=""):
    assert type(left) is type(right), key
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for name in left:
            assert_same(left[name], right[name], name)
    elif isinstance(left, list):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_same(a, b, key)
    elif isinstance(left, np.ndarray):
        assert left.dtype == right.dtype
        assert torch.equal(torch.from_numpy(left.copy()), torch.from_numpy(right.copy())), key
    else:
        assert left == right, key


@pytest.mark.parametrize("num_threads", [1, 4])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"to_float32": True, "color_type": "color", "num_views": 3},
        {"color_type": "grayscale", "set_default_scale": False},
    ],
    ids=str,
)
def test_drop_in(frame, options, num_threads):
    expected = LoadMultiViewImageFromFiles(**options)(copy.deepcopy(frame))
    loaded = LoadMultiViewImageTurbo(**options, num_threads=num_threads)(frame)
    if options.get("color_type") == "grayscale":  # mmdet3d takes the number of cameras for that of channels
        assert len(expected.pop("img_norm_cfg")["mean"]) == 3 and len(loaded.pop("img_norm_cfg")["mean"]) == 1
    assert_same(loaded, expected)


def test_is_registered_by_the_package(frame):
    loader = TRANSFORMS.build(dict(type="LoadMultiViewImageTurbo", defer=True))
    assert isinstance(loader, LoadMultiViewImageTurbo)
    loaded = loader(frame)
    assert all(isinstance(image, EncodedImage) for image in loaded["img"])
    assert loaded["img_shape"] == (90, 160)


def test_more_frames_at_once(frame):
    """Past frames are further entries."""
    past = {f"past {name}": {**camera, "cam2img": [[9.0]]} for name, camera in frame["images"].items()}
    frame["images"].update(past)
    loaded = LoadMultiViewImageTurbo(num_threads=3)(frame)
    assert len(loaded["img"]) == 6 and loaded["cam2img"][5] == [[9.0]]
    np.testing.assert_array_equal(loaded["img"][1], loaded["img"][4])


def test_prefetch(frame):
    frames = [copy.deepcopy(frame) for _ in range(3)]
    loader = LoadMultiViewImageTurbo(num_threads=2)
    loader.prefetch(frames)
    assert all(isinstance(image, Future) for begun in frames for image in begun["images_begun"])
    expected = LoadMultiViewImageFromFiles()(frame)
    for begun in frames:
        assert_same(loader(begun), expected)
    single = copy.deepcopy(frames[0])
    LoadMultiViewImageTurbo(num_threads=1).prefetch([single])
    assert "images_begun" not in single


def test_prefetched_image_is_missing(frame):
    gone = frame["images"]["left"]["img_path"]
    os.unlink(gone)
    loader = LoadMultiViewImageTurbo(num_threads=2)
    loader.prefetch([frame])
    with pytest.raises(FileNotFoundError, match=f"{gone} does not exist, frame 7"):
        loader(frame)


def test_mixed_sizes(frame, picture):
    path = frame["images"]["right"]["img_path"]
    cv2.imwrite(path, picture[:50, :100])
    for options in ({}, {"defer": True}):
        with pytest.raises(ValueError, match=rf"images of frame 7 must have one size: .*front\.jpg has .*{path} has"):
            LoadMultiViewImageTurbo(**options)(copy.deepcopy(frame))
    expected = LoadMultiViewImageFromFiles()(copy.deepcopy(frame))
    assert_same(LoadMultiViewImageTurbo(mixed_sizes="pad")(copy.deepcopy(frame)), expected)
    cv2.imwrite(path, picture[..., 1])
    with pytest.raises(ValueError, match="must have one size"):
        LoadMultiViewImageTurbo(mixed_sizes="pad")(frame)


@pytest.mark.parametrize("num_threads", [1, 4])
def test_first_error_is_told(frame, num_threads):
    """Which image is named does not depend on the threads."""
    for name in ("left", "right"):
        with open(frame["images"][name]["img_path"], "r+b") as file:
            file.truncate(400)
    with pytest.raises(ValueError, match=r"left\.jpg is broken \(400 bytes\), frame 7"):
        LoadMultiViewImageTurbo(num_threads=num_threads)(frame)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_ref_frames": 2}, "num_ref_frames must not be positive, got 2"),
        ({"mixed_sizes": "crop"}, r"mixed_sizes must be one of \('error', 'pad'\), got 'crop'"),
        ({"defer": True, "to_float32": True}, "defer=True leaves the pixels"),
        ({"num_threads": 0}, "num_threads must be at least 1, got 0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        LoadMultiViewImageTurbo(**options)


def test_threads_share_the_cores(monkeypatch):
    monkeypatch.setattr(threads, "_available_cores", lambda: 16)
    assert threads.choose_threads(None) == 16 and threads.choose_threads(3) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert threads.choose_threads(None) == 4

    class Worker:
        num_workers = 2

    monkeypatch.setattr(threads, "get_worker_info", Worker)
    assert threads.choose_threads(None) == 2
    Worker.num_workers = 9
    assert threads.choose_threads(None) == 1


@pytest.mark.parametrize("frame", [{"img_paths": [], "token": "a"}, {"images": {}, "token": "a"}], ids=str)
def test_frame_without_cameras(frame):
    with pytest.raises(ValueError, match="frame a has no camera images"):
        LoadMultiViewImageTurbo()(frame)
