"""Every public helper through the same tests: value, gradient, layout, compilation, export, vmap, devices, bad input.

`CALLS` says how each helper is called; the loops in `raggedbev.ragged.reference` say what must come out.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from cases import DTYPES, FLOATING, INDEX_DTYPES, SIZES, Maker, batch_shapes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from raggedbev import ragged
from raggedbev.ragged import RaggedBatch, reference

ROWS = 6


class Call(NamedTuple):
    """Arguments of one call; `static` when neither the call nor its result's shape reads the device."""

    args: tuple
    static: bool = True


class Truth(NamedTuple):
    boxes: RaggedBatch
    name: str
    labels: RaggedBatch


Calls = Callable[[Maker, list[int], tuple[int, ...]], Iterator[Call]]


def access(m: Maker, sizes, batch) -> Iterator[Call]:
    longest = max(sizes, default=0)
    yield Call((m.data(*batch, ROWS, 2), m.indices(sizes, batch, ROWS)))
    yield Call((m.ragged(sizes, batch, 2, 1), m.index_tensor(batch, 4, longest)))
    yield Call((m.ragged(sizes, batch, 2, before=(3,)), m.indices(sizes, batch, longest), 1))
    yield Call((m.data(*batch, 3, ROWS, 2), m.indices(sizes, batch, ROWS), 1, -2))
    yield Call((m.data(*batch, ROWS), m.index_tensor(batch, 0, ROWS)))
    yield Call((m.data(*batch, 0, 2), m.indices(sizes, batch, 0), 1))


def inverse(m: Maker, sizes, batch) -> Iterator[Call]:
    longest = max(sizes, default=0)
    yield Call((m.data(*batch, longest, 2), m.indices(sizes, batch, ROWS, extra=0), ROWS))
    yield Call((m.ragged(sizes, batch, 2, 1), m.index_tensor(batch, longest + 1, ROWS), ROWS, 1))
    yield Call((m.ragged(sizes, batch), m.indices(sizes, batch, ROWS), 0))


def write(m: Maker, sizes, batch) -> Iterator[Call]:
    longest = max(sizes, default=0)
    yield Call((m.data(*batch, longest + 1, 2), m.indices(sizes, batch, ROWS), m.data(*batch, ROWS, 2)))
    yield Call((m.ragged(sizes, batch), m.index_tensor(batch, longest + 1, longest), m.ragged(sizes[::-1], batch)))


def mapping(m: Maker, sizes, batch) -> Iterator[Call]:
    longest = max(sizes, default=0)
    yield Call(
        (
            m.data(*batch, 4, 2),
            m.indices(sizes, batch, 4),
            m.indices(sizes, batch, ROWS),
            m.data(*batch, ROWS, 2),
        )
    )
    yield Call(
        (
            m.ragged(sizes, batch),
            m.indices(sizes, batch, longest),
            m.index_tensor(batch, longest + 1, longest),
            m.ragged(sizes[::-1], batch),
        )
    )
    yield Call(
        (
            m.ragged(sizes, batch),
            m.indices(sizes, batch, longest),
            m.indices(sizes[::-1], batch, ROWS),
            m.data(*batch, ROWS),
        )
    )


def mask_from_indices(m: Maker, sizes, batch) -> Iterator[Call]:
    yield Call((ROWS, m.indices(sizes, batch, ROWS)))
    yield Call((ROWS, m.index_tensor(batch, 4, ROWS)))
    yield Call((0, m.index_tensor(batch, 4, ROWS)))


def ragged_mask(m: Maker, sizes, batch) -> RaggedBatch:
    mask = m.mask(*batch, max(sizes, default=0) + 1)
    return RaggedBatch(mask, sample_sizes=m.sizes(sizes, batch))


