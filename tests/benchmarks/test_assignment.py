"""The benchmark of the assignment solver: optimal solvers on every kind of cost, a complete report. No times."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest
import torch

from raggedbev import _extension

pytestmark = pytest.mark.skipif(not _extension.COMPILED, reason="the compiled operators were not built")

PATH = Path(__file__).parents[2] / "benchmarks" / "assignment.py"
spec = importlib.util.spec_from_file_location("assignment_benchmark", PATH)
benchmark = sys.modules["assignment_benchmark"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)


SMALL = benchmark.Shape(2, 3, 5)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["assignment.py", "--repeats", "1", *map(str, arguments)])
    benchmark.main()


def test_report(monkeypatch, tmp_path, capsys):
    path = tmp_path / "report.json"
    run(monkeypatch, "--shapes", "2x3x7", "2x7x3", "--threads", "1", "2", "--json", path)
    report = json.loads(path.read_text())
    assert [(row["kind"], row["shape"]) for row in report["rows"]] == [
        (kind, shape) for kind in ("random", "trained", "crowded") for shape in ("2x3x7", "2x7x3")
    ]
    assert all({"native@1", "native@2", "scipy"} <= set(row["ms"]) for row in report["rows"])
    assert report["rows"][0].items() >= {"problems": 2, "num_gt": 3, "num_preds": 7}.items()
    assert report["versions"]["scipy"] and report["torch"] == torch.__version__
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7 and all("x by threads" in line for line in lines[1:])


def test_growth_is_plotted(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(
        benchmark, "GROWTH", {"objects": ("2x3x7", "2x5x7"), "predictions": ("2x3x9",), "problems": ("4x3x7",)}
    )
    run(monkeypatch, "--study", "growth", "--json", tmp_path / "growth.json", "--plot", tmp_path / "growth.png")
    report = json.loads((tmp_path / "growth.json").read_text())
    assert [(row["kind"], row["axis"]) for row in report["rows"]] == [
        (kind, axis) for kind in ("trained", "crowded") for axis in ("objects", "objects", "predictions", "problems")
    ]
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_a_slow_peer_is_left_out():
    arms = {"native": benchmark.solve_native, "slow": lambda cost: time.sleep(0.2) or benchmark.solve_scipy(cost)}
    times = benchmark.time_case(arms, [benchmark.make_costs("random", SMALL, 0)], repeats=1, budget=0.1)
    assert set(times) == {"native"}


@pytest.mark.parametrize("text", ["48x60", "48x60x428x1", "axbxc"])
def test_wrong_shapes(monkeypatch, capsys, text):
    with pytest.raises(SystemExit):
        run(monkeypatch, "--shapes", text)
    assert f"a shape is problems x objects x predictions, like 48x60x428, got {text}" in capsys.readouterr().err


def test_a_solver_that_is_not_optimal_is_found():
    cost = benchmark.make_costs("random", SMALL, 0)
    for wrong in ("native", "scipy"):
        arms = {"native": benchmark.solve_native, "scipy": benchmark.solve_scipy}
        arms[wrong] = lambda cost: benchmark.solve_native(-cost)
        with pytest.raises(AssertionError, match=f"{wrong} is not optimal"):
            benchmark.time_case(arms, [cost], 1, 60.0)


def test_small_study_takes_turns_with_batches(monkeypatch, tmp_path):
    seen = set()
    solve = benchmark.solve_native
    monkeypatch.setattr(benchmark, "solve_native", lambda cost: seen.add(cost.data_ptr()) or solve(cost))
    run(monkeypatch, "--study", "small", "--shapes", "1x5x5", "--json", tmp_path / "small.json")
    rows = json.loads((tmp_path / "small.json").read_text())["rows"]
    assert [row["kind"] for row in rows] == list(benchmark.KINDS) and len(seen) >= 64
    assert {"1x20x20", "6x20x20", "1x5x5"} <= set(benchmark.SMALL)


@pytest.mark.parametrize("kind", benchmark.KINDS)
def test_costs_are_drawn_again_from_a_seed(kind):
    one, again, other = (benchmark.make_costs(kind, SMALL, seed) for seed in (0, 0, 1))
    assert one.shape == (2, 3, 5) and torch.equal(one, again) and not torch.equal(one, other)
