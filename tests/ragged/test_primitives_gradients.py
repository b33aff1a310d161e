"""The primitive ragged operators: gradients of any order, layout and type."""

from __future__ import annotations

import pytest
import torch
from ragged_operators import (
    FLOATS,
    OPERATORS,
    SHAPES,
    SMALL,
    Source,
    differentiable_result,
    every_differentiable,
    move,
    needs_compiled,
    of_differentiable,
)
from torch.autograd import gradcheck, gradgradcheck

from raggedbev.ragged import primitives


@every_differentiable
def test_gradients_to_the_second_order(name: str, device: torch.device) -> None:
    for seed in range(4):
        arguments = move(OPERATORS[name].arguments(SMALL, Source(seed, torch.float64)), device)
        function, inputs = of_differentiable(name, arguments)
        assert gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True, nondet_tol=0)
        assert gradgradcheck(function, inputs, nondet_tol=0)


@every_differentiable
def test_complex_gradients(name: str) -> None:
    function, inputs = of_differentiable(name, OPERATORS[name].arguments(SMALL, Source(1, torch.complex128)))
    assert gradcheck(function, inputs)


@every_differentiable
def test_gradients_of_any_strides(name: str, device: torch.device) -> None:
    for seed, shape in enumerate([SMALL, *SHAPES]):
        arguments = move(OPERATORS[name].arguments(shape, Source(seed, torch.float64)), device)
        function, inputs = of_differentiable(name, arguments)
        result = function(*inputs)
        grad = torch.randn(result.shape, dtype=result.dtype, device=device)
        layouts = {
            "transposed": grad.transpose(0, -1).contiguous().transpose(0, -1),
            "every second": torch.stack([grad, grad], -1)[..., 0],
            "padded rows": torch.cat([grad, grad], -1)[..., : grad.shape[-1]],
        }
        expected = torch.autograd.grad(result, inputs, grad, retain_graph=True)
        for layout, strided in layouts.items():
            found = torch.autograd.grad(result, inputs, strided, retain_graph=True)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), layout
        ones = torch.autograd.grad(result, inputs, torch.ones_like(result), retain_graph=True)
        expanded = torch.autograd.grad(result.sum(), inputs)
        assert all(torch.equal(a, b) for a, b in zip(expanded, ones, strict=True))


@every_differentiable
def test_gradients_equal_those_of_plain_torch(name: str, device: torch.device) -> None:
    operator = OPERATORS[name]
    for dtype in FLOATS:
        for seed, shape in enumerate([SMALL, SHAPES[9], SHAPES[10]]):
            arguments = list(move(operator.arguments(shape, Source(seed, dtype)), device))
            function, inputs = of_differentiable(name, arguments)
            for place, tensor in zip(
                [i for i in operator.differentiable if arguments[i] is not None], inputs, strict=True
            ):
                arguments[place] = tensor
            plain = differentiable_result(operator.plain(*arguments))
            grad = torch.randn(plain.shape, generator=torch.Generator().manual_seed(seed)).to(device, plain.dtype)
            found = torch.autograd.grad(function(*inputs), inputs, grad)
            for tensor, a, b in zip(inputs, found, torch.autograd.grad(plain, inputs, grad), strict=True):
                assert a.dtype == tensor.dtype and a.shape == tensor.shape
                torch.testing.assert_close(a, b)


@every_differentiable
def test_no_history_without_gradients(name: str) -> None:
    function, inputs = of_differentiable(name, OPERATORS[name].arguments(SMALL, Source(3)))
    assert function(*inputs).requires_grad
    assert not function(*[tensor.detach() for tensor in inputs]).requires_grad
    with torch.no_grad():
        assert not function(*inputs).requires_grad
    with torch.inference_mode():
        assert function(*inputs).is_inference()


@needs_compiled
def test_indices_changed_after_the_forward_pass_are_noticed() -> None:
    data = torch.ones(1, 1, 3, 1, requires_grad=True)
    indices = torch.tensor([[0, 1]])
    result = primitives.ragged_gather(data, indices, None, None, 0, -2)
    indices.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()
