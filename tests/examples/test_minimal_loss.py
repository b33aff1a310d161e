"""The worked loss on ragged batches: numbers worked out by hand, against loops, and what the command line says."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "minimal_loss.py"
_SPEC = importlib.util.spec_from_file_location("minimal_loss", SCRIPT)
minimal_loss = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(minimal_loss)


def problem(device, *arguments):
    args = ["--device", str(device), "--dtype", "float64", "--batch-size", "4", "--layers", "2", "--predictions", "7"]
    return minimal_loss.make_problem(minimal_loss.parse_args([*args, *arguments]))


def values_and_gradients(loss, gt_boxes, gt_labels, pred, class_weights):
    losses = loss(gt_boxes, gt_labels, pred, class_weights)
    return torch.stack(losses).detach(), *torch.autograd.grad(losses.total(), pred)


@pytest.mark.parametrize("max_objects", [0, 1, 5, 20], ids="up_to_{}_objects".format)
@pytest.mark.parametrize("seed", [0, 1])
def test_batched_meets_per_sample(max_objects, seed, device):
    """Also where all samples are empty, and where there are more objects than predictions."""
    inputs = problem(device, "--max-objects", str(max_objects), "--seed", str(seed))
    ours = values_and_gradients(minimal_loss.loss_of_all_layers, *inputs)
    theirs = values_and_gradients(minimal_loss.per_sample_loss, *inputs)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-14)


def test_numbers_worked_out_by_hand():
    """One object of class 1 and two predictions: the first box is off by half a metre in x, the second far away."""
    gt_boxes = [torch.tensor([[0.0, 0.0, 2.0, 2.0]], dtype=torch.float64)]
    pred = minimal_loss.Predictions(
        boxes=torch.tensor([[[[0.5, 0.0, 2.5, 2.0], [8.0, 8.0, 9.0, 9.0]]]], dtype=torch.float64),
        class_logits=torch.zeros(1, 1, 2, 4, dtype=torch.float64),
        existence_logits=torch.zeros(1, 1, 2, dtype=torch.float64),
    )
    class_weights = torch.tensor([1.0, 3.0, 1.0, 1.0], dtype=torch.float64)
    for loss in (minimal_loss.loss_of_all_layers, minimal_loss.per_sample_loss):
        losses = loss(gt_boxes, [torch.tensor([1])], pred, class_weights)
        assert losses.box.tolist() == [1.0]  # |0.5 - 0| + |2.5 - 2|
        assert losses.classes.item() == pytest.approx(math.log(4), rel=1e-14)
        weighted = (3.0 + minimal_loss.BACKGROUND_WEIGHT) / 2 * math.log(2)
        assert losses.existence.item() == pytest.approx(weighted, rel=1e-14)


def test_layers_are_one_more_batch_dimension(device):
    """All layers in one call give what one call per layer gives."""
    gt_boxes, gt_labels, pred, class_weights = problem(device, "--layers", "3")
    together = torch.stack(minimal_loss.loss_of_all_layers(gt_boxes, gt_labels, pred, class_weights))
    boxes = minimal_loss.combine_data(gt_boxes)
    labels = minimal_loss.combine_data(gt_labels, other_with_same_sample_sizes=boxes)
    for layer in range(3):
        of_layer = minimal_loss.Predictions(*(p[layer] for p in pred))
        alone = torch.stack(minimal_loss.batched_loss(boxes, labels, of_layer, class_weights))
        torch.testing.assert_close(together[:, layer], alone, rtol=1e-14, atol=0)


def test_filler_is_never_read(device):
    gt_boxes, gt_labels, pred, class_weights = problem(device)
    boxes = minimal_loss.combine_data(gt_boxes).unsqueeze_batch_dim(0).repeat_samples(2, 0)
    labels = minimal_loss.combine_data(gt_labels).unsqueeze_batch_dim(0).repeat_samples(2, 0)
    clean = minimal_loss.batched_loss(boxes, labels, pred, class_weights)
    dirty = minimal_loss.batched_loss(
        boxes.with_padded_set_to(float("nan")), labels.with_padded_set_to(12345), pred, class_weights
    )
    torch.testing.assert_close(torch.stack(dirty), torch.stack(clean), rtol=0, atol=0)
    gradients = torch.autograd.grad(dirty.total(), pred)
    assert all(gradient.isfinite().all() for gradient in gradients)


def run_script(*arguments):
    paths = [str(ROOT / "plugin"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, timeout=300
    )


def test_command_line_prints_the_losses(device):
    arguments = ["--batch-size", "3", "--layers", "2", "--predictions", "9", "--max-objects", "4", "--seed", "5"]
    arguments += ["--dtype", "float64", "--device", str(device)]
    done = run_script(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    inputs = minimal_loss.make_problem(minimal_loss.parse_args(arguments))
    expected = [term.sum().item() for term in minimal_loss.per_sample_loss(*inputs)]
    for name in ("batched", "per sample"):
        printed = re.search(rf"^{name} +(\S+) +(\S+) +(\S+)$", done.stdout, re.MULTILINE)
        assert [float(value) for value in printed.groups()] == pytest.approx(expected, rel=1e-8)
    differences = [float(value) for value in re.findall(r"^(?:losses|gradient of \w+) +(\S+)$", done.stdout, re.M)]
    assert len(differences) == 4 and max(differences) < 1e-10
    assert "agree: the tolerance is 1e-10" in done.stdout


@pytest.mark.parametrize("wrong", ["value", "gradient", "nan"])
def test_disagreement_is_reported(wrong, monkeypatch, capsys):
    right = minimal_loss.per_sample_loss

    def distorted(*inputs):
        losses = right(*inputs)
        if wrong == "value":
            return losses._replace(box=losses.box + 0.01 * losses.box.detach())
        if wrong == "gradient":
            return losses._replace(box=losses.box.detach() + 1.01 * (losses.box - losses.box.detach()))
        return losses._replace(box=losses.box * float("nan"))

    monkeypatch.setattr(minimal_loss, "per_sample_loss", distorted)
    assert minimal_loss.main(["--batch-size", "2", "--layers", "1", "--predictions", "9"]) == 1
    assert "DISAGREE" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["--batch-size", "0"], ["--predictions", "-1"], ["--device", "cuda:99"]], ids=str
)
def test_bad_arguments(arguments, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        minimal_loss.parse_args(arguments)
    assert arguments[0] in capsys.readouterr().err.splitlines()[-1]
