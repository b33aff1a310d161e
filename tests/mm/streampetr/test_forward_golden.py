"""The forward pass on four consecutive frames against numbers of the published implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raggedbev.mm.streampetr.embedding import inverse_sigmoid

from .golden_model import FOLDER, NUM_CAMERAS, Frames, build_parts

EXPECTED = np.load(FOLDER / "train64.npz", allow_pickle=False)
MEMORY = ("reference_point", "timestamp", "egopose", "velo")


class Bounds:
    """How far a result may be from the recorded one: relative in float64, absolute per quantity in float32.

    In float32 that is twice the noise which the published implementation has against its own float64 run.
    """

    FLOAT32 = (  # the first fragment that a key contains counts; frame 1, later frames
        ("neck_out", 8e-6, 8e-6),
        ("roi.", 8e-6, 8e-6),
        ("cls_scores", 6e-6, 1e-4),
        ("bbox_preds", 1e-4, 2e-3),
        ("memory_embedding", 1.4e-4, 1.4e-4),
        ("memory_reference_point", 8e-4, 8e-4),
        ("memory_egopose", 4e-5, 4e-5),
        ("memory_velo", 2e-3, 2e-3),
        ("memory_timestamp", 0.0, 0.0),
    )

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def check(self, actual: torch.Tensor, key: str) -> None:
        expected = torch.from_numpy(EXPECTED[key])
        if self.dtype == torch.float64:
            atol = 1e-10 * (expected.abs().max().item() if expected.numel() else 0.0)
            torch.testing.assert_close(actual.detach(), expected, rtol=1e-10, atol=atol, msg=lambda m: f"{key}: {m}")
        else:
            first, later = next(row[1:] for row in self.FLOAT32 if row[0] in key)
            atol = first if key.startswith("f1") else later
            actual = actual.detach().double()
            torch.testing.assert_close(actual, expected, rtol=0, atol=atol, msg=lambda m: f"{key}: {m}")


def run_frame(parts, frames, index, train=True):
    """One frame through neck and heads: inputs, neck outputs, 2D outputs, memory before, 3D outputs."""
    head = parts["pts_bbox_head"].train(train)
    c4, c5 = (frames.tensor(f"f{index}.{level}").requires_grad_() for level in ("c4", "c5"))
    neck = parts["img_neck"]([c4, c5])
    frame = frames.frame(index)
    seen = head.memory.before_frame(frame, head._to_metres(head.pseudo_reference_points.weight))
    feats = neck[0].unflatten(0, (-1, NUM_CAMERAS))
    gt = frames.ground_truth(index)
    outs = head(feats, frames.location, frame, gt=gt, dn_uniform=frames.dn_uniform(index))
    return {
        "c4": c4,
        "c5": c5,
        "neck": neck,
        "feats": feats,
        "frame": frame,
        "roi": parts["img_roi_head"](neck[0], frames.location),
        "seen": seen,
        "outs": outs,
        "after": head.memory.state,
    }


@pytest.fixture(scope="module", params=[torch.float64, torch.float32], ids=["f64", "f32"])
def run(request):
    """All four frames in training mode."""
    parts, frames = build_parts().to(request.param), Frames(request.param)
    return {i: run_frame(parts, frames, i) for i in (1, 2, 3, 4)}, Bounds(request.param)


@pytest.mark.parametrize("index", [1, 2, 3, 4])
class TestFrames:
    def test_image_side(self, run, index):
        results, bounds = run
        for level, out in enumerate(results[index]["neck"]):
            bounds.check(out, f"f{index}.neck_out{level}")
        for name, values in results[index]["roi"].items():
            bounds.check(values, f"f{index}.roi.{name}")

    def test_predictions(self, run, index):
        results, bounds = run
        outs = results[index]["outs"]
        bounds.check(outs["all_cls_scores"], f"f{index}.all_cls_scores")
        bounds.check(outs["all_bbox_preds"], f"f{index}.all_bbox_preds")

    def test_denoising(self, run, index):
        results, bounds = run
        dn = results[index]["outs"]["dn"]
        assert dn.queries.pad == EXPECTED[f"f{index}.dn.pad_size"]
        if dn.queries.pad:
            bounds.check(dn.cls_logits, f"f{index}.dn.cls_scores")
            bounds.check(dn.box_preds, f"f{index}.dn.bbox_preds")

    def test_memory(self, run, index):
        results, bounds = run
        for name in MEMORY:
            bounds.check(getattr(results[index]["seen"], name), f"f{index}.pre.memory_{name}")
            bounds.check(getattr(results[index]["after"], name), f"f{index}.post.memory_{name}")
        bounds.check(results[index]["after"].embedding, f"f{index}.post.memory_embedding")


def test_matching_queries_do_not_depend_on_denoising():
    parts, frames = build_parts().double(), Frames(torch.float64)
    bounds = Bounds(torch.float64)
    for i in (1, 2, 3, 4):
        outs = run_frame(parts, frames, i, train=False)["outs"]
        assert outs["dn"] is None
        bounds.check(outs["all_cls_scores"], f"f{i}.all_cls_scores")
        bounds.check(outs["all_bbox_preds"], f"f{i}.all_bbox_preds")


@pytest.fixture(scope="module")
def second_frame():
    """Frame 2 in float64 with the head and the inputs of its decoder."""
    parts, frames = build_parts().double(), Frames(torch.float64)
    for i in (1, 2):
        result = run_frame(parts, frames, i)
    return parts["pts_bbox_head"], frames, result, Bounds(torch.float64)


def published_token_order(roi):
    """Tokens of each sample by descending weight of the 2D head: how the recorded arrays are sorted."""
    weight = roi["enc_cls_scores"].amax(-1).sigmoid() * roi["centerness"].squeeze(-1).sigmoid()
    return weight.unflatten(0, (-1, NUM_CAMERAS)).flatten(1).argsort(dim=1, descending=True)


def test_token_weights_sort_as_published(second_frame):
    order = published_token_order(second_frame[2]["roi"])
    assert torch.equal(order, torch.from_numpy(EXPECTED["f2.roi.topk_indexes"]).long())


def test_tokens(second_frame):
    head, frames, result, bounds = second_frame
    order = published_token_order(result["roi"])[..., None]

    def check(values, name):
        bounds.check(values.gather(1, order.expand(-1, -1, values.shape[-1])), f"f2.mid.{name}")

    points = head.frustum_points(frames.location, result["frame"])
    check(head.position_encoder(inverse_sigmoid(points)), "pos_embed_raw")
    check(head.camera_cone(points, result["frame"]["intrinsics"]), "cone")
    tokens, tokens_pos = head.encode_tokens(result["feats"], frames.location, result["frame"])
    check(tokens, "memory_tokens")
    check(tokens_pos, "pos_embed")


def test_queries_and_decoder(second_frame):
    head, frames, result, bounds = second_frame
    queries = result["outs"]["dn"].queries
    inputs = head.encode_queries(result["seen"], queries.reference_points)
    bounds.check(inputs.query, "f2.mid.tgt")
    bounds.check(inputs.query_pos, "f2.mid.query_pos")
    bounds.check(inputs.reference_points, "f2.mid.reference_points")
    bounds.check(inputs.temporal, "f2.mid.temp_memory")
    bounds.check(inputs.temporal_pos, "f2.mid.temp_pos")
    blocked = head._blocked(queries, inputs.query.device)
    assert np.array_equal(blocked.numpy(), EXPECTED["f2.dn.attn_mask"])
    tokens, tokens_pos = head.encode_tokens(result["feats"], frames.location, result["frame"])
    outputs = head.transformer(
        inputs.query, inputs.query_pos, inputs.temporal, inputs.temporal_pos, tokens, tokens_pos, blocked
    )
    bounds.check(outputs, "f2.mid.outs_dec")


@pytest.mark.parametrize("with_cp", [False, True])
def test_gradients(with_cp):
    parts, frames, bounds = build_parts().double(), Frames(torch.float64), Bounds(torch.float64)
    parts["pts_bbox_head"].transformer.with_cp = with_cp
    earlier = run_frame(parts, frames, 1)
    for i in (2, 3):
        parts.zero_grad()
        result = run_frame(parts, frames, i)
        outs, dn = result["outs"], result["outs"]["dn"]
        logits, boxes = (outs["all_cls_scores"], dn.cls_logits), (outs["all_bbox_preds"], dn.box_preds)
        total = sum(x.square().mean() for x in logits) + sum((x / 10).square().mean() for x in boxes)
        total.backward()
        bounds.check(total, f"f{i}.grad.scalar")
        bounds.check(result["c4"].grad, f"f{i}.grad.c4")
        bounds.check(result["c5"].grad, f"f{i}.grad.c5")
        gradients = {name: parameter.grad for name, parameter in parts.named_parameters()}
        names = EXPECTED[f"f{i}.grad.param_names"]
        bounds.check(torch.stack([gradients[name].norm() for name in names]), f"f{i}.grad.param_norm")
        bounds.check(torch.stack([gradients[name].sum() for name in names]), f"f{i}.grad.param_sum")
        with_gradient = {n for n, g in gradients.items() if g is not None and not n.startswith("img_roi_head")}
        assert with_gradient == set(names.tolist())
    assert earlier["c4"].grad is None
