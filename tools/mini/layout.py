"""Builds the world of one scene: a road, the ego car's drive, and up to sixty objects that never touch each other.

In: seed, scene number, keyframe count. Out: a `Scene` with the pose of everything at every keyframe. Objects are
placed in road coordinates (s along the centre line, d to its left), so that the whole street bends with the road.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .geometry import footprint, rectangles_overlap
from .models import MODELS
from .rig import Sensor, make_rig

FRAME_STEP = 0.5  # seconds between keyframes
TRAIN_NAMES = (
    "scene-0061",
    "scene-0553",
    "scene-0655",
    "scene-0757",
    "scene-0796",
    "scene-1077",
    "scene-1094",
    "scene-1100",
)
VAL_NAMES = ("scene-0103", "scene-0916")
MAX_OBJECTS = 60  # annotated objects within ANNOTATION_RANGE of the ego car in any keyframe
ANNOTATION_RANGE = 65.0
EGO_SIZE = (1.73, 4.08)  # width, length
EGO_GAP = 4.0  # metres kept free in front of and behind the ego car, together
EGO_CENTRE = 1.25  # the rear axle is this far behind the middle of the car
EGO_LANE = -1.75
LANES = ((-1.75, 1), (-5.25, 1), (1.75, -1), (5.25, -1))  # centre d, driving direction
PARKING, WALK, STREET_EDGE = 8.3, (10.2, 13.2), 14.0
MARGIN = 95.0  # road before the first and behind the last ego position
CROSS_LANE = 1.9  # lane middle of the crossing street
MAP_CELL = 310.0  # side of a scene's own square on the common map, for a drive of up to 60 m
TOP_SPEED = 12.0  # metres per second


@dataclass(frozen=True)
class Road:
    """Centre line: positions, headings at steps of half a metre, and the way the ego car takes along it."""

    s: np.ndarray  # [n]
    xy: np.ndarray  # [n, 2]
    heading: np.ndarray  # [n]
    crossing: float | None  # s of the middle of a crossing street

    def pose(self, s: np.ndarray | float, d: np.ndarray | float) -> np.ndarray:
        """World pose [..., 3] of road coordinates; the yaw is the road's."""
        heading = np.interp(s, self.s, self.heading)
        x = np.interp(s, self.s, self.xy[:, 0]) - np.sin(heading) * d
        y = np.interp(s, self.s, self.xy[:, 1]) + np.cos(heading) * d
        return np.stack(np.broadcast_arrays(x, y, heading), axis=-1)


@dataclass(frozen=True)
class Thing:
    """One object.

    Attributes:
        kind: key of `models.MODELS`.
        size: [3] width, length, height.
        poses: [T, 3] x, y, yaw of the footprint's middle at the keyframes.
        paint, trim: BGR colours.
        attribute: nuScenes attribute at each keyframe ("" for none), T entries.
    """

    kind: str
    size: np.ndarray
    poses: np.ndarray
    paint: np.ndarray
    trim: np.ndarray
    attribute: tuple[str, ...] = ()

    @property
    def annotated(self) -> bool:
        return bool(MODELS[self.kind].category)


@dataclass(frozen=True)
class Drive:
    """Ego motion along the road: constant acceleration from `speed` until standing or at the speed limit."""

    start: float
    speed: float
    acceleration: float

    def travelled(self, t: np.ndarray | float) -> np.ndarray:
        """Metres since time 0."""
        t = np.asarray(t, float)
        if self.acceleration == 0:
            return self.speed * t
        target = TOP_SPEED if self.acceleration > 0 else 0.0
        switch = (target - self.speed) / self.acceleration
        early = np.minimum(t, switch)
        return self.speed * early + 0.5 * self.acceleration * early**2 + target * (t - early)


@dataclass
class Scene:
    """Everything about one scene; `things` are ordered, annotated ones first."""

    index: int
    name: str
    seed: int
    road: Road
    drive: Drive
    rig: list[Sensor]
    times: np.ndarray  # [T] seconds of the keyframes
    timestamps: list[int]  # [T] microseconds
    sun: np.ndarray  # [3] unit vector towards the sun
    ambient: float
    sky_mood: int
    things: list[Thing] = field(default_factory=list)
    description: str = ""

    def ego_pose(self, t: float) -> np.ndarray:
        """Ego pose (x, y, yaw) at `t` seconds; the rear axle runs along its lane."""
        return self.road.pose(self.drive.start + self.drive.travelled(t), EGO_LANE)


