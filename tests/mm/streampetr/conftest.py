"""Fixtures of the StreamPETR port's tests: few threads, and a very small data set."""

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from raggedbev.mm.streampetr import transforms, transforms_image  # noqa: F401

from .handmade_nuscenes import make_content, write_dataset


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Models here are tiny: one thread is faster than many, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def nuscenes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of the data set, with `infos.pkl`; not to be written to."""
    root = tmp_path_factory.mktemp("nuscenes")
    write_dataset(root)
    return root


@pytest.fixture
def content() -> dict:
    """Content of the info file, to be changed at will."""
    return make_content()


@pytest.fixture
def save_infos(tmp_path: Path) -> Callable[[object], str]:
    """Function that writes an info file's content and returns its path."""

    def save(content: object) -> str:
        path = tmp_path / "changed.pkl"
        path.write_bytes(pickle.dumps(content))
        return str(path)

    return save


@pytest.fixture
def pipelines() -> SimpleNamespace:
    """The training and the test pipeline for images of 160x90."""
    ida_aug_conf = {"H": 90, "W": 160, "final_dim": (32, 64), "resize_lim": (0.38, 0.55)}
    train = [
        {"type": "mmdet3d.LoadMultiViewImages"},
        {"type": "mmdet3d.LoadAnnotations3D", "with_bbox_3d": True, "with_label_3d": True},
        {"type": "mmdet3d.StreamPETRLoadCamInstances"},
        {"type": "mmdet3d.StreamPETRRangeFilter", "point_cloud_range": [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]},
        {"type": "mmdet3d.StreamPETRResizeCropFlip", "ida_aug_conf": ida_aug_conf, "training": True},
        {"type": "mmdet3d.StreamPETRGlobalRotScale"},
        {"type": "mmdet3d.PackStreamPETRInputs"},
    ]
    test = [
        {"type": "mmdet3d.LoadMultiViewImages"},
        {"type": "mmdet3d.StreamPETRResizeCropFlip", "ida_aug_conf": ida_aug_conf, "training": False},
        {"type": "mmdet3d.PackStreamPETRInputs"},
    ]
    return SimpleNamespace(train=train, test=test, ida_aug_conf=ida_aug_conf)
