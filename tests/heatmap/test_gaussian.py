"""draw_gaussian_heatmap against the per-object loop: equality, not closeness."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raggedbev import _extension, draw_gaussian_heatmap
from raggedbev.heatmap import gaussian
from raggedbev.heatmap.reference import draw_gaussian_heatmap_reference
from raggedbev.ragged import RaggedBatch

INT64 = torch.iinfo(torch.int64)
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

# Objects as (map_index, x, y, radius) and the maps as (num_maps, height, width); degenerate ones first.
CASES = {
    "no objects": ([], (2, 4, 5)),
    "no maps": ([], (0, 4, 5)),
    "objects but no maps": ([(-1, 1, 1, 2)], (0, 4, 5)),
    "no rows": ([(0, 1, 1, 2)], (2, 0, 5)),
    "no columns": ([(0, 1, 1, 2)], (2, 4, 0)),
    "left out": ([(-1, 1, 1, 2), (0, 1, 1, -1), (-1, INT64.min, INT64.max, INT64.max)], (2, 4, 5)),
    "one cell": ([(0, 0, 0, 0)], (1, 1, 1)),
    "radius 0": ([(0, 3, 2, 0), (1, 4, 3, 0)], (2, 4, 5)),
    "shared cell": ([(0, 2, 2, 1), (0, 2, 2, 3), (0, 2, 2, 1)], (1, 6, 6)),
    "centre outside": ([(0, 5, 2, 2), (0, -1, 3, 1), (0, 2, -2, 3), (0, 2, 6, 2)], (1, 4, 5)),
    "wholly outside": ([(0, 9, 2, 2), (0, -4, 3, 3), (0, 2, -9, 3)], (1, 4, 5)),
    "larger than the map": ([(0, 2, 2, 40), (1, -7, 30, 31)], (2, 4, 5)),
    "all in one cell": ([(1, 3, 2, i % 5) for i in range(600)], (2, 4, 5)),
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

    return draw(-1, maps - 1), draw(-9, size + 8), draw(-9, size + 8), draw(-1, radius)


def operator_arguments(
    objects: Sequence[torch.Tensor], table: torch.Tensor, maps: int, height: int, width: int, max_radius: int, *options
) -> tuple:
    """Arguments of the operator for flat lists; `options`: sigma_factor, k, clip, as far as not 6, 1, True."""
    maps_of, *rest = (entry.reshape(1, -1) for entry in objects)
    options += (6.0, 1.0, True)[len(options) :]
    return (*rest, maps_of, None, None, table, maps, 1, height, width, max_radius, *options)


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
    classes=st.sampled_from([None, 1, 4]),
    layout=st.sampled_from(["yx", "xy"]),
    clip=st.booleans(),
)
def test_equals_the_loop_for_any_sizes(
    seed, count, maps, height, width, dtype, sigma_factor, k, classes, layout, clip
) -> None:
    generator = torch.Generator().manual_seed(seed)
    objects = random_objects(generator, count, maps, max(height, width), 24)
    options = {"dtype": dtype, "sigma_factor": sigma_factor, "k": k, "layout": layout, "clip": clip}
    if classes is not None:
        labels = torch.randint(-2, classes + 2, (count,), generator=generator)
        options |= {"labels": labels, "num_classes": classes}
    result = draw_gaussian_heatmap(*objects, maps, height, width, max_radius=24, **options)
    assert torch.equal(result, draw_gaussian_heatmap_reference(*objects, maps, height, width, **options))


def test_compiled_and_plain_torch_agree_bit_for_bit(generator: torch.Generator, device: torch.device) -> None:
    objects = [entry.to(device) for entry in random_objects(generator, 300, 7, 40, 12)]
    table = gaussian.gaussian_table(12, 6.0, 1.0, torch.float32, device)
    arguments = operator_arguments(objects, table, 7, 30, 40, 12)
    assert torch.equal(gaussian._draw(*arguments), gaussian._draw_plain(*arguments))


def test_plain_torch_in_several_parts(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gaussian, "_FALLBACK_CELLS", 1000)
    objects = random_objects(generator, 50, 3, 20, 9)
    table = gaussian.gaussian_table(9, 6.0, 1.0, torch.float32, torch.device("cpu"))
    result = gaussian._draw_plain(*operator_arguments(objects, table, 3, 20, 20, 9))
    assert torch.equal(result.squeeze(1), draw_gaussian_heatmap_reference(*objects, 3, 20, 20))


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_radius_beyond_the_table(plain: bool, dtype: torch.dtype) -> None:
    objects = columns([(0, 3, 3, 2), (0, 9, 9, 3), (1, 5, 5, 11), (1, -3, 40, 300), (0, 19, 2, INT64.max // 4)])
    if plain:
        table = gaussian.gaussian_table(2, 6.0, 1.0, dtype, torch.device("cpu"))
        result = gaussian._draw_plain(*operator_arguments(objects, table, 2, 20, 20, 2)).squeeze(1)
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


def ragged_objects(generator: torch.Generator, device: torch.device) -> tuple[RaggedBatch, ...]:
    """x, y, radius and labels of four samples; filler is as wrong as it can be."""
    sizes = torch.tensor([3, 0, 7, 1], device=device)

    def draw(low: int, high: int, filler: int) -> RaggedBatch:
        values = torch.randint(low, high, (4, 7), generator=generator).to(device)
        return RaggedBatch(values, sample_sizes=sizes).with_padded_set_to(filler)

    return draw(-3, 14, INT64.min), draw(-3, 14, INT64.max), draw(-1, 6, -7), draw(-1, 4, 2)


@pytest.mark.parametrize("layout", ["yx", "xy"])
@pytest.mark.parametrize("clip", [True, False])
def test_ragged_batches_equal_flat_lists(layout, clip, generator: torch.Generator, device: torch.device) -> None:
    x, y, radius, labels = ragged_objects(generator, device)
    options = {"layout": layout, "clip": clip}
    flat = [torch.cat(entry.split()) for entry in (x, y, radius, labels)]
    sample = torch.cat([torch.full((int(n),), b, device=device) for b, n in enumerate(x.sample_sizes.tolist())])
    agnostic = draw_gaussian_heatmap(None, x, y, radius, None, 9, 11, **options)
    assert torch.equal(agnostic, draw_gaussian_heatmap_reference(sample, *flat[:3], 4, 9, 11, **options))
    per_class = draw_gaussian_heatmap(None, x, y, radius, 4, 9, 11, labels=labels, num_classes=3, **options)
    assert per_class.shape == (4, 3, 9, 11)
    options |= {"labels": flat[3], "num_classes": 3}
    assert torch.equal(per_class, draw_gaussian_heatmap_reference(sample, *flat[:3], 4, 9, 11, **options))
    maps = x.create_with_sample_sizes_like_self(torch.arange(4, device=device).unsqueeze(1).expand(4, 7) // 2)
    halves = draw_gaussian_heatmap(maps, x, y, radius, 2, 9, 11)
    assert torch.equal(halves, draw_gaussian_heatmap_reference(sample // 2, *flat[:3], 2, 9, 11))


def test_ragged_batches_that_do_not_fit(generator: torch.Generator) -> None:
    x, y, radius, labels = ragged_objects(generator, torch.device("cpu"))
    with pytest.raises(TypeError, match="all of one kind, got x: RaggedBatch, y: Tensor"):
        draw_gaussian_heatmap(None, x, y.tensor, radius, None, 9, 9)
    with pytest.raises(ValueError, match="there is a map per sample, B = 4, got num_maps=3"):
        draw_gaussian_heatmap(None, x, y, radius, 3, 9, 9)
    with pytest.raises(TypeError, match="flat lists of objects need map_index and num_maps"):
        draw_gaussian_heatmap(None, x.tensor, y.tensor, radius.tensor, 4, 9, 9)
    with pytest.raises(ValueError, match=r"x must be a ragged batch \[B, G\], got \(4, 7, 1\)"):
        draw_gaussian_heatmap(None, x.unsqueeze_data_dim(2), y, radius, None, 9, 9)
    with pytest.raises(ValueError, match="labels must have an integer type"):
        draw_gaussian_heatmap(None, x, y, radius, None, 9, 9, labels=labels.float(), num_classes=3)


def stock_gaussian(radius: int, dtype: torch.dtype) -> torch.Tensor:
    """The kernel of a radius, written out with torch."""
    axis = torch.arange(-radius, radius + 1, dtype=dtype)
    sigma = (2 * radius + 1) / 6
    kernel = (-(axis[None] * axis[None] + axis[:, None] * axis[:, None]) / (2 * sigma * sigma)).exp()
    kernel[kernel < torch.finfo(dtype).eps * kernel.max()] = 0
    return kernel


@pytest.mark.parametrize("dtype", DTYPES)
def test_tables_of_torch(dtype: torch.dtype) -> None:
    for radius in [*range(20), 41, 100]:
        size = 2 * radius + 1
        objects = columns([(0, radius, radius, radius)])
        drawn = draw_gaussian_heatmap(*objects, 1, size, size, dtype=dtype, tables="torch", max_radius=100)
        assert torch.equal(drawn[0], stock_gaussian(radius, dtype))
    assert dtype not in (torch.float16, torch.bfloat16) or (drawn == 0).any()


def test_vmap(generator: torch.Generator, device: torch.device) -> None:
    def draw(maps, x, y, radius):
        return draw_gaussian_heatmap(maps, x, y, radius, 3, 8, 9)

    objects = [entry.reshape(5, 4).to(device) for entry in random_objects(generator, 20, 3, 9, 4)]
    mapped = torch.vmap(draw)(*objects)
    assert torch.equal(mapped, torch.stack([draw(*(entry[i] for entry in objects)) for i in range(5)]))
    shared = torch.vmap(draw, in_dims=(None, 0, 0, None))(objects[0][0], *objects[1:3], objects[3][0])
    calls = [draw(objects[0][0], objects[1][i], objects[2][i], objects[3][0]) for i in range(5)]
    assert torch.equal(shared, torch.stack(calls))


@pytest.mark.skipif(not _extension.COMPILED, reason="the compiled operators were not built")
def test_host_twin_of_the_kernel() -> None:
    """The same tests with the algorithm of the device, run on the host."""
    selected = "equals_the_loop or ragged_batches or beyond or agree_bit_for_bit or formula"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", selected]
    environment = os.environ | {"RAGGEDBEV_HOST_TWIN": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "[100%]" in done.stdout, done.stdout[-3000:]


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
        arguments = operator_arguments(objects, table, 3, 8, 9, 5)
        torch.library.opcheck(torch.ops.raggedbev.draw_gaussian_heatmap.default, arguments)
    per_class = (*arguments[:3], None, arguments[0] % 3, torch.tensor([13], device=device), table, 1, 3, 8, 9, 5)
    torch.library.opcheck(torch.ops.raggedbev.draw_gaussian_heatmap.default, (*per_class, 6.0, 1.0, False))


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
        ({"y": torch.tensor([1, 2])}, r"y must have the shape of x \(1,\), got \(2,\)"),
        ({"y": torch.zeros(1, dtype=torch.int64, device="meta")}, "y must be on the device of x cpu, got meta"),
        ({"radius": torch.tensor([-2])}, r"radius must not be negative \(-1 leaves an object out\), got -2"),
        ({"map_index": torch.tensor([1])}, r"map_index must lie in \[0, 1\) \(-1 leaves an object out\), got 1"),
        ({"map_index": torch.tensor([-2])}, r"map_index must lie in \[0, 1\) .* got -2"),
        ({"labels": torch.tensor([0])}, "labels and num_classes belong together, got num_classes=None"),
        ({"num_classes": 2}, "labels and num_classes belong together, got num_classes=2"),
        ({"labels": torch.tensor([0]), "num_classes": -1}, "num_classes must not be negative, got -1"),
        ({"layout": "zx"}, "layout must be one of .* got 'zx'"),
        ({"tables": "numpy"}, "tables must be one of .* got 'numpy'"),
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
    valid = operator_arguments(objects, table, 1, 3, 3, 1)
    wrong = [
        (11, 2, "table must hold the values of all radii up to 2"),
        (9, -3, "height must not be negative, got -3"),
        (1, torch.zeros(1, 2, dtype=torch.int64), r"y must be \(1, 1\), got \(1, 2\)"),
        (2, valid[2].int(), "radius must be torch.int64, got torch.int32"),
        (0, valid[0][0], r"x must be \[B, G\], got \(1,\)"),
        (5, torch.zeros(2, dtype=torch.int64), r"sizes must be \(1,\), got \(2,\)"),
        (3, None, "without map_index there are B = 1 maps, got num_maps = 2"),
        (8, 2, "without labels there is one class, got num_classes = 2"),
        (6, table.long(), "table must be float16, bfloat16, float32 or float64, got torch.int64"),
        (13, -1.0, "k must not be negative, got -1"),
    ]
    for place, value, message in wrong:
        arguments = list(valid)
        arguments[place] = value
        if place == 3:
            arguments[7] = 2
        with pytest.raises(ValueError, match=message):
            draw(*arguments)


def test_plain_torch_says_so_once() -> None:
    slow = _extension.load_operator("not_compiled_anywhere", fallback=torch.neg, fake=torch.neg)
    with pytest.warns(_extension.SlowPathWarning, match=r"raggedbev.not_compiled_anywhere runs as plain torch on cpu"):
        slow(torch.ones(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert slow(torch.ones(1)).item() == -1
