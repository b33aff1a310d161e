"""draw_gaussian_heatmap against the per-object loop: equality, not closeness."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raggedbev import _extension, draw_gaussian_heatmap
from raggedbev.heatmap import gaussian
from raggedbev.heatmap.reference import draw_gaussian_heatmap_reference

INT64 = torch.iinfo(torch.int64)
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

# Objects as (map_index, x, y, radius) and the maps as (num_maps, height, width); degenerate ones first.
CASES = {
    "no objects": ([], (2, 4, 5)),
    "no maps": ([], (0, 4, 5)),
    "objects but no maps": ([(0, 1, 1, 2)], (0, 4, 5)),
    "no rows": ([(0, 1, 1, 2)], (2, 0, 5)),
    "no columns": ([(0, 1, 1, 2)], (2, 4, 0)),
    "padding": ([(-1, 1, 1, 2), (0, 1, 1, -1), (2, 1, 1, 1), (INT64.min, 0, 0, 0), (INT64.max, 0, 0, 0)], (2, 4, 5)),
    "one cell": ([(0, 0, 0, 0)], (1, 1, 1)),
    "radius 0": ([(0, 3, 2, 0), (1, 4, 3, 0)], (2, 4, 5)),
    "shared cell": ([(0, 2, 2, 1), (0, 2, 2, 3), (0, 2, 2, 1)], (1, 6, 6)),
    "centre outside": ([(0, 5, 2, 2), (0, -1, 3, 1), (0, 2, -2, 3), (0, 2, 6, 2)], (1, 4, 5)),
    "wholly outside": ([(0, 9, 2, 2), (0, -4, 3, 3), (0, 2, -9, 3)], (1, 4, 5)),
    "larger than the map": ([(0, 2, 2, 40), (1, -7, 30, 31)], (2, 4, 5)),
    "far away": (
        [(0, x, y, r) for x in (INT64.min, 2, INT64.max) for y in (INT64.min, 2, INT64.max) for r in (0, 7)],
        (1, 4, 5),
    ),
    "many on one map": ([(0, i % 44, i % 16, i % 9) for i in range(90)], (6, 16, 44)),
}


def columns(objects: list[tuple[int, ...]], device: torch.device | str = "cpu") -> tuple[torch.Tensor, ...]:
    return torch.tensor(objects, dtype=torch.int64, device=device).reshape(-1, 4).unbind(1)


def random_objects(
    generator: torch.Generator, count: int, maps: int, size: int, radius: int
) -> tuple[torch.Tensor, ...]:
    def draw(low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high + 1, (count,), generator=generator)

    return draw(-1, maps), draw(-9, size + 8), draw(-9, size + 8), draw(-1, radius)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_equals_the_loop(name: str, dtype: torch.dtype, device: torch.device) -> None:
    objects, sizes = CASES[name]
    result = draw_gaussian_heatmap(*columns(objects, device), *sizes, dtype=dtype, max_radius=64)
    expected = draw_gaussian_heatmap_reference(*columns(objects, device), *sizes, dtype=dtype)
    assert result.dtype == dtype
    assert result.device.type == device.type
    assert torch.equal(result, expected)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(0, 40),
    maps=st.integers(0, 5),
    height=st.integers(0, 20),
    width=st.integers(0, 20),
    dtype=st.sampled_from(DTYPES),
    sigma_factor=st.sampled_from([6.0, 3.0, 7.7]),
    k=st.sampled_from([1.0, 0.3]),
)
def test_equals_the_loop_for_any_sizes(seed, count, maps, height, width, dtype, sigma_factor, k) -> None:
    objects = random_objects(torch.Generator().manual_seed(seed), count, maps, max(height, width), 24)
    options = {"dtype": dtype, "sigma_factor": sigma_factor, "k": k}
    result = draw_gaussian_heatmap(*objects, maps, height, width, max_radius=24, **options)
    assert torch.equal(result, draw_gaussian_heatmap_reference(*objects, maps, height, width, **options))


def test_compiled_and_plain_torch_agree_bit_for_bit(generator: torch.Generator, device: torch.device) -> None:
    objects = [entry.to(device) for entry in random_objects(generator, 300, 7, 40, 12)]
    table = gaussian.gaussian_table(12, 6.0, 1.0, torch.float32, device)
    arguments = (*objects, table, 7, 30, 40, 12, 6.0, 1.0)
    assert torch.equal(gaussian._draw(*arguments), gaussian._draw_plain(*arguments))


def test_plain_torch_in_several_parts(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gaussian, "_FALLBACK_CELLS", 1000)
    objects = random_objects(generator, 50, 3, 20, 9)
    table = gaussian.gaussian_table(9, 6.0, 1.0, torch.float32, torch.device("cpu"))
    result = gaussian._draw_plain(*objects, table, 3, 20, 20, 9, 6.0, 1.0)
    assert torch.equal(result, draw_gaussian_heatmap_reference(*objects, 3, 20, 20))


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_radius_beyond_the_table(plain: bool, dtype: torch.dtype) -> None:
    objects = columns([(0, 3, 3, 2), (0, 9, 9, 3), (1, 5, 5, 11), (1, -3, 40, 300), (0, 19, 2, INT64.max // 4)])
    if plain:
        table = gaussian.gaussian_table(2, 6.0, 1.0, dtype, torch.device("cpu"))
        result = gaussian._draw_plain(*objects, table, 2, 20, 20, 2, 6.0, 1.0)
    else:
        result = draw_gaussian_heatmap(*objects, 2, 20, 20, dtype=dtype, max_radius=2)
    expected = draw_gaussian_heatmap_reference(*objects, 2, 20, 20, dtype=dtype)
    np.testing.assert_array_max_ulp(result.numpy(), expected.numpy(), maxulp=1)


def test_values_are_those_of_the_formula() -> None:
    heatmap = draw_gaussian_heatmap(*columns([(1, 4, 3, 2)]), 2, 8, 9, dtype=torch.float64, k=0.5)
    dy, dx = np.mgrid[-2:3, -2:3]
    expected = np.zeros((2, 8, 9))
    expected[1, 1:6, 2:7] = 0.5 * np.exp(-(dx**2 + dy**2) / (2 * (5 / 6) ** 2))
    np.testing.assert_allclose(heatmap.numpy(), expected, rtol=1e-15)


def test_padded_shapes_and_integer_types(generator: torch.Generator) -> None:
    objects = random_objects(generator, 12, 4, 10, 4)
    expected = draw_gaussian_heatmap(*objects, 4, 10, 10)
    kinds = [torch.int64, torch.int32, torch.int16, torch.int8]
    reshaped = [entry.reshape(3, 4).to(kind) for entry, kind in zip(objects, kinds, strict=True)]
    assert torch.equal(draw_gaussian_heatmap(*reshaped, 4, 10, 10), expected)
    strided = [torch.stack([entry, entry], 1)[:, 0] for entry in objects]
    assert torch.equal(draw_gaussian_heatmap(*strided, 4, 10, 10), expected)


def test_result_is_fresh_memory() -> None:
    first = draw_gaussian_heatmap(*columns([(0, 1, 1, 1)]), 1, 3, 3)
    expected = first.clone()
    first.fill_(7)
    assert torch.equal(draw_gaussian_heatmap(*columns([(0, 1, 1, 1)]), 1, 3, 3), expected)


def test_first_call_in_inference_mode_leaves_a_usable_table() -> None:
    gaussian._cached_table.cache_clear()
    with torch.inference_mode():
        draw_gaussian_heatmap(*columns([(0, 1, 1, 1)]), 1, 3, 3)
    assert not gaussian.gaussian_table(3, 6.0, 1.0, torch.float32, torch.device("cpu")).is_inference()


def test_compiles_into_one_graph(generator: torch.Generator, device: torch.device) -> None:
    def loss(*objects: torch.Tensor) -> torch.Tensor:
        return draw_gaussian_heatmap(*objects, 4, 16, 20).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for count in (9, 0, 30):
        objects = [entry.to(device) for entry in random_objects(generator, count, 4, 20, 8)]
        assert torch.equal(compiled(*objects), loss(*objects))


@pytest.mark.skipif(not _extension.COMPILED, reason="the compiled operators were not built")
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype: torch.dtype, generator: torch.Generator, device: torch.device) -> None:
    table = gaussian.gaussian_table(5, 6.0, 1.0, dtype, device)
    for count in (0, 20):
        objects = [entry.to(device) for entry in random_objects(generator, count, 3, 9, 7)]
        arguments = (*objects, table, 3, 8, 9, 5, 6.0, 1.0)
        torch.library.opcheck(torch.ops.raggedbev.draw_gaussian_heatmap.default, arguments)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_neither_syncs_nor_refuses_graph_capture(generator: torch.Generator) -> None:
    objects = [entry.cuda() for entry in random_objects(generator, 40, 4, 30, 9)]
    expected = draw_gaussian_heatmap(*objects, 4, 30, 30)
    torch.cuda.set_sync_debug_mode("error")
    try:
        draw_gaussian_heatmap(*objects, 4, 30, 30)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = draw_gaussian_heatmap(*objects, 4, 30, 30)
    graph.replay()
    assert torch.equal(captured, expected)


VALID = {"map_index": [0], "x": [1], "y": [1], "radius": [1]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.tensor([1.0])}, "x must have an integer type, got torch.float32"),
        ({"radius": torch.tensor([True])}, "radius must have an integer type, got torch.bool"),
        ({"y": torch.tensor([1, 2])}, r"y must have the shape of map_index \(1,\), got \(2,\)"),
        ({"x": torch.zeros(1, dtype=torch.int64, device="meta")}, "x must be on the device of map_index cpu, got meta"),
        ({"num_maps": -1}, "num_maps must not be negative, got -1"),
        ({"height": -2}, "height must not be negative, got -2"),
        ({"dtype": torch.int32}, "dtype must be one of torch.float16, .* got torch.int32"),
        ({"max_radius": 513}, r"max_radius must lie in \[0, 512\], got 513"),
        ({"sigma_factor": 0.0}, "sigma_factor must be positive, got 0.0"),
        ({"k": float("nan")}, "k must be positive, got nan"),
    ],
)
def test_wrong_arguments(changes: dict[str, object], message: str) -> None:
    arguments = {name: torch.tensor(value) for name, value in VALID.items()}
    with pytest.raises(ValueError, match=message):
        draw_gaussian_heatmap(**(arguments | {"num_maps": 1, "height": 3, "width": 3} | changes))


@pytest.mark.skipif(not _extension.COMPILED, reason="the compiled operators were not built")
def test_operator_checks_its_own_arguments() -> None:
    objects, table = columns([(0, 1, 1, 1)]), torch.ones(5)
    draw = torch.ops.raggedbev.draw_gaussian_heatmap
    with pytest.raises(ValueError, match="table must hold the values of all radii up to 2"):
        draw(*objects, table, 1, 3, 3, 2, 6.0, 1.0)
    with pytest.raises(ValueError, match="x must be a vector as long as map_index"):
        draw(objects[0], objects[1][:0], *objects[2:], table, 1, 3, 3, 1, 6.0, 1.0)
    with pytest.raises(ValueError, match="height must not be negative, got -3"):
        draw(*objects, table, 1, -3, 3, 1, 6.0, 1.0)


def test_plain_torch_says_so_once() -> None:
    slow = _extension.load_operator("not_compiled_anywhere", fallback=torch.neg, fake=torch.neg)
    with pytest.warns(_extension.SlowPathWarning, match=r"raggedbev.not_compiled_anywhere runs as plain torch on cpu"):
        slow(torch.ones(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert slow(torch.ones(1)).item() == -1
