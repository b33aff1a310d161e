"""Nests to a device: types and values stay, everything small travels in one buffer."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from dataclasses import InitVar, dataclass, field
from typing import NamedTuple

import numpy as np
import pytest
import torch
from cases import DTYPES, SIZES, Maker
from torch import nn

from raggedbev import RaggedBatch, combine_data, copy_to_device
from raggedbev.ragged import transfer
from raggedbev.ragged.transfer import BufferPlan


class Pose(NamedTuple):
    matrix: np.ndarray
    name: str


class Row(tuple):
    __slots__ = ()


class Settings(dict):
    pass


@dataclass(frozen=True)
class Frame:
    boxes: torch.Tensor
    token: str
    area: torch.Tensor = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "area", self.boxes.sum())


@pytest.fixture
def through_buffer(monkeypatch):
    """Sends what is packed for an accelerator through a staging buffer on the CPU, and counts the copies."""
    copies = []

    def copy_packed(tensors, target):
        copies.append(tensors)
        return real(tensors, torch.device("cpu"))

    real = transfer._copy_packed
    monkeypatch.setattr(transfer, "_copy_packed", copy_packed)
    return copies


def nest():
    boxes = combine_data(Maker().samples([2, 0, 1], 9))
    labels = boxes.create_with_sample_sizes_like_self(torch.arange(6).view(3, 2))
    return {
        "list": [torch.rand(3), [], (torch.arange(4), "a", None, 3, 2.5)],
        "pose": Pose(np.eye(4), "front"),
        "row": Row((torch.zeros(()), np.float64(1))),
        "order": OrderedDict(b=np.zeros((2, 0), np.int16), a=torch.tensor(True)),
        "default": defaultdict(list, x=[np.float64([1.5e9 + 0.25])]),
        "settings": Settings(deque=deque([torch.rand(2).half(), "x"], maxlen=4)),
        "frame": Frame(torch.ones(2, 4), "t0"),
        "truth": (boxes, labels),
        "names": np.array(["car", "bus"]),
        "shape": torch.Size([3, 4]),
        5: b"raw",
    }


def assert_same(found, wanted, device):
    """Equal values and types, arrays of numbers as tensors, all data on the device."""
    if isinstance(wanted, np.ndarray) and wanted.dtype.kind in "biufc":
        wanted = torch.from_numpy(wanted)
    assert type(found) is type(wanted)
    if isinstance(wanted, torch.Tensor):
        assert found.device.type == device.type and found.dtype == wanted.dtype
        assert not found.numel() or found.stride() == wanted.stride()
        assert torch.equal(found.cpu(), wanted)
    elif isinstance(wanted, RaggedBatch):
        assert_same(found.tensor, wanted.tensor, device)
        assert_same(found.sample_sizes, wanted.sample_sizes, device)
        assert found.non_uniform_dim == wanted.non_uniform_dim
    elif isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for key in wanted:
            assert_same(found[key], wanted[key], device)
    elif isinstance(wanted, list | tuple | deque):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_same(one, other, device)
    elif isinstance(wanted, Frame):
        assert_same(vars(found), vars(wanted), device)
    elif isinstance(wanted, np.ndarray):
        assert found is wanted
    else:
        assert found == wanted


def test_types_and_values_stay(device):
    before = nest()
    after = copy_to_device(before, device)
    assert_same(after, before, device)
    assert after["default"].default_factory is list and after["settings"]["deque"].maxlen == 4
    boxes, labels = after["truth"]
    assert boxes.layout is labels.layout and boxes.layout.host_sizes() == [2, 0, 1]
    assert after["names"] is before["names"] and after["shape"] is before["shape"]
    assert after is not before and after["list"] is not before["list"]


def test_one_buffer_for_everything(through_buffer):
    """The way to an accelerator, except that the buffer stays here."""
    before = nest()
    after = copy_to_device(before, "meta")
    assert_same(after, before, torch.device("cpu"))
    assert len(through_buffer) == 1 and len(through_buffer[0]) == 13  # one of them, the area of a frame, is made anew


def test_shapes_on_another_device():
    after = copy_to_device(nest(), "meta")
    assert after["pose"].matrix.device.type == "meta" and after["pose"].matrix.shape == (4, 4)
    assert after["truth"][0].shape == (3, 2, 9) and after["truth"][0].layout.host_sizes() == [2, 0, 1]


def test_nothing_is_copied_on_the_cpu():
    tensor, array = torch.rand(3), np.zeros(3)
    found = copy_to_device([tensor, array], "cpu")
    assert found[0] is tensor
    found[1][0] = 7
    assert array[0] == 7


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_and_size_fits_beside_others(dtype, through_buffer):
    for sizes in SIZES:
        samples = [torch.tensor([True]), *Maker(dtype=dtype).samples(sizes, 3), torch.tensor(1.5e9 + 0.25).double()]
        for found, wanted in zip(copy_to_device(samples, "meta"), samples, strict=True):
            assert found.dtype == wanted.dtype and torch.equal(found, wanted)


def test_places_are_aligned_and_writes_apart(through_buffer):
    tensors = [torch.ones(n, dtype=dtype) for n in (1, 5, 0) for dtype in (torch.bool, torch.float64, torch.int16)]
    found = copy_to_device(tensors, "meta")
    assert all(tensor.data_ptr() % 16 == 0 for tensor in found)
    found[0].zero_()
    assert found[1]._version == 0
    assert all(torch.equal(one, other) for one, other in zip(found[1:], tensors[1:], strict=True))


def test_plan_of_no_tensors():
    plan = BufferPlan()
    assert plan.num_bytes == 0 and plan.views(plan.staging(torch.device("cpu"))) == []
    assert copy_to_device([], "meta") == [] and copy_to_device("text", "meta") == "text"


def test_strides(through_buffer):
    image = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    turned, narrow = torch.rand(3, 4).t(), torch.rand(4, 6)[:, 1:3]
    expanded = torch.rand(1, 3).expand(5, 3)
    found = copy_to_device([image, turned, narrow, expanded], "meta")
    assert found[0].stride() == image.stride() and found[1].stride() == turned.stride()
    assert found[2].is_contiguous() and found[3].is_contiguous()
    for one, other in zip(found, (image, turned, narrow, expanded), strict=True):
        assert torch.equal(one, other)


@dataclass
class Scaled:
    """Computes when it is constructed, from what it does not keep, and is changed afterwards."""

    points: torch.Tensor
    factor: InitVar[float]
    cache: object = field(init=False, default=None)
    unset: object = field(init=False)

    def __post_init__(self, factor):
        self.points = self.points * factor


@dataclass(frozen=True, slots=True)
class Point:
    xy: torch.Tensor


def test_dataclasses_are_not_constructed_anew():
    scaled = Scaled(torch.ones(2), 3.0)
    scaled.cache, scaled.note = torch.full((2,), 7.0), "a"
    moved = copy_to_device([scaled, Point(torch.ones(2))], "meta")
    assert moved[0] is not scaled and moved[0].points.device.type == moved[0].cache.device.type == "meta"
    assert moved[0].note == "a" and not hasattr(moved[0], "unset")
    assert moved[1].xy.is_meta and scaled.points.tolist() == [3, 3] and not scaled.points.is_meta
    assert copy_to_device(scaled, "cpu").cache is scaled.cache


class OwnUpdate(dict):
    """As mmengine's ConfigDict, which knows no `update` from pairs."""

    def update(self, other):
        raise TypeError("no pairs")


