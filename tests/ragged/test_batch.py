"""The ragged batch: construction, layout changes, filler, conversions."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cases import SIZES, Maker, batch_shapes
from torch.utils import _pytree as pytree

from raggedbev.ragged import RaggedBatch, average_over_targets, combine_data, get_indices_from_mask, layout

cases = pytest.mark.parametrize("sizes", SIZES, ids=str)


def nan_filled(sizes, *shape):
    """A batch whose filler is NaN, padded by one more than needed."""
    return Maker(dtype=torch.float32).ragged(sizes, (len(sizes),), *shape)


@cases
def test_mask_and_sizes_make_each_other(sizes):
    batch = nan_filled(sizes, 2)
    again = RaggedBatch(batch.tensor, mask=batch.mask)
    assert torch.equal(again.sample_sizes, batch.sample_sizes)
    assert batch.total_num_entries == sum(sizes) and batch.total_num_samples_in_batch == len(sizes)


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
        ({"sample_sizes": [1, 2]}, "sample_sizes must be a tensor, got list"),
        ({"mask": torch.ones(2, 4, dtype=torch.bool)}, r"mask must be \(2, 3\), got \(2, 4\)"),
        ({"mask": torch.tensor([[True, False, True]] * 2)}, "valid entries of each sample first"),
        ({"sample_sizes": torch.zeros(2, dtype=torch.long, device="meta")}, "must be on cpu"),
    ],
)
def test_construction_rejects(arguments, message):
    wrong_kind = message.endswith(("torch.float32", "bool tensor", "got list"))
    with pytest.raises(TypeError if wrong_kind else ValueError, match=message):
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


def test_bad_tensors_are_named():
    batch, sizes = nan_filled([2, 0], 3), torch.tensor([1, 2])
    for wrong, error, message in (
        (lambda: RaggedBatch([[1.0]], sample_sizes=sizes), TypeError, "tensor must be a tensor, got list"),
        (lambda: batch.apply(lambda t: [t]), TypeError, "tensor must be a tensor, got list"),
        (lambda: batch.apply(lambda t: t[:1]), ValueError, r"start with the batch shape \(2,\), got \(1, 3, 3\)"),
        (lambda: RaggedBatch.from_full_tensor(torch.zeros(2, 3), 2), ValueError, r"\[1, 2\), got 2"),
        (lambda: RaggedBatch.from_full_tensor(torch.zeros(2, 3), 1, 2), ValueError, r"num_batch_dims .* got 2"),
        (lambda: RaggedBatch.from_oversize_tensor(torch.zeros(2, 1), sizes), ValueError, r"\[0, 1\], got 2"),
        (lambda: RaggedBatch.from_oversize_tensor(torch.zeros(2), sizes), ValueError, r"non_uniform_dim .* got 1"),
        (lambda: batch.create_with_sample_sizes_like_self(batch.tensor.to("meta")), ValueError, "cpu .* got meta"),
        (lambda: batch.repeat_samples(-1), ValueError, "must not be negative, got -1"),
        (lambda: batch.repeat_samples([1, 2]), ValueError, "same length, got 2 and 1"),
        (lambda: batch.broadcast_batch_dims_to_shape(3), ValueError, r"\(2,\) cannot be broadcast to \(3,\)"),
        (lambda: batch.broadcast_batch_dims_to_shape(()), ValueError, r"\(2,\) cannot be broadcast to \(\)"),
        (lambda: RaggedBatch.broadcast_batch_dims([]), ValueError, "at least one batch, got none"),
        (lambda: RaggedBatch.broadcast_batch_dims([batch, nan_filled([1] * 3)]), ValueError, r"\(2,\), \(3,\)"),
    ):
        with pytest.raises(error, match=message):
            wrong()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda b: RaggedBatch(b[:, 0, 0], sample_sizes=b.sample_sizes), ValueError, r"\[\*batch, N, ...\] .* \(3,\)"),
        (lambda b: RaggedBatch(b.tensor, b.mask, non_uniform_dim=1.5), TypeError, "must be an integer, got 1.5"),
        (lambda b: RaggedBatch.from_full_tensor(torch.zeros(())), ValueError, "more dimensions than the tensor has"),
        (lambda b: RaggedBatch.from_oversize_tensor(b.tensor, b.tensor[:, 0, 0]), TypeError, "float32"),
        (lambda b: b.repeat_samples(2.5), TypeError, "must be an integer or a sequence of integers, got 2.5"),
        (lambda b: b.repeat_samples([2, 3], [0, 0]), ValueError, r"each dimension once, got \[0, 0\]"),
        (lambda b: b.reshape_batch_dims(2.0), TypeError, "got 2.0"),
        (lambda b: b.reshape_batch_dims(), ValueError, r"batch shape \(\)"),
        (lambda b: b.unsqueeze_data_dim(-9), ValueError, "got -9"),
        (lambda b: RaggedBatch.empty(2.5), TypeError, "got 2.5"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call(nan_filled([2, 0, 1], 2))


def test_numpy_integers_are_integers():
    assert nan_filled([2, 0], 2).repeat_samples(np.int64(2)).batch_shape == (4,)


def test_a_wrong_mask_is_shown():
    mask = torch.tensor([[True, True, False], [False, True, False]])
    with pytest.raises(ValueError, match=r"sample 1 has \[0, 1, 0\], expected \[1, 0, 0\]"):
        RaggedBatch(torch.zeros(2, 3), mask=mask)
    with pytest.raises(ValueError, match=r"sample 0 has \[1, 1, 0\], expected \[1, 0, 0\]"):
        RaggedBatch(torch.zeros(2, 3), mask=mask, sample_sizes=torch.tensor([1, 1]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_sizes_of_any_integer_type(dtype):
    batch = RaggedBatch(torch.zeros(2, 3), sample_sizes=torch.tensor([2, 0], dtype=dtype))
    assert batch.sample_sizes.dtype == torch.int64 and batch.sample_sizes.tolist() == [2, 0]


@cases
def test_split_of_several_batch_dimensions(sizes, device):
    for shape in batch_shapes(len(sizes)):
        batch = Maker(device).ragged(sizes, shape, 2, before=(3,))
        samples = batch.split()
        for _ in shape[1:]:
            samples = [sample for inner in samples for sample in inner]
        assert [sample.shape[1] for sample in samples] == sizes
        flat = batch.flatten_batch_dims()
        assert all(torch.equal(sample, row[:, :n]) for sample, row, n in zip(samples, flat, sizes, strict=True))
    assert RaggedBatch.empty((2, 0)).split() == [[], []]


def test_split_reads_the_sizes_once(device):
    batch = nan_filled([2, 0, 1]).unsqueeze_batch_dim(0).to(device)
    reads = []

    class Counting(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            reads.extend([func.__name__] * (func in (torch.Tensor.tolist, torch.Tensor.item, torch.Tensor.__int__)))
            return func(*args, **(kwargs or {}))

    with Counting():
        batch.split()
    assert reads == ["tolist"]


def test_the_mask_follows_sizes_that_are_overwritten():
    sizes = torch.tensor([2, 0])
    batch = RaggedBatch(torch.zeros(2, 3), sample_sizes=sizes)
    first = batch.mask
    assert batch.mask is first
    sizes.copy_(torch.tensor([1, 3]))
    assert batch.mask.int().tolist() == [[1, 0, 0], [1, 1, 1]]
    again = RaggedBatch(batch.tensor, mask=batch.mask)
    assert again.sample_sizes is again.sample_sizes
    again.mask.fill_(True)
    assert again.sample_sizes.tolist() == [3, 3]


def test_a_mask_made_in_inference_mode_is_usable_outside():
    batch = RaggedBatch(torch.ones(2, 3, requires_grad=True), sample_sizes=torch.tensor([1, 2]))
    with torch.inference_mode():
        assert batch.mask.sum() == 3
        inside = RaggedBatch(torch.ones(2, 3), sample_sizes=torch.tensor([1, 2]))
        assert inside.mask.sum() == 3 and inside.set_padded_to(0).tensor.sum() == 3
    assert not batch.mask.is_inference()
    torch.where(batch.mask, batch.tensor, 0.0).sum().backward()


def test_sizes_that_a_graph_writes_are_never_remembered(monkeypatch, device):
    """What a CUDA graph computes changes with every replay, uncounted."""
    sizes = torch.tensor([2, 0], device=device)
    monkeypatch.setattr(layout, "_is_capturing", lambda value: value is sizes)
    batch = RaggedBatch(torch.ones(2, 3, device=device), sample_sizes=sizes).unsqueeze_batch_dim(0)
    monkeypatch.undo()
    for replay in ([2, 0], [1, 3]):
        sizes.data.copy_(torch.tensor(replay, device=device))
        assert batch.mask.sum(-1).tolist() == [replay] and batch.total_num_entries == sum(replay)
        assert [len(sample) for sample in batch.split()[0]] == replay
        assert average_over_targets(batch).tolist() == [[float(size > 0) for size in replay]]


def test_a_batch_from_a_capture_is_read_anew_after_each_replay(device):
    if device.type != "cuda":
        pytest.skip("CUDA graphs")
    mask = torch.tensor([[True, False, True], [False, False, False]], device=device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        batch = get_indices_from_mask(mask, 3)
    for chosen in ([[1, 0, 1], [0, 0, 0]], [[1, 0, 0], [1, 1, 1]]):
        mask.copy_(torch.tensor(chosen, device=device))
        graph.replay()
        assert batch.mask.sum(1).tolist() == [sum(row) for row in chosen]
        assert [len(sample) for sample in batch.split()] == [sum(row) for row in chosen]


def test_split_gives_views_of_several_batch_dimensions():
    batch = nan_filled([2, 0, 1], 2)
    views = batch.unsqueeze_batch_dim(0).repeat_samples(6, 0).split()
    assert {view.untyped_storage().data_ptr() for view in views[5] if len(view)} == {
        batch.tensor.untyped_storage().data_ptr()
    }
    views[5][0].fill_(7)
    assert (batch.tensor[0, :2] == 7).all()


class Masker(torch.nn.Module):
    def forward(self, tensor, mask):
        return tensor * mask.unsqueeze(-1)


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize(
    "wrap",
    [
        lambda module: torch.compile(module, backend="eager"),
        torch.nn.DataParallel,
        torch.jit.script,
        lambda module: torch.jit.script(mask_function),
    ],
)
def test_apply_looks_through_wrappers(wrap):
    batch = nan_filled([2, 0, 1], 4)
    applied = batch.apply(wrap(Masker())).with_padded_set_to(0)
    assert torch.equal(applied.tensor, batch.with_padded_set_to(0).tensor)


def mask_function(tensor, mask):
    return tensor * mask.unsqueeze(-1)


class Doubler(torch.nn.Module):
    def forward(self, *inputs):
        return inputs[0] * 2


@pytest.mark.parametrize(
    "fn, factor",
    [
        (Doubler(), 2),
        (torch.abs, 1),
        (torch.Tensor.abs, 1),
        (functools.partial(torch.mul, other=2), 2),
        (functools.partial(lambda factor, tensor, mask: tensor * factor, 3), 3),
        (lambda *tensors: tensors[0] * len(tensors), 1),
        (lambda tensor, **options: tensor * (1 + len(options)), 1),
        (lambda tensor, *, factor=4: tensor * factor, 4),
        (SimpleNamespace(call=lambda tensor, mask, sizes: tensor * 5).call, 5),
    ],
)
def test_apply_takes_any_callable(fn, factor):
    batch = nan_filled([2, 0, 1], 4)
    applied = batch.apply(fn)
    assert torch.equal(applied.with_padded_set_to(0).tensor, batch.with_padded_set_to(0).tensor * factor)
    assert applied.layout is batch.layout


def test_apply_keeps_the_ragged_dimension_of_every_result():
    batch = nan_filled([2, 0, 1], 4).get_non_uniform_dimension_transposed_to(2)
    results = batch.apply(lambda tensor: (tensor, tensor.abs()))
    assert isinstance(results, tuple) and all(result.non_uniform_dim == 2 for result in results)


def test_copies_and_files():
    leaf = torch.randn(2, 3, requires_grad=True)
    boxes = RaggedBatch(leaf, sample_sizes=torch.tensor([2, 0]))
    pair = {"boxes": boxes, "more": boxes.create_with_sample_sizes_like_self(torch.zeros(2, 3, 4))}
    file = io.BytesIO()
    torch.save(pair, file)
    file.seek(0)
    for again in (
        pickle.loads(pickle.dumps(pair)),
        copy.deepcopy(pair),
        torch.load(file, weights_only=True),
    ):
        assert torch.equal(again["boxes"].tensor, leaf) and again["boxes"].requires_grad
        assert again["boxes"].layout is again["more"].layout and again["boxes"].layout is not boxes.layout
        assert again["boxes"].sample_sizes.tolist() == [2, 0]
    assert copy.copy(boxes).tensor is leaf and copy.copy(boxes).layout is boxes.layout
    by_mask = RaggedBatch(leaf.detach(), mask=boxes.mask)
    assert torch.equal(pickle.loads(pickle.dumps(by_mask)).mask, boxes.mask)


def test_pytree_keeps_the_raggedness_of_what_it_is_given():
    batch = nan_filled([2, 0], 3).get_non_uniform_dimension_transposed_to(2)
    (tensor_path, _), (sizes_path, _) = pytree.tree_flatten_with_path(batch)[0]
    assert (pytree.keystr(tensor_path), pytree.keystr(sizes_path)) == (".tensor", ".sample_sizes")
    names = pytree.tree_map(lambda leaf: str(leaf.dtype), batch)
    assert pytree.tree_leaves(names) == ["torch.float32", "torch.int64"]
    assert pytree.tree_structure(names) == pytree.tree_structure(batch)
    layers = batch.unsqueeze_batch_dim(0).repeat_samples(4, 0)
    doubled = torch.vmap(lambda b: b.with_padded_set_to(1.0))(layers)
    assert doubled.batch_shape == (4, 2) and doubled.non_uniform_dim == 3
    assert torch.equal(doubled.tensor, layers.with_padded_set_to(1.0).tensor)


def test_moving_without_blocking(device):
    batch = nan_filled([2, 0], 3)
    for moved in (batch.to(device, non_blocking=True), batch.to(device, torch.float64, True), batch.to(batch.tensor)):
        assert torch.equal(moved.sample_sizes.cpu(), batch.sample_sizes)
    if device.type == "cuda":
        pinned = batch.pin_memory()
        assert pinned.tensor.is_pinned() and pinned.sample_sizes.is_pinned()


def test_methods_compile_into_one_graph():
    def fn(batch):
        layers = batch.unsqueeze_batch_dim(0).repeat_samples(2, 0).flatten_batch_dims().reshape_batch_dims(2, -1)
        first, second = RaggedBatch.broadcast_batch_dims([layers, batch])
        first = first.apply(torch.abs).to(torch.float64).set_padded_to(1.0)
        weights = second.get_existence_weights(torch.float64)
        return first.create_with_sample_sizes_like_self(first.tensor * weights, first.non_uniform_dim)

    batch = nan_filled([2, 0, 1], 3)
    compiled, eager = torch.compile(fn, fullgraph=True, backend="aot_eager")(batch), fn(batch)
    assert torch.equal(compiled.tensor.nan_to_num(9), eager.tensor.nan_to_num(9)) and compiled.batch_shape == (2, 3)
    assert torch.equal(compiled.mask, eager.mask)


def test_members_do_not_synchronise(device):
    if device.type != "cuda":
        pytest.skip("synchronisation is a matter of accelerators")
    tensor, sizes = torch.ones(3, 4, 2, device=device), torch.tensor([4, 0, 1], device=device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = RaggedBatch(tensor, sample_sizes=sizes).unsqueeze_batch_dim(0).repeat_samples(2, 0)
        batch.set_padded_to(0.0).with_padded_set_to(1.0).get_existence_weights()
        assert batch.mask.shape == (2, 3, 4) and len(batch) == 2 and batch.total_num_samples_in_batch == 6
        RaggedBatch(tensor, mask=batch.mask[0]).apply(lambda t, m, s: t).float().detach()
        RaggedBatch.from_full_tensor(tensor)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_mask_made_before_capture_is_not_baked_in(device):
    if device.type != "cuda":
        pytest.skip("CUDA graphs")
    sizes = torch.tensor([4, 0, 1], device=device)
    batch = RaggedBatch(torch.ones(3, 4, device=device), sample_sizes=sizes)
    assert batch.mask.sum() == 5
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        total = batch.mask.sum()
    sizes.copy_(torch.tensor([1, 1, 1], device=device))
    graph.replay()
    assert total.item() == 3 and batch.mask.sum() == 3
