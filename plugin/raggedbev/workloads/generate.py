"""Inputs of the loss benchmark: sizes and a seed in, ground truth and predictions of a batch out.

Ground truth comes from an info file of nuScenes, or from a generator with its statistics: 30 to 60 objects a sample,
classes as unevenly spread as there, about 13 2D objects an image. Predictions are those of an untrained or of a
trained network.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raggedbev.losses import (
    DenoisingConfig,
    DenoisingOutput,
    DenoisingQueries,
    GroundTruth2D,
    GroundTruth3D,
    prepare_denoising,
)
from raggedbev.nuscenes import DETECTION_CLASSES

# Annotations per class of nuScenes trainval, in thousands; length, width, height (m); share that moves, speed (m/s).
_ANNOTATIONS = (493.3, 88.5, 14.7, 16.3, 24.9, 152.1, 12.6, 11.9, 222.2, 98.0)
_DIMENSIONS = (
    (4.63, 1.96, 1.74),
    (6.94, 2.52, 2.85),
    (6.56, 2.74, 3.16),
    (11.1, 2.95, 3.46),
    (12.3, 2.92, 3.87),
    (0.50, 2.52, 0.98),
    (2.11, 0.77, 1.46),
    (1.70, 0.60, 1.29),
    (0.73, 0.67, 1.77),
    (0.41, 0.41, 1.08),
)
_MOVING = (0.35, 0.35, 0.05, 0.5, 0.15, 0.0, 0.4, 0.5, 0.7, 0.0)
_SPEED = (6.0, 6.0, 1.0, 5.0, 3.0, 0.0, 5.0, 3.5, 1.3, 0.0)
_FULL_IMAGE = (900, 1600)  # nuScenes camera, height and width in pixels
_FOCAL, _HORIZON, _CAMERA_HEIGHT = 1266.0, 491.0, 1.6  # pixels, pixels, metres


@dataclass(frozen=True)
class LossSizes:
    """Sizes of one loss problem.

    Attributes:
        num_query: Matching queries, the propagated ones included (Q + P).
        num_layers: Decoder layers L.
        image_size: Height and width of the padded image, pixels.
        num_cameras: Images per sample N.
        stride: Pixels per token.
        num_classes: C.
        dn_groups: Denoising groups; 0 leaves denoising out.
        pc_range: x0, y0, z0, x1, y1, z1 of the detection range, metres.
    """

    num_query: int
    num_layers: int = 6
    image_size: tuple[int, int] = (256, 704)
    num_cameras: int = 6
    stride: int = 16
    num_classes: int = 10
    dn_groups: int = 10
    pc_range: tuple[float, float, float, float, float, float] = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of the token map of one image."""
        return self.image_size[0] // self.stride, self.image_size[1] // self.stride


PRESETS = {
    "streampetr_r50_704": LossSizes(num_query=644 + 256),
    "streampetr_r50_428q": LossSizes(num_query=300 + 128),
    "small": LossSizes(num_query=160 + 64, num_layers=3, image_size=(128, 352)),
}


@dataclass(frozen=True)
class Objects:
    """Ground truth of a batch as plain lists, one entry per sample or image, as `GroundTruth3D` and `GroundTruth2D`."""

    boxes: list[Tensor]
    labels: list[Tensor]
    image_boxes: list[Tensor]
    image_labels: list[Tensor]
    image_centers: list[Tensor]

    def ground_truth(self) -> tuple[GroundTruth3D, GroundTruth2D]:
        """New, unpacked ground truth: every repeat of the benchmark packs its own."""
        return (
            GroundTruth3D(list(self.boxes), list(self.labels)),
            GroundTruth2D(list(self.image_boxes), list(self.image_labels), list(self.image_centers)),
        )

    def to(self, device: str | torch.device) -> Objects:
        """Copies on a device."""
        return Objects(**{name: [x.to(device, copy=True) for x in rows] for name, rows in vars(self).items()})


