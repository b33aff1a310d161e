#!/usr/bin/env python
"""Evaluate a checkpoint of an mm config.

Example:
    python tools/test.py configs/streampetr/streampetr_r18-352x128_1xb2-demo_nuscenes-mini_batched.py \\
        work_dirs/demo/batched/iter_10.pth --show-dir pictures
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import shared.environment  # noqa: F401

from raggedbev.mm.engine import ToolRunner, add_common_arguments, load_config, require_checkpoint, run_as_command

MULTI_VIEW = "multi-view_det"
TASKS = ["mono_det", MULTI_VIEW, "lidar_det", "lidar_seg", "multi-modality_det"]


def parse_args() -> argparse.Namespace:
    """The flags of mmdet3d's own tool, with the same meaning."""
    parser = argparse.ArgumentParser(description=__doc__.strip(), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument("--show", action="store_true", help="open each picture on the screen")
    parser.add_argument("--show-dir", help="draw the detections of each sample into WORK_DIR/TIMESTAMP/SHOW_DIR")
    parser.add_argument("--score-thr", type=float, default=0.1, help="lowest score that is drawn (default: 0.1)")
    parser.add_argument("--task", choices=TASKS, default=MULTI_VIEW, help=f"drawing is for {MULTI_VIEW}")
    parser.add_argument("--wait-time", type=float, default=2, help="seconds between two pictures on the screen")
    parser.add_argument("--tta", action="store_true", help="test time augmentation, for configs with tta_model")
    add_common_arguments(parser)
    return parser.parse_args()


def main() -> None:
    """Build the runner that the command line describes, test, and draw if asked to."""
    args = parse_args()
    require_checkpoint(args.checkpoint)
    config = load_config(args)
    config.load_from = args.checkpoint
    config.resume = False
    draw = args.show or args.show_dir
    if draw and args.task != MULTI_VIEW:
        raise ValueError(f"only {MULTI_VIEW} results can be drawn, got --task {args.task}")
    if args.tta:
        if "tta_model" not in config or "tta_pipeline" not in config:
            raise ValueError("--tta needs tta_model and tta_pipeline in the config")
        config.test_dataloader.dataset.pipeline = config.tta_pipeline
        config.model = dict(**config.tta_model, module=config.model)

    runner = ToolRunner.from_cfg(config)
    folder = Path(runner.log_dir) / (args.show_dir or "pictures")
    if draw:
        runner.test_evaluator.metrics[0].jsonfile_prefix = str(folder)
    runner.test()
    if draw and runner.rank == 0:
        draw_results(config.test_evaluator, folder, args)


def draw_results(evaluator: dict, folder: Path, args: argparse.Namespace) -> None:
    """Draw every evaluated sample, truth and detections, into `folder`, and show it if asked to."""
    import mmengine
    from mmengine.utils import track_iter_progress
    from PIL import Image
    from visualize import draw_sample

    results = mmengine.load(folder / "pred_instances_3d" / "results_nusc.json")["results"]
    infos = [info for info in mmengine.load(evaluator["ann_file"])["data_list"] if info["token"] in results]
    for info in track_iter_progress(infos):
        picture = Image.fromarray(draw_sample(info, evaluator["data_root"], results[info["token"]], args.score_thr))
        if args.show_dir:
            picture.save(folder / f"{info['token']}.png")
        if args.show:
            picture.show()
            time.sleep(args.wait_time)
    if args.show_dir:
        print(f"{len(infos)} pictures in {folder}")


if __name__ == "__main__":
    run_as_command(main)