def indices_from_mask(m: Maker, sizes, batch) -> Iterator[Call]:
    yield Call((m.mask(*batch, ROWS), 4))
    yield Call((ragged_mask(m, sizes, batch), ROWS))
    yield Call((m.mask(*batch, ROWS), 0))
    yield Call((m.mask(*batch, ROWS),), static=False)


def bool_indexing(m: Maker, sizes, batch) -> Iterator[Call]:
    yield Call((m.data(*batch, ROWS, 2), m.mask(*batch, ROWS), 3))
    yield Call((m.ragged(sizes, batch), m.mask(*batch, max(sizes, default=0) + 1), 2))
    yield Call((m.ragged(sizes, batch, 2), ragged_mask(m, sizes[::-1], batch), 2))
    yield Call((m.ragged(sizes, batch, 2), m.mask(*batch, max(sizes, default=0) + 1)), static=False)


def bool_indexing_write(m: Maker, sizes, batch) -> Iterator[Call]:
    longest = max(sizes, default=0)
    yield Call((m.ragged(sizes, batch, 2), m.mask(*batch, ROWS), m.data(*batch, ROWS, 2)))
    yield Call((m.data(*batch, 3), m.mask(*batch, longest + 1), m.ragged(sizes, batch)))
    yield Call((m.data(*batch, 3), ragged_mask(m, sizes, batch), m.data(*batch, longest + 1)))


def reduction(m: Maker, sizes, batch) -> Iterator[Call]:
    yield Call((m.ragged(sizes, batch, 2),))
    yield Call((m.ragged(sizes, batch, 2, before=(3,)),))
    yield Call((m.ragged(sizes, batch),))


def averages(m: Maker, sizes, batch) -> Iterator[Call]:
    if m.dtype.is_floating_point:
        yield from reduction(m, sizes, batch)
        yield Call((m.ragged([size + m.finite for size in sizes], batch), False))  # NaN of empty samples


def lists(m: Maker, sizes, batch) -> Iterator[Call]:
    if sizes:
        yield Call((m.samples(sizes, 3),))
        yield Call((m.samples(sizes, 2, 0), m.ragged(sizes, (len(sizes),))))
        nested: Any = m.samples(sizes)
        for length in reversed(batch[1:]):
            nested = [nested[i : i + length] for i in range(0, len(nested), length)]
        yield Call((nested, None, None, False))


def compact(m: Maker, sizes, batch) -> Iterator[Call]:
    yield Call((m.ragged(sizes, batch, 2), m.ragged(sizes, batch, before=(2,))), static=False)


def named_tuple(m: Maker, sizes, batch) -> Iterator[Call]:
    yield Call((Truth(m.ragged(sizes, batch, 2), "scene", m.ragged(sizes, batch)),), static=False)


def masked(m: Maker, sizes, batch) -> Iterator[Call]:
    yield Call((m.data(*batch, 2, 3), m.mask(*batch), 1))
    yield Call((m.data(*batch, 2), m.mask(*batch, 2)))


def squeezed(m: Maker, sizes, batch) -> Iterator[Call]:
    yield Call((m.ragged(sizes, batch, 1, 2, 1, before=(1, 3)),))
    yield Call((m.ragged(sizes, batch),))


CALLS: dict[str, Calls] = {
    "apply_mask_to_tensor": masked,
    "average_over_targets": averages,
    "batched_bool_indexing": bool_indexing,
    "batched_bool_indexing_write": bool_indexing_write,
    "batched_index_mapping": mapping,
    "batched_indexing_access": access,
    "batched_indexing_write": write,
    "batched_inverse_indexing_access": inverse,
    "combine_data": lists,
    "get_compact_from_named_tuple": named_tuple,
    "get_compact_lists": compact,
    "get_indices_from_mask": indices_from_mask,
    "get_mask_from_indices": mask_from_indices,
    "squeeze_except_batch_and_sample": squeezed,
    "sum_over_targets": reduction,
}
READS_HOST = {"combine_data", "get_compact_from_named_tuple", "get_compact_lists"}  # lists are on the host
NO_GRADIENT = {"get_indices_from_mask", "get_mask_from_indices"}  # neither takes nor gives floating point
every_helper = pytest.mark.parametrize("name", CALLS)
every_batched_helper = pytest.mark.parametrize("name", [name for name in CALLS if name not in READS_HOST])
TESTED_ELSEWHERE = {"copy_to_device"}  # moves data, has no other meaning
every_differentiable_helper = pytest.mark.parametrize("name", [name for name in CALLS if name not in NO_GRADIENT])


