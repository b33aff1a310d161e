"""What objects look like: convex blocks inside the annotated box, their textures, sizes and paints.

In: a kind of object ("car", "pedestrian", "house", ...). Out: its `Model`, and for one object the corners of its
blocks. All coordinates are those of the object: x forward, y left, z up, origin in the middle of the footprint.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .textures import hsv_colour

# Corner k of a block: bottom 0..3 (front right, front left, back left, back right), top 4..7 in the same order.
# A face lists its corners as seen from outside: bottom left, bottom right, top right, top left.
FACES = ("front", "back", "left", "right", "top", "bottom")
LEFT = FACES.index("left")  # shows the mirrored texture of the right side
FACE_CORNERS = np.array([[0, 1, 5, 4], [2, 3, 7, 6], [1, 2, 6, 5], [3, 0, 4, 7], [6, 7, 4, 5], [2, 1, 0, 3]])
INSET = 0.03  # metres between the annotated box and the visible surface, at most 4 % of a side


@dataclass(frozen=True)
class Block:
    """A box or a tapered box in fractions of the annotated one: x and y in [-0.5, 0.5], z in [0, 1].

    Attributes:
        x, y, z: extents; `x` and `y` hold at the lower end.
        top_x, top_y: extents at the upper end, the same as below if None.
        skins: texture names of front, back, side (drawn as seen from the right) and top.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    z: tuple[float, float]
    skins: tuple[str, str, str, str]
    top_x: tuple[float, float] | None = None
    top_y: tuple[float, float] | None = None

    def corners(self) -> np.ndarray:
        """[8, 3] corners in fractions."""
        rows = []
        for (x0, x1), (y0, y1), z in (
            (self.x, self.y, self.z[0]),
            (self.top_x or self.x, self.top_y or self.y, self.z[1]),
        ):
            rows += [(x1, y0, z), (x1, y1, z), (x0, y1, z), (x0, y0, z)]
        return np.array(rows)

    def textures(self) -> list[str]:
        """Texture names in the order of FACES."""
        front, back, side, top = self.skins
        return [front, back, side, side, top, "under"]


