"""One image file: bytes in, pixels out, at full size or at the fraction of it that is enough.

JPEG is decoded by libjpeg-turbo (`simplejpeg`), which gives the pixels of OpenCV at full size and can give 1/2, 1/4 or
1/8 of both sides for less. It also tells where picture data are damaged, which is an error here. Everything else is
left to OpenCV: other formats, CMYK, images that EXIF data turn, and all of it where `simplejpeg` is not installed.
"""

import io
import warnings

import mmcv
import numpy as np
from mmengine.fileio import get
from PIL import Image

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
JPEG_TAIL = 4096  # bytes in which the end marker of a whole JPEG file mostly is
JPEG_SCAN = 0xDA  # marker behind which the pixels are
DAMAGE = ("Corrupt JPEG data", "Premature end", "Unsupported marker type", "Inconsistent progression", "Bogus")
HARMLESS = "extraneous bytes before marker"
EXIF_MARK, EXIF_ORIENTATION = b"Exif\0\0", 0x0112
DENOMINATORS = (8, 4, 2)
IGNORING_ORIENTATION = ("unchanged", "color_ignore_orientation")
COLORS = {"color": "BGR", "color_ignore_orientation": "BGR", "unchanged": "BGR", "grayscale": "GRAY"}


class OpenCVWarning(UserWarning):
    """Images are decoded by OpenCV, slower and always at full size."""


class EncodedImage:
    """An image file in memory, decoded when it is known how large the image has to be.

    NumPy functions take it as the full image. What libjpeg-turbo cannot decode is decoded by OpenCV at once.

    Args:
        path: of the file; errors name it.
        content: of the file.
        color_type: as in `mmcv.imfrombytes`.
        frame: what errors call the frame it belongs to.

    Raises:
        ValueError: the image cannot be decoded, or libjpeg-turbo finds its data damaged.
    """

    def __init__(self, path: str, content: bytes, color_type: str = "color", frame: str = "") -> None:
        self.path = path
        self.frame = frame
        self._content = content
        self._color_type = color_type
        self._pixels: np.ndarray | None = None
        obstacle = self._read_header()
        if obstacle:
            self._decode_by_opencv(obstacle)

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width and, of colour images, channels at full size."""
        return self._shape if self._pixels is None else self._pixels.shape

    def denominator(self, least_size: tuple[int, int] | None) -> int:
        """The fraction at which the image is decoded.

        Args:
            least_size: height and width that are needed; None for the full image.

        Returns:
            The greatest of 8, 4, 2 and 1 that divides height and width with no remainder and leaves at least the size.
        """
        if least_size is None or self._pixels is not None:
            return 1
        height, width = self.shape[:2]
        least_height, least_width = least_size
        fits = (d for d in DENOMINATORS if height >= d * least_height and width >= d * least_width)
        return next((d for d in fits if not (height % d or width % d)), 1)

    def decode(self, least_size: tuple[int, int] | None = None) -> np.ndarray:
        """The pixels.

        Args:
            least_size: height and width that are enough; None for the full image.

        Returns:
            uint8 [H / d, W / d, 3], BGR, or [H / d, W / d], where d is the :meth:`denominator`.

        Raises:
            ValueError: the image cannot be decoded, or libjpeg-turbo finds its data damaged.
        """
        if self._pixels is not None:
            return self._pixels
        denominator = self.denominator(least_size)
        height, width = (side // denominator for side in self.shape[:2])
        try:
            pixels = simplejpeg.decode_jpeg(
                self._content, self._colors, min_height=height, min_width=width, min_factor=denominator
            )
        except ValueError as error:
            return self._decode_by_opencv(self._refusal(error))
        return pixels[..., 0] if self._colors == "GRAY" else pixels

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """The full image, for NumPy."""
        return np.array(self.decode(), dtype=dtype)

    def _read_header(self) -> str:
        """Learn size and colours; returns why libjpeg-turbo is not used, or nothing."""
        if simplejpeg is None:
            return "simplejpeg is not installed"
        if not self._content.startswith(JPEG_START):
            return "it is no JPEG file"
        if self._color_type not in COLORS:
            return f"color_type is {self._color_type}"
        try:
            height, width, space, _ = simplejpeg.decode_jpeg_header(self._content)
        except ValueError as error:
            return self._refusal(error)
        if space not in ("YCbCr", "RGB", "Gray"):
            return f"its colours are {space}"
        if self._color_type not in IGNORING_ORIENTATION and _is_turned(self._content):
            return "its EXIF data turn it"
        gray = space == "Gray" and self._color_type == "unchanged"
        self._colors = "GRAY" if gray else COLORS[self._color_type]
        self._shape = (height, width) if self._colors == "GRAY" else (height, width, 3)
        return ""

    def _refusal(self, error: ValueError) -> str:
        """Why OpenCV has to decode what libjpeg-turbo refuses; a ValueError where picture data are lost."""
        message = str(error)
        if HARMLESS not in message and any(sign in message for sign in DAMAGE):
            raise ValueError(
                f"camera image {self.path} is damaged ({message}){_of(self.frame)}: copy the file again"
            ) from error
        return f"libjpeg-turbo refuses it ({message})"

    def _decode_by_opencv(self, reason: str) -> np.ndarray:
        self._pixels = decode_by_opencv(self.path, self._content, self._color_type, self.frame)
        _warn_opencv(reason, self.path)
        return self._pixels


def read_file(path: str, backend_args: dict | None = None, frame: str = "") -> bytes:
    """Read an image file and see that it is whole, as far as its last bytes tell.

    Args:
        path: of the file.
        backend_args: arguments of mmengine's file back end.
        frame: what errors call the frame it belongs to.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, or a JPEG file that ends early.
    """
    try:
        content = get(path, backend_args=backend_args)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"camera image {path} does not exist{_of(frame)}: check data_root and data_prefix of the dataset"
        ) from None
    if not content or (content.startswith(JPEG_START) and not _has_end(content)):
        raise _broken(path, content, frame)
    return content


def _has_end(content: bytes) -> bool:
    """Whether a JPEG file has an end marker, in its last bytes or before more that some cameras append."""
    return content.rfind(JPEG_END, max(0, len(content) - JPEG_TAIL)) >= 0 or JPEG_END in content


def decode_by_opencv(path: str, content: bytes, color_type: str = "color", frame: str = "") -> np.ndarray:
    """Decode an image as `mmcv.imfrombytes` does.

    Args:
        path: of the file; errors name it.
        content: of the file.
        color_type: as in `mmcv.imfrombytes`.
        frame: what errors call the frame.

    Returns:
        uint8 [H, W, 3], BGR, or what the colour type gives.

    Raises:
        ValueError: the image cannot be decoded.
    """
    try:
        pixels = mmcv.imfrombytes(content, flag=color_type)
    except Exception as error:
        raise ValueError(f"camera image {path} cannot be decoded ({error}){_of(frame)}: copy the file again") from error
    if pixels is None:
        raise _broken(path, content, frame)
    return pixels


def frame_name(results: dict) -> str:
    """What errors call the frame of a pipeline's results: its token, else its number in the dataset."""
    name = results.get("token", results.get("sample_idx"))
    return "" if name is None else f"frame {name}"


