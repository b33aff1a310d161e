#!/usr/bin/env python
"""Draw the pictures of docs/ops/ragged.md: small inputs in, one SVG per helper out.

    python docs/pictures.py            # writes docs/pictures/*.svg
    python docs/pictures.py --check    # writes nothing; exits with 1 when a picture is not what the code gives

Every value in a picture comes out of a call of the helper that it explains, so a picture cannot say what the code does
not do. The SVG is written as text, with whole pixels and no fonts of its own: the same values give the same bytes.

Entries are numbered by origin: 32 is entry 2 (counted from 0, as indices are) of sample 3. It keeps its colour wherever
it travels.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

import torch
from torch import Tensor

from raggedbev import (
    RaggedBatch,
    apply_mask_to_tensor,
    average_over_targets,
    batched_bool_indexing,
    batched_bool_indexing_write,
    batched_index_mapping,
    batched_indexing_access,
    batched_indexing_write,
    batched_inverse_indexing_access,
    combine_data,
    get_compact_from_named_tuple,
    get_compact_lists,
    get_indices_from_mask,
    get_mask_from_indices,
    squeeze_except_batch_and_sample,
    sum_over_targets,
)

FOLDER = Path(__file__).parent / "pictures"
NAN = float("nan")

# -- what is drawn -------------------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """One entry: its text and how it looks ("entry", "plain", "filler", "on" or "off"); number: origin of an entry."""

    text: str
    look: str = "plain"
    number: int = 0


@dataclass(frozen=True)
class Panel:
    """A grid under a name. Rows: (label, cells); `gaps` are the rows that start a new block."""

    name: str
    note: str
    rows: list[tuple[str, list[Cell]]]
    gaps: frozenset[int] = frozenset()


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


def lists(name: str, samples: Sequence[Tensor]) -> Panel:
    rows = [(f"sample {i}", [cell(v) for v in sample.tolist()]) for i, sample in enumerate(samples, 1)]
    return Panel(name, f"list of {len(samples)} tensors", rows)


# -- the inputs ----------------------------------------------------------------------------------------------------

SAMPLES = [torch.tensor([10.0, 11.0]), torch.tensor([]), torch.tensor([30.0, 31.0, 32.0])]
FULL = torch.tensor([[10, 11, 12, 13], [20, 21, 22, 23], [30, 31, 32, 33]], dtype=torch.float32)
INTO = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8], [9, 0, 1, 2]], dtype=torch.float32)


def ragged() -> RaggedBatch:
    """The samples with NaN as filler."""
    return combine_data(SAMPLES).with_padded_set_to(NAN)


def indices(rows: list[list[int]], filler: int = 99) -> RaggedBatch:
    return combine_data([torch.tensor(row, dtype=torch.long) for row in rows]).with_padded_set_to(filler)


# -- one function per picture --------------------------------------------------------------------------------------


def draw_ragged_batch() -> Picture:
    batch = ragged()
    costs = torch.tensor([[[10, 11, NAN], [11, 10, NAN]], [[NAN] * 3] * 2, [[30, 31, 32], [32, 31, 30]]])
    by_column = batch.create_with_sample_sizes_like_self(costs, non_uniform_dim=2)
    layers = batch.unsqueeze_batch_dim(0).repeat_samples(2, 0)
    return Picture(
        "RaggedBatch",
        [
            [
                lists("samples", batch.split()),
                "=",
                grid("tensor", batch),
                "+",
                grid("sample_sizes", batch.sample_sizes, plain=True),
                "or",
                grid("mask", batch.mask),
            ],
            [
                blocks("ragged along dimension 2", by_column, "sample", "row"),
                "",
                blocks("layers as one more batch dimension", layers, "layer", "sample"),
            ],
        ],
        [
            "The same three samples, of 2, 0 and 3 entries. Hatched: filler, any value (here NaN), never read as data.",
            "Lower left: batch.create_with_sample_sizes_like_self(costs, non_uniform_dim=2), for costs [B, P, G].",
            "Lower right: batch.unsqueeze_batch_dim(0).repeat_samples(2, 0), a view: nothing is copied.",
        ],
    )


def draw_combine_data() -> Picture:
    batch = combine_data(SAMPLES)
    return Picture(
        "combine_data(samples)",
        [
            [
                lists("samples", SAMPLES),
                "→",
                grid("tensor", batch),
                "+",
                grid("sample_sizes", batch.sample_sizes, plain=True),
                "and",
                grid("mask", batch.mask),
            ]
        ],
        ["The filler of a packed batch is zero. The whole batch travels to the device in one copy."],
    )


def draw_indexing_access() -> Picture:
    data = FULL.clone().requires_grad_()
    index = indices([[3, 0], [], [1, 1, 2]])
    out = batched_indexing_access(data, index, filler=-1)
    (gradient,) = torch.autograd.grad(out.tensor.sum(), data)
    return Picture(
        "batched_indexing_access(data, indices, filler=-1)",
        [
            [
                grid("data", data.detach()),
                "",
                grid("indices", index),
                "→",
                grid("out", out.detach()),
                "",
                grid("gradient of data", gradient, plain=True),
            ]
        ],
        [
            "out[i, j] = data[i, indices[i, j]].",
            "The gradient (of out.sum()) of an entry that is read twice is added up, in a fixed order.",
        ],
    )


def draw_inverse_indexing_access() -> Picture:
    data, index = ragged(), indices([[3, 0], [], [1, 1, 2]])
    out = batched_inverse_indexing_access(data, index, 4, filler=-1)
    return Picture(
        "batched_inverse_indexing_access(data, indices, num_targets=4, filler=-1)",
        [[grid("data", data), "", grid("indices", index), "→", grid("out", out)]],
        ["out[i, indices[i, j]] = data[i, j]. Of sample 3, 30 and 31 both go to target 1: the last one wins."],
    )


def draw_indexing_write() -> Picture:
    batch = ragged()
    data = batch.tensor.clone().requires_grad_()
    to_write = batch.create_with_sample_sizes_like_self(data)
    into = INTO.clone().requires_grad_()
    index = indices([[3, 0], [], [1, 1, 2]])
    out = batched_indexing_write(to_write, index, into)
    gradients = torch.autograd.grad(out.sum(), (data, into))
    return Picture(
        "batched_indexing_write(to_write, indices, into)",
        [
            [
                grid("to_write", batch),
                "",
                grid("indices", index),
                "",
                grid("into", INTO),
                "→",
                grid("out", out.detach()),
            ],
            [
                grid("gradient of to_write", gradients[0], plain=True),
                "",
                grid("gradient of into", gradients[1], plain=True),
            ],
        ],
        [
            "A copy of into with out[i, indices[i, j]] = to_write[i, j].",
            "What is overwritten gets no gradient (of out.sum()); neither does filler.",
        ],
    )


def draw_index_mapping() -> Picture:
    sources, targets = indices([[1, 0], [], [3, 0, 2]]), indices([[0, 3], [], [2, 1, 0]])
    out = batched_index_mapping(FULL, sources, targets, INTO)
    return Picture(
        "batched_index_mapping(source, source_indices, target_indices, target)",
        [
            [grid("source", FULL), "", grid("source_indices", sources), "", grid("target_indices", targets)],
            [grid("target", INTO), "→", grid("out", out)],
        ],
        [
            "A copy of target with out[i, target_indices[i, j]] = source[i, source_indices[i, j]]:",
            "it reads and writes in one pass, without the gathered entries in between.",
        ],
    )


def draw_mask_from_indices() -> Picture:
    index = indices([[3, 0], [], [1, 1, 2]])
    return Picture(
        "get_mask_from_indices(4, indices)",
        [[grid("indices", index), "→", grid("out", get_mask_from_indices(4, index))]],
        ["True at the entries that the indices name, for instance at the matched predictions."],
    )


def example_mask() -> Tensor:
    return torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 1]], dtype=torch.bool)


def draw_indices_from_mask() -> Picture:
    mask = example_mask()
    return Picture(
        "get_indices_from_mask(mask), get_indices_from_mask(mask, max_num=2)",
        [
            [
                grid("mask", mask),
                "→",
                grid("out", get_indices_from_mask(mask)),
                "or",
                grid("out with max_num=2", get_indices_from_mask(mask, 2)),
            ]
        ],
        [
            "Positions of the True entries, in order.",
            "With max_num the device is not read; positions that find no room are dropped.",
        ],
    )


def draw_bool_indexing() -> Picture:
    mask = example_mask()
    return Picture(
        "batched_bool_indexing(data, mask)",
        [[grid("data", FULL), "", grid("mask", mask), "→", grid("out", batched_bool_indexing(FULL, mask))]],
        ["The entries where the mask is True, moved together. max_num=... makes room without reading the device."],
    )


def draw_bool_indexing_write() -> Picture:
    mask = example_mask()
    out = batched_bool_indexing_write(ragged(), mask, INTO)
    return Picture(
        "batched_bool_indexing_write(to_write, mask, into)",
        [[grid("to_write", ragged()), "", grid("mask", mask), "", grid("into", INTO), "→", grid("out", out)]],
        ["The inverse: a copy of into with the entries of to_write where the mask is True, in order."],
    )


def draw_sum() -> Picture:
    batch = ragged()
    return Picture(
        "sum_over_targets(batch)",
        [[grid("batch", batch), "→", grid("out", sum_over_targets(batch), plain=True)]],
        ["The sum of the valid entries. Filler, NaN included, never reaches it; an empty sample gives 0."],
    )


def draw_average() -> Picture:
    batch = ragged()
    return Picture(
        "average_over_targets(batch), average_over_targets(batch, nans_to_zero=False)",
        [
            [
                grid("batch", batch),
                "→",
                grid("out", average_over_targets(batch), plain=True),
                "or",
                grid("out with nans_to_zero=False", average_over_targets(batch, nans_to_zero=False), plain=True),
            ]
        ],
        ["The mean of the valid entries. An empty sample averages to 0."],
    )


def draw_apply_mask() -> Picture:
    mask = example_mask()
    return Picture(
        "apply_mask_to_tensor(data, mask, value=0)",
        [[grid("data", FULL), "", grid("mask", mask), "→", grid("out", apply_mask_to_tensor(FULL, mask, value=0))]],
        ["The value goes where the mask is False."],
    )


def draw_squeeze() -> Picture:
    batch = ragged().unsqueeze_data_dim(1).unsqueeze_data_dim(3)
    squeezed = squeeze_except_batch_and_sample(batch)
    before = Panel(f"batch, ragged along {batch.non_uniform_dim}", kind(batch.tensor), grid("", ragged()).rows)
    return Picture(
        "squeeze_except_batch_and_sample(batch)",
        [[before, "→", grid(f"out, ragged along {squeezed.non_uniform_dim}", squeezed)]],
        ["Dimensions of size one go; the batch dimensions and the ragged dimension stay, whatever their size."],
    )


def draw_compact_lists() -> Picture:
    first = ragged()
    second = first.create_with_sample_sizes_like_self(torch.tensor([[1, 2, 0], [0, 0, 0], [3, 4, 5]]))
    one, two = get_compact_lists(first, second)
    return Picture(
        "get_compact_lists(first, second)",
        [
            [grid("first", first), "", grid("second", second), "→", lists("out[0]", one), "", lists("out[1]", two)],
        ],
        ["Lists of the samples, cropped to their sizes: views, and one read of the device per batch."],
    )


class Objects(NamedTuple):
    boxes: RaggedBatch
    labels: RaggedBatch
    frame: int


def draw_compact_named_tuple() -> Picture:
    boxes = ragged()
    labels = boxes.create_with_sample_sizes_like_self(torch.tensor([[1, 2, 0], [0, 0, 0], [3, 4, 5]]))
    out = get_compact_from_named_tuple(Objects(boxes, labels, frame=7))
    frame = Panel("out.frame", type(out.frame).__name__, [("", [cell(out.frame)])])
    return Picture(
        "get_compact_from_named_tuple(Objects(boxes, labels, frame=7))",
        [
            [grid("boxes", boxes), "", grid("labels", labels)],
            [lists("out.boxes", out.boxes), "", lists("out.labels", out.labels), "", frame],
        ],
        ["Ragged fields become lists of samples; other fields stay as they are."],
    )


PICTURES: dict[str, Callable[[], Picture]] = {
    "RaggedBatch": draw_ragged_batch,
    "combine_data": draw_combine_data,
    "batched_indexing_access": draw_indexing_access,
    "batched_inverse_indexing_access": draw_inverse_indexing_access,
    "batched_indexing_write": draw_indexing_write,
    "batched_index_mapping": draw_index_mapping,
    "get_mask_from_indices": draw_mask_from_indices,
    "get_indices_from_mask": draw_indices_from_mask,
    "batched_bool_indexing": draw_bool_indexing,
    "batched_bool_indexing_write": draw_bool_indexing_write,
    "sum_over_targets": draw_sum,
    "average_over_targets": draw_average,
    "apply_mask_to_tensor": draw_apply_mask,
    "squeeze_except_batch_and_sample": draw_squeeze,
    "get_compact_lists": draw_compact_lists,
    "get_compact_from_named_tuple": draw_compact_named_tuple,
}
"""Picture of each public name, by that name."""

# -- SVG -----------------------------------------------------------------------------------------------------------

STYLE = (
    "text{font:13px 'DejaVu Sans Mono',Menlo,Consolas,monospace;fill:#222}"
    ".call{font-size:15px}.note{font-size:11px;fill:#777}.label{font-size:12px;fill:#555;text-anchor:end}"
    ".cell{text-anchor:middle}.sign{font-size:17px;text-anchor:middle}"
    ".words{font-family:'DejaVu Sans',Helvetica,Arial,sans-serif;fill:#444}"
    "rect{stroke:#666}.filler{fill:url(#filler)}text.filler{fill:#8a8a8a}.plain{fill:#fff}text.plain{fill:#222}"
    ".on{fill:#5a5a6e}text.on{fill:#fff}.off{fill:#fff}text.off{fill:#9a9a9a}"
)
FILLER_PATTERN = (
    '<defs><pattern id="filler" width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="7" height="7" style="fill:#f4f4f4;stroke:none"/>'
    '<rect width="2" height="7" style="fill:#dedede;stroke:none"/></pattern></defs>'
)
CELL_W, CELL_H, MARGIN, GAP, SIGN_W, BLOCK_GAP, HEAD = 44, 28, 20, 22, 34, 8, 40
HUES = {1: (66, 133, 200), 2: (226, 140, 58), 3: (88, 164, 92)}  # of the samples


def fill_of(shown: Cell) -> str:
    """Attribute that colours the square; later entries of a sample are stronger."""
    if shown.look != "entry":
        return f'class="{shown.look}"'
    strength = 0.35 + 0.13 * (shown.number % 10)
    mixed = (round(255 + (part - 255) * strength) for part in HUES[shown.number // 10])
    return 'fill="#' + "".join(f"{part:02x}" for part in mixed) + '"'


def text_width(text: str, size: int) -> int:
    return -(-len(text) * size * 61 // 100)  # a monospace letter is 0.602 em wide


def text_at(x: int, y: int, text: str, style: str = "") -> str:
    return f'<text x="{x}" y="{y}"' + (f' class="{style}"' if style else "") + f">{escape(text)}</text>"


def panel_size(panel: Panel, labels: bool) -> tuple[int, int]:
    """Width and height, with the room for row labels on the left."""
    columns = max((len(cells) for _, cells in panel.rows), default=0)
    wide = max(columns * CELL_W, text_width(panel.name, 13), text_width(panel.note, 11))
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
            x = left + column * CELL_W
            yield f'<rect x="{x}" y="{top}" width="{CELL_W}" height="{CELL_H}" {fill_of(shown)}/>'
            yield text_at(
                x + CELL_W // 2, top + 19, shown.text, "cell" if shown.look == "entry" else f"cell {shown.look}"
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
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
            f"<title>{escape(picture.call)}</title>",
            f"<desc>{escape(' '.join(picture.words))}</desc>",
            f"<style>{STYLE}</style>",
            FILLER_PATTERN,
            f'<rect width="{width}" height="{height}" rx="6" style="fill:#fff;stroke:none"/>',
            *elements,
            "</svg>\n",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Writes or checks all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the files instead of writing them")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder (default: docs/pictures)")
    args = parser.parse_args(arguments)
    stale = 0
    args.out.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        path, svg = args.out / f"{name}.svg", to_svg(draw())
        if not args.check:
            path.write_text(svg, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != svg:
            print(f"{path} is not what the code gives; `make docs` draws it anew")
            stale += 1
    if not args.check:
        print(f"{len(PICTURES)} pictures in {args.out}")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
