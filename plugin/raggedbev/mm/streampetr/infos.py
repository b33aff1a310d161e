"""The info file of a nuScenes data set: a path in, its checked content out.

An info file is made by `tools/create_infos.py` or by mmdet3d's own converter, in the format of mmdet3d 1.x.
"""

import contextlib
import gc
import os.path as osp
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mmengine.fileio import load

from raggedbev.mm.failures import looked_for_in

FRAME_KEYS = ("token", "timestamp", "ego2global", "images", "lidar_points")
IMAGE_KEYS = ("img_path", "cam2img", "lidar2cam")
INSTANCE_KEYS = ("bbox_3d", "bbox_label_3d", "velocity", "bbox_3d_isvalid")


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Pause the collector while millions of small objects come to life: info files load several times faster."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(frozen=True)
class InfoFile:
    """One info file, and how to make it.

    Attributes:
        path: of the file.
        data_root: root of the nuScenes data.
        version: that the config names; None where it names none.
    """

    path: str
    data_root: str
    version: str | None

    def read(self) -> dict:
        """The content.

        Returns:
            dict with 'metainfo' and 'data_list', which is not empty.

        Raises:
            FileNotFoundError: no data root or info file.
            ValueError: a file of another format, or of another version than the config's.
        """
        if not osp.isdir(self.data_root):
            raise FileNotFoundError(
                f"data_root {self.data_root} does not exist{looked_for_in(self.data_root)}: set it to a nuScenes "
                f"folder, or make a small synthetic one with `python tools/create_mini.py --out {self.data_root}`"
            )
        if not osp.isfile(self.path):
            raise FileNotFoundError(
                f"info file {self.path} does not exist{looked_for_in(self.path)}: make it with {self._command()}"
            )
        try:
            content = load(self.path)
        except (pickle.UnpicklingError, EOFError, ImportError, AttributeError, TypeError, ValueError) as error:
            raise self.format_error(f"it cannot be read ({error})") from error
        if not isinstance(content, dict) or "data_list" not in content or "metainfo" not in content:
            old = isinstance(content, list) or (isinstance(content, dict) and "infos" in content)
            raise self.format_error("it is of mmdet3d before 1.0" if old else "it has no data_list and metainfo")
        if not content["data_list"]:
            raise self.format_error("it holds no frames")
        found = content["metainfo"].get("version")
        if self.version is not None and found is not None and found != self.version:
            raise ValueError(
                f"{self.path} holds {found}, but metainfo.version of the config is {self.version}: "
                f"change one of them, or make the infos with {self._command()}"
            )
        return content

    def check_frame(self, info: dict, cameras: Sequence[str]) -> None:
        """Raise a ValueError where an entry of `data_list` lacks what a frame is made of."""
        missing = [key for key in FRAME_KEYS if key not in info]
        for camera in cameras:
            image = info.get("images", {}).get(camera, {})
            missing += [f"images.{camera}.{key}" for key in IMAGE_KEYS if key not in image]
        if missing:
            raise self.format_error(f"a frame lacks {', '.join(missing[:4])}")

    def check_objects(self, info: dict) -> None:
        """Raise a ValueError where the objects of an entry lack what mmdet3d reads of them."""
        if info["instances"]:
            missing = [key for key in INSTANCE_KEYS if key not in info["instances"][0]]
            if missing:
                raise self.format_error(f"an object lacks {', '.join(missing)}")

    def format_error(self, reason: str) -> ValueError:
        """An error that says how to make a right file."""
        return ValueError(f"{self.path} is not an info file of this dataset, {reason}: make it with {self._command()}")

    def _command(self) -> str:
        version = self.version or "v1.0-mini"
        return f"`python tools/create_infos.py --data-root {self.data_root} --version {version}`"


def find_scenes(infos: Sequence[dict]) -> list[str]:
    """Scene of each frame, in order of time: as recorded, else one starts where no lidar sweep comes before a frame."""
    if all("scene_token" in info for info in infos):
        return [info["scene_token"] for info in infos]
    scenes: list[str] = []
    for info in infos:
        starts = not scenes or not info.get("lidar_sweeps")
        scenes.append(info["token"] if starts else scenes[-1])
    return scenes
