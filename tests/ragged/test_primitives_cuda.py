"""The primitive ragged operators on CUDA: no synchronisation, graphs, the same bits every time."""

from __future__ import annotations

import torch
from ragged_operators import (
    IN_PLACE,
    OPERATORS,
    SHAPES,
    Source,
    assert_same,
    bits,
    call,
    every_differentiable,
    every_operator,
    move,
    needs_cuda,
    of_differentiable,
)
from torch import Tensor
from torch.utils import _pytree as pytree


@needs_cuda
@every_operator
def test_cuda_never_waits_for_the_device(name: str) -> None:
    operator = OPERATORS[name]
    arguments = list(move(operator.arguments(SHAPES[10], Source(0)), torch.device("cuda")))
    for i in operator.differentiable:
        if arguments[i] is not None:
            arguments[i] = arguments[i].requires_grad_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = pytree.tree_leaves(call(name, operator.public, arguments))[0]
        if operator.differentiable:
            result.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_cuda
@every_operator
def test_cuda_graph_replays_with_other_values_and_sizes(name: str) -> None:
    operator, cuda = OPERATORS[name], torch.device("cuda")
    given = Source(0, given=True)
    arguments = [operator.arguments(SHAPES[10], given) for _ in range(6)]
    shapes = [[getattr(leaf, "shape", None) for leaf in pytree.tree_leaves(other)] for other in arguments]
    arguments = [other for other, shape in zip(arguments, shapes, strict=True) if shape == shapes[0]]
    static = move(arguments[0], cuda)
    tensors = [leaf for leaf in pytree.tree_leaves(static) if isinstance(leaf, Tensor)]
    operator.public(*static)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = operator.public(*static)
    for other in arguments:
        leaves = [leaf for leaf in pytree.tree_leaves(other) if isinstance(leaf, Tensor)]
        for tensor, leaf in zip(tensors, leaves, strict=True):
            tensor.copy_(leaf)
        values = [leaf if isinstance(leaf, Tensor) else fixed for leaf, fixed in zip(other, arguments[0], strict=True)]
        graph.replay()
        expected = operator.reference(*(values if name not in IN_PLACE else other))
        assert_same(static[0] if name in IN_PLACE else captured, expected, operator.exact)


@needs_cuda
@every_differentiable
def test_cuda_gradients_have_the_same_bits_every_time(name: str) -> None:
    arguments = move(OPERATORS[name].arguments(SHAPES[10], Source(0)), torch.device("cuda"))
    function, inputs = of_differentiable(name, arguments)
    grad = torch.randn_like(function(*inputs))
    first = torch.autograd.grad(function(*inputs), inputs, grad)
    for _ in range(3):
        again = torch.autograd.grad(function(*inputs), inputs, grad)
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(first, again, strict=True))