def test_every_public_helper_is_tested() -> None:
    public = {name for name in ragged.__all__ if inspect.isfunction(getattr(ragged, name))} - TESTED_ELSEWHERE
    assert public == set(CALLS) == set(reference.__all__) == set(BAD)
    assert set(ragged.__all__) - public == {"Buckets", "RaggedBatch"} | TESTED_ELSEWHERE
    for name in public:
        wanted, got = (inspect.signature(getattr(module, name)) for module in (ragged, reference))
        assert list(wanted.parameters) == list(got.parameters)


def helper(name: str) -> Callable:
    return getattr(ragged, name)


def assert_same(actual: Any, expected: Any, exact: bool = True) -> None:
    """Equal in type, shape, dtype, raggedness and value, filler and NaN included."""
    assert type(actual) is type(expected)
    if isinstance(actual, RaggedBatch):
        assert actual.non_uniform_dim == expected.non_uniform_dim and actual.max_sample_size == expected.max_sample_size
        assert_same(actual.sample_sizes, expected.sample_sizes)
        assert_same(actual.tensor, expected.tensor, exact)
    elif isinstance(actual, torch.Tensor):
        tolerance = {"rtol": 0, "atol": 0} if exact else {}
        torch.testing.assert_close(actual, expected, equal_nan=True, **tolerance)
    elif isinstance(actual, list | tuple):
        assert len(actual) == len(expected)
        for a, b in zip(actual, expected, strict=True):
            assert_same(a, b, exact)
    else:
        assert actual == expected


def check_value(name: str, maker: Maker, sizes: list[int], batch: tuple[int, ...]) -> None:
    for call in CALLS[name](maker, sizes, batch):
        assert_same(helper(name)(*call.args), getattr(reference, name)(*call.args), exact="average" not in name)


@every_helper
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_value(name, sizes, device):
    for batch in batch_shapes(len(sizes)):
        for index_dtype in INDEX_DTYPES:
            check_value(name, Maker(device, index_dtype=index_dtype), sizes, batch)


@every_helper
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_value_of_every_dtype_in_any_layout(name, dtype, device):
    for contiguous in (True, False):
        check_value(name, Maker(device, dtype, contiguous=contiguous), [2, 0, 3, 1], (2, 2))


@every_helper
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, 6), max_size=6),
    arrangement=st.integers(0, 3),
    dtype=st.sampled_from(DTYPES),
    index_dtype=st.sampled_from(INDEX_DTYPES),
    contiguous=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_value_of_anything(name, device, sizes, arrangement, dtype, index_dtype, contiguous, seed):
    shapes = batch_shapes(len(sizes))
    maker = Maker(device, dtype, index_dtype, contiguous, seed=seed)
    check_value(name, maker, sizes, shapes[arrangement % len(shapes)])


def differentiable(args: Any) -> tuple[list[torch.Tensor], Callable[..., Any]]:
    """Fresh leaves for the floating-point tensors in `args`, and what puts such leaves back in their places."""
    flat, spec = pytree.tree_flatten(args)
    places = [i for i, leaf in enumerate(flat) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]

    def rebuild(*leaves: torch.Tensor) -> Any:
        filled = list(flat)
        for place, leaf in zip(places, leaves, strict=True):
            filled[place] = leaf
        return pytree.tree_unflatten(filled, spec)

    return [flat[place].detach().requires_grad_() for place in places], rebuild


