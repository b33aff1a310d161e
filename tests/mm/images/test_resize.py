"""Resizing gives mmcv's or Pillow's pixels, matrices and boxes follow, and threads change nothing."""

import copy

import cv2
import mmcv
import numpy as np
import pytest
import torch
from mmdet3d.registry import TRANSFORMS
from PIL import Image

from raggedbev.mm.images import EncodedImage, LoadMultiViewImageTurbo, ResizeMultiViewImageTurbo, resize_image
from raggedbev.mm.images.resize import crop_image


def encoded(picture: np.ndarray) -> EncodedImage:
    return EncodedImage("a.jpg", cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes())


def psnr(left: np.ndarray, right: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.mean((left.astype(float) - right) ** 2))


@pytest.mark.parametrize("size", [(70, 40), (160, 90), (200, 100)])
def test_same_pixels_as_mmcv(picture, size):
    image = encoded(picture)
    expected = mmcv.imresize(image.decode(), size)
    for source in (image, image.decode()):
        resized = resize_image(source, size, scaled_decoding=False)
        assert torch.equal(torch.from_numpy(resized), torch.from_numpy(expected))
    gray = picture[..., 1]
    np.testing.assert_array_equal(resize_image(gray, size, "area"), mmcv.imresize(gray, size, interpolation="area"))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(70, 40), (33, 77), (200, 100)])
def test_antialiased_as_pillow(picture, size, interpolation):
    method = Image.Resampling[interpolation.upper()]
    for image in (picture, picture[..., 1], picture[:, ::-1]):
        expected = np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size, method))
        resized = resize_image(image, size, interpolation, antialias=True)
        assert resized.shape == expected.shape and resized.flags.c_contiguous
        apart = np.abs(resized.astype(int) - expected)
        assert apart.max() <= (1 if size[0] < 160 else 2) and apart.mean() < 0.02


def test_scaled_decoding_is_close(picture):
    image = encoded(picture)
    expected = np.asarray(Image.fromarray(image.decode()).resize((70, 40), Image.Resampling.BICUBIC))
    near = resize_image(image, (70, 40), "bicubic", antialias=True)
    full = resize_image(image, (70, 40), "bicubic", antialias=True, scaled_decoding=False)
    assert (near != full).any()
    assert psnr(full, expected) > 60
    assert psnr(near, expected) > 32
    assert psnr(np.roll(near, 1, axis=1), expected) < 26  # a shift by one pixel is much farther away


@pytest.mark.parametrize("corner", [(0, 0), (10, 20), (-5, 3), (3, -40), (150, 80), (-400, 0), (0, 300)])
@pytest.mark.parametrize("flip", [False, True])
def test_crop_as_pillow(picture, corner, flip):
    x, y = corner
    expected = np.asarray(Image.fromarray(picture).crop((x, y, x + 64, y + 32)))
    cropped = crop_image(picture, corner, (64, 32), flip)
    np.testing.assert_array_equal(cropped, expected[:, ::-1] if flip else expected)
    assert cropped.flags.c_contiguous


@pytest.fixture
def frame(picture) -> dict:
    """Two cameras, their matrices and 2D ground truth."""
    intrinsics = np.array([[80.0, 0, 80], [0, 80, 45], [0, 0, 1]])
    lidar2img = np.eye(4)
    lidar2img[:3, :3] = intrinsics
    return {
        "img": [encoded(picture), encoded(picture[::-1])],
        "cam2img": [intrinsics.tolist(), intrinsics.tolist()],
        "lidar2img": np.stack([lidar2img, lidar2img]),
        "gt_bboxes": [np.array([[16, 9, 32, 18]], np.float32), np.zeros((0, 4), np.float32)],
        "centers_2d": [np.array([[20, 10]], np.float32), np.zeros((0, 2), np.float32)],
    }


def test_everything_follows(frame):
    before = copy.deepcopy(frame["cam2img"])
    result = ResizeMultiViewImageTurbo(scale=(80, 30))(dict(frame))
    assert [image.shape for image in result["img"]] == [(30, 80, 3)] * 2
    assert result["img_shape"] == result["pad_shape"] == (30, 80)
    assert result["scale_factor"] == (0.5, 1 / 3)
    point = np.array([1.0, 2.0, 9.0])
    for key in ("cam2img", "lidar2img"):
        for old, new in zip(frame[key], result[key], strict=True):
            u, v, depth = (np.array(old) @ np.resize(point, len(old)))[:3]
            x, y, new_depth = (np.array(new) @ np.resize(point, len(old)))[:3]
            assert new_depth == depth
            np.testing.assert_allclose((x / depth, y / depth), (u / depth / 2, v / depth / 3))
    assert frame["cam2img"] == before
    assert isinstance(result["cam2img"], list) and isinstance(result["lidar2img"], np.ndarray)
    np.testing.assert_allclose(result["gt_bboxes"][0], [[8, 3, 16, 6]])
    np.testing.assert_allclose(result["centers_2d"][0], [[10, 10 / 3]])
    assert result["gt_bboxes"][1].shape == (0, 4) and result["gt_bboxes"][0].dtype == np.float32


