"""Losses as CUDA graphs: tensors in, the loss's tensors out, forward and backward replayed instead of launched.

A loss of small tensors is some hundred kernels, and the host needs longer to launch them than the device to run them. A
graph launches all of them at once. It serves one set of shapes, so that each padded length is captured when it is first
met; everything that cannot be captured runs as it is, with the same numbers.

Facts that the design rests on (see `torch.cuda.make_graphed_callables`):

- A replay reads and writes the memory of its capture. Inputs are copied into static buffers before it, results and
  gradients out of them after it, so that nothing that leaves this module is overwritten later.
- What a forward pass saves for its backward pass lives in the pool, which all captures of a lane share. A lane is
  therefore taken from a forward pass until its backward pass has run, or its result is dropped; a second loss in
  between gets a lane of its own.
- Captures must not wait for the device, nor run collectives: those belong behind the graph.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils import _pytree as pytree

__all__ = ["CudaGraphs", "GraphBackend", "GraphLimitWarning", "GraphedLoss"]

R = TypeVar("R")
Replay = Callable[[], None]


class GraphLimitWarning(UserWarning):
    """Shapes beyond the limit of captures run without a graph: same results, slower."""


class GraphBackend(Protocol):
    """What records work and replays it; `CudaGraphs`, or a stand-in for tests on other devices."""

    def supports(self, tensor: Tensor) -> bool:
        """Whether work on `tensor` can be captured at this moment."""

    def new_pool(self) -> Any:
        """Memory that captures may share if no two of them are in use at a time."""

    def warm_up(self, work: Callable[[], object]) -> None:
        """Runs `work` as often as it takes until it does nothing that happens only at first."""

    def record(self, work: Callable[[], R], pool: Any) -> tuple[Replay, R]:
        """Captures `work`: what replays it, and its result, whose tensors every replay fills anew."""


class CudaGraphs:
    """Captures on CUDA.

    Args:
        warm_ups: runs on a side stream before a capture.
    """

    def __init__(self, warm_ups: int = 3) -> None:
        self.warm_ups = warm_ups

    def supports(self, tensor: Tensor) -> bool:
        """On CUDA, and not inside another capture."""
        return tensor.is_cuda and not torch.cuda.is_current_stream_capturing()

    def new_pool(self) -> Any:
        """Handle of a new memory pool."""
        return torch.cuda.graph_pool_handle()

    def warm_up(self, work: Callable[[], object]) -> None:
        """Runs on a side stream, as captures do."""
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(self.warm_ups):
                work()
        current.wait_stream(side)

    def record(self, work: Callable[[], R], pool: Any) -> tuple[Replay, R]:
        """One graph. Other threads (loaders that pin memory, watchdogs of collectives) may go on meanwhile."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            result = work()
        return graph.replay, result


