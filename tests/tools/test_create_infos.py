"""tools/create_infos.py against mmdet3d's own converter, shapely, and bad roots."""

from __future__ import annotations

import copy
import importlib
import pickle
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

TOOLS = str(Path(__file__).parents[2] / "tools")
if TOOLS not in sys.path:
    sys.path.append(TOOLS)

pytest.importorskip("nuscenes")

import create_infos  # noqa: E402
from infos.geometry import clipped_image_boxes, quaternion_to_matrix  # noqa: E402
from random_nuscenes import CAMERAS, RandomNuScenes  # noqa: E402


def load(path: Path) -> dict:
    with path.open("rb") as file:
        return pickle.load(file)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return RandomNuScenes().write(tmp_path_factory.mktemp("tiny") / "data" / "nuscenes")


@pytest.fixture(scope="module")
def infos(root) -> dict[str, dict]:
    return {split: load(path) for split, path in create_infos.create_infos(root, "v1.0-mini").items()}


def assert_same(ours, theirs, where: str) -> None:
    """Same keys and lengths all the way down, numbers equal to float32 precision (that of mmdet3d's projections)."""
    if isinstance(theirs, dict):
        assert set(ours) == set(theirs), where
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs), where
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    elif isinstance(theirs, (float, np.floating)):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5, err_msg=where)
    else:
        assert ours == theirs, where


def mmdet3d_infos(root: Path, out: Path, monkeypatch) -> dict[str, dict]:
    """What mmdet3d 1.4's two converter scripts write for `root`, which must be data/nuscenes."""
    mmdet3d = pytest.importorskip("mmdet3d")
    pytest.importorskip("mmcv")
    converters = Path(mmdet3d.__file__).parent / ".mim" / "tools" / "dataset_converters"
    if not converters.is_dir():
        pytest.skip("this mmdet3d was installed without its tools")
    monkeypatch.syspath_prepend(str(converters))
    first, second = map(importlib.import_module, ("nuscenes_converter", "update_infos_to_v2"))
    monkeypatch.chdir(root.parents[1])
    old = out / "old"
    shutil.copytree(root, old)
    first.create_nuscenes_infos(str(old), "nuscenes", version="v1.0-mini", max_sweeps=10)
    for split in ("train", "val"):
        second.update_nuscenes_infos(str(old / f"nuscenes_infos_{split}.pkl"), str(out))
    return {split: load(out / f"nuscenes_infos_{split}.pkl") for split in ("train", "val")}


@pytest.mark.filterwarnings("ignore:img_intersection is not an object of Polygon")
def test_entries_equal_mmdet3d_converter(root, infos, tmp_path, monkeypatch):
    theirs = mmdet3d_infos(root, tmp_path, monkeypatch)
    for split in ("train", "val"):
        ours = copy.deepcopy(infos[split]["data_list"])
        assert len(ours) == len(theirs[split]["data_list"]) == 4
        for a, b in zip(ours, theirs[split]["data_list"], strict=True):
            for key in ("scene_token", "scene_name", "prev", "next", "frame_idx"):
                a.pop(key)
            for sweep in [*a.get("lidar_sweeps", []), *b.get("lidar_sweeps", [])]:
                sweep["lidar_points"].update(lidar_path=Path(sweep["lidar_points"]["lidar_path"]).name, num_pts_feats=5)
            assert_same(a, b, f"{split}[{a['token']}]")
        assert infos[split]["metainfo"].items() >= {"dataset": "nuscenes", "info_version": "1.1"}.items()
        assert infos[split]["metainfo"] == theirs[split]["metainfo"]


def test_infos_cover_the_awkward_cases(infos):
    """The comparison above would prove little if the random root had no hard objects."""
    entries = infos["train"]["data_list"]
    objects = [instance for entry in entries for instance in entry["instances"]]
    seen = [box for entry in entries for boxes in entry["cam_instances"].values() for box in boxes]
    edges = np.array([box["bbox"] for box in seen])
    assert {instance["bbox_label"] for instance in objects} == set(range(-1, 10))
    assert {instance["bbox_3d_isvalid"] for instance in objects} == {True, False}
    assert any(np.isnan(instance["velocity"]).all() for instance in objects)
    assert len(seen) > 50 and {box["attr_label"] for box in seen} >= {8}
    assert (edges == [0, 0, 1600, 900]).any(axis=0).all()
    assert ((edges[:, :2] >= 0).all() and (edges[:, 2:] <= [1600, 900]).all()) and (edges[:, 2:] > edges[:, :2]).all()