@dataclass(frozen=True)
class Predictions:
    """What the heads would hand to their losses; the tensors are leaves that collect gradients.

    Attributes:
        cls_logits: [L, B, Q, C].
        box_preds: [L, B, Q, 10]: centre (m), log dimensions, sin, cos, velocity.
        dn: Predictions for the denoising queries, or ``None``.
        token_logits: [B * N, T, C].
        token_boxes: [B * N, T, 4] cx, cy, w, h over the image size.
        token_centers: [B * N, T, 2] over the image size.
        centerness: [B * N, T, 1] logits.
    """

    cls_logits: Tensor
    box_preds: Tensor
    dn: DenoisingOutput | None
    token_logits: Tensor
    token_boxes: Tensor
    token_centers: Tensor
    centerness: Tensor

    def leaves(self) -> dict[str, Tensor]:
        """Tensors that collect gradients, by name."""
        named = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        if self.dn is not None:
            named |= {"dn_cls_logits": self.dn.cls_logits, "dn_box_preds": self.dn.box_preds}
        return named


def draw_counts(num_samples: int, sizes: LossSizes, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Objects of each sample [num_samples] and of each of its images [num_samples, N], as nuScenes has them."""
    objects = generator.integers(30, 61, num_samples)
    return objects, generator.poisson(13, (num_samples, sizes.num_cameras))


def generate_objects(sizes: LossSizes, batch_size: int, generator: np.random.Generator) -> Objects:
    """Draws ground truth with the statistics of nuScenes.

    Args:
        sizes: Image size, cameras and range.
        batch_size: Samples B.
        generator: Source of the random numbers.

    Returns:
        30 to 60 objects per sample, about 13 per image, on the CPU.
    """
    counts, image_counts = draw_counts(batch_size, sizes, generator)
    samples = [_draw_sample(count, sizes, generator) for count in counts.tolist()]
    images = [_draw_image(count, sizes, generator) for count in image_counts.flatten().tolist()]
    boxes, labels = zip(*samples, strict=True)
    image_boxes, image_labels, image_centers = zip(*images, strict=True)
    return Objects(list(boxes), list(labels), list(image_boxes), list(image_labels), list(image_centers))


def generate_predictions(
    objects: Objects,
    sizes: LossSizes,
    generator: torch.Generator,
    *,
    trained: bool = False,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Predictions:
    """Draws predictions that suit the ground truth.

    Args:
        objects: Ground truth, on the CPU.
        sizes: Sizes of the problem.
        generator: CPU generator, so that every device gets the same numbers.
        trained: Three queries (tokens) near every object with confident classes and the others background; otherwise
            scores at the prior of a new network and boxes anywhere.
        device: Where the predictions go.
        dtype: Their type.

    Returns:
        Leaf tensors with ``requires_grad``.
    """
    gt, _ = objects.ground_truth()
    queries = _draw_queries(objects, sizes, generator, trained)
    tokens = _draw_tokens(objects, sizes, generator, trained)
    dn = None
    if sizes.dn_groups:
        config = DenoisingConfig(pc_range=sizes.pc_range, num_classes=sizes.num_classes, groups=sizes.dn_groups)
        prepared = prepare_denoising(gt, config, generator=generator)
        known = (prepared.known_boxes, prepared.known_labels)
        dn_logits, dn_boxes = (_leaf(x, device, dtype) for x in _draw_denoising(*known, sizes, generator, trained))
        dn = DenoisingOutput(dn_logits, dn_boxes, _queries_to(prepared, device, dtype))
    logits, boxes = (_leaf(x, device, dtype) for x in queries)
    return Predictions(logits, boxes, dn, *(_leaf(x, device, dtype) for x in tokens))


def _leaf(x: Tensor, device: str | torch.device, dtype: torch.dtype) -> Tensor:
    return x.to(device=device, dtype=dtype).detach().requires_grad_()


def _queries_to(prepared: DenoisingQueries, device: str | torch.device, dtype: torch.dtype) -> DenoisingQueries:
    """Moves the tensors; floating ones also change type."""
    moved: dict[str, Any] = {}
    for name, value in vars(prepared).items():
        if isinstance(value, Tensor):
            moved[name] = value.to(device=device, dtype=dtype if value.is_floating_point() else None)
    return dataclasses.replace(prepared, **moved)


def _draw_sample(count: int, sizes: LossSizes, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Boxes [count, 9] and labels [count] of one sample: denser near the vehicle, standing on the ground."""
    labels = _draw_classes(count, sizes, rng)
    dims = np.asarray(_DIMENSIONS)[labels % len(DETECTION_CLASSES)] * rng.lognormal(0.0, 0.1, (count, 3))
    low, high = np.asarray(sizes.pc_range[:3]), np.asarray(sizes.pc_range[3:])
    distance, bearing = 2.0 + rng.gamma(2.0, 11.0, count), rng.uniform(-math.pi, math.pi, count)
    center = np.stack([distance * np.cos(bearing), distance * np.sin(bearing), dims[:, 2] / 2 - 1.84], 1)
    center[:, 2] += rng.normal(0.0, 0.3, count)
    center = np.clip(center, low + 0.1, high - 0.1)
    yaw = rng.uniform(-math.pi, math.pi, count)
    moves = rng.random(count) < np.asarray(_MOVING)[labels % len(DETECTION_CLASSES)]
    speed = moves * np.asarray(_SPEED)[labels % len(DETECTION_CLASSES)] * rng.uniform(0.3, 1.7, count)
    boxes = np.column_stack([center, dims, yaw, speed * np.cos(yaw), speed * np.sin(yaw)])
    return torch.from_numpy(boxes.astype(np.float32)), torch.from_numpy(labels)


def _draw_image(count: int, sizes: LossSizes, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes [count, 4], labels [count] and projected centres [count, 2] of one image, in its pixels."""
    height, width = sizes.image_size
    scale, crop = image_transform(sizes.image_size)
    labels = _draw_classes(count, sizes, rng)
    dims = np.asarray(_DIMENSIONS)[labels % len(DETECTION_CLASSES)]
    depth = np.clip(4.0 + rng.gamma(2.0, 10.0, count), 4.0, 70.0)
    pixels = scale * _FOCAL / depth  # pixels per metre at the object
    u = rng.uniform(0.0, width, count)
    v = np.clip(scale * _HORIZON - crop + pixels * (_CAMERA_HEIGHT - dims[:, 2] / 2), 1.0, height - 1.0)
    half_width = np.maximum(pixels * rng.uniform(dims[:, 1], np.maximum(dims[:, 0], dims[:, 1] + 0.01)) / 2, 1.5)
    half_height = np.maximum(pixels * dims[:, 2] / 2, 1.5)
    boxes = np.stack([u - half_width, v - half_height, u + half_width, v + half_height], 1)
    boxes = np.clip(boxes, 0.0, [width, height, width, height])
    center = np.stack([u, v], 1)
    return (
        torch.from_numpy(boxes.astype(np.float32)),
        torch.from_numpy(labels),
        torch.from_numpy(center.astype(np.float32)),
    )


def image_transform(image_size: tuple[int, int]) -> tuple[float, float]:
    """Scale and rows cut off at the top that bring a 1600x900 image to ``image_size`` (height, width)."""
    height, width = image_size
    scale = width / _FULL_IMAGE[1]
    return scale, max(scale * _FULL_IMAGE[0] - height, 0.0)


def _draw_classes(count: int, sizes: LossSizes, rng: np.random.Generator) -> np.ndarray:
    share = np.resize(np.asarray(_ANNOTATIONS), sizes.num_classes)
    return rng.choice(sizes.num_classes, count, p=share / share.sum())


def _normal(shape: Sequence[int], generator: torch.Generator, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return mean + std * torch.randn(tuple(shape), generator=generator)


def _encode(boxes: Tensor) -> Tensor:
    """[..., 9] boxes to the 10 numbers of the head's box code."""
    yaw = boxes[..., 6:7]
    return torch.cat([boxes[..., :3], boxes[..., 3:6].clamp(min=1e-3).log(), yaw.sin(), yaw.cos(), boxes[..., 7:9]], -1)


def _draw_queries(
    objects: Objects, sizes: LossSizes, generator: torch.Generator, trained: bool
) -> tuple[Tensor, Tensor]:
    """Logits [L, B, Q, C] and box codes [L, B, Q, 10]."""
    shape = (sizes.num_layers, len(objects.boxes), sizes.num_query)
    logits = _normal((*shape, sizes.num_classes), generator, -4.6, 0.3 if not trained else 0.8)
    low, high = torch.tensor(sizes.pc_range[:3]), torch.tensor(sizes.pc_range[3:])
    centers = low + (high - low) * torch.rand((*shape, 3), generator=generator)
    shift = torch.tensor([1.0, 0.5, 0.4, 0.0, 0.0, 0.0, 0.0])
    codes = torch.cat([centers, shift + _normal((*shape, 7), generator, 0.0, 0.5)], -1)
    if not trained:
        return logits, codes
    for sample, (boxes, labels) in enumerate(zip(objects.boxes, objects.labels, strict=True)):
        chosen = torch.randperm(sizes.num_query, generator=generator)[: 3 * len(boxes)]
        target = _encode(boxes).repeat(3, 1)[: len(chosen)]
        codes[:, sample, chosen] = target + _normal((sizes.num_layers, *target.shape), generator, 0.0, 0.15)
        raised = _normal((sizes.num_layers, len(chosen)), generator, 5.0, 1.0)
        logits[:, sample, chosen, labels.repeat(3)[: len(chosen)]] += raised
    return logits, codes


def _draw_denoising(
    boxes: Tensor, labels: Tensor, sizes: LossSizes, generator: torch.Generator, trained: bool
) -> tuple[Tensor, Tensor]:
    """Logits [L, B, P, C] and codes [L, B, P, 10]: near the objects, classes known if trained."""
    shape = (sizes.num_layers, *labels.shape)
    codes = _encode(boxes) + _normal((*shape, 10), generator, 0.0, 0.2 if trained else 0.8)
    logits = _normal((*shape, sizes.num_classes), generator, -4.6, 0.5)
    if trained:
        known = torch.nn.functional.one_hot(labels, sizes.num_classes + 1)[..., : sizes.num_classes]
        logits = logits + 5.0 * known
    return logits, codes


def _draw_tokens(
    objects: Objects, sizes: LossSizes, generator: torch.Generator, trained: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Class logits [I, T, C], boxes [I, T, 4], centres [I, T, 2] and centerness logits [I, T, 1]."""
    rows, columns = sizes.token_grid
    height, width = sizes.image_size
    images, factor = len(objects.image_boxes), torch.tensor([width, height], dtype=torch.float32)
    v, u = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    location = (torch.stack([u, v], -1).reshape(-1, 2) * sizes.stride + sizes.stride / 2) / factor  # [T, 2]
    shape = (images, rows * columns)
    logits = _normal((*shape, sizes.num_classes), generator, -4.6, 0.3)
    reach = torch.sigmoid(_normal((*shape, 4), generator, -2.0, 0.5))  # left, top, right, bottom
    centers = torch.sigmoid(torch.logit(location) + _normal((*shape, 2), generator, 0.0, 0.1))
    if trained:
        _aim_tokens(objects, sizes, generator, location, logits, reach, centers)
    corners = torch.cat([location - reach[..., :2], location + reach[..., 2:]], -1).clamp(0.0, 1.0)
    boxes = torch.cat([(corners[..., :2] + corners[..., 2:]) / 2, corners[..., 2:] - corners[..., :2]], -1)
    return logits, boxes, centers, _normal((*shape, 1), generator, -2.0, 0.5)


def _aim_tokens(
    objects: Objects,
    sizes: LossSizes,
    generator: torch.Generator,
    location: Tensor,
    logits: Tensor,
    reach: Tensor,
    centers: Tensor,
) -> None:
    """Points the three tokens nearest to every object's centre at it, in place."""
    factor = torch.tensor([sizes.image_size[1], sizes.image_size[0]], dtype=torch.float32)
    lists = zip(objects.image_boxes, objects.image_labels, objects.image_centers, strict=True)
    for image, (box, label, center) in enumerate(lists):
        if not len(box):
            continue
        near = torch.cdist(center / factor, location).topk(min(3, len(location)), largest=False).indices  # [G, 3]
        corners = (box.reshape(-1, 2, 2) / factor)[:, None]  # [G, 1, 2, 2]
        aimed = torch.cat([location[near] - corners[..., 0, :], corners[..., 1, :] - location[near]], -1)
        reach[image, near] = (aimed + _normal(aimed.shape, generator, 0.0, 0.01)).clamp(1e-3, 1.0)
        aim = (center / factor)[:, None].expand(-1, near.shape[1], 2)
        centers[image, near] = (aim + _normal(aim.shape, generator, 0.0, 0.005)).clamp(1e-4, 1 - 1e-4)
        logits[image, near, label[:, None]] += _normal(near.shape, generator, 5.0, 1.0)
