"""The benchmark of the fused match cost: arms that agree, a complete report, and the memory of one call. No times."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from raggedbev import _extension

pytestmark = pytest.mark.skipif(not _extension.COMPILED, reason="the compiled operators were not built")

PATH = Path(__file__).parents[2] / "benchmarks" / "match_cost.py"
spec = importlib.util.spec_from_file_location("match_cost_benchmark", PATH)
benchmark = sys.modules["match_cost_benchmark"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)


def test_report(monkeypatch, tmp_path, capsys):
    path = tmp_path / "report.json"
    arguments = ["--problems", "6", "--shapes", "3x7", "9x70", "--repeats", "1", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["match_cost.py", *arguments])
    threads = torch.get_num_threads()
    try:
        benchmark.main()
    finally:
        torch.set_num_threads(threads)
    report = json.loads(path.read_text())
    assert [(row["kind"], row["shape"]) for row in report["rows"]] == [
        (kind, shape) for kind in benchmark.KINDS for shape in ("3x7", "9x70")
    ]
    assert all(set(row["ms"]) == set(row["peak"]) == {"fused", "composed"} for row in report["rows"])
    assert "peak memory" in capsys.readouterr().out


@pytest.mark.parametrize("kind", benchmark.KINDS)
def test_a_call_allocates_little_beside_its_result(kind):
    device = torch.device("cpu")
    arms = benchmark.make_arms(kind, 12, 60, 900, device)
    assert (
        1 <= benchmark.peak_of_result(arms["fused"], device) < 1.1 < benchmark.peak_of_result(arms["composed"], device)
    )


def test_arms_that_differ_are_not_timed():
    arms = benchmark.make_arms("3d", 2, 3, 5, torch.device("cpu"))
    with pytest.raises(AssertionError, match="not close"):
        benchmark.time_case({**arms, "composed": lambda: arms["composed"]() + 1}, 1, torch.device("cpu"))
