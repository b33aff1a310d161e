"""Camera images: textured blocks in front of ground and sky, hidden surfaces removed pixel by pixel.

In: a `Scene`, its `Backdrop`, a keyframe number and a camera. Out: a `View` with the picture, the object number and
the inverse depth of every pixel, and how much of each object is seen.

Inverse depth is affine in pixel coordinates on a plane, so the depth test needs no interpolation. The world stands
still at the keyframe's time stamp, as the annotations do; each camera sees it from where the car is at exposure.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .geometry import yaw_matrix
from .layout import Scene, Thing
from .models import FACE_CORNERS, LEFT, MODELS, object_corners
from .rig import IMAGE_HEIGHT, IMAGE_WIDTH, Sensor, sensor_to_global
from .scenery import ELEVATION, PANORAMA, RESOLUTION, Ground, haze_colour, make_ground, make_sky
from .textures import SIZE, paint_texture, texture_pyramids

NEAR = 0.2  # metres; nothing is drawn closer to the camera
FAR = 140.0
VISIBLE_RANGE = 260.0  # metres over which the air takes about two thirds of the contrast
SHADOW_RESOLUTION = 0.2
SHADOW_HALF = 60.0
SHADOW_HEIGHT = 4.0  # taller objects cast no longer shadows, or houses would darken the whole street
SUBPIXEL_BITS = 4


@dataclass(frozen=True)
class Backdrop:
    """What a scene's images have in common.

    Attributes:
        scene: the scene.
        ground, sky: top view and panorama.
        haze: [3] colour of distant air.
        corners: block corners [K, 8, 3] of every thing in its own frame.
    """

    scene: Scene
    ground: Ground
    sky: np.ndarray
    haze: np.ndarray
    corners: list[np.ndarray]


@dataclass(frozen=True)
class View:
    """One camera's image of a keyframe.

    Attributes:
        image: [900, 1600, 3] BGR uint8.
        owner: [900, 1600] uint16, 1 + index of the thing seen, 0 for ground and sky.
        inverse_depth: [900, 1600] float32, 1 / metres along the optical axis, 0 for ground and sky.
        seen: [things] visible pixels.
        alone: [things] pixels that would be visible if nothing stood in front.
    """

    image: np.ndarray
    owner: np.ndarray
    inverse_depth: np.ndarray
    seen: np.ndarray
    alone: np.ndarray


def make_backdrop(scene: Scene) -> Backdrop:
    corners = [object_corners(thing.kind, thing.size) for thing in scene.things]
    return Backdrop(scene, make_ground(scene), make_sky(scene), haze_colour(scene), corners)


def world_corners(backdrop: Backdrop, frame: int) -> list[np.ndarray]:
    """Block corners [K, 8, 3] of every thing in the world at a keyframe."""
    placed = []
    for thing, corners in zip(backdrop.scene.things, backdrop.corners, strict=True):
        x, y, yaw = thing.poses[frame]
        placed.append(corners @ yaw_matrix(yaw).T + np.array([x, y, 0.0]))
    return placed


def shadow_map(backdrop: Backdrop, corners: list[np.ndarray], ego: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Darkness of the ground around the ego car.

    Returns:
        float32 [n, n] in [0, 1] and the matrix [3, 3] from world ground coordinates to its pixels.
    """
    n = int(2 * SHADOW_HALF / SHADOW_RESOLUTION)
    low = np.floor(ego[:2]) - SHADOW_HALF
    cast, contact = np.zeros((n, n), np.uint8), np.zeros((n, n), np.uint8)
    slant = -backdrop.scene.sun[:2] / backdrop.scene.sun[2]
    for blocks in corners:
        centre = blocks[..., :2].mean((0, 1))
        if np.abs(centre - ego[:2]).max() > SHADOW_HALF + 15.0:
            continue
        flat = blocks.reshape(-1, 3)
        thrown = flat[:, :2] + slant * np.minimum(flat[:, 2:], SHADOW_HEIGHT)
        base = flat[flat[:, 2] < 0.5, :2]
        for canvas, points in ((cast, thrown), (contact, centre + (base - centre) * 1.08)):
            pixels = np.round(((points - low) / SHADOW_RESOLUTION - 0.5) * 16).astype(np.int32)
            cv2.fillConvexPoly(canvas, cv2.convexHull(pixels), 255, cv2.LINE_AA, SUBPIXEL_BITS)
    strength = (0.42, 0.12, 0.36)[backdrop.scene.sky_mood]
    darkness = np.maximum(
        cv2.GaussianBlur(cast, (0, 0), 1.0).astype(np.float32) * (strength / 255),
        cv2.GaussianBlur(contact, (0, 0), 1.6).astype(np.float32) * (0.62 / 255),
    )
    scale = 1 / SHADOW_RESOLUTION
    return darkness, np.array([[scale, 0, -low[0] * scale - 0.5], [0, scale, -low[1] * scale - 0.5], [0, 0, 1.0]])


