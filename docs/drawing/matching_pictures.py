"""Pictures of costs and assignments; what is coloured is what the solver chose."""

from __future__ import annotations

from collections.abc import Callable

import torch
from panels import Picture, grid, highlighted, numbers
from torch import Tensor

from raggedbev import linear_assignment
from raggedbev.matching import ClassCost, L1Term, OverlapTerm, match_cost
from raggedbev.matching.costs import cxcywh_to_xyxy, focal_loss_cost, iou_cost, l1_cost

COSTS = torch.tensor([[1.0, 2.0, 6.0, 8.0], [2.0, 4.0, 7.0, 9.0], [1.0, 3.0, 8.0, 7.0]])


def draw_linear_assignment() -> Picture:
    cost = torch.stack([COSTS, COSTS.flip(1)])
    found = linear_assignment(cost, torch.tensor([3, 1]))
    tables = [
        highlighted(numbers(f"cost of sample {sample}", table, f"{size} of 3 rows valid", size), chosen)
        for sample, (table, size, chosen) in enumerate(zip(cost, (3, 1), found.pred_of_gt.tolist(), strict=True), 1)
    ]
    return Picture(
        "linear_assignment(cost, num_gt=[3, 1])",
        [
            [tables[0], "", tables[1]],
            [
                grid("pred_of_gt", found.pred_of_gt, plain=True),
                "",
                grid("gt_of_pred", found.gt_of_pred, plain=True),
                "",
                grid("status", found.status, plain=True),
            ],
        ],
        [
            "Rows are objects, columns predictions. Every object gets one prediction, so that the total is smallest.",
            "Hatched rows are filler and are not looked at; -1 stands for filler among objects, for background among",
            "predictions.",
        ],
    )


def draw_match_cost() -> Picture:
    logits = torch.tensor([[2.0, -1.0], [-1.0, 1.0], [0.0, 0.0], [-2.0, 3.0]])
    labels = torch.tensor([0, 1, 0])
    boxes = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.7, 0.6, 0.3, 0.2], [0.5, 0.5, 0.1, 0.1], [0.2, 0.8, 0.2, 0.3]])
    objects = torch.tensor([[0.32, 0.3, 0.2, 0.24], [0.68, 0.62, 0.3, 0.2], [0.0, 0.0, 0.0, 0.0]])
    corners = cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(objects)
    total = match_cost(
        logits,
        labels,
        ClassCost(2.0),
        l1=[L1Term(boxes, objects, 5.0)],
        overlap=OverlapTerm(boxes, corners[1], torch.ones(2), 2.0),
        num_gt=torch.tensor(2),
    )
    terms: list[tuple[str, Tensor]] = [
        ("2 x class", focal_loss_cost(logits, labels, weight=2.0)),
        ("5 x L1", 5.0 * l1_cost(boxes, objects)),
        ("-2 x GIoU", iou_cost(*corners, weight=2.0)),
    ]
    shown = [numbers(name, term, valid_rows=2) for name, term in terms]
    return Picture(
        "match_cost(logits, labels, ClassCost(2), l1=[...], overlap=..., num_gt=2)",
        [
            [shown[0], "+", shown[1], "+", shown[2]],
            [
                numbers("cost", total.cost, valid_rows=2),
                "",
                numbers("minima of every 64 predictions", total.minima, valid_rows=2),
            ],
        ],
        ["The sum of the terms in one pass over the pairs. Rows of filler are hatched; their costs are zero."],
    )


def draw_augmenting_paths() -> Picture:
    steps = []
    for size in (1, 2, 3):
        found = linear_assignment(COSTS, torch.tensor(size))
        chosen = found.pred_of_gt.tolist()
        total = sum(COSTS[row, column].item() for row, column in enumerate(chosen) if column >= 0)
        title = f"{size} object{'s' if size > 1 else ''}: total {total:g}"
        steps.append(highlighted(numbers(title, COSTS, "costs", size), chosen))
    proof = linear_assignment(COSTS, duals=True)
    reduced = COSTS.double() - proof.dual_of_gt.unsqueeze(1) - proof.dual_of_pred
    return Picture(
        "One object after the other",
        [
            [steps[0], "", steps[1], "", steps[2]],
            [
                highlighted(numbers("cost - u - v", reduced, "reduced costs"), proof.pred_of_gt.tolist()),
                "",
                numbers("u, of objects", proof.dual_of_gt.unsqueeze(1), "dual_of_gt"),
                "",
                grid("v, of predictions", proof.dual_of_pred.unsqueeze(0), "v", plain=True),
            ],
        ],
        [
            "Each object takes the cheapest way to a free prediction, and others on that way move on: object 1 takes",
            "prediction 0, and object 0 moves to 1; object 2 takes prediction 0, and object 1 moves to 2.",
            "Below: no reduced cost is negative and those of the pairs are 0, so no other choice has a smaller total.",
        ],
    )


PICTURES: dict[str, Callable[[], Picture]] = {
    "linear_assignment": draw_linear_assignment,
    "match_cost": draw_match_cost,
    "augmenting_paths": draw_augmenting_paths,
}
