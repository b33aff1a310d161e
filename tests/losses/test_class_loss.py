"""Sums of class losses: values and gradients of the unreduced terms, for any shape, exponent and value."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raggedbev import _extension
from raggedbev.losses.class_loss import focal_loss_sums, quality_focal_loss_sums
from raggedbev.losses.terms import quality_focal_loss, sigmoid_focal_loss

needs_operator = pytest.mark.skipif(not _extension.COMPILED, reason="the compiled operators were not built")
INF, NAN = float("inf"), float("nan")
TOLERANCE = {torch.float32: {"rtol": 2e-5, "atol": 1e-6}, torch.float64: {"rtol": 1e-11, "atol": 1e-13}}
GAMMAS = (0.0, 1.0, 1.5, 2.0, 3.0)


def rows(*shape, classes=10, seed=0, dtype=torch.float32, device="cpu"):
    """Logits, labels (some of them background), qualities and validity."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(*shape, classes, generator=g, dtype=torch.float64) * 4
    labels = torch.randint(-2, classes + 2, shape, generator=g)
    quality = torch.rand(*shape, generator=g, dtype=torch.float64)
    valid = torch.rand(*shape, generator=g) < 0.7
    return logits.to(device, dtype), labels.to(device), quality.to(device, dtype), valid.to(device)


def with_gradient(function, logits, *args, **kwargs):
    """Sums, and the gradient of their weighted sum."""
    logits = logits.detach().requires_grad_()
    sums = function(logits, *args, **kwargs)
    factors = torch.linspace(0.5, 2.0, len(sums), dtype=sums.dtype, device=sums.device)
    return sums.detach(), torch.autograd.grad((sums * factors).sum(), logits)[0]


def by_terms(logits, labels, quality, valid, alpha, gamma):
    if quality is None:
        loss = sigmoid_focal_loss(logits, labels, alpha, gamma)
    else:
        loss = quality_focal_loss(logits, labels, quality, gamma)
    if valid is not None:
        loss = torch.where(valid.unsqueeze(-1), loss, 0.0)
    return loss.flatten(1).sum(1)


def check(logits, labels, quality=None, valid=None, alpha=0.25, gamma=2.0):
    if quality is None:
        found = with_gradient(focal_loss_sums, logits, labels, valid=valid, alpha=alpha, gamma=gamma)
    else:
        found = with_gradient(quality_focal_loss_sums, logits, labels, quality, beta=gamma)
    wanted = with_gradient(by_terms, logits, labels, quality, valid, alpha, gamma)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, equal_nan=True, **TOLERANCE[logits.dtype])
    return found


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_focal(gamma, dtype, device):
    logits, labels, _, valid = rows(3, 2, 70, dtype=dtype, device=device)
    for alpha in (0.25, 0.6):
        all_rows, some = (
            check(logits, labels, alpha=alpha, gamma=gamma),
            check(logits, labels, valid=valid, alpha=alpha, gamma=gamma),
        )
        assert (some[0] < all_rows[0]).all() and (some[1][~valid] == 0).all() and (some[1][valid] != 0).any()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("beta", GAMMAS[1:])
def test_quality_focal(beta, dtype, device):
    logits, labels, quality, _ = rows(2, 90, dtype=dtype, device=device)
    check(logits, labels, quality=quality, gamma=beta)


@settings(max_examples=50, deadline=None)
@given(
    segments=st.integers(0, 3),
    inner=st.lists(st.sampled_from([0, 1, 2, 63, 64, 65, 200]), max_size=2),
    classes=st.sampled_from([1, 2, 10, 80, 1203]),
    double=st.booleans(),
    seed=st.integers(0, 9),
)
def test_shapes(segments, inner, classes, double, seed):
    dtype = torch.float64 if double else torch.float32
    logits, labels, quality, valid = rows(segments, *inner, classes=classes, seed=seed, dtype=dtype)
    check(logits, labels)
    check(logits, labels, valid=valid)
    check(logits, labels, quality=quality)


def test_labels_and_validity_broadcast(device):
    logits, labels, _, valid = rows(4, 3, 20, device=device)
    shared = focal_loss_sums(logits, labels[0], valid=valid[0])
    own = focal_loss_sums(logits, labels[:1].expand(4, -1, -1), valid=valid[:1].expand(4, -1, -1))
    assert torch.equal(shared, own)


def test_invalid_rows_reach_nothing(device):
    logits, labels, _, valid = rows(2, 50, device=device)
    clean = with_gradient(focal_loss_sums, logits, labels, valid=valid)
    logits[~valid] = NAN
    for found, wanted in zip(with_gradient(focal_loss_sums, logits, labels, valid=valid), clean, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e30, -1e30, 200.0, -200.0], ids=str)
def test_extreme_logits_are_as_in_the_terms(value, device):
    for label in (0, 1, 5):
        logits, labels, quality, _ = rows(2, 3, classes=2, device=device)
        logits[1, 1, 0], labels[1, 1] = value, label
        check(logits, labels)
        check(logits, labels, quality=quality)


def test_a_quality_that_is_met_has_no_gradient():
    logits = torch.zeros(1, 1, 2)
    _, gradient = with_gradient(quality_focal_loss_sums, logits, torch.tensor([[0]]), torch.tensor([[0.5]]))
    assert gradient[0, 0, 0] == 0 and gradient[0, 0, 1] != 0