def test_one_matrix_for_all(frame):
    for matrix in (frame["lidar2img"][0], frame["cam2img"][0]):
        result = ResizeMultiViewImageTurbo(scale=(80, 30))({**frame, "lidar2img": matrix})["lidar2img"]
        assert type(result) is type(matrix)
        np.testing.assert_allclose(result, np.array(matrix) * np.array([0.5, 1 / 3, *[1] * (len(matrix) - 2)])[:, None])


def test_integers_become_floating_point(frame):
    frame["cam2img"] = [np.array([[80, 0, 80], [0, 80, 45], [0, 0, 1]])] * 2
    frame["gt_bboxes"] = [np.array([[16, 9, 32, 18]]), np.zeros((0, 4), int)]
    frame["centers_2d"][0] = frame["centers_2d"][0].astype(np.float64)
    result = ResizeMultiViewImageTurbo(scale=(80, 30))(frame)
    np.testing.assert_allclose(result["cam2img"][1], [[40, 0, 40], [0, 80 / 3, 15], [0, 0, 1]])
    np.testing.assert_allclose(result["gt_bboxes"][0], [[8, 3, 16, 6]])
    assert result["gt_bboxes"][1].dtype == np.float32 and result["centers_2d"][0].dtype == np.float64


@pytest.mark.parametrize("paths", [{}, {"img_paths": ["a.jpg", "b.jpg"]}, {"filename": ["a.jpg", "b.jpg"]}], ids=len)
def test_images_of_several_sizes_are_named(frame, picture, paths):
    frame["img"][1] = picture[:40]
    names = ("a.jpg", "b.jpg") if paths else ("image 0", "image 1")
    message = rf"frame 3 must have one size: {names[0]} has \(90, 160, 3\), {names[1]} has \(40, 160, 3\)"
    with pytest.raises(ValueError, match=message):
        ResizeMultiViewImageTurbo(scale=(80, 30))({**frame, **paths, "token": 3})


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_draws_do_not_depend_on_threads(frame, num_threads):
    transform = ResizeMultiViewImageTurbo(ratio_range=(0.3, 0.7), num_threads=num_threads)
    sizes = []
    np.random.seed(4)
    for _ in range(3):
        sizes.append(transform(dict(frame))["img_shape"])
    after = np.random.rand()
    np.random.seed(4)
    ratios = [np.random.uniform(0.3, 0.7) for _ in range(3)]
    assert sizes == [(int(90 * r + 0.5), int(160 * r + 0.5)) for r in ratios]
    assert len(set(sizes)) > 1 and after == np.random.rand()


def test_before_photometric_work(picture, tmp_path):
    """mmdet3d's distortion takes what comes out."""
    path = tmp_path / "a.jpg"
    cv2.imwrite(str(path), picture)
    camera = {"img_path": str(path), "cam2img": np.eye(3), "lidar2cam": np.eye(4)}
    results = {"images": {"a": camera, "b": camera}}
    for config in (
        dict(type="LoadMultiViewImageTurbo", defer=True),
        dict(type="ResizeMultiViewImageTurbo", scale=(80, 45)),
        dict(type="MultiViewWrapper", transforms=[dict(type="mmdet3d.PhotoMetricDistortion3D")], collected_keys=[]),
        dict(type="Pack3DDetInputs", keys=["img"]),
    ):
        results = TRANSFORMS.build(config)(results)
    assert results["inputs"]["img"].shape == (2, 3, 45, 80)
    assert results["data_samples"].img_shape == (45, 80)


def test_deferred_images_serve_other_transforms(picture, tmp_path):
    """NumPy takes an encoded image as the full one."""
    path = tmp_path / "a.jpg"
    cv2.imwrite(str(path), picture)
    loaded = LoadMultiViewImageTurbo(defer=True)({"img_paths": [str(path)] * 2})
    np.testing.assert_array_equal(np.stack(loaded["img"]), np.stack([cv2.imread(str(path))] * 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either scale"),
        ({"scale": (10, 10), "ratio_range": (0.5, 1)}, "give either scale"),
        ({"scale": (10, 0)}, r"positive numbers; got scale=\(10, 0\)"),
        ({"ratio_range": (0.5,)}, "give either scale"),
        ({"scale": (9, 9), "interpolation": "sinc"}, "interpolation must be one of .* got 'sinc'"),
        ({"scale": (9, 9), "interpolation": "area", "antialias": True}, "with antialias=True, got 'area'"),
        ({"scale": (9, 9), "num_threads": -1}, "num_threads must be at least 1"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        ResizeMultiViewImageTurbo(**options)