def outputs(result: Any) -> list[torch.Tensor]:
    """The floating-point tensors of a result."""
    leaves = pytree.tree_leaves(result)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]


def gradients(fn: Callable, args: tuple, layout: str = "contiguous") -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Results of `fn`, and the gradient of a weighted sum of them; `layout` is that of the gradients it receives."""
    leaves, rebuild = differentiable(args)
    results = outputs(fn(*rebuild(*leaves)))
    maker = Maker(results[0].device, results[0].dtype, contiguous=layout == "contiguous", seed=1)
    weights = [maker.data(*(result.shape if layout != "expanded" else (1,) * result.dim())) for result in results]
    pairs = [(r, w.expand(r.shape)) for r, w in zip(results, weights, strict=True) if r.requires_grad]
    if not pairs:  # nothing was taken from the leaves
        return results, [torch.zeros_like(leaf) for leaf in leaves]
    return results, list(
        torch.autograd.grad(
            inputs=leaves, outputs=[r for r, _ in pairs], grad_outputs=[w for _, w in pairs], materialize_grads=True
        )
    )


@every_differentiable_helper
@pytest.mark.parametrize("layout", ["contiguous", "scrambled", "expanded"])
def test_gradient_in_any_layout(name, layout, device):
    maker = Maker(device, contiguous=layout == "contiguous")
    for call in CALLS[name](maker, [2, 0, 3, 1], (2, 2)):
        actual, expected = (gradients(getattr(m, name), call.args, layout) for m in (ragged, reference))
        assert_same(actual, expected, exact="average" not in name)


@every_differentiable_helper
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_gradient_is_the_same_every_time(name, dtype, device):
    for call in CALLS[name](Maker(device, dtype), [40, 0, 300], (3,)):
        first = gradients(helper(name), call.args)
        assert_same(gradients(helper(name), call.args), first)
        assert all(gradient.dtype == dtype for gradient in first[1])


@every_differentiable_helper
def test_gradcheck(name, device):
    for call in CALLS[name](Maker(device, finite=True), [2, 0, 1], (3,)):
        leaves, rebuild = differentiable(call.args)

        def run(*tensors, rebuild=rebuild):
            return tuple(outputs(helper(name)(*rebuild(*tensors))))

        assert torch.autograd.gradcheck(run, leaves)
        assert torch.autograd.gradgradcheck(run, leaves)


def static_calls(name: str, maker: Maker, sizes: list[int] | None = None) -> list[tuple]:
    sizes = [2, 0, 3, 1] if sizes is None else sizes
    return [call.args for call in CALLS[name](maker, sizes, (2, 2)) if call.static]


class AllCalls(torch.nn.Module):
    """One helper, called with each of the given arguments."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, calls: list[tuple]) -> list:
        return [getattr(ragged, self.name)(*args) for args in calls]


@every_helper
def test_compiles_into_one_graph_with_its_gradient(name, device):
    calls = static_calls(name, Maker(device))[:2]
    if not calls:
        pytest.skip("its result is a list of tensors cropped on the host")
    torch._dynamo.reset()
    module = AllCalls(name)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=False)
    if name in NO_GRADIENT:
        assert_same(compiled(calls), module(calls))
    else:
        assert_same(gradients(compiled, (calls,)), gradients(module, (calls,)))


@every_batched_helper
def test_exports(name, device):
    calls, other = (
        static_calls(name, Maker(device, seed=seed), sizes) for seed, sizes in ((0, None), (1, [0, 3, 1, 1]))
    )
    module = AllCalls(name)
    exported = torch.export.export(module, (calls,)).module()
    assert_same(exported(calls), module(calls))
    assert_same(exported(other), module(other))


