"""The primitive ragged operators through opcheck, torch.compile, torch.export, vmap and torch.func."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ragged_operators import (
    OPERATORS,
    SHAPES,
    SMALL,
    Shape,
    Source,
    assert_same,
    every_differentiable,
    every_functional,
    every_operator,
    gather_arguments,
    move,
    needs_compiled,
    of_differentiable,
    over_tensors,
)
from torch import Tensor
from torch.utils import _pytree as pytree

from raggedbev.ragged import primitives

# What the dispatcher knows, under test as it stands.
COMPILED: dict[str, Callable[[], Any]] = {
    "ragged_gather": lambda: torch.ops.raggedbev.ragged_gather.default,
    "ragged_scatter_add": lambda: torch.ops.raggedbev.ragged_scatter_add.default,
    "ragged_write": lambda: torch.ops.raggedbev.ragged_write.default,
    "ragged_write_backward": lambda: torch.ops.raggedbev.ragged_write_backward.default,
    "ragged_mask_from_indices": lambda: torch.ops.raggedbev.ragged_mask_from_indices.default,
    "ragged_indices_from_mask": lambda: torch.ops.raggedbev.ragged_indices_from_mask.default,
    "ragged_fill": lambda: torch.ops.raggedbev.ragged_fill.default,
    "ragged_sum": lambda: torch.ops.raggedbev.ragged_sum.default,
    "ragged_expand": lambda: torch.ops.raggedbev.ragged_expand.default,
    "ragged_pack_": lambda: torch.ops.raggedbev.ragged_pack_.default,
}


@needs_compiled
@every_operator
def test_opcheck(name: str, device: torch.device) -> None:
    operator = OPERATORS[name]
    for seed, shape in enumerate([SMALL, SHAPES[2], SHAPES[9]]):
        arguments = list(move(operator.arguments(shape, Source(seed)), device))
        for i in operator.differentiable:
            if arguments[i] is not None:
                arguments[i] = arguments[i].nan_to_num().requires_grad_()
        torch.library.opcheck(COMPILED[name](), tuple(arguments))


@every_operator
def test_compiles_into_one_graph(name: str, device: torch.device) -> None:
    torch.compiler.reset()
    for seed, shape in enumerate([SMALL, Shape(4, 3, 6, 5, 7, 8)]):
        function, tensors = over_tensors(name, move(OPERATORS[name].arguments(shape, Source(seed, given=True)), device))
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        assert_same(compiled(*tensors), move(function(*tensors), torch.device("cpu")))


@every_differentiable
def test_compiles_with_its_gradient(name: str, device: torch.device) -> None:
    torch.compiler.reset()
    for seed, shape in enumerate([SMALL, Shape(4, 3, 6, 5, 7, 8)]):
        arguments = move(OPERATORS[name].arguments(shape, Source(seed, torch.float64)), device)
        function, inputs = of_differentiable(name, arguments)
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=bool(seed))
        expected = torch.autograd.grad(function(*inputs).square().sum(), inputs)
        found = torch.autograd.grad(compiled(*inputs).square().sum(), inputs)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_compiles_with_inductor(device: torch.device) -> None:
    """Of these operators only, so that no C++ has to be compiled."""
    data, indices, sizes, *_ = move(gather_arguments(SMALL, Source(1, given=True)), device)

    def gathered_sums(data: Tensor) -> Tensor:
        return primitives.ragged_sum(primitives.ragged_gather(data, indices, sizes, None, 0, -2), sizes, -2)

    data = data.nan_to_num().requires_grad_()
    expected, found = gathered_sums(data), torch.compile(gathered_sums, fullgraph=True)(data)
    assert torch.equal(found, expected)
    grad = torch.randn_like(expected)
    assert torch.equal(*(torch.autograd.grad(result, data, grad)[0] for result in (found, expected)))


@every_operator
def test_exports(name: str, device: torch.device) -> None:
    function, tensors = over_tensors(name, move(OPERATORS[name].arguments(SMALL, Source(2)), device))

    class Module(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Any:
            return function(*tensors)

    exported = torch.export.export(Module(), tuple(tensors))
    assert_same(exported.module()(*tensors), move(function(*tensors), torch.device("cpu")))


@every_functional
@pytest.mark.parametrize("in_dim", [0, 1, -1])
def test_vmap(name: str, in_dim: int, device: torch.device) -> None:
    function, tensors = over_tensors(name, move(OPERATORS[name].arguments(SMALL, Source(5)), device))
    stacked = [torch.stack([tensor, tensor.flip(-1), tensor.flip(0)], in_dim) for tensor in tensors]
    calls = [function(*(tensor.select(in_dim, i) for tensor in stacked)) for i in range(3)]
    expected = pytree.tree_map(lambda *leaves: torch.stack(leaves), *calls)
    found = torch.vmap(function, in_dims=in_dim)(*stacked)
    assert_same(found, move(expected, torch.device("cpu")))
    only_first = torch.vmap(function, in_dims=(in_dim, *[None] * (len(tensors) - 1)))(stacked[0], *tensors[1:])
    calls = [function(stacked[0].select(in_dim, i), *tensors[1:]) for i in range(3)]
    assert_same(only_first, move(pytree.tree_map(lambda *leaves: torch.stack(leaves), *calls), torch.device("cpu")))


@every_differentiable
def test_torch_func(name: str, device: torch.device) -> None:
    function, inputs = of_differentiable(name, move(OPERATORS[name].arguments(SMALL, Source(3, torch.float64)), device))
    inputs = [tensor.detach() for tensor in inputs]

    def loss(first: Tensor) -> Tensor:
        return function(first, *inputs[1:]).square().sum()

    leaf = inputs[0].clone().requires_grad_()
    expected = torch.autograd.grad(loss(leaf), leaf)[0]
    torch.testing.assert_close(torch.func.grad(loss)(inputs[0]), expected)
    torch.testing.assert_close(torch.func.jacfwd(loss)(inputs[0]), expected)
    stacked = torch.stack([inputs[0], inputs[0] + 1])
    per_call = torch.stack([torch.func.grad(loss)(tensor) for tensor in stacked])
    torch.testing.assert_close(torch.vmap(torch.func.grad(loss))(stacked), per_call)
