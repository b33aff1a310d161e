"""Reports: rows from stage paths, medians, ratios, table text and JSON."""

import json

import pytest

from raggedbev.profiling import stage
from raggedbev.profiling.interleave import Progress, measure_arms
from raggedbev.profiling.report import (
    MAIN_ROWS,
    Arm,
    disturbance,
    format_table,
    make_report,
    rows_of,
    table_rows,
    write_json,
)

PATHS = {
    ("Training Iteration",): 100.0,
    ("Training Iteration", "Forward"): 60.0,
    ("Training Iteration", "Forward", "Loss"): 25.0,
    ("Training Iteration", "Forward", "Loss", "StreamPETR Head"): 15.0,
    ("Training Iteration", "Forward", "Loss", "StreamPETR Head", "cost"): 5.0,
    ("Training Iteration", "Forward", "Loss", "StreamPETR Head", "cost", "class"): 2.0,
    ("Training Iteration", "Forward", "Loss", "StreamPETR Head", "matching"): 4.0,
    ("Training Iteration", "Forward", "Loss", "Focal Head"): 10.0,
    ("Training Iteration", "Optimization"): 30.0,
}


def _report(**arms):
    compared = {"baseline": "reference", "target": "batched"}
    return make_report(arms, device="cpu", config="small", batch_size=2, scope="loss", repeats=3, **compared)


def test_rows_have_remainders_and_names_of_the_table():
    rows = rows_of(PATHS)
    assert rows["Remaining"] == 10.0 and rows["Forward > Remaining"] == 35.0
    assert rows["StreamPETR Head > cost"] == 5.0 and rows["StreamPETR Head > cost > class"] == 2.0
    assert rows_of({("Loss",): 3.0, ("Loss", "Focal Head"): 1.0}) == {"Loss": 3.0, "Focal Head": 1.0}
    assert rows_of({}) == {}


def test_loading_is_a_row_of_its_own():
    rows = rows_of(PATHS | {("Training Iteration", "Data"): 7.0})
    assert rows["Data"] == 7.0 and rows["Remaining"] == 3.0
    assert table_rows(_report(batched=Arm([rows]), reference=Arm([rows])))[:3] == [
        ("Training Iteration", "Training Iteration", 0),
        ("Data", "Data", 1),
        ("Forward", "Forward", 1),
    ]


def test_medians_and_a_stage_that_is_not_always_entered():
    arm = Arm(repeats=[{"Loss": 1.0}, {"Loss": 9.0, "extra": 3.0}, {"Loss": 2.0}])
    assert arm.medians() == {"Loss": 2.0, "extra": 0.0}


def test_report_has_the_agreed_keys(tmp_path):
    reference = Arm([{"Loss": 8.0, "Focal Head": 6.0}], host_syncs=12)
    report = _report(reference=reference, batched=Arm([{"Loss": 2.0, "Focal Head": 1.0}], host_syncs=0))
    write_json(report, tmp_path / "deep" / "out.json")
    back = json.loads((tmp_path / "deep" / "out.json").read_text())
    assert back == report
    assert {"device", "torch", "config", "batch_size", "arms", "speedup", "date"} <= set(back)
    assert set(back["arms"]["reference"]) == {*MAIN_ROWS, "host_syncs", "peak_memory_mib"}
    assert back["arms"]["reference"]["Training Iteration"] is None
    assert back["speedup"] == {"Loss": 4.0, "Focal Head": 6.0}
    assert back["spread"]["reference"]["Loss"] == [8.0, 8.0]


def test_repeats_that_differ_much_are_a_warning():
    calm = Arm([{"Loss": 8.0}, {"Loss": 9.0}])
    assert disturbance(_report(reference=calm, batched=calm)) == ""
    busy = _report(reference=calm, batched=Arm([{"Loss": 8.0}, {"Loss": 24.0}]))
    assert "differ 3.0-fold" in disturbance(busy) and "--threads 1" in disturbance(busy)


def test_a_row_that_took_no_time_has_no_ratio():
    report = _report(reference=Arm([{"Loss": 8.0}]), batched=Arm([{"Loss": 0.0}]))
    assert report["speedup"] == {}


def test_table_keeps_the_order_and_shows_inner_rows_below_their_head():
    rows = rows_of(PATHS)
    report = _report(reference=Arm([rows], host_syncs=7), batched=Arm([rows], host_syncs=0))
    assert table_rows(report) == [
        ("Training Iteration", "Training Iteration", 0),
        ("Forward", "Forward", 1),
        ("Forward > Remaining", "Remaining", 2),
        ("Loss", "Loss", 2),
        ("StreamPETR Head", "StreamPETR Head", 3),
        ("StreamPETR Head > cost", "cost", 4),
        ("StreamPETR Head > cost > class", "class", 5),
        ("StreamPETR Head > matching", "matching", 4),
        ("Focal Head", "Focal Head", 3),
        ("Optimization", "Optimization", 1),
        ("Remaining", "Remaining", 1),
    ]
    text = format_table(report)
    assert "host syncs" in text and "1.00x" in text and "peak memory" not in text
    assert max(len(line) for line in text.splitlines()) < 100


def test_inner_rows_come_in_the_order_of_the_work():
    names = ("backward", "extra", "cost", "GT packing")
    rows = {"Focal Head": 4.0} | {f"Focal Head > {name}": 1.0 for name in names}
    report = _report(reference=Arm([rows]), batched=Arm([rows]))
    assert [label for _, label, _ in table_rows(report)] == ["Focal Head", "GT packing", "cost", "backward", "extra"]


def test_arms_take_turns_and_are_counted_once():
    calls = []

    def work(name):
        def run():
            calls.append(name)
            with stage("Loss"):
                pass

        return run

    arms = measure_arms({"a": work("a"), "b": work("b")}, repeats=3)
    assert calls == list("ababbaab")
    assert [len(arm.repeats) for arm in arms.values()] == [3, 3]
    assert arms["a"].host_syncs == 0 and arms["a"].peak_memory_mib is None
    with pytest.raises(ValueError, match="at least 1 repeat"):
        measure_arms({"a": work("a")}, repeats=0)


def test_progress_tells_step_and_time_left(capsys):
    progress = Progress(3, every=0.0)
    for name in "abc":
        progress.step(name)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "[1/3] a" and lines[2].startswith("[3/3] c, 0 s left")