@every_batched_helper
@pytest.mark.parametrize("batch", [(3,), (2, 3)], ids=str)
def test_vmap_takes_a_batch_dimension(name, batch, device):
    for call in CALLS[name](Maker(device), [2, 0, 3] * (len(batch)), batch):
        if call.static:
            in_dims = tuple(0 if isinstance(arg, torch.Tensor | RaggedBatch) else None for arg in call.args)
            constants = {i: arg for i, arg in enumerate(call.args) if in_dims[i] is None}
            mapped = [arg for i, arg in enumerate(call.args) if i not in constants]

            def run(*tensors, constants=constants):
                rest = iter(tensors)
                count = len(constants) + len(tensors)
                return helper(name)(*(constants[i] if i in constants else next(rest) for i in range(count)))

            if name == "squeeze_except_batch_and_sample" and len(batch) == 1:
                continue
            assert_same(torch.vmap(run)(*mapped), helper(name)(*call.args))


@every_helper
def test_nothing_is_written_to_the_input(name, device):
    for call in CALLS[name](Maker(device), [2, 0, 3], (3,)):
        before = pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, call.args)
        helper(name)(*call.args)
        assert_same(call.args, before)


@every_batched_helper
def test_does_not_synchronise(name, device):
    if device.type != "cuda":
        pytest.skip("synchronisation is a matter of accelerators")
    calls = static_calls(name, Maker(device))
    module = AllCalls(name)
    module(calls)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        module(calls)
        if name not in NO_GRADIENT:
            leaves, rebuild = differentiable((calls,))
            results = outputs(module(*rebuild(*leaves)))
            torch.autograd.grad(results, leaves, [torch.ones_like(r) for r in results], allow_unused=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_batched_helper
def test_graph_replay_with_other_sizes(name, device):
    if device.type != "cuda":
        pytest.skip("CUDA graphs")
    module = AllCalls(name)
    calls, other = (static_calls(name, Maker(device, seed=s), sizes) for s, sizes in ((0, None), (1, [3, 1, 0, 2])))
    static, fresh = (pytree.tree_leaves(c) for c in (calls, other))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        module(calls)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = module(calls)
    for mine, new in zip(static, fresh, strict=True):
        if isinstance(mine, torch.Tensor):
            mine.copy_(new)
    graph.replay()
    assert_same(captured, module(other))


DATA, INDEX = torch.zeros(2, 3), torch.zeros(2, 1, dtype=torch.long)
BATCH, MASK = RaggedBatch(DATA, sample_sizes=torch.tensor([2, 0])), torch.ones(2, 3, dtype=torch.bool)
ELSEWHERE = torch.zeros(2, 3, device="meta")
BAD: dict[str, list[tuple[tuple, type[Exception], str]]] = {
    "apply_mask_to_tensor": [
        ((DATA, DATA), TypeError, "mask a bool tensor, got torch.float32 and torch.float32"),
        (([1], MASK), TypeError, "got list and torch.bool"),
        ((torch.zeros(3, 3), MASK), ValueError, r"shape \(2, 3\) of the mask, got \(3, 3\)"),
    ],
    "average_over_targets": [
        ((DATA,), TypeError, "take a RaggedBatch, got Tensor"),
        ((BATCH.long(),), TypeError, "floating-point data, got torch.int64"),
    ],
    "batched_bool_indexing": [
        ((DATA, INDEX), TypeError, "mask must be a bool tensor or RaggedBatch, got torch.int64"),
        ((DATA, MASK[:, :2]), ValueError, r"shape \(2, 2\) of mask, got \(2, 3\)"),
        ((torch.zeros(3, 3), MASK), ValueError, r"batch shape \(2,\) .* got \(3, 3\)"),
        ((DATA, MASK, -1), ValueError, "max_num must not be negative, got -1"),
        ((DATA, MASK, 1.5), TypeError, "max_num must be an integer, got float"),
        ((ELSEWHERE, MASK), ValueError, "data must be on cpu .* got meta"),
    ],
    "batched_bool_indexing_write": [
        ((DATA, DATA, DATA), TypeError, "mask must be a bool tensor or RaggedBatch, got torch.float32"),
        (
            (DATA.double(), MASK, DATA),
            ValueError,
            "to_write must have the dtype torch.float32 of into, got torch.float64",
        ),
        ((DATA.unsqueeze(-1), MASK, DATA), ValueError, r"same shape after dimension 1, got \(2, 3, 1\) and \(2, 3\)"),
        ((torch.zeros(3, 3), MASK, DATA), ValueError, r"to_write must be .*\(2,\).* got \(3, 3\)"),
        ((DATA, MASK, torch.zeros(2, 4)), ValueError, r"into must start with the shape \(2, 3\) of mask, got \(2, 4\)"),
    ],
    "batched_index_mapping": [
        ((DATA, INDEX.float(), INDEX, DATA), TypeError, "source_indices must be int32 or int64, got torch.float32"),
        ((DATA, INDEX, INDEX.bool(), DATA), TypeError, "target_indices must be int32 or int64, got torch.bool"),
        ((DATA, torch.zeros(2, 2, dtype=torch.long), INDEX, DATA), ValueError, r"\(2, 1\) .* got \(2, 2\)"),
        ((DATA.int(), INDEX, INDEX, DATA), ValueError, "source must have the dtype torch.float32 of target"),
        ((DATA, INDEX, INDEX, torch.zeros(3, 3)), ValueError, r"target must be .*\(2,\).* got \(3, 3\)"),
    ],
    "batched_indexing_access": [
        ((DATA, INDEX.float()), TypeError, "indices must be int32 or int64, got torch.float32"),
        ((DATA, [[0], [0]]), TypeError, "indices must be a tensor or RaggedBatch, got list"),
        (([[0], [0]], INDEX), TypeError, "data must be a tensor or RaggedBatch, got list"),
        ((torch.zeros(3, 3), INDEX), ValueError, r"data must be .*\(2,\).* got \(3, 3\)"),
        ((torch.zeros(2), INDEX), ValueError, r"data must be .*\(2,\).* got \(2,\)"),
        ((DATA, torch.tensor(0)), ValueError, r"indices must be \[\*batch, K\], got a scalar"),
        ((DATA, INDEX, 0, 2), ValueError, r"dim_to_index_in must lie in \[1, 2\), got 2"),
        (
            (DATA, RaggedBatch(INDEX[:, :, None], sample_sizes=INDEX[:, 0])),
            ValueError,
            r"non_uniform_dim=1 of \(2, 1, 1\)",
        ),
        ((ELSEWHERE, INDEX), ValueError, "data must be on cpu .* got meta"),
    ],
    "batched_indexing_write": [
        ((DATA, INDEX, DATA), ValueError, "same number of entries, got 3 and 1"),
        ((DATA[:, :1].double(), INDEX, DATA), ValueError, "to_write must have the dtype torch.float32 of into"),
        ((DATA[:, :1], INDEX, torch.zeros(2, 3, 4)), ValueError, r"same shape after dimension 1, got \(2, 1\) and"),
        ((DATA[:, :1], INDEX, ELSEWHERE), ValueError, "into must be on cpu .* got meta"),
    ],
    "batched_inverse_indexing_access": [
        ((DATA, INDEX, 4), ValueError, "same number of entries, got 3 and 1"),
        ((DATA[:, :1], INDEX, -4), ValueError, "num_targets must not be negative, got -4"),
        ((DATA[:, :1], INDEX, 4.0), TypeError, "num_targets must be an integer, got float"),
    ],
    "combine_data": [
        (([],), ValueError, r"at least one sample to know dtype and data shape, got \[\]"),
        (([[], []],), ValueError, r"at least one sample .* got \[\[\], \[\]\]"),
        ((DATA,), TypeError, "list of tensors, got Tensor"),
        (([1, 2],), TypeError, "list of tensors, got int"),
        (([DATA, [DATA]],), ValueError, r"one nesting level only, got \[Tensor, list\]"),
        (([[DATA], []],), ValueError, r"same lengths, got \[\(0,\), \(1,\)\]"),
        (([DATA, torch.tensor(1.0)],), ValueError, r"at least one dimension, \[n, ...\], got a scalar \(sample 1\)"),
        (([DATA, DATA.long()],), ValueError, "sample 1 must be torch.float32 on cpu .* got torch.int64"),
        (([DATA, ELSEWHERE],), ValueError, r"same device, got cpu and meta \(sample 1\)"),
        (([DATA, torch.zeros(2, 4)],), ValueError, r"sample 1 .*3.* got .*4"),
        (([DATA.requires_grad_(False), torch.zeros(2, 4, requires_grad=True)],), ValueError, r"\(3,\) and \(4,\)"),
        (([torch.zeros(2), torch.zeros(1)], BATCH), ValueError, r"sample_sizes, \[2, 0\], got \[2, 1\]"),
        (([torch.zeros(4), torch.zeros(0)], BATCH), ValueError, r"up to 3 entries, got samples \(2,\) with up to 4"),
        (([torch.zeros(2)], BATCH), ValueError, r"batch shape \(2,\) .* got samples \(1,\)"),
    ],
    "get_compact_from_named_tuple": [(((BATCH,),), TypeError, "takes a named tuple, got tuple")],
    "get_compact_lists": [((DATA,), TypeError, "takes RaggedBatches, got Tensor")],
    "get_indices_from_mask": [
        ((DATA,), TypeError, "mask must be a bool tensor or RaggedBatch, got torch.float32"),
        ((torch.tensor(True),), ValueError, r"mask must be \[\*batch, N\], got a scalar"),
        ((MASK, -1), ValueError, "max_num must not be negative, got -1"),
    ],
    "get_mask_from_indices": [
        ((3, DATA), TypeError, "indices must be int32 or int64, got torch.float32"),
        ((-3, INDEX), ValueError, "num must not be negative, got -3"),
        ((INDEX, 3), TypeError, "num must be an integer, got Tensor"),
    ],
    "squeeze_except_batch_and_sample": [((DATA,), TypeError, "takes a RaggedBatch, got Tensor")],
    "sum_over_targets": [((DATA,), TypeError, "take a RaggedBatch, got Tensor")],
}


@pytest.mark.parametrize(
    "name, args, error, message",
    [(name, *bad) for name, rows in BAD.items() for bad in rows],
    ids=lambda x: str(x)[:40],
)
def test_bad_input_is_named(name, args, error, message):
    with pytest.raises(error, match=message):
        helper(name)(*args)


INDEXING = {
    "batched_index_mapping": lambda index: (torch.ones(2, 3), index * 0, index, torch.ones(2, 3)),
    "batched_indexing_access": lambda index: (torch.ones(2, 3), index),
    "batched_indexing_write": lambda index: (torch.ones(2, 2), index, torch.ones(2, 3)),
    "batched_inverse_indexing_access": lambda index: (torch.ones(2, 2), index, 3),
    "get_mask_from_indices": lambda index: (3, index),
}


@pytest.mark.parametrize("name", INDEXING)
@pytest.mark.parametrize("value", [-1, 3])
def test_debug_mode_names_the_entry(name, value, monkeypatch, device):
    index = torch.tensor([[0, 1], [2, value]], device=device)
    args = [arg.to(device) if isinstance(arg, torch.Tensor) else arg for arg in INDEXING[name](index)]
    helper(name)(*args)
    monkeypatch.setattr("raggedbev.ragged.layout._DEBUG", True)
    with pytest.raises(IndexError, match=f"indices of sample 1, entry 1: {value} is out of range for 3 entries"):
        helper(name)(*args)
    ragged_index = RaggedBatch(index, sample_sizes=torch.tensor([2, 1], device=device))
    helper(name)(*(ragged_index if arg is index else arg for arg in args))
