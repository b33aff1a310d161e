"""Batches packed in the loader's workers: the same data, the same losses, one tensor; and bad samples are named."""

from __future__ import annotations

import copy
import functools
import pickle

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS as MMDET_MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet3d.datasets.transforms import Pack3DDetInputs
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.dataset import pseudo_collate
from mmengine.registry import FUNCTIONS
from mmengine.structures import InstanceData, PixelData
from torch.utils.data import DataLoader

from raggedbev.mm.collate import ragged_collate
from raggedbev.mm.heads.common import pack_boxes_3d
from raggedbev.mm.packed import PackedSamples, UnitList, column, describe_sample
from raggedbev.ragged import combine_data

TIME = 1.5e9 + 0.123456  # float32 would round it to 128 s


def frame(seed: int, sizes: tuple[int, ...] = (3, 0, 2)) -> dict:
    """A sample with len(sizes) cameras as `PackStreamPETRInputs` gives it."""
    g = torch.Generator().manual_seed(seed)
    count = sum(sizes)
    sample = Det3DDataSample()
    sample.gt_instances_3d = InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(torch.rand(count, 9, generator=g), box_dim=9),
        labels_3d=torch.randint(10, (count,), generator=g),
    )
    sample.gt_instances_2d = [
        InstanceData(
            bboxes=torch.rand(n, 4, generator=g),
            labels=torch.randint(10, (n,), generator=g),
            centers2d=torch.rand(n, 2, generator=g),
            depths=torch.rand(n, generator=g),
        )
        for n in sizes
    ]
    rng = np.random.default_rng(seed)
    sample.set_metainfo(
        {
            "token": f"frame-{seed}",
            "timestamp": TIME + seed,
            "prev_exists": seed % 2 == 1,
            "lidar2img": rng.normal(size=(len(sizes), 4, 4)),
            "ego_pose": rng.normal(size=(4, 4)),
        }
    )
    images = torch.randint(256, (len(sizes), 3, 4, 6), generator=g, dtype=torch.uint8)
    return {"inputs": {"img": images}, "data_samples": sample}


def scan(seed: int, count: int) -> dict:
    """A point cloud with objects, through mmdet3d's own packing."""
    rng = np.random.default_rng(seed)
    boxes = LiDARInstance3DBoxes(torch.from_numpy(rng.uniform(1, 9, (count, 7)).astype(np.float32)))
    results = {
        "points": torch.from_numpy(rng.normal(size=(20 + seed, 4)).astype(np.float32)),
        "gt_bboxes_3d": boxes,
        "gt_labels_3d": rng.integers(0, 3, count),
        "lidar_path": f"scan-{seed}.bin",
        "lidar2img": rng.normal(size=(4, 4)).astype(np.float32),
    }
    keys = ("points", "gt_bboxes_3d", "gt_labels_3d")
    return Pack3DDetInputs(keys=keys, meta_keys=("lidar_path", "lidar2img")).transform(results)


def assert_same_samples(found: list, wanted: list) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert type(one) is type(other) and set(one.keys()) == set(other.keys())
        assert set(one.metainfo_keys()) >= set(other.metainfo_keys())
        assert_same_instances(one.gt_instances_3d, other.gt_instances_3d)
        if "gt_instances_2d" in other:
            for left, right in zip(one.gt_instances_2d, other.gt_instances_2d, strict=True):
                assert_same_instances(left, right)


def assert_same_instances(found: InstanceData, wanted: InstanceData) -> None:
    assert set(found.keys()) == set(wanted.keys())
    for key, value in wanted.items():
        assert type(found.get(key)) is type(value)
        left, right = (getattr(side, "tensor", side) for side in (found.get(key), value))
        assert left.dtype == right.dtype and torch.equal(left.cpu(), right)
    if "bboxes_3d" in wanted:
        left, right = found.bboxes_3d, wanted.bboxes_3d
        assert (left.box_dim, left.with_yaw) == (right.box_dim, right.with_yaw)
        assert torch.equal(left.gravity_center.cpu(), right.gravity_center)