def render(
    backdrop: Backdrop,
    sensor: Sensor,
    ego_pose: np.ndarray,
    corners: list[np.ndarray],
    shadow: tuple[np.ndarray, np.ndarray],
) -> View:
    """One image.

    Args:
        backdrop: the scene's.
        sensor: a camera.
        ego_pose: [3] ego pose at exposure.
        corners: from `world_corners`.
        shadow: from `shadow_map`.
    """
    rotation, position = sensor_to_global(sensor, ego_pose)
    image = np.empty((IMAGE_HEIGHT, IMAGE_WIDTH, 3), np.uint8)
    _draw_sky(image, backdrop, sensor, rotation)
    _draw_ground(image, backdrop, sensor, rotation, position, shadow)
    return _Rasteriser(backdrop, sensor.intrinsic, rotation, position, image).draw(corners)


def _horizon(intrinsic: np.ndarray, rotation: np.ndarray) -> int:
    """First image row that shows ground; the rigs have no roll, so the horizon is level."""
    return int(np.ceil(intrinsic[1, 2] + intrinsic[1, 1] * rotation[2, 2] / np.hypot(rotation[0, 2], rotation[1, 2])))


def _draw_sky(image: np.ndarray, backdrop: Backdrop, sensor: Sensor, rotation: np.ndarray) -> None:
    rows = min(max(_horizon(sensor.intrinsic, rotation) + 2, 0), IMAGE_HEIGHT)
    step = 4  # the panorama is smooth: its coordinates are computed on a coarse grid
    u, v = np.meshgrid(np.arange(0, IMAGE_WIDTH + step, step), np.arange(0, rows + step, step))
    k = sensor.intrinsic
    rays = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones_like(u, float)], -1) @ rotation.T
    middle = np.arctan2(rotation[1, 2], rotation[0, 2])
    turn = (middle - np.arctan2(rays[..., 1], rays[..., 0]) + np.pi) % (2 * np.pi) - np.pi
    elevation = np.arctan2(rays[..., 2], np.hypot(rays[..., 0], rays[..., 1]))
    map_x = (turn - middle) * (PANORAMA[0] / (2 * np.pi))
    map_y = (ELEVATION[1] - elevation) * (PANORAMA[1] / (ELEVATION[1] - ELEVATION[0]))
    size = (map_x.shape[1] * step, map_x.shape[0] * step)
    # cv2.resize works on pixel centres; shift its grid by the half cell it would otherwise be off.
    fine = [cv2.resize(m.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) for m in (map_x, map_y)]
    image[:rows] = cv2.remap(
        backdrop.sky,
        fine[0][:rows, :IMAGE_WIDTH],
        fine[1][:rows, :IMAGE_WIDTH],
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_WRAP,
    )


