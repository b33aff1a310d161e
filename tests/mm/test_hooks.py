"""Checkpoints survive a kill; checkpoints of other models are refused; NaN predictions are reported once."""

import json
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from mmengine.dataset import DefaultSampler
from mmengine.hooks import LoggerHook, RuntimeInfoHook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from raggedbev.mm.engine import allow_checkpoint_globals
from raggedbev.mm.hooks import (
    AtomicCheckpointHook,
    DeferredRuntimeInfoHook,
    NonFiniteWarningHook,
    check_checkpoint,
)
from raggedbev.profiling.syncs import HostSyncCounter


class _Numbers(torch.utils.data.Dataset):
    metainfo: ClassVar = {"classes": ("car",)}

    def __len__(self):
        return 64

    def __getitem__(self, index):
        return {"inputs": torch.tensor([float(index)])}


class _Line(BaseModel):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(1, 1)

    def forward(self, inputs, mode="loss"):
        return {"loss": self.line(inputs).mean()}


def _runner(work_dir, max_iters, resume=False, hook=None):
    allow_checkpoint_globals()
    dataset = _Numbers()
    return Runner(
        model=_Line(),
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=dataset, batch_size=2, sampler=dict(type=DefaultSampler), collate_fn=dict(type="default_collate")
        ),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.0)),
        train_cfg=dict(by_epoch=False, max_iters=max_iters),
        default_hooks=dict(
            checkpoint=hook or dict(type=AtomicCheckpointHook, interval=2, by_epoch=False, max_keep_ckpts=2)
        ),
        resume=resume,
        experiment_name=f"{work_dir.name}_{max_iters}",
        default_scope=None,
    )


def test_keeps_the_last_checkpoints_and_resumes(tmp_path):
    _runner(tmp_path, 6).train()
    assert sorted(p.name for p in tmp_path.glob("*.pth")) == ["iter_4.pth", "iter_6.pth"]
    (tmp_path / "iter_8.pth.partial").write_bytes(b"left by a kill")
    runner = _runner(tmp_path, 8, resume=True)
    runner.train()
    assert runner.iter == 8
    assert sorted(p.name for p in tmp_path.glob("iter*")) == ["iter_6.pth", "iter_8.pth"]
    assert (tmp_path / "last_checkpoint").read_text().endswith("iter_8.pth")


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("moment", ["write", "rename", "pointer"])
def test_a_kill_while_saving_loses_no_earlier_checkpoint(tmp_path, monkeypatch, moment, keep):
    import os

    from raggedbev.mm import hooks

    replace, calls = os.replace, []

    def dying_replace(source, target):
        calls.append(target)
        if len(calls) == {"rename": 3, "pointer": 4}[moment]:
            raise KeyboardInterrupt
        return replace(source, target)

    if moment == "write":
        save = Runner.save_checkpoint

        def dying_save(self, out_dir, filename, *args, **kwargs):
            calls.append(filename)
            if len(calls) == 2:
                (tmp_path / filename).write_bytes(b"torn")
                raise KeyboardInterrupt
            return save(self, out_dir, filename, *args, **kwargs)

        monkeypatch.setattr(Runner, "save_checkpoint", dying_save)
    else:
        monkeypatch.setattr(hooks.os, "replace", dying_replace)
    hook = dict(type=AtomicCheckpointHook, interval=2, by_epoch=False, max_keep_ckpts=keep)
    with pytest.raises(KeyboardInterrupt):
        _runner(tmp_path, 6, hook=hook).train()
    monkeypatch.undo()
    resumed = _runner(tmp_path, 4, resume=True, hook=hook)
    resumed.load_or_resume()
    assert resumed.iter == 2


def test_pickles_of_other_classes_stay_refused(tmp_path):
    allow_checkpoint_globals()

    class Hostile:
        def __reduce__(self):
            return (getattr, (dict, "fromkeys"))

    torch.save({"state_dict": {}, "x": Hostile()}, tmp_path / "bad.pth")
    with pytest.raises(Exception, match=r"may not load|Weights only"):
        torch.load(tmp_path / "bad.pth", weights_only=True)


def test_check_checkpoint():
    model = {"a": torch.zeros(2), "b": torch.zeros(3)}
    check_checkpoint(model, {"module.a": torch.ones(2), "b": torch.ones(3)})
    with pytest.raises(ValueError, match=r"another model.*1 are missing \(b\).*1 are unknown \(c\)"):
        check_checkpoint(model, {"a": torch.ones(2), "c": torch.ones(3)})
    with pytest.raises(ValueError, match=r"a is \(5,\) instead of \(2,\)"):
        check_checkpoint(model, {"a": torch.ones(5), "b": torch.ones(3)})
    check_checkpoint(model, {"a": torch.ones(2), "c": torch.ones(3)}, partial=True)
    with pytest.raises(ValueError, match="another model"):
        check_checkpoint(model, {"c": torch.ones(3)}, partial=True)


