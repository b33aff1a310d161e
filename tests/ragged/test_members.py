"""Every member of the ragged batch: as one compiled graph and exported for batches of any size, and without reading the
device. A member that is left out of the table fails."""

from __future__ import annotations

import pytest
import torch

from raggedbev.ragged import RaggedBatch

SIZES = [2, 0, 3, 1]

# What each member gives, as a tensor or a ragged batch.
MEMBERS = {
    "apply": lambda b: b.apply(lambda tensor, mask: tensor * mask.unsqueeze(-1)),
    "batch_shape": lambda b: b.tensor.reshape(*b.batch_shape, -1),
    "bfloat16": lambda b: b.bfloat16(),
    "bool": lambda b: b.bool(),
    "broadcast_batch_dims": lambda b: RaggedBatch.broadcast_batch_dims([b.unsqueeze_batch_dim(0), b])[0],
    "broadcast_batch_dims_to_shape": lambda b: b.broadcast_batch_dims_to_shape(2, *b.batch_shape),
    "cpu": lambda b: b.cpu(),
    "create_with_sample_sizes_like_self": lambda b: b.create_with_sample_sizes_like_self(b.tensor.sum(-1)),
    "detach": lambda b: b.detach(),
    "device": lambda b: b.tensor.to(b.device),
    "dim": lambda b: b.tensor * b.dim(),
    "double": lambda b: b.double(),
    "dtype": lambda b: b.tensor.to(b.dtype),
    "empty": lambda b: RaggedBatch.empty(b.shape[0], (2,)),
    "flatten_batch_dims": lambda b: b.unsqueeze_batch_dim(1).flatten_batch_dims(),
    "float": lambda b: b.float(),
    "from_full_tensor": lambda b: RaggedBatch.from_full_tensor(b.tensor),
    "from_layout": lambda b: RaggedBatch.from_layout(b.tensor + 1, b.layout, 1),
    "from_oversize_tensor": lambda b: RaggedBatch.from_oversize_tensor(b.tensor, b.sample_sizes, 3),
    "get_existence_weights": lambda b: b.get_existence_weights(),
    "get_non_uniform_dimension_transposed_to": lambda b: b.get_non_uniform_dimension_transposed_to(2),
    "half": lambda b: b.half(),
    "int": lambda b: b.int(),
    "layout": lambda b: b.layout.mask,
    "long": lambda b: b.long(),
    "mask": lambda b: b.mask,
    "max_sample_size": lambda b: b.tensor * b.max_sample_size,
    "non_uniform_dim": lambda b: b.tensor.sum(b.non_uniform_dim),
    "num_batch_dims": lambda b: b.tensor.sum(b.num_batch_dims),
    "repeat_samples": lambda b: b.unsqueeze_batch_dim(0).repeat_samples(6, 0).repeat_samples(2, 1),
    "requires_grad": lambda b: b.tensor + b.requires_grad,
    "reshape_batch_dims": lambda b: b.reshape_batch_dims(1, -1),
    "sample_sizes": lambda b: b.sample_sizes,
    "set_padded_to": lambda b: b.create_with_sample_sizes_like_self(b.tensor * 2).set_padded_to(3.0),
    "shape": lambda b: b.tensor.reshape(b.shape),
    "size": lambda b: b.tensor.reshape(b.size()),
    "squeeze_batch_dim": lambda b: b.unsqueeze_batch_dim(0).squeeze_batch_dim(0),
    "tensor": lambda b: b.tensor,
    "to": lambda b: b.to(torch.float64),
    "to_device": lambda b: b.to_device(b.device),
    "to_dtype": lambda b: b.to_dtype(torch.float16),
    "total_num_samples_in_batch": lambda b: b.tensor * b.total_num_samples_in_batch,
    "unsqueeze_batch_dim": lambda b: b.unsqueeze_batch_dim(0),
    "unsqueeze_data_dim": lambda b: b.unsqueeze_data_dim(-1),
    "with_padded_set_to": lambda b: b.with_padded_set_to(2.0),
}
READING = {"split", "total_num_entries"}  # they read the device, and say so
HOST_ONLY = {"pin_memory"}  # of an accelerator's transfers
NOT_EXPORTED = {"requires_grad"}  # exported programs have no gradient history


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Each member is compiled as if it were the first."""
    torch._dynamo.reset()


members = pytest.mark.parametrize("name", MEMBERS)


def make(count=4, device="cpu"):
    tensor = torch.arange(count * 3 * 2.0, device=device).reshape(count, 3, 2)
    return RaggedBatch(tensor, sample_sizes=torch.tensor(SIZES, device=device).repeat(2)[:count].contiguous())


def tensors(result):
    return (result.tensor, result.sample_sizes) if isinstance(result, RaggedBatch) else (result,)


def assert_same(actual, expected):
    for left, right in zip(actual, expected, strict=True):
        assert left.dtype == right.dtype and torch.equal(left, right)


def test_the_table_is_complete():
    public = {name for name in vars(RaggedBatch) if not name.startswith("_")}
    assert public == set(MEMBERS) | READING | HOST_ONLY


@members
def test_compiles_for_batches_of_any_size(name):
    def fn(batch):
        return tensors(MEMBERS[name](batch))

    compiled = torch.compile(fn, fullgraph=True, backend="eager")
    for count in (4, 5, 3):  # the second one makes shapes dynamic
        assert_same(compiled(make(count)), fn(make(count)))


@members
@pytest.mark.parametrize("strict", [False, True])
def test_exports_for_batches_of_any_size(name, strict):
    if name in NOT_EXPORTED:
        pytest.skip("no gradient history in exported programs")

    class Module(torch.nn.Module):
        def forward(self, tensor, sizes):
            return tensors(MEMBERS[name](RaggedBatch(tensor, sample_sizes=sizes)))

    first, other = make(4), make(7)
    any_size = {0: torch.export.Dim("batch", min=2)}
    program = torch.export.export(
        Module(), (first.tensor, first.sample_sizes), dynamic_shapes=(any_size, any_size), strict=strict
    )
    assert_same(program.module()(other.tensor, other.sample_sizes), tensors(MEMBERS[name](other)))


@members
def test_does_not_read_the_device(name, device):
    if name == "cpu":
        pytest.skip("moves to the host")
    batch = make(device=device)
    if device.type != "cuda":
        tensors(MEMBERS[name](batch.to("meta")))  # has no values that could be read
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        tensors(MEMBERS[name](batch))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_function_inside_compiled_code_gets_what_it_takes(count):
    def fn(batch):
        def first(tensor):
            return tensor * 2

        def second(tensor, mask):
            return tensor * mask.unsqueeze(-1)

        def third(tensor, mask, sizes):
            return tensor * mask.unsqueeze(-1) + sizes.reshape(-1, 1, 1)

        return batch.apply((first, second, third)[count - 1]).tensor

    assert torch.equal(torch.compile(fn, fullgraph=True, backend="eager")(make()), fn(make()))