def test_dicts_are_set_item_by_item():
    moved = copy_to_device(OwnUpdate(a=torch.ones(1), b=OwnUpdate(c=np.ones(2), d="x")), "meta")
    assert type(moved) is type(moved["b"]) is OwnUpdate
    assert moved["a"].is_meta and moved["b"]["c"].is_meta and moved["b"]["d"] == "x"


@pytest.mark.parametrize("code", "qQlLiIhHbB")
def test_integers_of_every_c_type(code):
    array = np.arange(3, dtype=code)
    assert copy_to_device(array, "cpu").tolist() == [0, 1, 2]
    swapped = array.astype(array.dtype.newbyteorder())
    assert copy_to_device(swapped, "cpu").tolist() == [0, 1, 2]


@pytest.mark.parametrize("array", [np.zeros(2, "g"), np.zeros(2, "G"), np.ma.masked_array([1.0, 2.0], [0, 1])])
def test_arrays_that_no_tensor_can_stand_for_stay(array):
    assert copy_to_device([array], "cpu")[0] is array


def test_a_tensor_that_occurs_twice_is_copied_once(through_buffer):
    shared = torch.rand(3)
    first, second = copy_to_device([shared, {"again": shared}], "meta")
    assert first is second["again"] and first is not shared
    assert len(through_buffer[0]) == 1


def test_what_goes_alone(through_buffer, device):
    large = torch.zeros(transfer._LARGE, dtype=torch.uint8)
    leaf, parameter = torch.ones(2, requires_grad=True), nn.Parameter(torch.ones(2))
    sparse, conjugate = torch.eye(2).to_sparse(), torch.ones(2, dtype=torch.complex64).conj()
    found = copy_to_device([large, leaf, parameter, conjugate, sparse], "meta")
    assert through_buffer == [[]]
    assert [one.device.type for one in found] == ["meta"] * 5
    moved = copy_to_device([leaf], device)[0]
    (moved * 3).sum().backward()
    assert leaf.grad.tolist() == [3, 3]


def test_arrays_that_torch_cannot_share():
    backwards, foreign = np.arange(4)[::-1], np.arange(3, dtype=">f8")
    locked = np.arange(3.0)
    locked.flags.writeable = False
    objects = np.array([None, "a"], dtype=object)
    found = copy_to_device((backwards, foreign, locked, objects), "cpu")
    assert [one.tolist() for one in found[:3]] == [[3, 2, 1, 0], [0, 1, 2], [0, 1, 2]]
    assert found[3] is objects


def test_batch_that_knows_its_mask_only(device):
    batch = RaggedBatch(torch.ones(2, 3), mask=torch.tensor([[True, True, False], [False] * 3]))
    found = copy_to_device(batch, device)
    assert found.mask.tolist() == batch.mask.tolist() and found.sample_sizes.tolist() == [2, 0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_host_does_not_wait():
    before = nest()
    copy_to_device(before, "cuda")  # the first call reserves memory
    torch.cuda.set_sync_debug_mode("error")
    try:
        after = copy_to_device(before, "cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_same(after, before, torch.device("cuda"))
    assert copy_to_device(after, "cuda")["list"][0] is after["list"][0]
