"""Denoising queries: ground truth in, noised reference points, their targets and the attention mask out.

Every object is repeated in `groups` groups, its centre moved by uniform noise of up to half its size. Group g, object
j of a sample takes position g * single_pad + j of the sample's denoising queries; single_pad is the padded number of
objects. All shapes follow from shapes, none from values; positions without an object keep the reference point (0, 0,
0) and are marked invalid.

Source: StreamPETR (arXiv 2303.11926) and DN-DETR (arXiv 2203.01305), section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from raggedbev.losses.ground_truth import GroundTruth3D, PackedGroundTruth3D
from raggedbev.matching.costs import row_tensor

__all__ = [
    "DenoisingConfig",
    "DenoisingOutput",
    "DenoisingQueries",
    "attention_mask",
    "prepare_denoising",
    "unpack_uniform",
]


@dataclass(frozen=True)
class DenoisingConfig:
    """How ground truth is noised.

    Attributes:
        pc_range: x0, y0, z0, x1, y1, z1 (m): the range that reference points are normalised to.
        num_classes: class count, which is also the label of an object that was moved too far.
        groups: noised copies of every object (published name: scalar).
        noise_scale: noise in units of half the box size.
        split: objects whose noise vector (in those units, before scaling) is longer than this get the background label.
    """

    pc_range: tuple[float, float, float, float, float, float] = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
    num_classes: int = 10
    groups: int = 10
    noise_scale: float = 1.0
    split: float = 0.75

    def __post_init__(self) -> None:
        if len(self.pc_range) != 6:
            raise ValueError(f"pc_range must have 6 numbers, got {self.pc_range}")
        if self.groups < 1:
            raise ValueError(f"groups must be at least 1, got {self.groups}")


@dataclass(frozen=True, eq=False)
class DenoisingQueries:
    """Denoising queries of a batch, P = groups * single_pad positions per sample. A pytree of its tensors.

    Attributes:
        reference_points: [B, P, 3] in [0, 1] units of pc_range; zero where there is no object.
        known_labels: [B, P] int64 class to be found; num_classes where the noise was too large or there is no object.
        known_boxes: [B, P, 9] boxes before the noise (as `GroundTruth3D.boxes`); zero where there is no object.
        valid: [B, P] bool, True where there is an object.
        num_known: [] int64, valid positions of the whole batch, on the device.
        groups: number of groups.
        single_pad: positions per group.
        split: noise beyond which an object became background.
    """

    reference_points: Tensor
    known_labels: Tensor
    known_boxes: Tensor
    valid: Tensor
    num_known: Tensor
    groups: int
    single_pad: int
    split: float

    @property
    def pad(self) -> int:
        """P, positions per sample."""
        return self.groups * self.single_pad


@dataclass(frozen=True, eq=False)
class DenoisingOutput:
    """What the decoder predicted for the denoising queries. A pytree of its tensors.

    Attributes:
        cls_logits: [L, B, P, C].
        box_preds: [L, B, P, 10], coded as the predictions of matching queries.
        queries: the queries that were decoded.
    """

    cls_logits: Tensor
    box_preds: Tensor
    queries: DenoisingQueries


_QUERY_TENSORS = ("reference_points", "known_labels", "known_boxes", "valid", "num_known")


def _flatten_queries(queries: DenoisingQueries) -> tuple[list[Any], tuple[int, int, float]]:
    return [getattr(queries, name) for name in _QUERY_TENSORS], (queries.groups, queries.single_pad, queries.split)


def _flatten_output(output: DenoisingOutput) -> tuple[list[Any], None]:
    return [output.cls_logits, output.box_preds, output.queries], None


pytree.register_pytree_node(
    DenoisingQueries,
    _flatten_queries,
    lambda leaves, context: DenoisingQueries(*leaves, *context),
    serialized_type_name="raggedbev.DenoisingQueries",
)
pytree.register_pytree_node(
    DenoisingOutput,
    _flatten_output,
    lambda leaves, _context: DenoisingOutput(*leaves),
    serialized_type_name="raggedbev.DenoisingOutput",
)


def prepare_denoising(
    gt: GroundTruth3D | PackedGroundTruth3D,
    config: DenoisingConfig,
    uniform: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> DenoisingQueries:
    """Make the denoising queries of a batch.

    Args:
        gt: ground truth of B samples; its padded length G gives single_pad.
        config: noise settings.
        uniform: [groups, B, G, 3] numbers in [0, 1) to use instead of drawing them.
        generator: random generator on the device of the boxes, for the draw.

    Returns:
        Queries with P = groups * G positions per sample (P is 0 when no sample has objects).

    Raises:
        ValueError: `uniform` has another shape.
    """
    boxes = gt.boxes
    batch, single_pad = boxes.shape[:2]
    shape = (config.groups, batch, single_pad, 3)
    if uniform is None:
        uniform = torch.rand(shape, dtype=boxes.dtype, device=boxes.device, generator=generator)
    elif tuple(uniform.shape) != shape:
        raise ValueError(f"uniform must be {shape}, got {tuple(uniform.shape)}")
    valid = boxes.mask  # [B, G]
    known = boxes.with_padded_set_to(0.0).tensor  # [B, G, 9]
    noise = uniform * 2 - 1  # [groups, B, G, 3]
    centers = known[..., :3] + noise * (known[..., 3:6] / 2) * config.noise_scale
    low = row_tensor(config.pc_range[:3], centers)
    extent = row_tensor([config.pc_range[i + 3] - config.pc_range[i] for i in range(3)], centers)
    centers = ((centers - low) / extent).clamp(0.0, 1.0)
    centers = torch.where(valid.unsqueeze(-1), centers, 0.0)
    foreground = valid & (torch.linalg.vector_norm(noise, dim=-1) <= config.split)  # [groups, B, G]
    labels = torch.where(foreground, gt.labels.tensor, config.num_classes)
    return DenoisingQueries(
        reference_points=_group_major(centers),
        known_labels=_group_major(labels),
        known_boxes=_group_major(known.expand(config.groups, *known.shape)),
        valid=_group_major(valid.expand(config.groups, *valid.shape)),
        num_known=boxes.sample_sizes.sum() * config.groups,
        groups=config.groups,
        single_pad=single_pad,
        split=config.split,
    )


def _group_major(x: Tensor) -> Tensor:
    """[groups, B, G, ...] -> [B, groups * G, ...]."""
    return x.transpose(0, 1).flatten(1, 2)


def unpack_uniform(packed: Tensor, sample_sizes: list[int], groups: int) -> Tensor:
    """Spread numbers drawn group-major over all objects of the batch (the published order) to padded positions.

    Args:
        packed: [groups * sum(G_b), 3], row g * sum(G_b) + (objects of earlier samples) + j.
        sample_sizes: objects G_b per sample, host integers.
        groups: number of groups.

    Returns:
        [groups, B, max(G_b), 3] for `prepare_denoising`; unused positions hold 0.5 (no noise).
    """
    total = sum(sample_sizes)
    if packed.dim() != 2 or packed.shape[0] != groups * total:
        raise ValueError(f"packed must have {groups} * {total} rows, got {tuple(packed.shape)}")
    per_group = packed.reshape(groups, total, packed.shape[-1])
    padded = packed.new_full((groups, len(sample_sizes), max(sample_sizes, default=0), packed.shape[-1]), 0.5)
    start = 0
    for sample, size in enumerate(sample_sizes):
        padded[:, sample, :size] = per_group[:, start : start + size]
        start += size
    return padded


def attention_mask(
    pad: int,
    groups: int,
    num_query: int,
    num_propagated: int,
    memory_len: int,
    device: torch.device | str | None = None,
) -> Tensor | None:
    """Which keys a query of the decoder's self-attention must not see.

    Rows are [denoising, matching queries, propagated queries], columns [denoising, matching queries, memory].
    Matching and propagated queries see no denoising query, denoising groups do not see each other; all else is open.

    Args:
        pad: denoising positions per sample, a multiple of `groups`.
        groups: denoising groups.
        num_query: matching queries.
        num_propagated: propagated queries.
        memory_len: memory rows, the propagated ones included.
        device: where the mask goes.

    Returns:
        [pad + num_query + num_propagated, pad + num_query + memory_len] bool, True = blocked; None without denoising
        queries.
    """
    if pad == 0:
        return None
    if pad % groups:
        raise ValueError(f"pad must be a multiple of groups, got {pad} and {groups}")
    single_pad = pad // groups
    rows = torch.arange(pad + num_query + num_propagated, device=device)
    columns = torch.arange(pad + num_query + memory_len, device=device)
    other_group = rows.div(single_pad, rounding_mode="floor")[:, None] != columns.div(single_pad, rounding_mode="floor")
    return (columns < pad) & (other_group | (rows >= pad)[:, None])