@pytest.mark.parametrize("sizes", [((3, 0, 2), (0, 1, 0)), ((0, 0), (0, 0)), ((2,),)], ids=str)
def test_samples_come_back(sizes, device):
    items = [frame(seed, counts) for seed, counts in enumerate(sizes)]
    before = copy.deepcopy(items)
    packed = ragged_collate(items)["data_samples"]
    assert isinstance(packed, PackedSamples)
    samples, inputs = pickle.loads(pickle.dumps(packed)).unpack(device)
    assert_same_samples(samples, [item["data_samples"] for item in before])
    assert_same_samples([item["data_samples"] for item in items], [item["data_samples"] for item in before])
    assert inputs["timestamp"].dtype == torch.float64 and inputs["timestamp"].device.type == device.type
    assert inputs["timestamp"].tolist() == [TIME + seed for seed in range(len(sizes))]
    assert inputs["prev_exists"].tolist() == [float(seed % 2) for seed in range(len(sizes))]
    expected = np.stack([item["data_samples"].lidar2img for item in items]).astype(np.float32)
    np.testing.assert_array_equal(inputs["lidar2img"].cpu(), expected)
    assert inputs["ego_pose"].shape == (len(sizes), 4, 4) and inputs["ego_pose"].dtype == torch.float32


def test_heads_find_the_packed_batches(device):
    items = [frame(0), frame(1, (1, 4, 0)), frame(2, (0, 0, 0))]
    samples, _ = ragged_collate(items)["data_samples"].unpack(device)
    boxes = [sample.gt_instances_3d.bboxes_3d for sample in samples]
    labels = [sample.gt_instances_3d.labels_3d for sample in samples]
    packed = combine_data([one.tensor for one in boxes])
    assert packed.tensor.data_ptr() == boxes[0].tensor.data_ptr() and packed.layout.host_sizes() == [5, 5, 0]
    gravity, packed_labels = pack_boxes_3d(boxes, labels, 9)
    assert packed_labels.tensor.data_ptr() == labels[0].data_ptr() and gravity.layout is packed_labels.layout
    plain = [item["data_samples"].gt_instances_3d for item in items]
    expected = pack_boxes_3d([one.bboxes_3d for one in plain], [one.labels_3d for one in plain], 9)
    for found, wanted in zip((gravity, packed_labels), expected, strict=True):
        assert torch.equal(found.tensor.cpu(), wanted.tensor) and found.sample_sizes.tolist() == [5, 5, 0]
    images = [tensor for sample in samples for tensor in column(sample.gt_instances_2d, "bboxes")]
    assert combine_data(images).shape == (9, 4, 4) and not samples[0].gt_instances_2d._made


def test_changed_instances_are_packed_anew(device):
    samples, _ = ragged_collate([frame(0), frame(1)])["data_samples"].unpack(device)
    samples[1].gt_instances_3d.labels_3d = samples[1].gt_instances_3d.labels_3d + 10
    labels = [sample.gt_instances_3d.labels_3d for sample in samples]
    packed = combine_data(labels)
    assert packed.tensor.data_ptr() != labels[0].data_ptr() and packed.tensor[1].min() >= 10
    image = samples[0].gt_instances_2d[0]
    image.bboxes = image.bboxes + 100
    assert column(samples[0].gt_instances_2d, "bboxes")[0].min() >= 100
    assert column(samples[1].gt_instances_2d, "bboxes")[0].max() <= 1


def test_padded_sizes():
    samples, _ = ragged_collate([frame(0), frame(1)], padded_sizes=(4, 16))["data_samples"].unpack(torch.device("cpu"))
    labels = [sample.gt_instances_3d.labels_3d for sample in samples]
    assert combine_data(labels).shape == (2, 16) and [len(one) for one in labels] == [5, 5]
    assert combine_data(column(samples[0].gt_instances_2d[:], "labels"), max_sample_size=3).shape == (3, 3)
    with pytest.raises(ValueError, match="rising order"):
        ragged_collate([frame(0)], padded_sizes=(4, 2))


