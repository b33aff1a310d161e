"""Pictures of tensors: panels of cells in, SVG text out, with whole pixels and no fonts of its own.

The same values give the same bytes. Entries are numbered by origin: 32 is entry 2 (counted from 0, as indices are) of
sample 3. It keeps its colour wherever it travels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple
from xml.sax.saxutils import escape

import torch
from torch import Tensor

from raggedbev import RaggedBatch


class Cell(NamedTuple):
    """One entry: its text and how it looks ("entry", "plain", "filler", "on" or "off").

    `number` is the origin of an entry. `share`, where it is given, colours the square from white (0) to strong (1).
    """

    text: str
    look: str = "plain"
    number: int = 0
    share: float | None = None


@dataclass(frozen=True)
class Panel:
    """A grid under a name. Rows: (label, cells); `gaps` are the rows that start a new block."""

    name: str
    note: str
    rows: list[tuple[str, list[Cell]]]
    gaps: frozenset[int] = frozenset()
    cell_width: int = 44


@dataclass(frozen=True)
class Picture:
    """Lines of panels with signs between them, under the call and above the words that explain it."""

    call: str
    lines: list[list[Panel | str]]
    words: list[str]


def number_text(value: float | int | bool) -> str:
    if isinstance(value, bool):
        return str(int(value))
    return "NaN" if value != value else f"{value:g}"


def is_entry(value: float | int | bool) -> bool:
    return not isinstance(value, bool) and value == value and 10 <= value < 40 and value % 10 in range(4)


def cell(value: float | int | bool, valid: bool = True) -> Cell:
    """How one value looks."""
    if not valid:
        return Cell(number_text(value), "filler")
    if isinstance(value, bool):
        return Cell(number_text(value), "on" if value else "off")
    return Cell(number_text(value), "entry" if is_entry(value) else "plain", int(value) if is_entry(value) else 0)


def kind(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def grid(name: str, data: Tensor | RaggedBatch, label: str = "sample", plain: bool = False) -> Panel:
    """Data [B, N], or one value per sample [B]; `plain` leaves out the colours of origin."""
    tensor = data.tensor if isinstance(data, RaggedBatch) else data
    valid = data.mask if isinstance(data, RaggedBatch) else torch.ones_like(tensor, dtype=torch.bool)
    rows = []
    for sample, (values, keep) in enumerate(
        zip(tensor.reshape(len(tensor), -1).tolist(), valid.reshape(len(tensor), -1).tolist(), strict=True), 1
    ):
        cells = [cell(value, ok) for value, ok in zip(values, keep, strict=True)]
        if plain:
            cells = [c._replace(look="plain") if c.look == "entry" else c for c in cells]
        rows.append((f"{label} {sample}", cells))
    return Panel(name, kind(tensor), rows)


def blocks(name: str, batch: RaggedBatch, block: str, row: str) -> Panel:
    """A batch [A, B, N], ragged along N, as A blocks of B rows."""
    rows: list[tuple[str, list[Cell]]] = []
    gaps = set()
    valid = torch.broadcast_to(batch.get_existence_weights(torch.bool), batch.shape).tolist()
    for outer, (values, keep) in enumerate(zip(batch.tensor.tolist(), valid, strict=True), 1):
        gaps.add(len(rows))
        for inner, (row_values, row_keep) in enumerate(zip(values, keep, strict=True), 1):
            label = f"{block} {outer}, {row} {inner}"
            rows.append((label, [cell(value, ok) for value, ok in zip(row_values, row_keep, strict=True)]))
    return Panel(name, kind(batch.tensor), rows, frozenset(gaps - {0}))


def numbers(name: str, tensor: Tensor, note: str | None = None, valid_rows: int | None = None) -> Panel:
    """A table [G, P] of numbers with two decimals at most; rows from `valid_rows` on are filler."""
    keep = len(tensor) if valid_rows is None else valid_rows
    rows = [
        (
            f"object {row}",
            [Cell(f"{value:.2f}".rstrip("0").rstrip("."), "plain" if row < keep else "filler") for value in values],
        )
        for row, values in enumerate(tensor.tolist())
    ]
    return Panel(name, kind(tensor) if note is None else note, rows)


def highlighted(panel: Panel, chosen: Sequence[int]) -> Panel:
    """The panel with one cell of each row coloured, none where `chosen` is negative."""
    rows = [
        (label, [c._replace(share=0.6) if column == pick else c for column, c in enumerate(cells)])
        for (label, cells), pick in zip(panel.rows, chosen, strict=True)
    ]
    return replace(panel, rows=rows)


def lists(name: str, samples: Sequence[Tensor]) -> Panel:
    rows = [(f"sample {i}", [cell(v) for v in sample.tolist()]) for i, sample in enumerate(samples, 1)]
    return Panel(name, f"list of {len(samples)} tensors", rows)


STYLE = (
    "text{font:13px 'DejaVu Sans Mono',Menlo,Consolas,monospace;fill:#222}"
    ".call{font-size:15px}.note{font-size:11px;fill:#777}.label{font-size:12px;fill:#555;text-anchor:end}"
    ".cell{text-anchor:middle}.sign{font-size:17px;text-anchor:middle}"
    ".words{font-family:'DejaVu Sans',Helvetica,Arial,sans-serif;fill:#444}"
    "rect{stroke:#666}.filler{fill:url(#filler)}text.filler{fill:#8a8a8a}.plain{fill:#fff}text.plain{fill:#222}"
    ".on{fill:#5a5a6e}text.on{fill:#fff}.off{fill:#fff}text.off{fill:#9a9a9a}"
)
FILLER_PATTERN = (
    '<pattern id="filler" width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="7" height="7" style="fill:#f4f4f4;stroke:none"/>'
    '<rect width="2" height="7" style="fill:#dedede;stroke:none"/></pattern>'
)
CELL_H, MARGIN, GAP, SIGN_W, BLOCK_GAP, HEAD = 28, 20, 22, 34, 8, 40
HUES = {1: (66, 133, 200), 2: (226, 140, 58), 3: (88, 164, 92)}  # of the samples
WARM = (226, 120, 40)


def mixed(hue: tuple[int, int, int], strength: float) -> str:
    """Attribute with a colour between white (0) and `hue` (1)."""
    return 'fill="#' + "".join(f"{round(255 + (part - 255) * strength):02x}" for part in hue) + '"'


def fill_of(shown: Cell) -> str:
    """Attribute that colours the square; later entries of a sample are stronger."""
    if shown.share is not None:
        return mixed(WARM, shown.share)
    if shown.look != "entry":
        return f'class="{shown.look}"'
    return mixed(HUES[shown.number // 10], 0.35 + 0.13 * (shown.number % 10))


def text_width(text: str, size: int) -> int:
    return -(-len(text) * size * 61 // 100)  # a monospace letter is 0.602 em wide


def text_at(x: int, y: int, text: str, style: str = "") -> str:
    return f'<text x="{x}" y="{y}"' + (f' class="{style}"' if style else "") + f">{escape(text)}</text>"


def panel_size(panel: Panel, labels: bool) -> tuple[int, int]:
    """Width and height, with the room for row labels on the left."""
    columns = max((len(cells) for _, cells in panel.rows), default=0)
    wide = max(columns * panel.cell_width, text_width(panel.name, 13), text_width(panel.note, 11))
    left = label_width(panel) if labels else 0
    return left + wide, HEAD + len(panel.rows) * CELL_H + len(panel.gaps) * BLOCK_GAP


def label_width(panel: Panel) -> int:
    return max((text_width(label, 12) for label, _ in panel.rows), default=0) + 10


def draw_panel(panel: Panel, x: int, y: int, labels: bool) -> Iterator[str]:
    left = x + (label_width(panel) if labels else 0)
    yield text_at(left, y + 13, panel.name)
    yield text_at(left, y + 29, panel.note, "note")
    top = y + HEAD
    for row, (label, cells) in enumerate(panel.rows):
        top += BLOCK_GAP if row in panel.gaps else 0
        if labels:
            yield text_at(left - 10, top + 19, label, "label")
        for column, shown in enumerate(cells):
            x = left + column * panel.cell_width
            yield f'<rect x="{x}" y="{top}" width="{panel.cell_width}" height="{CELL_H}" {fill_of(shown)}/>'
            yield text_at(
                x + panel.cell_width // 2,
                top + 19,
                shown.text,
                "cell" if shown.look == "entry" else f"cell {shown.look}",
            )
        if not cells:
            yield text_at(left + 4, top + 19, "empty", "off")
        top += CELL_H


def draw_line(line: list[Panel | str], y: int) -> tuple[list[str], int, int]:
    """Elements, right edge and height of one line of panels."""
    elements: list[str] = []
    x, height = MARGIN, 0
    middle = (HEAD + max(panel_size(item, False)[1] for item in line if isinstance(item, Panel))) // 2 + 6
    for position, item in enumerate(line):
        if isinstance(item, str):
            room = SIGN_W if item else 0
            if item:
                elements.append(text_at(x + (GAP + room) // 2, y + middle, item, "sign"))
            x += GAP + room
            continue
        labels = position == 0 or bool(item.gaps)
        width, tall = panel_size(item, labels)
        elements += draw_panel(item, x, y, labels)
        x, height = x + width, max(height, tall)
    return elements, x, height


def to_svg(picture: Picture) -> str:
    """The picture as SVG text."""
    y, right = MARGIN + 36, MARGIN + text_width(picture.call, 15)
    elements = [text_at(MARGIN, MARGIN + 14, picture.call, "call")]
    for line in picture.lines:
        drawn, edge, height = draw_line(line, y)
        elements += drawn
        y, right = y + height + 20, max(right, edge)
    for words in picture.words:
        elements.append(text_at(MARGIN, y + 10, words, "words"))
        y, right = y + 19, max(right, MARGIN + text_width(words, 13))
    width, height = right + MARGIN, y + MARGIN - 6
    return document(picture.call, " ".join(picture.words), elements, width, height)


def document(
    title: str, description: str, elements: Sequence[str], width: int, height: int, definitions: str = ""
) -> str:
    """SVG text around the elements of a picture, on a white ground."""
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
            f"<title>{escape(title)}</title>",
            f"<desc>{escape(description)}</desc>",
            f"<style>{STYLE}</style>",
            f"<defs>{FILLER_PATTERN}{definitions}</defs>",
            f'<rect width="{width}" height="{height}" rx="6" style="fill:#fff;stroke:none"/>',
            *elements,
            "</svg>\n",
        ]
    )
