"""The benchmark of the ragged helpers: arms that agree, a complete report, ratios that mean what they say. No times."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import raggedbev.ragged

FOLDER = Path(__file__).parents[2] / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cases = load("ragged_cases")
benchmark = load("ragged")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(benchmark, "COPY_BYTES", {"cpu": 2**16, "cuda": 2**16})
    monkeypatch.setattr(benchmark, "FLUSH_BYTES", 2**16)
    monkeypatch.setattr(benchmark, "SHORTEST", 0.0)
    monkeypatch.setattr(benchmark, "keep_freed_memory", lambda: True)  # the tests' process goes on


def all_cases(device, batch=3, objects=4, channels=2, dtype=torch.float32):
    problem = cases.make_problem(batch, objects, channels, device, dtype)
    return [*cases.make_cases(problem), cases.packing(problem)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 4, 2), (5, 11, 8)], ids=str)
def test_all_arms_agree(shape, dtype, device):
    for case in all_cases(device, *shape, dtype):
        benchmark.check_agreement(case)


def test_every_index_operation_and_reduction_is_timed(device):
    """What is left out is bookkeeping on the host, a single torch operation, or timed by benchmark_data.py."""
    timed = {case.name.partition(" ")[0] for case in all_cases(device)}
    left_out = {
        "Buckets",
        "RaggedBatch",
        "apply_mask_to_tensor",
        "copy_to_device",
        "get_compact_from_named_tuple",
        "get_compact_lists",
        "squeeze_except_batch_and_sample",
    }
    assert timed - {"RaggedBatch.with_padded_set_to"} == set(raggedbev.ragged.__all__) - left_out


def test_every_case_has_this_package_and_another_arm(device):
    for case in all_cases(device):
        assert cases.OURS in case.arms and len(case.arms) > 1
        assert case.forward_bytes > 0 and (case.backward_bytes > 0) == bool(case.inputs)
        assert case.baseline is None or case.baseline in case.arms


@pytest.mark.parametrize("wrong", ["value", "gradient", "nan", "shape"])
def test_an_arm_that_disagrees_is_found(wrong):
    case = next(case for case in all_cases("cpu") if case.name == "sum_over_targets")
    right = case.arms["where, sum"]

    def distorted():
        out = right()
        if wrong == "gradient":
            return out.detach() + 1.1 * (out - out.detach())
        return {"value": out + 0.1, "nan": out * float("nan"), "shape": out[:1]}[wrong]

    broken = dataclasses.replace(case, arms={**case.arms, "where, sum": distorted})
    with pytest.raises((RuntimeError, ValueError), match=r"disagree|shape"):
        benchmark.check_agreement(broken)


def test_bytes_of_a_small_problem():
    """[2, 3, 4] float32 with 3 + n objects, worked out by hand."""
    problem = cases.make_problem(2, 3, 4, "cpu", torch.float32)
    valid = 3 + int(problem.sizes[1])
    assert problem.num_valid == valid and problem.predictions == 9
    by_name = {case.name: case for case in cases.make_cases(problem)}
    access = by_name["batched_indexing_access"]
    assert access.forward_bytes == 16 * valid + 16 * 6 + 8 * valid  # rows read, rows written, indices read
    assert access.backward_bytes == 16 * valid + 16 * 18 + 8 * valid
    assert by_name["sum_over_targets"].forward_bytes == 16 * valid + 16 * 2


def test_report(tmp_path, capsys, device):
    path = tmp_path / "folder" / "report.json"
    arguments = ["--device", str(device), "--batch", "2", "--objects", "2", "--channels", "1", "4", "--lists", "5"]
    assert benchmark.main([*arguments, "--repeats", "2", "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert report["device_type"] == device.type and report["torch"] == torch.__version__
    assert report["keeps_freed_memory"] is True
    assert report["date"] and report["python"] and report["copy_gb_per_s"] > 0 and report["dtype"] == "float32"
    num_cases = 2 * len(all_cases(device))  # two problems
    assert len([r for r in report["results"] if r["pass"] == "forward"]) == num_cases
    assert {r["batch"] for r in report["results"] if r["helper"] == "combine_data"} == {5}
    for result in report["results"]:
        ours, other = (result["arms"][name]["ms"] for name in (cases.OURS, result["baseline"]))
        assert result["ratio"] == pytest.approx(other / ours)
        assert result["gb_per_s"] == pytest.approx(result["bytes"] / ours / 1e6)
        assert result["share_of_copy"] == pytest.approx(result["gb_per_s"] / report["copy_gb_per_s"])
        if result["helper"] == "combine_data":
            assert result["baseline"] == "slice copies"
        else:
            assert other == min(arm["ms"] for name, arm in result["arms"].items() if name != cases.OURS)
    printed = capsys.readouterr().out
    for row in report["summary"]:
        assert row["helper"] in printed and row["worst_ratio"] <= row["median_ratio"]


def test_chosen_helpers_and_skipped_cases(capsys):
    sizes = ["--batch", "64", "--objects", "300", "--channels", "8", "--lists", "2", "--repeats", "1"]
    args = benchmark.parse_args([*sizes, "--helpers", "batched_indexing_access", "sum_over_targets", "--max-mib", "1"])
    report = benchmark.run(args)
    timed = {r["helper"] for r in report["results"]}
    skipped = {s["helper"] for s in report["skipped"]}
    assert timed == {"sum_over_targets"}
    assert {name.partition(" ")[0] for name in skipped} == {"batched_indexing_access"}


class CountingClock:
    """Says that each call takes the next of its numbers."""

    def __init__(self, times):
        self.times = {name: iter(values) for name, values in times.items()}
        self.order = []

    def prepare(self, work):
        pass

    def measure(self, work):
        self.order.append(work)
        return {"ms": next(self.times[work])}


def test_the_allocator_is_left_alone_when_asked(monkeypatch):
    monkeypatch.setattr(benchmark, "keep_freed_memory", lambda: pytest.fail("it was changed"))
    sizes = ["--batch", "2", "--objects", "2", "--channels", "1", "--lists", "2", "--repeats", "1"]
    args = benchmark.parse_args([*sizes, "--helpers", "sum_over_targets", "--malloc", "default"])
    assert benchmark.run(args)["keeps_freed_memory"] is False


def test_freed_memory_is_kept():
    """In a process of its own: after a while large tensors cost no page faults."""
    script = """