@dataclass(frozen=True)
class Model:
    """One kind of object.

    Attributes:
        category: nuScenes category, empty for scenery, which is not annotated.
        size: mean (width, length, height) in metres, in the order of nuScenes.
        spread: relative standard deviation of the size.
        blocks: the visible parts.
        reflectivity: mean lidar intensity, 0..255.
        hues: (centre, half range) of the paint's hue in degrees.
        saturation, value: ranges of the paint.
        trim: colour ranges (saturation, value) of the second colour, whose hue is free.
    """

    category: str
    size: tuple[float, float, float]
    spread: float
    blocks: tuple[Block, ...]
    reflectivity: float
    hues: tuple[float, float] = (0.0, 180.0)
    saturation: tuple[float, float] = (0.3, 0.7)
    value: tuple[float, float] = (0.4, 0.9)
    trim: tuple[tuple[float, float], tuple[float, float]] = ((0.0, 0.1), (0.7, 0.95))

    def draw_size(self, rng: np.random.Generator) -> np.ndarray:
        """Width, length, height in metres, within two and a half standard deviations."""
        scale = 1 + self.spread * np.clip(rng.normal(size=3), -2.5, 2.5)
        return np.round(np.array(self.size) * scale, 3)

    def draw_paints(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Main paint and second colour, BGR 0..255."""
        centre, half = self.hues
        paint = hsv_colour(centre + rng.uniform(-half, half), rng.uniform(*self.saturation), rng.uniform(*self.value))
        trim = hsv_colour(rng.uniform(0, 360), rng.uniform(*self.trim[0]), rng.uniform(*self.trim[1]))
        return paint, trim


FULL = (-0.5, 0.5)


def _same(skin: str, top: str | None = None) -> tuple[str, str, str, str]:
    return skin, skin, skin, top or skin


def _rider(top: float) -> tuple[Block, ...]:
    """A person sitting upright between 45 % of the height and `top`."""
    return (
        Block(
            (-0.2, 0.06),
            (-0.32, 0.32),
            (0.45, top - 0.17),
            ("torso_front", "torso_back", "torso_side", "trim"),
            top_x=(-0.1, 0.1),
        ),
        Block((-0.06, 0.08), (-0.15, 0.15), (top - 0.17, top), ("face", "hair", "head_side", "hair")),
    )


_CAR = (
    Block(FULL, FULL, (0.0, 0.56), ("car_front", "car_back", "car_side", "paint"), (-0.49, 0.47), (-0.48, 0.48)),
    Block(
        (-0.46, 0.24),
        (-0.47, 0.47),
        (0.56, 1.0),
        ("windscreen", "rear_glass", "cabin_side", "paint"),
        (-0.36, 0.08),
        (-0.38, 0.38),
    ),
)
_TRUCK = (
    Block((-0.48, 0.48), (-0.47, 0.47), (0.0, 0.2), ("dark", "dark", "chassis_side", "dark")),
    Block((0.24, 0.5), (-0.46, 0.46), (0.16, 0.84), ("cab_front", "dark", "cab_side", "paint"), (0.24, 0.46)),
    Block((-0.5, 0.21), FULL, (0.2, 1.0), ("cargo_side", "cargo_back", "cargo_side", "trim")),
)
_BUS = (Block(FULL, FULL, (0.02, 1.0), ("bus_front", "bus_back", "bus_side", "trim")),)
_TRAILER = (
    Block((-0.48, 0.42), (-0.46, 0.46), (0.0, 0.24), ("dark", "dark", "trailer_chassis", "dark")),
    Block(FULL, FULL, (0.24, 1.0), ("trailer_front", "trailer_back", "trailer_side", "trim")),
)
_DIGGER = (
    Block((-0.42, 0.24), (-0.5, -0.26), (0.0, 0.28), _same("tracks", "dark")),
    Block((-0.42, 0.24), (0.26, 0.5), (0.0, 0.28), _same("tracks", "dark")),
    Block((-0.5, 0.14), (-0.46, 0.46), (0.28, 0.6), ("paint", "digger_back", "digger_side", "paint")),
    Block((-0.26, 0.12), (-0.4, 0.08), (0.6, 1.0), ("digger_cab_front", "digger_cab", "digger_cab", "paint")),
    Block((0.05, 0.46), (0.12, 0.3), (0.55, 0.8), _same("paint"), (0.05, 0.4), None),
    Block((0.32, 0.5), (-0.1, 0.5), (0.02, 0.34), _same("steel"), (0.38, 0.46)),
)
_PERSON = (
    Block(
        (-0.3, 0.3), (-0.32, 0.32), (0.0, 0.48), ("legs_front", "legs_front", "legs_side", "trim"), top_x=(-0.24, 0.24)
    ),
    Block((-0.36, 0.36), FULL, (0.48, 0.84), ("torso_front", "torso_back", "torso_side", "paint"), top_y=(-0.44, 0.44)),
    Block((-0.18, 0.2), (-0.19, 0.19), (0.84, 1.0), ("face", "hair", "head_side", "hair")),
)


def _wheel(middle: float, radius: float, half_width: float, height: float) -> tuple[Block, ...]:
    """A six-sided wheel on the ground: `radius` along x and `height` of its axle, in fractions."""
    full, flat = (middle - radius, middle + radius), (middle - 0.45 * radius, middle + 0.45 * radius)
    y = (-half_width, half_width)
    return (
        Block(flat, y, (0.0, height), ("under", "under", "tyre_low", "under"), full),
        Block(full, y, (height, 2 * height), ("under", "under", "tyre_high", "under"), flat),
    )


_MOTORCYCLE = (
    *_wheel(-0.34, 0.16, 0.12, 0.22),
    *_wheel(0.34, 0.16, 0.12, 0.22),
    Block((-0.5, 0.22), (-0.2, 0.2), (0.2, 0.5), ("dark", "tail_lamp", "engine", "dark"), (-0.5, 0.26)),
    Block((0.22, 0.36), (-0.2, 0.2), (0.36, 0.62), ("head_lamp", "paint", "paint", "paint"), (0.16, 0.3)),
    Block((0.14, 0.22), FULL, (0.56, 0.64), _same("steel")),
)
_BICYCLE = (
    *_wheel(-0.31, 0.19, 0.07, 0.2),
    *_wheel(0.31, 0.19, 0.07, 0.2),
    Block((-0.33, 0.3), (-0.08, 0.08), (0.34, 0.46), ("paint", "tail_lamp", "frame", "paint"), (-0.3, 0.27)),
    Block((-0.12, 0.0), (-0.12, 0.12), (0.46, 0.56), _same("dark")),
    Block((0.2, 0.3), (-0.06, 0.06), (0.34, 0.62), ("head_lamp", "paint", "paint", "paint"), (0.16, 0.24)),
    Block((0.17, 0.24), (-0.45, 0.45), (0.58, 0.66), _same("steel")),
)

MODELS: dict[str, Model] = {
    "car": Model("vehicle.car", (1.95, 4.6, 1.72), 0.05, _CAR, 60, (212, 22), (0.35, 0.85), (0.35, 0.95)),
    "truck": Model("vehicle.truck", (2.5, 6.9, 2.85), 0.07, _TRUCK, 55, (22, 9), (0.75, 0.95), (0.6, 0.9)),
    "bus": Model("vehicle.bus.rigid", (2.95, 11.2, 3.45), 0.04, _BUS, 50, (110, 22), (0.45, 0.75), (0.4, 0.75)),
    "trailer": Model("vehicle.trailer", (2.85, 11.5, 3.8), 0.05, _TRAILER, 70, (275, 14), (0.4, 0.7), (0.45, 0.7)),
    "construction": Model("vehicle.construction", (2.8, 6.5, 3.2), 0.06, _DIGGER, 45, (50, 4), (0.85, 1.0), (0.8, 1.0)),
    "pedestrian": Model(
        "human.pedestrian.adult",
        (0.67, 0.72, 1.76),
        0.06,
        _PERSON,
        25,
        (0, 180),
        (0.3, 0.8),
        (0.35, 0.9),
        ((0.1, 0.5), (0.15, 0.45)),
    ),
    "motorcycle": Model(
        "vehicle.motorcycle", (0.78, 2.1, 1.3), 0.05, _MOTORCYCLE, 40, (335, 14), (0.7, 0.95), (0.45, 0.8)
    ),
    "motorcycle_rider": Model(
        "vehicle.motorcycle",
        (0.78, 2.1, 1.62),
        0.05,
        _MOTORCYCLE + _rider(1.0),
        40,
        (335, 14),
        (0.7, 0.95),
        (0.45, 0.8),
        ((0.0, 0.3), (0.15, 0.4)),
    ),
    "bicycle": Model("vehicle.bicycle", (0.6, 1.72, 1.1), 0.05, _BICYCLE, 30, (172, 12), (0.7, 0.95), (0.5, 0.85)),
    "bicycle_rider": Model(
        "vehicle.bicycle",
        (0.6, 1.72, 1.72),
        0.05,
        _BICYCLE + _rider(1.0),
        30,
        (172, 12),
        (0.7, 0.95),
        (0.5, 0.85),
        ((0.0, 0.3), (0.4, 0.7)),
    ),
    "cone": Model(
        "movable_object.trafficcone",
        (0.41, 0.41, 1.05),
        0.06,
        (
            Block(FULL, FULL, (0.0, 0.06), _same("dark")),
            Block((-0.4, 0.4), (-0.4, 0.4), (0.06, 1.0), _same("cone"), (-0.09, 0.09), (-0.09, 0.09)),
        ),
        110,
    ),
    "barrier": Model(
        "movable_object.barrier",
        (2.45, 0.52, 0.99),
        0.05,
        (Block(FULL, FULL, (0.0, 1.0), ("barrier_long", "barrier_long", "barrier_end", "steel"), (-0.3, 0.3)),),
        80,
    ),
    "house_a": Model(
        "",
        (13.0, 18.0, 8.5),
        0.15,
        (Block(FULL, FULL, (0, 1), _same("house_a", "roof")),),
        35,
        (28, 20),
        (0.1, 0.4),
        (0.5, 0.8),
    ),
    "house_b": Model(
        "",
        (12.0, 24.0, 12.0),
        0.15,
        (Block(FULL, FULL, (0, 1), _same("house_b", "roof")),),
        35,
        (15, 25),
        (0.1, 0.35),
        (0.4, 0.7),
    ),
    "house_c": Model(
        "",
        (14.0, 20.0, 10.0),
        0.15,
        (Block(FULL, FULL, (0, 1), _same("house_c", "roof")),),
        35,
        (210, 40),
        (0.03, 0.15),
        (0.5, 0.8),
    ),
    "tree": Model(
        "",
        (3.6, 3.6, 6.5),
        0.12,
        (
            Block((-0.06, 0.06), (-0.06, 0.06), (0, 0.4), _same("bark")),
            Block((-0.4, 0.4), (-0.4, 0.4), (0.34, 0.62), _same("leaves"), FULL, FULL),
            Block(FULL, FULL, (0.62, 1.0), _same("leaves"), (-0.18, 0.18), (-0.18, 0.18)),
        ),
        30,
        (100, 15),
        (0.4, 0.6),
        (0.25, 0.4),
    ),
    "pole": Model(
        "",
        (0.24, 0.9, 6.5),
        0.05,
        (Block((-0.5, -0.26), FULL, (0, 1), _same("steel")), Block((-0.26, 0.5), FULL, (0.95, 1.0), _same("steel"))),
        60,
    ),
}
DETECTION_KINDS = tuple(kind for kind, model in MODELS.items() if model.category)


def object_corners(kind: str, size: np.ndarray) -> np.ndarray:
    """Corners [K, 8, 3] in metres of the K blocks of an object of (width, length, height) `size`."""
    width, length, height = size
    sides = np.array([length, width, height])
    # Both ends of length and width are inset; of the height only the upper one, as objects stand on the ground.
    visible = sides - np.minimum(INSET, 0.04 * sides) * np.array([2, 2, 1])
    return np.stack([block.corners() for block in MODELS[kind].blocks]) * visible


def block_planes(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Outward unit normals [..., 6, 3] and offsets [..., 6] of block faces: inside is n.x <= offset."""
    quads = corners[..., FACE_CORNERS, :]
    across = quads[..., 1, :] + quads[..., 2, :] - quads[..., 0, :] - quads[..., 3, :]
    up = quads[..., 2, :] + quads[..., 3, :] - quads[..., 0, :] - quads[..., 1, :]
    normals = np.cross(across, up)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    return normals, (normals * quads.mean(-2)).sum(-1)
