"""Host-sync counts: a span of work in, how often the host waited for the device (or would have) out.

On CUDA torch itself reports every waiting call. On the CPU nothing waits, so the calls that would wait if the same code
ran on CUDA tensors are counted instead: reads of values (``item``, ``bool``, ``tolist``), operators whose result shape
depends on values (``nonzero``, boolean-mask indexing, ``unique``), and blocking copies between host and device.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
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
_HOST_COPIES = {torch.Tensor.cpu: "cpu", torch.Tensor.tolist: "tolist"}
_HOST_VIEWS = {torch.Tensor.numpy: "numpy", torch.Tensor.__array__: "numpy"}
_CREATIONS = {torch.tensor: "tensor(device=)", torch.as_tensor: "as_tensor(device=)"}


class HostSyncCounter:
    """Counts the host's waits for the device inside a ``with`` block.

    Counting slows the code down: count in a run of its own, outside the timed repeats. The CPU count is an estimate: it
    cannot see where a tensor would live, so ``.to(device)`` counts also where the tensor is there already, and branches
    for CPU tensors run as they do on the CPU.

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
            self._stack.enter_context(_ValueReads(self.by_kind))
            self._stack.enter_context(_HostCopies(self.by_kind))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.on_cuda:
            torch.cuda.set_sync_debug_mode(self._mode_before)
            waits = [str(w.message) for w in self._caught if "synchronizing CUDA operation" in str(w.message)]
            self.by_kind["synchronizing CUDA operation"] += len(waits)
        self._stack.close()


class _ValueReads(TorchDispatchMode):
    """Counts operators that read tensor values on the host, at the dispatcher, so calls from C++ count as well."""

    def __init__(self, by_kind: Counter[str]) -> None:
        super().__init__()
        self.by_kind = by_kind

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name in _VALUE_DEPENDENT:
            self.by_kind[name] += 1
        elif name in _INDEXING and _indexes_by_mask(args):
            self.by_kind["boolean-mask indexing"] += 1
        elif name == "repeat_interleave" and (kwargs or {}).get("output_size") is None:
            self.by_kind["repeat_interleave without output_size"] += 1
        return func(*args, **(kwargs or {}))


def _indexes_by_mask(args: tuple[Any, ...]) -> bool:
    """Whether an indexing operator must count mask entries; writing one value through a mask does not need to."""
    masks = [index is None or index.dtype in (torch.bool, torch.uint8) for index in args[1]]
    is_masked = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    fills = len(args) > 2 and args[2].numel() == 1 and all(masks) and not (len(args) > 3 and args[3])
    return is_masked and not fills


class _HostCopies(TorchFunctionMode):
    """Counts blocking copies between host and device, which the dispatcher cannot see while both are the CPU."""

    def __init__(self, by_kind: Counter[str]) -> None:
        super().__init__()
        self.by_kind = by_kind
        self.on_host: dict[
            int, torch.Tensor
        ] = {}  # what cpu() gave, and what was made of it: reading it waits for nothing

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _HOST_COPIES:
            self.by_kind[_HOST_COPIES[func]] += 1
        elif func in _HOST_VIEWS and id(args[0]) not in self.on_host:
            self.by_kind[_HOST_VIEWS[func]] += 1
        elif func in _CREATIONS and kwargs.get("device") is not None and not isinstance(args[0], torch.Tensor):
            self.by_kind[_CREATIONS[func]] += 1
        elif func is torch.Tensor.to and _names_device(args[1:], kwargs) and not kwargs.get("non_blocking"):
            self.by_kind["to(device)"] += 1
        result = func(*args, **kwargs)
        if isinstance(result, torch.Tensor) and (func is torch.Tensor.cpu or self._stays_on_host(func, args)):
            self.on_host[id(result)] = result
        return result

    def _stays_on_host(self, func: Callable[..., Any], args: tuple[Any, ...]) -> bool:
        tensors = [x for x in args if isinstance(x, torch.Tensor)]
        return bool(tensors) and func is not torch.Tensor.to and all(id(x) in self.on_host for x in tensors)


def _names_device(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether ``Tensor.to`` was asked for a device, not for a type or another tensor's properties."""
    return kwargs.get("device") is not None or (bool(args) and isinstance(args[0], str | torch.device))
