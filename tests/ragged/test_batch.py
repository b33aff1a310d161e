"""The ragged batch: construction, layout changes, filler, conversions."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest
import torch
from torch.utils import _pytree as pytree

from raggedbev.ragged import RaggedBatch, combine_data

CASES = [[0], [0, 0], [5], [2, 0, 3], [1] * 33]
cases = pytest.mark.parametrize("sizes", CASES, ids=str)


def samples(sizes, *shape, dtype=torch.float32):
    g = torch.Generator().manual_seed(sum(sizes))
    return [torch.randn(n, *shape, generator=g).to(dtype) for n in sizes]


def nan_filled(sizes, *shape, extra=1):
    """A batch whose filler is NaN, padded by at least `extra`."""
    length = max(sizes) + extra
    tensor = torch.full((len(sizes), length, *shape), float("nan"))
    for row, sample in zip(tensor, samples(sizes, *shape), strict=True):
        row[: len(sample)] = sample
    return RaggedBatch(tensor, sample_sizes=torch.tensor(sizes))


@cases
def test_combine_and_split_are_inverse(sizes, device):
    data = [x.to(device) for x in samples(sizes, 3, 2)]
    batch = combine_data(data)
    assert batch.shape == (len(sizes), max(sizes), 3, 2) and batch.device.type == device.type
    assert batch.sample_sizes.tolist() == sizes
    assert batch.mask.sum(1).tolist() == sizes
    assert all(torch.equal(a, b) for a, b in zip(batch.split(), data, strict=True))
    assert (batch.tensor[~batch.mask] == 0).all()


@cases
def test_mask_and_sizes_make_each_other(sizes):
    batch = nan_filled(sizes, 2)
    again = RaggedBatch(batch.tensor, mask=batch.mask)
    assert torch.equal(again.sample_sizes, batch.sample_sizes)
    assert batch.total_num_entries == sum(sizes) and batch.total_num_samples_in_batch == len(sizes)


def test_combine_nested_lists():
    a, b, c, d = samples([2, 0, 3, 1], 4)
    nested = combine_data([[a, b], [c, d]], flatten_batch_dims=False)
    assert nested.shape == (2, 2, 3, 4) and nested.sample_sizes.tolist() == [[2, 0], [3, 1]]
    flat = combine_data([[a, b], [c, d]])
    assert flat.shape == (4, 3, 4)
    assert all(
        torch.equal(x, y)
        for row, pair in zip(nested.split(), ((a, b), (c, d)), strict=True)
        for x, y in zip(row, pair, strict=True)
    )


def test_combine_shares_sizes_and_keeps_dtype_of_empty_samples():
    boxes = combine_data(samples([2, 0], 9))
    labels = combine_data([torch.tensor([3, 4]), torch.zeros(0, dtype=torch.long)], other_with_same_sample_sizes=boxes)
    assert labels.sample_sizes is boxes.sample_sizes and labels.mask is boxes.mask
    empty = combine_data([torch.zeros(0, 3, dtype=torch.float64)] * 2)
    assert empty.shape == (2, 0, 3) and empty.dtype == torch.float64
    assert combine_data([torch.zeros(3, 0)]).sample_sizes.tolist() == [3]


def test_combine_is_differentiable():
    data = [x.requires_grad_() for x in samples([2, 0, 1], 2)]
    (combine_data(data).tensor * 3).sum().backward()
    assert all((x.grad == 3).all() for x in data)


@pytest.mark.parametrize(
    "data, message",
    [
        (
            [torch.zeros(2), torch.zeros(2, dtype=torch.long)],
            r"sample 1 must be torch.float32 on cpu like out, got torch.int64",
        ),
        ([torch.zeros(2, 3), torch.zeros(2, 4)], r"sample 1 must be \[at most 2, .*, got \(2, 4\)"),
        ([torch.zeros(2), [torch.zeros(2)]], "one nesting level"),
        ([[torch.zeros(2)], []], "same lengths"),
        ([torch.zeros(())], "at least one dimension"),
        ([], r"at least one sample to know dtype and data shape, got \[\]"),
        ([[], []], r"at least one sample"),
    ],
)
def test_combine_rejects(data, message):
    with pytest.raises(ValueError, match=message):
        combine_data(data)
    with pytest.raises(TypeError, match="list of tensors, got Tensor"):
        combine_data(torch.zeros(2, 2))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "needs mask or sample_sizes"),
        ({"sample_sizes": torch.tensor([1.0, 2.0])}, "integer tensor, got torch.float32"),
        ({"sample_sizes": torch.tensor([1, 4])}, r"\[0, 3\], got values in \[1, 4\]"),
        ({"sample_sizes": torch.tensor([-1, 2])}, r"got values in \[-1, 2\]"),
        ({"sample_sizes": torch.tensor([1])}, r"the batch shape \(1,\) but the tensor is \(2, 3, 4\)"),
        ({"sample_sizes": torch.tensor(1)}, "at least one batch dimension"),
        ({"sample_sizes": torch.tensor([1, 2]), "non_uniform_dim": 3}, r"\[1, 3\), got 3"),
        ({"mask": torch.ones(2, 3)}, "bool tensor"),
        ({"mask": torch.ones(2, 4, dtype=torch.bool)}, r"mask must be \(2, 3\), got \(2, 4\)"),
        ({"mask": torch.tensor([[True, False, True]] * 2)}, "valid entries of each sample first"),
        ({"sample_sizes": torch.zeros(2, dtype=torch.long, device="meta")}, "must be on cpu"),
    ],
)
def test_construction_rejects(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        RaggedBatch(torch.zeros(2, 3, 4), **arguments)


def test_other_constructors():
    full = RaggedBatch.from_full_tensor(torch.zeros(2, 3, 4), non_uniform_dim=2, num_batch_dims=1)
    assert full.sample_sizes.tolist() == [4, 4] and full.non_uniform_dim == 2
    cropped = RaggedBatch.from_oversize_tensor(torch.arange(8).reshape(2, 4), torch.tensor([1, 2]))
    assert cropped.tensor.tolist() == [[0, 1], [4, 5]]
    assert RaggedBatch.from_oversize_tensor(torch.zeros(2, 4), torch.tensor([1, 2]), 3).shape == (2, 3)
    empty = RaggedBatch.empty((2, 3), (9,), torch.float64)
    assert empty.shape == (2, 3, 0, 9) and empty.dtype == torch.float64 and empty.total_num_entries == 0


def test_same_raggedness_is_shared():
    batch = nan_filled([2, 0, 1], 4)
    cost = batch.create_with_sample_sizes_like_self(torch.zeros(3, 7, 3), non_uniform_dim=2)
    assert cost.mask is batch.mask and cost.non_uniform_dim == 2
    with pytest.raises(ValueError, match="dimension 1 must have 3 entries"):
        batch.create_with_sample_sizes_like_self(torch.zeros(3, 7, 3))
    moved = cost.get_non_uniform_dimension_transposed_to(1)
    assert moved.shape == (3, 3, 7) and moved.non_uniform_dim == 1


@pytest.mark.parametrize("dim", [1, 2])
def test_padded_values_and_their_gradients(dim):
    leaf = torch.randn(3, 4, 4, requires_grad=True)
    batch = RaggedBatch(leaf, sample_sizes=torch.tensor([4, 0, 2]), non_uniform_dim=dim)
    outside = ~batch.mask.unsqueeze(3 - dim).expand(3, 4, 4)
    copy = batch.with_padded_set_to(7.0)
    assert (copy.tensor[outside] == 7).all() and torch.equal(copy.tensor[~outside], leaf[~outside])
    copy.tensor.transpose(1, 2).square().sum().backward()
    assert (leaf.grad[outside] == 0).all() and torch.equal(leaf.grad[~outside], 2 * leaf.detach()[~outside])


def test_write_in_place_is_known_to_autograd():
    leaf = torch.randn(2, 3, requires_grad=True)
    batch = RaggedBatch(leaf * 2, sample_sizes=torch.tensor([1, 3]))
    tensor = batch.tensor
    assert batch.set_padded_to(0.0) is batch and batch.tensor is tensor
    tensor.sum().backward()
    assert leaf.grad.tolist() == [[2, 0, 0], [2, 2, 2]]


def test_write_to_a_shared_view_leaves_the_original():
    batch = nan_filled([2, 0], 2).unsqueeze_batch_dim(0).repeat_samples(3, 0)
    assert batch.tensor.stride(0) == 0
    source = batch.tensor
    batch.set_padded_to(1.0)
    assert batch.tensor.isfinite().all() and source.isnan().any()


def test_layers_become_a_batch_dimension():
    batch = nan_filled([2, 0, 1], 4)
    layers = batch.unsqueeze_batch_dim(0).repeat_samples(6, 0)
    assert layers.shape == (6, 3, 3, 4) and layers.non_uniform_dim == 2
    assert layers.tensor.data_ptr() == batch.tensor.data_ptr()
    assert layers.sample_sizes.tolist() == [[2, 0, 1]] * 6
    flat = layers.flatten_batch_dims()
    assert flat.batch_shape == (18,) and flat.non_uniform_dim == 1
    assert flat.reshape_batch_dims(6, -1).batch_shape == (6, 3)
    assert flat.reshape_batch_dims((6, 3)).non_uniform_dim == 2
    assert layers.reshape_batch_dims(1, 18).squeeze_batch_dim(0).batch_shape == (18,)
    twice = batch.repeat_samples(2)
    assert twice.sample_sizes.tolist() == [2, 0, 1, 2, 0, 1] and twice.shape == (6, 3, 4)
    for wrong in (
        lambda: batch.squeeze_batch_dim(0),
        lambda: batch.reshape_batch_dims(2, 2),
        lambda: batch.unsqueeze_batch_dim(3),
    ):
        with pytest.raises(ValueError):
            wrong()


def test_broadcasting_batch_dimensions():
    a = nan_filled([2, 1]).unsqueeze_batch_dim(0)
    b = nan_filled([3, 0]).unsqueeze_batch_dim(1)
    x, y = RaggedBatch.broadcast_batch_dims([a, b])
    assert x.batch_shape == y.batch_shape == (2, 2)
    assert x.sample_sizes.tolist() == [[2, 1], [2, 1]] and y.sample_sizes.tolist() == [[3, 3], [0, 0]]


def test_data_dimensions():
    batch = nan_filled([2, 0, 1], 4)
    assert batch.unsqueeze_data_dim(1).non_uniform_dim == 2
    assert batch.unsqueeze_data_dim(-1).shape == (3, 3, 4, 1)
    with pytest.raises(ValueError, match=r"\[1, 4\), got 0"):
        batch.unsqueeze_data_dim(0)


def test_apply_passes_what_is_asked_for():
    batch = nan_filled([2, 0, 1], 4)
    assert batch.apply(torch.zeros_like).tensor.eq(0).all()
    assert batch.apply(torch.relu).mask is batch.mask
    assert batch.apply(torch.nn.Linear(4, 2)).shape == (3, 3, 2)
    masked = batch.apply(lambda tensor, mask: tensor.masked_fill(~mask.unsqueeze(-1), 0))
    assert masked.tensor.isfinite().all()
    first, sizes = batch.apply(lambda t, m, s: (t[..., 0], s.unsqueeze(1).expand(m.shape)))
    assert first.shape == (3, 3) and sizes.tensor[:, 0].tolist() == [2, 0, 1]
    assert batch.apply(lambda tensor, factor=2: tensor * factor).shape == batch.shape


def test_existence_weights():
    batch = nan_filled([2, 0, 1], 4)
    assert batch.get_existence_weights().tolist() == [[[1], [1], [0]], [[0]] * 3, [[1], [0], [0]]]
    moved = batch.get_non_uniform_dimension_transposed_to(2)
    assert moved.get_existence_weights(torch.float64).shape == (3, 1, 3)


def test_conversions():
    batch = combine_data([torch.tensor([1.5, 0.0]), torch.tensor([2.0])])
    for name, dtype in (
        ("float", torch.float32), ("half", torch.float16), ("bfloat16", torch.bfloat16), ("double", torch.float64),
        ("int", torch.int32), ("long", torch.int64), ("bool", torch.bool),
    ):  # fmt: skip
        converted = getattr(batch, name)()
        assert converted.dtype == dtype and converted.sample_sizes is batch.sample_sizes
    assert batch.to("meta").sample_sizes.device.type == "meta"
    assert batch.to_device("cpu").to_dtype(torch.float64).cpu().dtype == torch.float64


def test_it_behaves_like_a_tensor():
    batch = nan_filled([2, 0], 3)
    assert len(batch) == 2 and batch.size(1) == 3 and batch.size() == batch.shape and batch.dim() == 3
    assert [row.shape for row in batch] == [(3, 3)] * 2
    batch[0, 0] = 1.0
    assert batch[0, 0].tolist() == [1, 1, 1]
    assert "sample_sizes=tensor([2, 0])" in repr(batch)
    assert not batch.detach().requires_grad


def test_pickle_and_pytree():
    batch = nan_filled([2, 0], 3)
    again = pickle.loads(pickle.dumps(batch))
    assert torch.equal(again.sample_sizes, batch.sample_sizes) and torch.equal(again.mask, batch.mask)
    leaves, spec = pytree.tree_flatten({"gt": batch})
    doubled = pytree.tree_unflatten([leaves[0] * 2, leaves[1]], spec)["gt"]
    assert isinstance(doubled, RaggedBatch) and torch.equal(doubled.mask, batch.mask)
    assert isinstance(pytree.tree_unflatten([SimpleNamespace(), None], pytree.tree_structure(batch)), RaggedBatch)


def test_compiles_without_a_graph_break():
    @torch.compile(fullgraph=True, backend="eager")
    def fn(tensor, sizes):
        batch = RaggedBatch(tensor, sample_sizes=sizes).unsqueeze_batch_dim(0).repeat_samples(2, 0)
        return batch.with_padded_set_to(0.0).tensor.sum((2, 3))

    out = fn(torch.ones(3, 4, 2), torch.tensor([4, 0, 1]))
    assert out.tolist() == [[8, 0, 2]] * 2
