"""The demo's own logic: reading logs, comparing runs, running steps, and drawing."""

import contextlib
import json
import os
import sys

import pytest
from launch import ROOT
from matplotlib.text import Text

from raggedbev.profiling.report import Arm, make_report, write_json

sys.path.insert(0, str(ROOT / "tools"))
import demo
from shared import plots


def _run(*total, **others):
    return {"loss": list(total), **{key: list(values) for key, values in others.items()}}


def test_equal_losses_agree():
    result = demo.compare_losses(_run(3.0, 2.0), _run(3.0, 2.0))
    assert result.agrees and result.largest == 0.0 and result.compared == 2


def test_the_largest_difference_is_found_within_the_compared_steps():
    steps = demo.COMPARED_STEPS
    first = [1.0] * (steps + 5)
    second = list(first)
    second[2] = 1.0005
    second[steps + 2] = 2.0
    result = demo.compare_losses(_run(*first), _run(*second))
    assert result.agrees and result.step == 3
    assert result.largest == pytest.approx(5e-4, rel=1e-3) and result.overall == pytest.approx(0.5)
    second[3] = 1.1
    assert not demo.compare_losses(_run(*first), _run(*second)).agrees


def test_the_first_step_is_compared_term_by_term():
    result = demo.compare_losses(_run(3.0, loss_cls=[1.0]), _run(3.0, loss_cls=[1.25]))
    assert (result.key, result.first_step) == ("loss_cls", 0.2)


def test_nan_in_one_run_is_a_disagreement_and_in_both_is_none():
    nan = float("nan")
    assert not demo.compare_losses(_run(nan), _run(1.0)).agrees
    assert demo.compare_losses(_run(nan), _run(nan)).agrees


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"loss": [1.0], "extra": [1.0]}, "log other losses: \\['extra'\\]"),
        ({"loss": [1.0, 2.0]}, "same number of steps"),
        ({"loss": []}, "same number of steps"),
    ],
)
def test_runs_that_do_not_match_are_errors(second, message):
    with pytest.raises(ValueError, match=message):
        demo.compare_losses({"loss": [1.0]}, second)


def _write_lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_losses_are_read_from_the_log_and_nothing_else_is(tmp_path):
    _write_lines(
        tmp_path / "20260101_000000" / "vis_data" / "scalars.json",
        {"lr": 0.1, "loss": 3.0, "loss_cls": 1.0, "centers2d_losses": 2.0, "step": 1},
        {"lr": 0.1, "loss": 2.0, "loss_cls": 0.5, "centers2d_losses": 1.5, "step": 2},
        {"NuScenes metric/mAP": 0.1, "step": 2},
    )
    assert demo.read_losses(tmp_path) == {"loss": [3.0, 2.0], "loss_cls": [1.0, 0.5], "centers2d_losses": [2.0, 1.5]}
    with pytest.raises(ValueError, match="no losses were logged under"):
        demo.read_losses(tmp_path / "none")


def test_metrics_are_read_from_the_log(tmp_path):
    _write_lines(tmp_path / "20260101_000000" / "20260101_000000.json", {"x/NDS": 0.25, "x/mAP": 0.5, "time": 1.0})
    assert demo.read_metrics(tmp_path) == {"NDS": 0.25, "mAP": 0.5}
    with pytest.raises(ValueError, match="no mAP and NDS"):
        demo.read_metrics(tmp_path / "none")


def test_a_step_shows_progress_and_keeps_its_log(tmp_path, capsys):
    code = "print('11/20 - Iter(train) [ 1/2]  lr: 1e-4  loss: 3.5  x: 1'); print('Iter(train) [2/2] loss: nan')"
    demo.run_steps(demo.Step("training", ["-c", code], tmp_path / "logs" / "a.log", demo.TRAIN_LINE))
    assert capsys.readouterr().out == "  training: 2/2, loss nan, 0 s left\n"
    assert "loss: 3.5" in (tmp_path / "logs" / "a.log").read_text()
    demo.run_steps(demo.Step("making", ["-c", "print('hello')"], tmp_path / "b.log"))
    assert capsys.readouterr().out == "  hello\n"


def test_a_step_that_fails_names_its_log_and_shows_the_end(tmp_path):
    code = "import sys; print('the reason'); sys.exit(3)"
    with pytest.raises(demo.StepFailed, match=r"making failed with status 3; its log is .*c\.log\n  \| the reason"):
        demo.run_steps(demo.Step("making", ["-c", code], tmp_path / "c.log", demo.TEST_LINE))


def test_steps_run_side_by_side_and_a_failure_stops_the_others(tmp_path):
    meet = "import pathlib, time\n{mine}.touch()\nwhile not {other}.exists(): time.sleep(0.01)"
    here, there = (f"pathlib.Path({str(tmp_path / name)!r})" for name in ("a", "b"))
    first, second = meet.format(mine=here, other=there), meet.format(mine=there, other=here)
    demo.run_steps(
        demo.Step("a", ["-c", first], tmp_path / "a.log"), demo.Step("b", ["-c", second], tmp_path / "b.log")
    )
    number = tmp_path / "number"
    endless = f"import os, pathlib, time\npathlib.Path({str(number)!r}).write_text(str(os.getpid()))\ntime.sleep(600)"
    fail = (
        f"import pathlib, time\nwhile not pathlib.Path({str(number)!r}).exists(): time.sleep(0.01)\nraise SystemExit(1)"
    )
    with pytest.raises(demo.StepFailed, match="bad failed with status 1"):
        demo.run_steps(
            demo.Step("endless", ["-c", endless], tmp_path / "endless.log"),
            demo.Step("bad", ["-c", fail], tmp_path / "bad.log"),
        )
    with pytest.raises(ProcessLookupError):
        os.kill(int(number.read_text()), 0)