def test_unit_list():
    samples, _ = ragged_collate([frame(0), frame(1)])["data_samples"].unpack(torch.device("cpu"))
    units = samples[1].gt_instances_2d
    assert isinstance(units, UnitList) and len(units) == 3
    assert units[-1] is units[2] and [len(unit) for unit in units[:2]] == [3, 0]
    with pytest.raises(IndexError):
        units[3]


class Items(torch.utils.data.Dataset):
    def __init__(self, make=frame) -> None:
        self.make = make

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict:
        return self.make(index)


@pytest.mark.parametrize("workers", [0, 2])
def test_loader(workers):
    collate = functools.partial(FUNCTIONS.get("ragged_collate"))
    loader = DataLoader(Items(), batch_size=2, num_workers=workers, collate_fn=collate)
    for index, batch in enumerate(loader):
        assert batch["inputs"]["img"].shape == (2, 3, 3, 4, 6)
        wanted = [frame(2 * index), frame(2 * index + 1)]
        assert torch.equal(batch["inputs"]["img"], torch.stack([item["inputs"]["img"] for item in wanted]))
        assert batch["data_samples"].buffer.is_shared() == (workers > 0)
        samples, _ = batch["data_samples"].unpack(torch.device("cpu"))
        assert_same_samples(samples, [item["data_samples"] for item in wanted])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_pinned_loader_does_not_wait():
    loader = DataLoader(Items(), batch_size=2, num_workers=1, collate_fn=ragged_collate, pin_memory=True)
    for index, batch in enumerate(loader):
        assert batch["data_samples"].buffer.is_pinned()
        torch.cuda.set_sync_debug_mode("error")
        try:
            samples, _ = batch["data_samples"].unpack(torch.device("cuda"))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert_same_samples(samples, [frame(2 * index)["data_samples"], frame(2 * index + 1)["data_samples"]])


def test_windows():
    windows = [[frame(0), frame(1)], [frame(2, (0, 0, 1)), frame(3, (9, 0, 0))]]
    items = [
        {
            "inputs": {"img": torch.stack([part["inputs"]["img"] for part in window])},
            "data_samples": [part["data_samples"] for part in window],
        }
        for window in windows
    ]
    batch = ragged_collate(items)
    assert batch["inputs"]["img"].shape == (2, 2, 3, 3, 4, 6)
    frames, inputs = batch["data_samples"].unpack(torch.device("cpu"))
    assert inputs["timestamp"].tolist() == [[TIME, TIME + 1], [TIME + 2, TIME + 3]]
    assert inputs["lidar2img"].shape == (2, 2, 3, 4, 4)
    for index, samples in enumerate(frames):
        assert_same_samples(samples, [windows[0][index]["data_samples"], windows[1][index]["data_samples"]])
        packed = combine_data([sample.gt_instances_3d.bboxes_3d.tensor for sample in samples])
        assert packed.shape == (2, (5, 9)[index], 9)
    with pytest.raises(ValueError, match=r"one length, got \[2, 1\]"):
        ragged_collate([items[0], {**items[1], "data_samples": items[1]["data_samples"][:1]}])


def test_fields_that_cannot_be_packed_stay(device):
    items = [frame(0), frame(1)]
    for item in items:
        instances = item["data_samples"].gt_instances_3d
        instances.names = ["car"] * len(instances)
        instances.corners = torch.rand(len(instances), 2 + len(item["data_samples"].token) % 2, 3)
    items[1]["data_samples"].gt_instances_3d.corners = torch.rand(5, 9, 3)
    items[0]["data_samples"].eval_ann_info = {"boxes": 3}
    items[0]["data_samples"].mask = PixelData(sem=torch.zeros(1, 2, 2))
    samples, _ = ragged_collate(items)["data_samples"].unpack(device)
    assert samples[0].gt_instances_3d.names == ["car"] * 5
    assert [sample.gt_instances_3d.corners.shape[1] for sample in samples] == [3, 9]
    assert samples[1].gt_instances_3d.corners.device.type == device.type
    assert samples[0].eval_ann_info == {"boxes": 3} and samples[0].mask.sem.device.type == device.type