def _broken(path: str, content: bytes, frame: str) -> ValueError:
    return ValueError(f"camera image {path} is broken ({len(content)} bytes){_of(frame)}: copy the file again")


def _of(frame: str) -> str:
    return f", {frame}" if frame else ""


def _is_turned(content: bytes) -> bool:
    """Whether EXIF data may ask for the image to be turned or mirrored."""
    if not _has_exif(content):
        return False
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.getexif().get(EXIF_ORIENTATION, 1) != 1
    except (OSError, ValueError, SyntaxError):
        return True


def _has_exif(content: bytes) -> bool:
    """Whether a segment before the pixels of a JPEG file holds EXIF data."""
    start = len(JPEG_START)
    while content[start : start + 1] == b"\xff" and content[start + 1 : start + 2] != bytes([JPEG_SCAN]):
        if content.startswith(EXIF_MARK, start + 4):
            return True
        filler = content[start + 1 : start + 2] == b"\xff"
        start += 1 if filler else 2 + int.from_bytes(content[start + 2 : start + 4], "big")
    return False


_said: set[tuple[str, ...]] = set()


def _warn_opencv(reason: str, path: str) -> None:
    """Say that an image takes the slow way: once per process and reason, or per file where its data are odd."""
    odd = HARMLESS in reason
    key = (reason, path) if odd else (reason,)
    if key in _said:
        return
    _said.add(key)
    rest = (
        "its pixels may be wrong in places, look at the picture"
        if odd
        else "the same pixels, slower, and always at full size. More images like it are not mentioned"
    )
    warnings.warn(f"{path} is decoded by OpenCV, because {reason}: {rest}.", OpenCVWarning, stacklevel=2)
