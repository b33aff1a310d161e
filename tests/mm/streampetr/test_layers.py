"""Neck, transformer, encodings and heads: against plain definitions, and at their limits."""

from __future__ import annotations

import math

import pytest
import torch
from mmdet3d.registry import MODELS
from torch import nn

from raggedbev.mm.streampetr.embedding import inverse_sigmoid, nerf_encoding, sine_encoding, sine_encoding_3d
from raggedbev.mm.streampetr.neck import StreamPETRNeck
from raggedbev.mm.streampetr.transformer import StreamPETRTransformer

from .golden_model import head_config


class TestEncodings:
    def test_sine(self):
        out = sine_encoding(torch.tensor([0.0, 0.3], dtype=torch.float64), 128)
        for i in range(128):
            angle = 2 * math.pi * 0.3 / 10000 ** (2 * (i // 2) / 128)
            expected = math.sin(angle) if i % 2 == 0 else math.cos(angle)
            assert out[1, i].item() == pytest.approx(expected, abs=1e-6)
        assert out[0].tolist() == [0.0, 1.0] * 64

    def test_axes_are_y_x_z(self):
        x, y, z = (sine_encoding(torch.tensor(v), 8) for v in (0.1, 0.2, 0.3))
        assert torch.equal(sine_encoding_3d(torch.tensor([0.1, 0.2, 0.3]), 8), torch.cat([y, x, z]))

    def test_nerf(self):
        z = torch.randn(3, 15, dtype=torch.float64)
        out = nerf_encoding(z)
        assert out.shape == (3, 180)
        torch.testing.assert_close(out[:, 30:45], (2 * z).sin())
        torch.testing.assert_close(out[:, 165:], (32 * z).cos())

    def test_inverse_sigmoid_is_finite(self):
        out = inverse_sigmoid(torch.tensor([-3.0, 0.0, 0.5, 1.0, 7.0]))
        limit = math.log(1e5)
        torch.testing.assert_close(out, torch.tensor([-limit, -limit, 0.0, limit, limit]))


class TestNeck:
    @pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 1)])
    def test_sizes(self, size):
        coarse = tuple((n + 1) // 2 for n in size)
        outs = StreamPETRNeck([4, 8], 16, 2)((torch.randn(3, 4, *size), torch.randn(3, 8, *coarse)))
        assert [tuple(out.shape) for out in outs] == [(3, 16, *size), (3, 16, *coarse)]

    def test_bad_levels(self):
        with pytest.raises(ValueError, match=r"in_channels=\[4, 8\], got 3"):
            StreamPETRNeck([4, 8], 16, 3)
        with pytest.raises(ValueError, match="expects 2 feature levels, got 1"):
            StreamPETRNeck([4, 8], 16, 2)([torch.zeros(1, 4, 2, 2)])


class TestTransformer:
    def inputs(self):
        generator = torch.Generator().manual_seed(0)
        sizes = (5, 5, 3, 3, 7, 7)
        return [torch.randn(2, n, 16, generator=generator) for n in sizes]

    def test_attention_equals_torch(self):
        layer = StreamPETRTransformer(1, 4, 32, 0.0, embed_dims=16).decoder.layers[0].attentions[0].attn
        reference = nn.MultiheadAttention(16, 4, batch_first=True)
        reference.load_state_dict(layer.state_dict())
        nn.init.normal_(reference.in_proj_bias)
        layer.load_state_dict(reference.state_dict())
        x, _, memory, *_ = self.inputs()
        blocked = torch.rand(5, 3, generator=torch.Generator().manual_seed(1)) < 0.4
        blocked[:, 0] = False
        expected = reference(x, memory, memory, attn_mask=blocked, need_weights=False)[0]
        torch.testing.assert_close(layer(x, memory, memory, ~blocked), expected)

    def test_blocked_keys_have_no_influence(self):
        model = StreamPETRTransformer(2, 4, 32, 0.1, embed_dims=16).eval()
        query, query_pos, temporal, temporal_pos, tokens, tokens_pos = self.inputs()
        blocked = torch.zeros(5, 8, dtype=torch.bool)
        blocked[:, 6] = True
        before = model(query, query_pos, temporal, temporal_pos, tokens, tokens_pos, blocked)
        temporal[:, 1] += 100
        after = model(query, query_pos, temporal, temporal_pos, tokens, tokens_pos, blocked)
        assert before.shape == (2, 2, 5, 16)
        torch.testing.assert_close(after, before)

    def test_tokens_may_come_in_any_order(self):
        model = StreamPETRTransformer(2, 4, 32, 0.1, embed_dims=16).eval()
        *rest, tokens, tokens_pos = self.inputs()
        order = torch.randperm(7)
        torch.testing.assert_close(
            model(*rest, tokens[:, order], tokens_pos[:, order]), model(*rest, tokens, tokens_pos)
        )

    def test_dropout_works_in_training_only(self):
        model = StreamPETRTransformer(1, 4, 32, 0.5, embed_dims=16)
        inputs = self.inputs()
        assert not torch.equal(model(*inputs), model(*inputs))
        model.eval()
        assert torch.equal(model(*inputs), model(*inputs))

    def test_cross_attention_keeps_all_probabilities(self):
        attentions = StreamPETRTransformer(1, 4, 32, 0.3, embed_dims=16).decoder.layers[0].attentions
        assert [attention.attn.prob_dropout for attention in attentions] == [0.3, 0.0]

    def test_nan_becomes_finite(self):
        inputs = self.inputs()
        inputs[0][0, 0, 0] = float("nan")
        assert StreamPETRTransformer(1, 4, 32, 0.0, embed_dims=16)(*inputs).isfinite().all()

    def test_bad_sizes(self):
        with pytest.raises(ValueError, match="num_heads must divide embed_dims=16, got 3"):
            StreamPETRTransformer(1, 3, 32, 0.0, embed_dims=16)
        with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
            StreamPETRTransformer(0, 4, 32, 0.0, embed_dims=16)


class TestHeads:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"depth_num": 29}, "depth_num must be at least 30, .* got 29"),
            ({"topk_proposals": 57}, r"num_query \+ num_propagated = 56, got 57"),
            ({"num_propagated": 49}, r"num_propagated must lie in 0..memory_len=48, got 49"),
            ({"pc_range": [0, 1]}, r"pc_range must have 6 numbers, got \[0, 1\]"),
            ({"code_weights": [1.0]}, r"code_weights must have 10 numbers, got \[1.0\]"),
        ],
    )
    def test_bad_sizes(self, changes, message):
        with pytest.raises(ValueError, match=message):
            MODELS.build(head_config(**changes))

    def test_equal_depth_bins(self):
        head = MODELS.build(head_config(LID=False))
        torch.testing.assert_close(head.coords_d.data, 1 + torch.arange(32) * (61.2 - 1) / 32)

    def test_without_ego_motion(self):
        head = MODELS.build(head_config(with_ego_pos=False))
        assert not any("ego_pose" in name for name in head.state_dict())
        past = head.memory.before_frame(
            {
                "ego_pose_inv": torch.eye(4)[None],
                "timestamp": torch.zeros(1, dtype=torch.float64),
                "prev_exists": torch.zeros(1),
            },
            torch.zeros(16, 3),
        )
        inputs = head.encode_queries(past, None)
        assert (inputs.query == 0).all() and inputs.query.shape == (1, 56, 256)

    def test_loss_configs_arrive(self):
        train_cfg = {"assigner": {"type": "any"}}
        head = MODELS.build(head_config(loss_cls={"a": 1}, loss_bbox={"b": 2}, train_cfg=train_cfg))
        assert head.loss_configs == {"loss_cls": {"a": 1}, "loss_bbox": {"b": 2}, "train_cfg": train_cfg}
