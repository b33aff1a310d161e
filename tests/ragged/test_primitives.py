"""The primitive ragged operators. One table holds all of them; every generic test below runs over it."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils import _pytree as pytree

from raggedbev import _extension
from raggedbev.ragged import primitives

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
COMPLEX = [torch.complex64, torch.complex128]
INTEGERS = [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool]
INT64, INT32 = torch.iinfo(torch.int64), torch.iinfo(torch.int32)

needs_compiled = pytest.mark.skipif(not _extension.COMPILED, reason="the compiled operators were not built")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@dataclass(frozen=True)
class Shape:
    """B samples, O in front of the rows, N rows, I elements per row, K entries, M rows or entries of the result."""

    B: int
    O: int  # noqa: E741
    N: int
    I: int  # noqa: E741
    K: int
    M: int


# Degenerate ones first: every letter is zero once.
SHAPES = [
    Shape(0, 2, 3, 2, 4, 3),
    Shape(2, 0, 3, 2, 4, 3),
    Shape(2, 2, 0, 2, 4, 3),
    Shape(2, 2, 3, 0, 4, 3),
    Shape(2, 2, 3, 2, 0, 3),
    Shape(2, 2, 3, 2, 4, 0),
    Shape(1, 1, 1, 1, 1, 1),
    Shape(3, 1, 5, 1, 7, 4),
    Shape(3, 2, 5, 3, 7, 6),
    Shape(4, 1, 40, 1, 70, 33),  # more than 32 entries and rows: several votes of a group
    Shape(2, 3, 37, 50, 45, 66),  # more than 128 columns
    Shape(1, 2, 70, 9, 100, 40),
    Shape(2, 1, 3, 300, 5, 4),
]
SMALL = Shape(3, 2, 4, 2, 5, 3)


class Source:
    """Random arguments: some of the indices and sizes are hostile, each is int32 or int64, or not given."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float32, given: bool | None = None) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = dtype
        self.given = given

    def number(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def data(self, *shape: int) -> Tensor:
        if self.dtype.is_floating_point or self.dtype.is_complex:
            return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(self.dtype)
        return torch.randint(-9, 10, shape, generator=self.generator).to(self.dtype)

    def mask(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator) < torch.rand((), generator=self.generator)

    def integers(self, shape: Sequence[int], limit: int) -> Tensor:
        kind, extreme = (torch.int32, INT32) if self.number(0, 1) else (torch.int64, INT64)
        values = torch.randint(-2, limit + 3, tuple(shape), generator=self.generator)
        hostile = torch.tensor([extreme.min, extreme.max, -1, limit])[
            torch.randint(0, 4, tuple(shape), generator=self.generator)
        ]
        return torch.where(torch.rand(tuple(shape), generator=self.generator) < 0.1, hostile, values).to(kind)

    def sizes(self, batch: int, limit: int) -> Tensor | None:
        given = bool(self.number(0, 1)) if self.given is None else self.given
        return self.integers([batch], limit) if given else None

    def filler(self) -> int | float | bool:
        return True if self.dtype == torch.bool else self.number(0, 3)


@dataclass(frozen=True)
class Operator:
    """public: the Python function; plain: its fallback; reference: the obvious loop; arguments: a random call.

    differentiable: numbers of the arguments that get gradients; exact: nothing is rounded, results are equal bit for
    bit on every path.
    """

    public: Callable[..., Any]
    compiled: Callable[[], Any]
    plain: Callable[..., Any]
    reference: Callable[..., Any]
    arguments: Callable[[Shape, Source], tuple]
    dtypes: list[torch.dtype]
    differentiable: tuple[int, ...] = ()
    exact: bool = True


def size_of(sizes: Tensor | None, sample: int, most: int) -> int:
    return most if sizes is None else min(max(int(sizes[sample]), 0), most)


def valid_entries(
    indices: Tensor, num_indices: Tensor | None, num_rows: Tensor | None, most: int
) -> Iterator[tuple[int, int, int]]:
    for b in range(indices.shape[0]):
        for k in range(size_of(num_indices, b, indices.shape[1])):
            if 0 <= int(indices[b, k]) < size_of(num_rows, b, most):
                yield b, k, int(indices[b, k])


def gather_reference(data: Tensor, indices: Tensor, num_indices: Any, num_rows: Any, filler: Any) -> Tensor:
    out = data.new_full((data.shape[0], data.shape[1], indices.shape[1], data.shape[3]), filler)
    for b, k, n in valid_entries(indices, num_indices, num_rows, data.shape[2]):
        out[b, :, k] = data[b, :, n]
    return out


def scatter_add_reference(values: Tensor, indices: Tensor, num_indices: Any, num_rows: Any, num: int) -> Tensor:
    wide = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    out = wide.new_zeros((values.shape[0], values.shape[1], num, values.shape[3]))
    for b, k, n in valid_entries(indices, num_indices, num_rows, num):
        out[b, :, n] += wide[b, :, k]
    return out.to(values.dtype)


def write_reference(
    source: Tensor,
    source_indices: Tensor | None,
    target_indices: Tensor,
    num_indices: Any,
    num_source: Any,
    num_targets_valid: Any,
    into: Tensor | None,
    num_targets: int,
    filler: Any,
) -> tuple[Tensor, Tensor]:
    out = source.new_full((source.shape[0], num_targets, source.shape[2]), filler) if into is None else into.clone()
    entry = torch.full(out.shape[:2], -1)
    for b, k, target in valid_entries(target_indices, num_indices, num_targets_valid, num_targets):
        row = k if source_indices is None else int(source_indices[b, k])
        if 0 <= row < size_of(num_source, b, source.shape[1]):
            out[b, target] = source[b, row]
            entry[b, target] = row
    return out, entry


def mask_from_indices_reference(indices: Tensor, num_indices: Any, num: int) -> Tensor:
    mask = torch.zeros((indices.shape[0], num), dtype=torch.bool)
    for b, _, n in valid_entries(indices, num_indices, None, num):
        mask[b, n] = True
    return mask


def indices_from_mask_reference(mask: Tensor, num_rows: Any, max_num: int) -> tuple[Tensor, Tensor]:
    indices = torch.zeros((mask.shape[0], max_num), dtype=torch.long)
    counts = torch.zeros(mask.shape[0], dtype=torch.long)
    for b in range(mask.shape[0]):
        found = [n for n in range(size_of(num_rows, b, mask.shape[1])) if mask[b, n]][:max_num]
        indices[b, : len(found)] = torch.tensor(found, dtype=torch.long)
        counts[b] = len(found)
    return indices, counts


def fill_reference(data: Tensor, sizes: Tensor, value: Any) -> Tensor:
    out = data.clone()
    for b in range(data.shape[0]):
        out[b, :, size_of(sizes, b, data.shape[2]) :] = value
    return out


def sum_reference(data: Tensor, sizes: Tensor) -> Tensor:
    dtype = primitives._sum_dtype(data.dtype)
    wide = torch.float64 if dtype.is_floating_point else dtype
    out = torch.zeros((data.shape[0], data.shape[1], data.shape[3]), dtype=dtype)
    for b in range(data.shape[0]):
        out[b] = data[b, :, : size_of(sizes, b, data.shape[2])].to(wide).sum(1)
    return out


def expand_reference(values: Tensor, sizes: Tensor, num: int) -> Tensor:
    out = values.new_zeros((values.shape[0], values.shape[1], num, values.shape[2]))
    for b in range(values.shape[0]):
        out[b, :, : size_of(sizes, b, num)] = values[b].unsqueeze(1)
    return out


def pack_reference(out: Tensor, samples: Sequence[Tensor]) -> Tensor:
    out = torch.zeros_like(out)
    for b, sample in enumerate(samples):
        for n in range(len(sample)):
            out[b, n] = sample[n]
    return out


def poisoned(data: Tensor, sizes: Tensor) -> Tensor:
    """With NaN where nothing may be read."""
    if not data.dtype.is_floating_point:
        return data
    return fill_reference(data, sizes, float("nan"))


def gather_arguments(s: Shape, source: Source) -> tuple:
    num_rows = source.sizes(s.B, s.N)
    data = source.data(s.B, s.O, s.N, s.I)
    if num_rows is not None:
        data = poisoned(data, num_rows)
    return data, source.integers([s.B, s.K], s.N), source.sizes(s.B, s.K), num_rows, source.filler()


def scatter_add_arguments(s: Shape, source: Source) -> tuple:
    num_indices = source.sizes(s.B, s.K)
    values = source.data(s.B, s.O, s.K, s.I)
    if num_indices is not None:
        values = poisoned(values, num_indices)
    return values, source.integers([s.B, s.K], s.N), num_indices, source.sizes(s.B, s.N), s.N


def write_arguments(s: Shape, source: Source) -> tuple:
    source_indices = source.integers([s.B, s.K], s.N) if source.number(0, 1) else None
    into = source.data(s.B, s.M, s.I) if source.number(0, 1) else None
    return (
        source.data(s.B, s.N, s.I),
        source_indices,
        source.integers([s.B, s.K], s.M),
        source.sizes(s.B, s.K),
        source.sizes(s.B, s.N),
        source.sizes(s.B, s.M),
        into,
        s.M,
        source.filler(),
    )


def sum_arguments(s: Shape, source: Source) -> tuple:
    sizes = source.integers([s.B], s.N)
    return poisoned(source.data(s.B, s.O, s.N, s.I), sizes), sizes


def fill_arguments(s: Shape, source: Source) -> tuple:
    return *sum_arguments(s, source), source.filler()


def pack_arguments(s: Shape, source: Source) -> tuple:
    samples = [source.data(source.number(0, s.N), s.O, s.I) for _ in range(s.B)]
    return source.data(s.B, s.N, s.O, s.I), samples


OPERATORS: dict[str, Operator] = {
    "ragged_gather": Operator(
        primitives.ragged_gather,
        lambda: torch.ops.raggedbev.ragged_gather.default,
        primitives._gather_plain,
        gather_reference,
        gather_arguments,
        FLOATS + COMPLEX + INTEGERS,
        differentiable=(0,),
    ),
    "ragged_scatter_add": Operator(
        primitives.ragged_scatter_add,
        lambda: torch.ops.raggedbev.ragged_scatter_add.default,
        primitives._scatter_add_plain,
        scatter_add_reference,
        scatter_add_arguments,
        FLOATS + COMPLEX,
        differentiable=(0,),
        exact=False,
    ),
    "ragged_write": Operator(
        primitives.ragged_write,
        lambda: torch.ops.raggedbev.ragged_write.default,
        primitives._write_plain,
        write_reference,
        write_arguments,
        FLOATS + COMPLEX + INTEGERS,
        differentiable=(0, 6),
    ),
    "ragged_mask_from_indices": Operator(
        primitives.ragged_mask_from_indices,
        lambda: torch.ops.raggedbev.ragged_mask_from_indices.default,
        primitives._mask_from_indices_plain,
        mask_from_indices_reference,
        lambda s, source: (source.integers([s.B, s.K], s.N), source.sizes(s.B, s.K), s.N),
        [torch.float32],
    ),
    "ragged_indices_from_mask": Operator(
        primitives.ragged_indices_from_mask,
        lambda: torch.ops.raggedbev.ragged_indices_from_mask.default,
        primitives._indices_from_mask_plain,
        indices_from_mask_reference,
        lambda s, source: (source.mask(s.B, s.N), source.sizes(s.B, s.N), s.M),
        [torch.float32],
    ),
    "ragged_fill": Operator(
        primitives.ragged_fill,
        lambda: torch.ops.raggedbev.ragged_fill.default,
        primitives._fill_plain,
        fill_reference,
        fill_arguments,
        FLOATS + COMPLEX + INTEGERS,
        differentiable=(0,),
    ),
    "ragged_sum": Operator(
        primitives.ragged_sum,
        lambda: torch.ops.raggedbev.ragged_sum.default,
        primitives._sum_plain,
        sum_reference,
        sum_arguments,
        FLOATS + COMPLEX + INTEGERS,
        differentiable=(0,),
        exact=False,
    ),
    "ragged_expand": Operator(
        primitives.ragged_expand,
        lambda: torch.ops.raggedbev.ragged_expand.default,
        primitives._expand_plain,
        expand_reference,
        lambda s, source: (source.data(s.B, s.O, s.I), source.integers([s.B], s.N), s.N),
        FLOATS + COMPLEX + INTEGERS,
        differentiable=(0,),
    ),
    "ragged_pack_": Operator(
        primitives.ragged_pack_,
        lambda: torch.ops.raggedbev.ragged_pack_.default,
        primitives._pack_plain,
        pack_reference,
        pack_arguments,
        FLOATS + COMPLEX + INTEGERS,
    ),
}
# Operators without what a generic test is about, and why.
NO_GRADIENT = {"ragged_mask_from_indices", "ragged_indices_from_mask", "ragged_pack_"}  # integers; refuses gradients
IN_PLACE = {"ragged_pack_"}  # the mapped dimension of its result is not one of memory

every_operator = pytest.mark.parametrize("name", OPERATORS)
every_differentiable = pytest.mark.parametrize("name", [name for name in OPERATORS if name not in NO_GRADIENT])
every_functional = pytest.mark.parametrize("name", [name for name in OPERATORS if name not in IN_PLACE])


def call(name: str, function: Callable[..., Any], arguments: Sequence) -> Any:
    """The results; an in-place operator works on a copy."""
    if name not in IN_PLACE:
        return function(*arguments)
    out = arguments[0].clone()
    function(out, *arguments[1:])
    return out


def move(arguments: Any, device: torch.device) -> Any:
    return pytree.tree_map(lambda value: value.to(device) if isinstance(value, Tensor) else value, arguments)


def assert_same(found: Any, expected: Any, exact: bool = True) -> None:
    tolerance = {"rtol": 0, "atol": 0} if exact else {}
    torch.testing.assert_close(move(found, torch.device("cpu")), expected, equal_nan=True, **tolerance)


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def over_tensors(name: str, arguments: Sequence) -> tuple[Callable[..., Any], list[Tensor]]:
    """The operator as a function of its tensors only."""
    leaves, spec = pytree.tree_flatten(tuple(arguments))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def function(*tensors: Tensor) -> Any:
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        return call(name, OPERATORS[name].public, pytree.tree_unflatten(filled, spec))

    return function, [leaves[i] for i in places]


def of_differentiable(name: str, arguments: Sequence) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The first result as a function of the arguments that get gradients; these."""
    places = [i for i in OPERATORS[name].differentiable if arguments[i] is not None]

    def function(*tensors: Tensor) -> Tensor:
        filled = list(arguments)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        return pytree.tree_leaves(OPERATORS[name].public(*filled))[0]

    return function, [arguments[i].nan_to_num().requires_grad_() for i in places]


# ---- values ----------------------------------------------------------------------------------------------------------


@every_operator
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_loop(name: str, shape: Shape, device: torch.device) -> None:
    operator = OPERATORS[name]
    for seed in range(6):
        arguments = operator.arguments(shape, Source(seed))
        found = call(name, operator.public, move(arguments, device))
        assert_same(found, operator.reference(*arguments), operator.exact)


@every_operator
def test_equals_the_loop_in_every_type(name: str, device: torch.device) -> None:
    operator = OPERATORS[name]
    for dtype in operator.dtypes:
        for seed, shape in enumerate([SMALL, SHAPES[9], SHAPES[10]]):
            arguments = operator.arguments(shape, Source(seed, dtype))
            found = call(name, operator.public, move(arguments, device))
            assert_same(found, operator.reference(*arguments), operator.exact)


@every_operator
def test_plain_torch_equals_the_loop_in_every_type(name: str, device: torch.device) -> None:
    operator = OPERATORS[name]
    for dtype in operator.dtypes:
        for seed, shape in enumerate([*SHAPES[:6], SMALL, SHAPES[9]]):
            arguments = operator.arguments(shape, Source(seed, dtype))
            found = call(name, operator.plain, move(arguments, device))
            assert_same(found, operator.reference(*arguments), operator.exact)


@every_operator
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_equals_the_loop_for_any_shape(name: str, data: st.DataObject) -> None:
    operator = OPERATORS[name]
    sizes = [
        data.draw(st.integers(0, most), label) for label, most in zip("BONIKM", [4, 3, 70, 20, 70, 40], strict=True)
    ]
    source = Source(data.draw(st.integers(0, 2**31)), data.draw(st.sampled_from(operator.dtypes)))
    arguments = operator.arguments(Shape(*sizes), source)
    expected = operator.reference(*arguments)
    assert_same(call(name, operator.public, arguments), expected, operator.exact)
    assert_same(call(name, operator.plain, arguments), expected, operator.exact)


@every_operator
def test_nothing_outside_is_touched(name: str, device: torch.device) -> None:
    """Every index and size is as far outside as it can be."""
    operator = OPERATORS[name]
    for value in (INT64.min, INT64.min + 1, -1, 1 << 31, 1 << 32, INT64.max - 1, INT64.max):
        arguments = pytree.tree_map(
            lambda leaf, value=value: (
                torch.full_like(leaf, value, dtype=torch.int64)
                if isinstance(leaf, Tensor) and leaf.dtype in (torch.int32, torch.int64)
                else leaf
            ),
            operator.arguments(SHAPES[10], Source(0, given=True)),
        )
        found = call(name, operator.public, move(arguments, device))
        assert_same(found, operator.reference(*arguments), operator.exact)


@every_operator
def test_any_strides(name: str, device: torch.device) -> None:
    operator = OPERATORS[name]

    def transposed(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dim() < 2:
            return leaf
        return leaf.transpose(0, -1).contiguous().transpose(0, -1)

    def every_second(leaf: Any) -> Any:
        return torch.stack([leaf, leaf], -1)[..., 0] if isinstance(leaf, Tensor) else leaf

    def padded_rows(leaf: Any) -> Any:
        return torch.cat([leaf, leaf], -1)[..., : leaf.shape[-1]] if isinstance(leaf, Tensor) and leaf.dim() else leaf

    for layout in (transposed, every_second, padded_rows):
        for seed, shape in enumerate([SMALL, SHAPES[10]]):
            arguments = operator.arguments(shape, Source(seed))
            strided = pytree.tree_map(layout, move(arguments, device))
            out = strided[0] if name in IN_PLACE else operator.public(*strided)
            if name in IN_PLACE:
                operator.public(*strided)
            assert_same(out, operator.reference(*arguments), operator.exact)


@every_operator
def test_same_bits_every_time(name: str, device: torch.device) -> None:
    operator = OPERATORS[name]
    for dtype in operator.dtypes:
        arguments = move(operator.arguments(SHAPES[10], Source(1, dtype)), device)
        first = [bits(leaf) for leaf in pytree.tree_leaves(call(name, operator.public, arguments))]
        for _ in range(3):
            again = [bits(leaf) for leaf in pytree.tree_leaves(call(name, operator.public, arguments))]
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@every_operator
def test_result_is_fresh_memory(name: str, device: torch.device) -> None:
    arguments = move(OPERATORS[name].arguments(SMALL, Source(0)), device)
    inputs = {leaf.untyped_storage().data_ptr() for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor)}
    for leaf in pytree.tree_leaves(call(name, OPERATORS[name].public, arguments)):
        assert leaf.is_contiguous() and leaf.untyped_storage().data_ptr() not in inputs


def results_of_everything() -> dict[str, list[Tensor]]:
    """The bits of many calls of every operator."""
    results = {}
    for name, operator in OPERATORS.items():
        for dtype in operator.dtypes:
            for seed, shape in enumerate(SHAPES):
                leaves = pytree.tree_leaves(call(name, operator.public, operator.arguments(shape, Source(seed, dtype))))
                results[f"{name} {dtype} {shape}"] = [bits(leaf) for leaf in leaves]
    return results


@needs_compiled
def test_algorithms_of_the_device_on_the_host(tmp_path: Path) -> None:
    """The kernels' host twins give the bits of the CPU kernels, sums included."""
    path = tmp_path / "twin.pt"
    environment = os.environ | {"RAGGEDBEV_HOST_TWIN": "1"}
    done = subprocess.run([sys.executable, __file__, path], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    twin = torch.load(path)
    for key, expected in results_of_everything().items():
        assert all(torch.equal(a, b) for a, b in zip(twin[key], expected, strict=True)), key


def test_sums_are_as_exact_as_their_order_allows(device: torch.device) -> None:
    data = torch.rand(4, 1, 3000, 5, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([3000, 2999, 31, 33])
    found = primitives.ragged_sum(data.to(device), sizes.to(device)).cpu()
    expected = sum_reference(data.double(), sizes)
    assert ((found - expected).abs() / expected).max() < 2e-6


def test_genuine_nan_stays_and_filler_nan_does_not_leak(device: torch.device) -> None:
    nan = float("nan")
    data = torch.tensor([[1.0, nan, nan], [1.0, 2.0, nan]], device=device)[:, None, :, None]
    found = primitives.ragged_sum(data, torch.tensor([2, 2], device=device)).flatten()
    assert found[0].isnan() and found[1] == 3
    grad = torch.full((1, 1, 2, 1), nan, device=device)
    none = torch.tensor([0], device=device)
    assert primitives.ragged_fill(grad, none, 0).eq(0).all()
    assert primitives.ragged_expand(grad[:, :, 0], none, 2).eq(0).all()


# ---- gradients -------------------------------------------------------------------------------------------------------


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
            plain = pytree.tree_leaves(operator.plain(*arguments))[0]
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
    result = primitives.ragged_gather(data, indices, None, None)
    indices.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()


# ---- transformations -------------------------------------------------------------------------------------------------


@needs_compiled
@every_operator
def test_opcheck(name: str, device: torch.device) -> None:
    operator = OPERATORS[name]
    for seed, shape in enumerate([SMALL, SHAPES[2], SHAPES[9]]):
        arguments = list(move(operator.arguments(shape, Source(seed)), device))
        for i in operator.differentiable:
            if arguments[i] is not None:
                arguments[i] = arguments[i].nan_to_num().requires_grad_()
        torch.library.opcheck(operator.compiled(), tuple(arguments))


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
        return primitives.ragged_sum(primitives.ragged_gather(data, indices, sizes, None), sizes)

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


# ---- CUDA ------------------------------------------------------------------------------------------------------------


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


# ---- wrong arguments -------------------------------------------------------------------------------------------------

DATA, INDICES, SIZES = torch.zeros(2, 1, 3, 4), torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, dtype=torch.long)
WRONG = [
    ("ragged_gather", (DATA[0], INDICES, None, None, 0), ValueError, r"data must be \[B, O, N, I\], got \(1, 3, 4\)"),
    (
        "ragged_gather",
        (DATA, INDICES.float(), None, None, 0),
        TypeError,
        "indices must be int32 or int64, got torch.float32",
    ),
    ("ragged_gather", (DATA, INDICES[:1], None, None, 0), ValueError, r"indices must have B = 2 samples, got \(1, 5\)"),
    ("ragged_gather", (DATA, INDICES, SIZES[:1], None, 0), ValueError, "num_indices must have B = 2 samples"),
    ("ragged_gather", (DATA, INDICES, None, INDICES, 0), ValueError, r"num_rows must be \[B\], got \(2, 5\)"),
    (
        "ragged_gather",
        (DATA.long(), INDICES, None, None, 0.5),
        ValueError,
        "filler must be representable in torch.int64, got",
    ),
    (
        "ragged_gather",
        (DATA, INDICES, None, None, 1j),
        ValueError,
        "filler must be representable in torch.float32, got",
    ),
    (
        "ragged_scatter_add",
        (DATA.long(), INDICES[:, :3], None, None, 2),
        TypeError,
        "values must have a floating-point",
    ),
    ("ragged_scatter_add", (DATA, INDICES, None, None, 2), ValueError, r"indices must be \[B, K = 3\], got \(2, 5\)"),
    ("ragged_scatter_add", (DATA, INDICES[:, :3], None, None, -1), ValueError, "num must not be negative, got -1"),
    (
        "ragged_write",
        (DATA[:, 0], INDICES[:, :2], INDICES, None, None, None, None, 3, 0),
        ValueError,
        r"source_indices must be \[B, K = 5\] like target_indices, got \(2, 2\)",
    ),
    (
        "ragged_write",
        (DATA[:, 0], None, INDICES, None, None, None, DATA[:, 0].double(), 3, 0),
        TypeError,
        "into must be torch.float32 like source, got torch.float64",
    ),
    (
        "ragged_write",
        (DATA[:, 0], None, INDICES, None, None, None, DATA[:, 0], 4, 0),
        ValueError,
        r"into must be \(2, 4, 4\), got \(2, 3, 4\)",
    ),
    ("ragged_mask_from_indices", (SIZES, None, 3), ValueError, r"indices must be \[B, K\], got \(2,\)"),
    ("ragged_mask_from_indices", (INDICES, None, -3), ValueError, "num must not be negative, got -3"),
    ("ragged_indices_from_mask", (INDICES, None, 3), TypeError, "mask must be bool, got torch.int64"),
    ("ragged_fill", (DATA, SIZES.float(), 0), TypeError, "sizes must be int32 or int64, got torch.float32"),
    ("ragged_fill", (DATA.bool(), SIZES, 0.5), ValueError, "value must be representable in torch.bool, got 0.5"),
    ("ragged_sum", (DATA, SIZES[:1]), ValueError, r"sizes must have B = 2 samples, got \(1,\)"),
    ("ragged_expand", (DATA, SIZES, 2), ValueError, r"values must be \[B, O, I\], got \(2, 1, 3, 4\)"),
    ("ragged_pack_", (DATA, [DATA[0]]), ValueError, r"out must be \[B = 1, N, ...\] for so many samples, got"),
    (
        "ragged_pack_",
        (DATA, [DATA[0], DATA[1, :, :2]]),
        ValueError,
        r"sample 1 must be \[at most 1, \*\(3, 4\)\], got \(1, 2, 4\)",
    ),
    (
        "ragged_pack_",
        (DATA, [DATA[0], DATA[1].double()]),
        ValueError,
        "sample 1 must be torch.float32 on cpu like out, got torch.float64",
    ),
    (
        "ragged_pack_",
        (DATA, [DATA[0], DATA[1].clone().requires_grad_()]),
        ValueError,
        "ragged_pack_ has no gradient, but out or a sample requires one",
    ),
]


@needs_compiled
@pytest.mark.parametrize(("name", "arguments", "error", "message"), WRONG)
def test_wrong_arguments(name: str, arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        OPERATORS[name].public(*arguments)


def test_pack_takes_samples_of_any_strides_and_leaves_its_surroundings_alone() -> None:
    around = torch.full((3, 4, 6), 7.0)
    samples = [torch.randn(6, 2).t()[:, :3], torch.randn(0, 3)]
    primitives.ragged_pack_(around[:2, :3, :3], samples)
    expected = torch.full((3, 4, 6), 7.0)
    expected[:2, :3, :3] = 0
    expected[0, :2, :3] = samples[0]
    assert torch.equal(around, expected)


def test_pack_counts_as_a_change_of_its_argument() -> None:
    out = torch.zeros(1, 2)
    version = out._version
    primitives.ragged_pack_(out, [torch.ones(1)])
    assert out._version > version


# ---- completeness ----------------------------------------------------------------------------------------------------


def test_every_operator_is_in_the_table() -> None:
    library = (Path(__file__).resolve().parents[2] / "csrc" / "library.cpp").read_text()
    assert set(re.findall(r'm\.def\(\s*"(ragged_\w+)\(', library)) == set(OPERATORS)
    assert {name for name in vars(primitives) if name.startswith("ragged_")} == set(OPERATORS)
    assert {name for name, operator in OPERATORS.items() if not operator.differentiable} == NO_GRADIENT
    assert {name for name, operator in OPERATORS.items() if operator.dtypes == [torch.float32]} == {
        "ragged_mask_from_indices",
        "ragged_indices_from_mask",
    }, "operators on data are tested in every type"
    assert {name for name, *_ in WRONG} == set(OPERATORS)


def test_every_generic_test_runs_over_the_whole_table() -> None:
    over = {}
    for function in ast.parse(Path(__file__).read_text()).body:
        if isinstance(function, ast.FunctionDef) and "name" in {argument.arg for argument in function.args.args}:
            over[function.name] = {ast.unparse(decorator) for decorator in function.decorator_list}
    generic = {
        name: marks for name, marks in over.items() if name.startswith("test_") and name != "test_wrong_arguments"
    }
    assert len(generic) >= 20
    for name, marks in generic.items():
        assert len(marks & {"every_operator", "every_differentiable", "every_functional"}) == 1, name


if __name__ == "__main__":
    torch.save(results_of_everything(), sys.argv[1])
