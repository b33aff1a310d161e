"""Pictures of one sample: boxes and calibration go in, matplotlib axes with cameras and a bird's-eye view come out.

All boxes are in the lidar frame (metres; nuScenes: x right, y forward, z up). Letters: N boxes, P lidar points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from infos.geometry import box_corners, quaternion_to_matrix
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.patches import Circle, Polygon

from raggedbev.geometry import invert_rigid
from raggedbev.nuscenes import INFO_CLASSES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRUTH, PREDICTION = "#4ade80", "#ff9f1c"
BACKGROUND, PANEL, TEXT, FAINT = "#0f1216", "#171b21", "#e6e9ee", "#5b6472"
BEV_RANGE = 54.0  # metres from the lidar to each border

_NEAR = 0.1  # metres; edges are cut at this depth before they are projected
# Corners are numbered by three bits: back, right, bottom. Edges join corners that differ in one bit.
_EDGES = np.array([(a, a | bit) for bit in (1, 2, 4) for a in range(8) if not a & bit])
_FRONT, _FOOTPRINT = [0, 1, 3, 2], [1, 5, 7, 3]
_LABEL_HEIGHT, _LETTER_WIDTH = 13, 6.4  # pixels of the small font


@dataclass(frozen=True)
class Boxes:
    """Boxes of one kind in the lidar frame.

    Attributes:
        corners: [N, 8, 3] metres.
        center: [N, 3] gravity centres, metres.
        velocity: [N, 2] metres per second, NaN where unknown.
        labels: N captions, such as "car" or "car 0.71".
        color: of lines and captions.
        alpha: [N] opacity in [0, 1].
    """

    corners: np.ndarray
    center: np.ndarray
    velocity: np.ndarray
    labels: list[str]
    color: str
    alpha: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def truth_boxes(info: dict) -> Boxes:
    """Annotated boxes of an info entry: those of the ten classes that hold a lidar or radar point."""
    rows = [one for one in info.get("instances", []) if one["bbox_label_3d"] >= 0 and one["bbox_3d_isvalid"]]
    boxes = np.array([one["bbox_3d"] for one in rows], dtype=np.float64).reshape(-1, 7)
    cos, sin, zero = np.cos(boxes[:, 6]), np.sin(boxes[:, 6]), np.zeros(len(boxes))
    rotation = np.stack([cos, -sin, zero, sin, cos, zero, zero, zero, zero + 1], axis=1).reshape(-1, 3, 3)
    return Boxes(
        corners=box_corners(boxes[:, :3], boxes[:, 3:6], rotation),
        center=boxes[:, :3],
        velocity=np.array([one["velocity"] for one in rows], dtype=np.float64).reshape(-1, 2),
        labels=[INFO_CLASSES[one["bbox_label_3d"]].replace("_", " ") for one in rows],
        color=TRUTH,
        alpha=np.ones(len(rows)),
    )


def predicted_boxes(info: dict, predictions: Sequence[dict], score_threshold: float) -> Boxes:
    """Boxes of the nuScenes results format (global frame), best last; those with numbers not finite are left out."""
    rows = [one for one in predictions if one["detection_score"] >= score_threshold]
    rows.sort(key=lambda one: one["detection_score"])
    columns = [("translation", 3), ("size", 3), ("rotation", 4), ("velocity", 2), ("detection_score", 1)]
    table = np.concatenate(
        [np.array([one[key] for one in rows], dtype=np.float64).reshape(-1, width) for key, width in columns], axis=1
    )
    usable = np.isfinite(table).all(axis=1) & (np.linalg.norm(table[:, 6:10], axis=1) > 0)
    table, rows = table[usable], [one for one, keep in zip(rows, usable, strict=True) if keep]
    lidar2global = np.array(info["ego2global"]) @ np.array(info["lidar_points"]["lidar2ego"])
    motion = invert_rigid(lidar2global)
    center = table[:, :3] @ motion[:3, :3].T + motion[:3, 3]
    rotation = motion[:3, :3] @ quaternion_to_matrix(table[:, 6:10])
    return Boxes(
        corners=box_corners(center, table[:, [4, 3, 5]], rotation),
        center=center,
        velocity=table[:, 10:12] @ motion[:2, :2].T,
        labels=[f"{one['detection_name'].replace('_', ' ')} {one['detection_score']:.2f}" for one in rows],
        color=PREDICTION,
        alpha=np.clip(0.35 + table[:, 12], 0, 1),
    )


def draw_camera(axes: Axes, title: str, image: np.ndarray, scale: float, camera: dict, groups: list[Boxes]) -> None:
    """One camera image with the wireframes of all boxes before it.

    Args:
        axes: target; its data units become the pixels of `image`.
        title: name of the camera.
        image: [H, W, 3] uint8 RGB, resized by `scale` from the size the intrinsics belong to.
        scale: picture pixels per original pixel.
        camera: the info entry of the camera (cam2img, lidar2cam).
        groups: boxes to draw, later ones on top.
    """
    height, width = image.shape[:2]
    axes.imshow(image, extent=(0, width, height, 0), interpolation="none")
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    intrinsics = np.diag([scale, scale, 1]) @ np.array(camera["cam2img"])[:3, :3]
    lidar2cam = np.array(camera["lidar2cam"])
    taken = [(0, 0, 9.0 * len(title) + 16, 24)]
    captions = []
    for boxes in groups:
        corners = boxes.corners @ lidar2cam[:3, :3].T + lidar2cam[:3, 3]
        for i in range(len(boxes)):
            lines = _project_edges(corners[i], intrinsics)
            pixels = lines.reshape(-1, 2)
            low, high = pixels.min(axis=0, initial=np.inf), pixels.max(axis=0, initial=-np.inf)
            if not len(lines) or (low >= (width, height)).any() or (high <= 0).any():
                continue
            axes.add_collection(LineCollection(lines, colors=boxes.color, linewidths=1.3, alpha=boxes.alpha[i]))
            if (corners[i, _FRONT, 2] > _NEAR).all():
                face = corners[i, _FRONT] @ intrinsics.T
                axes.add_patch(Polygon(face[:, :2] / face[:, 2:], color=boxes.color, alpha=0.16, linewidth=0))
            captions.append((corners[i, :, 2].mean(), low, high, boxes.labels[i], boxes.color))
    for _, low, high, label, color in sorted(captions, key=lambda caption: caption[0]):
        if high[1] - low[1] > 14:
            above = color == PREDICTION
            _caption(axes, (low[0], low[1] - _LABEL_HEIGHT if above else high[1]), label, color, taken, (width, height))
    axes.text(8, 8, title, color=TEXT, fontsize=9, weight="bold", va="top", bbox=_plate(BACKGROUND, 0.65, 3))


def draw_bird_eye_view(axes: Axes, groups: list[Boxes], points: np.ndarray | None) -> None:
    """Bird's-eye view around the lidar, forward is up: rings every 10 m, a scale bar, footprints, headings, velocities.

    Args:
        axes: target; data units are metres.
        groups: boxes to draw, later ones on top.
        points: [P, >=2] lidar points or None.
    """
    axes.set(xlim=(-BEV_RANGE, BEV_RANGE), ylim=(-BEV_RANGE, BEV_RANGE), aspect="equal", facecolor=PANEL)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    for radius in range(10, int(BEV_RANGE), 10):
        axes.add_patch(Circle((0, 0), radius, fill=False, color=FAINT, linewidth=0.6, alpha=0.6))
        place = radius * np.sqrt(0.5)
        axes.text(place, -place, f" {radius} m", color="#8b95a3", fontsize=7.5, va="top")
    if points is not None:
        axes.scatter(points[:, 0], points[:, 1], s=0.35, c="#9aa4b2", linewidths=0, alpha=0.55)
    axes.add_patch(Polygon([(-0.95, -2.1), (0.95, -2.1), (0.95, 1.2), (0, 2.6), (-0.95, 1.2)], color=TEXT, alpha=0.9))

    unit = 2 * BEV_RANGE / axes.get_window_extent().height  # metres per pixel
    for boxes in filter(len, groups):
        footprint = boxes.corners[:, _FOOTPRINT, :2]
        axes.add_collection(
            PolyCollection(footprint, facecolors=boxes.color, edgecolors="none", alpha=0.12 * boxes.alpha)
        )
        axes.add_collection(
            PolyCollection(footprint, facecolors="none", edgecolors=boxes.color, linewidths=1.3, alpha=boxes.alpha)
        )
        nose = boxes.corners[:, [1, 3], :2].mean(axis=1)
        tail = boxes.corners[:, _FOOTPRINT, :2].mean(axis=1)
        axes.add_collection(LineCollection(np.stack([tail, nose], axis=1), colors=boxes.color, linewidths=1.3))
        moving = np.linalg.norm(np.nan_to_num(boxes.velocity), axis=1) > 0.5
        start = boxes.center[moving, :2]
        path = np.stack([start, start + boxes.velocity[moving]], axis=1)
        axes.add_collection(LineCollection(path, colors=boxes.color, linewidths=1, linestyles=":"))
    _bev_captions(axes, groups, unit)
    _scale_bar(axes, 10)


def _bev_captions(axes: Axes, groups: list[Boxes], unit: float) -> None:
    """Class names of the last group beside its boxes, nearest first, where they cover no box and no other name."""
    footprints = np.concatenate([boxes.corners[..., :2] for boxes in groups])  # [N, 8, 2]
    taken = [tuple(row) for row in np.concatenate([footprints.min(axis=1), footprints.max(axis=1)], axis=1)]
    taken.append((-4.0, -4.0, 4.0, 4.0))  # the vehicle and the dense lidar rings around it
    named = groups[-1]
    for i in np.argsort(np.linalg.norm(named.center[:, :2], axis=1)):
        name = named.labels[i].rstrip("0123456789.").strip()
        length, height, y = 5.4 * unit * len(name), 9 * unit, named.center[i, 1]
        right, left = named.corners[i, :, 0].max() + 4 * unit, named.corners[i, :, 0].min() - 4 * unit - length
        for x in (right, left):
            plate = (x, y - height / 2, x + length, y + height / 2)
            inside = min(x, y) > -BEV_RANGE and max(x + length, y) < BEV_RANGE
            if inside and not any(_overlap(plate, other) for other in taken):
                taken.append(plate)
                axes.text(x, y, name, color=named.color, fontsize=6.8, va="center")
                break


def _scale_bar(axes: Axes, length: float) -> None:
    left, bottom = -BEV_RANGE + 4, -BEV_RANGE + 4
    ticks = [[(left, bottom), (left + length, bottom)]]
    ticks += [[(x, bottom - 0.6), (x, bottom + 0.6)] for x in (left, left + length)]
    axes.add_collection(LineCollection(ticks, colors=TEXT, linewidths=2))
    axes.text(left + length / 2, bottom + 1, f"{length:g} m", color=TEXT, fontsize=9, ha="center", va="bottom")


def _project_edges(corners: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Pixel segments [E, 2, 2] of the edges of one box [8, 3] in the camera frame, cut at the near plane."""
    ends = corners[_EDGES]  # [12, 2, 3]
    depth = ends[..., 2]
    ends, depth = ends[(depth > _NEAR).any(axis=1)], depth[(depth > _NEAR).any(axis=1)]
    for a, b in ((0, 1), (1, 0)):
        behind = depth[:, a] < _NEAR
        fraction = (_NEAR - depth[behind, b]) / (depth[behind, a] - depth[behind, b])
        ends[behind, a] = ends[behind, b] + fraction[:, None] * (ends[behind, a] - ends[behind, b])
    image = ends @ intrinsics.T
    return image[..., :2] / image[..., 2:]


def _caption(
    axes: Axes,
    corner: tuple[float, float],
    label: str,
    color: str,
    taken: list[tuple[float, float, float, float]],
    size: tuple[int, int],
) -> None:
    """Small plate with text; left out where it would cover another one."""
    width = _LETTER_WIDTH * len(label) + 4
    x = min(max(corner[0], 0), size[0] - width)
    y = min(max(corner[1], 0), size[1] - _LABEL_HEIGHT)
    plate = (x, y, x + width, y + _LABEL_HEIGHT)
    if any(_overlap(plate, other) for other in taken):
        return
    taken.append(plate)
    axes.text(x + 2, y + 1, label, color="#10131a", fontsize=7.5, va="top", bbox=_plate(color, 0.85, 1))


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _plate(color: str, alpha: float, pad: float) -> dict:
    return {"facecolor": color, "alpha": alpha, "edgecolor": "none", "pad": pad}
