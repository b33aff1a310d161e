"""Calls of operators past the argument parser of torch.ops: the same results, and the same views of a call."""

from __future__ import annotations

import gc
import sys
import warnings
import weakref

import numpy as np
import pytest
import torch
from ragged_operators import OPERATORS, SMALL, Source
from test_layering import SCHEMAS
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from raggedbev import _extension
from raggedbev.matching import assignment, fused
from raggedbev.ragged import primitives

pytestmark = pytest.mark.skipif(not _extension.COMPILED, reason="the compiled operators were not built")

DATA = torch.arange(6.0).reshape(2, 3)
SIZES = torch.tensor([1, 3])
FILLED = torch.tensor([[0.0, 7.0, 7.0], [3.0, 4.0, 5.0]])


class Other:
    """Stands where torch.ops does; remembers its calls."""

    def __init__(self):
        self.calls = []

    def __call__(self, *args):
        self.calls.append(args)
        return "other"


def caller_of(name, other):
    from raggedbev import _C

    return _C.caller(name, other)


@pytest.fixture
def other():
    return Other()


@pytest.fixture
def fill(other):
    return caller_of("raggedbev::ragged_fill", other)


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_operator_has_a_caller(name, other):
    caller = caller_of(f"raggedbev::{name}", other)
    assert caller() == "other"
    assert other.calls == [()]


@pytest.mark.parametrize("name", OPERATORS)
def test_plain_arguments_do_not_meet_torch_ops(name, other):
    caller, operator = caller_of(f"raggedbev::{name}", other), getattr(torch.ops.raggedbev, name)
    arguments = [*OPERATORS[name].arguments(SMALL, Source(1))]
    if name == "ragged_pack_":
        arguments[1] = list(arguments[1])
    torch.testing.assert_close(caller(*arguments), operator(*arguments), rtol=0, atol=0)
    assert not other.calls


def test_lists_and_missing_tensors(other):
    caller = caller_of("raggedbev::match_cost", other)
    logits, labels, num_gt = torch.zeros(1, 4, 3), torch.tensor([[1, 2]]), torch.tensor([2])
    preds, gt = torch.randn(1, 4, 2), torch.randn(1, 2, 2)
    rest = (None, None, None, None, False, 1.0, 0.25, 2.0, 1e-12, 0.0, 1.0, False, True)
    for factors in ([None], [torch.ones(2)]):
        arguments = (logits, labels, num_gt, [preds], [gt], factors, [0.5], *rest)
        found, expected = caller(*arguments), torch.ops.raggedbev.match_cost(*arguments)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert not other.calls


class Subclass(torch.Tensor):
    pass


@pytest.mark.parametrize(
    "arguments",
    [
        (DATA, SIZES, 0),
        (DATA, SIZES, 0, -1, 0),
        (None, SIZES, 0, -1),
        ("data", SIZES, 0, -1),
        (DATA.as_subclass(Subclass), SIZES, 0, -1),
        (DATA, SIZES, 1j, -1),
        (DATA, SIZES, None, -1),
        (DATA, SIZES, 2**63, -1),
        (DATA, SIZES, np.float64(7), -1),
        (DATA, SIZES, 0, -1.0),
        (DATA, SIZES, 0, True),
        (DATA, SIZES, 0, -(2**63) - 1),
    ],
    ids=repr,
)
def test_other_arguments_are_left_to_torch_ops(fill, other, arguments):
    assert fill(*arguments) == "other"
    assert all(found is given for found, given in zip(*other.calls, arguments, strict=True))


def test_other_lists_are_left_to_torch_ops(other):
    pack = caller_of("raggedbev::ragged_pack_", other)
    out = torch.zeros(1, 3)
    for samples in ((DATA[0],), [None], [DATA[0].as_subclass(Subclass)], DATA):
        assert pack(out, samples) == "other"
    assert torch.equal(out, torch.zeros(1, 3))


@pytest.mark.parametrize("value", [7, 7.0, True], ids=repr)
def test_numbers(fill, other, value):
    assert torch.equal(fill(DATA, SIZES, value, -1), torch.where(FILLED == 7, float(value), FILLED))
    assert not other.calls


def test_parameters_are_plain(fill, other):
    filled = fill(torch.nn.Parameter(DATA), SIZES, 7, -1)
    assert torch.equal(filled, FILLED)
    assert filled.grad_fn.name() == "RaggedFillBackward"
    assert not other.calls


