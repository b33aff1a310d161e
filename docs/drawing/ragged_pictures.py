"""Pictures of the ragged batch and its helpers, one function each; small inputs in, panels out."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from panels import Cell, Panel, Picture, blocks, cell, grid, kind, lists
from torch import Tensor

from raggedbev import (
    Buckets,
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
    copy_to_device,
    get_compact_from_named_tuple,
    get_compact_lists,
    get_indices_from_mask,
    get_mask_from_indices,
    squeeze_except_batch_and_sample,
    sum_over_targets,
)
from raggedbev.ragged.transfer import BufferPlan

NAN = float("nan")

SAMPLES = [torch.tensor([10.0, 11.0]), torch.tensor([]), torch.tensor([30.0, 31.0, 32.0])]
FULL = torch.tensor([[10, 11, 12, 13], [20, 21, 22, 23], [30, 31, 32, 33]], dtype=torch.float32)
INTO = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8], [9, 0, 1, 2]], dtype=torch.float32)


def ragged() -> RaggedBatch:
    """The samples with NaN as filler."""
    return combine_data(SAMPLES).with_padded_set_to(NAN)


def indices(rows: list[list[int]], filler: int = 99) -> RaggedBatch:
    return combine_data([torch.tensor(row, dtype=torch.long) for row in rows]).with_padded_set_to(filler)


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


def draw_buckets() -> Picture:
    buckets = Buckets((4, 8))
    largest = torch.tensor([[3, 5, 2], [4, 7, 1], [9, 6, 14]])  # objects of the samples of three batches
    lengths = torch.tensor([buckets(size) for size in largest.amax(1).tolist()])
    return Picture(
        "Buckets((4, 8))",
        [
            [
                grid("objects of each sample", largest, label="batch", plain=True),
                "→",
                grid("padded length", lengths, plain=True),
            ]
        ],
        ["The largest sample decides; beyond the last length come its multiples."],
    )


def draw_copy_to_device() -> Picture:
    nested = {"boxes": combine_data(SAMPLES), "labels": np.array([1, 0, 2]), "meta": "token"}
    there = copy_to_device(nested, "cpu")
    plan = BufferPlan()
    leaves = {
        "boxes.tensor": there["boxes"].tensor,
        "boxes.sizes": there["boxes"].sample_sizes,
        "labels": there["labels"],
    }
    for leaf in leaves.values():
        plan.add(leaf.shape, leaf.dtype)
    rows = [(name, [Cell(type(value).__name__)]) for name, value in nested.items()]
    moved = [(name, [Cell(type(value).__name__)]) for name, value in there.items()]
    places = [
        (name, [Cell(name), Cell(f"{slot.start * slot.dtype.itemsize} on"), Cell(f"{leaf.nbytes} bytes")])
        for (name, leaf), slot in zip(leaves.items(), plan.slots, strict=True)
    ]
    return Picture(
        "copy_to_device(nested, device)",
        [
            [
                Panel("nested", "a dict", rows, cell_width=110),
                "→",
                Panel("out", "a dict", moved, cell_width=110),
                "",
                Panel("one buffer", f"{plan.num_bytes} bytes", places, cell_width=110),
            ]
        ],
        [
            "What is small travels side by side in one page-locked buffer, each tensor from a multiple of 16 bytes on.",
            "Types, shapes and shared sizes stay; arrays become tensors.",
        ],
    )


PICTURES: dict[str, Callable[[], Picture]] = {
    "RaggedBatch": draw_ragged_batch,
    "combine_data": draw_combine_data,
    "Buckets": draw_buckets,
    "copy_to_device": draw_copy_to_device,
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