def test_sequence_fields(root, tmp_path):
    # the second scene of the table is the earlier one; both belong to mini_train here
    builder = RandomNuScenes(scenes=("scene-0061", "scene-0553"), frames=3, objects=2)
    other = builder.write(tmp_path / "root")
    entries = load(create_infos.create_infos(other, "v1.0-mini", tmp_path, max_sweeps=1)["train"])["data_list"]
    assert [entry["scene_name"] for entry in entries] == ["scene-0553"] * 3 + ["scene-0061"] * 3
    assert [entry["frame_idx"] for entry in entries] == [0, 1, 2] * 2
    assert [entry["sample_idx"] for entry in entries] == list(range(6))
    assert np.all(np.diff([entry["timestamp"] for entry in entries]) > 0)
    assert [len(entry.get("lidar_sweeps", [])) for entry in entries] == [0, 1, 1] * 2
    assert "lidar_sweeps" not in entries[0]
    for before, after in pairwise(entries[:3]):
        assert (before["next"], after["prev"]) == (after["token"], before["token"])
    assert entries[0]["prev"] == entries[2]["next"] == ""


def test_sample_without_objects(tmp_path):
    root = RandomNuScenes(scenes=("scene-0103",), frames=2, objects=0).write(tmp_path / "root")
    entries = load(create_infos.create_infos(root, "v1.0-mini")["val"])["data_list"]
    assert [entry["instances"] for entry in entries] == [[], []]
    assert entries[0]["cam_instances"] == {camera: [] for camera in CAMERAS}


def test_test_version_has_no_boxes(tmp_path):
    root = RandomNuScenes(scenes=("scene-0077",), frames=2, objects=0, version="v1.0-test").write(tmp_path / "root")
    written = create_infos.create_infos(root, "v1.0-test")
    assert [path.name for path in written.values()] == ["nuscenes_infos_test.pkl"]
    entries = load(written["test"])["data_list"]
    assert len(entries) == 2 and entries[1]["instances"] == [] and "cam_instances" not in entries[1]


def test_empty_split_warns_and_writes_no_samples(tmp_path, capsys):
    root = RandomNuScenes(scenes=("scene-0061",), frames=2, objects=1).write(tmp_path / "root")
    written = create_infos.create_infos(root, "v1.0-mini")
    assert load(written["val"])["data_list"] == []
    assert "has no samples, because no scene of the root is in the val split" in capsys.readouterr().out


def test_scene_without_files_is_left_out(tmp_path, capsys):
    root = RandomNuScenes(scenes=("scene-0061", "scene-0553"), frames=2, objects=1).write(tmp_path / "root")
    for path in root.glob("samples/*/scene-0553*"):
        path.unlink()
    entries = load(create_infos.create_infos(root, "v1.0-mini")["train"])["data_list"]
    assert {entry["scene_name"] for entry in entries} == {"scene-0061"}
    assert "left out 1 train scenes without any file, such as scene-0553" in capsys.readouterr().out


def remove_version(root: Path) -> None:
    (root / "v1.0-mini").rename(root / "v1.0-trainval")


def break_table(root: Path) -> None:
    path = root / "v1.0-mini" / "ego_pose.json"
    path.write_text(path.read_text()[:-40])


