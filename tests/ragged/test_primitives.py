"""The primitive ragged operators: values, wrong arguments, and that no test leaves one out. The table of all of them is
tests/ragged_operators.py; gradients, transformations and CUDA are in the files beside this one.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ragged_operators
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ragged_operators import (
    IN_PLACE,
    INT64,
    NO_GRADIENT,
    OPERATORS,
    SHAPES,
    SMALL,
    Shape,
    Source,
    assert_same,
    bits,
    call,
    every_functional,
    every_operator,
    move,
    needs_compiled,
    results_of_everything,
    sum_reference,
)
from torch import Tensor
from torch.utils import _pytree as pytree

from raggedbev.ragged import primitives

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


def reshaped(leaf: Any) -> Any:
    """[B, ...] as [2, B / 2, ...], and data [B, .., I] as [2, B / 2, .., 2, I / 2]."""
    if not isinstance(leaf, Tensor):
        return leaf
    batch, data = (2, leaf.shape[0] // 2), leaf.shape[1:]
    return leaf.reshape(batch + data if len(data) < 2 else (*batch, *data[:-1], 2, data[-1] // 2))


@every_functional
def test_more_batch_and_data_dimensions(name: str, device: torch.device) -> None:
    operator = OPERATORS[name]
    for seed in range(6):
        arguments = operator.arguments(Shape(4, 3, 6, 4, 7, 5), Source(seed))
        other = list(pytree.tree_map(reshaped, move(arguments, device)))
        if operator.has_dim:
            other[-1] = -3
        assert_same(operator.public(*other), pytree.tree_map(reshaped, operator.reference(*arguments)), operator.exact)
        plain = operator.plain(*other)
        assert_same(plain, pytree.tree_map(reshaped, operator.reference(*arguments)), operator.exact)


@every_functional
def test_without_batch_dimensions(name: str, device: torch.device) -> None:
    operator = OPERATORS[name]
    for seed in range(6):
        arguments = operator.arguments(SMALL, Source(seed))
        first = pytree.tree_map(lambda leaf: leaf[0] if isinstance(leaf, Tensor) else leaf, move(arguments, device))
        expected = pytree.tree_map(lambda leaf: leaf[0], operator.reference(*arguments))
        for function in (operator.public, operator.plain):
            assert_same(function(*first), expected, operator.exact)


@every_operator
def test_conjugated_and_negated_views(name: str, device: torch.device) -> None:
    """Their memory does not hold what they stand for."""
    operator = OPERATORS[name]
    views = {
        torch.complex64: lambda leaf: leaf.conj(),
        torch.float32: lambda leaf: torch.complex(leaf, -leaf).conj().imag,
    }
    for dtype, view in views.items():
        if dtype not in operator.dtypes or name in IN_PLACE:
            continue
        arguments = operator.arguments(SMALL, Source(0, dtype))
        lazy = [view(leaf) if isinstance(leaf, Tensor) and leaf.dtype == dtype else leaf for leaf in arguments]
        lazy = pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, lazy)
        resolved = [leaf.cpu().resolve_conj().resolve_neg() if isinstance(leaf, Tensor) else leaf for leaf in lazy]
        assert_same(operator.public(*lazy), operator.reference(*resolved), operator.exact)


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


@needs_compiled
def test_algorithms_of_the_device_on_the_host(tmp_path: Path) -> None:
    """The kernels' host twins give the bits of the CPU kernels, sums included."""
    path = tmp_path / "twin.pt"
    environment = os.environ | {"RAGGEDBEV_HOST_TWIN": "1"}
    command = [sys.executable, ragged_operators.__file__, path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    twin = torch.load(path)
    for key, expected in results_of_everything().items():
        assert all(torch.equal(a, b) for a, b in zip(twin[key], expected, strict=True)), key


def test_sums_are_as_exact_as_their_order_allows(device: torch.device) -> None:
    data = torch.rand(4, 1, 3000, 5, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([3000, 2999, 31, 33])
    found = primitives.ragged_sum(data.to(device), sizes.to(device), -2).cpu()
    expected = sum_reference(data.double(), sizes, -2)
    assert ((found - expected).abs() / expected).max() < 2e-6


def test_genuine_nan_stays_and_filler_nan_does_not_leak(device: torch.device) -> None:
    nan = float("nan")
    data = torch.tensor([[1.0, nan, nan], [1.0, 2.0, nan]], device=device)[:, None, :, None]
    found = primitives.ragged_sum(data, torch.tensor([2, 2], device=device), -2).flatten()
    assert found[0].isnan() and found[1] == 3
    grad = torch.full((1, 1, 2, 1), nan, device=device)
    none = torch.tensor([0], device=device)
    assert primitives.ragged_fill(grad, none, 0, -2).eq(0).all()
    assert primitives.ragged_expand(grad[:, :, 0], none, 2, -2).eq(0).all()


# ---- wrong arguments -------------------------------------------------------------------------------------------------

DATA, INDICES, SIZES = torch.zeros(2, 1, 3, 4), torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, dtype=torch.long)
ROWS, THREE = DATA[:, 0], INDICES[:, :3]  # [2, 3, 4], [2, 3]
WRONG: list[tuple[str, tuple, type[Exception], str]] = [
    (
        "gather",
        (DATA[0], INDICES, None, None, 0, -2),
        ValueError,
        r"data must have the batch shape \(2,\) of indices, got",
    ),
    ("gather", (DATA, INDICES, None, None, 0, -4), ValueError, r"dim must lie in \[-3, -1\] for data .*, got -4"),
    ("gather", (DATA, INDICES, None, None, 0, 2), ValueError, r"dim must lie in \[-3, -1\] for data .*, got 2"),
    ("gather", (DATA, INDICES.sum(), None, None, 0, -2), ValueError, r"indices must be \[\*batch, K\], got \(\)"),
    (
        "gather",
        (DATA, INDICES.float(), None, None, 0, -2),
        TypeError,
        "indices must be int32 or int64, got torch.float32",
    ),
    ("gather", (DATA, INDICES, SIZES[:1], None, 0, -2), ValueError, r"num_indices must have the batch shape \(2,\) of"),
    ("gather", (DATA, INDICES, None, INDICES, 0, -2), ValueError, r"num_rows must be \[\*batch\], got \(2, 5\)"),
    (
        "gather",
        (DATA.long(), INDICES, None, None, 0.5, -2),
        ValueError,
        "filler must be representable in torch.int64, got",
    ),
    ("gather", (DATA, INDICES, None, None, 1j, -2), ValueError, "filler must be representable in torch.float32, got"),
    ("scatter_add", (DATA.long(), THREE, None, None, 2, -2), TypeError, "values must have a floating-point type"),
    (
        "scatter_add",
        (DATA, INDICES, None, None, 2, -2),
        ValueError,
        r"indices must be \[\*batch, K = 3\], got \(2, 5\)",
    ),
    ("scatter_add", (DATA, THREE, None, None, -1, -2), ValueError, "num must not be negative, got -1"),
    (
        "write",
        (ROWS, THREE, INDICES, None, None, None, None, 3),
        ValueError,
        r"must be \(2, 5\) like target_indices, got",
    ),
    (
        "write",
        (ROWS, None, INDICES, None, None, None, ROWS.double(), 3),
        TypeError,
        "into must be torch.float32 like source",
    ),
    (
        "write",
        (ROWS, None, INDICES, None, None, None, ROWS, 4),
        ValueError,
        r"into must be \(2, 4, 4\), got \(2, 3, 4\)",
    ),
    (
        "write",
        (SIZES, None, INDICES, None, None, None, None, 4),
        ValueError,
        r"source must be \[\*batch, S, ...\], got \(2,\)",
    ),
    (
        "write_backward",
        (ROWS.int(), None, INDICES, None, None, None, 3, True, True),
        TypeError,
        "grad must have a floating",
    ),
    ("write_backward", (ROWS, None, INDICES, None, None, None, -3, True, True), ValueError, "num must not be negative"),
    (
        "write_backward",
        (ROWS[:1], None, INDICES, None, None, None, 3, True, True),
        ValueError,
        "grad must have the batch",
    ),
    ("mask_from_indices", (SIZES.sum(), None, 3), ValueError, r"indices must be \[\*batch, K\], got \(\)"),
    ("mask_from_indices", (INDICES, None, -3), ValueError, "num must not be negative, got -3"),
    ("indices_from_mask", (INDICES, None, 3), TypeError, "mask must be bool, got torch.int64"),
    ("fill", (DATA, SIZES.float(), 0, -2), TypeError, "sizes must be int32 or int64, got torch.float32"),
    ("fill", (DATA.bool(), SIZES, 0.5, -2), ValueError, "value must be representable in torch.bool, got 0.5"),
    ("sum", (DATA, SIZES[:1], -2), ValueError, r"data must have the batch shape \(1,\) of sizes, got \(2, 1, 3, 4\)"),
    ("expand", (DATA, SIZES, 2, -5), ValueError, r"dim must lie in \[-4, -1\] for values \(2, 1, 3, 4\), got -5"),
    ("expand", (DATA, SIZES, -2, -1), ValueError, "num must not be negative, got -2"),
    ("pack_", (DATA, [DATA[0]]), ValueError, r"out must be \[B = 1, N, ...\] for so many samples, got"),
    (
        "pack_",
        (DATA, [DATA[0], DATA[1, :, :2]]),
        ValueError,
        r"sample 1 must have at most 1 entries of shape \(3, 4\), got \(1, 2, 4\)",
    ),
    (
        "pack_",
        (DATA, [DATA[0], DATA[1].double()]),
        ValueError,
        "sample 1 must be torch.float32 on cpu like the batch, got",
    ),
    ("pack_", (DATA, [DATA[0], DATA[1].clone().requires_grad_()]), ValueError, "ragged_pack_ has no gradient, but"),
]


@needs_compiled
@pytest.mark.parametrize(("name", "arguments", "error", "message"), WRONG)
def test_wrong_arguments(name: str, arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        OPERATORS[f"ragged_{name}"].public(*arguments)


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
    assert {f"ragged_{name}" for name, *_ in WRONG} == set(OPERATORS)


def test_every_generic_test_runs_over_the_whole_table() -> None:
    over = {}
    for path in Path(__file__).parent.glob("test_primitives*.py"):
        for function in ast.parse(path.read_text()).body:
            if isinstance(function, ast.FunctionDef) and "name" in {argument.arg for argument in function.args.args}:
                over[function.name] = {ast.unparse(decorator) for decorator in function.decorator_list}
    generic = {
        name: marks for name, marks in over.items() if name.startswith("test_") and name != "test_wrong_arguments"
    }
    assert len(generic) >= 20
    for name, marks in generic.items():
        assert len(marks & {"every_operator", "every_differentiable", "every_functional"}) == 1, name
