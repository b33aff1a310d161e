"""Index helpers against loops over samples: values, gradients, degenerate input."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from raggedbev.ragged import (
    RaggedBatch,
    apply_mask_to_tensor,
    average_over_targets,
    batched_bool_indexing,
    batched_bool_indexing_write,
    batched_index_mapping,
    batched_indexing_access,
    batched_indexing_write,
    batched_inverse_indexing_access,
    combine_data,
    get_compact_from_named_tuple,
    get_compact_lists,
    get_indices_from_mask,
    get_mask_from_indices,
    squeeze_except_batch_and_sample,
    sum_over_targets,
)

SIZES = [[0], [0, 0], [5], [2, 0, 3], [1] * 33]
index_dtypes = pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
NUM = 6


def make_indices(sizes, index_dtype, device, unique=False):
    g = torch.Generator().manual_seed(len(sizes))
    rows = [torch.randperm(NUM, generator=g)[:n] if unique else torch.randint(0, NUM, (n,), generator=g) for n in sizes]
    return combine_data([row.to(device, index_dtype) for row in rows])


def data_tensor(batch, device, dtype=torch.float64, num=NUM, width=2):
    g = torch.Generator().manual_seed(7)
    return torch.randn(batch, num, width, generator=g, dtype=torch.float64).to(device, dtype)


@index_dtypes
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_access(sizes, index_dtype, device):
    data, indices = data_tensor(len(sizes), device).requires_grad_(), make_indices(sizes, index_dtype, device)
    out = batched_indexing_access(data, indices, filler=-3.0)
    assert out.shape == (len(sizes), max(sizes), 2)
    expected = torch.full_like(out.tensor, -3.0)
    for b, n in enumerate(sizes):
        expected[b, :n] = data[b, indices[b, :n].long()]
    assert torch.equal(out.tensor, expected)
    weights = torch.randn_like(expected)
    grads = [torch.autograd.grad((t * weights).sum(), data, retain_graph=True)[0] for t in (out.tensor, expected)]
    torch.testing.assert_close(*grads, rtol=0, atol=0)


def test_access_in_another_dimension_and_several_batch_dimensions():
    data = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    indices = torch.tensor([[[0, 4], [1, 1], [2, 9]], [[4, 3], [-1, 0], [0, 0]]])
    out = batched_indexing_access(data, indices, filler=-1, dim_to_index_in=3)
    for i in range(2):
        for j in range(3):
            for k in range(2):
                value = int(indices[i, j, k])
                wanted = data[i, j, :, value] if 0 <= value < 5 else torch.full((4,), -1.0)
                assert torch.equal(out[i, j, :, k], wanted)


def test_access_never_reads_filler():
    data = RaggedBatch(torch.full((2, 3), float("nan")), sample_sizes=torch.tensor([0, 2]))
    data[1, :2] = 1.0
    out = batched_indexing_access(data, torch.tensor([[0, 2], [1, 2]]))
    assert out.tolist() == [[0, 0], [1, 0]]


def test_access_of_nothing_and_by_nothing():
    assert batched_indexing_access(torch.zeros(2, 0, 3), torch.zeros(2, 4, dtype=torch.long), filler=5).eq(5).all()
    assert batched_indexing_access(torch.zeros(2, 4, 3), torch.zeros(2, 0, dtype=torch.long)).shape == (2, 0, 3)
    assert batched_indexing_access(torch.zeros(0, 4, 3), torch.zeros(0, 2, dtype=torch.long)).shape == (0, 2, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gradients_add_up_in_float32(dtype):
    data = torch.zeros(1, 2, 1, dtype=dtype, requires_grad=True)
    batched_indexing_access(data, torch.zeros(1, 4097, dtype=torch.long)).sum().backward()
    assert data.grad.flatten().tolist() == [float(torch.tensor(4097.0).to(dtype)), 0]


def test_gradcheck():
    indices = RaggedBatch(torch.tensor([[0, 2, 2], [1, 0, 0]]), sample_sizes=torch.tensor([3, 1]))
    data = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    into = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)
    functions = {
        "access": lambda d, i: batched_indexing_access(d, indices).tensor,
        "inverse": lambda d, i: batched_inverse_indexing_access(d, indices, 4),
        "write": lambda d, i: batched_indexing_write(d, indices, i),
        "mapping": lambda d, i: batched_index_mapping(d, indices, indices, i),
    }
    for fn in functions.values():
        assert torch.autograd.gradcheck(fn, (data, into))
        assert torch.autograd.gradgradcheck(fn, (data, into))


@index_dtypes
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_inverse_write_and_mapping(sizes, index_dtype, device):
    """Against loops, in which a later entry overwrites an earlier one."""
    indices = make_indices(sizes, index_dtype, device)
    targets = make_indices(sizes, index_dtype, device)
    data = data_tensor(len(sizes), device, num=max(sizes))
    source, into = data_tensor(len(sizes), device), -data_tensor(len(sizes), device)
    inverse, written, mapped = torch.full_like(into, 9.0), into.clone(), into.clone()
    for b, n in enumerate(sizes):
        for j in range(n):
            inverse[b, int(indices[b, j])] = data[b, j]
            written[b, int(indices[b, j])] = data[b, j]
            mapped[b, int(targets[b, j])] = source[b, int(indices[b, j])]
    assert torch.equal(batched_inverse_indexing_access(data, indices, NUM, filler=9.0), inverse)
    assert torch.equal(batched_indexing_write(data, indices, into), written)
    assert torch.equal(batched_index_mapping(source, indices, targets, into), mapped)


def test_write_gradient_goes_to_the_last_writer_only():
    to_write, into = torch.ones(1, 3, requires_grad=True), torch.ones(1, 3, requires_grad=True)
    out = batched_indexing_write(to_write, torch.tensor([[1, 1, 5]]), into)
    out.sum().backward()
    assert to_write.grad.tolist() == [[0, 1, 0]] and into.grad.tolist() == [[1, 0, 1]]


def test_write_into_a_ragged_batch_stays_inside_its_samples():
    into = RaggedBatch(torch.zeros(2, 3), sample_sizes=torch.tensor([1, 3]))
    out = batched_indexing_write(torch.ones(2, 2), torch.tensor([[0, 2], [0, 2]]), into)
    assert isinstance(out, RaggedBatch) and out.tensor.tolist() == [[1, 0, 0], [1, 0, 1]]


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float16])
def test_other_data_types(dtype):
    data = torch.tensor([[1, 0, 1]]).to(dtype)
    out = batched_indexing_access(data, torch.tensor([[2, 1, 0, 0]]))
    assert out.dtype == dtype and out.tolist() == data[:, [2, 1, 0, 0]].tolist()
    back = batched_inverse_indexing_access(data, torch.tensor([[4, 0, 2]]), 5)
    assert back.dtype == dtype and back.long().tolist() == [[0, 0, 1, 0, 1]]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_masks_and_indices(sizes, device):
    indices = make_indices(sizes, torch.int64, device, unique=True)
    mask = get_mask_from_indices(NUM, indices)
    assert mask.sum(1).tolist() == indices.sample_sizes.tolist()
    again = get_indices_from_mask(mask)
    wanted = [sorted(row.tolist()) for row in indices.split()]
    assert [row.tolist() for row in again.split()] == wanted
    wide = get_indices_from_mask(mask, max_num=NUM + 1)
    assert wide.shape[1] == NUM + 1 and [row.tolist() for row in wide.split()] == wanted
    assert [row.tolist() for row in get_indices_from_mask(mask, max_num=1).split()] == [row[:1] for row in wanted]


@pytest.mark.parametrize("sizes", [*SIZES, []], ids=str)
def test_bool_indexing_and_its_inverse(sizes, device):
    data = data_tensor(len(sizes), device)
    mask = data[..., 0] > 0
    found = batched_bool_indexing(data, mask)
    assert all(torch.equal(row, data[b][mask[b]]) for b, row in enumerate(found.split()))
    again = batched_bool_indexing_write(found, mask, torch.zeros_like(data))
    assert torch.equal(again, data * mask.unsqueeze(-1))


def test_bool_indexing_ignores_filler():
    data = RaggedBatch(torch.arange(6.0).reshape(2, 3), sample_sizes=torch.tensor([1, 2]))
    found = batched_bool_indexing(data, torch.ones(2, 3, dtype=torch.bool))
    assert [row.tolist() for row in found.split()] == [[0], [3, 4]]
    written = batched_bool_indexing_write(found, torch.ones(2, 3, dtype=torch.bool), data.with_padded_set_to(9.0))
    assert written.tensor.tolist() == [[0, 9, 9], [3, 4, 9]]


@pytest.mark.parametrize("value", [-1, 3])
def test_debug_mode_names_the_entry(monkeypatch, value):
    indices = torch.tensor([[0, 1], [2, value]])
    assert batched_indexing_access(torch.ones(2, 3), indices).tolist() == [[1, 1], [1, 0]]
    monkeypatch.setattr("raggedbev.ragged.batch._DEBUG", True)
    with pytest.raises(IndexError, match=f"indices of sample 1, entry 1: {value} is out of range"):
        batched_indexing_access(torch.ones(2, 3), indices)
    ragged = RaggedBatch(indices, sample_sizes=torch.tensor([2, 1]))
    assert batched_indexing_access(torch.ones(2, 3), ragged).tensor.tolist() == [[1, 1], [1, 0]]


def test_wrong_input_is_named():
    with pytest.raises(TypeError, match=r"int32 or int64, got torch\.float32"):
        batched_indexing_access(torch.zeros(2, 3), torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"batch shape \(2,\) of the indices .*, got \(3, 3\)"):
        batched_indexing_access(torch.zeros(3, 3), torch.zeros(2, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="same number of entries, got 3 and 1"):
        batched_inverse_indexing_access(torch.zeros(2, 3), torch.zeros(2, 1, dtype=torch.long), 4)
    with pytest.raises(ValueError, match=r"must have the dtype torch.float32, got torch.float64"):
        batched_indexing_write(torch.zeros(2, 1).double(), torch.zeros(2, 1, dtype=torch.long), torch.zeros(2, 4))


@pytest.mark.parametrize("dim", [1, 2])
def test_reductions_see_valid_entries_only(dim, device):
    tensor = torch.full((3, 2, 2), float("nan"), device=device)
    batch = RaggedBatch(tensor, sample_sizes=torch.tensor([2, 0, 1], device=device), non_uniform_dim=dim)
    valid = batch.mask.unsqueeze(3 - dim).expand(3, 2, 2)
    tensor[valid] = torch.arange(1.0, 7.0, device=device)
    rows = tensor.movedim(dim, 1)
    total = torch.stack([rows[0].sum(0), torch.zeros(2, device=device), rows[2, 0]])
    assert torch.equal(sum_over_targets(batch), total)
    assert torch.equal(average_over_targets(batch), total / torch.tensor([[2.0], [1.0], [1.0]], device=device))
    assert average_over_targets(batch, nans_to_zero=False)[1].isnan().all()


def test_genuine_nan_stays_and_its_neighbours_gradients_are_clean():
    leaf = torch.tensor([[1.0, float("nan")], [2.0, float("nan")]], requires_grad=True)
    batch = RaggedBatch(leaf, sample_sizes=torch.tensor([2, 1]))
    out = average_over_targets(batch)
    assert out[0].isnan() and out[1] == 2
    out[1].backward()
    assert leaf.grad.tolist() == [[0, 0], [1, 0]]


def test_half_precision_sums_in_float32():
    batch = RaggedBatch.from_full_tensor(torch.ones(1, 4096, dtype=torch.bfloat16))
    assert sum_over_targets(batch).item() == 4096 and average_over_targets(batch).item() == 1
    assert sum_over_targets(batch).dtype == torch.bfloat16
    assert sum_over_targets(batch.bool()).item() == 4096
    with pytest.raises(TypeError, match="floating-point"):
        average_over_targets(batch.long())


def test_small_conveniences():
    assert apply_mask_to_tensor(torch.ones(2, 2, 3), torch.tensor([[True, False], [False, True]]), 5).sum() == 36
    batch = combine_data([torch.ones(1, 1, 3), torch.ones(1, 1, 3)])
    squeezed = squeeze_except_batch_and_sample(batch)
    assert squeezed.shape == (2, 1, 3) and squeezed.non_uniform_dim == 1
    boxes, labels = combine_data([torch.ones(2, 3), torch.ones(0, 3)]), combine_data([torch.ones(2), torch.ones(0)])
    assert [[len(x) for x in rows] for rows in get_compact_lists(boxes, labels)] == [[2, 0], [2, 0]]

    class Truth(NamedTuple):
        boxes: RaggedBatch
        name: str

    compact = get_compact_from_named_tuple(Truth(boxes, "a"))
    assert [len(x) for x in compact.boxes] == [2, 0] and compact.name == "a"


def test_compiles_without_a_graph_break():
    @torch.compile(fullgraph=True, backend="eager")
    def fn(data, index, sizes):
        indices = RaggedBatch(index, sample_sizes=sizes)
        found = batched_indexing_access(data, indices)
        return sum_over_targets(found) + batched_inverse_indexing_access(found, indices, 3).sum(1)

    out = fn(torch.ones(2, 3), torch.tensor([[0, 1], [2, 2]]), torch.tensor([2, 1]))
    assert out.tolist() == [4, 2]
