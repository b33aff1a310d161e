"""The path of the data: a box per step, with the folder that it lives in and the shape of what it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

from panels import HUES, MARGIN, WARM, document, mixed, text_at, text_width

WIDTH, HEIGHT, GAP = 178, 92, 36


class Step(NamedTuple):
    title: str
    folder: str
    lines: tuple[str, ...]


PREDICTIONS = Step("predictions", "of the model", ("[L, B, P, ...]", "all decoder layers"))
STEPS = (
    Step("ground truth", "of the loader", ("B lists of objects", "[car, bus], [], [cone]")),
    Step("pack, once", "ragged/", ("RaggedBatch", "[B, G, ...], sizes [B]")),
    Step("costs", "matching/", ("[L, B, G, P]", "all pairs at once")),
    Step("assignment", "matching/", ("[L, B, G] and", "[L, B, P] indices")),
    Step("targets, heatmaps", "losses/, heatmap/", ("[L, B, P, ...]", "[B, C, H, W]")),
    Step("loss terms", "losses/", ("sums per layer", "[L]")),
    Step("head", "mm/heads/", ("names, weights", "d0.loss_cls, ...")),
)
WORDS = (
    "L layers, B samples, G objects of the fullest sample, P predictions. "
    "Every step does all layers and samples at once."
)


def box(step: Step, x: int, y: int, hue: tuple[int, int, int]) -> Iterator[str]:
    yield f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" {mixed(hue, 0.28)}/>'
    yield text_at(x + 10, y + 20, step.title)
    yield text_at(x + 10, y + 38, step.folder, "note")
    for number, line in enumerate(step.lines):
        yield text_at(x + 10, y + 60 + 18 * number, line, "note")


def arrow(points: list[tuple[int, int]]) -> str:
    path = " ".join(f"{'M' if not number else 'L'}{x} {y}" for number, (x, y) in enumerate(points))
    return f'<path d="{path}" fill="none" stroke="#444" stroke-width="1.5" marker-end="url(#tip)"/>'


def draw_data_flow() -> str:
    """Ground truth along the lower row, in two lines of steps; predictions join at the costs and at the loss terms."""
    title = "From ground truth and predictions to losses"
    left, top = MARGIN, MARGIN + 40
    places = [(left + (WIDTH + GAP) * column, top + HEIGHT + 50) for column in range(4)]
    places += [(left + (WIDTH + GAP) * column, top + 2 * HEIGHT + 110) for column in (3, 2, 1)]
    shapes = list(box(PREDICTIONS, left + 2 * (WIDTH + GAP), top, HUES[1]))
    for number, (step, place) in enumerate(zip(STEPS, places, strict=True)):
        shapes += box(step, *place, HUES[3] if number == 0 else WARM if number == 6 else HUES[2])
    middle = HEIGHT // 2
    for (x0, y0), (x1, y1) in pairwise(places):
        if y0 == y1 and x0 < x1:
            shapes.append(arrow([(x0 + WIDTH, y0 + middle), (x1 - 4, y1 + middle)]))
        elif y0 == y1:
            shapes.append(arrow([(x0, y0 + middle), (x1 + WIDTH + 4, y1 + middle)]))
        else:
            shapes.append(arrow([(x0 + WIDTH // 2, y0 + HEIGHT), (x1 + WIDTH // 2, y1 - 4)]))
    (costs_x, costs_y), (terms_x, terms_y) = places[2], places[5]
    from_x = left + 2 * (WIDTH + GAP)
    shapes.append(arrow([(from_x + WIDTH // 2, top + HEIGHT), (costs_x + WIDTH // 2, costs_y - 4)]))
    aside = from_x - GAP // 2
    shapes.append(
        arrow(
            [
                (from_x, top + middle),
                (aside, top + middle),
                (aside, terms_y - 24),
                (terms_x + 30, terms_y - 24),
                (terms_x + 30, terms_y - 4),
            ]
        )
    )
    width = max(left + 4 * WIDTH + 3 * GAP, left + text_width(WORDS, 13)) + MARGIN
    height = top + 3 * HEIGHT + 110 + 54
    return document(
        title,
        " -> ".join(f"{step.title} ({step.folder})" for step in STEPS),
        [text_at(MARGIN, MARGIN + 14, title, "call"), *shapes, text_at(MARGIN, height - MARGIN, WORDS, "words")],
        width,
        height,
        '<marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#444"/></marker>',
    )


PICTURES: dict[str, Callable[[], str]] = {"data_flow": draw_data_flow}
