"""Index helpers and reductions: what the generic tests of test_helpers.py do not spell out."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from raggedbev import ragged
from raggedbev.ragged import (
    RaggedBatch,
    apply_mask_to_tensor,
    average_over_targets,
    batched_bool_indexing,
    batched_bool_indexing_write,
    batched_indexing_access,
    batched_indexing_write,
    batched_inverse_indexing_access,
    get_mask_from_indices,
    reference,
    sum_over_targets,
)
from raggedbev.ragged.layout import Layout


def test_access_never_reads_filler():
    data = RaggedBatch(torch.full((2, 3), float("nan")), sample_sizes=torch.tensor([0, 2]))
    data[1, :2] = 1.0
    out = batched_indexing_access(data, torch.tensor([[0, 2], [1, 2]]))
    assert out.tolist() == [[0, 0], [1, 0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gradients_add_up_in_float32(dtype):
    data = torch.zeros(1, 2, 1, dtype=dtype, requires_grad=True)
    batched_indexing_access(data, torch.zeros(1, 4097, dtype=torch.long)).sum().backward()
    assert data.grad.flatten().tolist() == [float(torch.tensor(4097.0).to(dtype)), 0]


def test_write_gradient_goes_to_the_last_writer_only():
    to_write, into = torch.ones(1, 3, requires_grad=True), torch.ones(1, 3, requires_grad=True)
    out = batched_indexing_write(to_write, torch.tensor([[1, 1, 5]]), into)
    out.sum().backward()
    assert to_write.grad.tolist() == [[0, 1, 0]] and into.grad.tolist() == [[1, 0, 1]]


def test_write_into_a_ragged_batch_stays_inside_its_samples():
    into = RaggedBatch(torch.zeros(2, 3), sample_sizes=torch.tensor([1, 3]))
    out = batched_indexing_write(torch.ones(2, 2), torch.tensor([[0, 2], [0, 2]]), into)
    assert isinstance(out, RaggedBatch) and out.tensor.tolist() == [[1, 0, 0], [1, 0, 1]]


def test_bool_indexing_ignores_filler():
    data = RaggedBatch(torch.arange(6.0).reshape(2, 3), sample_sizes=torch.tensor([1, 2]))
    found = batched_bool_indexing(data, torch.ones(2, 3, dtype=torch.bool))
    assert [row.tolist() for row in found.split()] == [[0], [3, 4]]
    written = batched_bool_indexing_write(found, torch.ones(2, 3, dtype=torch.bool), data.with_padded_set_to(9.0))
    assert written.tensor.tolist() == [[0, 9, 9], [3, 4, 9]]


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


def test_sizes_of_fewer_batch_dimensions_than_the_indices():
    data = RaggedBatch(torch.arange(12.0).reshape(2, 2, 3), sample_sizes=torch.tensor([1, 3]), non_uniform_dim=2)
    index = torch.tensor([[[0, 1], [0, 2]], [[0, 2], [2, 3]]])  # [2, 2, 2]
    assert batched_indexing_access(data, index, -1).tolist() == [[[0, -1], [3, -1]], [[6, 8], [11, -1]]]
    ragged = RaggedBatch(index, sample_sizes=torch.tensor([1, 2]), non_uniform_dim=2)
    assert batched_indexing_access(data, ragged, -1).tensor.tolist() == [[[0, -1], [3, -1]], [[6, 8], [11, -1]]]
    with pytest.raises(ValueError, match=r"batch shape \(2, 2\) need indices"):
        batched_indexing_access(RaggedBatch(data.tensor, sample_sizes=index[..., 0]), torch.zeros(2, 1).long(), 0, 2)


@pytest.mark.parametrize("sizes", [[-5, 100], [2**62, -(2**62)]])
def test_hostile_sizes_do_no_harm(sizes, device):
    """Sizes that were not checked (on an accelerator) count as the nearer end."""
    layout = Layout(torch.tensor(sizes, device=device), None, 3)
    batch = RaggedBatch.from_layout(torch.ones(2, 3, 2, device=device), layout, 1)
    index = RaggedBatch.from_layout(torch.ones(2, 3, dtype=torch.long, device=device), layout, 1)
    rows = [min(max(size, 0), 3) for size in sizes]
    assert sum_over_targets(batch)[:, 0].tolist() == rows
    assert batched_indexing_access(batch, index).tensor[..., 0].sum(1).tolist() == rows
    assert batched_inverse_indexing_access(batch, index, 3)[..., 1].sum(1).tolist() == [min(row, 1) for row in rows]
    assert get_mask_from_indices(2, index).sum(1).tolist() == [min(row, 1) for row in rows]
    assert average_over_targets(batch)[:, 0].tolist() == [min(row, 1) for row in rows]
    assert batch.total_num_entries == sum(rows) and [len(sample) for sample in batch.split()] == rows


def test_transforms_of_a_loss():
    """`torch.func.grad` and `vmap` over decoder layers against autograd on everything at once."""

    def loss(preds, index, labels):
        matched = batched_indexing_access(preds, index)
        error = index.create_with_sample_sizes_like_self((matched.tensor - labels.tensor).abs())
        return average_over_targets(error).sum()

    sizes = torch.tensor([2, 0, 3])
    index = RaggedBatch(torch.tensor([[0, 3, 9], [9, 9, 9], [1, 0, 2]]), sample_sizes=sizes)
    labels = RaggedBatch(torch.rand(3, 3, 2, dtype=torch.float64), sample_sizes=sizes)
    preds = torch.rand(4, 3, 5, 2, dtype=torch.float64, requires_grad=True)
    layers = [b.unsqueeze_batch_dim(0).repeat_samples(4, 0) for b in (index, labels)]
    (expected,) = torch.autograd.grad(loss(preds, *layers), preds)
    actual = torch.vmap(torch.func.grad(loss), in_dims=(0, None, None))(preds.detach(), index, labels)
    assert torch.equal(actual, expected)
    assert torch.equal(torch.vmap(torch.func.grad(loss))(preds.detach(), *layers), expected)


def test_the_environment_switches_debug_mode_on():
    script = """
