"""The loss scope: all arms compute the same losses and gradients, and mark their stages."""

from functools import partial

import numpy as np
import pytest
import torch

from raggedbev._extension import COMPILED
from raggedbev.losses import GraphedLoss
from raggedbev.profiling import StageTimer
from raggedbev.profiling.report import rows_of
from raggedbev.workloads import losses as workload
from raggedbev.workloads.generate import LossSizes, generate_objects, generate_predictions
from raggedbev.workloads.losses import (
    ARMS,
    Agreement,
    LossArm,
    LossSettings,
    check_arms,
    compare_arms,
    usual_arms,
)

from ..losses.recorder import Recorder

USUAL = usual_arms("cpu")
TINY = LossSizes(num_query=70, num_layers=2, image_size=(64, 96), num_cameras=2, dn_groups=2)


def _arms(dtype=torch.float64, sizes=TINY, names=USUAL, **kwargs):
    objects = generate_objects(sizes, 2, np.random.default_rng(0))
    predictions = generate_predictions(objects, sizes, torch.Generator().manual_seed(0), dtype=dtype, **kwargs)
    return {name: LossArm(name, objects, predictions, sizes, LossSettings.published(sizes)) for name in names}


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("groups", [0, 2])
def test_arms_agree_in_float64(trained, groups):
    sizes = LossSizes(num_query=70, num_layers=2, image_size=(64, 96), num_cameras=2, dn_groups=groups)
    agreement = compare_arms(_arms(trained=trained, sizes=sizes))
    assert agreement.losses < 1e-10 and agreement.gradients < 1e-10
    assert agreement.arms == ("published", "reference", "batched")


def test_arms_agree_in_float32():
    agreement = compare_arms(_arms(torch.float32))
    assert agreement.losses < 2e-5 and agreement.gradients < 1e-5


@pytest.mark.skipif(not COMPILED, reason="SciPy's solver is no part of a graph")
def test_captured_and_compiled_arms_agree(monkeypatch):
    record = partial(workload._wrapped, wrap=lambda loss: GraphedLoss(loss, backend=Recorder()))
    monkeypatch.setitem(ARMS, "batched+graph", record)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    arms = _arms(names=["batched", "batched+graph", "batched+compile"])
    agreement = compare_arms(arms)
    assert agreement.losses < 1e-10 and agreement.gradients < 1e-10
    assert all(arm.first_call_s > 0.0 for arm in arms.values())
    with StageTimer("cpu") as timer, torch.compiler.set_stance("fail_on_recompile"):
        arms["batched+graph"]()
        arms["batched+compile"]()
    found = set(rows_of(timer.milliseconds()))
    parts = ("GT packing", "backward")
    heads = ("StreamPETR Head", "Focal Head")
    assert found == {"Loss", *heads, *(f"{head} > {part}" for head in heads for part in parts)}


def test_arms_that_a_device_does_not_have():
    assert usual_arms("cuda") == list(ARMS)
    check_arms(["batched", "batched+compile"], "cpu")
    check_arms(list(ARMS), "cuda")
    with pytest.raises(ValueError, match="need --device cuda, got cpu"):
        check_arms(["batched", "batched+graph"], "cpu")


@pytest.mark.parametrize("name", USUAL)
def test_every_arm_marks_the_stages_of_the_table(name):
    arm = _arms(torch.float32)[name]
    with StageTimer("cpu") as timer:
        arm()
    rows = rows_of(timer.milliseconds())
    inner = {"cost", "matching", "targets", "loss terms", "backward"}
    for head in ("StreamPETR Head", "Focal Head"):
        found = {row.removeprefix(f"{head} > ") for row in rows if row.startswith(f"{head} > ") and row.count(">") == 1}
        assert inner <= found, f"{name}, {head}: {sorted(inner - found)} missing"
        assert sum(rows[f"{head} > {stage}"] for stage in inner) <= rows[head]


def test_gradients_are_replaced_not_added_up():
    arm = _arms(torch.float32)["batched"]
    arm()
    first = arm.gradients()
    arm()
    assert all(torch.equal(first[name], gradient) for name, gradient in arm.gradients().items())
    assert {"cls_logits", "box_preds", "dn_box_preds", "token_boxes", "centerness"} <= set(first)


def test_an_unknown_arm_is_named():
    arm = _arms()["batched"]
    with pytest.raises(ValueError, match=r"published, reference, batched, .*, got 'fast'"):
        LossArm("fast", arm.objects, arm.predictions, TINY, LossSettings())


def test_disagreement_is_measured_and_named():
    agreement = Agreement.of_losses({"a": {"x": 1.0, "y": 2.0}, "b": {"x": 1.0, "y": 1.0}, "c": {"x": 1.0, "y": 2.0}})
    assert agreement.losses == 0.5 and agreement.key == "y"
    assert "y" in agreement.sentence() and "5.0e-01" in agreement.sentence()
    nan = float("nan")
    assert Agreement.of_losses({"a": {"x": nan}, "b": {"x": nan}}).losses == 0.0
    assert Agreement.of_losses({"a": {"x": nan}, "b": {"x": 1.0}}).losses == float("inf")
    with pytest.raises(ValueError, match="name other losses"):
        Agreement.of_losses({"a": {"x": 1.0}, "b": {"y": 1.0}})
    assert "nothing to compare" in Agreement.of_losses({"a": {"x": 1.0}}).sentence()