def test_samples_without_ground_truth():
    items = [frame(0), frame(1)]
    for item in items:
        del item["data_samples"].gt_instances_3d
        del item["data_samples"].gt_instances_2d
    samples, inputs = ragged_collate(items)["data_samples"].unpack(torch.device("cpu"))
    assert [sample.token for sample in samples] == ["frame-0", "frame-1"] and "timestamp" in inputs
    assert not samples[0].keys()


# -- preprocessors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("collate", [ragged_collate, pseudo_collate])
def test_lidar_pipeline(collate, device):
    config = {"voxel": False, "non_blocking": False}
    stock = MODELS.build({"type": "Det3DDataPreprocessor", **config})
    ours = MODELS.build({"type": "RaggedDet3DDataPreprocessor", **config}).to(device)
    wanted = stock(pseudo_collate([scan(0, 4), scan(1, 0)]), training=True)
    found = ours(collate([scan(0, 4), scan(1, 0)]), training=True)
    assert_same_samples(found["data_samples"], wanted["data_samples"])
    for one, other in zip(found["inputs"]["points"], wanted["inputs"]["points"], strict=True):
        assert torch.equal(one.cpu(), other)
    assert found["inputs"]["lidar2img"].shape == (2, 4, 4)
    boxes = [sample.gt_instances_3d.bboxes_3d.tensor for sample in found["data_samples"]]
    assert combine_data(boxes).tensor.data_ptr() == boxes[0].data_ptr()
    assert not ours.state_dict()


