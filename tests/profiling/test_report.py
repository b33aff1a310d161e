"""Reports: rows from stage paths, medians, ratios, table text and JSON."""

import json

import pytest
import torch

from raggedbev.profiling import stage
from raggedbev.profiling.interleave import Progress, calls_to_last, measure_arms
from raggedbev.profiling.report import (
    MAIN_ROWS,
    Arm,
    disturbance,
    format_sweep,
    format_table,
    join_sweep,
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


def test_few_repeats_and_a_busy_processor_are_warnings():
    arms = {name: Arm([{"Loss": 8.0}]) for name in ("reference", "batched")}
    report = _report(**arms)
    assert disturbance(report | {"repeats": 2}) == "the medians are of fewer than 3 repeats; do not quote it"
    assert disturbance(report | {"processor_share": 0.9}) == ""
    busy = report | {"processor_share": 0.4, "clock": "wall"}
    assert disturbance(busy).startswith("the process ran for 40% of the time only: other work disturbed this run")
    assert disturbance(busy | {"clock": "process"}) == ""


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
    assert calls == list("aabbabbaab")
    assert [len(arm.repeats) for arm in arms.values()] == [3, 3]
    assert arms["a"].host_syncs == 0 and arms["a"].peak_memory_mib == 0.0
    with pytest.raises(ValueError, match="at least 1 repeat"):
        measure_arms({"a": work("a")}, repeats=0)


def test_memory_is_counted_without_what_earlier_runs_left():
    class Work:
        def __init__(self):
            self.left = None

        def reset(self):
            self.left = None

        def __call__(self):
            self.left = torch.zeros(2**18)

    assert measure_arms({"a": Work()}, repeats=1)["a"].peak_memory_mib == 1.0


def _sized(batch_size, **arms):
    return make_report(
        {name: Arm([{"Loss": ms}], host_syncs=0, peak_memory_mib=1.5 * ms) for name, ms in arms.items()},
        **{"device": "cpu", "config": "small", "batch_size": batch_size, "scope": "loss", "repeats": 1},
        **{"baseline": "reference", "target": "batched", "agreement": {"losses": 0.0}},
    )


def test_speedups_of_every_arm_over_every_baseline():
    report = _sized(8, **{"published": 80.0, "reference": 60.0, "batched": 10.0, "batched+compile": 5.0})
    assert report["speedup"] == {"Loss": 6.0}
    assert report["speedups"]["published"]["batched"] == {"Loss": 8.0}
    assert report["speedups"]["reference"]["batched+compile"] == {"Loss": 12.0}
    text = format_table(report)
    assert "over published" in text and "8.00x" in text and "over reference" in text and "6.00x" in text


def test_a_sweep_is_the_report_of_batch_8_with_all_others():
    times = {2: (20.0, 4.0), 8: (80.0, 10.0), 16: (160.0, 18.0)}
    reports = [_sized(size, reference=slow, batched=fast) for size, (slow, fast) in times.items()]
    joined = join_sweep(reports[::-1])
    assert joined["batch_size"] == 8 and joined["arms"] == reports[1]["arms"]
    assert list(joined["sweep"]) == ["2", "8", "16"]
    assert joined["sweep"]["2"]["speedup"] == {"Loss": 5.0} and "device" not in joined["sweep"]["2"]
    assert json.loads(json.dumps(joined)) == joined
    lines = format_sweep(joined).splitlines()
    assert lines[0].startswith("Loss, batch") and lines[3].split() == [
        "16",
        "160.00",
        "18.00",
        "8.89x",
        "240.0",
        "27.0",
    ]
    assert join_sweep([reports[0], reports[2]])["batch_size"] == 16


def test_progress_tells_share_and_time_left(capsys):
    progress = Progress(8, every=0.0)
    for name, weight in zip("abc", (1.0, 3.0, 4.0), strict=True):
        progress.step(name, weight)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "[0 %] a" and lines[1] == "[12 %] b" and lines[2].startswith("[50 %] c, 0 s left")


@pytest.mark.parametrize("each", [5.0, 1.0, 0.3, 0.011, 0.0021])
def test_short_work_is_called_often_enough_for_a_clock(each):
    calls = calls_to_last(lambda count: count * each, shortest=1.0, most=500)
    assert 1.0 <= calls * each <= max(each, 1.5)


def test_work_that_takes_no_time_is_called_a_limited_number_of_times():
    assert calls_to_last(lambda count: 0.0, shortest=1.0, most=500) == 500


def test_an_interrupted_first_call_does_not_decide_how_often_work_is_called():
    spent = iter([9.0])  # then nothing interrupts
    assert calls_to_last(lambda count: next(spent, count * 0.01), shortest=1.0) >= 100