def scene_names(count: int) -> list[str]:
    """Names for `count` scenes in 1..10: the last fifth is for validation, at least one where there are two."""
    if not 1 <= count <= 10:
        raise ValueError(f"scenes must lie in 1..10, got {count}")
    val = max(1, count // 5) if count > 1 else 0
    return list(TRAIN_NAMES[: count - val]) + list(VAL_NAMES[:val])


def make_scene(seed: int, index: int, name: str, frames: int) -> Scene:
    """The world of one scene.

    Args:
        seed: the data set's seed.
        index: scene number; picks the kind of drive.
        name: nuScenes scene name.
        frames: number of keyframes, at least 2.
    """
    rng = np.random.default_rng([seed, index, 1])
    times = np.arange(frames) * FRAME_STEP + rng.normal(0.0, 0.002, frames)
    drive, bend, words = _draw_drive(rng, index)
    road = _make_road(rng, drive, times[-1], bend, index)
    elevation, azimuth = np.radians(rng.uniform(35, 65)), rng.uniform(0, 2 * np.pi)
    sun = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    start = 1_532_402_927_647_951 + index * 3_600_000_000
    stamps = [start + round(t * 1e6) for t in times]
    scene = Scene(
        index, name, seed, road, drive, make_rig(rng), times, stamps, sun, rng.uniform(0.5, 0.62), int(rng.integers(3))
    )
    scene.things = _Placer(scene, rng).fill()
    scene.description = f"Synthetic: {words}" + (", crossing" if road.crossing is not None else "")
    return scene


def _draw_drive(rng: np.random.Generator, index: int) -> tuple[Drive, float, str]:
    """Ego motion, the road's turn in radians and words for it."""
    plans = (
        (0.0, 0.0, "straight road"),
        (1.2, 0.0, "left turn"),
        (-1.0, 0.0, "right turn"),
        (0.0, -1.3, "braking on a straight road"),
        (0.45, 0.6, "gentle left bend, speeding up"),
        (-0.5, 0.0, "gentle right bend"),
    )
    turn, acceleration, words = plans[index % len(plans)]
    speed = rng.uniform(5.0, 6.5) if acceleration < 0 or abs(turn) > 0.9 else rng.uniform(6.5, 9.0)
    return Drive(0.0, speed, acceleration), turn * rng.uniform(0.9, 1.1), words


def _make_road(rng: np.random.Generator, drive: Drive, duration: float, turn: float, index: int) -> Road:
    """Straight ends with one smooth bend in between (minimum radius about 35 m), in its own cell of the map."""
    length = float(drive.travelled(duration))
    s = np.arange(-MARGIN, length + MARGIN + 0.5, 0.5)
    bend_length = max(abs(turn) * 35.0 * 1.6, 30.0)
    middle = min(length * 0.5 + 8.0, 35.0)
    phase = np.clip((s - middle) / bend_length + 0.5, 0.0, 1.0)
    heading = turn * (phase - np.sin(2 * np.pi * phase) / (2 * np.pi)) + rng.uniform(-np.pi, np.pi)
    steps = 0.5 * np.stack([np.cos(heading), np.sin(heading)], -1)
    xy = np.concatenate([np.zeros((1, 2)), np.cumsum((steps[1:] + steps[:-1]) / 2, 0)])
    cell = MAP_CELL + max(0.0, TOP_SPEED * duration - 60.0)
    origin = np.array([index % 4, index // 4]) * cell + cell / 2
    xy += origin - (xy.min(0) + xy.max(0)) / 2
    crossing = float(length * 0.5 + rng.uniform(22.0, 38.0)) if index % 3 != 2 else None
    return Road(s, xy, heading, crossing)


Path = Callable[[np.ndarray], np.ndarray]  # times [n] -> poses [n, 3]


class _Placer:
    """Draws objects until the street is full, rejecting whatever would touch something at any time."""

    def __init__(self, scene: Scene, rng: np.random.Generator) -> None:
        self.scene, self.rng, self.road = scene, rng, scene.road
        frames = len(scene.times)
        # Collisions are looked for at the keyframes and halfway between them.
        self.times = np.interp(np.arange(2 * frames - 1) / 2, np.arange(frames), scene.times)
        ego = np.stack([scene.ego_pose(t) for t in self.times])
        self.ego = ego
        middle = ego + EGO_CENTRE * np.stack([np.cos(ego[:, 2]), np.sin(ego[:, 2]), np.zeros(len(ego))], -1)
        self.outlines = [footprint(middle, EGO_SIZE[1] + EGO_GAP, EGO_SIZE[0], 0.4)]
        self.things: list[Thing] = []
        self.near = np.zeros(frames, int)
        self.end = float(scene.drive.travelled(scene.times[-1]))
        self.mid = self.end / 2

    # -- placing one object ------------------------------------------------------------------------------------

    def put(
        self,
        kind: str,
        path: Path,
        attribute: str = "",
        stopped: str = "",
        *,
        margin: float = 0.25,
        gap: float = 0.0,
        size: np.ndarray | None = None,
    ) -> bool:
        """Add an object unless it would touch another one or crowd a keyframe.

        Args:
            kind: key of `models.MODELS`.
            path: its motion.
            attribute: nuScenes attribute.
            stopped: attribute while it stands, if another one.
            margin: free space to each neighbour, metres.
            gap: further free space in front and behind, together.
            size: width, length, height; drawn if None.

        Returns:
            Whether it was added.
        """
        size = MODELS[kind].draw_size(self.rng) if size is None else size
        poses = path(self.times)
        outline = footprint(poses, size[1] + gap, size[0], margin / 2)
        others = np.stack(self.outlines, 1)  # [n, objects, 4, 2]
        reach = np.linalg.norm(outline[:, None].mean(2) - others.mean(2), axis=-1)
        radius = np.linalg.norm(outline[:, 0] - outline[:, 2], axis=-1)[:, None] / 2
        radii = np.linalg.norm(others[:, :, 0] - others[:, :, 2], axis=-1) / 2
        close = np.nonzero((reach < radius + radii).any(0))[0]
        if len(close) and rectangles_overlap(outline[:, None], others[:, close]).any():
            return False
        keyed = poses[::2]
        near = np.linalg.norm(keyed[:, :2] - self.ego[::2, :2], axis=-1) < ANNOTATION_RANGE
        if MODELS[kind].category:
            if (self.near + near > MAX_OBJECTS).any():
                return False
            self.near += near
        self.outlines.append(outline)
        paint, trim = MODELS[kind].draw_paints(self.rng)
        speed = np.linalg.norm(np.gradient(keyed[:, :2], self.scene.times, axis=0), axis=-1)
        names = tuple(attribute if v > 0.2 or not stopped else stopped for v in speed)
        self.things.append(Thing(kind, size, keyed, paint, trim, names))
        return True

    def attempt(self, kind: str, draw: Callable[[], tuple], tries: int = 25, **options: object) -> bool:
        """Try several draws of (path, attribute[, attribute while standing])."""
        return any(self.put(kind, *draw(), **options) for _ in range(tries))

    # -- paths ------------------------------------------------------------------------------------------------

    def still(self, s: float, d: float, turn: float = 0.0) -> Path:
        pose = self.road.pose(s, d) + np.array([0.0, 0.0, turn])
        return lambda t: np.broadcast_to(pose, (len(t), 3))

    def along(self, s: float, d: float, speed: float, drift: float = 0.0) -> Path:
        """Constant speed along the road (negative: against it) and across it; the heading follows the motion."""

        def path(t: np.ndarray) -> np.ndarray:
            poses = self.road.pose(s + speed * t, d + drift * t)
            turn = np.arctan2(drift, speed)
            return poses + np.array([0.0, 0.0, turn])

        return path

    def convoy(self, s: float, d: float) -> Path:
        """Keeps the distance to the ego car in its own or the next lane."""
        return lambda t: self.road.pose(s + self.scene.drive.travelled(t), d)

    def across(self, q: float, direction: float, speed: float) -> Path:
        """On the crossing street: `q` metres to the left of the road at time 0, heading left (1) or right (-1)."""
        x, y, heading = self.road.pose(self.road.crossing, 0.0)
        lane = direction * CROSS_LANE  # traffic keeps right

        def path(t: np.ndarray) -> np.ndarray:
            left = q + direction * speed * t
            px = x + lane * np.cos(heading) - left * np.sin(heading)
            py = y + lane * np.sin(heading) + left * np.cos(heading)
            return np.stack([px, py, np.full(len(t), heading + direction * np.pi / 2)], -1)

        return path

    # -- groups of objects -------------------------------------------------------------------------------------

    def s_near(self, behind: float = 20.0, ahead: float = 35.0) -> float:
        s = self.rng.uniform(-behind, self.end + ahead)
        if self.road.crossing is not None and abs(s - self.road.crossing) < 7.0:
            s += 14.0
        return s

    def driving(self) -> tuple[Path, str, str]:
        """A vehicle on the road: with the ego car, at its own speed, or waiting."""
        lane, direction = LANES[self.rng.integers(len(LANES))]
        relative = self.rng.uniform(-40.0, 50.0)
        if lane == EGO_LANE:
            return self.convoy(relative, lane), "vehicle.moving", "vehicle.stopped"
        if direction > 0 and self.rng.random() < 0.4:
            return self.convoy(relative, lane), "vehicle.moving", "vehicle.stopped"
        if self.rng.random() < 0.15:
            return self.still(self.s_near(), lane, 0.0 if direction > 0 else np.pi), "vehicle.stopped"
        # One speed per lane keeps its vehicles apart; they pass the ego car around the middle of the scene.
        speed = direction * (5.0 + 1.1 * abs(lane))
        half = self.scene.times[-1] / 2
        return self.along(self.mid + self.rng.uniform(-45, 45) - speed * half, lane, speed), "vehicle.moving"

    def crossing(self) -> tuple[Path, str]:
        """A vehicle on the crossing street, waiting at the corner or driving over it."""
        if self.road.crossing is None:
            return self.driving()[:2]
        side = 1.0 if self.rng.random() < 0.5 else -1.0
        if self.rng.random() < 0.6:
            return self.across(side * self.rng.uniform(14.0, 40.0), -side, 0.0), "vehicle.stopped"
        return self.across(side * self.rng.uniform(5.0, 60.0), -side, self.rng.uniform(5.0, 8.0)), "vehicle.moving"

    def parked(self) -> tuple[Path, str]:
        side = 1.0 if self.rng.random() < 0.5 else -1.0
        turn = (np.pi if side > 0 else 0.0) + self.rng.normal(0.0, 0.03)
        return self.still(self.s_near(), side * (PARKING + self.rng.normal(0.0, 0.1)), turn), "vehicle.parked"

    def heavy(self) -> tuple:
        return self.parked() if self.rng.random() < 0.45 else self.driving()

    def walker(self) -> tuple[Path, str]:
        side = 1.0 if self.rng.random() < 0.5 else -1.0
        s, d = self.s_near(15.0, 25.0), side * self.rng.uniform(*WALK)
        draw = self.rng.random()
        if draw < 0.55:
            speed = self.rng.uniform(0.9, 1.6) * (1.0 if self.rng.random() < 0.5 else -1.0)
            return self.along(s, d, speed, self.rng.normal(0.0, 0.05)), "pedestrian.moving"
        if draw < 0.7:
            drift = -side * self.rng.uniform(1.0, 1.5)
            return self.along(s, side * self.rng.uniform(8.0, 12.0), 0.0, drift), "pedestrian.moving"
        return self.still(s, d, self.rng.uniform(-np.pi, np.pi)), "pedestrian.standing"

    def cyclist(self) -> tuple[Path, str]:
        side = 1.0 if self.rng.random() < 0.5 else -1.0
        speed = -side * self.rng.uniform(2.5, 5.5)
        half = self.scene.times[-1] / 2
        s = self.mid + self.rng.uniform(-25, 30) - speed * half
        return self.along(s, side * self.rng.uniform(6.6, 6.9), speed), "cycle.with_rider"

    def bike_at_kerb(self) -> tuple[Path, str]:
        side = 1.0 if self.rng.random() < 0.5 else -1.0
        turn = self.rng.uniform(-np.pi, np.pi)
        return self.still(self.s_near(10.0, 20.0), side * self.rng.uniform(9.9, 10.6), turn), "cycle.without_rider"

    def work_site(self) -> None:
        """A closed outer lane: cones along the open side, barriers at the front, a digger and workers inside."""
        side = 1.0 if self.rng.random() < 0.5 else -1.0
        begin = self.rng.uniform(2.0, max(self.end - 10.0, 6.0))
        length = self.rng.uniform(16.0, 24.0)
        self.attempt(
            "construction",
            lambda: (
                self.still(
                    begin + self.rng.uniform(5.0, length - 5.0),
                    side * self.rng.uniform(6.0, 7.4),
                    self.rng.uniform(-np.pi, np.pi),
                ),
                "vehicle.stopped",
            ),
            margin=0.4,
        )
        gap = self.rng.uniform(2.8, 3.6)
        for k in range(int(length / gap)):
            d = side * (3.75 + self.rng.normal(0.0, 0.08))
            self.put("cone", self.still(begin + k * gap, d, self.rng.uniform(-0.8, 0.8)))
        turn = np.pi / 2 if side > 0 else -np.pi / 2
        for k in range(int(self.rng.integers(3, 7))):
            # The long side of a barrier is its width: turned a quarter, a row of them runs along the road.
            self.put("barrier", self.still(begin + 1.5 + k * 2.75, side * 9.3, turn + self.rng.normal(0.0, 0.03)))
        for d in (4.9, 7.6):
            self.put("barrier", self.still(begin - 1.2, side * d, self.rng.normal(0.0, 0.05)))

    def fill(self) -> list[Thing]:
        """Place everything; annotated objects first."""
        rng, scale = self.rng, (self.end + 75.0) / 120.0
        self.work_site()
        for kind, draw, low, high, gap in (
            ("bus", self.heavy, 1, 2, 3.0),
            ("trailer", self.heavy, 1, 2, 3.0),
            ("truck", self.heavy, 2, 4, 3.0),
            ("motorcycle_rider", self.cyclist, 1, 2, 1.0),
            ("bicycle_rider", self.cyclist, 1, 2, 1.0),
            ("motorcycle", self.bike_at_kerb, 1, 1, 0.0),
            ("bicycle", self.bike_at_kerb, 1, 2, 0.0),
            ("car", self.crossing, 1, 4, 3.0),
            ("car", self.driving, 4, 9, 3.0),
            ("car", self.parked, 4, 9, 0.5),
            ("pedestrian", self.walker, 7, 15, 0.0),
            ("cone", self.lone_cone, 0, 3, 0.0),
        ):
            count = round(int(rng.integers(low, high + 1)) * max(scale, 1.0))
            placed = sum(self.attempt(kind, draw, gap=gap) for _ in range(count))
            if not placed and draw == self.heavy:  # no gap in the traffic: the kerb has room
                self.attempt(kind, self.parked, tries=200)
        self._scenery()
        return self.things

    def lone_cone(self) -> tuple[Path, str]:
        side = 1.0 if self.rng.random() < 0.5 else -1.0
        return self.still(self.s_near(5.0, 15.0), side * self.rng.uniform(7.1, 7.3), 0.0), ""

    def _scenery(self) -> None:
        """Houses behind the pavements, trees and lamp posts on their outer edge; none of them is annotated."""
        rng = self.rng
        for _ in range(int((self.end + 160) / 7)):
            kind = ("house_a", "house_b", "house_c")[rng.integers(3)]
            size = MODELS[kind].draw_size(rng)
            side = 1.0 if rng.random() < 0.5 else -1.0
            d = side * (STREET_EDGE + 2.5 + size[0] / 2 + rng.uniform(0.0, 4.0))
            path = self.still(rng.uniform(-70.0, self.end + 80.0), d)
            if self._off_street(path(self.times[:1])[0], size):
                self.put(kind, path, size=size, margin=1.0)
        for kind, d, step in (("tree", STREET_EDGE + 0.9, 11.0), ("pole", 9.75, 26.0)):
            for s in np.arange(-60.0, self.end + 70.0, step):
                side = 1.0 if rng.random() < 0.5 else -1.0
                if self.road.crossing is None or abs(s - self.road.crossing) > 8.0:
                    self.put(kind, self.still(s + rng.uniform(-2, 2), side * d, -side * np.pi / 2), margin=0.3)

    def _off_street(self, pose: np.ndarray, size: np.ndarray) -> bool:
        """Whether a house leaves the road with its pavements and the crossing street free."""
        lines = [self.road.xy]
        if self.road.crossing is not None:
            x, y, heading = self.road.pose(self.road.crossing, 0.0)
            q = np.arange(-70.0, 70.5, 0.5)[:, None]
            lines.append(np.array([[x, y]]) + q * np.array([[-np.sin(heading), np.cos(heading)]]))
        for line, free in zip(lines, (STREET_EDGE + 1.0, 8.0), strict=False):
            c, s = np.cos(pose[2]), np.sin(pose[2])
            local = (line - pose[:2]) @ np.array([[c, -s], [s, c]])
            outside = np.maximum(np.abs(local) - np.array([size[1], size[0]]) / 2, 0.0)
            if np.linalg.norm(outside, axis=-1).min() < free:
                return False
        return True