class GraphedLoss(Generic[R]):
    """A loss that is captured once per set of shapes, and replayed from then on.

    Arguments are trees (tuples, lists, and what is registered as a pytree, such as `RaggedBatch`,
    `PackedGroundTruth3D` and `DenoisingOutput`) of tensors and hashable constants. Shapes, types, constants and which
    tensors require a gradient make the key of a capture. The loss runs as it is, with the same results, where the
    backend does not support its tensors (the CPU), inside `torch.compile`, without tensors, and beyond the limit.

    Values are read at every replay from the arguments. Other tensors that the loss reaches (a closure's, a module's)
    are read from where they were at the capture: they must live as long as this object, and change in place only.

    Args:
        loss: gives a tree of tensors and constants, waits for no device and runs no collective.
        max_captures: captures at most; more shapes run as they are, of which a `GraphLimitWarning` tells once.
        backend: what captures; none: `CudaGraphs`.

    Attributes:
        num_captures: captures so far.
        num_replays: calls that replayed.
        num_eager: calls that ran as they are.

    Raises:
        ValueError: `max_captures` is below 1.

    Example:
        >>> loss = GraphedLoss(lambda x, target: {"l1": (x - target).abs().sum()})
        >>> loss(torch.ones(3, requires_grad=True), torch.zeros(3))
        {'l1': tensor(3., grad_fn=<SumBackward0>)}
        >>> loss.num_captures, loss.num_eager  # on the CPU
        (0, 1)
    """

    def __init__(self, loss: Callable[..., R], *, max_captures: int = 16, backend: GraphBackend | None = None) -> None:
        if max_captures < 1:
            raise ValueError(f"max_captures must be at least 1, got {max_captures}")
        self.loss = loss
        self.max_captures = max_captures
        self.backend: GraphBackend = CudaGraphs() if backend is None else backend
        self._start_anew()

    def _start_anew(self) -> None:
        self.num_captures = self.num_replays = self.num_eager = 0
        self._lanes: list[_Lane] = []
        self._warned = False

    def __call__(self, *args: Any) -> R:
        """The loss of `args`."""
        if torch.compiler.is_compiling():
            return self.loss(*args)
        leaves, spec = pytree.tree_flatten(args)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not tensors or not all(self.backend.supports(tensor) for tensor in tensors):
            return self._eager(args)
        key = (repr(spec), tuple(_describe(leaf) for leaf in leaves), _mode(tensors[0]))
        lane = self._lane_for(key)
        if lane is None:
            return self._eager(args)
        if key not in lane.captures:
            lane.captures[key] = _capture(self.loss, leaves, spec, self.backend, lane.pool)
            self.num_captures += 1
        self.num_replays += 1
        return lane.replay(lane.captures[key], tensors)

    def _eager(self, args: tuple[Any, ...]) -> R:
        self.num_eager += 1
        return self.loss(*args)

    def _lane_for(self, key: Hashable) -> _Lane | None:
        """A free lane that knows the key, else one that may learn it, None beyond the limit."""
        free = [lane for lane in self._lanes if lane.is_free()]
        known = next((lane for lane in free if key in lane.captures), None)
        if known is not None:
            return known
        if self.num_captures >= self.max_captures:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"a loss was captured for {self.max_captures} sets of shapes; others run without a graph: same "
                    "results, slower. Wider buckets of padded sizes make fewer of them, max_captures allows more.",
                    GraphLimitWarning,
                    stacklevel=4,
                )
            return None
        if not free:
            free = [_Lane(self.backend.new_pool())]
            self._lanes += free
        return free[0]

    def __getstate__(self) -> dict[str, Any]:
        """Settings only: captures stay in the process and with the object that made them."""
        return {"loss": self.loss, "max_captures": self.max_captures, "backend": self.backend}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_anew()


@dataclass(frozen=True, eq=False)
class _Capture:
    """Forward and backward pass of one set of shapes.

    Attributes:
        inputs: static buffers of the tensors among the arguments.
        forward: replays the forward pass, which fills `outputs`.
        outputs: results of one type each, flattened and joined.
        backward: replays the backward pass, from `slopes` to `gradients`; None without gradient.
        slopes: gradients of those outputs that require one.
        gradients: of all inputs; None where there is none.
        differentiable: which outputs require a gradient.
        pack: makes the loss's result of the outputs.
    """

    inputs: list[Tensor]
    forward: Replay
    outputs: list[Tensor]
    backward: Replay | None
    slopes: list[Tensor]
    gradients: list[Tensor | None]
    differentiable: list[bool]
    pack: Callable[[Sequence[Tensor]], Any]


class _Lane:
    """A pool with its captures, of which one may be between its forward and its backward pass."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self.captures: dict[Hashable, _Capture] = {}
        self.generation = 0
        self._ticket: weakref.ref[_Ticket] | None = None

    def is_free(self) -> bool:
        """Whether no backward pass can follow any more."""
        ticket = None if self._ticket is None else self._ticket()
        return ticket is None or ticket.used

    def replay(self, capture: _Capture, tensors: Sequence[Tensor]) -> Any:
        """The capture's result for other values."""
        self.generation += 1
        if capture.backward is None:
            return capture.pack(_run_forward(capture, tensors))
        ticket = _Ticket(self, capture)
        self._ticket = weakref.ref(ticket)
        return capture.pack(_Replayed.apply(ticket, *tensors))


class _Ticket:
    """The right to one backward pass; the lane is taken until it is used or dropped."""

    def __init__(self, lane: _Lane, capture: _Capture) -> None:
        self.lane, self.capture = lane, capture
        self.generation = lane.generation
        self.used = False

    def backward(self, slopes: Sequence[Tensor]) -> list[Tensor | None]:
        """Gradients of the inputs."""
        if self.generation != self.lane.generation:
            raise RuntimeError(
                "the graph of this loss has been replayed since, so that its gradient can no longer be computed; with "
                "retain_graph=True, call backward again before the next loss"
            )
        capture = self.capture
        for static, slope in zip(capture.slopes, slopes, strict=True):
            static.copy_(slope)
        assert capture.backward is not None
        capture.backward()
        self.used = True
        return [None if gradient is None else gradient.clone() for gradient in capture.gradients]