def _draw_ground(
    image: np.ndarray,
    backdrop: Backdrop,
    sensor: Sensor,
    rotation: np.ndarray,
    position: np.ndarray,
    shadow: tuple[np.ndarray, np.ndarray],
) -> None:
    ground, k = backdrop.ground, sensor.intrinsic
    top = _horizon(k, rotation) + 1
    to_camera = k @ np.concatenate([rotation.T[:, :2], (-rotation.T @ position)[:, None]], 1)
    edges = _level_rows(k, rotation, position[2], top, len(ground.levels))
    for level, (begin, end) in enumerate(edges):
        if end > begin:
            matrix = _shift_rows(begin) @ to_camera @ np.linalg.inv(ground.to_pixels(level))
            cv2.warpPerspective(
                ground.levels[level],
                matrix,
                (IMAGE_WIDTH, end - begin),
                dst=image[begin:end],
                flags=cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_CONSTANT,
                borderValue=ground.plain,
            )
    darkness, to_shadow = shadow
    rows = IMAGE_HEIGHT - top
    matrix = _shift_rows(top) @ to_camera @ np.linalg.inv(to_shadow)
    dark = cv2.warpPerspective(darkness, matrix, (IMAGE_WIDTH, rows), flags=cv2.INTER_LINEAR, borderValue=0.0)
    depth = _row_depth(k, rotation, position[2], np.arange(top, IMAGE_HEIGHT))
    clear = np.broadcast_to(np.exp(-depth / VISIBLE_RANGE).astype(np.float32)[:, None], dark.shape)
    air = np.empty((rows, IMAGE_WIDTH, 3), np.uint8)
    air[:] = backdrop.haze
    lit = cv2.multiply(image[top:], cv2.merge([1.0 - dark] * 3), dtype=cv2.CV_8U)
    cv2.blendLinear(lit, air, np.ascontiguousarray(clear), 1.0 - clear, dst=image[top:])


def _shift_rows(begin: int) -> np.ndarray:
    return np.array([[1.0, 0.0, 0.0], [0.0, 1.0, -begin], [0.0, 0.0, 1.0]])


def _row_depth(k: np.ndarray, rotation: np.ndarray, height: float, rows: np.ndarray) -> np.ndarray:
    """Depth of the ground along the optical axis for image rows below the horizon."""
    falling = -(rotation[2, 1] * (rows - k[1, 2]) / k[1, 1] + rotation[2, 2])
    return height / np.maximum(falling, 1e-6)


def _level_rows(k: np.ndarray, rotation: np.ndarray, height: float, top: int, levels: int) -> list[tuple[int, int]]:
    """Image rows [begin, end) for each ground level: far rows take the coarse ones."""
    rows = np.arange(top, IMAGE_HEIGHT)
    depth = _row_depth(k, rotation, height, rows)
    pixel = depth**1.5 / (k[0, 0] * np.sqrt(height))  # geometric mean of a pixel's two sides on the ground
    chosen = np.clip(np.floor(np.log2(pixel / RESOLUTION) + 0.5), 0, levels - 1).astype(int)
    edges = [top + int(np.count_nonzero(chosen > level)) for level in range(levels)]
    upper = [IMAGE_HEIGHT, *edges[:-1]]
    return list(zip(edges, upper, strict=True))


