"""All primitive ragged operators in one table, for the tests in tests/ragged/test_primitives*.py.

In: a shape and a source of random arguments. Out: per operator a call, and a loop that says what must come out. Run as
a script, it writes the bits of many results to a file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
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
    Shape(2, 1, 37, 160, 45, 40),  # rows that are worth looking up before they are copied
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
    """public: the Python function; plain: its fallback; reference: the obvious loop; arguments: a random call with one
    batch dimension and data [B, O, N, I] or [B, N, I], so that `dim`, where there is one, is the last argument and -2.

    differentiable: numbers of the arguments that get gradients; exact: nothing is rounded, results are equal bit for
    bit on every path; has_dim: whether there is a `dim`.
    """

    public: Callable[..., Any]
    plain: Callable[..., Any]
    reference: Callable[..., Any]
    arguments: Callable[[Shape, Source], tuple]
    dtypes: list[torch.dtype]
    differentiable: tuple[int, ...] = ()
    exact: bool = True
    has_dim: bool = False


def size_of(sizes: Tensor | None, sample: int, most: int) -> int:
    return most if sizes is None else min(max(int(sizes[sample]), 0), most)


def valid_entries(
    indices: Tensor, num_indices: Tensor | None, num_rows: Tensor | None, most: int
) -> Iterator[tuple[int, int, int]]:
    for b in range(indices.shape[0]):
        for k in range(size_of(num_indices, b, indices.shape[1])):
            if 0 <= int(indices[b, k]) < size_of(num_rows, b, most):
                yield b, k, int(indices[b, k])


def gather_reference(data: Tensor, indices: Tensor, num_indices: Any, num_rows: Any, filler: Any, dim: int) -> Tensor:
    out = data.new_full((data.shape[0], data.shape[1], indices.shape[1], data.shape[3]), filler)
    for b, k, n in valid_entries(indices, num_indices, num_rows, data.shape[2]):
        out[b, :, k] = data[b, :, n]
    return out


def scatter_add_reference(
    values: Tensor, indices: Tensor, num_indices: Any, num_rows: Any, num: int, dim: int
) -> Tensor:
    wide = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    out = wide.new_zeros((values.shape[0], values.shape[1], num, values.shape[3]))
    for b, k, n in valid_entries(indices, num_indices, num_rows, num):
        out[b, :, n] += wide[b, :, k]
    return out.to(values.dtype)


def written_rows(
    source_indices: Tensor | None,
    target_indices: Tensor,
    num_indices: Any,
    num_source: Any,
    num_targets_valid: Any,
    num: int,
    num_targets: int,
) -> dict[tuple[int, int], int]:
    """Row of the source by sample and target, in the order of the entries that won."""
    rows: dict[tuple[int, int], int] = {}
    for b, k, target in valid_entries(target_indices, num_indices, num_targets_valid, num_targets):
        row = k if source_indices is None else int(source_indices[b, k])
        if 0 <= row < size_of(num_source, b, num):
            rows.pop((b, target), None)
            rows[b, target] = row
    return rows


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
) -> Tensor:
    out = source.new_full((source.shape[0], num_targets, source.shape[2]), filler) if into is None else into.clone()
    of_entries = (source_indices, target_indices, num_indices, num_source, num_targets_valid)
    for (b, target), row in written_rows(*of_entries, source.shape[1], num_targets).items():
        out[b, target] = source[b, row]
    return out


def write_backward_reference(
    grad: Tensor,
    source_indices: Tensor | None,
    target_indices: Tensor,
    num_indices: Any,
    num_source: Any,
    num_targets_valid: Any,
    num: int,
    to_source: bool,
    to_into: bool,
) -> tuple[Tensor, Tensor]:
    into, wide = grad.clone(), grad.float() if grad.dtype in (torch.float16, torch.bfloat16) else grad
    source = wide.new_zeros((grad.shape[0], num, grad.shape[2]))
    of_entries = (source_indices, target_indices, num_indices, num_source, num_targets_valid)
    for (b, target), row in written_rows(*of_entries, num, grad.shape[1]).items():
        source[b, row] += wide[b, target]
        into[b, target] = 0
    source = source.to(grad.dtype)
    return source if to_source else source[:, :0], into if to_into else into[:, :0]


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


def fill_reference(data: Tensor, sizes: Tensor, value: Any, dim: int = -2) -> Tensor:
    out = data.clone()
    for b in range(data.shape[0]):
        out[b, :, size_of(sizes, b, data.shape[2]) :] = value
    return out


def sum_reference(data: Tensor, sizes: Tensor, dim: int) -> Tensor:
    dtype = primitives._sum_dtype(data.dtype)
    wide = torch.float64 if dtype.is_floating_point else dtype
    out = torch.zeros((data.shape[0], data.shape[1], data.shape[3]), dtype=dtype)
    for b in range(data.shape[0]):
        out[b] = data[b, :, : size_of(sizes, b, data.shape[2])].to(wide).sum(1)
    return out


def expand_reference(values: Tensor, sizes: Tensor, num: int, dim: int) -> Tensor:
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
    return data, source.integers([s.B, s.K], s.N), source.sizes(s.B, s.K), num_rows, source.filler(), -2


def scatter_add_arguments(s: Shape, source: Source) -> tuple:
    num_indices = source.sizes(s.B, s.K)
    values = source.data(s.B, s.O, s.K, s.I)
    if num_indices is not None:
        values = poisoned(values, num_indices)
    return values, source.integers([s.B, s.K], s.N), num_indices, source.sizes(s.B, s.N), s.N, -2


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


def write_backward_arguments(s: Shape, source: Source) -> tuple:
    to_source, to_into = [(True, True), (True, False), (False, True)][source.number(0, 2)]
    return (
        source.data(s.B, s.M, s.I),
        source.integers([s.B, s.K], s.N) if source.number(0, 1) else None,
        source.integers([s.B, s.K], s.M),
        source.sizes(s.B, s.K),
        source.sizes(s.B, s.N),
        source.sizes(s.B, s.M),
        s.N,
        to_source,
        to_into,
    )


def fill_arguments(s: Shape, source: Source) -> tuple:
    data, sizes, dim = sum_arguments(s, source)
    return data, sizes, source.filler(), dim


def sum_arguments(s: Shape, source: Source) -> tuple:
    sizes = source.integers([s.B], s.N)
    return poisoned(source.data(s.B, s.O, s.N, s.I), sizes), sizes, -2


def pack_arguments(s: Shape, source: Source) -> tuple:
    samples = [source.data(source.number(0, s.N), s.O, s.I) for _ in range(s.B)]
    return source.data(s.B, s.N, s.O, s.I), samples


OPERATORS: dict[str, Operator] = {
    "ragged_gather": Operator(
        primitives.ragged_gather,
        primitives._gather_plain,
        gather_reference,
        gather_arguments,
        FLOATS + COMPLEX + INTEGERS,
        differentiable=(0,),
        has_dim=True,
    ),
    "ragged_scatter_add": Operator(
        primitives.ragged_scatter_add,
        primitives._scatter_add_plain,
        scatter_add_reference,
        scatter_add_arguments,
        FLOATS + COMPLEX,
        differentiable=(0,),
        exact=False,
        has_dim=True,
    ),
    "ragged_write": Operator(
        primitives.ragged_write,
        primitives._write_plain,
        write_reference,
        write_arguments,
        FLOATS + COMPLEX + INTEGERS,
        differentiable=(0, 6),
    ),
    "ragged_write_backward": Operator(
        primitives.ragged_write_backward,
        primitives._write_backward_plain,
        write_backward_reference,
        write_backward_arguments,
        FLOATS + COMPLEX,
        differentiable=(0,),
        exact=False,
    ),
    "ragged_mask_from_indices": Operator(
        primitives.ragged_mask_from_indices,
        primitives._mask_from_indices_plain,
        mask_from_indices_reference,
        lambda s, source: (source.integers([s.B, s.K], s.N), source.sizes(s.B, s.K), s.N),
        [torch.float32],
    ),
    "ragged_indices_from_mask": Operator(
        primitives.ragged_indices_from_mask,
        primitives._indices_from_mask_plain,
        indices_from_mask_reference,
        lambda s, source: (source.mask(s.B, s.N), source.sizes(s.B, s.N), s.M),
        [torch.float32],
    ),
    "ragged_fill": Operator(
        primitives.ragged_fill,
        primitives._fill_plain,
        fill_reference,
        fill_arguments,
        FLOATS + COMPLEX + INTEGERS,
        differentiable=(0,),
        has_dim=True,
    ),
    "ragged_sum": Operator(
        primitives.ragged_sum,
        primitives._sum_plain,
        sum_reference,
        sum_arguments,
        FLOATS + COMPLEX + INTEGERS,
        differentiable=(0,),
        exact=False,
        has_dim=True,
    ),
    "ragged_expand": Operator(
        primitives.ragged_expand,
        primitives._expand_plain,
        expand_reference,
        lambda s, source: (source.data(s.B, s.O, s.I), source.integers([s.B], s.N), s.N, -2),
        FLOATS + COMPLEX + INTEGERS,
        differentiable=(0,),
        has_dim=True,
    ),
    "ragged_pack_": Operator(
        primitives.ragged_pack_,
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


def differentiable_result(results: Any) -> Tensor:
    """The result; two of them [B, N, I] as one."""
    return results if isinstance(results, Tensor) else torch.cat(results, dim=1)


def of_differentiable(name: str, arguments: Sequence) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The result as a function of the arguments that get gradients; these."""
    places = [i for i in OPERATORS[name].differentiable if arguments[i] is not None]

    def function(*tensors: Tensor) -> Tensor:
        filled = list(arguments)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        return differentiable_result(OPERATORS[name].public(*filled))

    return function, [arguments[i].nan_to_num().requires_grad_() for i in places]


def results_of_everything() -> dict[str, list[Tensor]]:
    """The bits of many calls of every operator."""
    results = {}
    for name, operator in OPERATORS.items():
        for dtype in operator.dtypes:
            for seed, shape in enumerate(SHAPES):
                leaves = pytree.tree_leaves(call(name, operator.public, operator.arguments(shape, Source(seed, dtype))))
                results[f"{name} {dtype} {shape}"] = [bits(leaf) for leaf in leaves]
    return results


if __name__ == "__main__":
    torch.save(results_of_everything(), sys.argv[1])
