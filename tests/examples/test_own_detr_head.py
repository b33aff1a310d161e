"""The DETR in plain torch: it trains, its batched loss is that of the loops, and disagreement is noticed."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location("own_detr_head", ROOT / "examples" / "own_detr_head.py")
example = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(example)


def predictions(samples, queries=7, layers=2):
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(layers, samples, queries, example.NUM_CLASSES, generator=g, dtype=torch.float64)
    return logits, torch.rand(layers, samples, queries, 4, generator=g, dtype=torch.float64) * 0.8 + 0.1


@pytest.mark.parametrize("objects", [1, 4, 12], ids="up_to_{}_objects".format)
def test_batched_meets_per_sample(objects):
    """Also with more objects than queries."""
    _, labels, boxes = example.make_batch(5, objects, torch.Generator().manual_seed(objects))
    difference, *_ = example.compare(*predictions(5), labels, boxes)
    assert difference < 1e-12


def test_no_objects_at_all():
    labels, boxes = [torch.zeros(0, dtype=torch.long)] * 3, [torch.zeros(0, 4)] * 3
    difference, *_ = example.compare(*predictions(3), labels, boxes)
    assert difference < 1e-12


def test_boxes_are_where_the_image_says():
    images, labels, boxes = example.make_batch(6, 1, torch.Generator().manual_seed(0))
    assert {len(sample) for sample in labels} == {0, 1}
    for image, sample_labels, sample_boxes in zip(images, labels, boxes, strict=True):
        for label, (x, y, width, height) in zip(sample_labels, (32 * sample_boxes).tolist(), strict=True):
            left, top = round(x - width / 2), round(y - height / 2)
            inside = image[:, top : top + round(height), left : left + round(width)]
            assert torch.equal(inside, example.COLORS[label].view(3, 1, 1).expand_as(inside))
            assert (image > 0.15).any(0).sum() == inside[0].numel()


def test_training_learns(capsys):
    assert example.main(["--steps", "24", "--batch-size", "8"]) == 0
    rows = re.findall(r"^ +\d+ +([\d.]+) .* (\S+) +\d+ s$", capsys.readouterr().out, re.MULTILINE)
    losses, differences = zip(*((float(loss), float(difference)) for loss, difference in rows), strict=True)
    assert len(rows) == 7 and losses[-1] < losses[0] and max(differences) < 1e-10


def test_disagreement_is_reported(monkeypatch, capsys):
    right = example.per_sample_loss
    monkeypatch.setattr(example, "per_sample_loss", lambda *inputs: right(*inputs) * 1.001)
    assert example.main(["--steps", "1", "--batch-size", "2"]) == 1
    assert "DISAGREE" in capsys.readouterr().out


def test_bad_arguments(capsys):
    with pytest.raises(SystemExit):
        example.main(["--steps", "0"])
    assert "--steps: must be at least 1, got 0" in capsys.readouterr().err
