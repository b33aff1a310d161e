"""The synthetic data set: same bytes for one seed, consistent tables, and pictures that show what the tables say.

In: two tiny data sets made here. Checked with nuscenes-devkit, which shares no code with the generator.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from launch import ROOT, run_tool
from nuscenes import NuScenes
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.utils.data_classes import LidarPointCloud
from nuscenes.utils.geometry_utils import points_in_box, view_points
from nuscenes.utils.splits import create_splits_scenes
from pyquaternion import Quaternion

sys.path.insert(0, str(ROOT / "tools"))
from mini import build, layout, lidar, models, render, rig, tables
from mini.geometry import footprint, rectangles_overlap

SCENES, FRAMES, SEED = 2, 2, 5
CLASSES = 10
# These fill their box in every direction; cycles and diggers leave corners free.
SOLID = ("vehicle.car", "vehicle.truck", "vehicle.bus.rigid", "vehicle.trailer", "movable_object.barrier")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mini") / "two workers"
    sizes = ("--scenes", SCENES, "--frames", FRAMES, "--seed", SEED)
    run_tool("tools/create_mini.py", "--out", path, *sizes, "--workers", 2)
    return path


@pytest.fixture(scope="module")
def nusc(root: Path) -> NuScenes:
    return NuScenes(version="v1.0-mini", dataroot=str(root), verbose=False)


@pytest.fixture(scope="module")
def scenes() -> list[layout.Scene]:
    """The worlds of `root`."""
    return [layout.make_scene(SEED, i, name, FRAMES) for i, name in enumerate(layout.scene_names(SCENES))]


@pytest.fixture(scope="module")
def stage(scenes: list[layout.Scene]) -> Callable[..., render.View]:
    """Photographs things with the front camera on the street of the first scene."""
    empty = render.make_backdrop(scenes[0])
    ego = scenes[0].ego_pose(scenes[0].times[0])

    def photograph(*things: tuple) -> render.View:
        placed = [_thing(kind, ego, *place) for kind, *place in things]
        corners = [models.object_corners(thing.kind, thing.size) for thing in placed]
        backdrop = dataclasses.replace(empty, scene=dataclasses.replace(scenes[0], things=placed), corners=corners)
        world = render.world_corners(backdrop, 0)
        return render.render(backdrop, scenes[0].rig[0], ego, world, render.shadow_map(backdrop, world, ego))

    return photograph


@pytest.fixture(scope="module")
def all_scenes() -> list[layout.Scene]:
    """The worlds of the default data set; building them draws nothing."""
    return [layout.make_scene(0, i, name, 12) for i, name in enumerate(layout.scene_names(10))]


def _bytes(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


# -- the whole data set -------------------------------------------------------------------------------------------


def test_same_seed_same_bytes_for_any_number_of_workers(root: Path, tmp_path: Path) -> None:
    assert build.make_dataset(tmp_path / "one", SCENES, FRAMES, SEED, workers=1, quiet=True)
    first, second = _bytes(root), _bytes(tmp_path / "one")
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_another_seed_is_another_world() -> None:
    a, b = (layout.make_scene(seed, 0, "scene-0061", 2) for seed in (0, 1))
    assert not np.array_equal(a.things[0].poses, b.things[0].poses)
    assert tables.token(0, "map") != tables.token(1, "map")


def test_tables_are_complete_and_files_exist(root: Path, nusc: NuScenes) -> None:
    assert {p.stem for p in (root / "v1.0-mini").iterdir()} == set(nusc.table_names)
    assert len(nusc.table_names) == 13
    assert len(nusc.sample) == SCENES * FRAMES
    assert len(nusc.sample_data) == SCENES * FRAMES * 7
    for record in nusc.sample_data:
        path = root / record["filename"]
        if record["sensor_modality"] == "camera":
            assert cv2.imread(str(path)).shape == (900, 1600, 3)
            assert (record["height"], record["width"]) == (900, 1600)
        else:
            points = np.fromfile(path, np.float32).reshape(-1, 5)
            assert LidarPointCloud.from_file(str(path)).nbr_points() == len(points) > 20_000
            assert set(np.unique(points[:, 4])) <= set(range(32))
            assert points[:, 3].min() >= 0 and points[:, 3].max() <= 255
    tokens = [row["token"] for name in nusc.table_names if name != "visibility" for row in getattr(nusc, name)]
    # A sample_data record and its ego pose share their token, as in nuScenes.
    assert len(tokens) - len(set(tokens)) == len(nusc.ego_pose)


def test_chains_run_from_end_to_end(nusc: NuScenes) -> None:
    for scene in nusc.scene:
        chain = [nusc.get("sample", scene["first_sample_token"])]
        while chain[-1]["next"]:
            chain.append(nusc.get("sample", chain[-1]["next"]))
            assert chain[-1]["prev"] == chain[-2]["token"]
        assert chain[-1]["token"] == scene["last_sample_token"]
        assert len(chain) == scene["nbr_samples"]
        for channel in chain[0]["data"]:
            for before, sample in zip([None, *chain], chain, strict=False):
                record = nusc.get("sample_data", sample["data"][channel])
                assert record["prev"] == (before["data"][channel] if before else "")
    for instance in nusc.instance:
        row = nusc.get("sample_annotation", instance["first_annotation_token"])
        count = 1
        while row["next"]:
            row, count = nusc.get("sample_annotation", row["next"]), count + 1
        assert (row["token"], count) == (instance["last_annotation_token"], instance["nbr_annotations"])


def test_time_stamps_as_recorded_by_a_real_rig(nusc: NuScenes) -> None:
    for sample in nusc.sample:
        stamps = {c: nusc.get("sample_data", t)["timestamp"] for c, t in sample["data"].items()}
        assert stamps["LIDAR_TOP"] == sample["timestamp"]
        for channel, _, _, _, _, delay in rig.CAMERA_MOUNTS:
            assert stamps[channel] - sample["timestamp"] == delay
        if sample["next"]:
            step = nusc.get("sample", sample["next"])["timestamp"] - sample["timestamp"]
            assert abs(step - 500_000) < 20_000


def test_map_covers_the_drive(nusc: NuScenes) -> None:
    assert set(nusc.map[0]["log_tokens"]) == {log["token"] for log in nusc.log}
    where = np.array([pose["translation"] for pose in nusc.ego_pose])
    mask = nusc.map[0]["mask"]
    assert mask.is_on_mask(where[:, 0], where[:, 1]).all()
    assert not mask.is_on_mask(where[:, 0] + 200.0, where[:, 1] + 300.0).all()


def test_scene_names_follow_the_devkit_split() -> None:
    splits = create_splits_scenes()
    for count in range(1, 11):
        names = layout.scene_names(count)
        val = [name for name in names if name in splits["mini_val"]]
        assert len(set(names)) == count
        assert set(names) - set(val) <= set(splits["mini_train"])
        assert len(val) == (0 if count == 1 else max(1, count // 5))
        assert names[count - len(val) :] == val


# -- the world ----------------------------------------------------------------------------------------------------


def test_objects_never_touch(all_scenes: list[layout.Scene]) -> None:
    for scene in all_scenes:
        poses = np.stack([thing.poses for thing in scene.things], 1)  # [T, n, 3]
        sizes = np.array([thing.size for thing in scene.things])
        outline = footprint(poses, sizes[:, 1], sizes[:, 0])
        hits = rectangles_overlap(outline[:, :, None], outline[:, None])
        assert hits.sum() == hits.shape[0] * hits.shape[1]  # each with itself only
        ego = np.stack([scene.ego_pose(t) for t in scene.times])
        ego[:, :2] += layout.EGO_CENTRE * np.stack([np.cos(ego[:, 2]), np.sin(ego[:, 2])], -1)
        car = footprint(ego, layout.EGO_SIZE[1], layout.EGO_SIZE[0])
        assert not rectangles_overlap(outline, car[:, None]).any()


def test_overlap_test_finds_crossing_and_contained_rectangles() -> None:
    poses = np.array([[0, 0, 0], [0, 0, 0.7], [3.1, 0, 0], [2.9, 0, 0], [0, 1.4, np.pi / 4]])
    outline = footprint(poses, np.array([4, 1, 2, 2, 1.0]), np.array([2, 1, 2, 2, 1.0]))
    assert rectangles_overlap(outline[:1], outline).tolist() == [True, True, False, True, True]


def test_every_class_in_both_splits_and_long_tailed_counts(all_scenes: list[layout.Scene]) -> None:
    for part in (all_scenes[:8], all_scenes[8:]):
        counts: Counter[str] = Counter()
        for scene in part:
            ego = np.stack([scene.ego_pose(t) for t in scene.times])
            near = np.zeros(len(scene.times), int)
            for thing in scene.things:
                if thing.annotated:
                    close = np.linalg.norm(thing.poses[:, :2] - ego[:, :2], axis=-1) < layout.ANNOTATION_RANGE
                    near += close
                    counts[category_to_detection_name(models.MODELS[thing.kind].category)] += close.sum()
            assert near.min() >= 10 and near.max() <= layout.MAX_OBJECTS
        assert len(counts) == CLASSES and min(counts.values()) >= 20
        assert counts["car"] == max(counts.values()) > 6 * counts["construction_vehicle"]


@pytest.mark.parametrize("frames", [2, 40])
def test_short_and_long_scenes_hold_every_class(frames: int) -> None:
    scene = layout.make_scene(0, 7, "scene-1100", frames)
    kinds = {models.MODELS[thing.kind].category for thing in scene.things if thing.annotated}
    assert len(kinds) == CLASSES


def test_attributes_fit_the_motion(all_scenes: list[layout.Scene]) -> None:
    moved: Counter[str] = Counter()
    for scene in all_scenes:
        for thing in filter(lambda thing: thing.annotated, scene.things):
            step = np.diff(thing.poses[:, :2], axis=0)
            for name, delta, yaw in zip(thing.attribute, step, thing.poses[:, 2], strict=False):
                distance = float(np.linalg.norm(delta))
                still = name.split(".")[-1] in ("parked", "stopped", "standing", "without_rider", "")
                assert distance < 0.3 if still else distance > 0.02, (thing.kind, name, distance)
                if not still:  # forwards, not sideways or backwards
                    assert delta @ (np.cos(yaw), np.sin(yaw)) > 0.97 * distance
                moved[name] += 1
    assert {
        "vehicle.moving",
        "vehicle.stopped",
        "vehicle.parked",
        "pedestrian.moving",
        "pedestrian.standing",
        "cycle.with_rider",
        "cycle.without_rider",
        "",
    } == set(moved)


# -- what the tables say ------------------------------------------------------------------------------------------


def test_point_counts_equal_the_devkits(nusc: NuScenes) -> None:
    counts = []
    for sample in nusc.sample:
        path, boxes, _ = nusc.get_sample_data(sample["data"]["LIDAR_TOP"])
        points = np.fromfile(path, np.float32).reshape(-1, 5)[:, :3].T.astype(float)
        for box in boxes:
            expected = nusc.get("sample_annotation", box.token)["num_lidar_pts"]
            assert points_in_box(box, points).sum() == expected
            counts.append(expected)
    assert np.mean(np.array(counts) > 0) > 0.6 and max(counts) > 300


def test_lidar_meets_ground_and_objects_only_at_their_surface(nusc: NuScenes) -> None:
    sample = nusc.sample[0]
    path, boxes, _ = nusc.get_sample_data(sample["data"]["LIDAR_TOP"])
    points = np.fromfile(path, np.float32).reshape(-1, 5)[:, :3].T.astype(float)
    data = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
    mount = nusc.get("calibrated_sensor", data["calibrated_sensor_token"])
    height = (Quaternion(mount["rotation"]).rotation_matrix @ points)[2] + mount["translation"][2]
    assert height.min() > -0.1
    assert np.mean(np.abs(height) < 0.05) > 0.3  # ground
    solid = [box for box in boxes if box.name in ("vehicle.bus.rigid", "movable_object.barrier")]
    for box in solid:  # a beam ends at the surface: nothing deep inside
        assert points_in_box(box, points, wlh_factor=0.5).sum() == 0


def test_lidar_does_not_look_through_objects(scenes: list[layout.Scene]) -> None:
    scene = scenes[0]
    ego = scene.ego_pose(scene.times[0])
    near, far = _thing("truck", ego, 12.0, 0.0), _thing("pedestrian", ego, 25.0, 0.0)

    def counts(*things: layout.Thing) -> list[int]:
        stage = dataclasses.replace(scene, things=list(things))
        corners = [models.object_corners(t.kind, t.size) for t in things]
        backdrop = render.Backdrop(stage, None, None, None, corners)
        points = lidar.sweep(stage, 0, scene.rig[-1], ego, render.world_corners(backdrop, 0))
        return lidar.count_points(stage, 0, scene.rig[-1], ego, points).tolist()

    assert counts(far)[0] > 5
    (truck,) = counts(near)
    assert truck > 200
    assert counts(near, far) == [truck, 0]
    assert counts(far, near) == [0, truck]


def test_velocity_is_the_motion(nusc: NuScenes, scenes: list[layout.Scene]) -> None:
    owners = _owners(nusc, scenes)
    speeds = []
    for row in nusc.sample_annotation:
        scene, index, frame = owners[row["token"]]
        thing = scene.things[index]
        np.testing.assert_allclose(row["translation"], [*thing.poses[frame, :2], thing.size[2] / 2], atol=1e-9)
        assert abs(Quaternion(row["rotation"]).yaw_pitch_roll[0] - _wrap(thing.poses[frame, 2])) < 1e-9
        velocity = nusc.box_velocity(row["token"])[:2]
        if np.isfinite(velocity).all():
            motion = (thing.poses[1, :2] - thing.poses[0, :2]) / (scene.times[1] - scene.times[0])
            np.testing.assert_allclose(velocity, motion, atol=1e-4)
            speeds.append(np.linalg.norm(velocity))
    assert min(speeds) < 1e-6 and 5.0 < max(speeds) < 20.0


def test_pictures_show_the_annotated_boxes(nusc: NuScenes, scenes: list[layout.Scene]) -> None:
    """Pixels of an object lie inside its projected box, at its depth, and fill it where nothing is in front."""
    owners = _owners(nusc, scenes)
    checked = filled = 0
    for scene, frame in ((scenes[0], 0), (scenes[1], FRAMES - 1)):
        backdrop = render.make_backdrop(scene)
        corners = render.world_corners(backdrop, frame)
        shadow = render.shadow_map(backdrop, corners, scene.ego_pose(scene.times[frame]))
        sample = nusc.get("sample", tables.token(SEED, scene.name, "sample", frame))
        for sensor in scene.rig[:6]:
            pose = scene.ego_pose(scene.times[frame] + sensor.delay * 1e-6)
            view = render.render(backdrop, sensor, pose, corners, shadow)
            path, boxes, intrinsic = nusc.get_sample_data(sample["data"][sensor.channel])
            saved = cv2.imread(path).astype(int)
            assert np.abs(saved - view.image).mean() < 2.0  # JPEG
            for box in boxes:
                _, index, _ = owners[box.token]
                rows, columns = np.nonzero(view.owner == index + 1)
                local = box.corners()
                if not len(rows) or local[2].min() < 0.5:
                    continue
                hull = cv2.convexHull(view_points(local, intrinsic, normalize=True)[:2].T.astype(np.float32))
                outside = [
                    -cv2.pointPolygonTest(hull, (float(u), float(v)), True)
                    for u, v in zip(columns[::37], rows[::37], strict=True)
                ]
                assert max(outside) < 1.5, (box.name, max(outside))
                depth = 1 / view.inverse_depth[rows, columns]
                assert local[2].min() - 0.02 < depth.min() and depth.max() < local[2].max() + 0.02
                checked += 1
                low, high = hull[:, 0].min(0), hull[:, 0].max(0)
                inside = (low > 0).all() and (high < (1600, 900)).all() and (high - low).min() > 12
                if inside and box.name in SOLID and view.seen[index] == view.alone[index]:
                    extent = np.array([np.ptp(columns) + 1, np.ptp(rows) + 1]) / (high - low)
                    assert (extent > 0.75).all() and (extent < 1.15).all(), (box.name, extent)
                    centre = np.array([columns.min() + columns.max() + 1, rows.min() + rows.max() + 1]) / 2
                    assert (np.abs(centre - (low + high) / 2) < 2 + 0.13 * (high - low)).all(), box.name
                    filled += 1
    assert checked > 40 and filled > 5


def test_visibility_is_the_share_of_visible_pixels(stage: Callable[..., render.View]) -> None:
    """A truck right in front of a pedestrian hides it wholly; next to it, it hides nothing."""
    hidden, clear, front = (
        stage(("truck", 12.0, 0.0), ("pedestrian", *place)) for place in ((25.0, 0.0), (25.0, 7.0), (6.0, 0.0))
    )
    assert hidden.seen[1] == 0 and hidden.alone[1] > 300
    assert clear.seen[1] == clear.alone[1] > 300
    assert front.seen[1] == front.alone[1] > 5000 and front.seen[0] < front.alone[0]
    record = tables.FrameRecord(np.array([100, 35, 0, 55, 0]), np.array([100, 100, 50, 80, 0]), np.zeros(5, int))
    assert [tables._visibility(record, i) for i in range(5)] == ["4", "1", "1", "3", "1"]


@pytest.mark.parametrize("kind", ["car", "truck", "bus", "trailer", "motorcycle"])
def test_front_and_back_look_different(kind: str, stage: Callable[..., render.View]) -> None:
    """Only the back shows red lamps or chevrons, so the sign of the heading can be learned."""
    red = []
    for turn in (0.0, np.pi):
        view = stage((kind, 14.0, 0.0, turn))
        blue, green, strength = view.image[view.owner == 1].astype(int).T
        red.append(np.mean((strength > 2 * green) & (strength > 2 * blue) & (strength > 70)))
    assert red[0] > 0.01 and red[1] < 0.2 * red[0]


@pytest.mark.parametrize("turn", [np.pi / 2, -np.pi / 2])
def test_sides_are_mirrored(turn: float, stage: Callable[..., render.View]) -> None:
    """Seen from either side, the tail lamp is at the rear end: right in the picture if the car points left."""
    view = stage(("car", 14.0, 0.0, turn))
    blue, green, red = np.where((view.owner == 1)[..., None], view.image, 0).astype(int).transpose(2, 0, 1)
    lamp = np.nonzero((red > 2 * green) & (red > 2 * blue) & (red > 70))[1]
    car = np.nonzero(view.owner == 1)[1]
    assert len(lamp) > 10
    assert (lamp.mean() - car.mean()) * turn > 0.3 * np.ptp(car)


def test_a_block_beside_the_camera_is_clipped(stage: Callable[..., render.View]) -> None:
    """Faces that pass beside and behind the camera are cut at the near plane and leave finite depths."""
    view = stage(("bus", 2.0, 2.4))
    assert view.seen[0] > 50_000
    depth = 1 / view.inverse_depth[view.owner == 1]
    assert depth.min() > render.NEAR - 1e-3 and depth.max() < 8.0


# -- asking for the wrong thing -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (dict(scenes=0), "scenes must lie in 1..10, got 0"),
        (dict(scenes=11), "scenes must lie in 1..10, got 11"),
        (dict(frames=1), "frames must lie in 2..80, got 1"),
        (dict(frames=81), "frames must lie in 2..80, got 81"),
        (dict(seed=-1), "seed must not be negative, got -1"),
        (dict(workers=0), "workers must be at least 1, got 0"),
    ],
)
def test_bad_numbers(tmp_path: Path, arguments: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build.make_dataset(tmp_path / "out", **(dict(scenes=1, frames=2, seed=0, workers=1) | arguments))
    assert not (tmp_path / "out").exists()


def test_command_line_gives_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"precious")
    text = run_tool("tools/create_mini.py", "--out", tmp_path, expect=1)
    assert (
        text.strip() == f"create_mini: {tmp_path} holds something other than a data set of this tool; "
        "choose another folder"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("text")
    with pytest.raises(ValueError, match="out is not a folder"):
        build.make_dataset(tmp_path / "out", 1, 2, 0, 1)


def test_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.shutil, "disk_usage", lambda path: build.shutil._ntuple_diskusage(10, 9, 1_000_000))
    with pytest.raises(OSError, match="has 1 MB of free space, the data set needs about 204 MB"):
        build.make_dataset(tmp_path / "deep" / "out", 10, 12, 0, 1)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_done_twice_and_failures_keep_the_old_data(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not build.make_dataset(root, SCENES, FRAMES, SEED, 1)
    old = tmp_path / "old"
    old.mkdir()
    (old / build.MARKER).write_text(json.dumps({"generator": 0}))

    def fail(*arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(build, "build_tables", fail)
    monkeypatch.setattr(build._Observer, "observe", lambda self, job: (job, None))
    with pytest.raises(OSError, match="disk full"):
        build.make_dataset(old, 1, 2, 0, 1, quiet=True)
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    monkeypatch.undo()
    monkeypatch.setattr(build, "_write", lambda root, *rest: (root / "v1.0-mini").mkdir(parents=True))
    assert build.make_dataset(old, 1, 2, 0, 1, quiet=True)
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    assert [p.name for p in old.iterdir()] == ["v1.0-mini"]


# -- helpers ------------------------------------------------------------------------------------------------------


def _wrap(angle: float) -> float:
    return float((angle + np.pi) % (2 * np.pi) - np.pi)


def _owners(nusc: NuScenes, scenes: list[layout.Scene]) -> dict[str, tuple[layout.Scene, int, int]]:
    """Annotation token -> scene, thing, keyframe."""
    return {
        tables.token(SEED, scene.name, "annotation", index, frame): (scene, index, frame)
        for scene in scenes
        for index in range(len(scene.things))
        for frame in range(FRAMES)
    }


def _thing(kind: str, ego: np.ndarray, ahead: float, left: float, turn: float = 0.0) -> layout.Thing:
    """An object placed relative to the ego car, the same at two keyframes."""
    c, s = np.cos(ego[2]), np.sin(ego[2])
    pose = np.array([ego[0] + ahead * c - left * s, ego[1] + ahead * s + left * c, ego[2] + turn])
    model = models.MODELS[kind]
    paint, trim = model.draw_paints(np.random.default_rng(0))
    return layout.Thing(kind, np.array(model.size), np.stack([pose, pose]), paint, trim, ("", ""))
