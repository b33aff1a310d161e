"""Host-sync counts: a span of work in, how often the host waited for the device (or would have) out.

On CUDA torch itself reports every waiting call. On the CPU nothing waits, so the calls that would wait if the same code
ran on CUDA tensors are counted instead: reads of values (``item``, ``bool``, ``tolist``), operators whose result shape
depends on values (``nonzero``, boolean-mask indexing, ``unique``), and blocking copies between host and device.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_VALUE_DEPENDENT = frozenset(
    (
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
        "unique_dim_consecutive",
        "bincount",
        "equal",
        "_linalg_check_errors",
    )
)
_INDEXING = frozenset(("index", "index_put", "index_put_", "_index_put_impl_"))
_DOWNLOADS = {
    torch.Tensor.cpu: "cpu",
    torch.Tensor.tolist: "tolist",
    torch.Tensor.numpy: "numpy",
    torch.Tensor.__array__: "numpy",
}
_CREATIONS = {torch.tensor: "tensor(device=)", torch.as_tensor: "as_tensor(device=)"}


class HostSyncCounter:
    """Counts the host's waits for the device inside a ``with`` block.

    Counting slows the code down: count in a run of its own, outside the timed repeats. The CPU count is an estimate:
    tensors are taken to live on the device unless they were made on the host inside the block, branches for CPU tensors
    (such as checks of values) run as they do on the CPU, and the step of an optimiser, whose counters live on the host,
    is left out. Compiled functions run uncompiled while they are counted on the CPU.

    Args:
        device: ``"cuda"`` counts what torch reports (sync debug mode), ``"cpu"`` what would wait on CUDA.

    Attributes:
        by_kind: Count per kind of call.

    Example:
        >>> with HostSyncCounter("cpu") as syncs:
        ...     _ = torch.ones(3).sum().item()
        >>> syncs.count
        1
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.on_cuda = torch.device(device).type == "cuda"
        self.by_kind: Counter[str] = Counter()
        self._stack = ExitStack()
        self._paused = False

    @property
    def count(self) -> int:
        """All waits of the block."""
        return sum(self.by_kind.values())

    @property
    def method(self) -> str:
        """How the number came about, for reports."""
        return "reported by torch on CUDA" if self.on_cuda else "counted on the CPU: calls that would wait for a GPU"

    def __enter__(self) -> HostSyncCounter:
        if self.on_cuda:
            self._mode_before = torch.cuda.get_sync_debug_mode()
            self._caught = self._stack.enter_context(warnings.catch_warnings(record=True))
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
        else:
            if hasattr(torch.compiler, "set_stance"):  # torch >= 2.6
                self._stack.enter_context(torch.compiler.set_stance("force_eager"))
            for mode in (_ValueReads(self), _HostCopies(self)):
                self._stack.enter_context(mode)
            self._stack.callback(register_optimizer_step_pre_hook(self._pause).remove)
            self._stack.callback(register_optimizer_step_post_hook(self._resume).remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.on_cuda:
            torch.cuda.set_sync_debug_mode(self._mode_before)
            waits = [str(w.message) for w in self._caught if "synchronizing CUDA operation" in str(w.message)]
            self.by_kind["synchronizing CUDA operation"] += len(waits)
        self._stack.close()

    def note(self, kind: str) -> None:
        """Counts one wait."""
        if not self._paused:
            self.by_kind[kind] += 1

    def _pause(self, *_: Any) -> None:
        self._paused = True

    def _resume(self, *_: Any) -> None:
        self._paused = False


class _ValueReads(TorchDispatchMode):
    """Counts operators that read tensor values on the host, at the dispatcher, so calls from C++ count as well."""

    def __init__(self, counter: HostSyncCounter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name in _VALUE_DEPENDENT:
            self.counter.note(name)
        elif name in _INDEXING and _indexes_by_mask(args):
            self.counter.note("boolean-mask indexing")
        elif name == "repeat_interleave" and (kwargs or {}).get("output_size") is None:
            self.counter.note("repeat_interleave without output_size")
        return func(*args, **(kwargs or {}))


def _indexes_by_mask(args: tuple[Any, ...]) -> bool:
    """Whether an indexing operator must count mask entries; writing one value through a mask does not need to."""
    masks = [index is None or index.dtype in (torch.bool, torch.uint8) for index in args[1]]
    is_masked = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    fills = len(args) > 2 and args[2].numel() == 1 and all(masks) and not (len(args) > 3 and args[3])
    return is_masked and not fills


class _HostCopies(TorchFunctionMode):
    """Counts blocking copies between host and device, which the dispatcher cannot see while both are the CPU.

    Tensors that certainly live on the host are known: what ``cpu()`` and ``tensor()`` gave, memory of NumPy arrays or
    of other processes, and what was computed from these alone. Reading them waits for nothing; moving them to a device
    does.
    """

    def __init__(self, counter: HostSyncCounter) -> None:
        super().__init__()
        self.counter = counter
        self.on_host: dict[int, torch.Tensor] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        tensors = list(_tensors(args))
        is_host = bool(tensors) and all(self._is_on_host(x) for x in tensors)
        makes_host = func is torch.Tensor.cpu or is_host
        if func in _DOWNLOADS and not is_host:
            self.counter.note(_DOWNLOADS[func])
        elif func in _CREATIONS and not tensors:
            makes_host = kwargs.get("device") is None
            if not makes_host:
                self.counter.note(_CREATIONS[func])
        elif func is torch.Tensor.to:
            target = kwargs.get("device", args[1] if len(args) > 1 else None)
            makes_host = target == "cpu" or (is_host and isinstance(target, torch.dtype))
            moves = target == "cpu" if not is_host else isinstance(target, str | torch.device) and target != "cpu"
            if moves and not kwargs.get("non_blocking"):
                self.counter.note("to(device)")
        result = func(*args, **kwargs)
        if makes_host and isinstance(result, torch.Tensor):
            self.on_host[id(result)] = result
        return result

    def _is_on_host(self, tensor: torch.Tensor) -> bool:
        borrowed = tensor.layout is torch.strided and not tensor.untyped_storage().resizable()
        return borrowed or id(tensor) in self.on_host


def _tensors(values: tuple[Any, ...] | list[Any]) -> Iterator[torch.Tensor]:
    """Tensors among arguments, also inside lists."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
