"""The config swap: the twins differ in two types, and give the same losses and gradients."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

if importlib.util.find_spec("mmdet3d") is None:
    pytest.skip("the mm packages are not installed", allow_module_level=True)

FOLDER = Path(__file__).parents[2] / "examples" / "petr_style"
_SPEC = importlib.util.spec_from_file_location("petr_style_swap", FOLDER / "swap.py")
swap = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(swap)


@pytest.fixture(scope="module")
def heads():
    sys.path.insert(0, str(FOLDER))
    torch.manual_seed(0)
    built = [swap.MODELS.build(swap.load(name).model).double() for name in ("petr_style.py", "petr_style_batched.py")]
    built[1].load_state_dict(built[0].state_dict())
    yield built
    sys.path.remove(str(FOLDER))


def test_only_types_differ():
    old, new = swap.load("petr_style.py"), swap.load("petr_style_batched.py")
    assert swap.differences(old.to_dict(), new.to_dict()) == [
        "model.type: 'PETRStyleHead' -> 'BatchedPETRStyleHead'",
        "model.train_cfg.assigner.type: 'PerSamplePETRAssigner' -> 'BatchedHungarianAssigner3D'",
    ]
    assert old.custom_imports.imports[-1] == "raggedbev.mm"


@pytest.mark.parametrize("objects", [0, 1, 30, 150], ids="up_to_{}_objects".format)
def test_twins_agree(heads, objects):
    """Losses by key, and the gradient of every weight; 150 objects are more than queries."""
    batch = swap.make_batch(3, objects, torch.Generator().manual_seed(4))  # none has a tie
    (theirs, their_gradients, _), (ours, our_gradients, _) = (swap.losses_and_gradients(h, batch) for h in heads)
    assert list(ours) == list(theirs)
    assert [key for key in ours if "." not in key] == ["loss_cls", "loss_bbox"] and len(ours) == 12
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=0)
    torch.testing.assert_close(our_gradients, their_gradients, rtol=1e-10, atol=1e-12)


def test_a_prediction_that_is_nan(heads):
    """Its costs count as 100, so nothing is matched to it where there are enough others."""
    _, boxes, labels = swap.make_batch(2, 5, torch.Generator().manual_seed(1))
    g = torch.Generator().manual_seed(2)
    logits = torch.randn(6, 2, 100, 10, generator=g).double()
    preds = torch.randn(6, 2, 100, 10, generator=g).double()
    preds[:, :, 7] = float("nan")
    for head in heads:
        losses = head.loss_by_feat(logits, preds, boxes, labels)
        assert all(loss.isfinite() for loss in losses.values())


def test_command_line(capsys):
    assert swap.main(["--batch-size", "2", "--objects", "4"]) == 0
    printed = capsys.readouterr().out
    assert "agree: losses and gradients differ by at most" in printed
    assert "model.type: 'PETRStyleHead' -> 'BatchedPETRStyleHead'" in printed


def test_differences_are_found():
    old = {"model": {"type": "A", "weights": [1, 2]}}
    assert swap.differences(old, {"model": {"type": "A", "weights": [1, 3], "extra": 0}}) == [
        "model.weights: [1, 2] -> [1, 3]",
        "model.extra: None -> 0",
    ]
