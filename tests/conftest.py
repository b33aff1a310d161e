"""Shared fixtures: the devices to test on, and which folders need packages that are not installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest
import torch

_DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])

# These folders need the mm packages; the core is tested without them.
collect_ignore = [] if importlib.util.find_spec("mmengine") else ["mm", "tools"]


def pytest_configure(config: pytest.Config) -> None:
    # Which kernels are compiled depends on the machine; the results do not.
    config.addinivalue_line("filterwarnings", "ignore::raggedbev._extension.SlowPathWarning")


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
