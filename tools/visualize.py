"""Draw one sample as a PNG: boxes on the six images and in bird's-eye view, truth and prediction.

    python tools/visualize.py --data-root data/mini --split val --index 3 --out frame.png
    python tools/visualize.py --data-root data/mini --split val --index 3 \\
        --predictions work_dirs/streampetr/results_nusc.json --score-thr 0.3 --out frame.png
    python tools/visualize.py --data-root data/mini --split val --index 3 --heatmap --out targets.png

In: an info file of tools/create_infos.py, the images and lidar points it names, and optionally detections in the
nuScenes results format, which evaluation writes. Out: one picture.
"""

from __future__ import annotations

import argparse
import json
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path

import shared.environment  # noqa: F401

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image, UnidentifiedImageError
from shared.drawing import (
    BACKGROUND,
    PREDICTION,
    TEXT,
    TRUTH,
    Boxes,
    draw_bird_eye_view,
    draw_camera,
    predicted_boxes,
    truth_boxes,
)
from shared.heatmap_layers import BEV_EXTENT, CAMERA_COLOR, GRID, STRIDE, bev_layer, camera_layer

_ROWS = (("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"), ("CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"))
_TILE = (720, 405)  # pixels, width and height of a camera picture
_GAP, _HEADER = 8, 52
_BEV = 2 * _TILE[1] + _GAP
_SIZE = (3 * _TILE[0] + _BEV + 5 * _GAP, _BEV + _HEADER + _GAP)


def draw_sample(
    info: dict,
    data_root: str | Path,
    predictions: Sequence[dict] | None = None,
    score_threshold: float = 0.3,
    heatmap: bool = False,
) -> np.ndarray:
    """Picture of one sample.

    Args:
        info: an entry of `data_list` of an info file.
        data_root: folder that holds `samples/`.
        predictions: detections of this sample in the nuScenes results format (global frame), or None to draw only
            the truth.
        score_threshold: detections below it are left out.
        heatmap: draw the heatmap targets: StreamPETR's 2D head on the cameras, CenterPoint's head from above.

    Returns:
        [H, W, 3] uint8 RGB: six cameras, bird's-eye view, header with legend.

    Raises:
        ValueError: an image is missing or cannot be read.
    """
    groups = [truth_boxes(info)]
    if predictions is not None:
        groups.append(predicted_boxes(info, predictions, score_threshold))
    figure = Figure(figsize=(_SIZE[0] / 100, _SIZE[1] / 100), dpi=100, facecolor=BACKGROUND)
    canvas = FigureCanvasAgg(figure)
    for row, cameras in enumerate(_ROWS):
        for column, camera in enumerate(cameras):
            left, top = _GAP + column * (_TILE[0] + _GAP), _HEADER + row * (_TILE[1] + _GAP)
            entry = info["images"][camera]
            image, scale = _load_image(Path(data_root), camera, entry["img_path"], info["token"])
            axes = figure.add_axes(_place(left, top, *_TILE))
            draw_camera(axes, camera.removeprefix("CAM_").replace("_", " "), image, scale, entry, groups)
            if heatmap:
                instances = info.get("cam_instances", {}).get(camera, [])
                width, height = (round(side / scale) for side in (image.shape[1], image.shape[0]))
                layer = camera_layer(instances, width, height)
                covered = layer.shape[1] * STRIDE * scale, layer.shape[0] * STRIDE * scale
                axes.imshow(layer, extent=(0, covered[0], covered[1], 0), interpolation="nearest", zorder=0.5)
                axes.set(xlim=(0, image.shape[1]), ylim=(image.shape[0], 0))
    axes = figure.add_axes(_place(_SIZE[0] - _BEV - _GAP, _HEADER, _BEV, _BEV))
    draw_bird_eye_view(axes, groups, _load_points(Path(data_root), info))
    if heatmap:
        limits = axes.get_xlim(), axes.get_ylim()
        axes.imshow(bev_layer(info), extent=BEV_EXTENT, origin="lower", interpolation="nearest", zorder=0.5)
        axes.set(xlim=limits[0], ylim=limits[1])
    _header(figure, info, groups, score_threshold, heatmap)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3].copy()


def load_infos(path: Path) -> list[dict]:
    """Entries of a v2 info file.

    Raises:
        ValueError: the file is missing or not such a file.
    """
    try:
        with path.open("rb") as file:
            content = pickle.load(file)
        entries = content["data_list"]
    except FileNotFoundError as error:
        raise ValueError(f"info file {path} does not exist; tools/create_infos.py makes it") from error
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not an info file of tools/create_infos.py") from error
    return entries