def test_non_finite_predictions_are_reported_once(monkeypatch):
    from raggedbev.mm import hooks

    messages = []
    monkeypatch.setattr(hooks, "print_log", lambda text, **_: messages.append(text))
    model = nn.ModuleDict({"head": nn.Identity(), "healthy": nn.Identity()})
    model["head"].nonfinite_predictions = torch.tensor([0, 7])
    model["healthy"].nonfinite_predictions = torch.tensor([0, 0])
    hook = NonFiniteWarningHook(interval=1)
    runner = SimpleNamespace(model=model, iter=4)
    hook.after_train_iter(runner, 4)
    hook.after_train(runner)
    assert len(messages) == 1
    assert messages[0].startswith("head (Identity) predicted NaN or infinity by iteration 5 (layer 1: 7 values")


class _ManyLosses(BaseModel):
    """Thirty losses of different sizes in every step, one more in some steps only."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(1, 1)
        self.step = 0

    def forward(self, inputs, mode="loss"):
        self.step += 1
        losses = {f"d{i}.loss_cls": self.line(inputs).mean() * i / 7 + self.step for i in range(29)}
        losses["loss_bbox"] = self.line(inputs) * 0 + self.step**2
        return losses if self.step % 3 else {**losses, "loss_rare": self.line(inputs).sum() * 0 + 1}


def _log_of(work_dir, runtime_info, interval, max_iters):
    """A run with the hook as a config names it: what was logged, and what the device was asked on the way."""
    allow_checkpoint_globals()
    torch.manual_seed(0)
    hooks = {} if runtime_info is None else {"runtime_info": {"type": runtime_info}}
    data = {"dataset": _Numbers(), "batch_size": 2, "sampler": {"type": DefaultSampler}}
    runner = Runner(
        model=_ManyLosses(),
        work_dir=str(work_dir),
        train_dataloader={**data, "collate_fn": {"type": "default_collate"}},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 1e-3}, "clip_grad": {"max_norm": 35, "norm_type": 2}},
        train_cfg={"by_epoch": False, "max_iters": max_iters},
        default_hooks={"logger": {"type": LoggerHook, "interval": interval}, "checkpoint": None, **hooks},
        log_processor={"by_epoch": False, "window_size": 2},
        randomness={"seed": 0},
        experiment_name=work_dir.name,
        default_scope="mmdet3d",
    )
    assert sum(isinstance(hook, RuntimeInfoHook) for hook in runner.hooks) == 1
    with HostSyncCounter("cpu") as syncs:
        runner.train()
    lines = [
        json.loads(line) for path in work_dir.glob("*/vis_data/scalars.json") for line in path.read_text().splitlines()
    ]
    kept = [{key: value for key, value in line.items() if key not in ("time", "data_time")} for line in lines]
    return [line for line in kept if "loss" in line], dict(syncs.by_kind)


@pytest.mark.parametrize("interval", [1, 4])
def test_losses_are_read_once_when_they_are_logged(tmp_path, interval):
    """One line of the config; thirty losses, their sum and the norm of the gradients in one transfer."""
    steps = 6
    stock, stock_syncs = _log_of(tmp_path / f"stock{interval}", None, interval, steps)
    deferred, syncs = _log_of(tmp_path / f"deferred{interval}", "DeferredRuntimeInfoHook", interval, steps)
    assert stock == deferred and len(stock) == steps // interval and "grad_norm" in stock[0]
    once = {"tolist": 1, "_local_scalar_dense": 1}  # the order of the samples, and the loader's seed
    rest = steps % interval > 0  # handed on at the end
    assert syncs["tolist"] == once["tolist"] + steps // interval + rest
    assert syncs["_local_scalar_dense"] == once["_local_scalar_dense"]
    assert stock_syncs["_local_scalar_dense"] >= once["_local_scalar_dense"] + 32 * steps


def test_deferred_losses_are_in_checkpoints(tmp_path):
    runner = _runner(tmp_path, 6)
    runner._hooks = [h for h in runner._hooks if not isinstance(h, RuntimeInfoHook)]
    runner.register_hook(DeferredRuntimeInfoHook())
    runner.train()
    hub = torch.load(tmp_path / "iter_6.pth", weights_only=True)["message_hub"]
    assert len(hub["log_scalars"]["train/loss"].data[0]) == 6
