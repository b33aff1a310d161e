"""The benchmark of matching from predictions to pairs: arms that agree, scenes as they are called. No times."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from raggedbev import _extension

pytestmark = pytest.mark.skipif(not _extension.COMPILED, reason="the compiled operators were not built")

PATH = Path(__file__).parents[2] / "benchmarks" / "matching.py"
spec = importlib.util.spec_from_file_location("matching_benchmark", PATH)
benchmark = sys.modules["matching_benchmark"] = importlib.util.module_from_spec(spec)
sys.path.insert(0, str(PATH.parent))  # where it finds the benchmark of the solver
try:
    spec.loader.exec_module(benchmark)
finally:
    sys.path.remove(str(PATH.parent))
CPU = torch.device("cpu")


def test_report(monkeypatch, tmp_path, capsys):
    path = tmp_path / "report.json"
    arguments = ["--shapes", "12x3x7", "2x7x3", "--repeats", "1", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["matching.py", *arguments])
    threads = torch.get_num_threads()
    try:
        benchmark.main()
    finally:
        torch.set_num_threads(threads)
    report = json.loads(path.read_text())
    assert [(row["kind"], row["shape"]) for row in report["rows"]] == [
        (kind, shape) for kind in benchmark.KINDS for shape in ("12x3x7", "2x7x3")
    ]
    assert all(set(row["ms"]) == {"native", "scipy"} for row in report["rows"])
    assert capsys.readouterr().out.count("native") == 4


def test_scenes():
    shape = benchmark.Shape(12, 20, 60)
    trained, crowded = (benchmark.make_scene(kind, shape, 0, CPU) for kind in benchmark.KINDS)
    assert trained.logits.shape == (6, 2, 60, 10) and trained.gt_boxes.shape == (2, 20, 9)
    best = [scene.cost().argmin(-1) for scene in (trained, crowded)]
    distinct = [torch.tensor([len(row.unique()) for row in rows.flatten(0, 1)]) for rows in best]
    assert (distinct[0] >= 18).all() and (distinct[1] < 15).all()
    one = trained.cost((3, 1))
    torch.testing.assert_close(one, trained.cost()[3, 1])


def test_arms_that_differ_are_not_timed(monkeypatch):
    scene = benchmark.make_scene("trained", benchmark.Shape(2, 3, 9), 0, CPU)
    arms = benchmark.make_arms(scene)
    worse = {**arms, "native": lambda: (arms["native"]() + 1) % 9}
    monkeypatch.setattr(benchmark, "make_arms", lambda _: worse)
    with pytest.raises(AssertionError, match="native is not optimal"):
        benchmark.time_case(scene, 1)
