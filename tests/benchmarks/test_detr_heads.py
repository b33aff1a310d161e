"""The benchmark of mmdet's DETR-like heads: arms that agree, arms that are what they say, a report. No times."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).parents[2] / "benchmarks" / "detr_heads.py"
spec = importlib.util.spec_from_file_location("detr_heads_benchmark", PATH)
benchmark = sys.modules["detr_heads_benchmark"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning")  # mmdet's cross entropy


def heads(name):
    return {arm: benchmark.build_head(name, arm) for arm in benchmark.ARMS}


@pytest.fixture
def small(monkeypatch):
    """Few queries and proposals, and no call more than needed."""
    kinds = {
        name: dataclasses.replace(
            kind, queries=20, proposals=min(kind.proposals, 30), denoising=min(kind.denoising, 20)
        )
        for name, kind in benchmark.KINDS.items()
    }
    monkeypatch.setattr(benchmark, "KINDS", kinds)
    monkeypatch.setattr(benchmark, "SHORTEST", 0.0)


def test_report(small, monkeypatch, tmp_path, capsys):
    path = tmp_path / "report.json"
    arguments = ["--heads", "DETRHead", "--images", "1", "--repeats", "1", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["detr_heads.py", *arguments])
    threads = torch.get_num_threads()
    try:
        benchmark.main()
    finally:
        torch.set_num_threads(threads)
    (row,) = json.loads(path.read_text())["rows"]
    assert (row["head"], row["images"]) == ("DETRHead", 1) and set(row["ms"]) == {"stock", "assigner", "both"}
    out = capsys.readouterr().out
    assert out.count("stock") == 1 and out.count("x)") == 2


def test_arms_are_what_they_say():
    types = {arm: (type(head).__name__, type(head.assigner).__name__) for arm, head in heads("DINOHead").items()}
    assert types == {
        "stock": ("DINOHead", "HungarianAssigner"),
        "assigner": ("DINOHead", "BatchedHungarianAssigner"),
        "both": ("BatchedDINOHead", "BatchedHungarianAssigner"),
    }


@pytest.mark.parametrize("name", benchmark.KINDS)
def test_arms_agree(small, name):
    arms = heads(name)
    given = benchmark.make_batch(name, arms["stock"].cls_out_channels, 2, CPU, 0)
    assert given["all_layers_cls_scores"].shape[:2] == (6, 2)
    assert all(1 <= len(truth) <= 14 for truth in given["batch_gt_instances"])
    times = benchmark.time_case(arms, given, 1, benchmark.CLOCKS["wall"])
    assert set(times) == set(benchmark.ARMS) and given["all_layers_bbox_preds"].grad.abs().sum() > 0


def test_arms_that_differ_are_not_timed(small):
    arms = heads("DABDETRHead")
    given = benchmark.make_batch("DABDETRHead", arms["stock"].cls_out_channels, 2, CPU, 0)
    arms["assigner"].loss_bbox.loss_weight *= 1.01
    with pytest.raises(AssertionError, match="losses of assigner differ"):
        benchmark.time_case(arms, given, 1, benchmark.CLOCKS["wall"])
