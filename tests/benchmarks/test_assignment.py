"""The benchmark of the assignment solver: optimal solvers on every kind of cost, a complete report. No times."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from raggedbev import _extension

pytestmark = pytest.mark.skipif(not _extension.COMPILED, reason="the compiled operators were not built")

PATH = Path(__file__).parents[2] / "benchmarks" / "assignment.py"
spec = importlib.util.spec_from_file_location("assignment_benchmark", PATH)
benchmark = sys.modules["assignment_benchmark"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)


def test_report(monkeypatch, tmp_path, capsys):
    path = tmp_path / "report.json"
    arguments = ["--problems", "2", "--shapes", "3x7", "7x3", "--repeats", "1", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["assignment.py", *arguments])
    benchmark.main()
    report = json.loads(path.read_text())
    assert [(row["kind"], row["shape"]) for row in report["rows"]] == [
        (kind, shape) for kind in benchmark.KINDS for shape in ("3x7", "7x3")
    ]
    assert all({"native", "scipy"} <= set(row["ms"]) for row in report["rows"])
    assert len(capsys.readouterr().out.splitlines()) == 6


def test_a_solver_that_is_not_optimal_is_found(monkeypatch):
    wrong = {"native": lambda cost: benchmark.solve_native(-cost), "scipy": benchmark.solve_scipy}
    monkeypatch.setattr(benchmark, "solvers", lambda: wrong)
    with pytest.raises(AssertionError, match="native is not optimal"):
        benchmark.time_case(benchmark.make_costs("random", 2, 3, 5, 0), 1)


@pytest.mark.parametrize("kind", benchmark.KINDS)
def test_costs_are_drawn_again_from_a_seed(kind):
    one, again, other = (benchmark.make_costs(kind, 2, 3, 5, seed) for seed in (0, 0, 1))
    assert one.shape == (2, 3, 5) and torch.equal(one, again) and not torch.equal(one, other)
