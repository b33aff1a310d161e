"""Predictions reach nuscenes-devkit in the right place, from any order and any number of ranks."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet3d.evaluation import NuScenesMetric
from mmdet3d.structures import CameraInstance3DBoxes, LiDARInstance3DBoxes
from mmengine.logging import MMLogger
from pyquaternion import Quaternion

from raggedbev.mm.streampetr.dataset import StreamNuScenesDataset
from raggedbev.mm.streampetr.metric import StreamNuScenesMetric

KEY = "NuScenes metric/pred_instances_3d_NuScenes/"
CLASSES = StreamNuScenesDataset.METAINFO["classes"]
PRESENT = ("car", "truck", "pedestrian", "barrier")


def make_metric(root, **kwargs):
    metric = StreamNuScenesMetric(data_root=str(root), ann_file=str(root / "infos.pkl"), **kwargs)
    metric.dataset_meta = {"classes": CLASSES, "version": "v1.0-mini"}
    return metric


def make_sample(token, boxes, labels, scores=None):
    scores = torch.full((len(boxes),), 0.5) if scores is None else scores
    return {
        "token": token,
        "pred_instances_3d": {"bboxes_3d": boxes, "labels_3d": torch.as_tensor(labels), "scores_3d": scores},
    }


def perfect_samples(root):
    """The ground truth as predictions."""
    dataset = StreamNuScenesDataset(data_root=str(root), ann_file="infos.pkl", test_mode=True)
    samples = []
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        boxes, labels = info["eval_ann_info"]["gt_bboxes_3d"], info["eval_ann_info"]["gt_labels_3d"]
        samples.append(make_sample(info["token"], boxes[torch.as_tensor(labels >= 0)], labels[labels >= 0]))
    return samples


def no_boxes(count=0):
    return LiDARInstance3DBoxes(torch.zeros(count, 9), box_dim=9)


def test_ground_truth_scores_full_marks(nuscenes_root, capsys):
    with capsys.disabled():
        MMLogger.get_current_instance()  # it keeps the stream that it starts with
    metric = make_metric(nuscenes_root)
    samples = perfect_samples(nuscenes_root)
    for index in np.random.default_rng(0).permutation(len(samples)):
        metric.process({}, [samples[index]])
    metrics = metric.evaluate(len(samples))
    assert metrics[KEY + "mAP"] == pytest.approx(0.4, abs=1e-3)  # 4 of 10 classes are there
    for name in CLASSES:
        assert metrics[KEY + f"{name}_AP"] == pytest.approx(float(name in PRESENT), abs=1e-3)
    assert len(metrics) == 17
    assert not metric.results
    # Errors of absent classes count as 1; those of the four present ones have to vanish.
    assert metrics[KEY + "mATE"] == pytest.approx(0.6, abs=1e-3)
    assert metrics[KEY + "mASE"] == pytest.approx(0.6, abs=1e-3)
    assert metrics[KEY + "mAOE"] == pytest.approx(5 / 9, abs=1e-3)
    assert metrics[KEY + "mAVE"] == pytest.approx(5 / 8, abs=1e-3)
    captured = capsys.readouterr()
    assert "Eval time" not in captured.out and "it/s" not in captured.err


def test_samples_seen_twice_count_once(nuscenes_root):
    samples = perfect_samples(nuscenes_root)
    metric = make_metric(nuscenes_root)
    metric.process({}, samples)
    metric.process({}, [make_sample(samples[0]["token"], no_boxes(), [])])
    assert metric.evaluate(8)[KEY + "car_AP"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("dims", [7, 9])
def test_no_boxes_at_all(nuscenes_root, dims, tmp_path):
    metric = make_metric(nuscenes_root, jsonfile_prefix=str(tmp_path))
    boxes = LiDARInstance3DBoxes(torch.zeros(0, dims), box_dim=dims)
    metric.process({}, [make_sample(sample["token"], boxes, []) for sample in perfect_samples(nuscenes_root)])
    metrics = metric.evaluate(8)
    assert metrics[KEY + "mAP"] == metrics[KEY + "NDS"] == 0
    written = json.loads((tmp_path / "pred_instances_3d" / "results_nusc.json").read_text())
    assert len(written["results"]) == 8 and not any(written["results"].values())


def random_boxes(count, seed=0):
    rng = np.random.default_rng(seed)
    boxes = rng.uniform(-1, 1, (count, 9)) * [60, 60, 3, 0, 0, 0, 4, 2, 2]
    boxes[:, 3:6] = rng.uniform(0.3, 6, (count, 3))
    boxes[: count // 3, 7:] *= 0.05
    labels = torch.from_numpy(rng.integers(0, 10, count))
    return LiDARInstance3DBoxes(boxes.astype(np.float32), box_dim=9), labels, torch.from_numpy(rng.random(count))


def test_boxes_are_those_of_mmdet3d(nuscenes_root, tmp_path, content, capsys):
    boxes, labels, scores = random_boxes(300)
    sample = make_sample("sample-1-2", boxes, labels, scores.float())
    metric = make_metric(nuscenes_root, format_only=True, jsonfile_prefix=str(tmp_path / "ours"))
    metric.process({}, [sample])
    assert metric.evaluate(1) == {}
    ours = json.loads((tmp_path / "ours" / "pred_instances_3d" / "results_nusc.json").read_text())
    assert ours["meta"] == {"use_camera": True, "use_lidar": False}
    ours = ours["results"]["sample-1-2"]

    original = NuScenesMetric(data_root=str(nuscenes_root), ann_file="")
    original.data_infos = content["data_list"]
    path = original._format_lidar_bbox([sample["pred_instances_3d"]], [6], CLASSES, str(tmp_path / "theirs"))
    theirs = json.loads(Path(path).read_text())["results"]["sample-1-2"]
    theirs.sort(key=lambda box: -box["detection_score"])
    assert len(ours) == len(theirs) > 100
    for our, their in zip(ours, theirs, strict=True):
        for key in ("sample_token", "detection_name", "attribute_name"):
            assert our[key] == their[key]
        for key in ("translation", "size", "velocity", "detection_score"):
            np.testing.assert_allclose(our[key], their[key], rtol=1e-5, atol=1e-4)
        turn = Quaternion(our["rotation"]).inverse * Quaternion(their["rotation"])
        assert abs(abs(turn.w) - 1) < 1e-6


def test_at_most_500_boxes_and_no_broken_ones(nuscenes_root, tmp_path):
    boxes, labels, scores = random_boxes(900)
    boxes.tensor[:, :2] *= 0.3
    boxes.tensor[3, 1], boxes.tensor[4, 4], scores[5], boxes.tensor[6, 8] = [float("nan"), float("inf")] * 2
    metric = make_metric(nuscenes_root, format_only=True, jsonfile_prefix=str(tmp_path))
    metric.process({}, [make_sample("sample-0-0", boxes, labels, scores)])
    metric.evaluate(1)
    path = tmp_path / "pred_instances_3d" / "results_nusc.json"
    written = json.loads(path.read_text())["results"]["sample-0-0"]
    assert len(written) == 500
    finite = np.isfinite(boxes.tensor.numpy()).all(axis=1) & np.isfinite(scores.numpy())
    expected = np.sort(scores.numpy()[finite])[::-1][:500]
    np.testing.assert_allclose([box["detection_score"] for box in written], expected)


@pytest.mark.parametrize(
    ("name", "slow", "fast"),
    [
        ("car", "vehicle.parked", "vehicle.moving"),
        ("bus", "vehicle.stopped", "vehicle.moving"),
        ("bicycle", "cycle.without_rider", "cycle.with_rider"),
        ("pedestrian", "pedestrian.standing", "pedestrian.moving"),
        ("barrier", "", ""),
    ],
)
def test_attributes(nuscenes_root, name, slow, fast):
    metric = make_metric(nuscenes_root)
    assert (metric.attribute(name, 0.19), metric.attribute(name, 0.21)) == (slow, fast)


# ---- several ranks ----


def run_rank(rank, root, port, queue):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=3)
    samples = perfect_samples(root)
    shard = [samples[index % 8] for index in range(3 * rank, 3 * rank + 3)]  # the last one wraps around
    metric = make_metric(root)
    metric.process({}, shard)
    queue.put((rank, metric.evaluate(8)))
    dist.destroy_process_group()


@pytest.mark.skipif(sys.platform != "linux", reason="the processes are forked")
def test_ranks_with_contiguous_shards(nuscenes_root):
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=run_rank, args=(rank, nuscenes_root, port, queue)) for rank in range(3)]
    for process in processes:
        process.start()
    results = dict(queue.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(timeout=30)
        assert process.exitcode == 0
    assert results[0] == results[1] == results[2]
    assert results[0][KEY + "mAP"] == pytest.approx(0.4, abs=1e-3)


# ---- bad input ----


def test_missing_predictions(nuscenes_root):
    metric = make_metric(nuscenes_root)
    metric.process({}, perfect_samples(nuscenes_root)[:5])
    with pytest.raises(ValueError, match="3 of the 8 samples of eval_set 'mini_val'"):
        metric.evaluate(5)


def test_predictions_of_other_splits_do_not_matter(nuscenes_root, tmp_path):
    """Samples of an info file that holds more than the split."""
    metric = make_metric(nuscenes_root)
    samples = perfect_samples(nuscenes_root)
    metric.process({}, samples)
    poses = metric._pose("sample-0-0")
    metric._poses["elsewhere"] = poses
    metric.process({}, [make_sample("elsewhere", no_boxes(2), [0, 1])])
    assert metric.evaluate(9)[KEY + "mAP"] == pytest.approx(0.4, abs=1e-3)


@pytest.mark.parametrize(
    ("eval_set", "version", "message"),
    [
        ("mini_train", "v1.0-mini", "0 samples of eval_set 'mini_train'"),
        ("val", "v1.0-mini", "eval_set 'val' is not a split of v1.0-mini"),
        (None, "v1.0-test", "no public annotations"),
    ],
)
def test_wrong_split(nuscenes_root, eval_set, version, message):
    metric = make_metric(nuscenes_root, eval_set=eval_set)
    metric.dataset_meta["version"] = version
    metric.process({}, perfect_samples(nuscenes_root))
    with pytest.raises(ValueError, match=message):
        metric.evaluate(8)


def test_bad_arguments(nuscenes_root):
    with pytest.raises(ValueError, match="eval_set must be one of"):
        make_metric(nuscenes_root, eval_set="mini")
    with pytest.raises(ValueError, match="format_only needs jsonfile_prefix"):
        make_metric(nuscenes_root, format_only=True)
    metric = make_metric(nuscenes_root)
    with pytest.raises(TypeError, match="CameraInstance3DBoxes"):
        metric.process({}, [make_sample("sample-0-0", CameraInstance3DBoxes(torch.zeros(1, 9), box_dim=9), [0])])
    metric.process({}, [make_sample("unknown", no_boxes(1), [0])])
    with pytest.raises(ValueError, match=r"sample unknown is not in .*infos\.pkl"):
        metric.evaluate(1)