class _Replayed(torch.autograd.Function):
    """Replays as one node of autograd: a ticket and the tensors among the arguments in, flat outputs out."""

    @staticmethod
    def forward(ctx: Any, ticket: _Ticket, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.ticket = ticket
        outputs = tuple(_run_forward(ticket.capture, tensors))
        flags = zip(outputs, ticket.capture.differentiable, strict=True)
        ctx.mark_non_differentiable(*(output for output, differentiable in flags if not differentiable))
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        flags = zip(slopes, ctx.ticket.capture.differentiable, strict=True)
        return None, *ctx.ticket.backward([slope for slope, differentiable in flags if differentiable])


@torch.no_grad()
def _run_forward(capture: _Capture, tensors: Sequence[Tensor]) -> list[Tensor]:
    for static, tensor in zip(capture.inputs, tensors, strict=True):
        static.copy_(tensor)
    capture.forward()
    return [output.clone() for output in capture.outputs]


def _capture(
    loss: Callable[..., Any], leaves: Sequence[Any], spec: pytree.TreeSpec, backend: GraphBackend, pool: Any
) -> _Capture:
    """Records both passes on copies of the arguments."""
    buffers = [_static_copy(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    inputs = [buffer for buffer in buffers if isinstance(buffer, Tensor)]
    sources = [tensor for tensor in inputs if tensor.requires_grad] if torch.is_grad_enabled() else []

    def forward() -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Any]]:
        return _join(loss(*pytree.tree_unflatten(buffers, spec)))

    def backward(ends: Sequence[Tensor], slopes: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(ends, sources, slopes, allow_unused=True)

    def both() -> None:
        ends = [output for output in forward()[0] if output.requires_grad]
        if sources and ends:
            backward(ends, [torch.zeros_like(end) for end in ends])

    backend.warm_up(both)
    replay_forward, (outputs, pack) = backend.record(forward, pool)
    differentiable = [output.requires_grad for output in outputs]
    ends = [output for output in outputs if output.requires_grad]
    found: dict[int, Tensor | None] = {}
    replay_backward, slopes = None, [torch.zeros_like(end) for end in ends]
    if sources and ends:
        replay_backward, gradients = backend.record(lambda: backward(ends, slopes), pool)
        found = {id(source): gradient for source, gradient in zip(sources, gradients, strict=True)}
    outputs = [output.detach() for output in outputs]
    return _Capture(
        inputs,
        replay_forward,
        outputs,
        replay_backward,
        slopes,
        [found.get(id(tensor)) for tensor in inputs],
        differentiable,
        pack,
    )


def _static_copy(tensor: Tensor) -> Tensor:
    """A leaf of its own memory with the same values."""
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _join(result: Any) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Any]]:
    """The tensors of a tree as few flat ones (by type, and whether they require a gradient), and the way back."""
    leaves, spec = pytree.tree_flatten(result)
    groups: dict[tuple[torch.dtype, bool], list[int]] = {}
    for place, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            groups.setdefault((leaf.dtype, leaf.requires_grad), []).append(place)
    joined = [torch.cat([leaves[place].reshape(-1) for place in places]) for places in groups.values()]
    shapes = {place: leaves[place].shape for places in groups.values() for place in places}
    constants = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]

    def pack(outputs: Sequence[Tensor]) -> Any:
        filled: list[Any] = list(constants)
        for output, places in zip(outputs, groups.values(), strict=True):
            parts = output.split([shapes[place].numel() for place in places])
            for place, part in zip(places, parts, strict=True):
                filled[place] = part.view(shapes[place])
        return pytree.tree_unflatten(filled, spec)

    return joined, pack


def _describe(leaf: Any) -> Hashable:
    """What a capture depends on of one leaf."""
    if not isinstance(leaf, Tensor):
        return leaf
    return leaf.shape, leaf.stride(), leaf.dtype, leaf.device, leaf.requires_grad


def _mode(tensor: Tensor) -> Hashable:
    """What a capture depends on of torch's state."""
    kind = tensor.device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    gradients = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    return gradients, autocast, torch.are_deterministic_algorithms_enabled()
