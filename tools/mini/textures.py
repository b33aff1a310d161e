"""Face textures: small drawings with two colour slots that each object fills with its own paint.

In: a texture name. Out: an image pyramid of arrays [S, S, 5]: three colour channels (BGR, 0..255) of the fixed
drawing, then the weights of the object's main paint and of its second colour (trim).
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

SIZE = 256
PAINT, TRIM = "paint", "trim"
BLACK, DARK, GREY, LIGHT, WHITE = (20, 20, 22), (45, 45, 50), (110, 110, 112), (185, 185, 185), (240, 240, 240)
GLASS, SKY_GLASS, SKIN, HAIR = (60, 45, 35), (170, 140, 110), (150, 180, 225), (30, 35, 50)
LAMP, TAIL, AMBER, ORANGE, RED = (190, 250, 255), (35, 25, 230), (30, 160, 255), (20, 95, 250), (40, 40, 215)
STEEL, BARK, CONCRETE = (150, 140, 130), (45, 65, 85), (150, 160, 165)
GREEN, LEAF = (45, 85, 50), (60, 115, 75)


class Canvas:
    """A face seen from outside; u runs to the right and v upwards, both in [0, 1]."""

    def __init__(self, fill: str | tuple[int, int, int]) -> None:
        self.layers = np.zeros((SIZE, SIZE, 5), np.float32)
        self._apply(np.ones((SIZE, SIZE), bool), fill)

    def _apply(self, mask: np.ndarray, fill: str | tuple[int, int, int]) -> None:
        value = {PAINT: (0, 0, 0, 1, 0), TRIM: (0, 0, 0, 0, 1)}.get(fill) if isinstance(fill, str) else (*fill, 0, 0)
        self.layers[mask] = value

    def rect(self, u0: float, v0: float, u1: float, v1: float, fill: str | tuple[int, int, int]) -> Canvas:
        """Axis-aligned rectangle."""
        rows = slice(round((1 - v1) * SIZE), round((1 - v0) * SIZE))
        mask = np.zeros((SIZE, SIZE), bool)
        mask[rows, round(u0 * SIZE) : round(u1 * SIZE)] = True
        self._apply(mask, fill)
        return self

    def disc(self, u: float, v: float, ru: float, rv: float, fill: str | tuple[int, int, int]) -> Canvas:
        """Ellipse with half axes ru, rv."""
        grid = (np.arange(SIZE) + 0.5) / SIZE
        mask = ((grid[None] - u) / ru) ** 2 + ((1 - grid[:, None] - v) / rv) ** 2 <= 1
        self._apply(mask, fill)
        return self

    def stripes(self, count: float, slope: float, fill: str | tuple[int, int, int], share: float = 0.5) -> Canvas:
        """`count` stripes across u; `slope` tilts them (0 = upright), `share` is their part of the period."""
        grid = (np.arange(SIZE) + 0.5) / SIZE
        phase = (grid[None] + slope * (1 - grid[:, None])) * count
        self._apply(phase % 1 < share, fill)
        return self

    def bands(self, count: float, fill: str | tuple[int, int, int], share: float = 0.5) -> Canvas:
        """`count` level bands, counted from the bottom."""
        grid = (np.arange(SIZE) + 0.5) / SIZE
        self._apply(np.broadcast_to(((1 - grid[:, None]) * count) % 1 < share, (SIZE, SIZE)), fill)
        return self

    def windows(self, columns: int, rows: int, fill: str | tuple[int, int, int], v0: float = 0.0) -> Canvas:
        """A grid of window panes above height v0."""
        for i in range(columns):
            for j in range(rows):
                v = v0 + (1 - v0) * (j + 0.25) / rows
                self.rect((i + 0.2) / columns, v, (i + 0.8) / columns, v + (1 - v0) * 0.5 / rows, fill)
        return self

    def wheels(self, *positions: float, radius: float = 0.09, height: float = 0.3) -> Canvas:
        """Tyres with hubs standing on the lower edge."""
        for u in positions:
            self.disc(u, height / 2, radius, height * 0.62, BLACK).disc(u, height / 2, radius / 2, height * 0.3, LIGHT)
        return self

    def pair(self, u: float, v0: float, v1: float, width: float, fill: str | tuple[int, int, int]) -> Canvas:
        """The same small rectangle left and right."""
        return self.rect(u, v0, u + width, v1, fill).rect(1 - u - width, v0, 1 - u, v1, fill)


def _drawings() -> dict[str, Canvas]:
    c = Canvas
    return {
        "paint": c(PAINT),
        "trim": c(TRIM),
        "dark": c(DARK),
        "under": c(BLACK),
        "steel": c(STEEL),
        "skin": c(SKIN),
        "hair": c(HAIR),
        # car
        "car_side": c(PAINT)
        .rect(0, 0, 1, 0.16, DARK)
        .rect(0.44, 0.3, 0.46, 0.95, DARK)
        .rect(0, 0.86, 1, 0.92, LIGHT)
        .rect(0.94, 0.62, 1, 0.82, LAMP)
        .rect(0, 0.62, 0.05, 0.82, TAIL)
        .wheels(0.19, 0.8, height=0.55),
        "car_front": c(PAINT)
        .rect(0, 0, 1, 0.16, DARK)
        .rect(0.3, 0.3, 0.7, 0.62, BLACK)
        .pair(0.03, 0.58, 0.85, 0.2, LAMP),
        "car_back": c(PAINT)
        .rect(0, 0, 1, 0.2, DARK)
        .rect(0.36, 0.34, 0.64, 0.56, WHITE)
        .pair(0.0, 0.55, 0.9, 0.22, TAIL),
        "cabin_side": c(PAINT).rect(0.08, 0.12, 0.92, 0.86, GLASS).rect(0.48, 0, 0.53, 1, PAINT),
        "windscreen": c(PAINT).rect(0.07, 0.06, 0.93, 0.92, SKY_GLASS),
        "rear_glass": c(PAINT).rect(0.1, 0.15, 0.9, 0.85, BLACK),
        # truck
        "cab_side": c(PAINT).rect(0.2, 0.5, 0.85, 0.88, GLASS).rect(0.1, 0.1, 0.14, 0.9, DARK),
        "cab_front": c(PAINT)
        .rect(0.06, 0.5, 0.94, 0.9, SKY_GLASS)
        .rect(0.25, 0.16, 0.75, 0.42, BLACK)
        .pair(0.03, 0.08, 0.26, 0.16, LAMP),
        "cargo_side": c(TRIM).rect(0, 0.42, 1, 0.58, PAINT).stripes(9, 0, GREY, 0.06),
        "cargo_back": c(TRIM).rect(0.48, 0, 0.52, 1, DARK).rect(0, 0, 1, 0.08, RED).pair(0.02, 0.1, 0.24, 0.16, TAIL),
        "chassis_side": c(DARK).wheels(0.12, 0.26, 0.85, radius=0.065, height=0.95),
        # bus
        "bus_side": c(PAINT)
        .rect(0, 0.48, 1, 0.86, GLASS)
        .stripes(8, 0, PAINT, 0.08)
        .rect(0, 0, 1, 0.48, PAINT)
        .rect(0, 0.34, 1, 0.42, TRIM)
        .rect(0.9, 0.08, 0.97, 0.84, GLASS)
        .rect(0, 0.86, 1, 1, PAINT)
        .wheels(0.22, 0.76, radius=0.05, height=0.27),
        "bus_front": c(PAINT)
        .rect(0.04, 0.36, 0.96, 0.84, SKY_GLASS)
        .rect(0.2, 0.87, 0.8, 0.97, AMBER)
        .pair(0.05, 0.12, 0.24, 0.17, LAMP)
        .rect(0, 0, 1, 0.06, BLACK),
        "bus_back": c(PAINT)
        .rect(0.12, 0.55, 0.88, 0.82, BLACK)
        .rect(0.2, 0.12, 0.8, 0.38, DARK)
        .pair(0.02, 0.12, 0.42, 0.1, TAIL),
        # trailer
        "trailer_side": c(TRIM).stripes(16, 0, LIGHT, 0.4).rect(0, 0, 1, 0.1, PAINT).rect(0, 0.9, 1, 1, PAINT),
        "trailer_back": c(WHITE)
        .stripes(4, 1.0, RED)
        .rect(0.12, 0.2, 0.88, 0.92, TRIM)
        .rect(0.48, 0.2, 0.52, 0.92, DARK)
        .pair(0.02, 0.02, 0.14, 0.18, TAIL),
        "trailer_front": c(TRIM).rect(0.1, 0.1, 0.9, 0.9, GREY),
        "trailer_chassis": c(BLACK).rect(0.5, 0.45, 0.8, 1, STEEL).wheels(0.1, 0.21, 0.32, radius=0.055, height=0.95),
        # construction vehicle
        "digger_side": c(PAINT).rect(0, 0, 1, 0.16, BLACK).rect(0.06, 0.4, 0.4, 0.82, DARK).stripes(1, 0, PAINT, 0.02),
        "digger_back": c(BLACK).stripes(4, 1.0, PAINT),
        "digger_cab": c(PAINT).rect(0.15, 0.15, 0.85, 0.88, GLASS),
        "digger_cab_front": c(PAINT).rect(0.1, 0.08, 0.9, 0.92, SKY_GLASS),
        "tracks": c(BLACK).stripes(14, 0, GREY, 0.3).rect(0.05, 0.3, 0.95, 0.7, DARK),
        # people
        "legs_side": c(TRIM).rect(0, 0, 1, 0.12, BLACK),
        "legs_front": c(TRIM).rect(0.46, 0, 0.54, 0.9, BLACK).rect(0, 0, 1, 0.1, BLACK),
        "torso_front": c(PAINT).rect(0.4, 0.1, 0.6, 1, WHITE).pair(0.0, 0.0, 0.9, 0.12, DARK),
        "torso_back": c(PAINT).rect(0.22, 0.2, 0.78, 0.9, DARK),
        "torso_side": c(PAINT).rect(0.3, 0.05, 0.7, 0.9, DARK).rect(0.3, 0, 0.7, 0.1, SKIN),
        "face": c(SKIN).rect(0, 0.75, 1, 1, HAIR).pair(0.2, 0.45, 0.6, 0.18, BLACK),
        "head_side": c(SKIN).rect(0, 0.3, 0.5, 1, HAIR).rect(0, 0.75, 1, 1, HAIR),
        # cycles
        "tyre_low": c(BLACK).disc(0.5, 1.0, 0.33, 0.66, LIGHT).disc(0.5, 1.0, 0.12, 0.24, DARK),
        "tyre_high": c(BLACK).disc(0.5, 0.0, 0.33, 0.66, LIGHT).disc(0.5, 0.0, 0.12, 0.24, DARK),
        "engine": c(PAINT).rect(0.25, 0.0, 0.8, 0.5, STEEL).stripes(1, 0, PAINT, 0.02).rect(0.3, 0.1, 0.7, 0.3, DARK),
        "frame": c(PAINT).rect(0.0, 0.0, 0.3, 0.2, BLACK),
        "head_lamp": c(BLACK).rect(0.1, 0.3, 0.9, 1, LAMP),
        "tail_lamp": c(BLACK).rect(0.1, 0.3, 0.9, 1, TAIL),
        # street furniture
        "cone": c(ORANGE).rect(0, 0.3, 1, 0.5, WHITE).rect(0, 0.68, 1, 0.82, WHITE),
        "barrier_long": c(WHITE).stripes(5, 0.4, RED).rect(0, 0.42, 1, 0.54, GREY).rect(0, 0, 1, 0.08, DARK),
        "barrier_end": c(WHITE).rect(0, 0.42, 1, 0.54, GREY).rect(0, 0, 1, 0.08, DARK),
        # scenery
        "house_a": c(PAINT).windows(6, 3, GLASS, 0.12).rect(0, 0, 1, 0.1, TRIM),
        "house_b": c(PAINT).windows(9, 4, SKY_GLASS).rect(0.42, 0, 0.55, 0.2, DARK),
        "house_c": c(PAINT).bands(4, GLASS, 0.45).stripes(10, 0, PAINT, 0.15),
        "roof": c(CONCRETE),
        "bark": c(BARK).stripes(4, 0.2, DARK, 0.3),
        "leaves": c(PAINT).stripes(9, 0.9, GREEN, 0.3).stripes(7, -0.7, LEAF, 0.25),
    }


@lru_cache(maxsize=1)
def texture_pyramids() -> dict[str, list[np.ndarray]]:
    """All textures, each as a pyramid of contiguous float32 arrays [S, S, 5] from 256 down to 2 pixels."""
    pyramids = {}
    for name, canvas in _drawings().items():
        levels = [canvas.layers]
        while levels[-1].shape[0] > 2:
            fine = levels[-1]
            levels.append((fine[::2, ::2] + fine[1::2, ::2] + fine[::2, 1::2] + fine[1::2, 1::2]) / 4)
        pyramids[name] = levels
    return pyramids


def paint_texture(layers: np.ndarray, paint: np.ndarray, trim: np.ndarray, light: float, air: np.ndarray) -> np.ndarray:
    """Fill the colour slots, light the face and add the air in front of it.

    Args:
        layers: [S, S, 5] from `texture_pyramids`.
        paint, trim: [3] BGR.
        light: factor on all colours.
        air: [3] BGR, added.

    Returns:
        uint8 BGR [S, S, 3].
    """
    colours = np.concatenate([np.eye(3), paint[:, None], trim[:, None]], 1) * light
    return cv2.convertScaleAbs(cv2.transform(layers, np.concatenate([colours, air[:, None]], 1)))


def hsv_colour(hue: float, saturation: float, value: float) -> np.ndarray:
    """BGR float32 [3] in 0..255 of a hue in degrees, saturation and value in [0, 1]."""
    pixel = np.array([[[hue % 360.0, saturation, value]]], np.float32)
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR)[0, 0] * 255.0