@pytest.mark.parametrize(
    ("pattern", "line", "groups"),
    [
        (demo.TRAIN_LINE, "Iter(train) [ 10/120]  lr: 1e-4  loss: 52.9592  loss_cls: 2.2", ("10", "120", "52.9592")),
        (demo.TEST_LINE, "INFO - Iter(test) [ 7/24]    eta: 0:00:09  time: 0.5", ("7", "24", "")),
        (demo.TEST_LINE, "INFO - Epoch(test) [ 7/24]    eta: 0:00:09", ("7", "24", "")),
    ],
)  # fmt: skip
def test_progress_is_found_in_log_lines(pattern, line, groups):
    assert pattern.search(line).groups() == groups


def test_curves_are_drawn(tmp_path):
    path = tmp_path / "new" / "curves.png"
    curves = {"per-sample": _run(3.0, 2.0, 1.0), "batched": _run(3.0, 2.0, 1.1)}
    plots.loss_curves(curves, path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_demo_trains_configs_that_exist_and_differ_in_types_only():
    texts = [(ROOT / config).read_text() for config in demo.RUNS.values()]
    assert len(texts) == 2 and "_base_" in texts[1]


def test_a_failing_step_ends_the_demo_with_one_error(tmp_path, monkeypatch, capsys):
    def fail(self):
        raise demo.StepFailed("making data failed")

    monkeypatch.setattr(demo.Demo, "make_data", fail)
    assert demo.main(["--work-dir", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "error: making data failed\n"


def test_an_interrupted_demo_is_one_sentence(tmp_path, monkeypatch, capsys):
    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo.Demo, "make_data", interrupt)
    assert demo.main(["--work-dir", str(tmp_path)]) == 130
    errors = capsys.readouterr().err
    assert errors == "\ndemo: interrupted; earlier trainings are as they were, and the data set stays\n"


@pytest.mark.parametrize("failure", [None, ValueError, KeyboardInterrupt])
def test_earlier_trainings_are_replaced_by_whole_ones_only(failure, tmp_path, monkeypatch, capsys):
    for name in demo.RUNS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "iter_1.pth").write_text("earlier")

    def run(*steps):
        for name in demo.RUNS:
            assert not (tmp_path / name).exists()
            (tmp_path / name).mkdir()
            (tmp_path / name / "iter_1.pth").write_text("new")
        if failure:
            raise failure

    monkeypatch.setattr(demo, "run_steps", run)
    with pytest.raises(failure) if failure else contextlib.nullcontext():
        demo.Demo(tmp_path, 1).train()
    found = {path.parent.name: path.read_text() for path in tmp_path.glob("*/iter_1.pth")}
    assert found == dict.fromkeys(demo.RUNS, "earlier" if failure else "new")
    assert f"replaces the earlier results in {tmp_path}: per-sample, batched\n" in capsys.readouterr().out


def test_what_a_killed_demo_left_is_the_earlier_training(tmp_path):
    for name in ("batched", "batched.earlier"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with pytest.raises(OSError), demo.replacing(tmp_path / "batched"):
        raise OSError
    assert [path.read_text() for path in tmp_path.glob("*/file")] == ["batched.earlier"]


def test_the_summary_warns_of_figures_that_are_not_to_be_quoted(tmp_path, monkeypatch):
    arms = {"published": Arm([{"Loss": 8.0}, {"Loss": 24.0}]), "batched": Arm([{"Loss": 2.0}])}
    compared = {"scope": "loss", "baseline": "published", "target": "batched", "repeats": 3}
    report = make_report(arms, device="cpu", config="small", batch_size=2, agreement={"losses": 0.0}, **compared)
    monkeypatch.setattr(
        demo, "run_steps", lambda step: write_json(report, step.command[step.command.index("--json") + 1])
    )
    shown = demo.Demo(tmp_path, 1)
    shown.time_stages()
    assert sum("warning: the repeats of one arm differ 3.0-fold" in line for line in shown.summary) == 2


def test_charts_tell_warning_date_and_command(tmp_path, monkeypatch):
    report = make_report(
        {"published": Arm([{"Loss": 8.0, "Focal Head": 6.0}]), "batched": Arm([{"Loss": 2.0, "Focal Head": 1.0}])},
        **{"device": "cpu", "config": "small", "batch_size": 2, "scope": "loss", "repeats": 1},
        **{"baseline": "published", "target": "batched", "command": "tools/benchmark_loss.py small"},
    )
    texts = []
    monkeypatch.setattr(
        plots, "_save", lambda figure, path: texts.extend(text.get_text() for text in figure.findobj(Text))
    )
    plots.stage_chart(report, tmp_path / "x.png")
    assert any("warning: the medians are of fewer than 3 repeats" in text for text in texts)
    assert f"{report['date'][:16]}, tools/benchmark_loss.py small" in texts