def load_predictions(path: Path) -> dict[str, list[dict]]:
    """Sample token -> detections of a nuScenes results file.

    Raises:
        ValueError: the file is missing or not such a file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))["results"]
    except FileNotFoundError as error:
        raise ValueError(f"predictions {path} do not exist") from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not in the nuScenes results format (a JSON object with 'results')") from error


def _load_image(root: Path, camera: str, name: str, token: str) -> tuple[np.ndarray, float]:
    """RGB picture that fits a tile, and its scale against the file."""
    path = Path(name) if "/" in name else root / "samples" / camera / name
    try:
        with Image.open(path) as image:
            scale = min(_TILE[0] / image.width, _TILE[1] / image.height)
            size = round(image.width * scale), round(image.height * scale)
            return np.asarray(image.convert("RGB").resize(size, Image.Resampling.LANCZOS)), scale
    except FileNotFoundError as error:
        raise ValueError(f"image {path} does not exist; is --data-root right?") from error
    except (UnidentifiedImageError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise ValueError(f"image {path} cannot be read: {error.strerror}") from error
        size = path.stat().st_size
        raise ValueError(f"camera image {path} is broken ({size} bytes), frame {token}: copy the file again") from error


def _load_points(root: Path, info: dict) -> np.ndarray | None:
    """Lidar points [P, 5] of the sample, or None where the file is not there."""
    name = info["lidar_points"]["lidar_path"]
    path = Path(name) if "/" in name else root / "samples" / "LIDAR_TOP" / name
    if not path.is_file():
        return None
    values = np.fromfile(path, dtype=np.float32)
    return values[: len(values) // 5 * 5].reshape(-1, 5)


def _place(left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
    """matplotlib's place of a rectangle given in pixels from the top left corner."""
    return left / _SIZE[0], 1 - (top + height) / _SIZE[1], width / _SIZE[0], height / _SIZE[1]


def _header(figure: Figure, info: dict, groups: list[Boxes], score_threshold: float, heatmap: bool) -> None:
    middle = 1 - _HEADER / 2 / _SIZE[1]
    title = f"{info.get('scene_name', '')}  frame {info.get('frame_idx', '?')}"
    figure.text(_GAP / _SIZE[0], middle, title, color=TEXT, fontsize=17, weight="bold", va="center")
    figure.text(0.14, middle, info["token"], color=TEXT, alpha=0.55, fontsize=11, va="center", family="monospace")
    lines = [Line2D([], [], color=TRUTH, linewidth=3, label=f"truth ({len(groups[0])})")]
    if len(groups) > 1:
        label = f"prediction, score \u2265 {score_threshold:g} ({len(groups[1])})"
        lines.append(Line2D([], [], color=PREDICTION, linewidth=3, label=label))
    lines.append(Line2D([], [], color=TEXT, linewidth=1.5, linestyle=":", label="motion in 1 s"))
    if heatmap:
        cell = GRID.voxel_size[0] * GRID.voxels_per_cell
        label = f"heatmap targets, cells of {STRIDE} pixels and {cell:g} m"
        lines.append(Line2D([], [], color=CAMERA_COLOR, linewidth=0, marker="s", markersize=9, label=label))
    figure.legend(
        handles=lines, loc="center right", bbox_to_anchor=(1 - _GAP / _SIZE[0], middle), ncols=len(lines),
        frameon=False, labelcolor=TEXT, fontsize=13, borderaxespad=0,
    )  # fmt: skip


def _find(entries: list[dict], index: int, token: str | None, path: Path) -> dict:
    if not entries:
        raise ValueError(f"{path} has no samples")
    if token is not None:
        for entry in entries:
            if entry["token"] == token:
                return entry
        raise ValueError(f"{path} has no sample {token}")
    if not 0 <= index < len(entries):
        raise ValueError(f"--index must be from 0 to {len(entries) - 1} for {path}, got {index}")
    return entries[index]


def _parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path("data/mini"), help="default: data/mini")
    parser.add_argument("--split", default="val", choices=["train", "val", "test"], help="default: val")
    parser.add_argument("--infos", type=Path, help="info file (default: nuscenes_infos_SPLIT.pkl of the data root)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--index", type=int, default=0, help="place of the sample in the info file (default: 0)")
    which.add_argument("--token", help="sample token instead of a place")
    parser.add_argument(
        "--predictions", type=Path, help="detections in the nuScenes results format (results_nusc.json)"
    )
    parser.add_argument("--score-thr", type=float, default=0.3, help="leave out detections below (default: 0.3)")
    parser.add_argument("--heatmap", action="store_true", help="draw the heatmap targets over the pictures")
    parser.add_argument("--out", type=Path, default=Path("sample.png"), help="picture to write (default: sample.png)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    arguments = _parse_arguments(argv)
    path = arguments.infos or arguments.data_root / f"nuscenes_infos_{arguments.split}.pkl"
    try:
        info = _find(load_infos(path), arguments.index, arguments.token, path)
        detections = None
        if arguments.predictions:
            detections = load_predictions(arguments.predictions).get(info["token"])
            if detections is None:
                raise ValueError(
                    f"{arguments.predictions} has no entry for sample {info['token']}; is it another split?"
                )
        picture = draw_sample(info, arguments.data_root, detections, arguments.score_thr, arguments.heatmap)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(arguments.out)
    except (ValueError, OSError) as error:
        print(f"visualize: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.out}: {picture.shape[1]}x{picture.shape[0]} pixels")
    return 0


if __name__ == "__main__":
    sys.exit(main())
