"""tools/visualize.py: boxes land where they belong, odd samples draw, bad input is one sentence."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

TOOLS = str(Path(__file__).parents[2] / "tools")
if TOOLS not in sys.path:
    sys.path.append(TOOLS)

pytest.importorskip("nuscenes")
pytest.importorskip("matplotlib")

import create_infos  # noqa: E402
import visualize  # noqa: E402
from PIL import Image, ImageColor  # noqa: E402
from random_nuscenes import RandomNuScenes  # noqa: E402
from shared import drawing, heatmap_layers  # noqa: E402

from raggedbev.nuscenes import INFO_CLASSES  # noqa: E402


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "root"
    RandomNuScenes(frames=2).write(folder, Image.new("RGB", (1600, 900), (90, 90, 90)))
    lidar = next(folder.glob("samples/LIDAR_TOP/scene-0103*-0.pcd.bin"))
    np.random.default_rng(0).uniform(-40, 40, (500, 5)).astype(np.float32).tofile(lidar)
    create_infos.create_infos(folder, "v1.0-mini")
    return folder


@pytest.fixture(scope="module")
def info(root) -> dict:
    return visualize.load_infos(root / "nuscenes_infos_val.pkl")[0]


def as_predictions(info: dict, score: float = 0.8) -> list[dict]:
    """The truth of a sample as detections: the same boxes, in the global frame."""
    lidar2global = np.array(info["ego2global"]) @ np.array(info["lidar_points"]["lidar2ego"])
    quaternion = pytest.importorskip("pyquaternion").Quaternion
    turn = quaternion(matrix=lidar2global, rtol=1e-4, atol=1e-4)
    results = []
    for instance in info["instances"]:
        if instance["bbox_label_3d"] >= 0 and instance["bbox_3d_isvalid"]:
            x, y, z, length, width, height, yaw = instance["bbox_3d"]
            velocity = lidar2global[:3, :3] @ [*np.nan_to_num(instance["velocity"]), 0]
            results.append(
                {
                    "sample_token": info["token"],
                    "translation": (lidar2global @ [x, y, z, 1])[:3].tolist(),
                    "size": [width, length, height],
                    "rotation": (turn * quaternion(axis=[0, 0, 1], angle=yaw)).elements.tolist(),
                    "velocity": velocity[:2].tolist(),
                    "detection_name": INFO_CLASSES[instance["bbox_label_3d"]],
                    "detection_score": score,
                    "attribute_name": "",
                }
            )
    return results


def count(picture: np.ndarray, color: str) -> int:
    return int((np.abs(picture.astype(int) - ImageColor.getrgb(color)).sum(axis=-1) < 12).sum())


def test_predictions_equal_to_the_truth_cover_it(info):
    truth = drawing.truth_boxes(info)
    predicted = drawing.predicted_boxes(info, as_predictions(info), 0.3)
    assert len(truth) == len(predicted) > 5
    np.testing.assert_allclose(predicted.corners, truth.corners, atol=2e-3)
    known = np.isfinite(truth.velocity).all(axis=1)
    # results hold no vertical speed, so a tilted lidar sees a slightly different plane
    np.testing.assert_allclose(predicted.velocity[known], truth.velocity[known], atol=0.05)
    assert [label.rpartition(" ")[0] for label in predicted.labels] == truth.labels


def test_threshold_and_unusable_predictions(info):
    good, low, broken, unturned = (dict(as_predictions(info)[0]) for _ in range(4))
    low["detection_score"] = 0.29
    broken["translation"] = [float("nan"), 0, 0]
    unturned["rotation"] = [0, 0, 0, 0]
    assert len(drawing.predicted_boxes(info, [good, low, broken, unturned], 0.3)) == 1
    assert len(drawing.predicted_boxes(info, [], 0.3)) == 0


def test_edges_are_cut_before_the_camera():
    intrinsics = np.diag([100.0, 100.0, 1.0])
    corners = drawing.box_corners(np.array([[0, 0, 0.0]]), np.array([[2, 2, 2.0]]), np.eye(3)[None])[0]
    behind, across, before = (corners + np.array([0, 0, depth]) for depth in (-3, 0, 3))
    assert drawing._project_edges(behind, intrinsics).shape == (0, 2, 2)
    assert drawing._project_edges(across, intrinsics).shape == (8, 2, 2)
    segments = drawing._project_edges(before, intrinsics)
    assert segments.shape == (12, 2, 2)
    assert set(np.abs(segments).ravel().tolist()) == {25.0, 50.0}  # 100 / 4 and 100 / 2
    cut = np.abs(drawing._project_edges(across, intrinsics)).ravel()
    assert cut.max() == pytest.approx(100 / drawing._NEAR)


def test_picture_has_truth_and_prediction(info, root):
    truth_only = visualize.draw_sample(info, root)
    both = visualize.draw_sample(info, root, as_predictions(info), 0.3)
    assert truth_only.dtype == np.uint8 and truth_only.shape == both.shape == (878, 3018, 3)
    assert count(truth_only, drawing.TRUTH) > 500 and count(truth_only, drawing.PREDICTION) == 0
    assert count(both, drawing.PREDICTION) > 500
    assert count(visualize.draw_sample(info, root, as_predictions(info, 0.2), 0.3), drawing.PREDICTION) < 200  # legend


def test_one_box_is_drawn_where_cam_instances_say(info, root):
    """Lines in the front camera stay within the 2D box that create_infos computed on its own."""
    camera = "CAM_FRONT"
    boxes = [np.array(one["bbox"]) for one in info["cam_instances"][camera]]
    seen = next(i for i, box in enumerate(boxes) if (box[:2] > 5).all() and (box[2:] < [1595, 895]).all())
    target = info["cam_instances"][camera][seen]
    lidar2cam = np.array(info["images"][camera]["lidar2cam"])
    centers = [lidar2cam @ [*one["bbox_3d"][:3], 1] for one in info["instances"]]
    nearest = int(np.argmin([np.linalg.norm(center[:3] - target["bbox_3d"][:3]) for center in centers]))
    one = info["instances"][nearest] | {"bbox_3d_isvalid": True}
    corners = drawing.truth_boxes(info | {"instances": [one]}).corners[0] @ lidar2cam[:3, :3].T + lidar2cam[:3, 3]
    pixels = drawing._project_edges(corners, np.array(info["images"][camera]["cam2img"])).reshape(-1, 2)
    extent = np.concatenate([pixels.min(axis=0), pixels.max(axis=0)])
    np.testing.assert_allclose(extent, target["bbox"], atol=12)  # the lidar-frame box has a yaw only, no tilt


def test_samples_without_boxes_or_points(info, root):
    bare = info | {"instances": [], "lidar_points": info["lidar_points"] | {"lidar_path": "none.pcd.bin"}}
    assert visualize.draw_sample(bare, root, [], 0.3).shape == (878, 3018, 3)
    del bare["instances"]
    assert visualize.draw_sample(bare, root).shape == (878, 3018, 3)


def test_heatmap_targets_lie_on_the_objects(info, root):
    plain, drawn = visualize.draw_sample(info, root), visualize.draw_sample(info, root, heatmap=True)
    assert plain.shape == drawn.shape
    changed = np.abs(plain.astype(int) - drawn).max(axis=-1) > 8
    assert changed[60:, :2180].any() and changed[60:, 2190:].any()  # on cameras and from above
    assert changed.mean() < 0.35


def test_heatmap_layers(info):
    layer = heatmap_layers.bev_layer(info)
    rows = [one for one in info["instances"] if one["bbox_label_3d"] >= 0 and one["bbox_3d_isvalid"]]
    inside = [one for one in rows if max(abs(one["bbox_3d"][0]), abs(one["bbox_3d"][1])) < 51.2]
    assert layer.shape == (128, 128, 4) and 0 < (layer[..., 3] == layer[..., 3].max()).sum() <= len(inside)
    for one in inside:
        column, row = (int((one["bbox_3d"][axis] + 51.2) / 0.8) for axis in range(2))
        assert layer[row, column, 3] == pytest.approx(0.85)
    assert heatmap_layers.bev_layer({"instances": []})[..., 3].max() == 0
    camera = heatmap_layers.camera_layer([{"bbox": [160, 160, 480, 400], "center_2d": [330, 250]}], 1600, 900)
    assert camera.shape == (56, 100, 4) and camera[15, 20, 3] == pytest.approx(0.85)
    assert heatmap_layers.camera_layer([], 1600, 900)[..., 3].max() == 0


def test_command_line_writes_a_png(info, root, tmp_path, capsys):
    predictions = tmp_path / "results_nusc.json"
    predictions.write_text(json.dumps({"meta": {}, "results": {info["token"]: as_predictions(info)}}))
    out = tmp_path / "new" / "frame.png"
    arguments = ["--data-root", str(root), "--token", info["token"], "--out", str(out)]
    assert visualize.main([*arguments, "--predictions", str(predictions), "--heatmap"]) == 0
    with Image.open(out) as picture:
        assert picture.size == (3018, 878)
    assert "frame.png: 3018x878 pixels" in capsys.readouterr().out


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


BAD_INPUT = {
    "no infos": (lambda tmp: ["--infos", str(tmp / "x.pkl")], "info file {tmp}/x.pkl does not exist"),
    "not a pickle": (lambda tmp: ["--infos", write(tmp / "x.pkl", "hello")], "{tmp}/x.pkl is not an info file"),
    "other pickle": (lambda tmp: ["--infos", write(tmp / "x.pkl", pickle.dumps([1]))], "{tmp}/x.pkl is not an info"),
    "index": (lambda tmp: ["--index", "2"], "--index must be from 0 to 1 for"),
    "token": (lambda tmp: ["--token", "none"], "has no sample none"),
    "no json": (lambda tmp: ["--predictions", str(tmp / "p.json")], "predictions {tmp}/p.json do not exist"),
    "broken json": (lambda tmp: ["--predictions", write(tmp / "p.json", "{")], "is not in the nuScenes results format"),
    "other split": (
        lambda tmp: ["--predictions", write(tmp / "p.json", '{"results": {}}')],
        "{tmp}/p.json has no entry for sample scene1-sample0; is it another split?",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_sentence(case, root, tmp_path, capsys):
    arguments, message = BAD_INPUT[case]
    assert visualize.main(["--data-root", str(root), "--out", str(tmp_path / "o.png"), *arguments(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message.format(tmp=tmp_path) in error
    assert not (tmp_path / "o.png").exists()


def test_bad_images_name_the_file(info, root, tmp_path):
    with pytest.raises(ValueError, match=r"image .*CAM_FRONT_LEFT.*\.jpg does not exist; is --data-root right\?"):
        visualize.draw_sample(info, tmp_path)
    folder = tmp_path / "samples" / "CAM_FRONT_LEFT"
    folder.mkdir(parents=True)
    (folder / info["images"]["CAM_FRONT_LEFT"]["img_path"]).write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"^camera image .*CAM_FRONT_LEFT.*\.jpg is broken \(13 bytes\), frame"):
        visualize.draw_sample(info, tmp_path)
    name = f"samples/CAM_FRONT_LEFT/{info['images']['CAM_FRONT_LEFT']['img_path']}"
    (tmp_path / name).write_bytes((root / name).read_bytes()[:2000])
    sentence = rf"{name} is broken \(2000 bytes\), frame {info['token']}: copy the file again$"
    with pytest.raises(ValueError, match=sentence):
        visualize.draw_sample(info, tmp_path)
