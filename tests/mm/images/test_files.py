"""An encoded image gives mmcv's pixels at full size, fewer of them where that is enough, and clear errors."""

import io
import warnings

import cv2
import mmcv
import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from raggedbev.mm.images import EncodedImage, OpenCVWarning, files
from raggedbev.mm.images.files import read_file


def jpeg(picture: np.ndarray, *flags: int) -> bytes:
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 92, *flags])[1].tobytes()


def by_pillow(picture: np.ndarray, mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture[..., ::-1].copy()).convert(mode).save(file, "JPEG", quality=92, **options)
    return file.getvalue()


def turned(picture: np.ndarray, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return by_pillow(picture, exif=exif)


KINDS = {
    "4:2:0": lambda p: jpeg(p),
    "4:4:4": lambda p: by_pillow(p, subsampling=0),
    "4:2:2": lambda p: by_pillow(p, subsampling=1),
    "progressive": lambda p: by_pillow(p, progressive=True),
    "odd size": lambda p: jpeg(p[:83, :141]),
    "gray": lambda p: jpeg(p[..., 1]),
    "upright by EXIF": lambda p: turned(p, 1),
}


@pytest.mark.parametrize("color_type", ["color", "unchanged", "grayscale", "color_ignore_orientation"])
@pytest.mark.parametrize("kind", KINDS)
def test_same_pixels_as_mmcv(picture, kind, color_type):
    content = KINDS[kind](picture)
    image = EncodedImage("a.jpg", content, color_type)  # a warning would be an error
    expected = mmcv.imfrombytes(content, flag=color_type)
    assert image.shape == expected.shape
    assert torch.equal(torch.from_numpy(image.decode()), torch.from_numpy(expected))
    np.testing.assert_array_equal(np.asarray(image), expected)


OTHERS = {
    "PNG": (lambda p: cv2.imencode(".png", p)[1].tobytes(), "it is no JPEG file"),
    "CMYK": (lambda p: by_pillow(p, "CMYK"), "its colours are"),
    "turned by EXIF": (lambda p: turned(p, 6), "its EXIF data turn it"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_others_are_left_to_opencv(picture, kind):
    make, reason = OTHERS[kind]
    content = make(picture)
    with pytest.warns(OpenCVWarning, match=f"a.x is decoded by OpenCV, because {reason}"):
        image = EncodedImage("a.x", content)
    expected = mmcv.imfrombytes(content)
    assert image.shape == expected.shape and image.denominator((1, 1)) == 1
    np.testing.assert_array_equal(image.decode((10, 10)), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EncodedImage("b.x", content)  # said once


def test_orientation_is_ignored_on_demand(picture):
    content = turned(picture, 6)
    assert EncodedImage("a.jpg", content, "color_ignore_orientation").shape == (90, 160, 3)
    assert EncodedImage("a.jpg", content, "unchanged").shape == (90, 160, 3)


def test_without_the_binding(picture, monkeypatch):
    monkeypatch.setattr(files, "simplejpeg", None)
    content = jpeg(picture)
    with pytest.warns(OpenCVWarning, match="simplejpeg is not installed"):
        image = EncodedImage("a.jpg", content)
    np.testing.assert_array_equal(image.decode((5, 5)), mmcv.imfrombytes(content))


@pytest.mark.parametrize(
    ("size", "least", "denominator"),
    [
        ((900, 1600), (396, 704), 2),
        ((900, 1600), (450, 800), 2),
        ((900, 1600), (451, 800), 1),
        ((900, 1600), (450, 801), 1),
        ((900, 1600), (225, 400), 4),
        ((900, 1600), (50, 50), 4),  # 900 is no multiple of 8
        ((1280, 1920), (50, 50), 8),
        ((900, 1600), None, 1),
        ((901, 1600), (10, 10), 1),
        ((90, 160), (100, 200), 1),
    ],
)
def test_denominator(size, least, denominator):
    image = EncodedImage("a.jpg", jpeg(np.full((*size, 3), 99, np.uint8)))
    assert image.denominator(least) == denominator
    assert image.shape == (*size, 3)
    assert image.decode(least).shape == (size[0] // denominator, size[1] // denominator, 3)


def test_smaller_decoding_shows_the_same(picture):
    image = EncodedImage("a.jpg", jpeg(picture[:88]))
    full = image.decode().astype(float)
    for denominator in (2, 4, 8):
        small = image.decode((88 // denominator, 160 // denominator))
        means = full.reshape(88 // denominator, denominator, 160 // denominator, denominator, 3).mean((1, 3))
        assert small.shape == means.shape
        assert np.abs(small - means).mean() < 2.5
        # Half a pixel to the side is much farther away.
        assert np.abs(small[:, 1:] - (means[:, 1:] + means[:, :-1]) / 2).mean() > 2 * np.abs(small - means).mean()


def _flip_a_code(content: bytes) -> bytes:
    damaged = bytearray(content)
    damaged[len(content) // 2 : len(content) // 2 + 40] = b"\xff\x00" * 20
    return bytes(damaged)


def _lose_the_rest(content: bytes) -> bytes:
    return content[: len(content) // 2] + b"\0" * (len(content) - 2 - len(content) // 2) + content[-2:]


DAMAGED = {
    "wrong codes": _flip_a_code,
    "a hole": _lose_the_rest,
    "cut, with an end marker": lambda content: content[: len(content) // 2] + b"\xff\xd9",
    "a marker among the codes": lambda c: c[: len(c) // 2] + b"\xff\xb6" + c[len(c) // 2 + 2 :],
}


@pytest.mark.parametrize("least_size", [None, (20, 30)])
@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_within_the_file_is_told(picture, tmp_path, kind, least_size):
    path = tmp_path / "damaged.jpg"
    path.write_bytes(DAMAGED[kind](jpeg(picture)))
    image = EncodedImage(str(path), read_file(str(path)), frame="frame 7")
    with pytest.raises(ValueError, match=rf"camera image {path} is damaged \(.*\), frame 7: copy the file again"):
        image.decode(least_size)


def test_odd_bytes_are_told_per_file(picture):
    good = jpeg(picture)
    odd = good[:-2] + bytes(40) + good[-2:]
    for path in ("odd-1.jpg", "odd-2.jpg"):
        message = rf"{path} is decoded by OpenCV, .*extraneous bytes.*: its pixels may be wrong in places"
        with pytest.warns(OpenCVWarning, match=message):
            pixels = EncodedImage(path, odd).decode()
        np.testing.assert_array_equal(pixels, mmcv.imfrombytes(good))
        EncodedImage(path, odd).decode()  # is told once


def test_what_cameras_append_does_no_harm(picture, tmp_path):
    path = tmp_path / "motion.jpg"
    path.write_bytes(jpeg(picture) + bytes(100_000))
    image = EncodedImage(str(path), read_file(str(path)))
    np.testing.assert_array_equal(image.decode(), mmcv.imfrombytes(jpeg(picture)))


def test_exif_data_behind_other_segments(picture):
    content = turned(picture, 6)
    profile = b"\xff\xe2" + (60_000).to_bytes(2, "big") + bytes(59_998)
    far = content[:2] + b"\xff" + 2 * profile + content[2:]
    with pytest.warns(OpenCVWarning, match="EXIF"):
        image = EncodedImage("a.jpg", far)
    np.testing.assert_array_equal(image.decode(), mmcv.imfrombytes(far))
    assert image.shape == (picture.shape[1], picture.shape[0], 3)
    assert not files._has_exif(jpeg(picture)) and not files._has_exif(b"\xff\xd8") and not files._has_exif(far[:70_000])


def test_broken_files_are_named(picture, tmp_path):
    good = jpeg(picture)
    path = tmp_path / "broken.jpg"
    for content in (good[: len(good) // 2], b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{path} is broken \({len(content)} bytes\), frame 7: copy"):
            read_file(str(path), frame="frame 7")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{path} does not exist, frame 7: check data_root"):
        read_file(str(path), frame="frame 7")
    for content in (b"no image at all", good[:20] + b"\xff\xd9"):
        with pytest.raises(ValueError, match=r"camera image x\.jpg (is broken|cannot be decoded).*, frame 7: copy"):
            EncodedImage("x.jpg", content, frame="frame 7")


def test_decoding_leaves_the_interpreter_to_others():
    """The binding works outside the interpreter lock; else decoding in threads would be of no use."""
    import threading

    content = simplejpeg.encode_jpeg(np.random.default_rng(0).integers(0, 255, (3000, 3000, 3), dtype=np.uint8))
    done = threading.Event()
    counted = 0

    def decode() -> None:
        simplejpeg.decode_jpeg(content)
        done.set()

    thread = threading.Thread(target=decode)
    thread.start()
    while not done.is_set():
        counted += 1
    thread.join()
    assert counted > 1000