import torch, raggedbev
try:
    raggedbev.batched_indexing_access(torch.ones(1, 2), torch.tensor([[-1]]))
except IndexError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "RAGGEDBEV_DEBUG": "1"}, capture_output=True, text=True
    )
    assert done.stdout == "indices of sample 0, entry 0: -1 is out of range for 2 entries\n", done.stderr


@pytest.mark.parametrize("sizes", [[1, 0], [2, 3]], ids=str)
def test_samples_that_are_filler_have_no_valid_rows(sizes, device):
    """The ragged dimension is one of the batch dimensions of the indices: filler samples are not read or written."""
    mask = RaggedBatch(
        torch.ones(2, 3, 4, dtype=torch.bool, device=device), sample_sizes=torch.tensor(sizes, device=device)
    )
    rows = torch.rand(2, 3, 2, 2, device=device)
    index = torch.tensor([[[0, 3], [1, 2], [9, 0]]], device=device).repeat(2, 1, 1)  # [2, 3, 2]
    data = mask.create_with_sample_sizes_like_self(torch.rand(2, 3, 4, 2, device=device)).set_padded_to(float("nan"))
    into = data.create_with_sample_sizes_like_self(torch.zeros_like(data.tensor))
    calls = {
        "batched_indexing_access": (data, index),
        "batched_indexing_write": (rows, index, into),
        "batched_index_mapping": (data, index, index, into),
        "get_indices_from_mask": (mask,),
        "batched_bool_indexing": (data, mask.tensor),
        "batched_bool_indexing_write": (rows, mask, into),
    }
    for name, arguments in calls.items():
        found, wanted = (getattr(module, name)(*arguments) for module in (ragged, reference))
        assert torch.equal(padded_with_zeros(found), padded_with_zeros(wanted)), name
        assert padded_with_zeros(found).isfinite().all(), name


def padded_with_zeros(data):
    return data.with_padded_set_to(0).tensor if isinstance(data, RaggedBatch) else data


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (torch.uint8, 300),
        (torch.uint8, -1),
        (torch.int8, 200),
        (torch.int32, 2**40),
        (torch.int64, 0.5),
        (torch.int64, 2**63),
        (torch.int64, float(2**63)),
        (torch.int8, float("nan")),
        (torch.float16, 1e6),
        (torch.float32, 1e300),
        (torch.bool, 2),
        (torch.float32, 1j),
    ],
    ids=str,
)
def test_values_that_the_dtype_cannot_hold(dtype, value, device):
    data = torch.zeros(1, 3, device=device).to(dtype)
    batch, index = RaggedBatch(data, sample_sizes=torch.tensor([1], device=device)), torch.tensor([[9]], device=device)
    mask = torch.zeros(1, 3, dtype=torch.bool, device=device)
    calls = (
        lambda: batch.with_padded_set_to(value),
        lambda: batch.set_padded_to(value),
        lambda: apply_mask_to_tensor(data, mask, value),
        lambda: batched_indexing_access(data, index, value),
        lambda: batched_inverse_indexing_access(data[:, :1], index, 4, value),
    )
    for call in calls:
        with pytest.raises(ValueError, match=f"must be representable in {dtype}, got"):
            call()
    assert not data.any()


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (torch.uint8, 255),
        (torch.int16, -32768.0),
        (torch.int64, -(2**63)),
        (torch.int64, 2**63 - 1),
        (torch.float16, 65504),
        (torch.float32, float("inf")),
        (torch.bfloat16, -torch.finfo(torch.bfloat16).max),
        (torch.bool, True),
    ],
    ids=str,
)
def test_the_largest_values_that_the_dtype_can_hold(dtype, value, device):
    batch = RaggedBatch(torch.zeros(1, 2, device=device).to(dtype), sample_sizes=torch.tensor([1], device=device))
    assert batch.with_padded_set_to(value).tensor[0, 1] == value and batch.set_padded_to(value).tensor[0, 1] == value


def test_the_range_check_knows_the_padded_length(monkeypatch):
    monkeypatch.setattr("raggedbev.ragged.ops.debug_mode", lambda: True)
    data = RaggedBatch.from_layout(torch.ones(1, 3), Layout(torch.tensor([100]), None, 3), 1)
    with pytest.raises(IndexError, match="50 is out of range for 3 entries"):
        batched_indexing_access(data, torch.tensor([[50]]))
