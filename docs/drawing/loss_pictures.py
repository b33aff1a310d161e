"""Pictures of loss sums."""

from __future__ import annotations

from collections.abc import Callable

import torch
from panels import Cell, Panel, Picture, kind
from torch import Tensor

from raggedbev.losses.class_loss import focal_loss_sums
from raggedbev.losses.terms import sigmoid_focal_loss


def table(name: str, values: Tensor, form: str = "{:g}") -> Panel:
    """[S, R, ...] with a block per segment and a line per row."""
    rows, gaps = [], set()
    for segment, lines in enumerate(values.tolist()):
        gaps.add(len(rows))
        for row, line in enumerate(lines):
            cells = line if isinstance(line, list) else [line]
            rows.append((f"layer {segment}, row {row}", [Cell(form.format(value)) for value in cells]))
    return Panel(name, kind(values), rows, frozenset(gaps - {0}))


def draw_focal_loss_sums() -> Picture:
    logits = torch.tensor([[[2.0, -1.0], [0.0, 0.0], [-3.0, 1.0]], [[1.0, 1.0], [-2.0, 0.0], [-1.0, -4.0]]])
    labels = torch.tensor([[0, 2, 1], [1, 0, 2]])
    terms = sigmoid_focal_loss(logits, labels)
    sums = focal_loss_sums(logits, labels)
    total = Panel(
        "sums", kind(sums), [(f"layer {i}", [Cell(f"{v:.2f}", share=0.4)]) for i, v in enumerate(sums.tolist())]
    )
    return Picture(
        "focal_loss_sums(logits, labels)",
        [[table("logits", logits), "", table("labels", labels), "", table("terms", terms, "{:.2f}"), "→", total]],
        ["Of two classes 0 and 1; label 2 is background. The terms are shown, but never stored."],
    )


PICTURES: dict[str, Callable[[], Picture]] = {"focal_loss_sums": draw_focal_loss_sums}
