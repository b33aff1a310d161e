"""The benchmark of the heatmaps: equal results, a complete report, a picture. No times."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).parents[2] / "benchmarks" / "heatmap.py"
spec = importlib.util.spec_from_file_location("heatmap_benchmark", PATH)
benchmark = sys.modules["heatmap_benchmark"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)


@pytest.fixture
def without_mm(monkeypatch):
    monkeypatch.setattr(benchmark, "stock", lambda: None)


def test_report(monkeypatch, tmp_path, capsys, without_mm):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(benchmark, "DRAWN", {"small": (2, 0, 4, 5, 3, 2), "per class": (2, 3, 4, 5, 3, 2)})
    monkeypatch.setattr(benchmark, "OBJECTS", (1, 2))
    monkeypatch.setattr(benchmark, "RADII", (0, 3))
    paths = tmp_path / "report.json", tmp_path / "new" / "sweep.png"
    arguments = [
        "--repeats",
        "1",
        "--threads",
        str(torch.get_num_threads()),
        "--json",
        str(paths[0]),
        "--plot",
        str(paths[1]),
    ]
    monkeypatch.setattr(sys, "argv", ["heatmap.py", *arguments, "--cases", "draw", "focal", "sweep"])
    benchmark.main()
    report = json.loads(paths[0].read_text())
    assert [row["case"] for row in report["rows"]] == ["small", "per class", "Focal head, 48 images, 14 objects"]
    assert all(row["ms"]["batched"] > 0 and row["ratio"] > 0 for row in report["rows"])
    assert [(row["kind"], row["value"]) for row in report["sweep"]] == [
        ("objects", 1), ("objects", 2), ("radius", 0), ("radius", 3),
    ]  # fmt: skip
    assert paths[1].stat().st_size > 0 and len(capsys.readouterr().out.splitlines()) == 7


def test_time_on_the_cpu_is_of_one_thread(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["heatmap.py", "--clock", "process"])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "--clock process needs --device cpu --threads 1, got cpu and None threads" in capsys.readouterr().err


def test_arms_of_the_center_head_agree(without_mm):
    benchmark.require_equal(benchmark.center_case(0, torch.device("cpu")))


def test_disagreement_is_found():
    with pytest.raises(AssertionError, match="the arms disagree"):
        benchmark.require_equal({"loop": lambda: torch.zeros(2), "batched": lambda: torch.ones(2)})
