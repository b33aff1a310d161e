#!/usr/bin/env python
"""Evaluate a checkpoint of an mm config.

Example:
    python tools/test.py configs/streampetr/streampetr_r18-352x128_1xb2-demo_nuscenes-mini_batched.py \
        work_dirs/demo/batched/iter_60.pth
"""

from __future__ import annotations

import argparse
from pathlib import Path

from raggedbev.mm.engine import add_common_arguments, load_config, run_as_command


def parse_args() -> argparse.Namespace:
    """The flags of mmdet3d's own tool that apply to multi-view detectors."""
    parser = argparse.ArgumentParser(description=__doc__.strip(), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument("--show-dir", help="draw the detections of each sample into WORK_DIR/TIMESTAMP/SHOW_DIR")
    parser.add_argument("--score-thr", type=float, default=0.3, help="lowest score that is drawn (default: 0.3)")
    add_common_arguments(parser)
    return parser.parse_args()


def main() -> None:
    """Build the runner that the command line describes, and test."""
    args = parse_args()
    if not Path(args.checkpoint).is_file():
        raise FileNotFoundError(f"no checkpoint file {args.checkpoint}")
    config = load_config(args)
    config.load_from = args.checkpoint
    config.resume = False
    if args.show_dir:
        config.default_hooks.visualization.update(
            draw=True, test_out_dir=args.show_dir, score_thr=args.score_thr, vis_task="multi-view_det"
        )

    from mmengine.runner import Runner

    Runner.from_cfg(config).test()


if __name__ == "__main__":
    run_as_command(main)
