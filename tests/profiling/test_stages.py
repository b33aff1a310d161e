"""Stage timers: what is recorded, when nothing is, and that compiled code may contain stages."""

import threading
import time
from contextlib import nullcontext

import pytest
import torch

from raggedbev.profiling import StageTimer, stage


def test_nothing_is_recorded_without_a_timer():
    with stage("Loss"):
        pass
    with StageTimer("cpu") as timer:
        pass
    assert timer.milliseconds() == {}


def test_stages_nest_and_add_up_in_the_order_of_entering():
    with StageTimer("cpu") as timer:
        for _ in range(3):
            with stage("Loss"), stage("cost"):
                time.sleep(0.01)
        with stage("cost"):
            pass
    spent = timer.milliseconds()
    assert list(spent) == [("Loss",), ("Loss", "cost"), ("cost",)]
    assert spent["Loss",] >= spent["Loss", "cost"] >= 30.0
    assert spent["cost",] < 10.0


def test_a_stage_ends_when_its_body_raises():
    with StageTimer("cpu") as timer:
        with pytest.raises(KeyError), stage("Loss"), stage("cost"):
            raise KeyError("inside")
        with stage("after"):
            pass
    assert list(timer.milliseconds()) == [("Loss",), ("Loss", "cost"), ("after",)]


def test_reset_forgets():
    with StageTimer("cpu") as timer:
        with stage("first"):
            pass
        timer.reset()
        with stage("second"):
            pass
    assert list(timer.milliseconds()) == [("second",)]


def test_one_timer_at_a_time_and_the_first_goes_on():
    with StageTimer("cpu") as timer:
        with pytest.raises(RuntimeError, match="already running"), StageTimer("cpu"):
            pass
        with stage("Loss"):
            pass
    assert list(timer.milliseconds()) == [("Loss",)]


def test_other_threads_are_not_recorded():
    def work():
        with stage("elsewhere"):
            pass

    with StageTimer("cpu") as timer:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert timer.milliseconds() == {}


def test_without_a_timer_a_stage_is_a_null_context():
    assert isinstance(stage("cost"), nullcontext)


def test_compiled_code_may_contain_stages():
    def loss(x: torch.Tensor) -> torch.Tensor:
        with stage("Loss"):
            y = x.sin()
            with stage("cost"):
                y = y.cos()
        return y.sum()

    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    x = torch.linspace(0, 1, 5)
    torch.testing.assert_close(compiled(x), loss(x))
    with StageTimer("cpu") as timer:
        torch.testing.assert_close(compiled(x), loss(x).detach())
    assert list(timer.milliseconds()) == [("Loss",), ("Loss", "cost")]  # of the plain call


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_timer_without_cuda_is_a_clear_error():
    with pytest.raises(RuntimeError, match="torch finds none"):
        StageTimer("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_events_measure_the_device_without_a_sync_between_stages():
    x = torch.rand(2048, 2048, device="cuda")
    x @ x
    torch.cuda.synchronize()
    with StageTimer("cuda") as timer:
        torch.cuda.set_sync_debug_mode("error")
        try:
            with stage("Loss"), stage("product"):
                for _ in range(20):
                    x @ x
        finally:
            torch.cuda.set_sync_debug_mode("default")
    spent = timer.milliseconds()
    assert 0.0 < spent["Loss", "product"] <= spent["Loss",]


def test_another_clock():
    ticks = iter((1.0, 1.5, 2.0, 4.0))
    with StageTimer("cpu", clock=lambda: next(ticks)) as timer, stage("outer"), stage("inner"):
        pass
    assert timer.milliseconds() == {("outer",): 3000.0, ("outer", "inner"): 500.0}
