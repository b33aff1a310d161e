"""Shared fixtures: the devices to test on, and which folders need packages that are not installed."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import pytest
import torch

_DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])

# These folders need the mm packages; the core is tested without them.
collect_ignore = [] if importlib.util.find_spec("mmengine") else ["mm", "tools"]


def pytest_configure(config: pytest.Config) -> None:
    # Which kernels are compiled depends on the machine; the results do not.
    config.addinivalue_line("filterwarnings", "ignore::raggedbev._extension.SlowPathWarning")
    share_cores(int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1)))


def share_cores(workers: int) -> None:
    """Gives each of several test processes, and what they start, its part of the cores."""
    if workers > 1:
        threads = max(1, len(os.sched_getaffinity(0)) // workers)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)


@pytest.fixture(params=_DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device that this machine has."""
    return torch.device(request.param)


@pytest.fixture
def float64_default() -> Iterator[None]:
    """Makes float64 the default type during the test."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(previous)


@pytest.fixture
def generator() -> torch.Generator:
    """A freshly seeded generator on the CPU."""
    return torch.Generator().manual_seed(0)
