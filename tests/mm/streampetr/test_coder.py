"""The box coder against a plain loop, and its limits."""

from __future__ import annotations

import math

import pytest
import torch

from raggedbev.mm.streampetr.coder import StreamPETRBoxCoder

EVERYWHERE = [-1e3, -1e3, -1e3, 1e3, 1e3, 1e3]


def decode_one(logits, codes, max_num, low_high):
    """Boxes, scores, labels and flags of one sample, pair by pair."""
    pairs = [(logits[q, c].sigmoid().item(), q, c) for q in range(len(logits)) for c in range(logits.shape[1])]
    pairs = sorted(pairs, reverse=True)[:max_num]
    boxes, inside = [], []
    for _, q, _ in pairs:
        code = codes[q].tolist()
        yaw = math.atan2(code[6], code[7])
        boxes.append([*code[:3], *(math.exp(x) for x in code[3:6]), yaw, *code[8:]])
        inside.append(all(low_high[k] <= code[k] <= low_high[k + 3] for k in range(3)))
    return torch.tensor(boxes), torch.tensor([s for s, _, _ in pairs]), torch.tensor([c for _, _, c in pairs]), inside


@pytest.mark.parametrize(("num_query", "max_num"), [(7, 12), (3, 300), (1, 1)])
def test_equals_the_loop(num_query, max_num, generator, device):
    limits = [-0.5, -0.7, -1.0, 0.9, 0.8, 0.7]
    coder = StreamPETRBoxCoder(limits, max_num=max_num, num_classes=10)
    logits = torch.randn(2, num_query, 10, generator=generator)
    codes = torch.randn(2, num_query, 10, generator=generator)
    boxes, scores, labels, inside = (x.cpu() for x in coder.decode(logits.to(device), codes.to(device)))
    for b in range(2):
        expected = decode_one(logits[b], codes[b], max_num, limits)
        torch.testing.assert_close(boxes[b], expected[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(scores[b], expected[1])
        assert torch.equal(labels[b], expected[2])
        assert inside[b].tolist() == expected[3]


def test_the_range_includes_its_border():
    coder = StreamPETRBoxCoder([0, 0, 0, 1, 1, 1], num_classes=1)
    codes = torch.zeros(1, 3, 10)
    codes[0, 1, :3] = 1
    codes[0, 2, 2] = 1.001
    logits = torch.tensor([[[3.0], [2.0], [1.0]]])
    assert coder.decode(logits, codes)[3].tolist() == [[True, True, False]]


def test_bad_input():
    with pytest.raises(ValueError, match="post_center_range must have 6 numbers"):
        StreamPETRBoxCoder([0, 1])
    with pytest.raises(ValueError, match="num_classes=10 columns, got 3"):
        StreamPETRBoxCoder(EVERYWHERE).decode(torch.zeros(1, 2, 3), torch.zeros(1, 2, 10))
    with pytest.raises(TypeError, match="score_threshold"):
        StreamPETRBoxCoder(EVERYWHERE, score_threshold=0.1)
