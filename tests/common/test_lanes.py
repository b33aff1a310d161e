"""The host twins of a warp: the same results in any order of the lanes, and others as soon as a sync is missing."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from raggedbev import _extension

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which(os.environ.get("CXX", "c++"))
SHUFFLES = [f"shuffle:{seed}" for seed in range(8)]

needs_fibers = pytest.mark.skipif(
    COMPILER is None or not sys.platform.startswith("linux"), reason="needs a C++ compiler and Linux"
)


def compile_lanes(program, *flags):
    """Returns what runs an algorithm of lanes.cpp on a twin."""
    source = Path(__file__).with_name("lanes.cpp")
    flags = ["-std=c++17", "-O1", "-g", "-Wall", "-Werror", "-I", str(ROOT / "csrc"), *flags]
    subprocess.run([COMPILER, *flags, str(source), "-o", str(program)], check=True)

    @functools.cache
    def run(algorithm, twin):
        environment = {**os.environ, "RAGGEDBEV_HOST_TWIN": twin}
        return subprocess.run([str(program), algorithm], env=environment, capture_output=True, text=True)

    return run


@pytest.fixture(scope="module")
def lanes(tmp_path_factory):
    return compile_lanes(tmp_path_factory.mktemp("lanes") / "lanes")


@pytest.fixture(scope="module")
def watched_lanes(tmp_path_factory):
    """With ThreadSanitizer."""
    try:
        run = compile_lanes(tmp_path_factory.mktemp("lanes") / "watched", "-fsanitize=thread")
    except subprocess.CalledProcessError:
        pytest.skip("the compiler has no ThreadSanitizer")
    if run("cells", "1").returncode != 0:
        pytest.skip("ThreadSanitizer does not run here")
    return run


@needs_fibers
def test_thread_sanitizer_sees_a_missing_sync_in_any_order(watched_lanes):
    for twin in SHUFFLES[:4]:
        for algorithm in ("add neighbours", "vote"):
            done = watched_lanes(algorithm, twin)
            assert done.returncode == 0, done.stderr
        for algorithm in ("no sync before read", "no sync before write", "a vote for a sync", "write what others read"):
            done = watched_lanes(algorithm, twin)
            assert done.returncode != 0 and "data race" in done.stderr


@needs_fibers
@pytest.mark.parametrize("algorithm", ["add neighbours", "vote"])
def test_order_does_not_matter(lanes, algorithm):
    in_order = lanes(algorithm, "1")
    assert in_order.returncode == 0 and len(in_order.stdout.splitlines()) == 4
    assert all(lanes(algorithm, twin).stdout == in_order.stdout for twin in SHUFFLES)


@needs_fibers
@pytest.mark.parametrize("algorithm", ["no sync before read", "no sync before write", "write what others read"])
def test_a_missing_sync_is_seen(lanes, algorithm):
    """Lanes in order get away with it; every shuffle gives something else."""
    in_order = lanes(algorithm, "1").stdout
    if algorithm != "write what others read":
        assert in_order == lanes("add neighbours", "1").stdout
    assert all(lanes(algorithm, twin).stdout != in_order for twin in SHUFFLES)


@needs_fibers
def test_lanes_that_diverge_are_an_error(lanes):
    assert lanes("vote by half", "1").returncode == 0
    for twin in SHUFFLES:
        done = lanes("vote by half", twin)
        assert done.returncode == 1 and done.stderr == "the lanes of a group have diverged\n"


@needs_fibers
def test_orders_are_drawn_anew(lanes):
    """Every lane is there once between two syncs; no two orders are alike, and a seed gives the same ones again."""
    orders = []
    for twin in SHUFFLES:
        for line in lanes("visit", twin).stdout.splitlines():
            visits = [int(lane) for lane in line.split()[-96:]]
            orders += [tuple(visits[first : first + 32]) for first in (0, 32, 64)]
    assert all(sorted(order) == list(range(32)) for order in orders)
    assert len(set(orders)) == len(orders) == 8 * 4 * 3
    lines = lanes("visit", "shuffle:3").stdout
    lanes.cache_clear()
    assert lanes("visit", "shuffle:3").stdout == lines
    assert lanes("cells", "1").stdout.split() == [str(cell) for cell in range(15)]
    shuffled = lanes("cells", "shuffle").stdout.split()
    assert shuffled != sorted(shuffled, key=int) and sorted(shuffled, key=int) == [str(cell) for cell in range(15)]


@needs_fibers
@pytest.mark.parametrize("twin", ["yes", "shuffle:", "shuffle:x", "shuffled"])
def test_a_twin_that_does_not_exist_is_an_error(lanes, twin):
    done = lanes("vote", twin)
    assert done.returncode == 1
    assert done.stderr == f"RAGGEDBEV_HOST_TWIN must be 0, 1, shuffle or shuffle:SEED, got {twin}\n"


@needs_fibers
@pytest.mark.skipif(not _extension.COMPILED, reason="the compiled operators were not built")
def test_ragged_operators_in_any_order_of_the_lanes(tmp_path):
    """All results of the ragged operators, bit by bit."""
    found = []
    for twin in ("1", "shuffle:1"):
        path = tmp_path / f"{twin}.pt"
        script = ROOT / "tests" / "ragged_operators.py"
        environment = {**os.environ, "RAGGEDBEV_HOST_TWIN": twin, "PYTHONPATH": ":".join(sys.path)}
        done = subprocess.run([sys.executable, script, path], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(torch.load(path))
    assert found[0].keys() == found[1].keys() and found[0]
    for key, expected in found[0].items():
        assert all(torch.equal(a, b) for a, b in zip(found[1][key], expected, strict=True)), key