import resource, torch
from ragged import keep_freed_memory
assert keep_freed_memory()
faults = []
for _ in range(40):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(2**22)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
assert faults[0] > 1000 and faults[-1] < 10, faults
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], cwd=FOLDER, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_medians_of_interleaved_repeats():
    clock = CountingClock({"a": [1.0, 5.0, 2.0], "b": [4.0, 4.0, 1.0]})
    found = benchmark.measure({"a": "a", "b": "b"}, clock, repeats=3, budget=10)
    assert found["a"] == {"ms": 2.0, "min_ms": 1.0, "max_ms": 5.0, "repeats": 3}
    assert found["b"]["ms"] == 4.0
    assert clock.order == ["a", "b", "b", "a", "a", "b"]


def test_budget_ends_early_but_not_too_early():
    clock = CountingClock({"a": [1.0] * 9})
    assert benchmark.measure({"a": "a"}, clock, 9, budget=0.0)["a"]["repeats"] == benchmark.FEWEST_REPEATS


def test_clock_that_other_work_does_not_disturb():
    clock = benchmark.clock_of(benchmark.parse_args(["--clock", "process", "--threads", "1"]))
    found = benchmark.measure({"nap": lambda: time.sleep(0.05)}, clock, 3, budget=10)
    assert found["nap"]["ms"] < 25


def test_summary():
    """Two sizes of one helper, the larger one above 16 MiB."""

    def result(direction, batch, ours, other, share, large):
        arms = {cases.OURS: {"ms": ours}, "gather": {"ms": other}}
        row = {"helper": "h", "pass": direction, "batch": batch, "objects": 1, "channels": 1, "arms": arms}
        row |= {"ratio": other / ours, "ratio_of_minima": other / ours, "share_of_copy": share, "baseline": "gather"}
        return row | {"bytes": benchmark.LARGE_BYTES - (not large), "device_work": None}

    forward, backward = benchmark.summary_of(
        [
            result("forward", 1, 1.0, 0.5, 0.1, False),
            result("backward", 1, 9.0, 9.0, 0.2, False),
            result("forward", 2, 2.0, 6.0, 0.7, True),
            result("backward", 2, 3.0, 3.0, 0.5, True),
        ]
    )
    assert forward["median_ratio"] == 1.75 and forward["worst_ratio"] == 0.5 and forward["worst_at"]["batch"] == 1
    assert forward["slower_than_baseline"] == 1 and forward["cases"] == 2
    assert forward["worst_share_of_copy_from_16_mib"] == 0.7
    assert forward["worst_backward_over_forward_from_16_mib"] is None
    assert backward["worst_backward_over_forward_from_16_mib"] == 1.5


def test_warning_when_repeats_differ():
    def result(high):
        return {"arms": {"a": {"min_ms": 1.0, "max_ms": high}}}

    assert benchmark.disturbance([result(1.5)] * 8) == ""
    assert "8 of 8" in benchmark.disturbance([result(3.0)] * 8)


@pytest.mark.parametrize(
    "arguments",
    [["--device", "tpu"], ["--device", "cuda"], ["--batch", "0"], ["--repeats", "-1"], ["--clock", "process"]],
)
def test_bad_arguments(arguments, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        benchmark.parse_args(arguments)
    assert arguments[0] in capsys.readouterr().err.splitlines()[-1]
