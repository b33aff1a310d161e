"""Writing filler: in place or as a copy, its gradient, and memory that cannot be written to."""

from __future__ import annotations

import pytest
import torch
from cases import Maker

from raggedbev.ragged import RaggedBatch


def nan_filled(sizes, *shape):
    """A batch whose filler is NaN, padded by one more than needed."""
    return Maker(dtype=torch.float32).ragged(sizes, (len(sizes),), *shape)


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


@pytest.mark.parametrize("view", [lambda t: t, lambda t: t.transpose(1, 2), lambda t: t.unbind(-1)[0], lambda t: t[1:]])
def test_leaves_that_require_a_gradient_keep_their_values(view):
    leaf = torch.randn(3, 4, 4, requires_grad=True)
    before = leaf.detach().clone()
    data = view(leaf)
    batch = RaggedBatch(data, sample_sizes=torch.tensor([4, 0, 2])[-len(data) :])
    batch.set_padded_to(7.0)
    outside = ~batch.mask.reshape(*batch.mask.shape, *[1] * (batch.dim() - 2)).expand(batch.shape)
    assert (batch.tensor[outside] == 7).all() and torch.equal(leaf, before)
    (gradient,) = torch.autograd.grad(batch.tensor.sum(), leaf)
    assert gradient.sum() == (~outside).sum()


def test_without_gradient_a_leaf_is_written_in_place():
    leaf = torch.ones(2, 3, requires_grad=True)
    with torch.no_grad():
        RaggedBatch(leaf, sample_sizes=torch.tensor([1, 3])).set_padded_to(0)
    assert leaf.tolist() == [[1, 0, 0], [1, 1, 1]]
    strided = torch.ones(3, 2).t()
    RaggedBatch(strided, sample_sizes=torch.tensor([1, 3])).set_padded_to(0)
    assert strided.tolist() == [[1, 0, 0], [1, 1, 1]]


@pytest.mark.parametrize(
    "view", [lambda t: t.chunk(2)[1], lambda t: t.split(2)[1], lambda t: t.view(2, 2, 3).unbind()[1]]
)
def test_one_of_several_views_is_copied(view):
    leaf = torch.rand(4, 3, requires_grad=True)
    batch = RaggedBatch(view(leaf * 2), sample_sizes=torch.tensor([1, 2])).set_padded_to(0.0)
    batch.tensor.sum().backward()
    assert leaf.grad.sum(-1).tolist() == [0, 0, 2, 4]


def test_windows_that_overlap_are_copied():
    batch = RaggedBatch(torch.arange(1.0, 5).unfold(0, 3, 1), sample_sizes=torch.tensor([1, 2])).set_padded_to(0.0)
    assert batch.tensor.tolist() == [[1, 0, 0], [2, 3, 0]]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own, of any view
def test_filler_is_written_inside_transforms_and_compiled_code():
    sizes = torch.tensor([[1, 2], [0, 3]])
    mapped = torch.vmap(lambda row: RaggedBatch(torch.ones(2, 3), sample_sizes=row).set_padded_to(0.0).tensor)(sizes)
    assert torch.equal(mapped.sum(-1), sizes.float())
    leaf = torch.ones(3, 3, requires_grad=True)

    def fn(tensor):
        return RaggedBatch(tensor, sample_sizes=sizes[0]).set_padded_to(0.0).tensor

    torch.compile(fn, fullgraph=True, backend="aot_eager")(leaf[1:]).sum().backward()
    assert leaf.grad.sum(-1).tolist() == [0, 1, 2]