class _Rasteriser:
    """Draws blocks face by face into image, owner and inverse depth."""

    def __init__(
        self, backdrop: Backdrop, intrinsic: np.ndarray, rotation: np.ndarray, position: np.ndarray, image: np.ndarray
    ) -> None:
        self.backdrop, self.k, self.rotation, self.position = backdrop, intrinsic, rotation, position
        self.k_inverse = np.linalg.inv(intrinsic)
        self.sun = backdrop.scene.sun @ rotation  # in the camera frame
        self.up = rotation.T @ np.array([0.0, 0.0, 1.0])
        self.image = image
        self.owner = np.zeros(image.shape[:2], np.uint16)
        self.inverse_depth = np.zeros(image.shape[:2], np.float32)
        self.pyramids = texture_pyramids()
        self.textures = {kind: [b.textures() for b in model.blocks] for kind, model in MODELS.items()}

    def draw(self, corners: list[np.ndarray]) -> View:
        """Draw all things, near ones first, so that hidden faces are found out before they are painted."""
        things = self.backdrop.scene.things
        alone = np.zeros(len(things), int)
        local = [(c - self.position) @ self.rotation for c in corners]
        depth = np.array([c[..., 2].min() for c in local])
        reach = np.array([c[..., 2].max() for c in local])
        for i in np.argsort(depth, kind="stable"):
            if reach[i] > NEAR and depth[i] < FAR and self._in_view(local[i]):
                alone[i] = self._draw_thing(int(i), things[i], local[i])
        seen = np.bincount(self.owner.ravel(), minlength=len(things) + 1)[1:]
        return View(self.image, self.owner, self.inverse_depth, seen, alone)

    def _in_view(self, local: np.ndarray) -> bool:
        flat = local.reshape(-1, 3)
        left = self.k[0, 2] / self.k[0, 0]
        right = (IMAGE_WIDTH - self.k[0, 2]) / self.k[0, 0]
        return bool((flat[:, 0] > -left * flat[:, 2]).any() and (flat[:, 0] < right * flat[:, 2]).any())

    def _draw_thing(self, index: int, thing: Thing, local: np.ndarray) -> int:
        quads = local[:, FACE_CORNERS]  # [K, 6, 4, 3]
        across = quads[:, :, 1] - quads[:, :, 0]
        up = (quads[:, :, 2] + quads[:, :, 3] - quads[:, :, 0] - quads[:, :, 1]) / 2
        normals = np.cross(across, up)
        normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-12)
        offset = (normals * quads[:, :, 0]).sum(-1)
        silhouettes = []
        for block, face in zip(*np.nonzero(offset < -1e-4), strict=True):
            polygon = self._project(quads[block, face])
            if polygon is not None:
                skin = (self.textures[thing.kind][block][face], face == LEFT)
                self._draw_face(index, thing, skin, quads[block, face], normals[block, face], polygon)
                silhouettes.append(polygon)
        return self._area(silhouettes) if thing.annotated and silhouettes else 0

    def _project(self, quad: np.ndarray) -> np.ndarray | None:
        """Image polygon of a face, clipped at the near plane; None if nothing is in the image."""
        if quad[:, 2].min() < NEAR:
            quad = _clip_near(quad)
            if len(quad) < 3:
                return None
        points = quad @ self.k.T
        points = points[:, :2] / points[:, 2:]
        low, high = points.min(0), points.max(0)
        if high[0] < 0 or high[1] < 0 or low[0] > IMAGE_WIDTH - 1 or low[1] > IMAGE_HEIGHT - 1:
            return None
        return points

    def _draw_face(
        self,
        index: int,
        thing: Thing,
        skin: tuple[str, bool],
        quad: np.ndarray,
        normal: np.ndarray,
        polygon: np.ndarray,
    ) -> None:
        x0, y0, x1, y1 = _bounds(polygon)
        mask = _fill(polygon, x0, y0, x1, y1)
        # n.X = n.P on the plane and X = z K^-1 (u, v, 1): 1/z = n K^-1 (u, v, 1) / n.P
        a, b, c = normal @ self.k_inverse / (normal @ quad[0])
        columns, rows = (a * np.arange(x0, x1) + c)[None], (b * np.arange(y0, y1))[:, None]
        inverse = columns.astype(np.float32) + rows.astype(np.float32)
        # Border pixels reach past the face; seen at a flat angle, the plane would leave it by metres there.
        np.clip(inverse, 1 / quad[:, 2].max(), 1 / max(quad[:, 2].min(), NEAR), out=inverse)
        front = mask.view(bool) & (inverse > self.inverse_depth[y0:y1, x0:x1])
        if not front.any():
            return
        colour = self._shaded(thing, skin, quad, normal, polygon, (x0, y0, x1, y1))
        front_mask = front.view(np.uint8)
        cv2.copyTo(colour, front_mask, self.image[y0:y1, x0:x1])
        cv2.copyTo(inverse, front_mask, self.inverse_depth[y0:y1, x0:x1])
        self.owner[y0:y1, x0:x1][front] = index + 1

    def _shaded(
        self,
        thing: Thing,
        skin: tuple[str, bool],
        quad: np.ndarray,
        normal: np.ndarray,
        polygon: np.ndarray,
        box: tuple[int, int, int, int],
    ) -> np.ndarray:
        """The face's texture, painted, lit, hazy and warped into the pixels of `box`; `skin` is (name, mirrored)."""
        x0, y0, x1, y1 = box
        texture, mirrored = skin
        levels = self.pyramids[texture]
        extent = max(np.ptp(polygon[:, 0]), np.ptp(polygon[:, 1]), 1.0)
        level = int(np.clip(np.floor(np.log2(SIZE / extent)), 0, len(levels) - 1))
        layers = levels[level]
        scene = self.backdrop.scene
        facing = max(float(normal @ self.sun), 0.0)
        sky_light = 0.5 + 0.5 * float(normal @ self.up)
        light = scene.ambient * (0.75 + 0.25 * sky_light) + (1.05 - scene.ambient) * facing
        clear = float(np.exp(-max(float(quad[:, 2].mean()), 0.0) / VISIBLE_RANGE))
        painted = paint_texture(layers, thing.paint, thing.trim, light * clear, self.backdrop.haze * (1 - clear))
        # The texture fills the parallelogram over the longer of the two level edges; a taper cuts its corners off.
        lower, upper = quad[1] - quad[0], quad[2] - quad[3]
        rise = (quad[2] + quad[3] - quad[0] - quad[1]) / 2
        wide, upper_left = (lower, quad[0] + rise) if lower @ lower >= upper @ upper else (upper, quad[3])
        if mirrored:
            wide, upper_left = -wide, upper_left + wide
        size = layers.shape[0]
        # Texture pixel (i, j) -> point (i + .5) / S along, (j + .5) / S down the face -> camera -> pixel in the box
        plane = np.stack([wide / size, -rise / size, upper_left], -1)
        half = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])
        shift = np.array([[1.0, 0.0, -x0], [0.0, 1.0, -y0], [0.0, 0.0, 1.0]])
        return cv2.warpPerspective(
            painted,
            shift @ self.k @ plane @ half,
            (x1 - x0, y1 - y0),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )

    def _area(self, polygons: list[np.ndarray]) -> int:
        """Pixels covered by the union of polygons."""
        boxes = np.array([_bounds(p) for p in polygons])
        x0, y0 = boxes[:, :2].min(0)
        x1, y1 = boxes[:, 2:].max(0)
        union = np.zeros((y1 - y0, x1 - x0), np.uint8)
        for polygon in polygons:
            _fill_into(union, polygon, x0, y0)
        return int(np.count_nonzero(union))