@pytest.mark.parametrize("sizes", [(4, 4), (4, 5)], ids=["one size", "two sizes"])
def test_images_of_several_cameras(sizes, device):
    config = {"mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0], "bgr_to_rgb": True, "pad_size_divisor": 4}
    items = [frame(0), frame(1)]
    for item, height in zip(items, sizes, strict=True):
        item["inputs"]["img"] = torch.randint(256, (3, 3, height, 6), dtype=torch.uint8)
    stock = MODELS.build({"type": "Det3DDataPreprocessor", **config})
    ours = MODELS.build({"type": "RaggedDet3DDataPreprocessor", **config}).to(device)
    batch = ragged_collate(items)
    assert isinstance(batch["inputs"]["img"], torch.Tensor) == (sizes[0] == sizes[1])
    found, wanted = ours(batch, training=True), stock(pseudo_collate(copy.deepcopy(items)), training=True)
    torch.testing.assert_close(found["inputs"]["imgs"].cpu(), wanted["inputs"]["imgs"])
    assert [s.pad_shape for s in found["data_samples"]] == [s.pad_shape for s in wanted["data_samples"]]


def test_detection_pipeline(device):
    def item(seed: int, count: int) -> dict:
        g = torch.Generator().manual_seed(seed)
        sample = DetDataSample(metainfo={"img_id": seed, "img_path": f"{seed}.jpg", "img_shape": (8, 9)})
        sample.gt_instances = InstanceData(
            bboxes=HorizontalBoxes(torch.rand(count, 4, generator=g)), labels=torch.randint(3, (count,), generator=g)
        )
        sample.ignored_instances = InstanceData(bboxes=HorizontalBoxes(torch.zeros(0, 4)), labels=torch.zeros(0).long())
        return {"inputs": torch.randint(256, (3, 8, 9 + seed), generator=g, dtype=torch.uint8), "data_samples": sample}

    config = {"mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0], "bgr_to_rgb": True}
    stock = MMDET_MODELS.build({"type": "DetDataPreprocessor", **config})
    ours = MMDET_MODELS.build({"type": "RaggedDetDataPreprocessor", **config}).to(device)
    wanted = stock(pseudo_collate([item(0, 2), item(1, 3)]), training=True)
    found = ours(ragged_collate([item(0, 2), item(1, 3)]), training=True)
    torch.testing.assert_close(found["inputs"].cpu(), wanted["inputs"])
    for one, other in zip(found["data_samples"], wanted["data_samples"], strict=True):
        assert_same_instances(one.gt_instances, other.gt_instances)
        assert_same_instances(one.ignored_instances, other.ignored_instances)
        assert one.batch_input_shape == other.batch_input_shape
    boxes = [sample.gt_instances.bboxes for sample in found["data_samples"]]
    assert combine_data(boxes).tensor.data_ptr() == boxes[0].data_ptr()


def test_stock_preprocessor_says_what_to_use():
    batch = MODELS.build({"type": "Det3DDataPreprocessor"})(ragged_collate([scan(0, 1)]))
    with pytest.raises(ValueError, match="use RaggedDet3DDataPreprocessor"):
        list(batch["data_samples"])


# -- bad input ---------------------------------------------------------------------------------------------------------


def _with_nan_box(sample):
    sample.gt_instances_3d.bboxes_3d.tensor[2, 6] = float("nan")


def _with_infinite_2d_box(sample):
    sample.gt_instances_2d[2].bboxes[1, 0] = float("inf")


def _with_missing_label(sample):
    sample.gt_instances_3d = InstanceData(bboxes_3d=LiDARInstance3DBoxes(torch.zeros(0, 9), box_dim=9))
    sample.gt_instances_3d.labels_3d = torch.arange(4)  # which mmengine accepts where the first field is empty


def _with_another_field(sample):
    sample.gt_instances_3d.attributes = torch.zeros(5)


def _with_nan_center(sample):
    sample.gt_instances_2d[0].centers2d[1, 0] = float("nan")


def _with_infinite_depth(sample):
    sample.gt_instances_2d[2].depths[0] = float("inf")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (_with_nan_box, r"gt_instances_3d of NAME: bboxes_3d\[2\] is not finite, \[.*nan"),
        (_with_infinite_2d_box, r"gt_instances_2d of NAME, image 2: bboxes\[1\] is not finite, \[inf"),
        (_with_missing_label, r"gt_instances_3d of NAME must have as many of each field, got 0 bboxes_3d, 4 labels_3d"),
        (_with_another_field, r"gt_instances_3d of NAME has the fields \['attributes', 'bboxes_3d', 'labels_3d'\]"),
        (_with_nan_center, r"gt_instances_2d of NAME, image 0: centers2d\[1\] is not finite, \[nan"),
        (_with_infinite_depth, r"gt_instances_2d of NAME, image 2: depths\[0\] is not finite, inf"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_bad_sample_is_named(break_it, message, workers):
    def make(index: int) -> dict:
        item = frame(index)
        if index == 3:
            break_it(item["data_samples"])
        return item

    loader = iter(DataLoader(Items(make), batch_size=2, num_workers=workers, collate_fn=ragged_collate))
    next(loader)
    with pytest.raises(ValueError, match=message.replace("NAME", r"sample 1 of the batch \(token frame-3\)")):
        next(loader)
    assert next(loader)["data_samples"].frames[0][0].token == "frame-4"


BAD_METAS = {
    "fewer": (np.zeros((2, 4, 4)), r"is \(2, 4, 4\), that of sample 0 \(3, 4, 4\)"),
    "uneven": ([np.eye(4), np.eye(3)], "must be numbers of one shape: .*inhomogeneous"),
    "text": ("none", "must be numbers of one shape: could not convert"),
    "nan": (np.full((3, 4, 4), np.nan), r"must be finite, got \[\[\[nan"),
    "none": (None, "is missing, which other samples of the batch have"),
}


@pytest.mark.parametrize(("value", "message"), BAD_METAS.values(), ids=BAD_METAS)
def test_matrices_that_cannot_be_stacked(value, message):
    """As with the stock classes they stay in the meta information; who asks for them by name is told."""
    items = [frame(0), frame(1)]
    items[1]["data_samples"].set_metainfo({"lidar2img": value})
    samples, inputs = ragged_collate(items)["data_samples"].unpack(torch.device("cpu"))
    assert "lidar2img" not in inputs and {"timestamp", "ego_pose"} < set(inputs)
    assert samples[0].lidar2img.shape == (3, 4, 4)
    with pytest.raises(ValueError, match=r"lidar2img of sample 1 of the batch \(token frame-1\) " + message):
        ragged_collate(items, meta_keys=("lidar2img",))


def test_times_are_float64_by_their_name():
    items = [frame(0), frame(1)]
    for item in items:
        item["data_samples"].set_metainfo({"img_timestamp": [TIME, TIME + 1], "lidar_timestamp": None})
    keys = ("img_timestamp", "lidar_timestamp")
    _, inputs = ragged_collate(items, meta_keys=keys)["data_samples"].unpack(torch.device("cpu"))
    assert inputs["img_timestamp"].tolist() == [[TIME, TIME + 1]] * 2 and list(inputs) == ["img_timestamp"]


@pytest.mark.parametrize("collate", [ragged_collate, pseudo_collate])
@pytest.mark.parametrize("other", [np.eye(3), None], ids=["another shape", "none"])
def test_preprocessor_takes_unequal_matrices(collate, other):
    scans = [scan(0, 2), scan(1, 1)]
    scans[1]["data_samples"].set_metainfo({"lidar2img": other})
    ours = MODELS.build({"type": "RaggedDet3DDataPreprocessor"})
    assert "lidar2img" not in ours(collate(scans), training=True)["inputs"]
    strict = MODELS.build({"type": "RaggedDet3DDataPreprocessor", "meta_keys": ["lidar2img"]})
    with pytest.raises(ValueError, match=r"lidar2img of sample 1 of the batch \(lidar_path scan-1.bin\)"):
        strict(pseudo_collate(scans), training=True)


def test_instances_without_fields_are_none(device):
    items = [frame(0), frame(1), frame(2)]
    items[0]["data_samples"].gt_instances_3d = InstanceData()
    items[2]["data_samples"].gt_instances_2d[1] = InstanceData()
    samples, _ = ragged_collate(items)["data_samples"].unpack(device)
    first = samples[0].gt_instances_3d
    assert len(first) == 0 and type(first.bboxes_3d) is LiDARInstance3DBoxes and first.bboxes_3d.tensor.shape == (0, 9)
    assert [len(unit) for unit in samples[2].gt_instances_2d] == [3, 0, 2]
    assert combine_data([sample.gt_instances_3d.labels_3d for sample in samples]).layout.host_sizes() == [0, 5, 5]
    empty = Det3DDataSample()
    empty.gt_instances_3d = InstanceData()
    samples, _ = ragged_collate([{"data_samples": empty}])["data_samples"].unpack(device)
    assert not samples[0].gt_instances_3d.keys()


def test_boxes_that_cannot_be_packed_are_moved_and_checked():
    items = [frame(0), frame(1)]
    items[1]["data_samples"].gt_instances_3d.bboxes_3d = LiDARInstance3DBoxes(torch.ones(5, 7))
    for item in items:
        item["data_samples"].roi_bboxes = LiDARInstance3DBoxes(torch.ones(2, 7))
        item["data_samples"].regions = [InstanceData(names=["a"], boxes=torch.ones(1, 4)) for _ in range(2)]
    items[0]["data_samples"].regions = [InstanceData(names=["a"])]
    samples, _ = ragged_collate(items[1:])["data_samples"].unpack(torch.device("meta"))
    assert samples[0].regions[0].boxes.is_meta
    del items[0]["data_samples"].regions, items[1]["data_samples"].regions
    samples, _ = ragged_collate(items)["data_samples"].unpack(torch.device("meta"))
    for sample in samples:
        assert sample.gt_instances_3d.bboxes_3d.tensor.is_meta and sample.gt_instances_3d.labels_3d.is_meta
        assert sample.roi_bboxes.tensor.is_meta
    items[1]["data_samples"].roi_bboxes.tensor[1, 3] = float("nan")
    with pytest.raises(ValueError, match=r"sample 1 of the batch \(token frame-1\): roi_bboxes\[1\] is not finite"):
        ragged_collate(items)
    items[1]["data_samples"].gt_instances_3d.bboxes_3d.tensor[4, 0] = float("inf")
    with pytest.raises(ValueError, match=r"gt_instances_3d of sample 1 .*: bboxes_3d\[4\] is not finite"):
        ragged_collate(items)


class Objects(InstanceData):
    """A project's own."""


def test_classes_metainfo_and_arrays_of_instances_stay(device):
    items = [frame(0), frame(1)]
    for item in items:
        old = item["data_samples"].gt_instances_3d
        new = Objects(metainfo={"camera": item["data_samples"].token})
        new.bboxes_3d, new.labels_3d, new.weights = old.bboxes_3d, old.labels_3d, np.ones(5)
        item["data_samples"].gt_instances_3d = new
    samples, _ = pickle.loads(pickle.dumps(ragged_collate(items)["data_samples"])).unpack(device)
    for sample in samples:
        instances = sample.gt_instances_3d
        assert type(instances) is Objects and instances.camera == sample.token
        assert isinstance(instances.weights, np.ndarray) and len(instances) == 5


def test_kept_fields_as_columns():
    items = [frame(0), frame(1)]
    for item in items:
        for number, unit in enumerate(item["data_samples"].gt_instances_2d):
            unit.corners = torch.ones(len(unit), 2 + number)
    samples, _ = ragged_collate(items)["data_samples"].unpack(torch.device("cpu"))
    assert [tuple(t.shape) for t in column(samples[0].gt_instances_2d, "corners")] == [(3, 2), (0, 3), (2, 4)]


def test_versions_for_test_time_augmentation(device):
    """mmengine's BaseTTAModel indexes what was collated, and hands on one version after the other."""
    items = [
        {"inputs": [part["inputs"] for part in versions], "data_samples": [part["data_samples"] for part in versions]}
        for versions in ([scan(0, 2), scan(1, 3)], [scan(2, 0), scan(3, 1)])
    ]
    wanted = pseudo_collate(copy.deepcopy(items))
    batch = ragged_collate(items)
    assert len(batch["data_samples"]) == len(wanted["data_samples"]) == 2
    ours = MODELS.build({"type": "RaggedDet3DDataPreprocessor"}).to(device)
    for index in range(2):
        found = ours({key: value[index] for key, value in batch.items()})
        assert_same_samples(found["data_samples"], wanted["data_samples"][index])
        matrices = np.stack([sample.lidar2img for sample in wanted["data_samples"][index]])
        np.testing.assert_array_equal(found["inputs"]["lidar2img"].cpu(), matrices)
    with pytest.raises(IndexError):
        batch["data_samples"][2]
    single = ragged_collate([scan(0, 1)])["data_samples"]
    assert len(single) == 1
    with pytest.raises(ValueError, match="use RaggedDet3DDataPreprocessor"):
        single[0]


def test_unknown_velocity_is_no_error():
    item = frame(0)
    item["data_samples"].gt_instances_3d.bboxes_3d.tensor[:, 7:] = float("nan")
    samples, _ = ragged_collate([item])["data_samples"].unpack(torch.device("cpu"))
    assert samples[0].gt_instances_3d.bboxes_3d.tensor[:, 7:].isnan().all()


def test_names_of_samples():
    sample = Det3DDataSample(metainfo={"sample_idx": 7, "img_path": ["a.jpg", "b.jpg"]})
    assert describe_sample(sample, 2) == "sample 2 of the batch (sample_idx 7, img_path a.jpg)"
    assert describe_sample(Det3DDataSample(), 0) == "sample 0 of the batch"
