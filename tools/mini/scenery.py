"""Ground and sky: a painted top view of the street and a panorama, drawn once per scene.

In: a `Scene`. Out: `Ground` (an image pyramid with its place in the world) and a sky panorama.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .layout import LANES, PARKING, STREET_EDGE, Scene
from .textures import hsv_colour

RESOLUTION = 0.07  # metres per pixel of the finest ground level
BORDER = 80.0  # metres of ground around the ego car's way
KERB = 9.6
ROAD_HALF = 7.2
CROSS_HALF = 4.4
PANORAMA = (2048, 512)  # pixels over 360 degrees and over elevations from -6 to 60 degrees
ELEVATION = (np.radians(-6.0), np.radians(60.0))


@dataclass(frozen=True)
class Ground:
    """Top view of the ground, z = 0.

    Attributes:
        levels: BGR uint8 images; level k has RESOLUTION * 2**k metres per pixel.
        origin: [2] world position of the upper left corner of pixel (0, 0); columns run along x, rows along y.
        plain: colour beyond the images.
    """

    levels: list[np.ndarray]
    origin: np.ndarray
    plain: tuple[int, int, int]

    def to_pixels(self, level: int) -> np.ndarray:
        """[3, 3] world ground coordinates (x, y, 1) -> pixel centre coordinates of a level."""
        scale = 1.0 / (RESOLUTION * 2**level)
        x, y = self.origin
        return np.array([[scale, 0.0, -x * scale - 0.5], [0.0, scale, -y * scale - 0.5], [0.0, 0.0, 1.0]])


class _Painter:
    """Fills shapes given in road coordinates."""

    def __init__(self, scene: Scene, image: np.ndarray, origin: np.ndarray, resolution: float) -> None:
        self.scene, self.image, self.origin, self.resolution = scene, image, origin, resolution

    def polygon(self, points: np.ndarray, colour: tuple[int, ...]) -> None:
        pixels = np.round(((points - self.origin) / self.resolution - 0.5) * 16).astype(np.int32)
        cv2.fillPoly(self.image, [pixels], colour, cv2.LINE_AA, 4)

    def strip(self, s0: float, s1: float, d0: float, d1: float, colour: tuple[int, ...]) -> None:
        s = np.linspace(s0, s1, max(int((s1 - s0) / 1.0), 1) + 1)
        left, right = self.scene.road.pose(s, d0)[:, :2], self.scene.road.pose(s, d1)[:, :2]
        self.polygon(np.concatenate([left, right[::-1]]), colour)

    def cross(self, a0: float, a1: float, q0: float, q1: float, colour: tuple[int, ...]) -> None:
        """A rectangle of the crossing street: a along the main road, q across it."""
        x, y, h = self.scene.road.pose(self.scene.road.crossing, 0.0)
        a, q = np.array([a0, a1, a1, a0]), np.array([q0, q0, q1, q1])
        self.polygon(np.stack([x + a * np.cos(h) - q * np.sin(h), y + a * np.sin(h) + q * np.cos(h)], -1), colour)


def paint_drivable(scene: Scene, image: np.ndarray, origin: np.ndarray, resolution: float, colour: int) -> None:
    """Fill the road surface of one scene into a top view (rows along +y)."""
    painter = _Painter(scene, image, origin, resolution)
    painter.strip(scene.road.s[0], scene.road.s[-1], KERB, -KERB, (colour,))
    if scene.road.crossing is not None:
        painter.cross(-CROSS_HALF, CROSS_HALF, -75.0, 75.0, (colour,))


def make_ground(scene: Scene) -> Ground:
    """Paint the street of a scene."""
    rng = np.random.default_rng([scene.seed, scene.index, 2])
    inside = (scene.road.s > -BORDER) & (scene.road.s < scene.drive.travelled(scene.times[-1]) + BORDER)
    way = scene.road.xy[inside]
    low, high = way.min(0) - 25.0, way.max(0) + 25.0
    width, height = np.ceil((high - low) / RESOLUTION).astype(int)
    plain = hsv_colour(rng.uniform(60, 110), rng.uniform(0.2, 0.4), rng.uniform(0.4, 0.55))
    image = np.empty((height, width, 3), np.uint8)
    image[:] = np.round(plain)
    _paint_street(_Painter(scene, image, low, RESOLUTION), rng)
    image = _add_grain(image, rng)
    levels = [image]
    for _ in range(4):
        levels.append(cv2.pyrDown(levels[-1]))
    return Ground(levels, low, tuple(int(v) for v in plain))


def _paint_street(p: _Painter, rng: np.random.Generator) -> None:
    scene = p.scene
    s0, s1 = float(scene.road.s[0]), float(scene.road.s[-1])
    paving, joint = rng.uniform(150, 180), rng.uniform(115, 135)
    asphalt = rng.uniform(68, 92)
    tarmac = (asphalt * 1.02, asphalt, asphalt * 0.97)
    p.strip(s0, s1, STREET_EDGE, -STREET_EDGE, (paving * 0.95, paving, paving * 1.02))
    for d in np.arange(KERB, STREET_EDGE, 1.1):
        for side in (1, -1):
            p.strip(s0, s1, side * d, side * (d + 0.08), (joint,) * 3)
    for s in np.arange(s0, s1, 1.1):
        for side in (1, -1):
            p.strip(s, s + 0.08, side * KERB, side * STREET_EDGE, (joint,) * 3)
    if scene.road.crossing is not None:
        p.cross(-CROSS_HALF - 2.2, CROSS_HALF + 2.2, -75, 75, (paving * 0.95, paving, paving * 1.02))
    p.strip(s0, s1, KERB, -KERB, (paving * 1.15,) * 3)
    p.strip(s0, s1, KERB - 0.2, -KERB + 0.2, tarmac)
    white, yellow = (215, 215, 215), (70, 185, 215)
    p.strip(s0, s1, 0.18, 0.06, yellow)
    p.strip(s0, s1, -0.06, -0.18, yellow)
    for side in (1, -1):
        p.strip(s0, s1, side * (ROAD_HALF - 0.08), side * (ROAD_HALF + 0.04), white)
        for s in np.arange(s0, s1, 6.0):
            p.strip(s, s + 2.4, side * 3.43, side * 3.57, white)
            p.strip(s, s + 0.12, side * (ROAD_HALF + 0.04), side * (PARKING + 1.1), white)
    if scene.road.crossing is not None:
        _paint_crossing(p, tarmac, white, yellow)


def _paint_crossing(p: _Painter, tarmac: tuple, white: tuple, yellow: tuple) -> None:
    middle = p.scene.road.crossing
    p.cross(-CROSS_HALF, CROSS_HALF, -75, 75, tarmac)
    for q in (-75, KERB + 4):
        p.cross(-0.07, 0.07, q, q + 71 - KERB, yellow)
    for offset in (-CROSS_HALF - 4.0, CROSS_HALF + 1.0):
        for d in np.arange(-KERB + 0.5, KERB - 0.5, 1.0):
            p.strip(middle + offset, middle + offset + 3.0, d + 0.5, d, white)
    for lane, direction in LANES:
        stop = middle - direction * (CROSS_HALF + 5.0)
        p.strip(min(stop, stop + 0.4), max(stop, stop + 0.4), lane + 1.6, lane - 1.6, white)


def _add_grain(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Multiply with noise of several sizes, so that no surface is without texture."""
    height, width = image.shape[:2]
    grain = np.zeros((height, width), np.float32)
    for cell, strength in ((48, 0.07), (12, 0.05), (3, 0.05), (1, 0.05)):
        noise = rng.standard_normal((height // cell + 2, width // cell + 2), dtype=np.float32) * strength
        grain += cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.clip(image * (1.0 + grain[..., None]), 0, 255).astype(np.uint8)


def make_sky(scene: Scene) -> np.ndarray:
    """Panorama BGR uint8 [H, W, 3]: column 0 looks along +x, columns run clockwise, the top row is the zenith side."""
    rng = np.random.default_rng([scene.seed, scene.index, 3])
    width, height = PANORAMA
    zenith, horizon = (
        ((225, 150, 95), (235, 215, 195)),
        ((205, 195, 185), (225, 220, 215)),
        ((200, 150, 120), (175, 205, 235)),
    )[scene.sky_mood]
    elevation = np.linspace(ELEVATION[1], ELEVATION[0], height, dtype=np.float32)
    share = np.clip(elevation / ELEVATION[1], 0, 1)[:, None, None] ** 0.6
    sky = np.array(horizon, np.float32) * (1 - share) + np.array(zenith, np.float32) * share
    sky = np.repeat(sky, width, 1)
    clouds = np.zeros((height, width), np.float32)
    for cells, strength in ((8, 1.0), (20, 0.6), (48, 0.35)):
        noise = rng.standard_normal((cells // 2, cells)).astype(np.float32)
        noise = np.concatenate([noise, noise[:, :1]], 1)
        clouds += strength * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    cover = np.clip(clouds * 0.5 + (0.0, 0.6, -0.2)[scene.sky_mood], 0, 1)[..., None] * np.clip(share * 4, 0, 1) * 0.75
    sky = sky * (1 - cover) + 245.0 * cover
    angle = np.arange(width) * 2 * np.pi / width
    hills = sum(rng.uniform(0.004, 0.012) * np.sin(k * angle + rng.uniform(0, 6.3)) for k in (2, 3, 5, 9, 14, 31))
    hill = elevation[:, None] < hills[None] + 0.03
    sky[hill] = np.array(horizon, np.float32) * 0.55 + hsv_colour(110, 0.3, 0.4) * 0.45
    return np.clip(sky, 0, 255).astype(np.uint8)


def haze_colour(scene: Scene) -> np.ndarray:
    """BGR of the air far away."""
    return np.array(((235, 215, 195), (225, 220, 215), (175, 205, 235))[scene.sky_mood], np.float32)