def _clip_near(quad: np.ndarray) -> np.ndarray:
    """Part of a polygon [n, 3] with z >= NEAR."""
    points = []
    for a, b in zip(quad, np.roll(quad, -1, 0), strict=True):
        if a[2] >= NEAR:
            points.append(a)
        if (a[2] >= NEAR) != (b[2] >= NEAR):
            points.append(a + (b - a) * ((NEAR - a[2]) / (b[2] - a[2])))
    return np.array(points).reshape(-1, 3)


def _bounds(polygon: np.ndarray) -> tuple[int, int, int, int]:
    """Pixel rectangle (x0, y0, x1, y1), ends exclusive, of a polygon that touches the image."""
    x0, y0 = np.floor(polygon.min(0)).astype(int)
    x1, y1 = np.ceil(polygon.max(0)).astype(int) + 1
    return max(x0, 0), max(y0, 0), min(x1, IMAGE_WIDTH), min(y1, IMAGE_HEIGHT)


def _fill(polygon: np.ndarray, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
    _fill_into(mask, polygon, x0, y0)
    return mask


def _fill_into(mask: np.ndarray, polygon: np.ndarray, x0: int, y0: int) -> None:
    # Fixed-point coordinates: a face right in front of the camera may reach far beyond what they can hold.
    points = np.clip((polygon - (x0, y0)) * (1 << SUBPIXEL_BITS), -(1 << 26), 1 << 26)
    cv2.fillConvexPoly(mask, np.round(points).astype(np.int32), 1, cv2.LINE_8, SUBPIXEL_BITS)
