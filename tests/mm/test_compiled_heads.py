"""The loss of set-prediction heads as one compiled graph, by the method that the detector calls."""

from __future__ import annotations

import pytest
import torch

from raggedbev._extension import COMPILED

from . import test_set_prediction3d_heads as heads_3d
from . import test_set_prediction_heads as heads_2d
from .detr3d_heads import arguments
from .packing import packed

pytestmark = pytest.mark.skipif(not COMPILED, reason="SciPy's solver is no part of a graph")


def check(loss, preds):
    torch.compiler.reset()
    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, dynamic=False, backend="aot_eager")):
        losses = function(*preds)
        results.append((losses, torch.autograd.grad(sum(losses.values()), preds)))
    assert list(results[0][0]) == list(results[1][0])
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)


def test_dino():
    """Decoder layers, encoder proposals and denoising queries; objects that the loader packed."""
    with heads_2d.default_dtype(torch.float32):
        head = heads_2d.build("DINOHead", batched=True)
    given, preds = heads_2d.case("DINOHead", head.cls_out_channels, dtype=torch.float32)
    given["batch_gt_instances"] = packed(given["batch_gt_instances"], "gt_instances")
    names = [key for key, value in given.items() if any(value is pred for pred in preds)]
    rest = {key: value for key, value in given.items() if key not in names}
    check(lambda *tensors: head.loss_by_feat(**dict(zip(names, tensors, strict=True)), **rest), preds)


@pytest.mark.filterwarnings("ignore:.*lru_cache")  # of which torch tells when it looks into such a function
def test_petr():
    """Objects as lists, which are packed inside."""
    _, head, instances, outputs = heads_3d.case("PETR", dtype=torch.float32)
    truth = arguments(head, instances)
    names = [key for key, value in outputs.items() if value is not None]

    def loss(*tensors):
        return head.loss_by_feat(*truth, outputs | dict(zip(names, tensors, strict=True)))

    check(loss, [outputs[name] for name in names])