BAD_ROOTS = {
    "root": (shutil.rmtree, "data root {root} does not exist"),
    "version": (remove_version, "{root} has no folder v1.0-mini; it has v1.0-trainval"),
    "table": (lambda root: (root / "v1.0-mini" / "log.json").unlink(), "log.json is missing"),
    "json": (break_table, "ego_pose.json is not valid JSON"),
    "map": (lambda root: (root / "maps" / "map.png").unlink(), "map.png does not exist"),
    "image": (
        lambda root: (root / "samples" / "CAM_BACK" / "scene-0061-scene0-CAM_BACK-1.jpg").unlink(),
        "image file {root}/samples/CAM_BACK/scene-0061-scene0-CAM_BACK-1.jpg of scene-0061 is missing",
    ),
    "samples": (lambda root: shutil.rmtree(root / "samples"), "has none of the train split's files"),
    "split": (
        lambda root: (root / "v1.0-mini" / "scene.json").write_text(
            (root / "v1.0-mini" / "scene.json").read_text().replace("scene-0061", "scene-9999")
        ),
        "no scene of {root}/v1.0-mini belongs to a split of v1.0-mini (scenes there: scene-9999 ...)",
    ),
    "token": (
        lambda root: (root / "v1.0-mini" / "calibrated_sensor.json").write_text("[]"),
        "do not fit together: key or token 'cal-scene0-LIDAR_TOP' is missing",
    ),
    "attribute": (
        lambda root: (root / "v1.0-mini" / "attribute.json").write_text('[{"token": "attr0", "name": "flying"}]'),
        "'flying', which is not a nuScenes attribute",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ROOTS)
def test_bad_root_is_one_sentence(case, tmp_path, capsys):
    damage, message = BAD_ROOTS[case]
    root = RandomNuScenes(scenes=("scene-0061",), frames=2, objects=1).write(tmp_path / "root")
    damage(root)
    assert create_infos.main(["--data-root", str(root), "--version", "v1.0-mini"]) == 1
    error = capsys.readouterr().err
    sentences = [line for line in error.splitlines() if line.startswith("create_infos: ")]
    assert len(sentences) == 1 and message.format(root=root) in sentences[0]
    assert not list(root.glob("*.pkl*"))


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="max_sweeps must be at least 1, got 0"):
        create_infos.create_infos(tmp_path, "v1.0-mini", max_sweeps=0)
    with pytest.raises(ValueError, match=r"version must be one of v1.0-mini, .* got 'v2.0'"):
        create_infos.create_infos(tmp_path, "v2.0")


def shapely_box(corners: np.ndarray, intrinsics: np.ndarray, size: np.ndarray) -> tuple | None:
    """The published rule, one object at a time."""
    geometry = pytest.importorskip("shapely.geometry")
    front = corners[corners[:, 2] > 0]
    points = [(intrinsics @ point)[:2] / point[2] for point in front]
    cut = geometry.MultiPoint(points).convex_hull.intersection(geometry.box(0, 0, *size))
    return cut.bounds if isinstance(cut, geometry.Polygon) and not cut.is_empty else None


@pytest.mark.parametrize("reach", [2, 12, 60])  # metres: boxes around the camera, at the borders, mostly inside
def test_image_boxes_equal_shapely(reach):
    rng = np.random.default_rng(reach)
    count, size = 400, np.array([1600.0, 900.0])
    intrinsics = np.array([[1200.0, 3.0, 810.0], [0, 1190.0, 480.0], [0, 0, 1]])
    rotation = quaternion_to_matrix(rng.normal(size=(count, 4)))
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    local = signs * rng.uniform(0.1, 4, (count, 1, 3))
    corners = local @ np.swapaxes(rotation, 1, 2) + rng.uniform(-reach, reach, (count, 1, 3))
    boxes, visible = clipped_image_boxes(corners, np.tile(intrinsics, (count, 1, 1)), np.tile(size, (count, 1)))
    expected = [shapely_box(one, intrinsics, size) for one in corners]
    assert [box is not None for box in expected] == visible.tolist()
    assert 10 < visible.sum() < count
    np.testing.assert_allclose(boxes[visible], [box for box in expected if box is not None], rtol=1e-9, atol=1e-6)


def test_image_boxes_of_no_objects():
    boxes, visible = clipped_image_boxes(np.zeros((0, 8, 3)), np.zeros((0, 3, 3)), np.zeros((0, 2)))
    assert boxes.shape == (0, 4) and visible.shape == (0,)


def test_canvas_inside_hull_gives_the_whole_canvas():
    corners = np.array([[x, y, z] for x in (-50, 50) for y in (-50, 50) for z in (1, 2)], dtype=float)[None]
    boxes, visible = clipped_image_boxes(corners, np.eye(3)[None] * [[800], [450], [1]], np.array([[1600.0, 900.0]]))
    assert visible.all() and boxes.tolist() == [[0, 0, 1600, 900]]