def test_keywords_are_refused(fill):
    with pytest.raises(TypeError, match="keyword"):
        fill(DATA, SIZES, 0, dim=-1)


def test_errors_are_those_of_torch_ops(fill):
    for arguments in ((DATA, SIZES[:1], 0, -1), (DATA, SIZES.float(), 0, -1), (DATA.long(), SIZES, 0.5, -1)):
        with pytest.raises((TypeError, ValueError)) as expected:
            torch.ops.raggedbev.ragged_fill(*arguments)
        with pytest.raises(expected.type) as found:
            fill(*arguments)
        assert str(found.value) == str(expected.value)


def test_errors_of_the_other_callable_are_passed_on():
    def refuse(*_):
        raise LookupError("refused")

    with pytest.raises(LookupError, match="refused"):
        caller_of("raggedbev::ragged_fill", refuse)(DATA)


def test_unknown_types_are_refused(other):
    for name, reason in (("aten::arange", "no arguments of type"), ("aten::size", "no results|no arguments|schema")):
        with pytest.raises(RuntimeError, match=reason):
            caller_of(name, other)
    with pytest.raises(RuntimeError, match="not_there"):
        caller_of("raggedbev::not_there", other)


def test_nothing_is_leaked(other):
    data, sizes = DATA.clone(), SIZES.clone()
    caller = caller_of("raggedbev::ragged_fill", other)
    caller(data, sizes, 0, -1)
    before = sys.getrefcount(data), sys.getrefcount(sizes), data._use_count(), sizes._use_count()
    for last in (-1, None, -5):
        for _ in range(10):
            try:
                caller(data, sizes, 0, last)
            except ValueError:
                assert last == -5
    other.calls.clear()
    assert (sys.getrefcount(data), sys.getrefcount(sizes), data._use_count(), sizes._use_count()) == before

    seen = weakref.ref(other_of_its_own := Other())
    caller = caller_of("raggedbev::ragged_fill", other_of_its_own)
    del other_of_its_own
    assert seen() is not None
    del caller
    gc.collect()
    assert seen() is None


# ---- who else sees a call of the package -----------------------------------------------------------------------------


def calls(device="cpu"):
    """Per front of an operator what calls it."""
    cost = torch.rand(2, 3, 4, device=device)
    return {
        "ragged_fill": lambda: primitives.ragged_fill(DATA.to(device), SIZES.to(device), 7, -1),
        "linear_assignment": lambda: assignment._solve(cost, None, None, False, False),
        "match_cost": lambda: fused.match_cost(
            cost, torch.zeros(2, 3, dtype=torch.long, device=device), fused.ClassCost()
        ),
    }


@pytest.mark.parametrize("name", calls())
def test_function_modes_see_the_operator(name):
    seen = []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    with Mode():
        calls()[name]()
    assert getattr(torch.ops.raggedbev, name).default in seen


@pytest.mark.parametrize("name", calls())
def test_dispatch_modes_see_the_operator(name):
    seen = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    with Mode():
        calls()[name]()
    assert getattr(torch.ops.raggedbev, name).default in seen


@pytest.mark.parametrize("name", calls())
def test_profilers_see_the_operator(name):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        calls()[name]()
    assert f"raggedbev::{name}" in {event.name for event in profile.events()}


@pytest.mark.parametrize("name", calls())
def test_devices_without_a_kernel(name):
    """There the call finds the fake kernel."""
    results = calls("meta")[name]()
    for result in vars(results).values() if name == "match_cost" else torch.utils._pytree.tree_leaves(results):
        assert result.device.type == "meta"


def test_traces_hold_the_operator():
    def filled(data, sizes):
        return primitives.ragged_fill(data, sizes, 7, -1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        traced = torch.jit.trace(filled, (DATA, SIZES))
    assert "raggedbev::ragged_fill" in str(traced.graph)
    assert torch.equal(traced(DATA, SIZES.flip(0)), filled(DATA, SIZES.flip(0)))
    assert "raggedbev.ragged_fill" in str(torch.fx.symbolic_trace(filled).graph)


@pytest.mark.parametrize("name", calls())
def test_compiled_graphs_hold_the_operator(name):
    graphs = []

    def keep(graph, _inputs):
        graphs.append(str(graph.graph))
        return graph.forward

    torch.compile(calls()[name], backend=keep, fullgraph=True)()
    assert f"raggedbev.{name}" in "".join(graphs)
