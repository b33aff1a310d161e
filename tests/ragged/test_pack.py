"""Packing lists of samples: every way from the samples to the batch gives the same, on every device."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from cases import DTYPES, SIZES, Maker

from raggedbev.ragged import RaggedBatch, combine_data, pack, reference


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_pack_and_split_are_inverse(sizes, device):
    data = Maker(device).samples(sizes, 3, 2)
    batch = combine_data(data)
    assert batch.shape == (len(sizes), max(sizes), 3, 2) and batch.device == data[0].device
    assert batch.sample_sizes.tolist() == sizes and batch.mask.sum(1).tolist() == sizes
    assert all(torch.equal(a, b) for a, b in zip(batch.split(), data, strict=True))
    assert (batch.tensor[~batch.mask] == 0).all()


def test_nested_lists_keep_their_levels():
    a, b, c, d = Maker().samples([2, 0, 3, 1], 4)
    nested = combine_data([[a, b], [c, d]], flatten_batch_dims=False)
    assert nested.shape == (2, 2, 3, 4) and nested.sample_sizes.tolist() == [[2, 0], [3, 1]]
    assert [[len(sample) for sample in row] for row in nested.split()] == [[2, 0], [3, 1]]
    assert combine_data([[a, b], [c, d]]).shape == (4, 3, 4)
    assert combine_data(((a, b), (c, d))).shape == (4, 3, 4)


def test_nothing_keeps_dtype_and_shape():
    none = torch.zeros(0, 3, dtype=torch.float16)
    assert combine_data([none, none]).shape == (2, 0, 3)
    nested = combine_data([[none, none], [none, none]], flatten_batch_dims=False)
    assert nested.shape == (2, 2, 0, 3) and nested.dtype == torch.float16
    wide = combine_data([torch.zeros(3, 0), torch.zeros(1, 0)])
    assert wide.shape == (2, 3, 0) and wide.sample_sizes.tolist() == [3, 1]


def test_sizes_and_mask_are_shared():
    boxes = combine_data(Maker().samples([2, 0], 9))
    labels = combine_data([torch.tensor([3, 4]), torch.zeros(0, dtype=torch.long)], other_with_same_sample_sizes=boxes)
    assert labels.sample_sizes is boxes.sample_sizes and labels.mask is boxes.mask
    wide = RaggedBatch(torch.zeros(2, 5), sample_sizes=boxes.sample_sizes)
    assert combine_data([torch.ones(2), torch.ones(0)], wide).tensor.tolist() == [[1, 1, 0, 0, 0], [0] * 5]
    leaf = torch.ones(2, requires_grad=True)
    assert combine_data([leaf, torch.ones(0)], wide).tensor.tolist() == [[1, 1, 0, 0, 0], [0] * 5]


def test_what_was_split_is_not_packed_again(device):
    boxes = combine_data(Maker(device).samples([2, 0, 1], 9), max_sample_size=4)
    labels = boxes.create_with_sample_sizes_like_self(torch.arange(12, device=device).view(3, 4))
    views, names = pack.split_reversibly(boxes), pack.split_reversibly(labels)
    assert combine_data(views) is boxes and combine_data(names, boxes) is labels
    assert combine_data(views, device=device, max_sample_size=4) is boxes and pack.is_split(views)
    other = combine_data(Maker(device).samples([2, 0, 1], 9))
    for changed in (views[:2], [*views[:2], views[2].clone()], [views[1], views[0], views[2]], names[:1] * 3):
        found = combine_data(changed)
        assert found not in (boxes, labels) and not pack.is_split(changed)
        assert found.sample_sizes.tolist() == [len(view) for view in changed]
    assert combine_data(names, other).layout is other.layout
    assert combine_data(views, max_sample_size=5).shape == (3, 5, 9)
    assert combine_data([views], flatten_batch_dims=False).shape == (1, 3, 2, 9)
    again = pickle.loads(pickle.dumps(views)), copy.deepcopy(views)
    assert not any(pack.is_split(one) for one in again)
    assert not pack.is_split([]) and not pack.is_split([torch.ones(2)])


def test_gradients_flow_to_the_samples(device):
    data = [sample.requires_grad_() for sample in Maker(device, torch.float32).samples([2, 0, 1], 2)]
    (combine_data(data).tensor * 3).sum().backward()
    assert all((sample.grad == 3).all() for sample in data)
    with torch.no_grad():
        assert not combine_data(data).requires_grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_sizes", [True, False])
def test_one_buffer_holds_data_and_sizes(dtype, with_sizes, device):
    for sizes in SIZES:
        samples = Maker(dtype=dtype).samples(sizes, 3)
        expected = reference.combine_data(samples)
        padded, lengths = pack._pack_through_one_buffer(samples, sizes, max(sizes), device, with_sizes)
        assert torch.equal(padded.cpu(), expected.tensor) and padded.dtype == dtype
        assert (lengths is not None) == with_sizes
        if lengths is not None:
            assert torch.equal(lengths.cpu(), expected.sample_sizes)
            padded.zero_()
            assert lengths._version == 0  # a write to the data is none to the sizes


def test_samples_on_a_device_are_copied_there():
    for sizes in SIZES:
        samples = Maker().samples(sizes, 3)
        assert torch.equal(pack._pad_on_device(samples, sizes, max(sizes)), combine_data(samples).tensor)


def test_moving_to_another_device(device):
    samples = Maker(dtype=torch.float32).samples([2, 0, 3], 4)
    batch = combine_data(samples, device=device)
    assert batch.device.type == batch.sample_sizes.device.type == device.type
    assert_equal = torch.testing.assert_close
    assert_equal(batch.cpu().tensor, combine_data(samples).tensor)
    assert combine_data(samples, device="meta").sample_sizes.device.type == "meta"
    other = combine_data(samples, other_with_same_sample_sizes=batch)
    assert other.device == batch.device and other.sample_sizes is batch.sample_sizes


def test_the_host_remembers_the_sizes(device):
    batch = combine_data(Maker(device).samples([2, 0, 3], 4))
    for same in (batch, batch.unsqueeze_batch_dim(0), batch.reshape_batch_dims(3, 1), batch.cpu(), batch.float()):
        assert same.layout._host is not None and same.layout.host_sizes() == [2, 0, 3]
    assert pickle.loads(pickle.dumps(batch)).layout._host is not None
    assert batch.repeat_samples(2).layout._host is None
    batch.sample_sizes.copy_(torch.tensor([1, 1, 1]))
    assert batch.total_num_entries == 3 and [len(sample) for sample in batch.split()] == [1, 1, 1]


def test_does_not_synchronise(device):
    if device.type != "cuda":
        pytest.skip("synchronisation is a matter of accelerators")
    host, there = Maker().samples([2, 0, 3], 4), Maker(device).samples([2, 0, 3], 4)
    torch.cuda.set_sync_debug_mode("error")
    try:
        boxes = combine_data(host, device=device)
        combine_data(there, other_with_same_sample_sizes=boxes).split()
        assert combine_data(there).total_num_entries == 5
    finally:
        torch.cuda.set_sync_debug_mode("default")


def squares(samples):
    return (combine_data([samples, 2 * samples[:2]]).tensor ** 2).sum()


def test_derivatives_of_every_kind(device):
    samples = torch.rand(3, 2, dtype=torch.float64, device=device)
    expected = 2 * samples + torch.cat([8 * samples[:2], torch.zeros_like(samples[:1])])
    direction = torch.rand_like(samples)
    assert torch.allclose(torch.func.grad(squares)(samples), expected)
    assert torch.allclose(torch.func.jvp(squares, (samples,), (direction,))[1], (expected * direction).sum())
    assert torch.allclose(torch.func.jacfwd(squares)(samples), expected)
    assert torch.autograd.gradcheck(squares, (samples.requires_grad_(),), check_forward_ad=True)


def test_vmap_over_what_is_packed(device):
    samples = torch.rand(4, 3, 2, device=device)
    mapped = torch.vmap(lambda rows: combine_data([rows, rows[:1]]).tensor)(samples)
    assert torch.equal(mapped, torch.stack([combine_data([rows, rows[:1]]).tensor for rows in samples]))


def test_the_operator_refuses_what_it_cannot_differentiate():
    out = torch.zeros(1, 2)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(torch.ones(2), torch.ones(2))
        with pytest.raises(ValueError, match="no forward-mode derivative"):
            torch.ops.raggedbev.ragged_pack_(out, [dual])


def test_to_the_host_nothing_is_left_to_wait_for(device):
    data = [torch.full((n, 64), float(n), device=device) for n in (300, 0, 200)]
    for samples in (data, [sample.clone().requires_grad_() for sample in data]):
        batch = combine_data(samples, device="cpu")
        assert batch.device.type == "cpu" and batch.tensor.sum((1, 2)).tolist() == [300 * 64 * 300, 0, 200 * 64 * 200]


def test_the_other_batch_has_to_fit():
    other = combine_data([torch.zeros(2), torch.zeros(1)])
    with pytest.raises(ValueError, match="device must be cpu as that of other_with_same_sample_sizes, got meta"):
        combine_data([torch.zeros(2), torch.zeros(1)], other, device="meta")
    with pytest.raises(TypeError, match="must be a RaggedBatch, got Tensor"):
        combine_data([torch.zeros(2), torch.zeros(1)], torch.zeros(2))