def test_layouts():
    logits, labels, quality, valid = rows(3, 40, 2)
    turned = logits.transpose(0, 1).contiguous().transpose(0, 1)
    assert not turned.is_contiguous()
    for kwargs in ({"valid": valid}, {}):
        for one, other in zip(
            with_gradient(focal_loss_sums, turned, labels, **kwargs),
            with_gradient(focal_loss_sums, logits, labels, **kwargs),
            strict=True,
        ):
            assert torch.equal(one, other)
    assert torch.equal(
        quality_focal_loss_sums(turned, labels, quality), quality_focal_loss_sums(logits, labels, quality)
    )


def test_results_do_not_depend_on_threads():
    logits, labels, _, _ = rows(3, 4000)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        results.append(with_gradient(focal_loss_sums, logits, labels))
    torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_gradcheck():
    logits, labels, quality, valid = rows(2, 6, classes=3, dtype=torch.float64)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: focal_loss_sums(x, labels, valid=valid, gamma=1.5), logits)
    assert torch.autograd.gradcheck(lambda x: quality_focal_loss_sums(x, labels, quality), logits)


@needs_operator
def test_wrong_arguments():
    logits, labels, quality, valid = rows(2, 5)
    with pytest.raises(ValueError, match=r"labels must have the rows \(2, 5\) of the logits, got shape \(2, 4\)"):
        focal_loss_sums(logits, labels[:, :4])
    with pytest.raises(ValueError, match=r"valid must have the rows \(2, 5\)"):
        focal_loss_sums(logits, labels, valid=valid[:, :3])
    with pytest.raises(ValueError, match="labels must be on cpu like the logits, got meta"):
        focal_loss_sums(logits, labels.to("meta"))
    with pytest.raises(ValueError, match="quality must be on cpu like the logits, got meta"):
        quality_focal_loss_sums(logits, labels, quality.to("meta"))
    with pytest.raises(TypeError, match=r"labels must be torch\.int64, got torch\.float32"):
        focal_loss_sums(logits, labels.float())
    with pytest.raises(TypeError, match=r"valid must be torch\.bool, got torch\.int64"):
        focal_loss_sums(logits, labels, valid=labels)
    with pytest.raises(TypeError, match=r"logits must be float32 or float64, got torch\.float16"):
        focal_loss_sums(logits.half(), labels)
    with pytest.raises(ValueError, match=r"quality must have the rows \(2, 5\)"):
        quality_focal_loss_sums(logits, labels, quality[:, :2])
    with pytest.raises(ValueError, match=r"logits must be \[S, ..., C\]"):
        focal_loss_sums(logits[0, 0], labels[0, 0])


@needs_operator
@pytest.mark.parametrize("kind", ["focal", "valid", "quality"])
def test_operators_are_complete(kind):
    logits, labels, quality, valid = rows(2, 5)
    arguments = (labels, quality if kind == "quality" else None, valid if kind == "valid" else None, 0.25, 2.0)
    torch.library.opcheck(torch.ops.raggedbev.class_loss_sums.default, (logits.requires_grad_(), *arguments))
    slopes = torch.ones(2)
    torch.library.opcheck(torch.ops.raggedbev.class_loss_slopes.default, (slopes, logits.detach(), *arguments))


def test_compiles_without_a_break():
    logits, labels, quality, _ = rows(2, 5)

    def loss(x):
        return focal_loss_sums(x, labels).sum() + quality_focal_loss_sums(x, labels, quality).sum()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        x = logits.clone().requires_grad_()
        value = function(x)
        value.backward()
        results.append((value.detach(), x.grad))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


TWIN = """
import sys, torch
sys.path.insert(0, {folder!r})
from test_class_loss import *
found = []
for dtype in (torch.float32, torch.float64):
    for shape, classes in (((3, 70), 10), ((1, 1), 1), ((2, 130), 3)):
        logits, labels, quality, valid = rows(*shape, classes=classes, dtype=dtype)
        logits[0, 0, 0] = float("nan")
        for gamma in (2.0, 1.5):
            found += with_gradient(focal_loss_sums, logits, labels, gamma=gamma)
            found += with_gradient(focal_loss_sums, logits, labels, valid=valid, gamma=gamma)
            found += with_gradient(quality_focal_loss_sums, logits, labels, quality, beta=gamma)
torch.save(found, sys.argv[1])
"""


@needs_operator
def test_host_twin_of_the_device_kernels(tmp_path):
    results = []
    for twin in ("0", "1"):
        path = tmp_path / f"{twin}.pt"
        script = TWIN.format(folder=str(Path(__file__).parent))
        environment = {**os.environ, "RAGGEDBEV_HOST_TWIN": twin}
        done = subprocess.run([sys.executable, "-c", script, path], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        results.append(torch.load(path))
    assert len(results[0]) == len(results[1]) == 72
    for simd, twin in zip(*results, strict=True):
        torch.testing.assert_close(twin, simd, equal_nan=True, **TOLERANCE[simd.dtype])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graph():
    logits, labels, quality, _ = rows(6, 900, device="cuda")
    logits.requires_grad_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            (focal_loss_sums(logits, labels).sum() + quality_focal_loss_sums(logits, labels, quality).sum()).backward()
        torch.cuda.current_stream().wait_stream(stream)
        logits.grad = None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            sums = focal_loss_sums(logits, labels)
            sums.sum().backward()
        labels.random_(0, 10)
        graph.replay()
        expected = with_gradient(lambda x: focal_loss_sums(x, labels).sum().expand(1), logits)
        assert torch.equal(sums.sum(), expected[0][0]) and torch.equal(logits.grad, expected[1] / 0.5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
